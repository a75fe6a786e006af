//! Names and places that all tests share, and where tools are found. Every path is short, since an address of a unix socket
//! ends at 108 bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the root filesystem of all containers is mounted.
pub const IMAGE: &str = "/run/b/image";
/// Name of the image for `ctr run`.
pub const IMAGE_NAME: &str = "bulkhead.test/busybox:latest";
/// containerd's socket.
pub const SOCKET: &str = "/run/b/c.sock";
/// Searched before every other folder: `runsc` is here, and faults are put in its place.
pub const PATH_FOLDER: &str = "/run/b/path";
/// containerd's state: bundles are in there.
pub const STATE: &str = "/run/b/state";
/// Logs of all that the testbed starts.
pub(crate) const LOG: &str = "/run/b/log";

/// Where tools are looked for: `BULKHEAD_TEST_PATH`, what `make` builds, then `PATH`.
fn search_path() -> Vec<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let mut path: Vec<PathBuf> = Vec::new();
    if let Some(first) = std::env::var_os("BULKHEAD_TEST_PATH") {
        path.extend(std::env::split_paths(&first));
    }
    path.extend([target.join("dist"), target.join("tools/bin")]);
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    path.into_iter()
        .map(|folder| folder.canonicalize().unwrap_or(folder))
        .collect()
}

/// Finds a tool.
#[must_use]
pub fn tool(name: &str) -> Option<PathBuf> {
    search_path()
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Whether this containerd is a 1.x, whose configuration has another version, and which knows fewer codes of a shim's errors.
///
/// # Panics
/// When it cannot be asked.
#[must_use]
pub fn is_before_2() -> bool {
    let containerd = Path::new(PATH_FOLDER).join("containerd");
    let output = Command::new(containerd).arg("--version").output();
    let text = output.expect("run containerd").stdout;
    // "containerd MODULE VERSION REVISION"
    let text = String::from_utf8_lossy(&text);
    let version = text.split_whitespace().nth(2).unwrap_or_default();
    version.trim_start_matches('v').starts_with("1.")
}
