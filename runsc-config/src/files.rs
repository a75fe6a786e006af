//! How a sandbox works with files of the host: how many names it remembers, how many files it may hold open for that, and
//! whether it believes what it remembers.
//!
//! runsc's sentry remembers names in one cache for all mounts of a sandbox. Each remembered name is a file that the gofer of its
//! container holds open, and a second one once its content was read. So the cache is bounded by three things: the policy, the memory that
//! it may cost, and the descriptors that a gofer can have.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::policy::Policy;
use crate::report::Report;
use crate::spec::{ContainerKind, HostFacts};

/// Bytes of the memory limit for each name that may be remembered. One costs some 4 KiB (the sentry's half of it, the rest is the kernel's and
/// the gofer's), so the cache takes an eighth at most.
const MEMORY_PER_DENTRY: u64 = 32 * 1024;
/// Descriptors that a remembered name can cost: its file, and that opened to be read.
const PER_DENTRY: u64 = 2;
/// Descriptors beside those: what programs have open, and folders above what is remembered.
const SPARE: u64 = 32 * 1024;
/// Of descriptors that are too few for both, the part for names that are remembered, as a fraction of this: two fifths hold the
/// names, two their content, and one is for programs.
const SHARE: (u64, u64) = (2, 5);

/// Of what a sentry may have, the part of each gofer of a pod is one of so many. A file takes two of a gofer's and one of the sentry's, so twice
/// as many gofers can be full.
const PARTS: u64 = 4;

/// What is decided for a container and its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Files {
    /// Names that are remembered.
    pub(crate) dentries: u64,
    /// Files of the host that the sentry, and the gofer that is started with it, may have open.
    pub(crate) descriptors: u64,
    /// The same of each gofer that is started later.
    pub(crate) gofer_descriptors: u64,
    /// Whether binds are taken to be written by nobody else.
    pub(crate) exclusive_binds: bool,
}

impl Files {
    /// What a container gets, in a sandbox with so many bytes of memory, on a host whose processes may have so many descriptors.
    ///
    /// A gofer without descriptors says so, and the program hears it. A sentry without any ends, and the sandbox with it. Of a plain
    /// container the gofer has two for each that the sentry has, so one limit for both holds the gofer first. The sentry of a pod has those of
    /// all its containers: it gets all that there is, and each of their gofers a part. With directfs the sentry has all of them itself.
    pub(crate) fn new(
        policy: &Policy,
        memory: u64,
        open_files: u64,
        kind: ContainerKind<'_>,
    ) -> Self {
        let is_alone = kind == ContainerKind::Plain && !policy.runsc().directfs;
        let of_gofer = if is_alone {
            open_files
        } else {
            open_files / PARTS
        };
        let by_memory = memory / MEMORY_PER_DENTRY;
        let (part, whole) = SHARE;
        let by_descriptors = (of_gofer / whole).saturating_mul(part);
        let asked = policy.runsc().dentry_cache;
        let dentries = asked.min(by_memory).min(by_descriptors);
        let wanted = dentries.saturating_mul(PER_DENTRY).saturating_add(SPARE);
        let has_sentry = !matches!(kind, ContainerKind::PodContainer(_));
        let is_full = policy.runsc().directfs || (has_sentry && !is_alone);
        let gofer_descriptors = wanted.min(of_gofer);
        Self {
            dentries,
            descriptors: if is_full {
                open_files
            } else {
                gofer_descriptors
            },
            gofer_descriptors,
            exclusive_binds: policy.binds.exclusive,
        }
    }

    /// Takes exclusive binds back where the spec itself shows that they are not: the same files by two ways, which the sentry would
    /// remember apart, or mounts of the host that are to appear.
    pub(crate) fn doubt(
        &mut self,
        spec: &Map<String, Value>,
        host: &HostFacts,
        report: &mut Report,
    ) {
        if !self.exclusive_binds {
            return;
        }
        if let Some(reason) = doubt(spec, host) {
            self.exclusive_binds = false;
            let given = format!("shared with the host: {reason}");
            report.note("binds", "exclusive", given, "");
        }
    }
}

