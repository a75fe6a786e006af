//! The shim's log: lines into containerd's `log` FIFO. It never waits for anyone.
//!
//! containerd copies that FIFO into its own log and opens it again after a restart. The shim opens it for both
//! directions, so that no reader is needed, and without blocking, so that a full one costs lines and not requests. A policy
//! may put the log of each sandbox into a file of its own.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::fcntl::OFlag;
use runsc_config::{LogLevel, printable};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use crate::error::{Error, Result};
use crate::sandbox::layout;

/// No file of the log grows beyond this, in bytes: what a sandbox makes runsc say ends up in it.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// What a policy can change of the log, once it is read.
#[derive(Debug)]
struct Switch {
    level: reload::Handle<Targets, Registry>,
    place: Arc<Lossy>,
}

static SWITCH: OnceLock<Switch> = OnceLock::new();

/// A writer that gives lines up instead of waiting.
#[derive(Debug)]
struct Lossy {
    fifo: File,
    lost: AtomicU64,
    file: Mutex<Option<Bounded>>,
    /// Ends every line: containerd copies the lines of all sandboxes of a node into one log.
    sandbox: String,
}

/// A log file and what it may still take.
#[derive(Debug)]
struct Bounded {
    file: File,
    room: u64,
}

impl Bounded {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let room = FILE_MAX.saturating_sub(metadata.len());
        Ok(Self { file, room })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let left = self.room.checked_sub(line.len() as u64);
        self.room = left.ok_or(io::ErrorKind::StorageFull)?;
        self.file.write_all(line)
    }
}

impl Lossy {
    /// `id` is the sandbox's.
    fn new(fifo: File, id: &str) -> Self {
        Self {
            fifo,
            lost: AtomicU64::new(0),
            file: Mutex::new(None),
            sandbox: format!(" sandbox={}", printable(id)),
        }
    }

    /// One write for one line: pipes and appended files take it whole.
    fn put(&self, line: &[u8]) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match file.as_mut() {
            Some(file) => file.write(line),
            None => (&self.fifo).write(line).map(drop),
        }
    }
}

