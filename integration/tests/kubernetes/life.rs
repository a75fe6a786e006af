//! Pods from apply to delete.

use std::fs;
use std::time::Duration;

use integration::bed::Bed;
use integration::cases;
use integration::kubernetes::Pod;
use integration::processes::{self, Role};
use integration::runtime::Needs;
use serde_json::json;

use crate::cluster;

cases! {
    Needs::Any => [
        a_pod_runs_to_its_end_and_its_output_is_its_log,
        init_containers_end_one_after_the_other,
        a_sidecar_runs_before_and_beside_the_others,
        exec_and_cp_reach_a_running_container,
        exec_in_a_terminal_has_its_size_and_its_exit_code,
        attach_reads_and_types,
        a_log_that_grows_is_rotated_and_goes_on,
        exec_probes_decide_readiness_and_restart,
        restart_policies_are_kept,
        a_pod_ends_within_its_grace_period,
        a_pod_is_deleted_while_it_starts,
    ],
    Needs::Bulkhead => [
        a_pod_of_two_containers_is_one_shim_in_gvisor_without_a_network,
    ],
}

/// The exit code of an ended container.
const EXIT_CODE: &str = "{.status.containerStatuses[0].state.terminated.exitCode}";

async fn a_pod_runs_to_its_end_and_its_output_is_its_log(bed: &Bed) {
    let script = "echo out; echo err >&2; dmesg | head -n 1; exit 3";
    let pod = Pod::new(bed, cluster(), "bulkhead", script);
    assert_eq!(pod.end().await, "Failed");
    let log = pod.logs("main").await;
    for line in ["out", "err", "Starting gVisor"] {
        assert!(log.contains(line), "{log}");
    }
    assert_eq!(pod.get(EXIT_CODE).await, "3");
    pod.delete().await;
}

async fn init_containers_end_one_after_the_other(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead", "cat /work/x")
        .first("one", "echo 1 >>/work/x")
        .first("two", "echo 2 >>/work/x")
        .volume("work", "/work", &json!({ "emptyDir": {} }));
    assert_eq!(pod.end().await, "Succeeded");
    assert_eq!(pod.logs("main").await, "1\n2\n");
    pod.delete().await;
    let fails = Pod::new(bed, cluster(), "bulkhead", "echo never").first("one", "exit 7");
    assert_eq!(fails.end().await, "Failed");
    let code = "{.status.initContainerStatuses[0].state.terminated.exitCode}";
    assert_eq!(fails.get(code).await, "7");
    fails.delete().await;
}

async fn a_sidecar_runs_before_and_beside_the_others(bed: &Bed) {
    let sidecar = "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo $n >/work/new; mv /work/new /work/x; sleep 0.1; done";
    let main = "first=$(cat /work/x); for n in $(seq 100); do sleep 0.1; [ $(cat /work/x) -gt $((first+5)) ] && break; done\n\
                [ $first -gt 0 ] && echo before; [ $(cat /work/x) -gt $((first+5)) ] && echo beside";
    let pod = Pod::new(bed, cluster(), "bulkhead", main)
        .first("sidecar", sidecar)
        .with("/initContainers/0/restartPolicy", json!("Always"))
        .with(
            "/initContainers/0/startupProbe",
            json!({ "exec": { "command": ["test", "-e", "/work/x"] }, "periodSeconds": 1 }),
        )
        .volume("work", "/work", &json!({ "emptyDir": {} }));
    assert_eq!(pod.end().await, "Succeeded");
    assert_eq!(pod.logs("main").await, "before\nbeside\n");
    pod.delete().await;
}

async fn exec_and_cp_reach_a_running_container(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000")
        .up()
        .await;
    let answer = pod.exec("main", &["sh", "-c", "echo out; exit 9"]).await;
    assert_eq!((answer.code, answer.stdout.as_str()), (9, "out\n"));
    let (here, back) = (bed.folder.join("to-copy"), bed.folder.join("copied"));
    fs::write(&here, "carried\n").expect("write a file");
    let there = format!("{}:/tmp/there", pod.name);
    for (from, to) in [
        (here.display().to_string(), there.clone()),
        (there, back.display().to_string()),
    ] {
        cluster().kubectl(&["cp", &from, &to]).await.ok();
    }
    assert_eq!(fs::read_to_string(back).expect("copied"), "carried\n");
    pod.delete().await;
}

async fn exec_in_a_terminal_has_its_size_and_its_exit_code(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000");
    let pod = pod.up().await;
    // The size comes after the program has been started.
    let script = "for n in $(seq 100); do [ \"$(stty size)\" = \"33 101\" ] && break; sleep 0.1; done; stty size; exit 9";
    let exec = ["exec", "-it", pod.name.as_str(), "--", "sh", "-c", script];
    let answer = cluster().kubectl_in_a_terminal(&exec).await;
    assert!(answer.stdout.contains("33 101\r\n"), "{answer:?}");
    assert_eq!(answer.code, 9, "{answer:?}");
    pod.delete().await;
}

