//! The same thing again and again, in one container and in one pod: nothing may grow.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use integration::bed::Bed;
use integration::container::Container;
use integration::cri::{Pod, mount};
use integration::gauge::{Bound, Gauge};
use integration::harness::join_all;
use integration::leaks::Snapshot;
use integration::patience::patience;
use integration::processes::{self, Role};
use integration::runtime::Needs;

use integration::cases;

use crate::{note, share};

cases! {
    Needs::Bulkhead => [
        execs_in_one_container_leave_nothing,
        restarts_of_a_bad_command_in_one_pod_leave_nothing,
        execs_that_nobody_deletes_are_seen_to_grow,
    ],
}

/// How many at a time.
const AT_ONCE: u64 = 4;
/// How many before what a process holds is read.
const A_PIECE: u64 = 20;

/// The processes of one sandbox, and containerd.
struct Gauges {
    ours: Gauge,
    others: [Gauge; 2],
}

impl Gauges {
    fn of(bed: &Bed, id: &str) -> Self {
        let one = |role| processes::of(role, id)[0].pid;
        Self {
            ours: Gauge::new("shim", one(Role::Shim)),
            others: [
                Gauge::new("sandbox", one(Role::Sandbox)),
                Gauge::new("containerd", bed.containerd()),
            ],
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Gauge> {
        std::iter::once(&mut self.ours).chain(&mut self.others)
    }

    /// A leak of a kibibyte each time makes the least of the second half of the work larger by half a kibibyte for each time: three
    /// quarters of that are allowed, and where there was little work so much as the allocators differ by of themselves.
    fn grown(&self, count: u64) -> Vec<String> {
        let bound = |noise_kb: u64, descriptors| Bound {
            resident_kb: (count * 3 / 8).max(noise_kb),
            descriptors,
            threads: some(count),
        };
        let mut grown = self.ours.grown(bound(NOISE_KB, 0));
        for (gauge, noise) in self.others.iter().zip(GO_NOISE_KB) {
            grown.extend(gauge.grown(bound(noise, some(count))));
        }
        grown
    }

    /// Without the sandbox.
    fn grown_outside(&self, count: u64) -> Vec<String> {
        let mut grown = self.grown(count);
        grown.retain(|line| !line.starts_with("sandbox"));
        grown
    }

    fn told(&self) -> String {
        let all = std::iter::once(&self.ours).chain(&self.others);
        all.map(Gauge::told).collect::<Vec<_>>().join("; ")
    }
}

/// What the least of a heap may differ by from one half to the other, without any leak.
const NOISE_KB: u64 = 256;
/// The same for the sandbox and for containerd, where a collector decides.
const GO_NOISE_KB: [u64; 2] = [4096, 4096];

/// What comes and goes by itself, far below one each time.
fn some(count: u64) -> u64 {
    (count / 50).max(3)
}

/// Does `count` pieces of work, so many at once, and reads the gauges in between.
async fn again<W: Future<Output = ()>>(gauges: &mut Gauges, count: u64, work: impl Fn(u64) -> W) {
    let mut next = 0;
    while next < count {
        let until = (next + A_PIECE).min(count);
        while next < until {
            let some = (next + AT_ONCE).min(until);
            join_all((next..some).map(&work)).await;
            next = some;
        }
        // What was answered may still be on its way out.
        tokio::time::sleep(Duration::from_millis(50)).await;
        gauges.all().for_each(Gauge::read);
    }
}

/// An exec by the API, with its exit code and its output; each tenth is one that cannot be started.
async fn exec(container: &Container<'_>, number: u64) {
    if number % 10 == 9 {
        let bad = container.exec(&format!("e{number}"), &["no-such-program"]);
        bad.run().await.expect_err("there is no such program");
        return;
    }
    let code = u32::try_from(number % 100).expect("a code");
    let script = format!("echo {number}; echo {code} >&2; exit {code}");
    let name = format!("e{number}");
    let done = container.exec(&name, &["sh", "-c", &script]).finish().await;
    assert_eq!(done.status, code, "exec {number}");
    assert_eq!(done.stdout, format!("{number}\n"), "exec {number}");
    assert_eq!(done.stderr, format!("{code}\n"), "exec {number}");
}

/// What is there now and was not before. The sentry makes and ends the processes that run the guest's code as it needs them: some may be others.
async fn left(bed: &Bed, before: &Snapshot, count: u64) -> Vec<String> {
    let deadline = tokio::time::Instant::now() + patience(Duration::from_secs(15));
    loop {
        let left = Snapshot::take(&bed.known_processes()).since(before);
        let stubs = left.iter().filter(|line| is_stub(line)).count();
        let is_ordinary = u64::try_from(stubs).is_ok_and(|stubs| stubs <= some(count));
        let is_over = left.len() == stubs && is_ordinary;
        if is_over || tokio::time::Instant::now() > deadline {
            let told = left
                .into_iter()
                .filter(|line| !is_ordinary || !is_stub(line));
            return told.collect();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn is_stub(line: &str) -> bool {
    line.starts_with("process ") && (line.contains("runsc-sandbox") || line.ends_with(" (exe)"))
}

fn judge(what: &str, gauges: &Gauges, count: u64, grown: &[String], left: &[String]) {
    note(&format!("{count} {what}; {}", gauges.told()));
    assert!(
        grown.is_empty() && left.is_empty(),
        "{count} {what}:\n  {}",
        [grown, left].concat().join("\n  ")
    );
}

async fn execs_in_one_container_leave_nothing(bed: &Bed) {
    let container = bed
        .container(&["sleep", "100000"])
        .run()
        .await
        .expect("run");
    let mut warm = Gauges::of(bed, &container.id);
    again(&mut warm, share(200), |number| exec(&container, number)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = Snapshot::take(&bed.known_processes());
    let mut gauges = Gauges::of(bed, &container.id);
    let count = share(2000);
    again(&mut gauges, count, |number| exec(&container, number)).await;
    let left = left(bed, &before, count).await;
    let grown = gauges.grown(count);
    judge("execs in one container", &gauges, count, &grown, &left);
    container.remove().await;
}

/// A kubelet's: the container is made anew each time, with its files, and removed when its start has failed.
async fn restarts_of_a_bad_command_in_one_pod_leave_nothing(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let folder = pod.folder().join("containers/main");
    std::fs::create_dir_all(&folder).expect("make the container's folder");
    let reached_sentry = AtomicBool::new(false);
    let restart = async |number: u64| {
        let name = format!("c{number}");
        let log = folder.join(&name);
        std::fs::write(&log, "").expect("make the termination log");
        let mut config = pod.container(&name, &["no-such-program"]);
        config
            .mounts
            .push(mount(&log, "/dev/termination-log", false));
        let id = pod.create(config).await.expect("create");
        let error = pod.start(&id).await.expect_err("there is no such program");
        if error.message().contains("runsc start failed") {
            reached_sentry.store(true, Ordering::Relaxed);
        }
        let code = pod.status(&id).await.exit_code;
        assert_ne!(code, 0, "a container that could not start");
        pod.remove_container(&id).await;
        std::fs::remove_file(&log).expect("remove the termination log");
    };
    let mut warm = Gauges::of(bed, &pod.id);
    again(&mut warm, share(100), restart).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = Snapshot::take(&bed.known_processes());
    let mut gauges = Gauges::of(bed, &pod.id);
    let count = share(1000);
    again(&mut gauges, count, |number| restart(number + 100_000)).await;
    // runsc makes the lock of one that has just gone anew, and the next to go takes it along.
    restart(999_999).await;
    let left = left(bed, &before, count).await;
    // The sentry keeps what a start that it fails was given until the sandbox ends: its files, and the streams
    // (`Loader.createContainerProcess` in `runsc/boot`). Where no start reaches it, it is held to the same.
    let grown = match reached_sentry.load(Ordering::Relaxed) {
        true => gauges.grown_outside(count),
        false => gauges.grown(count),
    };
    judge(
        "restarts of a bad command in one pod",
        &gauges,
        count,
        &grown,
        &left,
    );
    pod.remove().await;
}

/// A leak that is made on purpose: a client that deletes none of its execs. The shim has to keep them, and is seen to.
async fn execs_that_nobody_deletes_are_seen_to_grow(bed: &Bed) {
    const COUNT: u64 = 400;
    let container = bed
        .container(&["sleep", "100000"])
        .run()
        .await
        .expect("run");
    let mut gauges = Gauges::of(bed, &container.id);
    let kept = async |number: u64| {
        let name = format!("e{number}");
        let exec = container.exec(&name, &["true"]).run().await.expect("run");
        assert_eq!(exec.wait().await.expect("wait").status, 0);
    };
    again(&mut gauges, COUNT, kept).await;
    let grown = gauges.grown(COUNT);
    note(&format!(
        "{COUNT} execs that nobody deleted; {}",
        gauges.told()
    ));
    assert!(
        grown.iter().any(|line| line.starts_with("shim")),
        "no growth is seen: {}",
        gauges.told()
    );
    container.remove().await;
}
