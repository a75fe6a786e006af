//! The client's FIFOs, and who holds which end.
//!
//! containerd makes the FIFOs and may close and open its ends at any time (`ctr task attach`, a restart of containerd).
//! The shim holds an output for writing to its end. From the first write on it holds it for reading as well, so that the
//! departure of a reader means back-pressure and not a broken pipe. It holds init's stdin open for writing until `CloseIO`.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::ioctl_fionread;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::error::Error;
use crate::io::life::{HOLD_LIMIT, Life};
use crate::sys::aside;
use crate::sys::poll;

/// How long the opening for reading as well may take.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks for a client, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(64));
/// The same for a stream that ended long before its process.
const LONG_PAUSE: Duration = Duration::from_secs(1);

/// Between two looks at a FIFO that has been removed, and how many of them must find nothing read.
const IDLE_PAUSE: Duration = Duration::from_millis(200);
const IDLE_LOOKS: u32 = 5;

/// Who has the other ends of a process's FIFOs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Clients {
    /// Those of init detach and attach, and containerd restarts: stdin ends with `CloseIO` alone, and what nobody has read yet is
    /// kept.
    #[default]
    Return,
    /// An exec has one, which does not come back: stdin ends with its last writer as well, once there has been one.
    One,
}

/// The shim's writing end of the client's stdin FIFO.
#[derive(Debug)]
pub(crate) struct Input {
    hold: Mutex<Option<File>>,
    released: Arc<Notify>,
}

impl Input {
    /// Opens stdin: the hold, and the end to read from.
    pub(crate) fn open(path: &Path, clients: Clients) -> io::Result<(Self, OwnedFd)> {
        let (source, hold) = match clients {
            Clients::One => (open(path, true, false)?, None),
            Clients::Return => {
                // Opening for both never blocks and makes the other open succeed without a writer.
                let both = open(path, true, true)?;
                let source = reopen(&both, true, false)?;
                (source, Some(reopen(&both, false, true)?))
            }
        };
        let input = Self {
            hold: Mutex::new(hold),
            released: Arc::default(),
        };
        Ok((input, source.into()))
    }

    /// Lets stdin end as soon as no client writes.
    pub(crate) fn release(&self) {
        self.hold
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.released.notify_one();
    }

    /// Notified of the release.
    pub(crate) fn released(&self) -> Arc<Notify> {
        Arc::clone(&self.released)
    }
}

/// Whether a stdin FIFO has no writer at this moment. What was there to read comes into the buffer: no other call than read(2)
/// tells a FIFO that never had a writer from one that has.
///
/// # Errors
/// What read(2) fails with.
pub(crate) fn lacks_writer(mut source: &File, buffer: &mut Vec<u8>) -> io::Result<bool> {
    match source.read(buffer) {
        Ok(read) => {
            buffer.truncate(read);
            Ok(read == 0)
        }
        Err(error) => {
            buffer.clear();
            match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                _ => Err(error),
            }
        }
    }
}

/// The shim's ends of stdout or stderr.
#[derive(Debug, Clone)]
pub(crate) struct Output(Arc<Mutex<Ends>>);

#[derive(Debug)]
struct Ends {
    /// Both ends, from the first write on.
    both: Option<Arc<AsyncFd<File>>>,
    /// Gone once there is nothing left to watch for.
    door: Option<Door>,
    written: u64,
    /// A client has had it open, as far as has been looked.
    is_visited: bool,
    clients: Clients,
    /// How many outputs go there and have not ended.
    streams: usize,
}

impl Output {
    /// # Errors
    /// When it is no FIFO, or cannot be opened.
    pub(crate) fn open(path: &Path, clients: Clients) -> io::Result<Self> {
        let ends = Ends {
            both: None,
            door: Some(Door::open(path)?),
            written: 0,
            is_visited: false,
            clients,
            streams: 1,
        };
        Ok(Self(Arc::new(Mutex::new(ends))))
    }

    /// For the other output, where both go to one FIFO.
    pub(crate) fn share(&self) -> Self {
        self.lock().streams += 1;
        self.clone()
    }

