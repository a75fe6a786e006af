//! Pods, side by side in one run on one machine: prints times and memory with their ratios and gates nothing. Runtimes that
//! run no pod here are left out with their reason. `bench [RUNS]`: how often a time is measured (20).
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a bench that cannot measure ends"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use integration::bed::{Bed, Services};
use integration::cri::{NAMESPACE, Pod, mount};
use integration::isolate;
use integration::measure::{Table, each, megabytes, percentile, report, runs, scheduled, spread};
use integration::processes::{self, Role};
use k8s_cri::v1::ImageSpec;

/// Writes and reads a thousand small files, and tells the milliseconds of both.
const SMALL: &str = r#"
import json, os, shutil, time
def write():
    os.mkdir("/data/small")
    for number in range(1000):
        with open(f"/data/small/{number}", "wb") as file:
            file.write(b"x" * 4096)
def read():
    for number in range(1000):
        with open(f"/data/small/{number}", "rb") as file:
            file.read()
told = []
for work in (write, read):
    began = time.perf_counter()
    work()
    told.append((time.perf_counter() - began) * 1000)
shutil.rmtree("/data/small")
print(json.dumps(told))
"#;
/// How many pods stand while memory is measured.
const MANY: u32 = 15;
/// For how long they are left alone: CRI then asks for the Stats of every container once a second.
const ALONE: Duration = Duration::from_secs(10);
/// How often.
const ROUNDS: usize = 3;

/// What was measured of one runtime.
struct Figures {
    ups: Vec<Duration>,
    /// A container more, in a pod that has one.
    seconds: Vec<Duration>,
    downs: Vec<Duration>,
    memory: Memory,
    /// Small files in an emptyDir on the node's disk, and in one in memory: written and read.
    volumes: Vec<(&'static str, [Vec<Duration>; 2])>,
}

/// What many pods take.
struct Memory {
    /// Of all pods together.
    shims: usize,
    helpers: usize,
    /// Of one pod, in bytes: what its shim, sandbox and gofers take, and all else; shared pages in proportion.
    parts: [u64; 4],
    /// Of one pod, in bytes: by how much less is available on the host.
    unavailable: u64,
    /// CPU time of one pod that does nothing, in a second: of its shim, and of its sandbox.
    idle: [Duration; 2],
}

impl Memory {
    /// Of all processes of one pod, in bytes.
    fn proportional(&self) -> u64 {
        self.parts.iter().sum()
    }
}

fn main() {
    let runs = runs(20);
    let folder = isolate::enter();
    let all = each(&folder, Services::Cri, |bed, _| {
        bed.block_on(measure(bed, runs))
    });
    print(&all, runs);
}

/// A pod of a sandbox container and one that sleeps.
async fn up(bed: &Bed) -> Result<Pod, String> {
    let failed = |error: containerd_client::tonic::Status| error.message().to_owned();
    let pod = Pod::run(Pod::config(bed)).await.map_err(failed)?;
    let container = pod.container("main", &["sleep", "1000"]);
    match pod.launch(container).await {
        Ok(_) => Ok(pod),
        Err(error) => {
            pod.remove().await;
            Err(failed(error))
        }
    }
}

/// # Errors
/// What containerd says when the runtime runs no pod here.
async fn measure(bed: &Bed, runs: usize) -> Result<Figures, String> {
    up(bed).await?.remove().await;
    let (mut ups, mut seconds, mut downs) = (vec![], vec![], vec![]);
    for _ in 0..runs {
        let began = Instant::now();
        let pod = up(bed).await?;
        ups.push(began.elapsed());
        let began = Instant::now();
        let second = pod.container("second", &["sleep", "1000"]);
        let second = pod.launch(second).await;
        second.map_err(|error| error.message().to_owned())?;
        seconds.push(began.elapsed());
        let began = Instant::now();
        pod.remove().await;
        downs.push(began.elapsed());
    }
    let volumes = volumes(bed, runs).await?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(memory(bed).await?);
    }
    // What is available on a host moves by itself: the round in the middle counts.
    rounds.sort_by_key(|round| round.unavailable);
    Ok(Figures {
        ups,
        seconds,
        downs,
        volumes,
        memory: rounds.swap_remove(ROUNDS / 2),
    })
}

