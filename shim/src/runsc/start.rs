//! The start of a sandbox's first container by the control socket, which saves the 8 to 16 ms that a `runsc start` takes to be
//! there at all.
//!
//! What `runsc start` does is done here in its order (`startImpl` in `runsc/container/container.go`, `StartRoot` in
//! `runsc/sandbox/sandbox.go`): under the lock of the container's state file the sentry is told its network and to start, the
//! state file says "running", and sentry and gofer get their OOM scores. With the state left at "created" other commands of runsc
//! act on a container that they hold not to run: `pause` would leave it paused for good. The command does what needs it: a network
//! of the sandbox's own, hooks, a runsc that has another start. Host settings are the one thing that is not looked at again: runsc
//! has no mandatory one that a sandbox could have been created without.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::error::{Error, Kind, Result};
use crate::runsc::control::{Control, Method};
use crate::runsc::state_file::{SIZE_MAX, StateFile};

/// The only network that is the same for every sandbox.
const NO_NETWORK: &str = "--network=none";
/// How often the lock is tried that a command of runsc holds for as long as it works.
const LOCK_PERIOD: Duration = Duration::from_millis(5);

/// What of a state file decides how its container can be started.
#[derive(Debug, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    process: Process,
    #[serde(default)]
    hooks: Option<Hooks>,
}

#[derive(Debug, Default, Deserialize)]
struct Process {
    #[serde(default, rename = "oomScoreAdj")]
    oom_score: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hooks {
    #[serde(default)]
    poststart: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    start_container: Option<Vec<IgnoredAny>>,
}

impl Spec {
    fn has_hooks(&self) -> bool {
        let is_there =
            |hooks: &Option<Vec<IgnoredAny>>| hooks.as_ref().is_some_and(|h| !h.is_empty());
        let hooks = self.hooks.as_ref();
        hooks.is_some_and(|hooks| is_there(&hooks.poststart) || is_there(&hooks.start_container))
    }
}

/// The state file of a container that was created, under its lock: no command of runsc looks at it meanwhile.
#[derive(Debug)]
struct Claim {
    path: PathBuf,
    /// The next one, written before anything is started: a full disk refuses a start, and undoes none.
    next: PathBuf,
    state: StateFile,
    oom_score: Option<i32>,
    _lock: Flock<File>,
}

impl Claim {
    /// None where the command has to start it, or to say why it does not.
    async fn take(root: &Path, id: &str, next: PathBuf, limit: Duration) -> Result<Option<Self>> {
        let Some(path) = StateFile::find(root, id) else {
            return Ok(None);
        };
        let failed = |error: &io::Error| Error::io(format!("start: {}", path.display()), error);
        let lock = lock(&path.with_extension("lock"), limit)
            .await
            .map_err(|error| failed(&error))?;
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(SIZE_MAX).read_to_end(&mut text))
            .map_err(|error| failed(&error))?;
        let Some((running, spec, state)) = running(&text) else {
            return Ok(None);
        };
        if spec.has_hooks() {
            return Ok(None);
        }
        let claim = Self {
            path: path.clone(),
            next,
            state,
            oom_score: spec.process.oom_score,
            _lock: lock,
        };
        // As runsc makes its own.
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(&claim.next);
        file.and_then(|mut file| file.write_all(&running))
            .map_err(|error| failed(&error))?;
        Ok(Some(claim))
    }

    /// From here on it runs, for runsc as well.
    fn commit(&self) -> Result<()> {
        fs::rename(&self.next, &self.path)
            .map_err(|error| Error::io(format!("start: {}", self.path.display()), &error))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // After a commit it has that name no more.
        let _ = fs::remove_file(&self.next);
    }
}

/// The same state with another status, what decides how to start it, and whom it names. None unless it was just created.
fn running(text: &[u8]) -> Option<(Vec<u8>, Spec, StateFile)> {
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(text).ok()?;
    let status = fields.get("status")?;
    if serde_json::from_str::<String>(status.get()).ok()? != "created" {
        return None;
    }
    let spec = serde_json::from_str(fields.get("spec")?.get()).ok()?;
    let state = serde_json::from_slice(text).ok()?;
    let status = RawValue::from_string("\"running\"".to_owned()).ok()?;
    fields.insert("status".to_owned(), status);
    Some((serde_json::to_vec(&fields).ok()?, spec, state))
}

/// Takes runsc's lock of a state file, which is one of `flock` (`github.com/gofrs/flock`).
async fn lock(path: &Path, limit: Duration) -> io::Result<Flock<File>> {
    let deadline = Instant::now() + limit;
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, error)) => return Err(error.into()),
        };
        if Instant::now() >= deadline {
            let message = format!("a command of runsc holds its lock, for more than {limit:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        tokio::time::sleep(LOCK_PERIOD).await;
    }
}

impl Control {
    /// Starts the container that the sandbox was made for. False means: use the command, nothing was started.
    ///
    /// # Errors
    /// The sentry's own reason, `DeadlineExceeded` after `limit`. It may run then, or be about to: the caller ends its sandbox.
    pub(crate) async fn start_root(&self, id: &str, is_pod: bool, limit: Duration) -> Result<bool> {
        let is_usual = self.runsc.flags().iter().any(|flag| flag == NO_NETWORK);
        if !is_usual || self.has_fallen_back(Method::Start) || self.has_fallen_back(Method::Network)
        {
            return Ok(false);
        }
        let deadline = Instant::now() + limit;
        let next = self.runsc.scratch_path("state");
        let Some(claim) = Claim::take(self.runsc.root(), id, next, limit).await? else {
            return Ok(false);
        };
        let left = || deadline.saturating_duration_since(Instant::now());
        let (network, id) = (loopback(), json!(id));
        let told = self.call_within::<IgnoredAny>(Method::Network, &network, &[], left());
        if told.await.map_err(failed)?.is_none() {
            return Ok(false);
        }
        let started = self.call_within::<IgnoredAny>(Method::Start, &id, &[], left());
        match started.await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            Err(error) => return Err(failed(error)),
        }
        claim.commit()?;
        set_scores(&claim, is_pod)?;
        Ok(true)
    }
}

