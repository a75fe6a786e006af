//! Limits of a pod's sandbox: the kernel's, and what systemd makes of them.

use std::fs;
use std::time::Duration;

use integration::processes::eventually;
use k8s_cri::v1::ContainerState;

use crate::{Case, MIB, Node, Slice, block_on, declared, said};

pub(crate) const CASES: &[Case] = &[
    (
        "limits::those_of_the_slice_survive_systemd",
        those_of_the_slice_survive_systemd,
    ),
    (
        "limits::those_announced_survive_systemd",
        those_announced_survive_systemd,
    ),
    (
        "limits::changed_ones_survive_systemd",
        changed_ones_survive_systemd,
    ),
    (
        "limits::a_second_update_is_not_lost",
        a_second_update_is_not_lost,
    ),
    (
        "limits::a_container_brings_its_own_and_takes_them_along",
        a_container_brings_its_own_and_takes_them_along,
    ),
    (
        "limits::an_update_beyond_the_slice_keeps_the_slices",
        an_update_beyond_the_slice_keeps_the_slices,
    ),
    (
        "limits::an_update_of_a_scope_that_is_being_stopped_claims_nothing",
        an_update_of_a_scope_that_is_being_stopped_claims_nothing,
    ),
    (
        "limits::an_update_without_systemd_is_an_error",
        an_update_without_systemd_is_an_error,
    ),
    (
        "limits::an_update_needs_no_bus_but_systemds_own",
        an_update_needs_no_bus_but_systemds_own,
    ),
    (
        "limits::what_is_in_use_is_no_reason_to_refuse_the_next",
        what_is_in_use_is_no_reason_to_refuse_the_next,
    ),
    ("limits::nothing_swaps", nothing_swaps),
    (
        "limits::programs_have_the_oom_score_of_their_pod",
        programs_have_the_oom_score_of_their_pod,
    ),
    (
        "limits::out_of_memory_is_oom_killed",
        out_of_memory_is_oom_killed,
    ),
];

fn those_of_the_slice_survive_systemd() {
    block_on(async {
        let slice = Slice {
            memory: Some(300 * MIB),
            cpu: Some(500_000),
        };
        let node = Node::pod(slice, None).await;
        let expected = (300, "50000 100000".to_owned());
        assert_eq!(node.limits(), expected);
        node.look_again();
        assert_eq!(node.limits(), expected);
        said("systemctl daemon-reexec");
        node.look_again();
        assert_eq!(node.limits(), expected);
        node.remove().await;
    });
}

fn those_announced_survive_systemd() {
    block_on(async {
        let node = Node::pod(Slice::default(), Some(declared(700, 1500))).await;
        let id = node.container("one", declared(300, 500)).await;
        let expected = (700, "150000 100000".to_owned());
        assert_eq!(node.limits(), expected);
        node.look_again();
        assert_eq!(node.limits(), expected);
        node.works(&id).await;
        node.remove().await;
    });
}

fn changed_ones_survive_systemd() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        let id = node.container("one", declared(600, 1100)).await;
        // Looser, then tighter, and what systemd has no digits for.
        for (mib, milli_cpus) in [(900, 1750), (700, 1300), (700, 1255), (700, 1003)] {
            node.pod
                .update(&id, declared(mib, milli_cpus))
                .await
                .expect("update");
            let expected = (mib, format!("{} 100000", milli_cpus.div_ceil(10) * 1000));
            assert_eq!(node.limits(), expected);
            node.look_again();
            assert_eq!(node.limits(), expected, "after systemd has looked");
        }
        node.works(&id).await;
        node.remove().await;
    });
}

fn a_second_update_is_not_lost() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        let id = node.container("one", declared(600, 1100)).await;
        let wanted = declared(900, 1100);
        node.pod.update(&id, wanted.clone()).await.expect("update");
        // Somebody else changes it behind the shim's back.
        said(&format!(
            "systemctl set-property --runtime {} MemoryMax=550M",
            node.scope()
        ));
        assert_eq!(node.limits().0, 550);
        node.pod.update(&id, wanted).await.expect("update");
        assert_eq!(node.limits().0, 900);
        node.look_again();
        assert_eq!(node.limits().0, 900);
        node.remove().await;
    });
}

fn a_container_brings_its_own_and_takes_them_along() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        assert_eq!(node.limits().0, 512, "the policy's default");
        let one = node.container("one", declared(600, 400)).await;
        let two = node.container("two", declared(300, 800)).await;
        let both = (900, "120000 100000".to_owned());
        assert_eq!(node.limits(), both);
        node.look_again();
        assert_eq!(node.limits(), both);
        node.pod.remove_container(&two).await;
        let limit = Duration::from_secs(10);
        let left = (600, "100000 100000".to_owned());
        eventually("its share goes", limit, || node.limits() == left).await;
        node.look_again();
        assert_eq!(node.limits(), left);
        node.works(&one).await;
        node.remove().await;
    });
}

fn an_update_without_systemd_is_an_error() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        let id = node.container("one", declared(600, 1100)).await;
        let before = node.limits();
        fs::rename("/usr/bin/systemctl", "/usr/bin/systemctl-away").expect("move");
        let answer = node.pod.update(&id, declared(900, 1100)).await;
        let limits = node.limits();
        fs::rename("/usr/bin/systemctl-away", "/usr/bin/systemctl").expect("move");
        let error = answer.expect_err("refused");
        assert!(error.message().contains("systemctl"), "{error}");
        assert_eq!(limits, before);
        // With it the same update is taken.
        node.pod
            .update(&id, declared(900, 1100))
            .await
            .expect("update");
        node.look_again();
        assert_eq!(node.limits().0, 900);
        node.remove().await;
    });
}

