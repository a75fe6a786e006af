//! containerd's Task and Containers API, each call with a deadline: an answer that never comes fails the test.

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use containerd_client::events::TaskOom;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{
    CloseIoRequest, Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, GetRequest, KillRequest,
    ListContainersRequest, ListPidsRequest, MetricsRequest, PauseTaskRequest, PublishRequest,
    ResumeTaskRequest, StartRequest, SubscribeRequest, UpdateTaskRequest, WaitRequest,
};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Response, Status};
use containerd_client::types::Envelope;
use containerd_client::types::v1::Process;
use prost_types::{Any, Timestamp};

use crate::ground::patience::patience;

/// The containerd namespace of all tests.
pub const NAMESPACE: &str = "suite";
/// Longer than any deadline of a runtime's own.
pub const DEADLINE: Duration = Duration::from_secs(45);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its code, or 128 and the signal.
    pub status: u32,
    /// When.
    pub at: Option<SystemTime>,
}

impl Exit {
    fn new(status: u32, at: Option<Timestamp>) -> Self {
        Self {
            status,
            at: at.and_then(|at| at.try_into().ok()),
        }
    }
}

/// The body of a request in the tests' namespace.
pub fn request<T>(body: T) -> Request<T> {
    let mut request = Request::new(body);
    request
        .metadata_mut()
        .insert("containerd-namespace", NAMESPACE.parse().expect("a header"));
    request
}

async fn answer<T>(
    what: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    answer_within(what, DEADLINE, call).await
}

async fn answer_within<T>(
    what: &str,
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    let answer = tokio::time::timeout(patience(limit), call).await;
    answer
        .unwrap_or_else(|_| panic!("no answer to {what} within {limit:?}"))
        .map(Response::into_inner)
}

/// A connection to containerd.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

/// What `Client::events` has heard so far.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Mutex<Vec<Envelope>>>, Arc<AtomicBool>);

/// Topic of the event by which a subscription is known to have begun.
const READY: &str = "/tasks/ready";

impl Events {
    /// All task events, in order.
    #[must_use]
    pub fn all(&self) -> Vec<Envelope> {
        self.0.lock().expect("unpoisoned").clone()
    }
}

