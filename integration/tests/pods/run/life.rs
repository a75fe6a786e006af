//! Pods and their containers, from run to remove.

use std::time::{Duration, Instant};

use integration::bed::Bed;
use integration::cases;
use integration::cri::{NAMESPACE, Pod};
use integration::harness::join_all;
use integration::policy::NodePolicy;
use integration::processes::{self, Role};
use integration::runtime::Needs;
use k8s_cri::v1::{
    ContainerState, ExecSyncRequest, NamespaceMode, ReopenContainerLogRequest, StopContainerRequest,
};

cases! {
    Needs::Any => [
        a_pod_runs_a_container_and_leaves_nothing,
        an_init_container_ends_before_the_others_start,
        exec_gives_its_exit_code_and_is_ended_at_its_timeout,
        a_container_is_restarted_in_its_pod,
        a_container_is_stopped_within_its_grace_period,
        a_rotated_log_goes_on_in_a_new_file,
        a_pod_is_removed_while_a_container_runs,
        fifteen_pods_at_once,
    ],
    Needs::Gvisor => [
        a_pod_has_one_shim_and_one_sandbox_and_no_helper,
        a_pod_runs_in_gvisor_without_a_network,
    ],
    Needs::Bulkhead => [
        a_shared_process_namespace_is_refused_by_name,
        namespaces_of_the_host_are_refused,
        execs_of_a_pod_share_a_rate,
    ],
}

async fn a_pod_runs_a_container_and_leaves_nothing(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let id = pod
        .launch(pod.shell("main", "echo out; echo err >&2; exit 3"))
        .await
        .expect("launch");
    let status = pod.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    let mut lines: Vec<String> = pod.log("main").lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["err", "out"]);
    pod.remove().await;
}

async fn an_init_container_ends_before_the_others_start(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let init = pod
        .launch(pod.shell("init", "exit 0"))
        .await
        .expect("launch");
    assert_eq!(pod.ended(&init).await.exit_code, 0);
    let one = pod
        .launch(pod.container("one", &["sleep", "1000"]))
        .await
        .expect("launch");
    let two = pod
        .launch(pod.container("two", &["sleep", "1000"]))
        .await
        .expect("launch");
    pod.remove_container(&init).await;
    for id in [&one, &two] {
        assert_eq!(
            pod.exec(id, &["echo", "alive"]).await,
            (0, "alive\n".into())
        );
    }
    pod.remove_container(&one).await;
    assert_eq!(
        pod.exec(&two, &["echo", "alive"]).await,
        (0, "alive\n".into())
    );
    pod.remove().await;
}

async fn exec_gives_its_exit_code_and_is_ended_at_its_timeout(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let id = pod
        .launch(pod.container("main", &["sleep", "1000"]))
        .await
        .expect("launch");
    assert_eq!(
        pod.exec(&id, &["sh", "-c", "echo x; exit 7"]).await,
        (7, "x\n".into())
    );
    let late = ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["sleep".into(), "100".into()],
        timeout: 1,
    };
    let error = pod.cri.exec_sync(late).await.expect_err("timeout");
    assert!(error.message().contains("timeout"), "{error}");
    assert_eq!(
        pod.exec(&id, &["sh", "-c", "ps | grep -c '[s]leep 100$'"])
            .await
            .1,
        "0\n"
    );
    pod.remove().await;
}

async fn a_container_is_restarted_in_its_pod(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let stays = pod
        .launch(pod.container("stays", &["sleep", "1000"]))
        .await
        .expect("launch");
    for attempt in 0..3 {
        let mut config = pod.shell("again", "exit 1");
        config.metadata.as_mut().expect("metadata").attempt = attempt;
        let id = pod.launch(config).await.expect("launch");
        assert_eq!(pod.ended(&id).await.exit_code, 1);
        pod.remove_container(&id).await;
    }
    assert_eq!(
        pod.status(&stays).await.state(),
        ContainerState::ContainerRunning
    );
    pod.remove().await;
}

