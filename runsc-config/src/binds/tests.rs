use super::*;
use crate::spec::tests::context;
use serde_json::json;

const UID: &str = "0b1c-22";

fn judged(policy: &Policy, context: &Context<'_>, source: &str) -> Result<Access, Refusal> {
    let annotations = json!({
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-uid": UID,
    });
    let spec = Map::from_iter([("annotations".to_owned(), annotations)]);
    let source = Path::new(source);
    let real = (context.host.resolve)(source);
    let shared = Shared {
        volumes: vec![pod::Volume {
            source: "/var/lib/kubelet/pods/0b1c-22/volumes/kubernetes.io~empty-dir/work".into(),
            in_memory: false,
            size: None,
        }],
        ..Shared::default()
    };
    Binds::new(&spec, policy, context).judge(source, real.as_deref(), &shared, "x")
}

fn in_kubernetes() -> Context<'static> {
    let mut context = context();
    context.namespace = "k8s.io";
    context.id = "c1";
    context.sandbox_id = "s1";
    context.bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s.io/c1");
    context.host.resolve = |path| match path.to_str()? {
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/c1/work" => {
            Some("/var/lib/containerd/io.containerd.runtime.v2.task/k8s.io/c1".into())
        }
        "/var/lib/kubelet/pods/0b1c-22/volumes/v/link" => Some("/etc/shadow".into()),
        "/srv/link" => Some("/srv/models/a".into()),
        _ => None,
    };
    context
}

#[test]
fn the_hosts_own_folders_are_never_given_to_anybody() {
    let mut everything = Policy::strict();
    everything.binds.writable = vec!["/".into()];
    for source in [
        "/",
        "/proc",
        "/proc/1",
        "/sys/fs/cgroup",
        "/dev/sda",
        "/run",
        "/var/run",
        "/run/docker.sock",
        "/var/run/containerd/containerd.sock",
        "/run/bulkhead",
        "/run/bulkhead/x",
    ] {
        for context in [context(), in_kubernetes()] {
            let refusal = judged(&everything, &context, source).expect_err(source);
            assert!(refusal.to_string().contains("never given"), "{refusal}");
        }
    }
}

#[test]
fn a_pod_has_its_own_volumes_alone() {
    let (policy, context) = (Policy::strict(), in_kubernetes());
    for source in [
        "/var/lib/kubelet/pods/0b1c-22/volumes/kubernetes.io~empty-dir/work",
        "/var/lib/kubelet/pods/0b1c-22/etc-hosts",
        "/var/lib/kubelet/pods/0b1c-22/containers/main/1a2b",
        "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/resolv.conf",
        "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/shm",
        "/var/lib/containerd/io.containerd.grpc.v1.cri/containers/c1/volumes/v",
    ] {
        let access = judged(&policy, &context, source);
        assert_eq!(access, Ok(Access::AsAsked), "{source}");
    }
    for source in [
        "/home",
        "/var/lib/kubelet",
        "/var/lib/kubelet/pods",
        "/var/lib/kubelet/pods/0b1c-222/volumes/v",
        "/var/lib/kubelet/pods/other/volumes/v",
        "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/s2/resolv.conf",
        "/var/lib/containerd/io.containerd.grpc.v1.cri/containers/c2/volumes/v",
        // In its folder and nothing that a pod mounts.
        "/var/lib/kubelet/pods/0b1c-22",
        "/var/lib/kubelet/pods/0b1c-22/plugins/x",
        // Its own by name, and somebody else's by where it leads.
        "/var/lib/kubelet/pods/0b1c-22/volumes/v/link",
    ] {
        let refusal = judged(&policy, &context, source).expect_err(source);
        assert!(
            refusal.to_string().contains("binds.read_only"),
            "{source}: {refusal}"
        );
    }
}

