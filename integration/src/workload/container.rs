//! Containers and execs, as a client of containerd handles them.

use std::fs;
use std::path::Path;

use containerd_client::services::v1::container::Runtime as ContainerRuntime;
use containerd_client::services::v1::{Container as Registered, CreateTaskRequest};
use containerd_client::tonic::Status;
use containerd_client::types::Mount;
use prost::Message as _;
use prost_types::Any;
use serde_json::Value;

use crate::bed::Bed;
use crate::clients::client::{Client, Exit, NAMESPACE};
use crate::clients::fifo::Streams;
use crate::clients::spec;
use crate::ground::places::IMAGE;

const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// `runtimeoptions.v1.Options` (`api/types/runtimeoptions/v1/api.proto` in containerd).
#[derive(Clone, PartialEq, prost::Message)]
struct PolicyOptions {
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

/// An image with a layer in `folder` that takes what is written.
///
/// # Panics
/// When the layer cannot be made.
#[must_use]
pub fn overlay(image: &Path, folder: &Path) -> Mount {
    for layer in ["upper", "work"] {
        fs::create_dir_all(folder.join(layer)).expect("make a folder");
    }
    let layers = [
        format!("lowerdir={}", image.display()),
        format!("upperdir={}/upper", folder.display()),
        format!("workdir={}/work", folder.display()),
    ];
    Mount {
        r#type: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options: layers.to_vec(),
    }
}

/// A container to be.
#[derive(Debug, Clone)]
pub struct Builder<'a> {
    bed: &'a Bed,
    /// Its id.
    pub id: String,
    runtime: String,
    /// What it is to run; tests change it as they like.
    pub spec: Value,
    /// How the root filesystem is mounted.
    pub rootfs: Vec<Mount>,
    /// Runtime options, as `ctr run --runtime-config-path` and containerd's configuration give them.
    pub options: Option<Any>,
    /// Whether stdin is connected.
    pub stdin: bool,
    /// Whether stdout and stderr are.
    pub output: bool,
    /// Where both of them go instead of the test's own FIFOs.
    log: Option<String>,
    /// Whether a stderr is named that is not there.
    absent_stderr: bool,
    /// Whether the outputs are the test's to open.
    unopened: bool,
}

impl Bed {
    /// A container that runs `args`.
    #[must_use]
    pub fn container(&self, args: &[&str]) -> Builder<'_> {
        Builder::new(self, self.id("c"), args)
    }

    /// A container that runs a shell script.
    #[must_use]
    pub fn shell(&self, script: &str) -> Builder<'_> {
        self.container(&["sh", "-c", script])
    }

    /// A container of a given id.
    #[must_use]
    pub fn named(&self, id: &str, args: &[&str]) -> Builder<'_> {
        Builder::new(self, id.to_owned(), args)
    }
}

impl<'a> Builder<'a> {
    fn new(bed: &'a Bed, id: String, args: &[&str]) -> Self {
        let mut spec = spec::container(NAMESPACE, &id, args);
        for (key, value) in bed.runtime.annotations() {
            spec["annotations"][key] = value.into();
        }
        let options = vec!["rbind".to_owned(), "ro".to_owned()];
        let rootfs = Mount {
            r#type: "bind".into(),
            source: IMAGE.into(),
            target: String::new(),
            options,
        };
        Self {
            bed,
            id,
            runtime: bed.runtime.name.clone(),
            spec,
            rootfs: vec![rootfs],
            options: None,
            stdin: false,
            output: true,
            log: None,
            absent_stderr: false,
            unopened: false,
        }
    }

    /// With a stderr that is named and not made, as containerd's clients may have it beside a terminal.
    #[must_use]
    pub fn absent_stderr(mut self) -> Self {
        self.absent_stderr = true;
        self
    }

    /// With stdout and stderr going to a URI, or to a FIFO that the caller has made.
    #[must_use]
    pub fn log_to(mut self, uri: &str) -> Self {
        self.log = Some(uri.to_owned());
        self
    }

    /// With outputs that nobody opens until the test does.
    #[must_use]
    pub fn unopened(mut self) -> Self {
        self.unopened = true;
        self
    }

    /// On another runtime than the one under test.
    #[must_use]
    pub fn on(mut self, runtime: &str) -> Self {
        runtime.clone_into(&mut self.runtime);
        self
    }

    /// With another root filesystem.
    #[must_use]
    pub fn rootfs(mut self, mount: Mount) -> Self {
        self.rootfs = vec![mount];
        self
    }

    /// With stdin connected.
    #[must_use]
    pub fn stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// Without any stream.
    #[must_use]
    pub fn null_streams(mut self) -> Self {
        self.output = false;
        self
    }

