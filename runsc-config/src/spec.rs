//! Turns the spec that was asked for into the spec that runs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::exec::ExecCeiling;
use crate::features::Features;
use crate::files::Files;
use crate::flags::RunscFlags;
use crate::hardened::HardenedSpec;
use crate::json::{is_empty, object, retain, text_of};
use crate::limits::{self, Declared, SandboxLimits};
use crate::never::Never;
use crate::origins::Origin;
use crate::pod::{self, Shared, Volume};
use crate::policy::{Hooks, Network, Policy};
use crate::report::{Change, Refusal, Report};
use crate::{cgroups, linux, mounts, paths, process, requests, rlimits, seccomp, types};

/// What is kept of a spec's top level; each part has its rule.
pub(crate) const KEPT: [&str; 8] = [
    "ociVersion",
    "process",
    "root",
    "hostname",
    "domainname",
    "mounts",
    "hooks",
    "linux",
];
/// What is judged and not kept as it is.
pub(crate) const JUDGED: [&str; 1] = ["annotations"];
/// When hooks are run (`Hooks` of the specification).
const STAGES: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];
/// How many empty-dir volumes a pod may have.
const VOLUMES_MAX: usize = 256;
/// Annotations that configure runsc itself; a client could widen its own sandbox by them.
const RUNSC_ANNOTATIONS: &str = "dev.gvisor.";

/// What a container is, with what must be known of its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerKind<'a> {
    /// It has a sandbox of its own.
    Plain,
    /// It is the first of a pod, and the pod's sandbox is made for it.
    PodSandbox,
    /// It joins the sandbox of its pod.
    PodContainer(&'a Shared),
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A pod's author, by way of the kubelet and containerd's CRI plugin: untrusted.
    Kubernetes,
    /// Somebody's pod, by way of another engine (CRI-O, cri-dockerd) or in another namespace: untrusted, and granted nothing,
    /// since nothing tells whose pod it is.
    Foreign,
    /// A client of containerd's socket: root on the node.
    Node,
}

impl Caller {
    /// Whether it is root on the node anyway.
    pub(crate) fn is_trusted(self) -> bool {
        self == Self::Node
    }

    /// Whose a container of its is, for people.
    pub(crate) fn whose(self) -> &'static str {
        match self {
            Self::Kubernetes => "the kubelet's",
            Self::Foreign => "some other engine's",
            Self::Node => "a client's",
        }
    }
}

/// Annotations that an engine for pods writes: containerd's CRI plugin (`internal/cri/annotations`), and CRI-O
/// (`pkg/annotations`).
const OF_PODS: [&str; 3] = ["io.kubernetes.cri.", pod::CRI_O, "io.containerd.cri."];

/// What must be known of the host.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Resolves a path with all its links; `None` where it does not exist.
    pub resolve: fn(&Path) -> Option<PathBuf>,
    /// Whether the kernel can limit swap for a cgroup.
    pub swap_limits: bool,
    /// Whether systemd manages the host's cgroups, and runsc can ask it for one: cgroup v2 alone.
    pub systemd: bool,
    /// The limits of a cgroup, by its path below the root of each hierarchy.
    pub cgroup_limits: fn(&str) -> Declared,
    /// The lowest limit of tasks that the cgroups above one have, by its path.
    pub tasks_max: fn(&str) -> Option<u64>,
    /// The kubelet's empty-dir volumes in a folder, all of them, in one order.
    pub empty_dirs: fn(&Path) -> Vec<Volume>,
    /// Sockets that control the node: containerd's own, wherever this one has it.
    pub sockets: Vec<PathBuf>,
    /// Whether a network namespace, by its path, is one that the host's own processes are in.
    pub is_hosts_network: fn(&Path) -> bool,
    /// Where a file or folder, named without links, lies in its filesystem.
    pub origin: fn(&Path) -> Option<Origin>,
    /// The same of everything that is mounted at or below a folder.
    pub mounted_below: fn(&Path) -> Vec<Origin>,
    /// Every place on the node where a filesystem is mounted, by its device.
    pub mount_points: fn(&str) -> Vec<PathBuf>,
    /// Whether two paths, named without links, are one file or folder.
    pub is_same: fn(&Path, &Path) -> bool,
    /// How many files a process of this host may have open, as runsc inherits it.
    pub open_files: u64,
}

