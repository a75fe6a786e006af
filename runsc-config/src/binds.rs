//! Binds: which folders of the host a container may have.
//!
//! Some it never has. Beyond that it depends on who asks: a client of containerd's socket is root on the node and gets what
//! it names, while the author of a pod is not, and gets the pod's own volumes and what the policy lists.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::pod;
use crate::policy::Policy;
use crate::report::Refusal;
use crate::spec::{Caller, Context};

/// Folders that are never bound as a whole, by anybody: whoever has one of them has the host.
const NEVER: [&str; 6] = ["/", "/proc", "/sys", "/dev", "/run", "/var/run"];
/// Folders of the kernel: nothing below them is bound either.
const NEVER_BELOW: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Sockets that own the node, in either spelling of /run.
const NEVER_SOCKETS: [&str; 8] = [
    "containerd/containerd.sock",
    "containerd/containerd.sock.ttrpc",
    "containerd",
    "containerd/s",
    "docker.sock",
    "docker/containerd/containerd.sock",
    "crio/crio.sock",
    "k3s/containerd/containerd.sock",
];

/// Where containerd's CRI plugin keeps its files, below containerd's root and below its state (`plugins/cri/runtime` in
/// containerd).
const CRI: &str = "io.containerd.grpc.v1.cri";

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
pub(crate) struct Binds<'a> {
    runsc_root: &'a Path,
    sockets: &'a [PathBuf],
    /// Folders without links, with all that is below them; `None` where the client is root on the node.
    places: Option<Vec<(PathBuf, Access)>>,
}

impl<'a> Binds<'a> {
    pub(crate) fn new(
        spec: &Map<String, Value>,
        policy: &'a Policy,
        context: &'a Context<'_>,
    ) -> Self {
        let places = match context.caller(spec) {
            Caller::Node => None,
            Caller::Kubernetes => Some(places(spec, policy, context)),
        };
        Self {
            runsc_root: &policy.runsc().root,
            sockets: &context.host.sockets,
            places,
        }
    }

    /// Judges a folder by its name without `..`, and by where its links lead, if it is there.
    ///
    /// # Errors
    /// `PermissionDenied`, with the rule; `asked` says what was asked for.
    pub(crate) fn judge(
        &self,
        source: &Path,
        real: Option<&Path>,
        asked: &str,
    ) -> Result<Access, Refusal> {
        for path in std::iter::once(source).chain(real) {
            if let Some(rule) = never(path, self.runsc_root, self.sockets) {
                return Err(Refusal::denied("binds", asked, rule, None));
            }
        }
        let Some(places) = &self.places else {
            return Ok(Access::AsAsked);
        };
        let real = real.unwrap_or(source);
        let found = places.iter().find(|(folder, _)| real.starts_with(folder));
        found.map(|(_, access)| *access).ok_or_else(|| {
            let rule = "a pod has its own volumes alone, no hostPath";
            Refusal::denied("binds", asked, rule, Some("binds.read_only"))
        })
    }
}

/// What a pod may bind: its folder in the kubelet's, what containerd made for its sandbox and this container, and what the
/// policy lists.
fn places(
    spec: &Map<String, Value>,
    policy: &Policy,
    context: &Context<'_>,
) -> Vec<(PathBuf, Access)> {
    let mut own: Vec<PathBuf> = pod::folder(spec, policy).into_iter().collect();
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

/// Why a path of the host is never given.
fn never(path: &Path, runsc_root: &Path, sockets: &[PathBuf]) -> Option<String> {
    let text = path.to_str()?;
    if NEVER.contains(&text) || NEVER_BELOW.iter().any(|folder| path.starts_with(folder)) {
        return Some(format!("{text} of the host is never given to a sandbox"));
    }
    let socket = ["/run", "/var/run"]
        .iter()
        .find_map(|folder| path.strip_prefix(folder).ok()?.to_str());
    if socket.is_some_and(|socket| NEVER_SOCKETS.contains(&socket)) {
        return Some(format!(
            "{text} controls the node and is never given to a sandbox"
        ));
    }
    // Nor a folder that one of them is in.
    if sockets.iter().any(|socket| socket.starts_with(path)) {
        return Some(format!(
            "{text} controls the node and is never given to a sandbox"
        ));
    }
    // The root itself, what is in it, and what it is in.
    if path.starts_with(runsc_root) || runsc_root.starts_with(path) {
        return Some(format!(
            "{text} holds the control sockets of sandboxes and is never given to one"
        ));
    }
    None
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
        Binds::new(&spec, policy, context).judge(source, real.as_deref(), "x")
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
            .judge(Path::new("/etc"), None, "x")
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
