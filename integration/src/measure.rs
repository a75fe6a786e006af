//! What the benches have in common.

use std::fs;
use std::path::Path;
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
pub fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    milliseconds(times.get(times.len() / 2))
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