    /// Writes all of it, for as long as nobody makes room.
    ///
    /// # Errors
    /// What open(2) and write(2) fail with.
    pub(crate) async fn write(&self, data: &[u8]) -> io::Result<()> {
        let opened = self.lock().both.clone();
        let both = match opened {
            Some(both) => both,
            None => self.open_both().await?,
        };
        poll::write_all(&both, data).await?;
        self.lock().written += data.len() as u64;
        Ok(())
    }

    async fn open_both(&self) -> io::Result<Arc<AsyncFd<File>>> {
        let writer = {
            let mut ends = self.lock();
            ends.look();
            let door = ends.door.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            door.writer.try_clone()?
        };
        let open = move || reopen(&writer, true, true).map_err(|e| Error::io("open a FIFO", &e));
        let opened = aside::STREAMS.within(OPEN_LIMIT, "open a FIFO for output", open, drop);
        let both = poll::pollable(opened.await.map_err(io::Error::other)?.into())?;
        let mut ends = self.lock();
        if ends.is_visited && ends.clients == Clients::One {
            ends.door = None;
        }
        // The other output may have been faster.
        Ok(Arc::clone(ends.both.get_or_insert(Arc::new(both))))
    }

    /// Lets go of it at the end of the stream. Without a writer a client's open would never return, and what is in a FIFO
    /// is lost with the last one who has it open, so the shim keeps it until a client has come, and for [`HOLD_LIMIT`] after
    /// the exit of the process at most. A client that was there and has gone is not waited for, unless it may return for what it
    /// has not read: before `Delete` one of init may.
    pub(crate) fn hand_over(self, mut life: Life) -> impl Future<Output = ()> {
        let is_last = self.lock().end_stream();
        async move {
            if !is_last {
                // The other output is still to come.
                return;
            }
            tokio::select! {
                () = self.released(life.clone()) => {}
                () = life.held_long_enough() => self.lock().close(),
            }
        }
    }

    async fn released(&self, life: Life) {
        let began = Instant::now();
        let mut pause = PAUSE.0;
        while !self.release(life.is_deleted()) {
            sleep(pause).await;
            let longest = if began.elapsed() < HOLD_LIMIT {
                PAUSE.1
            } else {
                LONG_PAUSE
            };
            pause = (pause * 2).min(longest);
        }
    }

    /// Closes it if its streams have ended and no client is to be waited for any more; returns whether it is closed.
    pub(crate) fn release(&self, is_deleted: bool) -> bool {
        let mut ends = self.lock();
        let is_done = |ends: &mut Ends| ends.look() && (is_deleted || !ends.may_return());
        if ends.streams == 0 && (is_done(&mut ends) || ends.is_removed()) {
            ends.close();
        }
        ends.is_closed()
    }

    /// Returns once nobody can come for what is in there, and nobody who came before reads it.
    pub(crate) async fn abandoned(&self) {
        let (mut unread, mut looks) = (None, 0);
        while looks < IDLE_LOOKS {
            sleep(IDLE_PAUSE).await;
            let ends = self.lock();
            let now = ends.unread();
            if ends.is_removed() && now == unread {
                looks += 1;
            } else {
                (unread, looks) = (now, 0);
            }
        }
    }

    /// Whether a client has it open, or had, as far as can be told.
    pub(crate) fn is_visited(&self) -> bool {
        self.lock().look()
    }

