//! `bulkhead`: the node tool. It puts Bulkhead on a node, shows what the policy makes of a container, before or while it runs, and
//! what a node lacks.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod ask;
#[path = "../../cgroup.rs"]
#[allow(dead_code, reason = "the shim uses the rest")]
mod cgroup;
#[path = "../../cgroup_limits.rs"]
mod cgroup_limits;
mod check;
mod containerd;
mod daemon;
#[path = "../../dial.rs"]
#[allow(dead_code, reason = "the shim uses the rest")]
mod dial;
mod explain;
mod files;
#[path = "../../host.rs"]
mod host;
mod install;
mod metrics;
#[path = "../../mountinfo.rs"]
#[allow(dead_code, reason = "the shim uses the rest")]
mod mountinfo;
mod pattern;
mod processes;
#[path = "../../procfs.rs"]
#[allow(dead_code, reason = "the shim uses the rest")]
mod procfs;
#[cfg(test)]
#[path = "../../testing.rs"]
mod testing;
mod text;
#[path = "../../trail.rs"]
#[allow(dead_code, reason = "the shim uses the rest")]
mod trail;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use runsc_config::{Policy, PolicyError};

/// Shows what Bulkhead's policy makes of a container, and what a node lacks.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Says what a container asked for, what it is given, and which policy key decides it.
    Explain(explain::Arguments),
    /// Looks at this node: runsc, cgroups, containerd's configuration, the policy file; and says how to mend what it finds.
    Check(check::Arguments),
    /// Tells what the sandboxes of this node use and do: as OpenMetrics, JSON, a table, or to Prometheus.
    Metrics(metrics::Arguments),
    /// Puts the programs, the policy and containerd's handlers on a node. What an administrator wrote or changed stays.
    Install(install::Arguments),
    /// Takes away what was installed and nobody changed since.
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

/// The policy of a file, relative to here, or the node's own.
fn policy(path: Option<&Path>) -> Result<Policy, PolicyError> {
    match path {
        Some(path) => Policy::load(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned())),
        None => Policy::load_default(),
    }
}
