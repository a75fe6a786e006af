//! What has to hold of every result, for the tests and the fuzz targets: it is never weaker than the policy.
#![allow(
    dead_code,
    reason = "each program that includes this uses a part of it"
)]

pub mod profile;

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use runsc_config::{
    Calls, ContainerKind, Context, Features, Hardened, HostFacts, Origin, Policy, Refusal, Shared,
    harden,
};
use serde_json::{Value, json};

/// Calls that no policy and no profile may give.
const NEVER_CALLED: [&str; 12] = [
    "ptrace",
    "process_vm_readv",
    "mount",
    "pivot_root",
    "unshare",
    "setns",
    "bpf",
    "keyctl",
    "io_uring_setup",
    "userfaultfd",
    "init_module",
    "kexec_load",
];

/// Calls that come with a capability, which both the request and the policy name.
const WITH_CAPABILITY: [(&str, &[&str]); 2] = [
    ("CAP_SYS_CHROOT", &["chroot"]),
    ("CAP_SYS_ADMIN", &["sethostname", "setdomainname"]),
];

/// Flags that have one value under every policy.
const FIXED_FLAGS: [(&str, &str); 22] = [
    ("oci-seccomp", "true"),
    ("host-uds", "none"),
    ("host-fifo", "none"),
    ("net-raw", "false"),
    ("allow-flag-override", "false"),
    ("character-device-policy", "emulated-only"),
    ("allow-packet-socket-write", "false"),
    ("allow-rootfs-tar-annotation", "false"),
    ("nvproxy", "false"),
    ("tpuproxy", "false"),
    ("rdmaproxy", "false"),
    ("ignore-cgroups", "false"),
    ("TESTONLY-unsafe-nonroot", "false"),
    ("profile", "false"),
    ("debug", "false"),
    ("strace", "false"),
    ("log-packets", "false"),
    ("gofer-network-namespace", "new"),
    ("control-rpc-stop-timeout", "200ms"),
    ("sidecar-usage-policy", "DEFAULT"),
    ("sidecar-release-enforcement-policy", "ALWAYS"),
    ("file-access", "exclusive"),
];

/// A runsc that has everything.
pub fn features() -> Features {
    without_table().with_calls(Some(Calls::new(&profile::TABLE).expect("calls")))
}

/// The same, but that its table of system calls is not known.
pub fn without_table() -> Features {
    let features = include_str!("features.json");
    Features::parse(include_str!("flags.txt"), Some(features)).expect("features")
}

/// What a policy allows, in a form that can be written as a policy and compared with a result.
#[derive(Debug, Clone)]
pub struct Allowed {
    pub network: bool,
    pub writable: bool,
    pub exec: bool,
    pub root: bool,
    /// Together with `root` alone.
    pub set_uid: bool,
    /// Without `directfs` alone.
    pub unconfined: bool,
    pub propagation: bool,
    /// Of a client's binds alone.
    pub exclusive: bool,
    pub directfs: bool,
    pub kvm: bool,
    pub capabilities: Vec<String>,
    pub tasks: u64,
    pub open_files: u64,
    /// Names that are remembered at most.
    pub dentries: u64,
    pub memory_mib: u64,
    /// Hundredths of a CPU.
    pub cpu: u64,
    /// MiB of /tmp, /run, /dev/shm and of a writable root.
    pub sizes: [u64; 4],
    /// Folders that a pod may bind to read, and to write.
    pub binds: [Vec<&'static str>; 2],
    /// What the namespace `granted` may ask for: a network, a writable root, executable scratch.
    pub grants: [bool; 3],
}

impl Allowed {
    pub fn nothing() -> Self {
        Self {
            network: false,
            writable: false,
            exec: false,
            root: true,
            set_uid: false,
            unconfined: false,
            propagation: false,
            exclusive: false,
            directfs: false,
            kvm: false,
            capabilities: Vec::new(),
            tasks: 256,
            open_files: 1024,
            dentries: 16_384,
            memory_mib: 512,
            cpu: 100,
            sizes: [64, 8, 16, 1024],
            binds: [Vec::new(), Vec::new()],
            grants: [false; 3],
        }
    }

