//! What the benches have in common.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::bed::{Bed, Services};
use crate::ground::places::tool;
use crate::ground::runtime::Runtime;
use crate::look::processes::{self, Role};

/// The runtimes that are compared; the first is the one that the others are compared with.
pub const RUNTIMES: [&str; 3] = [
    "io.containerd.bulkhead.v1",
    "io.containerd.runc.v2",
    "io.containerd.runsc.v1",
];

/// Measures each runtime whose shim is found, one after the other, each with a containerd of its own: nothing is warmer
/// for the later ones. One that does not run here is named with its reason.
///
/// # Panics
/// When a testbed cannot be made.
pub fn each<T>(
    folder: &Path,
    services: Services,
    mut measure: impl FnMut(&Bed, &Path) -> Result<T, String>,
) -> Vec<(String, T)> {
    let mut all = Vec::new();
    for name in RUNTIMES {
        let runtime = Runtime {
            name: name.to_owned(),
        };
        let Some(binary) = tool(&runtime.binary()) else {
            println!("{name}: {} is not there, left out", runtime.binary());
            continue;
        };
        eprintln!("measuring {name} …");
        let store = folder.join(name);
        fs::create_dir_all(&store).expect("make a folder");
        let bed = Bed::start(store, runtime, services);
        match measure(&bed, &binary) {
            Ok(figures) => all.push((name.to_owned(), figures)),
            Err(reason) => println!("{name}: does not run here, left out: {reason}"),
        }
        drop(bed);
        clear();
    }
    all
}

/// Takes away what the next testbed makes anew.
fn clear() {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    for place in mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|place| place.starts_with("/run/b/"))
    {
        let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
    }
    fs::remove_dir_all("/run/b").expect("remove the testbed");
}

/// The time in the middle, in milliseconds; 0 of none.
#[must_use]
pub fn median(times: Vec<Duration>) -> f64 {
    percentile(&times, 50)
}

/// The time that so many percent do not exceed, in milliseconds; 0 of none.
#[must_use]
pub fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    milliseconds(times.get(last * percent / 100))
}

fn milliseconds(time: Option<&Duration>) -> f64 {
    time.map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

/// How long something takes, and what comes of it.
pub fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let result = work();
    (began.elapsed(), result)
}

/// Time on a CPU of all threads of such processes, to the nanosecond (Documentation/scheduler/sched-stats.rst).
#[must_use]
pub fn scheduled(role: Role) -> Duration {
    let all = processes::of(role, "");
    let tasks = all.iter().flat_map(|process| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid));
        tasks.into_iter().flatten().flatten()
    });
    let nanos = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// Bytes as MB, to be shown with a decimal.
#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
#[must_use]
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// How often something is measured: what `BENCH_RUNS` or the first argument says, else this.
#[must_use]
pub fn runs(usual: usize) -> usize {
    let said = std::env::var("BENCH_RUNS").into_iter();
    said.chain(std::env::args().skip(1))
        .find_map(|word| word.parse().ok())
        .unwrap_or(usual)
        .max(1)
}

/// What was measured of runc, which is the runtime that users know.
#[must_use]
pub fn of_runc<T>(all: &[(String, T)]) -> Option<&T> {
    let runc = all.iter().find(|(name, _)| name.contains(".runc."));
    runc.map(|(_, measured)| measured)
}

/// A median with so many digits and its unit, the 95th percentile in brackets, and how many times it is another median.
#[must_use]
pub fn spread(times: &[Duration], digits: usize, unit: &str, other: Option<f64>) -> String {
    let (middle, high) = (percentile(times, 50), percentile(times, 95));
    let ratio = other.map_or_else(String::new, |other| format!(" {:.2}×", middle / other));
    format!("{middle:.digits$}{unit} ({high:.digits$}){ratio}")
}

/// A table, as Markdown has it.
#[derive(Debug, Clone)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// With the heads of its columns; that of the rows' names is empty.
    pub fn new<'a>(heads: impl IntoIterator<Item = &'a str>) -> Self {
        let heads = heads.into_iter().map(str::to_owned);
        Self(vec![std::iter::once(String::new()).chain(heads).collect()])
    }

    /// With one more row, and its name.
    pub fn row(&mut self, name: impl Into<String>, cells: impl IntoIterator<Item = String>) {
        let row = std::iter::once(name.into()).chain(cells);
        self.0.push(row.collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, row) in self.0.iter().enumerate() {
            writeln!(f, "| {} |", row.join(" | "))?;
            if number == 0 {
                writeln!(f, "|{}", "---|".repeat(row.len()))?;
            }
        }
        Ok(())
    }
}

/// Prints a table, and writes it as `target/bench/NAME.md` with what was measured, when, and on what.
///
/// # Panics
/// When it cannot be written.
pub fn report(name: &str, what: &str, table: &Table) {
    let told = |program: Option<std::path::PathBuf>, word: &str| {
        let output = program.and_then(|path| Command::new(path).arg(word).output().ok());
        let text = output.map_or_else(String::new, |output| {
            String::from_utf8_lossy(&output.stdout).into_owned()
        });
        text.lines().next().unwrap_or("none").trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let text = format!(
        "{table}\n{what}\n\nMade by `make bench` on {}, {cores} cores, kernel {}, load {} at its end; {}; {}, built from the Go module: its own \
         filter is not precompiled.\n",
        told(Some("date".into()), "+%F"),
        told(Some("uname".into()), "-r"),
        load.split(' ').next().unwrap_or_default(),
        told(tool("containerd"), "--version"),
        told(tool("runsc"), "--version"),
    );
    println!("\n{text}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    fs::create_dir_all(&folder).expect("make target/bench");
    fs::write(folder.join(format!("{name}.md")), text).expect("write the table");
}
