//! Everything at once: four clients on busy CPUs, each doing one thing after the other, while containerd is restarted and killed.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use integration::bed::{Bed, IMAGE_NAME};
use integration::busy::Busy;
use integration::container::Container;
use integration::cri::{Cri, Pod, mount};
use integration::patience::patience;
use integration::runtime::Needs;
use k8s_cri::v1::{ListPodSandboxStatsRequest, PodSandboxStatsRequest};

use integration::cases;

use crate::{note, share};

cases! {
    Needs::Any => [
        everything_at_once_ends_as_it_should,
    ],
}

/// How long a command of a client's may take. None takes a tenth of it.
const LIMIT: Duration = Duration::from_secs(40);
/// Between two ends of containerd.
const PAUSE: Duration = Duration::from_secs(12);

/// How one thing ended otherwise than well.
enum Trouble {
    /// A call failed, or was answered with something else; containerd's end is a reason for that.
    Failed(String),
    /// What no end of containerd is a reason for: another exit code, another output.
    Wrong(String),
}

type Outcome = Result<(), Trouble>;

fn failed(what: &str) -> impl Fn(containerd_client::tonic::Status) -> Trouble + '_ {
    move |status| Trouble::Failed(format!("{what}: {status}"))
}

/// The same where containerd is not ended meanwhile.
fn refused(what: &str) -> impl Fn(containerd_client::tonic::Status) -> Trouble + '_ {
    move |status| Trouble::Wrong(format!("{what}: {status}"))
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Outcome {
    if found == wanted {
        return Ok(());
    }
    Err(Trouble::Wrong(format!("{what}: {found:?}, not {wanted:?}")))
}

/// How often a thing was done, how often containerd's end cut it off, how often it hung, and how often it went wrong.
#[derive(Default, Clone, Copy)]
struct Count {
    done: u64,
    cut: u64,
    hung: u64,
    wrong: u64,
}

struct Storm<'a> {
    bed: &'a Bed,
    until: Instant,
    shared: Vec<Container<'a>>,
    /// Odd while containerd is not there, and another number each time that it was ended.
    ends: AtomicU64,
    /// Held by calls that containerd's end would leave half done in containerd itself: those of its CRI plugin.
    calm: RwLock<()>,
    counts: Mutex<BTreeMap<&'static str, Count>>,
    faults: Mutex<Vec<String>>,
}

/// A thing that a client does: its name, and what it does with a number that nobody else has.
type Thing = (&'static str, fn(&Storm<'_>, u64) -> Outcome);

async fn everything_at_once_ends_as_it_should(bed: &Bed) {
    let mut shared = Vec::new();
    for _ in 0..2 {
        let one = bed.container(&["sleep", "100000"]).run().await;
        shared.push(one.expect("run"));
    }
    let storm = Storm {
        bed,
        until: Instant::now() + Duration::from_secs(share(540)),
        shared,
        ends: AtomicU64::new(0),
        calm: RwLock::new(()),
        counts: Mutex::default(),
        faults: Mutex::default(),
    };
    let busy = Busy::new();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| storm.client(&next));
        }
        scope.spawn(|| storm.end_containerd());
    });
    drop(busy);
    for container in &storm.shared {
        container.remove().await;
    }
    let ended = storm.ends.load(Ordering::Relaxed) / 2;
    let counts = storm.counts.into_inner().expect("unpoisoned");
    let mut line = format!("containerd ended {ended} times under four clients");
    for (what, count) in &counts {
        let Count {
            done,
            cut,
            hung,
            wrong,
        } = count;
        line += &format!("; {done} {what} ({cut} cut off, {hung} hung, {wrong} wrong)");
    }
    note(&line);
    let faults = storm.faults.into_inner().expect("unpoisoned");
    assert!(faults.is_empty(), "{}", faults.join("\n  "));
    assert!(ended > 0, "containerd was never ended");
    assert!(
        counts.len() == THINGS.len() && counts.values().all(|count| count.done > 0),
        "not everything was done: {line}"
    );
}

const THINGS: [Thing; 7] = [
    ("runs by ctr", |storm, number| storm.run_by_ctr(number)),
    ("execs by ctr", |storm, number| storm.exec_by_ctr(number)),
    ("execs by API", |storm, number| storm.exec_by_api(number)),
    ("containers by API", |storm, number| storm.live(number)),
    ("bad commands", |storm, number| storm.fail(number)),
    ("stats", |storm, number| storm.stats(number)),
    ("pods", |storm, number| storm.pod(number)),
];
/// The order in which they come: what is cheap comes more often.
const ORDER: [usize; 16] = [1, 2, 5, 0, 1, 2, 3, 5, 6, 2, 1, 4, 0, 2, 3, 5];

