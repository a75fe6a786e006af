//! The node's policy: a TOML file in which every key loosens something, and whose absence is the strictest policy.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::report::Refusal;

/// Where the policy is looked for when the handler names none.
const DEFAULT_PATH: &str = "/etc/bulkhead/config.toml";
/// No policy is longer, in bytes.
const SIZE_MAX: u64 = 256 * 1024;

/// A policy file that cannot be used. Nothing runs under one: a typo must not become a default.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy {origin}: {problem}")]
pub struct PolicyError {
    origin: String,
    problem: String,
}

/// Network of the sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Loopback only.
    #[default]
    None,
    /// gVisor's own stack on the interfaces of the container's network namespace.
    Sandbox,
}

/// How gVisor intercepts system calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// By seccomp traps; works everywhere.
    #[default]
    Systrap,
    /// By hardware virtualisation.
    Kvm,
    /// By ptrace; slow, for kernels without what systrap needs.
    Ptrace,
}

/// Whether OCI hooks may run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hooks {
    /// They run as the client asked; only the holder of containerd's socket can set them.
    #[default]
    Allow,
    /// A spec with hooks is refused.
    Refuse,
}

/// How a running sandbox is controlled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// By its control socket, and by the command where the socket does not serve.
    #[default]
    Socket,
    /// By the command alone.
    Command,
}

/// How runsc is run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunscPolicy {
    /// The runsc binary; a bare name is looked up in the PATH of containerd. Default `runsc`.
    pub path: PathBuf,
    /// Folder for the state of sandboxes. Default `/run/bulkhead`.
    pub root: PathBuf,
    /// Default `systrap`.
    pub platform: Platform,
    /// Default `socket`.
    pub control: Backend,
    /// Sentry opens files itself instead of asking the gofer: faster, and the sentry then runs as root with
    /// capabilities. Default false.
    pub directfs: bool,
    /// Seconds `runsc create` may take. Default 60.
    pub create_timeout: u64,
    /// Seconds `runsc start`, `pause` and `resume` may take. Default 30.
    pub start_timeout: u64,
}

impl Default for RunscPolicy {
    fn default() -> Self {
        Self {
            path: "runsc".into(),
            root: "/run/bulkhead".into(),
            platform: Platform::default(),
            control: Backend::default(),
            directfs: false,
            create_timeout: 60,
            start_timeout: 30,
        }
    }
}

/// The root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rootfs {
    /// Writes go to a capped overlay that dies with the container. Default false: read-only.
    pub writable: bool,
    /// Size of that overlay, in MiB. Default 1024.
    pub size_mib: u64,
}

impl Default for Rootfs {
    fn default() -> Self {
        Self {
            writable: false,
            size_mib: 1024,
        }
    }
}

/// Memory-backed places that can be written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scratch {
    /// Size of /tmp, and the most any other tmpfs may have, in MiB. Default 64.
    pub tmp_mib: u64,
    /// Size of /run, in MiB. Default 8.
    pub run_mib: u64,
    /// Size of /dev/shm, in MiB. Default 16.
    pub shm_mib: u64,
    /// Programs may be executed from scratch. Default false.
    pub exec: bool,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            tmp_mib: 64,
            run_mib: 8,
            shm_mib: 16,
            exec: false,
        }
    }
}

/// Limits of one sandbox.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Tasks (threads count) of one uid in the sandbox. Default 256.
    pub pids: u64,
    /// Memory where the request sets no limit, in MiB. Default 512.
    pub memory_mib: u64,
    /// CPUs where the request sets no quota. Default 1.
    pub cpus: f64,
    /// Open files of a process. Default 1024.
    pub open_files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pids: 256,
            memory_mib: 512,
            cpus: 1.0,
            open_files: 1024,
        }
    }
}

/// What is to be known of Kubernetes on this node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// The kubelet's root folder, where the volumes of pods are. Default `/var/lib/kubelet`.
    pub kubelet_root: PathBuf,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            kubelet_root: "/var/lib/kubelet".into(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CapabilityPolicy {
    allow: Vec<String>,
}

/// What the node allows.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    pub(crate) network: Network,
    pub(crate) hooks: Hooks,
    pub(crate) run_as_non_root: bool,
    pub(crate) allow_old_runsc: bool,
    runsc: RunscPolicy,
    pub(crate) rootfs: Rootfs,
    pub(crate) scratch: Scratch,
    pub(crate) limits: Limits,
    pub(crate) kubernetes: Kubernetes,
    capabilities: CapabilityPolicy,
}

