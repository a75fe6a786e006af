//! What the policy must know of the host.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use runsc_config::{HostFacts, Volume};

use crate::cgroup::Mode;
use crate::cgroup::limits;
use crate::mountinfo;
use crate::trail;

/// Looks at the host as it is now; `containerd` is the gRPC address of the containerd that asks.
pub fn facts(containerd: &str) -> HostFacts {
    let socket = containerd.trim_start_matches("unix://");
    let sockets = [socket.to_owned(), format!("{socket}.ttrpc")];
    HostFacts {
        resolve: |path| {
            trail::at(path).ok()?;
            std::fs::canonicalize(path).ok()
        },
        swap_limits: swap_limits(),
        // The folder that systemd itself names for this question (sd_booted(3)).
        systemd: Path::new("/run/systemd/system").is_dir()
            && matches!(Mode::of_host(), Ok(Mode::V2)),
        cgroup_limits: limits::of_cgroup,
        tasks_max: limits::tasks_above,
        empty_dirs,
        sockets: sockets
            .iter()
            .filter(|socket| socket.starts_with('/'))
            .map(PathBuf::from)
            .collect(),
        is_hosts_network,
        origin: mountinfo::origin,
        mounted_below: mountinfo::below,
        mount_points: mountinfo::points,
        is_same,
        open_files: open_files(),
    }
}

/// How many files runsc may have open: its runtime raises the limit as far as this. Where the kernel does not say, few.
fn open_files() -> u64 {
    const USUAL: u64 = 1024;
    getrlimit(Resource::RLIMIT_NOFILE).map_or(USUAL, |(_, most)| most)
}

/// Whether two paths are one file or folder, whatever their filesystem tells of them. Links are not followed.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| {
        trail::at(path).ok()?;
        let file = std::fs::symlink_metadata(path).ok()?;
        Some((file.dev(), file.ino()))
    };
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// Whether a path leads to the network namespace that the shim and containerd are in, or to init's. One that cannot be looked
/// at may be: init's own is closed to root itself on some hosts.
fn is_hosts_network(path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let asked = match trail::at(path).and_then(|()| identity(path)) {
        Ok(asked) => asked,
        Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
    };
    ["/proc/self/ns/net", "/proc/1/ns/net"]
        .iter()
        .any(|own| identity(Path::new(own)).is_ok_and(|own| own == asked))
}

/// Whether swap can be limited: the files are missing where the kernel does not account for it, and runsc would fail on
/// them. Swap may be switched on at any time, so it does not matter whether it is.
fn swap_limits() -> bool {
    match Mode::of_host() {
        Ok(Mode::V1) => Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
        Ok(Mode::V2) => swap_limits_v2(Path::new("/sys/fs/cgroup")).unwrap_or_else(|| {
            // The name of a swap file need not be text.
            std::fs::read("/proc/swaps").is_ok_and(|swaps| swaps.trim_ascii().contains(&b'\n'))
        }),
        Err(_) => false,
    }
}

/// The same by the cgroups below the root, which has no limits itself; none where no memory is limited yet.
fn swap_limits_v2(root: &Path) -> Option<bool> {
    let below = std::fs::read_dir(root).ok()?.flatten();
    let mut limited = below
        .map(|entry| entry.path())
        .filter(|cgroup| cgroup.join("memory.max").exists());
    Some(limited.next()?.join("memory.swap.max").exists())
}

/// The volumes in a pod's folder of empty dirs that are empty and so can be kept inside the sandbox. One that holds
/// something already is shared with a process of the host.
fn empty_dirs(folder: &Path) -> Vec<Volume> {
    let Ok(entries) = trail::at(folder).and_then(|()| std::fs::read_dir(folder)) else {
        return Vec::new();
    };
    let mut empty: Vec<PathBuf> = entries
        .filter_map(std::result::Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            let entries = trail::at(path).and_then(|()| std::fs::read_dir(path));
            entries.is_ok_and(|mut entries| entries.next().is_none())
        })
        .collect();
    empty.sort_unstable();
    empty
        .into_iter()
        .map(|source| {
            // The kubelet mounts a tmpfs of the volume's size where its medium is memory.
            let device = |path: &Path| std::fs::metadata(path).ok().map(|file| file.dev());
            let is_mounted = device(&source) != device(folder);
            let tmpfs = statfs(&source)
                .ok()
                .filter(|fs| is_mounted && fs.filesystem_type() == TMPFS_MAGIC);
            let bytes = tmpfs.map(|fs| {
                fs.blocks()
                    .saturating_mul(u64::try_from(fs.block_size()).unwrap_or_default())
            });
            Volume {
                in_memory: bytes.is_some(),
                size: bytes.filter(|bytes| *bytes > 0),
                source,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_the_same_by_any_mount_and_a_link_to_it_is_not() {
        let folder = tempfile::tempdir().expect("tempdir");
        let (a, link) = (folder.path().join("a"), folder.path().join("link"));
        std::fs::create_dir(&a).expect("mkdir");
        std::os::unix::fs::symlink("a", &link).expect("link");
        assert!(
            is_same(&a, &a) && is_same(Path::new("/proc/self/root"), Path::new("/proc/self/root"))
        );
        assert!(!is_same(&a, &link) && !is_same(&a, folder.path()));
        let none = folder.path().join("none");
        assert!(!is_same(&none, &none));
    }

    #[test]
    fn swap_can_be_limited_whether_or_not_it_is_on() {
        let root = tempfile::tempdir().expect("tempdir");
        let make = |file: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
            std::fs::write(path, "max").expect("write");
        };
        make("init.scope/cgroup.procs");
        assert_eq!(swap_limits_v2(root.path()), None);
        make("system.slice/memory.max");
        assert_eq!(swap_limits_v2(root.path()), Some(false));
        make("system.slice/memory.swap.max");
        assert_eq!(swap_limits_v2(root.path()), Some(true));
    }

    #[test]
    fn the_hosts_network_is_known_by_any_name() {
        let folder = tempfile::tempdir().expect("tempdir");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/proc/self/ns/net", &link).expect("link");
        assert!(is_hosts_network(&link));
        assert!(is_hosts_network(Path::new("/proc/1/ns/net")));
        assert!(!is_hosts_network(Path::new("/proc/self/ns/uts")));
        assert!(!is_hosts_network(&folder.path().join("none")));
    }
}
