//! The unit of a sandbox, where systemd manages the host's cgroups.
//!
//! systemd writes the values of a unit into its cgroup again when it is reloaded or starts a unit beside it, so that a limit that is
//! changed in the cgroup alone is undone. `systemctl` says it to systemd, by the socket that root has for it: the shim needs no D-Bus.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use runsc_config::{CpuTime, SandboxLimits};

use crate::error::{Error, Kind, Result};
use crate::runsc::command::{PATH, collect, finished, look_up};
use crate::runsc::log::one_line;
use crate::sandbox::limits::{self, Held};
use crate::sys::reaper::Reaper;
use node::cgroup::{Cgroups, Mode};

/// How long systemd may take; it answers in milliseconds, and not at all while it is being executed anew.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
pub(crate) const LIMIT_BACK: Duration = Duration::from_secs(2);
/// How long a killed command may take to be reaped.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// How much of its complaint is kept, in bytes.
const STDERR_MAX: usize = 4096;
/// The flag by which runsc leaves a cgroup to systemd.
const FLAG: &str = "--systemd-cgroup=true";

/// A transient unit that runsc has asked systemd for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit(String);

impl Unit {
    /// The unit of a sandbox's cgroups; none where they are not systemd's.
    pub(crate) fn of_sandbox(cgroups: &Cgroups, flags: &[String]) -> Option<Self> {
        let is_systemds = cgroups.mode == Mode::V2 && flags.iter().any(|flag| flag == FLAG);
        let folder = cgroups.folder("").filter(|_| is_systemds)?;
        let name = folder.file_name()?.to_str()?;
        Some(Self(name.to_owned()))
    }

    /// Tells systemd the limits that its cgroup has been given, until the unit ends. It has [`LIMIT`] for them, or [`LIMIT_BACK`] for
    /// those that are put back after a failure: they arrive after what it may still have to read.
    ///
    /// # Errors
    /// `FailedPrecondition` with the words of `systemctl`, `DeadlineExceeded` when systemd does not answer. What has become of the
    /// unit then is not known.
    pub(crate) async fn set(
        &self,
        reaper: &Reaper,
        cgroups: &Cgroups,
        wanted: &Held,
        limit: Duration,
    ) -> Result<()> {
        let program = look_up(Path::new("systemctl")).filter(|program| program.is_file());
        let program = program.ok_or_else(|| {
            Error::precondition(format!("{}: systemctl is not in PATH", self.failed()))
        })?;
        runsc_config::trusted(&program)
            .map_err(|problem| Error::precondition(format!("{}: {problem}", self.failed())))?;
        let properties = properties(wanted, limits::limits_swap(cgroups));
        self.tell(reaper, program, &properties, limit).await
    }

    fn failed(&self) -> String {
        format!("systemd is not told the limits of {}", self.0)
    }

    async fn tell(
        &self,
        reaper: &Reaper,
        program: PathBuf,
        properties: &[String],
        limit: Duration,
    ) -> Result<()> {
        let failed = |e: std::io::Error| Error::io(self.failed(), &e);
        let (said, stderr) = std::io::pipe().map_err(failed)?;
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .args(["--no-ask-password", "--runtime", "set-property", "--"])
            .arg(&self.0)
            .args(properties)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let mut child = reaper.spawn(&mut command).map_err(failed)?;
        // Its copy of the pipe's end would keep the complaint from ending.
        drop(command);
        let said = collect(said.into(), STDERR_MAX).map_err(failed)?;
        match child.wait_for(limit).await {
            Some(exit) if exit.success() => Ok(()),
            Some(exit) => {
                let complaint = one_line(&String::from_utf8_lossy(&finished(said).await));
                Err(Error::precondition(format!(
                    "{}: systemctl failed ({exit}): {complaint}",
                    self.failed()
                )))
            }
            None => {
                child.signal(Signal::SIGKILL);
                child.wait_for(KILL_GRACE).await;
                let message = format!("{}: no answer within {limit:?}", self.failed());
                Err(Error::new(Kind::DeadlineExceeded, message))
            }
        }
    }
}

/// CPU time in whole hundredths of a CPU, as runsc rounds it for a unit's create (`runsc/cgroup/systemd.go`), and up: a quota that is
/// asked for is given. What systemd keeps of a unit for its next look has no digits behind those (`src/core/cgroup.c`, where
/// `CPUQuota=` is written), so that of 33.34 % a reload would make 33, and nothing of half a percent.
pub(crate) fn in_hundredths(limits: &SandboxLimits) -> SandboxLimits {
    let period = limits.cpu.period;
    let quota = hundredths(limits.cpu).saturating_mul(period) / 100;
    let cpu = CpuTime { quota, period };
    SandboxLimits { cpu, ..*limits }
}

fn hundredths(cpu: CpuTime) -> u64 {
    cpu.quota.saturating_mul(100).div_ceil(cpu.period.max(1))
}