impl Default for HostFacts {
    fn default() -> Self {
        Self {
            resolve: |_| None,
            swap_limits: false,
            systemd: false,
            cgroup_limits: |_| Declared::default(),
            tasks_max: |_| None,
            empty_dirs: |_| Vec::new(),
            sockets: Vec::new(),
            is_hosts_network: |_| false,
            origin: |_| None,
            mounted_below: |_| Vec::new(),
            mount_points: |_| Vec::new(),
            is_same: |_, _| false,
            open_files: 1_048_576,
        }
    }
}

/// The container a spec is for.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// Its id.
    pub id: &'a str,
    /// The sandbox's id.
    pub sandbox_id: &'a str,
    /// What it is.
    pub kind: ContainerKind<'a>,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Its bundle, which relative paths of the spec are in.
    pub bundle: &'a Path,
    /// The runsc it will run on.
    pub features: &'a Features,
    /// The host.
    pub host: HostFacts,
}

impl Context<'_> {
    /// Kubernetes is known by what only containerd's CRI plugin writes, in the namespace only it uses. Any other sign of a
    /// pod takes trust away: cri-dockerd writes no annotation, and is known by the kubelet's cgroups or, where the kubelet makes
    /// none (`cgroupsPerQOS: false`), by what the kubelet gives to each container of its folder.
    pub(crate) fn caller(&self, spec: &Map<String, Value>, policy: &Policy) -> Caller {
        let annotations = spec.get("annotations").and_then(Value::as_object);
        let any = |is: &dyn Fn(&str) -> bool| {
            annotations.is_some_and(|annotations| annotations.keys().any(|key| is(key)))
        };
        let cgroup = spec
            .get("linux")
            .and_then(|linux| linux.get("cgroupsPath")?.as_str());
        if self.namespace == "k8s.io" && any(&|key| key == pod::TYPE) {
            Caller::Kubernetes
        } else if any(&|key| OF_PODS.iter().any(|prefix| key.starts_with(prefix)))
            || cgroup.is_some_and(cgroups::is_kubelets)
            || self.has_of_a_pods_folder(spec, policy)
        {
            Caller::Foreign
        } else {
            Caller::Node
        }
    }

    /// Whether something of a pod's folder in the kubelet's is mounted, by its name or by what links lead to. The kubelet gives
    /// each container a file for its termination message there (`pkg/kubelet/kuberuntime`), which no pod's author can do without.
    fn has_of_a_pods_folder(&self, spec: &Map<String, Value>, policy: &Policy) -> bool {
        let pods = pod::folders(policy);
        let real = (self.host.resolve)(&pods);
        let is_in = |path: &Path| {
            let mut folders = std::iter::once(&pods).chain(&real);
            folders.any(|pods| path.starts_with(pods) && path != pods)
        };
        let mounts = spec.get("mounts").and_then(Value::as_array);
        let sources = mounts.into_iter().flatten();
        let mut sources = sources.filter_map(|mount| mount.get("source")?.as_str());
        sources.any(|source| {
            let named = mounts::normal(&self.bundle.join(source));
            named.is_some_and(|path| {
                is_in(&path) || (self.host.resolve)(&path).is_some_and(|real| is_in(&real))
            })
        })
    }
}

/// What is to be told of a request: who decided, and what was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Where the policy was read.
    pub policy: String,
    /// The global flags of runsc.
    pub flags: Vec<String>,
    /// Every change, in the order of the rules.
    pub changes: Vec<Change>,
    /// How the seccomp profile is written: `complement`, `allow-list` or `off`; empty in the file of an older Bulkhead.
    #[serde(default)]
    pub profile_form: String,
}

/// What a request became.
#[derive(Debug, Clone)]
pub struct Hardened {
    /// What runs.
    pub spec: HardenedSpec,
    /// The policy that holds for it and for what joins it: the node's, with what its annotations were granted.
    pub policy: Policy,
    /// How runsc is run for it.
    pub flags: RunscFlags,
    /// What was changed.
    pub report: Report,
    /// What an exec in it may have.
    pub exec: ExecCeiling,
    /// What the container itself declares; of a pod's sandbox, what containerd says of all its containers before they are there.
    pub declared: Declared,
    /// The limits of the sandbox it has or joins.
    pub limits: SandboxLimits,
    /// What it shares with its pod, or adds to that.
    pub shared: Shared,
}

impl Explanation {
    /// Name of the file in a bundle that it is written to, for the node tool.
    pub const FILE: &str = "bulkhead-explanation.json";
}

impl Hardened {
    /// Whether the sandbox has a network, in a namespace that runsc makes: nothing is up in there.
    #[must_use]
    pub fn makes_network(&self) -> bool {
        self.policy.network == Network::Sandbox && self.spec.has_own_network()
    }

