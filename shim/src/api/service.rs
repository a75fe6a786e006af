//! The Task service: containerd's requests, one thin method each. Protobuf stops here.
//!
//! containerd may close its connection at any time (a restart, a client that gives up), and ttrpc then drops the handler.
//! What changes state therefore runs on a task of its own and goes on to its end.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use tokio::sync::Notify;

use crate::api::clock;
use crate::api::convert;
use crate::api::failure;
use crate::api::stats;
use crate::error::{Error, Kind, Result};
use crate::io::{Clients, Stdio};
use crate::metrics;
use crate::sandbox::id;
use crate::task::pod::Pod;

/// Serves one pod.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pod: Arc<Pod>,
    shutdown: Arc<Notify>,
}

type Reply<T> = ttrpc::Result<T>;

impl Service {
    pub(crate) fn new(pod: Arc<Pod>, shutdown: Arc<Notify>) -> Self {
        Self { pod, shutdown }
    }

    /// One line for each request, with its outcome; refusals are warnings because a client sees them too.
    fn logged<T>(&self, method: &str, id: &str, exec_id: &str, result: Result<T>) -> Reply<T> {
        match &result {
            Ok(_) => tracing::debug!(method, id, exec_id, "done"),
            Err(error) if error.kind() == Kind::NotFound && ROUTINE.contains(&method) => {
                tracing::debug!(method, id, exec_id, %error, "not found")
            }
            Err(error) => tracing::warn!(method, id, exec_id, %error, "failed"),
        }
        result.map_err(|error| {
            if let Some(control) = error.denied() {
                self.pod.counters.denials.add(control);
            }
            failure::reply(&error)
        })
    }
}

/// Runs to its end whatever becomes of the connection.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|error| Err(Error::internal(format!("request failed: {error}"))))
}

/// Requests that do not need what they name: containerd kills and deletes each exec once more when it has gone, so that every probe
/// ends with one that finds nothing.
const ROUTINE: [&str; 8] = [
    "close_io",
    "connect",
    "delete",
    "kill",
    "pids",
    "resize_pty",
    "state",
    "wait",
];

