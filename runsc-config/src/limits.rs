//! Limits: what a sandbox's cgroup gets, from what its containers declare, what holds for its pod, and the policy.

use serde_json::{Map, Value, json};

use crate::json::is_empty;
use crate::policy::Policy;
use crate::report::{Refusal, Report};
use crate::types;

const MIB: u64 = 1024 * 1024;
/// Microseconds; the kernel's own default period.
const PERIOD: u64 = 100_000;
/// A sandbox cannot start with less, in bytes.
const MEMORY_MIN: u64 = 32 * MIB;
/// What of `linux.resources` has a limit here; all else is dropped.
pub(crate) const JUDGED: [&str; 3] = ["memory", "cpu", "pids"];
/// Annotations with the sums of a pod's declared limits; containerd writes them (`internal/cri/annotations`).
const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const POD_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";

/// CPU time: microseconds in each period of so many microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTime {
    /// Microseconds of CPU time.
    pub quota: u64,
    /// Microseconds of real time.
    pub period: u64,
}

impl CpuTime {
    /// As many CPUs; the kernel takes no quota below 1000.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the policy bounds cpus to 0.01..4096 and a period to a second"
    )]
    fn of_cpus(cpus: f64, period: u64) -> Self {
        let quota = ((cpus * period as f64) as u64).max(1_000);
        Self { quota, period }
    }

    /// The same share of time, counted in the usual period.
    fn per_usual_period(self) -> u64 {
        let quota = u128::from(self.quota) * u128::from(PERIOD) / u128::from(self.period.max(1));
        u64::try_from(quota).unwrap_or(u64::MAX)
    }
}

/// What one container, or a cgroup above it, declares. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Declared {
    /// Bytes.
    pub memory: Option<u64>,
    /// CPU time.
    pub cpu: Option<CpuTime>,
    /// Weight against others, as cgroup v1 counts it (1024 is one share).
    pub shares: Option<u64>,
}

/// The limits of a sandbox's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxLimits {
    /// Bytes.
    pub memory: u64,
    /// CPU time.
    pub cpu: CpuTime,
    /// Weight against others, where one is asked for.
    pub shares: Option<u64>,
}

impl SandboxLimits {
    /// The limits of a container that has a sandbox of its own.
    #[must_use]
    pub fn of_container(declared: Declared, policy: &Policy) -> Self {
        Self {
            memory: declared.memory.unwrap_or_else(|| default_memory(policy)),
            cpu: declared.cpu.unwrap_or_else(|| default_cpu(policy)),
            shares: declared.shares,
        }
    }

    /// The limits of a pod's sandbox: the pod cgroup's own where it has them, for that is what the kubelet enforces; else
    /// what the containers declare together, but at least the default, as some may declare nothing.
    #[must_use]
    pub fn of_pod(pod_cgroup: Declared, containers: Declared, policy: &Policy) -> Self {
        let declared = containers.memory.unwrap_or_default();
        let memory = pod_cgroup
            .memory
            .unwrap_or_else(|| declared.max(default_memory(policy)));
        let default = default_cpu(policy);
        let cpu = pod_cgroup.cpu.unwrap_or_else(|| {
            let declared = containers
                .cpu
                .filter(|cpu| cpu.per_usual_period() > default.per_usual_period());
            declared.unwrap_or(default)
        });
        Self {
            memory,
            cpu,
            shares: containers.shares,
        }
    }

    /// Says what a sandbox is given and why: of a container what it did not ask for, of a pod (`above` is its cgroup's) all of it,
    /// since nobody asks for a sandbox.
    pub(crate) fn explain(
        &self,
        container: Declared,
        pod: Declared,
        above: Option<Declared>,
        report: &mut Report,
    ) {
        let bytes = |memory: u64| format!("{memory} bytes");
        let time = |cpu: CpuTime| format!("{} of {} us", cpu.quota, cpu.period);
        let memory = [
            above.and_then(|above| above.memory).map(bytes),
            pod.memory.map(bytes),
        ];
        let cpu = [
            above.and_then(|above| above.cpu).map(time),
            pod.cpu.map(time),
        ];
        let all = [
            (
                "memory",
                container.memory.is_some(),
                memory,
                bytes(self.memory),
                "limits.memory_mib",
            ),
            (
                "cpu",
                container.cpu.is_some(),
                cpu,
                time(self.cpu),
                "limits.cpus",
            ),
        ];
        for (control, is_asked, sources, given, key) in all {
            match sources {
                [Some(above), _] => {
                    report.note(control, format!("the pod's cgroup has {above}"), given, "");
                }
                [None, Some(pod)] if above.is_some() => {
                    let asked = format!("the pod's containers declare {pod}");
                    report.note(control, asked, given, key);
                }
                [None, _] if above.is_some() => {
                    report.note(control, "no limit of the pod", given, key);
                }
                _ if !is_asked => report.note(control, "no limit", given, key),
                _ => {}
            }
        }
    }