    pub fn policy(&self) -> Policy {
        let network = |on: bool| if on { "sandbox" } else { "none" };
        let [tmp, run, shm, overlay] = self.sizes;
        let [read_only, writable] = &self.binds;
        let [grants_network, grants_root, grants_exec] = self.grants;
        let text = format!(
            "network = {:?}\nrun_as_non_root = {}\nallow_set_uid = {}\nallow_unconfined = {}\nrunsc.directfs = {}\nrunsc.dentry_cache = {}\nrunsc.platform = {:?}\n\
             rootfs = {{ writable = {}, size_mib = {overlay} }}\n\
             scratch = {{ exec = {}, tmp_mib = {tmp}, run_mib = {run}, shm_mib = {shm} }}\n\
             capabilities.allow = {:?}\n\
             limits = {{ pids = {}, open_files = {}, memory_mib = {}, cpus = {}.{:02} }}\n\
             binds = {{ read_only = {read_only:?}, writable = {writable:?}, propagation = {}, exclusive = {} }}\n\
             [kubernetes.namespaces.granted]\n\
             network = {:?}\nrootfs_writable = {grants_root}\nscratch_exec = {grants_exec}\n",
            network(self.network),
            !self.root,
            self.set_uid,
            self.unconfined,
            self.directfs,
            self.dentries,
            if self.kvm { "kvm" } else { "systrap" },
            self.writable,
            self.exec,
            self.capabilities,
            self.tasks,
            self.open_files,
            self.memory_mib,
            self.cpu / 100,
            self.cpu % 100,
            self.propagation,
            self.exclusive,
            network(grants_network),
        );
        Policy::parse(&text, "generated").expect("a policy")
    }

    /// With what the request is granted for asking for it.
    fn with_grants(&self, asked: &Value, asker: Asker) -> Self {
        let annotation = |key: &str| asked["annotations"][key].as_str().unwrap_or_default();
        let mut all = self.clone();
        let namespace = annotation("io.kubernetes.cri.sandbox-namespace");
        let is_pods = !asked["annotations"]["io.kubernetes.cri.container-type"].is_null();
        if asker == Asker::Sandbox && is_pods && namespace == "granted" {
            let [network, root, exec] = self.grants;
            all.network |= network && annotation("dev.bulkhead.network") == "sandbox";
            all.writable |= root && annotation("dev.bulkhead.rootfs") == "writable";
            all.exec |= exec && annotation("dev.bulkhead.scratch") == "exec";
        }
        all
    }
}

/// Who asks for what kind of container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    Client,
    Sandbox,
    Container,
}

/// The host, in which /home/u/link leads to a socket of docker's and /proc/1/ns/net to its own network, and the kubelet has
/// bound a part of one of the pod's volumes and a folder of the host.
pub fn host() -> HostFacts {
    HostFacts {
        resolve: |path| {
            let text = path.to_str()?;
            (text == "/home/u/link").then(|| PathBuf::from("/run/docker.sock"))
        },
        is_hosts_network: |path| path == Path::new("/proc/1/ns/net"),
        origin: |path| {
            let text = path.to_str()?;
            let path = match text.split_once("/volume-subpaths/") {
                None => path.to_owned(),
                Some((pod, "own/c/0")) => Path::new(pod).join("volumes/v/x"),
                Some((_, "host/c/0")) => PathBuf::from("/etc"),
                Some(_) => return None,
            };
            let device = "8:1".to_owned();
            Some(Origin { device, path })
        },
        ..HostFacts::default()
    }
}

/// Hardens a spec as it would be for the asker; for a container of a pod after its sandbox.
pub fn hardened(spec: Value, policy: &Policy, asker: Asker) -> Result<Hardened, Refusal> {
    hardened_on(&features(), spec, policy, asker)
}