async fn attach_reads_and_types(bed: &Bed) {
    let script = "read line; echo got $line; sleep 1";
    let pod = Pod::new(bed, cluster(), "bulkhead", script)
        .with("/containers/0/stdin", json!(true))
        .with("/containers/0/stdinOnce", json!(true))
        .up()
        .await;
    let attach = ["attach", "-i", pod.name.as_str()];
    let attached = cluster().kubectl_with(&attach, "typed\n");
    let said = attached.await.text();
    assert!(said.contains("got typed"), "{said}");
    pod.delete().await;
}

async fn a_log_that_grows_is_rotated_and_goes_on(bed: &Bed) {
    // A line of 99 characters and a newline every 10 ms: the kubelet's 64 KiB are passed after seven seconds.
    let script = "i=0; while [ $i -lt 1500 ]; do printf '%099d\\n' $i; i=$((i + 1)); sleep 0.01; done; sleep 1000";
    let pod = Pod::new(bed, cluster(), "bulkhead", script).up().await;
    let uid = pod.get("{.metadata.uid}").await;
    let folder = format!("/var/log/pods/default_{}_{uid}/main", pod.name);
    processes::eventually("a log was rotated", Duration::from_secs(60), || {
        fs::read_dir(&folder).into_iter().flatten().count() > 1
    })
    .await;
    let last = format!("{:099}", 1499);
    let args = ["logs", pod.name.as_str(), "--tail=1"];
    cluster()
        .until(
            "the log goes on",
            Duration::from_secs(60),
            &args,
            |answer| answer.stdout.trim() == last,
        )
        .await;
    pod.delete().await;
}

async fn exec_probes_decide_readiness_and_restart(bed: &Bed) {
    let script = "touch /tmp/live; sleep 1; touch /tmp/ready; sleep 1000";
    let probe = |file: &str| json!({ "exec": { "command": ["test", "-e", file] }, "periodSeconds": 1, "failureThreshold": 2 });
    let pod = Pod::new(bed, cluster(), "bulkhead", script)
        .with("/restartPolicy", json!("Always"))
        .with("/containers/0/readinessProbe", probe("/tmp/ready"))
        .with("/containers/0/livenessProbe", probe("/tmp/live"))
        .up()
        .await;
    pod.exec("main", &["rm", "/tmp/live"]).await.ok();
    pod.until("{.status.containerStatuses[0].restartCount}", |text| {
        text != "0"
    })
    .await;
    pod.until("{.status.containerStatuses[0].ready}", |text| {
        text == "true"
    })
    .await;
    pod.delete().await;
}

async fn restart_policies_are_kept(bed: &Bed) {
    // An emptyDir outlives the container, so the second time goes otherwise.
    let script = "[ -e /work/x ] && exit 0; touch /work/x; exit 1";
    for (policy, phase) in [("OnFailure", "Succeeded"), ("Never", "Failed")] {
        let pod = Pod::new(bed, cluster(), "bulkhead", script)
            .with("/restartPolicy", json!(policy))
            .volume("work", "/work", &json!({ "emptyDir": {} }));
        assert_eq!(pod.end().await, phase, "{policy}");
        pod.delete().await;
    }
    let always =
        Pod::new(bed, cluster(), "bulkhead", "exit 0").with("/restartPolicy", json!("Always"));
    always.apply().await;
    always
        .until("{.status.containerStatuses[0].restartCount}", |text| {
            text == "1" || text == "2"
        })
        .await;
    always.delete().await;
}

async fn a_pod_ends_within_its_grace_period(bed: &Bed) {
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let pod = Pod::new(bed, cluster(), "bulkhead", script)
        .with("/terminationGracePeriodSeconds", json!(20))
        .up()
        .await;
    let name = pod.name.clone();
    let follow = ["logs", "-f", &name];
    let follows = cluster().kubectl(&follow);
    let deletes = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = std::time::Instant::now();
        pod.delete().await;
        begun.elapsed()
    };
    let (log, took) = tokio::join!(follows, deletes);
    assert_eq!(log.text(), "ready\nbye\n");
    assert!(
        took < integration::patience::patience(Duration::from_secs(15)),
        "{took:?}"
    );
}

async fn a_pod_is_deleted_while_it_starts(bed: &Bed) {
    for wait in [0, 150, 400, 900] {
        let pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000").and("second", "sleep 1000");
        pod.apply().await;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        pod.delete().await;
    }
}

async fn a_pod_of_two_containers_is_one_shim_in_gvisor_without_a_network(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000")
        .and("second", "sleep 1000")
        .up()
        .await;
    let shims = processes::of(Role::Shim, "").len();
    assert_eq!(shims, 1, "one shim for a pod of two containers");
    let release = pod.exec("main", &["dmesg"]).await.text();
    assert!(release.contains("Starting gVisor"), "{release}");
    let devices = pod.exec("main", &["cat", "/proc/net/dev"]).await.text();
    assert!(
        devices.contains("lo:") && !devices.contains("eth0"),
        "{devices}"
    );
    pod.delete().await;
}