    /// Tells of an update that asks for more than the pod's cgroup has: the kernel would hold it to that in any case.
    pub fn note_bound(&self, asked: Declared, report: &mut Report) {
        if let Some(memory) = asked.memory.filter(|memory| *memory > self.memory) {
            let given = format!("{} bytes, which its pod has", self.memory);
            report.note("memory", format!("{memory} bytes"), given, "");
        }
        let is_less = |cpu: &CpuTime| cpu.per_usual_period() > self.cpu.per_usual_period();
        if let Some(CpuTime { quota, period }) = asked.cpu.filter(is_less) {
            let given = format!(
                "{} of {} us, which its pod has",
                self.cpu.quota, self.cpu.period
            );
            report.note("cpu", format!("{quota} of {period} us"), given, "");
        }
    }

    /// Checks that a sandbox can run with them.
    ///
    /// # Errors
    /// `FailedPrecondition` for too little memory.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.memory < MEMORY_MIN {
            return Err(Refusal::unenforceable(
                "memory",
                format!("linux.resources.memory.limit: {}", self.memory),
                "a sandbox cannot run with less than 32 MiB",
            ));
        }
        Ok(())
    }
}

impl Declared {
    /// Everything that several containers declare, taken together.
    #[must_use]
    pub fn sum(containers: impl Iterator<Item = Self>) -> Self {
        let add = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
        containers.fold(Self::default(), |sum, one| {
            let quota = |cpu: Option<CpuTime>| cpu.map(CpuTime::per_usual_period);
            Self {
                memory: add(sum.memory, one.memory),
                cpu: add(quota(sum.cpu), quota(one.cpu)).map(|quota| CpuTime {
                    quota,
                    period: PERIOD,
                }),
                shares: add(sum.shares, one.shares),
            }
        })
    }

    /// The larger of both, limit by limit; the weight is the floor's where it has one.
    #[must_use]
    pub fn at_least(self, floor: Self) -> Self {
        let is_more =
            |cpu: &CpuTime, than: CpuTime| cpu.per_usual_period() > than.per_usual_period();
        Self {
            memory: self.memory.max(floor.memory),
            cpu: match (self.cpu, floor.cpu) {
                (Some(own), Some(floor)) => Some(if is_more(&own, floor) { own } else { floor }),
                (own, floor) => own.or(floor),
            },
            shares: floor.shares.or(self.shares),
        }
    }

    /// What containerd says of a pod before its containers are there.
    pub(crate) fn of_pod_annotations(spec: &Map<String, Value>) -> Self {
        let number = |key: &str| {
            let text = spec.get("annotations")?.get(key)?.as_str()?;
            text.parse::<u64>().ok().filter(|number| *number > 0)
        };
        Self {
            memory: number(POD_MEMORY),
            cpu: number(POD_QUOTA).map(|quota| CpuTime {
                quota: quota.max(1_000),
                period: number(POD_PERIOD)
                    .filter(|p| is_period(*p))
                    .unwrap_or(PERIOD),
            }),
            shares: number(POD_SHARES),
        }
    }

    /// Reads `linux.resources`. A value that is no limit (zero, or -1 for none) counts as none.
    pub(crate) fn of_resources(resources: &Value) -> Self {
        let positive = |path: &str| {
            let value = resources.pointer(path).and_then(Value::as_i64)?;
            u64::try_from(value).ok().filter(|value| *value > 0)
        };
        let period = positive("/cpu/period")
            .filter(|period| is_period(*period))
            .unwrap_or(PERIOD);
        Self {
            memory: positive("/memory/limit"),
            cpu: positive("/cpu/quota").map(|quota| CpuTime {
                quota: quota.max(1_000),
                period,
            }),
            shares: positive("/cpu/shares"),
        }
    }

    /// What becomes of a running container's limits by an `Update` that asks for `resources`.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no `LinuxResources`, `FailedPrecondition` for what a running sandbox cannot give.
    pub fn updated(
        self,
        resources: &Value,
        tasks_limit: u64,
        report: &mut Report,
    ) -> Result<Self, Refusal> {
        let asked = resources
            .as_object()
            .ok_or_else(|| Refusal::invalid("resources", "must be an object"))?;
        types::of_resources(resources)?;
        let number = |path: &str| {
            resources
                .pointer(path)
                .and_then(Value::as_i64)
                .filter(|n| *n != 0)
        };
        if let Some(period) = number("/cpu/period")
            && !u64::try_from(period).is_ok_and(is_period)
        {
            return Err(Refusal::invalid(
                "resources.cpu.period",
                format!("{period} is not between 1000 and 1000000"),
            ));
        }
        if let Some(quota) = number("/cpu/quota").filter(|quota| (1..1_000).contains(quota)) {
            return Err(Refusal::invalid(
                "resources.cpu.quota",
                format!("{quota} is below 1000"),
            ));
        }
        if let Some(pids) = number("/pids/limit").and_then(|pids| u64::try_from(pids).ok()) {
            // The kernel's count is the sentry's; the guest's is an rlimit that is set once.
            if pids < tasks_limit {
                return Err(Refusal::unenforceable(
                    "pids",
                    format!("resources.pids.limit: {pids}"),
                    format!("a running sandbox keeps its limit of {tasks_limit} tasks"),
                ));
            }
            if pids > tasks_limit {
                report.note("pids", pids, tasks_limit, "limits.pids");
            }
        }
        note_dropped(asked, "resources", report);
        let new = Self::of_resources(resources);
        let kept = |path: &str| number(path).is_none();
        Ok(Self {
            memory: if kept("/memory/limit") {
                self.memory
            } else {
                new.memory
            },
            cpu: if kept("/cpu/quota") {
                self.cpu
            } else {
                new.cpu
            },
            shares: if kept("/cpu/shares") {
                self.shares
            } else {
                new.shares
            },
        })
    }
}

