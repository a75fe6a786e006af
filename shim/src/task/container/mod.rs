//! A container: its init, its execs, and the order of what happens to them.
//!
//! No lock is held while the shim asks runsc or the sandbox. It claims a state first (starting, deleting), and so refuses a second
//! request at once instead of letting it wait behind a slow one.

mod confinement;
mod ending;
mod exec;
mod exit;
mod sigkill;
mod strays;
mod terminal;
mod usage;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use runsc_config::ExecCeiling;
use serde_json::Value;
use tokio::sync::watch;

pub(crate) use confinement::Confinement;

use crate::error::{Error, Kind, Result};
use crate::runsc::command::Given;
use crate::runsc::control::Target;
use crate::sandbox::changes::Repeats;
use crate::sandbox::furnish::small::Messages;
use crate::sandbox::layout::Bundle;
use crate::sandbox::{EXIT_GRACE, Sandbox};
use crate::sys::counters::Operation;
use crate::sys::reaper::Exit;
use crate::task::container::strays::Strays;
use crate::task::event::{Event, Events};
use crate::task::names::Names;
use crate::task::process::{Exited, Phase, Process, StartReply};

/// The signals that end a container which has not started: there is no program yet that could handle them.
const ENDING_SIGNALS: [i32; 5] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGKILL,
    libc::SIGTERM,
];

/// How long a signal waits for a start to end.
const STARTING_GRACE: Duration = Duration::from_secs(5);

/// The code of a container that could not be started, as runc's shim has it.
const FAILED_TO_START: i32 = 128;

/// A container whose sandbox exists.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) names: Names,
    pub(crate) bundle: Bundle,
    pub(crate) init: Arc<Process>,
    sandbox: Arc<Sandbox>,
    /// What an exec may have here.
    ceiling: ExecCeiling,
    pub(crate) confinement: Confinement,
    /// Whether runsc has hooks to run after its end.
    has_poststop_hooks: bool,
    /// What a further container of a pod starts with; a sandbox's first got its streams when it was created.
    given_at_start: Mutex<Given>,
    messages: Messages,
    events: Events,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    started: watch::Sender<bool>,
    used: Mutex<usage::Used>,
    /// Whether init has been sent SIGKILL, and its end is awaited.
    is_dying: AtomicBool,
    strays: Strays,
    /// Of the changes to its execs.
    repeats: Repeats,
}

/// What a container is made of, once `runsc create` has succeeded.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) id: String,
    pub(crate) names: Names,
    pub(crate) bundle: Bundle,
    pub(crate) init: Process,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) ceiling: ExecCeiling,
    pub(crate) confinement: Confinement,
    pub(crate) has_poststop_hooks: bool,
    pub(crate) given_at_start: Given,
    /// What is to be told when it ends.
    pub(crate) messages: Messages,
    pub(crate) events: Events,
}

impl Container {
    /// Takes over a created container and watches it from here on.
    pub(crate) fn watch(parts: Parts) -> Arc<Self> {
        let container = Arc::new(Self {
            id: parts.id,
            names: parts.names,
            bundle: parts.bundle,
            init: Arc::new(parts.init),
            sandbox: parts.sandbox,
            ceiling: parts.ceiling,
            confinement: parts.confinement,
            has_poststop_hooks: parts.has_poststop_hooks,
            given_at_start: Mutex::new(parts.given_at_start),
            messages: parts.messages,
            events: parts.events,
            execs: Mutex::default(),
            started: watch::channel(false).0,
            used: Mutex::default(),
            is_dying: AtomicBool::new(false),
            strays: Strays::default(),
            repeats: Repeats::default(),
        });
        if !container.is_root() {
            container.sandbox.untold.exit_expected();
        }
        tokio::spawn(Arc::clone(&container).watch_init());
        container.obey_terminal(&container.init);
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
        let began = Instant::now();
        let started = self.start_init().await;
        self.sandbox.counters().operation(Operation::Start, began);
        if let Err(error) = started {
            if self.is_root() {
                // A container that failed to start is a stopped one: its sandbox has nothing else to run.
                self.sandbox.kill();
            } else {
                // Nothing runs: its exit has no good news to wait for.
                drop(reply);
                self.sandbox.end_gofer(&self.bundle).await;
                self.finish(&self.init, Exited::now(Exit::Code(FAILED_TO_START)), false)
                    .await;
                self.sandbox.end_if_silent(&error);
            }
            return Err(error.context(format!("start container {:?}", self.id)));
        }
        self.sandbox.spread_oom_score();
        self.init.set_running();
        self.started.send_replace(true);
        self.events.publish(Event::Started {
            id: self.id.clone(),
            pid: self.sandbox.pid(),
        });
        Ok(reply)
    }

