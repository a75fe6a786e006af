//! Kubernetes' runtime interface (CRI), as the kubelet uses it: a client in place of `crictl`, and pods for the tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Request, Response, Status};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AttachRequest, Container, ContainerConfig, ContainerMetadata, ContainerStats,
    ContainerStatsRequest, ContainerStatus, ContainerStatusRequest, CreateContainerRequest,
    ExecRequest, ExecSyncRequest, ExecSyncResponse, ImageSpec, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListContainerStatsRequest, ListContainersRequest,
    ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, ListPodSandboxRequest,
    ListPodSandboxStatsRequest, MetricDescriptor, Mount, NamespaceMode, NamespaceOption,
    PodSandbox, PodSandboxConfig, PodSandboxMetadata, PodSandboxMetrics, PodSandboxState,
    PodSandboxStats, PodSandboxStatsRequest, PodSandboxStatus, PodSandboxStatusRequest,
    RemoveContainerRequest, RemovePodSandboxRequest, ReopenContainerLogRequest,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
    UpdateContainerResourcesRequest,
};

use crate::bed::{Bed, IMAGE_NAME, SOCKET, Services};
use crate::client::DEADLINE;
use crate::kubernetes::containerd_handlers;
use crate::patience::patience;
use crate::runtime::Runtime;

/// containerd's namespace for CRI.
pub const NAMESPACE: &str = "k8s.io";
/// The kubelet's root folder.
pub const KUBELET: &str = "/var/lib/kubelet";
/// The handler of the runtime under test.
pub const HANDLER: &str = "tested";
/// The handler of runc, beside it.
pub const RUNC: &str = "runc";
const CNI: &str = "/etc/cni/net.d";
/// The cgroup above all pods.
const PODS: &str = "/kubepods";

/// What containerd's configuration needs for CRI; writes the network's as well.
pub(crate) fn configuration(
    folder: &Path,
    runtime: &Runtime,
    services: Services,
    before_2: bool,
) -> String {
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
    let plugins = crate::bed::tool("bridge").expect("CNI plugins: make tools");
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

/// A connection to containerd's CRI plugin.
#[derive(Debug, Clone)]
pub struct Cri {
    client: RuntimeServiceClient<Channel>,
}

async fn answer<T>(
    call: &str,
    work: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(patience(DEADLINE), work).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => panic!("no answer to {call} within {DEADLINE:?}"),
    }
}

/// One method: its name, its request, and what is taken from the answer.
macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ty { $take:expr })*) => {
        $($(#[$doc])*
        pub async fn $name(&self, request: $request) -> Result<$answer, Status> {
            let mut client = self.client.clone();
            answer(stringify!($name), client.$name(Request::new(request))).await.map($take)
        })*
    };
}

#[allow(
    clippy::missing_errors_doc,
    reason = "every error is containerd's answer"
)]
impl Cri {
    /// Connects.
    ///
    /// # Panics
    /// When containerd does not answer.
    pub async fn connect() -> Self {
        let channel = containerd_client::connect(SOCKET).await;
        let client = RuntimeServiceClient::new(channel.expect("connect to containerd"));
        let cri = Self { client };
        // It serves CRI some time after the rest.
        for _ in 0..200 {
            if cri
                .list_pod_sandbox(ListPodSandboxRequest::default())
                .await
                .is_ok()
            {
                return cri;
            }
            tokio::time::sleep(patience(Duration::from_millis(50))).await;
        }
        panic!("containerd does not serve CRI: see its log");
    }

