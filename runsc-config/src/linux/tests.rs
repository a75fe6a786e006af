use super::*;
use crate::pod::Shared;
use crate::report::RefusalKind;
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
fn devices_and_mappings_of_the_host_are_refused() {
    let device = json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }]);
    assert!(hardened(|linux| drop(linux.insert("devices".into(), device))).is_err());
    let null = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 }]);
    assert!(hardened(|linux| drop(linux.insert("devices".into(), null))).is_ok());
    let mapping = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    assert!(hardened(|linux| drop(linux.insert("uidMappings".into(), mapping))).is_err());
}

#[test]
fn sysctls_are_set_dropped_with_a_line_or_refused_by_name() {
    let shared = crate::pod::Shared::default();
    let asked = |policy: &str, kind, name: &str, value: &str| {
        let (mut linux, mut report) = (base(), Report::default());
        linux.insert("sysctl".into(), json!({ name: value }));
        let policy = Policy::parse(policy, "x").expect("a policy");
        let context = Context { kind, ..context() };
        let caller = Caller::Kubernetes;
        harden(&mut linux, caller, &context, &policy, &mut report)?;
        let lines = report.changes.iter();
        let lines = lines.filter(|one| one.control == "sysctls" && one.asked.contains(name));
        let given = linux.get("sysctl").map(|all| all[name].clone());
        Ok::<_, Refusal>((given, lines.count()))
    };
    let network = "network = \"sandbox\"";
    for kind in [ContainerKind::Plain, ContainerKind::PodSandbox] {
        for (name, value) in [(NR_OPEN, "1024"), (NO_IPV6, "1"), (NO_IPV6, "0")] {
            let given = asked(network, kind, name, value);
            assert_eq!(given, Ok((Some(json!(value)), 0)), "{name}");
        }
    }
    let dropped = Ok((None, 1));
    assert_eq!(asked("", ContainerKind::Plain, NO_IPV6, "1"), dropped);
    for name in SAFE_SYSCTLS.into_iter().chain([NO_LATER_IPV6]) {
        let given = asked(network, ContainerKind::Plain, name, "1\t2");
        assert_eq!(given, dropped, "{name}");
    }
    // Decided when its sandbox was made.
    for name in [NR_OPEN, NO_IPV6] {
        let given = asked(network, ContainerKind::PodContainer(&shared), name, "1");
        assert_eq!(given, dropped, "{name}");
    }
    for name in [
        "kernel.shmmax",
        "net.ipv6.conf.eth0.disable_ipv6",
        "fs.nr_openx",
        "",
    ] {
        let refusal = asked(network, ContainerKind::Plain, name, "1").expect_err(name);
        let text = refusal.to_string();
        let named = text.contains(&format!("linux.sysctl: {name}: runsc sets fs.nr_open and"));
        assert!(named, "{text}");
        assert_eq!(refusal.kind, RefusalKind::PermissionDenied);
    }
    for (name, value) in [
        (NR_OPEN, "0"),
        (NR_OPEN, "many"),
        (NR_OPEN, "2147483648"),
        (NO_IPV6, "yes"),
    ] {
        let refusal = asked(network, ContainerKind::Plain, name, value).expect_err(value);
        assert!(refusal.to_string().contains(value), "{refusal}");
        assert_eq!(refusal.kind, RefusalKind::InvalidArgument);
    }
}
