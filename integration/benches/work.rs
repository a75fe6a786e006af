//! The work of a program that an agent starts, each piece in two passes: walks, imports, forks, git, pip, many small files by kind of
//! place. On runc, on runsc with its own defaults, and on Bulkhead under several policies: all in one run, turn by turn, with
//! ratios to runc. Gates nothing. `work [TURNS]`: how often each is measured (5).
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a bench that cannot measure ends"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use containerd_client::types::Mount;
use integration::bed::{Bed, Services};
use integration::client::NAMESPACE;
use integration::container::overlay;
use integration::measure::{Table, percentile, report, runs, spread};
use integration::runtime::Runtime;
use integration::{isolate, spec};
use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

const SCRIPT: &str = include_str!("work.py");
const BULKHEAD: &str = "io.containerd.bulkhead.v1";
const RUNC: &str = "io.containerd.runc.v2";

/// How the work is run.
enum Way {
    /// By containerd on runc.
    Runc,
    /// By `runsc run` with no flag but the root of its state and no network.
    Bare,
    /// By containerd on Bulkhead: a policy, and what the request says of its binds.
    Bulkhead(&'static str, Option<&'static str>),
}

const WAYS: [(&str, Way); 8] = [
    ("runc", Way::Runc),
    ("runsc", Way::Bare),
    ("strict", Way::Bulkhead("", None)),
    (
        "cache 1000",
        Way::Bulkhead("runsc.dentry_cache = 1000", None),
    ),
    ("exclusive", Way::Bulkhead("", Some("exclusive"))),
    ("directfs", Way::Bulkhead("runsc.directfs = true", None)),
    (
        "writable root",
        Way::Bulkhead("rootfs.writable = true", None),
    ),
    (
        "both",
        Way::Bulkhead("runsc.directfs = true\nrootfs.writable = true", None),
    ),
];

/// A piece of work, and what each pass of it took, turn by turn.
type Times = Vec<(String, [Vec<Duration>; 2])>;

const PASSES: [&str; 2] = ["first", "second"];

fn main() {
    let turns = runs(5);
    let folder = isolate::enter();
    let runtime = Runtime {
        name: BULKHEAD.to_owned(),
    };
    let bed = Bed::start(folder.clone(), runtime, Services::Tasks);
    let image = bed.image("bench");
    let mut all: Vec<Times> = WAYS.iter().map(|_| Times::new()).collect();
    // The first turn fills the host's caches and does not count.
    for turn in 0..=turns {
        for (times, (name, way)) in all.iter_mut().zip(&WAYS) {
            eprintln!("turn {turn}: {name}");
            let work = folder.join(bed.id("work"));
            let told = measure(&bed, &image, &work, way);
            if turn > 0 {
                add(times, told);
            }
            fs::remove_dir_all(&work).expect("remove the folder");
        }
    }
    print(&all, turns);
}

fn add(times: &mut Times, told: Vec<(String, [f64; 2])>) {
    for (piece, passes) in told {
        let passes = passes.map(|millis| Duration::from_secs_f64(millis / 1000.0));
        let at = times.iter().position(|(known, _)| *known == piece);
        let at = at.unwrap_or_else(|| {
            times.push((piece, [vec![], vec![]]));
            times.len() - 1
        });
        for (all, took) in times[at].1.iter_mut().zip(passes) {
            all.push(took);
        }
    }
}

