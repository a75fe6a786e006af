//! What has to hold of every result, for the tests and the fuzz targets: it is never weaker than the policy.
#![allow(
    dead_code,
    reason = "each program that includes this uses a part of it"
)]

use std::path::{Component, Path, PathBuf};

use runsc_config::{
    ContainerKind, Context, Features, Hardened, HostFacts, Policy, Refusal, Shared, harden,
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

/// A runsc that has everything.
pub fn features() -> Features {
    let features = include_str!("features.json");
    Features::parse(include_str!("flags.txt"), Some(features)).expect("features")
}

/// What a policy allows, in a form that can be written as a policy and compared with a result.
#[derive(Debug, Clone)]
pub struct Allowed {
    pub network: bool,
    pub writable: bool,
    pub exec: bool,
    pub capabilities: Vec<String>,
    pub tasks: u64,
    pub open_files: u64,
    /// The namespace `granted` may ask for a network.
    pub grants: bool,
}

impl Allowed {
    pub fn nothing() -> Self {
        Self {
            network: false,
            writable: false,
            exec: false,
            capabilities: Vec::new(),
            tasks: 256,
            open_files: 1024,
            grants: false,
        }
    }

    pub fn policy(&self) -> Policy {
        let network = |on: bool| if on { "sandbox" } else { "none" };
        let text = format!(
            "network = {:?}\nrootfs.writable = {}\nscratch.exec = {}\ncapabilities.allow = {:?}\nlimits.pids = {}\n\
             limits.open_files = {}\n[kubernetes.namespaces.granted]\nnetwork = {:?}\n",
            network(self.network),
            self.writable,
            self.exec,
            self.capabilities,
            self.tasks,
            self.open_files,
            network(self.grants),
        );
        Policy::parse(&text, "generated").expect("a policy")
    }
}

/// Who asks for what kind of container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    Client,
    Sandbox,
    Container,
}

/// The host, in which /home/u/link leads to a socket of docker's.
pub fn host() -> HostFacts {
    HostFacts {
        resolve: |path| {
            let text = path.to_str()?;
            (text == "/home/u/link").then(|| PathBuf::from("/run/docker.sock"))
        },
        ..HostFacts::default()
    }
}

