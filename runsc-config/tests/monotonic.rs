//! Whatever is asked, by whomever, under whatever policy, the result is never weaker than the policy; and nothing that is asked
//! makes it panic.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod common;

use common::{Allowed, Asker, assert_held, base, hardened};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use runsc_config::{Policy, harden_exec};
use serde_json::{Map, Value, json};

const CAPABILITIES: [&str; 6] = [
    "CAP_CHOWN",
    "CAP_SYS_ADMIN",
    "CAP_NET_RAW",
    "CAP_SYS_PTRACE",
    "CAP_MKNOD",
    "CAP_SYS_CHROOT",
];

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

fn some_capabilities() -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(CAPABILITIES.to_vec(), 0..=CAPABILITIES.len())
}

fn capability_sets() -> impl Strategy<Value = Value> {
    let set = some_capabilities;
    (set(), set(), set(), set(), set()).prop_map(|(a, b, c, d, e)| {
        json!({ "bounding": a, "effective": b, "inheritable": c, "permitted": d, "ambient": e })
    })
}

fn mounts() -> impl Strategy<Value = Value> {
    let never = proptest::sample::select(vec![
        "/home/u/link",
        "/",
        "/run/docker.sock",
        "/proc/1",
        "/etc/../run",
        "/run/bulkhead/x",
        "../..",
    ]);
    // What is refused as a whole says little: most of it is what can be given.
    let source = prop_oneof![12 => Just("/home/u/work"), 1 => never];
    let refused = proptest::sample::select(vec!["ext4", "overlay"]);
    let given = proptest::sample::select(vec!["bind", "tmpfs", "tmpfs", "proc", "cgroup"]);
    let kind = prop_oneof![20 => given, 1 => refused];
    let options = proptest::sample::subsequence(
        vec![
            "rw", "ro", "exec", "suid", "dev", "rshared", "size=9g", "size=1m", "mode=777",
        ],
        0..6,
    );
    let more = prop_oneof![8 => Just(None), 1 => Just(Some("rbind")), 1 => Just(Some("idmap"))];
    let options = (options, more).prop_map(|(mut options, more)| {
        options.extend(more);
        options
    });
    let mount = (source, kind, options, "/[a-z]{1,6}").prop_map(|(source, kind, options, destination)| {
        json!({ "source": source, "type": kind, "options": options, "destination": destination })
    });
    vec(mount, 0..3).prop_map(Value::from)
}

fn seccomp() -> impl Strategy<Value = Value> {
    let refused = proptest::sample::select(vec![
        json!({ "defaultAction": "SCMP_ACT_LOG" }),
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 7, "value": 0, "op": "SCMP_CMP_EQ" }] },
        ]}),
    ]);
    let given = proptest::sample::select(vec![
        Value::Null,
        json!({ "defaultAction": "SCMP_ACT_ALLOW" }),
        json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            { "names": ["read", "mount", "ptrace", "bpf", "chroot", "clone"], "action": "SCMP_ACT_ALLOW" },
        ]}),
    ]);
    prop_oneof![10 => given, 1 => refused]
}

/// Of runsc, of Bulkhead, of containerd, and of anybody.
fn annotations() -> impl Strategy<Value = Map<String, Value>> {
    let bulkheads =
        proptest::option::weighted(0.3, proptest::sample::select(vec!["sandbox", "none"]));
    let namespace = proptest::sample::select(vec!["granted", "other"]);
    let others = btree_map(
        "(dev\\.gvisor\\.[a-z.]{1,20}|[a-z.]{1,10})",
        "[a-z]{0,5}",
        0..4,
    );
    (bulkheads, namespace, others).prop_map(|(network, namespace, others)| {
        let mut all: Map<String, Value> = others
            .into_iter()
            .map(|(key, value)| (key, Value::from(value)))
            .collect();
        if let Some(network) = network {
            all.insert("dev.bulkhead.network".to_owned(), network.into());
        }
        let key = "io.kubernetes.cri.sandbox-namespace".to_owned();
        all.insert(key, namespace.into());
        all
    })
}

/// Specs that look like real ones, with everything in them that could loosen a sandbox.
fn spec() -> impl Strategy<Value = Value> {
    (
        capability_sets(),
        mounts(),
        annotations(),
        seccomp(),
        any::<(bool, bool, u32, Option<i64>, Option<i64>)>(),
        (any_json(), proptest::bool::weighted(0.95)),
    )
        .prop_map(|(capabilities, mounts, annotations, seccomp, flags, (extra, with_network))| {
            let (read_only, no_new_privileges, uid, memory, pids) = flags;
            let limit = |limit: Option<i64>| limit.map_or(json!({}), |limit| json!({ "limit": limit }));
            let kinds = ["pid", "ipc", "uts", "mount", "network"];
            let given = kinds.iter().filter(|kind| with_network || **kind != "network");
            let mut linux = Map::from_iter([
                ("namespaces".to_owned(), given.map(|kind| json!({ "type": kind })).collect()),
                ("resources".to_owned(), json!({ "memory": limit(memory), "pids": limit(pids) })),
                ("mountLabel".to_owned(), json!("system_u:object_r:x")),
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
                    "selinuxLabel": "x", "apparmorProfile": "unconfined",
                },
                "mounts": mounts, "annotations": annotations, "linux": linux, "unknown": extra,
            })
        })
}

