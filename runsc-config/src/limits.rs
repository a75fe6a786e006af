//! Limits: what a sandbox's cgroup gets, from what its containers declare, what holds for its pod, and the policy.

use serde_json::{Map, Value, json};

use crate::json::is_empty;
use crate::policy::Policy;
use crate::report::{Refusal, Report};

const MIB: u64 = 1024 * 1024;
/// Microseconds; the kernel's own default period.
const PERIOD: u64 = 100_000;
/// A sandbox cannot start with less, in bytes.
const MEMORY_MIN: u64 = 32 * MIB;
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
        serde_json::from_value::<oci_spec::runtime::LinuxResources>(resources.clone())
            .map_err(|e| Refusal::invalid("resources", e))?;
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
        for key in asked
            .keys()
            .filter(|key| !matches!(key.as_str(), "memory" | "cpu" | "pids" | "devices"))
        {
            if !asked.get(key).is_none_or(is_empty) {
                report.note("resources", format!("resources.{key}"), "dropped", "");
            }
        }
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
mod tests {
    use super::*;

    const GIB: u64 = 1024 * MIB;

    fn cpu(quota: u64) -> CpuTime {
        CpuTime {
            quota,
            period: PERIOD,
        }
    }

    #[test]
    fn a_container_that_declares_nothing_has_the_policys_limits() {
        let limits = SandboxLimits::of_container(Declared::default(), &Policy::strict());
        assert_eq!((limits.memory, limits.cpu), (512 * MIB, cpu(PERIOD)));
        let declared = Declared {
            memory: Some(GIB),
            cpu: Some(cpu(50_000)),
            shares: None,
        };
        let limits = SandboxLimits::of_container(declared, &Policy::strict());
        assert_eq!((limits.memory, limits.cpu), (GIB, cpu(50_000)));
    }

    #[test]
    fn tasks_fit_below_what_the_cgroups_above_allow_or_are_refused() {
        let fit = |above| fit_tasks(256, above, &mut Report::default());
        assert_eq!(fit(None), Ok(256));
        assert_eq!(fit(Some(4096)), Ok(256));
        assert_eq!(fit(Some(1280)), Ok(256));
        assert_eq!(fit(Some(600)), Ok(86));
        assert_eq!(fit(Some(320)), Ok(16));
        let refusal = fit(Some(319)).expect_err("too few").to_string();
        assert!(
            refusal.contains("319") && refusal.contains("320"),
            "{refusal}"
        );
        let mut report = Report::default();
        fit_tasks(256, Some(600), &mut report).expect("fits");
        assert_eq!(report.changes.len(), 1, "{report:?}");
    }

    #[test]
    fn a_pods_own_cgroup_decides_where_it_has_limits() {
        let pod = Declared {
            memory: Some(GIB),
            cpu: Some(cpu(50_000)),
            shares: None,
        };
        let containers = Declared {
            memory: Some(2 * GIB),
            cpu: Some(cpu(300_000)),
            shares: Some(512),
        };
        let limits = SandboxLimits::of_pod(pod, containers, &Policy::strict());
        assert_eq!(
            limits,
            SandboxLimits {
                memory: GIB,
                cpu: cpu(50_000),
                shares: Some(512)
            }
        );
    }

    #[test]
    fn without_them_the_sum_counts_but_never_less_than_the_default() {
        let of = |memory, quota| {
            let containers = Declared {
                memory,
                cpu: Some(cpu(quota)),
                shares: None,
            };
            SandboxLimits::of_pod(Declared::default(), containers, &Policy::strict())
        };
        assert_eq!(
            (of(Some(64 * MIB), 10_000).memory, of(None, 10_000).memory),
            (512 * MIB, 512 * MIB)
        );
        assert_eq!(of(Some(GIB), 10_000).memory, GIB);
        assert_eq!(
            (of(None, 10_000).cpu, of(None, 250_000).cpu),
            (cpu(100_000), cpu(250_000))
        );
    }

    #[test]
    fn declarations_add_up() {
        let one = Declared {
            memory: Some(MIB),
            cpu: Some(CpuTime {
                quota: 5_000,
                period: 10_000,
            }),
            shares: Some(2),
        };
        let two = Declared {
            memory: None,
            cpu: Some(cpu(25_000)),
            shares: Some(3),
        };
        let sum = Declared::sum([one, two].into_iter());
        assert_eq!(
            sum,
            Declared {
                memory: Some(MIB),
                cpu: Some(cpu(75_000)),
                shares: Some(5)
            }
        );
    }

    #[test]
    fn annotations_of_a_pod_are_read_and_zeroes_are_no_limit() {
        let spec =
            json!({ "annotations": { POD_MEMORY: "1048576", POD_QUOTA: "0", POD_SHARES: "x" } });
        let declared = Declared::of_pod_annotations(spec.as_object().expect("object"));
        assert_eq!(
            declared,
            Declared {
                memory: Some(MIB),
                cpu: None,
                shares: None
            }
        );
    }

    fn updated(resources: Value) -> Result<Declared, Refusal> {
        let before = Declared {
            memory: Some(GIB),
            cpu: Some(cpu(20_000)),
            shares: None,
        };
        before.updated(&resources, 256, &mut Report::default())
    }

    #[test]
    fn an_update_changes_what_it_names_and_no_more() {
        let after = updated(json!({ "memory": { "limit": 64 * MIB } })).expect("ok");
        assert_eq!(
            after,
            Declared {
                memory: Some(64 * MIB),
                cpu: Some(cpu(20_000)),
                shares: None
            }
        );
        let after =
            updated(json!({ "memory": { "limit": -1 }, "cpu": { "shares": 7 } })).expect("ok");
        assert_eq!(
            after,
            Declared {
                memory: None,
                cpu: Some(cpu(20_000)),
                shares: Some(7)
            }
        );
        assert!(updated(json!({ "pids": { "limit": 256 } })).is_ok());
    }

    #[test]
    fn an_update_that_cannot_be_is_refused_by_field() {
        for (resources, field) in [
            (json!(null), "resources"),
            (json!([]), "resources"),
            (json!({ "memory": 7 }), "resources"),
            (json!({ "cpu": { "period": 10 } }), "resources.cpu.period"),
            (json!({ "cpu": { "quota": 10 } }), "resources.cpu.quota"),
            (json!({ "pids": { "limit": 20 } }), "resources.pids.limit"),
        ] {
            let refusal = updated(resources).expect_err(field).to_string();
            assert!(refusal.starts_with(field), "{refusal}");
        }
    }

    #[test]
    fn there_is_no_swap_where_it_can_be_limited() {
        let limits = SandboxLimits::of_container(Declared::default(), &Policy::strict());
        let memory = |can| to_spec(&json!(null), &limits, 256, can)["memory"].clone();
        let bytes = 512 * MIB;
        assert_eq!(memory(true), json!({ "limit": bytes, "swap": bytes }));
        assert_eq!(memory(false), json!({ "limit": bytes }));
    }

    #[test]
    fn less_than_a_sandbox_needs_is_refused() {
        let limits = SandboxLimits::of_container(
            Declared {
                memory: Some(MIB),
                ..Declared::default()
            },
            &Policy::strict(),
        );
        assert!(limits.check().is_err());
    }
}