/// systemd.resource-control(5).
fn properties(limits: &Held, has_swap_limit: bool) -> Vec<String> {
    let memory = match limits.memory {
        u64::MAX => "infinity".to_owned(),
        bytes => bytes.to_string(),
    };
    let share = match limits.cpu.quota {
        // An empty one is none.
        u64::MAX => String::new(),
        _ => format!("{}%", hundredths(limits.cpu)),
    };
    let mut all = vec![
        format!("MemoryMax={memory}"),
        format!("CPUQuota={share}"),
        format!("CPUQuotaPeriodSec={}us", limits.cpu.period),
    ];
    if has_swap_limit {
        all.push("MemorySwapMax=0".to_owned());
    }
    if let Some(weight) = limits.weight {
        all.push(format!("CPUWeight={weight}"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::reaper::CHILDREN;
    use std::os::unix::fs::PermissionsExt as _;

    const LIMITS: Held = Held {
        memory: 400 << 20,
        cpu: CpuTime {
            quota: 34_000,
            period: 100_000,
        },
        weight: Some(39),
    };

    #[test]
    fn limits_are_properties_and_none_is_less_than_was_asked() {
        let told = properties(&LIMITS, true);
        let expected = [
            "MemoryMax=419430400",
            "CPUQuota=34%",
            "CPUQuotaPeriodSec=100000us",
            "MemorySwapMax=0",
            "CPUWeight=39",
        ];
        assert_eq!(told, expected);
        let none = Held {
            memory: u64::MAX,
            cpu: CpuTime {
                quota: u64::MAX,
                period: 100_000,
            },
            weight: None,
        };
        let expected = [
            "MemoryMax=infinity",
            "CPUQuota=",
            "CPUQuotaPeriodSec=100000us",
        ];
        assert_eq!(properties(&none, false), expected);
    }

    #[test]
    fn cpu_time_of_a_unit_has_whole_hundredths_and_is_no_less_than_was_asked() {
        for (quota, period, given) in [
            (33_333, 100_000, 34_000),
            (34_000, 100_000, 34_000),
            (112_500, 100_000, 113_000),
            (5_000, 1_000_000, 10_000),
            (1_005_000, 1_000_000, 1_010_000),
            (1_000, 1_000, 1_000),
        ] {
            let cpu = CpuTime { quota, period };
            let limits = SandboxLimits {
                memory: 1 << 20,
                cpu,
                shares: None,
            };
            let once = in_hundredths(&limits);
            assert_eq!((once.cpu.quota, once.cpu.period), (given, period));
            assert_eq!(in_hundredths(&once), once);
            assert_eq!(hundredths(once.cpu), hundredths(cpu));
        }
    }

    /// What a `systemctl` gets and how it is answered, with the script in its place.
    async fn told(script: &str) -> (Result<()>, String) {
        let folder = tempfile::tempdir().expect("tempdir");
        let program = folder.path().join("systemctl");
        let got = folder.path().join("got");
        let text = format!(
            "#!/bin/sh\necho \"$@\" >{got}; env >>{got}\n{script}\n",
            got = got.display()
        );
        std::fs::write(&program, text).expect("write");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let _alone = CHILDREN.lock().await;
        let reaper = Reaper::install(None).expect("reaper");
        let unit = Unit("cri-containerd-a.scope".to_owned());
        let limit = Duration::from_secs(2);
        let properties = properties(&LIMITS, false);
        let told = unit.tell(&reaper, program, &properties, limit).await;
        (told, std::fs::read_to_string(got).expect("it has run"))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_unit_and_its_limits_are_told_and_nothing_of_the_environment() {
        let (told, got) = told("").await;
        told.expect("told");
        let line = "--no-ask-password --runtime set-property -- cri-containerd-a.scope MemoryMax=419430400 \
                    CPUQuota=34% CPUQuotaPeriodSec=100000us CPUWeight=39\n";
        let environment = got.strip_prefix(line).expect(&got);
        let own = ["PATH=", "PWD=", "_=", "SHLVL=", "OLDPWD="];
        assert!(
            environment
                .lines()
                .all(|variable| own.iter().any(|own| variable.starts_with(own))),
            "{environment}"
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_systemd_that_fails_or_hangs_is_no_success() {
        let script = "echo 'Failed to set unit properties: Connection refused' >&2; exit 1";
        let error = told(script).await.0.expect_err("refused").to_string();
        assert!(
            error.contains("cri-containerd-a.scope") && error.contains("Connection refused"),
            "{error}"
        );
        let error = told("exec sleep 100").await.0.expect_err("late");
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
    }

    #[test]
    fn cgroups_that_are_not_systemds_have_no_unit() {
        let v2 = |folder: &str| {
            let text = format!("{{\"mode\":\"V2\",\"folders\":{{\"\":{folder:?}}}}}");
            serde_json::from_str::<Cgroups>(&text).expect("cgroups")
        };
        let flags = [FLAG.to_owned()];
        let scope = v2("/sys/fs/cgroup/a.slice/docker-b.scope");
        let unit = Unit::of_sandbox(&scope, &flags).expect("a unit");
        assert_eq!(unit.0, "docker-b.scope");
        assert_eq!(Unit::of_sandbox(&scope, &[]), None);
    }
}
