//! What a pod asks for by its annotations, and gets where its namespace is granted it.

use integration::bed::Bed;
use integration::cases;
use integration::cri::Pod;
use integration::policy::NodePolicy;
use integration::runtime::Needs;
use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{
    ContainerConfig, LinuxContainerSecurityContext as Security, PodSandboxConfig, SecurityProfile,
};

cases! {
    Needs::Bulkhead => [
        a_pod_gets_what_it_asks_for_and_its_namespace_is_granted,
        a_pod_of_another_namespace_is_refused_by_name,
        an_unknown_request_is_refused_by_name,
        a_masked_path_is_empty_in_its_container_alone,
        a_capability_of_a_newer_kernel_is_no_reason_to_refuse_a_pod,
        a_container_without_a_profile_has_none_where_the_policy_says_so,
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

fn security(container: &mut ContainerConfig) -> &mut Security {
    let linux = container.linux.as_mut().expect("linux");
    linux.security_context.as_mut().expect("security context")
}

/// What a script says in a container of this security context.
async fn said(pod: &Pod, name: &str, script: &str, change: impl FnOnce(&mut Security)) -> String {
    let mut container = pod.shell(name, script);
    change(security(&mut container));
    let id = pod.launch(container).await.expect("launch");
    pod.ended(&id).await;
    pod.log(name)
}

async fn a_masked_path_is_empty_in_its_container_alone(bed: &Bed) {
    const SCRIPT: &str = "exec 2>&1; wc -c </etc/passwd; ls /home/agent | wc -l";
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let open = said(&pod, "open", SCRIPT, |_| ()).await;
    let masked = said(&pod, "masked", SCRIPT, |security| {
        let paths = ["/etc/passwd", "/home", "/not/there"];
        security.masked_paths = paths.map(str::to_owned).into();
    });
    let masked = masked.await;
    let mut shared = pod.container("shared", &["true"]);
    security(&mut shared).masked_paths = vec!["/dev/shm/x".into()];
    let refused = pod.launch(shared).await.expect_err("refused");
    pod.remove().await;
    let said = "linux.maskedPaths: /dev/shm/x: is of a volume inside of the sandbox";
    assert!(refused.message().contains(said), "{refused:?}");
    assert!(!open.starts_with("0\n"), "{open}");
    assert!(masked.starts_with("0\n"), "{masked}");
}

async fn a_capability_of_a_newer_kernel_is_no_reason_to_refuse_a_pod(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let script = "grep CapBnd: /proc/self/status";
    let said = said(&pod, "later", script, |security| {
        let capabilities = security.capabilities.get_or_insert_default();
        capabilities.add_capabilities = ["LATER", "CHOWN"].map(str::to_owned).into();
    });
    assert_eq!(said.await, "CapBnd:\t0000000000000000\n");
    pod.remove().await;
}

async fn a_container_without_a_profile_has_none_where_the_policy_says_so(bed: &Bed) {
    const SCRIPT: &str =
        "exec 2>&1; grep Seccomp: /proc/self/status; unshare -U true && echo unshared";
    let profile = |profile_type: ProfileType| {
        move |security: &mut Security| {
            let localhost_ref = String::new();
            let profile_type = profile_type.into();
            security.seccomp = Some(SecurityProfile {
                profile_type,
                localhost_ref,
            });
        }
    };
    for (policy, unconfined) in [
        ("", "Seccomp:\t2\n"),
        ("allow_unconfined = true", "Seccomp:\t0\nunshared\n"),
    ] {
        let _policy = NodePolicy::set(policy);
        let pod = Pod::run(Pod::config(bed)).await.expect("run");
        let silent = said(&pod, "silent", SCRIPT, |_| ()).await;
        let open = said(&pod, "open", SCRIPT, profile(ProfileType::Unconfined)).await;
        let held = said(&pod, "held", SCRIPT, profile(ProfileType::RuntimeDefault)).await;
        pod.remove().await;
        for said in [silent, open] {
            assert!(
                said.ends_with(unconfined) || said.starts_with(unconfined),
                "{policy:?}: {said}"
            );
            assert_eq!(
                said.contains("unshared"),
                !policy.is_empty(),
                "{policy:?}: {said}"
            );
        }
        assert!(
            held.starts_with("Seccomp:\t2\n") && !held.contains("unshared"),
            "{policy:?}: {held}"
        );
    }
}
