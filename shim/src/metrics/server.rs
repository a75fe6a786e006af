//! The socket of a scrape: `GET /metrics` of HTTP/1.0 and one answer, so that `curl --unix-socket` works.
//!
//! It uses no HTTP library: a shim has 6 MB in all, and it needs one line of the protocol. Connections are few, each has
//! a deadline, and a scraper that stalls delays nobody but itself.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::metrics::collect::Collector;
use node::names::METRICS_SOCKET as SOCKET;

/// Scrapes at a time; further ones wait in the socket's queue.
const CONNECTIONS_MAX: usize = 8;
/// How long a scraper may take for all of it: to ask, to wait, and to take the answer.
const PEER_LIMIT: Duration = Duration::from_secs(5);
/// A request is larger than this only when it is none.
const REQUEST_MAX: usize = 8 * 1024;
/// For so long an answer serves everybody.
const FRESH: Duration = Duration::from_secs(1);

type Answer = oneshot::Sender<Arc<String>>;

/// Serves for as long as it is kept.
#[derive(Debug)]
pub(crate) struct Serving([AbortHandle; 2]);

impl Drop for Serving {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// Serves the metrics of the sandbox with this folder.
///
/// # Errors
/// When the socket cannot be made.
pub(crate) fn serve(root: &Path, collector: Collector) -> io::Result<Serving> {
    let listener = bind(root)?;
    let (ask, asked) = mpsc::channel(CONNECTIONS_MAX);
    let answering = tokio::spawn(answer(collector, asked));
    let accepting = tokio::spawn(accept(listener, ask));
    Ok(Serving([
        answering.abort_handle(),
        accepting.abort_handle(),
    ]))
}

/// Binds by way of the folder's descriptor: its path and the name may be longer than an address of a socket.
fn bind(root: &Path) -> io::Result<UnixListener> {
    let folder = nix::fcntl::open(
        root,
        OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY,
        Mode::empty(),
    )?;
    let address = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    // The folder is root's alone, so nobody comes between bind and chmod.
    let listener = UnixListener::bind(address)?;
    std::fs::set_permissions(root.join(SOCKET), std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, ask: mpsc::Sender<Answer>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a scrape was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let ask = ask.clone();
        tokio::spawn(async move {
            match timeout(PEER_LIMIT, converse(stream, &ask)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a scrape failed"),
                Err(_) => tracing::debug!("a scraper took too long"),
            }
            drop(place);
        });
    }
}

/// One connection: a question, an answer, the end.
async fn converse(mut stream: UnixStream, ask: &mpsc::Sender<Answer>) -> io::Result<()> {
    if stream.peer_cred()?.uid() != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let request = request(&mut stream).await?;
    let (status, body) = match request.as_str() {
        "/metrics" | "/" => {
            let (sender, answer) = oneshot::channel();
            let gone = || io::Error::other("the sandbox is gone");
            ask.send(sender).await.map_err(|_| gone())?;
            ("200 OK", answer.await.map_err(|_| gone())?)
        }
        "" => (
            "405 Method Not Allowed",
            Arc::new("only GET is served\n".to_owned()),
        ),
        _ => (
            "404 Not Found",
            Arc::new("only /metrics is here\n".to_owned()),
        ),
    };
    let kind = if status.starts_with("200") {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; charset=utf-8"
    };
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Reads the head of a request; the path of a GET, and nothing of any other.
async fn request(stream: &mut UnixStream) -> io::Result<String> {
    let mut head = Vec::with_capacity(512);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= REQUEST_MAX {
            return Err(io::Error::other("the request is too large"));
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let head = String::from_utf8_lossy(&head);
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    match (words.next(), words.next()) {
        (Some("GET"), Some(path)) => Ok(path.split('?').next().unwrap_or_default().to_owned()),
        _ => Ok(String::new()),
    }
}

/// Gathers for one asker after the other, and gives the next ones what is still fresh. The last text stays until the next scrape:
/// waking up to drop some 30 KiB would cost a good part of what a scrape does.
async fn answer(mut collector: Collector, mut asked: mpsc::Receiver<Answer>) {
    let mut last: Option<(Instant, Arc<String>)> = None;
    while let Some(asker) = asked.recv().await {
        let fresh = last.take().filter(|(until, _)| Instant::now() < *until);
        let (until, text) = match fresh {
            Some(fresh) => fresh,
            None => {
                let text = Arc::new(collector.collect().await);
                (Instant::now() + FRESH, text)
            }
        };
        let _ = asker.send(Arc::clone(&text));
        last = Some((until, text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn served() -> (tempfile::TempDir, Serving) {
        let folder = tempfile::tempdir().expect("tempdir");
        let serving = serve(folder.path(), Collector::empty()).expect("serve");
        (folder, serving)
    }

    async fn ask(folder: &Path, request: &str) -> String {
        let mut stream = UnixStream::connect(folder.join(SOCKET))
            .await
            .expect("connect");
        stream.write_all(request.as_bytes()).await.expect("ask");
        let mut answer = String::new();
        // One that asks too much is cut off with its question half read.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_get_is_answered_and_nothing_else_is() {
        if !node::testing::has_root() {
            return;
        }
        let (folder, _serving) = served().await;
        let path = folder.path();
        assert_eq!(
            std::fs::metadata(path.join(SOCKET))
                .expect("stat")
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
        let answer = ask(path, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("# EOF\n"),
            "{answer}"
        );
        assert!(ask(path, "GET /x HTTP/1.0\r\n\r\n").await.contains(" 404 "));
        assert!(
            ask(path, "POST /metrics HTTP/1.0\r\n\r\n")
                .await
                .contains(" 405 ")
        );
        assert_eq!(ask(path, &"x".repeat(REQUEST_MAX * 2)).await, "");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn those_who_stall_hold_nothing_up_and_are_let_go() {
        if !node::testing::has_root() {
            return;
        }
        let (folder, serving) = served().await;
        let path = folder.path();
        let mut stalled = Vec::new();
        for _ in 0..CONNECTIONS_MAX - 1 {
            stalled.push(
                UnixStream::connect(path.join(SOCKET))
                    .await
                    .expect("connect"),
            );
        }
        let began = Instant::now();
        assert!(ask(path, "GET / HTTP/1.0\r\n\r\n").await.contains(" 200 "));
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        // With all places taken one waits until the first is let go, and no longer.
        stalled.push(
            UnixStream::connect(path.join(SOCKET))
                .await
                .expect("connect"),
        );
        assert!(ask(path, "GET / HTTP/1.0\r\n\r\n").await.contains(" 200 "));
        assert!(
            began.elapsed() < PEER_LIMIT + Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
        drop(serving);
        tokio::task::yield_now().await;
        UnixStream::connect(path.join(SOCKET))
            .await
            .expect_err("served no more");
    }
}
