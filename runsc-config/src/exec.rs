//! Exec: a further process in a container, clamped like init.

use std::num::NonZeroU64;

use serde_json::{Map, Value};

use crate::policy::Policy;
use crate::process::{self, SETS, capability};
use crate::report::{Refusal, Report};
use crate::rlimits::Rlimits;
use crate::spec::Caller;
use crate::types;

/// The mask of new files' modes that every exec has.
const UMASK: u64 = 0o022;

/// What an exec may have in one container.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecCeiling {
    policy: Policy,
    /// In Kubernetes an exec runs as the container's own user, whatever the request says.
    user: Option<Value>,
    /// What every process of the container starts with; gVisor gives an exec no limits of its own.
    rlimits: Rlimits,
    output_rate: Option<NonZeroU64>,
}

impl ExecCeiling {
    pub(crate) fn new(
        policy: &Policy,
        caller: Caller,
        user: Option<Value>,
        rlimits: Rlimits,
    ) -> Self {
        Self {
            policy: policy.clone(),
            user,
            rlimits,
            // A client of containerd's socket reads along. Probes and hooks are the pod author's, and run for ever.
            output_rate: match caller {
                Caller::Node => None,
                Caller::Kubernetes | Caller::Foreign => policy.exec_output_rate(),
            },
        }
    }

    /// What all execs of the sandbox may write to their outputs together, in bytes a second; none for no bound.
    #[must_use]
    pub fn output_rate(&self) -> Option<NonZeroU64> {
        self.output_rate
    }
}

/// The five capability sets as masks, bit N for capability number N.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the kernel's sets say it all")]
pub struct Capabilities {
    pub permitted: u64,
    pub inheritable: u64,
    pub effective: u64,
    pub bounding: u64,
    pub ambient: u64,
}

/// A process that may be started in its container. Made by [`harden_exec`] alone.
#[derive(Debug, Clone, PartialEq)]
pub struct HardenedProcess {
    json: Value,
    args: Vec<String>,
    env: Vec<String>,
    capabilities: Capabilities,
    report: Report,
}