/// A disk with the kubelet's folder and the host's root on it, and a volume that is mounted.
fn with_mounts() -> Context<'static> {
    let mut context = in_kubernetes();
    context.host.origin = |path| {
        let on = |device: &str, path: &str| {
            Some(Origin {
                device: device.to_owned(),
                path: path.into(),
            })
        };
        let in_parts = path.strip_prefix("/var/lib/kubelet/pods/0b1c-22/volume-subpaths");
        match in_parts.ok().and_then(Path::to_str) {
            None => on("8:1", path.to_str()?),
            Some("settings/c/0") => on(
                "8:1",
                "/var/lib/kubelet/pods/0b1c-22/volumes/kubernetes.io~configmap/settings/..1/key",
            ),
            Some("claim/c/0") => on("8:16", "/data/a"),
            Some("other-claim/c/0") => on("8:16", "/datax"),
            Some("etc/c/0") => on("8:1", "/etc"),
            Some("root/c/0") => on("8:1", "/"),
            Some("secret/c/0") => on(
                "8:1",
                "/var/lib/kubelet/pods/other/volumes/kubernetes.io~secret/s",
            ),
            Some("disk/c/0") => on("8:2", "/var/lib/kubelet/pods/0b1c-22/volumes/x"),
            Some("part/c/0") => on(
                "8:1",
                "/var/lib/kubelet/pods/0b1c-22/volumes/kubernetes.io~empty-dir/work/a",
            ),
            Some(_) => None,
        }
    };
    context.host.mounted_below = |folder| {
        assert_eq!(
            folder,
            Path::new("/var/lib/kubelet/pods/0b1c-22/volumes"),
            "of another pod, or of the host"
        );
        let (device, path) = ("8:16".to_owned(), "/data".into());
        vec![Origin { device, path }]
    };
    context
}

#[test]
fn a_sub_path_is_judged_by_what_it_is_a_part_of() {
    let mut listing = Policy::strict();
    listing.binds.writable = vec!["/etc".into()];
    for policy in [Policy::strict(), listing] {
        for (part, rule) in [
            ("settings", None),
            ("claim", None),
            ("etc", Some("never of a hostPath")),
            ("root", Some("never of a hostPath")),
            ("secret", Some("never of a hostPath")),
            ("other-claim", Some("never of a hostPath")),
            ("disk", Some("never of a hostPath")),
            ("part", Some("empty-dir")),
            // Nothing is mounted there, or nobody knows what.
            ("none", Some("cannot be told")),
        ] {
            let source = format!("/var/lib/kubelet/pods/0b1c-22/volume-subpaths/{part}/c/0");
            let judged = judged(&policy, &with_mounts(), &source);
            match rule {
                None => assert_eq!(judged, Ok(Access::AsAsked), "{part}"),
                Some(rule) => {
                    let refusal = judged.expect_err(part).to_string();
                    assert!(
                        refusal.contains("subPath") && refusal.contains(rule),
                        "{part}: {refusal}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_the_policy_lists_is_given_as_it_says() {
    let text = "binds = { read_only = [\"/srv/models\"], writable = [\"/srv/results\"] }";
    let policy = Policy::parse(text, "x").expect("a policy");
    let context = in_kubernetes();
    for (source, access) in [
        ("/srv/models", Some(Access::ReadOnly)),
        ("/srv/models/a", Some(Access::ReadOnly)),
        ("/srv/link", Some(Access::ReadOnly)),
        ("/srv/results/1", Some(Access::AsAsked)),
        ("/srv/modelsx", None),
        ("/srv", None),
    ] {
        assert_eq!(judged(&policy, &context, source).ok(), access, "{source}");
    }
}

#[test]
fn a_pods_uid_that_is_a_path_gives_nothing() {
    let annotations = json!({
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-uid": "../../../..",
    });
    let spec = Map::from_iter([("annotations".to_owned(), annotations)]);
    let (policy, context) = (Policy::strict(), in_kubernetes());
    let binds = Binds::new(&spec, &policy, &context);
    binds
        .judge(Path::new("/etc"), None, &Shared::default(), "x")
        .expect_err("refused");
}

#[test]
fn a_client_of_containerds_socket_gets_what_it_names() {
    let (policy, context) = (Policy::strict(), context());
    assert_eq!(
        judged(&policy, &context, "/home/u/work"),
        Ok(Access::AsAsked)
    );
}