impl<'a> Storm<'a> {
    fn client(&self, next: &AtomicU64) {
        while Instant::now() < self.until {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (name, work) =
                THINGS[ORDER[usize::try_from(number).expect("a number") % ORDER.len()]];
            self.wait_for_containerd();
            let (before, began) = (self.ends.load(Ordering::Relaxed), Instant::now());
            let outcome = catch_unwind(AssertUnwindSafe(|| work(self, number)));
            let was_cut = self.ends.load(Ordering::Relaxed) != before;
            let mut counts = self.counts.lock().expect("unpoisoned");
            let count = counts.entry(name).or_default();
            let fault = match outcome {
                Ok(Ok(())) => {
                    count.done += 1;
                    None
                }
                Ok(Err(Trouble::Failed(_))) if was_cut && began.elapsed() < patience(LIMIT) => {
                    count.cut += 1;
                    None
                }
                Ok(Err(Trouble::Failed(text))) if began.elapsed() >= patience(LIMIT) => {
                    count.hung += 1;
                    Some(format!("hung: {text}"))
                }
                Ok(Err(Trouble::Failed(text) | Trouble::Wrong(text))) => {
                    count.wrong += 1;
                    Some(text)
                }
                // A call that is not answered ends so.
                Err(panic) => {
                    count.hung += 1;
                    let text = panic.downcast_ref::<String>().cloned();
                    Some(text.unwrap_or_else(|| "panicked".into()))
                }
            };
            drop(counts);
            if let Some(text) = fault {
                let text = format!("{name}, number {number}: {text}");
                self.faults.lock().expect("unpoisoned").push(text);
            }
        }
    }

    fn wait_for_containerd(&self) {
        while self.ends.load(Ordering::Relaxed) % 2 == 1 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills containerd, and restarts it, in turn.
    fn end_containerd(&self) {
        let mut is_kill = true;
        while Instant::now() + PAUSE < self.until {
            std::thread::sleep(PAUSE);
            let calm = self.calm.write().expect("unpoisoned");
            self.ends.fetch_add(1, Ordering::Relaxed);
            if is_kill {
                self.bed.kill_containerd();
            } else {
                self.bed.stop_containerd();
            }
            is_kill = !is_kill;
            self.bed.block_on(async {
                self.bed.start_containerd().await;
                // Its CRI plugin answers later, and this waits for it.
                drop(Cri::connect().await);
            });
            self.ends.fetch_add(1, Ordering::Relaxed);
            drop(calm);
        }
    }

    fn shared(&self, number: u64) -> &Container<'a> {
        &self.shared[usize::try_from(number).expect("a number") / 3 % self.shared.len()]
    }

    /// A code that no failure of a client's has.
    fn code(number: u64) -> u32 {
        2 + u32::try_from(number % 100).expect("a code")
    }

