//! The one table of runsc's global flags.
//!
//! If a rule depends on a flag, the table pins it, even at runsc's default: a default may change. Names and
//! meanings: `runsc/config/flags.go`.

use crate::features::Features;
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

struct Flag {
    name: &'static str,
    value: fn(&Policy) -> String,
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
    value: fn(&Policy) -> String,
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
fn table() -> [Flag; 24] {
    use Missing::{LeaveOut, Refuse};
    let off = |_: &Policy| "false".to_owned();
    let none = |_: &Policy| "none".to_owned();
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
            |p| p.runsc().directfs.to_string(),
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
            |p| p.allow_set_uid.to_string(),
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
    ]
}

fn network(policy: &Policy) -> String {
    match policy.network {
        Network::None => "none",
        Network::Sandbox => "sandbox",
    }
    .to_owned()
}

fn platform(policy: &Policy) -> String {
    match policy.runsc().platform {
        Platform::Systrap => "systrap",
        Platform::Kvm => "kvm",
        Platform::Ptrace => "ptrace",
    }
    .to_owned()
}

fn overlay(policy: &Policy) -> String {
    if policy.rootfs.writable {
        format!("root:self,size={}m", policy.rootfs.size_mib)
    } else {
        "none".to_owned()
    }
}

/// The global flags every command of one sandbox runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunscFlags(Vec<String>);

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
        let given = table.iter().filter(|flag| features.has_flag(flag.name));
        let mut flags: Vec<String> = given
            .map(|flag| format!("--{}={}", flag.name, (flag.value)(policy)))
            .collect();
        if systemd_cgroup {
            // The cgroup is systemd's to make: one made behind its back loses its controllers at the next reload.
            flags.push("--systemd-cgroup=true".to_owned());
        }
        Ok(Self(flags))
    }

    /// As arguments, to go before the subcommand.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert!(
                flags.iter().any(|given| given == flag),
                "{flag} not in {flags:?}"
            );
        }
        assert!(table().iter().all(|flag| !flag.reason.is_empty()));
    }

    #[test]
    fn a_runsc_that_lacks_a_control_is_refused_by_name() {
        let old = features(&["oci-seccomp"]);
        let refusal = RunscFlags::new(&Policy::strict(), &old, false, &mut Report::default())
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
        let flags = RunscFlags::new(&accepting, &old, true, &mut report).expect("accepted");
        assert_eq!(report.changes.len(), 1, "what is lost is reported");
        assert!(flags.args().contains(&"--systemd-cgroup=true".to_owned()));
    }
}
