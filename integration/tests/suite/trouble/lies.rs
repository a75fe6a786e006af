//! A sentry that lies: what it says was done is judged by its effect, and what it costs is its own sandbox.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use containerd_client::tonic::Code;
use containerd_client::types::v1::Status as TaskStatus;
use integration::bed::Bed;
use integration::cases;
use integration::container::Container;
use integration::harness::join_all;
use integration::patience::patience;
use integration::processes::{self, Role, of, shim_and_commands_kb};
use integration::runtime::Needs;

use crate::figures::metrics::{scrape, socket, value};
use crate::life::pod::{end, member, sandbox};
use crate::trouble::peers::control_socket;
use crate::trouble::relay::{Relay, Reply, Taken};

cases! {
    Needs::Bulkhead => [
        a_sandbox_that_lets_a_killed_container_run_is_ended,
        an_exec_whose_reply_is_broken_runs_once_and_is_ended,
        a_reply_without_an_end_costs_little_of_the_node,
        a_list_of_processes_without_an_end_costs_little,
        a_gofer_ends_with_its_container_whatever_the_sentry_says,
    ],
}

const WAIT: &str = "\"containerManager.Wait\"";
const SIGNAL: &str = "containerManager.Signal";
const STATE: &str = "containerManager.ContainerRuntimeState";
const DESTROY: &str = "containerManager.Destroy";
const PROCESSES: &str = "containerManager.Processes";
const EXECUTE: &str = "containerManager.ExecuteAsync";

const DONE: &str = "{\"success\":true,\"err\":\"\",\"result\":null}\n";

fn number(number: u32) -> Reply {
    Reply::Say(format!(
        "{{\"success\":true,\"err\":\"\",\"result\":{number}}}\n"
    ))
}

fn error(text: &str) -> Reply {
    Reply::Say(format!(
        "{{\"success\":false,\"err\":\"{text}\",\"result\":null}}\n"
    ))
}

/// What a sentry says instead of what it should.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lie {
    Killed,
    NothingToKill,
    Exited,
    RunsForEver,
    AnothersState,
    ByteByByte,
    Twice,
}

impl Lie {
    const ALL: [Self; 7] = [
        Self::Killed,
        Self::NothingToKill,
        Self::Exited,
        Self::RunsForEver,
        Self::AnothersState,
        Self::ByteByByte,
        Self::Twice,
    ];

    fn answer(self, request: &str) -> Reply {
        let asks = |method: &str| request.contains(method);
        match self {
            Self::Killed if asks(SIGNAL) => Reply::Say(DONE.to_owned()),
            Self::NothingToKill if asks(SIGNAL) => error("no such process"),
            Self::Exited if asks(WAIT) => number(3 << 8),
            Self::RunsForEver if asks(WAIT) => Reply::Never,
            Self::RunsForEver if asks(STATE) => number(2),
            Self::RunsForEver if asks(SIGNAL) => Reply::Say(DONE.to_owned()),
            Self::AnothersState if asks(WAIT) => error("not now"),
            // Stopped, as one that was deleted is.
            Self::AnothersState if asks(STATE) => number(3),
            Self::ByteByByte if asks(SIGNAL) => Reply::Slowly(DONE.to_owned()),
            Self::Twice if asks(SIGNAL) => Reply::Say(DONE.repeat(2)),
            _ => Reply::HandOn,
        }
    }

    /// Why the sandbox is ended.
    fn reason(self) -> &'static str {
        match self {
            Self::Exited | Self::AnothersState => "outlived",
            _ => "kill_ignored",
        }
    }

    /// Tells it in one sandbox, which is ended whether its container is killed or said to have exited.
    async fn tell(self, bed: &Bed) {
        let container = bed.container(&["sleep", "1000"]).create().await;
        let container = container.expect("create");
        let has_started = Arc::new(AtomicBool::new(false));
        let lies = Arc::clone(&has_started);
        Relay::start(&control_socket(&container.id), move |request| {
            // A start asks for the state as well, before the guest has run.
            if request.contains(STATE) && !lies.load(Ordering::Relaxed) {
                Reply::HandOn
            } else {
                self.answer(request)
            }
        });
        container.start().await.expect("start");
        has_started.store(true, Ordering::Relaxed);
        if self.reason() == "kill_ignored" {
            let killed = container.kill(9).await;
            let is_refused = killed.is_err_and(|error| error.code() == Code::NotFound);
            assert_eq!(is_refused, self == Self::NothingToKill, "{self:?}");
        }
        let limit = patience(Duration::from_secs(20));
        let exit = bed.client().wait_for(&container.id, limit).await;
        let status = exit
            .unwrap_or_else(|error| panic!("{self:?}: {error}"))
            .status;
        let told = if self == Self::Exited { 3 } else { 137 };
        assert_eq!(status, told, "{self:?}");
        assert_eq!(of(Role::Sandbox, &container.id), [], "{self:?}");
        ended_for(&container, self.reason());
        container.delete().await.expect("delete");
    }
}

