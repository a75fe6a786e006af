//! Log URIs: output that goes to a file, or to a program of its own.
//!
//! `binary://PATH?KEY=VALUE` starts PATH with KEY and VALUE as arguments, the output as descriptors 3 and 4, and the
//! writing end of a pipe as descriptor 5. By that pipe the program reports that it is ready: with a byte under `binary-v2`,
//! and under `binary` by closing it as well (containerd's `docs/runtime-v2.md`, `cmd/containerd-shim-runc-v2/process/io.go`).

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as CommandStdio};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

use crate::error::{Error, Kind, Result};
use crate::io::life::Holds;
use crate::sys::aside;
use crate::sys::poll;
use crate::sys::reaper::{ExitWatch, Reaper};
use node::trail;

/// How long a logger may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to end once its input has ended.
const END_LIMIT: Duration = Duration::from_secs(3);
/// How long it may take once it has been asked to, and again once it has been killed. `Delete` waits for all of this, and its
/// client for ten seconds.
const SIGNAL_LIMIT: Duration = Duration::from_secs(1);
/// What it finds in PATH; the shim's own environment is none of its business.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where descriptors are kept until they take their places from 3 on in the logger.
const HIGH_FD: i32 = 10;

/// Whose output it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) namespace: &'a str,
    /// The container's id, or the exec's.
    pub(crate) id: &'a str,
    pub(crate) reaper: &'a Reaper,
    /// Where streams are counted that outlive it.
    pub(crate) holds: &'a Arc<Holds>,
}

/// Where a log URI leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LogUri {
    File(PathBuf),
    Binary {
        program: PathBuf,
        args: Vec<String>,
        /// Whether it must say that it is ready.
        strict: bool,
    },
}

impl LogUri {
    /// Reads a URI with one of the schemes of logs; `None` for another scheme.
    ///
    /// # Errors
    /// `InvalidArgument` for one that is malformed.
    pub(super) fn parse(stream: &str, uri: &str) -> Result<Option<Self>> {
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Ok(None);
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let invalid = |rule: &str| Error::invalid(format!("{stream}: {uri:?} {rule}"));
        let path = || {
            let path = decode(path, false).map_err(&invalid)?;
            if path.starts_with('/') {
                Ok(PathBuf::from(path))
            } else {
                Err(invalid("must have an absolute path and no host"))
            }
        };
        match scheme {
            "file" => Ok(Some(Self::File(path()?))),
            "binary" | "binary-v2" => {
                let mut args: Vec<String> = Vec::new();
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    for part in [key, value] {
                        args.push(decode(part, true).map_err(&invalid)?);
                    }
                }
                Ok(Some(Self::Binary {
                    program: path()?,
                    args,
                    strict: scheme == "binary-v2",
                }))
            }
            _ => Ok(None),
        }
    }
}

/// Undoes percent-encoding (RFC 3986, section 2.1); in a query `+` is a space.
fn decode(text: &str, is_query: bool) -> std::result::Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err("has a \"%\" without two hexadecimal digits");
                };
                bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
            }
            b'+' if is_query => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err("is no text"),
    }
}

/// Opens a log file to append to, and makes its folder where that is missing.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)?;
    }
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o644)
        // Should a FIFO be there, the open must not wait for its reader.
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY).bits())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}

/// A program that takes the output.
#[derive(Debug)]
pub(super) struct Logger {
    exit: ExitWatch,
}

impl Logger {
    /// Starts it and waits until it is ready; returns the ends to write stdout and stderr to.
    ///
    /// # Errors
    /// `FailedPrecondition` when it cannot be started or ends before it is ready, `DeadlineExceeded` when it never is.
    pub(super) async fn start(
        program: &Path,
        args: &[String],
        strict: bool,
        owner: Owner<'_>,
    ) -> Result<(Self, [OwnedFd; 2])> {
        let failed = |e: io::Error| Error::io(format!("logger {}", program.display()), &e);
        let (stdout, to_stdout) = io::pipe().map_err(failed)?;
        let (stderr, to_stderr) = io::pipe().map_err(failed)?;
        let (ready, says_ready) = io::pipe().map_err(failed)?;
        let ends = [stdout.into(), stderr.into(), says_ready.into()];
        let cannot = |path: &Path, error: &io::Error| {
            Error::precondition(format!("logger {}: cannot run: {error}", path.display()))
        };
        // The start of a program waits for its first page, and so does the thread that starts it.
        let path = program.to_owned();
        let look = move || {
            let looked = trail::at(&path).and_then(|()| look_at(&path));
            looked.map_err(|error| cannot(&path, &error))
        };
        let act = "look at the logger";
        aside::STREAMS.within(READY_LIMIT, act, look, drop).await?;
        let exit = spawn(program, args, &ends, owner).map_err(|error| cannot(program, &error))?;
        drop(ends);
        let logger = Self { exit };
        let said = tokio::time::timeout(READY_LIMIT, logger.ready(ready.into())).await;
        let refuse = |what: &str| {
            Error::precondition(format!(
                "logger {}: {what} before it was ready",
                program.display()
            ))
        };
        match said {
            Ok(Ok(true)) => {}
            // Closing says it as well, unless it is how a program ends that has failed.
            Ok(Ok(false)) if !strict && logger.has_not_failed().await => {}
            Ok(Ok(false)) => return Err(refuse("ended or closed its descriptor 5")),
            Ok(Err(error)) => return Err(failed(error)),
            Err(_) => {
                let message = format!(
                    "logger {}: not ready within {READY_LIMIT:?}",
                    program.display()
                );
                return Err(Error::new(Kind::DeadlineExceeded, message));
            }
        }
        Ok((logger, [to_stdout.into(), to_stderr.into()]))
    }

