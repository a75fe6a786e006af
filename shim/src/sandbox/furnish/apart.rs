//! Mounts in a mount namespace of their own, which ends with the thread that makes them. The host sees none of them. What
//! was opened keeps what was made there alive.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Gid, Mode, Stat, Uid, fchmod, fchown};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
};

/// Does something in such a namespace.
///
/// # Errors
/// What the work answers, or the kernel.
pub(crate) fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let own = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let below = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", below)?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, own)?;
        let done = thread.join();
        done.unwrap_or_else(|_| Err(io::Error::other("its thread died")))
    })
}

/// A filesystem in memory with these options. It is mounted over `folder`: a part of one that is mounted nowhere can be bound since
/// Linux 6.15 alone, and an overlay takes no layer from there.
///
/// # Errors
/// What the kernel says.
pub(crate) fn in_memory(folder: &Path, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let memory = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&memory, *key, *value)?;
    }
    let tree = mounted(&memory)?;
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, "", CWD, folder, whole)?;
    Ok(tree)
}

/// A filesystem whose options are set, as a mount that is nowhere yet.
///
/// # Errors
/// What the kernel says.
pub(crate) fn mounted(filesystem: &OwnedFd) -> io::Result<OwnedFd> {
    fsconfig_create(filesystem)?;
    let restricted = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(fsmount(filesystem, flags, restricted)?)
}

/// Gives a file or folder the owner and the mode of another.
///
/// # Errors
/// What the kernel says.
pub(crate) fn take_on(file: &impl AsFd, like: &Stat) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
    fchown(file, Some(user), Some(group))?;
    Ok(fchmod(file, Mode::from_raw_mode(like.st_mode))?)
}
