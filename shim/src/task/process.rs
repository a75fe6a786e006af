//! One process of a container, init or exec: its state, its streams, its exit.

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use runsc_config::HardenedProcess;
use tokio::sync::{mpsc, watch};

use crate::error::{Error, Kind, Result};
use crate::io::{Owner, ProcessIo, Raised, Signals, Stdio, console, is_controlled};
use crate::sys::reaper::{Exit, ExitWatch};

/// How a process ended, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exited {
    /// The code, or 128 and the signal.
    pub(crate) status: u32,
    /// A program may exit with a code that looks like one.
    pub(crate) by_signal: bool,
    pub(crate) at: SystemTime,
}

impl Exited {
    pub(crate) fn now(exit: Exit) -> Self {
        Self {
            status: exit.status(),
            by_signal: matches!(exit, Exit::Signal(_)),
            at: SystemTime::now(),
        }
    }
}

/// Where a process is in its life. It only ever moves forward, except between running and paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Starting,
    Running,
    Paused,
    Stopped(Exited),
}

#[derive(Debug)]
struct State {
    phase: Phase,
    deleting: bool,
}

/// What both kinds of process have in common.
#[derive(Debug)]
pub(crate) struct Process {
    /// The exec id; empty for init.
    pub(crate) exec_id: String,
    pub(crate) stdio: Stdio,
    /// What to run, for an exec; init's is in the spec.
    pub(crate) spec: Option<HardenedProcess>,
    state: Mutex<State>,
    exit: watch::Sender<Option<Exited>>,
    start_answered: watch::Sender<bool>,
    guest_pid: watch::Sender<Option<NonZeroU32>>,
    streams: Mutex<Streams>,
    terminal: Mutex<Terminal>,
}

#[derive(Debug, Default)]
struct Streams {
    io: Option<Arc<ProcessIo>>,
    /// CloseIO has come. An exec's client may be done with stdin before its start.
    is_input_closed: bool,
}

/// The terminal of a process that has one.
#[derive(Debug, Default)]
struct Terminal {
    master: Option<OwnedFd>,
    /// Width and height that it is to have once it is there.
    size: Option<(u32, u32)>,
    signals: Option<Signals>,
    /// What it raises, until somebody takes it up.
    raised: Option<mpsc::Receiver<Raised>>,
    /// The runsc command that waits for the process, where there is one, and hands on what it is sent.
    keeper: Option<ExitWatch>,
}

/// Held until the reply to `Start` is on its way: TaskExit must not overtake it.
#[derive(Debug)]
pub(crate) struct StartReply(Arc<Process>);

impl Drop for StartReply {
    fn drop(&mut self) {
        self.0.start_answered.send_replace(true);
    }
}

