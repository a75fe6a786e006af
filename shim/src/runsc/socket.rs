//! The sandbox's control socket: one JSON value each way, one connection a call.
//!
//! Wire facts are from `pkg/urpc/urpc.go` of gVisor: `{"method","arg"}` is answered by `{"success","err","result"}`
//! without any framing, and descriptors ride with the first bytes. The sentry on the other side is untrusted: replies
//! are capped, every call but a wait has a deadline, and descriptors it sends are never received (a plain read makes
//! the kernel drop them). An idle connection would hold up the sandbox's exit, so none is kept.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

use node::dial::dial;

/// The largest reply that is read, in bytes. The longest there is are the sentry's counters, some 100 KiB where a program
/// has tried every system call that gVisor lacks.
const REPLY_MAX: usize = 256 * 1024;

/// How long the sentry's queue of connections may stay full.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No connection could be made.
    #[error("connect: {0}")]
    Connect(io::Error),
    /// The connection broke before a whole reply had arrived.
    #[error("the connection closed before the reply was complete: {0}")]
    Broken(io::Error),
    /// The reply is not what this method answers.
    #[error("reply not understood: {0}")]
    Decode(String),
    /// The sentry does not know the method.
    #[error("unknown method")]
    UnknownMethod,
    /// The sentry's own answer is an error: the call worked.
    #[error("{0}")]
    Answer(String),
    /// No reply within the deadline.
    #[error("no reply within {0:?}")]
    Timeout(Duration),
}

#[derive(serde::Deserialize)]
struct Reply {
    #[serde(default)]
    success: bool,
    #[serde(default)]
    err: String,
    /// As it was sent: what is made of it is bounded by its type, where a value of any type takes many times its bytes.
    #[serde(default)]
    result: Option<Box<RawValue>>,
}

/// Calls one method with a deadline for the whole exchange.
///
/// # Errors
/// See [`CallError`].
pub(crate) async fn call<R: DeserializeOwned>(
    path: &Path,
    method: &str,
    arg: &(impl Serialize + Sync),
    fds: &[BorrowedFd<'_>],
    limit: Duration,
) -> Result<R, CallError> {
    tokio::time::timeout(limit, call_unbounded(path, method, arg, fds))
        .await
        .unwrap_or(Err(CallError::Timeout(limit)))
}

/// Calls one method and waits for as long as it takes: only a wait for an exit may.
///
/// # Errors
/// See [`CallError`].
pub(crate) async fn call_unbounded<R: DeserializeOwned>(
    path: &Path,
    method: &str,
    arg: &(impl Serialize + Sync),
    fds: &[BorrowedFd<'_>],
) -> Result<R, CallError> {
    let request = serde_json::json!({ "method": method, "arg": arg });
    let request = serde_json::to_vec(&request).map_err(|e| CallError::Decode(e.to_string()))?;
    let mut stream = connect(path).await.map_err(CallError::Connect)?;
    send(&mut stream, &request, fds)
        .await
        .map_err(CallError::Broken)?;
    let reply = receive(&mut stream).await?;
    if reply.success {
        let result = reply.result.as_deref().map_or("null", RawValue::get);
        return serde_json::from_str(result).map_err(|e| CallError::Decode(e.to_string()));
    }
    // `urpc.ErrUnknownMethod`
    if reply.err == "unknown method" {
        Err(CallError::UnknownMethod)
    } else {
        Err(CallError::Answer(reply.err))
    }
}

/// Connects through an `O_PATH` descriptor: a socket path may be longer than the 108 bytes of an address. The sentry's queue
/// of waiting connections is short.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = nix::fcntl::open(
        path,
        OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
        Mode::empty(),
    )?;
    let address = format!("/proc/self/fd/{}", socket.as_raw_fd());
    dial(Path::new(&address), CONNECT_LIMIT).await
}

async fn send(stream: &mut UnixStream, request: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let fd = stream.as_raw_fd();
            Ok(sendmsg::<()>(
                fd,
                &[IoSlice::new(request)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )?)
        })
        .await?;
    stream
        .write_all(request.get(sent..).unwrap_or_default())
        .await
}

