//! Connects to sockets of peers that may not accept.
//!
//! connect(2) waits for as long as the queue of a Unix socket is full, and so for ever if its owner is stopped. Without
//! blocking it answers EAGAIN at once. That means a crowd, not a fault, so the shim tries again until a deadline.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

/// Between two tries, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(3), Duration::from_millis(100));

/// Connects, and waits no longer than `limit` for a place in the queue.
///
/// # Errors
/// `WouldBlock` where the queue stays full, else what connect(2) says.
pub async fn dial(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + limit;
    let (mut pause, longest) = PAUSE;
    loop {
        match UnixStream::connect(path).await {
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
            connected => return connected,
        }
    }
}

/// Whether somebody listens at a socket: one that is stopped, or too busy to accept, has a full queue.
pub fn is_alive(path: &Path) -> bool {
    matches!(knock(path), Ok(()) | Err(Errno::EAGAIN))
}

/// Connects without waiting, and lets go at once.
///
/// # Errors
/// What connect(2) says.
pub fn knock(path: &Path) -> nix::Result<()> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(stream.as_raw_fd(), &address)
}
