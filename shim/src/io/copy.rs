//! Copying between two descriptors, with the ends of a stream told apart.

use std::fs::File;
use std::io::{self, Write as _};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionread;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep_until;

use crate::io::client::Client;
use crate::io::fifo::{self, Output};
use crate::io::keys::Keyboard;
use crate::io::life::{Hold, Life};
use crate::io::throttle::Throttle;
use crate::sys::aside;
use crate::sys::poll;

/// Bytes moved at a time. A pipe holds 64 KiB; more than half of that gains nothing and costs resident memory.
const CHUNK: usize = 32 * 1024;
/// How long after the exit a stream that something else still holds open is passed on.
const HELD_OPEN_LIMIT: Duration = Duration::from_secs(2);
/// What is read in a second only to be dropped.
const DROP_RATE: NonZeroU64 = NonZeroU64::new(10 * 1024 * 1024).unwrap();

/// Where a copy goes.
#[derive(Debug)]
pub(crate) enum Sink {
    /// A pipe.
    Stream(AsyncFd<File>),
    /// A terminal that is typed to.
    Terminal(Keyboard),
    /// A client's FIFO.
    Fifo(Output),
    /// A file, whose disk may be slow and cannot be waited for otherwise than by a thread.
    File(Arc<Slow>),
}

impl Sink {
    /// # Errors
    /// When the descriptor cannot be polled: it is a regular file, for one.
    pub(crate) fn stream(file: impl Into<OwnedFd>) -> io::Result<Self> {
        poll::pollable(file.into()).map(Self::Stream)
    }

    pub(crate) fn file(file: File) -> Self {
        Self::File(Arc::new(Slow(Some(file))))
    }

    /// The client's FIFO, if it is one.
    pub(crate) fn as_fifo(&self) -> Option<Output> {
        match self {
            Self::Fifo(output) => Some(output.clone()),
            Self::Stream(_) | Self::Terminal(_) | Self::File(_) => None,
        }
    }

    /// Writes all of the buffer and gives it back; with an error what it is, and how much of it was written, as far as is
    /// known.
    async fn write(&self, buffer: Vec<u8>) -> (Vec<u8>, Result<(), (usize, io::Error)>) {
        let written = match self {
            Self::Stream(stream) => poll::write_all(stream, &buffer).await,
            Self::Terminal(keyboard) => keyboard.write(&buffer).await,
            Self::Fifo(output) => output.write(&buffer).await,
            Self::File(file) => {
                let file = Arc::clone(file);
                let append = move || {
                    let written = file.append(&buffer);
                    (buffer, written)
                };
                return tokio::task::spawn_blocking(append)
                    .await
                    .unwrap_or_else(|error| (Vec::new(), Err((0, io::Error::other(error)))));
            }
        };
        (buffer, written.map_err(|error| (0, error)))
    }
}

/// A file that is closed aside.
#[derive(Debug)]
pub(crate) struct Slow(Option<File>);

impl Slow {
    /// # Errors
    /// What write(2) fails with, and how much was written before.
    fn append(&self, data: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut done = 0;
        while let (Some(mut file), Some(rest)) = (self.0.as_ref(), data.get(done..))
            && !rest.is_empty()
        {
            match file.write(rest) {
                Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((done, error)),
            }
        }
        Ok(())
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
}

/// What the outputs of a process have carried.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    bytes: AtomicU64,
    dropped: AtomicU64,
    waited_nanos: AtomicU64,
}

impl Counts {
    /// Passed on.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Lost because a log could not be written.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// How long they were kept waiting for their rate.
    pub(crate) fn waited_nanos(&self) -> u64 {
        self.waited_nanos.load(Ordering::Relaxed)
    }
}

/// How long what is left of a process keeps its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftovers {
    /// A terminal hangs up.
    None,
    /// Init's end with its container: nothing writes after `Delete`. A sentry keeps the streams of an init whose start has failed until
    /// the sandbox ends.
    EndAtDelete,
    /// Those of an exec outlive it.
    Stay,
}

/// How an output is passed on.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) life: Life,
    /// Kept until the client needs the shim no more.
    pub(crate) hold: Hold,
    /// Bounds how much is carried in a second; shared by both outputs.
    pub(crate) throttle: Option<Arc<Throttle>>,
    pub(crate) counts: Arc<Counts>,
    /// Dropped once everything has been passed on, or given up.
    pub(crate) delivered: oneshot::Sender<()>,
    /// Who else may write, once the client has been told of the end.
    pub(crate) leftovers: Leftovers,
    /// Notified when nobody waits any more for what its log does not take.
    pub(crate) given_up: Arc<Notify>,
}

