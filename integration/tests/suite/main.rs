//! Behaviours of a containerd runtime, judged through real containerd. `BULKHEAD_TEST_RUNTIME` names the runtime; see the
//! README of this crate.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod agents;
mod asked;
mod binds;
mod cgroup;
mod check;
mod control;
mod create;
mod delete;
mod events;
mod exec;
mod explain;
mod faults;
mod files;
mod images;
mod install;
mod io;
mod kill;
mod lies;
mod limits;
mod log;
mod metrics;
mod neighbours;
mod nerdctl;
mod old;
mod options;
mod outside;
mod peers;
mod places;
mod pod;
mod posture;
mod profile;
mod relay;
mod scrapers;
mod sentry;
mod series;
mod serve;
mod service;
mod session;
mod sidecars;
mod start;
mod stats;
mod streams;
mod terminal;
mod user;
mod versions;

use std::process::ExitCode;

use integration::bed::{Bed, Services};
use integration::harness::{self, Work};

fn main() -> ExitCode {
    let cases = [
        start::cases(),
        sidecars::cases(),
        control::cases(),
        create::cases(),
        delete::cases(),
        io::cases(),
        streams::cases(),
        exec::cases(),
        kill::cases(),
        serve::cases(),
        service::cases(),
        session::cases(),
        events::cases(),
        faults::cases(),
        files::cases(),
        neighbours::cases(),
        peers::cases(),
        lies::cases(),
        terminal::cases(),
        posture::cases(),
        asked::cases(),
        images::cases(),
        profile::cases(),
        user::cases(),
        pod::cases(),
        limits::cases(),
        log::cases(),
        old::cases(),
        options::cases(),
        outside::cases(),
        explain::cases(),
        check::cases(),
        install::cases(),
        cgroup::cases(),
        binds::cases(),
        places::cases(),
        stats::cases(),
        metrics::cases(),
        nerdctl::cases(),
        nerdctl::hooks::cases(),
        nerdctl::outside::cases(),
        nerdctl::flags::cases(),
        scrapers::cases(),
        sentry::cases(),
        series::cases(),
        versions::cases(),
        agents::cases(),
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
