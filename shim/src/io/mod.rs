//! The streams of a process: containerd's FIFOs on one side, the pipes or the terminal of the sandbox on the other.
//!
//! The shim stands between them for three reasons: a client may come and go while the process keeps its stream, output
//! still in flight at exit must be drained, and back-pressure must be enforceable.

pub(crate) mod console;
mod copy;
mod fifo;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Code, Error, Result};
use crate::io::copy::Pump;
use crate::io::fifo::{Input, open_output};

/// How long `Delete` waits for output that nobody reads.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// Where a process's streams go, as the client asked for it: FIFO paths, empty for none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

impl Stdio {
    /// Checks what can be checked before anything is made.
    ///
    /// # Errors
    /// `InvalidArgument` for a stream that is neither a path nor a log URI this shim serves.
    pub(crate) fn validate(&self) -> Result<()> {
        for (field, uri) in [
            ("stdin", &self.stdin),
            ("stdout", &self.stdout),
            ("stderr", &self.stderr),
        ] {
            if uri.is_empty() || uri.starts_with('/') || uri.starts_with("fifo://") {
                continue;
            }
            let scheme = uri
                .split_once("://")
                .map_or(uri.as_str(), |(scheme, _)| scheme);
            return Err(Error::new(
                Code::InvalidArgument,
                format!(
                    "{field}: {scheme:?} streams are not supported: give an absolute FIFO path or a fifo:// URI"
                ),
            ));
        }
        Ok(())
    }
}

fn path_of(uri: &str) -> &str {
    uri.strip_prefix("fifo://").unwrap_or(uri)
}

/// The running copies of one process.
#[derive(Debug)]
pub(crate) struct ProcessIo {
    input: Option<Input>,
    input_task: Option<JoinHandle<()>>,
    /// Everything that still writes to the client; guarded because drain and drop take it out.
    outputs: Mutex<Vec<JoinHandle<()>>>,
    exited: watch::Sender<bool>,
}

impl ProcessIo {
    /// Opens the client's FIFOs and makes the pipes; the returned descriptors are for the sandbox (stdin, stdout,
    /// stderr).
    ///
    /// # Errors
    /// When a FIFO cannot be opened; nothing is left behind.
    pub(crate) fn pipes(stdio: &Stdio) -> Result<(Self, [Option<OwnedFd>; 3])> {
        let (exited, exit_watch) = watch::channel(false);
        let mut io = Self {
            input: None,
            input_task: None,
            outputs: Mutex::default(),
            exited,
        };
        let stdin = if stdio.stdin.is_empty() {
            None
        } else {
            let (input, source) = Input::open(path_of(&stdio.stdin))
                .map_err(|e| failed("stdin", &stdio.stdin, &e))?;
            let (reader, writer) = pipe("stdin")?;
            let pump = Pump::new(source, writer).map_err(|e| failed("stdin", &stdio.stdin, &e))?;
            let input_exit = io.exited.subscribe();
            io.input_task = Some(tokio::spawn(pump.run_input(input_exit)));
            io.input = Some(input);
            Some(reader)
        };
        let output = |name: &'static str, uri: &str| -> Result<Option<OwnedFd>> {
            if uri.is_empty() {
                return Ok(None);
            }
            let sink = open_output(path_of(uri)).map_err(|e| failed(name, uri, &e))?;
            let (reader, writer) = pipe(name)?;
            let pump = Pump::new(reader, sink).map_err(|e| failed(name, uri, &e))?;
            let task = tokio::spawn(pump.run_output(exit_watch.clone()));
            io.outputs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(task);
            Ok(Some(writer))
        };
        let stdout = output("stdout", &stdio.stdout)?;
        let stderr = output("stderr", &stdio.stderr)?;
        Ok((io, [stdin, stdout, stderr]))
    }

    /// Connects the client's FIFOs to the master side of a terminal.
    ///
    /// # Errors
    /// When a FIFO cannot be opened.
    pub(crate) fn terminal(stdio: &Stdio, master: &OwnedFd) -> Result<Self> {
        let (exited, exit_watch) = watch::channel(false);
        let mut io = Self {
            input: None,
            input_task: None,
            outputs: Mutex::default(),
            exited,
        };
        let dup = || master.try_clone().map_err(|e| Error::io("terminal", &e));
        if !stdio.stdin.is_empty() {
            let (input, source) = Input::open(path_of(&stdio.stdin))
                .map_err(|e| failed("stdin", &stdio.stdin, &e))?;
            let pump = Pump::new(source, dup()?).map_err(|e| failed("stdin", &stdio.stdin, &e))?;
            let input_exit = io.exited.subscribe();
            io.input_task = Some(tokio::spawn(pump.run_input(input_exit)));
            io.input = Some(input);
        }
        if !stdio.stdout.is_empty() {
            let sink = open_output(path_of(&stdio.stdout))
                .map_err(|e| failed("stdout", &stdio.stdout, &e))?;
            let pump = Pump::new(dup()?, sink).map_err(|e| failed("stdout", &stdio.stdout, &e))?;
            let task = tokio::spawn(pump.run_output(exit_watch));
            io.outputs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(task);
        }
        Ok(io)
    }

    /// Lets stdin end once the client has closed its side: the shim's own hold on the FIFO is dropped.
    pub(crate) fn close_input(&self) {
        if let Some(input) = &self.input {
            input.release();
        }
    }

    /// The process has exited: stdin has no reader any more, and outputs end when what is in flight has been passed on.
    pub(crate) fn process_exited(&self) {
        self.close_input();
        self.exited.send_replace(true);
    }

    /// Waits, bounded, until all output has reached the client's FIFOs, and lets go of them.
    pub(crate) async fn drain(&self) {
        let tasks =
            std::mem::take(&mut *self.outputs.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = tokio::time::Instant::now() + DRAIN_LIMIT;
        for mut task in tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
                tracing::warn!(
                    "output was left undelivered: its reader took nothing for {DRAIN_LIMIT:?}"
                );
            }
        }
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        if let Some(task) = &self.input_task {
            task.abort();
        }
        for task in self
            .outputs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            task.abort();
        }
    }
}

fn failed(stream: &str, uri: &str, error: &io::Error) -> Error {
    Error::internal(format!("open {stream} {uri:?}: {error}"))
}

fn pipe(stream: &str) -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) =
        io::pipe().map_err(|e| Error::io(format!("make the pipe for {stream}"), &e))?;
    Ok((reader.into(), writer.into()))
}