#[async_trait]
impl Task for Service {
    async fn create(
        &self,
        _ctx: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> Reply<CreateTaskResponse> {
        let (pod, id) = (Arc::clone(&self.pod), request.id.clone());
        let created = match convert::create(request) {
            Ok(request) => {
                detached(async move {
                    let container = pod.create(request).await?;
                    metrics::serve(&pod, &container);
                    Ok(container)
                })
                .await
            }
            Err(error) => Err(error.context(format!("create container {id:?}"))),
        };
        self.logged("create", &id, "", created)
            .map(|container| CreateTaskResponse {
                pid: container.sandbox().pid(),
                ..CreateTaskResponse::default()
            })
    }

    async fn start(&self, _ctx: &TtrpcContext, request: StartRequest) -> Reply<StartResponse> {
        let started = async {
            let container = self.pod.container(&request.id)?;
            let pid = container.sandbox().pid();
            let exec_id = request.exec_id.clone();
            let reply = detached(async move { container.start(&exec_id).await }).await?;
            // Dropped by a task that runs only after this reply has been queued: the exit event cannot overtake it.
            tokio::spawn(async move { drop(reply) });
            Ok(pid)
        };
        let pid = self.logged("start", &request.id, &request.exec_id, started.await)?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn state(&self, _ctx: &TtrpcContext, request: StateRequest) -> Reply<StateResponse> {
        let state = self.pod.container(&request.id).and_then(|container| {
            let process = container.process(&request.exec_id)?;
            Ok(convert::state(&container, &process))
        });
        self.logged("state", &request.id, &request.exec_id, state)
    }

    async fn wait(&self, _ctx: &TtrpcContext, request: WaitRequest) -> Reply<WaitResponse> {
        let process = self
            .pod
            .container(&request.id)
            .and_then(|container| container.process(&request.exec_id));
        let exited = self
            .logged("wait", &request.id, &request.exec_id, process)?
            .wait()
            .await;
        Ok(WaitResponse {
            exit_status: exited.status,
            exited_at: MessageField::some(clock::timestamp(exited.at)),
            ..WaitResponse::default()
        })
    }

    async fn kill(&self, _ctx: &TtrpcContext, request: KillRequest) -> Reply<Empty> {
        let killed = async {
            let container = self.pod.container(&request.id)?;
            let (exec_id, signal, all) = (request.exec_id.clone(), request.signal, request.all);
            detached(async move { container.kill(&exec_id, signal, all).await }).await
        };
        self.logged("kill", &request.id, &request.exec_id, killed.await)
            .map(|()| Empty::default())
    }

    async fn exec(&self, _ctx: &TtrpcContext, request: ExecProcessRequest) -> Reply<Empty> {
        let added = self.pod.container(&request.id).and_then(|container| {
            id::validate("exec id", &request.exec_id)?;
            let stdio = Stdio {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                clients: Clients::One,
                // The sandbox's, where it has one.
                throttle: None,
                counts: Arc::default(),
            };
            container.add_exec(
                &request.exec_id,
                stdio,
                convert::process_spec(request.spec.as_ref())?,
            )
        });
        if added.is_err() {
            self.pod.counters.execs.add("refused");
        }
        self.logged("exec", &request.id, &request.exec_id, added)
            .map(|()| Empty::default())
    }

    async fn delete(&self, _ctx: &TtrpcContext, request: DeleteRequest) -> Reply<DeleteResponse> {
        let pod = Arc::clone(&self.pod);
        let (id, exec_id) = (request.id.clone(), request.exec_id.clone());
        let deleted = detached(async move { pod.delete(&id, &exec_id).await }).await;
        let (pid, exited) = self.logged("delete", &request.id, &request.exec_id, deleted)?;
        Ok(DeleteResponse {
            pid,
            exit_status: exited.status,
            exited_at: MessageField::some(clock::timestamp(exited.at)),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _ctx: &TtrpcContext, request: PidsRequest) -> Reply<PidsResponse> {
        let pids = async {
            let container = self.pod.container(&request.id)?;
            let processes = container.count_processes().await;
            Ok(convert::pids(container.sandbox().pid(), processes))
        };
        self.logged("pids", &request.id, "", pids.await)
    }

    async fn pause(&self, _ctx: &TtrpcContext, request: PauseRequest) -> Reply<Empty> {
        let (pod, id) = (Arc::clone(&self.pod), request.id.clone());
        let paused = detached(async move { pod.set_paused(&id, true).await }).await;
        self.logged("pause", &request.id, "", paused)
            .map(|()| Empty::default())
    }

    async fn resume(&self, _ctx: &TtrpcContext, request: ResumeRequest) -> Reply<Empty> {
        let (pod, id) = (Arc::clone(&self.pod), request.id.clone());
        let resumed = detached(async move { pod.set_paused(&id, false).await }).await;
        self.logged("resume", &request.id, "", resumed)
            .map(|()| Empty::default())
    }

    async fn checkpoint(
        &self,
        _ctx: &TtrpcContext,
        request: CheckpointTaskRequest,
    ) -> Reply<Empty> {
        let error = Error::new(Kind::Unimplemented, "checkpoint: not supported");
        self.logged("checkpoint", &request.id, "", Err(error))
    }

    async fn update(&self, _ctx: &TtrpcContext, request: UpdateTaskRequest) -> Reply<Empty> {
        let updated = async {
            let container = self.pod.container(&request.id)?;
            let resources = convert::resources(request.resources.as_ref())?;
            // The kernel may take its time to free memory.
            tokio::task::spawn_blocking(move || container.update(&resources))
                .await
                .unwrap_or_else(|error| Err(Error::internal(format!("update: {error}"))))
        };
        self.logged("update", &request.id, "", updated.await)
            .map(|()| Empty::default())
    }

    async fn resize_pty(&self, _ctx: &TtrpcContext, request: ResizePtyRequest) -> Reply<Empty> {
        let resized = self.pod.container(&request.id).and_then(|container| {
            container
                .process(&request.exec_id)?
                .resize(request.width, request.height)
        });
        self.logged("resize_pty", &request.id, &request.exec_id, resized)
            .map(|()| Empty::default())
    }

    async fn close_io(&self, _ctx: &TtrpcContext, request: CloseIORequest) -> Reply<Empty> {
        let closed = self.pod.container(&request.id).and_then(|container| {
            let process = container.process(&request.exec_id)?;
            if request.stdin {
                process.close_input();
            }
            Ok(())
        });
        self.logged("close_io", &request.id, &request.exec_id, closed)
            .map(|()| Empty::default())
    }

    async fn stats(&self, _ctx: &TtrpcContext, request: StatsRequest) -> Reply<StatsResponse> {
        let stats = async {
            let container = self.pod.container(&request.id)?;
            let guest = container.guest().await;
            stats::collect(&container.sandbox().cgroups, &guest)
        };
        let stats = self.logged("stats", &request.id, "", stats.await)?;
        Ok(StatsResponse {
            stats: MessageField::some(stats),
            ..StatsResponse::default()
        })
    }

    async fn connect(
        &self,
        _ctx: &TtrpcContext,
        request: ConnectRequest,
    ) -> Reply<ConnectResponse> {
        // Without an id it asks for the shim alone, as clients do that look for one that was left.
        let task_pid = if request.id.is_empty() {
            Ok(0)
        } else {
            let container = self.pod.container(&request.id);
            container.map(|container| container.sandbox().pid())
        };
        let task_pid = self.logged("connect", &request.id, "", task_pid)?;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _ctx: &TtrpcContext, request: ShutdownRequest) -> Reply<Empty> {
        // containerd sends it after every delete; while another container lives the shim stays and says so by answering.
        if self.pod.is_empty() {
            self.shutdown.notify_one();
        }
        self.logged("shutdown", &request.id, "", Ok(Empty::default()))
    }
}
