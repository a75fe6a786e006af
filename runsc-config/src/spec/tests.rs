use super::*;
use serde_json::json;

/// A context for the tests of all rules: an up-to-date runsc and nothing special.
pub(crate) fn context() -> Context<'static> {
    static FEATURES: std::sync::LazyLock<Features> = std::sync::LazyLock::new(|| {
        let features = include_str!("../../tests/common/features.json");
        Features::parse(include_str!("../../tests/common/flags.txt"), Some(features))
            .expect("features")
    });
    Context {
        id: "c",
        sandbox_id: "c",
        kind: ContainerKind::Plain,
        namespace: "default",
        bundle: Path::new("/bundle"),
        features: &FEATURES,
        host: HostFacts::default(),
    }
}

/// What `ctr run` asks for, in short.
pub(crate) fn ordinary() -> Value {
    json!({
        "ociVersion": "1.3.0",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": ["sh"], "cwd": "/", "env": ["PATH=/bin"],
            "capabilities": { "bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
        ],
        "linux": {
            "cgroupsPath": "/default/c",
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" },
            ],
        },
    })
}

fn changed(change: impl FnOnce(&mut Value)) -> Result<Hardened, Refusal> {
    let mut spec = ordinary();
    change(&mut spec);
    harden(spec, &Policy::strict(), &context())
}

#[test]
fn an_ordinary_container_becomes_a_strict_one() {
    let hardened = changed(|_| {}).expect("hardened");
    let spec = Value::Object(hardened.spec.as_map().clone());
    assert_eq!(
        spec["root"],
        json!({ "path": "/bundle/rootfs", "readonly": true })
    );
    assert_eq!(spec["process"]["noNewPrivileges"], json!(true));
    assert_eq!(spec["process"]["capabilities"]["effective"], json!([]));
    assert_eq!(
        spec["linux"]["seccomp"]["defaultAction"],
        json!("SCMP_ACT_ERRNO")
    );
    assert_eq!(hardened.spec.cgroup(), Some("/default/c"));
    assert!(!hardened.spec.terminal());
    assert!(
        hardened
            .report
            .changes
            .iter()
            .any(|change| change.control == "rootfs")
    );
    serde_json::from_slice::<oci_spec::runtime::Spec>(&hardened.spec.to_json_bytes())
        .expect("still a spec");
}

#[test]
fn malformed_specs_are_refused_as_such() {
    let refused = [
        harden(json!(null), &Policy::strict(), &context()),
        harden(json!([]), &Policy::strict(), &context()),
        harden(json!(7), &Policy::strict(), &context()),
        harden(json!("text"), &Policy::strict(), &context()),
        harden(json!({}), &Policy::strict(), &context()),
        changed(|spec| spec["process"] = Value::Null),
        changed(|spec| spec["process"] = json!("sh")),
        changed(|spec| spec["process"]["user"] = Value::Null),
        changed(|spec| drop(spec["process"].as_object_mut().map(|p| p.remove("user")))),
        changed(|spec| spec["root"] = Value::Null),
        changed(|spec| spec["root"]["path"] = json!("")),
        changed(|spec| spec["mounts"] = json!({})),
        changed(|spec| spec["windows"] = json!({ "layerFolders": ["x"] })),
        changed(|spec| spec["hooks"] = json!({ "prestart": [{ "path": "relative" }] })),
    ];
    for (number, refused) in refused.into_iter().enumerate() {
        let refusal = refused.map(|_| ()).expect_err(&number.to_string());
        assert_eq!(
            refusal.kind,
            crate::report::RefusalKind::InvalidArgument,
            "{number}: {refusal}"
        );
    }
}

#[test]
fn annotations_that_configure_runsc_are_removed() {
    let hardened = changed(|spec| {
        spec["annotations"] =
            json!({ "dev.gvisor.flag.network": "host", "dev.gvisor.spec.x": "y", "mine": "z" });
    })
    .expect("hardened");
    assert_eq!(
        hardened.spec.as_map()["annotations"],
        json!({ "mine": "z" })
    );
}

