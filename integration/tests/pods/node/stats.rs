//! What CRI tells of a known load: by every call that a kubelet or `crictl` may make for it.

use std::time::Duration;

use integration::bed::Bed;
use integration::cases;
use integration::cri::Pod;
use integration::patience::patience;
use integration::runtime::Needs;
use k8s_cri::v1::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ListContainerStatsRequest,
    ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, ListPodSandboxStatsRequest,
    PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest, UInt64Value,
};

cases! {
    Needs::Bulkhead => [
        a_known_load_is_told_by_every_call_of_cri,
    ],
}

const MIB: u64 = 1 << 20;

/// One busy core that holds 200 MiB, and 50 processes that do nothing.
const LOAD: &str = "i=0; while [ $i -lt 50 ]; do sleep 1000 & i=$((i+1)); done; \
                    dd if=/dev/zero of=/dev/null bs=200M count=1000000 & wait";

fn number(value: Option<UInt64Value>) -> u64 {
    value.expect("a value").value
}

/// Memory, the working set, CPU time, and billionths of a core; the last is there after two looks of containerd's own, and
/// only in lists.
fn figures(stats: &ContainerStats) -> [u64; 4] {
    let (cpu, memory) = (stats.cpu.expect("cpu"), stats.memory.expect("memory"));
    [
        number(memory.usage_bytes),
        number(memory.working_set_bytes),
        number(cpu.usage_core_nano_seconds),
        cpu.usage_nano_cores.map_or(0, |cores| cores.value),
    ]
}

fn id_of(stats: &ContainerStats) -> &str {
    &stats.attributes.as_ref().expect("attributes").id
}

struct Looked {
    container: ContainerStats,
    containers: Vec<ContainerStats>,
    pod: PodSandboxStats,
    pods: Vec<PodSandboxStats>,
}

impl Looked {
    fn listed(&self, id: &str) -> [u64; 4] {
        let mut found = self.containers.iter().filter(|stats| id_of(stats) == id);
        figures(found.next().expect("it is listed"))
    }
}

async fn look(pod: &Pod, id: &str) -> Looked {
    let filter = ContainerStatsFilter {
        pod_sandbox_id: pod.id.clone(),
        ..ContainerStatsFilter::default()
    };
    let request = ContainerStatsRequest {
        container_id: id.to_owned(),
    };
    let list = ListContainerStatsRequest {
        filter: Some(filter),
    };
    let of_pod = PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    };
    let filter = PodSandboxStatsFilter {
        id: pod.id.clone(),
        ..PodSandboxStatsFilter::default()
    };
    let of_pods = ListPodSandboxStatsRequest {
        filter: Some(filter),
    };
    let cri = &pod.cri;
    let container = cri.container_stats(request).await;
    let one = cri.pod_sandbox_stats(of_pod).await;
    Looked {
        container: container.expect("ContainerStats").expect("stats"),
        containers: cri
            .list_container_stats(list)
            .await
            .expect("ListContainerStats"),
        pod: one.expect("PodSandboxStats").expect("stats"),
        pods: cri
            .list_pod_sandbox_stats(of_pods)
            .await
            .expect("ListPodSandboxStats"),
    }
}

async fn a_known_load_is_told_by_every_call_of_cri(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let busy = pod.launch(pod.shell("busy", LOAD)).await.expect("launch");
    let idle = pod.launch(pod.container("idle", &["sleep", "1000"]));
    let idle = idle.await.expect("launch");
    let mut looked = look(&pod, &busy).await;
    for _ in 0..100 {
        let [memory, _, cpu, cores] = looked.listed(&busy);
        // A first rate is of a moment as short as the load was new, and the sentry counts in ticks of its own. CRI's metrics
        // tell whole seconds.
        let is_told = (300_000_000..1_300_000_000).contains(&cores) && cpu > 2_000_000_000;
        if memory >= 200 * MIB && is_told {
            break;
        }
        tokio::time::sleep(patience(Duration::from_millis(300))).await;
        looked = look(&pod, &busy).await;
    }
    let metrics = pod
        .cri
        .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {})
        .await;
    let descriptors = pod
        .cri
        .list_metric_descriptors(ListMetricDescriptorsRequest {})
        .await;
    let (pod_id, cri_of_pod) = (pod.id.clone(), looked.pod.clone());
    pod.remove().await;

    let alone = figures(&looked.container);
    let [memory, working_set, cpu, _] = alone;
    assert!((200 * MIB..300 * MIB).contains(&memory), "{alone:?}");
    assert!((200 * MIB..300 * MIB).contains(&working_set), "{alone:?}");
    assert!(cpu > 300_000_000, "{alone:?}");
    assert_eq!(looked.containers.len(), 2);
    let listed = looked.listed(&busy);
    let [memory, working_set, cpu, cores] = listed;
    assert!(memory.min(working_set) >= 200 * MIB, "{listed:?}");
    assert!(cpu > 300_000_000, "{listed:?}");
    // Other programs of the machine may take their part of the core.
    assert!((200_000_000..1_400_000_000).contains(&cores), "{listed:?}");
    let listed = looked.listed(&idle);
    let [memory, _, cpu, cores] = listed;
    assert!(memory < 20 * MIB, "{listed:?}");
    assert!(cpu < 500_000_000 && cores < 50_000_000, "{listed:?}");

    assert_eq!(looked.pods.len(), 1);
    for stats in [&cri_of_pod, &looked.pods[0]] {
        let linux = stats.linux.as_ref().expect("linux");
        let memory = linux.memory.expect("memory");
        let (usage, working_set) = (number(memory.usage_bytes), number(memory.working_set_bytes));
        // With the sentry and its gofers.
        assert!((200 * MIB..512 * MIB).contains(&usage), "{linux:?}");
        assert!((200 * MIB..512 * MIB).contains(&working_set), "{linux:?}");
        let cpu = linux.cpu.expect("cpu");
        assert!(
            number(cpu.usage_core_nano_seconds) > 300_000_000,
            "{linux:?}"
        );
        let processes = linux.process.expect("process");
        let count = number(processes.process_count);
        assert!(
            (52..=70).contains(&count),
            "50, a shell, dd, sleep, pause: {count}"
        );
        assert_eq!(linux.containers.len(), 2, "{linux:?}");
    }

    let metrics = metrics.expect("ListPodSandboxMetrics");
    let descriptors = descriptors.expect("ListMetricDescriptors");
    let mut of_pod = metrics.iter().filter(|pod| pod.pod_sandbox_id == pod_id);
    let of_pod = of_pod.next().expect("the pod's metrics");
    let mut of_busy = of_pod.container_metrics.iter();
    let of_busy = of_busy.find(|metrics| metrics.container_id == busy);
    let of_busy = of_busy.expect("the container's metrics");
    let metric = |name: &str| {
        let mut found = of_busy.metrics.iter().filter(|metric| metric.name == name);
        let found = found
            .next()
            .unwrap_or_else(|| panic!("{name}: {of_busy:?}"));
        found.value.as_ref().expect("a value").value
    };
    assert!(
        descriptors
            .iter()
            .any(|one| one.name == "container_memory_working_set_bytes"),
        "{descriptors:?}"
    );
    let working_set = metric("container_memory_working_set_bytes");
    assert!(
        (200 * MIB..300 * MIB).contains(&working_set),
        "{working_set}"
    );
    assert!(metric("container_cpu_usage_seconds_total") > 0);
    assert!(
        (52..=60).contains(&metric("container_processes")),
        "{of_busy:?}"
    );
}