    /// Removes every pod whose sandbox has ended.
    ///
    /// # Panics
    /// When containerd does not answer.
    pub async fn remove_ended_pods(&self) {
        let pods = self.list_pod_sandbox(ListPodSandboxRequest::default());
        for pod in pods.await.expect("ListPodSandbox") {
            if pod.state() == PodSandboxState::SandboxNotready {
                let pod_sandbox_id = pod.id;
                let removed = self.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id });
                if let Err(error) = removed.await {
                    eprintln!("note: RemovePodSandbox: {error}");
                }
            }
        }
    }

    methods! {
        /// Makes and starts a pod's sandbox; returns its id.
        run_pod_sandbox(RunPodSandboxRequest) -> String { |answer| answer.pod_sandbox_id }
        /// Ends a pod.
        stop_pod_sandbox(StopPodSandboxRequest) -> () { drop }
        /// Removes a pod.
        remove_pod_sandbox(RemovePodSandboxRequest) -> () { drop }
        /// State of a pod.
        pod_sandbox_status(PodSandboxStatusRequest) -> Option<PodSandboxStatus> { |answer| answer.status }
        /// All pods.
        list_pod_sandbox(ListPodSandboxRequest) -> Vec<PodSandbox> { |answer| answer.items }
        /// Makes a container; returns its id.
        create_container(CreateContainerRequest) -> String { |answer| answer.container_id }
        /// Starts a container.
        start_container(StartContainerRequest) -> () { drop }
        /// Ends a container.
        stop_container(StopContainerRequest) -> () { drop }
        /// Removes a container.
        remove_container(RemoveContainerRequest) -> () { drop }
        /// All containers.
        list_containers(ListContainersRequest) -> Vec<Container> { |answer| answer.containers }
        /// State of a container.
        container_status(ContainerStatusRequest) -> Option<ContainerStatus> { |answer| answer.status }
        /// Runs a program in a container to its end.
        exec_sync(ExecSyncRequest) -> ExecSyncResponse { |answer| answer }
        /// Adds a program with streams to a container; returns the URL for them.
        exec(ExecRequest) -> String { |answer| answer.url }
        /// The streams of a container's first program; returns the URL for them.
        attach(AttachRequest) -> String { |answer| answer.url }
        /// Changes the limits of a container.
        update_container_resources(UpdateContainerResourcesRequest) -> () { drop }
        /// Opens a container's log anew.
        reopen_container_log(ReopenContainerLogRequest) -> () { drop }
        /// What a container uses.
        container_stats(ContainerStatsRequest) -> Option<ContainerStats> { |answer| answer.stats }
        /// What a pod uses.
        pod_sandbox_stats(PodSandboxStatsRequest) -> Option<PodSandboxStats> { |answer| answer.stats }
        /// What many containers use.
        list_container_stats(ListContainerStatsRequest) -> Vec<ContainerStats> { |answer| answer.stats }
        /// What many pods use.
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> Vec<PodSandboxStats> { |answer| answer.stats }
        /// The metrics that there are.
        list_metric_descriptors(ListMetricDescriptorsRequest) -> Vec<MetricDescriptor> { |answer| answer.descriptors }
        /// The metrics of all pods and their containers.
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> Vec<PodSandboxMetrics> { |answer| answer.pod_metrics }
    }
}

/// A pod to be, and then the pod.
#[derive(Debug)]
pub struct Pod {
    /// The connection.
    pub cri: Cri,
    /// The id of its sandbox.
    pub id: String,
    /// Its configuration.
    pub config: PodSandboxConfig,
}

impl Pod {
    /// A configuration like the kubelet's.
    #[must_use]
    pub fn config(bed: &Bed) -> PodSandboxConfig {
        let name = bed.id("pod");
        let uid = format!("uid-{name}");
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: uid.clone(),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: bed.folder.join("logs").join(&name).display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{PODS}/{uid}"),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(own_processes()),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// Runs a pod.
    ///
    /// # Errors
    /// containerd's answer; nothing stays.
    pub async fn run(config: PodSandboxConfig) -> Result<Self, Status> {
        Self::run_by(HANDLER, config).await
    }

    /// Runs a pod by a handler that is not the tests' own.
    ///
    /// # Errors
    /// containerd's answer; nothing stays.
    pub async fn run_by(handler: &str, config: PodSandboxConfig) -> Result<Self, Status> {
        let cri = Cri::connect().await;
        // What the kubelet makes before it asks for the pod: its folder and its cgroup.
        fs::create_dir_all(folder_of(&config)).expect("make the pod's folder");
        make_cgroup(&config);
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.into(),
        };
        match cri.run_pod_sandbox(request).await {
            Ok(id) => Ok(Self { cri, id, config }),
            Err(error) => {
                clean_up(&config).await;
                Err(error)
            }
        }
    }

