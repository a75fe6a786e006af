//! Kill, wait, delete: exit codes, signals, and the order of things.

use std::time::{Duration, SystemTime};

use containerd_client::tonic::Code;
use containerd_client::types::v1::Status;
use integration::bed::Bed;
use integration::patience::patience;
use integration::runtime::Needs;

use crate::life::events::heard;
use integration::cases;
use integration::harness::join_all;

cases! {
    Needs::Any => [
        exit_codes_are_exact,
        a_hundred_short_runs_keep_their_code,
        sigterm_is_handled_by_the_program,
        sigterm_ends_a_program_without_a_handler_as_143,
        sigkill_is_137,
        kill_all_reaches_every_process,
        an_unknown_signal_is_refused,
        kill_before_start_is_answered,
        kill_after_the_end_is_not_found,
        wait_before_and_after_the_end_tell_the_same,
        three_clients_wait_and_all_hear,
        delete_of_a_running_task_is_refused,
        delete_twice_is_not_found,
        exited_at_is_between_start_and_now,
        pids_of_a_running_task_exist,
        metrics_of_a_running_task_are_there,
        everything_about_an_unknown_task_is_not_found,
    ],
    Needs::Bulkhead => [
        a_signal_that_needs_a_program_is_refused_before_start,
        sigkill_ends_a_paused_container,
        sigterm_ends_a_first_process_without_a_handler_as_143,
        pids_are_one_for_each_process_of_the_container,
        pids_of_a_paused_and_an_exited_task_are_there,
        pause_and_resume_out_of_turn_are_refused,
        delete_of_a_running_exec_is_refused,
    ],
}

async fn exit_codes_are_exact(bed: &Bed) {
    let scripts = [
        ("exit 0", 0),
        ("exit 1", 1),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        ("exit 255", 255),
    ];
    for (script, code) in scripts {
        // As the first process of its pid namespace a program is immune to its own signals; its child is not.
        let script = format!("sh -c '{script}'; exit $?");
        assert_eq!(
            bed.shell(&script)
                .run()
                .await
                .expect("run")
                .finish()
                .await
                .status,
            code,
            "{script}"
        );
    }
}

async fn a_hundred_short_runs_keep_their_code(bed: &Bed) {
    for round in 0..100_u32 {
        let program = if round % 2 == 0 { "true" } else { "false" };
        let done = bed
            .container(&[program])
            .run()
            .await
            .expect("run")
            .finish()
            .await;
        assert_eq!(done.status, round % 2, "run {round}");
    }
}

async fn sigterm_is_handled_by_the_program(bed: &Bed) {
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let container = bed.shell(script).run().await.expect("run");
    tokio::time::sleep(Duration::from_millis(500)).await;
    container.kill(15).await.expect("kill");
    let done = container.finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (5, "ready\ncaught\n"));
}

async fn sigterm_ends_a_program_without_a_handler_as_143(bed: &Bed) {
    // In the host's pid namespace the first process would be as any other; in its own, an exec is.
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let exec = container
        .exec("plain", &["sleep", "1000"])
        .run()
        .await
        .expect("run");
    exec.kill(15).await.expect("kill");
    assert_eq!(exec.finish().await.status, 143);
    container.remove().await;
}

async fn sigterm_ends_a_first_process_without_a_handler_as_143(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    container.kill(15).await.expect("kill");
    assert_eq!(container.finish().await.status, 143);
}

async fn sigkill_is_137(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    container.kill(9).await.expect("kill");
    assert_eq!(container.finish().await.status, 137);
}

async fn sigkill_ends_a_paused_container(bed: &Bed) {
    for all in [false, true] {
        let events = bed.client().events().await;
        let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
        let id = container.id.clone();
        bed.client().pause(&id).await.expect("pause");
        bed.client().kill(&id, "", 9, all).await.expect("kill");
        assert_eq!(container.finish().await.status, 137);
        let expected = ["create", "start", "paused", "exit", "delete"];
        heard(&events, &id, &expected).await;
    }
}

async fn kill_all_reaches_every_process(bed: &Bed) {
    let container = bed
        .shell("sleep 1000 & sleep 1000 & wait")
        .run()
        .await
        .expect("run");
    let exec = container
        .exec("other", &["sleep", "1000"])
        .run()
        .await
        .expect("run");
    bed.client()
        .kill(&container.id, "", 9, true)
        .await
        .expect("kill");
    assert_eq!(exec.wait().await.expect("wait").status, 137);
    exec.delete().await.expect("delete the exec");
    assert_eq!(container.finish().await.status, 137);
}

