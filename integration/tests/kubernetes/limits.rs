//! Resources of pods, and of the node.

use std::fs;
use std::path::Path;
use std::time::Duration;

use integration::bed::Bed;
use integration::cases;
use integration::kubernetes::{NODE, PLENTY, Pod};
use integration::runtime::Needs;
use serde_json::{Value, json};

use crate::cluster;

cases! {
    Needs::Any => [
        a_container_that_runs_out_of_memory_is_oom_killed,
        a_pod_is_resized_in_place,
        a_pod_that_starves_the_node_is_evicted_and_others_stay,
        a_node_takes_as_many_pods_as_its_memory_holds,
    ],
    Needs::Gvisor => [
        the_kubelets_summary_has_the_figures_of_each_container,
    ],
}

/// What the RuntimeClass adds to each pod.
const OVERHEAD_MIB: u64 = 48;

/// Holds so many MiB and says so.
fn hold(mib: u32) -> String {
    format!("head -c {mib}m /dev/zero | tail -c {mib}m | {{ sleep 1000; }}")
}

fn memory(limit: &str) -> Value {
    let figures = json!({ "memory": limit, "cpu": "500m" });
    json!({ "requests": figures, "limits": figures })
}

async fn a_container_that_runs_out_of_memory_is_oom_killed(bed: &Bed) {
    let other = Pod::new(bed, cluster(), "bulkhead", "sleep 1000")
        .up()
        .await;
    // tail keeps all of a line without end.
    let pod = Pod::new(bed, cluster(), "bulkhead", "tail /dev/zero")
        .with("/containers/0/resources", memory("96Mi"));
    assert_eq!(pod.end().await, "Failed");
    let ended = "{.status.containerStatuses[0].state.terminated";
    assert_eq!(pod.get(&format!("{ended}.reason}}")).await, "OOMKilled");
    assert_eq!(pod.get(&format!("{ended}.exitCode}}")).await, "137");
    pod.delete().await;
    other.exec("main", &["true"]).await.ok();
    other.delete().await;
}

/// The memory that the pod's sandbox can have, in bytes, as the host's kernel holds it: its own limit or the pod's.
fn sandbox_limit(uid: &str) -> Option<u64> {
    let hierarchies = integration::cgroups::hierarchies();
    let pods = hierarchies.iter().flat_map(|hierarchy| {
        ["", "burstable", "besteffort"].map(|class| {
            let pods = hierarchy.path.join("kubepods").join(class);
            pods.join(format!("pod{uid}"))
        })
    });
    let folders = pods.flat_map(|pod| {
        let children = fs::read_dir(&pod).into_iter().flatten().flatten();
        children
            .map(|child| child.path())
            .chain([pod.clone()])
            .collect::<Vec<_>>()
    });
    let limit = |folder: &Path, file: &str| -> Option<u64> {
        let text = fs::read_to_string(folder.join(file)).ok()?;
        text.trim().parse().ok()
    };
    folders
        .filter_map(|folder| {
            limit(&folder, "memory.limit_in_bytes").or_else(|| limit(&folder, "memory.max"))
        })
        .min()
}

async fn a_pod_is_resized_in_place(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000")
        .with("/containers/0/resources", memory("128Mi"))
        .up()
        .await;
    let uid = pod.get("{.metadata.uid}").await;
    assert_eq!(sandbox_limit(&uid), Some((128 + OVERHEAD_MIB) << 20));
    for (limit, mib) in [("256Mi", 256), ("160Mi", 160)] {
        let change =
            json!({ "spec": { "containers": [{ "name": "main", "resources": memory(limit) }] } });
        let args = [
            "patch",
            "pod",
            &pod.name,
            "--subresource",
            "resize",
            "--patch",
            &change.to_string(),
        ];
        cluster().kubectl(&args).await.ok();
        pod.until(
            "{.status.containerStatuses[0].resources.limits.memory}",
            |text| text == limit,
        )
        .await;
        integration::processes::eventually("the sandbox has it", Duration::from_secs(20), || {
            sandbox_limit(&uid) == Some((mib + OVERHEAD_MIB) << 20)
        })
        .await;
    }
    assert_eq!(
        pod.get("{.status.containerStatuses[0].restartCount}").await,
        "0"
    );
    pod.delete().await;
}

/// What of its memory the node has left, in bytes, as the kubelet counts it.
async fn available(what: &str) -> u64 {
    summary().await["node"]["memory"][what]
        .as_u64()
        .expect("a figure")
}

