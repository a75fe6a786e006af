//! A Kubernetes node of one machine: etcd, the API server and the kubelet beside the testbed's containerd, and `kubectl`.
//! There is no scheduler, and no controller but for a test that starts some: a pod names its node or is bound to it by the
//! test, and a pod that ends stays as it ended.

mod cluster;
mod configuration;
mod kubectl;
mod pod;
mod programs;

pub use cluster::{Cluster, Controllers, note};
pub use configuration::PLENTY;
pub use kubectl::Answer;
pub use pod::{Pod, manifest};
pub use programs::{KUBELET, NODE};