#[test]
fn hooks_run_unless_the_node_refuses_them() {
    let with_hook =
        |spec: &mut Value| spec["hooks"] = json!({ "prestart": [{ "path": "/bin/true" }] });
    assert!(changed(with_hook).is_ok());
    let mut spec = ordinary();
    with_hook(&mut spec);
    let policy = Policy::parse("hooks = \"refuse\"", "x").expect("policy");
    assert!(
        harden(spec, &policy, &context())
            .map(|_| ())
            .expect_err("refused")
            .to_string()
            .contains("hooks")
    );
}

#[test]
fn hooks_by_which_runsc_switches_its_gpu_proxy_on_are_refused() {
    for (stage, path, is_refused) in [
        ("prestart", "/usr/bin/nvidia-container-runtime-hook", true),
        ("createContainer", "/usr/bin/nvidia-cdi-hook", true),
        ("createRuntime", "/nvidia-cdi-hook", true),
        ("prestart", "/usr/bin/nvidia-cdi-hook-of-ours", false),
        ("prestart", "/usr/bin/nvidia-cdi-hook/run", false),
    ] {
        let hardened = changed(|spec| {
            spec["hooks"] = json!({});
            spec["hooks"][stage] = json!([{ "path": "/bin/true" }, { "path": path }]);
        });
        let refusal = hardened.map(drop).err().map(|refusal| refusal.to_string());
        let expected = format!("hooks.{stage}: {path:?}");
        let is_told = refusal.as_ref().map(|text| text.contains(&expected));
        assert_eq!(is_told, is_refused.then_some(true), "{stage} {refusal:?}");
    }
}

#[test]
fn a_network_is_made_where_the_policy_gives_one_and_none_is_joined() {
    let made = |policy: &str, path: &str| {
        let mut spec = ordinary();
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("list");
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "network", "path": path }));
        let policy = Policy::parse(policy, "x").expect("policy");
        let hardened = harden(spec, &policy, &context()).expect("hardened");
        hardened.makes_network()
    };
    assert!(made("network = \"sandbox\"", ""));
    assert!(!made("network = \"sandbox\"", "/run/netns/pod"));
    assert!(!made("", ""));
}

#[test]
fn labels_of_a_security_module_are_dropped_and_told_as_such() {
    let hardened = changed(|spec| {
        spec["process"]["selinuxLabel"] = json!("x");
        spec["process"]["apparmorProfile"] = json!("unconfined");
        spec["linux"]["mountLabel"] = json!("y");
    })
    .expect("hardened");
    let changes = hardened.report.changes.iter();
    let labels = changes.filter(|change| change.control == "lsm_label");
    assert_eq!(labels.count(), 3);
}

#[test]
fn runsc_is_told_of_no_pod_where_there_is_none() {
    let hardened = changed(|spec| {
        spec["annotations"] = json!({
            "io.kubernetes.cri.container-type": "", "io.kubernetes.cri-o.SandboxID": "x", "mine": "z",
        });
    })
    .expect("hardened");
    let annotations = &hardened.spec.as_map()["annotations"];
    assert_eq!(annotations, &json!({ "mine": "z" }));
}