    /// All there is to be told.
    #[must_use]
    pub fn explanation(&self) -> Explanation {
        Explanation {
            policy: self.policy.origin().to_owned(),
            flags: self.flags.args(),
            changes: self.report.changes.clone(),
            profile_form: self.spec.profile_form().unwrap_or("off").to_owned(),
        }
    }
}

/// Checks that a spec is one: an object whose fields have the types of the specification. A field of the wrong type is
/// the client's mistake, whatever the node could do with it; one that is dropped anyway is not looked at.
///
/// # Errors
/// `InvalidArgument`, naming the field as far as the parser can.
pub fn validate(asked: &Value) -> Result<(), Refusal> {
    types::of_spec(asked)
}

/// Intersects what a spec asks for with what the policy allows.
///
/// # Errors
/// For a malformed spec, for a request whose refusal the program would notice (a host namespace, a device), and for
/// what this runsc cannot enforce.
pub fn harden(asked: Value, policy: &Policy, context: &Context<'_>) -> Result<Hardened, Refusal> {
    validate(&asked)?;
    let Value::Object(mut spec) = asked else {
        return Err(Refusal::invalid("config.json", "must be an object"));
    };
    let mut report = Report::default();
    let caller = context.caller(&spec, policy);
    for other in ["solaris", "windows", "vm", "zos"] {
        if !spec.get(other).is_none_or(is_empty) {
            return Err(Refusal::invalid(other, "is not for a Linux container"));
        }
    }
    let effective = requests::apply(&spec, policy, caller, context.kind, &mut report)?;
    let policy = &effective;
    let cgroup = cgroup(object(&mut spec, "linux")?, context)?;
    RunscFlags::check(policy, context.features)?;
    let identity = pod::Identity::of(&spec, caller);
    if let ContainerKind::PodContainer(shared) = context.kind {
        shared.pod.expect(&identity)?;
    }
    // Read before the annotations that say it are taken away.
    let volumes = volumes(&spec, policy, caller, context)?;
    annotations(&mut spec, &mut report);
    hooks(&mut spec, policy, &mut report)?;
    root(&mut spec, policy, context, &mut report)?;
    linux::harden(
        object(&mut spec, "linux")?,
        caller,
        context,
        policy,
        &mut report,
    )?;
    let (declared, limits, tasks_limit) =
        resources(&mut spec, &cgroup, policy, context, &mut report)?;
    let process = process::of_spec(&mut spec)?;
    for label in ["selinuxLabel", "apparmorProfile"] {
        if process.remove(label).is_some_and(|label| !is_empty(&label)) {
            report.note(
                "lsm_label",
                format!("process.{label}"),
                "none: gVisor has no LSM",
                "",
            );
        }
    }
    process::harden(process, "process", policy, &mut report)?;
    let is_alone = context.kind == ContainerKind::Plain;
    let rlimits = rlimits::harden(process, tasks_limit, is_alone, policy, &mut report)?;
    // There is one: a spec without is none.
    let user = process
        .get("user")
        .cloned()
        .filter(|_| !caller.is_trusted());
    let mut shared = Shared {
        pod: identity,
        tasks_limit,
        memory: limits.memory,
        volumes,
        scratch: 0,
    };
    let given = mounts::harden(&mut spec, &mut shared, policy, caller, context, &mut report)?;
    shared.scratch = given.scratch;
    let mut files = Files::new(policy, limits.memory, context.host.open_files, context.kind);
    files.doubt(&spec, &context.host, &mut report);
    let flags = RunscFlags::new(
        policy,
        context.features,
        files,
        cgroup.by_systemd,
        &mut report,
    )?;
    let masked = paths::hold(&mut spec, &mut report)?;
    match context.kind {
        ContainerKind::Plain => pod::annotate_nothing(&mut spec),
        ContainerKind::PodSandbox => {
            pod::annotate(&mut spec, "sandbox", context.id)?;
            pod::hint(&mut spec, &shared.volumes)?;
        }
        ContainerKind::PodContainer(_) => {
            pod::annotate(&mut spec, "container", context.sandbox_id)?
        }
    }
    let asked = spec.get("linux").and_then(|linux| linux.get("seccomp"));
    let granted = process::capabilities(&spec);
    let profile = seccomp::effective(asked, &granted, policy, context.features, &mut report)?;
    let linux = object(&mut spec, "linux")?;
    linux.remove("seccomp");
    if let Some(profile) = profile {
        linux.insert("seccomp".to_owned(), profile);
    }
    let kept: Vec<&str> = KEPT.iter().chain(&JUDGED).copied().collect();
    for dropped in retain(&mut spec, &kept) {
        report.note("spec", dropped, "dropped: runsc does not apply it", "");
    }
    let exec = ExecCeiling::new(policy, caller, user, rlimits);
    let volumes = shared.volumes.iter();
    let inside = volumes.map(|volume| volume.source.clone()).collect();
    Ok(Hardened {
        spec: HardenedSpec::new(
            spec,
            cgroup.place,
            masked,
            inside,
            given.sceneries,
            given.copies,
        ),
        policy: effective,
        flags,
        report,
        exec,
        declared,
        limits,
        shared,
    })
}

