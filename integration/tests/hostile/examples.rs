//! The example policies in `docs/policies`: each gives what it says, and nothing beyond.

use std::collections::BTreeSet;
use std::path::Path;

use integration::bed::{Bed, IMAGE};
use integration::cases;
use integration::container::overlay;
use integration::policy::NodePolicy;
use integration::runtime::Needs;
use integration::spec::{CAPABILITIES, ask_capabilities};
use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

use crate::contender::Contender;
use crate::outcome::Outcome;
use crate::stage::Stage;

cases! {
    Needs::Bulkhead => [
        strict_gives_nothing,
        network_gives_a_network_and_nothing_else,
        ordinary_gives_ordinary_images_what_they_want_and_no_host,
        compat_gives_what_gvisor_has_and_no_host,
        root_with_everything_is_not_bound_by_a_number_of_tasks_and_others_live,
        a_set_uid_program_works_where_the_policy_lets_it,
        the_capability_to_administer_brings_the_host_name_alone,
        without_seccomp_gvisor_still_holds_what_is_the_hosts,
        a_program_that_mounts_writes_to_nothing_that_is_read_only,
    ],
}

const STRICT: &str = include_str!("../../../docs/policies/strict.toml");
const NETWORK: &str = include_str!("../../../docs/policies/network.toml");
const ORDINARY: &str = include_str!("../../../docs/policies/ordinary.toml");
const COMPAT: &str = include_str!("../../../docs/policies/compat.toml");

async fn under(bed: &Bed, policy: &str, program: &str) -> Outcome {
    let _policy = NodePolicy::set(policy);
    let outcome = Stage::set(bed).play(Contender::Bulkhead, program).await;
    went_well(program, outcome)
}

/// Whether the program came to its end, so that what it did not get was tried.
fn went_well(program: &str, outcome: Outcome) -> Outcome {
    assert!(
        outcome.failed.is_empty() && outcome.work > 0,
        "{program}: {:?} {}",
        outcome.failed,
        outcome.text
    );
    outcome
}

/// The names of what got something.
fn got(outcome: &Outcome) -> BTreeSet<&str> {
    let got = outcome.attempts.iter().filter(|(_, attempt)| attempt.got);
    got.map(|(name, _)| name.as_str()).collect()
}

/// Whether it was tried and got nothing.
fn is_held(outcome: &Outcome, name: &str) -> bool {
    let attempt = outcome.attempts.get(name);
    attempt.is_some_and(|attempt| !attempt.got)
}

async fn strict_gives_nothing(bed: &Bed) {
    let outcome = under(bed, STRICT, "network.py").await;
    assert!(
        got(&outcome).is_empty() && outcome.heard.is_empty(),
        "{outcome:?}"
    );
}

async fn network_gives_a_network_and_nothing_else(bed: &Bed) {
    let outcome = under(bed, NETWORK, "network.py").await;
    let ordinary = [
        "TCP over IPv4",
        "TCP over IPv6",
        "UDP over IPv4",
        "UDP over IPv6",
        "UDP to the metadata service",
        "DNS query that carries data",
    ];
    assert_eq!(got(&outcome), BTreeSet::from(ordinary), "{outcome:?}");
    for program in ["writes.py", "kernel_calls.py", "peers.py"] {
        let outcome = under(bed, NETWORK, program).await;
        assert!(got(&outcome).is_empty(), "{program}: {outcome:?}");
    }
}

async fn ordinary_gives_ordinary_images_what_they_want_and_no_host(bed: &Bed) {
    let writes = under(bed, ORDINARY, "writes.py").await;
    for wanted in [
        "write to /",
        "write to /usr/lib",
        "chroot",
        "replace a program of the image",
    ] {
        assert!(got(&writes).contains(wanted), "{wanted}: {writes:?}");
    }
    for held in [
        "mount",
        "mount in a user namespace",
        "a user namespace",
        "remount the root writable",
    ] {
        assert!(is_held(&writes, held), "{held}: {writes:?}");
    }
    // What is the host's stays the host's, whatever the ceiling.
    for program in ["host_files.py", "peers.py", "kernel_calls.py"] {
        let outcome = under(bed, ORDINARY, program).await;
        assert!(got(&outcome).is_empty(), "{program}: {outcome:?}");
    }
    let network = under(bed, ORDINARY, "network.py").await;
    let packets = "ARP that claims the gateway's address";
    for held in ["raw socket", "packet socket", packets] {
        assert!(is_held(&network, held), "{held}: {network:?}");
    }
    let disk = under(bed, ORDINARY, "disk.py").await;
    assert!(got(&disk).contains("fill /"), "{disk:?}");
}

