//! The client's side of a process's streams: FIFOs in a folder of their own, as containerd's clients make them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use crate::ground::patience::patience;

/// How much of a stream is kept beside its checksum.
const KEPT: usize = 1 << 20;

/// All that came out of a stream until its end.
#[derive(Debug, Default, Clone)]
pub struct Output {
    /// The first MiB.
    pub bytes: Vec<u8>,
    /// How many bytes came.
    pub length: u64,
    /// SHA-256 of all of them, in hex.
    pub sha256: String,
}

impl Output {
    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256(chunks: impl IntoIterator<Item = Vec<u8>>) -> String {
    let mut hash = Sha256::new();
    chunks.into_iter().for_each(|chunk| hash.update(chunk));
    hex(hash)
}

fn hex(hash: Sha256) -> String {
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The streams of one process. Dropped, it removes the FIFOs.
#[derive(Debug)]
pub struct Streams {
    folder: PathBuf,
    stdout: Option<oneshot::Receiver<Output>>,
    stderr: Option<oneshot::Receiver<Output>>,
}

impl Streams {
    /// Makes the FIFOs and begins to read.
    ///
    /// # Panics
    /// When the folder is there already.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        let mut streams = Self::unopened(folder);
        streams.stdout = Some(read(&streams.folder.join("stdout")));
        streams.stderr = Some(read(&streams.folder.join("stderr")));
        streams
    }

    /// Makes the FIFOs. Nobody opens an output before [`Streams::open`] does.
    ///
    /// # Panics
    /// When the folder is there already.
    #[must_use]
    pub fn unopened(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).expect("make the folder of the FIFOs");
        for name in ["stdin", "stdout", "stderr"] {
            mkfifo(&folder.join(name), Mode::from_bits_truncate(0o600)).expect("make a FIFO");
        }
        Self {
            folder,
            stdout: None,
            stderr: None,
        }
    }

    /// Opens an output as containerd's fifo package does (the open returns once there is a writer, if ever) and reads it to its
    /// end; `None` if that has not come `limit` later.
    pub async fn open(&self, name: &str, limit: Duration) -> Option<String> {
        let (path, (done, output)) = (self.folder.join(name), oneshot::channel());
        std::thread::spawn(move || {
            let _ = done.send(fs::read_to_string(path).unwrap_or_default());
        });
        tokio::time::timeout(limit, output).await.ok()?.ok()
    }

    /// Path of one stream.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Writes to stdin in the background once the runtime has opened it, then closes this end. The FIFO's other end is
    /// the runtime's: a program sees the end of its input only after CloseIO.
    pub fn write(
        &self,
        chunks: impl IntoIterator<Item = Vec<u8>> + Send + 'static,
    ) -> oneshot::Receiver<()> {
        let (path, (done, written)) = (self.folder.join("stdin"), oneshot::channel());
        std::thread::spawn(move || {
            let Ok(mut file) = File::options().write(true).open(path) else {
                return;
            };
            if chunks
                .into_iter()
                .all(|chunk| file.write_all(&chunk).is_ok())
            {
                let _ = done.send(());
            }
        });
        written
    }

    /// Waits for the end of stdout.
    ///
    /// # Panics
    /// When the runtime keeps it open, or when asked twice.
    pub async fn stdout(&mut self) -> Output {
        end_of("stdout", self.stdout.take()).await
    }

    /// Waits for the end of stderr.
    ///
    /// # Panics
    /// When the runtime keeps it open, or when asked twice.
    pub async fn stderr(&mut self) -> Output {
        end_of("stderr", self.stderr.take()).await
    }
}

async fn end_of(name: &str, stream: Option<oneshot::Receiver<Output>>) -> Output {
    let stream = stream.expect("a stream is read once");
    let output = tokio::time::timeout(patience(Duration::from_secs(60)), stream).await;
    output
        .unwrap_or_else(|_| panic!("{name} is still open 60 s later"))
        .expect("the reading thread ends well")
}

impl Drop for Streams {
    fn drop(&mut self) {
        for name in ["stdin", "stdout", "stderr"] {
            // Threads that wait for the other end give up when it comes and goes.
            let flags = nix::libc::O_NONBLOCK;
            drop(
                File::options()
                    .read(true)
                    .write(true)
                    .custom_flags(flags)
                    .open(self.folder.join(name)),
            );
        }
        let _ = fs::remove_dir_all(&self.folder);
        // The folder of all folders, when this was the last.
        let _ = self.folder.parent().map(fs::remove_dir);
    }
}

/// Opens a stream before anybody writes to it, as containerd does, and reads it in the background. A reader that comes after a
/// writer has gone would wait for the next one.
fn read(path: &Path) -> oneshot::Receiver<Output> {
    let (done, output) = oneshot::channel();
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
        .expect("open a FIFO");
    std::thread::spawn(move || {
        let _ = done.send(drain(file).unwrap_or_default());
    });
    output
}

fn drain(mut file: File) -> std::io::Result<Output> {
    // Until there is something to read, or a writer has come and gone.
    let mut wanted = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    while poll(&mut wanted, PollTimeout::NONE) == Err(Errno::EINTR) {}
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    let (mut hash, mut output) = (Sha256::new(), Output::default());
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut buffer)?;
        let chunk = &buffer[..count];
        if chunk.is_empty() {
            output.sha256 = hex(hash);
            return Ok(output);
        }
        hash.update(chunk);
        output.length += chunk.len() as u64;
        let room = KEPT.saturating_sub(output.bytes.len()).min(count);
        output.bytes.extend_from_slice(&chunk[..room]);
    }
}