/// How passing on came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nobody has the stream open any more.
    Closed,
    /// The process has exited, and something that it left has the stream open.
    HeldOpen,
    /// The streams were let go of without an exit.
    Abandoned,
}

impl Pump {
    /// # Errors
    /// When the source cannot be polled: it is no pipe, FIFO or terminal.
    pub(crate) fn new(from: OwnedFd, to: Sink) -> io::Result<Self> {
        let from = poll::pollable(from)?;
        Ok(Self { from, to })
    }

    /// Copies stdin until the client is done or the process has gone. The writing end closes on return, which is how
    /// the process sees the end of its input. Where it has one client alone, that is given.
    pub(crate) async fn run_input(
        self,
        mut life: Life,
        client: Option<Client>,
        released: Arc<Notify>,
    ) {
        tokio::select! {
            _ = life.exited() => {}
            result = self.copy_input(client, &released) => log_failure(result),
        }
    }

    async fn copy_input(&self, client: Option<Client>, released: &Notify) -> io::Result<()> {
        let mut buffer = Vec::new();
        if let Some(client) = client {
            // A writer that comes is told of by what it writes, or by its going.
            let silent = tokio::select! {
                ready = self.from.readable() => ready.map(|_| false)?,
                () = released.notified() => true,
                () = client.done() => true,
            };
            if silent {
                buffer.resize(CHUNK, 0);
                if fifo::lacks_writer(self.from.get_ref(), &mut buffer)? {
                    return Ok(());
                }
                buffer = self.write_input(buffer).await?;
            }
        }
        while self.read(&mut buffer).await? {
            buffer = self.write_input(buffer).await?;
        }
        Ok(())
    }

    async fn write_input(&self, buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        let (buffer, written) = self.to.write(buffer).await;
        written.map(|()| buffer).map_err(|(_, error)| error)
    }

    /// Copies output to its end. A child that the process left in the background may hold the stream open for ever, so the
    /// client is told of the end [`HELD_OPEN_LIMIT`] after the exit, whether the child prints or not; what it prints later is read
    /// and dropped, since without a reader it would be killed.
    pub(crate) async fn run_output(self, delivery: Delivery) {
        let Delivery {
            life,
            hold,
            throttle,
            counts,
            delivered,
            leftovers,
            given_up,
        } = delivery;
        let end = tokio::select! {
            end = self.deliver(&life, throttle.as_deref(), &counts) => end,
            () = rest_is_over(life.clone(), self.to.as_fifo()) => {
                tracing::warn!("output was left undelivered: its client did not read it");
                End::HeldOpen
            }
            () = given_up.notified() => End::HeldOpen,
        };
        if end == End::Abandoned {
            return;
        }
        let Self { from, to } = self;
        let mut until_delete = life.clone();
        match to {
            Sink::Fifo(output) => {
                let handed_over = output.hand_over(life);
                drop(tokio::spawn(async move {
                    handed_over.await;
                    drop(hold);
                }));
            }
            // A log ends here.
            to @ (Sink::Stream(_) | Sink::Terminal(_) | Sink::File(_)) => drop((to, hold)),
        }
        drop(delivered);
        if end != End::HeldOpen {
            return;
        }
        match leftovers {
            Leftovers::None => {}
            Leftovers::EndAtDelete => tokio::select! {
                () = until_delete.deleted() => {}
                () = discard(from, throttle) => {}
            },
            Leftovers::Stay => discard(from, throttle).await,
        }
    }

