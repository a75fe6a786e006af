//! The place of the shim and of its sandbox in the order of the kernel's OOM killer.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use node::cgroup::Cgroups;
use node::procfs::fields_after_name;

/// Just above the score at which the kernel never kills.
const WANTED: i32 = -999;
const PATH: &str = "/proc/self/oom_score_adj";

/// The score that the children of this process get where it does not change its own; none where they keep it. Whatever spares
/// containerd, which this process has its own score of, spares no program that it starts, however little it spares.
pub(crate) fn of_children() -> Option<i32> {
    own().and_then(spared_by)
}

/// The score of who is not to be spared as one of a score is; none where that spares nobody.
fn spared_by(score: i32) -> Option<i32> {
    (score < 0).then_some(0)
}

fn own() -> Option<i32> {
    fs::read_to_string(PATH).ok()?.trim().parse().ok()
}

/// Lowers the own score as far as allowed. Returns the score that its children get: the one it had, and none that spares them.
/// A sandbox must not be spared because its shim is, or containerd.
pub(crate) fn protect() -> Option<i32> {
    let before = own()?;
    if before <= WANTED {
        return Some(before.max(0));
    }
    match fs::write(PATH, WANTED.to_string()) {
        Ok(()) => Some(before.max(0)),
        Err(error) => {
            tracing::warn!(%error, score = before, "oom_score_adj cannot be lowered; the shim keeps the one it has");
            spared_by(before)
        }
    }
}

/// Makes a command run with this score.
pub(crate) fn give_back(command: &mut Command, score: i32) {
    let score = score.to_string();
    // SAFETY: between fork and exec only open, write and close of a prepared string happen, all of them async-signal-safe; the
    // path is a constant.
    unsafe {
        command.pre_exec(move || {
            // Raising the score needs no privilege; where it fails the child merely keeps the shim's.
            let _ = nix::fcntl::open(
                c"/proc/self/oom_score_adj",
                nix::fcntl::OFlag::O_WRONLY,
                nix::sys::stat::Mode::empty(),
            )
            .map(|fd| nix::unistd::write(fd, score.as_bytes()));
            Ok(())
        });
    }
}

/// Gives the stubs of a sandbox, in which its programs run, the score that runsc has given its sentry: each is a fork of the first one, which was
/// made before runsc gave any. From here on the score is inherited.
pub(crate) fn spread(cgroups: &Cgroups, sentry: i32) {
    let Ok(score) = fs::read_to_string(format!("/proc/{sentry}/oom_score_adj")) else {
        // It has gone.
        return;
    };
    // Again for what was forked meanwhile from one that had the old score.
    for _ in 0..2 {
        if set(cgroups, score.trim()) == 0 {
            return;
        }
    }
}

/// Returns how many had another score.
fn set(cgroups: &Cgroups, score: &str) -> usize {
    let opened = cgroups.pids().into_iter().filter_map(|pid| {
        let folder = File::open(format!("/proc/{pid}")).ok()?;
        Some((pid, folder))
    });
    let opened: Vec<_> = opened.collect();
    // Only now is a number known to be a process of the sandbox: it may have been another's when its folder was opened, but then that
    // one has gone.
    let pids = cgroups.pids();
    let mut changed = 0;
    for (pid, folder) in opened {
        let is_stub = |folder: &File| parent(folder).is_some_and(|parent| pids.contains(&parent));
        if !pids.contains(&pid) || !is_stub(&folder) {
            continue;
        }
        match set_one(&folder, score) {
            Ok(is_changed) => changed += usize::from(is_changed),
            Err(error) => tracing::debug!(%error, pid, score, "oom_score_adj of a stub not set"),
        }
    }
    changed
}

fn open_in(folder: &File, name: &str, flags: OFlag) -> std::io::Result<File> {
    let file = nix::fcntl::openat(folder, name, flags | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(File::from(file))
}

/// The parent of a process. That of the sentry and of a gofer is the shim, that of a stub the sentry or another stub.
fn parent(folder: &File) -> Option<i32> {
    let mut stat = String::new();
    let mut file = open_in(folder, "stat", OFlag::O_RDONLY).ok()?;
    file.read_to_string(&mut stat).ok()?;
    fields_after_name(&stat).nth(1)?.parse().ok()
}

fn set_one(folder: &File, score: &str) -> std::io::Result<bool> {
    let mut file = open_in(folder, "oom_score_adj", OFlag::O_RDWR)?;
    let mut before = String::new();
    file.read_to_string(&mut before)?;
    if before.trim() == score {
        return Ok(false);
    }
    file.write_all(score.as_bytes())?;
    Ok(true)
}
