//! The shim's place in the order of the kernel's OOM killer.

use std::fs;

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
