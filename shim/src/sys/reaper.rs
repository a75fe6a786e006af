//! One reaper for every child: runsc commands, and the sandboxes and gofers that outlive them.
//!
//! `runsc create` starts the sandbox and the gofer and exits; both are then re-parented to the nearest subreaper. The
//! shim is that subreaper, so the exit of a sandbox is an exit of a child and its status is never lost. Because one loop
//! reaps everything with `waitpid(-1)`, nothing else in this process may wait for a child: `tokio::process` would lose
//! the race. A pid stays valid (a zombie at worst) until this loop has recorded its exit, so a signal sent to a child
//! whose [`ExitWatch`] is still open can never reach a stranger.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::sys::oom_score;
use node::procfs;

/// How many exits of not yet claimed children are remembered.
///
/// A sandbox can die between the moment `runsc create` exits and the moment its pid has been read; more than a few such
/// at once means a fork storm in a hook, where forgetting the oldest is right.
const UNCLAIMED_MAX: usize = 256;

/// How a process ended, in the terms of `wait(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It called exit with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// For a message about it.
impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

impl Exit {
    /// Decodes a raw wait status, the kernel's or the sentry's (`pkg/abi/linux/wait.go`: the same layout).
    pub(crate) fn from_raw(raw: u32) -> Self {
        match raw & 0x7f {
            0 => Self::Code(i32::try_from((raw >> 8) & 0xff).unwrap_or(255)),
            signal => Self::Signal(i32::try_from(signal).unwrap_or(9)),
        }
    }

    /// The exit status containerd's clients expect: the code itself, or 128 and the signal.
    pub(crate) fn status(self) -> u32 {
        match self {
            Self::Code(code) => u32::try_from(code).unwrap_or(255),
            Self::Signal(signal) => u32::try_from(signal).unwrap_or(127) + 128,
        }
    }

    pub(crate) fn success(self) -> bool {
        self == Self::Code(0)
    }
}

/// Tells when one child has exited; cheap to clone, any number may wait.
#[derive(Debug, Clone)]
pub(crate) struct ExitWatch {
    pid: i32,
    exit: watch::Receiver<Option<Exit>>,
}

