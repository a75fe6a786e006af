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
mod tests;
