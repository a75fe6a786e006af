//! Specs and policies, with everything in them that could loosen a sandbox.
#![allow(
    dead_code,
    reason = "each program that includes this uses a part of it"
)]

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

use crate::common::{Allowed, Asker};

const CAPABILITIES: [&str; 6] = [
    "CAP_CHOWN",
    "CAP_SYS_ADMIN",
    "CAP_NET_RAW",
    "CAP_SYS_PTRACE",
    "CAP_MKNOD",
    "CAP_SYS_CHROOT",
];

pub fn any_json() -> impl Strategy<Value = Value> {
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
    subsequence(CAPABILITIES.to_vec(), 0..=CAPABILITIES.len())
}

pub fn capability_sets() -> impl Strategy<Value = Value> {
    let set = some_capabilities;
    (set(), set(), set(), set(), set()).prop_map(|(a, b, c, d, e)| {
        json!({ "bounding": a, "effective": b, "inheritable": c, "permitted": d, "ambient": e })
    })
}

fn mounts() -> impl Strategy<Value = Value> {
    let never = select(vec![
        "/home/u/link",
        "/",
        "/run/docker.sock",
        "/proc/1",
        "/etc/../run",
        "/run/bulkhead/x",
        "../..",
        "/run/containerd",
        "/var/lib/kubelet/pods/0b-1/volume-subpaths/host/c/0",
        "/var/lib/kubelet/pods/0b-1/plugins/x",
        "/var/lib/kubelet/pods/0b-1/containers/main",
        "/var/lib/kubelet/pods/0b-2/volumes/v",
    ]);
    let of_a_pod = select(vec![
        "/var/lib/kubelet/pods/0b-1/volumes/v",
        "/var/lib/kubelet/pods/0b-1/volume-subpaths/own/c/0",
        "/var/lib/kubelet/pods/0b-1/etc-hosts",
        "/var/lib/kubelet/pods/0b-1/containers/main/1a2b",
        "/srv/models/a",
        "/srv/results",
    ]);
    // What is refused as a whole says little: most of it is what can be given.
    let source = prop_oneof![6 => Just("/home/u/work"), 12 => of_a_pod, 1 => never];
    let refused = select(vec!["ext4", "overlay"]);
    let given = select(vec!["bind", "tmpfs", "tmpfs", "proc", "cgroup"]);
    let kind = prop_oneof![20 => given, 1 => refused];
    let options = subsequence(
        vec![
            "rw", "ro", "exec", "suid", "dev", "rshared", "slave", "size=9g", "size=1m", "mode=777",
        ],
        0..6,
    );
    let more = prop_oneof![8 => Just(None), 1 => Just(Some("rbind")), 1 => Just(Some("idmap"))];
    let options = (options, more).prop_map(|(mut options, more)| {
        options.extend(more);
        options
    });
    let mount = (source, kind, options, "(/tmp|/run|/var/run|/dev/shm|/etc/hosts|/etc/resolv.conf|/[a-z]{1,6})").prop_map(|(source, kind, options, destination)| {
        json!({
            "source": source, "type": kind, "options": options, "destination": destination, "Source": "/", "uidMappingſ": [],
        })
    });
    vec(mount, 0..3).prop_map(Value::from)
}

fn seccomp() -> impl Strategy<Value = Value> {
    let refused = select(vec![
        json!({ "defaultAction": "SCMP_ACT_LOG" }),
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 7, "value": 0, "op": "SCMP_CMP_EQ" }] },
        ]}),
    ]);
    let given = select(vec![
        Value::Null,
        json!({ "defaultAction": "SCMP_ACT_ALLOW" }),
        json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            { "names": ["read", "mount", "ptrace", "bpf", "chroot", "clone"], "action": "SCMP_ACT_ALLOW" },
        ]}),
    ]);
    prop_oneof![8 => given, 3 => profile(), 1 => refused]
}

/// Calls of each kind: given, denied, with conditions of their own, with a capability, and unknown to gVisor.
pub const CALLED: [&str; 14] = [
    "read",
    "openat",
    "socket",
    "personality",
    "clone",
    "clone3",
    "chroot",
    "sethostname",
    "ptrace",
    "mount",
    "unshare",
    "keyctl",
    "mq_notify",
    "fchmodat2",
];

/// Values that conditions compare with, and so arguments to try.
pub const VALUES: [u64; 9] = [
    0,
    1,
    2,
    17,
    0x0002_0000,
    0x1000_0000,
    0x7e02_0000,
    0xffff_ffff,
    u64::MAX,
];

