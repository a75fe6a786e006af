//! The sandbox's cgroup and what Stats reads there, on hosts with cgroup v1 and with v2 alone.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use integration::bed::Bed;
use integration::cases;
use integration::cgroups;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use prost_types::Any;
use serde_json::json;

use crate::figures::limits::is_v2;

cases! {
    Needs::Any => [
        the_metrics_message_is_that_of_the_host,
    ],
    Needs::Bulkhead => [
        stats_of_a_running_a_paused_and_an_exited_container_agree,
        a_cgroup_that_is_there_already_is_refused_and_lives,
        an_empty_cgroup_is_made_anew_with_its_limits,
        the_root_of_the_cgroups_is_refused,
        programs_have_the_oom_score_of_their_container,
    ],
}

const MIB: u64 = 1 << 20;

/// The figures that both messages have.
#[derive(Debug)]
struct Figures {
    memory: u64,
    limit: u64,
    cpu_nanos: u64,
    tasks: u64,
}

fn read(metrics: &Any) -> Figures {
    let name = metrics.type_url.rsplit('/').next().expect("a name");
    if is_v2() {
        assert_eq!(name, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
        assert!(metrics.io.is_some() && metrics.memory_events.is_some());
        Figures {
            memory: metrics.memory.usage,
            limit: metrics.memory.usage_limit,
            cpu_nanos: metrics.cpu.usage_usec * 1000,
            tasks: metrics.pids.current,
        }
    } else {
        assert_eq!(name, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&metrics.value).expect("metrics");
        assert!(metrics.blkio.is_some() && metrics.memory_oom_control.is_some());
        Figures {
            memory: metrics.memory.usage.usage,
            limit: metrics.memory.usage.limit,
            cpu_nanos: metrics.cpu.usage.total,
            tasks: metrics.pids.current,
        }
    }
}

async fn the_metrics_message_is_that_of_the_host(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).with(|spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 256 * MIB });
    });
    let container = container.run().await.expect("run");
    let figures = read(&bed.client().metrics(&container.id).await.expect("metrics"));
    assert_eq!(figures.limit, 256 * MIB);
    assert!(
        figures.memory > 0 && figures.memory < 256 * MIB,
        "{figures:?}"
    );
    assert!(figures.cpu_nanos > 0 && figures.tasks > 0, "{figures:?}");
    container.remove().await;
}

async fn stats_of_a_running_a_paused_and_an_exited_container_agree(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let stats = || async { read(&bed.client().metrics(&container.id).await.expect("metrics")) };
    let running = stats().await;
    bed.client().pause(&container.id).await.expect("pause");
    let paused = stats().await;
    assert!(
        paused.memory > 0 && paused.cpu_nanos >= running.cpu_nanos,
        "{paused:?}"
    );
    bed.client().resume(&container.id).await.expect("resume");
    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    let exited = stats().await;
    assert!(exited.cpu_nanos >= paused.cpu_nanos, "{exited:?}");
    container.delete().await.expect("delete");
}

/// A process in a cgroup of its own in every hierarchy. Both go with it.
struct Resident {
    folders: Vec<PathBuf>,
    process: Child,
}

impl Resident {
    fn new(name: &str) -> Self {
        let folders = cgroups::make(name).expect("make the cgroups");
        let process = Command::new("sleep").arg("1000").spawn().expect("sleep");
        for folder in &folders {
            let pid = process.id().to_string();
            std::fs::write(folder.join("cgroup.procs"), pid).expect("move it there");
        }
        Self { folders, process }
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for folder in &self.folders {
            let _ = cgroups::remove(folder);
        }
    }
}

async fn a_cgroup_that_is_there_already_is_refused_and_lives(bed: &Bed) {
    let name = bed.id("service");
    let mut resident = Resident::new(&name);
    // The cgroup itself, and one that has it below.
    let above = bed.id("slice");
    cgroups::make(&above).expect("make the cgroups");
    let mut below = Resident::new(&format!("{above}/service"));
    for taken in [name, above.clone()] {
        let container = bed.container(&["sleep", "1000"]).with(|spec| {
            spec["linux"]["cgroupsPath"] = json!(format!("/{taken}"));
        });
        let error = container.create().await.expect_err("refused");
        for text in ["linux.cgroupsPath", &taken] {
            assert!(error.message().contains(text), "{text}: {error}");
        }
    }
    for resident in [&mut resident, &mut below] {
        let ended = resident.process.try_wait().expect("try_wait");
        assert_eq!(ended, None, "what was there was killed");
        assert!(resident.folders.iter().all(|folder| folder.exists()));
    }
    drop(below);
    for hierarchy in cgroups::hierarchies() {
        cgroups::remove(&hierarchy.path.join(&above)).expect("remove the cgroup");
    }
}

async fn an_empty_cgroup_is_made_anew_with_its_limits(bed: &Bed) {
    let name = bed.id("left");
    cgroups::make(&name).expect("make the cgroups");
    let container = bed.container(&["sleep", "1000"]).with(|spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("/{name}"));
        spec["linux"]["resources"]["memory"] = json!({ "limit": 256 * MIB });
    });
    let container = container.run().await.expect("run");
    let figures = read(&bed.client().metrics(&container.id).await.expect("metrics"));
    assert_eq!(figures.limit, 256 * MIB);
    container.remove().await;
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split(' ').nth(2)?.parse().ok()
}

/// What the kernel kills first is the process with the memory: for most programs one of those that the sentry forks, not the sentry.
async fn programs_have_the_oom_score_of_their_container(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).with(|spec| {
        spec["process"]["oomScoreAdj"] = 321.into();
    });
    let container = container.run().await.expect("run");
    let sandbox = processes::of(Role::Sandbox, &container.id)[0].pid;
    let stubs = || {
        let all = processes::all();
        let mut own = vec![sandbox];
        // A parent is older than its child.
        loop {
            let pids = all.iter().map(|one| one.pid);
            let more = pids.filter(|pid| !own.contains(pid));
            let is_child = |pid: &i32| parent(*pid).is_some_and(|parent| own.contains(&parent));
            let more: Vec<i32> = more.filter(is_child).collect();
            if more.is_empty() {
                break;
            }
            own.extend(more);
        }
        own.remove(0);
        own
    };
    let score = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
        text.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(score(sandbox), "321", "runsc's part");
    let all_have_it = || {
        let stubs = stubs();
        !stubs.is_empty() && stubs.iter().all(|pid| ["321", ""].contains(&&*score(*pid)))
    };
    eventually("the stubs have it", Duration::from_secs(5), all_have_it).await;
    let before = stubs();
    // One may have been kept for the next program.
    for exec in ["a", "b", "c"] {
        let exec = container.exec(exec, &["sleep", "1000"]).run().await;
        exec.expect("run");
    }
    let new = || stubs().into_iter().any(|pid| !before.contains(&pid));
    eventually("a new stub", Duration::from_secs(5), new).await;
    assert!(all_have_it(), "it is inherited");
    container.remove().await;
}

async fn the_root_of_the_cgroups_is_refused(bed: &Bed) {
    for root in ["/", "/.", "//", "/./x"] {
        let container = bed.container(&["true"]).with(|spec| {
            spec["linux"]["cgroupsPath"] = json!(root);
        });
        let error = container.create().await.expect_err(root);
        assert!(error.message().contains("linux.cgroupsPath"), "{error}");
    }
}