/// What steers a kernel, beside what containerd gives by default.
const BEYOND: [&str; 9] = [
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_BOOT",
    "CAP_SYS_TIME",
    "CAP_NET_ADMIN",
    "CAP_DAC_READ_SEARCH",
];

/// What `program` gets under compat.toml when its container asks for every capability, and for no filter.
async fn unrestricted(bed: &Bed, program: &str) -> Outcome {
    let _policy = NodePolicy::set(COMPAT);
    let stage = Stage::set(bed).with(|spec| {
        let all = [&CAPABILITIES[..], &BEYOND].concat();
        ask_capabilities(&mut spec["process"], &all);
    });
    went_well(program, stage.play(Contender::Bulkhead, program).await)
}

async fn compat_gives_what_gvisor_has_and_no_host(bed: &Bed) {
    // Of the sandbox's own: its users, mounts, namespaces, processes, its name and network.
    let own: [(&str, &[&str]); 5] = [
        ("host_files.py", &[]),
        ("peers.py", &[]),
        (
            "kernel_calls.py",
            &[
                "a name for the machine",
                "memory of another process by process_vm_readv",
                "ptrace another process",
                "the session keyring by keyctl",
            ],
        ),
        (
            "kernel_files.py",
            &[
                "make the node of a device",
                "write /proc/sys/net/ipv4/ip_forward",
            ],
        ),
        (
            "network.py",
            &[
                "DNS query that carries data",
                "TCP over IPv4",
                "TCP over IPv6",
                "UDP over IPv4",
                "UDP over IPv6",
                "UDP to the metadata service",
            ],
        ),
    ];
    for (program, given) in own {
        let outcome = unrestricted(bed, program).await;
        let given = given.iter().copied().collect();
        assert_eq!(got(&outcome), given, "{program}: {outcome:?}");
    }
    let writes = unrestricted(bed, "writes.py").await;
    for held in [
        "a file in /dev",
        "remount in a user namespace",
        "the namespaces of init",
        "out of the root by chroot",
    ] {
        assert!(is_held(&writes, held), "{held}: {writes:?}");
    }
    // The scratch that is given has a size.
    let disk = unrestricted(bed, "disk.py").await;
    let sized = ["fill /tmp", "fill /run", "fill /dev/shm", "fill /dev"];
    for held in sized {
        assert!(is_held(&disk, held), "{held}: {disk:?}");
    }
}

/// gVisor holds root to no RLIMIT_NPROC where it has CAP_SYS_ADMIN (`pkg/sentry/kernel/kernel.go`).
async fn root_with_everything_is_not_bound_by_a_number_of_tasks_and_others_live(bed: &Bed) {
    let script = "i=0; while [ $i -lt 1200 ]; do sleep 1000 & i=$((i+1)); done; echo $i";
    let _policy = NodePolicy::set(COMPAT);
    let other = bed.shell("sleep 1000").run().await.expect("run");
    let bomb = async |asked: &[&str]| {
        let ask = |spec: &mut Value| ask_capabilities(&mut spec["process"], asked);
        let container = bed.shell(script).with(ask).run().await.expect("run");
        container.finish().await
    };
    let held = bomb(&["CAP_CHOWN"]).await;
    let free = bomb(&["CAP_CHOWN", "CAP_SYS_ADMIN"]).await;
    assert_eq!(other.exec("e", &["true"]).finish().await.status, 0);
    other.remove().await;
    assert!(held.stderr.contains("can't fork"), "{held:?}");
    assert_eq!(free.stdout, "1200\n", "{}", free.stderr);
}

/// What `set_uid.py` got as uid 1000, where the request asks for no_new_privs or not.
async fn set_uid_programs(bed: &Bed, bound: bool) -> Outcome {
    let change = if bound {
        |spec: &mut Value| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            spec["process"]["noNewPrivileges"] = true.into();
        }
    } else {
        |spec: &mut Value| spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 })
    };
    let stage = Stage::set(bed).with(change);
    stage.play(Contender::Bulkhead, "set_uid.py").await
}

async fn a_set_uid_program_works_where_the_policy_lets_it(bed: &Bed) {
    const PROGRAM: &str = "a set-uid program of the image";
    for policy in [ORDINARY, COMPAT] {
        let _policy = NodePolicy::set(policy);
        let outcome = set_uid_programs(bed, false).await;
        assert!(got(&outcome).contains(PROGRAM), "{outcome:?}");
        // A pod's `allowPrivilegeEscalation: false`.
        let outcome = set_uid_programs(bed, true).await;
        assert!(got(&outcome).is_empty(), "{outcome:?}");
    }
    // Root by such a file has no more than root has.
    let _policy = NodePolicy::set("allow_set_uid = true");
    let outcome = set_uid_programs(bed, false).await;
    assert_eq!(got(&outcome), BTreeSet::from([PROGRAM]), "{outcome:?}");
}

