//! Resource limits of processes (setrlimit(2)), which gVisor holds inside of a sandbox.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::policy::Policy;
use crate::report::{Refusal, Report};

/// No limit, as in the specification and in Linux (RLIM_INFINITY).
const NONE: u64 = u64::MAX;

/// What gVisor gives where nothing is said, by kind: soft and hard (`runsc/boot/limits.go`). A request may have less. Those that the
/// policy decides are not here.
const DEFAULTS: [(&str, u64, u64); 13] = [
    ("RLIMIT_AS", NONE, NONE),
    ("RLIMIT_CPU", NONE, NONE),
    ("RLIMIT_DATA", NONE, NONE),
    ("RLIMIT_FSIZE", NONE, NONE),
    ("RLIMIT_LOCKS", NONE, NONE),
    ("RLIMIT_MEMLOCK", 65_536, 65_536),
    ("RLIMIT_MSGQUEUE", 819_200, 819_200),
    ("RLIMIT_NICE", 0, 0),
    ("RLIMIT_RSS", NONE, NONE),
    ("RLIMIT_RTPRIO", 0, 0),
    ("RLIMIT_RTTIME", NONE, NONE),
    ("RLIMIT_SIGPENDING", 0, 0),
    ("RLIMIT_STACK", 8_388_608, NONE),
];
const FILES: &str = "RLIMIT_NOFILE";
const TASKS: &str = "RLIMIT_NPROC";
const CORE: &str = "RLIMIT_CORE";

/// One limit, in the unit of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    soft: u64,
    hard: u64,
}

impl Limit {
    /// The most of it that `most` allows. A process may raise its soft limit up to the hard one, so that is what binds.
    fn within(self, most: Self) -> Self {
        let hard = self.hard.min(most.hard);
        let soft = self.soft.min(hard);
        Self { soft, hard }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: u64| match n {
            NONE => "unlimited".to_owned(),
            n => n.to_string(),
        };
        if self.soft == self.hard {
            f.write_str(&number(self.hard))
        } else {
            write!(f, "{} (soft {})", number(self.hard), number(self.soft))
        }
    }
}

/// The limits that every process of a container starts with, by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rlimits(BTreeMap<String, Limit>);

impl Rlimits {
    /// What holds where nothing is asked for: the policy's, and gVisor's own.
    fn usual(tasks: u64, policy: &Policy) -> Self {
        let own = [(FILES, policy.limits.open_files), (TASKS, tasks), (CORE, 0)];
        let own = own.map(|(kind, most)| (kind, most, most));
        let all = own.into_iter().chain(DEFAULTS);
        Self(
            all.map(|(kind, soft, hard)| (kind.to_owned(), Limit { soft, hard }))
                .collect(),
        )
    }

    /// Tells of each limit that is not what was asked for. `asked` are a process's own, in the order of its request.
    ///
    /// # Errors
    /// `InvalidArgument` for a soft limit above its hard one. `field` is the place of the process in the request.
    pub(crate) fn compare(
        &self,
        process: &Map<String, Value>,
        field: &str,
        policy: &Policy,
        report: &mut Report,
    ) -> Result<(), Refusal> {
        for (kind, asked) in read(process, field)? {
            let Some(given) = self.0.get(&kind).filter(|given| **given != asked) else {
                continue;
            };
            let key = match kind.as_str() {
                FILES if given.hard == policy.limits.open_files => "limits.open_files",
                // A request, or a cgroup above, may have lowered it further.
                TASKS if given.hard == policy.limits.pids => "limits.pids",
                _ => "",
            };
            report.note("rlimits", format!("{kind} {asked}"), given, key);
        }
        Ok(())
    }
}

/// Sets the limits of a container's processes. One that is alone in its sandbox has what it asks for, within the policy and what gVisor
/// gives by itself; runsc has one set of limits for all of a sandbox, so every container of a pod gets the same one.
///
/// # Errors
/// As [`Rlimits::compare`].
pub(crate) fn harden(
    process: &mut Map<String, Value>,
    tasks: u64,
    is_alone: bool,
    policy: &Policy,
    report: &mut Report,
) -> Result<Rlimits, Refusal> {
    let usual = Rlimits::usual(tasks, policy);
    let mut given = usual.clone();
    if is_alone {
        for (kind, asked) in read(process, "process")? {
            if let Some(limit) = given.0.get_mut(&kind) {
                *limit = asked.within(*limit);
            }
        }
    }
    given.compare(process, "process", policy, report)?;
    let written = given.0.iter().filter(|(kind, limit)| {
        // What gVisor gives by itself needs no word.
        let is_own = DEFAULTS.iter().any(|(default, ..)| default == kind);
        !is_own || usual.0.get(*kind) != Some(*limit)
    });
    let written: Vec<Value> = written
        .map(|(kind, limit)| json!({ "type": kind, "hard": limit.hard, "soft": limit.soft }))
        .collect();
    process.insert("rlimits".to_owned(), Value::Array(written));
    Ok(given)
}

