//! Pods whose containers see each other's processes (`shareProcessNamespace`), where the policy lets them.

use integration::bed::Bed;
use integration::cases;
use integration::cri::Pod;
use integration::policy::NodePolicy;
use integration::runtime::Needs;
use k8s_cri::v1::{ContainerConfig, NamespaceMode};

cases! {
    Needs::Bulkhead => [
        containers_that_share_processes_see_and_signal_each_other,
        a_pod_that_does_not_ask_shares_no_processes,
    ],
}

const SHARING: &str = "kubernetes.share_processes = true";
/// A number of seconds that no other program of a test sleeps.
const MARK: &str = "86397";

/// As the kubelet asks for a container of a pod with `shareProcessNamespace`.
fn sharing(mut container: ContainerConfig) -> ContainerConfig {
    let linux = container.linux.as_mut().expect("linux");
    let context = linux.security_context.as_mut().expect("security context");
    let namespaces = context.namespace_options.as_mut().expect("namespaces");
    namespaces.pid = NamespaceMode::Pod.into();
    container
}

/// The programs that a container of the pod sees, its own left out.
async fn seen(pod: &Pod, id: &str) -> String {
    let script = "for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || { echo -n ${p#/proc/}:; tr '\\0' ' ' < $p/cmdline; }; done";
    let (code, text) = pod.exec(id, &["sh", "-c", script]).await;
    assert_eq!(code, 0, "{text}");
    text
}

async fn containers_that_share_processes_see_and_signal_each_other(bed: &Bed) {
    let _policy = NodePolicy::set(SHARING);
    let mut config = Pod::config(bed);
    let linux = config.linux.as_mut().expect("linux");
    let context = linux.security_context.as_mut().expect("security context");
    let namespaces = context.namespace_options.as_mut().expect("namespaces");
    namespaces.pid = NamespaceMode::Pod.into();
    let pod = Pod::run(config).await.expect("run");
    let first = pod
        .launch(sharing(pod.container("first", &["sleep", MARK])))
        .await
        .expect("launch");
    let second = pod
        .launch(sharing(pod.container("second", &["sleep", "86398"])))
        .await
        .expect("launch");
    let programs = seen(&pod, &second).await;
    // The pod's own is the first process, and outlives each container.
    assert!(programs.contains("1:sleep 2147483647"), "{programs}");
    assert!(programs.contains(&format!("sleep {MARK}")), "{programs}");
    let (before, _) = programs
        .split_once(&format!(":sleep {MARK}"))
        .expect("seen");
    let pid = before.rsplit(' ').next().expect("a pid");
    let (code, text) = pod.exec(&second, &["kill", "-TERM", pid]).await;
    assert_eq!(code, 0, "{text}");
    assert_eq!(pod.ended(&first).await.exit_code, 128 + 15);
    // One container's end is nobody else's, and one that comes later shares as well.
    let third = pod
        .launch(sharing(pod.container("third", &["sleep", "86399"])))
        .await
        .expect("launch");
    let programs = seen(&pod, &third).await;
    assert!(programs.contains("sleep 86398"), "{programs}");
    assert!(!programs.contains(&format!("sleep {MARK}")), "{programs}");
    pod.remove().await;
}

async fn a_pod_that_does_not_ask_shares_no_processes(bed: &Bed) {
    let _policy = NodePolicy::set(SHARING);
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let first = pod
        .launch(pod.container("first", &["sleep", MARK]))
        .await
        .expect("launch");
    let second = pod
        .launch(pod.container("second", &["sleep", "86398"]))
        .await
        .expect("launch");
    for (id, own, other) in [(&first, MARK, "86398"), (&second, "86398", MARK)] {
        let programs = seen(&pod, id).await;
        assert!(programs.contains(&format!("1:sleep {own}")), "{programs}");
        assert!(!programs.contains(other), "{programs}");
    }
    pod.remove().await;
}
