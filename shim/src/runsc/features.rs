//! What a runsc binary can do: asked of the binary itself, once for each one.
//!
//! A version says little (`--version` may print VERSION_MISSING), so flags and features are read from `runsc flags` and
//! `runsc features`, and its system calls from `runsc help syscalls`. Asking costs 40 ms, so the answers are kept in the base
//! folder under what identifies the file and the programs beside it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use runsc_config::{Calls, Features, Sidecars};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Kind, Result};
use crate::runsc::command::{KILL_GRACE, collect, finished};
use crate::sandbox::layout;
use crate::sys::reaper::Reaper;

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How much of an answer is read, in bytes; `runsc flags` prints some 20 KiB, a table of system calls 55.
const ANSWER_MAX: usize = 1024 * 1024;
/// The cache has a file for each path of a binary: two handlers may name two.
const CACHE: &str = "runsc-features";

/// One file, as it stands.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// runsc, and all that is beside it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    files: Vec<Stamp>,
}

impl Identity {
    fn of(binary: &Path, sidecars: Option<&Sidecars>) -> io::Result<Self> {
        let beside = sidecars.map(Sidecars::files).unwrap_or_default();
        let all = std::iter::once(binary).chain(beside.iter().map(PathBuf::as_path));
        let stamp = |path: &Path| {
            let file = std::fs::metadata(path)?;
            Ok(Stamp {
                path: path.to_owned(),
                device: file.dev(),
                inode: file.ino(),
                size: file.size(),
                changed: (file.ctime(), file.ctime_nsec()),
            })
        };
        let files = all.map(stamp).collect::<io::Result<_>>()?;
        Ok(Self { files })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Answers {
    identity: Identity,
    flags: String,
    features: Option<String>,
    /// The first line of `runsc --version`.
    version: String,
    /// The release of the sentry beside it; none if there is no sentry, or it tells none.
    sentry: Option<String>,
    /// Its system calls; empty if its table is not believed.
    calls: Vec<(u32, String)>,
}

/// The features of the binary at `binary`, from the cache in `base` where it still holds.
///
/// # Errors
/// `FailedPrecondition` when the binary is missing or cannot be run, or the sentry beside it is of another release.
pub(crate) async fn of(binary: &Path, base: &Path, reaper: &Arc<Reaper>) -> Result<Features> {
    let refused = |problem: String| Error::precondition(format!("runsc: {problem}"));
    let sidecars = Sidecars::of(binary).map_err(refused)?;
    let identity = Identity::of(binary, sidecars.as_ref());
    let identity = identity.map_err(|e| unusable(binary, "cannot use", &e))?;
    let cache = cache(base, binary);
    let cached = std::fs::read(&cache)
        .ok()
        .and_then(|text| serde_json::from_slice::<Answers>(&text).ok());
    let answers = match cached.filter(|answers| answers.identity == identity) {
        Some(answers) => answers,
        None => {
            let answers = ask(binary, sidecars.as_ref(), identity, reaper).await?;
            let kept = serde_json::to_vec(&answers)
                .map_err(std::io::Error::from)
                .and_then(|text| layout::write_private(&cache, &text));
            if let Err(error) = kept {
                tracing::warn!(%error, "runsc's features could not be kept; they are asked for again next time");
            }
            answers
        }
    };
    let features = parse(binary, &answers.flags, answers.features.as_deref())?;
    if let Some(sidecars) = &sidecars {
        let fits = sidecars.fits(&answers.version, answers.sentry.as_deref());
        fits.map_err(refused)?;
    }
    let features = features.with_sidecars(sidecars.as_ref());
    // Judged each time: the profile stands on it.
    let features = features.with_calls(Calls::new(&answers.calls).ok());
    Ok(features.with_version(answers.version))
}

/// The file in `base` with the answers of the binary at `binary`.
fn cache(base: &Path, binary: &Path) -> PathBuf {
    let digest = Sha256::digest(binary.as_os_str().as_bytes());
    let name: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
    base.join(format!("{CACHE}-{name}.json"))
}

fn parse(binary: &Path, flags: &str, features: Option<&str>) -> Result<Features> {
    Features::parse(flags, features)
        .map_err(|e| Error::precondition(format!("runsc: {} is not usable: {e}", binary.display())))
}

async fn ask(
    binary: &Path,
    sidecars: Option<&Sidecars>,
    identity: Identity,
    reaper: &Arc<Reaper>,
) -> Result<Answers> {
    let (code, flags) = answer(binary, &["flags"], true, reaper).await?;
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
    let (code, features) = answer(binary, &["features"], false, reaper).await?;
    let features = (code == 0).then_some(features);
    let (_, version) = answer(binary, &["--version"], false, reaper).await?;
    let version = version.lines().next().unwrap_or_default();
    let version = version.trim_start_matches("runsc version ");
    let (code, table) = answer(binary, &Calls::QUESTION, false, reaper).await?;
    let table = (code == 0).then_some(table.as_str());
    let parsed = parse(binary, &flags, features.as_deref())?;
    let sentry = sidecars.and_then(Sidecars::sentry);
    let sentry = match sentry.filter(|_| parsed.knows_sidecars()) {
        Some(sentry) => release_of(sentry, reaper).await.map_err(|e| {
            let what_to_do = Sidecars::FIX;
            Error::new(e.kind(), format!("{e}; {what_to_do}"))
        })?,
        None => None,
    };
    let calls = Calls::of(sidecars, version, &parsed, table).unwrap_or_else(|error| {
        let binary = binary.display();
        tracing::warn!("runsc: {binary}: {error}; seccomp profiles are allow lists, which slows starts and execs");
        Vec::new()
    });
    let version = short(version.trim());
    Ok(Answers {
        identity,
        flags,
        features,
        version,
        sentry,
        calls,
    })
}

/// The release of a sentry, if it tells one.
async fn release_of(sentry: &Path, reaper: &Arc<Reaper>) -> Result<Option<String>> {
    let (code, printed) = answer(sentry, &["--version"], false, reaper).await?;
    let told = Sidecars::release_in(&printed).filter(|_| code == 0);
    if told.is_none() {
        let sentry = sentry.display();
        tracing::warn!(
            "runsc: {sentry} does not tell its release: runsc compares it with its own at each start"
        );
    }
    Ok(told.map(short))
}

/// As much of a version as is kept.
fn short(version: &str) -> String {
    version.chars().take(64).collect()
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
    question: &[&str],
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
        .args(question)
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
            Kind::DeadlineExceeded,
            format!(
                "{} {}: no answer within {limit} s",
                binary.display(),
                question.join(" ")
            ),
        ));
    };
    let text = String::from_utf8_lossy(&finished(read).await).into_owned();
    Ok((exit.status(), text))
}
