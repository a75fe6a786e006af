//! What the shim does when one method of a sandbox's control socket fails and the others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use containerd_client::tonic::Code;
use integration::bed::Bed;
use integration::container::Container;
use integration::processes::{Role, eventually, of};
use integration::runtime::Needs;
use integration::wrapper::Wrapper;

use integration::cases;

use crate::life::delete::root_of;
use crate::life::pod;
use crate::trouble::peers;
use crate::trouble::relay::{Relay, Reply};

cases! {
    Needs::Bulkhead => [
        an_exec_whose_status_is_lost_ends_all_the_same,
        an_exec_whose_status_is_lost_ends_by_the_command_as_well,
        a_sentry_that_refuses_sigkill_for_one_container_keeps_the_others,
        a_container_that_is_killed_while_it_starts_leaves_the_others_unharmed,
        a_container_that_cannot_be_killed_yet_leaves_the_others_unharmed,
        a_signal_to_an_exec_that_is_just_being_started_spares_init,
        a_start_by_the_socket_is_one_to_every_command_of_runsc,
        a_start_that_needs_the_command_is_done_by_it,
        a_sentry_that_knows_no_start_is_started_by_the_command,
        a_start_that_fails_by_the_socket_ends_its_sandbox,
    ],
}

const WAIT: &str = "containerManager.WaitPID";
const SIGNAL: &str = "containerManager.Signal";
const EXECUTE: &str = "containerManager.ExecuteAsync";
const PROCESSES: &str = "containerManager.Processes";
const NETWORK: &str = "containerManager.SetNetworkArgs";
const START: &str = "containerManager.StartRoot";
const UNKNOWN: &str = "{\"success\":false,\"err\":\"unknown method\"}\n";

/// How a start ends that comes to the command.
const BROKEN: &str = "log 'the command is broken'; exit 1";

/// An exec whose wait is answered with an error, as when its status went to somebody else. Returns how often the sentry was
/// asked what runs.
async fn lost(
    bed: &Bed,
    answer: impl Fn(u32) -> Option<&'static str> + Send + Sync + 'static,
) -> u32 {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let socket = peers::control_socket(&container.id);
    Relay::start(&socket, move |request| match request {
        _ if request.contains(WAIT) => {
            Some("{\"success\":false,\"err\":\"the status is elsewhere\"}\n")
        }
        _ if request.contains(PROCESSES) => answer(count.fetch_add(1, Ordering::Relaxed)),
        _ => None,
    });
    let done = container.exec("lost", &["sh", "-c", "sleep 1; echo done"]);
    let done = done.finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (255, "done\n"));
    assert_eq!(of(Role::Command, &container.id), []);
    // The container itself is none the worse for it.
    container.kill(9).await.expect("kill");
    assert_eq!(container.finish().await.status, 137);
    asked.load(Ordering::Relaxed)
}

async fn an_exec_whose_status_is_lost_ends_all_the_same(bed: &Bed) {
    let asked = lost(bed, |_| None).await;
    assert!(asked > 1, "while it runs, and after: {asked}");
}

async fn an_exec_whose_status_is_lost_ends_by_the_command_as_well(bed: &Bed) {
    // The first question is the shim's; what follows is asked by the command that it then runs.
    let asked = lost(bed, |number| {
        (number == 0).then_some("{\"success\":false,\"err\":\"unknown method\"}\n")
    })
    .await;
    assert!(asked > 2, "while it runs, and after: {asked}");
}

