//! A container: its init, its execs, and the order of what happens to them.
//!
//! No lock is held while runsc or the sandbox is asked: a state is claimed first (starting, deleting), so that a second
//! request is refused at once instead of waiting behind a slow one.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task::{
    TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::MessageField;
use runsc_config::{ExecCeiling, harden_exec};
use tokio::sync::watch;

use crate::clock;
use crate::error::{Code, Error, Result};
use crate::events::Events;
use crate::io::{ProcessIo, Stdio, console};
use crate::layout::Bundle;
use crate::process::{Exited, Phase, Process, StartReply};
use crate::reaper::Exit;
use crate::runsc::control::{Executed, RuntimeState, Target};
use crate::sandbox::Sandbox;
use crate::stats::GuestCounts;

/// The signals that end a container which has not started: there is no program yet that could handle them.
const ENDING_SIGNALS: [i32; 5] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGKILL,
    libc::SIGTERM,
];

/// A container whose sandbox exists.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    pub(crate) init: Arc<Process>,
    sandbox: Arc<Sandbox>,
    /// What an exec may have here.
    ceiling: ExecCeiling,
    /// Tasks of one uid that the sandbox may have.
    tasks_limit: u64,
    start_limit: Duration,
    events: Events,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    started: watch::Sender<bool>,
}

/// What a container is made of, once `runsc create` has succeeded.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    pub(crate) init: Process,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) ceiling: ExecCeiling,
    pub(crate) tasks_limit: u64,
    pub(crate) start_limit: Duration,
    pub(crate) events: Events,
}

impl Container {
    /// Takes over a created container and watches it from here on.
    pub(crate) fn watch(parts: Parts) -> Arc<Self> {
        let container = Arc::new(Self {
            id: parts.id,
            bundle: parts.bundle,
            init: Arc::new(parts.init),
            sandbox: parts.sandbox,
            ceiling: parts.ceiling,
            tasks_limit: parts.tasks_limit,
            start_limit: parts.start_limit,
            events: parts.events,
            execs: Mutex::default(),
            started: watch::channel(false).0,
        });
        tokio::spawn(Arc::clone(&container).watch_init());
        container
    }