/// Profiles of callers: every action, and conditions in any order; what gVisor cannot enforce among them.
pub fn profile() -> impl Strategy<Value = Value> {
    let action = || {
        select(vec![
            json!({ "action": "SCMP_ACT_ALLOW" }),
            json!({ "action": "SCMP_ACT_ALLOW" }),
            json!({ "action": "SCMP_ACT_ALLOW" }),
            json!({ "action": "SCMP_ACT_ERRNO" }),
            json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }),
            json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": 13 }),
            json!({ "action": "SCMP_ACT_KILL_PROCESS" }),
            json!({ "action": "SCMP_ACT_TRAP" }),
            json!({ "action": "SCMP_ACT_TRACE" }),
        ])
    };
    let operators = vec![
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ];
    let value = || select(VALUES.to_vec());
    let condition = (0_u64..3, value(), value(), select(operators));
    let condition = condition.prop_map(
        |(index, value, two, op)| json!({ "index": index, "value": value, "valueTwo": two, "op": op }),
    );
    let conditions = prop_oneof![2 => Just(Vec::new()), 1 => vec(condition, 1..3)];
    let names = subsequence(CALLED.to_vec(), 1..6);
    let entry = (names, action(), conditions).prop_map(|(names, mut entry, args)| {
        entry["names"] = json!(names);
        entry["args"] = args.into();
        entry
    });
    (action(), vec(entry, 0..7)).prop_map(|(default, entries)| {
        json!({ "defaultAction": default["action"], "defaultErrnoRet": default["errnoRet"], "syscalls": entries })
    })
}

/// Of runsc, of Bulkhead, of containerd, and of anybody.
fn annotations() -> impl Strategy<Value = Map<String, Value>> {
    let bulkheads = vec![
        ("network", "sandbox"),
        ("network", "none"),
        ("rootfs", "writable"),
        ("scratch", "exec"),
        ("binds", "exclusive"),
        ("binds", "shared"),
    ];
    let bulkheads = proptest::option::weighted(0.3, select(bulkheads));
    let namespace = select(vec!["granted", "other"]);
    let uid = select(vec!["0b-1", "0b-1", "../..", ""]);
    let others = btree_map(
        "(dev\\.gvisor\\.[a-z.]{1,20}|[a-z.]{1,10})",
        "[a-z]{0,5}",
        0..4,
    );
    (bulkheads, namespace, uid, others).prop_map(|(bulkheads, namespace, uid, others)| {
        let mut all: Map<String, Value> = others
            .into_iter()
            .map(|(key, value)| (key, Value::from(value)))
            .collect();
        if let Some((control, value)) = bulkheads {
            all.insert(format!("dev.bulkhead.{control}"), value.into());
        }
        for (key, value) in [("namespace", namespace), ("uid", uid)] {
            all.insert(format!("io.kubernetes.cri.sandbox-{key}"), value.into());
        }
        all
    })
}

/// The namespaces that a client asks for, and now and then the host's by one way or the other.
fn namespaces() -> impl Strategy<Value = Value> {
    let change = select(vec![
        json!({ "type": "network", "path": "/proc/1/ns/net" }),
        json!({ "type": "user" }),
        json!({ "type": "time" }),
        json!({ "type": "network" }),
        json!({ "type": "pid", "path": "/proc/1/ns/pid" }),
    ]);
    let change = proptest::option::weighted(0.1, change);
    let missing = select(vec!["network", "pid", "ipc"]);
    let missing = proptest::option::weighted(0.05, missing);
    let optional = subsequence(vec!["uts", "mount", "cgroup"], 0..=3);
    let network = select(vec![Value::Null, json!("/run/netns/x")]);
    (change, missing, optional, network).prop_map(|(change, missing, optional, network)| {
        let kinds = ["network", "pid", "ipc"].into_iter();
        let kinds = kinds.filter(|kind| Some(*kind) != missing).chain(optional);
        let all = kinds.map(|kind| match (kind, &network) {
            ("network", Value::String(path)) => json!({ "type": kind, "path": path }),
            // Go reads a key in any case.
            _ => json!({ "type": kind, "Path": format!("/proc/1/ns/{kind}") }),
        });
        all.chain(change).collect()
    })
}