impl Policy {
    /// The strictest policy: that of an empty file.
    #[must_use]
    pub fn strict() -> Self {
        Self::default()
    }

    /// Reads a policy from text; `origin` names it in errors.
    ///
    /// # Errors
    /// For text that is no TOML, an unknown key, or a value out of range; the message has the line and the key.
    pub fn parse(text: &str, origin: &str) -> Result<Self, PolicyError> {
        let policy: Self = toml::from_str(text).map_err(|e| PolicyError {
            origin: origin.to_owned(),
            problem: e.to_string().trim_end().replace('\n', " "),
        })?;
        policy.check().map_err(|problem| PolicyError {
            origin: origin.to_owned(),
            problem,
        })?;
        Ok(policy)
    }

    /// Reads the policy file at `path`. It must be there.
    ///
    /// # Errors
    /// As [`Policy::parse`]; and when the file or a folder above it is not root's alone to write.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let failed = |problem: String| PolicyError {
            origin: path.display().to_string(),
            problem,
        };
        if !path.is_absolute() {
            return Err(failed("must be an absolute path".to_owned()));
        }
        let mut file = File::open(path).map_err(|e| failed(e.to_string()))?;
        let metadata = file.metadata().map_err(|e| failed(e.to_string()))?;
        if !metadata.is_file() {
            return Err(failed("is not a regular file".to_owned()));
        }
        let real = fs::canonicalize(path).map_err(|e| failed(e.to_string()))?;
        trusted(&real).map_err(failed)?;
        let mut text = String::new();
        (&mut file)
            .take(SIZE_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|e| failed(e.to_string()))?;
        if text.len() as u64 > SIZE_MAX {
            return Err(failed(format!("is larger than {SIZE_MAX} bytes")));
        }
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads `/etc/bulkhead/config.toml`; absent, the policy is [`Policy::strict`].
    ///
    /// # Errors
    /// As [`Policy::load`], for a file that is there.
    pub fn load_default() -> Result<Self, PolicyError> {
        let path = Path::new(DEFAULT_PATH);
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::strict()),
            _ => Self::load(path),
        }
    }

    /// How runsc is run.
    #[must_use]
    pub fn runsc(&self) -> &RunscPolicy {
        &self.runsc
    }

    /// The capabilities a container may have at most, as the names a spec uses.
    pub(crate) fn capabilities(&self) -> &[String] {
        &self.capabilities.allow
    }

    fn check(&self) -> Result<(), String> {
        let ranges = [
            ("limits.pids", self.limits.pids, 1, 32_768),
            (
                "limits.memory_mib",
                self.limits.memory_mib,
                64,
                16 * 1024 * 1024,
            ),
            ("limits.open_files", self.limits.open_files, 16, 1_048_576),
            ("rootfs.size_mib", self.rootfs.size_mib, 1, 16 * 1024 * 1024),
            ("scratch.tmp_mib", self.scratch.tmp_mib, 1, 16 * 1024 * 1024),
            ("scratch.run_mib", self.scratch.run_mib, 1, 16 * 1024 * 1024),
            ("scratch.shm_mib", self.scratch.shm_mib, 1, 16 * 1024 * 1024),
            ("runsc.create_timeout", self.runsc.create_timeout, 1, 600),
            ("runsc.start_timeout", self.runsc.start_timeout, 1, 600),
        ];
        for (key, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(format!(
                    "{key} = {value}: must be between {least} and {most}"
                ));
            }
        }
        if !(self.limits.cpus >= 0.01 && self.limits.cpus <= 4096.0) {
            return Err(format!(
                "limits.cpus = {}: must be between 0.01 and 4096",
                self.limits.cpus
            ));
        }
        if !self.runsc.root.is_absolute() || self.runsc.root.components().count() < 3 {
            let root = self.runsc.root.display();
            return Err(format!(
                "runsc.root = {root}: must be an absolute path at least two folders deep"
            ));
        }
        if !self.kubernetes.kubelet_root.is_absolute() {
            let root = self.kubernetes.kubelet_root.display();
            return Err(format!(
                "kubernetes.kubelet_root = {root}: must be an absolute path"
            ));
        }
        if let Some(name) = self
            .capabilities
            .allow
            .iter()
            .find(|name| crate::process::capability(name).is_none())
        {
            return Err(format!(
                "capabilities.allow: {name:?} is not a capability of Linux"
            ));
        }
        Ok(())
    }
}

