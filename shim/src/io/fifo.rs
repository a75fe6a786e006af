//! The client's FIFOs, and who holds which end.
//!
//! containerd makes the FIFOs and may close and open its ends at any time (`ctr task attach`, a restart of containerd).
//! Each side that the shim writes is opened for reading too, so that a reader that goes away means back-pressure and
//! not a broken pipe; the side it reads is held open for writing until `CloseIO`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::io::ioctl_fionread;
use tokio::time::{Instant, sleep};

/// How long output waits for a client that has not opened its end yet. containerd's clients open theirs beside what else they do
/// (`OpenFifo` in containerd/fifo), so a program that ends at once can be faster.
const READER_LIMIT: Duration = Duration::from_secs(1);
/// Between two looks for it, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(64));

/// The shim's writing end of the client's stdin FIFO.
#[derive(Debug)]
pub(crate) struct Input {
    hold: Mutex<Option<File>>,
}

impl Input {
    /// Opens stdin: the hold, and the end to read from.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, OwnedFd)> {
        // Opening for both never blocks and makes the other open succeed without a writer.
        let both = open(path, true, true)?;
        let source = open(path, true, false)?;
        let hold = open(path, false, true)?;
        drop(both);
        Ok((
            Self {
                hold: Mutex::new(Some(hold)),
            },
            source.into(),
        ))
    }

    pub(crate) fn release(&self) {
        self.hold
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// Opens stdout or stderr for writing.
pub(crate) fn open_output(path: &Path) -> io::Result<File> {
    open(path, true, true)
}

/// Lets go of an output whose end has come. What is in a FIFO is lost with the last one who has it open, so that is not the shim
/// while something is in there and nobody else could read it, for [`READER_LIMIT`].
pub(crate) async fn hand_over(output: File) {
    // Only one who could not read it himself is told whether somebody can.
    let path = PathBuf::from(format!("/proc/self/fd/{}", output.as_raw_fd()));
    let Ok(writer) = open(&path, false, true) else {
        return;
    };
    drop(output);
    let deadline = Instant::now() + READER_LIMIT;
    let (mut pause, longest) = PAUSE;
    while is_unread(&writer) && !has_reader(&writer) && Instant::now() < deadline {
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

fn is_unread(writer: &File) -> bool {
    ioctl_fionread(writer).is_ok_and(|bytes| bytes > 0)
}

/// A FIFO without a reader is in error for who writes it (poll(2)).
fn has_reader(writer: &File) -> bool {
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::empty())];
    let told = nix::poll::poll(&mut fds, PollTimeout::ZERO);
    let [fd] = fds;
    let is_alone = fd
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLERR));
    !(told.is_ok() && is_alone)
}

fn open(path: &Path, read: bool, write: bool) -> io::Result<File> {
    let file = File::options()
        .read(read)
        .write(write)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a FIFO"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    fn fifo() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        (folder, path)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn output_is_there_for_a_reader_who_comes_late() {
        let (_folder, path) = fifo();
        let mut output = open_output(&path).expect("open");
        output.write_all(b"last words").expect("write");
        let over = tokio::spawn(hand_over(output));
        sleep(Duration::from_millis(50)).await;
        assert!(!over.is_finished(), "it would be lost");
        let mut reader = open(&path, true, false).expect("open");
        over.await.expect("handed over");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "last words");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn nothing_is_waited_for_where_nothing_can_be_lost() {
        let (_folder, path) = fifo();
        let began = Instant::now();
        hand_over(open_output(&path).expect("open")).await;
        let reader = open(&path, true, false);
        let mut output = open_output(&path).expect("open");
        output.write_all(b"unread").expect("write");
        // A reader who is there may take its time.
        hand_over(output).await;
        assert!(began.elapsed() < READER_LIMIT / 2, "{:?}", began.elapsed());
        drop(reader);
        let mut output = open_output(&path).expect("open");
        output.write_all(b"unread").expect("write");
        hand_over(output).await;
        assert!(began.elapsed() >= READER_LIMIT, "nobody came");
    }
}
