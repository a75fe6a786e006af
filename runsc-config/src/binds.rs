//! Binds: which folders of the host a container may have.
//!
//! A sandbox never gets some folders. The rest depends on the caller. A client of containerd's socket is root on the node and
//! gets what it names. The author of a pod is not, and gets the pod's own volumes and what the policy lists.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::never::Never;
use crate::origins::{self, Origin};
use crate::pod::{self, Shared};
use crate::policy::{self, Policy};
use crate::report::Refusal;
use crate::spec::{Caller, Context};

/// Where containerd's CRI plugin keeps its files, below containerd's root and below its state (`plugins/cri/runtime` in
/// containerd).
const CRI: &str = "io.containerd.grpc.v1.cri";

/// What of a pod's folder in the kubelet's it may bind: its volumes and its hosts file. Its termination logs come to that.
const OF_THE_POD: [&str; 2] = [VOLUMES, HOSTS];
/// Where the kubelet has the volumes of a pod, but for what is a hostPath: `volumes/PLUGIN/NAME`.
const VOLUMES: &str = "volumes";
/// The pod's hosts file there.
const HOSTS: &str = "etc-hosts";
/// Where the kubelet makes a termination log for each start of a container: `containers/NAME/NUMBER`
/// (`pkg/kubelet/kuberuntime/kuberuntime_container.go` in Kubernetes).
const LOGS: &str = "containers";
/// The files that containerd makes for a sandbox.
const OF_A_SANDBOX: [&str; 3] = ["hostname", "hosts", "resolv.conf"];
/// Where the kubelet binds the part of a volume that a `subPath` names (`pkg/volume/util/subpath` in Kubernetes). It does so
/// for every kind of volume, so what is there may as well be of the host.
const PARTS: &str = "volume-subpaths";

/// What engines bind to write into every container, a file on the host's disk without a size each. A program takes them for the
/// root's own.
const OF_THE_ROOT: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// How a folder may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// As the request says.
    AsAsked,
    /// To read, whatever the request says.
    ReadOnly,
}

/// Where that goes which a container writes to a bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// To the host's own file or folder.
    Host,
    /// To a copy of the file, in memory and with a size. It goes with the container.
    Copy,
    /// The same, and the end of the copy becomes the content of the file before the container's exit is told.
    Told,
}

impl Writes {
    /// For the report.
    pub(crate) fn given(self) -> &'static str {
        match self {
            Self::Host => "as asked",
            Self::Copy => "a copy of 1 MiB in memory, which goes with the container",
            Self::Told => {
                "a file of 1 MiB in memory, whose last 4 KiB are written there when the container ends"
            }
        }
    }
}

/// The rules for the binds of one container.
#[derive(Debug)]
pub(crate) struct Binds {
    never: Never,
    /// Folders without links, with all that is below them; `None` where the client is root on the node.
    places: Option<Vec<(PathBuf, Access)>>,
    /// The pod's folder without links, where a pod asks.
    pod: Option<PathBuf>,
    /// Where the root is read-only, the policy key that decides so; an empty one where the request does.
    read_only_root: Option<&'static str>,
    /// The kubelet's folder of all pods, and what containerd made for this one's sandbox, without links.
    pods: PathBuf,
    sandbox: Vec<PathBuf>,
    origin: fn(&Path) -> Option<Origin>,
    mounted_below: fn(&Path) -> Vec<Origin>,
    mount_points: fn(&str) -> Vec<PathBuf>,
    is_same: fn(&Path, &Path) -> bool,
}

