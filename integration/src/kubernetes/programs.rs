//! The programs of Kubernetes, where they run, and what they are called.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::ground::places::{LOG, tool};

/// The name of the node.
pub const NODE: &str = "node";
/// The kubelet's folder, which it deletes what it does not know in.
pub const KUBELET: &str = "/var/lib/kubelet";

/// A program of Kubernetes.
pub(super) fn program(name: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/tools/kubernetes")
        .join(name);
    if built.is_file() {
        return built;
    }
    tool(name).unwrap_or_else(|| panic!("{name} is missing: make test-kubernetes builds it"))
}

/// Starts a program in the cluster's folder, its output in a file of its name.
pub(super) fn spawn(mut command: Command, folder: &Path) -> Child {
    let name = Path::new(command.get_program())
        .file_name()
        .expect("a name")
        .to_owned();
    let log = Path::new(LOG).join(name).with_extension("log");
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .expect("open a log");
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("share the log"))
        .stderr(log);
    command.spawn().expect("start a program of Kubernetes")
}
