//! The Linux section: namespaces, devices, limits, sysctls, and what gVisor does not have.

use serde_json::{Map, Value, json};

use crate::json::{is_empty, retain};
use crate::policy::Policy;
use crate::report::{Refusal, Report};
use crate::spec::Caller;

const MIB: u64 = 1024 * 1024;
/// Length of a CPU period, in microseconds: the kernel's own default.
const PERIOD: u64 = 100_000;
/// What is kept of the section; the rules below have looked at each.
const KEPT: [&str; 7] = [
    "namespaces",
    "resources",
    "cgroupsPath",
    "seccomp",
    "sysctl",
    "maskedPaths",
    "readonlyPaths",
];
/// Devices every container has; gVisor emulates them (major, minor).
const STANDARD_DEVICES: [(i64, i64); 8] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
];
/// Sysctls that containerd and nerdctl set by themselves; the guest's own defaults serve as well.
const DROPPED_SYSCTLS: [&str; 2] = [
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
];
/// Sysctls that runsc applies inside the sandbox (`runsc/boot/loader.go`).
const HONOURED_SYSCTLS: [&str; 3] = [
    "net.ipv6.conf.all.disable_ipv6",
    "net.ipv6.conf.default.disable_ipv6",
    "fs.nr_open",
];

/// The limits a sandbox ends up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes.
    pub(crate) memory: u64,
    /// Tasks of one uid.
    pub(crate) pids: u64,
}

/// Clamps the section, but for its seccomp profile.
pub(crate) fn harden(
    linux: &mut Map<String, Value>,
    caller: Caller,
    policy: &Policy,
    swap_limits: bool,
    report: &mut Report,
) -> Result<Limits, Refusal> {
    namespaces(linux, caller, report)?;
    devices(linux)?;
    sysctls(linux, report)?;
    for (key, control) in [
        ("uidMappings", "user_namespace"),
        ("gidMappings", "user_namespace"),
    ] {
        if !linux.get(key).is_none_or(is_empty) {
            return Err(Refusal::denied(
                control,
                format!("linux.{key}"),
                "user namespaces are not supported",
                None,
            ));
        }
    }
    if linux
        .get("mountLabel")
        .is_some_and(|label| !is_empty(label))
    {
        report.note(
            "lsm_label",
            "linux.mountLabel",
            "none: gVisor has no SELinux",
            "",
        );
    }
    let propagation = linux
        .get("rootfsPropagation")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if propagation.contains("shared") || propagation.contains("slave") {
        report.note(
            "propagation",
            format!("rootfsPropagation {propagation}"),
            "private",
            "",
        );
    }
    cgroups_path(linux)?;
    let limits = resources(linux, policy, swap_limits, report)?;
    for dropped in retain(linux, &KEPT) {
        if !matches!(dropped.as_str(), "mountLabel" | "rootfsPropagation") {
            report.note(
                "linux",
                format!("linux.{dropped}"),
                "dropped: runsc does not apply it",
                "",
            );
        }
    }
    Ok(limits)
}

/// A namespace that is not listed is the host's own.
fn namespaces(
    linux: &mut Map<String, Value>,
    caller: Caller,
    report: &mut Report,
) -> Result<(), Refusal> {
    let mut list = match linux.get("namespaces") {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => list
            .as_array()
            .cloned()
            .ok_or_else(|| Refusal::invalid("linux.namespaces", "must be a list"))?,
    };
    let kind = |namespace: &Value| {
        namespace
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    for namespace in &list {
        let (kind, path) = (
            kind(namespace),
            namespace
                .get("path")
                .and_then(Value::as_str)
                .unwrap_or_default(),
        );
        let asked = format!("linux.namespaces: {kind} {path:?}");
        match kind.as_str() {
            "user" => {
                return Err(Refusal::denied(
                    "user_namespace",
                    asked,
                    "user namespaces are not supported",
                    None,
                ));
            }
            "time" => {
                return Err(Refusal::denied(
                    "namespaces",
                    asked,
                    "time namespaces are not supported",
                    None,
                ));
            }
            // In a pod these are the pod's own, which the sandbox is.
            "pid" | "ipc" | "uts" if !path.is_empty() && caller == Caller::Node => {
                return Err(Refusal::denied(
                    "namespaces",
                    asked,
                    "joining another container is not supported",
                    None,
                ));
            }
            "pid" | "ipc" | "uts" | "mount" | "network" | "cgroup" => {}
            _ => {
                return Err(Refusal::invalid(
                    "linux.namespaces",
                    format!("type {kind:?} is unknown"),
                ));
            }
        }
    }
    for needed in ["network", "pid", "ipc"] {
        if !list.iter().any(|namespace| kind(namespace) == needed) {
            let asked = format!("the host's {needed} namespace (linux.namespaces has no {needed})");
            return Err(Refusal::denied(
                "namespaces",
                asked,
                "a sandbox shares no namespace with the host",
                None,
            ));
        }
    }
    for private in ["uts", "mount"] {
        if !list.iter().any(|namespace| kind(namespace) == private) {
            report.note(
                "namespaces",
                format!("the host's {private} namespace"),
                "one of its own",
                "",
            );
            list.push(json!({ "type": private }));
        }
    }
    linux.insert("namespaces".to_owned(), Value::Array(list));
    Ok(())
}

fn devices(linux: &mut Map<String, Value>) -> Result<(), Refusal> {
    for device in linux
        .get("devices")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let number = |key: &str| device.get(key).and_then(Value::as_i64).unwrap_or(-1);
        let path = device
            .get("path")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !STANDARD_DEVICES.contains(&(number("major"), number("minor"))) {
            let asked = format!("linux.devices: {path}");
            return Err(Refusal::denied(
                "devices",
                asked,
                "a sandbox has no device of the host",
                None,
            ));
        }
    }
    linux.remove("devices");
    Ok(())
}

