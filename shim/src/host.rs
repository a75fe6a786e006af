//! What the policy must know of the host.

use std::path::{Path, PathBuf};

use runsc_config::HostFacts;

use crate::cgroup::Mode;

/// Looks at the host as it is now; `containerd` is the gRPC address of the containerd that asks.
pub(crate) fn facts(containerd: &str) -> HostFacts {
    let socket = containerd.trim_start_matches("unix://");
    let sockets = [socket.to_owned(), format!("{socket}.ttrpc")];
    HostFacts {
        resolve: |path| std::fs::canonicalize(path).ok(),
        swap_limits: swap_limits(),
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