/// Clamps the process of an exec request (`process` of the OCI runtime specification).
///
/// # Errors
/// For a process that makes no sense, or one the policy forbids.
pub fn harden_exec(asked: Value, ceiling: &ExecCeiling) -> Result<HardenedProcess, Refusal> {
    let mut json = asked;
    // Types first: everything below reads fields that must be what the specification says.
    types::of_process(&json)?;
    let process = json
        .as_object_mut()
        .ok_or_else(|| Refusal::invalid("process", "must be an object"))?;
    let mut report = Report::default();
    if let Some(user) = &ceiling.user
        && process.get("user") != Some(user)
    {
        report.note("user", "another user", "the container's own", "");
        process.insert("user".to_owned(), user.clone());
    }
    process::harden(process, "process", &ceiling.policy, &mut report)?;
    let (limits, policy) = (&ceiling.rlimits, &ceiling.policy);
    limits.compare(process, "process", policy, &mut report)?;
    process.remove("rlimits");
    drop_umask(process, &mut report);
    let texts = |key: &str| {
        let list = process
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        list.filter_map(Value::as_str)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (args, env) = (texts("args"), texts("env"));
    let mask = |set: &str| {
        let names = process
            .get("capabilities")
            .and_then(|sets| sets.get(set))
            .and_then(Value::as_array);
        let numbers = names
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .filter_map(capability);
        numbers.fold(0, |mask, number| mask | 1_u64 << number)
    };
    let [bounding, effective, inheritable, permitted, ambient] = SETS.map(mask);
    let capabilities = Capabilities {
        permitted,
        inheritable,
        effective,
        bounding,
        ambient,
    };
    Ok(HardenedProcess {
        json,
        args,
        env,
        capabilities,
        report,
    })
}

/// gVisor starts every exec with the usual mask (`pkg/sentry/control/proc.go`).
fn drop_umask(process: &mut Map<String, Value>, report: &mut Report) {
    let user = process.get_mut("user").and_then(Value::as_object_mut);
    let asked = user.and_then(|user| user.remove("umask")?.as_u64());
    if let Some(asked) = asked.filter(|asked| *asked != UMASK) {
        report.note("umask", format!("{asked:#o}"), format!("{UMASK:#o}"), "");
    }
}

impl HardenedProcess {
    /// The program and its arguments; never empty.
    #[must_use]
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// The environment.
    #[must_use]
    pub fn env(&self) -> &[String] {
        &self.env
    }

    /// The working folder, absolute.
    #[must_use]
    pub fn cwd(&self) -> &str {
        self.json.get("cwd").and_then(Value::as_str).unwrap_or("/")
    }

    /// Width and height of its terminal in characters, where it asks for them.
    #[must_use]
    pub fn console_size(&self) -> Option<(u32, u32)> {
        process::console_size(self.json.get("consoleSize")?)
    }

    /// User id inside the sandbox.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.user_id("uid")
    }

    /// Group id inside the sandbox.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.user_id("gid")
    }

    /// Supplementary groups.
    #[must_use]
    pub fn additional_gids(&self) -> Vec<u32> {
        let list = self
            .json
            .pointer("/user/additionalGids")
            .and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .filter_map(|gid| u32::try_from(gid.as_u64()?).ok())
            .collect()
    }

    /// With a terminal or without, whatever it asked for.
    #[must_use]
    pub fn with_terminal(mut self, terminal: bool) -> Self {
        if let Some(json) = self.json.as_object_mut() {
            json.insert("terminal".to_owned(), terminal.into());
        }
        self
    }

    /// Whether its stdio is a terminal.
    #[must_use]
    pub fn terminal(&self) -> bool {
        self.json
            .get("terminal")
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }

    /// What it may do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Whether it can gain nothing by what it executes: always, but where the policy lets set-uid files work and the request
    /// does not ask for it.
    #[must_use]
    pub fn no_new_privileges(&self) -> bool {
        self.json
            .get("noNewPrivileges")
            .and_then(Value::as_bool)
            .unwrap_or(true)
    }

    /// As a `process` object, for `runsc exec --process`.
    #[must_use]
    pub fn to_json_bytes(&self) -> Vec<u8> {
        self.json.to_string().into_bytes()
    }

    /// What was changed.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// An id that passed the type check but does not fit must not become root: it becomes nobody.
    fn user_id(&self, which: &str) -> u32 {
        let id = self.json.get("user").and_then(|user| user.get(which));
        id.map_or(0, |id| {
            id.as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .unwrap_or(65_534)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::RefusalKind;
    use crate::rlimits;
    use serde_json::json;

    /// Of a container that asked for `limits` and is alone in its sandbox.
    fn ceiling_of(limits: Value, user: Option<Value>) -> ExecCeiling {
        let (policy, mut init) = (Policy::strict(), json!({ "rlimits": limits }));
        let init = init.as_object_mut().expect("object");
        let limits = rlimits::harden(init, 256, true, &policy, &mut Report::default());
        ExecCeiling::new(&policy, Caller::Node, user, limits.expect("limits"))
    }

    fn ceiling() -> ExecCeiling {
        ceiling_of(Value::Null, None)
    }

    #[test]
    fn execs_of_a_pod_have_a_rate_and_those_of_the_nodes_root_none() {
        let rate = |policy: &str, caller| {
            let policy = Policy::parse(policy, "x").expect("policy");
            let limits = ceiling().rlimits;
            let ceiling = ExecCeiling::new(&policy, caller, None, limits);
            ceiling.output_rate().map(NonZeroU64::get)
        };
        let off = "limits.exec_output_mib_per_second = 0";
        assert_eq!(rate("", Caller::Kubernetes), Some(50 << 20));
        assert_eq!(rate(off, Caller::Kubernetes), None);
        assert_eq!(rate("", Caller::Node), None);
    }

    #[test]
    fn an_exec_that_asks_for_everything_gets_nothing() {
        let asked = json!({
            "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0, "additionalGids": [1, 2] },
            "capabilities": { "effective": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"] },
            "noNewPrivileges": false, "rlimits": [{ "type": "RLIMIT_NPROC", "hard": 9, "soft": 9 }],
        });
        let process = harden_exec(asked, &ceiling()).expect("hardened");
        assert_eq!(process.capabilities(), Capabilities::default());
        assert!(process.no_new_privileges());
        assert_eq!(process.additional_gids(), [1, 2]);
        let json: Value = serde_json::from_slice(&process.to_json_bytes()).expect("json");
        assert!(json.get("rlimits").is_none());
        assert_eq!(json["capabilities"]["effective"], json!([]));
    }

    #[test]
    fn what_an_exec_does_not_get_is_not_parsed() {
        let asked = json!({
            "args": ["sh"], "cwd": "/", "capabilities": { "effective": ["CAP_LATER"] },
            "scheduler": { "policy": "SCHED_LATER" }, "ioPriority": 7,
        });
        let process = harden_exec(asked, &ceiling()).expect("hardened");
        let told: Vec<&str> = process
            .report()
            .changes
            .iter()
            .map(|c| c.asked.as_str())
            .collect();
        for asked in ["CAP_LATER", "process.scheduler", "process.ioPriority"] {
            assert!(told.contains(&asked), "{asked}: {told:?}");
        }
    }

    /// gVisor gives an exec its container's limits and the usual mask, whatever is asked for.
    #[test]
    fn limits_and_a_mask_that_an_exec_does_not_get_are_told() {
        let limit =
            |soft: u64, hard: u64| json!([{ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard }]);
        let ceiling = ceiling_of(limit(50, 100), None);
        let told = |rlimits: Value, umask: u32| {
            let user = json!({ "uid": 0, "gid": 0, "umask": umask });
            let asked = json!({
                "args": ["sh"], "cwd": "/", "user": user, "rlimits": rlimits, "noNewPrivileges": true,
            });
            let process = harden_exec(asked, &ceiling).expect("hardened");
            let written: Value = serde_json::from_slice(&process.to_json_bytes()).expect("json");
            assert_eq!(written.get("rlimits"), None);
            assert_eq!(written["user"].get("umask"), None);
            let changes = process.report().changes.iter();
            changes.map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told(limit(50, 100), 0o22), [""; 0]);
        assert_eq!(told(Value::Null, 0o22), [""; 0]);
        let expected = [
            "rlimits: asked RLIMIT_NOFILE 100 (soft 60), given 100 (soft 50)",
            "umask: asked 0o77, given 0o22",
        ];
        assert_eq!(told(limit(60, 100), 0o77), expected);
        let above = json!({ "args": ["sh"], "cwd": "/", "rlimits": limit(9, 8) });
        harden_exec(above, &ceiling).expect_err("a soft limit above the hard one");
    }

    #[test]
    fn malformed_processes_are_refused() {
        for asked in [
            json!(null),
            json!([]),
            json!({}),
            json!({ "args": "sh", "cwd": "/" }),
            json!({ "args": [], "cwd": "/" }),
            json!({ "args": ["sh"], "cwd": "" }),
            json!({ "args": ["sh"], "cwd": "/", "user": { "uid": -1, "gid": 0 } }),
        ] {
            let refusal = harden_exec(asked.clone(), &ceiling()).expect_err(&asked.to_string());
            assert_eq!(refusal.kind, RefusalKind::InvalidArgument);
        }
    }

    #[test]
    fn kubernetes_keeps_the_containers_user() {
        let ceiling = ceiling_of(Value::Null, Some(json!({ "uid": 1000, "gid": 1000 })));
        let asked = json!({ "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
        assert_eq!(harden_exec(asked, &ceiling).expect("hardened").uid(), 1000);
    }
}
