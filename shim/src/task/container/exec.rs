//! Execs: further processes in a container.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runsc_config::harden_exec;

use crate::error::{Error, Kind, Result};
use crate::io::{ProcessIo, Stdio, console};
use crate::runsc::exec::Executed;
use crate::sys::counters::Operation;
use crate::sys::reaper::Exit;
use crate::task::container::Container;
use crate::task::container::exit::next_pause;
use crate::task::event::Event;
use crate::task::process::{Exited, Phase, Process, StartReply};

impl Container {
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
        let stdio = Stdio {
            throttle: self.sandbox.exec_output.clone(),
            ..stdio
        };
        let spec = harden_exec(spec, &self.ceiling).map_err(Error::from)?;
        // As with runc, the request's word counts where the two differ: it says what the client has made.
        let spec = spec.with_terminal(stdio.terminal);
        let mut execs = self.lock_execs();
        if execs.contains_key(exec_id) {
            let message = format!("exec {exec_id:?} of container {:?} exists already", self.id);
            return Err(Error::new(Kind::AlreadyExists, message));
        }
        let counters = self.sandbox.counters();
        self.repeats
            .tell(&self.id, exec_id, spec.report(), counters);
        execs.insert(
            exec_id.to_owned(),
            Arc::new(Process::new(exec_id.to_owned(), stdio, Some(spec))),
        );
        drop(execs);
        self.events.publish(Event::ExecAdded {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
        });
        Ok(())
    }

    pub(super) async fn start_exec(self: &Arc<Self>, exec: &Arc<Process>) -> Result<StartReply> {
        let reply = exec.begin_start()?;
        let began = Instant::now();
        let executed = self.execute(exec).await;
        self.sandbox.counters().operation(Operation::Exec, began);
        self.sandbox.counters().execs.add(if executed.is_ok() {
            "started"
        } else {
            "failed"
        });
        match executed {
            Ok(()) => {
                self.events.publish(Event::ExecStarted {
                    id: self.id.clone(),
                    exec_id: exec.exec_id.clone(),
                    pid: self.sandbox.pid(),
                });
                Ok(reply)
            }
            Err(error) => {
                // Nothing ran: waiters get the code a shell gives for a program it cannot run, and there is no event.
                exec.set_exited(Exited::now(Exit::Code(127)));
                if matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded) {
                    self.search_strays();
                }
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
        let owner = self.sandbox.log_owner(&exec.exec_id);
        let stdio = if exec.stdio.terminal {
            let (master, replica) = console::open()?;
            exec.set_first_size(spec.console_size());
            exec.set_terminal(master, owner).await?;
            self.obey_terminal(exec);
            let dup = || replica.try_clone().map_err(|e| Error::io("terminal", &e));
            [dup()?, dup()?, replica]
        } else {
            let (io, ends) = ProcessIo::pipes(&exec.stdio, owner).await?;
            exec.set_io(io);
            let [stdin, stdout, stderr] = ends.map(or_null);
            [stdin?, stdout?, stderr?]
        };
        let executed = self.sandbox.control.execute(&self.id, spec, stdio).await?;
        exec.set_keeper(executed.keeper.clone());
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

    /// Waits for an exec's exit. A wait that fails is tried again for as long as the process is there: giving up would leave
    /// a client waiting for ever, and so would waiting for a process that has gone with its status.
    async fn exec_exit(&self, exec: &Process, executed: Executed) -> Exit {
        if let Some(mut keeper) = executed.keeper {
            match keeper.wait().await {
                // runsc ends with a code, whatever has become of the process: this was meant for the helper.
                Exit::Signal(signal) => {
                    tracing::warn!(
                        signal,
                        exec = exec.exec_id,
                        "runsc exec was killed: waiting anew"
                    );
                }
                exit => return exit,
            }
        }
        let (control, pid) = (&self.sandbox.control, executed.guest_pid);
        let mut pause = Duration::from_millis(20);
        loop {
            let error = match control.wait_pid(&self.id, pid).await {
                Ok(exit) => return exit,
                Err(error) => error,
            };
            let is_lost = match control.processes(&self.id).await {
                Ok(pids) => !pids.contains(&pid.get()),
                Err(error) => error.kind() == Kind::NotFound,
            };
            if is_lost {
                tracing::error!(%error, exec = exec.exec_id, "exit status lost: reported as 255");
                return Exit::Code(255);
            }
            tracing::warn!(%error, exec = exec.exec_id, "wait failed, trying again");
            tokio::time::sleep(pause).await;
            pause = next_pause(pause, &error);
        }
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