impl Write for &Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            let note = format!("{lost} log lines lost: the log was full");
            if self.put(&whole(note.as_bytes(), &self.sandbox)).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return Ok(line.len());
            }
            self.lost.fetch_sub(lost, Ordering::Relaxed);
        }
        if self.put(&whole(line, &self.sandbox)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line as it may be written: what a spec or a sandbox put into it ends no line but its own. It ends with its sandbox.
fn whole(line: &[u8], sandbox: &str) -> Vec<u8> {
    let body = line.strip_suffix(b"\n").unwrap_or(line);
    // Control characters above a space are DEL and, in UTF-8, what begins with this byte.
    let may_hold_one = |byte: &u8| byte.is_ascii_control() || *byte == 0xc2;
    let body = if body.iter().any(may_hold_one) {
        let text = String::from_utf8_lossy(body);
        Cow::Owned(printable(&text).to_string().into_bytes())
    } else {
        Cow::Borrowed(body)
    };
    [&body, sandbox.as_bytes(), b"\n"].concat()
}

/// Starts logging into `log` of the working folder, the bundle, for the sandbox `id`. Without one (a shim started by hand) nothing
/// is logged: containerd takes anything on stderr for a part of the answer.
pub(crate) fn init(debug: bool, bundle: &Path, id: &str) {
    let opened = File::options()
        .read(true)
        .write(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(bundle.join("log"));
    let Ok(fifo) = opened else { return };
    let place = Arc::new(Lossy::new(fifo, id));
    let level = if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(Arc::clone(&place));
    let (ours, level) = reload::Layer::new(targets(level));
    // A second subscriber cannot be installed; the first one keeps the log.
    let installed = tracing_subscriber::registry()
        .with(ours)
        .with(lines)
        .try_init();
    if installed.is_ok() {
        let _ = SWITCH.set(Switch { level, place });
    }
}

/// Only our own: ttrpc logs each connection that ends.
fn targets(level: LevelFilter) -> Targets {
    Targets::new().with_target("containerd_shim_bulkhead_v1", level)
}

/// Does what the policy says of the log of the sandbox `id`.
///
/// # Errors
/// `FailedPrecondition` when the folder or the file cannot be used: who asks for a log there relies on it.
pub(crate) fn follow(log: &runsc_config::Log, namespace: &str, id: &str) -> Result<()> {
    let Some(switch) = SWITCH.get() else {
        return Ok(());
    };
    if let Some(level) = log.level {
        let level = match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
        };
        let changed = switch.level.reload(targets(level));
        changed.map_err(|e| Error::internal(format!("change the log's level: {e}")))?;
    }
    if let Some(folder) = &log.folder {
        let file = open_in(folder, &file_name(namespace, id)).map_err(|problem| {
            Error::precondition(format!(
                "policy: log.folder {}: {problem}",
                folder.display()
            ))
        })?;
        let mut place = switch
            .place
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *place = Some(file);
    }
    Ok(())
}

/// The name of a sandbox's file. Neither an id nor a namespace has two separators in a row, so no two sandboxes share one.
fn file_name(namespace: &str, id: &str) -> String {
    format!("{namespace}--{id}.log")
}

fn open_in(folder: &Path, name: &str) -> std::result::Result<Bounded, String> {
    layout::trusted_dir(folder)?;
    let file = folder.join(name);
    Bounded::open(&file).map_err(|e| format!("open {name}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_full_log_loses_lines_and_says_so_once_it_is_read_again() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .expect("nonblock");
        let log = Lossy::new(file, "a");
        let line = [b'x'; 1000];
        for _ in 0..200 {
            (&log).write_all(&line).expect("never fails");
        }
        let mut drained = vec![0; 64 * 1024];
        let _ = reader.read(&mut drained).expect("read");
        (&log).write_all(b"after\n").expect("write");
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("read");
        assert!(
            rest.contains("log lines lost: the log was full sandbox=a\n")
                && rest.ends_with("after sandbox=a\n"),
            "{rest:?}"
        );
    }

    #[test]
    fn what_is_logged_forges_no_line_and_rewrites_no_terminal() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let log = Lossy::new(File::from(std::os::fd::OwnedFd::from(writer)), "a");
        for line in ["INFO as it is é\n", "INFO a\u{1b}[2Jb\nERROR c\u{9b}d\n"] {
            (&log).write_all(line.as_bytes()).expect("never fails");
        }
        drop(log);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        let expected = "INFO as it is é sandbox=a\nINFO a\\u{1b}[2Jb\\nERROR c\\u{9b}d sandbox=a\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_log_file_takes_no_more_than_its_bound() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("x.log");
        let full = File::create(&path).expect("create");
        full.set_len(FILE_MAX - 15).expect("grow");
        let null = File::options().write(true).open("/dev/null");
        let log = Lossy::new(null.expect("open"), "a");
        *log.file.lock().expect("lock") = Some(Bounded::open(&path).expect("open"));
        for line in ["1234\n", "5678\n", "9\n"] {
            (&log).write_all(line.as_bytes()).expect("never fails");
        }
        let text = std::fs::read(&path).expect("read");
        assert_eq!(text.len() as u64, FILE_MAX);
        assert!(text.ends_with(b"1234 sandbox=a\n"));
        assert_eq!(log.lost.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_log_file_is_not_followed_to_where_a_link_points() {
        let folder = tempfile::tempdir().expect("tempdir");
        let link = folder.path().join("x.log");
        std::os::unix::fs::symlink("/etc/passwd", &link).expect("link");
        Bounded::open(&link).expect_err("refused");
    }

    #[test]
    fn no_two_sandboxes_share_a_log_file() {
        let ids = [
            "a", "b", "a-b", "b-c", "a-b-c", "c", "a.log", "a_b", "b.log-c",
        ];
        let mut names = std::collections::BTreeSet::new();
        for namespace in ids {
            for id in ids {
                crate::sandbox::id::validate("id", id).expect("an id");
                let name = file_name(namespace, id);
                assert!(names.insert(name.clone()), "{name}");
            }
        }
    }
}
