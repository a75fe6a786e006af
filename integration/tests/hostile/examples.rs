//! The example policies in `docs/policies`: each gives what it says, and nothing beyond.

use std::collections::BTreeSet;

use integration::bed::Bed;
use integration::cases;
use integration::policy::NodePolicy;
use integration::runtime::Needs;
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
        the_capability_to_mount_ends_at_gvisors_kernel,
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

/// With what `CAP_SYS_ADMIN` brings a program arranges its own mounts. What is read-only of the host's stays so.
async fn the_capability_to_mount_ends_at_gvisors_kernel(bed: &Bed) {
    let script = "mkdir /tmp/m /tmp/device; mount -t tmpfs none /tmp/m && echo x >/tmp/m/x && echo mounted\n\
                  hostname changed && hostname\n\
                  for there in / /srv; do\n\
                      mount -o remount,rw $there; echo x >$there/written && echo wrote to $there\n\
                  done 2>&1\n\
                  mount -t devtmpfs none /tmp/device; ls /tmp/device\n\
                  mount -t ext4 /dev/vda /tmp/device 2>&1 || true";
    let bound = bed.folder.join(bed.id("bound"));
    std::fs::create_dir(&bound).expect("make a folder");
    let run = async |policy: &str| {
        let _policy = NodePolicy::set(policy);
        let source = bound.clone();
        let builder = bed.shell(script).with(move |spec| {
            spec["root"]["readonly"] = false.into();
            for set in ["bounding", "effective", "permitted"] {
                spec["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
            }
            let mounts = spec["mounts"].as_array_mut().expect("a list");
            mounts.push(json!({
                "destination": "/srv", "type": "bind", "source": source, "options": ["rbind", "ro"],
            }));
        });
        builder.run().await.expect("run").finish().await
    };
    let given = run("capabilities.allow = [\"CAP_SYS_ADMIN\", \"CAP_DAC_OVERRIDE\"]").await;
    assert!(
        given.stdout.contains("mounted") && given.stdout.contains("changed"),
        "{given:?}"
    );
    assert!(!given.stdout.contains("wrote to"), "{given:?}");
    let strict = run("").await;
    for held in ["mounted", "changed", "wrote to"] {
        assert!(!strict.stdout.contains(held), "{held}: {strict:?}");
    }
    let left = std::fs::read_dir(&bound).expect("list the folder").count();
    assert_eq!(left, 0, "the host's folder was written to");
}
