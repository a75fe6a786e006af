//! The names of the files by which the shim and the node tool find a sandbox, each written once.

/// The record of a sandbox, in its folder.
pub const RECORD: &str = "bulkhead.json";
/// The socket of its metrics, in its folder.
pub const METRICS_SOCKET: &str = "metrics.sock";
/// What the client asked for, in the bundle, beside the `config.json` that was made of it.
pub const ASKED: &str = "config.asked.json";
/// The file in a bundle that says where its sandbox's folder is.
pub const SANDBOX_ROOT: &str = "bulkhead-root";
/// The file in a bundle that has the pid of its shim, as with containerd's own shims.
pub const SHIM_PID: &str = "shim.pid";
