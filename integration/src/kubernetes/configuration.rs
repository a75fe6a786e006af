//! How the parts of the cluster are told to run: on the loopback, without anything that needs a second machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::programs::{KUBELET, NODE, program};
use crate::bed::HANDLERS;
use crate::ground::places::SOCKET;

/// What the node is reached at. A kubelet takes no address of the loopback.
const ADDRESS: &str = "10.99.0.1";
/// Who may do everything.
const TOKEN: &str = "the-tests-own";
/// Memory that every machine has left.
pub const PLENTY: &str = "1Mi";
const SERVER: &str = "https://127.0.0.1:6443";

/// The RuntimeClasses of the documentation, one for each further handler, and one for a handler that containerd has never
/// heard of.
pub(super) fn runtime_classes() -> String {
    let documented =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes/runtimeclass.yaml");
    let documented = fs::read_to_string(documented).expect("read the RuntimeClasses");
    let names = HANDLERS.iter().map(|(name, _)| *name);
    let further = names
        .chain(["no-binary", "no-handler"])
        .filter(|name| !documented.contains(&format!("handler: {name}\n")));
    let classes = further.map(|name| {
        format!(
            "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{ name: {name} }}\nhandler: {name}\n"
        )
    });
    let classes: Vec<String> = std::iter::once(documented.clone()).chain(classes).collect();
    classes.join("---\n")
}

/// Gives the machine an address, which a kubelet asks for.
pub(super) fn network() {
    for line in [
        "link add node0 type veth peer name node1",
        "addr add 10.99.0.1/24 dev node0",
        "link set node0 up",
        "link set node1 up",
    ] {
        let status = Command::new("ip").args(line.split(' ')).status();
        assert!(status.expect("run ip").success(), "ip {line}");
    }
}

/// Writes what the parts read.
pub(super) fn write(folder: &Path) {
    let key = folder.join("accounts.key");
    let made = Command::new("openssl")
        .args(["genrsa", "-out"])
        .arg(&key)
        .output();
    assert!(made.expect("run openssl").status.success(), "openssl");
    let tokens = format!("{TOKEN},admin,admin,\"system:masters\"\n");
    fs::write(folder.join("tokens.csv"), tokens).expect("write the tokens");
    let access = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{ "name": "here", "cluster": { "server": SERVER, "insecure-skip-tls-verify": true } }],
        "users": [{ "name": "admin", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "here", "context": { "cluster": "here", "user": "admin" } }],
    });
    fs::write(folder.join("access.json"), access.to_string()).expect("write the access");
    write_kubelet(folder, PLENTY);
}

/// Writes the kubelet's configuration, by which a pod is evicted when less memory than this is left.
pub(super) fn write_kubelet(folder: &Path, memory: &str) {
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{SOCKET}
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
# A node in a test has no right to lower a score.
oomScoreAdj: 0
authentication: {{ anonymous: {{ enabled: true }}, webhook: {{ enabled: false }} }}
authorization: {{ mode: AlwaysAllow }}
makeIPTablesUtilChains: false
resolvConf: \"\"
clusterDNS: [\"10.96.0.10\"]
# Short, so that tests see within seconds what takes minutes elsewhere.
syncFrequency: 5s
nodeStatusUpdateFrequency: 2s
evictionPressureTransitionPeriod: 5s
volumeStatsAggPeriod: 5s
containerLogMaxSize: 64Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
# How full the disk is of whoever runs the tests is not their subject.
imageGCHighThresholdPercent: 100
# Containers share the sandbox's cgroup, so their figures come from the runtime.
featureGates: {{ PodAndContainerStatsFromCRI: true }}
evictionHard: {{ memory.available: \"{memory}\" }}
"
    );
    fs::write(folder.join("kubelet.yaml"), text).expect("write the kubelet's configuration");
}

pub(super) fn etcd(folder: &Path) -> Command {
    let mut command = Command::new(program("etcd"));
    command.arg("--data-dir").arg(folder.join("etcd")).args([
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
    ]);
    command
}

pub(super) fn api_server(folder: &Path) -> Command {
    let mut command = Command::new(program("kube-apiserver"));
    let key = folder.join("accounts.key").display().to_string();
    command.args([
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        // The node's name is nowhere to be looked up.
        "--kubelet-preferred-address-types=InternalIP",
        "--service-cluster-ip-range=10.96.0.0/24",
        "--authorization-mode=AlwaysAllow",
        "--allow-privileged=true",
        // Neither a second server nor a controller that makes accounts is here.
        "--endpoint-reconciler-type=none",
        "--disable-admission-plugins=ServiceAccount",
        "--service-account-issuer=https://kubernetes.default.svc",
        &format!("--service-account-key-file={key}"),
        &format!("--service-account-signing-key-file={key}"),
        &format!("--token-auth-file={}", folder.join("tokens.csv").display()),
        &format!("--cert-dir={}", folder.join("certificates").display()),
    ]);
    command
}

pub(super) fn controllers(folder: &Path, names: &[&str]) -> Command {
    let mut command = Command::new(program("kube-controller-manager"));
    command.args([
        &format!("--kubeconfig={}", folder.join("access.json").display()),
        &format!("--controllers={}", names.join(",")),
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        &format!("--cert-dir={}", folder.join("certificates").display()),
    ]);
    command
}

pub(super) fn kubelet(folder: &Path) -> Command {
    let mut command = Command::new(program("kubelet"));
    command.args([
        &format!("--config={}", folder.join("kubelet.yaml").display()),
        &format!("--kubeconfig={}", folder.join("access.json").display()),
        &format!("--root-dir={KUBELET}"),
        &format!("--node-ip={ADDRESS}"),
        &format!("--hostname-override={NODE}"),
        "--v=2",
    ]);
    command
}