impl Process {
    pub(crate) fn new(exec_id: String, stdio: Stdio, spec: Option<HardenedProcess>) -> Self {
        Self {
            exec_id,
            stdio,
            spec,
            state: Mutex::new(State {
                phase: Phase::Created,
                deleting: false,
            }),
            exit: watch::channel(None).0,
            start_answered: watch::channel(false).0,
            guest_pid: watch::channel(None).0,
            streams: Mutex::default(),
            terminal: Mutex::default(),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    fn name(&self) -> String {
        if self.exec_id.is_empty() {
            "the container".to_owned()
        } else {
            format!("exec {:?}", self.exec_id)
        }
    }

    /// Claims the start: only a created process can be started, and only once.
    ///
    /// # Errors
    /// `FailedPrecondition` in any other phase.
    pub(crate) fn begin_start(self: &Arc<Self>) -> Result<StartReply> {
        let mut state = self.lock();
        match state.phase {
            Phase::Created if !state.deleting => {
                state.phase = Phase::Starting;
                Ok(StartReply(Arc::clone(self)))
            }
            Phase::Stopped(_) => Err(Error::precondition(format!(
                "start: {} has exited already",
                self.name()
            ))),
            _ => Err(Error::precondition(format!(
                "start: {} has been started already",
                self.name()
            ))),
        }
    }

    /// It runs now, unless its exit has been seen already.
    pub(crate) fn set_running(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Starting {
            state.phase = Phase::Running;
        }
    }

    /// Moves between running and paused; returns whether it did.
    pub(crate) fn set_paused(&self, paused: bool) -> bool {
        let mut state = self.lock();
        match (state.phase, paused) {
            (Phase::Running, true) => state.phase = Phase::Paused,
            (Phase::Paused, false) => state.phase = Phase::Running,
            _ => return false,
        }
        true
    }

    /// Records the exit. Returns whether this call did: there is one exit, and one event for it.
    pub(crate) fn set_exited(&self, exited: Exited) -> bool {
        {
            let mut state = self.lock();
            if matches!(state.phase, Phase::Stopped(_)) {
                return false;
            }
            state.phase = Phase::Stopped(exited);
        }
        if let Some(io) = self.io() {
            io.process_exited();
        }
        self.exit.send_replace(Some(exited));
        true
    }

    /// Waits until it has exited, for as long as it takes.
    pub(crate) async fn wait(&self) -> Exited {
        let mut exit = self.exit.subscribe();
        match exit
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|exited| *exited)
        {
            Some(exited) => exited,
            // The sender is a field of this process: it cannot be gone while the process is borrowed.
            None => Exited::now(Exit::Signal(9)),
        }
    }

    /// Waits until the reply to `Start`, if one is being made, has been handed to the client.
    pub(crate) async fn wait_start_answered(&self, was_started: bool) {
        if was_started {
            let mut answered = self.start_answered.subscribe();
            let _ = tokio::time::timeout(
                Duration::from_secs(5),
                answered.wait_for(|answered| *answered),
            )
            .await;
        }
    }

    /// Claims the delete of a process that does not run.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs, `NotFound` when another delete is at work.
    pub(crate) fn begin_delete(&self) -> Result<Phase> {
        let mut state = self.lock();
        if state.deleting {
            return Err(Error::not_found(format!(
                "delete: {} is being deleted already",
                self.name()
            )));
        }
        match state.phase {
            Phase::Starting | Phase::Running | Phase::Paused => Err(Error::precondition(format!(
                "delete: {} is running: a task must be stopped before it is deleted",
                self.name()
            ))),
            phase => {
                state.deleting = true;
                Ok(phase)
            }
        }
    }

    /// Takes back the claim: another delete may try.
    pub(crate) fn give_up_delete(&self) {
        self.lock().deleting = false;
    }

    /// Whether a signal can be delivered.
    ///
    /// # Errors
    /// `NotFound` once it has exited: that is what a client takes for "already gone".
    pub(crate) fn check_alive(&self) -> Result<Phase> {
        match self.phase() {
            Phase::Stopped(_) => Err(Error::new(
                Kind::NotFound,
                format!("{}: process already finished", self.name()),
            )),
            phase => Ok(phase),
        }
    }

    /// An exec's pid inside the sandbox. One that is still starting has none yet, and is waited for.
    ///
    /// # Errors
    /// `FailedPrecondition` when the start takes longer than `limit`, `NotFound` when it fails.
    pub(crate) async fn guest_pid(&self, limit: Duration) -> Result<NonZeroU32> {
        let mut pid = self.guest_pid.subscribe();
        let mut exit = self.exit.subscribe();
        let known = async {
            tokio::select! {
                biased;
                pid = pid.wait_for(Option::is_some) => pid.ok().and_then(|pid| *pid),
                _ = exit.wait_for(Option::is_some) => None,
            }
        };
        if let Ok(Some(pid)) = tokio::time::timeout(limit, known).await {
            return Ok(pid);
        }
        self.check_alive()?;
        Err(Error::precondition(format!(
            "{} is still being started after {limit:?}",
            self.name()
        )))
    }

    /// An exec's pid inside the sandbox, if it has been started.
    pub(crate) fn known_pid(&self) -> Option<NonZeroU32> {
        *self.guest_pid.borrow()
    }

    pub(crate) fn set_guest_pid(&self, pid: NonZeroU32) {
        self.guest_pid.send_replace(Some(pid));
    }

    pub(crate) fn io(&self) -> Option<Arc<ProcessIo>> {
        self.lock_streams().io.clone()
    }

    pub(crate) fn set_io(&self, io: ProcessIo) {
        let mut streams = self.lock_streams();
        if streams.is_input_closed {
            io.close_input();
        }
        streams.io = Some(Arc::new(io));
    }

    /// Lets stdin end once the client has closed its side; where there is no stdin yet, as soon as there is.
    pub(crate) fn close_input(&self) {
        let mut streams = self.lock_streams();
        streams.is_input_closed = true;
        if let Some(io) = &streams.io {
            io.close_input();
        }
    }

    /// Lets go of the streams, once what is in flight has been delivered.
    pub(crate) async fn close_io(&self) {
        let io = self.lock_streams().io.take();
        self.lock_terminal().master = None;
        if let Some(io) = io {
            io.process_exited();
            io.drain().await;
        }
    }

    /// Asks for a first size of its terminal; what a client gives before there is one counts more.
    pub(crate) fn set_first_size(&self, size: Option<(u32, u32)>) {
        let mut terminal = self.lock_terminal();
        terminal.size = terminal.size.take().or(size);
    }

    /// Connects the streams to a terminal's master, which stays with the process for its size: the one it has been given
    /// already, else the one that its spec asks for.
    ///
    /// # Errors
    /// When a stream cannot be opened, or for an impossible size.
    pub(crate) async fn set_terminal(&self, master: OwnedFd, owner: Owner<'_>) -> Result<()> {
        let (signals, raised) = Signals::new();
        self.set_io(ProcessIo::terminal(&self.stdio, owner, &master, signals.clone()).await?);
        let mut terminal = self.lock_terminal();
        if let Some((width, height)) = terminal.size.take() {
            console::resize(&master, width, height)?;
        }
        terminal.master = Some(master);
        terminal.signals = Some(signals);
        terminal.raised = Some(raised);
        Ok(())
    }

    /// The signals of its terminal, for whoever delivers them: once.
    pub(crate) fn take_raised(&self) -> Option<mpsc::Receiver<Raised>> {
        self.lock_terminal().raised.take()
    }

    pub(crate) fn set_keeper(&self, keeper: Option<ExitWatch>) {
        self.lock_terminal().keeper = keeper;
    }

    /// The runsc command that waits for it, if there is one.
    pub(crate) fn keeper(&self) -> Option<ExitWatch> {
        self.lock_terminal().keeper.clone()
    }

    /// Gives the terminal a size. A client may do so before there is one: `nerdctl exec -t` does between adding and
    /// starting an exec.
    ///
    /// # Errors
    /// `FailedPrecondition` where there is no terminal, `InvalidArgument` for an impossible size.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        let to_come =
            self.stdio.terminal && matches!(self.phase(), Phase::Created | Phase::Starting);
        let mut terminal = self.lock_terminal();
        match &terminal.master {
            Some(master) => {
                let has_changed = console::resize(master, width, height)?;
                if has_changed
                    && !is_controlled(master)
                    && let Some(signals) = &terminal.signals
                {
                    signals.size_changed();
                }
                Ok(())
            }
            None if to_come => {
                console::size(width, height)?;
                terminal.size = Some((width, height));
                Ok(())
            }
            None => Err(Error::precondition(format!(
                "resize: {} has no terminal",
                self.name()
            ))),
        }
    }

