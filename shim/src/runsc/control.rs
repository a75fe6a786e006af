//! One way to control a sandbox, two ways to reach it: the control socket (0.1 to 1 ms) and the `runsc` command (17 ms
//! and more, most of it Go's start-up).
//!
//! Upstream promises nothing about the socket, so each method falls back on its own: when the sentry cannot be reached
//! at it, does not know it, or answers something else, that is logged once and the command serves it for the rest of the
//! sandbox's life. An ordinary error is an answer, not a reason to fall back; neither is a broken reply to what acts in the
//! sandbox, which may have been done: later calls use the command, this one is not made again. Methods and argument shapes are those of
//! `runsc/boot/controller.go` and `pkg/sentry/control/proc.go`.

use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::runsc::command::Runsc;
use crate::runsc::log::one_line;
use crate::runsc::socket::{self, CallError};
use crate::runsc::told::Told;
use crate::sys::reaper::{Exit, ExitWatch};

/// How runsc says that nobody listens at the control socket (`runsc/sandbox/sandbox.go`, `sandboxConnect`).
const UNREACHED: &str = "connecting to control server";
/// How long the sentry may take to answer anything but a wait.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// How long a runsc command may take to do the same.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// How long a sandbox that goes away takes to be gone, in most cases. It closes its socket first.
const GOING: Duration = Duration::from_millis(300);
/// How long one that the kernel is ending may take.
const ENDING: Duration = Duration::from_secs(10);
/// A fallback is told when the sandbox has lived on for so long: one that ends has given up nothing.
const LIVES_ON: Duration = Duration::from_secs(10);
/// How long one command waits for an exit before another takes over.
const SLICE: Duration = Duration::from_secs(600);
/// How long the two wait side by side: far more than a command takes to start.
const OVERLAP: Duration = Duration::from_secs(30);

/// The methods that have a socket side, each falling back for itself.
#[derive(Debug, Clone, Copy)]
pub(super) enum Method {
    Wait,
    WaitPid,
    Signal,
    State,
    Processes,
    Event,
    Execute,
    Network,
    Start,
    Collect,
    Export,
}

impl Method {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Wait => "containerManager.Wait",
            Self::WaitPid => "containerManager.WaitPID",
            Self::Signal => "containerManager.Signal",
            Self::State => "containerManager.ContainerRuntimeState",
            Self::Processes => "containerManager.Processes",
            Self::Event => "containerManager.Event",
            Self::Execute => "containerManager.ExecuteAsync",
            Self::Network => "containerManager.SetNetworkArgs",
            Self::Start => "containerManager.StartRoot",
            Self::Collect => "Usage.Collect",
            Self::Export => "Metrics.Export",
        }
    }

    /// Whether a call that is made twice may act twice.
    fn acts(self) -> bool {
        matches!(self, Self::Execute | Self::Signal | Self::Start)
    }

    fn bit(self) -> u32 {
        1 << (self as u32)
    }
}

/// Whom a signal is for; the numbers are the sentry's own (`boot.SignalDeliveryMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The container's init process.
    Init,
    /// One process that was exec'd, by its pid inside the sandbox: to the sentry, pid 0 is init.
    Process(NonZeroU32),
    /// The process group of one that was exec'd, which it leads under its own pid (`kernel.newTask` makes a session for a
    /// process without a parent).
    Group(NonZeroU32),
    /// Every process of the container.
    All,
    /// The group in front at the terminal of init, or of a process that was exec'd.
    Foreground(Option<NonZeroU32>),
}

/// What is used of one entry of a process list (`control.Process`): pids inside the sandbox.
#[derive(Debug, Deserialize)]
struct Listed {
    pid: u32,
    /// 0 where no process of the sandbox has started it.
    #[serde(default)]
    ppid: u32,
}

/// What the sentry says of a container (`boot.ContainerRuntimeState`; it says stopped for unknown ids too).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuntimeState {
    Creating,
    Running,
    Stopped,
}

/// Controls one sandbox.
#[derive(Debug)]
pub(crate) struct Control {
    pub(super) runsc: Arc<Runsc>,
    pub(super) socket: PathBuf,
    pub(super) sandbox: ExitWatch,
    pub(super) use_socket: bool,
    fallen_back: AtomicU32,
    pub(super) told: Told,
}

