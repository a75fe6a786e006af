//! The pod: all containers of one shim, and the one sandbox they share.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::error::{Error, Kind, Result};
use crate::io::Holds;
use crate::sandbox::Owner;
use crate::sandbox::id;
use crate::sys::counters::{Counters, Operation};
use crate::sys::memory;
use crate::sys::reaper::Reaper;
use crate::task::container::Container;
use crate::task::event::{Event, Events};
use crate::task::process::Phase;
use crate::task::request::CreateRequest;

/// A place in the pod: claimed while its container is being made, so that a second create of the same id is refused.
#[derive(Debug)]
enum Slot {
    Creating,
    Ready(Arc<Container>),
}

/// The containers of one shim.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) owner: Owner,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) counters: Arc<Counters>,
    /// Streams that outlive their containers.
    pub(crate) holds: Arc<Holds>,
    events: Events,
    slots: Mutex<HashMap<String, Slot>>,
    removed: Notify,
    /// Set with the slots locked.
    is_closed: AtomicBool,
}

impl Pod {
    pub(crate) fn new(owner: Owner, reaper: Arc<Reaper>, events: Events) -> Self {
        Self {
            owner,
            reaper,
            counters: Arc::default(),
            holds: Arc::default(),
            events,
            slots: Mutex::default(),
            removed: Notify::new(),
            is_closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// # Errors
    /// `NotFound` for an id that has no container, or not yet.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.lock().get(id) {
            Some(Slot::Ready(container)) => Ok(Arc::clone(container)),
            Some(Slot::Creating) => Err(Error::not_found(format!(
                "container {id:?} is still being created"
            ))),
            None => Err(Error::not_found(format!("container {id:?} does not exist"))),
        }
    }

    /// Returns once a container has been removed, or one could not be created.
    pub(crate) async fn removed(&self) {
        self.removed.notified().await;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether no sandbox of it lives, and none is being made. Containers that nobody has deleted may be there.
    pub(crate) fn has_ended(&self) -> bool {
        have_ended(&self.lock())
    }

    /// Takes no container from here on, unless there is one, or one that lives where `told` to end.
    #[must_use]
    pub(crate) fn close(&self, told: bool) -> bool {
        let slots = self.lock();
        let closes = slots.is_empty() || (told && have_ended(&slots));
        self.is_closed.fetch_or(closes, Ordering::Relaxed);
        closes
    }

    /// Creates a container and, with the first one, its sandbox.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed request or spec, `AlreadyExists`, what the policy refuses, or what runsc said.
    /// Nothing is left behind.
    pub(crate) async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<Arc<Container>> {
        let began = Instant::now();
        let created = self.create_one(request).await;
        self.counters.operation(Operation::Create, began);
        memory::give_back_soon();
        created
    }

    async fn create_one(&self, request: CreateRequest) -> Result<Arc<Container>> {
        id::validate("container id", &request.id)?;
        if !request.checkpoint.is_empty() {
            return Err(Error::new(
                Kind::Unimplemented,
                "create: restoring a checkpoint is not supported",
            ));
        }
        if !Path::new(&request.bundle).is_absolute() {
            return Err(Error::invalid(format!(
                "create: bundle {:?} is not an absolute path",
                request.bundle
            )));
        }
        self.claim(&request.id)?;
        let created = self.make(&request).await;
        let mut slots = self.lock();
        match created {
            Ok(container) => {
                slots.insert(request.id.clone(), Slot::Ready(Arc::clone(&container)));
                drop(slots);
                self.events
                    .publish(created_event(request, container.sandbox().pid()));
                Ok(container)
            }
            Err(error) => {
                slots.remove(&request.id);
                self.removed.notify_one();
                Err(error.context(format!("create container {:?}", request.id)))
            }
        }
    }

    /// Deletes a container, or one of its execs.
    ///
    /// # Errors
    /// As [`Container::delete`] and [`Container::delete_exec`].
    pub(crate) async fn delete(
        &self,
        id: &str,
        exec_id: &str,
    ) -> Result<(u32, crate::task::process::Exited)> {
        let began = Instant::now();
        let container = self.container(id)?;
        let pid = container.sandbox().pid();
        let deleted = if exec_id.is_empty() {
            container.delete().await
        } else {
            container.delete_exec(exec_id).await
        };
        self.counters.operation(Operation::Delete, began);
        let exited = deleted?;
        if !exec_id.is_empty() {
            return Ok((pid, exited));
        }
        self.lock().remove(id);
        self.removed.notify_one();
        Ok((pid, exited))
    }

    /// Pauses or resumes a sandbox, with every container in it.
    ///
    /// # Errors
    /// As [`Container::set_paused`].
    pub(crate) async fn set_paused(&self, id: &str, paused: bool) -> Result<()> {
        self.container(id)?.set_paused(paused).await?;
        for container in self.containers() {
            container.note_paused(paused);
        }
        Ok(())
    }

    /// All containers there are.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        let slots = self.lock();
        let ready = slots.values().filter_map(|slot| match slot {
            Slot::Ready(container) => Some(Arc::clone(container)),
            Slot::Creating => None,
        });
        ready.collect()
    }

    /// Whether this shim has containers other than `id`.
    pub(crate) fn has_others(&self, id: &str) -> bool {
        self.lock().keys().any(|other| other != id)
    }

    fn claim(&self, id: &str) -> Result<()> {
        let mut slots = self.lock();
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "container {id:?}: this shim is about to end; a new start gets another one"
                ),
            ));
        }
        if slots.contains_key(id) {
            return Err(Error::new(
                Kind::AlreadyExists,
                format!("container {id:?} exists already"),
            ));
        }
        slots.insert(id.to_owned(), Slot::Creating);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn have_ended(slots: &HashMap<String, Slot>) -> bool {
    slots.values().all(|slot| match slot {
        // The exit of init is told after the sandbox's own end.
        Slot::Ready(container) => matches!(container.init.phase(), Phase::Stopped(_)),
        Slot::Creating => false,
    })
}

fn created_event(request: CreateRequest, pid: u32) -> Event {
    Event::Created {
        id: request.id,
        bundle: request.bundle,
        rootfs: request.rootfs,
        streams: request.streams,
        pid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Unheard;

    impl crate::task::event::Publish for Unheard {
        fn publish(&self, _event: Event) {}
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_pod_that_has_been_closed_takes_no_container() {
        let owner = Owner {
            namespace: "default".into(),
            containerd: "/nonexistent".into(),
        };
        let pod = Pod::new(owner, Arc::default(), Arc::new(Unheard));
        pod.claim("early").expect("a place");
        assert!(!pod.close(false), "it has a container");
        assert!(!pod.close(true), "it is being made");
        pod.claim("other").expect("a place");
        pod.lock().clear();
        assert!(pod.close(false));
        let late = pod.claim("late").expect_err("closed");
        assert_eq!(late.kind(), Kind::Unavailable);
        assert!(pod.is_empty());
    }
}