/// Small files in volumes of a pod, by a program of the image.
async fn volumes(
    bed: &Bed,
    runs: usize,
) -> Result<Vec<(&'static str, [Vec<Duration>; 2])>, String> {
    let failed = |error: containerd_client::tonic::Status| error.message().to_owned();
    bed.import(NAMESPACE, "bench");
    let mut all = vec![];
    let kinds = [
        ("an emptyDir", "kubernetes.io~empty-dir/small"),
        (
            "a claim's volume, as a bind",
            "kubernetes.io~csi/claim/mount",
        ),
    ];
    for (kind, folder) in kinds {
        let pod = Pod::run(Pod::config(bed)).await.map_err(failed)?;
        let folder = pod.folder().join("volumes").join(folder);
        fs::create_dir_all(&folder).expect("make a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("chmod");
        let mut container = pod.container("main", &["sleep", "1000"]);
        container.image = Some(ImageSpec {
            image: "bulkhead.test/bench:latest".into(),
            ..ImageSpec::default()
        });
        container.mounts = vec![mount(&folder, "/data", false)];
        let container = pod.launch(container).await.map_err(failed)?;
        let mut passes = [vec![], vec![]];
        for _ in 0..runs {
            let (code, told) = pod.exec(&container, &["python3", "-c", SMALL]).await;
            assert_eq!(code, 0, "{told}");
            let told: [f64; 2] = serde_json::from_str(&told).expect("times");
            for (all, millis) in passes.iter_mut().zip(told) {
                all.push(Duration::from_secs_f64(millis / 1000.0));
            }
        }
        pod.remove().await;
        all.push((kind, passes));
    }
    Ok(all)
}

async fn memory(bed: &Bed) -> Result<Memory, String> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = pids();
    let available = available();
    let mut pods = Vec::new();
    for _ in 0..MANY {
        pods.push(up(bed).await?);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let unavailable = available.saturating_sub(self::available()) / u64::from(MANY);
    let new: Vec<i32> = pids().difference(&before).copied().collect();
    let mut parts = [0; 4];
    for process in processes::all().iter().filter(|p| new.contains(&p.pid)) {
        let part = match processes::role(process) {
            Some(Role::Shim) => 0,
            Some(Role::Sandbox) => 1,
            Some(Role::Gofer) => 2,
            _ => 3,
        };
        parts[part] += proportional(process.pid) / u64::from(MANY);
    }
    let roles = [Role::Shim, Role::Sandbox];
    let before = roles.map(scheduled);
    tokio::time::sleep(ALONE).await;
    let spent = roles.map(scheduled);
    let pod_seconds = MANY * u32::try_from(ALONE.as_secs()).expect("seconds");
    let idle = [0, 1].map(|at: usize| spent[at].saturating_sub(before[at]) / pod_seconds);
    let memory = Memory {
        idle,
        shims: processes::of(Role::Shim, "").len(),
        helpers: processes::of(Role::Command, "").len(),
        parts,
        unavailable,
    };
    for pod in pods {
        pod.remove().await;
    }
    Ok(memory)
}

fn pids() -> BTreeSet<i32> {
    processes::all()
        .into_iter()
        .map(|process| process.pid)
        .collect()
}

/// A figure in a file of /proc that gives it in kilobytes; in bytes.
fn figure(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let words = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = words.and_then(|words| words.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

fn proportional(pid: i32) -> u64 {
    figure(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

fn available() -> u64 {
    figure("/proc/meminfo", "MemAvailable:")
}

/// A median, the 95th percentile, and how many times it is the first's.
fn times(times: &[Duration], first: &[Duration]) -> String {
    spread(times, 0, " ms", Some(percentile(first, 50)))
}

fn print(all: &[(String, Figures)], runs: usize) {
    let Some((compared, first)) = all.first() else {
        return;
    };
    let mut table = Table::new(all.iter().map(|(name, _)| name.as_str()));
    let mut row = |name: &str, cell: &dyn Fn(&Figures) -> String| {
        table.row(name, all.iter().map(|(_, figures)| cell(figures)));
    };
    row("pod up", &|of| times(&of.ups, &first.ups));
    row("a second container", &|of| {
        times(&of.seconds, &first.seconds)
    });
    row("pod down", &|of| times(&of.downs, &first.downs));
    for (at, (kind, _)) in first.volumes.iter().enumerate() {
        for (pass, work) in ["write", "read"].iter().enumerate() {
            row(&format!("1,000 files on {kind}: {work}"), &|of| {
                times(&of.volumes[at].1[pass], &first.volumes[at].1[pass])
            });
        }
    }
    row("shims, helpers", &|of| {
        format!("{}, {}", of.memory.shims, of.memory.helpers)
    });
    let beside = |bytes: u64, first: u64| {
        format!(
            "{:.1} MB {:.2}×",
            megabytes(bytes),
            megabytes(bytes) / megabytes(first)
        )
    };
    row("memory of processes", &|of| {
        beside(of.memory.proportional(), first.memory.proportional())
    });
    row("of that shim, sandbox, gofers, others", &|of| {
        let parts = of
            .memory
            .parts
            .map(|part| format!("{:.1}", megabytes(part)));
        parts.join(", ")
    });
    row("memory of the host", &|of| {
        beside(of.memory.unavailable, first.memory.unavailable)
    });
    row(
        "CPU of a pod that does nothing, in a second: shim, sandbox",
        &|of| {
            let parts = of
                .memory
                .idle
                .map(|time| format!("{:.2} ms", time.as_secs_f64() * 1000.0));
            parts.join(", ")
        },
    );
    report(
        "pods",
        &format!(
            "Times: median of {runs}, in brackets the 95th percentile, by CRI and with a network by CNI. × is relative to {compared}. Up: \
             RunPodSandbox, CreateContainer, StartContainer. A second container: CreateContainer, StartContainer. Down: StopPodSandbox, \
             RemovePodSandbox. Memory: of one of {MANY} pods, the median of {ROUNDS} rounds."
        ),
        &table,
    );
}
