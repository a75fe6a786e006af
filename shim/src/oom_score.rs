//! The shim's place in the order of the kernel's OOM killer.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Just above the score at which the kernel never kills.
const WANTED: i32 = -999;
const PATH: &str = "/proc/self/oom_score_adj";

/// Lowers the own score as far as allowed. Returns the score it had, which its children get back when it was changed:
/// a sandbox must not be spared because its shim is.
pub(crate) fn protect() -> Option<i32> {
    let before: i32 = fs::read_to_string(PATH).ok()?.trim().parse().ok()?;
    if before <= WANTED {
        return Some(before.max(0));
    }
    match fs::write(PATH, WANTED.to_string()) {
        Ok(()) => Some(before),
        Err(error) => {
            tracing::warn!(%error, score = before, "oom_score_adj cannot be lowered; the shim keeps the one it has");
            None
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
