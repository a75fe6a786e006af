//! From the shim's own types to the messages of the Task API, and back.

use containerd_shim::event::Event as Topic;
use containerd_shim_protos::api::{CreateTaskRequest, PidsResponse};
use containerd_shim_protos::api::{ProcessInfo, StateResponse, Status};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::types::mount::Mount;
use serde_json::Value;

use crate::api::{clock, options};
use crate::error::{Error, Result};
use crate::sandbox::furnish::mount::RootfsMount;
use crate::task::container::Container;
use crate::task::event::{Event, Streams};
use crate::task::process::{Phase, Process};
use crate::task::request::CreateRequest;

/// The end of the type URL under which containerd sends an OCI process (`client/task.go`, registered by typeurl).
const PROCESS_TYPE: &str = "opencontainers/runtime-spec/1/Process";
/// The same for the resources of an update.
const RESOURCES_TYPE: &str = "opencontainers/runtime-spec/1/LinuxResources";

/// What a create asks for.
///
/// # Errors
/// As [`options::read`].
pub(crate) fn create(request: CreateTaskRequest) -> Result<CreateRequest> {
    let options = options::read(request.options.as_ref())?;
    let rootfs = request.rootfs.into_iter().map(|mount| RootfsMount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    });
    Ok(CreateRequest {
        id: request.id,
        bundle: request.bundle,
        rootfs: rootfs.collect(),
        streams: Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        checkpoint: request.checkpoint,
        options,
    })
}

/// The message of an event, which knows the topic that containerd publishes it under.
pub(crate) fn event(event: Event) -> Box<dyn Topic> {
    match event {
        Event::Created {
            id,
            bundle,
            rootfs,
            streams,
            pid,
        } => {
            let rootfs = rootfs.into_iter().map(|mount| Mount {
                type_: mount.kind,
                source: mount.source,
                target: mount.target,
                options: mount.options,
                ..Mount::default()
            });
            Box::new(TaskCreate {
                container_id: id,
                bundle,
                rootfs: rootfs.collect(),
                io: MessageField::some(TaskIO {
                    stdin: streams.stdin,
                    stdout: streams.stdout,
                    stderr: streams.stderr,
                    terminal: streams.terminal,
                    ..TaskIO::default()
                }),
                pid,
                ..TaskCreate::default()
            })
        }
        Event::Started { id, pid } => Box::new(TaskStart {
            container_id: id,
            pid,
            ..TaskStart::default()
        }),
        Event::ExecAdded { id, exec_id } => Box::new(TaskExecAdded {
            container_id: id,
            exec_id,
            ..TaskExecAdded::default()
        }),
        Event::ExecStarted { id, exec_id, pid } => Box::new(TaskExecStarted {
            container_id: id,
            exec_id,
            pid,
            ..TaskExecStarted::default()
        }),
        Event::Paused { id } => Box::new(TaskPaused {
            container_id: id,
            ..TaskPaused::default()
        }),
        Event::Resumed { id } => Box::new(TaskResumed {
            container_id: id,
            ..TaskResumed::default()
        }),
        Event::OutOfMemory { id } => Box::new(TaskOOM {
            container_id: id,
            ..TaskOOM::default()
        }),
        Event::Exited {
            id,
            process,
            pid,
            exited,
        } => Box::new(TaskExit {
            container_id: id,
            id: process,
            pid,
            exit_status: exited.status,
            exited_at: MessageField::some(clock::timestamp(exited.at)),
            ..TaskExit::default()
        }),
        Event::Deleted { id, pid, exited } => Box::new(TaskDelete {
            container_id: id,
            pid,
            exit_status: exited.status,
            exited_at: MessageField::some(clock::timestamp(exited.at)),
            ..TaskDelete::default()
        }),
    }
}

/// The state of init or of an exec.
pub(crate) fn state(container: &Container, process: &Process) -> StateResponse {
    let mut state = StateResponse::new();
    state.id.clone_from(&container.id);
    state.bundle = container.bundle.path().display().to_string();
    state.pid = container.sandbox().pid();
    state.exec_id.clone_from(&process.exec_id);
    state.stdin.clone_from(&process.stdio.stdin);
    state.stdout.clone_from(&process.stdio.stdout);
    state.stderr.clone_from(&process.stdio.stderr);
    state.terminal = process.stdio.terminal;
    state.status = EnumOrUnknown::new(match process.phase() {
        // A start that has not been answered yet has not happened for the client.
        Phase::Created | Phase::Starting => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Paused => Status::PAUSED,
        Phase::Stopped(exited) => {
            state.exit_status = exited.status;
            state.exited_at = MessageField::some(clock::timestamp(exited.at));
            Status::STOPPED
        }
    });
    state
}

/// An entry for each process of a container, with the pid that it has on the host: the sandbox's. The guest's own pids mean nothing
/// outside, and a client that acts on what it is told (`kill`, `ps -p`) must never hit a stranger.
pub(crate) fn pids(sandbox: u32, processes: usize) -> PidsResponse {
    let info = ProcessInfo {
        pid: sandbox,
        ..ProcessInfo::default()
    };
    PidsResponse {
        // A stopped task answers with the pid it had: containerd takes a task without pids for a leaked shim when it comes
        // back after a restart, and the exit code would be lost with it (`core/runtime/v2/shim_load.go`).
        processes: vec![info; processes.max(1)],
        ..PidsResponse::default()
    }
}

/// The process an exec asks for.
///
/// # Errors
/// `InvalidArgument` when it is missing, of another type, or no JSON.
pub(crate) fn process_spec(spec: Option<&Any>) -> Result<Value> {
    json("exec: spec", PROCESS_TYPE, spec)
}

/// The resources an update asks for.
///
/// # Errors
/// As [`process_spec`].
pub(crate) fn resources(resources: Option<&Any>) -> Result<Value> {
    json("update: resources", RESOURCES_TYPE, resources)
}

fn json(field: &str, wanted: &str, any: Option<&Any>) -> Result<Value> {
    let any = any.ok_or_else(|| Error::invalid(format!("{field}: missing")))?;
    if !any.type_url.ends_with(wanted) {
        return Err(Error::invalid(format!(
            "{field}: type {:?} is not {wanted}",
            any.type_url
        )));
    }
    serde_json::from_slice(&any.value)
        .map_err(|e| Error::invalid(format!("{field}: does not parse: {e}")))
}