    fn lock_streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_terminal(&self) -> MutexGuard<'_, Terminal> {
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Arc<Process> {
        Arc::new(Process::new(String::new(), Stdio::default(), None))
    }

    #[test]
    fn a_process_starts_once() {
        let process = process();
        let _reply = process.begin_start().expect("first start");
        assert_eq!(
            process.begin_start().expect_err("second start").kind(),
            Kind::FailedPrecondition
        );
    }

    #[test]
    fn the_first_exit_counts() {
        let process = process();
        assert!(process.set_exited(Exited::now(Exit::Code(3))));
        assert!(!process.set_exited(Exited::now(Exit::Signal(9))));
        assert!(matches!(
            process.phase(),
            Phase::Stopped(Exited { status: 3, .. })
        ));
        process.set_running();
        assert!(
            matches!(process.phase(), Phase::Stopped(_)),
            "an exit seen during start stays"
        );
    }

    #[test]
    fn delete_is_refused_while_running_and_happens_once() {
        let process = process();
        let reply = process.begin_start().expect("start");
        process.set_running();
        assert_eq!(
            process.begin_delete().expect_err("running").kind(),
            Kind::FailedPrecondition
        );
        process.set_exited(Exited::now(Exit::Code(0)));
        process.begin_delete().expect("delete");
        assert_eq!(
            process.begin_delete().expect_err("twice").kind(),
            Kind::NotFound
        );
        drop(reply);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_is_starting_has_no_pid_until_it_runs() {
        let (limit, pid) = (Duration::from_secs(1), NonZeroU32::MIN);
        let starting = process();
        let _reply = starting.begin_start().expect("start");
        let error = starting.guest_pid(limit).await.expect_err("no pid");
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        let later = async {
            tokio::time::sleep(limit / 2).await;
            starting.set_guest_pid(pid);
        };
        let (found, ()) = tokio::join!(starting.guest_pid(limit), later);
        assert_eq!(found.expect("a pid"), pid);

        let failing = process();
        let _reply = failing.begin_start().expect("start");
        let later = async {
            tokio::time::sleep(limit / 2).await;
            failing.set_exited(Exited::now(Exit::Code(127)));
        };
        let (found, ()) = tokio::join!(failing.guest_pid(limit), later);
        assert_eq!(found.expect_err("it failed").kind(), Kind::NotFound);
    }

    #[test]
    fn a_size_is_taken_before_there_is_a_terminal_and_not_without_one() {
        let stdio = Stdio {
            terminal: true,
            ..Stdio::default()
        };
        let process = Process::new("e".to_owned(), stdio, None);
        process.resize(100, 40).expect("kept for later");
        assert_eq!(process.lock_terminal().size, Some((100, 40)));
        let error = process.resize(70_000, 40).expect_err("impossible");
        assert_eq!(error.kind(), Kind::InvalidArgument);
        process.set_exited(Exited::now(Exit::Code(0)));
        let error = process.resize(100, 40).expect_err("gone");
        assert_eq!(error.kind(), Kind::FailedPrecondition);
    }

    #[test]
    fn a_signal_to_a_finished_process_finds_nothing() {
        let process = process();
        process.set_exited(Exited::now(Exit::Code(0)));
        assert_eq!(
            process.check_alive().expect_err("gone").kind(),
            Kind::NotFound
        );
    }
}
