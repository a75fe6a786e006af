//! The books of a sandbox: what each of its containers was promised of it, and the limits that follow.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use runsc_config::{Declared, Hardened, Report, SandboxLimits, Shared};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::sandbox::Sandbox;
use crate::sandbox::changes;
use crate::sandbox::limits::{self, Held};
use crate::sandbox::systemd;

/// When the share of a container that has left is taken: at once, and where that cannot be, a little later and again.
const SHRINK_PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
];

/// What is kept of each container, because the sandbox's share follows from it.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) shared: Shared,
    /// What containerd has said of all containers of a pod before they were there, until one is updated.
    pub(super) announced: Option<Declared>,
    pub(super) containers: HashMap<String, Entry>,
}

impl Books {
    /// What the containers declare together; where one is being updated, `id` declares this.
    fn sum(&self, updated: Option<(&str, Declared)>) -> Declared {
        let all = self.containers.iter().map(|(id, entry)| match updated {
            Some((other, declared)) if other == id => declared,
            _ => entry.declared,
        });
        let sum = Declared::sum(all);
        match (self.announced, updated) {
            (Some(announced), None) => sum.at_least(announced),
            _ => sum,
        }
    }

    /// Notes what an update has changed. Its container may have left while the limits were written: the books have nothing of it
    /// any more, and must not have it again.
    fn note_update(&mut self, id: &str, declared: Declared) {
        self.announced = None;
        if let Some(entry) = self.containers.get_mut(id) {
            entry.declared = declared;
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) declared: Declared,
    /// Bytes.
    pub(super) scratch: u64,
}

impl Sandbox {
    /// What the sandbox has for a further container.
    ///
    /// # Errors
    /// `FailedPrecondition` where no container may join.
    pub(crate) fn shared(&self) -> Result<Shared> {
        if self.exit.get().is_some() {
            return Err(Error::precondition(format!(
                "sandbox {:?} has exited",
                self.id
            )));
        }
        if !self.is_pod {
            return Err(Error::precondition(format!(
                "container {:?} is no pod's sandbox (its container type is not \"sandbox\")",
                self.id
            )));
        }
        Ok(self.books().shared.clone())
    }

    /// Makes room for a further container that was hardened knowing what the sandbox had left. False where that has changed.
    ///
    /// # Errors
    /// As [`Sandbox::shared`].
    pub(crate) fn join(&self, id: &str, shared: &Shared, hardened: &Hardened) -> Result<bool> {
        if self.shared()?.scratch != shared.scratch {
            return Ok(false);
        }
        let mut books = self.books();
        let entry = Entry {
            declared: hardened.declared,
            scratch: hardened.shared.scratch,
        };
        books.containers.insert(id.to_owned(), entry);
        books.shared.scratch = books.shared.scratch.saturating_add(entry.scratch);
        Ok(true)
    }

    /// How many containers it has.
    pub(crate) fn count_containers(&self) -> usize {
        self.books().containers.len()
    }

    /// Tasks of one uid that the sandbox may have.
    pub(crate) fn tasks_limit(&self) -> u64 {
        self.books().shared.tasks_limit
    }

    /// Changes the sandbox's limits as an update of one of its containers asks. Blocks for as long as the kernel needs to
    /// take memory back, and systemd to be told.
    ///
    /// # Errors
    /// `InvalidArgument` for malformed resources, `FailedPrecondition` for what cannot be given; nothing is changed then.
    /// `DeadlineExceeded` when systemd does not answer.
    pub(crate) fn update(&self, id: &str, resources: &Value) -> Result<()> {
        let _alone = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let (tasks_limit, entry) = {
            let books = self.books();
            (books.shared.tasks_limit, books.containers.get(id).copied())
        };
        let Some(entry) = entry else {
            return Err(Error::not_found(format!("container {id:?} does not exist")));
        };
        let mut report = Report::default();
        let declared = entry
            .declared
            .updated(resources, tasks_limit, &mut report)?;
        // One that is alone has its own period.
        let limits = if self.is_pod {
            self.limits_of_pod(self.books().sum(Some((id, declared))))
        } else {
            SandboxLimits::of_container(declared, &self.policy)
        };
        limits.check()?;
        limits.note_bound(declared, &mut report);
        changes::tell(id, &report, self.counters());
        self.hold(&limits, true)
            .map_err(|error| error.context("update"))?;
        self.books().note_update(id, declared);
        Ok(())
    }