impl Control {
    /// `use_socket` off makes every method use the command from the start.
    pub(crate) fn new(
        runsc: Arc<Runsc>,
        socket: PathBuf,
        sandbox: ExitWatch,
        use_socket: bool,
    ) -> Self {
        let fallen_back = AtomicU32::new(if use_socket { 0 } else { u32::MAX });
        Self {
            runsc,
            socket,
            sandbox,
            use_socket,
            fallen_back,
            told: Told::default(),
        }
    }

    /// Waits until the container's init has exited. Before `start` the sentry answers with an error.
    ///
    /// # Errors
    /// When neither backend can tell; the sandbox may just have gone.
    pub(crate) async fn wait(&self, id: &str) -> Result<Exit> {
        match self.call_forever::<u32>(Method::Wait, &json!(id)).await? {
            Some(raw) => Ok(Exit::from_raw(raw)),
            None => self.wait_command(&[], id).await,
        }
    }

    /// Waits until an exec'd process has exited. Its status is given out once.
    ///
    /// # Errors
    /// As [`Control::wait`].
    pub(crate) async fn wait_pid(&self, id: &str, pid: NonZeroU32) -> Result<Exit> {
        match self
            .call_forever::<u32>(Method::WaitPid, &json!({ "CID": id, "PID": pid }))
            .await?
        {
            Some(raw) => Ok(Exit::from_raw(raw)),
            None => self.wait_command(&["--pid", &pid.to_string()], id).await,
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `NotFound` when the process has gone, `DeadlineExceeded` when the sentry does not answer, `Unavailable` when nobody
    /// listens, or when the reply does not tell whether the signal was sent; else the sentry's answer.
    pub(crate) async fn signal(&self, id: &str, target: Target, signal: i32) -> Result<()> {
        let (pid, mode) = match target {
            Target::Init => (0, 0),
            Target::Process(pid) => (pid.get(), 0),
            Target::All => (0, 1),
            Target::Group(pid) => (pid.get(), 3),
            Target::Foreground(pid) => (pid.map_or(0, NonZeroU32::get), 2),
        };
        let arg = json!({ "CID": id, "Signo": signal, "PID": pid, "Mode": mode });
        let called = match self.call::<IgnoredAny>(Method::Signal, &arg, &[]).await {
            // A second SIGKILL does what the first one does.
            Err(error) if error.kind() == Kind::Unavailable && signal == libc::SIGKILL => Ok(None),
            called => called,
        };
        let sent = match called {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                self.runsc.require(id)?;
                // `runsc kill` does not know the group in front: the process's own is what there is.
                let leader = match target {
                    Target::Foreground(None) => self.first_process(id).await?,
                    _ => pid,
                };
                let (number, pid) = (signal.to_string(), leader.to_string());
                let options = match target {
                    Target::Init => vec![],
                    Target::Process(_) => vec!["--pid", &pid],
                    Target::Group(_) | Target::Foreground(_) => vec!["--pgid", &pid],
                    Target::All => vec!["--all"],
                };
                let mut args: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
                args.extend([OsStr::new(id), OsStr::new(&number)]);
                self.runsc
                    .output("kill", &args, COMMAND_LIMIT)
                    .await
                    .map(|_| ())
            }
            Err(error) => Err(error),
        };
        sent.map_err(|error| {
            // `kernel.SendExternalSignalThreadGroup` and `signalProcess` say it in these words.
            let text = error.to_string();
            if text.contains("no such process") || text.contains("not running") {
                Error::not_found(text)
            } else if text.contains(UNREACHED) {
                Error::new(Kind::Unavailable, text)
            } else {
                error
            }
        })
    }

    /// Asks the sentry for the container's state.
    ///
    /// # Errors
    /// When neither backend answers.
    pub(crate) async fn state(&self, id: &str) -> Result<RuntimeState> {
        #[derive(Deserialize)]
        struct State {
            status: String,
        }
        if let Some(state) = self.call::<u32>(Method::State, &json!(id), &[]).await? {
            return Ok(match state {
                1 => RuntimeState::Creating,
                2 => RuntimeState::Running,
                _ => RuntimeState::Stopped,
            });
        }
        self.runsc.require(id)?;
        let text = self
            .runsc
            .output("state", &[OsStr::new(id)], COMMAND_LIMIT)
            .await?;
        let state: State = parse("state", &text)?;
        Ok(match state.status.as_str() {
            "creating" | "created" => RuntimeState::Creating,
            "running" | "paused" => RuntimeState::Running,
            _ => RuntimeState::Stopped,
        })
    }

    /// The processes of a container, by their pids inside the sandbox.
    ///
    /// # Errors
    /// When neither backend answers.
    pub(crate) async fn processes(&self, id: &str) -> Result<Vec<u32>> {
        if let Some(listed) = self.listed(id, CALL_LIMIT).await? {
            return Ok(listed.iter().map(|process| process.pid).collect());
        }
        self.runsc.require(id)?;
        let args = ["--format", "json", id].map(OsStr::new);
        let text = self.runsc.output("ps", &args, COMMAND_LIMIT).await?;
        Ok(parse::<Option<_>>("ps", &text)?.unwrap_or_default())
    }

    /// The pid of a container's init inside the sandbox: the first that nobody there has started, as numbers go up.
    async fn first_process(&self, id: &str) -> Result<u32> {
        let pids = self.parentless(id, COMMAND_LIMIT).await?;
        let first = pids.into_iter().map(NonZeroU32::get).min();
        first.ok_or_else(|| Error::not_found(format!("container {id:?} has no process")))
    }

    /// Those processes of a container that no other process of it has started: its init and what was exec'd in it.
    ///
    /// # Errors
    /// When neither backend answers in time.
    pub(crate) async fn parentless(&self, id: &str, limit: Duration) -> Result<Vec<NonZeroU32>> {
        if let Some(listed) = self.listed(id, limit).await? {
            let parentless = listed.iter().filter(|process| process.ppid == 0);
            return Ok(parentless
                .filter_map(|one| NonZeroU32::new(one.pid))
                .collect());
        }
        self.runsc.require(id)?;
        let args = ["--format", "table", id].map(OsStr::new);
        let text = self.runsc.output("ps", &args, limit).await?;
        Ok(parentless(&String::from_utf8_lossy(&text)))
    }

    /// `Ok(None)` means: use the command.
    async fn listed(&self, id: &str, limit: Duration) -> Result<Option<Vec<Listed>>> {
        let arg = json!(id);
        // Go writes an empty list as null.
        let listed = self.call_within::<Option<Vec<Listed>>>(Method::Processes, &arg, &[], limit);
        Ok(listed.await?.map(Option::unwrap_or_default))
    }

    /// Waits by the command, in slices: one that reads an endless reply slowly is ended all the same. A status is given out
    /// once, but to all that wait for it at that moment (`waitPID` in `runsc/boot/loader.go`). So a slice that has had its
    /// time goes on until the next one has begun to wait, and whichever answers is believed.
    async fn wait_command(&self, options: &[&str], id: &str) -> Result<Exit> {
        let mut waiting = Box::pin(self.wait_slice(options, id));
        loop {
            if let Ok(waited) = tokio::time::timeout(SLICE, &mut waiting).await {
                return waited;
            }
            let mut next = Box::pin(self.wait_slice(options, id));
            let both = async {
                tokio::select! {
                    biased;
                    waited = &mut waiting => waited,
                    waited = &mut next => waited,
                }
            };
            if let Ok(waited) = tokio::time::timeout(OVERLAP, both).await {
                return waited;
            }
            // Dropped, the old one is killed.
            waiting = next;
        }
    }

    async fn wait_slice(&self, options: &[&str], id: &str) -> Result<Exit> {
        #[derive(Deserialize)]
        struct Waited {
            #[serde(rename = "exitStatus")]
            exit_status: i32,
        }
        self.runsc.require(id)?;
        let mut args: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        args.push(OsStr::new(id));
        let text = self.runsc.output("wait", &args, SLICE * 2).await?;
        Ok(Exit::Code(parse::<Waited>("wait", &text)?.exit_status))
    }

    /// `Ok(None)` means: use the command.
    pub(super) async fn call<R: DeserializeOwned>(
        &self,
        method: Method,
        arg: &Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<R>> {
        self.call_within(method, arg, fds, CALL_LIMIT).await
    }

    pub(super) async fn call_within<R: DeserializeOwned>(
        &self,
        method: Method,
        arg: &Value,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Option<R>> {
        if self.has_fallen_back(method) {
            return Ok(None);
        }
        let reply = socket::call(&self.socket, method.name(), arg, fds, limit).await;
        self.judge(method, reply).await
    }

    async fn call_forever<R: DeserializeOwned>(
        &self,
        method: Method,
        arg: &Value,
    ) -> Result<Option<R>> {
        if self.has_fallen_back(method) {
            return Ok(None);
        }
        let reply = socket::call_unbounded(&self.socket, method.name(), arg, &[]).await;
        self.judge(method, reply).await
    }

    async fn judge<R>(
        &self,
        method: Method,
        reply: std::result::Result<R, CallError>,
    ) -> Result<Option<R>> {
        let error = match reply {
            Ok(result) => return Ok(Some(result)),
            Err(error) => error,
        };
        let message = || {
            format!(
                "sandbox: {}: {}",
                method.name(),
                one_line(&error.to_string())
            )
        };
        match error {
            CallError::Answer(ref text) => Err(Error::internal(one_line(text))),
            CallError::Timeout(_) => Err(Error::new(Kind::DeadlineExceeded, message())),
            CallError::Connect(_)
            | CallError::Broken(_)
            | CallError::Decode(_)
            | CallError::UnknownMethod => {
                let mut exit = self.sandbox.clone();
                if self.is_going(&error).await {
                    // Who is told that it has gone may look for it.
                    exit.wait_for(ENDING).await;
                    return Err(Error::not_found("the sandbox has exited"));
                }
                if self.fallen_back.fetch_or(method.bit(), Ordering::Relaxed) & method.bit() == 0 {
                    let told = "the runsc command serves it from here on, if one does";
                    self.tell_of_fallback(method, &error, told);
                }
                if method.acts() && matches!(error, CallError::Broken(_) | CallError::Decode(_)) {
                    let message = format!("{}: it may have been done", message());
                    return Err(Error::new(Kind::Unavailable, message));
                }
                Ok(None)
            }
        }
    }

    /// Whether a call failed because the sandbox goes away: that is no reason to distrust the method.
    pub(super) async fn is_going(&self, error: &CallError) -> bool {
        let mut exit = self.sandbox.clone();
        if !matches!(error, CallError::Connect(_) | CallError::Broken(_)) {
            // It has answered.
            return exit.get().is_some();
        }
        exit.wait_for(GOING).await.is_some() || exit.is_ending()
    }

    /// Counts and logs that a method is not served by the socket, once that is no sandbox on its way out.
    pub(super) fn tell_of_fallback(&self, method: Method, error: &CallError, then: &'static str) {
        let message = one_line(&error.to_string());
        let counters = Arc::clone(self.runsc.counters());
        let tell = move || {
            counters.fallbacks.add(method.name());
            tracing::warn!("sandbox: {}: {message}; {then}", method.name());
        };
        if !matches!(error, CallError::Connect(_) | CallError::Broken(_)) {
            return tell();
        }
        let mut exit = self.sandbox.clone();
        tokio::spawn(async move {
            if exit.wait_for(LIVES_ON).await.is_none() {
                tell();
            }
        });
    }

    pub(super) fn has_fallen_back(&self, method: Method) -> bool {
        self.fallen_back.load(Ordering::Relaxed) & method.bit() != 0
    }
}

pub(super) fn parse<T: DeserializeOwned>(command: &str, text: &[u8]) -> Result<T> {
    serde_json::from_slice(text)
        .map_err(|e| Error::internal(format!("runsc {command}: answer not understood: {e}")))
}

/// The pids without a parent in the table that `runsc ps` prints: `UID PID PPID …`.
fn parentless(table: &str) -> Vec<NonZeroU32> {
    let rows = table.lines().filter_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let (pid, parent) = (columns.next()?, columns.next()?);
        (parent == "0").then_some(pid.parse().ok()?)
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_and_execs_are_without_a_parent() {
        let table = "UID       PID       PPID      PGID      C         TTY       STIME     TIME      CMD\n\
                     0         1         0         1         0         ?         10:00     10ms      sh\n\
                     0         2         1         1         0         ?         10:00     10ms      sleep\n\
                     0         7         0         7         0         ?         10:01     0s        a b\n";
        let pids: Vec<u32> = parentless(table).iter().map(|pid| pid.get()).collect();
        assert_eq!(pids, [1, 7]);
    }
}
