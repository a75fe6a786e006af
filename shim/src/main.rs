//! `containerd-shim-bulkhead-v1`: runs containerd's tasks in gVisor, under the node's policy.
//!
//! containerd runs this binary to start a shim for a pod (`start`), and to clean up after one that died (`delete`). The
//! started shim is this binary again, with no action: it serves the Task API until its last container is gone.

mod apart;
mod aside;
mod binds;
mod bootstrap;
mod cgroup;
mod cgroup_limits;
mod changes;
mod cleanup;
mod clock;
mod container;
mod create;
mod delete;
mod dial;
mod error;
mod events;
mod held;
mod host;
mod id;
mod info;
mod io;
mod layout;
mod limits;
mod logging;
mod masks;
mod memory;
mod metrics;
mod mount;
mod mountinfo;
mod mountpoints;
mod names;
mod network;
mod oom;
mod oom_score;
mod options;
mod places;
mod pod;
mod poll;
mod process;
mod procfs;
mod program;
mod reaper;
mod runsc;
mod sandbox;
mod scenes;
mod serve;
mod service;
mod shield;
mod small;
mod start;
mod stats;
mod systemd;
#[cfg(test)]
mod testing;
mod trail;
mod workdir;

use std::process::ExitCode;

use error::{Error, Result};
use runsc_config::printable;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = error.to_string();
            eprintln!("{}: {}", env!("CARGO_BIN_NAME"), printable(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let flags = containerd_shim::parse(&args).map_err(|e| Error::invalid(e.to_string()))?;
    if flags.version {
        println!("{} {}", env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if flags.info {
        return info::run();
    }
    match flags.action.as_str() {
        "start" => start::run(&flags),
        "delete" => delete::run(&flags),
        "" => serve::run(&flags),
        other => Err(Error::invalid(format!(
            "unknown action {other:?}: expected start or delete"
        ))),
    }
}