/// What a process asks for: of several limits of a kind the last, as it would be set last.
fn read(process: &Map<String, Value>, field: &str) -> Result<BTreeMap<String, Limit>, Refusal> {
    let list = process.get("rlimits").and_then(Value::as_array);
    let mut asked = BTreeMap::new();
    for limit in list.into_iter().flatten() {
        let kind = limit.get("type").and_then(Value::as_str);
        let kind = kind.unwrap_or_default().to_owned();
        let [soft, hard] = ["soft", "hard"].map(|which| {
            let value = limit.get(which).and_then(Value::as_u64);
            value.unwrap_or_default()
        });
        if soft > hard {
            let problem = format!("{kind}: the soft limit {soft} is above the hard one, {hard}");
            return Err(Refusal::invalid(format!("{field}.rlimits"), problem));
        }
        asked.insert(kind, Limit { soft, hard });
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(kind: &str, soft: u64, hard: u64) -> Value {
        json!({ "type": kind, "soft": soft, "hard": hard })
    }

    fn given(asked: Value, tasks: u64, is_alone: bool) -> (Value, Rlimits, Report) {
        let (mut process, mut report) = (json!({ "rlimits": asked }), Report::default());
        let map = process.as_object_mut().expect("object");
        let limits = harden(map, tasks, is_alone, &Policy::strict(), &mut report).expect("given");
        (process["rlimits"].clone(), limits, report)
    }

    fn told(report: &Report) -> Vec<String> {
        report.changes.iter().map(ToString::to_string).collect()
    }

    const USUAL: [(&str, u64); 3] = [(CORE, 0), (FILES, 1024), (TASKS, 256)];

    #[test]
    fn a_container_that_asks_for_nothing_has_the_policys() {
        let usual = USUAL.map(|(kind, most)| limit(kind, most, most));
        for is_alone in [true, false] {
            let (written, _, report) = given(Value::Null, 256, is_alone);
            assert_eq!(written, json!(usual));
            assert_eq!(told(&report), [""; 0]);
        }
    }

    #[test]
    fn a_container_that_is_alone_has_the_less_that_it_asks_for() {
        let asked = json!([
            limit(FILES, 32, 64),
            limit(TASKS, 20, 99),
            limit("RLIMIT_STACK", 1 << 24, NONE),
            limit("RLIMIT_FSIZE", 4096, 8192),
            limit("RLIMIT_MEMLOCK", 0, 65_536),
            limit(CORE, 0, 0),
            limit("RLIMIT_AS", NONE, NONE),
        ]);
        let (written, _, report) = given(asked, 256, true);
        let expected = json!([
            limit(CORE, 0, 0),
            limit("RLIMIT_FSIZE", 4096, 8192),
            limit("RLIMIT_MEMLOCK", 0, 65_536),
            limit(FILES, 32, 64),
            limit(TASKS, 20, 99),
            limit("RLIMIT_STACK", 1 << 24, NONE),
        ]);
        assert_eq!(written, expected);
        assert_eq!(told(&report), [""; 0]);
    }

    #[test]
    fn what_is_more_than_the_policys_is_cut_and_told() {
        let asked = json!([
            limit(FILES, 512, 4096),
            limit(TASKS, NONE, NONE),
            limit(CORE, 0, NONE),
            limit("RLIMIT_MEMLOCK", NONE, NONE),
            limit("RLIMIT_RTPRIO", 9, 9),
        ]);
        let (written, _, report) = given(asked, 200, true);
        let expected = json!([
            limit(CORE, 0, 0),
            limit(FILES, 512, 1024),
            limit(TASKS, 200, 200)
        ]);
        assert_eq!(written, expected);
        let expected = [
            "rlimits: asked RLIMIT_CORE unlimited (soft 0), given 0",
            "rlimits: asked RLIMIT_MEMLOCK unlimited, given 65536",
            "rlimits: asked RLIMIT_NOFILE 4096 (soft 512), given 1024 (soft 512) (policy key limits.open_files)",
            // Lowered by a cgroup above, and by no key.
            "rlimits: asked RLIMIT_NPROC unlimited, given 200",
            "rlimits: asked RLIMIT_RTPRIO 9, given 0",
        ];
        assert_eq!(told(&report), expected);
    }

    #[test]
    fn a_container_of_a_pod_has_the_sandboxs_and_every_difference_is_told() {
        let asked = json!([
            limit(FILES, 512, 1024),
            limit(TASKS, 9, 9),
            limit("RLIMIT_STACK", 1, 2),
            limit("RLIMIT_DATA", NONE, NONE),
        ]);
        let (written, _, report) = given(asked, 256, false);
        assert_eq!(
            written,
            json!(USUAL.map(|(kind, most)| limit(kind, most, most)))
        );
        let expected = [
            "rlimits: asked RLIMIT_NOFILE 1024 (soft 512), given 1024 (policy key limits.open_files)",
            "rlimits: asked RLIMIT_NPROC 9, given 256 (policy key limits.pids)",
            "rlimits: asked RLIMIT_STACK 2 (soft 1), given unlimited (soft 8388608)",
        ];
        assert_eq!(told(&report), expected);
    }

    #[test]
    fn of_several_of_a_kind_the_last_counts_and_a_soft_limit_is_no_higher_than_the_hard_one() {
        let (written, _, _) = given(json!([limit(FILES, 9, 9), limit(FILES, 8, 8)]), 256, true);
        assert_eq!(written[1], limit(FILES, 8, 8));
        for is_alone in [true, false] {
            let mut process = json!({ "rlimits": [limit(FILES, 9, 8)] });
            let map = process.as_object_mut().expect("object");
            let refusal = harden(
                map,
                256,
                is_alone,
                &Policy::strict(),
                &mut Report::default(),
            );
            let refusal = refusal.expect_err("refused").to_string();
            assert!(
                refusal.starts_with("process.rlimits: RLIMIT_NOFILE"),
                "{refusal}"
            );
        }
    }
}
