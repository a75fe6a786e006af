//! The books of a sandbox: what each of its containers was promised of it, and the limits that follow.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use runsc_config::{Declared, Hardened, Report, SandboxLimits, Shared};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::sandbox::Sandbox;
use crate::{cgroup_limits, changes, limits};

/// What is kept of each container, because the sandbox's share follows from it.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) shared: Shared,
    pub(super) limits: SandboxLimits,
    pub(super) containers: HashMap<String, Entry>,
}

impl Books {
    /// Notes what an update has changed. Its container may have left while the limits were written: the books have nothing of it
    /// any more, and must not have it again.
    fn note_update(&mut self, id: &str, declared: Declared, limits: SandboxLimits) {
        self.limits = limits;
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

    /// Tasks of one uid that the sandbox may have.
    pub(crate) fn tasks_limit(&self) -> u64 {
        self.books().shared.tasks_limit
    }

    /// Changes the sandbox's limits as an update of one of its containers asks. Blocks for as long as the kernel needs to
    /// take memory back.
    ///
    /// # Errors
    /// `InvalidArgument` for malformed resources, `FailedPrecondition` for what cannot be given; nothing is changed then.
    pub(crate) fn update(&self, id: &str, resources: &Value) -> Result<()> {
        let _alone = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, tasks_limit, entry, others) = {
            let books = self.books();
            let entry = books.containers.get(id).copied();
            let others: Vec<Declared> = books
                .containers
                .iter()
                .filter(|(other, _)| *other != id)
                .map(|(_, entry)| entry.declared)
                .collect();
            (books.limits, books.shared.tasks_limit, entry, others)
        };
        let Some(mut entry) = entry else {
            return Err(Error::not_found(format!("container {id:?} does not exist")));
        };
        let mut report = Report::default();
        entry.declared = entry
            .declared
            .updated(resources, tasks_limit, &mut report)?;
        changes::tell(id, "", &report);
        let after = if self.is_pod {
            let sum = Declared::sum(others.into_iter().chain([entry.declared]));
            let pod = self.pod_cgroup.as_deref().map(cgroup_limits::of_cgroup);
            SandboxLimits::of_pod(pod.unwrap_or_default(), sum, &self.policy)
        } else {
            SandboxLimits::of_container(entry.declared, &self.policy)
        };
        after.check()?;
        limits::change(&self.cgroups, &before, &after)?;
        self.books().note_update(id, entry.declared, after);
        Ok(())
    }

    /// Gives back what a container had of the sandbox.
    pub(crate) fn leave(&self, id: &str) {
        let mut books = self.books();
        if let Some(entry) = books.containers.remove(id) {
            books.shared.scratch = books.shared.scratch.saturating_sub(entry.scratch);
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runsc_config::Policy;

    #[test]
    fn a_container_that_left_while_it_was_updated_is_gone() {
        let limits = SandboxLimits::of_container(Declared::default(), &Policy::strict());
        let shared = Shared {
            tasks_limit: 1,
            memory: 1,
            volumes: Vec::new(),
            scratch: 0,
        };
        let before = Entry {
            declared: Declared::default(),
            scratch: 0,
        };
        let mut books = Books {
            shared,
            limits,
            containers: HashMap::from([("a".to_owned(), before)]),
        };
        let more = Declared {
            memory: Some(5),
            ..Declared::default()
        };
        books.note_update("a", more, limits);
        assert_eq!(books.containers.get("a").map(|a| a.declared), Some(more));
        books.note_update("b", more, limits);
        assert_eq!(books.containers.len(), 1);
    }
}
