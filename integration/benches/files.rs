//! Work with files, by kind of place, on runc, on runsc with its own defaults, and on Bulkhead under several policies: all in one
//! run, turn by turn, with ratios to runc. Gates nothing. `files [TURNS]`: how often each is measured (5).
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a bench that cannot measure ends"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use containerd_client::types::Mount;
use integration::bed::{Bed, Services};
use integration::client::NAMESPACE;
use integration::container::overlay;
use integration::measure::median;
use integration::runtime::Runtime;
use integration::{isolate, spec};
use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

const SCRIPT: &str = include_str!("files.py");
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

type Times = BTreeMap<String, Vec<Duration>>;

fn main() {
    let turns = std::env::args().skip(1).find_map(|word| word.parse().ok());
    let turns: usize = turns.unwrap_or(5);
    let folder = isolate::enter();
    let runtime = Runtime {
        name: BULKHEAD.to_owned(),
    };
    let bed = Bed::start(folder.clone(), runtime, Services::Tasks);
    let image = bed.image("workbench");
    let mut all: Vec<Times> = WAYS.iter().map(|_| Times::new()).collect();
    // The first turn fills the host's caches and does not count.
    for turn in 0..=turns {
        for (times, (name, way)) in all.iter_mut().zip(&WAYS) {
            eprintln!("turn {turn}: {name}");
            let work = folder.join(bed.id("work"));
            for (place, took) in measure(&bed, &image, &work, way) {
                let times = times.entry(place).or_default();
                times.extend((turn > 0).then_some(took));
            }
            fs::remove_dir_all(&work).expect("remove the folder");
        }
    }
    print(&all, turns);
}

/// What each piece of work took.
fn measure(bed: &Bed, image: &Path, work: &Path, way: &Way) -> BTreeMap<String, Duration> {
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
    let told: BTreeMap<String, f64> = serde_json::from_str(&told).expect("times");
    let of_millis = |millis: f64| Duration::from_secs_f64(millis / 1000.0);
    told.into_iter()
        .map(|(place, millis)| (place, of_millis(millis)))
        .collect()
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

fn print(all: &[Times], turns: usize) {
    let places: Vec<&String> = {
        let mut places: Vec<&String> = all.iter().flat_map(BTreeMap::keys).collect();
        places.sort();
        places.dedup();
        places
    };
    print!("{:<36}", "files");
    for (name, _) in &WAYS {
        print!(" {name:>16}");
    }
    println!();
    for place in places {
        print!("{place:<36}");
        let medians = all.iter().map(|times| times.get(place).cloned());
        let medians: Vec<Option<f64>> = medians.map(|times| times.map(median)).collect();
        for took in &medians {
            let cell = match (took, medians[0]) {
                (Some(took), Some(first)) => format!("{took:.0} ({:.1}×)", took / first),
                (Some(took), None) => format!("{took:.0}"),
                (None, _) => "none".to_owned(),
            };
            print!(" {cell:>16}");
        }
        println!();
    }
    println!(
        "milliseconds, median of {turns}; × is relative to runc; runsc: by its command, with its own defaults"
    );
}
