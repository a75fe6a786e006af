//! The streams of a process: containerd's FIFOs on one side, the pipes or the terminal of the sandbox on the other.
//!
//! The shim stands between them for three reasons. A client may come and go while the process keeps its stream. Output
//! in flight at exit must be drained. Back-pressure must be enforceable.

mod client;
pub(crate) mod console;
mod copy;
mod fifo;
mod keys;
mod life;
mod logger;
mod throttle;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result};
use crate::io::client::Client;
use crate::io::copy::{Delivery, Leftovers, Pump, Sink};
use crate::io::fifo::{Input, Output};
use crate::io::keys::Keyboard;
use crate::io::life::Lifetime;
use crate::io::logger::{LogUri, Logger};
use crate::sys::aside;
use node::trail;

pub(crate) use crate::io::copy::Counts;
pub(crate) use crate::io::fifo::{Clients, location};
pub(crate) use crate::io::keys::{Raised, Signals, is_controlled};
pub(crate) use crate::io::life::Holds;
pub(crate) use crate::io::logger::Owner;
pub(crate) use crate::io::throttle::Throttle;

/// How long `Delete` waits for output to reach its client. The rest is passed on after it.
const CLIENT_LIMIT: Duration = Duration::from_millis(500);
/// How long it waits for output to reach its log, which ends with it.
const LOG_LIMIT: Duration = Duration::from_secs(2);
/// How long what a stream's URI names may take to be opened.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// Where a process's streams go, as the client asked for it: FIFO paths or log URIs, empty for none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    pub(crate) clients: Clients,
    /// What the outputs may carry together with others that have the same; none for no bound.
    pub(crate) throttle: Option<Arc<Throttle>>,
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
                    let output = match &sinks.stdout {
                        Some(Sink::Fifo(output)) if stdio.stdout == *uri => output.share(),
                        _ => {
                            let clients = stdio.clients;
                            let open = move |path: &Path| Output::open(path, clients);
                            opened(name, uri, path_of(uri).into(), open).await?
                        }
                    };
                    Sink::Fifo(output)
                }
            };
            match name {
                "stdout" => sinks.stdout = Some(sink),
                _ => sinks.stderr = Some(sink),
            }
        }
        Ok(sinks)
    }

    /// Those that are FIFOs.
    fn fifos(&self) -> Vec<Output> {
        let sinks = [&self.stdout, &self.stderr].into_iter().flatten();
        sinks.filter_map(Sink::as_fifo).collect()
    }
}

/// The running copies of one process.
#[derive(Debug)]
pub(crate) struct ProcessIo {
    input: Option<Input>,
    input_task: Option<JoinHandle<()>>,
    /// Everything that still writes; guarded because drain and drop take it out.
    outputs: Mutex<Vec<Copying>>,
    logger: Option<Logger>,
    counts: Arc<Counts>,
    /// Shared by both outputs.
    throttle: Option<Arc<Throttle>>,
    holds: Arc<Holds>,
    lifetime: Lifetime,
}

