//! The cluster: what starts it, asks it and ends parts of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::configuration;
use super::kubectl::{self, Answer};
use super::programs::{NODE, spawn};
use crate::bed::Bed;
use crate::clients::cri::Cri;
use crate::ground::patience::patience;
use crate::ground::places::LOG;

/// How long the parts may take to answer for the first time.
const UP: Duration = Duration::from_secs(90);

/// The control plane and the kubelet.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    kubelet: Mutex<Child>,
    cri: Cri,
}

/// kubectl's arguments for whether the node is ready, and since when it is or is not.
const READY: [&str; 5] = [
    "get",
    "node",
    NODE,
    "-o",
    "jsonpath={range .status.conditions[?(@.type=='Ready')]}{.status} {.lastTransitionTime}{end}",
];

impl Cluster {
    /// Starts everything and waits until the node is ready.
    ///
    /// # Panics
    /// When a part is missing or does not come up; its log is in the testbed's.
    pub async fn start(bed: &Bed) -> Self {
        let folder = bed.folder.join("kubernetes");
        fs::create_dir_all(&folder).expect("make the cluster's folder");
        configuration::network();
        configuration::write(&folder);
        for program in [
            configuration::etcd(&folder),
            configuration::api_server(&folder),
        ] {
            bed.adopt(spawn(program, &folder).id());
        }
        let kubelet = spawn(configuration::kubelet(&folder), &folder);
        bed.adopt(kubelet.id());
        let cluster = Self {
            folder,
            kubelet: Mutex::new(kubelet),
            cri: Cri::connect().await,
        };
        cluster.ready().await;
        let classes = configuration::runtime_classes();
        cluster
            .kubectl_with(&["apply", "-f", "-"], &classes)
            .await
            .ok();
        cluster
    }

    /// Runs `kubectl`.
    pub async fn kubectl(&self, args: &[&str]) -> Answer {
        kubectl::run(&self.folder, args, "").await
    }

    /// Runs `kubectl` in a terminal of 33 rows and 101 columns; no argument may have a single quote.
    pub async fn kubectl_in_a_terminal(&self, args: &[&str]) -> Answer {
        kubectl::in_a_terminal(&self.folder, args).await
    }

    /// Runs `kubectl` with something on its stdin.
    pub async fn kubectl_with(&self, args: &[&str], stdin: &str) -> Answer {
        kubectl::run(&self.folder, args, stdin).await
    }

    /// Asks until an answer is as wanted, and returns it.
    ///
    /// # Panics
    /// When it is not within the time; the last answer is shown.
    pub async fn until(
        &self,
        what: &str,
        limit: Duration,
        args: &[&str],
        wanted: impl Fn(&Answer) -> bool,
    ) -> Answer {
        let deadline = Instant::now() + patience(limit);
        loop {
            let answer = self.kubectl(args).await;
            if wanted(&answer) {
                return answer;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: not within {limit:?}: {answer:?}"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Binds a pod to the node, as a scheduler does.
    pub async fn bind(&self, pod: &str) {
        self.bind_in("default", pod).await;
    }

    /// The same for a pod of another namespace.
    pub async fn bind_in(&self, namespace: &str, pod: &str) {
        let binding = serde_json::json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod },
            "target": { "apiVersion": "v1", "kind": "Node", "name": NODE },
        });
        let place = format!("/api/v1/namespaces/{namespace}/pods/{pod}/binding");
        let args = ["create", "--raw", &place, "-f", "-"];
        self.kubectl_with(&args, &binding.to_string()).await.ok();
    }

    /// Waits until the node says that it is ready.
    ///
    /// # Panics
    /// When it does not.
    pub async fn ready(&self) {
        self.until("the node is ready", UP, &READY, |answer| {
            answer.stdout.starts_with("True ")
        })
        .await;
    }

    /// Since when the node is ready, without a break, as the API server has it.
    ///
    /// # Panics
    /// When it is not.
    pub async fn ready_since(&self) -> String {
        let answer = self.kubectl(&READY).await;
        let since = answer.stdout.strip_prefix("True ");
        since.expect("the node is ready").to_owned()
    }

    /// Starts the controllers of these names, which are there until the result is dropped.
    #[must_use]
    pub fn start_controllers(&self, bed: &Bed, names: &[&str]) -> Controllers {
        let manager = spawn(
            configuration::controllers(&self.folder, names),
            &self.folder,
        );
        bed.adopt(manager.id());
        Controllers(manager)
    }

    /// Ends the kubelet, which leaves all pods running.
    ///
    /// # Panics
    /// When there is none.
    pub fn kill_kubelet(&self) {
        let mut kubelet = self.kubelet.lock().expect("unpoisoned");
        kubelet.kill().expect("kill the kubelet");
        kubelet.wait().expect("wait for the kubelet");
    }

    /// Starts the kubelet again and waits until the node is ready. It evicts pods when less memory than this is left.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_kubelet(&self, bed: &Bed, memory: &str) {
        configuration::write_kubelet(&self.folder, memory);
        let kubelet = spawn(configuration::kubelet(&self.folder), &self.folder);
        bed.adopt(kubelet.id());
        *self.kubelet.lock().expect("unpoisoned") = kubelet;
        self.listening().await;
        self.ready().await;
    }

    /// Waits until the kubelet answers by itself: what the API server knows of the node may be older.
    async fn listening(&self) {
        let deadline = Instant::now() + patience(UP);
        while std::net::TcpStream::connect("127.0.0.1:10248").is_err() {
            assert!(Instant::now() < deadline, "the kubelet does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Removes what pods have left in containerd, as the kubelet does once a minute: tests do not wait for it.
    pub async fn collect(&self) {
        self.cri.remove_ended_pods().await;
    }

    /// What the kubelet has written down.
    #[must_use]
    pub fn kubelet_log(&self) -> String {
        fs::read_to_string(Path::new(LOG).join("kubelet.log")).unwrap_or_default()
    }
}

/// Controllers of the cluster. Other tests have none: what they delete or end stays so.
#[derive(Debug)]
pub struct Controllers(Child);

impl Drop for Controllers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Adds to a file of the folder that `BULKHEAD_KUBERNETES_OUTPUT` names, for the documentation to quote.
///
/// # Panics
/// When it cannot be written.
pub fn note(file: &str, text: &str) {
    use std::io::Write as _;
    let Some(folder) = std::env::var_os("BULKHEAD_KUBERNETES_OUTPUT") else {
        return;
    };
    let path = Path::new(&folder).join(file);
    let opened = fs::File::options().create(true).append(true).open(path);
    let mut file = opened.expect("open a file of output");
    file.write_all(text.as_bytes()).expect("write output");
}
