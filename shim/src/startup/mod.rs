//! What containerd starts this binary for: to start a shim, to clean up after one that died, and to say what it is.

pub(crate) mod bootstrap;
pub(crate) mod delete;
pub(crate) mod info;
pub(crate) mod start;
