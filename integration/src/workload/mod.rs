//! What tests put into the testbed: containers and their execs, pods, and a shim without containerd.

mod ctr;
mod pod;

pub mod container;
pub mod exec;
pub mod shim;

/// Kubernetes' runtime interface (CRI): its client, and pods for the tests.
pub mod cri {
    pub use super::pod::{Pod, cgroup_folders, make_cgroup, mount};
    pub use crate::clients::cri::{Cri, HANDLER, KUBELET, NAMESPACE, RUNC};
}
