//! Notices when the kernel kills something in a sandbox's cgroup for want of memory.
//!
//! The kernel picks one process; what is left of a sandbox after that can neither be trusted nor used, so all of it is
//! ended. Sources: `Documentation/admin-guide/cgroup-v1/memory.rst` (section 9 and 10), `cgroup-v2.rst` (memory.events).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::sys::poll;
use crate::sys::reaper::ExitWatch;
use node::cgroup::{Cgroups, Mode, read_small, value_of};

/// How long the sandbox may take to end by itself once something in it was killed.
const GRACE: Duration = Duration::from_millis(500);

/// How many processes of a sandbox the kernel has killed for want of memory, also once its cgroup has gone: systemd removes one that is
/// empty, which may be before the shim has got round to it.
#[derive(Debug)]
pub(crate) struct Kills {
    cgroups: Cgroups,
    /// What the cgroup above had counted before, where that is the pod's own: on v2 it counts what is killed below it.
    before: Option<u64>,
    /// The largest number that was read.
    seen: AtomicU64,
}

impl Kills {
    /// `is_above_its_own`: nobody else's processes are in the cgroup above.
    pub(crate) fn new(cgroups: &Cgroups, is_above_its_own: bool) -> Self {
        let cgroups = cgroups.clone();
        let before = above(&cgroups).filter(|_| is_above_its_own);
        Self {
            cgroups,
            before,
            seen: AtomicU64::new(0),
        }
    }

    pub(crate) fn count(&self) -> u64 {
        let count = own(&self.cgroups).or_else(|| {
            let now = above(&self.cgroups)?;
            Some(now.saturating_sub(self.before?))
        });
        let count = count.unwrap_or_default();
        self.seen.fetch_max(count, Ordering::Relaxed).max(count)
    }
}

fn own(cgroups: &Cgroups) -> Option<u64> {
    let (controller, file) = match cgroups.mode {
        Mode::V1 => ("memory", "memory.oom_control"),
        Mode::V2 => ("", "memory.events"),
    };
    value_of(&cgroups.read(controller, file)?, "oom_kill")
}

/// The same of the cgroup above. On v1 it counts its own alone.
fn above(cgroups: &Cgroups) -> Option<u64> {
    let folder = cgroups.folder("").filter(|_| cgroups.mode == Mode::V2)?;
    let text = read_small(&folder.parent()?.join("memory.events")).ok()?;
    value_of(&text, "oom_kill")
}

/// Ends the sandbox once the kernel has killed something in it. Returns when it has exited, for whatever reason.
pub(crate) async fn watch(kills: Arc<Kills>, mut sandbox: ExitWatch) {
    let events = match Events::open(&kills.cgroups) {
        Ok(events) => events,
        // The count is still read when the sandbox ends.
        Err(error) => return tracing::warn!(%error, "no notice of memory running out"),
    };
    loop {
        tokio::select! {
            _ = sandbox.wait() => {
                // While it can be read.
                kills.count();
                return;
            }
            told = events.next() => {
                if let Err(error) = told {
                    return tracing::warn!(%error, "no more notice of memory running out");
                }
            }
        }
        if kills.count() > 0 && sandbox.wait_for(GRACE).await.is_none() {
            tracing::warn!("memory ran out and a part of the sandbox lives on: ending it");
            sandbox.signal(nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// The kernel's notices, as a descriptor that becomes readable.
struct Events {
    notices: tokio::io::unix::AsyncFd<File>,
}

impl Events {
    fn open(cgroups: &Cgroups) -> io::Result<Self> {
        let missing = || io::Error::other("the sandbox has no memory cgroup");
        let fd = match cgroups.mode {
            Mode::V1 => {
                let folder = cgroups.folder("memory").ok_or_else(missing)?;
                let control = File::open(folder.join("memory.oom_control"))?;
                let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?;
                let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
                std::fs::write(folder.join("cgroup.event_control"), line)?;
                OwnedFd::from(event)
            }
            Mode::V2 => {
                let folder = cgroups.folder("").ok_or_else(missing)?;
                let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
                watch.add_watch(&folder.join("memory.events"), AddWatchFlags::IN_MODIFY)?;
                OwnedFd::from(watch)
            }
        };
        let notices = poll::pollable(fd)?;
        Ok(Self { notices })
    }

    /// Waits for the next notice.
    async fn next(&self) -> io::Result<()> {
        // An eventfd gives 8 bytes, inotify a record without a name: neither is of interest.
        let mut buffer = [0; 64];
        poll::read(&self.notices, &mut buffer).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_killed_is_known_when_the_cgroup_has_gone() {
        let folder = tempfile::tempdir().expect("tempdir");
        let (pod, own) = (folder.path(), folder.path().join("scope"));
        let text = format!("{{\"mode\":\"V2\",\"folders\":{{\"\":{own:?}}}}}");
        let cgroups: Cgroups = serde_json::from_str(&text).expect("cgroups");
        let write = |folder: &std::path::Path, kills: u64| {
            std::fs::create_dir_all(folder).expect("mkdir");
            let text = format!("low 0\noom 1\noom_kill {kills}\n");
            std::fs::write(folder.join("memory.events"), text).expect("write");
        };
        write(pod, 3);
        write(&own, 0);
        let (early, late) = (Kills::new(&cgroups, true), Kills::new(&cgroups, true));
        let alone = Kills::new(&cgroups, false);
        assert_eq!([&early, &late, &alone].map(Kills::count), [0, 0, 0]);
        write(pod, 5);
        write(&own, 2);
        assert_eq!(early.count(), 2);
        std::fs::remove_dir_all(&own).expect("remove");
        // What another one's parent counts is not its own.
        assert_eq!([&early, &late, &alone].map(Kills::count), [2, 2, 0]);
    }
}
