//! Whatever is asked, the result is never weaker than the policy; and nothing that is asked makes it panic.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use runsc_config::{
    ContainerKind, Context, Features, Hardened, HostFacts, Policy, harden, harden_exec,
};
use serde_json::{Map, Value, json};

const CAPABILITIES: [&str; 5] = [
    "CAP_CHOWN",
    "CAP_SYS_ADMIN",
    "CAP_NET_RAW",
    "CAP_SYS_PTRACE",
    "CAP_MKNOD",
];

fn features() -> Features {
    let flags = [
        "root",
        "network",
        "oci-seccomp",
        "directfs",
        "platform",
        "host-uds",
        "host-fifo",
        "net-raw",
        "allow-suid",
        "overlay2",
        "allow-flag-override",
    ];
    let help: String = flags
        .iter()
        .map(|flag| format!("  -{flag} value\n"))
        .collect();
    let actions = json!([
        "SCMP_ACT_KILL",
        "SCMP_ACT_TRAP",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_ALLOW"
    ]);
    let features = json!({ "linux": { "seccomp": { "actions": actions } } }).to_string();
    Features::parse(&help, Some(&features)).expect("features")
}

fn hardened(spec: Value, policy: &Policy) -> Option<Hardened> {
    let features = features();
    let context = Context {
        id: "c",
        sandbox_id: "c",
        kind: ContainerKind::Plain,
        namespace: "default",
        bundle: Path::new("/bundle"),
        features: &features,
        host: HostFacts::default(),
    };
    harden(spec, policy, &context).ok()
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z/._]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map("[a-zA-Z]{1,10}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn capability_sets() -> impl Strategy<Value = Value> {
    let set = || proptest::sample::subsequence(CAPABILITIES.to_vec(), 0..=CAPABILITIES.len());
    (set(), set(), set(), set(), set()).prop_map(|(a, b, c, d, e)| {
        json!({ "bounding": a, "effective": b, "inheritable": c, "permitted": d, "ambient": e })
    })
}

fn mounts() -> impl Strategy<Value = Value> {
    let source = prop_oneof![
        Just("/home/u/work"),
        Just("/"),
        Just("/run/docker.sock"),
        Just("/proc/1"),
        Just("/etc/../run"),
        Just("tmpfs"),
    ];
    let kind = prop_oneof![
        Just("bind"),
        Just("tmpfs"),
        Just("proc"),
        Just("ext4"),
        Just("cgroup")
    ];
    let options = proptest::sample::subsequence(
        vec![
            "rw", "ro", "exec", "suid", "dev", "rbind", "rshared", "size=9g", "size=1m", "idmap",
        ],
        0..6,
    );
    let mount = (source, kind, options, "/[a-z]{1,6}").prop_map(|(source, kind, options, destination)| {
        json!({ "source": source, "type": kind, "options": options, "destination": destination })
    });
    vec(mount, 0..4).prop_map(Value::from)
}

/// Specs that look like real ones, with everything in them that could loosen a sandbox.
fn spec() -> impl Strategy<Value = Value> {
    let annotations = btree_map(
        "(dev\\.gvisor\\.[a-z.]{1,20}|[a-z.]{1,10})",
        "[a-z]{0,5}",
        0..4,
    );
    let seccomp = prop_oneof![
        Just(Value::Null),
        Just(json!({ "defaultAction": "SCMP_ACT_ALLOW" })),
        Just(json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            { "names": ["read", "mount", "ptrace", "bpf"], "action": "SCMP_ACT_ALLOW" },
        ]})),
    ];
    (
        capability_sets(),
        mounts(),
        annotations,
        seccomp,
        any::<(bool, bool, bool, u32, Option<i64>, Option<i64>)>(),
        any_json(),
    )
        .prop_map(|(capabilities, mounts, annotations, seccomp, flags, extra)| {
            let (read_only, no_new_privileges, with_network, uid, memory, pids) = flags;
            let kinds = ["pid", "ipc", "uts", "mount", "network"];
            let given = kinds.iter().filter(|kind| with_network || **kind != "network");
            let mut linux = Map::from_iter([
                ("namespaces".to_owned(), given.map(|kind| json!({ "type": kind })).collect()),
                ("resources".to_owned(), json!({ "memory": { "limit": memory }, "pids": { "limit": pids } })),
            ]);
            if !seccomp.is_null() {
                linux.insert("seccomp".to_owned(), seccomp);
            }
            json!({
                "ociVersion": "1.1.0",
                "root": { "path": "rootfs", "readonly": read_only },
                "process": {
                    "args": ["sh"], "cwd": "/", "user": { "uid": uid, "gid": uid },
                    "noNewPrivileges": no_new_privileges, "capabilities": capabilities,
                    "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1_000_000, "soft": 1_000_000 }],
                },
                "mounts": mounts, "annotations": annotations, "linux": linux, "unknown": extra,
            })
        })
}