/// Hardens a spec as it would be for the asker; for a container of a pod after its sandbox.
pub fn hardened(spec: Value, policy: &Policy, asker: Asker) -> Result<Hardened, Refusal> {
    let features = features();
    let context = |kind, namespace| Context {
        id: "c",
        sandbox_id: "c",
        kind,
        namespace,
        bundle: Path::new("/bundle"),
        features: &features,
        host: host(),
    };
    match asker {
        Asker::Client => harden(spec, policy, &context(ContainerKind::Plain, "default")),
        Asker::Sandbox => harden(spec, policy, &context(ContainerKind::PodSandbox, "k8s.io")),
        Asker::Container => {
            let sandbox = harden(
                base(),
                policy,
                &context(ContainerKind::PodSandbox, "k8s.io"),
            )?;
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

/// Whether the request is of a pod of the granted namespace, and asks for a network.
fn asks_with_grant(asked: &Value, asker: Asker) -> bool {
    let annotation = |key: &str| {
        asked["annotations"][key]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    asker == Asker::Sandbox
        && !asked["annotations"]["io.kubernetes.cri.container-type"].is_null()
        && annotation("io.kubernetes.cri.sandbox-namespace") == "granted"
        && annotation("dev.bulkhead.network") == "sandbox"
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
    assert!(allowed.writable || spec["root"]["readonly"] == json!(true));
    held_process(&spec, allowed);
    held_seccomp(&spec["linux"]["seccomp"], allowed);
    held_mounts(asked, &spec, allowed, asker);
    if asker != Asker::Container {
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
    let kinds: Vec<&str> = spec["linux"]["namespaces"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|namespace| namespace["type"].as_str())
        .collect();
    for own in ["network", "pid", "ipc", "uts", "mount"] {
        assert!(kinds.contains(&own), "{own} is the host's: {kinds:?}");
    }
    assert!(!kinds.contains(&"user"));
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

fn held_flags(asked: &Value, hardened: &Hardened, allowed: &Allowed, asker: Asker) {
    let flags = hardened.flags.args();
    let has = |flag: &str| flags.iter().any(|given| given == flag);
    let may_have_network = allowed.network || (allowed.grants && asks_with_grant(asked, asker));
    assert!(may_have_network || has("--network=none"), "{flags:?}");
    assert!(allowed.writable || has("--overlay2=none"), "{flags:?}");
    for always in [
        "--oci-seccomp=true",
        "--host-uds=none",
        "--host-fifo=none",
        "--net-raw=false",
        "--allow-flag-override=false",
        "--directfs=false",
    ] {
        assert!(has(always), "{always}: {flags:?}");
    }
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

fn held_process(spec: &Value, allowed: &Allowed) {
    let process = &spec["process"];
    assert_eq!(process["noNewPrivileges"], json!(true));
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
        }
    }
    for limit in process["rlimits"].as_array().expect("rlimits") {
        let most = match limit["type"].as_str().expect("type") {
            "RLIMIT_NOFILE" => allowed.open_files,
            "RLIMIT_NPROC" => allowed.tasks,
            _ => 0,
        };
        assert!(limit["hard"].as_u64().expect("hard") <= most, "{limit}");
    }
    for label in ["selinuxLabel", "apparmorProfile"] {
        assert!(process.get(label).is_none(), "{label}");
    }
}

fn held_seccomp(profile: &Value, allowed: &Allowed) {
    assert_eq!(profile["defaultAction"], json!("SCMP_ACT_ERRNO"));
    for entry in profile["syscalls"].as_array().expect("syscalls") {
        let names = texts(entry, "/names");
        if entry["action"] != "SCMP_ACT_ALLOW" {
            continue;
        }
        for name in NEVER_CALLED {
            assert!(!names.contains(&name), "{name}");
        }
        let may_chroot = allowed
            .capabilities
            .iter()
            .any(|one| one == "CAP_SYS_CHROOT");
        assert!(may_chroot || !names.contains(&"chroot"));
        for name in ["clone", "clone3"] {
            let is_bounded = entry["args"]
                .as_array()
                .is_some_and(|args| !args.is_empty());
            assert!(
                is_bounded || !names.contains(&name),
                "{name} with any flags"
            );
        }
        for argument in entry["args"].as_array().into_iter().flatten() {
            // One above 5 ends the sandbox at its start.
            assert!(argument["index"].as_u64().expect("an index") <= 5);
        }
    }
}

/// The folder of the pod that asks, if it has a uid; none where no pod does.
fn own_folder(asked: &Value, asker: Asker) -> Option<Option<PathBuf>> {
    let annotation = |key: &str| asked["annotations"][key].as_str();
    if asker == Asker::Client || asked["annotations"]["io.kubernetes.cri.container-type"].is_null()
    {
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
    for mount in spec["mounts"].as_array().expect("mounts") {
        let options = texts(mount, "/options");
        let destination = mount["destination"].as_str().expect("a destination");
        assert!(
            destination.starts_with('/') && !destination.contains("/../"),
            "{mount}"
        );
        for shared in ["shared", "rshared", "slave", "rslave", "idmap", "ridmap"] {
            assert!(!options.contains(&shared), "{mount}");
        }
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
                    let own = own.as_deref().is_some_and(|own| source.starts_with(own));
                    assert!(own, "not the pod's own: {mount}");
                }
                assert!(
                    options.contains(&"nodev") && options.contains(&"nosuid"),
                    "{mount}"
                );
            }
            // The one that a pod shares has its size from the sandbox.
            "tmpfs" if destination != "/dev" && mount["source"] != "/dev/shm" => {
                let is_exec = options.contains(&"exec") || !options.contains(&"noexec");
                assert!(allowed.exec || !is_exec, "{mount}");
                let sizes = options.iter().filter(|option| option.starts_with("size="));
                assert_eq!(sizes.count(), 1, "{mount}");
            }
            "tmpfs" | "proc" | "sysfs" | "devpts" | "mqueue" | "cgroup" => {}
            other => panic!("{other}: {mount}"),
        }
    }
}