/// The same on a runsc with these features.
pub fn hardened_on(
    features: &Features,
    spec: Value,
    policy: &Policy,
    asker: Asker,
) -> Result<Hardened, Refusal> {
    let context = |kind, namespace| Context {
        id: "c",
        sandbox_id: "c",
        kind,
        namespace,
        bundle: Path::new("/bundle"),
        features,
        host: host(),
    };
    match asker {
        Asker::Client => harden(spec, policy, &context(ContainerKind::Plain, "default")),
        Asker::Sandbox => harden(spec, policy, &context(ContainerKind::PodSandbox, "k8s.io")),
        Asker::Container => {
            // As the first container of a pod commonly is.
            let mut first = base();
            first["process"]["user"] = json!({ "uid": 65535, "gid": 65535 });
            // Of the same pod.
            for key in ["container-type", "sandbox-uid", "sandbox-namespace"] {
                let key = format!("io.kubernetes.cri.{key}");
                if let Some(value) = spec["annotations"].get(&key) {
                    first["annotations"][key] = value.clone();
                }
            }
            let sandbox = harden(first, policy, &context(ContainerKind::PodSandbox, "k8s.io"))?;
            let shared: Shared = sandbox.shared;
            let kind = ContainerKind::PodContainer(&shared);
            harden(spec, &sandbox.policy, &context(kind, "k8s.io"))
        }
    }
}

/// The least that is a container.
pub fn base() -> Value {
    json!({
        "ociVersion": "1.1.0", "root": { "path": "r" },
        "process": { "args": ["a"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "network" }] },
    })
}

