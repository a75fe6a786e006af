//! runsc's own log, read back.
//!
//! Each command gets a FIFO as its `--log`, so that the reason of a failure reaches the client. The sandbox and the
//! gofer inherit the writing end and keep it for life: what they write is the word of an untrusted peer, so it is read
//! for as long as they live (a full pipe would stop the sentry), bounded in size, and only counted beyond a rate.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use runsc_config::printable;
use tokio::io::unix::AsyncFd;

use crate::io::Throttle;
use crate::sys::poll;

/// The longest message that is passed on, in bytes.
const MESSAGE_MAX: usize = 2048;
/// How much may wait for the end of its JSON object, in bytes.
const PENDING_MAX: usize = 64 * 1024;
/// How much of one log is read in one second, in bytes: far more than a runsc has to say. A piece counts as the throttle has it,
/// so that one written byte by byte costs no more wakes.
const BYTES_PER_SECOND: NonZeroU64 = NonZeroU64::new(1024 * 1024).unwrap();
/// How many lines of one sandbox reach the shim's log in one second; the rest is counted.
const LINES_PER_SECOND: u32 = 20;

#[derive(Debug, serde::Deserialize)]
struct Entry {
    #[serde(default)]
    msg: String,
    #[serde(default)]
    level: String,
}

/// What was logged as an error: the last one is the command's own, and the first one often its cause, which a gofer that could not
/// mount something has written.
#[derive(Debug, Default)]
struct Errors {
    first: Option<String>,
    last: Option<String>,
}

impl Errors {
    fn note(&mut self, message: String) {
        if self.first.is_none() {
            self.first = Some(message);
        } else {
            self.last = Some(message);
        }
    }

    fn reason(&self) -> Option<String> {
        match (&self.first, &self.last) {
            (Some(first), Some(last)) if first.contains(last.as_str()) => Some(first.clone()),
            (Some(first), Some(last)) if !last.contains(first.as_str()) => {
                Some(one_line(&format!("{last}; before that: {first}")))
            }
            (first, last) => last.as_ref().or(first.as_ref()).cloned(),
        }
    }
}

/// The reading end of one `--log` FIFO.
#[derive(Debug)]
pub(crate) struct LogPipe {
    path: PathBuf,
    errors: Arc<Mutex<Errors>>,
}

impl LogPipe {
    /// Makes the FIFO and starts reading it.
    ///
    /// # Errors
    /// When the FIFO cannot be made or opened.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600))?;
        let file = File::options()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&path)
            .inspect_err(|_| {
                let _ = std::fs::remove_file(&path);
            })?;
        let errors = Arc::default();
        tokio::spawn(Reader::new(Arc::clone(&errors)).run(poll::pollable(file.into())?));
        Ok(Self { path, errors })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What runsc logged as errors, as one readable line: the last, and the first where that says something else.
    pub(crate) async fn reason(&self) -> Option<String> {
        // The command has exited, so all that it wrote is in the pipe: let the reader run once.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        let errors = self.errors.lock();
        errors.unwrap_or_else(PoisonError::into_inner).reason()
    }
}

impl Drop for LogPipe {
    fn drop(&mut self) {
        // The name has done its work once the command has run: those that hold the pipe open keep it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What comes next in a log.
enum Scanned {
    /// A whole object.
    Object(Range<usize>),
    /// From here on it is no JSON.
    Text(usize),
    Unfinished,
}

/// Finds where JSON objects end. Each byte is looked at once: an entry may come in as many pieces as it has bytes.
#[derive(Debug, Default)]
struct Scan {
    /// How much has been looked at.
    at: usize,
    /// Where the object begins that has not ended yet.
    start: usize,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Scan {
    /// `text` is what it was, and may have grown.
    fn next(&mut self, text: &[u8]) -> Scanned {
        for byte in text.get(self.at..).unwrap_or_default() {
            let at = self.at;
            self.at += 1;
            if self.in_string {
                let is_escaped = std::mem::take(&mut self.is_escaped);
                self.is_escaped = !is_escaped && *byte == b'\\';
                self.in_string = is_escaped || *byte != b'"';
                continue;
            }
            match byte {
                b'{' | b'[' if self.depth > 0 => self.depth += 1,
                b'{' => (self.depth, self.start) = (1, at),
                b' ' | b'\t' | b'\r' | b'\n' => {}
                _ if self.depth == 0 => return Scanned::Text(at),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Scanned::Object(self.start..self.at);
                    }
                }
                b'"' => self.in_string = true,
                _ => {}
            }
        }
        Scanned::Unfinished
    }

    /// What was at the front has been taken off.
    fn forget(&mut self, taken: usize) {
        self.at = self.at.saturating_sub(taken);
        self.start = self.start.saturating_sub(taken);
    }
}

struct Reader {
    pending: Vec<u8>,
    scan: Scan,
    errors: Arc<Mutex<Errors>>,
    second: Instant,
    lines: u32,
    suppressed: u64,
}

impl Reader {
    fn new(errors: Arc<Mutex<Errors>>) -> Self {
        Self {
            pending: Vec::new(),
            scan: Scan::default(),
            errors,
            second: Instant::now(),
            lines: 0,
            suppressed: 0,
        }
    }