fn sysctls(linux: &mut Map<String, Value>, report: &mut Report) -> Result<(), Refusal> {
    let asked = linux
        .get("sysctl")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let mut kept = Map::new();
    for (name, value) in asked {
        if HONOURED_SYSCTLS.contains(&name.as_str()) {
            kept.insert(name, value);
        } else if DROPPED_SYSCTLS.contains(&name.as_str()) {
            report.note(
                "sysctls",
                format!("{name}={value}"),
                "gVisor's own default",
                "",
            );
        } else {
            return Err(Refusal::denied(
                "sysctls",
                format!("linux.sysctl: {name}"),
                "gVisor has no such setting",
                None,
            ));
        }
    }
    linux.remove("sysctl");
    if !kept.is_empty() {
        linux.insert("sysctl".to_owned(), Value::Object(kept));
    }
    Ok(())
}

/// Where the sandbox's cgroup goes: the client's choice, as long as it stays below the hierarchy's root.
fn cgroups_path(linux: &Map<String, Value>) -> Result<(), Refusal> {
    let path = linux
        .get("cgroupsPath")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if path.split('/').any(|part| part == "..") {
        return Err(Refusal::invalid(
            "linux.cgroupsPath",
            format!("{path:?} must not contain \"..\""),
        ));
    }
    if path.len() > 1024 || path.contains('\0') {
        return Err(Refusal::invalid("linux.cgroupsPath", "is no usable path"));
    }
    Ok(())
}

fn resources(
    linux: &mut Map<String, Value>,
    policy: &Policy,
    swap_limits: bool,
    report: &mut Report,
) -> Result<Limits, Refusal> {
    let asked = linux.get("resources").cloned().unwrap_or(Value::Null);
    let number = |path: &str| {
        asked
            .pointer(path)
            .and_then(Value::as_i64)
            .filter(|value| *value > 0)
    };
    let unsigned = |path: &str| number(path).and_then(|value| u64::try_from(value).ok());
    let memory = unsigned("/memory/limit").unwrap_or_else(|| {
        let given = policy.limits.memory_mib.saturating_mul(MIB);
        report.note(
            "memory",
            "no limit",
            format!("{given} bytes"),
            "limits.memory_mib",
        );
        given
    });
    if memory < 32 * MIB {
        return Err(Refusal::unenforceable(
            "memory",
            format!("linux.resources.memory.limit: {memory}"),
            "a sandbox cannot start with less than 32 MiB",
        ));
    }
    // On cgroup v1 `swap` is memory and swap together: equal means no swap.
    let given_memory = if swap_limits {
        json!({ "limit": memory, "swap": memory })
    } else {
        json!({ "limit": memory })
    };
    let period = unsigned("/cpu/period")
        .filter(|p| (1_000..=1_000_000).contains(p))
        .unwrap_or(PERIOD);
    let quota = unsigned("/cpu/quota").unwrap_or_else(|| {
        let given = quota(policy.limits.cpus, period);
        report.note(
            "cpu",
            "no quota",
            format!("{} CPUs", policy.limits.cpus),
            "limits.cpus",
        );
        given
    });
    let mut cpu = Map::from_iter([
        ("period".to_owned(), json!(period)),
        ("quota".to_owned(), json!(quota)),
    ]);
    for key in ["shares", "cpus", "mems"] {
        if let Some(value) = asked
            .pointer(&format!("/cpu/{key}"))
            .filter(|value| !is_empty(value))
        {
            cpu.insert(key.to_owned(), value.clone());
        }
    }
    let pids = unsigned("/pids/limit").map_or(policy.limits.pids, |asked| {
        if asked > policy.limits.pids {
            report.note("pids", asked, policy.limits.pids, "limits.pids");
        }
        asked.min(policy.limits.pids)
    });
    if let Some(asked) = asked.as_object() {
        for key in asked
            .keys()
            .filter(|key| !matches!(key.as_str(), "memory" | "cpu" | "pids" | "devices"))
        {
            if !asked.get(key).is_none_or(is_empty) {
                report.note("resources", format!("linux.resources.{key}"), "dropped", "");
            }
        }
    }
    // The host's pids controller is left alone: at its limit the sentry panics. RLIMIT_NPROC bounds the guest instead.
    linux.insert(
        "resources".to_owned(),
        json!({ "memory": given_memory, "cpu": cpu }),
    );
    Ok(Limits { memory, pids })
}

