//! Whether the client of an exec that has not opened stdin yet still will.
//!
//! An exec's stdin ends with its last writer, once there has been one. A client that came before the shim had opened
//! the FIFO and found its input empty leaves no trace there: to call off the open of a writer that waits, containerd's
//! fifo package opens the other end itself (`Close` in containerd/fifo), and the kernel keeps nothing of a FIFO that
//! nobody has open. `ctr` is such a client, and in that case it sends no `CloseIO` either. In the FIFO it is the same
//! as a client that is late. But for each stream that it has not closed the package keeps a descriptor (`O_PATH`), and
//! it opens stdin first: who has one of an output and none of stdin is done with stdin.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use crate::io::fifo::Output;
use crate::sys::aside;

/// How long after the start it is looked for. One that opens its streams in another order is done with all of them by
/// then.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// How long the look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// The client that one exec has.
#[derive(Debug)]
pub(crate) struct Client {
    /// Where the kernel says that it is (`/proc/self/fd`).
    pub(crate) stdin: PathBuf,
    /// Those outputs that go to a FIFO.
    pub(crate) outputs: Vec<Output>,
}

/// What the processes of the node have open of an exec's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    Nothing,
    /// An output.
    Output,
    /// An output, in the way of containerd's fifo package.
    OutputByHandle,
    /// Stdin, in whatever way.
    Stdin,
}

impl Client {
    /// Returns where the client is done with stdin without ever having been seen there, and never where it may still
    /// come: it has opened nothing yet, or what it has open does not tell.
    pub(crate) async fn done(self) {
        sleep(LOOK_AFTER).await;
        let is_visited = self.outputs.iter().any(Output::is_visited);
        let paths: Vec<_> = self.outputs.iter().filter_map(Output::path).collect();
        let stdin = self.stdin;
        let look = move || Ok(held(&stdin, &paths));
        let what = "look for the client of an exec";
        let held = aside::STREAMS.within(LOOK_LIMIT, what, look, drop).await;
        let is_done = match held {
            Ok(Held::Nothing) => is_visited,
            Ok(Held::OutputByHandle) => true,
            Ok(Held::Output | Held::Stdin) => false,
            Err(error) => {
                tracing::warn!(%error, "an exec's stdin stays open until CloseIO");
                false
            }
        };
        if !is_done {
            std::future::pending().await
        }
    }
}

/// Looks at all processes of the node but this one. No file is touched, however dead its filesystem: a path is compared
/// with what the kernel says that a descriptor is of.
fn held(stdin: &Path, outputs: &[PathBuf]) -> Held {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Held::Nothing;
    };
    let own = std::process::id();
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| *pid != own)
        .map(|pid| held_by(pid, stdin, outputs))
        .max()
        .unwrap_or(Held::Nothing)
}

fn held_by(pid: u32, stdin: &Path, outputs: &[PathBuf]) -> Held {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Held::Nothing;
    };
    let of = |entry: fs::DirEntry| {
        let path = fs::read_link(entry.path()).ok()?;
        if path == stdin {
            Some(Held::Stdin)
        } else if !outputs.contains(&path) {
            None
        } else if is_handle(pid, &entry) {
            Some(Held::OutputByHandle)
        } else {
            Some(Held::Output)
        }
    };
    let held = descriptors.filter_map(|entry| of(entry.ok()?));
    held.max().unwrap_or(Held::Nothing)
}

/// Whether a descriptor was opened by `O_PATH` (proc_pid_fdinfo(5)).
fn is_handle(pid: u32, descriptor: &fs::DirEntry) -> bool {
    let number = descriptor.file_name();
    let info = Path::new("/proc")
        .join(pid.to_string())
        .join("fdinfo")
        .join(number);
    let text = fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_PATH.cast_unsigned() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::process::{Command, Stdio};

    #[tokio::test(flavor = "current_thread")]
    async fn what_others_have_open_tells_how() {
        let _alone = crate::sys::reaper::CHILDREN.lock().await;
        let folder = tempfile::tempdir().expect("tempdir");
        let folder = folder.path().canonicalize().expect("its path");
        let paths = ["stdin", "stdout"].map(|name| folder.join(name));
        for path in &paths {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        }
        let [stdin, stdout] = &paths;
        let open = |path: &Path, flags: i32| {
            let mut options = File::options();
            let file = options.read(true).custom_flags(flags).open(path);
            Some(file.expect("open"))
        };
        let plain = |path| open(path, libc::O_NONBLOCK);
        let handle = |path| open(path, libc::O_PATH);
        for (files, expected) in [
            ([None, None], Held::Nothing),
            ([plain(stdout), None], Held::Output),
            ([plain(stdout), handle(stdout)], Held::OutputByHandle),
            ([handle(stdout), handle(stdin)], Held::Stdin),
            ([plain(stdin), plain(stdout)], Held::Stdin),
        ] {
            let [first, second] = files.map(|file| file.map_or_else(Stdio::null, Stdio::from));
            let mut command = Command::new("/bin/sleep");
            command.arg("100").stdin(first).stdout(second);
            let mut child = command.spawn().expect("start a client");
            drop(command);
            let found = held(stdin, std::slice::from_ref(stdout));
            child.kill().expect("kill");
            child.wait().expect("wait");
            assert_eq!(found, expected);
        }
    }
}