/// Tells of each part of `resources` that is dropped. `field` is its place in the request. Devices are judged by themselves.
pub(crate) fn note_dropped(resources: &Map<String, Value>, field: &str, report: &mut Report) {
    for (key, value) in resources {
        if !JUDGED.contains(&key.as_str()) && key != "devices" && !is_empty(value) {
            report.note("resources", format!("{field}.{key}"), "dropped", "");
        }
    }
}

fn is_period(period: u64) -> bool {
    (1_000..=1_000_000).contains(&period)
}

fn default_memory(policy: &Policy) -> u64 {
    policy.limits.memory_mib.saturating_mul(MIB)
}

fn default_cpu(policy: &Policy) -> CpuTime {
    CpuTime::of_cpus(policy.limits.cpus, PERIOD)
}

/// Tasks of one uid: what is asked for, below the policy's limit.
pub(crate) fn tasks(resources: &Value, most: u64, report: &mut Report) -> u64 {
    let asked = resources.pointer("/pids/limit").and_then(Value::as_i64);
    match asked
        .and_then(|asked| u64::try_from(asked).ok())
        .filter(|asked| *asked > 0)
    {
        Some(asked) => {
            if asked > most {
                report.note("pids", asked, most, "limits.pids");
            }
            asked.min(most)
        }
        None => most,
    }
}

/// Threads of the host that a sandbox has with none of the guest's, generously: 19 were counted.
const HOST_TASKS_AT_REST: u64 = 256;
/// Threads of the host for one task of the guest, generously: about two, and more while many do file I/O.
const HOST_TASKS_EACH: u64 = 4;
/// Users of the guest that may reach their limit at the same time: the guest's limit is one of each user.
const USERS: u64 = 4;
/// With fewer tasks no program of use runs.
const TASKS_MIN: u64 = 16;

/// The ceiling for the host's threads of a sandbox. At it the sentry panics, so it is out of reach of what the guest's own limit
/// allows; it is there for what goes wrong.
pub(crate) fn host_tasks(tasks: u64) -> u64 {
    tasks
        .saturating_mul(HOST_TASKS_EACH * USERS)
        .saturating_add(HOST_TASKS_AT_REST)
}

/// Lowers the guest's limit so that it is reached before the one that the cgroups above set for the host's threads (the
/// kubelet's `podPidsLimit`).
///
/// # Errors
/// `FailedPrecondition` where that leaves too few.
pub(crate) fn fit_tasks(
    tasks: u64,
    above: Option<u64>,
    report: &mut Report,
) -> Result<u64, Refusal> {
    let Some(above) = above else {
        return Ok(tasks);
    };
    let most = above.saturating_sub(HOST_TASKS_AT_REST) / HOST_TASKS_EACH;
    if most < TASKS_MIN {
        let least = HOST_TASKS_AT_REST + HOST_TASKS_EACH * TASKS_MIN;
        return Err(Refusal::unenforceable(
            "pids",
            format!("pids.max of the cgroup above: {above}"),
            format!(
                "a sandbox needs {least} tasks of the host, and ends when it does not get them"
            ),
        ));
    }
    if most < tasks {
        let given = format!("{most}: the cgroup above allows {above} tasks of the host");
        report.note("pids", tasks, given, "");
    }
    Ok(tasks.min(most))
}

/// `linux.resources` of a sandbox whose guest may have so many tasks. What holds the guest to them is RLIMIT_NPROC.
pub(crate) fn to_spec(
    asked: &Value,
    limits: &SandboxLimits,
    tasks: u64,
    swap_limits: bool,
) -> Value {
    // On cgroup v1 `swap` is memory and swap together: equal means no swap.
    let memory = if swap_limits {
        json!({ "limit": limits.memory, "swap": limits.memory })
    } else {
        json!({ "limit": limits.memory })
    };
    let mut cpu = Map::from_iter([
        ("period".to_owned(), json!(limits.cpu.period)),
        ("quota".to_owned(), json!(limits.cpu.quota)),
    ]);
    if let Some(shares) = limits.shares {
        cpu.insert("shares".to_owned(), json!(shares));
    }
    for key in ["cpus", "mems"] {
        let value = asked.pointer(&format!("/cpu/{key}"));
        if let Some(value) = value.filter(|value| !is_empty(value)) {
            cpu.insert(key.to_owned(), value.clone());
        }
    }
    json!({ "memory": memory, "cpu": cpu, "pids": { "limit": host_tasks(tasks) } })
}

#[cfg(test)]
mod tests;
