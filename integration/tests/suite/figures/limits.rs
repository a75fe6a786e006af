//! Limits of a sandbox: what is set, what an update changes, and what happens when memory runs out.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::tonic::Code;
use integration::bed::{Bed, is_before_2};
use integration::client::NAMESPACE;
use integration::processes::eventually;
use integration::runtime::Needs;
use prost_types::Any;
use serde_json::{Value, json};

use crate::life::events::topics;
use crate::life::pod::{member, sandbox};
use integration::cases;

cases! {
    Needs::Any => [
        an_update_raises_and_lowers_memory,
        running_out_of_memory_is_told_before_the_exit,
    ],
    Needs::Bulkhead => [
        an_update_changes_cpu_time,
        an_update_of_nothing_or_nonsense_is_refused,
        an_update_that_does_not_fit_changes_nothing,
        an_update_to_no_limit_gives_the_policys_and_zero_changes_nothing,
        an_update_of_what_does_not_run_is_not_found,
        an_update_reaches_the_scope_of_a_systemd_path,
        a_container_without_limits_gets_the_policys,
        every_container_of_a_pod_hears_that_memory_ran_out,
        the_memory_of_a_pod_follows_what_its_containers_declare,
        the_hosts_ceiling_of_tasks_is_out_of_the_guests_reach,
        stats_of_a_killed_container_count_the_kill,
    ],
}

const MIB: u64 = 1 << 20;

/// Whether the host has cgroup v2 alone.
pub(crate) fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A file of the cgroup that the container's spec asks for: its name on v1, with the controller, and on v2.
pub(crate) fn cgroup_file(id: &str, v1: &str, v2: &str) -> PathBuf {
    let (controller, file) = v1.split_once('/').expect("controller/file");
    let root = Path::new("/sys/fs/cgroup");
    if is_v2() {
        root.join(NAMESPACE).join(id).join(v2)
    } else {
        root.join(controller).join(NAMESPACE).join(id).join(file)
    }
}

fn memory_limit(id: &str) -> u64 {
    let file = cgroup_file(id, "memory/memory.limit_in_bytes", "memory.max");
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.trim().parse().expect("a limit")
}

pub(crate) fn resources(value: &Value) -> Any {
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: value.to_string().into_bytes(),
    }
}

fn limit(mib: u64) -> Any {
    resources(&json!({ "memory": { "limit": mib * MIB } }))
}

async fn an_update_raises_and_lowers_memory(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).with(|spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 256 * MIB });
    });
    let container = container.run().await.expect("run");
    for mib in [512, 128, 300] {
        bed.client()
            .update(&container.id, Some(limit(mib)))
            .await
            .expect("update");
        assert_eq!(memory_limit(&container.id), mib * MIB);
    }
    container.remove().await;
}

async fn an_update_changes_cpu_time(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let read = || {
        if is_v2() {
            fs::read_to_string(cgroup_file(&container.id, "cpu/x", "cpu.max")).expect("cpu.max")
        } else {
            let number =
                |file: &str| fs::read_to_string(cgroup_file(&container.id, file, "")).expect("cpu");
            format!(
                "{} {}",
                number("cpu/cpu.cfs_quota_us").trim(),
                number("cpu/cpu.cfs_period_us")
            )
        }
    };
    assert_eq!(read().trim(), "100000 100000", "the policy's one CPU");
    for (cpu, expected) in [
        (
            json!({ "quota": 50_000, "period": 100_000 }),
            "50000 100000",
        ),
        (
            json!({ "quota": 150_000, "period": 50_000 }),
            "150000 50000",
        ),
        (json!({ "quota": -1 }), "100000 100000"),
    ] {
        let asked = resources(&json!({ "cpu": cpu }));
        bed.client()
            .update(&container.id, Some(asked))
            .await
            .expect("update");
        assert_eq!(read().trim(), expected);
    }
    container.remove().await;
}

async fn an_update_of_nothing_or_nonsense_is_refused(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let before = memory_limit(&container.id);
    let other = Any {
        type_url: "types.containerd.io/x.Y".into(),
        value: b"{}".to_vec(),
    };
    let text = Any {
        value: b"{".to_vec(),
        ..resources(&json!(null))
    };
    for asked in [
        None,
        Some(other),
        Some(text),
        Some(resources(&json!(null))),
        Some(resources(&json!({ "memory": { "limit": "much" } }))),
        Some(resources(&json!({ "cpu": { "quota": 3 } }))),
    ] {
        let shown = format!("{asked:?}");
        let error = bed
            .client()
            .update(&container.id, asked)
            .await
            .expect_err(&shown);
        assert_eq!(error.code(), Code::InvalidArgument, "{shown}: {error}");
    }
    let fewer = resources(&json!({ "pids": { "limit": 3 } }));
    let error = bed
        .client()
        .update(&container.id, Some(fewer))
        .await
        .expect_err("fewer tasks");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_eq!(memory_limit(&container.id), before);
    container.remove().await;
}