    /// Whether it wrote a byte rather than closing the pipe.
    async fn ready(&self, pipe: OwnedFd) -> io::Result<bool> {
        let pipe = poll::pollable(pipe)?;
        Ok(poll::read(&pipe, &mut [0]).await? > 0)
    }

    async fn has_not_failed(&self) -> bool {
        let exit = self.exit.clone().wait_for(Duration::from_millis(50)).await;
        exit.is_none_or(|exit| exit.success())
    }

    /// Waits for its end once it has no more input; ends it, in the end by force, where it does not come.
    pub(super) async fn finish(&self) {
        let mut limit = END_LIMIT;
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if self.exit.clone().wait_for(limit).await.is_some() {
                return;
            }
            tracing::warn!(pid = self.exit.pid(), "the logger does not end: {signal}");
            self.exit.signal(signal);
            limit = SIGNAL_LIMIT;
        }
        self.exit.clone().wait_for(limit).await;
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        self.exit.signal(Signal::SIGKILL);
    }
}

/// Fails as execve(2) would, but for what is no program.
fn look_at(program: &Path) -> io::Result<()> {
    // Neither a FIFO nor a device is waited for.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY).bits();
    let file = File::options().read(true).custom_flags(flags).open(program);
    match file {
        // One that may be run need not be readable, not even by root on some filesystems.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
        Ok(file) if file.metadata()?.is_file() => (&file).read(&mut [0; 512]).map(drop),
        Ok(_) => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

fn spawn(
    program: &Path,
    args: &[String],
    ends: &[OwnedFd; 3],
    owner: Owner<'_>,
) -> io::Result<ExitWatch> {
    // From above the places they are to take, so that none overwrites another.
    let mut high = Vec::with_capacity(ends.len());
    for end in ends {
        // SAFETY: the kernel has just made this descriptor, and nothing else knows of it.
        high.push(unsafe {
            use std::os::fd::FromRawFd as _;
            OwnedFd::from_raw_fd(fcntl(end, FcntlArg::F_DUPFD_CLOEXEC(HIGH_FD))?)
        });
    }
    let numbers: Vec<i32> = high.iter().map(|fd| fd.as_raw_fd()).collect();
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .env("CONTAINER_ID", owner.id)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .current_dir("/")
        .stdin(CommandStdio::null())
        .stdout(CommandStdio::null())
        .stderr(CommandStdio::null());
    // SAFETY: between fork and exec only dup2 is called, which is async-signal-safe; the numbers were collected before.
    unsafe {
        command.pre_exec(move || {
            for (number, place) in numbers.iter().zip(3..) {
                if libc::dup2(*number, place) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    owner.reaper.spawn(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(uri: &str) -> Option<LogUri> {
        LogUri::parse("stdout", uri).expect(uri)
    }

    #[test]
    fn uris_become_programs_with_arguments_and_files() {
        let nerdctl =
            parse("binary:///usr/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib%2Fx+y&-f");
        let args = ["_NERDCTL_INTERNAL_LOGGING", "/var/lib/x y", "-f", ""].map(str::to_owned);
        let expected = LogUri::Binary {
            program: "/usr/bin/nerdctl".into(),
            args: args.to_vec(),
            strict: false,
        };
        assert_eq!(nerdctl, Some(expected));
        assert!(matches!(
            parse("binary-v2:///x"),
            Some(LogUri::Binary { strict: true, .. })
        ));
        assert_eq!(
            parse("file:///var/log/a%20b"),
            Some(LogUri::File("/var/log/a b".into()))
        );
        assert_eq!((parse("fifo:///x"), parse("/x")), (None, None));
    }

    #[test]
    fn a_malformed_uri_is_refused_by_its_stream() {
        for uri in [
            "file://host/x",
            "binary://",
            "file:///%zz",
            "file:///%0",
            "binary:///x?a=%ff",
            "file:///%00",
        ] {
            let error = LogUri::parse("stderr", uri).expect_err(uri);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().starts_with("stderr: "), "{error}");
        }
    }
}
