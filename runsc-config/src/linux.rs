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
mod tests {
    use super::*;
    use crate::pod::Shared;
    use crate::spec::tests::context;

    fn base() -> Map<String, Value> {
        let kinds = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        Map::from_iter([("namespaces".to_owned(), json!(kinds))])
    }

    fn hardened(
        change: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<(Map<String, Value>, Report), Refusal> {
        let (mut linux, mut report) = (base(), Report::default());
        change(&mut linux);
        let policy = Policy::strict();
        harden(&mut linux, Caller::Node, &context(), &policy, &mut report)?;
        Ok((linux, report))
    }

    #[test]
    fn user_namespaces_and_shared_processes_are_refused_by_name() {
        let with = |namespace: Value, caller| {
            let (mut linux, mut report) = (base(), Report::default());
            let list = linux["namespaces"].as_array_mut().expect("list");
            list.retain(|one| one["type"] != namespace["type"]);
            list.push(namespace);
            harden(
                &mut linux,
                caller,
                &context(),
                &Policy::strict(),
                &mut report,
            )
        };
        for caller in [Caller::Node, Caller::Kubernetes] {
            let refusal = with(json!({ "type": "user" }), caller).expect_err("refused");
            assert!(refusal.to_string().contains("user namespaces"), "{refusal}");
        }
        let shared = json!({ "type": "pid", "path": "/proc/7/ns/pid" });
        let refusal = with(shared, Caller::Kubernetes).expect_err("refused");
        assert!(
            refusal.to_string().contains("shareProcessNamespace"),
            "{refusal}"
        );
    }

    #[test]
    fn a_pods_container_has_the_pods_processes_where_the_policy_says_so() {
        let sharing = Policy::parse("kubernetes.share_processes = true", "x").expect("a policy");
        let shared = Shared::default();
        let harden = |kind, pid: Value, policy: &Policy| {
            let mut linux = base();
            let list = linux["namespaces"].as_array_mut().expect("list");
            list.retain(|one| one["type"] != "pid");
            list.push(pid);
            let mut context = context();
            context.kind = kind;
            let mut report = Report::default();
            harden(
                &mut linux,
                Caller::Kubernetes,
                &context,
                policy,
                &mut report,
            )?;
            let list = linux["namespaces"].as_array().expect("list").clone();
            Ok::<_, Refusal>(list.iter().any(|one| one["type"] == "pid"))
        };
        let (own, pods) = (
            json!({ "type": "pid" }),
            json!({ "type": "pid", "path": "/proc/7/ns/pid" }),
        );
        let container = ContainerKind::PodContainer(&shared);
        assert_eq!(harden(container, pods.clone(), &sharing), Ok(false));
        assert_eq!(harden(container, own, &sharing), Ok(true), "not asked for");
        // The first container has the sandbox's already: a path would lead out of it.
        for (kind, policy) in [
            (ContainerKind::PodSandbox, &sharing),
            (container, &Policy::strict()),
        ] {
            let refusal = harden(kind, pods.clone(), policy).expect_err("refused");
            assert!(refusal.to_string().contains("share_processes"), "{refusal}");
        }
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
    fn the_hosts_network_is_refused_by_path_as_well() {
        let mut context = context();
        context.host.is_hosts_network = |path| path == Path::new("/proc/1/ns/net");
        for (path, refused) in [("/proc/1/ns/net", true), ("/run/netns/x", false)] {
            for caller in [Caller::Node, Caller::Kubernetes] {
                let (mut linux, mut report) = (base(), Report::default());
                let namespaces = json!([
                    { "type": "pid" }, { "type": "ipc" }, { "type": "network", "path": path },
                ]);
                linux.insert("namespaces".into(), namespaces);
                let policy = Policy::strict();
                let result = harden(&mut linux, caller, &context, &policy, &mut report);
                assert_eq!(result.is_err(), refused, "{path}");
                if let Err(refusal) = result {
                    let named = refusal.to_string().contains("hostNetwork");
                    assert_eq!(named, caller == Caller::Kubernetes, "{refusal}");
                } else {
                    let network = json!({ "type": "network", "path": path });
                    assert!(
                        linux["namespaces"]
                            .as_array()
                            .expect("list")
                            .contains(&network)
                    );
                }
            }
        }
        let twice = json!([
            { "type": "pid" }, { "type": "ipc" }, { "type": "network" },
            { "type": "network", "path": "/run/netns/x" },
        ]);
        let refusal = hardened(|linux| drop(linux.insert("namespaces".into(), twice)));
        let refusal = refusal.map(|_| ()).expect_err("refused").to_string();
        assert!(refusal.contains("more than one"), "{refusal}");
    }

    #[test]
    fn a_namespace_is_what_was_judged_and_no_key_more() {
        let namespaces = json!([
            { "type": "pid", "Path": "/proc/1/ns/pid" }, { "type": "ipc", "path": "" },
            { "type": "uts", "Type": "user" }, { "type": "network", "patH": "/proc/1/ns/net", "x": {} },
        ]);
        let (linux, _) =
            hardened(|linux| drop(linux.insert("namespaces".into(), namespaces))).expect("given");
        let given = ["pid", "ipc", "uts", "network", "mount"].map(|kind| json!({ "type": kind }));
        assert_eq!(linux["namespaces"], json!(given));
        for kind in ["pid", "ipc", "uts"] {
            let joined = json!([
                { "type": "pid" }, { "type": "ipc" }, { "type": "network" }, { "type": "uts" },
            ]);
            let result = hardened(|linux| {
                linux.insert("namespaces".into(), joined);
                for namespace in linux["namespaces"].as_array_mut().expect("list") {
                    if namespace["type"] == kind {
                        namespace["path"] = json!("/proc/7/ns/x");
                    }
                }
            });
            let refusal = result.map(|_| ()).expect_err(kind).to_string();
            assert!(refusal.contains("joining another container"), "{refusal}");
        }
    }

    #[test]
    fn what_a_pod_shares_is_the_sandbox_and_no_namespace_of_the_host() {
        let shared = crate::pod::Shared::default();
        let context = Context {
            kind: ContainerKind::PodContainer(&shared),
            ..context()
        };
        let path = |kind: &str| json!({ "type": kind, "path": format!("/proc/7/ns/{kind}") });
        let (mut linux, mut report) = (base(), Report::default());
        let asked = json!([{ "type": "pid" }, path("ipc"), path("uts"), path("network")]);
        linux.insert("namespaces".into(), asked);
        harden(
            &mut linux,
            Caller::Kubernetes,
            &context,
            &Policy::strict(),
            &mut report,
        )
        .expect("given");
        let own = |kind: &str| json!({ "type": kind });
        let given = json!([
            own("pid"),
            own("ipc"),
            own("uts"),
            path("network"),
            own("mount")
        ]);
        assert_eq!(linux["namespaces"], given);
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
}
