//! Limits of pods: where their cgroups are, what is in them, what an update changes, and what happens when memory runs out.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::tonic::Code;
use integration::bed::Bed;
use integration::cases;
use integration::cri::{Pod, cgroup_folders, make_cgroup};
use integration::processes::eventually;
use integration::runtime::Needs;
use k8s_cri::v1::{
    ContainerStatsRequest, LinuxContainerResources, PodSandboxConfig, PodSandboxStatsRequest,
};

cases! {
    Needs::Any => [
        a_container_that_runs_out_of_memory_is_oom_killed,
        stats_of_a_pod_and_its_containers_are_sensible,
    ],
    Needs::Bulkhead => [
        the_sandbox_has_its_own_cgroup_below_the_pods,
        a_finite_limit_of_the_pod_is_the_sandboxs,
        an_update_raises_and_lowers_the_sandboxs_memory,
        a_container_brings_its_limits_and_takes_them_along,
        the_sandbox_of_a_systemd_slice_has_its_scope,
        a_pod_with_too_little_memory_is_refused_by_number,
        the_guests_tasks_fit_below_the_pods_limit,
        a_pod_with_too_few_tasks_is_refused_by_number,
    ],
}

const MIB: u64 = 1 << 20;

/// A file of the memory controller, by its names on v1 and v2.
fn file(cgroup: &str, v1: &str, v2: &str) -> PathBuf {
    let found = cgroup_folders(cgroup)
        .into_iter()
        .flat_map(|folder| [folder.join(v1), folder.join(v2)])
        .find(|file| file.exists());
    found.unwrap_or_else(|| panic!("{cgroup} has neither {v1} nor {v2}"))
}

fn memory_limit(cgroup: &str) -> u64 {
    let text =
        fs::read_to_string(file(cgroup, "memory.limit_in_bytes", "memory.max")).expect("read");
    text.trim().parse().unwrap_or(u64::MAX)
}

/// Sets the pod's own limit, as the kubelet does before it asks for the pod.
pub(crate) fn limit_pod(config: &PodSandboxConfig, mib: u64) {
    make_cgroup(config);
    let parent = &config.linux.as_ref().expect("linux").cgroup_parent;
    let file = file(parent, "memory.limit_in_bytes", "memory.max");
    fs::write(file, (mib * MIB).to_string()).expect("limit the pod");
}

fn sandbox_cgroup(pod: &Pod) -> String {
    format!("{}/{}", pod.cgroup(), pod.id)
}

/// Sets the pod's `pids.max`, as the kubelet does for `podPidsLimit`.
fn limit_tasks(config: &PodSandboxConfig, tasks: u64) {
    make_cgroup(config);
    let parent = &config.linux.as_ref().expect("linux").cgroup_parent;
    let file = file(parent, "pids.max", "pids.max");
    fs::write(file, tasks.to_string()).expect("limit the pod");
}

