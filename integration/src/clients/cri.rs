//! Kubernetes' runtime interface (CRI), as the kubelet uses it: a client in place of `crictl`.

use std::time::Duration;

use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Request, Response, Status};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AttachRequest, Container, ContainerStats, ContainerStatsRequest, ContainerStatus,
    ContainerStatusRequest, CreateContainerRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse,
    ListContainerStatsRequest, ListContainersRequest, ListMetricDescriptorsRequest,
    ListPodSandboxMetricsRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest,
    MetricDescriptor, PodSandbox, PodSandboxMetrics, PodSandboxState, PodSandboxStats,
    PodSandboxStatsRequest, PodSandboxStatus, PodSandboxStatusRequest, RemoveContainerRequest,
    RemovePodSandboxRequest, ReopenContainerLogRequest, RunPodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
    UpdateContainerResourcesRequest,
};

use crate::clients::client::DEADLINE;
use crate::ground::patience::patience;
use crate::ground::places::SOCKET;

/// containerd's namespace for CRI.
pub const NAMESPACE: &str = "k8s.io";
/// The kubelet's root folder.
pub const KUBELET: &str = "/var/lib/kubelet";
/// The handler of the runtime under test.
pub const HANDLER: &str = "tested";
/// The handler of runc, beside it.
pub const RUNC: &str = "runc";

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