/// Why binds of this spec are not exclusive.
fn doubt(spec: &Map<String, Value>, host: &HostFacts) -> Option<String> {
    let mounts = spec.get("mounts").and_then(Value::as_array);
    let binds = mounts
        .into_iter()
        .flatten()
        .filter(|mount| mount.get("type").and_then(Value::as_str) == Some("bind"));
    let root = spec.get("root").and_then(|root| root.get("path"));
    let mut seen: Vec<PathBuf> = Vec::new();
    seen.extend(root.and_then(Value::as_str).map(PathBuf::from));
    for bind in binds {
        let options = bind.get("options").and_then(Value::as_array);
        let mut options = options.into_iter().flatten();
        let Some(source) = bind.get("source").and_then(Value::as_str) else {
            return Some("a bind has no source".to_owned());
        };
        if options.any(|option| option == "rslave") {
            return Some(format!("mounts of the host appear below {source}"));
        }
        let source = PathBuf::from(source);
        let is_one = |other: &Path| {
            source.starts_with(other)
                || other.starts_with(&source)
                || (host.is_same)(&source, other)
        };
        if let Some(other) = seen.iter().find(|other| is_one(other)) {
            let (source, other) = (source.display(), other.display());
            return Some(format!("{source} and {other} have files in common"));
        }
        seen.push(source);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Shared;
    use serde_json::json;

    const MIB: u64 = 1024 * 1024;

    fn files(policy: &str, memory_mib: u64, open_files: u64) -> (u64, u64) {
        let policy = Policy::parse(policy, "x").expect("a policy");
        let memory = memory_mib.saturating_mul(MIB);
        let files = Files::new(&policy, memory, open_files, ContainerKind::Plain);
        (files.dentries, files.descriptors)
    }

    #[test]
    fn the_usual_sandbox_remembers_a_whole_image() {
        assert_eq!(files("", 512, 1 << 20), (16_384, 65_536));
        assert_eq!(files("", 64 * 1024, 1 << 30), (16_384, 65_536));
    }

    #[test]
    fn each_of_three_things_bounds_the_cache() {
        assert_eq!(files("", 64, 1 << 20).0, 2048, "memory");
        assert_eq!(files("", 512, 20_000), (8000, 20_000), "descriptors");
        assert_eq!(files("", 512, 0), (0, 0));
        let asked = "runsc.dentry_cache = 300000";
        assert_eq!(
            files(asked, 64 * 1024, 1 << 20),
            (300_000, 632_768),
            "policy"
        );
        assert_eq!(files(asked, u64::MAX / MIB, u64::MAX).0, 300_000);
    }

    #[test]
    fn what_is_remembered_leaves_descriptors_to_programs() {
        for open_files in [64, 1024, 4096, 20_000, 65_536, 1 << 20] {
            let (dentries, descriptors) = files("", 1 << 20, open_files);
            assert!(
                dentries * PER_DENTRY + descriptors / 5 <= descriptors,
                "{open_files}"
            );
            assert!(descriptors <= open_files);
        }
    }

    /// A sentry that has none left ends.
    #[test]
    fn a_sentry_has_more_than_its_gofers_can_take() {
        let shared = Shared::default();
        let files = |directfs: bool, kind, open_files| {
            let text = format!("runsc.directfs = {directfs}");
            let policy = Policy::parse(&text, "x").expect("a policy");
            let files = Files::new(&policy, 1 << 40, open_files, kind);
            (files.dentries, files.descriptors)
        };
        for open_files in [64, 1024, 20_000, 524_288, 1 << 20] {
            let first = files(false, ContainerKind::PodSandbox, open_files);
            let more = files(false, ContainerKind::PodContainer(&shared), open_files);
            assert_eq!(first.1, open_files);
            let policy = Policy::strict();
            let sandbox = Files::new(&policy, 1 << 40, open_files, ContainerKind::PodSandbox);
            assert_eq!(sandbox.gofer_descriptors, more.1, "as its own request says");
            assert_eq!(first.0, more.0, "one cache");
            // Eight gofers that are full, at two of theirs for one of the sentry's.
            assert!(
                more.1 * 8 / 2 <= first.1 && more.0 * 2 <= more.1,
                "{more:?}"
            );
            for kind in [ContainerKind::Plain, ContainerKind::PodSandbox] {
                let (dentries, descriptors) = files(true, kind, open_files);
                assert_eq!(descriptors, open_files);
                assert!(dentries * PER_DENTRY <= open_files / 4, "{dentries}");
            }
        }
        let more = files(false, ContainerKind::PodContainer(&shared), 524_288);
        assert_eq!(more, (16_384, 65_536));
        let directfs = files(true, ContainerKind::PodContainer(&shared), 20_000);
        assert_eq!(directfs, (2000, 20_000));
    }

    fn exclusive(root: &str, mounts: Value) -> bool {
        let policy = Policy::parse("binds.exclusive = true", "x").expect("a policy");
        let mut files = Files::new(&policy, MIB, 1024, ContainerKind::Plain);
        assert!(files.exclusive_binds);
        let spec = json!({ "root": { "path": root }, "mounts": mounts });
        let host = HostFacts {
            is_same: |one, other| {
                let is_alias = |path: &Path| path.starts_with("/alias") || path.starts_with("/a");
                is_alias(one) && is_alias(other)
            },
            ..HostFacts::default()
        };
        let mut report = Report::default();
        files.doubt(spec.as_object().expect("an object"), &host, &mut report);
        assert_eq!(files.exclusive_binds, report.changes.is_empty());
        files.exclusive_binds
    }

    #[test]
    fn what_comes_by_two_ways_is_not_exclusive() {
        let bind = |source: &str| json!({ "type": "bind", "source": source, "options": ["rw", "rprivate"] });
        let tmpfs = json!({ "type": "tmpfs", "source": "/b", "options": [] });
        assert!(exclusive(
            "/r",
            json!([bind("/b"), tmpfs, bind("/c"), bind("/bb")])
        ));
        assert!(exclusive("/r", json!([])));
        for twice in [
            ["/b", "/b"],
            ["/b", "/b/c"],
            ["/b/c", "/b"],
            ["/a", "/alias"],
            ["/r/x", "/b"],
            ["/b", "/"],
        ] {
            let mounts: Vec<Value> = twice.iter().map(|source| bind(source)).collect();
            assert!(!exclusive("/r", mounts.into()), "{twice:?}");
        }
        let follows = json!([{ "type": "bind", "source": "/b", "options": ["rslave"] }]);
        assert!(!exclusive("/r", follows));
        assert!(!exclusive("/r", json!([{ "type": "bind" }])));
    }
}