/// What each pass of each piece of work took, in milliseconds.
fn measure(bed: &Bed, image: &Path, work: &Path, way: &Way) -> Vec<(String, [f64; 2])> {
    let bound = work.join("bound");
    fs::create_dir_all(&bound).expect("make a folder");
    fs::set_permissions(&bound, fs::Permissions::from_mode(0o777)).expect("chmod");
    let change = |spec: &mut Value| {
        spec["root"]["readonly"] = false.into();
        spec["linux"]["resources"]["cpu"] = json!({ "quota": 200_000, "period": 100_000 });
        spec["mounts"].as_array_mut().expect("mounts").push(json!({
            "destination": "/srv", "type": "bind", "source": bound, "options": ["rbind", "rw"],
        }));
    };
    let args = ["/usr/bin/python3", "-c", SCRIPT];
    let root = overlay(image, work);
    let told = match way {
        Way::Bare => bare(bed, work, &root, &args, change),
        _ => {
            let mut builder = bed.container(&args).rootfs(root).with(change);
            match way {
                Way::Bulkhead(policy, asked) => {
                    builder = builder.policy("", policy);
                    if let Some(asked) = asked {
                        builder.spec["annotations"]["dev.bulkhead.binds"] = (*asked).into();
                    }
                }
                _ => builder = builder.on(RUNC),
            }
            bed.block_on(async {
                let done = builder.run().await.expect("run").finish().await;
                assert_eq!(done.status, 0, "{done:?}");
                done.stdout
            })
        }
    };
    serde_json::from_str(&told).expect("times")
}

/// `runsc run` without a shim.
fn bare(
    bed: &Bed,
    work: &Path,
    root: &Mount,
    args: &[&str],
    change: impl FnOnce(&mut Value),
) -> String {
    let (bundle, id) = (work.join("bundle"), bed.id("bare"));
    let rootfs: PathBuf = bundle.join("rootfs");
    fs::create_dir_all(&rootfs).expect("make a bundle");
    let options = root.options.join(",");
    let flags = MsFlags::empty();
    let options = Some(options.as_str());
    mount(Some("overlay"), &rootfs, Some("overlay"), flags, options).expect("mount");
    let mut config = spec::container(NAMESPACE, &id, args);
    change(&mut config);
    fs::write(bundle.join("config.json"), config.to_string()).expect("write config.json");
    let output = Command::new(bed.runsc.as_ref().expect("runsc"))
        .args(["--root", "/run/bare", "--network=none", "run", "--bundle"])
        .arg(&bundle)
        .arg(&id)
        .stdin(Stdio::null())
        .output()
        .expect("run runsc");
    umount(&rootfs).expect("unmount");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// A median, the 95th percentile, and the ratio to runc's median.
fn cell(times: Option<&Vec<Duration>>, first: Option<f64>) -> String {
    times.map_or_else(|| "none".to_owned(), |times| spread(times, 0, "", first))
}

fn print(all: &[Times], turns: usize) {
    let heads = || WAYS.iter().map(|(name, _)| *name);
    let (mut whole, mut ratios) = (Table::new(heads()), Table::new(heads()));
    // runc's and a writable root's have every piece.
    let pieces = all.iter().max_by_key(|times| times.len());
    for (piece, _) in pieces.expect("a way") {
        for (pass, name) in PASSES.iter().enumerate() {
            let of = |times: &Times| {
                let found = times.iter().find(|(known, _)| known == piece);
                found.map(|(_, passes)| passes[pass].clone())
            };
            let columns: Vec<_> = all.iter().map(of).collect();
            let first = columns[0].as_ref().map(|times| percentile(times, 50));
            let cells = columns
                .iter()
                .enumerate()
                .map(|(at, times)| cell(times.as_ref(), first.filter(|_| at > 0)));
            whole.row(format!("{piece}, {name}"), cells);
            let short = columns.iter().enumerate().map(|(at, times)| {
                let middle = times.as_ref().map(|times| percentile(times, 50));
                match (middle, first) {
                    (None, _) => "–".to_owned(),
                    (Some(middle), Some(first)) if at > 0 => format!("{:.1}", middle / first),
                    (Some(middle), _) => format!("{middle:.0} ms"),
                }
            });
            if pass == 1 {
                ratios.row(piece, short);
            }
        }
    }
    report(
        "work",
        &format!(
            "Milliseconds: median of {turns}, in brackets the 95th percentile, and times runc's median. \"runsc\": by its command, with its own \
             defaults. \"both\": directfs and writable root. The root of runc is on the disk; its scratch is a tmpfs."
        ),
        &whole,
    );
    report(
        "work-ratios",
        &format!(
            "The second pass: runc's median of {turns}, and how many times as long the others take."
        ),
        &ratios,
    );
}