    /// The pod's folder in the kubelet's.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        folder_of(&self.config)
    }

    /// The cgroup of the pod, which its sandbox's lies in.
    #[must_use]
    pub fn cgroup(&self) -> String {
        parent_of(&self.config)
    }

    /// A container to be.
    #[must_use]
    pub fn container(&self, name: &str, args: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: IMAGE_NAME.into(),
                ..ImageSpec::default()
            }),
            command: args.iter().map(|&arg| arg.to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(own_processes()),
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        }
    }

    /// A container that runs a shell script.
    #[must_use]
    pub fn shell(&self, name: &str, script: &str) -> ContainerConfig {
        self.container(name, &["sh", "-c", script])
    }

    /// Makes a container.
    ///
    /// # Errors
    /// containerd's answer.
    pub async fn create(&self, config: ContainerConfig) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        self.cri.create_container(request).await
    }

    /// Starts a container.
    ///
    /// # Errors
    /// containerd's answer.
    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let container_id = id.to_owned();
        self.cri
            .start_container(StartContainerRequest { container_id })
            .await
    }

    /// Makes and starts a container.
    ///
    /// # Errors
    /// containerd's answer.
    pub async fn launch(&self, config: ContainerConfig) -> Result<String, Status> {
        let id = self.create(config).await?;
        self.start(&id).await.map(|()| id)
    }

    /// Runs a program in a container and returns its exit code and stdout.
    ///
    /// # Panics
    /// When it cannot be run.
    pub async fn exec(&self, id: &str, args: &[&str]) -> (i32, String) {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: args.iter().map(|&arg| arg.to_owned()).collect(),
            timeout: 30,
        };
        let answer = self.cri.exec_sync(request).await.expect("ExecSync");
        (
            answer.exit_code,
            String::from_utf8_lossy(&answer.stdout).into_owned(),
        )
    }

    /// State of a container.
    ///
    /// # Panics
    /// When there is none.
    pub async fn status(&self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let status = self
            .cri
            .container_status(request)
            .await
            .expect("ContainerStatus");
        status.expect("a status")
    }

    /// Waits until a container has ended.
    ///
    /// # Panics
    /// When it does not.
    pub async fn ended(&self, id: &str) -> ContainerStatus {
        for _ in 0..600 {
            let status = self.status(id).await;
            if status.finished_at > 0 {
                return status;
            }
            tokio::time::sleep(patience(Duration::from_millis(50))).await;
        }
        panic!("container {id} has not ended within 30 s");
    }

    /// The log of a container, without its stamps.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        let path = Path::new(&self.config.log_directory).join(format!("{name}.log"));
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.splitn(4, ' ').nth(3))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Changes the limits of a container.
    ///
    /// # Errors
    /// containerd's answer.
    pub async fn update(&self, id: &str, linux: LinuxContainerResources) -> Result<(), Status> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..UpdateContainerResourcesRequest::default()
        };
        self.cri.update_container_resources(request).await
    }

    /// Ends a container and removes it.
    ///
    /// # Panics
    /// When that fails.
    pub async fn remove_container(&self, id: &str) {
        let container_id = id.to_owned();
        let stop = StopContainerRequest {
            container_id,
            timeout: 0,
        };
        self.cri.stop_container(stop).await.expect("StopContainer");
        let container_id = id.to_owned();
        let remove = RemoveContainerRequest { container_id };
        self.cri
            .remove_container(remove)
            .await
            .expect("RemoveContainer");
    }

    /// Ends the pod.
    ///
    /// # Panics
    /// When that fails.
    pub async fn stop(&self) {
        let pod_sandbox_id = self.id.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id };
        self.cri
            .stop_pod_sandbox(request)
            .await
            .expect("StopPodSandbox");
    }

    /// Ends and removes the pod with all its containers.
    ///
    /// # Panics
    /// When that fails.
    pub async fn remove(self) {
        self.stop().await;
        let pod_sandbox_id = self.id.clone();
        let request = RemovePodSandboxRequest { pod_sandbox_id };
        self.cri
            .remove_pod_sandbox(request)
            .await
            .expect("RemovePodSandbox");
        clean_up(&self.config).await;
    }
}

/// A mount as the kubelet asks for it.
#[must_use]
pub fn mount(source: &Path, destination: &str, readonly: bool) -> Mount {
    Mount {
        host_path: source.display().to_string(),
        container_path: destination.into(),
        readonly,
        ..Mount::default()
    }
}

/// What the kubelet asks for unless a pod says shareProcessNamespace.
fn own_processes() -> NamespaceOption {
    NamespaceOption {
        pid: NamespaceMode::Container.into(),
        ..NamespaceOption::default()
    }
}

fn uid_of(config: &PodSandboxConfig) -> &str {
    &config.metadata.as_ref().expect("metadata").uid
}

fn folder_of(config: &PodSandboxConfig) -> PathBuf {
    Path::new(KUBELET).join("pods").join(uid_of(config))
}

fn parent_of(config: &PodSandboxConfig) -> String {
    config.linux.as_ref().expect("linux").cgroup_parent.clone()
}

/// The folders of a cgroup on every hierarchy.
#[must_use]
pub fn cgroup_folders(path: &str) -> Vec<PathBuf> {
    crate::cgroups::hierarchies()
        .into_iter()
        .map(|hierarchy| hierarchy.path.join(path.trim_matches('/')))
        .collect()
}

/// Makes the pod's cgroup with all its controllers, as the kubelet does before it asks for the pod.
///
/// # Panics
/// When that fails.
pub fn make_cgroup(config: &PodSandboxConfig) {
    let parent = parent_of(config);
    for hierarchy in crate::cgroups::hierarchies() {
        let mut folder = hierarchy.path;
        for part in parent.trim_matches('/').split('/') {
            crate::cgroups::delegate(&folder);
            folder.push(part);
            fs::create_dir_all(&folder).expect("make the pod's cgroup");
        }
        crate::cgroups::delegate(&folder);
    }
}

fn remove_cgroup(config: &PodSandboxConfig) {
    let parent = parent_of(config);
    for folder in cgroup_folders(&parent) {
        let _ = fs::remove_dir(&folder);
        let _ = folder.parent().map(fs::remove_dir);
    }
}

/// Takes away what the kubelet takes away, once the kernel has let go of the pod's processes.
async fn clean_up(config: &PodSandboxConfig) {
    let _ = fs::remove_dir_all(folder_of(config));
    let _ = fs::remove_dir_all(&config.log_directory);
    for _ in 0..40 {
        remove_cgroup(config);
        let left = cgroup_folders(&parent_of(config));
        if !left.iter().any(|folder| folder.exists()) {
            return;
        }
        tokio::time::sleep(patience(Duration::from_millis(50))).await;
    }
}
