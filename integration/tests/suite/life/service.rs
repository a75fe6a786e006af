//! The shim's own socket, without containerd between: what containerd hides or never sends.

use std::time::{Duration, Instant};

use containerd_shim_protos::ttrpc::Code;
use integration::bed::Bed;
use integration::patience::patience;
use integration::runtime::Needs;

use crate::life::pod::{end, member, sandbox};
use integration::cases;

cases! {
    Needs::Bulkhead => [
        shutdown_with_a_running_container_keeps_the_shim,
        both_versions_of_the_task_service_answer,
        malformed_requests_are_answered,
        connect_tells_the_pids,
        connect_without_an_id_tells_the_shims_pid,
        stats_of_a_stopped_task_are_there,
        what_is_not_implemented_says_so,
    ],
}

async fn shutdown_with_a_running_container_keeps_the_shim(bed: &Bed) {
    use containerd_shim_protos::api::{Empty, ShutdownRequest};
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let shim = integration::shim::Shim::of(bed, &container.id).await;
    let body = ShutdownRequest {
        id: container.id.clone(),
        ..Default::default()
    };
    shim.call::<Empty>(3, "Shutdown", &body)
        .await
        .expect("an answer");
    drop(shim);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(container.exec("still", &["true"]).finish().await.status, 0);
    container.remove().await;
}

async fn both_versions_of_the_task_service_answer(bed: &Bed) {
    use containerd_shim_protos::api::{StateRequest, StateResponse};
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let shim = integration::shim::Shim::of(bed, &container.id).await;
    let body = StateRequest {
        id: container.id.clone(),
        ..Default::default()
    };
    let second: StateResponse = shim.call(2, "State", &body).await.expect("version 2");
    let third: StateResponse = shim.call(3, "State", &body).await.expect("version 3");
    assert_eq!((second.pid, second.status), (third.pid, third.status));
    assert_eq!(second.pid, container.pid);
    container.remove().await;
}

async fn malformed_requests_are_answered(bed: &Bed) {
    let pod = sandbox(bed).await;
    let container = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let shim = integration::shim::Shim::of(bed, &pod.id).await;
    let began = Instant::now();
    for version in [2, 3] {
        for (method, without_id) in METHODS {
            let code = shim.raw(version, method, vec![0xff; 7]).await;
            let code = code.expect_err(method);
            // The library's answer to what it cannot decode.
            assert_eq!(code, Code::UNKNOWN, "{method} of v{version}");
            // No id at all.
            let answer = shim.raw(version, method, Vec::new()).await;
            assert_eq!(answer.err(), without_id, "{method} of v{version}");
        }
        let code = shim.raw(version, "NoSuchMethod", Vec::new()).await;
        // By this code containerd knows that it has to ask for another version.
        assert_eq!(code.expect_err("no method"), Code::UNIMPLEMENTED);
    }
    let took = began.elapsed();
    assert!(took < patience(Duration::from_secs(5)), "{took:?}");
    drop(shim);
    assert_eq!(container.exec("still", &["true"]).finish().await.status, 0);
    container.remove().await;
    end(pod).await;
}

/// All methods of the Task service, and what each says to a request without an id.
const METHODS: [(&str, Option<Code>); 17] = [
    ("State", Some(Code::NOT_FOUND)),
    ("Create", Some(Code::INVALID_ARGUMENT)),
    ("Start", Some(Code::NOT_FOUND)),
    ("Delete", Some(Code::NOT_FOUND)),
    ("Pids", Some(Code::NOT_FOUND)),
    ("Pause", Some(Code::NOT_FOUND)),
    ("Resume", Some(Code::NOT_FOUND)),
    ("Checkpoint", Some(Code::UNIMPLEMENTED)),
    ("Kill", Some(Code::NOT_FOUND)),
    ("Exec", Some(Code::NOT_FOUND)),
    ("ResizePty", Some(Code::NOT_FOUND)),
    ("CloseIO", Some(Code::NOT_FOUND)),
    ("Update", Some(Code::NOT_FOUND)),
    ("Wait", Some(Code::NOT_FOUND)),
    ("Stats", Some(Code::NOT_FOUND)),
    // These two are about the shim, whose containers keep it.
    ("Connect", None),
    ("Shutdown", None),
];