async fn an_update_that_does_not_fit_changes_nothing(bed: &Bed) {
    let script = "dd if=/dev/zero of=/tmp/x bs=1M count=60 2>/dev/null; echo held; touch /tmp/held; sleep 1000";
    let mut container = bed.shell(script).run().await.expect("run");
    let wait = "while ! [ -e /tmp/held ]; do sleep 0.1; done";
    let exec = container.exec("wait", &["sh", "-c", wait]).finish().await;
    assert_eq!(exec.status, 0, "memory is held");
    let asked = json!({ "memory": { "limit": 40 * MIB }, "cpu": { "quota": 20_000 } });
    let error = bed
        .client()
        .update(&container.id, Some(resources(&asked)))
        .await
        .expect_err("too low");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("memory.limit"), "{error}");
    assert_eq!(memory_limit(&container.id), 512 * MIB);
    let exec = container.exec("e", &["echo", "alive"]).finish().await;
    assert_eq!(exec.stdout, "alive\n");
    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    assert_eq!(container.streams.stdout().await.text(), "held\n");
    container.delete().await.expect("delete");
}

async fn a_container_without_limits_gets_the_policys(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).with(|spec| {
        spec["linux"]
            .as_object_mut()
            .expect("linux")
            .remove("resources");
    });
    let container = container.run().await.expect("run");
    assert_eq!(memory_limit(&container.id), 512 * MIB);
    container.remove().await;
}

async fn an_update_to_no_limit_gives_the_policys_and_zero_changes_nothing(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).with(|spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 256 * MIB });
    });
    let container = container.run().await.expect("run");
    // -1 is the specification's word for none, 0 is Go's for nothing said.
    for (limit, mib) in [(0, 256), (-1, 512), (0, 512)] {
        let asked = resources(&json!({ "memory": { "limit": limit } }));
        let updated = bed.client().update(&container.id, Some(asked)).await;
        updated.expect("update");
        assert_eq!(memory_limit(&container.id), mib * MIB, "{limit}");
    }
    container.remove().await;
}

async fn an_update_of_what_does_not_run_is_not_found(bed: &Bed) {
    let container = bed.container(&["true"]).run().await.expect("run");
    container.wait().await.expect("wait");
    for id in ["nobody", &container.id] {
        let error = bed.client().update(id, Some(limit(256))).await;
        assert_eq!(error.expect_err(id).code(), Code::NotFound, "{id}");
    }
    container.delete().await.expect("delete");
}

async fn an_update_reaches_the_scope_of_a_systemd_path(bed: &Bed) {
    let id = bed.id("c");
    let builder = bed.named(&id, &["sleep", "1000"]).with(|spec| {
        spec["linux"]["cgroupsPath"] = format!("suite.slice:run:{id}").into();
    });
    let container = builder.run().await.expect("run");
    let scope = format!("suite.slice/run-{id}.scope");
    let file = if is_v2() {
        format!("/sys/fs/cgroup/{scope}/memory.max")
    } else {
        format!("/sys/fs/cgroup/memory/{scope}/memory.limit_in_bytes")
    };
    for mib in [300, 200] {
        let updated = bed.client().update(&id, Some(limit(mib))).await;
        updated.expect("update");
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert_eq!(text.trim(), (mib * MIB).to_string());
    }
    container.remove().await;
    // A slice is systemd's to make and to remove.
    for folder in integration::cri::cgroup_folders("suite.slice") {
        let _ = fs::remove_dir(folder);
    }
}

/// Takes more memory than there is.
const EATER: &str = "dd if=/dev/zero of=/dev/null bs=700M count=1; sleep 1000";

async fn running_out_of_memory_is_told_before_the_exit(bed: &Bed) {
    let events = bed.client().events().await;
    let container = bed.shell(EATER).with(|spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 96 * MIB });
    });
    let container = container.run().await.expect("run");
    let id = container.id.clone();
    assert_eq!(container.finish().await.status, 137);
    eventually("delete", Duration::from_secs(10), || {
        topics(&events.all(), &id)
            .last()
            .is_some_and(|topic| topic == "delete")
    })
    .await;
    assert_eq!(
        topics(&events.all(), &id),
        ["create", "start", "oom", "exit", "delete"]
    );
}

