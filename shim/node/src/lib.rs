//! What the shim and the node tool both know of a node: its cgroups, mounts, processes, and the facts that a policy asks for.

pub mod cgroup;
pub mod dial;
pub mod host;
pub mod mountinfo;
pub mod names;
pub mod procfs;
#[doc(hidden)]
pub mod testing;
pub mod trail;