async fn the_guests_tasks_fit_below_the_pods_limit(bed: &Bed) {
    let config = Pod::config(bed);
    limit_tasks(&config, 600);
    let pod = Pod::run(config).await.expect("run");
    // Each of them writes a file, all at once: at the host's limit the sentry would panic.
    // A shell ends when it cannot fork, so the first process is another one.
    let script = "ulimit -u; (i=0; while [ $i -lt 200 ]; do (while :; do echo $i >/tmp/f$i; done) & \
                  i=$((i+1)); done); exec sleep 1000";
    let id = pod.launch(pod.shell("bomb", script)).await.expect("launch");
    let tasks = || {
        let file = file(&sandbox_cgroup(&pod), "pids.current", "pids.current");
        let text = fs::read_to_string(file).expect("read");
        text.trim().parse::<u64>().expect("a number")
    };
    eventually("the bomb goes off", Duration::from_secs(20), || {
        tasks() > 100
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let log = pod.log("bomb");
    assert!(log.contains("86"), "(600 - 256) / 4: {log}");
    assert!(tasks() < 600, "{}", tasks());
    // The sandbox answers, and ends one container without the others.
    pod.remove_container(&id).await;
    let next = pod
        .launch(pod.shell("next", "exit 7"))
        .await
        .expect("launch");
    assert_eq!(pod.ended(&next).await.exit_code, 7);
    pod.remove().await;
}

async fn a_pod_with_too_few_tasks_is_refused_by_number(bed: &Bed) {
    let config = Pod::config(bed);
    limit_tasks(&config, 300);
    let error = Pod::run(config).await.expect_err("refused");
    assert!(
        error.message().contains("300") && error.message().contains("320"),
        "{error:?}"
    );
}

async fn the_sandbox_has_its_own_cgroup_below_the_pods(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let id = pod
        .launch(pod.container("main", &["sleep", "1000"]))
        .await
        .expect("launch");
    let cgroup = sandbox_cgroup(&pod);
    assert_eq!(memory_limit(&cgroup), 512 * MIB, "the policy's default");
    let procs = fs::read_to_string(file(&cgroup, "cgroup.procs", "cgroup.procs")).expect("read");
    assert!(procs.lines().count() >= 3, "sentry and two gofers: {procs}");
    // An empty cgroup of the container would read as a container that uses nothing.
    let others = cgroup_folders(&format!("{}/{id}", pod.cgroup()));
    assert!(!others.iter().any(|folder| folder.exists()), "{others:?}");
    pod.remove().await;
}

async fn a_finite_limit_of_the_pod_is_the_sandboxs(bed: &Bed) {
    let config = Pod::config(bed);
    limit_pod(&config, 300);
    let pod = Pod::run(config).await.expect("run");
    assert_eq!(memory_limit(&sandbox_cgroup(&pod)), 300 * MIB);
    pod.remove().await;
}

pub(crate) fn memory(mib: u64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: i64::try_from(mib * MIB).expect("fits"),
        ..LinuxContainerResources::default()
    }
}

async fn an_update_raises_and_lowers_the_sandboxs_memory(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let mut config = pod.container("main", &["sleep", "1000"]);
    config.linux.as_mut().expect("linux").resources = Some(memory(600));
    let id = pod.launch(config).await.expect("launch");
    for mib in [1024, 700] {
        pod.update(&id, memory(mib)).await.expect("update");
        assert_eq!(memory_limit(&sandbox_cgroup(&pod)), mib * MIB);
    }
    let nonsense = LinuxContainerResources {
        cpu_period: 10,
        cpu_quota: 50_000,
        ..memory(0)
    };
    let error = pod.update(&id, nonsense).await.expect_err("nonsense");
    assert!(error.message().contains("period"), "{error}");
    assert_eq!(memory_limit(&sandbox_cgroup(&pod)), 700 * MIB);
    pod.remove().await;
}

/// With a client that does not say before what all of them will need, as crictl.
async fn a_container_brings_its_limits_and_takes_them_along(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let limit = || memory_limit(&sandbox_cgroup(&pod)) / MIB;
    assert_eq!(limit(), 512, "the policy's default");
    let mut ids = Vec::new();
    for (name, mib, sum) in [("one", 600, 600), ("two", 700, 1300)] {
        let mut config = pod.container(name, &["sleep", "1000"]);
        config.linux.as_mut().expect("linux").resources = Some(memory(mib));
        ids.push(pod.launch(config).await.expect("launch"));
        assert_eq!(limit(), sum, "{name}");
    }
    // What has changed the limit since does not matter: the kernel's is compared, not the shim's.
    let cgroup = sandbox_cgroup(&pod);
    let files = [
        ("memory.limit_in_bytes", "memory.max"),
        ("memory.memsw.limit_in_bytes", "memory.max"),
    ];
    for (v1, v2) in files {
        let path = file(&cgroup, "memory.limit_in_bytes", "memory.max");
        let path = path.with_file_name(if path.ends_with("memory.max") { v2 } else { v1 });
        if path.exists() {
            fs::write(path, (900 * MIB).to_string()).expect("write");
        }
    }
    assert_eq!(limit(), 900);
    let again = LinuxContainerResources {
        cpu_shares: 100,
        ..memory(700)
    };
    pod.update(&ids[1], again).await.expect("update");
    assert_eq!(limit(), 1300);
    for (id, sum) in ids.iter().zip([700, 512]) {
        pod.remove_container(id).await;
        eventually("its share goes", Duration::from_secs(10), || limit() == sum).await;
    }
    pod.remove().await;
}

async fn the_sandbox_of_a_systemd_slice_has_its_scope(bed: &Bed) {
    let mut config = Pod::config(bed);
    let slice = format!("kubepods-pod{}.slice", bed.id("x").replace('-', "_"));
    let folder = format!("/kubepods.slice/{slice}");
    config.linux.as_mut().expect("linux").cgroup_parent = folder.clone();
    let pod = Pod::run(config).await.expect("run");
    let scope = format!("{folder}/cri-containerd-{}.scope", pod.id);
    assert_eq!(memory_limit(&scope), 512 * MIB);
    pod.remove().await;
    assert!(
        !cgroup_folders(&scope).iter().any(|folder| folder.exists()),
        "{scope} stays"
    );
}

async fn a_pod_with_too_little_memory_is_refused_by_number(bed: &Bed) {
    let config = Pod::config(bed);
    limit_pod(&config, 16);
    let error = Pod::run(config).await.map(drop).expect_err("refused");
    assert!(
        error.message().contains("16777216") && error.message().contains("32 MiB"),
        "{error}"
    );
    assert_ne!(error.code(), Code::DeadlineExceeded);
}

async fn a_container_that_runs_out_of_memory_is_oom_killed(bed: &Bed) {
    let config = Pod::config(bed);
    limit_pod(&config, 128);
    let pod = Pod::run(config).await.expect("run");
    let mut eater = pod.shell("eater", "exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    eater.linux.as_mut().expect("linux").resources = Some(memory(100));
    let id = pod.launch(eater).await.expect("launch");
    let status = pod.ended(&id).await;
    assert_eq!(status.exit_code, 137);
    // The reason comes by an event of its own.
    let mut reason = status.reason;
    for _ in 0..100 {
        if reason == "OOMKilled" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        reason = pod.status(&id).await.reason;
    }
    assert_eq!(reason, "OOMKilled");
    pod.remove().await;
}

async fn stats_of_a_pod_and_its_containers_are_sensible(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=12 2>/dev/null; echo held; sleep 1000";
    let id = pod.launch(pod.shell("main", script)).await.expect("launch");
    eventually("memory is held", Duration::from_secs(20), || {
        pod.log("main").contains("held")
    })
    .await;
    let request = ContainerStatsRequest { container_id: id };
    let stats = pod
        .cri
        .container_stats(request)
        .await
        .expect("ContainerStats")
        .expect("stats");
    let memory = stats
        .memory
        .expect("memory")
        .usage_bytes
        .expect("usage")
        .value;
    let cpu = stats
        .cpu
        .expect("cpu")
        .usage_core_nano_seconds
        .expect("usage")
        .value;
    assert!((12 * MIB..512 * MIB).contains(&memory), "{memory}");
    assert!(cpu > 0);
    let request = PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let stats = pod
        .cri
        .pod_sandbox_stats(request)
        .await
        .expect("PodSandboxStats")
        .expect("stats");
    let linux = stats.linux.expect("linux");
    let all = linux
        .memory
        .expect("memory")
        .usage_bytes
        .expect("usage")
        .value;
    assert!((12 * MIB..512 * MIB).contains(&all), "{all}");
    pod.remove().await;
}
