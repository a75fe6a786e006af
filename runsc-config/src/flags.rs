//! The one table of runsc's global flags.
//!
//! If a rule depends on a flag, the table pins it, even at runsc's default: a default may change. Names and
//! meanings: `runsc/config/flags.go`.

use crate::calls::RELEASE_FLAG;
use crate::features::{Features, USAGE_FLAG};
use crate::files::Files;
use crate::policy::{Network, Platform, Policy};
use crate::report::{Refusal, Report};

/// What happens where a runsc lacks the flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// The rule is lost: refused, unless the policy accepts an old runsc.
    Refuse,
    /// Without the flag there is nothing to switch off, or it only costs time.
    LeaveOut,
}

/// What decides the values.
struct Settled<'a> {
    policy: &'a Policy,
    features: &'a Features,
    files: Files,
}

struct Flag {
    name: &'static str,
    value: fn(&Settled<'_>) -> String,
    missing: Missing,
    /// Why this value.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "read by people and by the tests")
    )]
    reason: &'static str,
}

fn fixed(
    flag: &'static str,
    value: fn(&Settled<'_>) -> String,
    missing: Missing,
    reason: &'static str,
) -> Flag {
    Flag {
        name: flag,
        value,
        missing,
        reason,
    }
}

/// Every flag Bulkhead sets, but for `--root`, `--log` and `--log-format`, which name files of the shim, and
/// `--systemd-cgroup`, which follows the form of the request's cgroup path. Deprecated flags are left alone: runsc writes a warning
/// of each one that it is given to the stderr of the container.
fn table() -> [Flag; 30] {
    use Missing::{LeaveOut, Refuse};
    let off = |_: &Settled<'_>| "false".to_owned();
    let none = |_: &Settled<'_>| "none".to_owned();
    [
        fixed(
            "network",
            network,
            Refuse,
            "loopback only, unless the policy gives the sandbox a network",
        ),
        fixed(
            "oci-seccomp",
            |_| "true".into(),
            Refuse,
            "without it the profile is silently ignored",
        ),
        fixed(
            "directfs",
            |p| p.policy.runsc().directfs.to_string(),
            Refuse,
            "the sentry runs as nobody, files by the gofer",
        ),
        fixed(
            "platform",
            platform,
            Refuse,
            "systrap needs no device of the host",
        ),
        fixed(
            "host-uds",
            none,
            Refuse,
            "no socket of the host can be opened through a bind",
        ),
        fixed(
            "host-fifo",
            none,
            Refuse,
            "no FIFO of the host can be opened through a bind",
        ),
        fixed("net-raw", off, Refuse, "raw and packet sockets stay off"),
        fixed(
            "allow-suid",
            |p| p.policy.allow_set_uid.to_string(),
            LeaveOut,
            "set-uid files are ignored, unless the policy lets them work",
        ),
        fixed(
            "overlay2",
            overlay,
            Refuse,
            "nothing is written below the container, or into a capped overlay",
        ),
        fixed(
            "allow-flag-override",
            off,
            Refuse,
            "no annotation changes a flag",
        ),
        fixed(
            "character-device-policy",
            |_| "emulated-only".into(),
            LeaveOut,
            "no device of the host by a bind",
        ),
        fixed(
            "allow-packet-socket-write",
            off,
            LeaveOut,
            "packet sockets stay off",
        ),
        fixed(
            "allow-rootfs-tar-annotation",
            off,
            LeaveOut,
            "no annotation writes into the root",
        ),
        fixed("nvproxy", off, LeaveOut, "no GPU"),
        fixed("tpuproxy", off, LeaveOut, "no TPU"),
        fixed("rdmaproxy", off, LeaveOut, "no RDMA device"),
        fixed(
            "ignore-cgroups",
            off,
            LeaveOut,
            "without cgroups nothing of the host is limited",
        ),
        fixed(
            "TESTONLY-unsafe-nonroot",
            off,
            LeaveOut,
            "it leaves out most of what isolates the sandbox",
        ),
        fixed(
            "profile",
            off,
            LeaveOut,
            "a profiler loosens the sentry's own filter",
        ),
        fixed("debug", off, LeaveOut, "its log has what guests do"),
        fixed(
            "strace",
            off,
            LeaveOut,
            "its log has what guests read and write",
        ),
        fixed("log-packets", off, LeaveOut, "its log has what guests send"),
        fixed(
            "gofer-network-namespace",
            |_| "new".into(),
            LeaveOut,
            "each gofer alone, and nothing mounted for it",
        ),
        fixed(
            "control-rpc-stop-timeout",
            |_| "200ms".into(),
            LeaveOut,
            "an idle caller cannot hold up the exit",
        ),
        fixed(
            USAGE_FLAG,
            sidecars,
            LeaveOut,
            "a sandbox starts by what was judged, not by a copy within runsc",
        ),
        fixed(
            RELEASE_FLAG,
            |_| "ALWAYS".into(),
            LeaveOut,
            "a sentry of another release than runsc's does not run",
        ),
        fixed(
            "file-access",
            |_| "exclusive".into(),
            LeaveOut,
            "nobody writes an image while a container reads it",
        ),
        fixed(
            "file-access-mounts",
            |given| access(given.files.exclusive_binds).to_owned(),
            LeaveOut,
            "a bind shows what the host writes to it, unless its client says that nobody does",
        ),
        fixed(
            DENTRIES,
            |given| given.files.dentries.to_string(),
            LeaveOut,
            "names that the sentry remembers, over all mounts of the sandbox",
        ),
        fixed(
            DESCRIPTORS,
            |given| given.files.descriptors.to_string(),
            LeaveOut,
            "files that a sentry and a gofer hold open on the host, each: the names that are remembered are among them",
        ),
    ]
}

/// Where nothing is beside it, runsc's own default decides whether it does without.
fn sidecars(given: &Settled<'_>) -> String {
    if given.features.is_accompanied() {
        "STRICT"
    } else {
        "DEFAULT"
    }
    .to_owned()
}

/// Each name that is remembered is a file that a gofer holds open, so the first is not given without the second.
const DENTRIES: &str = "dcache";
const DESCRIPTORS: &str = "fdlimit";

fn access(is_exclusive: bool) -> &'static str {
    if is_exclusive { "exclusive" } else { "shared" }
}

