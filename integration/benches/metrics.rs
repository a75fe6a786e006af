//! What it costs to be looked at: Stats side by side in one run, and the scrape of a node. Prints and gates nothing.
//! `bench [SANDBOXES] [SCRAPES] [SECONDS] [FRESH]`: how many are scraped (50), how often one is at once (1000), for how long
//! nobody scrapes (60), and how many scrapes are far enough apart that each asks the sandbox anew (60).
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a bench that cannot measure ends"
)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use integration::bed::{Bed, Services, tool};
use integration::harness::join_all;
use integration::isolate;
use integration::measure::{each, median, megabytes, scheduled, timed};
use integration::processes::{self, Role};

/// How often Stats is asked for.
const ASKED: u32 = 200;
/// How long until two scrapes do not get the same answer.
const FRESH: Duration = Duration::from_millis(1100);

/// How much of it is measured.
struct Sizes {
    sandboxes: u64,
    scrapes: u64,
    seconds: u64,
    fresh: u64,
}

/// What is to be reached (docs/metrics.md).
mod targets {
    /// Of a scrape of 50 sandboxes, in milliseconds.
    pub(super) const SCRAPE: f64 = 100.0;
    /// Its CPU time, of the node tool and all shims, in milliseconds.
    pub(super) const SCRAPE_CPU: f64 = 60.0;
    /// Resident memory of a shim, in MB.
    pub(super) const RESIDENT: f64 = 6.0;
    /// One Stats, in milliseconds.
    pub(super) const STATS: f64 = 2.0;
    /// CPU time of shims that nobody asks.
    pub(super) const IDLE: f64 = 0.0;
}

/// Whether a figure is what it is to be at most.
fn met(figure: f64, target: f64) -> String {
    let word = if figure <= target { "met" } else { "MISSED" };
    format!("target {target}: {word}")
}

/// What Stats costs.
struct Stats {
    /// Of a call to containerd that asks the shim, less one that does not.
    ms: f64,
    /// CPU time of one call, of the shim and what it starts.
    cpu_ms: f64,
}

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse::<u64>().ok());
    let sizes = Sizes {
        sandboxes: numbers.next().unwrap_or(50),
        scrapes: numbers.next().unwrap_or(1000),
        seconds: numbers.next().unwrap_or(60),
        fresh: numbers.next().unwrap_or(60),
    };
    let folder = isolate::enter();
    let all = each(&folder, Services::Tasks, |bed, _| {
        let stats = bed.block_on(stats(bed))?;
        if bed.runtime.is_bulkhead() {
            bed.block_on(node(bed, &sizes));
        }
        Ok(stats)
    });
    println!(
        "\n{:<28} {:>16} {:>20}",
        "runtime", "Stats", "CPU of one Stats"
    );
    let first = &all.first().expect("a runtime").1;
    for (runtime, row) in &all {
        println!(
            "{runtime:<28} {:>6.2} ms ({:>4.1}×) {:>9.2} ms ({:>4.1}×)",
            row.ms,
            row.ms / first.ms,
            row.cpu_ms,
            row.cpu_ms / first.cpu_ms
        );
    }
    println!(
        "Stats: median of {ASKED}, less a call that containerd answers by itself; × is relative to the first"
    );
    for (runtime, row) in all.iter().filter(|(name, _)| name.contains("bulkhead")) {
        println!("{runtime}: {}", met(row.ms, targets::STATS));
    }
}

/// # Errors
/// What containerd says when the runtime runs nothing here.
async fn stats(bed: &Bed) -> Result<Stats, String> {
    let failed = |error: containerd_client::tonic::Status| error.message().to_owned();
    // By ctr, as the stock shim does not see what a test's own container has for its root.
    let id = bed.id("asked");
    let started = bed.ctr_run(&["-d", "--null-io"], &id, &["sleep", "1000"]);
    if !started.status.success() {
        return Err(String::from_utf8_lossy(&started.stderr).trim().to_owned());
    }
    let client = bed.client();
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    let before = cpu_of_shims();
    for _ in 0..ASKED {
        let began = Instant::now();
        client.metrics(&id).await.map_err(failed)?;
        asked.push(began.elapsed());
    }
    let cpu = cpu_of_shims().saturating_sub(before);
    for _ in 0..ASKED {
        let began = Instant::now();
        client.list_containers().await.map_err(failed)?;
        answered.push(began.elapsed());
    }
    bed.remove(&id).await;
    Ok(Stats {
        ms: median(asked) - median(answered),
        cpu_ms: cpu.as_secs_f64() * 1000.0 / f64::from(ASKED),
    })
}