/// An output on its way.
#[derive(Debug)]
struct Copying {
    task: AbortHandle,
    given_up: Arc<Notify>,
    /// Ends with the last of it.
    delivered: oneshot::Receiver<()>,
    client: Option<Output>,
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
        let mut sinks = Sinks::open(stdio, owner).await?;
        let mut io = Self::new(sinks.logger.take(), stdio, owner);
        let stdin = if stdio.stdin.is_empty() {
            None
        } else {
            let (reader, writer) = pipe("stdin")?;
            let sink = Sink::stream(writer).map_err(|e| failed("stdin", &stdio.stdin, &e))?;
            io.feed(stdio, sink, sinks.fifos()).await?;
            Some(reader)
        };
        let mut output = |name: &str, sink: Option<Sink>| -> Result<Option<OwnedFd>> {
            let Some(sink) = sink else { return Ok(None) };
            let (reader, writer) = pipe(name)?;
            let leftovers = match stdio.clients {
                Clients::Return => Leftovers::EndAtDelete,
                Clients::One => Leftovers::Stay,
            };
            io.deliver(name, reader, sink, leftovers)?;
            Ok(Some(writer))
        };
        let stdout = output("stdout", sinks.stdout)?;
        let stderr = output("stderr", sinks.stderr)?;
        Ok((io, [stdin, stdout, stderr]))
    }

    /// Connects the client's streams to the master side of a terminal, whose keys raise `signals`.
    ///
    /// # Errors
    /// When a stream cannot be opened.
    pub(crate) async fn terminal(
        stdio: &Stdio,
        owner: Owner<'_>,
        master: &OwnedFd,
        signals: Signals,
    ) -> Result<Self> {
        let mut sinks = Sinks::open(stdio, owner).await?;
        let mut io = Self::new(sinks.logger.take(), stdio, owner);
        let dup = || master.try_clone().map_err(|e| Error::io("terminal", &e));
        if !stdio.stdin.is_empty() {
            let keyboard = Keyboard::new(dup()?, signals);
            let keyboard = keyboard.map_err(|e| failed("stdin", &stdio.stdin, &e))?;
            io.feed(stdio, Sink::Terminal(keyboard), sinks.fifos())
                .await?;
        }
        if let Some(sink) = sinks.stdout {
            io.deliver("stdout", dup()?, sink, Leftovers::None)?;
        }
        Ok(io)
    }

    fn new(logger: Option<Logger>, stdio: &Stdio, owner: Owner<'_>) -> Self {
        Self {
            counts: Arc::clone(&stdio.counts),
            throttle: stdio.throttle.clone(),
            input: None,
            input_task: None,
            outputs: Mutex::default(),
            logger,
            holds: Arc::clone(owner.holds),
            lifetime: Lifetime::default(),
        }
    }

    /// Copies the client's stdin; `outputs` are where the same client reads.
    async fn feed(&mut self, stdio: &Stdio, sink: Sink, outputs: Vec<Output>) -> Result<()> {
        let (uri, clients) = (&stdio.stdin, stdio.clients);
        let failed = |e: io::Error| failed("stdin", uri, &e);
        let open = move |path: &Path| Input::open(path, clients);
        let (input, source) = opened("stdin", uri, path_of(uri).into(), open).await?;
        let client = match clients {
            Clients::Return => None,
            Clients::One => Some(Client {
                stdin: fifo::location(&source).map_err(failed)?,
                outputs,
            }),
        };
        let pump = Pump::new(source, sink).map_err(failed)?;
        let copying = pump.run_input(self.lifetime.subscribe(), client, input.released());
        self.input_task = Some(tokio::spawn(copying));
        self.input = Some(input);
        Ok(())
    }

    /// Copies an output to where it goes.
    fn deliver(
        &mut self,
        name: &str,
        from: OwnedFd,
        sink: Sink,
        leftovers: Leftovers,
    ) -> Result<()> {
        let client = sink.as_fifo();
        let pump = Pump::new(from, sink).map_err(|e| Error::io(format!("copy {name}"), &e))?;
        let (sender, delivered) = oneshot::channel();
        let given_up = Arc::<Notify>::default();
        let task = tokio::spawn(pump.run_output(Delivery {
            life: self.lifetime.subscribe(),
            hold: self.holds.hold(),
            throttle: self.throttle.clone(),
            counts: Arc::clone(&self.counts),
            delivered: sender,
            leftovers,
            given_up: Arc::clone(&given_up),
        }));
        self.lock_outputs().push(Copying {
            task: task.abort_handle(),
            given_up,
            delivered,
            client,
        });
        Ok(())
    }

    /// Lets stdin end once the client has closed its side.
    pub(crate) fn close_input(&self) {
        if let Some(input) = &self.input {
            input.release();
        }
    }

    /// The process has exited: stdin has no reader any more, and outputs end when what is in flight has been passed on.
    pub(crate) fn process_exited(&self) {
        self.close_input();
        self.lifetime.set_exited();
    }

    /// Waits, bounded, until all output has reached where it goes. A client that is slow, or has not come yet, gets the
    /// rest later; a log ends here.
    pub(crate) async fn drain(&self) {
        let outputs = std::mem::take(&mut *self.lock_outputs());
        let began = Instant::now();
        for output in outputs {
            let limit = if output.client.is_some() {
                CLIENT_LIMIT
            } else {
                LOG_LIMIT
            };
            let waited = timeout_at(began + limit, output.delivered).await;
            match output.client {
                // A client that is there hears the end before the reply.
                Some(client) => drop(client.release(true)),
                None if waited.is_err() => {
                    output.given_up.notify_one();
                    tracing::warn!("output was left unwritten: its log took nothing for {limit:?}");
                }
                None => {}
            }
        }
        if let Some(logger) = &self.logger {
            logger.finish().await;
        }
    }

    fn lock_outputs(&self) -> MutexGuard<'_, Vec<Copying>> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        if let Some(task) = &self.input_task {
            task.abort();
        }
        // Never drained: the process was never there.
        for output in self.lock_outputs().drain(..) {
            output.task.abort();
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