/// The sandbox's cgroup.
struct Cgroup {
    place: Option<String>,
    by_systemd: bool,
}

/// Settles the cgroup path. A container that joins a sandbox gets none: an empty cgroup would tell readers of cgroups that
/// it uses nothing.
fn cgroup(linux: &mut Map<String, Value>, context: &Context<'_>) -> Result<Cgroup, Refusal> {
    let path = linux.remove("cgroupsPath");
    let path = path.as_ref().and_then(Value::as_str).unwrap_or_default();
    // Without a cgroup of its own nothing would be limited.
    let default = format!("/{}/{}", context.namespace, context.id);
    let path = if path.is_empty() { &default } else { path };
    let place = cgroups::place(path)?;
    if matches!(context.kind, ContainerKind::PodContainer(_)) {
        return Ok(Cgroup {
            place: None,
            by_systemd: false,
        });
    }
    let by_systemd = context.host.systemd && cgroups::is_for_systemd(path);
    let given = if by_systemd { path } else { &place };
    linux.insert("cgroupsPath".to_owned(), Value::String(given.to_owned()));
    Ok(Cgroup {
        place: Some(place),
        by_systemd,
    })
}

/// The volumes that a pod shares: decided once, for its sandbox, since runsc learns of them there alone.
fn volumes(
    spec: &Map<String, Value>,
    policy: &Policy,
    caller: Caller,
    context: &Context<'_>,
) -> Result<Vec<Volume>, Refusal> {
    let volumes = match context.kind {
        // Nothing tells that a pod of another engine is the one whose uid it names.
        ContainerKind::PodSandbox if caller == Caller::Foreign => Vec::new(),
        ContainerKind::Plain => Vec::new(),
        ContainerKind::PodSandbox => {
            pod::empty_dirs(spec, policy).map_or_else(Vec::new, |folder| {
                let folder = (context.host.resolve)(&folder).unwrap_or(folder);
                (context.host.empty_dirs)(&folder)
            })
        }
        ContainerKind::PodContainer(shared) => return Ok(shared.volumes.clone()),
    };
    for volume in &volumes {
        text_of("the empty-dir volume", &volume.source)?;
    }
    // One that runsc is not told of would be a folder of the host's, written without a bound.
    if let Some(one) = volumes.get(VOLUMES_MAX) {
        let asked = format!("the empty-dir volume {}", one.source.display());
        let rule = format!("a pod shares at most {VOLUMES_MAX} of them");
        return Err(Refusal::denied("mounts", asked, rule, None));
    }
    Ok(volumes)
}

/// Sets the limits of the sandbox; a container that joins one has none of its own, because nothing could enforce them.
fn resources(
    spec: &mut Map<String, Value>,
    cgroup: &Cgroup,
    policy: &Policy,
    context: &Context<'_>,
    report: &mut Report,
) -> Result<(Declared, SandboxLimits, u64), Refusal> {
    let pod = Declared::of_pod_annotations(spec);
    let linux = object(spec, "linux")?;
    let asked = linux.remove("resources").unwrap_or(Value::Null);
    let declared = Declared::of_resources(&asked);
    if let Some(asked) = asked.as_object() {
        limits::note_dropped(asked, "linux.resources", report);
    }
    // What the pod's cgroup is held to.
    let above = match context.kind {
        ContainerKind::PodSandbox => {
            let parent = cgroup.place.as_deref().and_then(cgroups::parent);
            Some(parent.map(context.host.cgroup_limits).unwrap_or_default())
        }
        _ => None,
    };
    let limits = match context.kind {
        ContainerKind::Plain => SandboxLimits::of_container(declared, policy),
        ContainerKind::PodSandbox => SandboxLimits::of_pod(above.unwrap_or_default(), pod, policy),
        ContainerKind::PodContainer(shared) => {
            if declared.memory.is_some() || declared.cpu.is_some() {
                report.note(
                    "limits",
                    "limits of one container of a pod",
                    "those of the pod's sandbox, which all its containers share",
                    "",
                );
            }
            let tasks = limits::tasks(&asked, shared.tasks_limit, report).max(shared.tasks_limit);
            let limits = SandboxLimits {
                memory: shared.memory,
                ..SandboxLimits::of_container(declared, policy)
            };
            return Ok((declared, limits, tasks));
        }
    };
    limits.check()?;
    limits.explain(declared, pod, above, report);
    let tasks = limits::tasks(&asked, policy.limits.pids, report);
    let above = cgroup.place.as_deref().and_then(context.host.tasks_max);
    let tasks = limits::fit_tasks(tasks, above, report)?;
    let given = limits::to_spec(&asked, &limits, tasks, context.host.swap_limits);
    linux.insert("resources".to_owned(), given);
    let declared = match context.kind {
        ContainerKind::PodSandbox => pod,
        _ => declared,
    };
    Ok((declared, limits, tasks))
}