    /// Where it is, unless it has been closed.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        location(self.lock().file()?).ok()
    }

    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ends {
    /// One stream has ended; returns whether it was the last.
    fn end_stream(&mut self) -> bool {
        self.streams = self.streams.saturating_sub(1);
        let is_last = self.streams == 0;
        if is_last {
            self.look();
            if let Some(door) = &self.door {
                drop(self.both.take());
                if !self.is_visited {
                    // This looked like a reader that has gone.
                    door.has_lost_reader();
                }
            }
        }
        is_last
    }

    /// Whether a client has it open, or had.
    fn look(&mut self) -> bool {
        if let (false, Some(door)) = (self.is_visited, &self.door) {
            self.is_visited = if self.both.is_some() {
                // The shim is a reader itself: it only sees that somebody has read.
                self.unread().is_some_and(|unread| unread < self.written)
            } else {
                has_reader(&door.writer) || door.has_lost_reader()
            };
        }
        self.is_visited
    }

    /// Whether somebody may come back for what nobody has read.
    fn may_return(&self) -> bool {
        let is_alone = self
            .door
            .as_ref()
            .is_some_and(|door| !has_reader(&door.writer));
        self.clients == Clients::Return && is_alone && self.unread().is_some_and(|bytes| bytes > 0)
    }

    fn file(&self) -> Option<&File> {
        let both = self.both.as_ref().map(|both| both.get_ref());
        both.or(self.door.as_ref().map(|door| &door.writer))
    }

    /// Bytes that wait in the FIFO.
    fn unread(&self) -> Option<u64> {
        ioctl_fionread(self.file()?).ok()
    }

    /// Nobody can come to a FIFO that has been removed.
    fn is_removed(&self) -> bool {
        // A filesystem that is dead is not asked.
        let look = |file: &File| {
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
            rustix::fs::statx(file, "", flags, StatxFlags::NLINK)
        };
        let file = self.file().map(look);
        !file.is_some_and(|file| file.is_ok_and(|file| file.stx_nlink > 0))
    }

    fn close(&mut self) {
        (self.both, self.door) = (None, None);
    }

    fn is_closed(&self) -> bool {
        self.file().is_none()
    }
}

/// Tells who comes and goes. Only who does not read himself is told.
#[derive(Debug)]
struct Door {
    writer: File,
    /// Tells that a last reader has gone (pipe_release in the kernel's `fs/pipe.c` wakes those who wait to write).
    gone: Epoll,
}

impl Door {
    fn open(path: &Path) -> io::Result<Self> {
        // Opening for both succeeds without a reader.
        let both = open(path, true, true)?;
        let writer = reopen(&both, false, true)?;
        drop(both);
        let gone = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // Errors are told without being asked for; told once each time they come up.
        gone.add(&writer, EpollEvent::new(EpollFlags::EPOLLET, 0))?;
        let door = Self { writer, gone };
        // That nobody reads yet is told as well.
        door.has_lost_reader();
        Ok(door)
    }