fn allowed() -> impl Strategy<Value = Allowed> {
    let numbers = (1_u64..2000, 16_u64..5000);
    (
        any::<(bool, bool, bool, bool)>(),
        some_capabilities(),
        numbers,
    )
        .prop_map(
            |((network, writable, exec, grants), capabilities, (tasks, open_files))| Allowed {
                network,
                writable,
                exec,
                capabilities: capabilities.into_iter().map(str::to_owned).collect(),
                tasks,
                open_files,
                grants,
            },
        )
}

fn asker() -> impl Strategy<Value = Asker> {
    proptest::sample::select(vec![Asker::Client, Asker::Sandbox, Asker::Container])
}

/// With what only containerd's CRI plugin writes, where it is a pod's.
fn marked(mut spec: Value, asker: Asker) -> Value {
    let kind = match asker {
        Asker::Client => return spec,
        Asker::Sandbox => "sandbox",
        Asker::Container => "container",
    };
    spec["annotations"]["io.kubernetes.cri.container-type"] = kind.into();
    spec
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_spec_is_given_more_than_the_policy_allows(spec in spec(), allowed in allowed(), asker in asker()) {
        let asked = marked(spec, asker);
        let kinds = asked["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
        let host_network = !kinds.iter().any(|namespace| namespace["type"] == "network");
        if let Ok(hardened) = hardened(asked.clone(), &allowed.policy(), asker) {
            prop_assert!(!host_network, "the host's network was given");
            assert_held(&asked, &hardened, &allowed, asker);
            // Of all that is asked for here only these may be given.
            for mount in hardened.spec.as_map()["mounts"].as_array().expect("mounts") {
                let given = ["/home/u/work", "/bundle/tmpfs"].iter().any(|given| mount["source"] == *given);
                prop_assert!(mount["type"] != "bind" || given, "{}", mount);
            }
        }
    }

    #[test]
    fn no_spec_is_given_more_than_the_strict_policy(spec in spec(), asker in asker()) {
        let asked = marked(spec, asker);
        if let Ok(hardened) = hardened(asked.clone(), &Policy::strict(), asker) {
            assert_held(&asked, &hardened, &Allowed::nothing(), asker);
        }
    }

    #[test]
    fn nothing_that_is_asked_panics(spec in any_json(), process in any_json(), asker in asker()) {
        let _ = hardened(spec.clone(), &Policy::strict(), asker);
        let mut with_extra = base();
        with_extra["linux"]["extra"] = spec;
        if let Ok(base) = hardened(with_extra, &Policy::strict(), asker) {
            let _ = harden_exec(process, &base.exec);
        }
    }

    #[test]
    fn an_exec_never_has_what_its_container_may_not(
        capabilities in capability_sets(), uid in any::<u32>(), allowed in allowed(), asker in asker(),
    ) {
        let base = hardened(marked(base(), asker), &allowed.policy(), asker).expect("base");
        let process = json!({
            "args": ["sh"], "cwd": "/", "user": { "uid": uid, "gid": 0 }, "capabilities": capabilities, "noNewPrivileges": false,
        });
        let process = harden_exec(process, &base.exec).expect("exec");
        let mut mask = 0_u64;
        for (number, name) in [(0, "CAP_CHOWN"), (13, "CAP_NET_RAW"), (18, "CAP_SYS_CHROOT"), (19, "CAP_SYS_PTRACE"),
                               (21, "CAP_SYS_ADMIN"), (27, "CAP_MKNOD")] {
            if allowed.capabilities.iter().any(|one| one == name) {
                mask |= 1 << number;
            }
        }
        let sets = process.capabilities();
        for set in [sets.permitted, sets.inheritable, sets.effective, sets.bounding, sets.ambient] {
            prop_assert_eq!(set & !mask, 0, "more than the policy's");
        }
        prop_assert!(process.no_new_privileges());
        // In Kubernetes an exec is its container's user, whoever is asked for.
        prop_assert_eq!(process.uid(), if asker == Asker::Client { uid } else { 0 });
    }

    #[test]
    fn no_policy_text_panics(text in ".{0,200}") {
        let _ = Policy::parse(&text, "p");
    }
}