fn an_update_beyond_the_slice_keeps_the_slices() {
    block_on(async {
        let slice = Slice {
            memory: Some(600 * MIB),
            cpu: Some(1_000_000),
        };
        let node = Node::pod(slice, None).await;
        let id = node.container("one", declared(300, 500)).await;
        let expected = (600, "100000 100000".to_owned());
        let answer = node.pod.update(&id, declared(900, 1500)).await;
        assert_eq!(node.limits(), expected, "{answer:?}");
        node.look_again();
        assert_eq!(node.limits(), expected);
        node.works(&id).await;
        node.remove().await;
    });
}

/// Once containerd knows of the exit it answers itself, and nothing is left that a limit could hold.
fn an_update_of_a_scope_that_is_being_stopped_claims_nothing() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        let id = node.container("one", declared(600, 1100)).await;
        let runs = async || node.pod.status(&id).await.state() == ContainerState::ContainerRunning;
        said(&format!("systemctl stop --no-block {}", node.scope()));
        let limit = Duration::from_secs(20);
        for mib in 700..760 {
            let update = node.pod.update(&id, declared(mib, 1100));
            let answer = tokio::time::timeout(limit, update).await;
            let answer = answer.expect("an answer in time");
            let held = fs::read_to_string(node.cgroup().join("memory.max"));
            if !runs().await {
                break;
            }
            if let (Ok(()), Ok(held)) = (answer, held) {
                assert_eq!(held.trim(), (mib * MIB).to_string());
            }
        }
        for _ in 0..300 {
            if !runs().await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(!runs().await, "it was stopped");
        assert!(!node.cgroup().exists(), "no update makes it anew");
        node.remove().await;
    });
}

/// `systemctl` of root's speaks to systemd by a socket of its own.
fn an_update_needs_no_bus_but_systemds_own() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        let id = node.container("one", declared(600, 1100)).await;
        let before = node.limits();
        said("systemctl stop dbus.socket dbus.service");
        let with_its_own = node.pod.update(&id, declared(900, 1200)).await;
        let limits = node.limits();
        fs::rename("/run/systemd/private", "/run/systemd/private-away").expect("move");
        let with_none = node.pod.update(&id, declared(700, 1300)).await;
        let kept = node.limits();
        fs::rename("/run/systemd/private-away", "/run/systemd/private").expect("move");
        said("systemctl start dbus.socket dbus.service");
        // It does not come back to a bus by itself, and who switches the node off would wait for it.
        said("systemctl try-restart systemd-logind.service");
        with_its_own.expect("update");
        assert_ne!(limits, before);
        assert_eq!(limits, (900, "120000 100000".to_owned()));
        let error = with_none.expect_err("nobody is told");
        assert!(error.message().contains("systemctl"), "{error}");
        assert_eq!(kept, limits, "what does not hold is not done");
        node.look_again();
        assert_eq!(node.limits(), limits);
        node.remove().await;
    });
}

fn what_is_in_use_is_no_reason_to_refuse_the_next() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        let first = node.container("first", declared(900, 400)).await;
        // It has read, and nobody takes what it writes.
        let script =
            "mkfifo /tmp/f; sleep 100000 <>/tmp/f & dd if=/dev/zero of=/tmp/f bs=600M count=1";
        let mut user = node.pod.shell("user", script);
        user.linux.as_mut().expect("linux").resources = Some(declared(64, 400));
        node.pod.launch(user).await.expect("launch");
        let used = || {
            node.read("memory.current")
                .parse::<u64>()
                .unwrap_or_default()
        };
        let limit = Duration::from_secs(240);
        eventually("more than the default is used", limit, || {
            used() > 600 * MIB
        })
        .await;
        node.pod.remove_container(&first).await;
        let one = node.container("one", declared(64, 400)).await;
        node.works(&one).await;
        assert!(node.limits().0 * MIB >= used());
        node.remove().await;
    });
}

fn nothing_swaps() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        let id = node.container("one", declared(600, 1100)).await;
        assert_eq!(node.read("memory.swap.max"), "0");
        node.pod
            .update(&id, declared(700, 1100))
            .await
            .expect("update");
        node.look_again();
        assert_eq!(node.read("memory.swap.max"), "0");
        node.remove().await;
    });
}

fn programs_have_the_oom_score_of_their_pod() {
    block_on(async {
        let node = Node::pod(Slice::default(), None).await;
        let mut resources = declared(600, 1100);
        // As the kubelet does for a Guaranteed pod.
        resources.oom_score_adj = -997;
        let id = node.container("one", resources).await;
        node.works(&id).await;
        let scores = || {
            let pids = node.read("cgroup.procs");
            let score = |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok();
            let named = |pid: &str| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains("gofer")
            };
            let pids = pids.lines().filter(|pid| !named(pid));
            pids.filter_map(score).collect::<Vec<_>>()
        };
        eventually("all have it", Duration::from_secs(10), || {
            let scores = scores();
            scores.len() > 2 && scores.iter().all(|score| score.trim() == "-997")
        })
        .await;
        node.remove().await;
    });
}

fn out_of_memory_is_oom_killed() {
    block_on(async {
        let slice = Slice {
            memory: Some(128 * MIB),
            cpu: None,
        };
        let node = Node::pod(slice, None).await;
        let script = "exec dd if=/dev/zero of=/dev/null bs=200M count=1";
        let eater = node.pod.shell("eater", script);
        let id = node.pod.launch(eater).await.expect("launch");
        assert_eq!(node.pod.ended(&id).await.exit_code, 137);
        let mut reason = String::new();
        for _ in 0..100 {
            reason = node.pod.status(&id).await.reason;
            if reason == "OOMKilled" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(reason, "OOMKilled");
        node.remove().await;
    });
}
