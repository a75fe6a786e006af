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

use integration::bed::{Bed, IMAGE, Services};
use integration::client::NAMESPACE;
use integration::measure::{
    Table, each, median, megabytes, of_runc, percentile, report, runs, spread, timed,
};
use integration::processes::{self, Role};
use integration::sidecars::Sidecars;
use integration::{isolate, spec};

/// What was measured of one runtime.
struct Figures {
    shim_kb: u64,
    helpers: usize,
    runs: Vec<Duration>,
    /// The same with what a release of gVisor has beside runsc, of Bulkhead alone.
    by_sidecars: Vec<Duration>,
    /// `ctr version`, which is the client alone.
    client_ms: f64,
    /// `ctr task metrics`, less what ctr takes to ask containerd anything.
    metrics_ms: f64,
    binary: u64,
}

fn main() {
    let exits = std::env::args().nth(2).and_then(|word| word.parse().ok());
    let (runs, exits) = (runs(20), exits.unwrap_or(1000));
    let folder = isolate::enter();
    let mut bare = None;
    let all = each(&folder, Services::Tasks, |bed, binary| {
        let figures = measure(bed, binary, runs)?;
        if bed.runtime.is_bulkhead() {
            bare = bed.runsc.is_some().then(|| bare_runsc(bed, runs));
            check_exits(bed, exits);
        }
        Ok(figures)
    });
    print(&all, bare, runs);
}

/// # Errors
/// What `ctr` says when the runtime runs nothing here.
fn measure(bed: &Bed, binary: &Path, runs: usize) -> Result<Figures, String> {
    let once = || {
        let id = bed.id("run");
        timed(|| bed.ctr_run(&["--rm"], &id, &["true"]))
    };
    // The first fills caches, and tells whether it works; the stock shim may answer 128 for a program that ran.
    let (_, first) = once();
    if !first.status.success() && first.status.code() != Some(128) {
        return Err(String::from_utf8_lossy(&first.stderr).trim().to_owned());
    }
    let times = (0..runs).map(|_| once().0).collect();
    let by_sidecars = if bed.runtime.is_bulkhead() {
        let _sidecars = Sidecars::beside_runsc(bed);
        once();
        (0..runs).map(|_| once().0).collect()
    } else {
        vec![]
    };
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
    let ctr = |args: &[&str]| -> f64 {
        let times = (0..runs).map(|_| timed(|| bed.ctr_ok(args)).0);
        median(times.collect())
    };
    let client_ms = ctr(&["version"]);
    let metrics_ms = ctr(&["task", "metrics", &id]) - client_ms;
    bed.block_on(bed.remove(&id));
    let binary = fs::metadata(binary).expect("the shim's size").len();
    Ok(Figures {
        shim_kb,
        helpers,
        runs: times,
        by_sidecars,
        client_ms,
        metrics_ms,
        binary,
    })
}

/// `runsc create`, `start` and `delete` without any shim.
fn bare_runsc(bed: &Bed, runs: usize) -> Vec<Duration> {
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
    times.skip(1).collect()
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

fn print(all: &[(String, Figures)], bare: Option<Vec<Duration>>, runs: usize) {
    let beside = of_runc(all).map(|row| percentile(&row.runs, 50));
    let cell = |times: &[Duration]| spread(times, 0, " ms", beside);
    let only = |times: &[Duration]| {
        let none = String::new;
        [none(), none(), cell(times), none(), none(), none()]
    };
    let mut table = Table::new([
        "shim, resident",
        "helpers",
        "`ctr run --rm … true`",
        "`ctr version`",
        "`ctr task metrics` over it",
        "shim binary",
    ]);
    for (runtime, row) in all {
        let cells = [
            format!("{:.1} MB", megabytes(row.shim_kb * 1024)),
            row.helpers.to_string(),
            cell(&row.runs),
            format!("{:.1} ms", row.client_ms),
            format!("{:.1} ms", row.metrics_ms),
            format!("{:.1} MB", megabytes(row.binary)),
        ];
        table.row(runtime, cells);
    }
    for (runtime, row) in all.iter().filter(|(_, row)| !row.by_sidecars.is_empty()) {
        table.row(format!("{runtime}, by sidecars"), only(&row.by_sidecars));
    }
    if let Some(bare) = &bare {
        let name = "`runsc create`, `start`, `delete`, its own defaults";
        table.row(name, only(bare));
    }
    report(
        "figures",
        &format!(
            "Times: median of {runs}, in brackets the 95th percentile, and times runc's median. Resident: one idle container, no pod. Sidecars: the \
             program that starts the sentry is a script here, as no official one can be had."
        ),
        &table,
    );
}
