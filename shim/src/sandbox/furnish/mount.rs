//! The root filesystem's mounts, as containerd's snapshotter describes them.
//!
//! `containerd-shim` has a `mount_rootfs`, in two forms: one forks and waits with a reaper of its own, which would steal
//! exits from ours, the other exits the whole process when it cannot change its folder. Neither fits a shim that must
//! answer every failure, so this is our own, on nix.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags, open};

use crate::error::{Error, Result};
use crate::sys::aside;
use node::mountinfo::{self, Entry};
use node::trail;

/// The kernel copies mount data from one page (`copy_mount_options`).
const DATA_MAX: usize = 4096 - 1;

/// Mount options that are flags of mount(2), and whether they set or clear it (mount(8)).
const FLAGS: &[(&str, MsFlags, bool)] = &[
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("atime", MsFlags::MS_NOATIME, false),
    ("bind", MsFlags::MS_BIND, true),
    ("defaults", MsFlags::empty(), true),
    ("dev", MsFlags::MS_NODEV, false),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("mand", MsFlags::MS_MANDLOCK, true),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("nodev", MsFlags::MS_NODEV, true),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("nomand", MsFlags::MS_MANDLOCK, false),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("nostrictatime", MsFlags::MS_STRICTATIME, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC), true),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("remount", MsFlags::MS_REMOUNT, true),
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
];

/// One mount of a root filesystem, as containerd's snapshotter describes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct RootfsMount {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) options: Vec<String>,
}

#[derive(Debug)]
struct Plan {
    kind: String,
    source: String,
    flags: MsFlags,
    data: String,
}

/// Mounts the rootfs on `target`, all of it or nothing.
///
/// The mounts have a thread of their own: they can block on a slow disk, and a long overlay needs a working folder of its
/// own. One that is made too late is unmounted again.
///
/// # Errors
/// `InvalidArgument` for options that mount(2) cannot take, `DeadlineExceeded`, else what the kernel said, naming the mount.
pub(crate) async fn mount_rootfs(
    mounts: &[RootfsMount],
    target: &Path,
    limit: Duration,
) -> Result<()> {
    let plans = mounts.iter().map(Plan::new).collect::<Result<Vec<_>>>()?;
    let (target, undone) = (target.to_owned(), target.to_owned());
    let mount = move || {
        for (number, plan) in plans.iter().enumerate() {
            // A source need not be a path.
            let source = Some(Path::new(&plan.source)).filter(|source| source.is_absolute());
            let path = source.unwrap_or(&target);
            let noted = trail::at(path).map_err(|e| Error::io("mount the rootfs", &e));
            if let Err(error) = noted.and_then(|()| plan.mount(&target)) {
                // A mount that fails leaves nothing. Where it was the first, or nobody waits any more, what is there may be a
                // later container's: who gave up has unmounted what there was.
                if number > 0 && trail::is_wanted() {
                    let _ = unmount_all(&target);
                }
                return Err(error);
            }
        }
        seal(&target).map_err(|e| {
            if trail::is_wanted() {
                let _ = unmount_all(&target);
            }
            Error::io(
                format!("make the rootfs {} nodev,nosuid", target.display()),
                &e,
            )
        })
    };
    let unmount = move |()| {
        let _ = unmount_all(&undone);
    };
    aside::VOLUMES
        .within(limit, "mount the rootfs", mount, unmount)
        .await
}

/// Nothing in a root filesystem is a device to the host, or a program of another user's, however it was mounted: an image
/// brings what it likes, and runsc opens files of it as root before the gofer is sealed.
fn seal(target: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = open(target, flags, Mode::empty())?;
    restrict(&root, Restriction::default())
}

/// What a mount, with those below it, is restricted to beyond `nodev,nosuid`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Restriction {
    pub(crate) read_only: bool,
    pub(crate) no_exec: bool,
    /// What it hears of the host's later mounts, as a flag of mount(2); 0 leaves that as it is.
    pub(crate) propagation: u64,
}

/// Restricts a mount by its descriptor (mount_setattr(2), Linux 5.12).
///
/// # Errors
/// What the kernel says.
pub(crate) fn restrict(mount: &impl AsFd, to: Restriction) -> io::Result<()> {
    let attributes = [
        (true, libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID),
        (to.read_only, libc::MOUNT_ATTR_RDONLY),
        (to.no_exec, libc::MOUNT_ATTR_NOEXEC),
    ];
    let set = attributes
        .iter()
        .filter(|(is_wanted, _)| *is_wanted)
        .fold(0, |set, (_, one)| set | one);
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: to.propagation,
        userns_fd: 0,
    };
    // SAFETY: the path is a string, the structure outlives the call, and its size is its own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(|_| ()).map_err(io::Error::from)
}

impl Plan {
    fn new(spec: &RootfsMount) -> Result<Self> {
        let mut flags = MsFlags::empty();
        let mut data = Vec::new();
        for option in &spec.options {
            match FLAGS.iter().find(|(name, ..)| name == option) {
                Some((_, flag, true)) => flags |= *flag,
                Some((_, flag, false)) => flags &= !*flag,
                None => data.push(option.as_str()),
            }
        }
        let plan = Self {
            kind: spec.kind.clone(),
            source: spec.source.clone(),
            flags,
            data: data.join(","),
        };
        if plan.data.contains("loop") && data.contains(&"loop") {
            return Err(Error::invalid(format!(
                "rootfs mount {plan}: option \"loop\" is not supported"
            )));
        }
        Ok(plan)
    }

