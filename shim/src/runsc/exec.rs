//! Exec: a process in a running container, by the control socket or by a `runsc exec` that stays.

use std::ffi::OsStr;
use std::fs;
use std::num::NonZeroU32;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runsc_config::HardenedProcess;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::runsc::command::{Given, OUT_OF_BOUNDS, failure};
use crate::runsc::control::{COMMAND_LIMIT, Control, Method};
use crate::sys::reaper::ExitWatch;

/// EAGAIN in the words of the sentry (`pkg/errors/linuxerr`) and of Go.
const AGAIN: [&str; 2] = ["try again", "resource temporarily unavailable"];

/// What is wrong with a request, in the words of the sentry (`pkg/errors/linuxerr`), of Go and of `runsc/boot/loader.go`.
const REQUESTS: [&str; 12] = [
    "no such file or directory",
    "not a directory",
    "is a directory",
    "permission denied",
    "operation not permitted",
    "exec format error",
    "too many levels of symbolic links",
    "file name too long",
    "argument list too long",
    "invalid argument",
    "executable file not found",
    "not found in $path",
];

/// The answer of the sentry or of runsc to a process that was not started, with the code of its cause. What else fails on the
/// way there, on the host, is nothing that the request could mend, whatever words it has for it.
fn refused(answer: Error) -> Error {
    let text = answer.to_string();
    let lowercase = text.to_lowercase();
    if AGAIN.iter().any(|again| lowercase.ends_with(again)) {
        let limit = "the tasks of one uid share a limit in the whole sandbox (limits.pids in the policy file)";
        Error::new(Kind::ResourceExhausted, format!("{text}: {limit}"))
    } else if answer.kind() == Kind::Internal
        && REQUESTS.iter().any(|words| lowercase.contains(words))
    {
        Error::invalid(text)
    } else {
        answer
    }
}

/// An exec'd process: its pid inside the sandbox and, on the command backend, the runsc process that waits for it.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) guest_pid: NonZeroU32,
    pub(crate) keeper: Option<ExitWatch>,
}

impl Control {
    /// Starts a process in a running container with the given stdio; with a terminal all three are its replica.
    ///
    /// # Errors
    /// `InvalidArgument` with the sentry's words when there is no such program or it cannot be run, `ResourceExhausted` at the
    /// task limit, `Internal` for a failure of the host, the gofer or a command. After `Unavailable` and `DeadlineExceeded` it may
    /// run, or be about to.
    pub(crate) async fn execute(
        &self,
        id: &str,
        process: &HardenedProcess,
        stdio: [OwnedFd; 3],
    ) -> Result<Executed> {
        let fds: Vec<BorrowedFd<'_>> = stdio.iter().map(OwnedFd::as_fd).collect();
        match self
            .call::<NonZeroU32>(Method::Execute, &exec_args(id, process), &fds)
            .await
        {
            Ok(Some(guest_pid)) => Ok(Executed {
                guest_pid,
                keeper: None,
            }),
            Ok(None) => self.execute_command(id, process, stdio).await,
            Err(error) => Err(refused(error)),
        }
    }

    /// The command's way to exec: a `runsc exec` that stays as the process's waiter. It is the fallback because each
    /// such helper costs some 22 MB of resident memory.
    async fn execute_command(
        &self,
        id: &str,
        process: &HardenedProcess,
        stdio: [OwnedFd; 3],
    ) -> Result<Executed> {
        self.runsc.require(id)?;
        let began = Instant::now();
        let executed = self.start_command(id, process, stdio).await;
        self.runsc.counters().command("exec", began);
        if executed.is_err() {
            self.runsc.counters().command_failures.add("exec");
        }
        executed
    }

    async fn start_command(
        &self,
        id: &str,
        process: &HardenedProcess,
        stdio: [OwnedFd; 3],
    ) -> Result<Executed> {
        let [stdin, stdout, stderr] = stdio;
        let (spec, pid_file) = (
            self.runsc.scratch_path("process"),
            self.runsc.scratch_path("pid"),
        );
        let files = Scratch(vec![spec.clone(), pid_file.clone()]);
        fs::write(&spec, process.to_json_bytes())
            .map_err(|e| Error::io("write the process for runsc exec", &e))?;
        let args = [
            OsStr::new("--process"),
            spec.as_os_str(),
            OsStr::new("--internal-pid-file"),
            pid_file.as_os_str(),
            OsStr::new(id),
        ];
        let stdio = Given {
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
            ..Given::default()
        };
        let (mut keeper, log) = self.runsc.start("exec", &args, stdio)?;
        let deadline = tokio::time::Instant::now() + COMMAND_LIMIT;
        loop {
            if let Some(guest_pid) = written_pid(&pid_file) {
                drop(files);
                return Ok(Executed {
                    guest_pid,
                    keeper: Some(keeper),
                });
            }
            if let Some(exit) = keeper.wait_for(Duration::from_millis(5)).await {
                // It may have written the pid, seen a short process out, and gone.
                if let Some(guest_pid) = written_pid(&pid_file) {
                    return Ok(Executed {
                        guest_pid,
                        keeper: Some(keeper),
                    });
                }
                let reason = log.reason().await.unwrap_or_default();
                let message = failure("exec", exit, &reason);
                return Err(if OUT_OF_BOUNDS.contains(&exit) {
                    let message = format!("{message}: the process may have been started");
                    Error::new(Kind::Unavailable, message)
                } else {
                    refused(Error::internal(message))
                });
            }
            if tokio::time::Instant::now() >= deadline {
                keeper.signal(nix::sys::signal::Signal::SIGKILL);
                let limit = COMMAND_LIMIT.as_secs();
                return Err(Error::new(
                    Kind::DeadlineExceeded,
                    format!("runsc exec: no pid within {limit} s"),
                ));
            }
        }
    }
}

/// Files that a fallback exec needs until it has started.
struct Scratch(Vec<PathBuf>);

impl Drop for Scratch {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = fs::remove_file(file);
        }
    }
}

/// The argument of `ExecuteAsync` (`control.ExecArgs`). All five capability sets are always sent: without them the
/// sentry would give uid 0 every capability there is.
fn exec_args(id: &str, process: &HardenedProcess) -> Value {
    let caps = process.capabilities();
    json!({
        "argv": process.args(),
        "envv": process.env(),
        "wd": process.cwd(),
        "KUID": process.uid(),
        "KGID": process.gid(),
        "ExtraKGIDs": process.additional_gids(),
        "NoNewPrivileges": process.no_new_privileges(),
        "Capabilities": {
            "PermittedCaps": caps.permitted,
            "InheritableCaps": caps.inheritable,
            "EffectiveCaps": caps.effective,
            "BoundingCaps": caps.bounding,
            "AmbientCaps": caps.ambient,
        },
        "StdioIsPty": process.terminal(),
        "SupportTTYs": true,
        "GuestFDs": [0, 1, 2],
        "ContainerID": id,
    })
}

/// The pid that `runsc exec` writes, once it is there.
fn written_pid(path: &Path) -> Option<NonZeroU32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
