use super::*;
use crate::spec::tests::context;
use serde_json::json;

const UID: &str = "0b1c-22";

fn judged(policy: &Policy, context: &Context<'_>, source: &str) -> Result<Access, Refusal> {
    let annotations = json!({
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-uid": UID,
    });
    judged_for(Caller::Kubernetes, annotations, policy, context, source)
}

fn judged_for(
    caller: Caller,
    annotations: Value,
    policy: &Policy,
    context: &Context<'_>,
    source: &str,
) -> Result<Access, Refusal> {
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
    Binds::new(&spec, policy, caller, context).judge(source, real.as_deref(), &shared, "x")
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
        // Of these the logs alone, which the kubelet makes.
        "/var/lib/kubelet/pods/0b1c-22/containers",
        "/var/lib/kubelet/pods/0b1c-22/containers/main",
        "/var/lib/kubelet/pods/0b1c-22/containers/main/1a2b/x",
        "/var/lib/kubelet/pods/other/containers/main/1a2b",
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

/// Whoever asks: what is there is on the node's disk.
#[test]
fn what_engines_make_for_a_container_to_write_is_written_to_a_copy() {
    let mut moved = Policy::strict();
    moved.kubernetes.kubelet_root = "/srv/kubelet".into();
    let writes = |caller, policy: &Policy, source: &str| {
        let annotations = json!({ "io.kubernetes.cri.sandbox-uid": UID });
        let spec = Map::from_iter([("annotations".to_owned(), annotations)]);
        Binds::new(&spec, policy, caller, &in_kubernetes()).writes(Path::new(source))
    };
    for (source, expected) in [
        (
            "/var/lib/kubelet/pods/0b1c-22/containers/main/1a2b",
            Writes::Told,
        ),
        (
            "/var/lib/kubelet/pods/other/containers/main/1a2b",
            Writes::Told,
        ),
        ("/var/lib/kubelet/pods/0b1c-22/etc-hosts", Writes::Copy),
        (
            "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/hostname",
            Writes::Copy,
        ),
        (
            "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/resolv.conf",
            Writes::Copy,
        ),
        (
            "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/s1/shm",
            Writes::Host,
        ),
        (
            "/var/lib/kubelet/pods/0b1c-22/volumes/kubernetes.io~csi/etc-hosts",
            Writes::Host,
        ),
        (
            "/var/lib/kubelet/pods/0b1c-22/volumes/v/containers/x/y",
            Writes::Host,
        ),
        (
            "/var/lib/kubelet/pods/0b1c-22/containers/main",
            Writes::Host,
        ),
        ("/srv/kubelet/pods/0b1c-22/etc-hosts", Writes::Host),
        ("/etc/hosts", Writes::Host),
    ] {
        for caller in [Caller::Kubernetes, Caller::Foreign, Caller::Node] {
            let found = writes(caller, &Policy::strict(), source);
            assert_eq!(found, expected, "{source} of {caller:?}");
        }
    }
    let found = writes(
        Caller::Kubernetes,
        &moved,
        "/srv/kubelet/pods/0b1c-22/etc-hosts",
    );
    assert_eq!(found, Writes::Copy);
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
    let binds = Binds::new(&spec, &policy, Caller::Kubernetes, &context);
    binds
        .judge(Path::new("/etc"), None, &Shared::default(), "x")
        .expect_err("refused");
}

#[test]
fn a_client_of_containerds_socket_gets_what_it_names() {
    let (mut policy, context) = (Policy::strict(), context());
    let named = |caller, policy: &Policy, source| {
        let annotations = json!({ "io.kubernetes.cri.sandbox-uid": UID });
        judged_for(caller, annotations, policy, &context, source)
    };
    let own = named(Caller::Node, &policy, "/home/u/work");
    assert_eq!(own, Ok(Access::AsAsked));
    // What another engine says of a pod is nothing that anybody can check, its uid included.
    policy.binds.read_only = vec!["/srv/models".into()];
    for source in ["/home/u/work", "/var/lib/kubelet/pods/0b1c-22/volumes/v"] {
        named(Caller::Foreign, &policy, source).expect_err(source);
    }
    let models = named(Caller::Foreign, &policy, "/srv/models");
    assert_eq!(models, Ok(Access::ReadOnly));
}

const POD: &str = "/var/lib/kubelet/pods/0b1c-22";

/// An NFS server of which the pod has a claim. Whatever is mounted of it, the kernel says that it is the root.
fn with_nfs() -> Context<'static> {
    let mut context = with_mounts();
    context.host.origin = |path| {
        let is_part = path.starts_with(Path::new(POD).join(PARTS));
        let (device, path) = if is_part {
            ("0:50", Path::new("/"))
        } else {
            ("8:1", path)
        };
        let (device, path) = (device.to_owned(), path.to_owned());
        Some(Origin { device, path })
    };
    context.host.mounted_below = |_| {
        let (device, path) = ("0:50".to_owned(), "/".into());
        vec![Origin { device, path }]
    };
    // The other pod has the same folder of the server.
    context.host.is_same = |one, other| {
        let number = |path: &Path| match path.to_str().expect("text") {
            path if path.contains("/volumes/") && !path.ends_with("different") => 1,
            path if path.contains("/whole/") => 1,
            path => path.len(),
        };
        number(one) == number(other)
    };
    context
}