async fn connect_tells_the_pids(bed: &Bed) {
    use containerd_shim_protos::api::{ConnectRequest, ConnectResponse};
    use integration::processes::{Role, of};
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let shim = integration::shim::Shim::of(bed, &container.id).await;
    let body = ConnectRequest {
        id: container.id.clone(),
        ..Default::default()
    };
    let answer: ConnectResponse = shim.call(3, "Connect", &body).await.expect("connect");
    let shims: Vec<i64> = of(Role::Shim, &container.id)
        .iter()
        .map(|process| process.pid.into())
        .collect();
    assert_eq!(shims, [i64::from(answer.shim_pid)]);
    assert_eq!(answer.task_pid, container.pid);
    container.remove().await;
}

/// containerd's own tests look for a shim that was left so, and nothing names the container any more.
async fn connect_without_an_id_tells_the_shims_pid(bed: &Bed) {
    use containerd_shim_protos::api::{ConnectRequest, ConnectResponse};
    use integration::processes::{Role, of};
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let shim = integration::shim::Shim::of(bed, &container.id).await;
    let answer: Result<ConnectResponse, _> =
        shim.call(3, "Connect", &ConnectRequest::default()).await;
    let answer = answer.expect("connect");
    let shims = of(Role::Shim, &container.id);
    let shims: Vec<i64> = shims.iter().map(|process| process.pid.into()).collect();
    assert_eq!(shims, [i64::from(answer.shim_pid)]);
    assert_eq!(answer.task_pid, 0, "of no task");
    let unknown = ConnectRequest {
        id: "no-such".into(),
        ..Default::default()
    };
    let code = shim.call::<ConnectResponse>(3, "Connect", &unknown).await;
    assert_eq!(code.expect_err("unknown"), Code::NOT_FOUND);
    drop(shim);
    container.remove().await;
}

async fn stats_of_a_stopped_task_are_there(bed: &Bed) {
    use containerd_shim_protos::api::{StatsRequest, StatsResponse};
    let container = bed.container(&["true"]).run().await.expect("run");
    container.wait().await.expect("wait");
    let shim = integration::shim::Shim::of(bed, &container.id).await;
    let body = StatsRequest {
        id: container.id.clone(),
        ..Default::default()
    };
    let answer: StatsResponse = shim.call(3, "Stats", &body).await.expect("stats");
    assert!(answer.stats.is_some());
    drop(shim);
    container.delete().await.expect("delete");
}

async fn what_is_not_implemented_says_so(bed: &Bed) {
    use containerd_shim_protos::api::{
        CheckpointTaskRequest, CreateTaskRequest, CreateTaskResponse, Empty,
    };
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let shim = integration::shim::Shim::of(bed, &container.id).await;
    let body = CheckpointTaskRequest {
        id: container.id.clone(),
        ..Default::default()
    };
    let code = shim
        .call::<Empty>(3, "Checkpoint", &body)
        .await
        .expect_err("refused");
    assert_eq!(code, Code::UNIMPLEMENTED);
    // A checkpoint is not restored either, and its container not run without it.
    let create = CreateTaskRequest {
        id: bed.id("restored"),
        bundle: bed.bundle(&container.id).display().to_string(),
        checkpoint: "/var/lib/a/checkpoint".into(),
        ..Default::default()
    };
    let code = shim.call::<CreateTaskResponse>(3, "Create", &create).await;
    assert_eq!(code.expect_err("refused"), Code::UNIMPLEMENTED);
    drop(shim);
    container.remove().await;
}