/// What else of the Linux section could be the host's.
fn linux() -> impl Strategy<Value = Map<String, Value>> {
    let given = subsequence(
        vec![
            (
                "sysctl",
                json!({
                    "net.ipv4.ip_unprivileged_port_start": "0", "fs.nr_open": "9",
                    "net.ipv6.conf.all.disable_ipv6": "1", "net.ipv4.tcp_rmem": "1 2 3",
                }),
            ),
            (
                "devices",
                json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 }]),
            ),
            ("maskedPaths", json!(["/proc/kcore"])),
            ("mountLabel", json!("system_u:object_r:x")),
            ("rootfsPropagation", json!("rshared")),
            ("cgroupsPath", json!("/a/b")),
            ("intelRdt", json!({ "closID": "x" })),
            ("personality", json!({ "domain": "LINUX" })),
        ],
        0..6,
    );
    let refused = select(vec![
        ("sysctl", json!({ "kernel.shmmax": "1" })),
        (
            "devices",
            json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }]),
        ),
        (
            "uidMappings",
            json!([{ "containerID": 0, "hostID": 0, "size": 1 }]),
        ),
        (
            "gidMappings",
            json!([{ "containerID": 0, "hostID": 0, "size": 1 }]),
        ),
        ("cgroupsPath", json!("/")),
        ("cgroupsPath", json!("/a/./b")),
        ("cgroupsPath", json!("../a")),
    ]);
    let refused = proptest::option::weighted(0.1, refused);
    (given, refused).prop_map(|(given, refused)| {
        let all = given.into_iter().chain(refused);
        all.map(|(key, value)| (key.to_owned(), value)).collect()
    })
}

fn resources() -> impl Strategy<Value = Value> {
    let number = || proptest::option::of(prop_oneof![any::<i64>(), 1_i64 << 26..1 << 32]);
    let cpu = proptest::option::of((0_i64..400_000, 1_000_u64..1_000_000));
    (number(), number(), cpu).prop_map(|(memory, pids, cpu)| {
        let limit = |limit: Option<i64>| limit.map_or(json!({}), |limit| json!({ "limit": limit }));
        let mut all = json!({
            "memory": limit(memory), "pids": limit(pids), "unified": { "memory.max": "max" },
            "hugepageLimits": [{ "pageSize": "2MB", "limit": 1 }], "Memory": { "limit": -1 },
        });
        if let Some((quota, period)) = cpu {
            all["cpu"] = json!({ "quota": quota, "period": period, "realtimeRuntime": 5 });
        }
        all
    })
}

fn root() -> impl Strategy<Value = &'static str> {
    let refused = select(vec![
        "/",
        "/..",
        "../..",
        "/proc/1/root",
        "/dev",
        "/home/u/link",
    ]);
    prop_oneof![12 => select(vec!["rootfs", "/srv/image", "a/../b"]), 1 => refused]
}

/// Less than a policy's, more, and none at all.
fn rlimits() -> impl Strategy<Value = Value> {
    let kind = select(vec![
        "RLIMIT_NOFILE",
        "RLIMIT_NPROC",
        "RLIMIT_CORE",
        "RLIMIT_STACK",
        "RLIMIT_MEMLOCK",
        "RLIMIT_RTPRIO",
    ]);
    let number = || prop_oneof![0_u64..2000, Just(u64::MAX)];
    let limit = (kind, number(), number())
        .prop_map(|(kind, a, b)| json!({ "type": kind, "hard": a.max(b), "soft": a.min(b) }));
    vec(limit, 0..6).prop_map(Value::from)
}

fn process() -> impl Strategy<Value = Value> {
    let score = proptest::option::of(-1000_i64..=1000);
    let asked = (capability_sets(), any::<(bool, u32)>(), score, rlimits());
    asked.prop_map(|(capabilities, flags, score, rlimits)| {
        let (no_new_privileges, uid) = flags;
        // Root in every second one.
        let uid = if uid % 2 == 0 { 0 } else { uid };
        let mut process = json!({
            "args": ["sh"], "cwd": "/", "user": { "uid": uid, "gid": uid, "Uid": 0 },
            "noNewPrivileges": no_new_privileges, "capabilities": capabilities,
            "rlimits": rlimits,
            "selinuxLabel": "x", "apparmorProfile": "unconfined", "ioPriority": { "class": "IOPRIO_CLASS_RT" },
        });
        if let Some(score) = score {
            process["oomScoreAdj"] = score.into();
        }
        process
    })
}

fn hooks() -> impl Strategy<Value = Value> {
    select(vec![
        Value::Null,
        json!({}),
        json!({ "createRuntime": [{ "path": "/bin/true", "Path": "/bin/sh", "timeout": 1 }] }),
        json!({ "CreateRuntime": [{ "path": "/bin/sh" }], "poststop": [{ "path": "/bin/true" }] }),
    ])
}

