//! What containerd's subscribers hear of a container, and that a restart of containerd loses nothing.

use std::time::Duration;

use containerd_client::events::{TaskExit, TaskStart};
use containerd_client::types::Envelope;
use containerd_client::types::v1::Status;
use integration::bed::Bed;
use integration::processes::eventually;
use integration::runtime::Needs;

use integration::cases;
use integration::harness::join_all;

cases! {
    Needs::Any => [
        a_run_is_create_start_exit_delete,
        an_exec_is_added_started_and_exits_before_the_container,
        the_execs_that_end_with_a_container_are_told_before_it,
        a_pause_and_a_resume_are_told,
        containerd_restarted_while_a_task_runs_finds_it_again,
        the_exit_event_arrives_after_containerds_restart,
    ],
    Needs::NotRunc("the delete event is lost when the shim ends before it is sent") => [
        exit_follows_start_however_short_the_run,
        a_container_that_never_started_has_no_exit_before_its_delete,
    ],
    Needs::Gvisor => [
        containerd_restarted_finds_created_and_paused_tasks,
    ],
    Needs::NotRunc("containerd takes a shim that answers Pids with none for a leak and removes it") => [
        a_task_that_ends_while_containerd_is_gone_keeps_its_code,
    ],
}

/// The last word of the topics that concern a container.
pub(crate) fn topics(events: &[Envelope], id: &str) -> Vec<String> {
    let mine = events.iter().filter(|event| {
        let value = event
            .event
            .as_ref()
            .map(|any| any.value.clone())
            .unwrap_or_default();
        value
            .windows(id.len())
            .any(|window| window == id.as_bytes())
    });
    mine.map(|event| {
        event
            .topic
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned()
    })
    .collect()
}

/// Waits until these are the topics that concern a container.
pub(crate) async fn heard(events: &integration::client::Events, id: &str, expected: &[&str]) {
    let last = *expected.last().expect("something is expected");
    eventually(&format!("{last} of {id}"), Duration::from_secs(10), || {
        topics(&events.all(), id)
            .last()
            .is_some_and(|topic| topic == last)
    })
    .await;
    // Nothing comes after the last.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(topics(&events.all(), id), expected);
}

async fn a_run_is_create_start_exit_delete(bed: &Bed) {
    let events = bed.client().events().await;
    let container = bed.shell("exit 12").run().await.expect("run");
    let (id, pid) = (container.id.clone(), container.pid);
    container.finish().await;
    heard(&events, &id, &["create", "start", "exit", "delete"]).await;
    let all = events.all();
    let payload = |name: &str| {
        let event = all
            .iter()
            .find(|event| event.topic.ends_with(name))
            .and_then(|event| event.event.clone());
        event.expect("a payload")
    };
    // containerd names the types without the host that protobuf puts in front.
    let decode = |name: &str| {
        let mut any = payload(name);
        any.type_url = format!("/{}", any.type_url.trim_start_matches('/'));
        any
    };
    let exit: TaskExit = decode("/exit").to_msg().expect("a TaskExit");
    assert_eq!(
        (exit.id, exit.container_id, exit.pid, exit.exit_status),
        (id.clone(), id.clone(), pid, 12)
    );
    let start: TaskStart = decode("/start").to_msg().expect("a TaskStart");
    assert_eq!((start.container_id, start.pid), (id, pid));
}

async fn an_exec_is_added_started_and_exits_before_the_container(bed: &Bed) {
    let events = bed.client().events().await;
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let id = container.id.clone();
    container
        .exec("extra", &["sh", "-c", "exit 3"])
        .finish()
        .await;
    container.kill(9).await.expect("kill");
    container.finish().await;
    let expected = [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "exit",
        "delete",
    ];
    heard(&events, &id, &expected).await;
    assert_eq!(exits(&events), ["extra", &id]);
}

/// Who has exited, in order: an exec's id, or a container's.
fn exits(events: &integration::client::Events) -> Vec<String> {
    let exits = events.all().into_iter().filter_map(|event| {
        let mut payload = event.event.filter(|_| event.topic == "/tasks/exit")?;
        // containerd names the types without the host that protobuf puts in front.
        payload.type_url = format!("/{}", payload.type_url.trim_start_matches('/'));
        Some(payload.to_msg::<TaskExit>().expect("a TaskExit").id)
    });
    exits.collect()
}