impl Binds {
    pub(crate) fn new(
        spec: &Map<String, Value>,
        policy: &Policy,
        caller: Caller,
        context: &Context<'_>,
    ) -> Self {
        let pod = pod::folder(spec, policy).filter(|_| caller == Caller::Kubernetes);
        let pod = pod.map(|folder| (context.host.resolve)(&folder).unwrap_or(folder));
        let places = match caller {
            Caller::Node => None,
            Caller::Kubernetes => Some(places(own(pod.as_deref(), context), policy, context)),
            Caller::Foreign => Some(places(Vec::new(), policy, context)),
        };
        let resolved = |path: PathBuf| (context.host.resolve)(&path).unwrap_or(path);
        let pods = pod
            .as_deref()
            .and_then(Path::parent)
            .map_or_else(|| resolved(pod::folders(policy)), Path::to_owned);
        let sandbox = of_cri(context).map(|cri| resolved(sandbox_files(&cri, context)));
        Self {
            never: Never::new(policy, &context.host),
            places,
            read_only_root: read_only_root(spec, policy),
            pods,
            sandbox: sandbox.collect(),
            pod,
            origin: context.host.origin,
            mounted_below: context.host.mounted_below,
            mount_points: context.host.mount_points,
            is_same: context.host.is_same,
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
        let is_own = self.pod.as_ref().is_some_and(|pod| real.starts_with(pod));
        if is_own && self.writes(real) == Writes::Told {
            return Ok(Access::AsAsked);
        }
        let found = places.iter().find(|(folder, _)| real.starts_with(folder));
        found.map(|(_, access)| *access).ok_or_else(|| {
            let rule = if self.pod.is_some() {
                "a pod has its own volumes alone, no hostPath"
            } else {
                "a pod that is not the kubelet's by containerd (CRI-O's, cri-dockerd's) has no volumes"
            };
            Refusal::denied("binds", asked, rule, Some("binds.read_only"))
        })
    }

    /// The policy key, or an empty one, by which a bind at this place is read-only whatever the request says.
    pub(crate) fn read_only_key(&self, destination: &Path) -> Option<&'static str> {
        let mut places = OF_THE_ROOT.iter().map(Path::new);
        self.read_only_root
            .filter(|_| places.any(|place| place == destination))
    }

    /// Where that goes which is written to a bind, by its source without links, whoever asks. What the kubelet and containerd make
    /// for a container are small files on the node's disk, without a size, and no limit counts them.
    pub(crate) fn writes(&self, source: &Path) -> Writes {
        let of_pods = source.strip_prefix(&self.pods).ok();
        let names: Vec<_> = of_pods.into_iter().flatten().collect();
        match names.as_slice() {
            [_, hosts] if *hosts == HOSTS => return Writes::Copy,
            [_, logs, _, _] if *logs == LOGS => return Writes::Told,
            _ => {}
        }
        let mut of_containerd = self
            .sandbox
            .iter()
            .flat_map(|folder| OF_A_SANDBOX.map(|name| folder.join(name)));
        if of_containerd.any(|file| file == source) {
            Writes::Copy
        } else {
            Writes::Host
        }
    }

    /// Judges what is mounted where the kubelet binds parts of volumes, by what it is a part of: the name there is the pod
    /// author's.
    fn judge_part(&self, part: &Path, shared: &Shared, asked: &str) -> Result<Access, Refusal> {
        let denied = |rule: String| Err(Refusal::denied("binds", asked, rule, None));
        let volumes = self.pod.as_ref().map(|pod| pod.join(VOLUMES));
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
        let mut own = origins::of_all_in(&volumes, self.origin, self.mounted_below);
        own.retain(|folder| origin.is_in(folder));
        if own.is_empty() {
            return denied(
                "a subPath is given of the pod's own volumes, never of a hostPath: \
                 if the policy lists the folder, name it as the hostPath itself"
                    .to_owned(),
            );
        }
        // What has another place than the volume was told apart by its filesystem. NFS says of every folder that it is the root.
        if own.iter().any(|folder| *folder != origin) {
            return Ok(Access::AsAsked);
        }
        match self.mounted_elsewhere(part, &origin, &volumes) {
            None => Ok(Access::AsAsked),
            Some(point) => denied(format!(
                "a subPath is refused on a filesystem that does not show which part of it is mounted, as NFS, while another \
                 part is mounted on the node: {}; mount the volume whole",
                point.display()
            )),
        }
    }

    /// Where else than in the pod's volumes a filesystem is mounted that does not tell its parts apart: the part may be of there.
    /// None where it is a volume of the pod's as a whole.
    fn mounted_elsewhere(&self, part: &Path, origin: &Origin, volumes: &Path) -> Option<PathBuf> {
        let points = (self.mount_points)(&origin.device);
        let own: Vec<&PathBuf> = points.iter().filter(|p| p.starts_with(volumes)).collect();
        let is_own = |path: &Path| own.iter().any(|own| (self.is_same)(own, path));
        if own.is_empty() {
            return Some(part.to_owned());
        }
        if is_own(part) {
            return None;
        }
        let pods = self.pod.as_ref().and_then(|pod| pod.parent());
        let below = |point: &Path| -> Vec<OsString> {
            let of_pods = pods.and_then(|pods| point.strip_prefix(pods).ok());
            of_pods.into_iter().flatten().map(OsStr::to_owned).collect()
        };
        let is_volume = |pod: &OsStr, name: &OsStr| {
            points.iter().any(|point| match below(point).as_slice() {
                [its, volumes, _, its_name, ..] => {
                    its == pod && volumes == VOLUMES && its_name == name
                }
                _ => false,
            })
        };
        let is_harmless = |point: &Path| {
            // The kubelet unmounts these before it unmounts what they are parts of, so that is among the others. A part of a hostPath
            // has no volume of its name: what it is a part of may have been unmounted, and the part stays.
            let is_part = match below(point).as_slice() {
                [pod, parts, name, ..] if parts == PARTS => is_volume(pod, name),
                _ => false,
            };
            // A second mount of the same folder, as another pod has it, gives no more than this one's.
            is_part || point.starts_with(volumes) || is_own(point)
        };
        points.iter().find(|point| !is_harmless(point)).cloned()
    }
}

