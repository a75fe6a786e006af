//! Strays: processes of an exec that was answered with an error and may have started all the same. The reply to its start
//! broke, or came too late. The shim searches for them and kills them, because it has told the client that nothing runs.
//!
//! A stray is a process that no process of the sandbox has started, that is not init, and that is no exec the
//! shim knows. The order to start it may still be on its way, so the search goes on for a while after the sentry has begun
//! to answer. The search leaves out a container whose init is not known (its sentry did not list it after start).

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::runsc::control::Target;
use crate::task::container::Container;
use crate::task::process::Phase;

/// For how long a stray may turn up after the sentry answers again.
const SEARCH: Duration = Duration::from_secs(30);
/// How long the sentry may take for one list.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// The same for init's pid, which a start waits for.
const INIT_LIMIT: Duration = Duration::from_millis(500);
/// How many are killed at once. A failed exec leaves one or a few; a sentry may list what it likes.
const STRAYS_MAX: usize = 64;
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What is known for the search.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// The pid of a further container's init inside the sandbox.
    init: OnceLock<NonZeroU32>,
    /// Until when to search, counted from the sentry's first answer.
    until: Mutex<Option<Instant>>,
    is_searching: AtomicBool,
}

impl Strays {
    /// Until when to search, now that the sentry has answered.
    fn answered(&self) -> Instant {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *until.get_or_insert(Instant::now() + SEARCH)
    }
}

impl Container {
    /// Learns the pid of init, which has just been started: nothing else is in the container that has no parent.
    pub(super) async fn learn_init(&self) {
        if !self.sandbox.control.tells() {
            return;
        }
        let listed = self.sandbox.control.parentless(&self.id, INIT_LIMIT).await;
        match listed.as_deref() {
            Ok([init]) => drop(self.strays.init.set(*init)),
            listed => tracing::debug!(?listed, id = self.id, "init is not known by its pid"),
        }
    }

    /// Searches for what the failed start of an exec may have left, in the background.
    pub(super) fn search_strays(self: &Arc<Self>) {
        let strays = &self.strays;
        *strays.until.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if strays.is_searching.swap(true, Ordering::Relaxed) {
            return;
        }
        let container = Arc::clone(self);
        tokio::spawn(async move {
            let mut exit = container.sandbox.exit.clone();
            tokio::select! {
                _ = exit.wait() => {}
                _ = container.init.wait() => {}
                () = container.kill_strays() => {}
            }
            container
                .strays
                .is_searching
                .store(false, Ordering::Relaxed);
        });
    }

    async fn kill_strays(&self) {
        // The sandbox's first process has the first pid.
        let first = self.is_root().then_some(NonZeroU32::MIN);
        let Some(init) = first.or(self.strays.init.get().copied()) else {
            tracing::warn!(
                id = self.id,
                "an exec that failed may run on: init is not known by its pid"
            );
            return;
        };
        let control = &self.sandbox.control;
        let (mut pause, mut killed, mut failed) = (PAUSE, 0_u32, 0_u32);
        loop {
            let listed = control.parentless(&self.id, LIST_LIMIT).await;
            // One that is being started would be taken for a stray.
            if let (Ok(listed), Some(known)) = (listed, self.known_pids()) {
                let until = self.strays.answered();
                let is_stray = |pid: &NonZeroU32| *pid != init && !known.contains(pid);
                for pid in listed.into_iter().filter(is_stray).take(STRAYS_MAX) {
                    if Instant::now() >= until {
                        break;
                    }
                    // However many a sentry lists, a search has two lines.
                    if killed == 0 {
                        tracing::warn!(
                            id = self.id,
                            pid,
                            "killing what an exec that failed has left"
                        );
                    }
                    killed += 1;
                    let signal = control.signal(&self.id, Target::Process(pid), libc::SIGKILL);
                    failed += u32::from(signal.await.is_err());
                }
                if Instant::now() >= until {
                    break;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        if killed > 1 || failed > 0 {
            tracing::warn!(
                id = self.id,
                killed,
                failed,
                "killed what execs that failed have left"
            );
        }
    }

    /// The pids of all execs; none while one is being started, whose pid is not known yet.
    fn known_pids(&self) -> Option<Vec<NonZeroU32>> {
        let execs = self.lock_execs();
        if execs.values().any(|exec| exec.phase() == Phase::Starting) {
            return None;
        }
        Some(execs.values().filter_map(|exec| exec.known_pid()).collect())
    }
}