    /// Whether one has gone since the last look.
    fn has_lost_reader(&self) -> bool {
        let mut events = [EpollEvent::empty()];
        let told = self.gone.wait(&mut events, EpollTimeout::ZERO);
        told.is_ok_and(|count| count > 0)
    }
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

fn own_path(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// What the kernel says that a descriptor is of. No filesystem is asked.
///
/// # Errors
/// What readlink(2) fails with.
pub(crate) fn location(fd: &impl AsFd) -> io::Result<PathBuf> {
    std::fs::read_link(own_path(fd))
}

/// Opens what a descriptor is of once more, in another mode.
fn reopen(fd: &impl AsFd, read: bool, write: bool) -> io::Result<File> {
    open(&own_path(fd), read, write)
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
    use crate::io::life::Lifetime;

    fn fifo() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        (folder, path)
    }

    async fn written(path: &Path, text: &str) -> Output {
        let output = Output::open(path, Clients::One).expect("open");
        if !text.is_empty() {
            output.write(text.as_bytes()).await.expect("write");
        }
        output
    }

    /// A lifetime whose process has exited.
    fn ended() -> Lifetime {
        let lifetime = Lifetime::default();
        lifetime.set_exited();
        lifetime
    }

    fn read(path: &Path) -> std::thread::JoinHandle<String> {
        let path = path.to_owned();
        std::thread::spawn(move || std::fs::read_to_string(path).expect("read"))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_who_comes_late_sees_the_output_and_its_end() {
        for text in ["last words", ""] {
            let (_folder, path) = fifo();
            let life = ended();
            let over = tokio::spawn(written(&path, text).await.hand_over(life.subscribe()));
            sleep(Duration::from_millis(200)).await;
            assert!(!over.is_finished(), "{text:?}: its open would never return");
            let client = read(&path);
            over.await.expect("handed over");
            assert_eq!(client.join().expect("client"), text);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_who_was_there_is_not_waited_for() {
        let began = Instant::now();
        for text in ["words", ""] {
            let (_folder, path) = fifo();
            let life = ended();
            // It came and went before there was anything.
            let output = Output::open(&path, Clients::One).expect("open");
            drop(open(&path, true, false).expect("open"));
            if !text.is_empty() {
                output.write(text.as_bytes()).await.expect("write");
            }
            output.hand_over(life.subscribe()).await;
            // It is there, and takes its time.
            let output = written(&path, text).await;
            let mut client = open(&path, true, false).expect("open");
            let over = tokio::spawn(output.hand_over(life.subscribe()));
            over.await.expect("handed over");
            let mut told = String::new();
            client.read_to_string(&mut told).expect("read");
            assert_eq!(told, text);
        }
        // It came after the first words, read them, and went.
        let (_folder, path) = fifo();
        let output = written(&path, "words").await;
        let mut client = open(&path, true, false).expect("open");
        client.read_exact(&mut [0; 5]).expect("read");
        drop(client);
        output.hand_over(ended().subscribe()).await;
        assert!(began.elapsed() < HOLD_LIMIT / 2, "{:?}", began.elapsed());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_of_init_may_return_for_what_it_has_not_read_until_delete() {
        for returns in [true, false] {
            let (_folder, path) = fifo();
            let life = ended();
            let output = Output::open(&path, Clients::Return).expect("open");
            drop(open(&path, true, false).expect("open"));
            output.write(b"words").await.expect("write");
            let over = tokio::spawn(output.hand_over(life.subscribe()));
            sleep(Duration::from_millis(200)).await;
            assert!(!over.is_finished(), "it would be lost");
            let client = returns.then(|| read(&path));
            if !returns {
                drop(life);
            }
            let over = tokio::time::timeout(HOLD_LIMIT / 2, over).await;
            over.expect("in time").expect("handed over");
            if let Some(client) = client {
                assert_eq!(client.join().expect("client"), "words");
            }
        }
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_client_who_never_comes_is_waited_for_so_long_after_the_exit() {
        let (_folder, path) = fifo();
        let life = Lifetime::default();
        let began = Instant::now();
        let over = tokio::spawn(written(&path, "").await.hand_over(life.subscribe()));
        sleep(HOLD_LIMIT * 3).await;
        assert!(!over.is_finished(), "the process still runs");
        life.set_exited();
        // Delete comes at once.
        drop(life);
        over.await.expect("handed over");
        let took = began.elapsed();
        assert!(took >= HOLD_LIMIT * 4 && took < HOLD_LIMIT * 5, "{took:?}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_fifo_that_has_been_removed_is_not_held() {
        let (folder, path) = fifo();
        let began = Instant::now();
        let (output, other) = (written(&path, "words").await, written(&path, "").await);
        drop(folder);
        output.abandoned().await;
        output.hand_over(ended().subscribe()).await;
        other.hand_over(ended().subscribe()).await;
        assert!(began.elapsed() < HOLD_LIMIT / 2, "nobody can come");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn two_outputs_to_one_fifo_are_held_by_the_last() {
        for (first, second) in [("a", "b"), ("", "b"), ("a", ""), ("", "")] {
            let (_folder, path) = fifo();
            let life = ended();
            let output = Output::open(&path, Clients::One).expect("open");
            let outputs = [output.share(), output];
            let mut over = Vec::new();
            for (output, text) in outputs.into_iter().zip([first, second]) {
                if !text.is_empty() {
                    output.write(text.as_bytes()).await.expect("write");
                }
                over.push(tokio::spawn(output.hand_over(life.subscribe())));
            }
            sleep(Duration::from_millis(200)).await;
            let client = read(&path);
            for over in over {
                over.await.expect("handed over");
            }
            assert_eq!(client.join().expect("client"), format!("{first}{second}"));
        }
    }

    #[test]
    fn stdin_of_an_exec_ends_with_its_writer_and_that_of_init_does_not() {
        for (clients, ends) in [(Clients::One, true), (Clients::Return, false)] {
            let (_folder, path) = fifo();
            let (input, source) = Input::open(&path, clients).expect("open");
            let source = File::from(source);
            drop(open(&path, false, true).expect("a writer"));
            let lacks_writer = || lacks_writer(&source, &mut vec![0; 8]).expect("read");
            assert_eq!(lacks_writer(), ends, "{clients:?}");
            input.release();
            assert!(lacks_writer(), "{clients:?}");
        }
    }
}
