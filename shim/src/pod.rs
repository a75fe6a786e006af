//! The pod: all containers of one shim, and the one sandbox they share.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::protobuf::MessageField;
use runsc_config::{Backend, ContainerKind, Context, Policy, harden};
use serde_json::Value;
use tokio::sync::Notify;

use crate::container::{Container, Parts};
use crate::error::{Code, Error, Result};
use crate::events::Events;
use crate::host;
use crate::id;
use crate::io::{ProcessIo, Stdio};
use crate::layout::Bundle;
use crate::mount;
use crate::options;
use crate::process::Process;
use crate::reaper::Reaper;
use crate::runsc::command::{Runsc, look_up};
use crate::runsc::features;
use crate::sandbox::{Owner, Plan, Sandbox};

/// A place in the pod: claimed while its container is being made, so that a second create of the same id is refused.
#[derive(Debug)]
enum Slot {
    Creating,
    Ready(Arc<Container>),
}

/// The containers of one shim.
#[derive(Debug)]
pub(crate) struct Pod {
    owner: Owner,
    /// The score children get back where the shim lowered its own.
    oom_score_adj: Option<i32>,
    reaper: Arc<Reaper>,
    events: Events,
    slots: Mutex<HashMap<String, Slot>>,
    removed: Notify,
}