async fn receive(stream: &mut UnixStream) -> Result<Reply, CallError> {
    let mut reply = Vec::with_capacity(1024);
    let mut end = ObjectEnd::default();
    loop {
        let read = stream
            .read_buf(&mut reply)
            .await
            .map_err(CallError::Broken)?;
        if read == 0 {
            return Err(CallError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        if reply.len() > REPLY_MAX {
            return Err(CallError::Decode(format!(
                "reply is larger than {REPLY_MAX} bytes"
            )));
        }
        if end.feed(reply.get(reply.len() - read..).unwrap_or_default()) {
            return serde_json::from_slice(&reply).map_err(|e| CallError::Decode(e.to_string()));
        }
    }
}

/// Finds the end of a JSON object as its bytes arrive, so that a reply is parsed once however it is cut: parsing after
/// every read would let a peer that sends byte by byte spend the shim's time squared.
#[derive(Default)]
struct ObjectEnd {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl ObjectEnd {
    /// Whether the outermost bracket has closed, or can never close.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (_, b'"') => self.in_string = !self.in_string,
                (true, _) => {}
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return true;
                    }
                }
                (false, byte) if self.depth == 0 && !byte.is_ascii_whitespace() => return true,
                (false, _) => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const LIMIT: Duration = Duration::from_millis(300);

    /// A sentry that answers one call with fixed bytes, or not at all, and then closes.
    async fn peer(reply: Option<Vec<u8>>) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().expect("tempdir");
        let deep = folder.path().join("x".repeat(100));
        std::fs::create_dir(&deep).expect("mkdir");
        // Bound under a short name and moved: the path a call uses is then longer than an address can be.
        let listener = UnixListener::bind(folder.path().join("s")).expect("bind");
        std::fs::rename(folder.path().join("s"), deep.join("s")).expect("rename");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            match reply {
                Some(reply) => drop(stream.write_all(&reply).await),
                None => tokio::time::sleep(Duration::from_secs(30)).await,
            }
        });
        (folder, deep.join("s"))
    }

    async fn ask(reply: Option<&[u8]>) -> Result<u32, CallError> {
        let (_folder, path) = peer(reply.map(<[u8]>::to_vec)).await;
        call(&path, "containerManager.Wait", &"c", &[], LIMIT).await
    }

    #[tokio::test]
    async fn an_answer_is_decoded() {
        assert_eq!(
            ask(Some(b"{\"success\":true,\"err\":\"\",\"result\":1792}\n"))
                .await
                .expect("answer"),
            1792
        );
    }

    #[tokio::test]
    async fn an_error_answer_is_not_a_broken_connection() {
        let error = ask(Some(
            br#"{"success":false,"err":"no such thing","result":null}"#,
        ))
        .await;
        assert!(matches!(error, Err(CallError::Answer(text)) if text == "no such thing"));
        let error = ask(Some(br#"{"success":false,"err":"unknown method"}"#)).await;
        assert!(matches!(error, Err(CallError::UnknownMethod)));
    }

    #[tokio::test]
    async fn silence_garbage_and_half_a_reply_all_end() {
        assert!(matches!(ask(None).await, Err(CallError::Timeout(_))));
        assert!(matches!(
            ask(Some(b"garbage}")).await,
            Err(CallError::Decode(_))
        ));
        assert!(matches!(
            ask(Some(b"{\"success\":tr")).await,
            Err(CallError::Broken(_))
        ));
        assert!(matches!(
            ask(Some(br#"{"success":true,"result":"text"}"#)).await,
            Err(CallError::Decode(_))
        ));
    }

    #[tokio::test]
    async fn an_endless_reply_is_cut_off() {
        let mut reply = br#"{"success":true,"err":""#.to_vec();
        reply.resize(REPLY_MAX * 2, b'a');
        assert!(
            matches!(ask(Some(&reply)).await, Err(CallError::Decode(text)) if text.contains("larger"))
        );
    }

    #[tokio::test]
    async fn a_full_queue_of_connections_is_waited_out() {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
        };
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("s");
        let flags = SockFlag::SOCK_NONBLOCK;
        let crowded = socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("socket");
        bind(crowded.as_raw_fd(), &UnixAddr::new(&path).expect("address")).expect("bind");
        listen(&crowded, Backlog::new(0).expect("backlog")).expect("listen");
        let crowd = UnixStream::connect(&path).await.expect("first");
        assert_eq!(
            UnixStream::connect(&path).await.expect_err("full").kind(),
            io::ErrorKind::WouldBlock
        );
        let listener = std::os::unix::net::UnixListener::from(crowded);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(listener.accept());
            tokio::time::sleep(Duration::from_millis(500)).await;
        });
        connect(&path).await.expect("the queue empties");
        drop(crowd);
    }

    #[tokio::test]
    async fn a_missing_socket_is_a_connect_error() {
        let gone = Path::new("/nonexistent/s");
        let error = call::<u32>(gone, "m", &"c", &[], LIMIT).await;
        assert!(matches!(error, Err(CallError::Connect(_))));
    }
}
