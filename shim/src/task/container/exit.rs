//! Exits: how the shim learns that of init, and how it reports every exit.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};
use crate::runsc::control::RuntimeState;
use crate::sys::reaper::Exit;
use crate::task::container::Container;
use crate::task::event::Event;
use crate::task::process::{Exited, Phase, Process};

/// How long an init that has ended waits for the exits of its execs to be told.
const EXECS_LIMIT: Duration = Duration::from_secs(2);
/// How long the exit of a sandbox may come after the sentry, or runsc, has said that a container of it has stopped.
const LOST_LIMIT: Duration = Duration::from_secs(1);
/// How long a pod's first container waits for those of the others, which wait for their execs, and for their last message to be
/// written.
const MEMBERS_LIMIT: Duration = Duration::from_secs(5);

/// How long to pause after a wait that failed for the second time and more. One that came to its limits has cost up to a
/// second of a CPU, so it gets a pause that makes that little.
pub(super) fn next_pause(last: Duration, error: &Error) -> Duration {
    let most = match error.kind() {
        Kind::ResourceExhausted => Duration::from_secs(30),
        _ => Duration::from_secs(2),
    };
    (last * 2).min(most)
}

impl Container {
    /// Follows init to its exit.
    pub(super) async fn watch_init(self: Arc<Self>) {
        let mut sandbox_exit = self.sandbox.exit.clone();
        let asked = OnceLock::new();
        let exit = tokio::select! {
            // An answer that came before the sandbox ended is the container's own.
            biased;
            exit = self.init_exit(&asked) => {
                if self.is_root() {
                    // The answer precedes the sandbox's own exit, and a delete in between would be refused.
                    self.sandbox.wait_gone().await;
                }
                exit
            }
            // It was ended before it ran, or its start has failed, and whoever saw that has told it: there is nothing to follow.
            _ = self.init.wait() => return,
            exit = sandbox_exit.wait() => {
                self.note_death(exit, asked.get().copied());
                // The sandbox's code is that of its first container; the others were killed with it. What is left of one
                // that ran out of memory may end in any way.
                if self.is_root() && !self.sandbox.ran_out_of_memory() {
                    exit
                } else {
                    Exit::Signal(libc::SIGKILL)
                }
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
        let _ = tokio::time::timeout(EXECS_LIMIT, all_execs).await;
        if self.is_root() {
            // The others of its pod died with it: theirs go first.
            self.sandbox.untold.all_told(MEMBERS_LIMIT).await;
        }
        self.finish(&Arc::clone(&self.init), exited, false).await;
    }

    /// Asks the sentry for init's exit, as soon as there is one to ask for. Never returns when it cannot tell: the
    /// sandbox's own exit then decides.
    async fn init_exit(&self, asked: &OnceLock<Instant>) -> Exit {
        let mut started = self.started.subscribe();
        if started.wait_for(|started| *started).await.is_err() {
            return std::future::pending().await;
        }
        asked.get_or_init(Instant::now);
        let mut sandbox_exit = self.sandbox.exit.clone();
        let mut pause = Duration::from_millis(20);
        loop {
            let error = match self.sandbox.control.wait(&self.id).await {
                Ok(exit) => return exit,
                Err(error) => error,
            };
            if self.sandbox.exit.get().is_some() {
                return std::future::pending().await;
            }
            tracing::debug!(%error, id = self.id, "wait not answered");
            let has_ended = match self.sandbox.control.state(&self.id).await {
                Ok(state) => state == RuntimeState::Stopped,
                // A command knows a container by its state file, which goes with the container: containerd's `delete` may
                // have been faster than the wait.
                Err(error) => !self.is_root() && error.kind() == Kind::NotFound,
            };
            if has_ended {
                if !self.is_root() {
                    // The sandbox may be what has ended, and its exit be noticed next.
                    if sandbox_exit.wait_for(LOST_LIMIT).await.is_some() {
                        return std::future::pending().await;
                    }
                    tracing::error!(%error, id = self.id, "exit status lost: reported as 255");
                    return Exit::Code(255);
                }
                // `runsc boot` exits with the code of its first container, so nothing is lost.
                tracing::warn!(
                    id = self.id,
                    "the container has stopped but its sandbox stays: ending it"
                );
                self.sandbox.wait_gone().await;
                return std::future::pending().await;
            }
            // Giving up would leave a client waiting for ever.
            tokio::time::sleep(pause).await;
            pause = next_pause(pause, &error);
        }
    }

    /// Records an exit and tells it, after the reply to the start of the same process.
    pub(super) async fn finish(&self, process: &Arc<Process>, exited: Exited, is_exec: bool) {
        let was_started = process.phase() != Phase::Created;
        if !is_exec && !matches!(process.phase(), Phase::Stopped(_)) {
            // Who hears of the exit reads it.
            self.messages.tell(&self.id).await;
        }
        if !process.set_exited(exited) {
            return;
        }
        self.sandbox
            .counters()
            .exits
            .add(self.reason(exited, is_exec));
        process.wait_start_answered(was_started).await;
        if !is_exec && self.sandbox.ran_out_of_memory() {
            self.events.publish(Event::OutOfMemory {
                id: self.id.clone(),
            });
        }
        self.events.publish(Event::Exited {
            id: self.id.clone(),
            process: if is_exec {
                process.exec_id.clone()
            } else {
                self.id.clone()
            },
            pid: self.sandbox.pid(),
            exited,
        });
        if !is_exec && !self.is_root() {
            self.sandbox.untold.exit_told();
        }
    }
}
