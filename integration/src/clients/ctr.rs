//! `ctr`, containerd's own client.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::clients::client::NAMESPACE;
use crate::ground::patience::patience;
use crate::ground::places::{SOCKET, tool};

/// `ctr` and the flags that reach the testbed's containerd and the tests' namespace.
fn line() -> Vec<String> {
    let ctr = tool("ctr").expect("ctr").display().to_string();
    let flags = ["--address", SOCKET, "--namespace", NAMESPACE];
    std::iter::once(ctr)
        .chain(flags.map(str::to_owned))
        .collect()
}

/// A program that is or runs `ctr`, which complains of nothing that is deprecated.
fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "true");
    command
}

/// `ctr` with these flags, for a caller's own arguments.
///
/// # Panics
/// When there is no `ctr`.
#[must_use]
pub(crate) fn command() -> Command {
    let [ctr, flags @ ..] = &line()[..] else {
        unreachable!("a line begins with its program")
    };
    let mut command = quiet(ctr);
    command.args(flags);
    command
}

/// Runs it.
#[must_use]
pub(crate) fn run(args: &[&str]) -> Output {
    // Less than the harness gives a test: nothing else can end one that waits for a command.
    run_within(patience(Duration::from_secs(100)), args)
}

/// Runs it for so long at most; it is killed then, and has no exit code.
///
/// # Panics
/// When it cannot be run.
#[must_use]
pub(crate) fn run_within(limit: Duration, args: &[&str]) -> Output {
    let limit = format!("{}s", limit.as_secs());
    // A client that waits for a stream minds no `--timeout`.
    let mut command = quiet("timeout");
    command
        .args(["-s", "KILL", &limit])
        .args(line())
        .args(["--timeout", &limit])
        .args(args)
        .stdin(Stdio::null());
    command.output().expect("run ctr")
}

/// Runs it and returns what it printed.
///
/// # Panics
/// When it fails.
pub(crate) fn ok(args: &[&str]) -> String {
    let output = run(args);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "ctr {args:?}: {}: {stderr}{stdout}",
        output.status
    );
    stdout.into_owned()
}

/// Runs it in a terminal of 33 rows and 101 columns, into which `typed` is typed.
///
/// # Panics
/// When there is no `script`, which makes the terminal (Debian: bsdutils).
#[must_use]
pub(crate) fn in_a_terminal(args: &[&str], typed: &str) -> Output {
    let ctr = line().join(" ");
    let line = format!("stty rows 33 cols 101; exec {ctr} {}", args.join(" "));
    let child = quiet("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("run script");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(typed.as_bytes()).expect("type");
    // The pipe stays open until the end: its closing would type ctrl-D.
    let output = child.wait_with_output().expect("wait for script");
    drop(stdin);
    output
}