async fn a_container_is_stopped_within_its_grace_period(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let polite = pod
        .launch(pod.shell("polite", script))
        .await
        .expect("launch");
    let deaf = pod
        .launch(pod.shell("deaf", "trap '' TERM; while :; do sleep 0.1; done"))
        .await
        .expect("launch");
    integration::processes::eventually(
        "the trap is set",
        std::time::Duration::from_secs(20),
        || pod.log("polite").contains("ready"),
    )
    .await;
    for (id, code) in [(polite, 0), (deaf, 137)] {
        let stop = StopContainerRequest {
            container_id: id.clone(),
            timeout: 2,
        };
        pod.cri.stop_container(stop).await.expect("StopContainer");
        assert_eq!(pod.status(&id).await.exit_code, code);
    }
    pod.remove().await;
}

async fn a_rotated_log_goes_on_in_a_new_file(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
    let id = pod.launch(pod.shell("main", script)).await.expect("launch");
    let grows = || {
        integration::processes::eventually("lines come", std::time::Duration::from_secs(20), || {
            pod.log("main").lines().count() > 5
        })
    };
    grows().await;
    let log = std::path::Path::new(&pod.config.log_directory).join("main.log");
    let old = log.with_extension("old");
    std::fs::rename(&log, &old).expect("rotate");
    pod.cri
        .reopen_container_log(ReopenContainerLogRequest { container_id: id })
        .await
        .expect("reopen");
    grows().await;
    let count = |path| {
        std::fs::read_to_string(path)
            .expect("log")
            .lines()
            .count()
            .to_string()
    };
    assert_eq!(
        pod.log("main").lines().next(),
        Some(count(&old).as_str()),
        "no line lost, none twice"
    );
    pod.remove().await;
}

async fn a_pod_is_removed_while_a_container_runs(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    pod.launch(pod.shell("main", "trap '' TERM; while :; do sleep 0.1; done"))
        .await
        .expect("launch");
    let created = pod
        .create(pod.shell("never", "true"))
        .await
        .expect("create");
    assert_eq!(
        pod.status(&created).await.state(),
        ContainerState::ContainerCreated
    );
    pod.remove().await;
}

async fn fifteen_pods_at_once(bed: &Bed) {
    let start = |number: usize| async move {
        let pod = Pod::run(Pod::config(bed)).await.expect("run");
        let script = format!("echo {number}; sleep 1000");
        let id = pod
            .launch(pod.shell("main", &script))
            .await
            .expect("launch");
        (pod, id)
    };
    let pods = join_all((0..15).map(start)).await;
    for (number, (pod, id)) in pods.iter().enumerate() {
        assert_eq!(
            pod.exec(id, &["echo", "alive"]).await,
            (0, "alive\n".into())
        );
        assert_eq!(pod.log("main"), format!("{number}\n"));
    }
    join_all(pods.into_iter().map(|(pod, _)| pod.remove())).await;
}

async fn a_pod_has_one_shim_and_one_sandbox_and_no_helper(bed: &Bed) {
    let known = bed.known_processes();
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    for name in ["one", "two"] {
        pod.launch(pod.container(name, &["sleep", "1000"]))
            .await
            .expect("launch");
    }
    let shim = processes::of(Role::Shim, &pod.id);
    assert_eq!(shim.len(), 1, "{shim:?}");
    if bed.runtime.is_bulkhead() {
        let others: Vec<_> = processes::all()
            .into_iter()
            .filter(|process| {
                !known
                    .iter()
                    .any(|pid| i64::from(*pid) == i64::from(process.pid))
            })
            .filter(|process| process.pid != shim[0].pid)
            .filter(|process| {
                !["runsc-sandbox", "runsc-gofer"]
                    .iter()
                    .any(|name| process.command.starts_with(name))
            })
            // The stubs of systrap, which run the guest's code.
            .filter(|process| !process.command.contains("exe") && !process.command.is_empty())
            .collect();
        assert!(others.is_empty(), "{others:?}");
    }
    pod.remove().await;
}