#[allow(
    clippy::missing_errors_doc,
    reason = "every error is containerd's answer"
)]
impl Client {
    /// Connects; containerd need not be there for longer than that, the connection comes back with it.
    pub async fn connect(
        socket: &Path,
    ) -> Result<Self, containerd_client::tonic::transport::Error> {
        Ok(Self {
            channel: containerd_client::connect(socket).await?,
        })
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone())
    }

    /// Collects task events from now on.
    ///
    /// # Panics
    /// When containerd does not take the subscription.
    pub async fn events(&self) -> Events {
        let filter = format!("topic~=\"/tasks/\",namespace=={NAMESPACE}");
        let subscribe = request(SubscribeRequest {
            filters: vec![filter],
        });
        let (mut client, events) = (EventsClient::new(self.channel.clone()), Events::default());
        let sink = events.clone();
        tokio::spawn(async move {
            // Answered with the first event only.
            let Ok(stream) = client.subscribe(subscribe).await else {
                return;
            };
            let mut stream = stream.into_inner();
            while let Ok(Some(event)) = stream.message().await {
                if event.topic != READY {
                    sink.0.lock().expect("unpoisoned").push(event);
                }
                sink.1.store(true, Ordering::Relaxed);
            }
        });
        // An event of our own tells that the subscription has begun.
        for _ in 0..500 {
            let event = TaskOom {
                container_id: "nobody".into(),
            };
            let body = PublishRequest {
                topic: READY.into(),
                event: Some(containerd_client::to_any(&event)),
            };
            let mut client = EventsClient::new(self.channel.clone());
            answer("Publish", client.publish(request(body)))
                .await
                .expect("publish");
            if events.1.load(Ordering::Relaxed) {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no event of the subscription arrives");
    }

    /// Registers a container.
    pub async fn create_container(&self, container: Container) -> Result<(), Status> {
        let body = CreateContainerRequest {
            container: Some(container),
        };
        answer("Containers.Create", self.containers().create(request(body)))
            .await
            .map(drop)
    }

    /// Forgets a container.
    pub async fn delete_container(&self, id: &str) -> Result<(), Status> {
        let body = DeleteContainerRequest { id: id.into() };
        answer("Containers.Delete", self.containers().delete(request(body))).await
    }

    /// Ids of all containers.
    pub async fn list_containers(&self) -> Result<Vec<String>, Status> {
        let list = answer(
            "Containers.List",
            self.containers()
                .list(request(ListContainersRequest::default())),
        )
        .await?;
        Ok(list
            .containers
            .into_iter()
            .map(|container| container.id)
            .collect())
    }

    /// Creates a task and returns its pid.
    pub async fn create(&self, body: CreateTaskRequest) -> Result<u32, Status> {
        Ok(answer("Create", self.tasks().create(request(body)))
            .await?
            .pid)
    }

    /// Starts a task, or an exec of it, and returns its pid.
    pub async fn start(&self, id: &str, exec: &str) -> Result<u32, Status> {
        let body = StartRequest {
            container_id: id.into(),
            exec_id: exec.into(),
        };
        Ok(answer("Start", self.tasks().start(request(body)))
            .await?
            .pid)
    }

    /// Waits for the end of a task or exec.
    pub async fn wait(&self, id: &str, exec: &str) -> Result<Exit, Status> {
        self.wait_within(id, exec, DEADLINE).await
    }

    /// Waits for the end of a task that may take longer than an answer.
    pub async fn wait_for(&self, id: &str, limit: Duration) -> Result<Exit, Status> {
        self.wait_within(id, "", limit).await
    }

    async fn wait_within(&self, id: &str, exec: &str, limit: Duration) -> Result<Exit, Status> {
        let body = WaitRequest {
            container_id: id.into(),
            exec_id: exec.into(),
        };
        let answer = answer_within("Wait", limit, self.tasks().wait(request(body))).await?;
        Ok(Exit::new(answer.exit_status, answer.exited_at))
    }

    /// Signals a task or exec.
    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), Status> {
        let body = KillRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            signal,
            all,
        };
        answer("Kill", self.tasks().kill(request(body))).await
    }

    /// Deletes a task.
    pub async fn delete(&self, id: &str) -> Result<Exit, Status> {
        let body = DeleteTaskRequest {
            container_id: id.into(),
        };
        let answer = answer("Delete", self.tasks().delete(request(body))).await?;
        Ok(Exit::new(answer.exit_status, answer.exited_at))
    }

    /// Deletes an exec.
    pub async fn delete_exec(&self, id: &str, exec: &str) -> Result<Exit, Status> {
        let body = DeleteProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
        };
        let answer = answer("DeleteProcess", self.tasks().delete_process(request(body))).await?;
        Ok(Exit::new(answer.exit_status, answer.exited_at))
    }

    /// Adds an exec.
    pub async fn exec(&self, body: ExecProcessRequest) -> Result<(), Status> {
        answer("Exec", self.tasks().exec(request(body))).await
    }

    /// State of a task or exec.
    pub async fn get(&self, id: &str, exec: &str) -> Result<Process, Status> {
        let body = GetRequest {
            container_id: id.into(),
            exec_id: exec.into(),
        };
        let answer = answer("Get", self.tasks().get(request(body))).await?;
        answer
            .process
            .ok_or_else(|| Status::internal("Get answered without a process"))
    }

    /// Closes stdin.
    pub async fn close_stdin(&self, id: &str, exec: &str) -> Result<(), Status> {
        let body = CloseIoRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            stdin: true,
        };
        answer("CloseIO", self.tasks().close_io(request(body))).await
    }

    /// Pauses a task.
    pub async fn pause(&self, id: &str) -> Result<(), Status> {
        let body = PauseTaskRequest {
            container_id: id.into(),
        };
        answer("Pause", self.tasks().pause(request(body))).await
    }

    /// Resumes a paused task.
    pub async fn resume(&self, id: &str) -> Result<(), Status> {
        let body = ResumeTaskRequest {
            container_id: id.into(),
        };
        answer("Resume", self.tasks().resume(request(body))).await
    }

    /// Changes the limits of a task.
    pub async fn update(&self, id: &str, resources: Option<Any>) -> Result<(), Status> {
        let body = UpdateTaskRequest {
            container_id: id.into(),
            resources,
            ..UpdateTaskRequest::default()
        };
        answer("Update", self.tasks().update(request(body))).await
    }

    /// Processes of a task.
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>, Status> {
        let body = ListPidsRequest {
            container_id: id.into(),
        };
        let answer = answer("ListPids", self.tasks().list_pids(request(body))).await?;
        Ok(answer
            .processes
            .into_iter()
            .map(|process| process.pid)
            .collect())
    }

    /// Metrics of a task, as the runtime packed them.
    pub async fn metrics(&self, id: &str) -> Result<Any, Status> {
        let body = MetricsRequest {
            filters: vec![format!("id=={id}")],
        };
        let answer = answer("Metrics", self.tasks().metrics(request(body))).await?;
        let metric = answer
            .metrics
            .into_iter()
            .next()
            .and_then(|metric| metric.data);
        metric.ok_or_else(|| Status::not_found(format!("no metrics of {id}")))
    }

    /// Deletes a container and its task whatever its state, as `ctr task rm -f` does: kills it until it is gone.
    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let mut last = Status::internal("never tried");
        for _ in 0..100 {
            let _ = self.kill(id, "", 9, true).await;
            match self.delete(id).await {
                Ok(_) => last = Status::not_found("deleted"),
                Err(error) => last = error,
            }
            if last.code() == Code::NotFound {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if last.code() != Code::NotFound {
            return Err(last);
        }
        match self.delete_container(id).await {
            Err(error) if error.code() != Code::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