/// A start that was not done, in the command's words. A sandbox that has gone meanwhile is no container that nobody knows.
fn failed(error: Error) -> Error {
    let error = match error.kind() {
        Kind::NotFound => Error::internal(error.to_string()),
        _ => error,
    };
    error.context("starting root container")
}

/// What `runsc start` tells a sandbox without a network (`boot.DefaultLoopbackLink`): addresses as Go's JSON has them, masks in
/// base64.
fn loopback() -> serde_json::Value {
    json!({ "LoopbackLinks": [{
        "Name": "lo",
        "Addresses": [
            { "Address": "127.0.0.1", "PrefixLen": 8 },
            { "Address": "::1", "PrefixLen": 128 },
        ],
        "Routes": [
            { "Destination": { "IP": "127.0.0.0", "Mask": "/wAAAA==" } },
            { "Destination": { "IP": "::1", "Mask": "/////////////////////w==" } },
        ],
    }] })
}

/// The scores that a spec asks for: of a pod's first container, which is none of its programs, the gofer's alone
/// (`adjustSandboxOOMScoreAdj`, `adjustGoferOOMScoreAdj`).
fn set_scores(claim: &Claim, is_pod: bool) -> Result<()> {
    let Some(score) = claim.oom_score else {
        return Ok(());
    };
    let sentry = claim.state.sandbox_pid().filter(|_| !is_pod);
    for pid in sentry.into_iter().chain(claim.state.gofer_pid()) {
        let written = fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
        match written {
            Err(error) if !is_gone(&error) => {
                return Err(Error::io(
                    format!("setting oom_score_adj to {score}"),
                    &error,
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATED: &str = r#"{"id":"a","spec":{"process":{"oomScoreAdj":-5},"hooks":{"poststart":null}},
        "status":"created","created":"2026-11-30T07:00:00.123456789Z","goferPid":7,"sandbox":{"pid":9,"x":1e100}}"#;

    #[test]
    fn only_the_status_changes() {
        let (text, spec, state) = running(CREATED.as_bytes()).expect("created");
        let before: BTreeMap<String, Box<RawValue>> = serde_json::from_str(CREATED).expect("JSON");
        let after: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(before.len(), after.len());
        for (name, value) in &after {
            let expected = if name == "status" {
                "\"running\""
            } else {
                before[name].get()
            };
            assert_eq!(value.get(), expected, "{name}");
        }
        assert_eq!(spec.process.oom_score, Some(-5));
        assert!(!spec.has_hooks());
        assert_eq!((state.sandbox_pid(), state.gofer_pid()), (Some(9), Some(7)));
    }

    #[test]
    fn what_was_not_just_created_is_the_commands() {
        for (from, to) in [
            (r#""status":"created""#, r#""status":"running""#),
            (r#""status":"created""#, r#""status":1"#),
            (r#""status":"created","#, ""),
            (r#""spec":{"#, r#""other":{"#),
            ("{", ""),
        ] {
            let text = CREATED.replacen(from, to, 1);
            assert!(running(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn hooks_of_a_start_are_seen() {
        for (hooks, are_there) in [
            ("null", false),
            (r#"{"poststart":[]}"#, false),
            (r#"{"poststop":[{"path":"/bin/true"}]}"#, false),
            (r#"{"poststart":[{"path":"/bin/true"}]}"#, true),
            (r#"{"startContainer":[{"path":"/bin/true"}]}"#, true),
        ] {
            let spec = format!(r#"{{"hooks":{hooks}}}"#);
            let spec: Spec = serde_json::from_str(&spec).expect("a spec");
            assert_eq!(spec.has_hooks(), are_there, "{hooks}");
        }
    }

    #[tokio::test]
    async fn a_lock_that_is_held_is_waited_for_within_bounds() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("a_sandbox:a.lock");
        fs::write(&path, "").expect("write");
        let held = lock(&path, Duration::ZERO).await.expect("free");
        let error = lock(&path, Duration::from_millis(20))
            .await
            .expect_err("held");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(held);
        lock(&path, Duration::ZERO).await.expect("free again");
    }

    #[tokio::test]
    async fn what_is_claimed_and_not_started_is_as_it_was() {
        let folder = tempfile::tempdir().expect("tempdir");
        let (root, next) = (folder.path(), folder.path().join("next"));
        fs::write(root.join("a_sandbox:a.state"), CREATED).expect("write");
        fs::write(root.join("a_sandbox:a.lock"), "").expect("write");
        let claim = Claim::take(root, "a", next.clone(), Duration::ZERO);
        drop(claim.await.expect("claim").expect("created"));
        let text = fs::read_to_string(root.join("a_sandbox:a.state")).expect("read");
        assert_eq!(text, CREATED);
        assert!(!next.exists());
        let claim = Claim::take(root, "a", next.clone(), Duration::ZERO);
        claim
            .await
            .expect("claim")
            .expect("created")
            .commit()
            .expect("commit");
        let again = Claim::take(root, "a", next, Duration::ZERO).await;
        assert!(again.expect("read").is_none(), "it runs");
    }
}
