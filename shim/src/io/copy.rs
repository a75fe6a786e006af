//! Copying between two descriptors, with the ends of a stream told apart.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::aside;
use crate::io::fifo;
use crate::io::throttle::Throttle;
use crate::poll;

/// Bytes moved at a time. A pipe holds 64 KiB; more than half of that gains nothing and costs resident memory.
const CHUNK: usize = 32 * 1024;
/// How long after the exit a stream that something else still holds open is read on, while it stays silent.
const HELD_OPEN_LIMIT: Duration = Duration::from_secs(2);

/// Where a copy goes.
#[derive(Debug)]
pub(crate) enum Sink {
    /// A pipe or terminal.
    Stream(AsyncFd<File>),
    /// A client's FIFO, open at both ends.
    Fifo(AsyncFd<File>),
    /// A file, whose disk may be slow and cannot be waited for otherwise than by a thread.
    File(Arc<Slow>),
}

impl Sink {
    /// # Errors
    /// When the descriptor cannot be polled: it is a regular file, for one.
    pub(crate) fn stream(file: impl Into<OwnedFd>) -> io::Result<Self> {
        poll::pollable(file.into()).map(Self::Stream)
    }

    /// # Errors
    /// As [`Sink::stream`].
    pub(crate) fn fifo(file: File) -> io::Result<Self> {
        poll::pollable(file.into()).map(Self::Fifo)
    }

    pub(crate) fn file(file: File) -> Self {
        Self::File(Arc::new(Slow(Some(file))))
    }

    /// Lets go of it, once what was written is the client's.
    async fn finish(self) {
        if let Self::Fifo(fifo) = self {
            fifo::hand_over(fifo.into_inner()).await;
        }
    }

    /// Writes all of the buffer and gives it back.
    async fn write(&self, buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::Stream(stream) | Self::Fifo(stream) => {
                let mut data = buffer.as_slice();
                while !data.is_empty() {
                    let mut ready = stream.writable().await?;
                    match ready.try_io(|fd| fd.get_ref().write(data)) {
                        Ok(Ok(written)) => data = data.get(written..).unwrap_or_default(),
                        Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                        Ok(Err(error)) => return Err(error),
                        Err(_would_block) => {}
                    }
                }
                Ok(buffer)
            }
            Self::File(file) => {
                let file = Arc::clone(file);
                let write = move || file.write_all(&buffer).map(|()| buffer);
                tokio::task::spawn_blocking(write)
                    .await
                    .unwrap_or_else(|error| Err(io::Error::other(error)))
            }
        }
    }
}

/// A file that is closed aside.
#[derive(Debug)]
pub(crate) struct Slow(Option<File>);

impl Slow {
    fn write_all(&self, data: &[u8]) -> io::Result<()> {
        self.0
            .as_ref()
            .map_or(Ok(()), |mut file| file.write_all(data))
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        aside::let_go(self.0.take());
    }
}

/// One direction of one stream.
#[derive(Debug)]
pub(crate) struct Pump {
    from: AsyncFd<File>,
    to: Sink,
    throttle: Option<Arc<Throttle>>,
    counts: Arc<Counts>,
}

/// What the outputs of a process have carried.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    bytes: AtomicU64,
    waited_nanos: AtomicU64,
}

impl Counts {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How long they were kept waiting for their rate.
    pub(crate) fn waited_nanos(&self) -> u64 {
        self.waited_nanos.load(Ordering::Relaxed)
    }
}

impl Pump {
    /// # Errors
    /// When the source cannot be polled: it is no pipe, FIFO or terminal.
    pub(crate) fn new(from: OwnedFd, to: Sink) -> io::Result<Self> {
        let from = poll::pollable(from)?;
        Ok(Self {
            from,
            to,
            throttle: None,
            counts: Arc::default(),
        })
    }

    /// With a bound on how much it carries in a second.
    pub(crate) fn throttled(self, throttle: Option<Arc<Throttle>>, counts: Arc<Counts>) -> Self {
        Self {
            throttle,
            counts,
            ..self
        }
    }

    /// Copies stdin until the client is done or the process has gone. The writing end closes on return, which is how
    /// the process sees the end of its input.
    pub(crate) async fn run_input(self, mut exited: watch::Receiver<bool>) {
        let gone = async {
            let _ = exited.wait_for(|exited| *exited).await;
        };
        tokio::select! {
            () = gone => {}
            result = self.copy_all() => log_failure(result),
        }
    }

