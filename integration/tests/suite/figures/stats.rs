//! What Stats says of a known load: memory held, one busy core, processes, bytes written.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use integration::bed::Bed;
use integration::cases;
use integration::container::{Builder, Container};
use integration::runtime::Needs;
use serde_json::json;

use crate::figures::limits::{cgroup_file, is_v2};
use crate::figures::metrics::{scrape, socket, value};
use crate::life::pod::{end, member, sandbox};

cases! {
    Needs::Any => [
        a_known_load_is_told_as_it_is,
    ],
    Needs::Bulkhead => [
        each_container_of_a_pod_has_its_own_figures,
        a_container_that_has_just_started_has_used_cpu,
        a_container_that_has_ended_keeps_what_it_used,
        every_part_of_the_message_is_filled,
    ],
}

const MIB: u64 = 1 << 20;

/// The figures that both messages have.
#[derive(Debug)]
pub(crate) struct Figures {
    at: Instant,
    memory: u64,
    working_set: u64,
    limit: u64,
    cpu_nanos: u64,
    pub(crate) tasks: u64,
    faults: u64,
    written: u64,
}

pub(crate) async fn figures(bed: &Bed, id: &str) -> Figures {
    let metrics = bed.client().metrics(id).await.expect("metrics");
    let at = Instant::now();
    if is_v2() {
        let metrics = v2::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
        let memory = &metrics.memory;
        Figures {
            at,
            memory: memory.usage,
            working_set: memory.usage.saturating_sub(memory.inactive_file),
            limit: memory.usage_limit,
            cpu_nanos: metrics.cpu.usage_usec * 1000,
            tasks: metrics.pids.current,
            faults: memory.pgfault,
            written: metrics.io.usage.iter().map(|entry| entry.wbytes).sum(),
        }
    } else {
        let metrics = v1::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
        let memory = &metrics.memory;
        let written = metrics.blkio.io_service_bytes_recursive.iter();
        Figures {
            at,
            memory: memory.usage.usage,
            working_set: memory
                .usage
                .usage
                .saturating_sub(memory.total_inactive_file),
            limit: memory.usage.limit,
            cpu_nanos: metrics.cpu.usage.total,
            tasks: metrics.pids.current,
            faults: memory.pg_fault,
            written: written
                .filter(|entry| entry.op == "Write")
                .map(|entry| entry.value)
                .sum(),
        }
    }
}

/// How many cores were busy between two looks.
#[allow(clippy::cast_precision_loss, reason = "a share of some seconds")]
fn cores(before: &Figures, after: &Figures) -> f64 {
    let busy = after.cpu_nanos.saturating_sub(before.cpu_nanos) as f64;
    busy / (after.at - before.at).as_nanos() as f64
}

/// One busy core that holds 200 MiB, and 50 processes that do nothing; a file says that all of it is there.
pub(crate) const LOAD: &str = "i=0; while [ $i -lt 50 ]; do sleep 1000 & i=$((i+1)); done; \
                    dd if=/dev/zero of=/dev/null bs=200M count=1000000 & : >/tmp/loaded; wait";

pub(crate) async fn loaded(container: &Container<'_>) {
    let wait = container.exec(
        "wait",
        &["sh", "-c", "while ! [ -e /tmp/loaded ]; do sleep 0.1; done"],
    );
    assert_eq!(wait.finish().await.status, 0);
}

