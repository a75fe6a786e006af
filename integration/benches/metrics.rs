//! What it costs to be looked at: Stats side by side in one run, and the scrape of a node. Prints and gates nothing.
//! `bench [SANDBOXES] [SCRAPES] [SECONDS]`: how many are scraped (50), how often one is (1000), and for how long nobody
//! scrapes (60).
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
use integration::measure::{each, median, megabytes, timed};
use integration::processes::{self, Role};

/// How often Stats is asked for.
const ASKED: u32 = 200;
/// How long until two scrapes do not get the same answer.
const FRESH: Duration = Duration::from_millis(1100);

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
    let (sandboxes, scrapes, seconds) = (
        numbers.next().unwrap_or(50),
        numbers.next().unwrap_or(1000),
        numbers.next().unwrap_or(60),
    );
    let folder = isolate::enter();
    let all = each(&folder, Services::Tasks, |bed, _| {
        let stats = bed.block_on(stats(bed))?;
        if bed.runtime.is_bulkhead() {
            bed.block_on(node(bed, sandboxes, scrapes, seconds));
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
}

/// # Errors
/// What containerd says when the runtime runs nothing here.
async fn stats(bed: &Bed) -> Result<Stats, String> {
    let failed = |error: containerd_client::tonic::Status| error.message().to_owned();
    let container = bed.container(&["sleep", "1000"]).null_streams();
    let container = container.run().await.map_err(failed)?;
    let client = bed.client();
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    let before = cpu_of_shims();
    for _ in 0..ASKED {
        let began = Instant::now();
        client.metrics(&container.id).await.map_err(failed)?;
        asked.push(began.elapsed());
    }
    let cpu = cpu_of_shims().saturating_sub(before);
    for _ in 0..ASKED {
        let began = Instant::now();
        client.list_containers().await.map_err(failed)?;
        answered.push(began.elapsed());
    }
    container.remove().await;
    Ok(Stats {
        ms: median(asked) - median(answered),
        cpu_ms: cpu.as_secs_f64() * 1000.0 / f64::from(ASKED),
    })
}

/// Many sandboxes on one node.
async fn node(bed: &Bed, sandboxes: u64, scrapes: u64, seconds: u64) {
    let mut containers = Vec::new();
    for _ in 0..sandboxes {
        let container = bed.container(&["sleep", "1000"]).null_streams();
        containers.push(container.run().await.expect("run"));
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = cpu_of_shims();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let idle = cpu_of_shims().saturating_sub(before);
    println!(
        "CPU of {sandboxes} shims that nobody asks, in {seconds} s: {} ms",
        idle.as_millis()
    );
    let (mut took, mut tool_cpu, before) = (Vec::new(), Duration::ZERO, cpu_of_shims());
    const ROUNDS: u32 = 10;
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
    let shims = cpu_of_shims().saturating_sub(before);
    let ms = |time: Duration| time.as_secs_f64() * 1000.0 / f64::from(ROUNDS);
    println!(
        "a scrape of {sandboxes} sandboxes: {:.0} ms, median of {ROUNDS}; CPU of the node tool {:.0} ms, of all shims {:.0} ms",
        median(took),
        ms(tool_cpu),
        ms(shims)
    );
    let shim = processes::of(Role::Shim, &containers[0].id)[0].pid;
    let resident = |pid| megabytes(processes::resident_kb(pid).expect("its memory") * 1024);
    let before = resident(shim);
    let socket = socket_of(&containers[0].id);
    for _ in 0..scrapes {
        scrape(&socket);
    }
    println!(
        "resident memory of a shim: {before:.1} MB, after {scrapes} scrapes {:.1} MB",
        resident(shim)
    );
    join_all(containers.iter().map(|container| container.remove())).await;
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