    async fn run(mut self, fd: AsyncFd<File>) {
        let mut chunk = [0_u8; 4096];
        let throttle = Throttle::new(BYTES_PER_SECOND);
        while let Ok(read @ 1..) = poll::read(&fd, &mut chunk).await {
            self.pending
                .extend_from_slice(chunk.get(..read).unwrap_or_default());
            self.take_entries();
            // A sentry that writes without an end waits: who has taken it over could spend the shim's time by it.
            throttle.take_piece(read).await;
        }
    }

    /// Takes whole JSON objects off the front: runsc puts nothing between them.
    fn take_entries(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let mut taken = 0;
        loop {
            match self.scan.next(&pending) {
                Scanned::Object(object) => {
                    let text = pending.get(object.clone()).unwrap_or_default();
                    match serde_json::from_slice::<Entry>(text) {
                        Ok(entry) => self.note(&entry),
                        Err(_) => return self.take_text(text),
                    }
                    taken = object.end;
                }
                Scanned::Text(start) => {
                    return self.take_text(pending.get(start..).unwrap_or_default());
                }
                Scanned::Unfinished => break,
            }
        }
        let rest = pending.len().saturating_sub(taken);
        if rest > PENDING_MAX {
            self.scan = Scan::default();
            return;
        }
        self.pending = pending;
        self.pending.drain(..taken);
        self.scan.forget(taken);
    }

    /// Not a JSON log: a Go panic, or a runsc that was told otherwise. Its text is the best there is.
    fn take_text(&mut self, text: &[u8]) {
        self.scan = Scan::default();
        let text = String::from_utf8_lossy(text.get(..MESSAGE_MAX).unwrap_or(text));
        let mut lines = text.lines();
        let text = lines.find(|line| !line.trim().is_empty());
        self.note(&Entry {
            msg: text.unwrap_or_default().to_owned(),
            level: "error".to_owned(),
        });
    }