fn texts<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn is_strict(hardened: &Hardened) {
    let spec = Value::Object(hardened.spec.as_map().clone());
    assert_eq!(spec["root"]["readonly"], json!(true));
    assert_eq!(spec["process"]["noNewPrivileges"], json!(true));
    for set in [
        "bounding",
        "effective",
        "inheritable",
        "permitted",
        "ambient",
    ] {
        assert!(
            texts(&spec, &format!("/process/capabilities/{set}")).is_empty(),
            "{set}"
        );
    }
    for limit in spec["process"]["rlimits"].as_array().expect("rlimits") {
        let most = match limit["type"].as_str().expect("type") {
            "RLIMIT_NOFILE" => 1024,
            "RLIMIT_NPROC" => 256,
            _ => 0,
        };
        assert!(limit["hard"].as_u64().expect("hard") <= most, "{limit}");
    }
    assert_eq!(
        spec["linux"]["seccomp"]["defaultAction"],
        json!("SCMP_ACT_ERRNO")
    );
    for entry in spec["linux"]["seccomp"]["syscalls"]
        .as_array()
        .expect("syscalls")
    {
        let names = texts(entry, "/names");
        let denied = [
            "mount",
            "ptrace",
            "bpf",
            "unshare",
            "setns",
            "keyctl",
            "io_uring_setup",
        ];
        assert!(
            !denied.iter().any(|name| names.contains(name)) || entry["action"] != "SCMP_ACT_ALLOW"
        );
    }
    assert!(
        spec["linux"]["resources"]["memory"]["limit"]
            .as_i64()
            .is_some_and(|limit| limit > 0)
    );
    // The host's ceiling is out of the guest's reach: at it the sentry panics.
    let tasks = spec["process"]["rlimits"].as_array().expect("limits");
    let tasks = tasks.iter().find(|limit| limit["type"] == "RLIMIT_NPROC");
    let tasks = tasks
        .and_then(|limit| limit["hard"].as_u64())
        .expect("a limit");
    let ceiling = spec["linux"]["resources"]["pids"]["limit"].as_u64();
    assert!(ceiling.is_some_and(|ceiling| ceiling >= 4 * tasks + 256));
    for mount in spec["mounts"].as_array().expect("mounts") {
        let options = texts(mount, "/options");
        if mount["type"] == "bind" {
            let source = mount["source"].as_str().expect("source");
            assert!(
                ["/home/u/work", "/bundle/tmpfs"].contains(&source),
                "{mount}"
            );
            assert!(
                options.contains(&"nodev") && options.contains(&"nosuid"),
                "{mount}"
            );
        }
        if mount["type"] == "tmpfs" && mount["destination"] != "/dev" {
            assert!(
                options.contains(&"noexec") && !options.contains(&"exec"),
                "{mount}"
            );
            assert_eq!(
                options
                    .iter()
                    .filter(|option| option.starts_with("size="))
                    .count(),
                1,
                "{mount}"
            );
        }
    }
    let annotations = spec["annotations"].as_object().cloned().unwrap_or_default();
    assert!(!annotations.keys().any(|key| key.starts_with("dev.gvisor.")));
    assert!(spec.get("unknown").is_none());
    assert!(hardened.flags.args().contains(&"--network=none".to_owned()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_spec_is_given_more_than_the_strict_policy(spec in spec()) {
        let host_network = !texts_of_kinds(&spec).contains(&"network".to_owned());
        if let Some(hardened) = hardened(spec, &Policy::strict()) {
            prop_assert!(!host_network, "the host's network was given");
            is_strict(&hardened);
        }
    }

    #[test]
    fn nothing_that_is_asked_panics(spec in any_json(), process in any_json()) {
        let _ = hardened(spec.clone(), &Policy::strict());
        let base = hardened(json!({
            "ociVersion": "1.1.0", "root": { "path": "r" }, "process": { "args": ["a"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "network" }], "extra": spec },
        }), &Policy::strict());
        if let Some(base) = base {
            let _ = harden_exec(process, &base.exec);
        }
    }

    #[test]
    fn an_exec_never_has_what_its_container_may_not(capabilities in capability_sets(), uid in any::<u32>()) {
        let policy = Policy::parse("[capabilities]\nallow = [\"CAP_CHOWN\"]", "p").expect("policy");
        let base = hardened(json!({
            "ociVersion": "1.1.0", "root": { "path": "r" }, "process": { "args": ["a"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "network" }] },
        }), &policy).expect("base");
        let process = json!({
            "args": ["sh"], "cwd": "/", "user": { "uid": uid, "gid": 0 }, "capabilities": capabilities, "noNewPrivileges": false,
        });
        let process = harden_exec(process, &base.exec).expect("exec");
        let sets = process.capabilities();
        for mask in [sets.permitted, sets.inheritable, sets.effective, sets.bounding, sets.ambient] {
            prop_assert_eq!(mask & !1, 0, "more than CAP_CHOWN");
        }
        prop_assert!(process.no_new_privileges());
        prop_assert_eq!(process.uid(), uid);
    }

    #[test]
    fn no_policy_text_panics(text in ".{0,200}") {
        let _ = Policy::parse(&text, "p");
    }
}

fn texts_of_kinds(spec: &Value) -> Vec<String> {
    let list = spec["linux"]["namespaces"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    list.iter()
        .filter_map(|namespace| namespace["type"].as_str().map(str::to_owned))
        .collect()
}
