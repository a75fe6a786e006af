//! The Linux section: namespaces, devices, limits, sysctls, and what gVisor does not have.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::json::{is_empty, retain};
use crate::policy::Policy;
use crate::report::{Refusal, Report};
use crate::spec::{Caller, ContainerKind, Context};

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

/// Clamps the section, but for its limits and its seccomp profile.
pub(crate) fn harden(
    linux: &mut Map<String, Value>,
    caller: Caller,
    context: &Context<'_>,
    policy: &Policy,
    report: &mut Report,
) -> Result<(), Refusal> {
    namespaces(linux, caller, context, policy, report)?;
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
    Ok(())
}

/// A namespace that is not listed is the host's own.
fn namespaces(
    linux: &mut Map<String, Value>,
    caller: Caller,
    context: &Context<'_>,
    policy: &Policy,
    report: &mut Report,
) -> Result<(), Refusal> {
    let in_pod = matches!(context.kind, ContainerKind::PodContainer(_));
    let mut shares_processes = false;
    let list = match linux.get("namespaces") {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => list
            .as_array()
            .cloned()
            .ok_or_else(|| Refusal::invalid("linux.namespaces", "must be a list"))?,
    };
    let mut given: Vec<(&str, &str)> = Vec::with_capacity(list.len());
    for namespace in &list {
        let text = |key: &str| {
            let value = namespace.get(key).and_then(Value::as_str);
            value.unwrap_or_default()
        };
        let (kind, path) = (text("type"), text("path"));
        let asked = format!("linux.namespaces: {kind} {path:?}");
        if given.iter().any(|(other, _)| *other == kind) {
            // One of them would be judged and the other one joined.
            let problem = format!("has more than one of type {kind:?}");
            return Err(Refusal::invalid("linux.namespaces", problem));
        }
        match kind {
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
            "pid" if !path.is_empty() && caller == Caller::Kubernetes => {
                if !in_pod || !policy.kubernetes.share_processes {
                    return Err(Refusal::denied(
                        "namespaces",
                        asked,
                        "each container has its own processes, without shareProcessNamespace",
                        Some("kubernetes.share_processes"),
                    ));
                }
                shares_processes = true;
            }
            // In a pod these are the pod's own, which the sandbox is.
            "pid" | "ipc" | "uts" if !path.is_empty() && caller == Caller::Node && !in_pod => {
                return Err(Refusal::denied(
                    "namespaces",
                    asked,
                    "joining another container is not supported",
                    None,
                ));
            }
            "network" if !path.is_empty() && (context.host.is_hosts_network)(Path::new(path)) => {
                return Err(hosts("network", asked, caller));
            }
            "pid" | "ipc" | "uts" | "mount" | "network" | "cgroup" => {}
            _ => {
                return Err(Refusal::invalid(
                    "linux.namespaces",
                    format!("type {kind:?} is unknown"),
                ));
            }
        }
        given.push((kind, path));
    }
    for needed in ["network", "pid", "ipc"] {
        if !given.iter().any(|(kind, _)| *kind == needed) {
            let asked = format!("the host's {needed} namespace (linux.namespaces has no {needed})");
            return Err(hosts(needed, asked, caller));
        }
    }
    for private in ["uts", "mount"] {
        if !given.iter().any(|(kind, _)| *kind == private) {
            report.note(
                "namespaces",
                format!("the host's {private} namespace"),
                "one of its own",
                "",
            );
            given.push((private, ""));
        }
    }
    // Written anew: runsc takes a key in any case, and what is not known here was not judged. What the containers of a pod
    // share is the sandbox; only its network is a namespace of the host to be joined.
    // Without an entry of its own a container that joins a sandbox has the processes of all of it (`runsc/boot/loader.go`). A
    // path would give the first container that names it a namespace that ends with that container.
    let given = given
        .into_iter()
        .filter(|(kind, _)| !(shares_processes && *kind == "pid"))
        .map(|(kind, path)| match kind {
            "network" if !path.is_empty() => json!({ "type": kind, "path": path }),
            _ => json!({ "type": kind }),
        });
    let given = given.collect();
    linux.insert("namespaces".to_owned(), Value::Array(given));
    Ok(())
}

/// Refuses a namespace of the host, in a pod by the name its author knows it by.
fn hosts(kind: &str, asked: String, caller: Caller) -> Refusal {
    let of_a_pod = match (caller, kind) {
        (Caller::Kubernetes, "network") => "hostNetwork: true is not supported: ",
        (Caller::Kubernetes, "pid") => "hostPID: true is not supported: ",
        (Caller::Kubernetes, _) => "hostIPC: true is not supported: ",
        (Caller::Node, _) => "",
    };
    let rule = format!("{of_a_pod}a sandbox shares no namespace with the host");
    Refusal::denied("namespaces", asked, rule, None)
}

fn devices(linux: &mut Map<String, Value>) -> Result<(), Refusal> {
    let is_the_hosts = |device: &&Value| {
        let number = |key: &str| device.get(key).and_then(Value::as_i64).unwrap_or(-1);
        !STANDARD_DEVICES.contains(&(number("major"), number("minor")))
    };
    let asked = linux.get("devices").and_then(Value::as_array);
    let mut denied = asked.into_iter().flatten().filter(is_the_hosts);
    if let Some(device) = denied.next() {
        let path = device.get("path").and_then(Value::as_str);
        let path = path.unwrap_or_default();
        // A privileged container is told by nothing else in a spec.
        let asked = match denied.count() {
            0 => format!("linux.devices: {path}"),
            more => format!("linux.devices: {path} and {more} more, as of a privileged container"),
        };
        return Err(Refusal::denied(
            "devices",
            asked,
            "a sandbox has no device of the host",
            None,
        ));
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

#[cfg(test)]
mod tests;
