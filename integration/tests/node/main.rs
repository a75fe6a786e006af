//! A node with systemd and cgroup v2, seen from itself: what its systemd, its package manager and its containerd do to sandboxes that run.
//! `make test-node` boots one and runs this in it as root; nowhere else is it of use.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod containerd;
mod limits;
mod package;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use integration::cri::{Cri, Pod};
use k8s_cri::v1::{
    LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata,
    RemovePodSandboxRequest, RunPodSandboxRequest,
};
use libtest_mimic::{Arguments, Trial};

/// A behaviour: its name, and what it does.
type Case = (&'static str, fn());

const MIB: u64 = 1 << 20;
/// The handler that `bulkhead install` has put there.
const HANDLER: &str = "bulkhead";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // There is one node.
    arguments.test_threads = Some(1);
    let cases = [limits::CASES, containerd::CASES, package::CASES].concat();
    let trials = cases.into_iter().map(|(name, run)| {
        Trial::test(name, move || {
            run();
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    conclusion.exit_code()
}

/// Runs what speaks to containerd.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work)
}

/// Runs a shell's line.
fn shell(line: &str) -> Output {
    Command::new("/bin/sh")
        .args(["-c", line])
        .output()
        .expect("run a shell")
}

/// What a line says that does what it is to do.
fn said(line: &str) -> String {
    let output = shell(line);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What a pod's slice is held to; none where the kubelet sets none.
#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    memory: Option<u64>,
    /// Microseconds of CPU time in a second.
    cpu: Option<u64>,
}

/// A pod in a slice of its own, as the kubelet's systemd driver makes them.
struct Node {
    pod: Pod,
    slice: String,
}

impl Node {
    async fn pod(slice: Slice, announced: Option<LinuxContainerResources>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kubepods-pod{}_{number}.slice", std::process::id());
        let mut properties = vec!["TasksAccounting b true".to_owned()];
        properties.push("MemoryAccounting b true".to_owned());
        properties.push("CPUAccounting b true".to_owned());
        properties.extend(slice.memory.map(|bytes| format!("MemoryMax t {bytes}")));
        properties.extend(
            slice
                .cpu
                .map(|micros| format!("CPUQuotaPerSecUSec t {micros}")),
        );
        said(&format!(
            "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager \
             StartTransientUnit 'ssa(sv)a(sa(sv))' {name} replace {} {} 0",
            properties.len(),
            properties.join(" ")
        ));
        let id = format!("pod{number}");
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: id.clone(),
                uid: format!("uid-{id}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: id.clone(),
            log_directory: format!("/var/log/pods/{id}"),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/kubepods.slice/{name}"),
                resources: announced,
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let cri = Cri::connect().await;
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: HANDLER.into(),
        };
        let id = cri.run_pod_sandbox(request).await.expect("RunPodSandbox");
        let pod = Pod { cri, id, config };
        Self { pod, slice: name }
    }

    /// A container that sleeps, and declares so much.
    async fn container(&self, name: &str, resources: LinuxContainerResources) -> String {
        let mut config = self.pod.container(name, &["sleep", "100000"]);
        config.linux.as_mut().expect("linux").resources = Some(resources);
        self.pod.launch(config).await.expect("launch")
    }

    fn scope(&self) -> String {
        format!("cri-containerd-{}.scope", self.pod.id)
    }

    fn cgroup(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup/kubepods.slice")
            .join(&self.slice)
            .join(self.scope())
    }

    /// A file of the sandbox's cgroup.
    fn read(&self, file: &str) -> String {
        let path = self.cgroup().join(file);
        let text = fs::read_to_string(&path);
        text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .trim()
            .to_owned()
    }

    /// Memory in MiB, and CPU time as the kernel has it.
    fn limits(&self) -> (u64, String) {
        let memory = self.read("memory.max");
        let memory = memory.parse::<u64>().map_or(u64::MAX, |bytes| bytes / MIB);
        (memory, self.read("cpu.max"))
    }

    /// What makes systemd look at its units again: all of them, and those beside a new one.
    fn look_again(&self) {
        said("systemctl daemon-reload");
        said(&format!(
            "systemd-run --quiet --wait --collect --slice={} /bin/true",
            self.slice
        ));
    }

    /// Whether the pod's containers do what they are told.
    async fn works(&self, id: &str) {
        let answer = self.pod.exec(id, &["echo", "alive"]).await;
        assert_eq!(answer, (0, "alive\n".into()));
    }

    async fn remove(self) {
        self.pod.stop().await;
        let pod_sandbox_id = self.pod.id.clone();
        let request = RemovePodSandboxRequest { pod_sandbox_id };
        let removed = self.pod.cri.remove_pod_sandbox(request).await;
        removed.expect("RemovePodSandbox");
        said(&format!("systemctl stop {}", self.slice));
    }
}

/// What a container declares: memory in MiB, thousandths of a CPU.
fn declared(mib: u64, milli_cpus: u64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: i64::try_from(mib * MIB).expect("fits"),
        cpu_period: 100_000,
        cpu_quota: i64::try_from(milli_cpus * 100).expect("fits"),
        ..LinuxContainerResources::default()
    }
}
