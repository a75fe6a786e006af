//! Binds: which folders of the host a container may have.
//!
//! Some it never has. Beyond that it depends on who asks: a client of containerd's socket is root on the node and gets what
//! it names, while the author of a pod is not, and gets the pod's own volumes and what the policy lists.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::never::Never;
use crate::origins::{self, Origin};
use crate::pod::{self, Shared};
use crate::policy::Policy;
use crate::report::Refusal;
use crate::spec::{Caller, Context};

/// Where containerd's CRI plugin keeps its files, below containerd's root and below its state (`plugins/cri/runtime` in
/// containerd).
const CRI: &str = "io.containerd.grpc.v1.cri";

/// What of a pod's folder in the kubelet's it may bind: its volumes, its hosts file, its termination logs.
const OF_THE_POD: [&str; 3] = ["volumes", "etc-hosts", "containers"];
/// Where the kubelet binds the part of a volume that a `subPath` names (`pkg/volume/util/subpath` in Kubernetes). It does so
/// for every kind of volume, so what is there may as well be of the host.
const PARTS: &str = "volume-subpaths";

/// How a folder may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// As the request says.
    AsAsked,
    /// To read, whatever the request says.
    ReadOnly,
}

/// The rules for the binds of one container.
#[derive(Debug)]
pub(crate) struct Binds {
    never: Never,
    /// Folders without links, with all that is below them; `None` where the client is root on the node.
    places: Option<Vec<(PathBuf, Access)>>,
    /// The pod's folder without links, where a pod asks.
    pod: Option<PathBuf>,
    origin: fn(&Path) -> Option<Origin>,
    mounted_below: fn(&Path) -> Vec<Origin>,
}

impl Binds {
    pub(crate) fn new(spec: &Map<String, Value>, policy: &Policy, context: &Context<'_>) -> Self {
        let caller = context.caller(spec);
        let pod = pod::folder(spec, policy).filter(|_| caller == Caller::Kubernetes);
        let pod = pod.map(|folder| (context.host.resolve)(&folder).unwrap_or(folder));
        let places = match caller {
            Caller::Node => None,
            Caller::Kubernetes => Some(places(pod.as_deref(), policy, context)),
        };
        Self {
            never: Never::new(policy, &context.host),
            places,
            pod,
            origin: context.host.origin,
            mounted_below: context.host.mounted_below,
        }
    }

    /// Judges a folder by its name without `..`, and by where its links lead, if it is there. `shared` is what the pod's
    /// sandbox has inside.
    ///
    /// # Errors
    /// `PermissionDenied`, with the rule; `asked` says what was asked for.
    pub(crate) fn judge(
        &self,
        source: &Path,
        real: Option<&Path>,
        shared: &Shared,
        asked: &str,
    ) -> Result<Access, Refusal> {
        for path in std::iter::once(source).chain(real) {
            if let Some(rule) = self.never.rule(path) {
                return Err(Refusal::denied("binds", asked, rule, None));
            }
        }
        let Some(places) = &self.places else {
            return Ok(Access::AsAsked);
        };
        let real = real.unwrap_or(source);
        let parts = self.pod.as_ref().map(|pod| pod.join(PARTS));
        if parts.is_some_and(|parts| real.starts_with(parts)) {
            return self.judge_part(real, shared, asked);
        }
        let found = places.iter().find(|(folder, _)| real.starts_with(folder));
        found.map(|(_, access)| *access).ok_or_else(|| {
            let rule = "a pod has its own volumes alone, no hostPath";
            Refusal::denied("binds", asked, rule, Some("binds.read_only"))
        })
    }

    /// Judges what is mounted where the kubelet binds parts of volumes, by what it is a part of: the name there is the pod
    /// author's.
    fn judge_part(&self, part: &Path, shared: &Shared, asked: &str) -> Result<Access, Refusal> {
        let denied = |rule: String| Err(Refusal::denied("binds", asked, rule, None));
        let volumes = self.pod.as_ref().map(|pod| pod.join("volumes"));
        let Some((origin, volumes)) = (self.origin)(part).zip(volumes) else {
            return denied("a subPath whose volume cannot be told is not given".to_owned());
        };
        // Content of a shared volume is inside the sandbox: the host's folder has none.
        if let Some(volume) = shared.volume_around(&origin, self.origin) {
            return denied(format!(
                "subPath of the empty-dir volume {} is not supported: mount the volume whole",
                volume.source.display()
            ));
        }
        let own = origins::of_all_in(&volumes, self.origin, self.mounted_below);
        if own.iter().any(|folder| origin.is_in(folder)) {
            return Ok(Access::AsAsked);
        }
        denied(
            "a subPath is given of the pod's own volumes, never of a hostPath: \
             where the policy lists the folder, name it as the hostPath itself"
                .to_owned(),
        )
    }
}

/// What a pod may bind: what is its own in the kubelet's folder for it, what containerd made for its sandbox and this
/// container, and what the policy lists.
fn places(pod: Option<&Path>, policy: &Policy, context: &Context<'_>) -> Vec<(PathBuf, Access)> {
    let mut own: Vec<PathBuf> = pod
        .into_iter()
        .flat_map(|pod| OF_THE_POD.map(|name| pod.join(name)))
        .collect();
    // STATE/io.containerd.runtime.v2.task/NAMESPACE/ID is the bundle, and its `work` links to the same below the root.
    let base = |bundle: &Path| bundle.ancestors().nth(3).map(|base| base.join(CRI));
    let work = (context.host.resolve)(&context.bundle.join("work"));
    for cri in [base(context.bundle), work.as_deref().and_then(base)]
        .into_iter()
        .flatten()
    {
        own.push(cri.join("sandboxes").join(context.sandbox_id));
        own.push(cri.join("image-volumes").join(context.sandbox_id));
        // Volumes that the image declares.
        own.push(cri.join("containers").join(context.id).join("volumes"));
    }
    let writable = own.into_iter().chain(policy.binds.writable.clone());
    let read_only = policy.binds.read_only.clone().into_iter();
    let all = writable
        .map(|path| (path, Access::AsAsked))
        .chain(read_only.map(|path| (path, Access::ReadOnly)));
    all.map(|(path, access)| ((context.host.resolve)(&path).unwrap_or(path), access))
        .collect()
}

#[cfg(test)]
mod tests {
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
}