/// Microseconds of a period that this many CPUs are; the kernel takes no less than 1000.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the policy bounds cpus to 0.01..4096 and the period to a second"
)]
fn quota(cpus: f64, period: u64) -> u64 {
    ((cpus * period as f64) as u64).max(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Map<String, Value> {
        let kinds = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        Map::from_iter([("namespaces".to_owned(), json!(kinds))])
    }

    fn hardened(
        change: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<(Map<String, Value>, Limits, Report), Refusal> {
        let (mut linux, mut report) = (base(), Report::default());
        change(&mut linux);
        let limits = harden(
            &mut linux,
            Caller::Node,
            &Policy::strict(),
            true,
            &mut report,
        )?;
        Ok((linux, limits, report))
    }

    #[test]
    fn limits_are_set_where_none_are_asked_for() {
        let (linux, limits, _) = hardened(|_| {}).expect("ok");
        assert_eq!(
            limits,
            Limits {
                memory: 512 * MIB,
                pids: 256
            }
        );
        assert_eq!(
            linux["resources"]["memory"],
            json!({ "limit": 512 * MIB, "swap": 512 * MIB })
        );
        assert_eq!(
            linux["resources"]["cpu"],
            json!({ "period": PERIOD, "quota": PERIOD })
        );
    }

    #[test]
    fn limits_that_are_asked_for_are_kept_and_never_reach_the_hosts_pids_controller() {
        let (linux, limits, _) = hardened(|linux| {
            linux.insert(
                "resources".into(),
                json!({ "memory": { "limit": 64 * MIB }, "pids": { "limit": 20 } }),
            );
        })
        .expect("ok");
        assert_eq!(
            limits,
            Limits {
                memory: 64 * MIB,
                pids: 20
            }
        );
        assert!(linux["resources"].get("pids").is_none());
        let (_, limits, report) = hardened(|linux| {
            linux.insert("resources".into(), json!({ "pids": { "limit": 100_000 } }));
        })
        .expect("ok");
        assert_eq!(limits.pids, 256);
        assert!(report.changes.iter().any(|change| change.control == "pids"));
    }

    #[test]
    fn the_hosts_namespaces_are_refused() {
        for missing in ["network", "pid", "ipc"] {
            let refusal = hardened(|linux| {
                let list = linux["namespaces"].as_array().expect("list").clone();
                let rest: Vec<_> = list
                    .into_iter()
                    .filter(|namespace| namespace["type"] != missing)
                    .collect();
                linux.insert("namespaces".into(), json!(rest));
            });
            assert!(
                refusal
                    .map(|_| ())
                    .expect_err(missing)
                    .to_string()
                    .contains(missing)
            );
        }
        for kind in ["user", "time"] {
            let namespaces = json!([{ "type": kind }]);
            assert!(hardened(|linux| drop(linux.insert("namespaces".into(), namespaces))).is_err());
        }
    }

    #[test]
    fn devices_mappings_and_sysctls_of_the_host_are_refused() {
        let device = json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }]);
        assert!(hardened(|linux| drop(linux.insert("devices".into(), device))).is_err());
        let null = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 }]);
        assert!(hardened(|linux| drop(linux.insert("devices".into(), null))).is_ok());
        let mapping = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
        assert!(hardened(|linux| drop(linux.insert("uidMappings".into(), mapping))).is_err());
        let sysctl = json!({ "kernel.shmmax": "1" });
        assert!(hardened(|linux| drop(linux.insert("sysctl".into(), sysctl))).is_err());
        let sysctl = json!({ "net.ipv4.ip_unprivileged_port_start": "0" });
        assert!(hardened(|linux| drop(linux.insert("sysctl".into(), sysctl))).is_ok());
    }

    #[test]
    fn a_cgroup_path_cannot_climb() {
        assert!(
            hardened(|linux| drop(linux.insert("cgroupsPath".into(), json!("/a/../../b"))))
                .is_err()
        );
        assert!(
            hardened(|linux| drop(linux.insert("cgroupsPath".into(), json!("/default/a")))).is_ok()
        );
    }
}
