//! The serving shim: one process for one pod, one thread, until its last container is gone.

use std::future::Future as _;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use containerd_shim::Flags;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::asynchronous::Server;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::Sleep;

use crate::api::events::Events;
use crate::api::service::Service;
use crate::error::{Error, Result};
use crate::io::Holds;
use crate::sandbox::Owner;
use crate::startup::start;
use crate::sys::logging;
use crate::sys::oom_score;
use crate::sys::reaper::Reaper;
use crate::task::pod::Pod;

const TASK_V3: &str = "containerd.task.v3.Task";
const TASK_V2: &str = "containerd.task.v2.Task";
/// How long containerd may take to accept the last events.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// The same in a shim that was told to end: when a node is shut down containerd has gone before.
const TOLD_FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// How long after it was told to end a shim still does so when its sandbox ends: in a shutdown the signal reaches both at once.
/// Later the end of a sandbox has another reason, and somebody will ask for its exit code.
const TOLD_LIMIT: Duration = Duration::from_secs(10);
const TOLD_STEP: Duration = Duration::from_millis(100);

/// How long no connection is accepted after one that could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long threads may take to end what they are doing.
const THREADS_LIMIT: Duration = Duration::from_secs(1);

/// How long a shim without containers stays when no client is connected: containerd died between starting it and
/// creating a task, or between deleting one and shutting it down, and will not find it again.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
const IDLE_STEP: Duration = Duration::from_secs(1);
/// The same while containerd has not taken all events: it may come back, and somebody may wait for one of them.
const UNTOLD_LIMIT: Duration = Duration::from_secs(600);

/// No stream outlives its container for longer (`HOLD_LIMIT` in `io::life`, and a little).
const LINGER_LIMIT: Duration = Duration::from_secs(11);

/// Serves on the listener that `start` passed as stdin.
///
/// # Errors
/// When stdin is no listening socket or the runtime cannot be set up.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let listener = take_listener().map_err(|e| {
        Error::invalid(format!(
            "no action given and stdin is no socket ({e}): this binary is run by containerd"
        ))
    })?;
    // One that was taken away since `start` is nobody's any more, and neither is the socket.
    let bundle = std::env::current_dir().map_err(|e| {
        let _ = std::fs::remove_file(&flags.socket);
        Error::io("find the bundle", &e)
    })?;
    logging::init(flags.debug, &bundle, &flags.id);
    let score = oom_score::protect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(|e| Error::io("start the async runtime", &e))?;
    let served = runtime.block_on(serve(flags, listener, score));
    // A thread may be stuck in a write to a dead disk; nothing is left that would wait for it.
    runtime.shutdown_timeout(THREADS_LIMIT);
    served
}

async fn serve(flags: &Flags, listener: StdListener, oom_score_adj: Option<i32>) -> Result<()> {
    let reaper = Reaper::install(oom_score_adj)
        .map_err(|e| Error::io("become the reaper of sandboxes", &e))?;
    let ttrpc_address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let events = Events::new(flags.namespace.clone(), ttrpc_address);
    let owner = Owner {
        namespace: flags.namespace.clone(),
        containerd: flags.address.clone(),
    };
    let pod = Arc::new(Pod::new(owner, reaper, Arc::new(events.clone())));
    let shutdown = Arc::new(Notify::new());
    let clients = Arc::<Clients>::default();
    let mut server = server(listener, &pod, &shutdown, &clients)?;
    server
        .start()
        .await
        .map_err(|e| Error::internal(format!("serve: {e}")))?;
    tracing::info!(
        namespace = flags.namespace,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    let socket = PathBuf::from(&flags.socket);
    let end = loop {
        let end = wait_for_end(&pod, &events, &shutdown, &clients).await?;
        if leave(&socket, &pod, end, &clients).await {
            break end;
        }
    };
    if end == End::Told {
        events.flush(TOLD_FLUSH_LIMIT).await;
        return Ok(());
    }
    events.flush(FLUSH_LIMIT).await;
    // The reply to Shutdown is queued behind this task: let it out before the connections close.
    tokio::time::sleep(Duration::from_millis(10)).await;
    let _ = tokio::time::timeout(Duration::from_secs(1), server.shutdown()).await;
    linger(&pod.holds).await
}

/// Why a shim ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was asked by the API.
    Asked,
    /// It has nothing and nobody to serve.
    Idle,
    /// A signal told it to, and no sandbox of it lives.
    Told,
}