async fn the_execs_that_end_with_a_container_are_told_before_it(bed: &Bed) {
    let events = bed.client().events().await;
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let id = container.id.clone();
    let exec = container.exec("extra", &["sleep", "1000"]).run().await;
    let exec = exec.expect("exec");
    container.kill(9).await.expect("kill");
    assert_eq!(exec.wait().await.expect("wait").status, 137);
    container.finish().await;
    let expected = [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "exit",
        "delete",
    ];
    heard(&events, &id, &expected).await;
    assert_eq!(exits(&events), ["extra", &id]);
}

async fn a_pause_and_a_resume_are_told(bed: &Bed) {
    let events = bed.client().events().await;
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let id = container.id.clone();
    bed.client().pause(&id).await.expect("pause");
    let status = container.status().await.expect("state");
    assert_eq!(status, containerd_client::types::v1::Status::Paused);
    bed.client().resume(&id).await.expect("resume");
    assert_eq!(container.exec("e", &["true"]).finish().await.status, 0);
    container.kill(9).await.expect("kill");
    container.finish().await;
    let expected = [
        "create",
        "start",
        "paused",
        "resumed",
        "exec-added",
        "exec-started",
        "exit",
        "exit",
        "delete",
    ];
    heard(&events, &id, &expected).await;
}

async fn exit_follows_start_however_short_the_run(bed: &Bed) {
    let events = bed.client().events().await;
    let one = async |_: u32| {
        let container = bed.container(&["true"]).run().await.expect("run");
        let id = container.id.clone();
        container.finish().await;
        id
    };
    let mut all = Vec::new();
    for number in 0..20 {
        all.push(one(number));
    }
    for id in join_all(all).await {
        heard(&events, &id, &["create", "start", "exit", "delete"]).await;
    }
}

async fn a_container_that_never_started_has_no_exit_before_its_delete(bed: &Bed) {
    let events = bed.client().events().await;
    let container = bed.container(&["true"]).create().await.expect("create");
    let id = container.id.clone();
    container.delete().await.expect("delete");
    eventually("delete", Duration::from_secs(10), || {
        topics(&events.all(), &id).contains(&"delete".to_owned())
    })
    .await;
    let heard = topics(&events.all(), &id);
    assert_eq!(heard.first().map(String::as_str), Some("create"));
    assert!(!heard.contains(&"start".to_owned()), "{heard:?}");
}

async fn containerd_restarted_while_a_task_runs_finds_it_again(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    bed.kill_containerd();
    bed.start_containerd().await;
    let status = container.status().await.expect("state");
    assert_eq!(status, containerd_client::types::v1::Status::Running);
    assert_eq!(
        container
            .exec("after", &["sh", "-c", "exit 8"])
            .finish()
            .await
            .status,
        8
    );
    container.kill(9).await.expect("kill");
    assert_eq!(container.finish().await.status, 137);
}

async fn containerd_restarted_finds_created_and_paused_tasks(bed: &Bed) {
    let created = bed.shell("exit 8").create().await.expect("create");
    let paused = bed.container(&["sleep", "1000"]).run().await.expect("run");
    bed.client().pause(&paused.id).await.expect("pause");
    bed.kill_containerd();
    bed.start_containerd().await;
    let status = created.status().await.expect("state of the created");
    assert_eq!(status, Status::Created);
    let status = paused.status().await.expect("state of the paused");
    assert_eq!(status, Status::Paused);
    created.start().await.expect("start");
    assert_eq!(created.finish().await.status, 8);
    bed.client().resume(&paused.id).await.expect("resume");
    let done = paused.exec("after", &["echo", "alive"]).finish().await;
    assert_eq!(done.stdout, "alive\n");
    paused.kill(9).await.expect("kill");
    assert_eq!(paused.finish().await.status, 137);
}

async fn a_task_that_ends_while_containerd_is_gone_keeps_its_code(bed: &Bed) {
    let container = bed.shell("sleep 0.7; exit 33").run().await.expect("run");
    bed.kill_containerd();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    bed.start_containerd().await;
    assert_eq!(container.wait().await.expect("wait").status, 33);
    assert_eq!(container.finish().await.status, 33);
}

async fn the_exit_event_arrives_after_containerds_restart(bed: &Bed) {
    let container = bed
        .shell("read line; exit 34")
        .stdin()
        .run()
        .await
        .expect("run");
    bed.kill_containerd();
    bed.start_containerd().await;
    let events = bed.new_client().await.events().await;
    container
        .streams
        .write([b"now\n".to_vec()])
        .await
        .expect("written");
    let id = container.id.clone();
    heard(&events, &id, &["exit"]).await;
    assert_eq!(container.finish().await.status, 34);
    heard(&events, &id, &["exit", "delete"]).await;
}
