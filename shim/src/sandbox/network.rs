//! The loopback of a sandbox with a network of its own.
//!
//! runsc takes over the interfaces that are up when the container starts (`runsc/sandbox/network.go` in gVisor). In a
//! namespace that it has just made none is. runc brings the loopback up, and clients count on that: nerdctl's networks
//! have no loopback plugin.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Error, Result};

nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);

/// Brings up the loopback in the network namespace of a process; the kernel gives it its addresses.
///
/// # Errors
/// When the namespace cannot be entered or the interface cannot be set.
pub(crate) fn bring_up_loopback(pid: u32) -> Result<()> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    // A thread of its own, which ends in there: the shim itself stays where it is.
    let thread = std::thread::Builder::new().spawn(move || in_namespace(&path));
    let done = thread.and_then(|thread| {
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("panicked")))
    });
    done.map_err(|error| Error::io("bring up the sandbox's loopback", &error))
}

fn in_namespace(path: &Path) -> io::Result<()> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: all fields are plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the kernel reads a name that ends with a zero and writes the flags; the request outlives both calls.
    unsafe {
        get_flags(socket.as_raw_fd(), &raw mut request)?;
        #[expect(clippy::cast_possible_truncation, reason = "the flag is the first bit")]
        let up = libc::IFF_UP as libc::c_short;
        request.ifr_ifru.ifru_flags |= up;
        set_flags(socket.as_raw_fd(), &raw const request)?;
    }
    Ok(())
}