/// Specs that look like real ones, with everything in them that could loosen a sandbox.
pub fn spec() -> impl Strategy<Value = Value> {
    let sections = (process(), root(), mounts(), annotations(), hooks());
    let linux = (linux(), namespaces(), resources(), seccomp());
    (sections, linux, any::<bool>(), any_json()).prop_map(|(sections, linux, read_only, extra)| {
        let (process, root, mounts, annotations, hooks) = sections;
        let (mut linux, namespaces, resources, seccomp) = linux;
        linux.insert("namespaces".to_owned(), namespaces);
        linux.insert("resources".to_owned(), resources);
        if !seccomp.is_null() {
            linux.insert("seccomp".to_owned(), seccomp);
        }
        json!({
            "ociVersion": "1.1.0", "process": process, "hooks": hooks,
            "root": { "path": root, "readonly": read_only, "Path": "/", "readonlY": false },
            "mounts": mounts, "annotations": annotations, "linux": linux, "unknown": extra, "Linux": { "namespaces": [] },
        })
    })
}

/// Policies, of the strictest and of any.
pub fn allowed() -> impl Strategy<Value = Allowed> {
    let flags = any::<([bool; 10], [bool; 3])>();
    let numbers = (
        1_u64..2000,
        16_u64..5000,
        64_u64..4096,
        1_u64..800,
        64_u64..1_048_576,
    );
    let sizes = [1_u64..200, 1..200, 1..200, 1..5000];
    let folders = vec!["/srv/models", "/srv/results"];
    let binds = [
        subsequence(folders.clone(), 0..=2),
        subsequence(folders, 0..=2),
    ];
    (flags, some_capabilities(), numbers, sizes, binds).prop_map(
        |((flags, grants), capabilities, numbers, sizes, binds)| {
            let [
                network,
                writable,
                exec,
                root,
                set_uid,
                unconfined,
                propagation,
                exclusive,
                directfs,
                kvm,
            ] = flags;
            let (tasks, open_files, memory_mib, cpu, dentries) = numbers;
            Allowed {
                network,
                writable,
                exec,
                root,
                set_uid: set_uid && root,
                unconfined: unconfined && !directfs,
                propagation,
                exclusive,
                directfs,
                kvm,
                capabilities: capabilities.into_iter().map(str::to_owned).collect(),
                tasks,
                open_files,
                dentries,
                memory_mib,
                cpu,
                sizes,
                binds,
                grants,
            }
        },
    )
}

/// A policy, and one that allows all that it does and may allow more.
pub fn looser() -> impl Strategy<Value = (Allowed, Allowed)> {
    (allowed(), allowed()).prop_map(|(strict, other)| {
        let both = |a: &[&'static str], b: &[&'static str]| {
            let new = b.iter().filter(|one| !a.contains(one));
            a.iter().chain(new).copied().collect::<Vec<_>>()
        };
        let mut capabilities = strict.capabilities.clone();
        capabilities.extend(other.capabilities.iter().cloned());
        capabilities.sort();
        capabilities.dedup();
        let [read_only, writable] =
            [0, 1].map(|list| both(&strict.binds[list], &other.binds[list]));
        let loose = Allowed {
            network: strict.network || other.network,
            writable: strict.writable || other.writable,
            exec: strict.exec || other.exec,
            root: strict.root || other.root,
            set_uid: strict.set_uid || other.set_uid,
            unconfined: strict.unconfined || (other.unconfined && !strict.directfs),
            propagation: strict.propagation || other.propagation,
            exclusive: strict.exclusive || other.exclusive,
            // Not together with `unconfined`.
            directfs: strict.directfs || (other.directfs && !strict.unconfined),
            kvm: strict.kvm,
            capabilities,
            tasks: strict.tasks.max(other.tasks),
            open_files: strict.open_files.max(other.open_files),
            dentries: strict.dentries.max(other.dentries),
            memory_mib: strict.memory_mib.max(other.memory_mib),
            cpu: strict.cpu.max(other.cpu),
            sizes: [0, 1, 2, 3].map(|size| strict.sizes[size].max(other.sizes[size])),
            binds: [read_only, writable],
            grants: [0, 1, 2].map(|grant| strict.grants[grant] || other.grants[grant]),
        };
        (strict, loose)
    })
}

pub fn asker() -> impl Strategy<Value = Asker> {
    select(vec![Asker::Client, Asker::Sandbox, Asker::Container])
}

/// With what only containerd's CRI plugin writes, where it is a pod's; of a client's, some come by another engine.
pub fn marked(mut spec: Value, asker: Asker) -> Value {
    let kind = match asker {
        Asker::Client => {
            if let Some(annotations) = spec["annotations"].as_object_mut()
                && annotations.get("io.kubernetes.cri.sandbox-uid") != Some(&json!(""))
            {
                annotations.retain(|key, _| !key.starts_with("io.kubernetes.cri"));
            }
            return spec;
        }
        Asker::Sandbox => "sandbox",
        Asker::Container => "container",
    };
    spec["annotations"]["io.kubernetes.cri.container-type"] = kind.into();
    spec
}
