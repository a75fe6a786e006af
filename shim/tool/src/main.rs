//! `bulkhead`: the node tool. It installs Bulkhead on a node, checks the node, explains what a container is given, and shows
//! metrics.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod ask;
mod check;
mod containerd;
mod daemon;
mod explain;
mod files;
mod install;
mod metrics;
mod pattern;
mod processes;
mod text;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use runsc_config::{Policy, PolicyError};

/// Installs Bulkhead on a node, checks the node, and shows what sandboxes are given and use.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Shows what a container asked for, what it is given, and the policy key that decides.
    Explain(explain::Arguments),
    /// Checks this node: runsc, cgroups, containerd's configuration, the policy file. Says how to mend each fault.
    Check(check::Arguments),
    /// Shows what the sandboxes of this node use and do, as OpenMetrics, JSON or a table, or serves it to Prometheus.
    Metrics(metrics::Arguments),
    /// Installs the programs, the policy and containerd's handlers. Leaves what an administrator wrote or changed.
    Install(install::Arguments),
    /// Removes what was installed, unless somebody changed it since.
    Uninstall(install::uninstall::Arguments),
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let done = match Arguments::parse().action {
        Action::Explain(arguments) => explain::run(&arguments),
        Action::Check(arguments) => check::run(&arguments),
        Action::Metrics(arguments) => metrics::run(&arguments),
        Action::Install(arguments) => install::run(&arguments),
        Action::Uninstall(arguments) => install::uninstall::run(&arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            text::complain(error);
            ExitCode::FAILURE
        }
    }
}

/// The policy of a file, relative to the working folder, or the node's own.
fn policy(path: Option<&Path>) -> Result<Policy, PolicyError> {
    match path {
        Some(path) => Policy::load(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned())),
        None => Policy::load_default(),
    }
}
