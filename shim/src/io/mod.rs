//! The streams of a process: containerd's FIFOs on one side, the pipes or the terminal of the sandbox on the other.
//!
//! The shim stands between them for three reasons: a client may come and go while the process keeps its stream, output
//! still in flight at exit must be drained, and back-pressure must be enforceable.

pub(crate) mod console;
mod copy;
mod fifo;
mod logger;
mod throttle;

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::aside;
use crate::error::{Error, Result};
use crate::io::copy::{Pump, Sink};
use crate::io::fifo::{Input, open_output};
use crate::io::logger::{LogUri, Logger};
use crate::io::throttle::Throttle;
use crate::trail;

pub(crate) use crate::io::copy::Counts;
pub(crate) use crate::io::logger::Owner;

/// How long `Delete` waits for output that nobody reads.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
/// How long what a stream's URI names may take to be opened.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Where a process's streams go, as the client asked for it: FIFO paths or log URIs, empty for none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    /// What the outputs may carry together, in bytes a second; none for no bound.
    pub(crate) rate: Option<NonZeroU64>,
    pub(crate) counts: Arc<Counts>,
}

impl Stdio {
    /// Checks what can be checked before anything is made.
    ///
    /// # Errors
    /// `InvalidArgument` for a stream that is neither a path nor a URI this shim serves.
    pub(crate) fn validate(&self) -> Result<()> {
        for (field, uri) in [
            ("stdin", &self.stdin),
            ("stdout", &self.stdout),
            ("stderr", &self.stderr),
        ] {
            if uri.is_empty() || uri.starts_with('/') || uri.starts_with("fifo:///") {
                continue;
            }
            let log = LogUri::parse(field, uri)?;
            let is_log = log.is_some();
            if !is_log || field == "stdin" {
                let scheme = uri.split_once("://").map_or("", |(scheme, _)| scheme);
                let rule = if field == "stdin" {
                    "give an absolute FIFO path or a fifo:// URI"
                } else {
                    "give an absolute FIFO path, or a fifo://, file://, binary:// or binary-v2:// URI"
                };
                return Err(Error::invalid(format!(
                    "{field}: {uri:?} has scheme {scheme:?}, which is not supported: {rule}"
                )));
            }
            let other = if field == "stdout" {
                &self.stderr
            } else {
                &self.stdout
            };
            if matches!(log, Some(LogUri::Binary { .. })) && !other.is_empty() && other != uri {
                return Err(Error::invalid(format!(
                    "{field}: {uri:?} takes both outputs, the other one is for {other:?}"
                )));
            }
        }
        Ok(())
    }
}

fn path_of(uri: &str) -> &str {
    uri.strip_prefix("fifo://").unwrap_or(uri)
}

/// Where the outputs go.
#[derive(Default)]
struct Sinks {
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    logger: Option<Logger>,
}

impl Sinks {
    async fn open(stdio: &Stdio, owner: Owner<'_>) -> Result<Self> {
        let mut sinks = Self::default();
        for (name, uri) in [("stdout", &stdio.stdout), ("stderr", &stdio.stderr)] {
            // A terminal has one output. containerd's clients may name a stderr beside it that they never make
            // (`pkg/cio/io_unix.go`), as nerdctl does.
            let is_needless = name == "stderr" && (stdio.terminal || sinks.logger.is_some());
            if uri.is_empty() || is_needless {
                continue;
            }
            let failed = |error: io::Error| failed(name, uri, &error);
            let sink = match LogUri::parse(name, uri)? {
                Some(LogUri::Binary {
                    program,
                    args,
                    strict,
                }) => {
                    let started = Logger::start(&program, &args, strict, owner).await?;
                    let (logger, [to_stdout, to_stderr]) = started;
                    sinks.logger = Some(logger);
                    sinks.stdout = Some(Sink::stream(to_stdout).map_err(failed)?);
                    sinks.stderr = Some(Sink::stream(to_stderr).map_err(failed)?);
                    continue;
                }
                Some(LogUri::File(path)) => {
                    Sink::file(opened(name, uri, path, logger::open_file).await?)
                }
                None => {
                    let fifo = opened(name, uri, path_of(uri).into(), open_output).await?;
                    Sink::fifo(fifo).map_err(failed)?
                }
            };
            match name {
                "stdout" => sinks.stdout = Some(sink),
                _ => sinks.stderr = Some(sink),
            }
        }
        Ok(sinks)
    }
}

