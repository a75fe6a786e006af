//! SIGKILL to an init is checked by its effect. The sentry that takes the order is an untrusted peer. It may answer that
//! it carried the order out, or that there is nothing to kill, and let the program run on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::task::container::Container;
use crate::task::process::Phase;
use node::cgroup::Periods;

/// How long a sandbox may take to exit after SIGKILL to the container that it was made for.
const SANDBOX_LIMIT: Duration = Duration::from_secs(10);
/// How long a further container of a pod may take: the others end with it, so the sentry gets its time.
const MEMBER_LIMIT: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_secs(1);
/// In a throttled sandbox a second counts as so much less. It does count: a sentry can spend its quota on purpose.
const THROTTLED: u32 = 10;

impl Container {
    /// Ends the sandbox from outside unless init ends in time. Called after SIGKILL, whatever the answer was.
    pub(super) fn expect_end(self: &Arc<Self>) {
        if self.is_dying.swap(true, Ordering::Relaxed) {
            return;
        }
        let container = Arc::clone(self);
        tokio::spawn(async move {
            let ended = if container.is_root() {
                let mut exit = container.sandbox.exit.clone();
                exit.wait_for(SANDBOX_LIMIT).await.is_some()
            } else {
                container.ends_in_time().await
            };
            if ended {
                return;
            }
            tracing::error!(
                id = container.id,
                "the sentry was sent SIGKILL for the container and lets it run: killing the sandbox"
            );
            if !container.is_root() {
                // Nobody has asked for the end of the pod.
                container.sandbox.note_death();
            }
            container.sandbox.force_end("kill_ignored");
        });
    }

    async fn ends_in_time(&self) -> bool {
        let mut sandbox_exit = self.sandbox.exit.clone();
        let mut patience = Patience::new(self.sandbox.cgroups.cpu_periods());
        loop {
            tokio::select! {
                _ = self.init.wait() => return true,
                _ = sandbox_exit.wait() => return true,
                () = tokio::time::sleep(TICK) => {}
            }
            let is_paused = self.init.phase() == Phase::Paused;
            if patience.spend(TICK, is_paused, self.sandbox.cgroups.cpu_periods()) {
                return false;
            }
        }
    }
}

/// The time that a pod's container still has.
#[derive(Debug)]
struct Patience {
    left: Duration,
    /// Of the sandbox's cgroup and those above it.
    periods: Vec<Periods>,
}

impl Patience {
    fn new(periods: Vec<Periods>) -> Self {
        Self {
            left: MEMBER_LIMIT,
            periods,
        }
    }

    /// Takes away what has passed; returns whether nothing is left.
    fn spend(&mut self, passed: Duration, is_paused: bool, periods: Vec<Periods>) -> bool {
        let mut pairs = self.periods.iter().zip(&periods);
        let is_throttled = pairs.any(|(before, now)| now.mostly_throttled_since(before));
        self.periods = periods;
        let counted = match (is_paused, is_throttled) {
            (true, _) => Duration::ZERO,
            (false, true) => passed / THROTTLED,
            (false, false) => passed,
        };
        self.left = self.left.saturating_sub(counted);
        self.left.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many seconds pass until nothing is left, at most 1,000; `throttled` of ten periods a second are.
    fn lasts(throttled: u64, is_paused: impl Fn(u64) -> bool) -> u64 {
        let at = |second| {
            vec![Periods {
                all: 10 * second,
                throttled: throttled * second,
            }]
        };
        let mut patience = Patience::new(at(0));
        let mut seconds = 1..=1000;
        seconds
            .find(|second| patience.spend(TICK, is_paused(*second), at(*second)))
            .unwrap_or(1000)
    }

    #[test]
    fn what_cannot_run_is_given_more_time() {
        assert_eq!(lasts(0, |_| false), 30);
        assert_eq!(lasts(5, |_| false), 30, "half the time it ran");
        assert_eq!(
            lasts(6, |_| false),
            300,
            "throttled on purpose, it ends all the same"
        );
        assert_eq!(lasts(0, |_| true), 1000, "a paused sandbox cannot die");
        assert_eq!(lasts(0, |second| second <= 100), 130);
    }
}