    fn by_ctr(&self, what: &str, args: &[&str], code: u32) -> Outcome {
        let output = self.bed.ctr_within(patience(LIMIT), args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code().map(i32::cast_unsigned) {
            // ctr's own, and that of `timeout`, which kills it.
            None | Some(1 | 137) => Err(Trouble::Failed(format!(
                "{what}: {}: {said}",
                output.status
            ))),
            found => expect(&format!("{what}: {said}"), found, Some(code)),
        }
    }

    fn run_by_ctr(&self, number: u64) -> Outcome {
        let (id, code) = (format!("run-{number}"), Self::code(number));
        let fifos = self.bed.folder.join(&id).display().to_string();
        let flags = self.bed.run_flags(&["--rm", "--fifo-dir", &fifos]);
        let script = format!("exit {code}");
        let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
        args.extend([IMAGE_NAME, &id, "sh", "-c", &script]);
        let ran = self.by_ctr("ctr run", &args, code);
        if ran.is_err() {
            self.clear(&id);
            let _ = self.bed.ctr(&["snapshots", "rm", &id]);
        }
        let _ = std::fs::remove_dir_all(&fifos);
        ran
    }

    fn exec_by_ctr(&self, number: u64) -> Outcome {
        let (id, exec, code) = (
            &self.shared(number).id,
            format!("t{number}"),
            Self::code(number),
        );
        let fifos = self.bed.folder.join(&exec).display().to_string();
        let script = format!("exit {code}");
        let args = [
            "task",
            "exec",
            "--fifo-dir",
            &fifos,
            "--exec-id",
            &exec,
            id,
            "sh",
            "-c",
            &script,
        ];
        let ran = self.by_ctr("ctr task exec", &args, code);
        let _ = std::fs::remove_dir_all(&fifos);
        ran
    }

    fn exec_by_api(&self, number: u64) -> Outcome {
        let code = Self::code(number);
        self.bed
            .block_on(self.exec_in(self.shared(number), number, code))
    }

    async fn exec_in(&self, container: &Container<'_>, number: u64, code: u32) -> Outcome {
        let script = format!("echo {number}; exit {code}");
        let exec = container.exec(&format!("a{number}"), &["sh", "-c", &script]);
        let mut exec = exec.run().await.map_err(failed("exec"))?;
        let exit = exec.wait().await.map_err(failed("wait for an exec"))?;
        expect("code of an exec", exit.status, code)?;
        let output = exec.streams.stdout().await.text();
        expect("output of an exec", output, format!("{number}\n"))?;
        let exit = exec.delete().await.map_err(failed("delete an exec"))?;
        expect("code of a deleted exec", exit.status, code)
    }

    /// Starts, execs, stats, signals, waits and deletes.
    fn live(&self, number: u64) -> Outcome {
        let id = format!("live-{number}");
        let lived = self.bed.block_on(async {
            let builder = self.bed.named(&id, &["sleep", "100000"]);
            let container = builder.create().await.map_err(failed("create"))?;
            container.start().await.map_err(failed("start"))?;
            self.exec_in(&container, number, Self::code(number)).await?;
            let metrics = self.bed.client().metrics(&id).await;
            metrics.map_err(failed("metrics"))?;
            container.kill(9).await.map_err(failed("kill"))?;
            let exit = container.wait().await.map_err(failed("wait"))?;
            expect("code of a killed container", exit.status, 137)?;
            let exit = container.delete().await.map_err(failed("delete"))?;
            expect("code of a deleted container", exit.status, 137)
        });
        if lived.is_err() {
            self.clear(&id);
        }
        lived
    }

    /// A program that is not there.
    fn fail(&self, number: u64) -> Outcome {
        let id = format!("bad-{number}");
        let outcome = self.bed.block_on(async {
            let builder = self.bed.named(&id, &["no-such-program"]);
            match builder.run().await {
                Ok(_) => Err(Trouble::Wrong("a program that is not there runs".into())),
                Err(status) if status.message().contains("no-such-program") => Ok(()),
                Err(status) => Err(failed("run a program that is not there")(status)),
            }
        });
        if outcome.is_err() {
            self.clear(&id);
        }
        outcome
    }

    fn stats(&self, number: u64) -> Outcome {
        self.bed.block_on(async {
            let id = &self.shared(number).id;
            let metrics = self.bed.client().metrics(id).await;
            let metrics = metrics.map_err(failed("metrics"))?;
            expect("empty metrics", metrics.value.is_empty(), false)?;
            let pids = self.bed.client().pids(id).await.map_err(failed("pids"))?;
            expect("no pids", pids.is_empty(), false)
        })
    }

    /// A call of CRI, which containerd's end does not cut off: what is half done then is containerd's own.
    fn calmly<T>(&self, call: impl Future<Output = T>) -> T {
        let _calm = self.calm.read().expect("unpoisoned");
        self.bed.block_on(call)
    }

    /// A pod lives through containerd's ends.
    fn pod(&self, number: u64) -> Outcome {
        let pod = self
            .calmly(Pod::run(Pod::config(self.bed)))
            .map_err(refused("RunPodSandbox"))?;
        let lived = self.live_in(&pod, number);
        self.calmly(pod.remove());
        lived
    }

    fn live_in(&self, pod: &Pod, number: u64) -> Outcome {
        let code = i32::try_from(Self::code(number)).expect("a code");
        let folder = pod.folder().join("containers/ends");
        std::fs::create_dir_all(&folder).expect("make the container's folder");
        let log = folder.join("message");
        std::fs::write(&log, "").expect("make the termination log");
        let mut config = pod.shell(
            "ends",
            &format!("echo {number} >/dev/termination-log; exit {code}"),
        );
        config
            .mounts
            .push(mount(&log, "/dev/termination-log", false));
        let id = self
            .calmly(pod.launch(config))
            .map_err(refused("start in a pod"))?;
        let status = self.calmly(pod.ended(&id));
        // A containerd that is ended after it has deleted a task, and before it has stored how that ended, does not know it when it is back
        // (`handleContainerExit` and `loadContainer` in containerd's internal/cri/server).
        if status.reason == "Unknown" {
            let text = "containerd has lost the status of a container";
            return Err(Trouble::Failed(text.into()));
        }
        expect("code in a pod", status.exit_code, code)?;
        let message = std::fs::read_to_string(&log).expect("read the termination log");
        expect("message of a container", message, format!("{number}\n"))?;
        let stays = pod.container("stays", &["sleep", "100000"]);
        let id = self
            .calmly(pod.launch(stays))
            .map_err(refused("start in a pod"))?;
        for _ in 0..3 {
            let command = format!("echo {number}; exit {code}");
            let done = self.calmly(pod.exec(&id, &["sh", "-c", &command]));
            expect("exec in a pod", done, (code, format!("{number}\n")))?;
        }
        let bad = pod.container("bad", &["no-such-program"]);
        let bad = self
            .calmly(pod.create(bad))
            .map_err(refused("create in a pod"))?;
        let started = self.calmly(pod.start(&bad));
        expect("a program that is not there", started.is_err(), true)?;
        let cri: &Cri = &pod.cri;
        let ask = PodSandboxStatsRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        let stats = self
            .calmly(cri.pod_sandbox_stats(ask))
            .map_err(refused("PodSandboxStats"))?;
        expect("stats of a pod", stats.is_some(), true)?;
        let all = self.calmly(cri.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()));
        let all = all.map_err(refused("ListPodSandboxStats"))?;
        expect("no stats of any pod", all.is_empty(), false)
    }

    /// After something was cut off, or has failed: what is left of it is removed as a user would.
    fn clear(&self, id: &str) {
        let _calm = self.calm.read().expect("unpoisoned");
        self.bed.block_on(self.bed.remove(id));
    }
}
