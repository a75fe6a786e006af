//! What nerdctl shows and changes of a container from outside: stats, top, update, cp.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use containerd_client::tonic::Code;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use integration::bed::Bed;
use integration::cases;
use integration::runtime::Needs;
use serde_json::{Value, json};

use super::request::Store;
use crate::figures::limits::{cgroup_file, is_v2, resources};

cases! {
    Needs::Any => [
        stats_fill_all_that_nerdctl_reads_and_give_sensible_numbers,
        top_shows_a_line_for_every_pid_that_it_is_told,
    ],
    Needs::Bulkhead => [
        an_update_with_the_whole_of_the_specs_resources_changes_what_can_be,
        cp_finds_nothing_of_a_running_container,
        what_cp_puts_into_a_snapshot_is_there_and_nothing_comes_back,
    ],
}

/// Everything that `nerdctl stats` reads without asking whether it is there (`pkg/statsutil/stats_linux.go`).
#[derive(Debug)]
struct Read {
    cpu_nanos: u64,
    memory: u64,
    limit: u64,
    tasks: u64,
    blocks: u64,
}

async fn read(bed: &Bed, id: &str) -> Read {
    let metrics = bed.client().metrics(id).await.expect("metrics");
    if is_v2() {
        let data = v2::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
        assert!(
            data.cpu.is_some() && data.memory.is_some() && data.pids.is_some() && data.io.is_some()
        );
        Read {
            cpu_nanos: data.cpu.usage_usec * 1000,
            memory: data.memory.usage.saturating_sub(data.memory.inactive_file),
            limit: data.memory.usage_limit,
            tasks: data.pids.current,
            blocks: data
                .io
                .usage
                .iter()
                .map(|entry| entry.rbytes + entry.wbytes)
                .sum(),
        }
    } else {
        let data = v1::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
        assert!(data.cpu.is_some() && data.cpu.usage.is_some() && data.memory.is_some());
        assert!(data.memory.usage.is_some() && data.pids.is_some() && data.blkio.is_some());
        let blocks = data.blkio.io_service_bytes_recursive.iter();
        Read {
            cpu_nanos: data.cpu.usage.total,
            memory: data
                .memory
                .usage
                .usage
                .saturating_sub(data.memory.total_inactive_file),
            limit: data.memory.usage.limit,
            tasks: data.pids.current,
            blocks: blocks
                .filter(|entry| entry.op.starts_with(['R', 'W']))
                .map(|entry| entry.value)
                .sum(),
        }
    }
}

/// All CPU time of the host in nanoseconds, as `getSystemCPUUsage` of `pkg/cmd/container/stats_linux.go` counts it, and its CPUs.
fn host_cpu() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").expect("read /proc/stat");
    let numbers = |line: &str| -> u64 {
        let fields = line.split_whitespace().skip(1).take(7);
        fields
            .map(|field| field.parse::<u64>().expect("a number"))
            .sum()
    };
    let total = text.lines().next().map(numbers).expect("a line for all");
    let cpus = text
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with("cpu"));
    (
        total * 10_000_000,
        u64::try_from(cpus.count()).expect("some"),
    )
}

