//! Behaviours of a runtime under Kubernetes' runtime interface, judged through containerd's CRI plugin.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod mounts;
mod node;
mod run;

use std::process::ExitCode;

use integration::bed::{Bed, Services};
use integration::harness::{self, Work};

fn main() -> ExitCode {
    let cases = [run::cases(), mounts::cases(), node::cases()];
    harness::main(
        Services::Cri,
        cases.into_iter().flatten().collect(),
        warm_up,
    )
}

fn warm_up(bed: &Bed) -> Work<'_> {
    Box::pin(harness::first_pod(bed))
}