fn network(given: &Settled<'_>) -> String {
    match given.policy.network {
        Network::None => "none",
        Network::Sandbox => "sandbox",
    }
    .to_owned()
}

fn platform(given: &Settled<'_>) -> String {
    match given.policy.runsc().platform {
        Platform::Systrap => "systrap",
        Platform::Kvm => "kvm",
        Platform::Ptrace => "ptrace",
    }
    .to_owned()
}

fn overlay(given: &Settled<'_>) -> String {
    let rootfs = &given.policy.rootfs;
    if rootfs.writable {
        format!("root:self,size={}m", rootfs.size_mib)
    } else {
        "none".to_owned()
    }
}

/// The global flags every command of one sandbox runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunscFlags {
    all: Vec<String>,
    of_start: Vec<String>,
}

impl RunscFlags {
    /// The controls that a runsc lacks, where the policy accepts that.
    ///
    /// # Errors
    /// `FailedPrecondition` with their names where it does not.
    pub fn check(policy: &Policy, features: &Features) -> Result<Vec<&'static str>, Refusal> {
        let table = table();
        let mut lost: Vec<&str> = table
            .iter()
            .filter(|flag| flag.missing == Missing::Refuse && !features.has_flag(flag.name))
            .map(|flag| flag.name)
            .collect();
        if !features.is_current() {
            lost.push("seccomp for exec");
        }
        if lost.is_empty() || policy.allow_old_runsc {
            return Ok(lost);
        }
        let lost = lost.join(", ");
        Err(Refusal::unenforceable(
            "runsc",
            format!("runsc ({}) is too old", policy.runsc().path.display()),
            format!(
                "it cannot enforce {lost}; install a newer one, or set allow_old_runsc to accept that"
            ),
        ))
    }

    /// Decides the flags for a runsc with these features.
    pub(crate) fn new(
        policy: &Policy,
        features: &Features,
        files: Files,
        systemd_cgroup: bool,
        report: &mut Report,
    ) -> Result<Self, Refusal> {
        let table = table();
        let lost = Self::check(policy, features)?;
        if !lost.is_empty() {
            report.note(
                "runsc",
                format!("every control ({})", lost.join(", ")),
                "what this runsc has",
                "allow_old_runsc",
            );
        }
        if policy.allow_set_uid && !features.has_flag("allow-suid") {
            report.note(
                "set_uid",
                "set-uid files that work",
                "as this runsc has it: it cannot be told",
                "",
            );
        }
        let settled = Settled {
            policy,
            features,
            files,
        };
        let given = table.iter().filter(|flag| {
            let is_bounded = flag.name != DENTRIES || features.has_flag(DESCRIPTORS);
            features.has_flag(flag.name) && is_bounded
        });
        let mut flags: Vec<String> = given
            .map(|flag| format!("--{}={}", flag.name, (flag.value)(&settled)))
            .collect();
        if systemd_cgroup {
            // The cgroup is systemd's to make: one made behind its back loses its controllers at the next reload.
            flags.push("--systemd-cgroup=true".to_owned());
        }
        // The gofer of a container that joins a pod is started by `start`, long after the sentry.
        let limit = format!("--{DESCRIPTORS}=");
        let of_start = flags.iter().map(|flag| match flag.starts_with(&limit) {
            true => format!("{limit}{}", files.gofer_descriptors),
            false => flag.clone(),
        });
        Ok(Self {
            of_start: of_start.collect(),
            all: flags,
        })
    }

    /// As arguments, to go before the subcommand.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        self.all.clone()
    }

    /// The same for `start`, whose gofer may have fewer files open than the sentry.
    #[must_use]
    pub fn of_start(&self) -> Vec<String> {
        self.of_start.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sidecars::Sidecars;

    const FILES: Files = Files {
        dentries: 5000,
        descriptors: 20_000,
        gofer_descriptors: 15_000,
        exclusive_binds: false,
    };

    fn features(without: &[&str]) -> Features {
        let help: String = table()
            .iter()
            .map(|flag| flag.name)
            .chain(["root"])
            .filter(|name| !without.contains(name))
            .map(|name| format!("  -{name} value\n"))
            .collect();
        Features::parse(&help, Some(r#"{"linux":{"seccomp":{"actions":[]}}}"#)).expect("features")
    }

    #[test]
    fn the_strict_policy_switches_everything_off() {
        let flags = RunscFlags::new(
            &Policy::strict(),
            &features(&[]),
            FILES,
            false,
            &mut Report::default(),
        )
        .expect("flags")
        .args();
        for flag in [
            "--network=none",
            "--oci-seccomp=true",
            "--directfs=false",
            "--host-uds=none",
            "--overlay2=none",
            "--file-access=exclusive",
            "--file-access-mounts=shared",
            "--dcache=5000",
            "--fdlimit=20000",
        ] {
            assert!(
                flags.iter().any(|given| given == flag),
                "{flag} not in {flags:?}"
            );
        }
        assert!(table().iter().all(|flag| !flag.reason.is_empty()));
    }

    /// STRICT without the programs would fail every start, and a runsc that lacks a flag fails for one that it is given.
    #[test]
    fn sidecars_are_asked_for_where_all_of_them_are_there_and_runsc_knows_them() {
        let folder = std::env::temp_dir().join(format!("bulkhead-flags-{}", std::process::id()));
        let runsc = folder.join("runsc");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(&runsc, "").expect("a file");
        let given = |without: &[&str]| {
            let sidecars = Sidecars::of(&runsc).expect("readable");
            let features = features(without).with_sidecars(sidecars.as_ref());
            let flags = RunscFlags::new(
                &Policy::strict(),
                &features,
                FILES,
                false,
                &mut Report::default(),
            );
            let mut flags = flags.expect("flags").args();
            flags.retain(|flag| flag.contains("sidecar"));
            flags
        };
        let release = "--sidecar-release-enforcement-policy=ALWAYS";
        let default = ["--sidecar-usage-policy=DEFAULT", release];
        assert_eq!(given(&[]), default, "no folder");
        std::fs::create_dir(folder.join(Sidecars::FOLDER)).expect("a folder");
        assert_eq!(given(&[]), default, "an empty one");
        let mut seen = Vec::new();
        for name in ["gvisor_sentry", "gvisor-sentry-prewarmer"] {
            let file = folder.join(Sidecars::FOLDER).join(name);
            std::fs::write(&file, "").expect("a file");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(file, mode).expect("chmod");
            seen.push(given(&[]));
        }
        let old = given(&[USAGE_FLAG, RELEASE_FLAG]);
        let early = given(&[USAGE_FLAG]);
        std::fs::remove_dir_all(folder).expect("remove the folder");
        assert_eq!(seen[0], default, "one alone");
        assert_eq!(seen[1], ["--sidecar-usage-policy=STRICT", release]);
        assert_eq!(old, [""; 0]);
        assert_eq!(early, [release]);
    }

    #[test]
    fn a_runsc_that_lacks_a_control_is_refused_by_name() {
        let old = features(&["oci-seccomp"]);
        let refusal = RunscFlags::new(
            &Policy::strict(),
            &old,
            FILES,
            false,
            &mut Report::default(),
        )
        .expect_err("refused");
        assert!(refusal.to_string().contains("oci-seccomp"), "{refusal}");
        let help = "  -root value\n  -network value\n";
        let silent = Features::parse(help, None).expect("features");
        let refusal = RunscFlags::check(&Policy::strict(), &silent).expect_err("refused");
        assert!(
            refusal.to_string().contains("seccomp for exec"),
            "{refusal}"
        );
        let accepting = Policy::parse("allow_old_runsc = true", "x").expect("policy");
        let mut report = Report::default();
        let flags = RunscFlags::new(&accepting, &old, FILES, true, &mut report).expect("accepted");
        assert_eq!(report.changes.len(), 1, "what is lost is reported");
        assert!(flags.args().contains(&"--systemd-cgroup=true".to_owned()));
    }

    #[test]
    fn a_gofer_that_is_started_later_has_its_own_limit() {
        let (policy, mut report) = (Policy::strict(), Report::default());
        let flags = RunscFlags::new(&policy, &features(&[]), FILES, false, &mut report);
        let flags = flags.expect("flags");
        let (all, of_start) = (flags.args(), flags.of_start());
        assert!(of_start.contains(&"--fdlimit=15000".to_owned()));
        let differ = all
            .iter()
            .zip(&of_start)
            .filter(|(one, other)| one != other);
        assert_eq!((all.len(), differ.count()), (of_start.len(), 1));
    }

    /// A cache without a bound of its descriptors could take all that a gofer has.
    #[test]
    fn names_are_remembered_where_their_files_are_bounded() {
        let flags = |without: &[&str]| {
            let features = features(without);
            let mut report = Report::default();
            RunscFlags::new(&Policy::strict(), &features, FILES, false, &mut report)
                .expect("flags")
                .args()
        };
        let has = |flags: &[String], name: &str| flags.iter().any(|flag| flag.starts_with(name));
        assert!(!has(&flags(&[DESCRIPTORS]), "--dcache"));
        let bounded = flags(&[DENTRIES]);
        assert!(has(&bounded, "--fdlimit") && !has(&bounded, "--dcache"));
    }
}