/// `CAP_SYS_ADMIN` brings the host name, and nothing that would undo another rule.
async fn the_capability_to_administer_brings_the_host_name_alone(bed: &Bed) {
    const ALL: [&str; 3] = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"];
    let run = async |policy: &str, program: Option<&str>| {
        let _policy = NodePolicy::set(policy);
        let ask = |spec: &mut Value| {
            ask_capabilities(&mut spec["process"], &ALL);
        };
        if let Some(program) = program {
            let outcome = Stage::set(bed)
                .with(ask)
                .play(Contender::Bulkhead, program)
                .await;
            return got(&outcome).into_iter().collect::<Vec<_>>().join(", ");
        }
        let script = "hostname changed && hostname; mount -t tmpfs none /srv && echo mounted";
        let container = bed.shell(script).with(ask).run().await.expect("run");
        container.finish().await.stdout
    };
    let policy = format!("capabilities.allow = {ALL:?}");
    assert_eq!(run(&policy, None).await, "changed\n");
    assert_eq!(run("", None).await, "");
    for (program, given) in [
        ("writes.py", ""),
        ("kernel_calls.py", "a name for the machine"),
    ] {
        assert_eq!(run(&policy, Some(program)).await, given, "{program}");
    }
}

/// What gVisor has is the program's then: other processes of the sandbox, mounts and namespaces inside. The network, the limits and
/// the host's files are held by others than the filter.
async fn without_seccomp_gvisor_still_holds_what_is_the_hosts(bed: &Bed) {
    const POLICY: &str = "allow_unconfined = true";
    for program in [
        "host_files.py",
        "peers.py",
        "network.py",
        "kernel_files.py",
        "tasks.py",
    ] {
        let outcome = under(bed, POLICY, program).await;
        assert!(got(&outcome).is_empty(), "{program}: {outcome:?}");
    }
    let calls = under(bed, POLICY, "kernel_calls.py").await;
    let given = [
        "memory of another process by process_vm_readv",
        "ptrace another process",
        "the session keyring by keyctl",
    ];
    assert_eq!(got(&calls), BTreeSet::from(given), "{calls:?}");
    let writes = under(bed, POLICY, "writes.py").await;
    let given = [
        "a network namespace in a user namespace",
        "a user namespace",
        "mount in a user namespace",
    ];
    assert_eq!(got(&writes), BTreeSet::from(given), "{writes:?}");
}

/// A mount's own options are the sentry's, which its program may change; what is below them is the gofer's to refuse.
async fn a_program_that_mounts_writes_to_nothing_that_is_read_only(bed: &Bed) {
    const ALL: [&str; 2] = ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"];
    let folder = bed.folder.join(bed.id("read-only"));
    let below = folder.join("below");
    std::fs::create_dir_all(&below).expect("make a folder");
    let flags = MsFlags::empty();
    mount(Some("tmpfs"), &below, Some("tmpfs"), flags, None::<&str>).expect("mount");
    let script = "mkdir /tmp/in && mount -t tmpfs none /tmp/in && echo mounts\n\
        for place in / /srv /srv/below; do\n\
          mount -o remount,bind,rw $place; mount -o remount,rw $place; touch $place/written && echo $place\n\
        done\n\
        mount --bind /srv /tmp/in; mount -o remount,bind,rw /tmp/in; touch /tmp/in/below/written && echo again";
    let narrow = format!("allow_unconfined = true\ncapabilities.allow = {ALL:?}");
    let mut seen = Vec::new();
    // Under compat.toml the root is one to write to, in an overlay.
    for policy in [narrow.as_str(), COMPAT] {
        let _policy = NodePolicy::set(policy);
        let layer = bed.folder.join(bed.id("layer"));
        let rootfs = overlay(Path::new(IMAGE), &layer);
        let container = bed.shell(script).rootfs(rootfs).with(|spec| {
            ask_capabilities(&mut spec["process"], &ALL);
            spec["root"]["readonly"] = false.into();
            let mounts = spec["mounts"].as_array_mut().expect("mounts");
            mounts.push(json!({
                "destination": "/srv", "type": "bind", "source": folder, "options": ["rbind", "ro"],
            }));
        });
        let done = container.run().await.expect("run").finish().await;
        let upper = layer.join("upper");
        let written = [&folder, &below, &upper].map(|folder| folder.join("written").exists());
        seen.push((done.stdout, written));
    }
    umount(&below).expect("unmount");
    let expected = ["mounts\n", "mounts\n/\n"].map(|text| (text.to_owned(), [false; 3]));
    assert_eq!(seen, expected);
}