/// A file that anybody but root can write, or replace by way of a folder above it, is not the administrator's word.
fn trusted(path: &Path) -> Result<(), String> {
    const STICKY: u32 = 0o1000;
    for part in path.ancestors() {
        let metadata =
            fs::symlink_metadata(part).map_err(|e| format!("{}: {e}", part.display()))?;
        let (mode, uid) = (metadata.mode(), metadata.uid());
        if uid != 0 {
            return Err(format!(
                "{} belongs to uid {uid}: it must belong to root",
                part.display()
            ));
        }
        // In a sticky folder (/tmp) nobody can replace root's files.
        if mode & 0o022 != 0 && !(metadata.is_dir() && mode & STICKY != 0) {
            let mode = mode & 0o7777;
            return Err(format!(
                "{} has mode {mode:04o}: only root may write it",
                part.display()
            ));
        }
    }
    Ok(())
}

impl From<PolicyError> for Refusal {
    fn from(error: PolicyError) -> Self {
        Self::unenforceable("policy", "policy", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_strictest_policy() {
        assert_eq!(Policy::parse("", "x"), Ok(Policy::strict()));
        assert_eq!(Policy::strict().network, Network::None);
        assert!(Policy::strict().capabilities().is_empty() && !Policy::strict().rootfs.writable);
    }

    #[test]
    fn an_unknown_key_names_file_line_and_key() {
        let error = Policy::parse("network = \"none\"\n\n[limits]\npidz = 3\n", "/etc/x.toml")
            .expect_err("refused");
        let text = error.to_string();
        assert!(
            text.contains("/etc/x.toml") && text.contains("line 4") && text.contains("pidz"),
            "{text}"
        );
    }

    #[test]
    fn values_out_of_range_name_the_key_and_the_rule() {
        for (text, key) in [
            ("[limits]\npids = 0", "limits.pids"),
            ("[limits]\ncpus = -1.0", "limits.cpus"),
            ("[limits]\ncpus = nan", "limits.cpus"),
            ("[runsc]\nroot = \"/run\"", "runsc.root"),
            (
                "[kubernetes]\nkubelet_root = \"kubelet\"",
                "kubernetes.kubelet_root",
            ),
            ("[runsc]\ncreate_timeout = 0", "runsc.create_timeout"),
            (
                "[capabilities]\nallow = [\"CAP_EVERYTHING\"]",
                "CAP_EVERYTHING",
            ),
        ] {
            let error = Policy::parse(text, "x").expect_err(text).to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_can_write_is_not_trusted() {
        let path =
            std::env::temp_dir().join(format!("bulkhead-policy-{}.toml", std::process::id()));
        fs::write(&path, "").expect("write");
        let mode = |mode| {
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("chmod")
        };
        mode(0o644);
        let trusted = Policy::load(&path);
        mode(0o666);
        let open = Policy::load(&path);
        fs::remove_file(&path).expect("remove");
        // The tests may run as any user: a file of another owner than root is refused as well.
        if fs::metadata("/proc/self").expect("self").uid() == 0 {
            assert_eq!(trusted, Ok(Policy::strict()));
            assert!(
                open.expect_err("refused")
                    .to_string()
                    .contains("only root may write")
            );
        } else {
            assert!(
                trusted
                    .expect_err("refused")
                    .to_string()
                    .contains("must belong to root")
            );
        }
        assert!(
            Policy::load(Path::new("/nonexistent/p.toml")).is_err(),
            "a named file must be there"
        );
    }
}
