//! The end of a sandbox, whatever happened before: by its shim, or by the `delete` action after the shim has died.
//!
//! Every step works from what exists, and no step depends on the one before it. So the whole can be repeated after any
//! failure. Nothing may outlive the delete.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::runsc::command::Runsc;
use crate::runsc::state_file::StateFile;
use crate::sandbox::furnish::mount;
use crate::sandbox::held::Held;
use crate::sandbox::layout::Bundle;
use crate::sys::aside;
use node::cgroup::Cgroups;
use node::procfs;

/// How long `runsc delete` may take before its work is done by hand.
const DELETE_LIMIT: Duration = Duration::from_secs(10);
/// How long killed processes may take to disappear.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// The file in which runsc keeps what a container writes over the folder (`boot.SelfFilestorePath`).
pub(crate) fn filestore(folder: &Path, sandbox: &str) -> PathBuf {
    folder.join(format!(".gvisor.filestore.{sandbox}"))
}

/// Ends one container of a sandbox, by runsc as far as it can.
pub(crate) async fn remove_container(runsc: &Runsc, id: &str, sandbox: &str, bundle: &Bundle) {
    if StateFile::find(runsc.root(), id).is_some()
        && let Err(error) = runsc.act("delete", &["--force"], id, DELETE_LIMIT).await
    {
        tracing::warn!(%error, id, "runsc delete failed; cleaning up by hand");
        if id != sandbox {
            // It would serve files until the pod ends, and its state would keep the id.
            kill_gofer(runsc.root(), bundle.path()).await;
            let state = StateFile::find(runsc.root(), id);
            remove_files(state.into_iter().collect()).await;
        }
    }
    remove_rootfs(sandbox, bundle).await;
}

/// Removes the lock files of containers of a sandbox that are not there any more. A runsc command of another container looks at all that it
/// has found (`adjustSandboxOOMScoreAdj` in `runsc/container`), and to lock one that has gone meanwhile makes its lock anew.
pub(crate) fn remove_locks(root: &Path, is_there: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((id, rest)) = name.to_str().and_then(|name| name.split_once("_sandbox:")) else {
            continue;
        };
        if rest.ends_with(".lock") && !is_there(id) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Unmounts a container's root. It belongs to a snapshot that may be mounted again, so nothing of runsc's may stay in it. In one that
/// is a folder of the client's runsc makes nothing.
pub(crate) async fn remove_rootfs(sandbox: &str, bundle: &Bundle) {
    let rootfs = bundle.rootfs();
    remove_files(vec![filestore(&rootfs, sandbox)]).await;
    unmount(&rootfs).await;
}

/// Removes files that may lie anywhere; one that hangs holds up no other.
async fn remove_files(files: Vec<PathBuf>) {
    let deadline = Instant::now() + aside::CLEANING_LIMIT;
    for file in files {
        let left = deadline.saturating_duration_since(Instant::now());
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
    if let Some(cgroups) = cgroups {
        cgroups.kill();
    }
    let (root, cgroups) = (root.to_owned(), cgroups.cloned());
    kill_found(move || {
        let mut found = processes_with_root(&root);
        if let Some(cgroups) = &cgroups {
            let held: Vec<Held> = cgroups.pids().into_iter().filter_map(Held::open).collect();
            let still_there = cgroups.pids();
            let is_there = |one: &Held| still_there.contains(&one.pid()) && one.is_alive();
            found.extend(held.into_iter().filter(is_there));
        }
        found
    })
    .await;
}

/// Kills what serves the files of one container: a gofer that runsc has left while it was being set up.
pub(crate) async fn kill_gofer(root: &Path, bundle: &Path) {
    let (root, bundle) = (root.to_owned(), bundle.to_owned());
    kill_found(move || {
        let is_its_gofer = |one: &Held| {
            let args = one.arguments();
            let named = [b"--bundle", bundle.as_os_str().as_bytes()];
            args.iter().any(|arg| arg == b"gofer") && args.windows(2).any(|pair| pair == named)
        };
        let mut found = processes_with_root(&root);
        found.retain(is_its_gofer);
        found
    })
    .await;
}

/// Kills what is found until nothing is. On a node with many processes a look at all of them takes a while, so there is one
/// for each time that something had to be killed, aside, and none while that ends.
async fn kill_found(find: impl Fn() -> Vec<Held> + Send + Sync + 'static) {
    let deadline = Instant::now() + KILL_GRACE;
    let find = Arc::new(find);
    loop {
        let look = Arc::clone(&find);
        let look = move || Ok(look());
        let left = deadline.saturating_duration_since(Instant::now());
        let found = aside::CLEANING
            .within(left, "look for processes of the sandbox", look, drop)
            .await;
        let found = match found {
            Ok(found) => found,
            Err(error) => return tracing::error!(%error, "processes of the sandbox may live on"),
        };
        if found.is_empty() {
            return;
        }
        found.iter().for_each(Held::kill);
        let pids: Vec<i32> = found.iter().map(Held::pid).collect();
        let all_ended = async {
            for one in found {
                one.ended().await;
            }
        };
        if timeout_at(deadline, all_ended).await.is_err() {
            return tracing::error!(?pids, "processes of the sandbox survive SIGKILL");
        }
    }
}

/// Looks at all processes of the node.
fn processes_with_root(root: &Path) -> Vec<Held> {
    let mut argument = b"--root=".to_vec();
    argument.extend_from_slice(root.as_os_str().as_bytes());
    let names_root = |pid: i32| procfs::arguments(pid).contains(&argument);
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| names_root(*pid))
        .filter_map(Held::open)
        // Another process may have got the number in between.
        .filter(|one| names_root(one.pid()) && one.is_alive())
        .collect()
}

/// The cgroups that the sandbox of this root is in and this process is not. Nothing in them may be killed for it: one that
/// runsc did not move the sandbox into is somebody else's.
fn cgroups_with_root(root: &Path) -> Option<Cgroups> {
    let is_sandbox = |one: &Held| one.arguments().iter().any(|arg| arg == b"boot");
    let pid = processes_with_root(root)
        .into_iter()
        .find(is_sandbox)?
        .pid();
    let found = Cgroups::unshared(pid);
    found
        .inspect_err(|error| tracing::warn!(%error, pid, "cgroups of the sandbox not found"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locks_of_containers_that_have_gone_are_removed() {
        let root = tempfile::tempdir().expect("tempdir");
        let names = [
            "a_sandbox:pod.lock",
            "a_sandbox:pod.state",
            "b_sandbox:pod.lock",
            "b_sandbox:pod.state",
            "lock",
        ];
        for name in names {
            fs::write(root.path().join(name), "").expect("write");
        }
        remove_locks(root.path(), |id| id == "a");
        for name in names {
            let is_kept = name != "b_sandbox:pod.lock";
            assert_eq!(root.path().join(name).exists(), is_kept, "{name}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_processes_of_exactly_this_root_are_killed() {
        let _alone = crate::sys::reaper::CHILDREN.lock().await;
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
    #[tokio::test(flavor = "current_thread")]
    async fn what_is_slow_to_die_is_not_looked_for_all_the_while() {
        use std::sync::Mutex;
        use std::sync::atomic::{AtomicU32, Ordering};
        let (lasting, end) = std::io::pipe().expect("pipe");
        let lasting = Mutex::new(Some(lasting));
        let looks = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&looks);
        let find = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut lasting = lasting.lock().expect("lock");
            lasting.take().map(Held::of_pipe).into_iter().collect()
        };
        let killed = tokio::spawn(kill_found(find));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        drop(end);
        killed.await.expect("done");
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }
}
