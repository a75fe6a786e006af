//! The `runsc` command: how it is run, bounded in time and output, and what its failure means.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::error::{Error, Kind, Result};
use crate::runsc::bounds::Bounds;
use crate::runsc::log::{LogPipe, one_line};
use crate::runsc::state_file::StateFile;
use crate::sandbox::furnish::binds::{GONE, Made, Opened};
use crate::sys::counters::Counters;
use crate::sys::poll;
use crate::sys::reaper::{Exit, ExitWatch, Reaper};

/// The only variable runsc and its hooks start with. Nothing of containerd's environment (registry credentials,
/// proxies) may reach them: see `docs/policy.md`.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of a command's output is kept, in bytes; the rest is read and dropped.
const OUTPUT_MAX: usize = 4 * 1024 * 1024;
const STDERR_MAX: usize = 16 * 1024;
/// Commands that last as long as what they wait for.
const UNTIMED: [&str; 1] = ["wait"];
/// How a command ends that comes to its limits, or is killed: Go exits with 2 where it gets no memory, runsc with 128 for an
/// error of its own.
pub(super) const OUT_OF_BOUNDS: [Exit; 2] = [Exit::Code(2), Exit::Signal(libc::SIGKILL)];
/// How long a killed command may take to be reaped.
pub(super) const KILL_GRACE: Duration = Duration::from_secs(5);

/// What a command starts with.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// `None` is /dev/null, as for the next two.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Of the container whose gofer it starts.
    pub(crate) binds: Opened,
}

impl Given {
    /// What is returned has to stay until the command has ended.
    fn give_to(self, command: &mut Command) -> Result<Vec<Made>> {
        command.stdin(self.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(self.stdout.map_or_else(Stdio::null, Stdio::from));
        command.stderr(self.stderr.map_or_else(Stdio::null, Stdio::from));
        self.binds.give_to(command)
    }
}

/// Runs runsc for one sandbox.
///
/// Every sandbox has a `--root` of its own: runsc's commands match ids by prefix within a root, and so could hit the
/// wrong container where two ids share a beginning.
#[derive(Debug)]
pub(crate) struct Runsc {
    binary: PathBuf,
    root: PathBuf,
    flags: Vec<String>,
    start_flags: Vec<String>,
    reaper: Arc<Reaper>,
    counters: Arc<Counters>,
    sequence: AtomicU32,
}

impl Runsc {
    /// `flags` are the global flags the policy decided on, `start_flags` those of `start`.
    pub(crate) fn new(
        binary: PathBuf,
        root: PathBuf,
        flags: Vec<String>,
        start_flags: Vec<String>,
        reaper: Arc<Reaper>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            binary,
            root,
            flags,
            start_flags,
            reaper,
            counters,
            sequence: AtomicU32::new(0),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The global flags that the policy decided on.
    pub(crate) fn flags(&self) -> &[String] {
        &self.flags
    }

    /// What is counted of this shim.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub(crate) fn reaper(&self) -> &Arc<Reaper> {
        &self.reaper
    }

    /// A path inside the sandbox's root that nothing uses yet. No part of it comes from a client: `runsc exec
    /// --detach` drops any argument that contains "detach", and ids may be long.
    pub(crate) fn scratch_path(&self, kind: &str) -> PathBuf {
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        self.root.join(format!("{kind}-{number}"))
    }

    /// Runs `runsc SUBCOMMAND ARGS` and waits for it.
    ///
    /// # Errors
    /// `Internal` with runsc's own last error when it fails, `DeadlineExceeded` when it was killed for taking too long,
    /// `ResourceExhausted` when it came to its limits.
    pub(crate) async fn run(
        &self,
        subcommand: &str,
        args: &[&OsStr],
        given: Given,
        limit: Duration,
    ) -> Result<()> {
        let log = self.log_pipe(subcommand)?;
        let mut command = self.command(subcommand, args, &log);
        let made = given.give_to(&mut command)?;
        let mut child = self.spawn(subcommand, command)?;
        let finished = self.finish(subcommand, &mut child, &log, None, limit).await;
        drop(made);
        finished
    }

    /// Runs a command that answers on stdout; at most [`OUTPUT_MAX`] bytes of it are kept.
    ///
    /// # Errors
    /// As [`Runsc::run`].
    pub(crate) async fn output(
        &self,
        subcommand: &str,
        args: &[&OsStr],
        limit: Duration,
    ) -> Result<Vec<u8>> {
        let log = self.log_pipe(subcommand)?;
        let mut command = self.command(subcommand, args, &log);
        let pipes = || -> io::Result<_> { Ok((io::pipe()?, io::pipe()?)) };
        let ((out, out_writer), (err, err_writer)) =
            pipes().map_err(|e| Error::io(format!("runsc {subcommand}: pipe"), &e))?;
        command
            .stdin(Stdio::null())
            .stdout(out_writer)
            .stderr(err_writer);
        let mut child = Unlost(self.spawn(subcommand, command)?);
        let collect = |pipe: io::PipeReader, max| collect(OwnedFd::from(pipe), max);
        let stdout = collect(out, OUTPUT_MAX).map_err(|e| Error::io("read runsc's output", &e))?;
        let stderr = collect(err, STDERR_MAX).map_err(|e| Error::io("read runsc's output", &e))?;
        self.finish(subcommand, &mut child.0, &log, Some(stderr), limit)
            .await?;
        Ok(finished(stdout).await)
    }

    /// Runs a subcommand that acts on one container and has nothing to say.
    ///
    /// # Errors
    /// `NotFound` when runsc has no such container, else as [`Runsc::run`].
    pub(crate) async fn act(
        &self,
        subcommand: &str,
        options: &[&str],
        id: &str,
        limit: Duration,
    ) -> Result<()> {
        self.require(id)?;
        let mut args: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        args.push(OsStr::new(id));
        self.output(subcommand, &args, limit).await.map(|_| ())
    }