async fn a_pod_runs_in_gvisor_without_a_network(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let id = pod
        .launch(pod.container("main", &["sleep", "1000"]))
        .await
        .expect("launch");
    let (_, boot) = pod.exec(&id, &["dmesg"]).await;
    assert!(boot.contains("gVisor"), "{boot}");
    if bed.runtime.is_bulkhead() {
        let (_, devices) = pod.exec(&id, &["ls", "/sys/class/net"]).await;
        assert!(
            devices.trim().is_empty() || devices.trim() == "lo",
            "{devices}"
        );
        let (_, count) = pod
            .exec(&id, &["sh", "-c", "grep -c : /proc/net/dev"])
            .await;
        assert_eq!(count, "1\n", "loopback alone");
    }
    assert_eq!(
        bed.ctr_ok(&["--namespace", NAMESPACE, "task", "ls", "-q"])
            .lines()
            .count(),
        2
    );
    pod.remove().await;
}

/// A pod's security context.
fn namespaces(config: &mut k8s_cri::v1::PodSandboxConfig) -> &mut k8s_cri::v1::NamespaceOption {
    let linux = config.linux.as_mut().expect("linux");
    let context = linux.security_context.as_mut().expect("security context");
    context.namespace_options.as_mut().expect("namespaces")
}

async fn a_shared_process_namespace_is_refused_by_name(bed: &Bed) {
    let mut config = Pod::config(bed);
    namespaces(&mut config).pid = NamespaceMode::Pod.into();
    let pod = Pod::run(config).await.expect("run");
    let mut container = pod.container("main", &["true"]);
    let context = container
        .linux
        .as_mut()
        .expect("linux")
        .security_context
        .as_mut();
    context.expect("security context").namespace_options = None;
    let error = pod.launch(container).await.expect_err("refused");
    assert!(error.message().contains("shareProcessNamespace"), "{error}");
    pod.remove().await;
}

async fn namespaces_of_the_host_are_refused(bed: &Bed) {
    for (name, change) in [
        (
            "network",
            (|options| options.network = NamespaceMode::Node.into())
                as fn(&mut k8s_cri::v1::NamespaceOption),
        ),
        ("pid", |options| options.pid = NamespaceMode::Node.into()),
        ("ipc", |options| options.ipc = NamespaceMode::Node.into()),
    ] {
        let mut config = Pod::config(bed);
        change(namespaces(&mut config));
        let error = Pod::run(config).await.map(drop).expect_err(name);
        assert!(error.message().contains(name), "{error}");
    }
}

/// What an exec writes is copied by the shim and by containerd, whose time is in no limit of the pod's.
async fn execs_of_a_pod_share_a_rate(bed: &Bed) {
    let policy = NodePolicy::set("limits.exec_output_mib_per_second = 1");
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let main = pod.container("main", &["sleep", "1000"]);
    let id = pod.launch(main).await.expect("launch");
    drop(policy);
    let began = Instant::now();
    let write = ["dd", "if=/dev/zero", "bs=1M", "count=2"];
    let both = join_all([pod.exec(&id, &write), pod.exec(&id, &write)]).await;
    for (code, output) in both {
        assert_eq!((code, output.len()), (0, 2 << 20), "nothing is dropped");
    }
    // The first second's worth is free.
    assert!(began.elapsed() > Duration::from_millis(2900));
    pod.remove().await;
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let main = pod.container("main", &["sleep", "1000"]);
    let id = pod.launch(main).await.expect("launch");
    let began = Instant::now();
    let write = "dd if=/dev/zero bs=1M count=150 2>/dev/null";
    let exec = [
        "--namespace",
        NAMESPACE,
        "task",
        "exec",
        "--exec-id",
        "e",
        &id,
    ];
    let output = bed.ctr_ok(&[&exec[..], &["sh", "-c", write]].concat());
    assert_eq!(output.len(), 150 << 20);
    assert!(began.elapsed() > Duration::from_millis(1900));
    pod.remove().await;
}
