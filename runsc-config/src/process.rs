//! The process of a container: user, capabilities, privileges. Init and exec go through the same code.

use serde_json::{Map, Value, json};

use crate::json::{object, retain};
use crate::policy::Policy;
use crate::report::{Refusal, Report};
use crate::text::{short, some};

/// What a process keeps as it was asked for; all else is decided here or dropped.
pub(crate) const KEPT: [&str; 7] = [
    "terminal",
    "consoleSize",
    "user",
    "args",
    "env",
    "cwd",
    "oomScoreAdj",
];
/// Sections that the rules below answer for, so that dropping them is not reported twice.
pub(crate) const DECIDED: [&str; 3] = ["capabilities", "noNewPrivileges", "rlimits"];
/// The five sets of a spec.
pub(crate) const SETS: [&str; 5] = [
    "bounding",
    "effective",
    "inheritable",
    "permitted",
    "ambient",
];
/// What is kept of a process's user and of its terminal's size: runsc takes a key in any case, so one that is not known may be
/// another value for one that is.
const USER: [&str; 5] = ["uid", "gid", "umask", "additionalGids", "username"];
const CONSOLE_SIZE: [&str; 2] = ["height", "width"];

/// Width and height of a terminal in characters, from a `consoleSize`. As runc has it, a size with no width or no height is
/// none.
pub(crate) fn console_size(size: &Value) -> Option<(u32, u32)> {
    let side = |name: &str| {
        let side = size.get(name).and_then(Value::as_u64)?;
        u32::try_from(side).ok().filter(|side| *side > 0)
    };
    Some((side("width")?, side("height")?))
}
/// The least `oomScoreAdj`: one that the kernel kills late, before what holds the node together. The kubelet gives no less than
/// -997 (`pkg/kubelet/qos` in Kubernetes), and -1000 is never killed.
const OOM_SCORE_MIN: i64 = -998;
/// Bytes that arguments and environment may have together: Linux itself takes no more than 2 MiB by default.
const TEXT_MAX: usize = 2 * 1024 * 1024;

/// Capabilities by number (`include/uapi/linux/capability.h`).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability by its name in a spec.
pub(crate) fn capability(name: &str) -> Option<u32> {
    let short = name.strip_prefix("CAP_")?;
    CAPABILITIES
        .iter()
        .position(|known| *known == short)
        .and_then(|number| u32::try_from(number).ok())
}

/// Checks what a process must have and clamps the rest to the policy. `field` is its place in the request.
pub(crate) fn harden(
    process: &mut Map<String, Value>,
    field: &str,
    policy: &Policy,
    report: &mut Report,
) -> Result<(), Refusal> {
    check(process, field)?;
    for (section, known) in [("user", &USER[..]), ("consoleSize", &CONSOLE_SIZE[..])] {
        let Some(map) = process.get_mut(section).and_then(Value::as_object_mut) else {
            continue;
        };
        for dropped in retain(map, known) {
            let asked = format!("{field}.{section}.{dropped}");
            report.note("process", asked, "dropped: there is no such key", "");
        }
    }
    clamp_oom_score(process, report);
    let asked_uid = process
        .get("user")
        .and_then(|user| user.get("uid"))
        .and_then(Value::as_u64)
        .unwrap_or(0);
    if policy.run_as_non_root && asked_uid == 0 {
        return Err(Refusal::denied(
            "user",
            format!("{field}.user.uid: 0"),
            "processes must not run as uid 0",
            Some("run_as_non_root"),
        ));
    }
    clamp_capabilities(process, policy, report);
    let asked = process.get("noNewPrivileges") == Some(&Value::Bool(true));
    let no_new_privileges = asked || !policy.allow_set_uid;
    if no_new_privileges != asked {
        // Together with run_as_non_root it would be refused.
        let key = if policy.run_as_non_root {
            ""
        } else {
            "allow_set_uid"
        };
        report.note("no_new_privs", "false", "true", key);
    }
    let kept: Vec<&str> = KEPT.iter().chain(&DECIDED).copied().collect();
    for dropped in retain(process, &kept) {
        report.note(
            "process",
            format!("{field}.{dropped}"),
            "dropped: runsc does not apply it",
            "",
        );
    }
    process.insert("noNewPrivileges".to_owned(), Value::Bool(no_new_privileges));
    Ok(())
}