#[allow(clippy::cast_precision_loss, reason = "a share of some seconds")]
async fn stats_fill_all_that_nerdctl_reads_and_give_sensible_numbers(bed: &Bed) {
    let store = Store::new(bed);
    let run = store
        .run(bed, &["sh", "-c", "while :; do :; done"])
        .with(|spec| {
            spec["linux"]["resources"]["memory"] = json!({ "limit": 256 << 20, "swap": 512 << 20 });
        });
    let container = run.run().await.expect("run");
    let (before, (host_before, _), began) =
        (read(bed, &container.id).await, host_cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (after, (host_after, cpus)) = (read(bed, &container.id).await, host_cpu());
    let busy = (after.cpu_nanos - before.cpu_nanos) as f64;
    let percent = if is_v2() {
        busy / began.elapsed().as_nanos() as f64 * 100.0
    } else {
        busy / (host_after - host_before) as f64 * cpus as f64 * 100.0
    };
    // One busy loop; other programs of the machine may take their part.
    assert!(
        (2.0..130.0).contains(&percent),
        "{percent} %: {before:?} {after:?}"
    );
    assert_eq!(after.limit, 256 << 20);
    assert!(
        after.memory > 100 << 10 && after.memory < after.limit,
        "{after:?}"
    );
    assert!((1..20).contains(&after.tasks), "{after:?}");
    assert!(after.blocks < 1 << 40, "{after:?}");
    let client = bed.client();
    client.pause(&container.id).await.expect("pause");
    assert!(read(bed, &container.id).await.cpu_nanos >= after.cpu_nanos);
    client.resume(&container.id).await.expect("resume");
    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    // A stopped one is looked at too, by `nerdctl stats --all`.
    if bed.runtime.is_bulkhead() {
        assert!(read(bed, &container.id).await.cpu_nanos >= after.cpu_nanos);
    }
    container.delete().await.expect("delete");
}

/// `nerdctl top`: `ps -ef -qPIDS` on the host, of which it keeps the lines of these pids (`pkg/cmd/container/top_unix.go`).
async fn top_shows_a_line_for_every_pid_that_it_is_told(bed: &Bed) {
    let store = Store::new(bed);
    let container = store.run(bed, &["sleep", "1000"]).run().await.expect("run");
    let told = bed.client().pids(&container.id).await.expect("pids");
    let list: Vec<String> = told.iter().map(ToString::to_string).collect();
    let output = Command::new("ps")
        .args(["-ef", &format!("-q{}", list.join(","))])
        .output();
    let output = output.expect("run ps (Debian: procps)");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let shown: BTreeSet<u32> = text
        .lines()
        .skip(1)
        .map(|line| {
            line.split_whitespace()
                .nth(1)
                .and_then(|pid| pid.parse().ok())
                .expect("a pid")
        })
        .collect();
    assert!(shown.contains(&container.pid), "{text}");
    assert!(
        shown.iter().all(|pid| told.contains(pid)),
        "{told:?} {text}"
    );
    // Processes of gVisor's come and go with what the program does; a sleeping one is quiet.
    assert_eq!(shown.len(), told.len(), "{told:?} {text}");
    if bed.runtime.is_bulkhead() {
        assert!(text.contains("runsc-sandbox"), "{text}");
    }
    container.remove().await;
}

/// `nerdctl update` sends all of the spec's resources with its changes in them
/// (`cmd/nerdctl/container/container_update.go`).
async fn an_update_with_the_whole_of_the_specs_resources_changes_what_can_be(bed: &Bed) {
    let store = Store::new(bed);
    let run = store.run(bed, &["sleep", "1000"]);
    let whole = run.spec["linux"]["resources"].clone();
    let container = run.run().await.expect("run");
    let update = async |change: fn(&mut Value)| {
        let mut asked = whole.clone();
        change(&mut asked);
        bed.client()
            .update(&container.id, Some(resources(&asked)))
            .await
    };
    update(|asked| {
        asked["memory"] = json!({ "limit": 300 << 20, "swap": 600 << 20 });
        asked["cpu"] = json!({ "quota": 50_000, "period": 100_000, "realtimeRuntime": 0, "realtimePeriod": 0 });
        asked["pids"] = json!({ "limit": -1 });
    })
    .await
    .expect("update");
    let text = |v1, v2| fs::read_to_string(cgroup_file(&container.id, v1, v2)).expect("a limit");
    let memory = text("memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory.trim(), (300 << 20).to_string());
    let quota = text("cpu/cpu.cfs_quota_us", "cpu.max");
    assert_eq!(quota.split_whitespace().next(), Some("50000"));
    let error = update(|asked| asked["pids"] = json!({ "limit": 10 }));
    let error = error.await.expect_err("below what runs");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(
        error.message().contains("keeps its limit of 256 tasks"),
        "{error}"
    );
    container.remove().await;
}

/// `nerdctl cp` looks for a running container's files in /proc/PID/root (`pkg/containerutil/cp_linux.go`): the sentry's own
/// root, where there is nothing to be read and nothing can be written.
async fn cp_finds_nothing_of_a_running_container(bed: &Bed) {
    let store = Store::new(bed);
    let container = store.run(bed, &["sleep", "1000"]).run().await.expect("run");
    let root = Path::new("/proc")
        .join(container.pid.to_string())
        .join("root");
    for file in ["etc/passwd", "bin/busybox", "tmp", "work"] {
        assert!(!root.join(file).exists(), "{file}");
    }
    let error = fs::create_dir(root.join("new")).expect_err("read-only");
    assert_eq!(
        error.kind(),
        std::io::ErrorKind::ReadOnlyFilesystem,
        "{error}"
    );
    container.remove().await;
}

/// Of one that does not run it mounts the snapshot (the same file).
async fn what_cp_puts_into_a_snapshot_is_there_and_nothing_comes_back(bed: &Bed) {
    let store = Store::new(bed);
    let run = store.run(
        bed,
        &["sh", "-c", "cat /given; touch /made /tmp/made; exit 0"],
    );
    fs::write(store.path("upper/given"), "before the start\n").expect("copy in");
    let done = run.run().await.expect("run").finish().await;
    assert_eq!(done.stdout, "before the start\n", "{done:?}");
    let layer = fs::read_dir(store.path("upper")).expect("list").flatten();
    let names: BTreeSet<String> = layer
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    // /etc has the places of nerdctl's own files.
    assert_eq!(
        names,
        ["etc", "given"].map(str::to_owned).into(),
        "{done:?}"
    );
}