/// Returns when the shim has been asked to end, or has nothing and nobody to serve. A signal ends one whose sandbox has ended, or does
/// within a moment. Otherwise it is logged: the containers would lose their only keeper.
async fn wait_for_end(
    pod: &Pod,
    events: &Events,
    shutdown: &Notify,
    clients: &Clients,
) -> Result<End> {
    let handler = |kind| signal(kind).map_err(|e| Error::io("handle signals", &e));
    let (mut term, mut int) = (
        handler(SignalKind::terminate())?,
        handler(SignalKind::interrupt())?,
    );
    let mut idle = Duration::ZERO;
    let mut told: Option<Instant> = None;
    loop {
        let name = tokio::select! {
            () = shutdown.notified() => return Ok(End::Asked),
            // The last container may have gone: look at the conditions below again.
            () = pod.removed() => continue,
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
            // Only while there is nothing to serve: a shim with containers wakes for nobody but them.
            () = tokio::time::sleep(IDLE_STEP), if pod.is_empty() => {
                idle = if clients.is_empty() { idle + IDLE_STEP } else { Duration::ZERO };
                let limit = if events.are_taken() { IDLE_LIMIT } else { UNTOLD_LIMIT };
                if idle >= limit {
                    tracing::warn!("no containerd and no container: exiting");
                    return Ok(End::Idle);
                }
                continue;
            }
            () = tokio::time::sleep(TOLD_STEP), if told.is_some() => {
                if pod.has_ended() {
                    return Ok(End::Told);
                }
                if told.is_some_and(|since| since.elapsed() >= TOLD_LIMIT) {
                    told = None;
                    tracing::warn!(
                        "signal ignored: the sandbox lives; delete its containers, or kill this shim with SIGKILL"
                    );
                }
                continue;
            }
        };
        if pod.has_ended() {
            return Ok(End::Told);
        }
        tracing::info!("{name}: this shim ends if its sandbox does within {TOLD_LIMIT:?}");
        told = Some(Instant::now());
    }
}

/// Stays for clients that have not opened their streams yet, without a socket: to containerd the shim has gone.
async fn linger(holds: &Holds) -> Result<()> {
    let handler = |kind| signal(kind).map_err(|e| Error::io("handle signals", &e));
    let (mut term, mut int) = (
        handler(SignalKind::terminate())?,
        handler(SignalKind::interrupt())?,
    );
    tokio::select! {
        () = holds.ended() => {}
        () = tokio::time::sleep(LINGER_LIMIT) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// Takes the socket away, unless a container has come in between, or a client to a shim that had none: `start` looks for it under
/// the same lock. What comes by a connection that is open already is refused from here on.
async fn leave(socket: &Path, pod: &Pod, end: End, clients: &Clients) -> bool {
    let folder = socket.parent().unwrap_or(Path::new("/")).to_owned();
    // On a thread: the requests that come meanwhile are answered.
    let lock = tokio::task::spawn_blocking(move || start::lock(&folder, start::LOCK_LIMIT)).await;
    let lock = lock.unwrap_or_else(|error| Err(Error::internal(error.to_string())));
    if let Err(error) = &lock {
        tracing::warn!(%error, "leaving without the lock");
    }
    if end == End::Idle {
        // The lock may have taken a while. Who has connected meanwhile was handed this address, and may still wait to be accepted.
        tokio::time::sleep(ACCEPT_PAUSE).await;
        if !clients.is_empty() {
            return false;
        }
    }
    if !pod.close(end == End::Told) {
        return false;
    }
    if let Err(error) = std::fs::remove_file(socket) {
        tracing::debug!(%error, socket = %socket.display(), "socket already gone");
    }
    true
}

/// One service under both names: the messages of v2 and v3 are the same.
fn server(
    listener: StdListener,
    pod: &Arc<Pod>,
    shutdown: &Arc<Notify>,
    clients: &Arc<Clients>,
) -> Result<Server> {
    let failed = |e: io::Error| Error::io("listen", &e);
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    let service = || {
        create_task(Arc::new(Service::new(
            Arc::clone(pod),
            Arc::clone(shutdown),
        )))
    };
    let mut v2 = service();
    if let Some(methods) = v2.remove(TASK_V3) {
        v2.insert(TASK_V2.to_owned(), methods);
    }
    Ok(Server::new()
        .add_listener(Listener::new(RootOnly {
            listener,
            clients: Arc::clone(clients),
            pause: None,
        }))
        .register_service(service())
        .register_service(v2))
}

/// Counts the connections that are open.
#[derive(Debug, Default)]
struct Clients(AtomicUsize);

impl Clients {
    fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// Accepts connections of root and drops all others, whatever the socket's mode has become.
struct RootOnly {
    listener: UnixListener,
    clients: Arc<Clients>,
    /// After an accept that failed: with no descriptor left the next would fail at once, and the one after it.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for RootOnly {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let accepted = match self.listener.poll_accept(cx) {
                Poll::Ready(accepted) => accepted.map(|(stream, _)| stream),
                Poll::Pending => return Poll::Pending,
            };
            match accepted.and_then(|stream| Ok((stream.peer_cred()?.uid(), stream))) {
                Ok((0, stream)) => {
                    return Poll::Ready(Some(Ok(Connection::new(stream, &self.clients))));
                }
                Ok((uid, _)) => {
                    tracing::warn!(uid, "connection refused: only root may control a sandbox");
                }
                Err(error) => {
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

/// A connection that is counted for as long as it is open.
struct Connection {
    stream: UnixStream,
    clients: Arc<Clients>,
}

impl Connection {
    fn new(stream: UnixStream, clients: &Arc<Clients>) -> Self {
        clients.0.fetch_add(1, Ordering::Relaxed);
        Self {
            stream,
            clients: Arc::clone(clients),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.clients.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Takes the listener from stdin and leaves /dev/null there, so that no child inherits it.
fn take_listener() -> io::Result<StdListener> {
    use std::os::fd::AsFd as _;
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let listening = nix::sys::socket::getsockopt(&stdin, nix::sys::socket::sockopt::AcceptConn)?;
    if !listening {
        return Err(io::Error::other("not listening"));
    }
    let null = OwnedFd::from(std::fs::File::open("/dev/null")?);
    nix::unistd::dup2_stdin(&null)?;
    Ok(StdListener::from(stdin))
}
