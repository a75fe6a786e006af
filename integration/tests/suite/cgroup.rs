//! The sandbox's cgroup and what Stats reads there, on hosts with cgroup v1 and with v2 alone.

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use integration::bed::Bed;
use integration::cases;
use integration::runtime::Needs;
use prost_types::Any;
use serde_json::json;

use crate::limits::is_v2;

cases! {
    Needs::Any => [
        the_metrics_message_is_that_of_the_host,
    ],
    Needs::Bulkhead => [
        stats_of_a_running_a_paused_and_an_exited_container_agree,
    ],
}

const MIB: u64 = 1 << 20;

/// The figures that both messages have.
#[derive(Debug)]
struct Figures {
    memory: u64,
    limit: u64,
    cpu_nanos: u64,
    tasks: u64,
}

fn read(metrics: &Any) -> Figures {
    let name = metrics.type_url.rsplit('/').next().expect("a name");
    if is_v2() {
        assert_eq!(name, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
        assert!(metrics.io.is_some() && metrics.memory_events.is_some());
        Figures {
            memory: metrics.memory.usage,
            limit: metrics.memory.usage_limit,
            cpu_nanos: metrics.cpu.usage_usec * 1000,
            tasks: metrics.pids.current,
        }
    } else {
        assert_eq!(name, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
        assert!(metrics.blkio.is_some() && metrics.memory_oom_control.is_some());
        Figures {
            memory: metrics.memory.usage.usage,
            limit: metrics.memory.usage.limit,
            cpu_nanos: metrics.cpu.usage.total,
            tasks: metrics.pids.current,
        }
    }
}

async fn the_metrics_message_is_that_of_the_host(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).with(|spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 256 * MIB });
    });
    let container = container.run().await.expect("run");
    let figures = read(&bed.client().metrics(&container.id).await.expect("metrics"));
    assert_eq!(figures.limit, 256 * MIB);
    assert!(
        figures.memory > 0 && figures.memory < 256 * MIB,
        "{figures:?}"
    );
    assert!(figures.cpu_nanos > 0 && figures.tasks > 0, "{figures:?}");
    container.remove().await;
}

async fn stats_of_a_running_a_paused_and_an_exited_container_agree(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let stats = || async { read(&bed.client().metrics(&container.id).await.expect("metrics")) };
    let running = stats().await;
    bed.client().pause(&container.id).await.expect("pause");
    let paused = stats().await;
    assert!(
        paused.memory > 0 && paused.cpu_nanos >= running.cpu_nanos,
        "{paused:?}"
    );
    bed.client().resume(&container.id).await.expect("resume");
    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    let exited = stats().await;
    assert!(exited.cpu_nanos >= paused.cpu_nanos, "{exited:?}");
    container.delete().await.expect("delete");
}