impl ExitWatch {
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The exit, if it has happened.
    pub(crate) fn get(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the exit, for as long as it takes.
    pub(crate) async fn wait(&mut self) -> Exit {
        match self.exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Signal(9)),
            // The reaper lives as long as the process; should it ever be gone, the child counts as killed.
            Err(_) => Exit::Signal(9),
        }
    }

    /// Waits for the exit until the deadline; `None` when the child is still there.
    pub(crate) async fn wait_for(&mut self, limit: Duration) -> Option<Exit> {
        tokio::time::timeout(limit, self.wait()).await.ok()
    }

    /// Whether the kernel is ending the child, or has ended it: its memory may take long to be freed, or a quota hold it back.
    pub(crate) fn is_ending(&self) -> bool {
        self.get().is_some() || is_ending(self.pid)
    }

    /// Sends a signal, unless the child has been reaped already.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.get().is_none() {
            // ESRCH is the child that exited just now; its exit is about to be recorded.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Kills the child and all of its process group, which it leads: a hook that it waits for, for one.
    pub(crate) fn kill_group(&self) {
        if self.get().is_none() {
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// proc_pid_stat(5), proc_pid_status(5).
fn is_ending(pid: i32) -> bool {
    const PF_EXITING: u32 = 4;
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else {
        return true;
    };
    let mut fields = procfs::fields_after_name(&stat);
    let is_dead = matches!(fields.next(), Some("Z" | "X"));
    let flags: u32 = fields
        .nth(5)
        .and_then(|flags| flags.parse().ok())
        .unwrap_or(0);
    let pending = status.lines().filter_map(|line| {
        let mask = line
            .strip_prefix("SigPnd:")
            .or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    let kill = 1 << (libc::SIGKILL - 1);
    is_dead || flags & PF_EXITING != 0 || pending.fold(0, |all, mask| all | mask) & kill != 0
}

#[derive(Debug, Default)]
struct Children {
    watched: HashMap<i32, watch::Sender<Option<Exit>>>,
    unclaimed: VecDeque<Unclaimed>,
    /// How many exits there were.
    exits: u64,
}

/// The exit of a child that nobody watched.
#[derive(Debug)]
struct Unclaimed {
    pid: i32,
    exit: Exit,
    /// How many exits there were before.
    number: u64,
}

/// A point between two exits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moment(u64);

/// Reaps all children of the shim and hands each exit to whoever watches for it.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    children: Mutex<Children>,
    /// The `oom_score_adj` that children get back where the shim has lowered its own.
    oom_score_adj: Option<i32>,
}

impl Reaper {
    /// Makes this process the subreaper of its descendants and starts reaping. Every command it starts gets `oom_score_adj`.
    ///
    /// # Errors
    /// When the kernel refuses the subreaper attribute or the SIGCHLD handler.
    pub(crate) fn install(oom_score_adj: Option<i32>) -> io::Result<Arc<Self>> {
        nix::sys::prctl::set_child_subreaper(true)?;
        let mut child_exited = signal(SignalKind::child())?;
        let reaper = Arc::new(Self {
            children: Mutex::default(),
            oom_score_adj,
        });
        let this = Arc::clone(&reaper);
        tokio::spawn(async move {
            while child_exited.recv().await.is_some() {
                this.reap();
            }
        });
        Ok(reaper)
    }

    /// Starts a command as a watched child.
    ///
    /// # Errors
    /// What `Command::spawn` fails with.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<ExitWatch> {
        if let Some(score) = self.oom_score_adj {
            oom_score::give_back(command, score);
        }
        // The lock is held across the spawn, so the reaper cannot see the exit before the watch exists.
        let mut children = self.lock();
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let (sender, exit) = watch::channel(None);
        children.unclaimed.retain(|unclaimed| unclaimed.pid != pid);
        children.watched.insert(pid, sender);
        Ok(ExitWatch { pid, exit })
    }

    /// Now: what is started later exits after it.
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.lock().exits)
    }

    /// Watches a process that became, or is about to become, a child of the shim: a sandbox or a gofer. `started_after` is
    /// from before it was started: an exit of its pid that is older was somebody else's.
    pub(crate) fn adopt(&self, pid: i32, started_after: Moment) -> ExitWatch {
        let mut children = self.lock();
        if let Some(sender) = children.watched.get(&pid) {
            return ExitWatch {
                pid,
                exit: sender.subscribe(),
            };
        }
        let known = children
            .unclaimed
            .iter()
            .rfind(|one| one.pid == pid && one.number >= started_after.0)
            .map(|one| one.exit);
        let gone = matches!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH));
        let (sender, exit) = watch::channel(known.or(gone.then_some(Exit::Signal(9))));
        if known.is_none() && !gone {
            children.watched.insert(pid, sender);
        }
        ExitWatch { pid, exit }
    }

    fn reap(&self) {
        loop {
            let (pid, exit) = match wait_any() {
                Ok(Some(exited)) => exited,
                Ok(None) | Err(Errno::ECHILD) => return,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::warn!(%error, "waitpid failed");
                    return;
                }
            };
            let mut children = self.lock();
            let number = children.exits;
            children.exits += 1;
            match children.watched.remove(&pid) {
                Some(sender) => {
                    sender.send_replace(Some(exit));
                }
                None => {
                    if children.unclaimed.len() >= UNCLAIMED_MAX {
                        children.unclaimed.pop_front();
                    }
                    children
                        .unclaimed
                        .push_back(Unclaimed { pid, exit, number });
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Children> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next exit of a child, if there is one. Not nix's waitpid: it knows no real-time signals, and answers EINVAL for a child
/// that it has already reaped.
fn wait_any() -> nix::Result<Option<(i32, Exit)>> {
    let mut status = 0;
    // SAFETY: the status is written to a variable of this frame.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })?;
    Ok((pid > 0).then(|| (pid, Exit::from_raw(status.cast_unsigned()))))
}

/// Held by every test that has children: a reaper takes those of the whole process.
#[cfg(test)]
pub(crate) static CHILDREN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_statuses_decode_as_wait_does() {
        assert_eq!(Exit::from_raw(9), Exit::Signal(9));
        assert_eq!(Exit::from_raw(1792), Exit::Code(7));
        assert_eq!(Exit::from_raw(0), Exit::Code(0));
        assert_eq!(Exit::from_raw(255 << 8), Exit::Code(255));
        assert_eq!(Exit::Signal(15).status(), 143);
        assert_eq!(Exit::Code(255).status(), 255);
    }

    #[test]
    fn a_child_ends_from_its_sigkill_on() {
        let _alone = CHILDREN.blocking_lock();
        let mut child = Command::new("/bin/sleep")
            .arg("100")
            .spawn()
            .expect("spawn");
        let pid = i32::try_from(child.id()).expect("a pid");
        assert!(!is_ending(pid));
        child.kill().expect("kill");
        assert!(is_ending(pid), "and nobody has reaped it");
        child.wait().expect("wait");
        assert!(is_ending(pid), "it is gone");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_adopted_grandchild_reports_its_exit() {
        grandchild(false).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_grandchild_adopted_after_its_exit_still_reports_it() {
        grandchild(true).await;
    }

    async fn grandchild(late: bool) {
        let _alone = CHILDREN.lock().await;
        let reaper = Reaper::install(None).expect("reaper");
        let before = reaper.moment();
        // The shell leaves a grandchild behind and prints its pid, as `runsc create` leaves the sandbox.
        let (reader, writer) = std::io::pipe().expect("pipe");
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "(sleep 0.2; exit 7) & echo $!"])
            .stdout(writer);
        let mut shell = reaper.spawn(&mut command).expect("spawn");
        drop(command);
        assert_eq!(shell.wait().await, Exit::Code(0));
        let mut line = String::new();
        std::io::Read::read_to_string(&mut &reader, &mut line).ok();
        let pid = line.trim().parse().expect("pid");
        if late {
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        assert_eq!(reaper.adopt(pid, before).wait().await, Exit::Code(7));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_child_that_a_real_time_signal_kills_is_reaped() {
        let _alone = CHILDREN.lock().await;
        let reaper = Reaper::install(None).expect("reaper");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "kill -s 40 $$"]);
        let mut child = reaper.spawn(&mut command).expect("spawn");
        let exit = child.wait_for(Duration::from_secs(5)).await;
        assert_eq!(exit, Some(Exit::Signal(40)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_exit_of_an_earlier_owner_of_a_pid_is_not_a_later_ones() {
        let _alone = CHILDREN.lock().await;
        let reaper = Reaper::install(None).expect("reaper");
        let mut old = reaper.lock();
        let (pid, exit) = (std::process::id().cast_signed(), Exit::Code(0));
        old.unclaimed.push_back(Unclaimed {
            pid,
            exit,
            number: 0,
        });
        old.exits = 1;
        drop(old);
        assert_eq!(reaper.adopt(pid, Moment(0)).get(), Some(exit));
        assert_eq!(reaper.adopt(pid, reaper.moment()).get(), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_child_has_the_score_that_the_shim_was_started_with() {
        let _alone = CHILDREN.lock().await;
        let reaper = Reaper::install(Some(777)).expect("reaper");
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let mut command = Command::new("/bin/cat");
        command.arg("/proc/self/oom_score_adj").stdout(writer);
        reaper.spawn(&mut command).expect("spawn");
        drop(command);
        let mut score = String::new();
        std::io::Read::read_to_string(&mut reader, &mut score).expect("read");
        assert_eq!(score.trim(), "777");
    }
}
