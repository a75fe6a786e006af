//! The node's policy: a TOML file. Every key loosens or tunes something. Without the file the strictest policy holds.

mod file;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::Deserialize;

use crate::report::Refusal;

pub use file::{trusted, trusted_folder, trusted_runsc};

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

/// Where what a pod writes to the volumes that its image declares is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageVolumes {
    /// In memory, with a size, inside of the sandbox.
    #[default]
    Scratch,
    /// In the folder that containerd makes for each on the host's disk, which has no size.
    Host,
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
    /// Names of files that a sandbox remembers, over all its mounts, as far as its memory and the descriptors of the host's processes
    /// reach. Default 16384.
    pub dentry_cache: u64,
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
            dentry_cache: 16_384,
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
    /// What a container's init may write to its outputs, in MiB a second; what is more waits. 0: no bound. Default 10.
    pub output_mib_per_second: u64,
    /// What all execs of a pod together may write to their outputs, in MiB a second; what is more waits. 0: no bound. Default 50.
    pub exec_output_mib_per_second: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pids: 256,
            memory_mib: 512,
            cpus: 1.0,
            open_files: 1024,
            output_mib_per_second: 10,
            exec_output_mib_per_second: 50,
        }
    }
}

/// How much the shim's log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What went wrong.
    Error,
    /// And what may go wrong.
    Warn,
    /// And what the policy changed.
    Info,
    /// And what the shim does.
    Debug,
}

/// The shim's log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Default: `info`, or `debug` where containerd asks its shims for that.
    pub level: Option<LogLevel>,
    /// Folder for a file of each sandbox. Default: none, the log is a part of containerd's.
    pub folder: Option<PathBuf>,
}

/// What is to be known of Kubernetes on this node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// The kubelet's root folder, where the volumes of pods are. Default `/var/lib/kubelet`.
    pub kubelet_root: PathBuf,
    /// Pods with `shareProcessNamespace` run: their containers see each other's processes. Default false: refused.
    pub share_processes: bool,
    /// What pods of a namespace are given beyond the rest of the policy, each where it asks for it.
    pub namespaces: BTreeMap<String, Granted>,
}

/// What a pod may ask for by its `dev.bulkhead.*` annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Granted {
    /// `dev.bulkhead.network = "sandbox"`.
    pub network: Network,
    /// `dev.bulkhead.rootfs = "writable"`.
    pub rootfs_writable: bool,
    /// `dev.bulkhead.scratch = "exec"`.
    pub scratch_exec: bool,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            kubelet_root: "/var/lib/kubelet".into(),
            share_processes: false,
            namespaces: BTreeMap::new(),
        }
    }
}

/// Folders of the host that a pod may bind, with what is below them, beside its own volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Binds {
    /// To read.
    pub read_only: Vec<PathBuf>,
    /// As the pod asks.
    pub writable: Vec<PathBuf>,
    /// What the host mounts later below a bind appears in it where the request asks for that. Default false.
    pub propagation: bool,
    /// What a client of containerd's socket binds is taken to be written by nobody else while the container runs, unless the request
    /// says otherwise. Never a pod's binds. Default false.
    pub exclusive: bool,
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
    pub(crate) image_volumes: ImageVolumes,
    pub(crate) run_as_non_root: bool,
    pub(crate) allow_old_runsc: bool,
    pub(crate) allow_set_uid: bool,
    pub(crate) allow_unconfined: bool,
    runsc: RunscPolicy,
    log: Log,
    pub(crate) rootfs: Rootfs,
    pub(crate) scratch: Scratch,
    pub(crate) limits: Limits,
    pub(crate) kubernetes: Kubernetes,
    pub(crate) binds: Binds,
    capabilities: CapabilityPolicy,
    #[serde(skip)]
    origin: Origin,
}

/// Where a policy was read: no part of what it says, so two that say the same are equal.
#[derive(Debug, Clone)]
struct Origin(String);