    /// Makes sure that runsc has exactly this container: it takes any id that begins with the one given.
    ///
    /// # Errors
    /// `NotFound` when it has not.
    pub(crate) fn require(&self, id: &str) -> Result<()> {
        match StateFile::find(&self.root, id) {
            Some(_) => Ok(()),
            None => Err(Error::not_found(format!(
                "runsc has no state file of container {id:?}"
            ))),
        }
    }

    /// Starts a command that stays, and has no gofer: the caller owns the wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        &self,
        subcommand: &str,
        args: &[&OsStr],
        given: Given,
    ) -> Result<(ExitWatch, LogPipe)> {
        let log = self.log_pipe(subcommand)?;
        let mut command = self.command(subcommand, args, &log);
        given.give_to(&mut command)?;
        Ok((self.spawn(subcommand, command)?, log))
    }

    fn log_pipe(&self, subcommand: &str) -> Result<LogPipe> {
        LogPipe::create(self.scratch_path("log"))
            .map_err(|e| Error::io(format!("runsc {subcommand}: log pipe"), &e))
    }

    fn command(&self, subcommand: &str, args: &[&OsStr], log: &LogPipe) -> Command {
        let option = |name: &str, value: &Path| {
            let mut option = OsString::from(name);
            option.push(value);
            option
        };
        let mut command = Command::new(&self.binary);
        command.env_clear().env("PATH", PATH).current_dir("/");
        // What it starts and does not detach ends with it: sandbox and gofer have a session of their own.
        command.process_group(0);
        command
            .arg(option("--root=", &self.root))
            .arg(option("--log=", log.path()))
            .arg("--log-format=json");
        let flags = match subcommand {
            "start" => &self.start_flags,
            _ => &self.flags,
        };
        command.args(flags).arg(subcommand).args(args);
        if let Some(bounds) = Bounds::of(subcommand) {
            bounds.apply_to(&mut command);
        }
        command
    }

    fn spawn(&self, subcommand: &str, mut command: Command) -> Result<ExitWatch> {
        self.reaper.spawn(&mut command).map_err(|error| {
            let path = self.binary.display();
            let message = format!("runsc {subcommand}: cannot run {path}: {error}");
            match error.kind() {
                _ if error.raw_os_error() == Some(GONE.raw_os_error()) => Error::precondition(format!(
                    "runsc {subcommand}: the place of a bind in another one has gone since it was looked at"
                )),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Error::precondition(format!(
                    "{message}; install runsc or set runsc.path in the policy file to an executable file"
                )),
                _ => Error::internal(message),
            }
        })
    }

    async fn finish(
        &self,
        subcommand: &str,
        child: &mut ExitWatch,
        log: &LogPipe,
        stderr: Option<JoinHandle<Vec<u8>>>,
        limit: Duration,
    ) -> Result<()> {
        let began = std::time::Instant::now();
        let exited = child.wait_for(limit).await;
        if !UNTIMED.contains(&subcommand) {
            self.counters.command(subcommand, began);
        }
        if !exited.is_some_and(Exit::success) {
            self.counters.command_failures.add(subcommand);
        }
        let Some(exit) = exited else {
            child.kill_group();
            child.wait_for(KILL_GRACE).await;
            let limit = limit.as_secs_f32();
            return Err(Error::new(
                Kind::DeadlineExceeded,
                format!("runsc {subcommand} did not finish within {limit} s and was killed"),
            ));
        };
        if exit.success() {
            return Ok(());
        }
        let reason = match log.reason().await {
            Some(reason) => reason,
            None => match stderr {
                Some(stderr) => one_line(&String::from_utf8_lossy(&finished(stderr).await)),
                None => String::new(),
            },
        };
        let message = failure(subcommand, exit, &reason);
        Err(
            if Bounds::of(subcommand).is_some() && OUT_OF_BOUNDS.contains(&exit) {
                Error::new(Kind::ResourceExhausted, message)
            } else {
                Error::internal(message)
            },
        )
    }
}

/// A command that ends when nobody waits for it any more.
struct Unlost(ExitWatch);

impl Drop for Unlost {
    fn drop(&mut self) {
        self.0.kill_group();
    }
}

/// One line that says what failed, how it ended and what runsc said about it.
pub(crate) fn failure(subcommand: &str, exit: Exit, reason: &str) -> String {
    if reason.is_empty() {
        format!("runsc {subcommand} failed ({exit}) and gave no reason")
    } else {
        format!("runsc {subcommand} failed ({exit}): {reason}")
    }
}

/// Finds an executable the way a shell does, in the PATH the shim was started with.
pub(crate) fn look_up(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from(PATH));
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Reads a pipe to its end in the background, keeping the first `max` bytes.
pub(crate) fn collect(fd: OwnedFd, max: usize) -> io::Result<JoinHandle<Vec<u8>>> {
    let fd = poll::pollable(fd)?;
    Ok(tokio::spawn(async move {
        let (mut kept, mut chunk) = (Vec::new(), [0_u8; 8192]);
        while let Ok(read @ 1..) = poll::read(&fd, &mut chunk).await {
            let room = max.saturating_sub(kept.len()).min(read);
            kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
        }
        kept
    }))
}

/// What a finished command left in its pipe. A process it left behind may hold the pipe open, so the wait is short.
pub(crate) async fn finished(output: JoinHandle<Vec<u8>>) -> Vec<u8> {
    let abort = output.abort_handle();
    match tokio::time::timeout(Duration::from_secs(1), output).await {
        Ok(output) => output.unwrap_or_default(),
        Err(_) => {
            abort.abort();
            Vec::new()
        }
    }
}
