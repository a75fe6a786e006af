//! The client's FIFOs, and who holds which end.
//!
//! containerd makes the FIFOs and may close and open its ends at any time (`ctr task attach`, a restart of containerd).
//! Each side that the shim writes is opened for reading too, so that a reader that goes away means back-pressure and
//! not a broken pipe; the side it reads is held open for writing until `CloseIO`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::OFlag;

/// The shim's writing end of the client's stdin FIFO.
#[derive(Debug)]
pub(crate) struct Input {
    hold: Mutex<Option<File>>,
}

impl Input {
    /// Opens stdin: the hold, and the end to read from.
    pub(crate) fn open(path: &str) -> io::Result<(Self, OwnedFd)> {
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
pub(crate) fn open_output(path: &str) -> io::Result<File> {
    open(path, true, true)
}

fn open(path: &str, read: bool, write: bool) -> io::Result<File> {
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