/// Under want of memory a sandbox is killed before what the node needs.
fn clamp_oom_score(process: &mut Map<String, Value>, report: &mut Report) {
    let asked = process.get("oomScoreAdj").and_then(Value::as_i64);
    if let Some(asked) = asked.filter(|asked| *asked < OOM_SCORE_MIN) {
        report.note("oom_score", asked, OOM_SCORE_MIN, "");
        process.insert("oomScoreAdj".to_owned(), json!(OOM_SCORE_MIN));
    }
}

/// What no process can do without, and what makes no sense.
fn check(process: &Map<String, Value>, field: &str) -> Result<(), Refusal> {
    let args = process.get("args").and_then(Value::as_array);
    if args.is_none_or(Vec::is_empty) {
        return Err(Refusal::invalid(
            format!("{field}.args"),
            "must have at least one element",
        ));
    }
    let cwd = process
        .get("cwd")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !cwd.starts_with('/') {
        return Err(Refusal::invalid(
            format!("{field}.cwd"),
            format!("{cwd:?} must be an absolute path"),
        ));
    }
    let mut size = cwd.len();
    for list in ["args", "env"] {
        for text in process
            .get(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let text = text.as_str().unwrap_or_default();
            if text.contains('\0') {
                return Err(Refusal::invalid(
                    format!("{field}.{list}"),
                    "must not contain a NUL byte",
                ));
            }
            size += text.len() + 1;
        }
    }
    if size > TEXT_MAX {
        return Err(Refusal::invalid(
            format!("{field}.args and {field}.env"),
            format!(
                "have {size} bytes together, more than the {TEXT_MAX} a program can be started with"
            ),
        ));
    }
    Ok(())
}

/// What no process has: raw and packet sockets are off. runsc takes it from what its command starts, by `--net-raw=false`, and not
/// from a process that is asked for by the control socket.
const RAW: &str = "CAP_NET_RAW";

/// Intersects all five sets with the policy's ceiling. A set that is missing counts as empty: runsc would give root all.
fn clamp_capabilities(process: &mut Map<String, Value>, policy: &Policy, report: &mut Report) {
    let asked = process.get("capabilities").cloned().unwrap_or(Value::Null);
    let ceiling = policy.capabilities();
    let mut taken: Vec<String> = Vec::new();
    let mut given = Map::new();
    for set in SETS {
        let names = asked
            .get(set)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let (kept, lost): (Vec<&str>, Vec<&str>) =
            names.partition(|name| *name != RAW && ceiling.iter().any(|c| c == name));
        taken.extend(lost.into_iter().map(str::to_owned));
        given.insert(set.to_owned(), json!(kept));
    }
    taken.sort();
    taken.dedup();
    // A newer kernel's, of which the policy knows nothing either.
    let (known, unknown): (Vec<String>, Vec<String>) = taken
        .into_iter()
        .partition(|name| capability(name).is_some());
    let mut taken = known;
    if !unknown.is_empty() {
        let given = "none: no such capability is known";
        let unknown = unknown.iter().map(|name| short(name)).collect();
        report.note("capabilities", some(unknown, " "), given, "");
    }
    if ceiling.iter().any(|allowed| allowed == RAW) && taken.iter().any(|name| name == RAW) {
        taken.retain(|name| name != RAW);
        report.note("capabilities", RAW, "none: raw sockets are off", "");
    }
    if !taken.is_empty() {
        report.note(
            "capabilities",
            taken.join(" "),
            "none of them",
            "capabilities.allow",
        );
    }
    process.insert("capabilities".to_owned(), Value::Object(given));
}

/// Every capability that a spec's process has or can come to: the other sets give nothing by themselves.
pub(crate) fn capabilities(spec: &Map<String, Value>) -> Vec<&str> {
    let sets = spec
        .get("process")
        .and_then(|process| process.get("capabilities"));
    let names = ["bounding", "permitted"].map(|set| sets?.get(set)?.as_array());
    let names = names.into_iter().flatten().flatten();
    names.filter_map(Value::as_str).collect()
}

/// The process section of a spec.
pub(crate) fn of_spec(spec: &mut Map<String, Value>) -> Result<&mut Map<String, Value>, Refusal> {
    if spec.get("process").is_none_or(Value::is_null) {
        return Err(Refusal::invalid("process", "is missing"));
    }
    object(spec, "process")
}

#[cfg(test)]
mod tests;