#[test]
fn any_sign_of_a_pod_takes_trust_away() {
    let caller = |namespace, annotation: &str, cgroup: &str| {
        let mut context = context();
        context.namespace = namespace;
        let spec =
            json!({ "annotations": { annotation: "x" }, "linux": { "cgroupsPath": cgroup } });
        context.caller(spec.as_object().expect("object"), &Policy::strict())
    };
    let kind = "io.kubernetes.cri.container-type";
    assert_eq!(
        caller("k8s.io", kind, "/kubepods/pod1/c"),
        Caller::Kubernetes
    );
    assert_eq!(caller("k8s.io", "mine", "/k8s.io/c"), Caller::Node);
    assert_eq!(
        caller("default", "nerdctl/name", "/default/c"),
        Caller::Node
    );
    for (namespace, annotation, cgroup) in [
        ("default", kind, ""),
        ("moby", "mine", "kubepods-besteffort-pod1.slice:docker:c"),
        ("moby", "mine", "/kubepods/besteffort/pod1/c"),
        ("k8s.io", "mine", "/kubepods/besteffort/pod1/c"),
        ("k8s.io", "io.kubernetes.cri-o.Annotations", ""),
        ("k8s.io", "io.kubernetes.cri.sandbox-namespace", ""),
        ("default", "io.containerd.cri.runtime-handler", ""),
    ] {
        let caller = caller(namespace, annotation, cgroup);
        assert_eq!(caller, Caller::Foreign, "{namespace} {annotation} {cgroup}");
    }
}

/// cri-dockerd's, where the kubelet makes no cgroups.
#[test]
fn what_a_pod_is_given_of_the_kubelets_folder_takes_trust_away() {
    let mut context = context();
    context.namespace = "moby";
    context.bundle = Path::new("/data/b");
    context.host.resolve = |path| match path.to_str()? {
        "/data/kubelet/pods" => Some("/disk/pods".into()),
        "/data/link" => Some("/disk/pods/1-a/containers/c/2".into()),
        path => Some(path.into()),
    };
    let moved = Policy::parse("kubernetes.kubelet_root = \"/data/kubelet\"", "p");
    let policies = [Policy::strict(), moved.expect("a policy")];
    let callers = |source: &str| {
        let mounts = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/x", "type": "bind", "source": source, "options": ["rbind"] },
        ]);
        let spec = json!({ "mounts": mounts, "linux": { "cgroupsPath": "/docker/c" } });
        let spec = spec.as_object().expect("object");
        [0, 1].map(|policy| context.caller(spec, &policies[policy]))
    };
    let (node, foreign) = (Caller::Node, Caller::Foreign);
    for (source, expected) in [
        ("/var/lib/kubelet/pods/1-a/containers/c/2", [foreign, node]),
        ("/var/lib/kubelet/pods/1-a/etc-hosts", [foreign, node]),
        (
            "/srv/../var/lib/kubelet/pods/1-a/etc-hosts",
            [foreign, node],
        ),
        ("/data/kubelet/pods/1-a/volumes/v", [node, foreign]),
        ("../kubelet/pods/1-a/volumes/v", [node, foreign]),
        ("/disk/pods/1-a/volumes/v", [node, foreign]),
        ("/data/link", [node, foreign]),
        // What an agent of the node looks at, and what is none of it.
        ("/var/lib/kubelet/pods", [node, node]),
        ("/var/lib/kubelet", [node, node]),
        ("/var/lib/kubelet/podsx/1", [node, node]),
        ("/srv", [node, node]),
    ] {
        assert_eq!(callers(source), expected, "{source}");
    }
}