async fn an_unknown_signal_is_refused(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    for signal in [0, 65, 999, u32::MAX] {
        let error = container.kill(signal).await.expect_err("refused");
        if !bed.runtime.is_runc() {
            assert_eq!(error.code(), Code::InvalidArgument, "{signal}: {error:?}");
        }
    }
    assert_eq!(container.status().await.expect("state"), Status::Running);
    container.remove().await;
}

async fn kill_before_start_is_answered(bed: &Bed) {
    let container = bed.container(&["true"]).create().await.expect("create");
    let killed = container.kill(9).await;
    if bed.runtime.is_bulkhead() {
        killed.expect("SIGKILL needs no program");
        assert_eq!(container.wait().await.expect("wait").status, 137);
    } else if let Err(error) = killed {
        // Either is right, as long as it can be deleted then.
        assert!(
            [Code::FailedPrecondition, Code::NotFound].contains(&error.code()),
            "{error:?}"
        );
    }
    container.remove().await;
}

async fn a_signal_that_needs_a_program_is_refused_before_start(bed: &Bed) {
    let container = bed
        .container(&["sleep", "1000"])
        .create()
        .await
        .expect("create");
    for signal in [10, 28] {
        let error = container.kill(signal).await.expect_err("nothing runs");
        assert_eq!(error.code(), Code::FailedPrecondition, "{signal}: {error}");
    }
    container.start().await.expect("start");
    assert_eq!(container.status().await.expect("state"), Status::Running);
    container.remove().await;
}

async fn kill_after_the_end_is_not_found(bed: &Bed) {
    let container = bed.container(&["true"]).run().await.expect("run");
    container.wait().await.expect("wait");
    let error = container.kill(9).await.expect_err("refused");
    assert_eq!(error.code(), Code::NotFound, "{error:?}");
    container.delete().await.expect("delete");
}

