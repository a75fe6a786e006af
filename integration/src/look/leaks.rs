//! What is there: processes, mounts, cgroups, everything in /run (sockets, FIFOs, bundles, runtimes' state), and runsc's in /tmp. Taken
//! before and after every test; the tests run one at a time in namespaces of their own, so any difference is a leak.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ground::cgroups;
use crate::ground::patience::patience;
use crate::look::processes;

/// How long what a test used may take to go away.
const SETTLE: Duration = Duration::from_secs(8);

/// One line for each thing, beginning with its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks around. `known` are the processes that belong to the testbed.
    #[must_use]
    pub fn take(known: &[u32]) -> Self {
        let mut found = BTreeSet::new();
        for process in processes::all() {
            if !known
                .iter()
                .any(|pid| i64::from(*pid) == i64::from(process.pid))
            {
                found.insert(format!("process {} {}", process.pid, process.command));
            }
        }
        // Counted, since one place may be mounted over several times.
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
        let mut seen = std::collections::BTreeMap::<&str, u32>::new();
        for place in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            let count = seen.entry(place).or_default();
            *count += 1;
            found.insert(format!("mount {place} #{count}"));
        }
        for hierarchy in cgroups::hierarchies() {
            folders(&hierarchy.path, &mut found);
        }
        files(Path::new("/run"), &mut found);
        strays(Path::new("/tmp"), &mut found);
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        for name in sockets
            .lines()
            .filter_map(|line| line.split_whitespace().nth(7))
        {
            if name.starts_with('@') {
                found.insert(format!("socket {name}"));
            }
        }
        Self(found)
    }

    /// What is there now and was not then.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Cgroups above all pods, which a kubelet makes and removes when it thinks fit.
const KUBELETS: [&str; 3] = ["kubepods", "kubepods/burstable", "kubepods/besteffort"];

fn folders(path: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if !KUBELETS.iter().any(|own| entry.path().ends_with(own)) {
                found.insert(format!("cgroup {}", entry.path().display()));
            }
            folders(&entry.path(), found);
        }
    }
}

/// Where the testbed and containerd keep what is no container's.
const IGNORED: [&str; 4] = ["/run/etc", "/run/b/log", "/run/b/path", "/run/b/image"];
/// Where containerd keeps bundles, below its state and there by namespace.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// Made by a runtime's first container for all of them, and empty without any: no leak, whichever test is the first.
const SHARED: [&str; 10] = [
    "/run/bulkhead",
    "/run/containerd",
    "/run/containerd/s",
    "/run/containerd/fifo",
    "/run/containerd/runc",
    "/run/containerd/runsc",
    "/run/runc",
    "/run/runsc",
    "/run/lock",
    "/run/netns",
];

fn files(path: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else {
            continue;
        };
        if IGNORED.iter().any(|ignored| path.starts_with(ignored)) || is_half_removed(&path) {
            continue;
        }
        let name = match () {
            () if kind.is_socket() => "socket",
            () if kind.is_fifo() => "fifo",
            () if kind.is_dir() => "folder",
            () => "file",
        };
        let shared = SHARED.iter().any(|shared| path == Path::new(shared))
            // A folder for each containerd namespace.
            || (kind.is_dir() && path.parent().is_some_and(|parent| parent.ends_with("runc") || parent.ends_with("runsc")))
            || path.starts_with("/run/containerd/io.containerd") && kind.is_dir()
            || is_kept_answer(&path);
        if !shared {
            found.insert(format!("{name} {}", path.display()));
        }
        if kind.is_dir() {
            files(&path, found);
        }
    }
}

/// What a runsc said of itself: one file for each binary, kept for the next sandbox.
fn is_kept_answer(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.parent() == Some(Path::new("/run/bulkhead"))
        && name.starts_with("runsc-features-")
        && name.ends_with(".json")
}

/// What runsc puts where it has no better place. The folder is the host's: others may work in it.
fn strays(path: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b"runsc-") || name.starts_with(b".gvisor") {
            found.insert(format!("file {}", entry.path().display()));
        }
    }
}

/// A bundle that containerd had begun to remove when it was killed: it hides the folder first (`core/runtime/v2/bundle.go`),
/// and passes over what is hidden when it comes back (`shim_load.go`). No runtime is asked or told.
fn is_half_removed(path: &Path) -> bool {
    let name = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    name && path
        .ancestors()
        .nth(2)
        .is_some_and(|tasks| tasks.ends_with(TASKS))
}

/// Waits for what a test used to go away and returns what stays.
#[must_use]
pub fn settle(before: &Snapshot, known: impl Fn() -> Vec<u32>) -> Vec<String> {
    let deadline = Instant::now() + patience(SETTLE);
    loop {
        let left = Snapshot::take(&known()).since(before);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hidden_bundles_are_containerds_own() {
        for (path, is) in [
            (
                "/run/b/state/io.containerd.runtime.v2.task/default/.c-1",
                true,
            ),
            (
                "/run/b/state/io.containerd.runtime.v2.task/default/c-1",
                false,
            ),
            ("/run/b/state/io.containerd.runtime.v2.task/.default", false),
            ("/run/bulkhead/.x", false),
        ] {
            assert_eq!(is_half_removed(Path::new(path)), is, "{path}");
        }
    }
}