    pub(crate) fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    /// The init process, or the exec of that id.
    ///
    /// # Errors
    /// `NotFound` for an unknown exec.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let found = self.lock_execs().get(exec_id).cloned();
        found.ok_or_else(|| {
            Error::not_found(format!(
                "exec {exec_id:?} of container {:?} does not exist",
                self.id
            ))
        })
    }

    /// Starts init or an exec. The reply guard lets the exit event go once the caller has answered.
    ///
    /// # Errors
    /// `FailedPrecondition` when it cannot be started (again); else runsc's or the sentry's reason.
    pub(crate) async fn start(self: &Arc<Self>, exec_id: &str) -> Result<StartReply> {
        if !exec_id.is_empty() {
            return self.start_exec(&self.process(exec_id)?).await;
        }
        let reply = self.init.begin_start()?;
        if let Err(error) = self
            .sandbox
            .runsc
            .act("start", &[], &self.id, self.start_limit)
            .await
        {
            // A container that failed to start is a stopped one: its sandbox has nothing else to run.
            self.sandbox.kill();
            return Err(error.context(format!("start container {:?}", self.id)));
        }
        self.init.set_running();
        self.started.send_replace(true);
        let mut event = TaskStart::new();
        event.container_id.clone_from(&self.id);
        event.pid = self.sandbox.pid();
        self.events.publish(event);
        Ok(reply)
    }

    /// Adds an exec, clamped like init; nothing runs until it is started.
    ///
    /// # Errors
    /// `AlreadyExists`, `FailedPrecondition` when init does not run, or what the policy refuses.
    pub(crate) fn add_exec(
        &self,
        exec_id: &str,
        stdio: Stdio,
        spec: serde_json::Value,
    ) -> Result<()> {
        let init = self.init.phase();
        if init != Phase::Running {
            let state = match init {
                Phase::Stopped(_) => "has exited",
                Phase::Paused => "is paused",
                _ => "has not been started",
            };
            return Err(Error::precondition(format!(
                "exec {exec_id:?}: container {:?} {state}",
                self.id
            )));
        }
        stdio.validate()?;
        let spec = harden_exec(spec, &self.ceiling).map_err(Error::from)?;
        if spec.terminal() != stdio.terminal {
            return Err(Error::invalid(format!(
                "exec {exec_id:?}: the request says terminal {}, its process says {}",
                stdio.terminal,
                spec.terminal()
            )));
        }
        let mut execs = self.lock_execs();
        if execs.contains_key(exec_id) {
            let message = format!("exec {exec_id:?} of container {:?} exists already", self.id);
            return Err(Error::new(Code::AlreadyExists, message));
        }
        execs.insert(
            exec_id.to_owned(),
            Arc::new(Process::new(exec_id.to_owned(), stdio, Some(spec))),
        );
        drop(execs);
        let mut event = TaskExecAdded::new();
        event.container_id.clone_from(&self.id);
        exec_id.clone_into(&mut event.exec_id);
        self.events.publish(event);
        Ok(())
    }

    async fn start_exec(self: &Arc<Self>, exec: &Arc<Process>) -> Result<StartReply> {
        let reply = exec.begin_start()?;
        match self.execute(exec).await {
            Ok(()) => {
                let mut event = TaskExecStarted::new();
                event.container_id.clone_from(&self.id);
                event.exec_id.clone_from(&exec.exec_id);
                event.pid = self.sandbox.pid();
                self.events.publish(event);
                Ok(reply)
            }
            Err(error) => {
                // Nothing ran: waiters get the code a shell gives for a program it cannot run, and there is no event.
                exec.set_exited(Exited::now(Exit::Code(127)));
                exec.close_io().await;
                Err(error.context(format!(
                    "exec {:?} in container {:?}",
                    exec.exec_id, self.id
                )))
            }
        }
    }

    async fn execute(self: &Arc<Self>, exec: &Arc<Process>) -> Result<()> {
        let Some(spec) = &exec.spec else {
            return Err(Error::internal("an exec without a process spec"));
        };
        let stdio = if exec.stdio.terminal {
            let (master, replica) = console::open()?;
            exec.set_terminal(master)?;
            let dup = || replica.try_clone().map_err(|e| Error::io("terminal", &e));
            [dup()?, dup()?, replica]
        } else {
            let (io, ends) = ProcessIo::pipes(&exec.stdio)?;
            exec.set_io(io);
            let [stdin, stdout, stderr] = ends.map(or_null);
            [stdin?, stdout?, stderr?]
        };
        let executed = self.sandbox.control.execute(&self.id, spec, stdio).await?;
        exec.set_guest_pid(executed.guest_pid);
        exec.set_running();
        let (container, exec) = (Arc::clone(self), Arc::clone(exec));
        tokio::spawn(async move {
            let mut sandbox_exit = container.sandbox.exit.clone();
            let exit = tokio::select! {
                biased;
                exit = container.exec_exit(&exec, executed) => exit,
                _ = sandbox_exit.wait() => Exit::Signal(libc::SIGKILL),
            };
            container.finish(&exec, Exited::now(exit), true).await;
        });
        Ok(())
    }

    /// Waits for an exec's exit. A wait that fails while the sandbox lives is tried again: giving up would leave a client
    /// waiting for ever.
    async fn exec_exit(&self, exec: &Process, executed: Executed) -> Exit {
        if let Some(mut keeper) = executed.keeper {
            return keeper.wait().await;
        }
        let mut pause = Duration::from_millis(20);
        loop {
            match self
                .sandbox
                .control
                .wait_pid(&self.id, executed.guest_pid)
                .await
            {
                Ok(exit) => return exit,
                Err(error) if error.to_string().contains("no such process") => {
                    tracing::error!(%error, exec = exec.exec_id, "exit status lost: reported as 255");
                    return Exit::Code(255);
                }
                Err(error) => {
                    tracing::warn!(%error, exec = exec.exec_id, "wait failed, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
    }

    /// Sends a signal to init, to an exec, or to everything in the container.
    ///
    /// # Errors
    /// `NotFound` for a finished process, `InvalidArgument` for no signal of Linux, `FailedPrecondition` before start.
    pub(crate) async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let signal = i32::try_from(signal)
            .ok()
            .filter(|signal| (1..=64).contains(signal))
            .ok_or_else(|| {
                Error::invalid(format!("kill: signal {signal} is not between 1 and 64"))
            })?;
        let process = self.process(exec_id)?;
        let target = match (process.check_alive()?, all) {
            (Phase::Created, _) if exec_id.is_empty() => {
                if ENDING_SIGNALS.contains(&signal) {
                    self.sandbox.kill();
                    process.wait().await;
                }
                return Ok(());
            }
            (Phase::Created, _) => {
                return Err(Error::precondition(format!(
                    "kill: exec {exec_id:?} has not been started"
                )));
            }
            (_, true) if exec_id.is_empty() => Target::All,
            _ if exec_id.is_empty() => Target::Init,
            _ => Target::Process(process.guest_pid()),
        };
        let sent = self.sandbox.control.signal(&self.id, target, signal).await;
        match sent {
            // A sentry that does not answer can still be ended from outside, and with it all it runs.
            Err(error)
                if signal == libc::SIGKILL
                    && exec_id.is_empty()
                    && error.code() != Code::NotFound =>
            {
                tracing::warn!(%error, id = self.id, "SIGKILL not taken by the sandbox: killing the sandbox itself");
                self.sandbox.kill();
                Ok(())
            }
            Err(_) if matches!(process.phase(), Phase::Stopped(_)) => {
                process.check_alive().map(|_| ())
            }
            sent => sent,
        }
    }

    /// Pauses or resumes the whole container.
    ///
    /// # Errors
    /// `FailedPrecondition` when it does not run (or is not paused), else runsc's reason.
    pub(crate) async fn set_paused(&self, paused: bool) -> Result<()> {
        let (subcommand, needed) = if paused {
            ("pause", Phase::Running)
        } else {
            ("resume", Phase::Paused)
        };
        if self.init.phase() != needed {
            let needed = if paused { "running" } else { "paused" };
            return Err(Error::precondition(format!(
                "{subcommand}: container {:?} is not {needed}",
                self.id
            )));
        }
        self.sandbox
            .runsc
            .act(subcommand, &[], &self.id, self.start_limit)
            .await?;
        self.init.set_paused(paused);
        if paused {
            let mut event = TaskPaused::new();
            event.container_id.clone_from(&self.id);
            self.events.publish(event);
        } else {
            let mut event = TaskResumed::new();
            event.container_id.clone_from(&self.id);
            self.events.publish(event);
        }
        Ok(())
    }

    /// Forgets an exec that is not running.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs, `NotFound` for an unknown one.
    pub(crate) async fn delete_exec(&self, exec_id: &str) -> Result<Exited> {
        let exec = self.process(exec_id)?;
        exec.begin_delete()?;
        exec.close_io().await;
        self.lock_execs().remove(exec_id);
        Ok(match exec.phase() {
            Phase::Stopped(exited) => exited,
            _ => Exited::now(Exit::Code(0)),
        })
    }

    /// Removes everything of a container that is not running; one that was never started is ended first.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs.
    pub(crate) async fn delete(&self) -> Result<Exited> {
        if self.init.begin_delete()? == Phase::Created {
            self.sandbox.kill();
        }
        let exited = self.init.wait().await;
        let execs: Vec<_> = self.lock_execs().drain().map(|(_, exec)| exec).collect();
        for exec in execs {
            exec.close_io().await;
        }
        self.init.close_io().await;
        self.sandbox.remove(&self.bundle).await;
        let mut event = TaskDelete::new();
        event.container_id.clone_from(&self.id);
        event.pid = self.sandbox.pid();
        event.exit_status = exited.status;
        event.exited_at = MessageField::some(clock::timestamp(exited.at));
        self.events.publish(event);
        Ok(exited)
    }

    /// What the guest itself counts; `None` where it is not asked or does not answer.
    pub(crate) async fn guest_counts(&self) -> GuestCounts {
        let tasks = match self.init.phase() {
            Phase::Running => self.sandbox.control.processes(&self.id).await.ok(),
            _ => None,
        };
        let tasks = tasks.map(|list| {
            let threads = |process: &crate::runsc::control::GuestProcess| {
                process.threads.as_ref().map_or(1, Vec::len)
            };
            list.iter()
                .map(|process| threads(process).max(1) as u64)
                .sum()
        });
        GuestCounts {
            tasks,
            tasks_limit: Some(self.tasks_limit),
        }
    }

    /// Follows init to its exit.
    async fn watch_init(self: Arc<Self>) {
        let mut sandbox_exit = self.sandbox.exit.clone();
        let exit = tokio::select! {
            exit = sandbox_exit.wait() => exit,
            exit = self.init_exit() => {
                // The answer precedes the sandbox's own exit, and a delete that came in between would be refused.
                self.sandbox.wait_gone().await;
                exit
            }
        };
        let exited = Exited::now(exit);
        // The execs died with init, and their exits are told first.
        let execs: Vec<_> = self.lock_execs().values().cloned().collect();
        let all_execs = async {
            for exec in execs
                .iter()
                .filter(|exec| !matches!(exec.phase(), Phase::Created))
            {
                exec.wait().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), all_execs).await;
        self.finish(&Arc::clone(&self.init), exited, false).await;
    }

    /// Asks the sentry for init's exit, as soon as there is one to ask for. Never returns when it cannot tell: the
    /// sandbox's own exit then decides, whose code is the same (`runsc boot` exits with the code of its root container).
    async fn init_exit(&self) -> Exit {
        let mut started = self.started.subscribe();
        if started.wait_for(|started| *started).await.is_err() {
            return std::future::pending().await;
        }
        match self.sandbox.control.wait(&self.id).await {
            Ok(exit) => exit,
            Err(error) => {
                tracing::debug!(%error, id = self.id, "wait not answered; the sandbox's end decides");
                if self.sandbox.exit.get().is_none()
                    && matches!(
                        self.sandbox.control.state(&self.id).await,
                        Ok(RuntimeState::Stopped)
                    )
                {
                    tracing::warn!(
                        id = self.id,
                        "the container has stopped but its sandbox stays: ending it"
                    );
                    self.sandbox.wait_gone().await;
                }
                std::future::pending().await
            }
        }
    }

    /// Records an exit and tells it, after the reply to the start of the same process.
    async fn finish(&self, process: &Arc<Process>, exited: Exited, is_exec: bool) {
        let was_started = process.phase() != Phase::Created;
        if !process.set_exited(exited) {
            return;
        }
        process.wait_start_answered(was_started).await;
        let mut event = TaskExit::new();
        event.container_id.clone_from(&self.id);
        event.id = if is_exec {
            process.exec_id.clone()
        } else {
            self.id.clone()
        };
        event.pid = self.sandbox.pid();
        event.exit_status = exited.status;
        event.exited_at = MessageField::some(clock::timestamp(exited.at));
        self.events.publish(event);
    }

    fn lock_execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that nobody asked for is /dev/null, never a descriptor of the shim's.
fn or_null(end: Option<OwnedFd>) -> Result<OwnedFd> {
    match end {
        Some(end) => Ok(end),
        None => std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
            .map_err(|e| Error::io("open /dev/null", &e)),
    }
}
