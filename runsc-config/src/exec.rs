//! Exec: a further process in a container, clamped like init.

use serde_json::Value;

use crate::policy::Policy;
use crate::process::{self, SETS, capability};
use crate::report::{Refusal, Report};

/// What an exec may have in one container.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecCeiling {
    policy: Policy,
    /// In Kubernetes an exec runs as the container's own user, whatever the request says.
    user: Option<Value>,
}

impl ExecCeiling {
    pub(crate) fn new(policy: &Policy, user: Option<Value>) -> Self {
        Self {
            policy: policy.clone(),
            user,
        }
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
    let _: oci_spec::runtime::Process =
        serde_json::from_value(with_user(&json)).map_err(|e| Refusal::invalid("process", e))?;
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
    process.remove("rlimits");
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

/// The specification wants a user; containerd's clients may leave it out for root.
fn with_user(process: &Value) -> Value {
    let mut process = process.clone();
    if let Some(map) = process.as_object_mut() {
        map.entry("user")
            .or_insert_with(|| serde_json::json!({ "uid": 0, "gid": 0 }));
    }
    process
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
        let size = self.json.get("consoleSize")?;
        let side = |name: &str| {
            let side = size.get(name).and_then(Value::as_u64)?;
            u32::try_from(side).ok().filter(|side| *side > 0)
        };
        Some((side("width")?, side("height")?))
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
    use serde_json::json;

    fn ceiling() -> ExecCeiling {
        ExecCeiling::new(&Policy::strict(), None)
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
        let ceiling =
            ExecCeiling::new(&Policy::strict(), Some(json!({ "uid": 1000, "gid": 1000 })));
        let asked = json!({ "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
        assert_eq!(harden_exec(asked, &ceiling).expect("hardened").uid(), 1000);
    }
}
