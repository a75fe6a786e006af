//! What a pod may not have: each refusal is an event that names what was asked and the rule.

use integration::bed::Bed;
use integration::cases;
use integration::kubernetes::Pod;
use integration::runtime::Needs;
use serde_json::{Value, json};

use crate::cluster;

cases! {
    Needs::Bulkhead => [
        the_hosts_network_is_refused,
        the_hosts_processes_are_refused,
        a_shared_process_namespace_is_refused,
        a_debugger_that_shares_a_containers_processes_is_refused,
        a_user_namespace_is_refused,
        a_privileged_container_is_refused,
        a_folder_of_the_host_is_refused,
        a_part_of_a_folder_of_the_host_is_refused,
        a_network_that_the_namespace_is_not_granted_is_refused,
    ],
}

/// Applies the pod, expects an event with all of `words`, and sees that no container of it has run.
async fn is_refused(pod: Pod<'_>, words: &[&str]) {
    pod.apply().await;
    let event = pod.event(words[0]).await;
    for word in words {
        assert!(event.contains(word), "{word:?} is not in: {event}");
    }
    let started = "{.status.containerStatuses[0].state.running.startedAt}";
    assert_eq!(pod.get(started).await, "");
    pod.delete().await;
}

fn asking(bed: &Bed, pointer: &str, value: Value) -> Pod<'static> {
    Pod::new(bed, cluster(), "bulkhead", "sleep 1000").with(pointer, value)
}

async fn the_hosts_network_is_refused(bed: &Bed) {
    let pod = asking(bed, "/hostNetwork", json!(true));
    is_refused(pod, &["FailedCreatePodSandBox", "hostNetwork"]).await;
}

async fn the_hosts_processes_are_refused(bed: &Bed) {
    let pod = asking(bed, "/hostPID", json!(true));
    is_refused(pod, &["FailedCreatePodSandBox", "hostPID"]).await;
}

async fn a_shared_process_namespace_is_refused(bed: &Bed) {
    let pod = asking(bed, "/shareProcessNamespace", json!(true));
    is_refused(pod, &["Failed", "shareProcessNamespace"]).await;
}

/// `kubectl debug`: a container beside a running one, and one that wants its processes.
async fn a_debugger_that_shares_a_containers_processes_is_refused(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000")
        .up()
        .await;
    pod.debug("beside", None, "echo beside").await;
    let ended = "{.status.ephemeralContainerStatuses[?(@.name=='beside')].state.terminated.reason}";
    pod.until(ended, |reason| reason == "Completed").await;
    assert_eq!(pod.logs("beside").await, "beside\n");
    pod.debug("within", Some("main"), "echo beside").await;
    let event = pod.event("shareProcessNamespace").await;
    assert!(event.contains("kubernetes.share_processes"), "{event}");
    assert_eq!(
        pod.get("{.status.containerStatuses[0].ready}").await,
        "true"
    );
    let within = "{.status.ephemeralContainerStatuses[?(@.name=='within')].state.running}";
    assert_eq!(pod.get(within).await, "");
    pod.delete().await;
}

/// The kubelet asks containerd, which asks the shim, whether the handler has them.
async fn a_user_namespace_is_refused(bed: &Bed) {
    let pod = asking(bed, "/hostUsers", json!(false));
    is_refused(pod, &["user namespaces"]).await;
}

async fn a_privileged_container_is_refused(bed: &Bed) {
    let pod = asking(
        bed,
        "/containers/0/securityContext",
        json!({ "privileged": true }),
    );
    is_refused(pod, &["Failed", "privileged"]).await;
}

async fn a_folder_of_the_host_is_refused(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000").volume(
        "host",
        "/host",
        &json!({ "hostPath": { "path": "/etc" } }),
    );
    is_refused(pod, &["Failed", "/etc", "binds.read_only"]).await;
}

async fn a_part_of_a_folder_of_the_host_is_refused(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000").volume(
        "host",
        "/host",
        &json!({ "hostPath": { "path": "/" } }),
    );
    let pod = pod.with("/containers/0/volumeMounts/0/subPath", json!("etc"));
    is_refused(pod, &["Failed", "volume-subpaths"]).await;
}

async fn a_network_that_the_namespace_is_not_granted_is_refused(bed: &Bed) {
    let mut pod = Pod::new(bed, cluster(), "bulkhead", "sleep 1000");
    pod.manifest["metadata"]["annotations"] = json!({ "dev.bulkhead.network": "sandbox" });
    is_refused(
        pod,
        &["FailedCreatePodSandBox", "kubernetes.namespaces.default"],
    )
    .await;
}
