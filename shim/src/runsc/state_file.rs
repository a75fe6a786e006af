//! runsc's state file: which containers a root holds, and the processes and socket of their sandbox.
//!
//! Name and content: `runsc/container/state_file.go` (`<container>_sandbox:<sandbox>.state`, JSON).

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A state file holds the whole spec; more than this is not one that runsc wrote.
pub(super) const SIZE_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug, Default, Deserialize)]
struct SandboxState {
    #[serde(default)]
    pid: i32,
    #[serde(default, rename = "controlSocketPath")]
    control_socket_path: PathBuf,
}

/// The part of runsc's state that the shim needs.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct StateFile {
    #[serde(default, rename = "goferPid")]
    gofer_pid: i32,
    #[serde(default)]
    sandbox: Option<SandboxState>,
}

impl StateFile {
    /// The state file of exactly this container, if runsc has one in this root.
    pub(crate) fn find(root: &Path, id: &str) -> Option<PathBuf> {
        let prefix = format!("{id}_sandbox:");
        let mut entries = fs::read_dir(root).ok()?.filter_map(std::result::Result::ok);
        entries.find_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            (name.starts_with(&prefix) && name.ends_with(".state")).then(|| entry.path())
        })
    }

    /// Reads the state of exactly this container.
    pub(crate) fn read(root: &Path, id: &str) -> Option<Self> {
        let mut text = Vec::new();
        let file = fs::File::open(Self::find(root, id)?).ok()?;
        file.take(SIZE_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The gofer's pid on the host.
    pub(crate) fn gofer_pid(&self) -> Option<i32> {
        (self.gofer_pid > 0).then_some(self.gofer_pid)
    }

    /// The sandbox's pid on the host.
    pub(crate) fn sandbox_pid(&self) -> Option<i32> {
        self.sandbox
            .as_ref()
            .map(|sandbox| sandbox.pid)
            .filter(|pid| *pid > 0)
    }

    /// Where the sandbox's control socket is: in the root, or in one of the folders runsc falls back to when the path
    /// would be too long for a socket address (`runsc/sandbox/sandbox.go`).
    pub(crate) fn control_socket(&self) -> Option<&Path> {
        let path = self.sandbox.as_ref()?.control_socket_path.as_path();
        (!path.as_os_str().is_empty()).then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_id_is_found() {
        let root = tempfile::tempdir().expect("tempdir");
        let state = root.path().join("longname_sandbox:longname.state");
        fs::write(
            &state,
            r#"{"goferPid":7,"sandbox":{"pid":9,"controlSocketPath":"/run/x.sock"}}"#,
        )
        .expect("write");
        assert!(
            StateFile::find(root.path(), "long").is_none(),
            "a prefix is another container"
        );
        assert_eq!(StateFile::find(root.path(), "longname"), Some(state));
        let read = StateFile::read(root.path(), "longname").expect("state");
        assert_eq!((read.gofer_pid(), read.sandbox_pid()), (Some(7), Some(9)));
        assert_eq!(read.control_socket(), Some(Path::new("/run/x.sock")));
    }

    #[test]
    fn a_half_written_state_is_no_state() {
        let root = tempfile::tempdir().expect("tempdir");
        fs::write(root.path().join("a_sandbox:a.state"), "{\"gofer").expect("write");
        assert!(StateFile::read(root.path(), "a").is_none());
    }
}