async fn a_sentry_that_refuses_sigkill_for_one_container_keeps_the_others(bed: &Bed) {
    let first = pod::sandbox(bed).await;
    let one = pod::member(bed, &first, "sleep 1000");
    let one = one.run().await.expect("run");
    let two = pod::member(bed, &first, "sleep 1000");
    let two = two.run().await.expect("run");
    let refused = Arc::new(AtomicBool::new(true));
    let (refuses, named) = (Arc::clone(&refused), format!("\"{}\"", one.id));
    Relay::start(&peers::control_socket(&first.id), move |request| {
        let is_one = request.contains(SIGNAL) && request.contains(&named);
        (is_one && refuses.load(Ordering::Relaxed))
            .then_some("{\"success\":false,\"err\":\"not today\"}\n")
    });
    let error = one.kill(9).await.expect_err("refused");
    assert!(error.message().contains("not today"), "{error}");
    let done = two.exec("e", &["echo", "alive"]).finish().await;
    assert_eq!(done.stdout, "alive\n");
    refused.store(false, Ordering::Relaxed);
    for container in [one, two] {
        container.remove().await;
    }
    pod::end(first).await;
}

async fn a_signal_to_an_exec_that_is_just_being_started_spares_init(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    Relay::start(&peers::control_socket(&container.id), |request| {
        if request.contains(EXECUTE) {
            std::thread::sleep(Duration::from_secs(1));
        }
        None
    });
    let exec = container.exec("slow", &["sleep", "1000"]);
    let exec = exec.add().await.expect("add");
    let killed = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        exec.kill(9).await
    };
    let (started, killed) = tokio::join!(exec.start(), killed);
    started.expect("start");
    killed.expect("kill");
    assert_eq!(exec.finish().await.status, 137);
    let done = container.exec("e", &["echo", "alive"]).finish().await;
    assert_eq!(done.stdout, "alive\n");
    container.remove().await;
}

/// A pod with one container that runs on while `kill` has another to do with, whose `runsc start` does `fault` first.
async fn killed_while_it_starts(bed: &Bed, fault: &str, kill: impl AsyncFnOnce(&Container<'_>)) {
    let first = pod::sandbox(bed).await;
    let one = pod::member(bed, &first, "sleep 1000")
        .run()
        .await
        .expect("run");
    let two = pod::member(bed, &first, "sleep 1000");
    let two = two.create().await.expect("create");
    {
        let _wrapper = Wrapper::at(bed, "start", fault);
        let killed = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            kill(&two).await;
        };
        let (started, ()) = tokio::join!(two.start(), killed);
        started.expect("start");
    }
    assert_eq!(
        one.exec("e", &["echo", "alive"]).finish().await.stdout,
        "alive\n"
    );
    for container in [two, one] {
        container.remove().await;
    }
    pod::end(first).await;
}

async fn a_container_that_is_killed_while_it_starts_leaves_the_others_unharmed(bed: &Bed) {
    killed_while_it_starts(bed, "sleep 2", async |two| {
        two.kill(9).await.expect("kill");
        assert_eq!(two.wait().await.expect("wait").status, 137);
    })
    .await;
}

async fn a_container_that_cannot_be_killed_yet_leaves_the_others_unharmed(bed: &Bed) {
    killed_while_it_starts(bed, "sleep 8", async |two| {
        let error = two.kill(9).await.expect_err("there is nothing to kill");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    })
    .await;
}