#[test]
fn a_container_of_another_pod_is_refused_and_a_foreign_pod_shares_no_volume() {
    let mut asked = ordinary();
    asked["annotations"] = json!({ "io.kubernetes.cri.sandbox-uid": "1-a" });
    let mut context = context();
    context.host.empty_dirs = |_| {
        vec![Volume {
            source: "/var/lib/kubelet/pods/1-a/volumes/kubernetes.io~empty-dir/a".into(),
            in_memory: false,
            size: None,
        }]
    };
    context.kind = ContainerKind::PodSandbox;
    let pod = harden(asked.clone(), &Policy::strict(), &context).expect("a pod");
    let volumes = pod.shared.volumes.iter();
    assert!(
        volumes
            .clone()
            .all(|volume| volume.source == Path::new("/dev/shm")),
        "{volumes:?}"
    );
    context.kind = ContainerKind::PodContainer(&pod.shared);
    harden(asked.clone(), &Policy::strict(), &context).expect("of the same pod");
    // A client that names the kubelet's pod, without what the kubelet's containers have or in another namespace.
    let mut kubelets = asked.clone();
    kubelets["annotations"]["io.kubernetes.cri.container-type"] = json!("sandbox");
    let mut of_kubernetes = context.clone();
    of_kubernetes.namespace = "k8s.io";
    of_kubernetes.kind = ContainerKind::PodSandbox;
    let sandbox = harden(kubelets.clone(), &Policy::strict(), &of_kubernetes).expect("a pod");
    of_kubernetes.kind = ContainerKind::PodContainer(&sandbox.shared);
    kubelets["annotations"]["io.kubernetes.cri.container-type"] = json!("container");
    harden(kubelets.clone(), &Policy::strict(), &of_kubernetes).expect("the kubelet's");
    let refusal = harden(asked.clone(), &Policy::strict(), &of_kubernetes).expect_err("untyped");
    assert!(refusal.to_string().contains("of one kind"), "{refusal}");
    asked["annotations"]["io.kubernetes.cri.sandbox-uid"] = json!("1-b");
    let refusal = harden(asked, &Policy::strict(), &context).expect_err("another pod's");
    assert!(refusal.to_string().contains("sandbox-uid"), "{refusal}");
}

#[test]
fn a_hook_is_what_was_judged_and_no_key_more() {
    let hardened = changed(|spec| {
        spec["hooks"] = json!({
            "poststop": [{ "path": "/bin/true", "Path": "/bin/sh", "env": ["A=1"], "x": 1 }],
            "Prestart": [{ "path": "relative" }],
        });
    })
    .expect("hardened");
    let given = json!({ "poststop": [{ "path": "/bin/true", "env": ["A=1"] }] });
    assert_eq!(hardened.spec.as_map()["hooks"], given);
    let mut changes = hardened.report.changes.iter();
    assert!(changes.any(|change| change.asked == "hooks.Prestart"));
}

#[test]
fn a_sandbox_without_a_cgroup_path_has_one_of_its_own() {
    for path in [Value::Null, json!("")] {
        let hardened = changed(|spec| spec["linux"]["cgroupsPath"] = path).expect("hardened");
        assert_eq!(hardened.spec.cgroup(), Some("/default/c"));
        let written = &hardened.spec.as_map()["linux"]["cgroupsPath"];
        assert_eq!(written, &json!("/default/c"));
    }
}

#[test]
fn the_hosts_own_is_no_root_filesystem_by_any_name() {
    let mut context = context();
    context.host.resolve = |path| match path.to_str()? {
        "/bundle/link" => Some("/".into()),
        "/srv/kernel" => Some("/proc".into()),
        "/srv/image" => Some("/data/image".into()),
        _ => None,
    };
    let given = |path: &str| {
        let mut spec = ordinary();
        spec["root"]["path"] = json!(path);
        let hardened = harden(spec, &Policy::strict(), &context)?;
        Ok::<_, Refusal>(hardened.spec.as_map()["root"]["path"].clone())
    };
    for path in [
        "/",
        "/..",
        "/x/..",
        "..",
        "../run",
        "/proc/1/root",
        "/dev",
        "/run/bulkhead",
        "/run/containerd",
        "link",
        "/srv/kernel",
    ] {
        let refusal = given(path).expect_err(path).to_string();
        assert!(
            refusal.starts_with("root.path") && refusal.contains("never given"),
            "{path}: {refusal}"
        );
    }
    for (path, real) in [
        ("rootfs", "/bundle/rootfs"),
        ("./x/../rootfs", "/bundle/rootfs"),
        ("/srv/image", "/data/image"),
    ] {
        assert_eq!(given(path), Ok(json!(real)));
    }
}