impl Default for Origin {
    fn default() -> Self {
        Self("no file: the strictest".to_owned())
    }
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
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
        let mut policy: Self = toml::from_str(text).map_err(|e| PolicyError {
            origin: origin.to_owned(),
            problem: format!(
                "{}{}",
                e.to_string().trim_end().replace('\n', " "),
                hint_of_runc(text)
            ),
        })?;
        policy
            .check()
            .map_err(|Broken { key, problem }| PolicyError {
                origin: origin.to_owned(),
                problem: match line_of(text, key) {
                    Some(line) => format!("line {line}: {key}{problem}"),
                    None => format!("{key}{problem}"),
                },
            })?;
        policy.origin = Origin(origin.to_owned());
        Ok(policy)
    }

    /// Where it was read: a path, or a word for it.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin.0
    }

    /// How runsc is run.
    #[must_use]
    pub fn runsc(&self) -> &RunscPolicy {
        &self.runsc
    }

    /// The shim's log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// What a container's init may write to its outputs, in bytes a second; none for no bound.
    #[must_use]
    pub fn output_rate(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.limits.output_mib_per_second * 1024 * 1024)
    }

    /// What all execs of a pod may write to their outputs together, in bytes a second; none for no bound.
    pub(crate) fn exec_output_rate(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.limits.exec_output_mib_per_second * 1024 * 1024)
    }

    /// The capabilities a container may have at most, as the names a spec uses.
    pub(crate) fn capabilities(&self) -> &[String] {
        &self.capabilities.allow
    }

    fn check(&self) -> Result<(), Broken> {
        let ranges = [
            ("limits.pids", self.limits.pids, 1, 32_768),
            (
                "limits.memory_mib",
                self.limits.memory_mib,
                64,
                16 * 1024 * 1024,
            ),
            ("limits.open_files", self.limits.open_files, 16, 1_048_576),
            (
                "limits.output_mib_per_second",
                self.limits.output_mib_per_second,
                0,
                1024 * 1024,
            ),
            (
                "limits.exec_output_mib_per_second",
                self.limits.exec_output_mib_per_second,
                0,
                1024 * 1024,
            ),
            ("rootfs.size_mib", self.rootfs.size_mib, 1, 16 * 1024 * 1024),
            ("scratch.tmp_mib", self.scratch.tmp_mib, 1, 16 * 1024 * 1024),
            ("scratch.run_mib", self.scratch.run_mib, 1, 16 * 1024 * 1024),
            ("scratch.shm_mib", self.scratch.shm_mib, 1, 16 * 1024 * 1024),
            ("runsc.dentry_cache", self.runsc.dentry_cache, 64, 1_048_576),
            ("runsc.create_timeout", self.runsc.create_timeout, 1, 600),
            ("runsc.start_timeout", self.runsc.start_timeout, 1, 600),
        ];
        for (key, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                let problem = format!(" = {value}: must be between {least} and {most}");
                return Err(Broken { key, problem });
            }
        }
        if !(self.limits.cpus >= 0.01 && self.limits.cpus <= 4096.0) {
            return Err(Broken {
                key: "limits.cpus",
                problem: format!(" = {}: must be between 0.01 and 4096", self.limits.cpus),
            });
        }
        let folders = [
            ("runsc.root", Some(&self.runsc.root), 3),
            (
                "kubernetes.kubelet_root",
                Some(&self.kubernetes.kubelet_root),
                2,
            ),
            ("log.folder", self.log.folder.as_ref(), 3),
        ];
        let read_only = self.binds.read_only.iter();
        let binds = read_only.map(|path| ("binds.read_only", Some(path), 2));
        let writable = self.binds.writable.iter();
        let binds = binds.chain(writable.map(|path| ("binds.writable", Some(path), 2)));
        for (key, folder, depth) in folders.into_iter().chain(binds) {
            let Some(folder) = folder else { continue };
            if !folder.is_absolute() || folder.components().count() < depth {
                let (folder, least) = (folder.display(), depth - 1);
                let problem =
                    format!(" = \"{folder}\": must be an absolute path at least {least} deep");
                return Err(Broken { key, problem });
            }
        }
        if self.run_as_non_root && self.allow_set_uid {
            let problem = " = true: must not be together with run_as_non_root = true, as a set-uid file makes root of any user";
            return Err(Broken {
                key: "allow_set_uid",
                problem: problem.to_owned(),
            });
        }
        if self.allow_unconfined && self.runsc.directfs {
            let problem = " = true: must not be together with runsc.directfs = true, as the sentry alone then keeps a program \
                           with mount(2) from writing what is mounted below a read-only bind";
            return Err(Broken {
                key: "allow_unconfined",
                problem: problem.to_owned(),
            });
        }
        let mut allowed = self.capabilities.allow.iter();
        match allowed.find(|name| crate::process::capability(name).is_none()) {
            Some(name) => Err(Broken {
                key: "capabilities.allow",
                problem: format!(": {name:?} is not a capability of Linux"),
            }),
            None => Ok(()),
        }
    }
}

