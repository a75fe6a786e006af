//! Behaviours of a containerd runtime, judged through real containerd. `BULKHEAD_TEST_RUNTIME` names the runtime; see the
//! README of this crate.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod figures;
mod life;
mod mounts;
mod node;
mod people;
mod policy;
mod streaming;
mod trouble;

use std::process::ExitCode;

use integration::bed::{Bed, Services};
use integration::harness::{self, Work};

fn main() -> ExitCode {
    let cases = [
        life::cases(),
        streaming::cases(),
        policy::cases(),
        mounts::cases(),
        figures::cases(),
        trouble::cases(),
        node::cases(),
        people::cases(),
    ];
    harness::main(
        Services::Tasks,
        cases.into_iter().flatten().collect(),
        warm_up,
    )
}

fn warm_up(bed: &Bed) -> Work<'_> {
    Box::pin(harness::first_container(bed))
}
