//! `containerd-shim-bulkhead-v1`: runs containerd's tasks in gVisor, under the node's policy.
//!
//! containerd runs this binary to start a shim for a pod (`start`), and to clean up after one that died (`delete`). The
//! started shim is this binary again, with no action: it serves the Task API until its last container is gone.

mod api;
mod error;
mod io;
mod metrics;
mod runsc;
mod sandbox;
mod serving;
mod startup;
mod sys;
mod task;

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
        return startup::info::run();
    }
    match flags.action.as_str() {
        "start" => startup::start::run(&flags),
        "delete" => startup::delete::run(&flags),
        "" => serving::run(&flags),
        other => Err(Error::invalid(format!(
            "unknown action {other:?}: expected start or delete"
        ))),
    }
}
