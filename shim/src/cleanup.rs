//! The end of a sandbox, whatever happened before: by its shim, or by the `delete` action when the shim has gone.
//!
//! Every step works from what is there and none depends on the one before it, so that it can be repeated after any
//! failure: nothing may outlive the delete.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroups;
use crate::runsc::command::Runsc;
use crate::runsc::state_file::StateFile;
use crate::{aside, mount};

/// How long `runsc delete` may take before its work is done by hand.
const DELETE_LIMIT: Duration = Duration::from_secs(10);
/// How long killed processes may take to disappear.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// The file in which runsc keeps what a container writes over the folder (`boot.SelfFilestorePath`).
pub(crate) fn filestore(folder: &Path, sandbox: &str) -> PathBuf {
    folder.join(format!(".gvisor.filestore.{sandbox}"))
}

/// Ends one container of a sandbox, by runsc as far as it can.
pub(crate) async fn remove_container(runsc: &Runsc, id: &str, sandbox: &str, rootfs: &Path) {
    if StateFile::find(runsc.root(), id).is_some()
        && let Err(error) = runsc.act("delete", &["--force"], id, DELETE_LIMIT).await
    {
        tracing::warn!(%error, id, "runsc delete failed; cleaning up by hand");
    }
    remove_rootfs(sandbox, rootfs).await;
}

/// Unmounts a container's root. It belongs to a snapshot that may be mounted again, so nothing of runsc's may stay in it.
pub(crate) async fn remove_rootfs(sandbox: &str, rootfs: &Path) {
    remove_files(vec![filestore(rootfs, sandbox)]).await;
    unmount(rootfs).await;
}

/// Removes files that may lie anywhere; one that hangs holds up no other.
async fn remove_files(files: Vec<PathBuf>) {
    let deadline = tokio::time::Instant::now() + aside::CLEANING_LIMIT;
    for file in files {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let path = file.clone();
        let remove = move || match fs::remove_file(file) {
            Err(error)
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Err(error)
            }
            _ => Ok(()),
        };
        aside::CLEANING.clean(&path, left, remove).await;
    }
}

/// Ends a sandbox and removes everything of it: processes, state, cgroups, folder.
pub(crate) async fn remove_sandbox(
    root: &Path,
    id: &str,
    cgroups: Option<&Cgroups>,
    filestores: &[PathBuf],
) {
    // A socket path too long for the root lies elsewhere: only the state knows where.
    let socket =
        StateFile::read(root, id).and_then(|state| state.control_socket().map(Path::to_owned));
    // Where nothing is written down, the sandbox itself knows, as long as it lives.
    let found = match cgroups {
        Some(_) => None,
        None => cgroups_with_root(root),
    };
    kill_processes(root, cgroups).await;
    if let Some(cgroups) = cgroups.or(found.as_ref()) {
        cgroups.remove().await;
    }
    remove_files(socket.iter().chain(filestores).cloned().collect()).await;
    unmount(root).await;
    if let Err(error) = fs::remove_dir_all(root)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, root = %root.display(), "sandbox folder not removed");
    }
}

/// Unmounts all at and below a path; what stays is logged.
async fn unmount(target: &Path) {
    let path = target.to_owned();
    let unmount = move || mount::unmount_all(&path);
    aside::CLEANING
        .clean(target, aside::CLEANING_LIMIT, unmount)
        .await;
}

/// Kills every process of a sandbox: those that name its root on their command line (runsc commands, sandbox, gofer),
/// and whatever else its cgroups hold.
pub(crate) async fn kill_processes(root: &Path, cgroups: Option<&Cgroups>) {
    let deadline = tokio::time::Instant::now() + KILL_GRACE;
    loop {
        let mut pids = processes_with_root(root);
        pids.extend(cgroups.map(Cgroups::pids).unwrap_or_default());
        pids.retain(|pid| is_alive(*pid));
        if pids.is_empty() {
            return;
        }
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if tokio::time::Instant::now() >= deadline {
            tracing::error!(?pids, "processes of the sandbox survive SIGKILL");
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A zombie is dead: it only waits for its parent.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may hold any byte (proc_pid_stat(5)).
    let state = stat
        .rsplit(|byte| *byte == b')')
        .next()
        .and_then(|rest| rest.trim_ascii_start().first());
    !matches!(state, None | Some(b'Z' | b'X'))
}

fn processes_with_root(root: &Path) -> Vec<i32> {
    let mut argument = b"--root=".to_vec();
    argument.extend_from_slice(root.as_os_str().as_bytes());
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|arg| arg == argument)
        })
        .collect()
}

/// The cgroups that the sandbox of this root is in and this process is not. Nothing in them may be killed for it: one that
/// runsc did not move the sandbox into is somebody else's.
fn cgroups_with_root(root: &Path) -> Option<Cgroups> {
    let is_sandbox = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|arg| arg == b"boot")
    };
    let pid = processes_with_root(root).into_iter().find(is_sandbox)?;
    let found = Cgroups::unshared(pid);
    found
        .inspect_err(|error| tracing::warn!(%error, pid, "cgroups of the sandbox not found"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn only_processes_of_exactly_this_root_are_killed() {
        let _alone = crate::reaper::CHILDREN.lock().await;
        let folder = tempfile::tempdir().expect("tempdir");
        let root = folder.path().join("r");
        let start = |argument: String| {
            let mut command = std::process::Command::new("/bin/sh");
            let waits_for_input = ["-c", "read line", "sh"];
            command
                .args(waits_for_input)
                .arg(argument)
                .stdin(std::process::Stdio::piped())
                .spawn()
                .expect("spawn")
        };
        let mut ours = start(format!("--root={}", root.display()));
        let mut other = start(format!("--root={}x", root.display()));
        while processes_with_root(&root).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        kill_processes(&root, None).await;
        assert!(!ours.wait().expect("wait").success());
        assert!(
            other.try_wait().expect("try_wait").is_none(),
            "a longer root is another sandbox's"
        );
        other.kill().expect("kill");
        other.wait().expect("wait");
    }
}
