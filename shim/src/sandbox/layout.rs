//! Where things are on the node, and the record that the shim writes of a sandbox.
//!
//! Each sandbox has a folder of its own below the base (`/run/bulkhead` unless the policy says otherwise). That folder is runsc's
//! `--root`. It holds the control socket and the shim's record, and `delete` needs nothing else. Its name is a hash, for two
//! reasons: a socket path may be at most 107 bytes long, and two containerds on one node may use the same ids.

use std::fs::{self, DirBuilder};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use runsc_config::{Explanation, HardenedSpec, trusted, trusted_folder};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use node::cgroup::Cgroups;
use node::names::{ASKED, RECORD, SANDBOX_ROOT, SHIM_PID};

/// A spec larger than this is not one that a container engine makes.
const SPEC_MAX: u64 = 8 * 1024 * 1024;

/// The folder of one sandbox: 16 hex digits of what tells it apart on the node.
pub(crate) fn sandbox_root(
    base: &Path,
    containerd: &str,
    namespace: &str,
    sandbox: &str,
) -> PathBuf {
    let mut hash = Sha256::new();
    for part in [containerd, namespace, sandbox] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let name: String = hash
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    base.join(name)
}

/// Makes a folder that only root can enter, with its parents. One that is there is somebody's and keeps its mode.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes a folder that the policy names, unless it is there. It is judged as the policy file is: whoever can write it, or a
/// folder above it, would be handed what root keeps there, or lead root to write elsewhere.
///
/// # Errors
/// Names the part of the path that is not root's alone, or that cannot be made.
pub(crate) fn trusted_dir(path: &Path) -> std::result::Result<(), String> {
    // First what is there: nothing is made in a folder of somebody else's.
    trusted_folder(path)?;
    make_dir(path).map_err(|e| format!("cannot be made: {e}"))?;
    trusted(path)
}

/// Makes the folder of one sandbox, in a folder that has been judged. Whoever can enter it reaches the control socket, which
/// owns the sandbox.
///
/// # Errors
/// When it cannot be made, or something else is there.
pub(crate) fn sandbox_dir(root: &Path) -> io::Result<()> {
    make_dir(root)?;
    let metadata = fs::symlink_metadata(root)?;
    let mode = metadata.mode() & 0o777;
    if !metadata.is_dir() || metadata.uid() != 0 || mode != 0o700 {
        let problem =
            format!("is there already, and is no folder of root's with mode 0700 ({mode:04o})");
        return Err(io::Error::other(problem));
    }
    Ok(())
}

/// Makes the folder that all sandboxes lie in, `runsc.root` of the policy.
///
/// # Errors
/// `FailedPrecondition` where it is not root's alone to write.
pub(crate) fn state_dir(base: &Path) -> Result<()> {
    trusted_dir(base)
        .map_err(|problem| Error::precondition(format!("policy: runsc.root = {base:?}: {problem}")))
}

/// Writes a file that only root can read, whole or not at all.
///
/// # Errors
/// When the disk is full, or the folder cannot be written.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("tmp");
    let write = || {
        let mut file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&staged)?;
        file.write_all(content)?;
        fs::rename(&staged, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&staged);
    })
}

/// What is known of a sandbox, for `delete` and the node tool, when its shim is gone.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Version of the shim that wrote it.
    pub(crate) version: String,
    pub(crate) id: String,
    pub(crate) namespace: String,
    /// The containerd it belongs to, by its gRPC address.
    pub(crate) containerd: String,
    pub(crate) bundle: PathBuf,
    pub(crate) shim_pid: u32,
    pub(crate) runsc: PathBuf,
    pub(crate) flags: Vec<String>,
    pub(crate) sandbox_pid: Option<i32>,
    pub(crate) cgroups: Option<Cgroups>,
    /// Files that runsc keeps the content of shared volumes in.
    #[serde(default)]
    pub(crate) filestores: Vec<PathBuf>,
}

impl Record {
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, root: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::internal(e.to_string()))?;
        write_private(&root.join(RECORD), &text)
            .map_err(|e| Error::io("write the sandbox's record", &e))
    }

    pub(crate) fn read(root: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(root.join(RECORD)).ok()?).ok()
    }
}

/// The bundle of one container, as containerd made it.
#[derive(Debug, Clone)]
pub(crate) struct Bundle(PathBuf);

impl Bundle {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    /// Where the sandbox of this bundle lives, as written down by [`Bundle::set_sandbox_root`].
    pub(crate) fn sandbox_root(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(self.0.join(SANDBOX_ROOT)).ok()?;
        let root = PathBuf::from(text.trim());
        (root.is_absolute() && root.components().count() > 2).then_some(root)
    }

    /// Writes down where the sandbox lives: a policy may put it anywhere, and `delete` is told no policy.
    ///
    /// # Errors
    /// When the bundle cannot be written.
    pub(crate) fn set_sandbox_root(&self, root: &Path) -> Result<()> {
        let text = root.to_string_lossy();
        write_private(&self.0.join(SANDBOX_ROOT), text.as_bytes())
            .map_err(|e| Error::io(format!("write {SANDBOX_ROOT}"), &e))
    }

