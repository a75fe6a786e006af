//! Notices when the kernel kills something in a sandbox's cgroup for want of memory.
//!
//! The kernel picks one process; what is left of a sandbox after that can neither be trusted nor used, so all of it is
//! ended. Sources: `Documentation/admin-guide/cgroup-v1/memory.rst` (section 9 and 10), `cgroup-v2.rst` (memory.events).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::cgroup::{Cgroups, Mode};
use crate::poll;
use crate::reaper::ExitWatch;

/// How long the sandbox may take to end by itself once something in it was killed.
const GRACE: Duration = Duration::from_millis(500);

/// How many processes of the cgroup the kernel has killed for want of memory.
pub(crate) fn kills(cgroups: &Cgroups) -> u64 {
    let (controller, file) = match cgroups.mode {
        Mode::V1 => ("memory", "memory.oom_control"),
        Mode::V2 => ("", "memory.events"),
    };
    let counts = cgroups.table(controller, file);
    counts.get("oom_kill").copied().unwrap_or_default()
}

/// Ends the sandbox once the kernel has killed something in it. Returns when it has exited, for whatever reason.
pub(crate) async fn watch(cgroups: Cgroups, mut sandbox: ExitWatch) {
    let events = match Events::open(&cgroups) {
        Ok(events) => events,
        // The count is still read when the sandbox ends.
        Err(error) => return tracing::warn!(%error, "no notice of memory running out"),
    };
    loop {
        tokio::select! {
            _ = sandbox.wait() => return,
            told = events.next() => {
                if let Err(error) = told {
                    return tracing::warn!(%error, "no more notice of memory running out");
                }
            }
        }
        if kills(&cgroups) > 0 && sandbox.wait_for(GRACE).await.is_none() {
            tracing::warn!("memory ran out and the sandbox lives on in part: ending it");
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
