//! Descriptors the async runtime can wait for.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;

/// Makes a pipe, FIFO or terminal non-blocking and registers it.
///
/// # Errors
/// When the descriptor cannot be polled: it is a regular file, for one.
pub(crate) fn pollable(fd: OwnedFd) -> io::Result<AsyncFd<File>> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: a `File` owns its descriptor and always returns the same one, and no reference to it leaves the `AsyncFd`
    // by which the file could be replaced.
    unsafe { AsyncFd::register(File::from(fd)) }.map_err(io::Error::from)
}

/// Reads what is there; 0 is the end.
///
/// # Errors
/// What read(2) fails with, but for an interruption.
pub(crate) async fn read(fd: &AsyncFd<File>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = fd.readable().await?;
        match ready.try_io(|fd| fd.get_ref().read(buffer)) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// Writes all of it.
///
/// # Errors
/// What write(2) fails with, but for an interruption.
pub(crate) async fn write_all(fd: &AsyncFd<File>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = fd.writable().await?;
        match ready.try_io(|fd| fd.get_ref().write(data)) {
            Ok(Ok(written)) => data = data.get(written..).unwrap_or_default(),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}