/// The running copies of one process.
#[derive(Debug)]
pub(crate) struct ProcessIo {
    input: Option<Input>,
    input_task: Option<JoinHandle<()>>,
    /// Everything that still writes to the client; guarded because drain and drop take it out.
    outputs: Mutex<Vec<JoinHandle<()>>>,
    logger: Option<Logger>,
    counts: Arc<Counts>,
    /// Shared by both outputs.
    throttle: Option<Arc<Throttle>>,
    exited: watch::Sender<bool>,
}

impl ProcessIo {
    /// Opens the client's streams and makes the pipes; the returned descriptors are for the sandbox (stdin, stdout,
    /// stderr).
    ///
    /// # Errors
    /// When a stream cannot be opened; nothing is left behind.
    pub(crate) async fn pipes(
        stdio: &Stdio,
        owner: Owner<'_>,
    ) -> Result<(Self, [Option<OwnedFd>; 3])> {
        let sinks = Sinks::open(stdio, owner).await?;
        let mut io = Self::new(sinks.logger, stdio);
        let stdin = if stdio.stdin.is_empty() {
            None
        } else {
            let (reader, writer) = pipe("stdin")?;
            io.feed(&stdio.stdin, writer).await?;
            Some(reader)
        };
        let mut output = |name: &str, sink: Option<Sink>| -> Result<Option<OwnedFd>> {
            let Some(sink) = sink else { return Ok(None) };
            let (reader, writer) = pipe(name)?;
            io.deliver(name, reader, sink)?;
            Ok(Some(writer))
        };
        let stdout = output("stdout", sinks.stdout)?;
        let stderr = output("stderr", sinks.stderr)?;
        Ok((io, [stdin, stdout, stderr]))
    }

    /// Connects the client's streams to the master side of a terminal.
    ///
    /// # Errors
    /// When a stream cannot be opened.
    pub(crate) async fn terminal(
        stdio: &Stdio,
        owner: Owner<'_>,
        master: &OwnedFd,
    ) -> Result<Self> {
        let sinks = Sinks::open(stdio, owner).await?;
        let mut io = Self::new(sinks.logger, stdio);
        let dup = || master.try_clone().map_err(|e| Error::io("terminal", &e));
        if !stdio.stdin.is_empty() {
            io.feed(&stdio.stdin, dup()?).await?;
        }
        if let Some(sink) = sinks.stdout {
            io.deliver("stdout", dup()?, sink)?;
        }
        Ok(io)
    }

    fn new(logger: Option<Logger>, stdio: &Stdio) -> Self {
        Self {
            counts: Arc::clone(&stdio.counts),
            throttle: stdio.rate.map(|rate| Arc::new(Throttle::new(rate))),
            input: None,
            input_task: None,
            outputs: Mutex::default(),
            logger,
            exited: watch::channel(false).0,
        }
    }

    /// Copies the client's stdin.
    async fn feed(&mut self, uri: &str, to: OwnedFd) -> Result<()> {
        let failed = |e: io::Error| failed("stdin", uri, &e);
        let (input, source) = opened("stdin", uri, path_of(uri).into(), Input::open).await?;
        let sink = Sink::stream(File::from(to)).map_err(failed)?;
        let pump = Pump::new(source, sink).map_err(failed)?;
        self.input_task = Some(tokio::spawn(pump.run_input(self.exited.subscribe())));
        self.input = Some(input);
        Ok(())
    }

    /// Copies an output to where it goes.
    fn deliver(&mut self, name: &str, from: OwnedFd, sink: Sink) -> Result<()> {
        let pump = Pump::new(from, sink).map_err(|e| Error::io(format!("copy {name}"), &e))?;
        let pump = pump.throttled(self.throttle.clone(), Arc::clone(&self.counts));
        let task = tokio::spawn(pump.run_output(self.exited.subscribe()));
        self.outputs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(task);
        Ok(())
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

    /// Waits, bounded, until all output has reached where it goes, and lets go of that.
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
        if let Some(logger) = &self.logger {
            logger.finish().await;
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

/// Opens what a stream's URI names, which may lie on a filesystem that is dead.
async fn opened<T: Send + 'static>(
    stream: &'static str,
    uri: &str,
    path: PathBuf,
    open: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let (act, uri) = (format!("open {stream} {uri:?}"), uri.to_owned());
    let open = move || {
        let opened = trail::at(&path).and_then(|()| open(&path));
        opened.map_err(|error| failed(stream, &uri, &error))
    };
    aside::STREAMS.within(OPEN_LIMIT, &act, open, drop).await
}

fn failed(stream: &str, uri: &str, error: &io::Error) -> Error {
    Error::internal(format!("open {stream} {uri:?}: {error}"))
}

fn pipe(stream: &str) -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) =
        io::pipe().map_err(|e| Error::io(format!("make the pipe for {stream}"), &e))?;
    Ok((reader.into(), writer.into()))
}