async fn wait_before_and_after_the_end_tell_the_same(bed: &Bed) {
    let container = bed
        .shell("sleep 0.3; exit 21")
        .create()
        .await
        .expect("create");
    let before = tokio::spawn({
        let (client, id) = (bed.client(), container.id.clone());
        async move { client.wait(&id, "").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    container.start().await.expect("start");
    let before = before.await.expect("joined").expect("wait before");
    let after = container.wait().await.expect("wait after");
    assert_eq!(before, after);
    assert_eq!(after.status, 21);
    assert_eq!(container.delete().await.expect("delete"), after);
}

async fn three_clients_wait_and_all_hear(bed: &Bed) {
    let container = bed.shell("sleep 0.3; exit 22").run().await.expect("run");
    for exit in join_all(vec![container.wait(), container.wait(), container.wait()]).await {
        assert_eq!(exit.expect("wait").status, 22);
    }
    container.delete().await.expect("delete");
}

async fn delete_of_a_running_task_is_refused(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let error = bed
        .client()
        .delete(&container.id)
        .await
        .expect_err("refused");
    if !bed.runtime.is_runc() {
        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    }
    assert_eq!(container.status().await.expect("state"), Status::Running);
    container.remove().await;
}

async fn delete_twice_is_not_found(bed: &Bed) {
    let container = bed.container(&["true"]).run().await.expect("run");
    container.wait().await.expect("wait");
    bed.client().delete(&container.id).await.expect("delete");
    let error = bed.client().delete(&container.id).await.expect_err("gone");
    assert_eq!(error.code(), Code::NotFound, "{error:?}");
    container.remove().await;
}

async fn exited_at_is_between_start_and_now(bed: &Bed) {
    let container = bed.shell("sleep 0.5").create().await.expect("create");
    let began = SystemTime::now();
    container.start().await.expect("start");
    let exit = container.wait().await.expect("wait");
    let at = exit.at.expect("a time");
    assert!(
        at >= began + Duration::from_millis(400) && at <= SystemTime::now(),
        "{began:?} {at:?}"
    );
    assert_eq!(container.delete().await.expect("delete").at, Some(at));
}

async fn pids_of_a_running_task_exist(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let pids = bed.client().pids(&container.id).await.expect("pids");
    assert!(
        pids.contains(&container.pid),
        "{pids:?} has not {}",
        container.pid
    );
    for pid in pids {
        assert!(
            std::path::Path::new("/proc").join(pid.to_string()).exists(),
            "{pid} is a process of the host"
        );
    }
    container.remove().await;
}

/// The pid on the host of each is the sandbox's: that is what runs them.
async fn pids_are_one_for_each_process_of_the_container(bed: &Bed) {
    let container = bed.shell("sleep 1000 & sleep 1000 & echo up; wait");
    let container = container.run().await.expect("run");
    let told = async || bed.client().pids(&container.id).await.expect("pids");
    let is_told = async |count: usize| {
        let deadline = std::time::Instant::now() + patience(Duration::from_secs(10));
        loop {
            let pids = told().await;
            assert!(pids.iter().all(|pid| *pid == container.pid), "{pids:?}");
            if pids.len() == count {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{count}: {pids:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    is_told(3).await;
    let exec = container.exec("e", &["sleep", "1000"]).run().await;
    let exec = exec.expect("run");
    is_told(4).await;
    bed.client().pause(&container.id).await.expect("pause");
    assert_eq!(told().await, [container.pid; 4]);
    bed.client().resume(&container.id).await.expect("resume");
    exec.kill(9).await.expect("kill");
    exec.finish().await;
    is_told(3).await;
    container.remove().await;
}

async fn pids_of_a_paused_and_an_exited_task_are_there(bed: &Bed) {
    let (client, container) = (bed.client(), bed.container(&["sleep", "1000"]).run().await);
    let container = container.expect("run");
    let running = client.pids(&container.id).await.expect("pids");
    client.pause(&container.id).await.expect("pause");
    let paused = client.pids(&container.id).await.expect("pids of a paused");
    assert!(paused.contains(&container.pid), "{paused:?} {running:?}");
    client.resume(&container.id).await.expect("resume");
    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    // The pid it had: containerd takes a task without any for a leak.
    let exited = client.pids(&container.id).await.expect("pids of an exited");
    assert!(exited.contains(&container.pid), "{exited:?}");
    container.delete().await.expect("delete");
}

async fn pause_and_resume_out_of_turn_are_refused(bed: &Bed) {
    let (client, container) = (
        bed.client(),
        bed.container(&["sleep", "1000"]).create().await,
    );
    let container = container.expect("create");
    let id = &container.id;
    let refused = |answer: Result<(), containerd_client::tonic::Status>| {
        let error = answer.expect_err("refused");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    };
    refused(client.pause(id).await);
    container.start().await.expect("start");
    refused(client.resume(id).await);
    client.pause(id).await.expect("pause");
    refused(client.pause(id).await);
    assert_eq!(container.status().await.expect("state"), Status::Paused);
    client.resume(id).await.expect("resume");
    refused(client.resume(id).await);
    assert_eq!(container.exec("e", &["true"]).finish().await.status, 0);
    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    refused(client.pause(id).await);
    container.delete().await.expect("delete");
}

async fn delete_of_a_running_exec_is_refused(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let exec = container.exec("e", &["sleep", "1000"]).run().await;
    let exec = exec.expect("run");
    let error = exec.delete().await.expect_err("it runs");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    exec.kill(9).await.expect("kill");
    assert_eq!(exec.finish().await.status, 137);
    container.remove().await;
}

async fn metrics_of_a_running_task_are_there(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let metrics = bed.client().metrics(&container.id).await.expect("metrics");
    assert!(
        metrics.type_url.contains("cgroups") && !metrics.value.is_empty(),
        "{metrics:?}"
    );
    container.remove().await;
}

async fn everything_about_an_unknown_task_is_not_found(bed: &Bed) {
    let client = bed.client();
    let code =
        |result: Result<(), containerd_client::tonic::Status>| result.expect_err("refused").code();
    assert_eq!(
        code(client.start("nobody", "").await.map(drop)),
        Code::NotFound
    );
    assert_eq!(
        code(client.kill("nobody", "", 9, false).await),
        Code::NotFound
    );
    assert_eq!(
        code(client.wait("nobody", "").await.map(drop)),
        Code::NotFound
    );
    assert_eq!(
        code(client.delete("nobody").await.map(drop)),
        Code::NotFound
    );
    assert_eq!(code(client.pids("nobody").await.map(drop)), Code::NotFound);
}