async fn every_container_of_a_pod_hears_that_memory_ran_out(bed: &Bed) {
    let events = bed.client().events().await;
    let pod = sandbox(bed).await;
    let quiet = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let eater = member(bed, &pod, EATER).run().await.expect("run");
    for container in [&quiet, &eater, &pod] {
        assert_eq!(
            container.wait().await.expect("wait").status,
            137,
            "{}",
            container.id
        );
    }
    for container in [quiet, eater, pod] {
        let id = container.id.clone();
        container.delete().await.expect("delete");
        eventually("delete", Duration::from_secs(10), || {
            topics(&events.all(), &id)
                .last()
                .is_some_and(|topic| topic == "delete")
        })
        .await;
        assert_eq!(
            topics(&events.all(), &id),
            ["create", "start", "oom", "exit", "delete"],
            "{id}"
        );
    }
}

async fn the_memory_of_a_pod_follows_what_its_containers_declare(bed: &Bed) {
    let pod = sandbox(bed).await;
    let declare = |mib: u64| {
        member(bed, &pod, "sleep 1000").with(|spec| {
            spec["linux"]["resources"]["memory"] = json!({ "limit": mib * MIB });
        })
    };
    let (one, two) = (
        declare(300).run().await.expect("run"),
        declare(200).run().await.expect("run"),
    );
    assert_eq!(memory_limit(&pod.id), 512 * MIB, "the policy's");
    bed.client()
        .update(&one.id, Some(limit(700)))
        .await
        .expect("update");
    assert_eq!(memory_limit(&pod.id), 900 * MIB, "the sum");
    bed.client()
        .update(&one.id, Some(limit(100)))
        .await
        .expect("update");
    assert_eq!(memory_limit(&pod.id), 512 * MIB, "never below the policy's");
    for container in [one, two, pod] {
        container.remove().await;
    }
}

/// The limit of the host's tasks of a sandbox, and how many there are.
fn tasks(id: &str) -> (u64, u64) {
    let read = |file: &str| {
        let file = cgroup_file(id, &format!("pids/{file}"), file);
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        text.trim().parse().expect("a number")
    };
    (read("pids.max"), read("pids.current"))
}

async fn the_hosts_ceiling_of_tasks_is_out_of_the_guests_reach(bed: &Bed) {
    // As many as the guest may have, and each of them writes. A shell ends when it cannot fork, so the first process is
    // another one.
    let script = "mkfifo /tmp/gate; (i=0; while [ $i -lt 400 ]; do (j=0; while [ $j -lt 50 ]; do echo $i >/tmp/f$i; j=$((j+1)); done; \
                  read line </tmp/gate) & i=$((i+1)); done); : >/tmp/full; exec sleep 1000";
    let container = bed.shell(script).run().await.expect("run");
    let wait = container.exec(
        "wait",
        &["sh", "-c", "while ! [ -e /tmp/full ]; do :; done"],
    );
    assert_eq!(wait.finish().await.status, 0);
    let mut most = 0;
    for _ in 0..20 {
        let (ceiling, now) = tasks(&container.id);
        assert_eq!(ceiling, 16 * 256 + 256);
        most = most.max(now);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        most > 256 && most < 4 * 256 + 256,
        "{most} tasks of the host"
    );
    // The sandbox answers, and says what is wrong with one more.
    container.status().await.expect("state");
    bed.client().metrics(&container.id).await.expect("metrics");
    // The shell that could not go on and the exec that waited for it have left a place each.
    let mut refused = None;
    for number in 0..4 {
        let exec = container.exec(&format!("e{number}"), &["sleep", "1000"]);
        if let Err(error) = exec.run().await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("no task is left");
    // containerd 1.7 does not know the code of the shim's answer.
    let code = if is_before_2() {
        Code::Unknown
    } else {
        Code::ResourceExhausted
    };
    assert!(
        error.code() == code && error.message().contains("limits.pids"),
        "{error:?}"
    );
    container.kill(9).await.expect("kill");
    assert_eq!(container.finish().await.status, 137);
}

async fn stats_of_a_killed_container_count_the_kill(bed: &Bed) {
    let container = bed.shell(EATER).with(|spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 96 * MIB });
    });
    let container = container.run().await.expect("run");
    assert_eq!(container.wait().await.expect("wait").status, 137);
    let metrics = bed
        .client()
        .metrics(&container.id)
        .await
        .expect("metrics of an exited task");
    assert!(oom_kills(&metrics) > 0);
    container.delete().await.expect("delete");
}

fn oom_kills(metrics: &Any) -> u64 {
    use containerd_shim_protos::protobuf::Message as _;
    use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
    if metrics.type_url.contains("v2") {
        let metrics = v2::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
        metrics.memory_events.oom_kill
    } else {
        let metrics = v1::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
        metrics.memory_oom_control.oom_kill
    }
}