    /// The pid of the shim that was started for it, as far as it was written down.
    pub(crate) fn shim_pid(&self) -> Option<u32> {
        let mut text = String::new();
        let file = fs::File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(self.0.join(SHIM_PID))
            .ok()?;
        file.take(16).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }

    /// Reads the spec the client asked for.
    ///
    /// # Errors
    /// `InvalidArgument` when it is missing, too large, or no JSON.
    pub(crate) fn read_spec(&self) -> Result<serde_json::Value> {
        let path = self.0.join("config.json");
        let read = || -> io::Result<Vec<u8>> {
            // Neither a FIFO nor a device may hold up the shim's only thread.
            let file = fs::File::options()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("not a regular file"));
            }
            let mut text = Vec::new();
            file.take(SPEC_MAX + 1).read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read().map_err(|e| Error::invalid(format!("read {}: {e}", path.display())))?;
        if text.len() as u64 > SPEC_MAX {
            return Err(Error::invalid(format!(
                "{}: larger than {SPEC_MAX} bytes",
                path.display()
            )));
        }
        serde_json::from_slice(&text)
            .map_err(|e| Error::invalid(format!("parse {}: {e}", path.display())))
    }

    /// Whether `config.json` is the hardened spec by now.
    pub(crate) fn is_hardened(&self) -> bool {
        self.0.join(ASKED).exists()
    }

    /// Puts the hardened spec in the place of the one asked for, which is kept beside it, as is what was changed. Only a
    /// spec that `runsc-config` made can be written.
    ///
    /// # Errors
    /// When the bundle cannot be written.
    pub(crate) fn write_spec(&self, spec: &HardenedSpec, told: &Explanation) -> Result<()> {
        let config = self.0.join("config.json");
        let write = || {
            fs::copy(&config, self.0.join(ASKED))?;
            let explanation = serde_json::to_vec(told)?;
            write_private(&self.0.join(Explanation::FILE), &explanation)?;
            write_private(&config, &spec.to_json_bytes())
        };
        write().map_err(|e| Error::io(format!("write {}", config.display()), &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_socket_fits_into_an_address_for_the_ids_of_kubernetes() {
        let id = "a".repeat(64);
        let root = sandbox_root(
            Path::new("/run/bulkhead"),
            "/run/containerd/containerd.sock",
            "k8s.io",
            &id,
        );
        assert!(root.join(format!("runsc-{id}.sock")).as_os_str().len() < 108);
    }

    #[test]
    fn sandboxes_of_two_containerds_never_meet() {
        let base = Path::new("/run/bulkhead");
        let one = sandbox_root(base, "/run/a.sock", "default", "x");
        assert_ne!(one, sandbox_root(base, "/run/b.sock", "default", "x"));
        assert_ne!(one, sandbox_root(base, "/run/a.sock", "defaultx", ""));
    }

    #[test]
    fn a_folder_that_is_there_keeps_its_mode_and_one_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        if !node::testing::has_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("tempdir");
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        };
        let mode_of = |path: &Path| fs::metadata(path).expect("stat").mode() & 0o7777;
        let (above, below) = (folder.path().join("above"), folder.path().join("above/a/b"));
        fs::create_dir(&above).expect("mkdir");
        for open in [0o775, 0o777] {
            mode(&above, open);
            let problem = trusted_dir(&below).expect_err("refused");
            assert!(problem.contains("above has mode"), "{problem}");
            assert!(!above.join("a").exists(), "made in a folder of others");
        }
        mode(&above, 0o755);
        trusted_dir(&below).expect("made");
        assert_eq!((mode_of(&above), mode_of(&below)), (0o755, 0o700));
        mode(&below, 0o755);
        trusted_dir(&below).expect("it is there");
        assert_eq!(mode_of(&below), 0o755);
        // A link is judged by where it leads.
        std::os::unix::fs::symlink("b", above.join("a/link")).expect("link");
        trusted_dir(&above.join("a/link")).expect("it is there");
        mode(&below, 0o757);
        trusted_dir(&above.join("a/link")).expect_err("refused");
        fs::write(above.join("file"), "").expect("write");
        trusted_dir(&above.join("file/x")).expect_err("refused");
        trusted_dir(&above.join("file")).expect_err("refused");
    }

    #[test]
    fn the_folder_of_a_sandbox_is_nobodys_else() {
        use std::os::unix::fs::PermissionsExt as _;
        if !node::testing::has_root() {
            return;
        }
        let folder = tempfile::tempdir().expect("tempdir");
        let root = folder.path().join("r");
        sandbox_dir(&root).expect("made");
        sandbox_dir(&root).expect("it is there");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("chmod");
        sandbox_dir(&root).expect_err("refused");
    }
}
