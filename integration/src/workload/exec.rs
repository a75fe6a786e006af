//! Execs: further processes of a container.

use containerd_client::services::v1::ExecProcessRequest;
use containerd_client::tonic::Status;
use prost_types::Any;
use serde_json::Value;

use crate::clients::client::Exit;
use crate::clients::fifo::{Output, Streams};
use crate::clients::spec;
use crate::workload::container::{Container, Finished};

const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

impl<'a> Container<'a> {
    /// An exec to be, with stdout and stderr.
    #[must_use]
    pub fn exec(&self, exec: &str, args: &[&str]) -> ExecBuilder<'_, 'a> {
        ExecBuilder::new(self, exec, args)
    }
}

/// An exec to be.
#[derive(Debug)]
pub struct ExecBuilder<'c, 'a> {
    container: &'c Container<'a>,
    id: String,
    /// The process; tests change it as they like.
    pub spec: Value,
    stdin: bool,
    log: Option<String>,
    absent_stderr: bool,
    unopened: bool,
    terminal: Option<bool>,
}

#[allow(
    clippy::missing_errors_doc,
    reason = "every error is containerd's answer"
)]
impl<'c, 'a> ExecBuilder<'c, 'a> {
    fn new(container: &'c Container<'a>, id: &str, args: &[&str]) -> Self {
        Self {
            container,
            id: id.to_owned(),
            spec: spec::process(args),
            stdin: false,
            log: None,
            absent_stderr: false,
            unopened: false,
            terminal: None,
        }
    }

    /// With a stderr that is named and not made, as containerd's clients have it beside a terminal.
    #[must_use]
    pub fn absent_stderr(mut self) -> Self {
        self.absent_stderr = true;
        self
    }

    /// With a request for a terminal, or for none, whatever its process says.
    #[must_use]
    pub fn terminal(mut self, terminal: bool) -> Self {
        self.terminal = Some(terminal);
        self
    }

    /// With stdout and stderr going to a URI.
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

    /// With a change to its process.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    /// With stdin connected.
    #[must_use]
    pub fn stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// Adds it to the container.
    pub async fn add(self) -> Result<Exec<'c, 'a>, Status> {
        let name = format!("{}+{}", self.container.id, self.id);
        let streams = if self.unopened {
            self.container.bed.unopened_streams(&name)
        } else {
            self.container.bed.streams(&name)
        };
        let terminal = self.terminal.unwrap_or(self.spec["terminal"] == true);
        let body = ExecProcessRequest {
            container_id: self.container.id.clone(),
            exec_id: self.id.clone(),
            stdin: if self.stdin {
                streams.path("stdin")
            } else {
                String::new()
            },
            stdout: self.log.clone().unwrap_or_else(|| streams.path("stdout")),
            stderr: match self.log {
                _ if self.absent_stderr => streams.path("absent"),
                Some(uri) => uri,
                // A terminal has one output.
                None if terminal => String::new(),
                None => streams.path("stderr"),
            },
            terminal,
            spec: Some(Any {
                type_url: PROCESS.into(),
                value: self.spec.to_string().into_bytes(),
            }),
        };
        let has_stderr = !body.stderr.is_empty();
        self.container.client.exec(body).await?;
        Ok(Exec {
            container: self.container,
            id: self.id,
            streams,
            has_stderr,
        })
    }

    /// Adds and starts it; a failed start is followed by a delete.
    pub async fn run(self) -> Result<Exec<'c, 'a>, Status> {
        let exec = self.add().await?;
        match exec.start().await {
            Ok(_) => Ok(exec),
            Err(error) => {
                let _ = exec.delete().await;
                Err(error)
            }
        }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When that is not possible.
    pub async fn finish(self) -> Finished {
        self.run().await.expect("start the exec").finish().await
    }
}

/// An added exec.
#[derive(Debug)]
pub struct Exec<'c, 'a> {
    container: &'c Container<'a>,
    /// Its id.
    pub id: String,
    /// Its streams.
    pub streams: Streams,
    has_stderr: bool,
}

#[allow(
    clippy::missing_errors_doc,
    reason = "every error is containerd's answer"
)]
impl Exec<'_, '_> {
    /// Starts it.
    pub async fn start(&self) -> Result<u32, Status> {
        self.container
            .client
            .start(&self.container.id, &self.id)
            .await
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Result<Exit, Status> {
        self.container
            .client
            .wait(&self.container.id, &self.id)
            .await
    }

    /// Signals it.
    pub async fn kill(&self, signal: u32) -> Result<(), Status> {
        self.container
            .client
            .kill(&self.container.id, &self.id, signal, false)
            .await
    }

    /// Deletes it.
    pub async fn delete(&self) -> Result<Exit, Status> {
        self.container
            .client
            .delete_exec(&self.container.id, &self.id)
            .await
    }

    /// Closes its stdin.
    pub async fn close_stdin(&self) -> Result<(), Status> {
        self.container
            .client
            .close_stdin(&self.container.id, &self.id)
            .await
    }

    /// Waits for its end, reads what came, and deletes.
    ///
    /// # Panics
    /// When one of these fails.
    pub async fn finish(mut self) -> Finished {
        let exit = self.wait().await.expect("wait for the exec");
        let stdout = self.streams.stdout().await;
        let stderr = if self.has_stderr {
            self.streams.stderr().await
        } else {
            Output::default()
        };
        self.delete().await.expect("delete the exec");
        Finished {
            status: exit.status,
            stdout: stdout.text(),
            stderr: stderr.text(),
        }
    }
}
