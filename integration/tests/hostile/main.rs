//! Hostile programs and their benign twins, on runc, on runsc as it comes, and on Bulkhead: see `stage`, `contender` and the
//! programs in `integration/hostile`.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod benign;
mod contender;
mod examples;
mod outcome;
mod programs;
mod setup;
mod stage;
mod wire;

use std::process::ExitCode;

use integration::bed::{Bed, Services};
use integration::harness::{self, Work};

fn main() -> ExitCode {
    let cases = [
        programs::cases(),
        setup::cases(),
        examples::cases(),
        benign::cases(),
    ];
    harness::main(
        Services::Tasks,
        cases.into_iter().flatten().collect(),
        warm_up,
    )
}

/// What the first of all makes for the rest: the image, the bridge.
fn warm_up(bed: &Bed) -> Work<'_> {
    Box::pin(async {
        stage::prepare(bed);
        for contender in contender::Contender::ALL {
            let _ = stage::Stage::set(bed).play(contender, "seed.py").await;
        }
    })
}
