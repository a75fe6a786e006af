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
use std::time::{Duration, Instant};

use integration::bed::{Bed, Services};
use integration::cri::Pod;
use integration::isolate;
use integration::measure::{each, median, megabytes, scheduled};
use integration::processes::{self, Role};

/// How many pods stand while memory is measured.
const MANY: u32 = 15;
/// For how long they are left alone: CRI then asks for the Stats of every container once a second.
const ALONE: Duration = Duration::from_secs(10);
/// How often.
const ROUNDS: usize = 3;

/// What was measured of one runtime.
struct Figures {
    up_ms: f64,
    down_ms: f64,
    memory: Memory,
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
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse::<usize>().ok());
    let runs = numbers.next().unwrap_or(20);
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
    let (mut ups, mut downs) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let began = Instant::now();
        let pod = up(bed).await?;
        ups.push(began.elapsed());
        let began = Instant::now();
        pod.remove().await;
        downs.push(began.elapsed());
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(memory(bed).await?);
    }
    // What is available on a host moves by itself: the round in the middle counts.
    rounds.sort_by_key(|round| round.unavailable);
    Ok(Figures {
        up_ms: median(ups),
        down_ms: median(downs),
        memory: rounds.swap_remove(ROUNDS / 2),
    })
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

fn print(all: &[(String, Figures)], runs: usize) {
    let Some((compared, first)) = all.first() else {
        return;
    };
    println!(
        "\n{:<28} {:>18} {:>18} {:>7} {:>9} {:>20} {:>20}",
        "runtime",
        "pod up",
        "pod down",
        "shims",
        "helpers",
        "memory of processes",
        "memory of the host"
    );
    let of = |row: &Figures| megabytes(row.memory.proportional());
    let of_host = |row: &Figures| megabytes(row.memory.unavailable);
    for (runtime, row) in all {
        println!(
            "{:<28} {:>8.0} ms ({:>4.2}×) {:>8.0} ms ({:>4.2}×) {:>7} {:>9} {:>10.1} MB ({:>4.2}×) {:>10.1} MB ({:>4.2}×)",
            runtime,
            row.up_ms,
            row.up_ms / first.up_ms,
            row.down_ms,
            row.down_ms / first.down_ms,
            row.memory.shims,
            row.memory.helpers,
            of(row),
            of(row) / of(first),
            of_host(row),
            of_host(row) / of_host(first),
        );
    }
    for (runtime, row) in all {
        let [shim, sandbox, gofers, others] = row.memory.parts.map(megabytes);
        println!(
            "{runtime:<28} of the memory of processes: shim {shim:.1}, sandbox {sandbox:.1}, gofers {gofers:.1}, others {others:.1} MB"
        );
    }
    for (runtime, row) in all {
        let [shim, sandbox] = row.memory.idle.map(|time| time.as_secs_f64() * 1000.0);
        println!(
            "{runtime:<28} CPU of a pod that does nothing, in a second of CRI's collecting: shim {shim:.2} ms, sandbox {sandbox:.2} ms"
        );
    }
    println!(
        "times: median of {runs}, by CRI and with a network by CNI; × is relative to {compared}; up: RunPodSandbox, \
         CreateContainer, StartContainer; down: StopPodSandbox, RemovePodSandbox; memory: of one of {MANY} pods, the median of {ROUNDS} rounds"
    );
}