/// A value that parses and cannot be used.
struct Broken {
    /// With its table, as `table.key`.
    key: &'static str,
    /// What follows the key in the message.
    problem: String,
}

/// The line on which `key` stands, from 1.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let key = match key.split_once('.') {
        Some((name, key)) => {
            let (_, inner) = table.iter().find(|(k, _)| k.get_ref() == name)?;
            table = inner.get_ref().as_table()?;
            key
        }
        None => key,
    };
    let (key, _) = table.iter().find(|(k, _)| k.get_ref() == key)?;
    let before = text.get(..key.span().start)?;
    Some(before.matches('\n').count() + 1)
}

/// Options of a handler that are runc's (`api/types/runc/options/oci.proto` in containerd). containerd hands the options of a handler
/// on as a policy where they name no file.
const RUNC: [&str; 11] = [
    "BinaryName",
    "CriuImagePath",
    "CriuPath",
    "CriuWorkPath",
    "IoGid",
    "IoUid",
    "NoNewKeyring",
    "NoPivotRoot",
    "Root",
    "ShimCgroup",
    "SystemdCgroup",
];

/// Those keys of a handler's options that are runc's and mean nothing to Bulkhead.
#[must_use]
pub fn options_of_runc(options: &toml::Table) -> Vec<&str> {
    let keys = options.keys().map(String::as_str);
    keys.filter(|key| RUNC.contains(key)).collect()
}

/// What to do about a handler that was copied from runc's; empty for any other text.
fn hint_of_runc(text: &str) -> String {
    let table: toml::Table = text.parse().unwrap_or_default();
    match options_of_runc(&table).as_slice() {
        [] => String::new(),
        keys => format!(
            ": {} in a handler's options is runc's: take it out of containerd's configuration. A sandbox is in systemd's cgroups \
             if the kubelet's cgroup driver is",
            keys.join(", ")
        ),
    }
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
    fn a_handlers_options_that_are_runcs_say_what_to_do() {
        let error = Policy::parse("SystemdCgroup = true\n", "config_body").expect_err("refused");
        let text = error.to_string();
        assert!(
            text.contains("line 1") && text.contains("SystemdCgroup in a handler's options"),
            "{text}"
        );
        let error = Policy::parse("Network = 1\n", "config_body").expect_err("refused");
        assert!(!error.to_string().contains("handler"), "{error}");
    }

    #[test]
    fn values_out_of_range_name_the_key_and_the_rule() {
        let text = "# a comment\n\nlog.folder = \"x\"\n";
        let error = Policy::parse(text, "/etc/x.toml").expect_err(text);
        let said = "policy /etc/x.toml: line 3: log.folder = \"x\": must be an absolute path at least 2 deep";
        assert_eq!(error.to_string(), said);
        for (text, key) in [
            ("[limits]\npids = 0", "limits.pids"),
            (
                "run_as_non_root = true\nallow_set_uid = true",
                "allow_set_uid",
            ),
            (
                "runsc.directfs = true\nallow_unconfined = true",
                "allow_unconfined",
            ),
            ("[limits]\ncpus = -1.0", "limits.cpus"),
            (
                "[limits]\nexec_output_mib_per_second = 1048577",
                "limits.exec_output_mib_per_second",
            ),
            ("[limits]\ncpus = nan", "limits.cpus"),
            ("[runsc]\nroot = \"/run\"", "runsc.root"),
            (
                "[kubernetes]\nkubelet_root = \"kubelet\"",
                "kubernetes.kubelet_root",
            ),
            ("[binds]\nwritable = [\"/\"]", "binds.writable"),
            ("[log]\nfolder = \"/log\"", "log.folder"),
            ("[log]\nlevel = \"loud\"", "loud"),
            ("[runsc]\ncreate_timeout = 0", "runsc.create_timeout"),
            (
                "[capabilities]\nallow = [\"CAP_EVERYTHING\"]",
                "CAP_EVERYTHING",
            ),
        ] {
            let error = Policy::parse(text, "x").expect_err(text).to_string();
            assert!(error.contains(key) && error.contains("line 2"), "{error}");
        }
    }
}
