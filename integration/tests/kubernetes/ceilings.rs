//! What the example policies for images that want more give a pod: docs/policies/ordinary.toml, and compat.toml beyond it.

use integration::bed::Bed;
use integration::cases;
use integration::kubernetes::Pod;
use integration::runtime::Needs;
use serde_json::json;

use crate::cluster;

cases! {
    Needs::Bulkhead => [
        an_ordinary_image_has_root_and_its_profile,
        a_pod_without_a_profile_mounts_under_compat,
        containers_see_each_others_processes,
        a_debugger_sees_the_processes_of_its_pod,
    ],
}

/// Writes to the root and becomes another user, and tries what only an unrestricted container may.
const PROGRAM: &str = "echo x >/etc/new && chown 1000 /etc/new && su -s /bin/sh nobody -c 'id -u'; \
    hostname changed 2>/dev/null && hostname; mkdir /in; mount -t tmpfs none /in 2>/dev/null && echo mounted; \
    grep Seccomp: /proc/self/status";

/// As a pod that says nothing of a profile, and one that says it wants none.
fn asking<'a>(bed: &Bed, class: &str) -> [Pod<'a>; 2] {
    let all = json!({ "add": ["SYS_ADMIN"] });
    [
        json!({ "capabilities": all }),
        json!({ "capabilities": all, "seccompProfile": { "type": "Unconfined" } }),
    ]
    .map(|context| {
        Pod::new(bed, cluster(), class, PROGRAM).with("/containers/0/securityContext", context)
    })
}

async fn an_ordinary_image_has_root_and_its_profile(bed: &Bed) {
    for pod in asking(bed, "bulkhead-ordinary") {
        assert_eq!(pod.end().await, "Succeeded");
        assert_eq!(pod.logs("main").await, "65534\nSeccomp:\t2\n");
        pod.delete().await;
    }
}

async fn a_pod_without_a_profile_mounts_under_compat(bed: &Bed) {
    for pod in asking(bed, "bulkhead-compat") {
        assert_eq!(pod.end().await, "Succeeded");
        let free = "65534\nchanged\nmounted\nSeccomp:\t0\n";
        assert_eq!(pod.logs("main").await, free);
        pod.delete().await;
    }
    let profile = json!({ "capabilities": { "add": ["SYS_ADMIN"] }, "seccompProfile": { "type": "RuntimeDefault" } });
    let pod = Pod::new(bed, cluster(), "bulkhead-compat", PROGRAM)
        .with("/containers/0/securityContext", profile);
    assert_eq!(pod.end().await, "Succeeded");
    assert_eq!(pod.logs("main").await, "65534\nchanged\nSeccomp:\t2\n");
    pod.delete().await;
}

/// Whether a process of `other` is among those that are seen. What looks does not match its own words.
const LOOK: &str =
    "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep 123[4]' && echo other is seen";

async fn containers_see_each_others_processes(bed: &Bed) {
    for class in ["bulkhead-ordinary", "bulkhead-compat"] {
        let pod = Pod::new(bed, cluster(), class, "sleep 4321")
            .and("other", "sleep 1234")
            .with("/shareProcessNamespace", json!(true))
            .up()
            .await;
        let seen = pod.exec("main", &["sh", "-c", LOOK]).await;
        assert_eq!(seen.text(), "other is seen\n");
        pod.delete().await;
    }
}

/// `kubectl debug --target`: what is of the pod, not of the target alone.
async fn a_debugger_sees_the_processes_of_its_pod(bed: &Bed) {
    let pod = Pod::new(bed, cluster(), "bulkhead-ordinary", "sleep 4321")
        .and("other", "sleep 1234")
        .up()
        .await;
    pod.debug("debugger", Some("main"), LOOK).await;
    let code =
        "{.status.ephemeralContainerStatuses[?(@.name=='debugger')].state.terminated.exitCode}";
    assert_eq!(pod.until(code, |code| !code.is_empty()).await, "0");
    assert_eq!(pod.logs("debugger").await, "other is seen\n");
    pod.delete().await;
}