    /// With a change to its spec.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    /// With runtime options.
    #[must_use]
    pub fn options(mut self, type_url: &str, value: Vec<u8>) -> Self {
        self.options = Some(Any {
            type_url: type_url.into(),
            value,
        });
        self
    }

    /// With the options every runtime but runc's takes: a policy by its file, and by its text.
    #[must_use]
    pub fn policy(self, path: &str, body: &str) -> Self {
        let options = PolicyOptions {
            config_path: path.to_owned(),
            config_body: body.as_bytes().to_vec(),
        };
        self.options("runtimeoptions.v1.Options", options.encode_to_vec())
    }

    /// Registers the container and creates its task. After an error nothing is registered.
    ///
    /// # Errors
    /// containerd's answer.
    pub async fn create(self) -> Result<Container<'a>, Status> {
        let client = self.bed.client();
        let runtime = ContainerRuntime {
            name: self.runtime,
            options: self.options,
        };
        let spec = Any {
            type_url: SPEC.into(),
            value: self.spec.to_string().into_bytes(),
        };
        let registered = Registered {
            id: self.id.clone(),
            runtime: Some(runtime),
            spec: Some(spec),
            ..Registered::default()
        };
        client.create_container(registered).await?;
        let streams = if self.unopened {
            self.bed.unopened_streams(&self.id)
        } else {
            self.bed.streams(&self.id)
        };
        let terminal = self.spec["process"]["terminal"] == true;
        let path = |name, wanted| match &self.log {
            Some(uri) if name != "stdin" => uri.clone(),
            _ if wanted => streams.path(name),
            _ => String::new(),
        };
        let task = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: self.rootfs,
            stdin: path("stdin", self.stdin),
            stdout: path("stdout", self.output),
            // A terminal has one output.
            stderr: if self.absent_stderr {
                streams.path("absent")
            } else {
                path("stderr", self.output && !terminal)
            },
            terminal,
            ..CreateTaskRequest::default()
        };
        match client.create(task).await {
            Ok(pid) => Ok(Container {
                bed: self.bed,
                client,
                id: self.id,
                streams,
                pid,
            }),
            Err(error) => {
                // A task of the same id may be running: then the container is its own.
                let _ = client.delete_container(&self.id).await;
                Err(error)
            }
        }
    }

    /// Creates and starts it.
    ///
    /// # Errors
    /// containerd's answer; nothing stays.
    pub async fn run(self) -> Result<Container<'a>, Status> {
        let container = self.create().await?;
        match container.start().await {
            Ok(_) => Ok(container),
            Err(error) => {
                container.remove().await;
                Err(error)
            }
        }
    }
}

/// A container with a task.
#[derive(Debug)]
pub struct Container<'a> {
    pub(crate) bed: &'a Bed,
    pub(crate) client: Client,
    /// Its id.
    pub id: String,
    /// Its streams.
    pub streams: Streams,
    /// What create said its pid is.
    pub pid: u32,
}

/// How a container or an exec went.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit status.
    pub status: u32,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

#[allow(
    clippy::missing_errors_doc,
    reason = "every error is containerd's answer"
)]
impl Container<'_> {
    /// Starts the task.
    pub async fn start(&self) -> Result<u32, Status> {
        self.client.start(&self.id, "").await
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Result<Exit, Status> {
        self.client.wait(&self.id, "").await
    }

    /// Signals its first process.
    pub async fn kill(&self, signal: u32) -> Result<(), Status> {
        self.client.kill(&self.id, "", signal, false).await
    }

    /// Its status, as containerd numbers it.
    pub async fn status(&self) -> Result<containerd_client::types::v1::Status, Status> {
        Ok(self.client.get(&self.id, "").await?.status())
    }

    /// Deletes the task and then the container.
    pub async fn delete(&self) -> Result<Exit, Status> {
        let exit = self.client.delete(&self.id).await?;
        self.client.delete_container(&self.id).await?;
        Ok(exit)
    }

    /// Deletes it whatever its state, as `ctr task rm -f` does.
    ///
    /// # Panics
    /// When it cannot be deleted.
    pub async fn remove(&self) {
        self.bed.remove(&self.id).await;
    }

    /// Waits for the end, reads what came, and deletes.
    ///
    /// # Panics
    /// When one of these fails.
    pub async fn finish(mut self) -> Finished {
        let exit = self.wait().await.expect("wait");
        let (stdout, stderr) = (
            self.streams.stdout().await.text(),
            self.streams.stderr().await.text(),
        );
        let deleted = self.delete().await.expect("delete");
        assert_eq!(deleted.status, exit.status, "wait and delete tell the same");
        Finished {
            status: exit.status,
            stdout,
            stderr,
        }
    }
}
