//! The Linux section: namespaces, devices, limits, sysctls, and what gVisor does not have.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::json::{is_empty, retain};
use crate::policy::{Network, Policy};
use crate::report::{Refusal, Report};
use crate::spec::{Caller, ContainerKind, Context};

/// What is kept of the section; the rules below have looked at each.
pub(crate) const KEPT: [&str; 7] = [
    "namespaces",
    "resources",
    "cgroupsPath",
    "seccomp",
    "sysctl",
    "maskedPaths",
    "readonlyPaths",
];
/// What is judged and then dropped.
pub(crate) const JUDGED: [&str; 5] = [
    "devices",
    "uidMappings",
    "gidMappings",
    "mountLabel",
    "rootfsPropagation",
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
/// Sysctls that any pod may ask for (`pkg/kubelet/sysctl/safe_sysctls.go` in Kubernetes 1.37); containerd and nerdctl set some by
/// themselves. runsc sets none of them.
const SAFE_SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
/// Open files of one process, at most: runsc sets it for a sandbox (`runsc/boot/loader.go`).
const NR_OPEN: &str = "fs.nr_open";
/// Leaves out the addresses and routes of IPv6: runsc does it where it takes a network over (`runsc/sandbox/network.go`).
const NO_IPV6: &str = "net.ipv6.conf.all.disable_ipv6";
/// The same of interfaces to come, of which a sandbox has none.
const NO_LATER_IPV6: &str = "net.ipv6.conf.default.disable_ipv6";

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
    sysctls(linux, context, policy, report)?;
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
            "pid" if !path.is_empty() && !caller.is_trusted() => {
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
            "pid" | "ipc" | "uts" if !path.is_empty() && caller.is_trusted() && !in_pod => {
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
        (Caller::Foreign | Caller::Node, _) => "",
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

/// Keeps the sysctls that runsc sets for the sandbox. The others that a client asks for without knowing the node are dropped;
/// what is named on purpose is refused.
fn sysctls(
    linux: &mut Map<String, Value>,
    context: &Context<'_>,
    policy: &Policy,
    report: &mut Report,
) -> Result<(), Refusal> {
    let Some(Value::Object(asked)) = linux.remove("sysctl") else {
        return Ok(());
    };
    let in_pod = matches!(context.kind, ContainerKind::PodContainer(_));
    let mut kept = Map::new();
    for (name, value) in asked {
        let given = match name.as_str() {
            NR_OPEN | NO_IPV6 if in_pod => "what the pod's sandbox has",
            NR_OPEN => {
                in_range(&name, &value, 1..=i64::from(i32::MAX))?;
                kept.insert(name, value);
                continue;
            }
            NO_IPV6 => {
                in_range(&name, &value, i64::from(i32::MIN)..=i64::from(i32::MAX))?;
                if policy.network == Network::Sandbox {
                    kept.insert(name, value);
                    continue;
                }
                "no network: the loopback has both"
            }
            NO_LATER_IPV6 => "dropped: a sandbox gets no interface later",
            safe if SAFE_SYSCTLS.contains(&safe) => "gVisor's own default: runsc does not set it",
            _ => {
                let rule = format!("runsc sets {NR_OPEN} and {NO_IPV6} alone");
                let asked = format!("linux.sysctl: {name}");
                return Err(Refusal::denied("sysctls", asked, rule, None));
            }
        };
        report.note("sysctls", format!("{name}={value}"), given, "");
    }
    if !kept.is_empty() {
        linux.insert("sysctl".to_owned(), Value::Object(kept));
    }
    Ok(())
}

/// Checks a number that runsc would fail on only when the sandbox is made.
fn in_range(name: &str, value: &Value, range: RangeInclusive<i64>) -> Result<(), Refusal> {
    let number = value.as_str().and_then(|text| text.parse::<i64>().ok());
    if number.is_some_and(|number| range.contains(&number)) {
        return Ok(());
    }
    let problem = format!(
        "{value} is no number from {} to {}",
        range.start(),
        range.end()
    );
    Err(Refusal::invalid(format!("linux.sysctl: {name}"), problem))
}

#[cfg(test)]
mod tests;
