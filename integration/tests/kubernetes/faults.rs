//! A node with something broken: the pod's author or the administrator reads what it is, and nothing else is harmed.

use std::time::Duration;

use integration::bed::Bed;
use integration::cases;
use integration::kubernetes::{PLENTY, Pod};
use integration::processes::{self, Role};
use integration::runtime::Needs;
use serde_json::json;

use crate::cluster;

cases! {
    Needs::Any => [
        a_kubelet_that_is_restarted_finds_its_pods,
        a_containerd_that_is_restarted_finds_its_pods,
        a_class_without_a_handler_is_named,
        a_handler_without_a_binary_is_named,
    ],
    Needs::Bulkhead => [
        a_policy_that_does_not_parse_is_named_with_its_line,
        a_runsc_that_is_too_old_is_named_with_what_it_lacks,
        a_sandbox_that_dies_is_made_anew,
    ],
}

/// A pod that runs, and still the same one after `work`.
async fn stays_through(bed: &Bed, work: impl AsyncFnOnce()) {
    let pod = Pod::new(bed, cluster(), "bulkhead", "echo $$ >/tmp/x; sleep 1000")
        .and("second", "sleep 1000")
        .up()
        .await;
    let shims = processes::of(Role::Shim, "");
    work().await;
    assert_eq!(processes::of(Role::Shim, ""), shims, "the same shim");
    // A kubelet that has just come up does not know its pods at once.
    let file = ["exec", pod.name.as_str(), "--", "test", "-e", "/tmp/x"];
    let limit = Duration::from_secs(60);
    cluster()
        .until("exec", limit, &file, |answer| answer.code == 0)
        .await;
    let counts = "{.status.containerStatuses[*].restartCount}";
    assert_eq!(pod.get(counts).await, "0 0");
    let next = Pod::new(bed, cluster(), "bulkhead", "echo next");
    assert_eq!(next.end().await, "Succeeded");
    next.delete().await;
    pod.delete().await;
}

async fn a_kubelet_that_is_restarted_finds_its_pods(bed: &Bed) {
    stays_through(bed, async || {
        cluster().kill_kubelet();
        cluster().start_kubelet(bed, PLENTY).await;
    })
    .await;
}

async fn a_containerd_that_is_restarted_finds_its_pods(bed: &Bed) {
    stays_through(bed, async || {
        bed.kill_containerd();
        bed.start_containerd().await;
        cluster().ready().await;
    })
    .await;
}

/// A pod of a class that cannot work: an event names it, the node stays ready all the time, a pod that was there is not
/// touched, and another one runs.
async fn is_told(bed: &Bed, class: &str, words: &[&str]) {
    let neighbour = Pod::new(bed, cluster(), "bulkhead", "sleep 1000")
        .up()
        .await;
    let started = neighbour.get(RUNNING).await;
    let ready_since = cluster().ready_since().await;
    let pod = Pod::new(bed, cluster(), class, "true");
    pod.apply().await;
    let event = pod.event("FailedCreatePodSandBox").await;
    for word in words {
        assert!(event.contains(word), "{word:?} is not in: {event}");
    }
    let other = Pod::new(bed, cluster(), "bulkhead", "true");
    assert_eq!(other.end().await, "Succeeded");
    other.delete().await;
    assert_eq!(cluster().ready_since().await, ready_since);
    assert_eq!(neighbour.get(RUNNING).await, started);
    assert!(started.starts_with("0 true "), "{started}");
    pod.delete().await;
    neighbour.delete().await;
}

/// How often a pod's container was started anew, whether it runs, and since when.
const RUNNING: &str = "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready} \
                       {.status.containerStatuses[0].state.running.startedAt}";

async fn a_class_without_a_handler_is_named(bed: &Bed) {
    is_told(bed, "no-handler", &["no-handler", "no runtime"]).await;
}

async fn a_handler_without_a_binary_is_named(bed: &Bed) {
    is_told(
        bed,
        "no-binary",
        &["io.containerd.absent.v1", "not installed"],
    )
    .await;
}

async fn a_policy_that_does_not_parse_is_named_with_its_line(bed: &Bed) {
    is_told(
        bed,
        "broken-policy",
        &["/etc/handlers/broken.toml", "line 1", "netwrok"],
    )
    .await;
}

async fn a_runsc_that_is_too_old_is_named_with_what_it_lacks(bed: &Bed) {
    is_told(bed, "old-runsc", &["old-runsc", "allow_old_runsc"]).await;
}

async fn a_sandbox_that_dies_is_made_anew(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000")
        .with("/restartPolicy", json!("Always"))
        .up()
        .await;
    assert_eq!(processes::kill_role(Role::Sandbox, ""), 1);
    pod.until("{.status.containerStatuses[0].restartCount}", |text| {
        text != "0" && !text.is_empty()
    })
    .await;
    pod.until("{.status.containerStatuses[0].ready}", |text| {
        text == "true"
    })
    .await;
    pod.exec("main", &["true"]).await.ok();
    tokio::time::sleep(Duration::from_millis(100)).await;
    pod.delete().await;
}
