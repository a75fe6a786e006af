//! What a pod asks for by its annotations, and gets where its namespace is granted it.

use integration::bed::Bed;
use integration::cases;
use integration::cri::Pod;
use integration::policy::NodePolicy;
use integration::runtime::Needs;
use k8s_cri::v1::PodSandboxConfig;

cases! {
    Needs::Bulkhead => [
        a_pod_gets_what_it_asks_for_and_its_namespace_is_granted,
        a_pod_of_another_namespace_is_refused_by_name,
        an_unknown_request_is_refused_by_name,
    ],
}

const GRANT: &str = "[kubernetes.namespaces.default]\nnetwork = \"sandbox\"\nscratch_exec = true\n";

fn asking(bed: &Bed, annotations: &[(&str, &str)]) -> PodSandboxConfig {
    let mut config = Pod::config(bed);
    let annotations = annotations
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    config.annotations.extend(annotations);
    config
}

/// The network devices that a container of the pod sees, and whether it may run a program from /tmp.
async fn seen(pod: &Pod) -> (String, bool) {
    let script =
        "tail -n +3 /proc/net/dev | cut -d: -f1; cp /bin/busybox /tmp/x; /tmp/x true && echo runs";
    let id = pod.launch(pod.shell("main", script)).await.expect("launch");
    pod.ended(&id).await;
    let log = pod.log("main");
    (log.clone(), log.contains("runs"))
}

async fn a_pod_gets_what_it_asks_for_and_its_namespace_is_granted(bed: &Bed) {
    let _policy = NodePolicy::set(GRANT);
    let network = ("dev.bulkhead.network", "sandbox");
    let pod = Pod::run(asking(bed, &[network])).await.expect("run");
    let (log, runs) = seen(&pod).await;
    assert!(log.contains("eth0") && !runs, "{log}");
    pod.remove().await;
    let silent = Pod::run(asking(bed, &[])).await.expect("run");
    let (log, runs) = seen(&silent).await;
    assert!(!log.contains("eth0") && !runs, "not asked for: {log}");
    silent.remove().await;
}

async fn a_pod_of_another_namespace_is_refused_by_name(bed: &Bed) {
    let _policy = NodePolicy::set(GRANT);
    let mut config = asking(bed, &[("dev.bulkhead.network", "sandbox")]);
    config.metadata.as_mut().expect("metadata").namespace = "other".into();
    // What containerd writes after what a pod can pass.
    let forged = "io.kubernetes.cri.sandbox-namespace".to_owned();
    config.annotations.insert(forged, "default".into());
    let error = Pod::run(config).await.expect_err("refused");
    assert!(
        error.message().contains("kubernetes.namespaces.other"),
        "{error:?}"
    );
    let error = Pod::run(asking(bed, &[("dev.bulkhead.rootfs", "writable")])).await;
    let error = error.expect_err("not in the grant");
    assert!(error.message().contains("dev.bulkhead.rootfs"), "{error:?}");
}

async fn an_unknown_request_is_refused_by_name(bed: &Bed) {
    let error = Pod::run(asking(bed, &[("dev.bulkhead.netwrok", "sandbox")])).await;
    let error = error.expect_err("refused");
    assert!(
        error.message().contains("dev.bulkhead.netwrok"),
        "{error:?}"
    );
}