pub fn texts<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Panics where a result has more than is allowed. `asked` is what it was made of.
pub fn assert_held(asked: &Value, hardened: &Hardened, allowed: &Allowed, asker: Asker) {
    let spec = Value::Object(hardened.spec.as_map().clone());
    let known = [
        "ociVersion",
        "process",
        "root",
        "hostname",
        "domainname",
        "mounts",
        "hooks",
        "linux",
        "annotations",
    ];
    let keys = hardened.spec.as_map().keys();
    let unknown: Vec<&String> = keys.filter(|key| !known.contains(&key.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let allowed = &allowed.with_grants(asked, asker);
    assert!(allowed.writable || spec["root"]["readonly"] == json!(true));
    held_process(asked, &spec, allowed, asker);
    held_seccomp(asked, &spec, allowed);
    held_mounts(asked, &spec, allowed, asker);
    let root = Path::new(spec["root"]["path"].as_str().expect("a root"));
    assert!(normal(root), "{root:?}");
    for never in ["/proc", "/sys", "/dev", "/run/bulkhead"] {
        assert!(!root.starts_with(never) && !Path::new(never).starts_with(root));
    }
    held_hooks(&spec["hooks"]);
    if asker != Asker::Container {
        held_limits(asked, &spec, allowed, asker);
        let cgroup = spec["linux"]["cgroupsPath"].as_str().expect("a cgroup");
        assert!(cgroup.len() > 1 && cgroup.starts_with('/'), "{cgroup}");
        let mut parts = cgroup.split('/').skip(1);
        assert!(
            !parts.any(|part| ["", ".", ".."].contains(&part)),
            "{cgroup}"
        );
        let limit = |pointer: &str| spec["linux"]["resources"].pointer(pointer);
        let memory = limit("/memory/limit").and_then(Value::as_i64);
        assert!(memory.is_some_and(|limit| limit > 0), "{memory:?}");
        let quota = limit("/cpu/quota").and_then(Value::as_u64);
        assert!(quota.is_some_and(|quota| quota > 0), "{quota:?}");
        // The host's ceiling is out of the guest's reach: at it the sentry panics.
        let tasks = tasks(&spec).expect("a limit");
        let ceiling = limit("/pids/limit").and_then(Value::as_u64);
        assert!(ceiling.is_some_and(|ceiling| ceiling >= 4 * tasks + 256));
    }
    let namespaces = spec["linux"]["namespaces"].as_array().expect("a list");
    let kinds: Vec<&str> = namespaces
        .iter()
        .filter_map(|namespace| namespace["type"].as_str())
        .collect();
    for own in ["network", "pid", "ipc", "uts", "mount"] {
        let times = kinds.iter().filter(|kind| **kind == own).count();
        assert_eq!(
            times, 1,
            "{own} is the host's, or one of several: {kinds:?}"
        );
    }
    for namespace in namespaces {
        let mut keys = namespace.as_object().expect("an object").keys();
        assert!(
            keys.all(|key| key == "type" || key == "path"),
            "{namespace}"
        );
        let path = namespace["path"].as_str();
        assert!(
            path.is_none() || namespace["type"] == "network",
            "{namespace}"
        );
        assert_ne!(path, Some("/proc/1/ns/net"));
    }
    assert!(!kinds.contains(&"user") && !kinds.contains(&"time"));
    for sysctl in spec["linux"]["sysctl"].as_object().into_iter().flatten() {
        let is_inside = sysctl.0 == "fs.nr_open" || sysctl.0.ends_with(".disable_ipv6");
        assert!(is_inside, "{sysctl:?}");
    }
    for gone in [
        "devices",
        "uidMappings",
        "gidMappings",
        "mountLabel",
        "intelRdt",
    ] {
        assert!(spec["linux"].get(gone).is_none(), "{gone}");
    }
    held_flags(asked, hardened, allowed, asker);
}

/// Every hook is what was judged, in a stage that there is.
fn held_hooks(hooks: &Value) {
    for (stage, list) in hooks.as_object().into_iter().flatten() {
        assert!(
            stage.starts_with(|c: char| c.is_ascii_lowercase()),
            "{stage}"
        );
        for hook in list.as_array().into_iter().flatten() {
            assert!(
                hook["path"]
                    .as_str()
                    .is_some_and(|path| path.starts_with('/'))
            );
            let mut keys = hook.as_object().expect("an object").keys();
            let known = ["path", "args", "env", "timeout"];
            assert!(keys.all(|key| known.contains(&key.as_str())), "{hook}");
        }
    }
}

/// Where nothing is asked for the limits are the policy's own; nothing but limits is given.
fn held_limits(asked: &Value, spec: &Value, allowed: &Allowed, asker: Asker) {
    let given = &spec["linux"]["resources"];
    let mut keys = given.as_object().expect("resources").keys();
    let known = ["cpu", "memory", "pids"];
    assert!(keys.all(|key| known.contains(&key.as_str())), "{given}");
    if asker == Asker::Client {
        let number = |pointer: &str| {
            let value = asked["linux"]["resources"].pointer(pointer);
            value.and_then(Value::as_i64).filter(|value| *value > 0)
        };
        if number("/memory/limit").is_none() {
            assert_eq!(given["memory"]["limit"], json!(allowed.memory_mib << 20));
        }
        if number("/cpu/quota").is_none() {
            let (quota, period) = (
                given["cpu"]["quota"].as_u64(),
                given["cpu"]["period"].as_u64(),
            );
            let (quota, period) = (quota.expect("a quota"), period.expect("a period"));
            assert_eq!(period, 100_000);
            // A share is no whole number; what is cut off is below a microsecond.
            assert!(
                quota.abs_diff((allowed.cpu * 1000).max(1000)) <= 1,
                "{quota}"
            );
        }
    }
}

fn held_flags(asked: &Value, hardened: &Hardened, allowed: &Allowed, asker: Asker) {
    let flags = hardened.flags.args();
    let value = |name: &str| {
        let mut values = flags.iter().filter_map(|flag| {
            flag.strip_prefix("--")?
                .strip_prefix(name)?
                .strip_prefix('=')
        });
        let value = values.next().map(str::to_owned);
        assert_eq!(values.next(), None, "{name} twice: {flags:?}");
        value.unwrap_or_default()
    };
    for (name, fixed) in FIXED_FLAGS {
        assert_eq!(value(name), fixed, "{name}: {flags:?}");
    }
    let (network, overlay) = (value("network"), value("overlay2"));
    assert!(
        network == "none" || (allowed.network && network == "sandbox"),
        "{network}"
    );
    let size = format!("root:self,size={}m", allowed.sizes[3]);
    assert!(
        overlay == "none" || (allowed.writable && overlay == size),
        "{overlay}"
    );
    assert_eq!(value("directfs"), allowed.directfs.to_string());
    assert_eq!(value("allow-suid"), allowed.set_uid.to_string());
    let platform = if allowed.kvm { "kvm" } else { "systrap" };
    assert_eq!(value("platform"), platform);
    let systemd = flags.iter().any(|flag| flag == "--systemd-cgroup=true");
    assert!(!systemd, "there is none on this host");
    let is_promised = match asked["annotations"]["dev.bulkhead.binds"].as_str() {
        Some(value) => value == "exclusive",
        None => allowed.exclusive,
    };
    let is_clients = asker == Asker::Client && own_folder(asked, asker).is_none();
    let access = value("file-access-mounts");
    assert!(
        access == "shared" || (access == "exclusive" && is_promised && is_clients),
        "{access}"
    );
    let number = |name: &str| value(name).parse::<u64>().expect("a number");
    let (dentries, descriptors) = (number("dcache"), number("fdlimit"));
    assert!(dentries <= allowed.dentries, "{dentries}");
    assert!(
        dentries * 2 < descriptors && descriptors <= host().open_files,
        "{dentries} of {descriptors}"
    );
    assert!(dentries * 2048 * 16 <= hardened.limits.memory);
    assert_eq!(flags.len(), FIXED_FLAGS.len() + 8, "{flags:?}");
    // What configures runsc is the shim's own.
    let annotations = hardened
        .spec
        .as_map()
        .get("annotations")
        .and_then(Value::as_object);
    for key in annotations
        .into_iter()
        .flat_map(|annotations| annotations.keys())
    {
        let is_runscs = key.starts_with("dev.gvisor.");
        let is_own = asker == Asker::Sandbox && key.starts_with("dev.gvisor.spec.mount.");
        assert!(!is_runscs || is_own, "{key}");
    }
}

fn tasks(spec: &Value) -> Option<u64> {
    let limits = spec["process"]["rlimits"].as_array()?;
    let limit = limits
        .iter()
        .find(|limit| limit["type"] == "RLIMIT_NPROC")?;
    limit["hard"].as_u64()
}

/// No process has more than the policy's and than what gVisor gives by itself, and one that shares its sandbox has the sandbox's.
fn held_rlimits(process: &Value, allowed: &Allowed, asker: Asker) {
    let limits = process["rlimits"].as_array().expect("rlimits");
    let mut kinds = BTreeSet::new();
    for limit in limits {
        let kind = limit["type"].as_str().expect("a type");
        let most = match kind {
            "RLIMIT_NOFILE" => allowed.open_files,
            "RLIMIT_NPROC" => allowed.tasks,
            "RLIMIT_MEMLOCK" => 65_536,
            "RLIMIT_MSGQUEUE" => 819_200,
            "RLIMIT_CORE" | "RLIMIT_NICE" | "RLIMIT_RTPRIO" | "RLIMIT_SIGPENDING" => 0,
            _ => u64::MAX,
        };
        let [soft, hard] = ["soft", "hard"].map(|which| limit[which].as_u64().expect(which));
        assert!(soft <= hard && hard <= most, "{limit}");
        assert!(asker == Asker::Client || soft == hard, "{limit}");
        assert!(kinds.insert(kind), "{kind} twice");
    }
    let always = ["RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_NPROC"];
    assert!(always.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    assert!(asker == Asker::Client || kinds.len() == 3, "{kinds:?}");
}

fn held_process(asked: &Value, spec: &Value, allowed: &Allowed, asker: Asker) {
    let process = &spec["process"];
    let asked = asked["process"]["noNewPrivileges"] == json!(true);
    assert_eq!(process["noNewPrivileges"], json!(asked || !allowed.set_uid));
    for set in [
        "bounding",
        "effective",
        "inheritable",
        "permitted",
        "ambient",
    ] {
        for capability in texts(process, &format!("/capabilities/{set}")) {
            let is_allowed = allowed.capabilities.iter().any(|one| one == capability);
            assert!(is_allowed, "{set}: {capability}");
            assert_ne!(capability, "CAP_NET_RAW", "raw sockets are off");
        }
    }
    held_rlimits(process, allowed, asker);
    let uid = process["user"]["uid"].as_u64().unwrap_or(0);
    assert!(
        allowed.root || uid != 0,
        "root where no process may be root"
    );
    held_keys(process);
}

/// What of a process reaches runsc, of init and of an exec alike.
pub fn held_keys(process: &Value) {
    let known = [
        "terminal",
        "consoleSize",
        "user",
        "args",
        "env",
        "cwd",
        "oomScoreAdj",
        "capabilities",
        "noNewPrivileges",
        "rlimits",
    ];
    let mut keys = process.as_object().expect("an object").keys();
    assert!(keys.all(|key| known.contains(&key.as_str())), "{process}");
    let user = process["user"].as_object().into_iter().flatten();
    for (key, _) in user {
        let known = ["uid", "gid", "umask", "additionalGids", "username"];
        assert!(known.contains(&key.as_str()), "{process}");
    }
    let score = process["oomScoreAdj"].as_i64();
    assert!(score.is_none_or(|score| score >= -998), "{score:?}");
}

/// What is allowed where the request brings no profile and no capability.
static BUILT_IN: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let plain = hardened(base(), &Policy::strict(), Asker::Client).expect("base");
    profile::calls(&plain.spec.as_map()["linux"]["seccomp"])
});

/// The capabilities it has were compared with the policy's before.
fn held_seccomp(asked: &Value, spec: &Value, allowed: &Allowed) {
    let profile = &spec["linux"]["seccomp"];
    if allowed.unconfined && asked["linux"]["seccomp"].is_null() {
        assert!(profile.is_null(), "{profile}");
        return;
    }
    let sets = &spec["process"]["capabilities"];
    let of = |set: &str| texts(sets, set);
    let granted: BTreeSet<&str> = ["/bounding", "/permitted"]
        .into_iter()
        .flat_map(of)
        .collect();
    // By default all is allowed, so what is not is said of each call of the table.
    assert_eq!(profile["defaultAction"], json!("SCMP_ACT_ALLOW"));
    let calls = profile::calls(profile);
    for name in NEVER_CALLED.iter().chain(&["clone3"]) {
        assert!(!calls.contains(*name), "{name}");
    }
    for name in &calls {
        let comes_with = |(capability, calls): &(&str, &[&str])| {
            calls.contains(&name.as_str()) && granted.contains(capability)
        };
        assert!(
            BUILT_IN.contains(name) || WITH_CAPABILITY.iter().any(comes_with),
            "{name} is not in the built-in profile of {granted:?}"
        );
    }
    let filter = profile::Filter::of(profile);
    for flag in profile::NAMESPACE_FLAGS {
        for flags in [flag, flag | 0x11, u64::MAX] {
            assert!(
                !filter.allows("clone", &[flags, 0, 0, 0, 0, 0]),
                "{flags:#x}"
            );
        }
    }
    for entry in profile["syscalls"].as_array().expect("syscalls") {
        for argument in entry["args"].as_array().into_iter().flatten() {
            // One above 5 ends the sandbox at its start.
            assert!(argument["index"].as_u64().expect("an index") <= 5);
        }
    }
}

/// The folder of the pod that asks, if it has a uid; none where no pod does.
fn own_folder(asked: &Value, asker: Asker) -> Option<Option<PathBuf>> {
    let annotation = |key: &str| asked["annotations"][key].as_str();
    if asker == Asker::Client {
        // Another engine's pod has no folder that anybody can check.
        let is_pods = |annotations: &serde_json::Map<String, Value>| {
            annotations
                .keys()
                .any(|key| key.starts_with("io.kubernetes.cri"))
        };
        return asked["annotations"]
            .as_object()
            .is_some_and(is_pods)
            .then_some(None);
    }
    if asked["annotations"]["io.kubernetes.cri.container-type"].is_null() {
        return None;
    }
    let uid = annotation("io.kubernetes.cri.sandbox-uid").filter(|uid| !uid.is_empty());
    let uid = uid.filter(|uid| uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    Some(uid.map(|uid| Path::new("/var/lib/kubelet/pods").join(uid)))
}

/// Whether a path is what it says, without any part that leads elsewhere.
fn normal(path: &Path) -> bool {
    let mut parts = path.components();
    parts.all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn held_mounts(asked: &Value, spec: &Value, allowed: &Allowed, asker: Asker) {
    let own_folder = &own_folder(asked, asker);
    let mounts = spec["mounts"].as_array().expect("mounts").iter();
    let places: Vec<&str> = mounts
        .filter_map(|one| one["destination"].as_str())
        .collect();
    let each: BTreeSet<&str> = places.iter().copied().collect();
    assert_eq!(each.len(), places.len(), "one of two is hidden: {places:?}");
    assert!(each.contains("/dev"), "runsc's own can be written");
    for mount in spec["mounts"].as_array().expect("mounts") {
        let options = texts(mount, "/options");
        let destination = mount["destination"].as_str().expect("a destination");
        assert!(
            destination.starts_with('/') && !destination.contains("/../"),
            "{mount}"
        );
        for shared in ["shared", "rshared", "slave", "idmap", "ridmap"] {
            assert!(!options.contains(&shared), "{mount}");
        }
        let is_bind = mount["type"] == "bind";
        assert!(
            (allowed.propagation && is_bind) || !options.contains(&"rslave"),
            "{mount}"
        );
        // Without a word a bind would be a slave.
        assert!(
            !is_bind
                || ["rprivate", "rslave"]
                    .iter()
                    .any(|one| options.contains(one)),
            "{mount}"
        );
        match mount["type"].as_str().expect("a type") {
            "bind" => {
                let source = Path::new(mount["source"].as_str().expect("source"));
                let never = ["/proc", "/sys", "/dev", "/run/docker.sock", "/run/bulkhead"];
                assert!(
                    !never.iter().any(|never| source.starts_with(never)),
                    "{mount}"
                );
                let whole = ["/", "/run", "/var/run"].map(Path::new);
                assert!(source.starts_with("/") && normal(source), "{mount}");
                assert!(!whole.contains(&source), "{mount}");
                if let Some(own) = own_folder {
                    let own = own.as_deref().is_some_and(|own| {
                        let log = source.strip_prefix(own.join("containers"));
                        let is_log = log.is_ok_and(|log| log.components().count() == 2);
                        let own = ["volumes", "etc-hosts", "volume-subpaths/own"]
                            .map(|name| own.join(name));
                        is_log || own.iter().any(|folder| source.starts_with(folder))
                    });
                    let [read_only, writable] = &allowed.binds;
                    let is_in = |list: &[&str]| list.iter().any(|one| source.starts_with(one));
                    let is_read_only = options.contains(&"ro") && !options.contains(&"rw");
                    let listed = is_in(writable) || (is_in(read_only) && is_read_only);
                    assert!(own || listed, "not the pod's own: {mount}");
                }
                assert!(
                    options.contains(&"nodev") && options.contains(&"nosuid"),
                    "{mount}"
                );
                let of_the_root = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
                let may_write = spec["root"]["readonly"] == false || options.contains(&"ro");
                assert!(!of_the_root.contains(&destination) || may_write, "{mount}");
            }
            // The one that a pod shares has its size from the sandbox.
            "tmpfs" if destination != "/dev" && mount["source"] != "/dev/shm" => {
                let is_exec = options.contains(&"exec") || !options.contains(&"noexec");
                assert!(allowed.exec || !is_exec, "{mount}");
                let sizes = options
                    .iter()
                    .filter_map(|option| option.strip_prefix("size="));
                let sizes: Vec<u64> = sizes.map(|size| size.parse().expect("bytes")).collect();
                let [tmp, run, shm, _] = allowed.sizes;
                let most = match destination {
                    "/run" | "/var/run" => run,
                    "/dev/shm" => shm,
                    _ => tmp,
                };
                assert!(
                    sizes.len() == 1 && sizes[0] <= most << 20,
                    "{most}: {mount}"
                );
            }
            "tmpfs" | "proc" | "sysfs" | "devpts" | "mqueue" | "cgroup" => {}
            other => panic!("{other}: {mount}"),
        }
    }
}
