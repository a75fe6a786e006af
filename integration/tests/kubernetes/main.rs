//! Behaviours of a Kubernetes node whose pods run in the runtime under test: a real API server, a real kubelet, `kubectl`.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod admission;
mod ceilings;
mod daemonset;
mod docs;
mod faults;
mod life;
mod limits;
mod network;
mod refused;
mod volumes;

use std::process::ExitCode;
use std::sync::OnceLock;

use integration::bed::{Bed, Services};
use integration::harness::{self, Work};
use integration::kubernetes::{Cluster, Pod};

static CLUSTER: OnceLock<Cluster> = OnceLock::new();

fn main() -> ExitCode {
    let cases = [
        admission::cases(),
        life::cases(),
        volumes::cases(),
        network::cases(),
        refused::cases(),
        ceilings::cases(),
        limits::cases(),
        faults::cases(),
        daemonset::cases(),
        docs::cases(),
    ];
    harness::main(
        Services::Kubernetes,
        cases.into_iter().flatten().collect(),
        warm_up,
    )
}

/// The cluster of all tests.
fn cluster() -> &'static Cluster {
    CLUSTER
        .get()
        .expect("the cluster did not come up: its logs say why")
}

/// Starts the cluster, and one pod, which makes what all others share.
fn warm_up(bed: &Bed) -> Work<'_> {
    Box::pin(async {
        let cluster = Cluster::start(bed).await;
        let cluster = CLUSTER.get_or_init(|| cluster);
        for class in ["bulkhead", "bulkhead-net"] {
            let pod = Pod::new(bed, cluster, class, "true");
            pod.end().await;
            pod.delete().await;
        }
    })
}
