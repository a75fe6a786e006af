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
            "io.kubernetes.cri.container-type": "", "io.kubernetes.cri-o.SandboxID": "", "mine": "z",
        });
    })
    .expect("hardened");
    let annotations = &hardened.spec.as_map()["annotations"];
    assert_eq!(annotations, &json!({ "mine": "z" }));
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