    async fn deliver(&self, life: &Life, throttle: Option<&Throttle>, counts: &Counts) -> End {
        let mut life = life.clone();
        let mut buffer = Vec::new();
        let mut loss = Loss::default();
        // What was on its way at the exit is the client's, however long it takes.
        let mut owed = None;
        loop {
            let exit = life.exit();
            if exit.is_some() && owed.is_none() {
                owed = Some(ioctl_fionread(&self.from).unwrap_or_default());
            }
            let limit = exit.map(|exit| exit + HELD_OPEN_LIMIT);
            let is_over = limit.is_some_and(|limit| limit <= tokio::time::Instant::now());
            if is_over && owed == Some(0) {
                return End::HeldOpen;
            }
            let read = tokio::select! {
                biased;
                read = self.read(&mut buffer) => read,
                () = sleep_until(limit.unwrap_or_else(tokio::time::Instant::now)), if limit.is_some() => {
                    return End::HeldOpen;
                }
                exit = life.exited(), if limit.is_none() => {
                    if exit.is_none() {
                        return End::Abandoned;
                    }
                    continue;
                }
            };
            match read {
                Ok(true) => {}
                Ok(false) => return End::Closed,
                Err(error) => {
                    log_failure(Err(error));
                    return End::Closed;
                }
            }
            let bytes = buffer.len() as u64;
            owed = owed.map(|owed| owed.saturating_sub(bytes));
            // What is not read stays in the pipe, and the program waits: nothing is dropped.
            if let Some(throttle) = throttle {
                let began = Instant::now();
                throttle.take_piece(buffer.len()).await;
                let waited = u64::try_from(began.elapsed().as_nanos()).unwrap_or_default();
                counts.waited_nanos.fetch_add(waited, Ordering::Relaxed);
            }
            let (written, result) = self.to.write(buffer).await;
            buffer = written;
            let lost =
                result.map_err(|(written, error)| (bytes.saturating_sub(written as u64), error));
            let passed = bytes - lost.as_ref().map_or_else(|(lost, _)| *lost, |()| 0);
            counts.bytes.fetch_add(passed, Ordering::Relaxed);
            loss.note(lost, counts).await;
        }
    }

    /// Fills the buffer with what is there; `false` at the end. Cancel-safe: nothing is taken before it returns.
    async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        read(&self.from, buffer).await
    }
}

async fn read(from: &AsyncFd<File>, buffer: &mut Vec<u8>) -> io::Result<bool> {
    // A stream that never carries anything never costs a buffer.
    drop(from.readable().await?);
    buffer.resize(CHUNK, 0);
    let read = match poll::read(from, buffer).await {
        // The master of a terminal reports the end of its last replica as EIO.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
        result => result,
    }?;
    buffer.truncate(read);
    Ok(read > 0)
}