    async fn start_init(&self) -> Result<()> {
        let runsc = &self.sandbox.runsc;
        let limit = self.sandbox.start_limit();
        if self.is_root() {
            let is_pod = self.sandbox.is_pod;
            let control = &self.sandbox.control;
            if self.sandbox.features.is_current()
                && control.start_root(&self.id, is_pod, limit).await?
            {
                return Ok(());
            }
            return runsc.act("start", &[], &self.id, limit).await;
        }
        let given = self.take_given();
        let given = Given {
            binds: given.binds.looked_at_again(limit).await?,
            ..given
        };
        runsc.require(&self.id)?;
        let id = [OsStr::new(&self.id)];
        let before = runsc.reaper().moment();
        // runsc takes longer to come up than the sentry to answer.
        let (used, started) =
            tokio::join!(self.cpu_moment(), runsc.run("start", &id, given, limit));
        started?;
        // Its gofer was started with it.
        self.sandbox.adopt_gofer(&self.id, before);
        self.learn_init().await;
        self.note_start(used).await;
        Ok(())
    }

    /// What waits for the start; nothing waits for it any more.
    fn take_given(&self) -> Given {
        let mut given = self
            .given_at_start
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut given)
    }

    /// Whether the sandbox was made for this container, and ends with it.
    fn is_root(&self) -> bool {
        self.id == self.sandbox.id
    }

    /// Sends a signal to init, to an exec, to the process group of an exec, or to everything in the container.
    ///
    /// # Errors
    /// `NotFound` for a finished process, `InvalidArgument` for no signal of Linux, `FailedPrecondition` before start.
    pub(crate) async fn kill(
        self: &Arc<Self>,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<()> {
        let signal = i32::try_from(signal)
            .ok()
            .filter(|signal| (1..=64).contains(signal))
            .ok_or_else(|| {
                Error::invalid(format!("kill: signal {signal} is not between 1 and 64"))
            })?;
        let process = self.process(exec_id)?;
        match process.check_alive()? {
            Phase::Created if exec_id.is_empty() => {
                if ENDING_SIGNALS.contains(&signal) {
                    return self.end_unstarted().await;
                }
                return Err(Error::precondition(format!(
                    "kill: container {:?} has not been started: there is no program that could take signal {signal}",
                    self.id
                )));
            }
            Phase::Created => {
                return Err(Error::precondition(format!(
                    "kill: exec {exec_id:?} has not been started"
                )));
            }
            Phase::Paused if exec_id.is_empty() && signal == libc::SIGKILL => {
                return self.kill_paused();
            }
            _ => {}
        }
        let target = match (exec_id.is_empty(), all) {
            (true, true) => Target::All,
            (true, false) => Target::Init,
            (false, all) => {
                let pid = process.guest_pid(STARTING_GRACE).await?;
                // An older sentry panics at a mode that it does not know.
                if all && self.sandbox.features.is_current() {
                    Target::Group(pid)
                } else {
                    Target::Process(pid)
                }
            }
        };
        let sent = self.signal(&process, target, signal).await;
        let is_told = sent.is_ok() || process.phase() != Phase::Starting;
        if exec_id.is_empty() && signal == libc::SIGKILL && is_told {
            self.expect_end();
        }
        match sent {
            Err(error) if exec_id.is_empty() && self.must_be_ended(signal, &error) => {
                tracing::warn!(%error, id = self.id, "SIGKILL not taken by the sandbox: killing the sandbox itself");
                self.sandbox.force_end("kill_unanswered");
                Ok(())
            }
            Err(_) if matches!(process.phase(), Phase::Stopped(_)) => {
                process.check_alive().map(|_| ())
            }
            sent => sent,
        }
    }

    /// Hands a signal to the sentry, which cannot take one for a process that is just being started.
    async fn signal(&self, process: &Process, target: Target, signal: i32) -> Result<()> {
        let is_init = process.exec_id.is_empty();
        let deadline = tokio::time::Instant::now() + STARTING_GRACE;
        loop {
            let is_starting = process.phase() == Phase::Starting;
            let error = match self.sandbox.control.signal(&self.id, target, signal).await {
                Err(error) if is_starting && !self.must_be_ended(signal, &error) => error,
                sent => return sent,
            };
            if tokio::time::Instant::now() >= deadline {
                // "Not found" would tell the client that it has ended.
                let what = if is_init { &self.id } else { &process.exec_id };
                return Err(Error::precondition(format!(
                    "kill: {what:?} is just being started: {error}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the sandbox has to be killed from outside, and with it all it runs: it has nothing but this container, or it
    /// does not answer. The other containers of a pod do not die of an answer.
    fn must_be_ended(&self, signal: i32, error: &Error) -> bool {
        let is_silent = matches!(error.kind(), Kind::DeadlineExceeded | Kind::Unavailable);
        signal == libc::SIGKILL && (is_silent || self.is_root() && error.kind() != Kind::NotFound)
    }

    /// Ends a paused sandbox. The sentry would keep the signal until it is resumed, which nobody may ever do.
    ///
    /// # Errors
    /// `FailedPrecondition` for a further container of a pod: the others would end with it.
    fn kill_paused(&self) -> Result<()> {
        if !self.is_root() {
            return Err(Error::precondition(format!(
                "kill: the sandbox of container {:?} is paused: resume it first, or kill {:?} and so the whole pod",
                self.id, self.sandbox.id
            )));
        }
        self.sandbox.kill();
        Ok(())
    }

    /// Ends a container that has not been started.
    ///
    /// # Errors
    /// `DeadlineExceeded` when its sandbox survives SIGKILL for that long.
    async fn end_unstarted(&self) -> Result<()> {
        if self.is_root() {
            self.sandbox.kill();
            let ended = tokio::time::timeout(EXIT_GRACE, self.init.wait()).await;
            if ended.is_err() {
                let message = format!(
                    "container {:?}: its sandbox (pid {}) is there {EXIT_GRACE:?} after SIGKILL",
                    self.id,
                    self.sandbox.pid()
                );
                return Err(Error::new(Kind::DeadlineExceeded, message));
            }
        } else {
            let killed = Exited::now(Exit::Signal(libc::SIGKILL));
            self.finish(&self.init, killed, false).await;
        }
        Ok(())
    }

    /// Pauses or resumes the sandbox, which the container must be the first of: gVisor stops all of it.
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
        if !self.is_root() {
            return Err(Error::precondition(format!(
                "{subcommand}: container {:?} shares its sandbox, which can only be paused as a whole: by {:?}",
                self.id, self.sandbox.id
            )));
        }
        let limit = self.sandbox.start_limit();
        self.sandbox
            .runsc
            .act(subcommand, &[], &self.id, limit)
            .await
    }

    /// Records that the sandbox was paused or resumed, with this container in it.
    pub(crate) fn note_paused(&self, paused: bool) {
        if !self.init.set_paused(paused) {
            return;
        }
        let id = self.id.clone();
        self.events.publish(if paused {
            Event::Paused { id }
        } else {
            Event::Resumed { id }
        });
    }

    /// Changes the limits, as `resources` (`LinuxResources` of the OCI specification) ask.
    ///
    /// # Errors
    /// `InvalidArgument` for malformed resources, `FailedPrecondition` for what cannot be given now.
    pub(crate) fn update(&self, resources: &Value) -> Result<()> {
        self.init.check_alive()?;
        self.sandbox.update(&self.id, resources)
    }

    /// Removes everything of a container that is not running; one that was never started is ended first.
    ///
    /// # Errors
    /// `FailedPrecondition` while it runs, `DeadlineExceeded` when it cannot be ended: it can be tried again.
    pub(crate) async fn delete(&self) -> Result<Exited> {
        if self.init.begin_delete()? == Phase::Created
            && let Err(error) = self.end_unstarted().await
        {
            self.init.give_up_delete();
            return Err(error.context("delete"));
        }
        let exited = self.init.wait().await;
        let execs: Vec<_> = self.lock_execs().drain().map(|(_, exec)| exec).collect();
        // Side by side: one bound for all of them, which containerd's client waits for.
        let processes = execs.into_iter().chain([Arc::clone(&self.init)]);
        let closing: Vec<_> = processes
            .map(|process| tokio::spawn(async move { process.close_io().await }))
            .collect();
        for closed in closing {
            let _ = closed.await;
        }
        drop(self.take_given());
        self.sandbox
            .remove(&self.id, &self.bundle, self.has_poststop_hooks)
            .await;
        self.events.publish(Event::Deleted {
            id: self.id.clone(),
            pid: self.sandbox.pid(),
            exited,
        });
        Ok(exited)
    }

    fn lock_execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
