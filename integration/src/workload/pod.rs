//! Pods, as the kubelet makes them by CRI.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::tonic::Status;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ImageSpec, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
    UpdateContainerResourcesRequest,
};

use crate::bed::Bed;
use crate::clients::cri::{Cri, HANDLER, KUBELET};
use crate::ground::cgroups;
use crate::ground::patience::patience;
use crate::ground::places::IMAGE_NAME;

/// The cgroup above all pods.
const PODS: &str = "/kubepods";

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
    cgroups::hierarchies()
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
    for hierarchy in cgroups::hierarchies() {
        let mut folder = hierarchy.path;
        for part in parent.trim_matches('/').split('/') {
            cgroups::delegate(&folder);
            folder.push(part);
            fs::create_dir_all(&folder).expect("make the pod's cgroup");
        }
        cgroups::delegate(&folder);
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
