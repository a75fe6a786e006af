//! Hours of a node in some minutes: everything at once on busy CPUs, then the same thing again and again. `SOAK_SECONDS` says how long; the
//! numbers of what is done again and again go by it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod flat;
mod storm;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use integration::bed::{Bed, Services};
use integration::harness::{self, Work};

/// How long all of it takes, about, on two cores.
const WHOLE: u64 = 1200;

fn main() -> ExitCode {
    let cases = [storm::cases(), flat::cases()];
    // None takes longer than all of it is to take, but where something hangs.
    let limit = Duration::from_secs(seconds() * 2 + 300);
    harness::main_within(
        limit,
        Services::Cri,
        cases.into_iter().flatten().collect(),
        warm_up,
    )
}

/// What containerd and the runtime make for the first container and the first pod.
fn warm_up(bed: &Bed) -> Work<'_> {
    Box::pin(async {
        harness::first_container(bed).await;
        harness::first_pod(bed).await;
    })
}

fn seconds() -> u64 {
    let text = std::env::var("SOAK_SECONDS").unwrap_or_default();
    text.parse().unwrap_or(WHOLE).clamp(30, 24 * 3600)
}

/// So many of the `whole` number, by how long the soak is to take.
fn share(whole: u64) -> u64 {
    whole * seconds() / WHOLE
}

/// Says what was done, and for `make soak`, which repeats it at the end.
fn note(line: &str) {
    println!("  {line}");
    let Ok(path) = std::env::var("SOAK_COUNTS") else {
        return;
    };
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    writeln!(file.expect("open the counts"), "{line}").expect("write the counts");
}
