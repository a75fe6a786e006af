//! What happens to containers and processes, as it is told to containerd.

use std::fmt::Debug;
use std::sync::Arc;

use crate::sandbox::furnish::mount::RootfsMount;
use crate::task::process::Exited;

/// What happened. `id` is the container's, `pid` the sandbox's on the host.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Created {
        id: String,
        bundle: String,
        rootfs: Vec<RootfsMount>,
        streams: Streams,
        pid: u32,
    },
    Started {
        id: String,
        pid: u32,
    },
    ExecAdded {
        id: String,
        exec_id: String,
    },
    ExecStarted {
        id: String,
        exec_id: String,
        pid: u32,
    },
    Paused {
        id: String,
    },
    Resumed {
        id: String,
    },
    /// The kernel killed a process of the sandbox for lack of memory.
    OutOfMemory {
        id: String,
    },
    /// A process ended: the exec `process`, or the container's init if that is the container's own id.
    Exited {
        id: String,
        process: String,
        pid: u32,
        exited: Exited,
    },
    Deleted {
        id: String,
        pid: u32,
        exited: Exited,
    },
}

/// Where the streams of a process lead, as the client named them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// What takes events. It never blocks and never fails the request that caused one.
pub(crate) trait Publish: Debug + Send + Sync {
    fn publish(&self, event: Event);
}

/// Whoever takes the events of a pod.
pub(crate) type Events = Arc<dyn Publish>;