/// What is mounted of it, beside the pod's claim and the part itself.
fn judged_with(points: fn(&str) -> Vec<PathBuf>, part: &str) -> Result<Access, Refusal> {
    let mut context = with_nfs();
    context.host.mount_points = points;
    let source = format!("{POD}/{PARTS}/{part}/c/0");
    judged(&Policy::strict(), &context, &source)
}

fn of_the_pod(more: &[&str]) -> Vec<PathBuf> {
    let own = [
        "volumes/kubernetes.io~nfs/claim",
        "volume-subpaths/claim/c/0",
    ];
    let own = own.iter().map(|name| Path::new(POD).join(name));
    own.chain(more.iter().map(PathBuf::from)).collect()
}

#[test]
fn a_sub_path_of_a_filesystem_that_hides_its_root_is_the_pods_while_nothing_else_of_it_is_mounted()
{
    assert_eq!(
        judged_with(|_| of_the_pod(&[]), "claim"),
        Ok(Access::AsAsked)
    );
    // Another pod with the same claim, and a subPath in it.
    let shared = |_: &str| {
        of_the_pod(&[
            "/var/lib/kubelet/pods/other/volumes/kubernetes.io~nfs/claim",
            "/var/lib/kubelet/pods/other/volume-subpaths/claim/c/0",
        ])
    };
    assert_eq!(judged_with(shared, "claim"), Ok(Access::AsAsked));
    let by_host = |_: &str| of_the_pod(&["/mnt/nfs"]);
    let of_another =
        |_: &str| of_the_pod(&["/var/lib/kubelet/pods/other/volumes/kubernetes.io~nfs/different"]);
    // Both names of a pod's, outside of the pods' folder.
    let by_name = |_: &str| of_the_pod(&["/mnt/volumes/nfs/x", "/mnt/volume-subpaths/x"]);
    // Parts of hostPaths, which stay where what they were parts of has been unmounted.
    let part_of_host = |_: &str| {
        vec![
            Path::new(POD).join("volumes/kubernetes.io~nfs/claim"),
            Path::new(POD).join("volume-subpaths/host/c/0"),
        ]
    };
    let of_anothers_host =
        |_: &str| of_the_pod(&["/var/lib/kubelet/pods/other/volume-subpaths/claim/c/0"]);
    for (points, named) in [
        (by_host as fn(&str) -> Vec<PathBuf>, "/mnt/nfs"),
        (of_another, "pods/other/volumes/kubernetes.io~nfs/different"),
        (by_name, "/mnt/volume-subpaths/x"),
        // Nobody knows where.
        (|_| Vec::new(), "volume-subpaths/claim/c/0"),
    ] {
        let refusal = judged_with(points, "claim").expect_err(named).to_string();
        assert!(
            refusal.contains("NFS") && refusal.contains(named),
            "{refusal}"
        );
    }
    for (points, part) in [
        (part_of_host as fn(&str) -> Vec<PathBuf>, "host"),
        (of_anothers_host, "claim"),
    ] {
        let refusal = judged_with(points, part).expect_err(part).to_string();
        assert!(refusal.contains("volume-subpaths"), "{refusal}");
    }
    // It is the volume as a whole.
    assert_eq!(judged_with(by_host, "whole"), Ok(Access::AsAsked));
}
