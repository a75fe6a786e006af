//! What the shim needs of the operating system, whatever it runs: children, threads that may hang, polling, its log.

pub(crate) mod aside;
pub(crate) mod counters;
pub(crate) mod logging;
pub(crate) mod memory;
pub(crate) mod oom_score;
pub(crate) mod poll;
pub(crate) mod reaper;
