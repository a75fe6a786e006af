//! What a pod asks of the policy by annotations of its own, `dev.bulkhead.*`.
//!
//! A pod can always ask for less. For more it needs both: the request, and a policy that grants it to the pod's namespace.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::pod::POD_NAMESPACE as NAMESPACE;
use crate::policy::{Granted, Network, Policy};
use crate::report::{Refusal, Report};
use crate::spec::{Caller, ContainerKind};

const PREFIX: &str = "dev.bulkhead.";

/// One thing that can be asked for.
struct Control {
    /// The annotation, without its prefix; also the control in reports.
    name: &'static str,
    /// What it can be, from strict to loose.
    values: [&'static str; 2],
    /// The policy key that makes it loose for everybody.
    key: &'static str,
    is_loose: fn(&Policy) -> bool,
    set: fn(&mut Policy, bool),
    /// Whether it is among what a namespace was granted.
    granted: fn(&Granted) -> bool,
    /// Whether it is a promise about the client's own files: a client of containerd's socket asks for it without any grant, and a
    /// pod has it never.
    is_promise: bool,
}

const CONTROLS: [Control; 4] = [
    Control {
        name: "network",
        values: ["none", "sandbox"],
        key: "network",
        is_loose: |policy| policy.network == Network::Sandbox,
        set: |policy, loose| {
            policy.network = if loose {
                Network::Sandbox
            } else {
                Network::None
            };
        },
        granted: |granted| granted.network == Network::Sandbox,
        is_promise: false,
    },
    Control {
        name: "rootfs",
        values: ["read-only", "writable"],
        key: "rootfs.writable",
        is_loose: |policy| policy.rootfs.writable,
        set: |policy, loose| policy.rootfs.writable = loose,
        granted: |granted| granted.rootfs_writable,
        is_promise: false,
    },
    Control {
        name: "scratch",
        values: ["noexec", "exec"],
        key: "scratch.exec",
        is_loose: |policy| policy.scratch.exec,
        set: |policy, loose| policy.scratch.exec = loose,
        granted: |granted| granted.scratch_exec,
        is_promise: false,
    },
    Control {
        name: "binds",
        values: ["shared", "exclusive"],
        key: "binds.exclusive",
        is_loose: |policy| policy.binds.exclusive,
        set: |policy, loose| policy.binds.exclusive = loose,
        granted: |_| false,
        is_promise: true,
    },
];

/// The policy that holds for a container, by what it asks for.
///
/// # Errors
/// `InvalidArgument` for an annotation or a value that is unknown, `PermissionDenied` for what the policy does not grant.
pub(crate) fn apply(
    spec: &Map<String, Value>,
    policy: &Policy,
    caller: Caller,
    kind: ContainerKind<'_>,
    report: &mut Report,
) -> Result<Policy, Refusal> {
    let mut effective = policy.clone();
    let may_promise = caller.is_trusted() && kind == ContainerKind::Plain;
    if !may_promise {
        // Others write a pod's volumes: its other containers, other pods, the kubelet.
        for control in CONTROLS.iter().filter(|control| control.is_promise) {
            (control.set)(&mut effective, false);
        }
    }
    let annotations = spec.get("annotations").and_then(Value::as_object);
    let namespace = annotations
        .and_then(|annotations| annotations.get(NAMESPACE)?.as_str())
        .filter(|_| caller == Caller::Kubernetes);
    let granted = namespace.and_then(|namespace| policy.kubernetes.namespaces.get(namespace));
    for (annotation, value) in annotations.into_iter().flatten() {
        let Some(name) = annotation.strip_prefix(PREFIX) else {
            continue;
        };
        let field = format!("annotations[{annotation:?}]");
        let Some(control) = CONTROLS.iter().find(|control| control.name == name) else {
            return Err(Refusal::invalid(
                field,
                known(CONTROLS.map(|control| control.name)),
            ));
        };
        let value = value.as_str().unwrap_or_default();
        let Some(loose) = control.values.iter().position(|known| *known == value) else {
            let problem = format!("{value:?}: {}", known(control.values));
            return Err(Refusal::invalid(field, problem));
        };
        let (loose, is_loose) = (loose == 1, (control.is_loose)(&effective));
        if loose == is_loose {
            continue;
        }
        let asked = format!("{annotation} = {value:?}");
        if matches!(kind, ContainerKind::PodContainer(_)) {
            let rule = "a sandbox has one value for all containers of its pod, and was made with the other";
            return Err(Refusal::denied(control.name, asked, rule, None));
        }
        if loose && control.is_promise && !may_promise {
            let rule =
                "others write the volumes of a pod, so only a container of its own may have it";
            return Err(Refusal::denied(control.name, asked, rule, None));
        }
        if loose && !control.is_promise && !granted.is_some_and(control.granted) {
            let rule = match namespace {
                Some(namespace) => {
                    format!("the policy does not grant it to namespace {namespace:?}")
                }
                None => "the policy does not grant it".to_owned(),
            };
            let key = match namespace {
                Some(namespace) => format!("kubernetes.namespaces.{namespace}"),
                None => control.key.to_owned(),
            };
            return Err(Refusal::denied(control.name, asked, rule, Some(&key)));
        }
        (control.set)(&mut effective, loose);
        let key = if loose && control.is_promise {
            ""
        } else if loose {
            "kubernetes.namespaces"
        } else {
            control.key
        };
        report.note(control.name, asked, value, key);
    }
    Ok(effective)
}

fn known(names: impl IntoIterator<Item = impl Display>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    format!("is unknown; known are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Shared;
    use crate::report::RefusalKind;
    use serde_json::json;

    const GRANTING: &str =
        "[kubernetes.namespaces.agents]\nnetwork = \"sandbox\"\nscratch_exec = true\n";

    fn asked(policy: &str, annotations: Value, caller: Caller) -> Result<Policy, Refusal> {
        let policy = Policy::parse(policy, "x").expect("a policy");
        let spec = Map::from_iter([("annotations".to_owned(), annotations)]);
        let mut report = Report::default();
        let given = apply(
            &spec,
            &policy,
            caller,
            ContainerKind::PodSandbox,
            &mut report,
        )?;
        assert_eq!(
            given == policy,
            report.changes.is_empty(),
            "each change is reported"
        );
        Ok(given)
    }

    #[test]
    fn more_needs_the_request_and_the_namespaces_grant() {
        let request =
            |namespace: &str| json!({ NAMESPACE: namespace, "dev.bulkhead.network": "sandbox" });
        let given = asked(GRANTING, request("agents"), Caller::Kubernetes).expect("granted");
        assert_eq!(given.network, Network::Sandbox);
        assert!(!given.scratch.exec, "what is not asked for is not given");
        let silent = asked(GRANTING, json!({ NAMESPACE: "agents" }), Caller::Kubernetes);
        assert_eq!(silent.expect("a policy").network, Network::None);
        for (policy, namespace, caller) in [
            (GRANTING, "other", Caller::Kubernetes),
            (GRANTING, "agents", Caller::Node),
            ("", "agents", Caller::Kubernetes),
        ] {
            let refusal = asked(policy, request(namespace), caller).expect_err("refused");
            assert_eq!(refusal.kind, RefusalKind::PermissionDenied, "{refusal}");
        }
        let writable = json!({ NAMESPACE: "agents", "dev.bulkhead.rootfs": "writable" });
        let refusal = asked(GRANTING, writable, Caller::Kubernetes).expect_err("not granted");
        assert!(
            refusal.to_string().contains("kubernetes.namespaces.agents"),
            "{refusal}"
        );
    }

    #[test]
    fn less_is_always_given() {
        let policy = "network = \"sandbox\"\nscratch.exec = true\nrootfs.writable = true";
        let less = json!({
            "dev.bulkhead.network": "none", "dev.bulkhead.scratch": "noexec", "dev.bulkhead.rootfs": "read-only",
        });
        for caller in [Caller::Node, Caller::Kubernetes] {
            let given = asked(policy, less.clone(), caller).expect("a policy");
            assert!(
                given.network == Network::None && !given.scratch.exec && !given.rootfs.writable
            );
        }
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        for (annotation, value) in [
            ("dev.bulkhead.netwrok", json!("sandbox")),
            ("dev.bulkhead.network", json!("host")),
            ("dev.bulkhead.network", json!("")),
            ("dev.bulkhead.", json!("x")),
        ] {
            let refusal = asked(GRANTING, json!({ annotation: value }), Caller::Kubernetes)
                .expect_err(annotation);
            assert_eq!(refusal.kind, RefusalKind::InvalidArgument, "{refusal}");
            assert!(refusal.to_string().contains(annotation), "{refusal}");
        }
    }

    #[test]
    fn a_container_has_what_its_sandbox_has() {
        let (shared, mut report) = (Shared::default(), Report::default());
        let with_network = Policy::parse("network = \"sandbox\"", "x").expect("a policy");
        for (value, fits) in [("sandbox", true), ("none", false)] {
            let annotations = json!({ "dev.bulkhead.network": value });
            let spec = Map::from_iter([("annotations".to_owned(), annotations)]);
            let kind = ContainerKind::PodContainer(&shared);
            let given = apply(&spec, &with_network, Caller::Kubernetes, kind, &mut report);
            assert_eq!(given.is_ok(), fits, "{given:?}");
        }
    }

    #[test]
    fn exclusive_binds_are_a_clients_promise_and_never_a_pods() {
        let request = |value: &str| {
            let annotations = json!({ NAMESPACE: "agents", "dev.bulkhead.binds": value });
            Map::from_iter([("annotations".to_owned(), annotations)])
        };
        let shared = Shared::default();
        for (text, default) in [("", false), ("binds.exclusive = true", true)] {
            let text = format!("{text}\n{GRANTING}");
            let policy = Policy::parse(&text, "x").expect("a policy");
            let given = |spec: &Map<String, Value>, caller, kind| {
                let given = apply(spec, &policy, caller, kind, &mut Report::default());
                given.map(|policy| policy.binds.exclusive)
            };
            let plain = ContainerKind::Plain;
            assert_eq!(given(&Map::new(), Caller::Node, plain), Ok(default));
            for (value, is_exclusive) in [("exclusive", true), ("shared", false)] {
                let given = given(&request(value), Caller::Node, plain);
                assert_eq!(given, Ok(is_exclusive));
            }
            for (caller, kind) in [
                (Caller::Kubernetes, ContainerKind::PodSandbox),
                (Caller::Kubernetes, ContainerKind::PodContainer(&shared)),
                (Caller::Foreign, plain),
                (Caller::Node, ContainerKind::PodSandbox),
            ] {
                assert_eq!(given(&Map::new(), caller, kind), Ok(false), "{caller:?}");
                assert_eq!(given(&request("shared"), caller, kind), Ok(false));
                let refusal = given(&request("exclusive"), caller, kind).expect_err("refused");
                assert_eq!(refusal.kind, RefusalKind::PermissionDenied, "{refusal}");
            }
        }
    }
}
