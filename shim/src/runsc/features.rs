//! What a runsc binary can do: asked of the binary itself, once for each one.
//!
//! A version says little (`--version` may print VERSION_MISSING), so flags and features are read from `runsc flags` and
//! `runsc features`. Asking costs 30 ms, so the answers are kept in the base folder under what identifies the file.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use runsc_config::Features;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::layout;
use crate::reaper::Reaper;
use crate::runsc::command::{KILL_GRACE, collect, finished};

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How much of an answer is read, in bytes; `runsc flags` prints some 20 KiB.
const ANSWER_MAX: usize = 1024 * 1024;
const CACHE: &str = "runsc-features.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

#[derive(Debug, Serialize, Deserialize)]
struct Answers {
    identity: Identity,
    flags: String,
    features: Option<String>,
    /// The first line of `runsc --version`.
    version: String,
}

/// The features of the binary at `binary`, from the cache in `base` where it still holds.
///
/// # Errors
/// `FailedPrecondition` when the binary is missing or cannot be run.
pub(crate) async fn of(binary: &Path, base: &Path, reaper: &Arc<Reaper>) -> Result<Features> {
    let metadata = std::fs::metadata(binary).map_err(|e| unusable(binary, "cannot use", &e))?;
    let identity = Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    let cache = base.join(CACHE);
    let cached = std::fs::read(&cache)
        .ok()
        .and_then(|text| serde_json::from_slice::<Answers>(&text).ok());
    let answers = match cached.filter(|answers| answers.identity == identity) {
        Some(answers) => answers,
        None => {
            let answers = ask(binary, identity, reaper).await?;
            let kept = layout::private_dir(base)
                .and_then(|()| Ok(serde_json::to_vec(&answers)?))
                .and_then(|text| layout::write_private(&cache, &text));
            if let Err(error) = kept {
                tracing::warn!(%error, "runsc's features could not be kept; they are asked for again next time");
            }
            answers
        }
    };
    Features::parse(&answers.flags, answers.features.as_deref())
        .map_err(|e| Error::precondition(format!("runsc: {} is not usable: {e}", binary.display())))
}

/// The version that the runsc last asked for below `base` gave itself.
pub(crate) fn version(base: &Path) -> String {
    let kept = std::fs::read(base.join(CACHE)).ok();
    let answers = kept.and_then(|text| serde_json::from_slice::<Answers>(&text).ok());
    answers.map_or_else(|| "unknown".to_owned(), |answers| answers.version)
}

async fn ask(binary: &Path, identity: Identity, reaper: &Arc<Reaper>) -> Result<Answers> {
    let (code, flags) = answer(binary, "flags", true, reaper).await?;
    if code != 0 {
        let first = flags
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("no output")
            .trim();
        return Err(Error::precondition(format!(
            "runsc: {} does not answer `flags` (exit code {code}): {}",
            binary.display(),
            crate::runsc::log::one_line(first)
        )));
    }
    let (code, features) = answer(binary, "features", false, reaper).await?;
    let (_, version) = answer(binary, "--version", false, reaper).await?;
    let version = version.lines().next().unwrap_or_default();
    Ok(Answers {
        identity,
        flags,
        features: (code == 0).then_some(features),
        version: version
            .trim_start_matches("runsc version ")
            .chars()
            .take(64)
            .collect(),
    })
}

fn unusable(binary: &Path, what: &str, error: &io::Error) -> Error {
    Error::precondition(format!(
        "runsc: {what} {}: {error}; install runsc or set runsc.path in the policy file",
        binary.display()
    ))
}

/// Runs one question; `runsc flags` answers on stderr.
async fn answer(
    binary: &Path,
    question: &str,
    with_stderr: bool,
    reaper: &Arc<Reaper>,
) -> Result<(u32, String)> {
    let cannot = |e: &io::Error| unusable(binary, "cannot run", e);
    let (reader, writer) = io::pipe().map_err(|e| cannot(&e))?;
    let stderr = if with_stderr {
        writer.try_clone().map_err(|e| cannot(&e))?.into()
    } else {
        Stdio::null()
    };
    let mut command = Command::new(binary);
    command
        .env_clear()
        .arg(question)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(stderr)
        // Killed with all that it may have started.
        .process_group(0);
    let mut child = reaper.spawn(&mut command).map_err(|e| cannot(&e))?;
    // Its copies of the pipe's end would keep the answer from ending.
    drop(command);
    let read = collect(OwnedFd::from(reader), ANSWER_MAX).map_err(|e| cannot(&e))?;
    let Some(exit) = child.wait_for(LIMIT).await else {
        let _ = killpg(Pid::from_raw(child.pid()), Signal::SIGKILL);
        child.wait_for(KILL_GRACE).await;
        read.abort();
        let limit = LIMIT.as_secs();
        return Err(Error::new(
            Code::DeadlineExceeded,
            format!("runsc {question}: no answer within {limit} s"),
        ));
    };
    let text = String::from_utf8_lossy(&finished(read).await).into_owned();
    Ok((exit.status(), text))
}
