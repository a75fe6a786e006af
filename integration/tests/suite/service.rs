//! The shim's own socket, without containerd between: what containerd hides or never sends.

use std::time::Duration;

use integration::bed::Bed;
use integration::runtime::Needs;

use integration::cases;

cases! {
    Needs::Bulkhead => [
        shutdown_with_a_running_container_keeps_the_shim,
        both_versions_of_the_task_service_answer,
        malformed_requests_are_answered,
        connect_tells_the_pids,
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
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let shim = integration::shim::Shim::of(bed, &container.id).await;
    for method in [
        "Create",
        "Start",
        "State",
        "Kill",
        "Exec",
        "Delete",
        "Wait",
        "NoSuchMethod",
    ] {
        shim.raw(3, method, vec![0xff; 7]).await.expect_err(method);
        // No id at all.
        shim.raw(3, method, Vec::new()).await.expect_err(method);
    }
    drop(shim);
    assert_eq!(container.exec("still", &["true"]).finish().await.status, 0);
    container.remove().await;
}

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
    use containerd_shim_protos::api::{CheckpointTaskRequest, Empty};
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
    assert_eq!(code, containerd_shim_protos::ttrpc::Code::UNIMPLEMENTED);
    container.remove().await;
}