    /// Gives the sandbox what its containers declare together, after one has joined or left. False where it keeps more than that. Blocks
    /// like [`Sandbox::update`].
    ///
    /// # Errors
    /// As [`Sandbox::update`], where it would have less.
    pub(crate) fn settle(&self) -> Result<bool> {
        let _alone = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        if self.exit.get().is_some() || !self.is_pod {
            return Ok(true);
        }
        let sum = self.books().sum(None);
        let limits = self.limits_of_pod(sum);
        match self.hold(&limits, false) {
            Ok(is_changed) => {
                if is_changed {
                    let (memory, cpu) = (limits.memory, limits.cpu);
                    tracing::info!(
                        "limits: the pod's sandbox has {memory} bytes and {} of {} us, by what its containers declare together",
                        cpu.quota,
                        cpu.period
                    );
                }
                Ok(true)
            }
            // What is used of the share of one that has left cannot be taken, and is no reason to refuse the next.
            Err(error) if limits::gives(&self.cgroups, &limits) => {
                tracing::info!(%error, "limits: the pod's sandbox keeps the larger ones that it has");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn limits_of_pod(&self, sum: Declared) -> SandboxLimits {
        let pod = self
            .pod_cgroup
            .as_deref()
            .map(node::cgroup::limits::of_cgroup);
        SandboxLimits::of_pod(pod.unwrap_or_default(), sum, &self.policy)
    }

    /// Holds the sandbox to these limits: the kernel first, which knows whether they can be held, then systemd, which would undo it.
    /// The unit may have other values than the kernel, so an update tells it in any case. Returns whether the kernel had others.
    fn hold(&self, limits: &SandboxLimits, always: bool) -> Result<bool> {
        let limits = &match self.unit {
            Some(_) => systemd::in_hundredths(limits),
            None => *limits,
        };
        let before = limits::change(&self.cgroups, limits)?;
        let is_changed = before.is_some();
        let Some(unit) = self.unit.as_ref().filter(|_| always || is_changed) else {
            return Ok(is_changed);
        };
        let (reaper, cgroups) = (self.runsc.reaper(), &self.cgroups);
        let tell = |held: &Held, limit| {
            tokio::runtime::Handle::current().block_on(unit.set(reaper, cgroups, held, limit))
        };
        tell(&Held::wanted(cgroups, limits), systemd::LIMIT)
            // systemd has written its own.
            .and_then(|()| limits::check(cgroups, limits))
            .inspect_err(|_| {
                let Some(before) = &before else {
                    return;
                };
                limits::put_back(cgroups, before);
                // It may have taken the new ones before it failed, and would write them at its next look.
                if let Err(error) = tell(before, systemd::LIMIT_BACK) {
                    tracing::warn!(%error, "systemd may have limits of an update that failed");
                }
            })
            .map(|()| is_changed)
    }

    /// Whether a container of that id has joined.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.books().containers.contains_key(id)
    }

    /// Gives back what a container had of the sandbox.
    pub(crate) fn leave(self: &Arc<Self>, id: &str) {
        {
            let mut books = self.books();
            let Some(entry) = books.containers.remove(id) else {
                return;
            };
            books.shared.scratch = books.shared.scratch.saturating_sub(entry.scratch);
        }
        let sandbox = Arc::downgrade(self);
        // Nobody waits for it. What the others use of the share is theirs, for a while; systemd may be away for one.
        tokio::spawn(async move {
            for pause in SHRINK_PAUSES {
                tokio::time::sleep(pause).await;
                let Some(sandbox) = sandbox.upgrade() else {
                    return;
                };
                let settled = tokio::task::spawn_blocking(move || sandbox.settle()).await;
                match settled {
                    Ok(Ok(false)) => {}
                    Ok(Ok(true)) | Err(_) => return,
                    Ok(Err(error)) => {
                        tracing::info!(%error, "limits: not those of the remaining containers")
                    }
                }
            }
        });
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_left_while_it_was_updated_is_gone() {
        let shared = Shared {
            tasks_limit: 1,
            memory: 1,
            ..Shared::default()
        };
        let before = Entry {
            declared: Declared::default(),
            scratch: 0,
        };
        let mut books = Books {
            shared,
            announced: None,
            containers: HashMap::from([("a".to_owned(), before)]),
        };
        let more = Declared {
            memory: Some(5),
            ..Declared::default()
        };
        books.note_update("a", more);
        assert_eq!(books.containers.get("a").map(|a| a.declared), Some(more));
        books.note_update("b", more);
        assert_eq!(books.containers.len(), 1);
    }

    #[test]
    fn what_was_announced_of_a_pod_is_the_least_until_one_is_updated() {
        let memory = |memory| Declared {
            memory: Some(memory),
            ..Declared::default()
        };
        let entry = |declared| Entry {
            declared,
            scratch: 0,
        };
        let mut books = Books {
            shared: Shared::default(),
            announced: Some(memory(8)),
            containers: HashMap::from([("a".to_owned(), entry(memory(5)))]),
        };
        assert_eq!(books.sum(None), memory(8));
        books.containers.insert("b".to_owned(), entry(memory(6)));
        assert_eq!(books.sum(None), memory(11));
        assert_eq!(books.sum(Some(("b", memory(1)))), memory(6));
        books.note_update("b", memory(1));
        assert_eq!(books.sum(None), memory(6));
    }
}