    /// Copies output to its end. After the exit of the process, a child that it left in the background may hold the
    /// stream open for ever: silence for [`HELD_OPEN_LIMIT`] then ends it as well.
    pub(crate) async fn run_output(self, mut exited: watch::Receiver<bool>) {
        let mut buffer = Vec::new();
        loop {
            let has_exited = *exited.borrow();
            let read = tokio::select! {
                read = self.read(&mut buffer) => read,
                () = tokio::time::sleep(HELD_OPEN_LIMIT), if has_exited => Ok(false),
                changed = exited.changed(), if !has_exited => {
                    if changed.is_err() {
                        return;
                    }
                    continue;
                }
            };
            match read {
                Ok(true) => {}
                Ok(false) => return self.to.finish().await,
                Err(error) => return log_failure(Err(error)),
            }
            // What is not read stays in the pipe, and the program waits: nothing is dropped.
            if let Some(throttle) = &self.throttle {
                let began = Instant::now();
                throttle.take(buffer.len()).await;
                let waited = u64::try_from(began.elapsed().as_nanos()).unwrap_or_default();
                self.counts
                    .waited_nanos
                    .fetch_add(waited, Ordering::Relaxed);
            }
            let bytes = buffer.len() as u64;
            match self.to.write(buffer).await {
                Ok(written) => {
                    self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
                    buffer = written;
                }
                Err(error) => return log_failure(Err(error)),
            }
        }
    }

    async fn copy_all(&self) -> io::Result<()> {
        let mut buffer = Vec::new();
        while self.read(&mut buffer).await? {
            buffer = self.to.write(buffer).await?;
        }
        Ok(())
    }

    /// Fills the buffer with what is there; `false` at the end. Cancel-safe: nothing is taken before it returns.
    async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        // A stream that never carries anything never costs a buffer.
        drop(self.from.readable().await?);
        buffer.resize(CHUNK, 0);
        let read = match poll::read(&self.from, buffer).await {
            // The master of a terminal reports the end of its last replica as EIO.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            result => result,
        }?;
        buffer.truncate(read);
        Ok(read > 0)
    }
}

fn log_failure(result: io::Result<()>) {
    match result {
        // The process closed its stdin or exited: it wants no more.
        Err(error)
            if error.kind() == io::ErrorKind::BrokenPipe
                || error.raw_os_error() == Some(libc::EIO) => {}
        Err(error) => tracing::warn!(%error, "a stream ended early"),
        Ok(()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = io::pipe().expect("pipe");
        (reader.into(), writer.into())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_stream_ends_after_exit_even_when_a_child_holds_it_open() {
        let (from, mut holder) = pipe();
        let (sink, to) = pipe();
        let (exited, watch) = watch::channel(false);
        let pump = tokio::spawn(
            Pump::new(from, Sink::stream(to).expect("sink"))
                .expect("pump")
                .run_output(watch),
        );
        io::Write::write_all(
            &mut File::from(holder.try_clone().expect("dup")),
            b"last words",
        )
        .expect("write");
        exited.send_replace(true);
        tokio::time::timeout(HELD_OPEN_LIMIT * 3, pump)
            .await
            .expect("the pump ends")
            .expect("pump");
        let mut text = String::new();
        File::from(sink).read_to_string(&mut text).expect("read");
        assert_eq!(text, "last words");
        // The holder is still open here: that is what the pump had to survive.
        holder = holder.try_clone().expect("open");
        drop(holder);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_reader_loses_nothing() {
        let (from, source) = pipe();
        let (sink, to) = pipe();
        let (_exited, watch) = watch::channel(false);
        let pump = tokio::spawn(
            Pump::new(from, Sink::stream(to).expect("sink"))
                .expect("pump")
                .run_output(watch),
        );
        let data: Vec<u8> = (0..1_000_000_u32)
            .map(|n| u8::try_from(n % 251).unwrap_or(0))
            .collect();
        let expected = data.clone();
        let writer = std::thread::spawn(move || File::from(source).write_all(&data));
        let reader = std::thread::spawn(move || {
            let (mut file, mut all) = (File::from(sink), Vec::new());
            let mut chunk = [0; 7001];
            while let Ok(read @ 1..) = file.read(&mut chunk) {
                all.extend_from_slice(&chunk[..read]);
                std::thread::sleep(Duration::from_micros(200));
            }
            all
        });
        pump.await.expect("pump");
        writer.join().expect("writer").expect("write");
        assert!(reader.join().expect("reader") == expected, "bytes differ");
    }
}
