//! Terminals: the socket on which runsc hands over the master of the one it made, and terminals of the shim's own for
//! exec.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::pty::{OpenptyResult, openpty};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, Result};

/// How long runsc may take to hand over the terminal once it has connected.
const HANDOVER_LIMIT: Duration = Duration::from_secs(10);

/// The `--console-socket` of one `runsc create`.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// # Errors
    /// When the socket cannot be bound.
    pub(crate) fn bind(path: PathBuf) -> Result<Self> {
        let listener =
            UnixListener::bind(&path).map_err(|e| Error::io("bind the console socket", &e))?;
        Ok(Self { path, listener })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the master that runsc sent; call after `create` has succeeded.
    ///
    /// # Errors
    /// When none arrives in time.
    pub(crate) async fn receive(&self) -> Result<OwnedFd> {
        let receive = async {
            let (stream, _) = self.listener.accept().await?;
            receive_fd(&stream).await
        };
        match tokio::time::timeout(HANDOVER_LIMIT, receive).await {
            Ok(received) => received.map_err(|e| Error::io("receive the terminal from runsc", &e)),
            Err(_) => Err(Error::internal(format!(
                "runsc sent no terminal within {HANDOVER_LIMIT:?}"
            ))),
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn receive_fd(stream: &UnixStream) -> io::Result<OwnedFd> {
    stream
        .async_io(Interest::READABLE, || {
            let mut data = [0_u8; 64];
            let mut iov = [IoSliceMut::new(&mut data)];
            let mut control = nix::cmsg_space!(std::os::fd::RawFd);
            let fd = stream.as_raw_fd();
            let message =
                recvmsg::<()>(fd, &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
            for cmsg in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(fds) = cmsg
                    && let Some(fd) = fds.first()
                {
                    // SAFETY: the kernel has just installed this descriptor for us, and nothing else knows of it.
                    return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
                }
            }
            Err(io::Error::other("no descriptor in the message"))
        })
        .await
}

/// A terminal for an exec'd process: master and replica.
///
/// # Errors
/// When the system has no terminals left.
pub(crate) fn open() -> Result<(OwnedFd, OwnedFd)> {
    let OpenptyResult { master, slave } =
        openpty(None, None).map_err(|e| Error::internal(format!("open a terminal: {e}")))?;
    for fd in [&master, &slave] {
        let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(fd, flags)
            .map_err(|e| Error::internal(format!("open a terminal: {e}")))?;
    }
    Ok((master, slave))
}

nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);
nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);

/// A size in characters, as the kernel takes it.
///
/// # Errors
/// `InvalidArgument` when a side is above 65535.
pub(crate) fn size(width: u32, height: u32) -> Result<libc::winsize> {
    let side = |name: &str, value: u32| {
        u16::try_from(value).map_err(|_| Error::invalid(format!("{name}: {value} is above 65535")))
    };
    Ok(libc::winsize {
        ws_row: side("height", height)?,
        ws_col: side("width", width)?,
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}

/// Sets the size of a terminal; returns whether it had another one.
///
/// # Errors
/// As [`size`].
pub(crate) fn resize(master: &OwnedFd, width: u32, height: u32) -> Result<bool> {
    let size = size(width, height)?;
    let mut before = self::size(0, 0)?;
    // SAFETY: the descriptor is a terminal owned by the caller, and the size is written to a place of ours.
    let known = unsafe { get_window_size(master.as_fd().as_raw_fd(), &raw mut before) };
    let sides = |size: &libc::winsize| (size.ws_row, size.ws_col);
    if known.is_ok() && sides(&before) == sides(&size) {
        return Ok(false);
    }
    // SAFETY: the descriptor is a terminal owned by the caller and the size outlives the call.
    unsafe { set_window_size(master.as_fd().as_raw_fd(), &raw const size) }
        .map_err(|e| Error::internal(format!("resize the terminal: {e}")))?;
    Ok(true)
}
