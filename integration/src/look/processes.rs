//! The processes of the testbed's pid namespace.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ground::patience::patience;

/// A process, as /proc shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number in the testbed.
    pub pid: i32,
    /// Arguments, joined with spaces; its name in parentheses when it has none (a zombie).
    pub command: String,
}

/// All processes.
#[must_use]
pub fn all() -> Vec<Process> {
    let pids = fs::read_dir("/proc").expect("read /proc").flatten();
    pids.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<_> = line
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .collect();
        let mut command = words.join(" ").trim().to_owned();
        if command.is_empty() {
            command = format!(
                "({})",
                fs::read_to_string(entry.path().join("comm")).ok()?.trim()
            );
        }
        Some(Process { pid, command })
    })
    .collect()
}

/// What a process is to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Any runtime's shim.
    Shim,
    /// gVisor's sandbox.
    Sandbox,
    /// gVisor's gofer.
    Gofer,
    /// A `runsc` command.
    Command,
}

/// The role of a process by its command line, if it has one.
#[must_use]
pub fn role(process: &Process) -> Option<Role> {
    let first = process.command.split(' ').next().unwrap_or_default();
    let name = first.rsplit('/').next().unwrap_or_default();
    match name {
        "runsc-sandbox" => Some(Role::Sandbox),
        "runsc-gofer" => Some(Role::Gofer),
        "runsc" => Some(Role::Command),
        _ if name.starts_with("containerd-shim-") => Some(Role::Shim),
        _ => None,
    }
}

/// The processes of one role that name `id` in their arguments.
#[must_use]
pub fn of(wanted: Role, id: &str) -> Vec<Process> {
    let mut found = all();
    found.retain(|process| role(process) == Some(wanted) && process.command.contains(id));
    found
}

/// Sends SIGKILL; a process that is gone already is no error.
pub fn sigkill(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Kills the processes of one role of a container, and says how many there were.
pub fn kill_role(wanted: Role, id: &str) -> usize {
    let found = of(wanted, id);
    found.iter().for_each(|process| sigkill(process.pid));
    found.len()
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within the time.
pub async fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let limit = patience(limit);
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Resident memory in kilobytes.
#[must_use]
pub fn resident_kb(pid: i32) -> Option<u64> {
    kilobytes(pid, "VmRSS:")
}

/// Resident memory that is no file's, in kilobytes.
#[must_use]
pub fn anonymous_kb(pid: i32) -> Option<u64> {
    kilobytes(pid, "RssAnon:")
}

/// The most resident memory that it has ever had, in kilobytes.
#[must_use]
pub fn peak_kb(pid: i32) -> Option<u64> {
    kilobytes(pid, "VmHWM:")
}

fn kilobytes(pid: i32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| {
        line.strip_prefix(field)?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()
    })
}

/// How many descriptors it has open.
#[must_use]
pub fn descriptors(pid: i32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Resident memory of a shim and of the commands that it has started, in kilobytes, but for sandboxes and gofers.
#[must_use]
pub fn shim_and_commands_kb(shim: i32) -> u64 {
    let counts = |process: &Process| {
        let is_command = role(process) == Some(Role::Command) && parent(process.pid) == Some(shim);
        process.pid == shim || is_command
    };
    let counted = all().into_iter().filter(counts);
    counted.filter_map(|process| resident_kb(process.pid)).sum()
}

/// A process's parent (proc_pid_stat(5)).
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')')
        .next()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}