    fn note(&mut self, entry: &Entry) {
        let message = one_line(&entry.msg);
        if message.is_empty() {
            return;
        }
        if self.second.elapsed() >= Duration::from_secs(1) {
            if self.suppressed > 0 {
                tracing::warn!(lines = self.suppressed, "runsc log lines left out");
            }
            (self.second, self.lines, self.suppressed) = (Instant::now(), 0, 0);
        }
        self.lines += 1;
        if self.lines > LINES_PER_SECOND {
            self.suppressed += 1;
        } else {
            tracing::warn!(level = %one_line(&entry.level), "runsc: {message}");
        }
        if matches!(entry.level.as_str(), "error" | "fatal" | "panic") {
            let errors = self.errors.lock();
            errors.unwrap_or_else(PoisonError::into_inner).note(message);
        }
    }
}

/// One printable line of bounded length.
pub(crate) fn one_line(text: &str) -> String {
    let text = text.trim();
    let end = text.floor_char_boundary(MESSAGE_MAX);
    let mut line = printable(text.get(..end).unwrap_or_default()).into_owned();
    if line.len() > MESSAGE_MAX || end < text.len() {
        line.truncate(line.floor_char_boundary(MESSAGE_MAX));
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason_of(chunks: &[&[u8]]) -> Option<String> {
        let errors = Arc::default();
        let mut reader = Reader::new(Arc::clone(&errors));
        for chunk in chunks {
            reader.pending.extend_from_slice(chunk);
            reader.take_entries();
        }
        errors.lock().expect("lock").reason()
    }

    #[test]
    fn the_last_and_the_first_error_are_found_among_entries_without_separators() {
        let log = br#"{"msg":"first","level":"error"}{"msg":"note","level":"info"}{"msg":"second\nline","level":"error"}"#;
        assert_eq!(
            reason_of(&[log]).as_deref(),
            Some("second\\nline; before that: first")
        );
        let told_on = br#"{"msg":"cause","level":"error"}{"msg":"failed: cause","level":"error"}"#;
        assert_eq!(reason_of(&[told_on]).as_deref(), Some("failed: cause"));
        let told_less = br#"{"msg":"mount x: EOF","level":"error"}{"msg":"EOF","level":"error"}"#;
        assert_eq!(reason_of(&[told_less]).as_deref(), Some("mount x: EOF"));
    }

    #[test]
    fn an_entry_cut_by_the_pipe_is_put_together() {
        assert_eq!(
            reason_of(&[br#"{"msg":"wh"#, br#"ole","level":"error"}"#]).as_deref(),
            Some("whole")
        );
    }

    #[test]
    fn an_entry_that_comes_byte_by_byte_is_looked_at_once() {
        let message = r#"\\\"}]{["#.repeat(PENDING_MAX / 9);
        let log = format!(
            r#"{{"msg":"{message}","level":"error","more":{{"a":[1,{{}}]}}}} {{"msg":"last","level":"error"}}"#
        );
        let began = Instant::now();
        let bytes: Vec<&[u8]> = log.as_bytes().chunks(1).collect();
        let reason = reason_of(&bytes).expect("a reason");
        assert!(reason.starts_with("last; before that: "), "{reason}");
        // Parsed again from its start at each byte it takes a minute.
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_log_without_an_end_is_read_slowly() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().expect("tempdir");
        let pipe = LogPipe::create(folder.path().join("log")).expect("a pipe");
        let mut writer = File::options().write(true).open(pipe.path()).expect("open");
        let flood = std::thread::spawn(move || {
            let (began, mut written) = (Instant::now(), 0_u64);
            while began.elapsed() < Duration::from_millis(500) {
                writer.write_all(&[b' '; 4096]).expect("write");
                written += 4096;
            }
            (written, began.elapsed())
        });
        while !flood.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (written, took) = flood.join().expect("joined");
        // What fits into the pipe, and a second's worth, are free.
        let millis = u64::try_from(took.as_millis()).expect("short") + 1000;
        let most = BYTES_PER_SECOND.get() * millis / 1000 + 128 * 1024;
        assert!(written <= most, "{written} of {most} bytes in {took:?}");
    }

    /// Each piece is a wake of the shim, which a byte pays no less for than a page does.
    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_log_that_comes_byte_by_byte_costs_no_more_wakes() {
        use nix::poll::{PollFd, PollFlags, PollTimeout};
        use std::io::Write as _;
        use std::os::fd::AsFd as _;
        let folder = tempfile::tempdir().expect("tempdir");
        let pipe = LogPipe::create(folder.path().join("log")).expect("a pipe");
        let mut writer = File::options().write(true).open(pipe.path()).expect("open");
        let mut beside = File::options();
        beside.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let beside = beside.open(pipe.path()).expect("open");
        let is_empty = || {
            let mut fds = [PollFd::new(beside.as_fd(), PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, PollTimeout::ZERO) == Ok(0)
        };
        let began = tokio::time::Instant::now();
        // The clock moves only where all wait for it.
        for _ in 0..1024 {
            writer.write_all(b" ").expect("write");
            let mut turns = 0;
            while !is_empty() {
                turns += 1;
                if turns < 1000 {
                    tokio::task::yield_now().await;
                } else {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        let took = began.elapsed();
        // A second's worth is free.
        assert!(took >= Duration::from_millis(2900), "{took:?}");
    }

    #[test]
    fn text_that_is_not_json_is_kept_as_it_is() {
        assert_eq!(
            reason_of(&[b"panic: oh no\ngoroutine 1\n"]).as_deref(),
            Some("panic: oh no")
        );
    }

    #[test]
    fn an_endless_entry_is_dropped_and_bounded() {
        let mut reader = Reader::new(Arc::default());
        for _ in 0..1000 {
            reader.pending.extend_from_slice(&[b'"'; 1]);
            reader.pending.extend_from_slice(&[b'a'; 1024]);
            reader.take_entries();
            assert!(reader.pending.len() <= PENDING_MAX + 2048);
        }
    }

    #[test]
    fn control_characters_never_reach_a_log() {
        assert_eq!(one_line("a\x1b[31mb\r\nc\n"), "a\\u{1b}[31mb\\r\\nc");
        assert!(one_line(&"x".repeat(1 << 20)).len() <= MESSAGE_MAX + 4);
    }
}
