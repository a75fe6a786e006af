//! Behaviours of a runtime under Kubernetes' runtime interface, judged through containerd's CRI plugin.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod faults;
mod hostile;
mod images;
mod install;
mod life;
mod limits;
mod requests;
mod session;
mod sharing;
mod small;
mod stats;
mod volumes;

use std::process::ExitCode;

use integration::bed::{Bed, Services};
use integration::harness::{self, Work};

fn main() -> ExitCode {
    let cases = [
        life::cases(),
        volumes::cases(),
        images::cases(),
        hostile::cases(),
        limits::cases(),
        requests::cases(),
        stats::cases(),
        sharing::cases(),
        small::cases(),
        session::cases(),
        faults::cases(),
        install::cases(),
    ];
    harness::main(
        Services::Cri,
        cases.into_iter().flatten().collect(),
        warm_up,
    )
}

fn warm_up(bed: &Bed) -> Work<'_> {
    Box::pin(harness::first_pod(bed))
}
