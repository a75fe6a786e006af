//! The shim's log: lines into containerd's `log` FIFO, never waiting for anyone.
//!
//! containerd copies that FIFO into its own log and opens it again after a restart. The FIFO is opened for both
//! directions, so that no reader is needed, and without blocking, so that a full one costs lines and not requests.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::OFlag;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// A writer that gives lines up instead of waiting.
#[derive(Debug)]
struct Lossy {
    file: File,
    lost: AtomicU64,
}

impl Write for &Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            let note = format!("{lost} log lines lost: nobody read the log\n");
            if (&self.file).write(note.as_bytes()).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return Ok(line.len());
            }
            self.lost.fetch_sub(lost, Ordering::Relaxed);
        }
        if (&self.file).write(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging into `log` of the working folder, the bundle. Without one (a shim started by hand) nothing is logged:
/// containerd takes anything on stderr for a part of the answer.
pub(crate) fn init(debug: bool, bundle: &Path) {
    let opened = File::options()
        .read(true)
        .write(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(bundle.join("log"));
    let Ok(file) = opened else { return };
    let writer = Lossy {
        file,
        lost: AtomicU64::new(0),
    };
    let level = if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .with_writer(writer_of(writer));
    // Only our own: ttrpc logs each connection that ends.
    let ours = Targets::new().with_target("containerd_shim_bulkhead_v1", level);
    // A second subscriber cannot be installed; the first one keeps the log.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(ours)
        .try_init();
}

fn writer_of(writer: Lossy) -> impl for<'a> tracing_subscriber::fmt::MakeWriter<'a> + 'static {
    std::sync::Arc::new(writer)
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
        let log = Lossy {
            file,
            lost: AtomicU64::new(0),
        };
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
            rest.contains("log lines lost") && rest.ends_with("after\n"),
            "{rest:?}"
        );
    }
}
