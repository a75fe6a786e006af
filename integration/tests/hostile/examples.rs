//! The example policies in `docs/policies`: each gives what it says, and nothing beyond.

use std::collections::BTreeSet;

use integration::bed::Bed;
use integration::cases;
use integration::policy::NodePolicy;
use integration::runtime::Needs;
use integration::spec::ask_capabilities;
use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

use crate::contender::Contender;
use crate::outcome::Outcome;
use crate::stage::Stage;

cases! {
    Needs::Bulkhead => [
        strict_gives_nothing,
        network_gives_a_network_and_nothing_else,
        compat_gives_ordinary_images_what_they_want_and_no_host,
        a_set_uid_program_works_where_the_policy_lets_it,
        the_capability_to_administer_brings_the_host_name_alone,
        without_seccomp_gvisor_still_holds_what_is_the_hosts,
        a_program_that_mounts_writes_to_nothing_that_is_read_only,
    ],
}

const STRICT: &str = include_str!("../../../docs/policies/strict.toml");
const NETWORK: &str = include_str!("../../../docs/policies/network.toml");
const COMPAT: &str = include_str!("../../../docs/policies/compat.toml");

async fn under(bed: &Bed, policy: &str, program: &str) -> Outcome {
    let _policy = NodePolicy::set(policy);
    let outcome = Stage::set(bed).play(Contender::Bulkhead, program).await;
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

async fn compat_gives_ordinary_images_what_they_want_and_no_host(bed: &Bed) {
    let writes = under(bed, COMPAT, "writes.py").await;
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
        assert!(!got(&writes).contains(held), "{held}: {writes:?}");
    }
    // What is the host's stays the host's, whatever the ceiling.
    for program in ["host_files.py", "peers.py", "kernel_calls.py"] {
        let outcome = under(bed, COMPAT, program).await;
        assert!(got(&outcome).is_empty(), "{program}: {outcome:?}");
    }
    let network = under(bed, COMPAT, "network.py").await;
    let packets = "ARP that claims the gateway's address";
    for held in ["raw socket", "packet socket", packets] {
        assert!(!got(&network).contains(held), "{held}: {network:?}");
    }
    let disk = under(bed, COMPAT, "disk.py").await;
    assert!(got(&disk).contains("fill /"), "{disk:?}");
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
    {
        let _policy = NodePolicy::set(COMPAT);
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
    let policy = format!("allow_unconfined = true\ncapabilities.allow = {ALL:?}");
    let _policy = NodePolicy::set(&policy);
    let script = "mkdir /tmp/in && mount -t tmpfs none /tmp/in && echo mounts\n\
        for place in / /srv /srv/below; do\n\
          mount -o remount,bind,rw $place; mount -o remount,rw $place; touch $place/written && echo $place\n\
        done\n\
        mount --bind /srv /tmp/in; mount -o remount,bind,rw /tmp/in; touch /tmp/in/below/written && echo again";
    let container = bed.shell(script).with(|spec| {
        ask_capabilities(&mut spec["process"], &ALL);
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({
            "destination": "/srv", "type": "bind", "source": folder, "options": ["rbind", "ro"],
        }));
    });
    let done = container.run().await.expect("run").finish().await;
    let written = [&folder, &below].map(|folder| folder.join("written").exists());
    umount(&below).expect("unmount");
    assert_eq!(done.stdout, "mounts\n", "{}", done.stderr);
    assert_eq!(written, [false, false]);
}