    fn mount(&self, target: &Path) -> Result<()> {
        let failed =
            |e: Errno| Error::internal(format!("mount rootfs {self} on {}: {e}", target.display()));
        let mut data = self.data.clone();
        if data.len() > DATA_MAX {
            // Many layers: name them relative to the folder they share. The folder belongs to this thread alone.
            let Some((folder, short)) = shorten_lower_dirs(&data) else {
                return Err(Error::invalid(format!(
                    "rootfs mount {self}: options exceed {DATA_MAX} bytes"
                )));
            };
            unshare(CloneFlags::CLONE_FS).map_err(failed)?;
            nix::unistd::chdir(&folder).map_err(failed)?;
            data = short;
        }
        let data = (!data.is_empty()).then_some(data.as_str());
        mount(
            Some(self.source.as_str()),
            target,
            Some(self.kind.as_str()),
            self.flags,
            data,
        )
        .map_err(failed)?;
        if self.flags.contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY) {
            // A bind takes its read-only flag only when mounted again.
            mount(
                None::<&str>,
                target,
                None::<&str>,
                self.flags | MsFlags::MS_REMOUNT,
                None::<&str>,
            )
            .map_err(|error| {
                let _ = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
                failed(error)
            })?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.kind, self.source)
    }
}

/// Rewrites `lowerdir=a:b:c` relative to the longest folder that all layers share.
fn shorten_lower_dirs(data: &str) -> Option<(PathBuf, String)> {
    let mut options: Vec<String> = data.split(',').map(str::to_owned).collect();
    let lower = options
        .iter_mut()
        .find(|option| option.starts_with("lowerdir="))?;
    let layers: Vec<&Path> = lower
        .trim_start_matches("lowerdir=")
        .split(':')
        .map(Path::new)
        .collect();
    let mut shared = layers.first()?.parent()?.to_owned();
    while !layers.iter().all(|layer| layer.starts_with(&shared)) {
        shared = shared.parent()?.to_owned();
    }
    let relative: Option<Vec<&str>> = layers
        .iter()
        .map(|l| l.strip_prefix(&shared).ok()?.to_str())
        .collect();
    *lower = format!("lowerdir={}", relative?.join(":"));
    let short = options.join(",");
    (short.len() <= DATA_MAX).then_some((shared, short))
}

/// Unmounts everything at and below a path, the deepest first. Nothing mounted is no error.
///
/// # Errors
/// The first failure; what was not reached stays mounted.
pub(crate) fn unmount_all(target: &Path) -> io::Result<()> {
    let mut known: Option<Vec<u64>> = None;
    // Mounts may be stacked; the bound is for a mount table that something else keeps filling.
    for _ in 0..64 {
        let mounts = mounts_below(target)?;
        let known = known.get_or_insert_with(|| mounts.iter().map(|mount| mount.number).collect());
        // One that comes back after it hung may find a later container's mounts at the same place.
        let is_meant = |mount: &Entry| trail::is_wanted() || known.contains(&mount.number);
        if !mounts.iter().any(is_meant) {
            break;
        }
        for mount in mounts.iter().rev() {
            if !(trail::is_wanted() || is_mounted(mount) && is_meant(mount)) {
                continue;
            }
            let point = &mount.point;
            trail::at(point)?;
            match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                // A process that is about to die still holds it: let go of the name now, of the rest when it has.
                Err(Errno::EBUSY) => {
                    umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn mounts_below(target: &Path) -> io::Result<Vec<Entry>> {
    let mut mounts = mountinfo::entries()?;
    mounts.retain(|mount| mount.point.starts_with(target));
    Ok(mounts)
}

fn is_mounted(mount: &Entry) -> bool {
    mountinfo::entries().is_ok_and(|all| all.contains(mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_overlays_are_named_relative_to_their_folder() {
        let layers: Vec<String> = (0..120)
            .map(|n| format!("/var/lib/containerd/snapshots/overlayfs/{n}/fs"))
            .collect();
        let data = format!(
            "index=off,lowerdir={},upperdir=/u,workdir=/w",
            layers.join(":")
        );
        assert!(data.len() > DATA_MAX);
        let (folder, short) = shorten_lower_dirs(&data).expect("fits");
        assert_eq!(folder, Path::new("/var/lib/containerd/snapshots/overlayfs"));
        assert!(
            short.starts_with("index=off,lowerdir=0/fs:1/fs:")
                && short.ends_with("upperdir=/u,workdir=/w")
        );
    }

    #[test]
    fn options_become_flags_and_data() {
        let options = ["ro", "nosuid", "rbind", "size=1m"]
            .map(str::to_owned)
            .to_vec();
        let plan = Plan::new(&RootfsMount {
            kind: "bind".into(),
            options,
            ..RootfsMount::default()
        })
        .expect("plan");
        assert!(plan.flags.contains(
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_BIND | MsFlags::MS_REC
        ));
        assert_eq!(plan.data, "size=1m");
    }
}