fn annotations(spec: &mut Map<String, Value>, report: &mut Report) {
    if let Some(annotations) = spec.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| {
            let keep = !key.starts_with(RUNSC_ANNOTATIONS);
            if !keep {
                report.note("annotations", key, "removed: it would configure runsc", "");
            }
            keep
        });
    }
}

/// Ends of hooks' paths at which runsc switches its GPU proxy on although `--nvproxy` says off (`findNvidiaHook` in
/// `runsc/specutils/nvidia.go`).
const GPU_HOOKS: [&str; 2] = ["/nvidia-container-runtime-hook", "/nvidia-cdi-hook"];

fn hooks(
    spec: &mut Map<String, Value>,
    policy: &Policy,
    report: &mut Report,
) -> Result<(), Refusal> {
    if spec.get("hooks").is_none_or(is_empty) {
        spec.remove("hooks");
        return Ok(());
    }
    if policy.hooks == Hooks::Refuse {
        return Err(Refusal::denied(
            "hooks",
            "hooks",
            "this node runs no hooks",
            Some("hooks = \"allow\""),
        ));
    }
    let stages = object(spec, "hooks")?;
    for dropped in retain(stages, &STAGES) {
        report.note(
            "hooks",
            format!("hooks.{dropped}"),
            "dropped: no such stage",
            "",
        );
    }
    for (stage, list) in stages.iter_mut() {
        let hooks = list.as_array_mut().into_iter().flatten();
        for hook in hooks.filter_map(Value::as_object_mut) {
            // runsc takes a key in any case: what is run is what is looked at here.
            retain(hook, &["path", "args", "env", "timeout"]);
            let path = hook.get("path").and_then(Value::as_str).unwrap_or_default();
            if !path.starts_with('/') {
                return Err(Refusal::invalid(
                    format!("hooks.{stage}"),
                    format!("path {path:?} must be absolute"),
                ));
            }
            if GPU_HOOKS.iter().any(|name| path.ends_with(name)) {
                return Err(Refusal::denied(
                    "hooks",
                    format!("hooks.{stage}: {path:?}"),
                    "by this name runsc gives a sandbox the host's GPUs, whatever its flags say",
                    None,
                ));
            }
        }
    }
    Ok(())
}

fn root(
    spec: &mut Map<String, Value>,
    policy: &Policy,
    context: &Context<'_>,
    report: &mut Report,
) -> Result<(), Refusal> {
    let root = match spec.get("root") {
        Some(Value::Object(root)) => root,
        _ => return Err(Refusal::invalid("root", "is missing")),
    };
    let path = root.get("path").and_then(Value::as_str).unwrap_or_default();
    if path.is_empty() {
        return Err(Refusal::invalid("root.path", "is missing"));
    }
    // By both names, as a bind is judged, and with no link left to follow.
    let asked = format!("root.path: {path}");
    let path = mounts::normal(&context.bundle.join(path))
        .ok_or_else(|| Refusal::invalid("root.path", "must be a path"))?;
    let real = (context.host.resolve)(&path);
    let never = Never::new(policy, &context.host);
    let mut names = std::iter::once(&path).chain(&real);
    if let Some(rule) = names.find_map(|path| never.rule(path)) {
        return Err(Refusal::denied("rootfs", asked, rule, None));
    }
    let path = text_of("root.path", &real.unwrap_or(path))?;
    let asked_read_only = root
        .get("readonly")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let read_only = asked_read_only || !policy.rootfs.writable;
    if read_only != asked_read_only {
        report.note("rootfs", "writable", "read-only", "rootfs.writable");
    }
    // Written anew: runsc takes a key in any case.
    let root = serde_json::json!({ "path": path, "readonly": read_only });
    spec.insert("root".to_owned(), root);
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
