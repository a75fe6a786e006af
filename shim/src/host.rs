//! What the policy must know of the host.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use runsc_config::{HostFacts, Volume};

use crate::cgroup::Mode;
use crate::limits;

/// A pod has no more volumes.
const VOLUMES_MAX: usize = 256;

/// Looks at the host as it is now; `containerd` is the gRPC address of the containerd that asks.
pub(crate) fn facts(containerd: &str) -> HostFacts {
    let socket = containerd.trim_start_matches("unix://");
    let sockets = [socket.to_owned(), format!("{socket}.ttrpc")];
    HostFacts {
        resolve: |path| std::fs::canonicalize(path).ok(),
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
    }
}

/// Whether swap can be limited: the files are missing where the kernel does not account for it, and runsc would fail on
/// them. On cgroup v2 they only matter where there is swap.
fn swap_limits() -> bool {
    match Mode::of_host() {
        Ok(Mode::V1) => Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
        Ok(Mode::V2) => {
            std::fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
        }
        Err(_) => false,
    }
}

/// The volumes in a pod's folder of empty dirs that are empty and so can be kept inside the sandbox. One that holds
/// something already is shared with a process of the host.
fn empty_dirs(folder: &Path) -> Vec<Volume> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(std::result::Result::ok)
        .map(|entry| entry.path())
        .filter(|path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()))
        .take(VOLUMES_MAX)
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
