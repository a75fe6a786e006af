//! A process that is held by descriptor. The shim kills the process that it looked at, whoever has its number by now.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::sys::poll;
use node::procfs;

/// A process that may have ended.
#[derive(Debug)]
pub(crate) struct Held {
    pid: i32,
    fd: OwnedFd,
}

impl Held {
    /// Takes hold of whatever has this number now. What is to be true of it is looked at after that. Never init, and never this
    /// process: a broken record may name either.
    pub(crate) fn open(pid: i32) -> Option<Self> {
        let is_killable = pid > 1 && u32::try_from(pid) != Ok(std::process::id());
        let number = is_killable.then(|| Pid::from_raw(pid))??;
        let fd = pidfd_open(number, PidfdFlags::empty()).ok()?;
        Some(Self { pid, fd })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Its command line, by its number.
    pub(crate) fn arguments(&self) -> Vec<Vec<u8>> {
        procfs::arguments(self.pid)
    }

    /// A zombie is dead: it only waits for its parent.
    pub(crate) fn is_alive(&self) -> bool {
        let stat = fs::read(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let stat = String::from_utf8_lossy(&stat);
        !matches!(
            procfs::fields_after_name(&stat).next(),
            None | Some("Z" | "X")
        )
    }

    /// Tells it to end.
    pub(crate) fn terminate(&self) {
        let _ = pidfd_send_signal(&self.fd, Signal::TERM);
    }

    /// Kills it, if it has not ended.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.fd, Signal::KILL);
    }

    /// Returns once it has ended.
    pub(crate) async fn ended(self) {
        // It is readable from then on. What cannot be waited for is looked for again.
        if let Ok(fd) = poll::pollable(self.fd) {
            let _ = fd.readable().await;
        }
    }

    /// Stands for a process that lasts for as long as the other end of this pipe.
    #[cfg(test)]
    pub(crate) fn of_pipe(pipe: std::io::PipeReader) -> Self {
        let (pid, fd) = (0, pipe.into());
        Self { pid, fd }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[tokio::test(flavor = "current_thread")]
    async fn a_process_that_has_ended_is_known_as_such_whoever_has_its_number() {
        let _alone = crate::sys::reaper::CHILDREN.lock().await;
        let mut command = Command::new("/bin/cat");
        let mut child = command.stdin(Stdio::piped()).spawn().expect("spawn");
        let pid = child.id().cast_signed();
        let (held, other) = (Held::open(pid).expect("a process"), Held::open(pid));
        assert!(held.is_alive());
        held.kill();
        held.ended().await;
        child.wait().expect("wait");
        let other = other.expect("a process");
        assert!(!other.is_alive());
        // By its number this would be a signal to anybody.
        other.kill();
        other.ended().await;
        assert!(Held::open(pid).is_none());
    }

    #[test]
    fn nothing_is_held_that_must_not_be_killed() {
        for pid in [-1, 0, 1, std::process::id().cast_signed()] {
            assert!(Held::open(pid).is_none(), "{pid}");
        }
    }
}