fn ended_for(container: &Container<'_>, reason: &str) {
    let text = scrape(&socket(&container.id));
    let label = format!("reason=\"{reason}\"");
    let ends = value(&text, "bulkhead_sandbox_forced_ends_total", &[&label]);
    assert_eq!(ends, Some(1.0), "{reason}: {text}");
}

/// The others of its pod end with it, so it gets more time.
async fn tell_of_a_member(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let other = member(bed, &pod, "sleep 1000").run().await.expect("run");
    Relay::start(&control_socket(&pod.id), |request| {
        Lie::Killed.answer(request)
    });
    let began = Instant::now();
    one.kill(9).await.expect("the sentry says so");
    let limit = patience(Duration::from_secs(40));
    let exit = bed.client().wait_for(&one.id, limit).await.expect("wait");
    assert_eq!(exit.status, 137);
    assert!(
        began.elapsed() > Duration::from_secs(25),
        "{:?}",
        began.elapsed()
    );
    for container in [&other, &pod] {
        assert_eq!(container.wait().await.expect("wait").status, 137);
    }
    ended_for(&pod, "kill_ignored");
    for container in [&one, &other, &pod] {
        container.delete().await.expect("delete");
    }
}

async fn a_sandbox_that_lets_a_killed_container_run_is_ended(bed: &Bed) {
    let lies = async { join_all(Lie::ALL.map(|lie| lie.tell(bed))).await };
    tokio::join!(lies, tell_of_a_member(bed));
}

/// Runs where it is not waited for, and leaves a mark each time.
const MARK: &str = "echo ran >>/tmp/marks; exec sleep 977";

/// An exec that the sentry starts and whose reply is `instead`; the sandbox's other processes are unharmed.
async fn broken_exec(
    sandbox: &str,
    container: &Container<'_>,
    instead: Option<&'static str>,
    code: Code,
) {
    let known = container.exec("known", &["sleep", "978"]).run().await;
    let known = known.expect("an exec before");
    let is_broken = Arc::new(AtomicBool::new(true));
    Relay::start(&control_socket(sandbox), move |request| {
        // A command asks with the same method: only the shim's call is broken.
        let is_execute = request.contains(EXECUTE) && request.contains("sleep 977");
        if is_execute && is_broken.swap(false, Ordering::Relaxed) {
            Reply::Instead(instead.map(str::to_owned))
        } else {
            Reply::HandOn
        }
    });
    let exec = container.exec("broken", &["sh", "-c", MARK]);
    let exec = exec.add().await.expect("add");
    let error = exec.start().await.map(drop).expect_err("no whole reply");
    assert_eq!(error.code(), code, "{instead:?}: {error}");
    assert_eq!(exec.wait().await.expect("wait").status, 127);
    exec.delete().await.expect("delete");
    // Neither the mark's script nor what looks for it.
    let look = "cat /tmp/marks; for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done | grep '^sleep'; true";
    let deadline = Instant::now() + patience(Duration::from_secs(10));
    loop {
        let found = container.exec("look", &["sh", "-c", look]).finish().await;
        let count = |text: &str| {
            found
                .stdout
                .lines()
                .filter(|line| line.trim() == text)
                .count()
        };
        assert!(count("ran") <= 1, "it ran twice: {}", found.stdout);
        assert_eq!(count("sleep 978"), 1, "{}", found.stdout);
        if count("sleep 977") == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "it runs on: {}", found.stdout);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(
        container.status().await.expect("state"),
        TaskStatus::Running
    );
    let state = known.kill(9).await;
    state.expect("the exec before lives");
    assert_eq!(known.finish().await.status, 137);
}

async fn an_exec_whose_reply_is_broken_runs_once_and_is_ended(bed: &Bed) {
    let replies = [
        (Some("}{ no such thing\n"), Code::Unavailable),
        (Some("{\"success\":tr"), Code::Unavailable),
        (
            Some("{\"success\":true,\"err\":\"\",\"result\":0}\n"),
            Code::Unavailable,
        ),
        (None, Code::DeadlineExceeded),
    ];
    let alone = replies.map(|(instead, code)| async move {
        let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
        broken_exec(&container.id, &container, instead, code).await;
        container.remove().await;
    });
    let in_a_pod = async {
        let pod = sandbox(bed).await;
        let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
        broken_exec(&pod.id, &one, Some("}{\n"), Code::Unavailable).await;
        one.remove().await;
        end(pod).await;
    };
    tokio::join!(join_all(alone), in_a_pod);
}