/// Many sandboxes on one node.
async fn node(bed: &Bed, sizes: &Sizes) {
    let mut containers = Vec::new();
    for _ in 0..sizes.sandboxes {
        let container = bed.container(&["sleep", "1000"]).null_streams();
        containers.push(container.run().await.expect("run"));
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = scheduled(Role::Shim);
    tokio::time::sleep(Duration::from_secs(sizes.seconds)).await;
    let idle = ms(scheduled(Role::Shim).saturating_sub(before));
    println!(
        "CPU of {} shims that nobody asks, in {} s: {idle:.1} ms ({})",
        sizes.sandboxes,
        sizes.seconds,
        met(idle, targets::IDLE)
    );
    let shim = processes::of(Role::Shim, &containers[0].id)[0].pid;
    let socket = socket_of(&containers[0].id);
    let mut told = vec![("never scraped".to_owned(), resident(shim))];
    scrape_all(sizes.sandboxes).await;
    for _ in 0..sizes.fresh {
        scrape(&socket);
        tokio::time::sleep(FRESH).await;
    }
    told.push((format!("after {} of its own", sizes.fresh), resident(shim)));
    for _ in 0..sizes.scrapes {
        scrape(&socket);
    }
    told.push((format!("after {} at once", sizes.scrapes), resident(shim)));
    tokio::time::sleep(FRESH).await;
    told.push(("a second later".to_owned(), resident(shim)));
    for (when, [all, own]) in told {
        println!(
            "resident memory of a shim, {when}: {all:.2} MB, {own:.2} MB of it no file's ({})",
            met(all, targets::RESIDENT)
        );
    }
    join_all(containers.iter().map(|container| container.remove())).await;
}

/// Scrapes of the whole node by the node tool.
async fn scrape_all(sandboxes: u64) {
    const ROUNDS: u32 = 10;
    let (mut took, mut tool_cpu) = (Vec::new(), Duration::ZERO);
    let (shims, sentries) = (scheduled(Role::Shim), scheduled(Role::Sandbox));
    for _ in 0..ROUNDS {
        tokio::time::sleep(FRESH).await;
        let own = cpu_of_children();
        let (time, output) = timed(|| {
            let mut command = Command::new(tool("bulkhead").expect("bulkhead"));
            command.arg("metrics").output().expect("run bulkhead")
        });
        tool_cpu += cpu_of_children().saturating_sub(own);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = text.matches("\nbulkhead_sandbox_info{").count();
        assert_eq!(told as u64, sandboxes, "{text}");
        took.push(time);
    }
    let each = |time: Duration| ms(time) / f64::from(ROUNDS);
    let shims = each(scheduled(Role::Shim).saturating_sub(shims));
    // They do other things as well, so this is the most that it can be.
    let sentries = each(scheduled(Role::Sandbox).saturating_sub(sentries));
    let (time, tool_cpu) = (median(took), each(tool_cpu));
    println!(
        "a scrape of {sandboxes} sandboxes: {time:.0} ms, median of {ROUNDS} ({})",
        met(time, targets::SCRAPE)
    );
    println!(
        "its CPU: node tool {tool_cpu:.0} ms, all shims {shims:.0} ms ({}); all sentries {sentries:.0} ms",
        met(tool_cpu + shims, targets::SCRAPE_CPU)
    );
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Resident memory in MB: all of it, and what is no page of a file. The kernel's own sum is exact, VmRSS may lag behind.
fn resident(pid: i32) -> [f64; 2] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its memory");
    ["Rss:", "Anonymous:"].map(|field| {
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kb = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kb: u64 = kb.and_then(|kb| kb.parse().ok()).expect("a number");
        megabytes(kb * 1024)
    })
}

/// The metrics socket of a sandbox: beside the control socket that bears its id.
fn socket_of(id: &str) -> PathBuf {
    let folders = std::fs::read_dir("/run/bulkhead").expect("read the folder");
    let folders = folders.flatten().map(|entry| entry.path());
    let mut own = folders.filter(|folder| folder.join(format!("runsc-{id}.sock")).exists());
    own.next().expect("a sandbox").join("metrics.sock")
}

fn scrape(socket: &Path) {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        .expect("ask");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answer");
    assert!(answer.ends_with(b"# EOF\n"));
}

/// CPU time of all shims, with that of children they have waited for.
fn cpu_of_shims() -> Duration {
    let shims = processes::of(Role::Shim, "");
    shims
        .iter()
        .map(|shim| cpu(&format!("/proc/{}/stat", shim.pid), 11..15))
        .sum()
}

/// CPU time of this program's children that have ended.
fn cpu_of_children() -> Duration {
    cpu("/proc/self/stat", 13..15)
}

/// The sum of some fields of a stat file (proc(5)), counted after the name, in ticks of 10 ms.
fn cpu(path: &str, fields: std::ops::Range<usize>) -> Duration {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let after_name = text.rsplit_once(") ").map_or("", |(_, after)| after);
    let numbers = after_name.split(' ').collect::<Vec<_>>();
    let ticks: u64 = numbers
        .get(fields)
        .into_iter()
        .flatten()
        .filter_map(|number| number.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}