/// Returns once nobody is to wait for this stream any longer. Before `Delete` that is never.
async fn rest_is_over(mut life: Life, client: Option<Output>) {
    life.deleted().await;
    let abandoned = async {
        match client {
            Some(client) => client.abandoned().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = life.rest_is_over() => {}
        () = abandoned => {}
    }
}

/// Reads to the end for nobody.
async fn discard(from: AsyncFd<File>, shared: Option<Arc<Throttle>>) {
    let own = Throttle::new(DROP_RATE);
    loop {
        // Silence costs no buffer.
        let mut buffer = Vec::new();
        match read(&from, &mut buffer).await {
            Ok(true) => {
                own.take_piece(buffer.len()).await;
                if let Some(shared) = &shared {
                    shared.take_piece(buffer.len()).await;
                }
            }
            Ok(false) | Err(_) => return,
        }
    }
}

/// What a log has lost. A program does not end because its log has no room: what cannot be written is dropped, and the next
/// piece is tried again.
#[derive(Debug)]
struct Loss {
    /// Since the last piece that could be written.
    bytes: u64,
    throttle: Throttle,
}

impl Default for Loss {
    fn default() -> Self {
        Self {
            bytes: 0,
            throttle: Throttle::new(DROP_RATE),
        }
    }
}

impl Loss {
    async fn note(&mut self, written: Result<(), (u64, io::Error)>, counts: &Counts) {
        match written {
            Ok(()) => {
                if self.bytes > 0 {
                    tracing::warn!(
                        bytes = self.bytes,
                        "output is written again: so much of it was dropped"
                    );
                    self.bytes = 0;
                }
            }
            Err((lost, error)) => {
                if self.bytes == 0 {
                    tracing::warn!(%error, "output cannot be written and is dropped");
                }
                self.bytes = self.bytes.saturating_add(lost.max(1));
                counts.dropped.fetch_add(lost, Ordering::Relaxed);
                let lost = usize::try_from(lost).unwrap_or(CHUNK);
                self.throttle.take(lost).await;
            }
        }
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
    use crate::io::life::{Holds, Lifetime};
    use std::io::Read as _;

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = io::pipe().expect("pipe");
        (reader.into(), writer.into())
    }

    /// Passes on what comes out of `from`, an exec's; the receiver ends once that is done.
    fn deliver(from: OwnedFd, to: Sink, life: &Lifetime) -> (oneshot::Receiver<()>, Arc<Counts>) {
        deliver_with(from, to, life, Leftovers::Stay)
    }

    fn deliver_with(
        from: OwnedFd,
        to: Sink,
        life: &Lifetime,
        leftovers: Leftovers,
    ) -> (oneshot::Receiver<()>, Arc<Counts>) {
        let (delivered, done) = oneshot::channel();
        let counts = Arc::<Counts>::default();
        let delivery = Delivery {
            life: life.subscribe(),
            hold: Holds::default().hold(),
            throttle: None,
            counts: Arc::clone(&counts),
            delivered,
            leftovers,
            given_up: Arc::default(),
        };
        tokio::spawn(Pump::new(from, to).expect("pump").run_output(delivery));
        (done, counts)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_held_open_is_let_go_of_at_delete_where_nothing_can_write() {
        for (leftovers, is_kept) in [(Leftovers::EndAtDelete, false), (Leftovers::Stay, true)] {
            let (from, holder) = pipe();
            let (_sink, to) = pipe();
            let life = Lifetime::default();
            let to = Sink::stream(to).expect("a sink");
            let (done, _) = deliver_with(from, to, &life, leftovers);
            life.set_exited();
            let ended = tokio::time::timeout(HELD_OPEN_LIMIT * 2, done).await;
            ended.expect("it ends").expect_err("its sender is dropped");
            let mut holder = File::from(holder);
            holder.write_all(b".").expect("it has a reader before");
            drop(life);
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(holder.write_all(b".").is_ok(), is_kept, "{leftovers:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_stream_ends_after_the_exit_whatever_a_child_does_and_the_child_keeps_its_reader() {
        for prints in [false, true] {
            let (from, holder) = pipe();
            let (sink, to) = pipe();
            let life = Lifetime::default();
            let (done, _) = deliver(from, Sink::stream(to).expect("sink"), &life);
            let mut holder = File::from(holder);
            holder.write_all(b"last words").expect("write");
            let began = Instant::now();
            life.set_exited();
            drop(life);
            let child = std::thread::spawn(move || {
                while prints && began.elapsed() < HELD_OPEN_LIMIT * 2 {
                    holder.write_all(b".").expect("the pipe has a reader");
                    std::thread::sleep(Duration::from_millis(100));
                }
                holder
            });
            tokio::time::timeout(HELD_OPEN_LIMIT * 2, done)
                .await
                .expect("the client is told")
                .ok();
            let took = began.elapsed();
            assert!(
                took < HELD_OPEN_LIMIT + Duration::from_millis(500),
                "{took:?}"
            );
            let mut text = String::new();
            File::from(sink).read_to_string(&mut text).expect("read");
            assert!(text.starts_with("last words"), "{text}");
            assert_eq!(text.len() > 15, prints, "{text}");
            let child = tokio::task::spawn_blocking(move || child.join()).await;
            child
                .expect("joined")
                .expect("the child lives")
                .write_all(b"!")
                .expect("a reader");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_on_its_way_at_the_exit_arrives_however_slow_the_client_is() {
        let (from, holder) = pipe();
        let (sink, to) = pipe();
        // More than fits into what the client has not read.
        File::from(to.try_clone().expect("dup"))
            .write_all(&[0; 65536])
            .expect("fill");
        File::from(holder.try_clone().expect("dup"))
            .write_all(&[1; 65536])
            .expect("write");
        let life = Lifetime::default();
        life.set_exited();
        let (done, _) = deliver(from, Sink::stream(to).expect("sink"), &life);
        tokio::time::sleep(HELD_OPEN_LIMIT + Duration::from_millis(200)).await;
        let client = std::thread::spawn(move || {
            let mut all = Vec::new();
            File::from(sink).read_to_end(&mut all).expect("read");
            all.len()
        });
        done.await.ok();
        let all = tokio::task::spawn_blocking(move || client.join()).await;
        assert_eq!(all.expect("joined").expect("client"), 2 * 65536);
        drop(holder);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_log_that_cannot_be_written_costs_its_lines_and_nothing_else() {
        let (from, program) = pipe();
        let (sink, to) = pipe();
        drop(sink);
        let life = Lifetime::default();
        let (done, counts) = deliver(from, Sink::stream(to).expect("sink"), &life);
        let mut program = File::from(program);
        for _ in 0..3 {
            program.write_all(b"line").expect("a reader");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(program);
        done.await.ok();
        assert_eq!((counts.bytes(), counts.dropped()), (0, 12));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_reader_loses_nothing() {
        let (from, source) = pipe();
        let (sink, to) = pipe();
        let life = Lifetime::default();
        let (done, _) = deliver(from, Sink::stream(to).expect("sink"), &life);
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
        done.await.ok();
        writer.join().expect("writer").expect("write");
        assert!(reader.join().expect("reader") == expected, "bytes differ");
    }
}