async fn a_reply_without_an_end_costs_little_of_the_node(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).create().await;
    let container = container.expect("create");
    // A start asks for the state as well, before the guest has run.
    let has_started = Arc::new(AtomicBool::new(false));
    let lies = Arc::clone(&has_started);
    let taken = Arc::new(Taken::default());
    let counts = Arc::clone(&taken);
    Relay::start(&control_socket(&container.id), move |request| {
        let is_late = lies.load(Ordering::Relaxed);
        if request.contains(WAIT) || is_late && request.contains(STATE) {
            Reply::Endless(Arc::clone(&counts))
        } else {
            Reply::HandOn
        }
    });
    let shim = of(Role::Shim, &container.id)[0].pid;
    container.start().await.expect("start");
    has_started.store(true, Ordering::Relaxed);
    let mut most = 0;
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        most = most.max(shim_and_commands_kb(shim));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let replies = taken.replies.load(Ordering::Relaxed);
    let bytes = taken.bytes.load(Ordering::Relaxed);
    assert!(most < 450_000, "{most} kB");
    // Work is counted in what was read, since a loaded machine takes its own time for it.
    assert!((1..=40).contains(&replies), "{replies} replies");
    assert!(bytes < 256 << 20, "{bytes} bytes of one reply");
    container.kill(9).await.expect("kill");
    assert_eq!(container.wait().await.expect("wait").status, 137);
    container.delete().await.expect("delete");
    assert_eq!(processes::of(Role::Command, &container.id), []);
}

/// What an exec may have left is killed by number, of those that the sentry lists.
async fn a_list_of_processes_without_an_end_costs_little(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let one = |pid: u32| format!("{{\"pid\":{pid},\"ppid\":0}}");
    let many: Vec<String> = (1000..6000).map(one).collect();
    let list = format!(
        "{{\"success\":true,\"err\":\"\",\"result\":[{}]}}\n",
        many.join(",")
    );
    let signals = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&signals);
    Relay::start(&control_socket(&container.id), move |request| {
        if request.contains(EXECUTE) {
            Reply::Say("}{\n".to_owned())
        } else if request.contains(PROCESSES) {
            Reply::Say(list.clone())
        } else if request.contains(SIGNAL) && !request.contains("\"PID\":0") {
            counted.fetch_add(1, Ordering::Relaxed);
            Reply::Say(DONE.to_owned())
        } else {
            Reply::HandOn
        }
    });
    let exec = container.exec("broken", &["true"]).add().await;
    let exec = exec.expect("add");
    exec.start().await.map(drop).expect_err("no whole reply");
    tokio::time::sleep(Duration::from_secs(6)).await;
    let signals = signals.load(Ordering::Relaxed);
    // A look takes 64 of them, and there are fewer and fewer looks.
    assert!((64..64 * 12).contains(&signals), "{signals} signals");
    let log = fs::read_to_string("/run/b/log/containerd.log").expect("the log");
    let lines = log.lines().filter(|line| {
        line.contains(&container.id) && line.contains("an exec that failed has left")
    });
    assert_eq!(lines.count(), 1);
    exec.delete().await.expect("delete");
    container.remove().await;
}

/// It serves files of a program that goes on where the sentry says that it has ended, and destroys nothing.
async fn a_gofer_ends_with_its_container_whatever_the_sentry_says(bed: &Bed) {
    let pod = sandbox(bed).await;
    let other = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let one = member(bed, &pod, "sleep 1000").create().await;
    let one = one.expect("create");
    let id = one.id.clone();
    Relay::start(&control_socket(&pod.id), move |request| {
        if request.contains(DESTROY) {
            error("not now")
        } else if request.contains(WAIT) && request.contains(&id) {
            number(0)
        } else {
            Reply::HandOn
        }
    });
    one.start().await.expect("start");
    let is_served = |id: &str| !processes::of(Role::Gofer, id).is_empty();
    assert_eq!(one.wait().await.expect("wait").status, 0);
    assert!(is_served(&one.id) && is_served(&other.id));
    one.delete().await.expect("delete");
    assert!(!is_served(&one.id), "it serves on");
    assert!(is_served(&other.id), "it is another's");
    other.remove().await;
    end(pod).await;
}