/// A newer kernel's or a newer specification's names, where nothing is done by them.
#[test]
fn unknown_names_in_what_is_dropped_are_not_parsed() {
    let hardened = changed(|spec| {
        let sets = &mut spec["process"]["capabilities"];
        sets["bounding"] = json!(["CAP_CHOWN", "CAP_LATER", "CAP_X\nlevel=error"]);
        sets["ambient"] = json!(["CAP_LATER"]);
        spec["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_LATER", "priority": 1 });
        spec["process"]["scheduler"] = json!({ "policy": "SCHED_LATER", "flags": ["LATER"] });
        spec["process"]["execCPUAffinity"] = json!(7);
        spec["linux"]["personality"] = json!({ "domain": "LATER" });
        spec["linux"]["memoryPolicy"] =
            json!({ "mode": "MPOL_LATER", "nodes": 1, "flags": ["LATER"] });
        spec["linux"]["intelRdt"] = json!("later");
        spec["linux"]["resources"] =
            json!({ "blockIO": "later", "unified": 7, "later": { "x": [] } });
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LATER"],
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_LATER"],
        });
        spec["vm"] = json!({});
    })
    .expect("hardened");
    let text = hardened.spec.as_map()["process"].to_string()
        + &hardened.spec.as_map()["linux"].to_string();
    assert!(!text.contains("LATER") && !text.contains("later"), "{text}");
    let told = |asked: &str| {
        let mut changes = hardened.report.changes.iter();
        changes.any(|change| change.asked == asked)
    };
    for asked in [
        "CAP_LATER CAP_X\\nlevel=error",
        "CAP_CHOWN",
        "process.ioPriority",
        "process.scheduler",
        "process.execCPUAffinity",
        "linux.personality",
        "linux.memoryPolicy",
        "linux.intelRdt",
        "linux.resources.unified",
    ] {
        assert!(told(asked), "{asked}: {:?}", hardened.report.changes);
    }
}

#[test]
fn unknown_names_in_what_is_enforced_are_refused() {
    let refused = [
        changed(|spec| spec["linux"]["namespaces"][0]["type"] = json!("later")),
        changed(|spec| spec["process"]["rlimits"][0]["type"] = json!("RLIMIT_LATER")),
        changed(|spec| spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_LATER" })),
        changed(|spec| spec["linux"]["sysctl"] = json!({ "fs.nr_open": 7 })),
        changed(|spec| spec["linux"]["resources"] = json!({ "memory": { "limit": "later" } })),
        changed(|spec| spec["process"]["capabilities"]["bounding"] = json!("CAP_LATER")),
        changed(|spec| spec["process"]["capabilities"]["bounding"] = json!([7])),
        changed(|spec| spec["process"]["capabilities"] = json!(["CAP_LATER"])),
    ];
    for (number, refused) in refused.into_iter().enumerate() {
        let refusal = refused.map(|_| ()).expect_err(&number.to_string());
        assert_eq!(
            refusal.kind,
            crate::report::RefusalKind::InvalidArgument,
            "{number}: {refusal}"
        );
    }
}

/// One that runsc is not told of would be a folder of the host's.
#[test]
fn a_pod_has_as_many_empty_dirs_as_runsc_is_told_of() {
    fn volumes(count: usize) -> Vec<Volume> {
        let volume = |number| Volume {
            source: format!("/pod/{number}").into(),
            in_memory: false,
            size: None,
        };
        (0..count).map(volume).collect()
    }
    let with = |empty_dirs| {
        let context = Context {
            namespace: "k8s.io",
            kind: ContainerKind::PodSandbox,
            host: HostFacts {
                empty_dirs,
                ..HostFacts::default()
            },
            ..context()
        };
        let mut spec = ordinary();
        spec["annotations"] = json!({
            "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-uid": "uid",
        });
        harden(spec, &Policy::strict(), &context)
    };
    let hardened = with(|_| volumes(256)).expect("hardened");
    // And /dev/shm.
    assert_eq!(hardened.shared.volumes.len(), 257);
    let refusal = with(|_| volumes(257)).expect_err("refused");
    assert!(refusal.to_string().contains("/pod/256"), "{refusal}");
}
