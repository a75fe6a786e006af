//! The figures, side by side in one run on one machine: prints them with their ratios and gates nothing. Runtimes whose
//! shim is not found are left out. `bench [RUNS] [EXITS]`: how often a time is measured (20), and how many exit codes
//! are checked (1000).
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a bench that cannot measure ends"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::bed::{Bed, IMAGE, Services, tool};
use integration::client::NAMESPACE;
use integration::processes::{self, Role};
use integration::runtime::Runtime;
use integration::{isolate, spec};

/// First the one that the others are compared with.
const RUNTIMES: [&str; 3] = [
    "io.containerd.bulkhead.v1",
    "io.containerd.runc.v2",
    "io.containerd.runsc.v1",
];

/// What was measured of one runtime.
struct Figures {
    runtime: String,
    shim_kb: u64,
    helpers: usize,
    run_ms: f64,
    binary: u64,
}

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse::<usize>().ok());
    let (runs, exits) = (numbers.next().unwrap_or(20), numbers.next().unwrap_or(1000));
    let folder = isolate::enter();
    let mut all = Vec::new();
    let mut bare = None;
    for name in RUNTIMES {
        let runtime = Runtime {
            name: name.to_owned(),
        };
        let Some(binary) = tool(&runtime.binary()) else {
            println!("{name}: {} is not there, left out", runtime.binary());
            continue;
        };
        eprintln!("measuring {name} …");
        // Each has a containerd of its own: nothing is warmer for the later ones.
        let store = folder.join(name);
        fs::create_dir_all(&store).expect("make a folder");
        let bed = Bed::start(store, runtime, Services::Tasks);
        match measure(&bed, &binary, runs) {
            Ok(figures) => all.push(figures),
            Err(reason) => println!("{name}: does not run here, left out: {reason}"),
        }
        if name == RUNTIMES[0] {
            bare = bed.runsc.is_some().then(|| bare_runsc(&bed, runs));
            check_exits(&bed, exits);
        }
        drop(bed);
        clear();
    }
    print(&all, bare, runs);
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

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// # Errors
/// What `ctr` says when the runtime runs nothing here.
fn measure(bed: &Bed, binary: &Path, runs: usize) -> Result<Figures, String> {
    let once = || {
        let (id, began) = (bed.id("run"), Instant::now());
        let output = bed.ctr_run(&["--rm"], &id, &["true"]);
        (began.elapsed(), output)
    };
    // The first fills caches, and tells whether it works; the stock shim may answer 128 for a program that ran.
    let (_, first) = once();
    if !first.status.success() && first.status.code() != Some(128) {
        return Err(String::from_utf8_lossy(&first.stderr).trim().to_owned());
    }
    let run_ms = median((0..runs).map(|_| once().0).collect());
    let id = bed.id("idle");
    let output = bed.ctr_run(&["-d", "--null-io"], &id, &["sleep", "1000"]);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    std::thread::sleep(Duration::from_secs(2));
    let shims = processes::of(Role::Shim, &id);
    let shim_kb = shims
        .iter()
        .filter_map(|shim| processes::resident_kb(shim.pid))
        .sum();
    let helpers = processes::of(Role::Command, &id).len() + shims.len().saturating_sub(1);
    bed.block_on(bed.remove(&id));
    let binary = fs::metadata(binary).expect("the shim's size").len();
    Ok(Figures {
        runtime: bed.runtime.name.clone(),
        shim_kb,
        helpers,
        run_ms,
        binary,
    })
}

/// `runsc create`, `start` and `delete` without any shim.
fn bare_runsc(bed: &Bed, runs: usize) -> f64 {
    let (bundle, root) = (bed.folder.join("bare"), "/run/bare");
    fs::create_dir_all(bundle.join("rootfs")).expect("make a bundle");
    let times = (0..runs + 1).map(|number| {
        let id = format!("bare{number}");
        let mut config = spec::container(NAMESPACE, &id, &["true"]);
        config["root"]["path"] = IMAGE.into();
        fs::write(bundle.join("config.json"), config.to_string()).expect("write config.json");
        let runsc = |args: &[&str]| {
            let mut command = Command::new(bed.runsc.as_ref().expect("runsc"));
            command.args(["--root", root, "--network=none"]).args(args);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            assert!(
                command.status().expect("run runsc").success(),
                "runsc {args:?}"
            );
        };
        let began = Instant::now();
        runsc(&["create", "--bundle", &bundle.display().to_string(), &id]);
        runsc(&["start", &id]);
        runsc(&["delete", "--force", &id]);
        began.elapsed()
    });
    median(times.skip(1).collect())
}

/// Runs programs of known exit codes, four at a time, and says how many codes came back right.
fn check_exits(bed: &Bed, count: usize) {
    let began = Instant::now();
    let one = async |number: usize| {
        let code = u32::try_from(number % 256).expect("a code");
        let container = bed
            .shell(&format!("exit {code}"))
            .null_streams()
            .run()
            .await
            .expect("run");
        let exit = container.wait().await.expect("wait");
        container.remove().await;
        exit.status == code
    };
    let right = bed.block_on(async {
        let mut right = 0;
        for first in (0..count).step_by(4) {
            let (a, b, c, d) =
                tokio::join!(one(first), one(first + 1), one(first + 2), one(first + 3));
            right += [a, b, c, d]
                .iter()
                .take(count - first)
                .filter(|right| **right)
                .count();
        }
        right
    });
    println!(
        "exit codes right: {right} of {count} ({:.0} s)",
        began.elapsed().as_secs_f64()
    );
}

fn print(all: &[Figures], bare: Option<f64>, runs: usize) {
    let Some(first) = all.first() else { return };
    println!(
        "\n{:<28} {:>12} {:>9} {:>22} {:>14}",
        "runtime", "shim RSS", "helpers", "ctr run --rm … true", "shim binary"
    );
    for row in all {
        println!(
            "{:<28} {:>9.1} MB {:>9} {:>12.0} ms ({:>4.2}×) {:>11.1} MB",
            row.runtime,
            megabytes(row.shim_kb * 1024),
            row.helpers,
            row.run_ms,
            row.run_ms / first.run_ms,
            megabytes(row.binary),
        );
    }
    if let Some(bare) = bare {
        println!(
            "{:<28} {:>36.0} ms ({:>4.2}×)",
            "runsc create+start+delete",
            bare,
            bare / first.run_ms
        );
    }
    println!(
        "times: median of {runs}; × is relative to {}; idle: one container, no pod",
        first.runtime
    );
}

#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