async fn summary() -> Value {
    let path = format!("/api/v1/nodes/{NODE}/proxy/stats/summary");
    let text = cluster().kubectl(&["get", "--raw", &path]).await.text();
    serde_json::from_str(&text).expect("JSON")
}

async fn a_pod_that_starves_the_node_is_evicted_and_others_stay(bed: &Bed) {
    let stays = Pod::new(bed, cluster(), "bulkhead", "sleep 1000")
        .with("/containers/0/resources", memory("256Mi"))
        .up()
        .await;
    let threshold = available("availableBytes").await - (300 << 20);
    cluster().kill_kubelet();
    cluster().start_kubelet(bed, &threshold.to_string()).await;
    // It asks for little and takes much.
    let greedy = Pod::new(bed, cluster(), "bulkhead", &hold(450)).with(
        "/containers/0/resources",
        json!({ "requests": { "memory": "16Mi" }, "limits": { "memory": "600Mi" } }),
    );
    greedy.apply().await;
    let reason = greedy
        .until("{.status.reason}", |text| text == "Evicted")
        .await;
    assert_eq!(reason, "Evicted");
    stays.exec("main", &["true"]).await.ok();
    greedy.delete().await;
    stays.delete().await;
    cluster().kill_kubelet();
    cluster().start_kubelet(bed, PLENTY).await;
    let pressure = [
        "get",
        "node",
        NODE,
        "-o",
        "jsonpath={.status.conditions[?(@.type=='MemoryPressure')].status}",
    ];
    cluster()
        .until(
            "the pressure is gone",
            Duration::from_secs(60),
            &pressure,
            |answer| answer.stdout == "False",
        )
        .await;
}

async fn a_node_takes_as_many_pods_as_its_memory_holds(bed: &Bed) {
    let capacity = [
        "get",
        "node",
        NODE,
        "-o",
        "jsonpath={.status.allocatable.memory}",
    ];
    let allocatable = cluster().kubectl(&capacity).await.text();
    let kib: u64 = allocatable.trim_end_matches("Ki").parse().expect("KiB");
    let count = 24;
    // So that one more than `count` does not fit. A kubelet 1.37 counts the overhead of pods that run twice, and for a while
    // those that have just ended.
    let each = (kib / 1024 - 512) / count - 2 * OVERHEAD_MIB;
    let pod = || {
        let asked = json!({ "requests": { "memory": format!("{each}Mi"), "cpu": "1m" } });
        Pod::new(bed, cluster(), "bulkhead", "sleep 1000").with("/containers/0/resources", asked)
    };
    let pods: Vec<Pod> = (0..count).map(|_| pod()).collect();
    for pod in &pods {
        pod.apply().await;
    }
    for pod in &pods {
        pod.until("{.status.phase}", |text| text == "Running").await;
    }
    let more = pod();
    more.apply().await;
    more.until("{.status.reason}", |text| text == "OutOfmemory")
        .await;
    cluster().ready().await;
    for pod in &pods {
        pod.exec("main", &["true"]).await.ok();
    }
    let mut args = vec!["delete", "pod", "--timeout=80s", more.name.as_str()];
    args.extend(pods.iter().map(|pod| pod.name.as_str()));
    cluster().kubectl(&args).await.ok();
    cluster().collect().await;
}

async fn the_kubelets_summary_has_the_figures_of_each_container(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead", &hold(200))
        .and("busy", "while :; do :; done")
        .up()
        .await;
    let uid = pod.get("{.metadata.uid}").await;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let all = summary().await;
        let pods = all["pods"].as_array().expect("pods").clone();
        let ours = pods
            .into_iter()
            .find(|entry| entry["podRef"]["uid"] == uid.as_str());
        let figure = |name: &str, pointer: &str| {
            let containers = ours.as_ref()?["containers"].as_array()?;
            let one = containers.iter().find(|entry| entry["name"] == name)?;
            one.pointer(pointer)?.as_u64()
        };
        let held = figure("main", "/memory/workingSetBytes").unwrap_or_default() >> 20;
        let busy = figure("busy", "/cpu/usageNanoCores").unwrap_or_default();
        let idle = figure("main", "/cpu/usageNanoCores").unwrap_or(u64::MAX);
        let pod_memory = ours
            .as_ref()
            .and_then(|entry| entry.pointer("/memory/workingSetBytes")?.as_u64());
        if (200..400).contains(&held)
            && busy > 300_000_000
            && idle < busy
            && pod_memory >= Some(200 << 20)
        {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{ours:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    pod.delete().await;
}