async fn a_known_load_is_told_as_it_is(bed: &Bed) {
    let disk = Disk::find(bed);
    let folder = disk.folder.join(bed.id("written"));
    fs::create_dir_all(&folder).expect("make a folder");
    let script = format!(
        "while ! [ -e /srv/go ]; do sleep 0.1; done; \
         dd if=/dev/zero of=/srv/x bs=1M count=100 conv=fsync 2>/dev/null; {LOAD}"
    );
    let container = bed.shell(&script).with(|spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 512 * MIB });
        let mount = json!({ "destination": "/srv", "type": "bind", "source": folder, "options": ["rbind", "rw"] });
        spec["mounts"].as_array_mut().expect("mounts").push(mount);
    });
    let container = container.run().await.expect("run");
    let is_counted = disk.count_for(&container.id);
    fs::write(folder.join("go"), "").expect("let it begin");
    loaded(&container).await;
    eventually_held(bed, &container.id).await;
    let before = figures(bed, &container.id).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = figures(bed, &container.id).await;
    assert!((200 * MIB..400 * MIB).contains(&after.memory), "{after:?}");
    assert!(
        (200 * MIB..400 * MIB).contains(&after.working_set),
        "{after:?}"
    );
    assert_eq!(after.limit, 512 * MIB);
    assert!(
        (52..=60).contains(&after.tasks),
        "50, a shell, dd: {after:?}"
    );
    // Other programs of the machine may take their part of it.
    let cores = cores(&before, &after);
    assert!(
        (0.3..1.3).contains(&cores),
        "{cores} cores: {before:?} {after:?}"
    );
    assert!(after.faults > 0, "{after:?}");
    if is_counted {
        assert!(after.written >= 100 * MIB, "{after:?}");
        if bed.runtime.is_bulkhead() {
            let text = scrape(&socket(&container.id));
            let written = value(&text, "bulkhead_io_written_bytes_total", &[]);
            assert!(
                written.is_some_and(|bytes| bytes >= 104_857_600.0),
                "{text}"
            );
        }
    } else {
        assert!(!disk.is_given, "{after:?}");
        println!(
            "note: the kernel counts nothing for {}: bytes written are not checked",
            folder.display()
        );
    }
    container.remove().await;
    fs::remove_dir_all(folder).expect("remove the folder");
}

/// Where something is written that ends on a device.
struct Disk {
    folder: PathBuf,
    /// `BULKHEAD_TEST_DISK` says that there is one.
    is_given: bool,
}

impl Disk {
    fn find(bed: &Bed) -> Self {
        let given = std::env::var_os("BULKHEAD_TEST_DISK").map(PathBuf::from);
        Self {
            is_given: given.is_some(),
            folder: given.unwrap_or_else(|| bed.folder.clone()),
        }
    }

    /// Lets the kernel count what a container writes there; whether it does.
    fn count_for(&self, id: &str) -> bool {
        let device = fs::metadata(&self.folder).expect("stat").dev();
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let block = format!("/sys/dev/block/{major}:{minor}");
        // A partition has no rules of its own.
        if !Path::new(&block).exists() || Path::new(&block).join("partition").exists() {
            return false;
        }
        if is_v2() {
            return true;
        }
        // Since 6.10 Linux counts only for devices that have a rule; this one is never reached.
        let rule = format!("{major}:{minor} 1000000000000");
        let file = cgroup_file(id, "blkio/blkio.throttle.write_bps_device", "");
        fs::write(file, rule).is_ok()
    }
}

/// dd touches its buffer page by page.
async fn eventually_held(bed: &Bed, id: &str) {
    for _ in 0..200 {
        if figures(bed, id).await.memory >= 200 * MIB {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A container as CRI makes it: with a name and a view of its cgroups.
fn named<'a>(bed: &'a Bed, pod: &Container<'_>, name: &str, script: &str) -> Builder<'a> {
    member(bed, pod, script).with(|spec| {
        spec["annotations"]["io.kubernetes.cri.container-name"] = name.into();
        let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] });
        spec["mounts"].as_array_mut().expect("mounts").push(mount);
    })
}

async fn each_container_of_a_pod_has_its_own_figures(bed: &Bed) {
    let pod = sandbox(bed).await;
    let idle = named(bed, &pod, "idle", "sleep 1000")
        .run()
        .await
        .expect("run");
    let busy = named(bed, &pod, "busy", LOAD).run().await.expect("run");
    loaded(&busy).await;
    eventually_held(bed, &busy.id).await;
    let before = figures(bed, &busy.id).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (after, quiet, whole) = (
        figures(bed, &busy.id).await,
        figures(bed, &idle.id).await,
        figures(bed, &pod.id).await,
    );
    let cores = cores(&before, &after);
    assert!(
        (0.3..1.3).contains(&cores),
        "{cores} cores: {before:?} {after:?}"
    );
    assert!((52..=60).contains(&after.tasks), "{after:?}");
    assert!((200 * MIB..300 * MIB).contains(&after.memory), "{after:?}");
    assert!(quiet.memory < 20 * MIB && quiet.tasks == 1, "{quiet:?}");
    assert!(quiet.cpu_nanos < 500_000_000, "{quiet:?}");
    assert!(
        whole.memory > after.memory && whole.cpu_nanos >= after.cpu_nanos,
        "{whole:?}"
    );
    assert_eq!((after.limit, quiet.limit), (whole.limit, whole.limit));
    for container in [busy, idle] {
        container.remove().await;
    }
    end(pod).await;
}