/// Runs runsc itself on a container.
fn runsc(bed: &Bed, id: &str, args: &[&str]) -> String {
    let root = root_of(&bed.bundle(id));
    let mut command = std::process::Command::new(bed.runsc.as_ref().expect("runsc"));
    command.arg("--root").arg(root).args(args);
    let output = command.output().expect("run runsc");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What runsc's own commands do to a container that was started so.
async fn commanded(bed: &Bed, policy: &str) -> (String, u32) {
    let script = "trap 'echo heard' USR1; trap 'echo ended; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let container = bed.container(&["sh", "-c", script]).policy("", policy);
    let container = container.run().await.expect("run");
    let id = container.id.clone();
    let state = runsc(bed, &id, &["state", &id]);
    assert!(state.contains("\"status\": \"running\""), "{state}");
    // The program has set its traps once it has a child.
    let listed = || runsc(bed, &id, &["ps", "--format", "json", &id]);
    let is_ready = || listed().split(',').count() > 1;
    eventually("it runs", Duration::from_secs(10), is_ready).await;
    runsc(bed, &id, &["pause", &id]);
    let state = runsc(bed, &id, &["state", &id]);
    assert!(state.contains("\"status\": \"paused\""), "{state}");
    runsc(bed, &id, &["resume", &id]);
    assert_eq!(runsc(bed, &id, &["exec", &id, "echo", "alive"]), "alive\n");
    runsc(bed, &id, &["events", "--stats", &id]);
    runsc(bed, &id, &["kill", "--pid", "1", &id, "USR1"]);
    runsc(bed, &id, &["kill", &id, "USR1"]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    runsc(bed, &id, &["kill", &id, "TERM"]);
    let done = container.finish().await;
    (done.stdout, done.status)
}

async fn a_start_by_the_socket_is_one_to_every_command_of_runsc(bed: &Bed) {
    let by_socket = {
        let _wrapper = Wrapper::at(bed, "start", BROKEN);
        commanded(bed, "").await
    };
    assert!(by_socket.0.starts_with("ready\nheard\n"), "{by_socket:?}");
    assert!(by_socket.0.ends_with("ended\n"), "{by_socket:?}");
    assert_eq!(by_socket.1, 3);
    let by_command = commanded(bed, "runsc.control = \"command\"").await;
    assert!(by_command.0.starts_with("ready\nheard\n"), "{by_command:?}");
    assert_eq!(by_command.1, 3);
}

async fn a_start_that_needs_the_command_is_done_by_it(bed: &Bed) {
    let hook = serde_json::json!([{ "path": "/bin/true", "args": ["true"] }]);
    let plain = || bed.container(&["sleep", "1000"]);
    let cases = [
        plain().with(|spec| spec["hooks"]["poststart"] = hook),
        plain().policy("", "network = \"sandbox\""),
        plain().policy("", "runsc.control = \"command\""),
    ];
    for case in cases {
        let container = case.create().await.expect("create");
        let _wrapper = Wrapper::at(bed, "start", BROKEN);
        let error = container.start().await.expect_err("by the command");
        assert!(error.message().contains("the command is broken"), "{error}");
        container.remove().await;
    }
}

async fn a_sentry_that_knows_no_start_is_started_by_the_command(bed: &Bed) {
    for method in [NETWORK, START] {
        let container = bed.container(&["sleep", "1000"]);
        let container = container.create().await.expect("create");
        let asked = move |request: &str| request.contains(method).then_some(UNKNOWN);
        // Of the command's own questions only the first is not answered.
        let once = AtomicBool::new(true);
        Relay::start(&peers::control_socket(&container.id), move |request| {
            asked(request).filter(|_| once.swap(false, Ordering::Relaxed))
        });
        container.start().await.expect(method);
        let done = container.exec("e", &["echo", "alive"]).finish().await;
        assert_eq!(done.stdout, "alive\n");
        container.remove().await;
    }
}

async fn a_start_that_fails_by_the_socket_ends_its_sandbox(bed: &Bed) {
    let refused = "{\"success\":false,\"err\":\"starting sandbox: the moon has set\"}\n";
    for (answer, told) in [
        (
            Some(refused),
            "starting root container: starting sandbox: the moon has set",
        ),
        (Some("{\"success\":tr"), "it may have been done"),
        (None, "no reply within"),
    ] {
        let container = bed.container(&["sleep", "1000"]);
        let container = container.policy("", "runsc.start_timeout = 2");
        let container = container.create().await.expect("create");
        Relay::start(&peers::control_socket(&container.id), move |request| {
            if !request.contains(START) {
                return Reply::HandOn;
            }
            answer.map_or(Reply::Never, |text| Reply::Say(text.to_owned()))
        });
        let error = container.start().await.expect_err(told);
        assert!(error.message().contains(told), "{error}");
        assert!(!error.message().contains('\n'), "one line: {error}");
        let gone = || of(Role::Sandbox, &container.id).is_empty();
        eventually("its sandbox ends", Duration::from_secs(10), gone).await;
        container.remove().await;
    }
}