impl Pod {
    pub(crate) fn new(
        owner: Owner,
        oom_score_adj: Option<i32>,
        reaper: Arc<Reaper>,
        events: Events,
    ) -> Self {
        Self {
            owner,
            oom_score_adj,
            reaper,
            events,
            slots: Mutex::default(),
            removed: Notify::new(),
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

    /// Creates a container and, with the first one, its sandbox.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed request or spec, `AlreadyExists`, what the policy refuses, or what runsc said.
    /// Nothing is left behind.
    pub(crate) async fn create(&self, request: CreateTaskRequest) -> Result<Arc<Container>> {
        id::validate("container id", &request.id)?;
        if !request.checkpoint.is_empty() {
            return Err(Error::new(
                Code::Unimplemented,
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
        let created = self.create_claimed(&request).await;
        let mut slots = self.lock();
        match created {
            Ok(container) => {
                slots.insert(request.id.clone(), Slot::Ready(Arc::clone(&container)));
                drop(slots);
                self.events
                    .publish(created_event(&request, container.sandbox().pid()));
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
    ) -> Result<(u32, crate::process::Exited)> {
        let container = self.container(id)?;
        let pid = container.sandbox().pid();
        if !exec_id.is_empty() {
            return Ok((pid, container.delete_exec(exec_id).await?));
        }
        let exited = container.delete().await?;
        self.lock().remove(id);
        self.removed.notify_one();
        Ok((pid, exited))
    }

    fn claim(&self, id: &str) -> Result<()> {
        let mut slots = self.lock();
        if slots.contains_key(id) {
            return Err(Error::new(
                Code::AlreadyExists,
                format!("container {id:?} exists already"),
            ));
        }
        slots.insert(id.to_owned(), Slot::Creating);
        Ok(())
    }

    async fn create_claimed(&self, request: &CreateTaskRequest) -> Result<Arc<Container>> {
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        stdio.validate()?;
        let bundle = Bundle::new(&request.bundle);
        let asked = bundle.read_spec()?;
        runsc_config::validate(&asked).map_err(Error::from)?;
        self.check_is_root(&request.id, &asked)?;
        let policy = options::load_policy(request.options.as_ref())?;
        let binary = find_runsc(&policy)?;
        let features = features::of(&binary, &policy.runsc().root, &self.reaper).await?;
        let context = Context {
            id: &request.id,
            sandbox_id: &request.id,
            kind: ContainerKind::Sandbox,
            namespace: &self.owner.namespace,
            bundle: bundle.path(),
            features: &features,
            host: host::facts(&self.owner.containerd),
        };
        let hardened = harden(asked, &policy, &context).map_err(Error::from)?;
        if hardened.spec.terminal() != request.terminal {
            return Err(Error::invalid(format!(
                "the request says terminal {}, process.terminal of the spec says {}",
                request.terminal,
                hardened.spec.terminal()
            )));
        }
        for change in &hardened.report.changes {
            tracing::info!(id = request.id, "policy: {change}");
        }
        let limits = policy.runsc();
        let plan = Plan {
            id: &request.id,
            owner: &self.owner,
            bundle: &bundle,
            base: &limits.root,
            binary,
            spec: &hardened.spec,
            flags: hardened.flags,
            use_socket: limits.control == Backend::Socket,
            limit: Duration::from_secs(limits.create_timeout),
            oom_score_adj: self.oom_score_adj,
            reaper: Arc::clone(&self.reaper),
        };
        let runsc = Sandbox::prepare(&plan).await?;
        match self.create_sandbox(&plan, request, &runsc, stdio).await {
            Ok((sandbox, init)) => Ok(Container::watch(Parts {
                id: request.id.clone(),
                bundle: bundle.clone(),
                init,
                sandbox: Arc::new(sandbox),
                ceiling: hardened.exec,
                tasks_limit: hardened.tasks_limit,
                start_limit: Duration::from_secs(limits.start_timeout),
                events: self.events.clone(),
            })),
            Err(error) => {
                Sandbox::undo(&runsc, &request.id, &bundle).await;
                Err(error)
            }
        }
    }

    async fn create_sandbox(
        &self,
        plan: &Plan<'_>,
        request: &CreateTaskRequest,
        runsc: &Arc<Runsc>,
        stdio: Stdio,
    ) -> Result<(Sandbox, Process)> {
        if !request.rootfs.is_empty() {
            mount::mount_rootfs(&request.rootfs, &plan.bundle.rootfs()).await?;
        }
        plan.bundle.write_spec(plan.spec)?;
        let init = Process::new(String::new(), stdio, None);
        if init.stdio.terminal {
            let (sandbox, master) =
                Sandbox::create(plan, Arc::clone(runsc), [None, None, None]).await?;
            let master =
                master.ok_or_else(|| Error::internal("runsc create handed over no terminal"))?;
            init.set_terminal(master)?;
            return Ok((sandbox, init));
        }
        let (io, ends) = ProcessIo::pipes(&init.stdio)?;
        let (sandbox, _) = Sandbox::create(plan, Arc::clone(runsc), ends).await?;
        init.set_io(io);
        Ok((sandbox, init))
    }

    /// Only sandbox roots for now: a container with no annotation is one, and so is a pod's own.
    fn check_is_root(&self, id: &str, spec: &Value) -> Result<()> {
        let sandbox = id::sandbox_of(spec).unwrap_or(id);
        if sandbox != id {
            return Err(Error::new(
                Code::Unimplemented,
                format!(
                    "container {id:?} asks to join sandbox {sandbox:?}: pods are not supported yet"
                ),
            ));
        }
        if !self.lock().keys().all(|other| other == id) {
            return Err(Error::precondition(format!(
                "this shim already serves a sandbox other than {id:?}"
            )));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find_runsc(policy: &Policy) -> Result<std::path::PathBuf> {
    let asked = &policy.runsc().path;
    look_up(asked).ok_or_else(|| {
        Error::precondition(format!(
            "runsc: {} is not in PATH; install it or set runsc.path in the policy file",
            asked.display()
        ))
    })
}

fn created_event(request: &CreateTaskRequest, pid: u32) -> TaskCreate {
    let mut io = TaskIO::new();
    io.stdin.clone_from(&request.stdin);
    io.stdout.clone_from(&request.stdout);
    io.stderr.clone_from(&request.stderr);
    io.terminal = request.terminal;
    let mut event = TaskCreate::new();
    event.container_id.clone_from(&request.id);
    event.bundle.clone_from(&request.bundle);
    event.rootfs.clone_from(&request.rootfs);
    event.io = MessageField::some(io);
    event.pid = pid;
    event
}
