//! What a container uses of its sandbox, as far as the sentry reports it.

use std::sync::PoisonError;
use std::time::Duration;

use crate::api::stats::{Guest, Share};
use crate::runsc::usage::Usage;
use crate::task::container::Container;
use crate::task::process::Phase;

/// How long the sentry may take to list a container's processes: containerd gives a whole shim up that does not answer in 10 s.
const PIDS_LIMIT: Duration = Duration::from_secs(2);

/// gVisor's kernel has no more tasks (`TasksLimit` in `pkg/sentry/kernel/threads.go`).
const TASKS_MAX: usize = 1 << 16;

/// The CPU time of a container, which never goes back: the sentry adds up the processes there are, and takes an exec's
/// time away with it.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// What the sentry said last, in nanoseconds.
    last: u64,
    total: u64,
    /// Its share of what the sandbox used when it was started, which the sentry adds to nobody's: it counts in steps of 10 ms, and
    /// what a program does alone.
    at_start: u64,
}

/// Far less CPU time than any start of a container takes, in nanoseconds. It is what is told if the sentry claims all that there was for a
/// container that is busy meanwhile.
const START_LEAST: u64 = 100_000;

/// CPU time at one moment, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Of the whole sandbox, by its cgroup.
    whole: u64,
    /// Of all its containers, by the sentry.
    claimed: u64,
}

impl Moment {
    /// What was used since then that no container has, in as many equal parts as there are containers: one of them, which is of one
    /// that was started meanwhile.
    fn unclaimed_since(self, before: Self, containers: usize) -> u64 {
        let whole = self.whole.saturating_sub(before.whole);
        let unclaimed = whole.saturating_sub(self.claimed.saturating_sub(before.claimed));
        let part = unclaimed / u64::try_from(containers.max(1)).unwrap_or(u64::MAX);
        part.max(START_LEAST.min(whole))
    }
}

impl Used {
    /// The time as it is told. What was used at the start is the least, and not added: some of it may be in the other.
    fn told(&self) -> u64 {
        self.total.max(self.at_start)
    }

    fn add(&mut self, now: u64) -> u64 {
        self.total = self.total.saturating_add(now.saturating_sub(self.last));
        self.last = now;
        self.told()
    }
}

impl Container {
    /// What was used up to now; none where the sentry does not tell of all containers at once, or the host of the sandbox.
    pub(super) async fn cpu_moment(&self) -> Option<Moment> {
        let sandbox = &self.sandbox;
        let usage = sandbox.control.usage_told(&sandbox.id).await?;
        let claims = usage.cpu_nanos.values();
        Some(Moment {
            whole: sandbox.cgroups.cpu_nanos()?,
            claimed: claims.fold(0, |sum, one| sum.saturating_add(*one)),
        })
    }

    /// Notes what its start has used: until the sentry has counted something for it, that is what it is told to have used.
    pub(super) async fn note_start(&self, before: Option<Moment>) {
        let (Some(before), Some(now)) = (before, self.cpu_moment().await) else {
            return;
        };
        let containers = self.sandbox.count_containers();
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.at_start = now.unclaimed_since(before, containers);
    }

    /// How many processes it has, as far as the sentry says. One that has none, or whose sentry does not answer in time, counts as
    /// its init.
    pub(crate) async fn count_processes(&self) -> usize {
        if !self.has_processes() {
            return 1;
        }
        let asked = self.sandbox.control.processes(&self.id);
        match tokio::time::timeout(PIDS_LIMIT, asked).await {
            Ok(Ok(pids)) => pids.len().clamp(1, TASKS_MAX),
            asked => {
                tracing::debug!(?asked, id = self.id, "processes not told");
                1
            }
        }
    }

    /// What the guest itself counts. Nothing is asked of a container that has no processes; a sentry that does not answer
    /// in time costs its deadline and what only it knows.
    pub(crate) async fn guest(&self) -> Guest {
        let usage = match self.init.phase() {
            Phase::Running | Phase::Paused => {
                let asked = self.sandbox.control.usage(&self.id).await;
                asked
                    .inspect_err(|error| tracing::debug!(%error, id = self.id, "usage not told"))
                    .ok()
            }
            _ => None,
        };
        self.guest_of(usage)
    }

    /// The same, of what the sentry has said already.
    pub(crate) fn guest_of(&self, usage: Option<Usage>) -> Guest {
        let share = (!self.is_root()).then(|| self.share(usage.as_ref()));
        let ended = matches!(self.init.phase(), Phase::Stopped(_)).then_some(0);
        Guest {
            tasks: usage.as_ref().map(|usage| usage.tasks).or(ended),
            tasks_limit: self.sandbox.tasks_limit(),
            interfaces: usage.map(|usage| usage.interfaces).unwrap_or_default(),
            share,
        }
    }

    /// Whether there is something in it that the sentry could tell of.
    pub(crate) fn has_processes(&self) -> bool {
        matches!(self.init.phase(), Phase::Running | Phase::Paused)
    }

    /// What it uses of the sandbox, whether it shares it or not.
    pub(crate) fn part(&self, usage: Option<&Usage>) -> Share {
        self.share(usage)
    }

    /// Its part of the cgroup. The sentry may say what it likes of itself: never more than the host has counted.
    fn share(&self, usage: Option<&Usage>) -> Share {
        let cgroups = &self.sandbox.cgroups;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        // With a cgroup mount in one of its containers the sentry goes by Kubernetes' names, on cgroup v1 only.
        let cpu = usage.and_then(|usage| {
            let known = |name: &str| usage.cpu_nanos.get(name).copied();
            known(&self.id).or_else(|| known(&self.names.container))
        });
        let cpu_nanos = match (cpu, cgroups.cpu_nanos()) {
            (Some(cpu), Some(all)) => used.add(cpu.min(all)).min(all),
            (Some(cpu), None) => used.add(cpu),
            (None, _) => used.told(),
        };
        let memory = usage.map_or(0, |usage| usage.memory);
        Share {
            cpu_nanos,
            memory: memory.min(cgroups.memory().unwrap_or(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_exec_that_has_ended_stays_counted() {
        let mut used = Used::default();
        assert_eq!(used.add(10), 10);
        assert_eq!(used.add(15), 15);
        assert_eq!(used.add(11), 15, "an exec of 4 has ended");
        assert_eq!(used.add(13), 17);
    }

    #[test]
    fn a_container_that_has_just_started_has_its_share_of_what_nobody_has() {
        const MS: u64 = 1_000_000;
        let at = |whole, claimed| Moment {
            whole: whole * MS,
            claimed: claimed * MS,
        };
        let after = |whole, claimed| at(whole, claimed).unclaimed_since(at(100, 60), 2);
        assert_eq!(after(150, 60), 25 * MS);
        assert_eq!(after(150, 80), 15 * MS, "another one was busy");
        assert_eq!(after(150, 200), START_LEAST, "the sentry claims it all");
        assert_eq!(after(150, 10), 25 * MS, "an exec has ended");
        assert_eq!(after(100, 60), 0, "never more than the host has counted");
        assert_eq!(after(90, 60), 0);
        let mut used = Used {
            at_start: 15,
            ..Used::default()
        };
        assert_eq!(used.add(0), 15);
        assert_eq!(used.add(10), 15, "the least, and not added");
        assert_eq!(used.add(20), 20);
    }
}
