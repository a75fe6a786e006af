//! A testbed for containerd runtimes: a private containerd in namespaces of its own, and what tests of a runtime need
//! around it. The behaviours themselves are in `tests/suite`; they judge any runtime that `BULKHEAD_TEST_RUNTIME` names.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "for tests only: a testbed that cannot do its job ends the test"
)]

pub mod bed;
pub mod busy;
pub mod cgroups;
pub mod client;
pub mod container;
pub mod cri;
pub mod exec;
pub mod fifo;
pub mod gauge;
pub mod harness;
pub mod isolate;
pub mod kubernetes;
pub mod leaks;
pub mod measure;
pub mod patience;
pub mod policy;
pub mod processes;
pub mod runtime;
pub mod session;
pub mod shim;
pub mod sidecars;
pub mod spec;
pub mod wrapper;
