//! containerd's configuration: what the tests use, and nothing more.

use std::fs;
use std::path::Path;

use crate::bed::handlers::containerd_handlers;
use crate::clients::cri::{HANDLER, RUNC};
use crate::ground::places::{SOCKET, STATE, is_before_2, tool};
use crate::ground::runtime::Runtime;

/// Where CNI finds its networks.
const CNI: &str = "/etc/cni/net.d";

/// What containerd is to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Services {
    /// Tasks, as `ctr` and `nerdctl` use them.
    Tasks,
    /// Kubernetes' runtime interface as well.
    Cri,
    /// The same, with the handlers that the tests of a node use.
    Kubernetes,
}

/// All of it, for a runtime and what is to be served.
pub(super) fn of(folder: &Path, runtime: &Runtime, services: Services) -> String {
    // Nothing but what the tests need.
    let mut unused = vec![
        "io.containerd.internal.v1.opt",
        "io.containerd.internal.v1.restart",
        "io.containerd.internal.v1.tracing",
        "io.containerd.nri.v1.nri",
        "io.containerd.snapshotter.v1.blockfile",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.erofs",
        "io.containerd.snapshotter.v1.zfs",
        "io.containerd.tracing.processor.v1.otlp",
    ];
    let more = if services != Services::Tasks {
        of_cri(folder, runtime, services, is_before_2())
    } else {
        unused.extend([
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.grpc.v1.cri",
            "io.containerd.podsandbox.controller.v1",
        ]);
        String::new()
    };
    let version = if is_before_2() { 2 } else { 3 };
    format!(
        "version = {version}\nroot = {:?}\nstate = {STATE:?}\noom_score = 0\ndisabled_plugins = {unused:?}\n\
         [grpc]\naddress = {SOCKET:?}\n{more}",
        folder.join("root").display().to_string(),
    )
}

/// What containerd's configuration needs for CRI; writes the network's as well.
fn of_cri(folder: &Path, runtime: &Runtime, services: Services, before_2: bool) -> String {
    let addresses = folder.join("cni");
    let network = serde_json::json!({
        "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "pods0", "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": addresses, "ranges": [[{ "subnet": "10.88.0.0/16" }]] },
        }],
    });
    fs::create_dir_all(CNI).expect("make CNI's folder");
    fs::write(Path::new(CNI).join("10-pods.conflist"), network.to_string()).expect("configure CNI");
    let plugins = tool("bridge").expect("CNI plugins: make tools");
    let plugins = plugins.parent().expect("a folder").display().to_string();
    let name = &runtime.name;
    if before_2 {
        return format!(
            r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "bulkhead.test/pause:latest"
# Nobody may lower a score here.
restrict_oom_score_adj = true
disable_apparmor = true
disable_tcp_service = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "{HANDLER}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER}]
runtime_type = "{name}"
pod_annotations = ["dev.bulkhead.*", "dev.gvisor.*"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{RUNC}]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{CNI}"
"#
        );
    }
    let (default, more) = match services {
        Services::Kubernetes => ("runc", containerd_handlers(name)),
        _ => (
            HANDLER,
            format!(
                "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.{RUNC}]\n\
                 runtime_type = \"io.containerd.runc.v2\"\n"
            ),
        ),
    };
    format!(
        r#"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "bulkhead.test/pause:latest"
[plugins."io.containerd.cri.v1.runtime"]
# Nobody may lower a score here.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "{default}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{HANDLER}]
runtime_type = "{name}"
pod_annotations = ["dev.bulkhead.*", "dev.gvisor.*"]
{more}[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{plugins}"]
conf_dir = "{CNI}"
[plugins."io.containerd.grpc.v1.cri"]
disable_tcp_service = true
stream_server_address = "127.0.0.1"
"#
    )
}