/// metrics-server leaves a pod out in which one has used none. The sentry counts in steps of 10 ms and what a program does itself.
async fn a_container_that_has_just_started_has_used_cpu(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let first = figures(bed, &one.id).await;
    assert!(first.cpu_nanos > 0, "{first:?}");
    let mut sum = 0;
    let mut others = Vec::new();
    // For some of them the sentry happens to count a step.
    for _ in 0..8 {
        let other = member(bed, &pod, "sleep 1000").run().await.expect("run");
        let figures = figures(bed, &other.id).await;
        assert!(figures.cpu_nanos > 0, "{figures:?}");
        sum += figures.cpu_nanos;
        others.push(other);
    }
    let again = figures(bed, &one.id).await;
    assert!(again.cpu_nanos >= first.cpu_nanos, "{first:?} {again:?}");
    sum += again.cpu_nanos;
    let whole = figures(bed, &pod.id).await;
    assert!(sum < whole.cpu_nanos, "made up: {sum} {whole:?}");
    for other in others {
        other.remove().await;
    }
    one.remove().await;
    end(pod).await;
}

async fn a_container_that_has_ended_keeps_what_it_used(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = named(bed, &pod, "one", LOAD).run().await.expect("run");
    loaded(&one).await;
    eventually_held(bed, &one.id).await;
    let running = figures(bed, &one.id).await;
    bed.client().pause(&pod.id).await.expect("pause");
    let paused = figures(bed, &one.id).await;
    assert!(
        paused.cpu_nanos >= running.cpu_nanos && paused.memory >= 200 * MIB,
        "{paused:?}"
    );
    assert!((52..=60).contains(&paused.tasks), "{paused:?}");
    bed.client().resume(&pod.id).await.expect("resume");
    one.kill(9).await.expect("kill");
    one.wait().await.expect("wait");
    let exited = figures(bed, &one.id).await;
    assert!(exited.cpu_nanos >= paused.cpu_nanos, "{exited:?}");
    assert_eq!((exited.tasks, exited.memory), (0, 0));
    one.delete().await.expect("delete");
    end(pod).await;
}

async fn every_part_of_the_message_is_filled(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    for id in [&pod.id, &one.id] {
        let metrics = bed.client().metrics(id).await.expect("metrics");
        if is_v2() {
            let metrics = v2::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
            assert!(metrics.cpu.is_some() && metrics.memory.is_some() && metrics.pids.is_some());
            assert!(
                metrics.io.is_some() && metrics.rdma.is_some() && metrics.memory_events.is_some()
            );
            let psi = Path::new("/proc/pressure/cpu").exists();
            assert_eq!(
                metrics.cpu.psi.is_some() && metrics.memory.psi.some.is_some(),
                psi
            );
            assert_eq!(metrics.io.psi.full.is_some(), psi);
            assert!(
                metrics
                    .network
                    .iter()
                    .any(|interface| interface.name == "lo")
            );
        } else {
            let metrics = v1::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
            assert!(metrics.cpu.usage.is_some() && metrics.cpu.throttling.is_some());
            let memory = &metrics.memory;
            assert!(memory.usage.is_some() && memory.swap.is_some() && memory.kernel.is_some());
            assert!(memory.kernel_tcp.is_some() && metrics.memory_oom_control.is_some());
            assert!(
                metrics.blkio.is_some() && metrics.rdma.is_some() && metrics.cgroup_stats.is_some()
            );
            assert_eq!(metrics.pids.limit, 256);
            assert!(
                metrics
                    .network
                    .iter()
                    .any(|interface| interface.name == "lo")
            );
        }
    }
    one.remove().await;
    end(pod).await;
}
