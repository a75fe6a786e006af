//! A testbed for containerd runtimes: a private containerd in namespaces of its own, and what tests of a runtime need
//! around it. The behaviours themselves are in `tests`; they judge any runtime that `BULKHEAD_TEST_RUNTIME` names.
//!
//! Each room knows only the rooms above it in this list:
//!
//! | room | question |
//! |---|---|
//! | `ground` | Where do the tests run, on which runtime, and for how long do they wait? |
//! | `look` | What is on the host: processes, leaks, memory? |
//! | `clients` | How do containerd's clients speak to it? |
//! | `bed` | Which containerd is there for the tests? |
//! | `workload` | What do tests put into it: containers, execs, pods? |
//! | `faults` | What breaks under a runtime? |
//! | `kubernetes`, `measure`, `harness` | What do the programs have in common? |
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "for tests only: a testbed that cannot do its job ends the test"
)]

mod clients;
mod faults;
mod ground;
mod look;
mod workload;

pub mod bed;
pub mod harness;
pub mod kubernetes;
pub mod measure;

pub use clients::{client, fifo, session, spec};
pub use faults::{busy, sidecars, wrapper};
pub use ground::{cgroups, isolate, patience, policy, runtime};
pub use look::{gauge, leaks, processes};
pub use workload::{container, cri, exec, shim};