/// As it was decided for the root already.
fn read_only_root(spec: &Map<String, Value>, policy: &Policy) -> Option<&'static str> {
    let read_only = spec.get("root").and_then(|root| root.get("readonly"));
    let is_read_only = read_only.and_then(Value::as_bool) == Some(true);
    let key = if policy.rootfs.writable {
        ""
    } else {
        "rootfs.writable"
    };
    is_read_only.then_some(key)
}

/// What a pod may bind: what is its own in the kubelet's folder for it, what containerd made for its sandbox and this
/// container, and what the policy lists.
fn places(own: Vec<PathBuf>, policy: &Policy, context: &Context<'_>) -> Vec<(PathBuf, Access)> {
    let writable = own.into_iter().chain(policy.binds.writable.clone());
    let read_only = policy.binds.read_only.clone().into_iter();
    let all = writable
        .map(|path| (path, Access::AsAsked))
        .chain(read_only.map(|path| (path, Access::ReadOnly)));
    all.map(|(path, access)| ((context.host.resolve)(&path).unwrap_or(path), access))
        .collect()
}

/// A pod's own volumes, and what containerd made for it.
fn own(pod: Option<&Path>, context: &Context<'_>) -> Vec<PathBuf> {
    let mut own: Vec<PathBuf> = pod
        .into_iter()
        .flat_map(|pod| OF_THE_POD.map(|name| pod.join(name)))
        .collect();
    for cri in of_cri(context) {
        own.push(sandbox_files(&cri, context));
        own.push(cri.join("image-volumes").join(context.sandbox_id));
        own.push(image_volumes(&cri, context));
    }
    own
}

/// The folders of containerd's CRI plugin: STATE/io.containerd.runtime.v2.task/NAMESPACE/ID is the bundle, and its `work` links to
/// the same below the root.
fn of_cri(context: &Context<'_>) -> impl Iterator<Item = PathBuf> {
    let base = |bundle: &Path| bundle.ancestors().nth(3).map(|base| base.join(CRI));
    let work = (context.host.resolve)(&context.bundle.join("work"));
    let folders = [base(context.bundle), work.as_deref().and_then(base)];
    folders.into_iter().flatten()
}

/// What containerd made for the sandbox of a container.
fn sandbox_files(cri: &Path, context: &Context<'_>) -> PathBuf {
    cri.join("sandboxes").join(context.sandbox_id)
}

/// Where containerd copies the volumes that the image of a container declares.
fn image_volumes(cri: &Path, context: &Context<'_>) -> PathBuf {
    cri.join("containers").join(context.id).join("volumes")
}

/// The folders of the volumes that an image declares, where the policy keeps these in memory.
#[derive(Debug)]
pub(crate) struct ImageVolumes(Vec<PathBuf>);

impl ImageVolumes {
    pub(crate) fn new(policy: &Policy, caller: Caller, context: &Context<'_>) -> Self {
        let is_in_memory =
            policy.image_volumes == policy::ImageVolumes::Scratch && caller == Caller::Kubernetes;
        let folders = of_cri(context).map(|cri| image_volumes(&cri, context));
        let folders = folders.map(|folder| (context.host.resolve)(&folder).unwrap_or(folder));
        Self(folders.filter(|_| is_in_memory).collect())
    }

    /// The folder of the volume that is the source of a bind, by its name and by where its links lead.
    pub(crate) fn find(&self, source: &Path, real: Option<PathBuf>) -> Option<PathBuf> {
        let real = real.unwrap_or_else(|| source.to_owned());
        let parent = real.parent()?;
        self.0.iter().any(|folder| folder == parent).then_some(real)
    }
}

#[cfg(test)]
mod tests;
