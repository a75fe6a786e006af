//! What the shim does when one method of a sandbox's control socket fails and the others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use containerd_client::tonic::Code;
use integration::bed::Bed;
use integration::container::Container;
use integration::processes::{Role, of};
use integration::runtime::Needs;
use integration::wrapper::Wrapper;

use integration::cases;

use crate::relay::Relay;
use crate::{peers, pod};

cases! {
    Needs::Bulkhead => [
        an_exec_whose_status_is_lost_ends_all_the_same,
        an_exec_whose_status_is_lost_ends_by_the_command_as_well,
        a_sentry_that_refuses_sigkill_for_one_container_keeps_the_others,
        a_container_that_is_killed_while_it_starts_leaves_the_others_unharmed,
        a_container_that_cannot_be_killed_yet_leaves_the_others_unharmed,
        a_signal_to_an_exec_that_is_just_being_started_spares_init,
    ],
}

const WAIT: &str = "containerManager.WaitPID";
const SIGNAL: &str = "containerManager.Signal";
const EXECUTE: &str = "containerManager.ExecuteAsync";
const PROCESSES: &str = "containerManager.Processes";

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
