//! Sandboxes that run on the node.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use runsc_config::Policy;
use serde::Deserialize;

use super::content::{NETWORK, POLICY, SHIM};
use super::record::Record;
use super::root::Root;
use crate::Failure;
use crate::containerd::{self, Handler, Merged};
use crate::daemon;
use crate::files;
use crate::processes::{self, Process};
use node::dial;
use node::names::{METRICS_SOCKET as SOCKET, RECORD};

/// How runsc is told the folder.
const ROOT: &[u8] = b"--root=";
/// How long a shim without a sandbox may take to end; it waits for 4 s whether it gets another one.
const IDLE: Duration = Duration::from_secs(6);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(200);

/// Something that needs the shim's program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Running {
    /// A sandbox, by its folder on the node.
    Sandbox(PathBuf),
    /// A shim whose sandbox is not known, by its process.
    Shim(u32),
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(folder) => write!(f, "{}", folder.display()),
            Self::Shim(pid) => write!(f, "of the shim with pid {pid}"),
        }
    }
}

/// The folders that the node's policies put sandboxes in.
pub(crate) fn bases(root: &Root) -> Result<Vec<PathBuf>, Failure> {
    let mut folders = vec![Policy::strict().runsc().root.clone()];
    let mut named: BTreeSet<PathBuf> = [POLICY, NETWORK].map(PathBuf::from).into();
    for config in configs(root) {
        let read = containerd::read(root, &config);
        for handler in Merged::of(&read).handlers().filter(Handler::is_bulkhead) {
            match handler.policy() {
                Some(path) => drop(named.insert(path.into())),
                // Else containerd hands all of the options on as the policy.
                None => folders.extend(own_root(handler)),
            }
        }
    }
    for path in named {
        // One that does not parse makes no sandbox.
        let text = root
            .at(&path)
            .ok()
            .and_then(|here| files::read_text(&here).ok());
        folders.extend(text.and_then(|text| root_of(&text)));
    }
    folders.sort();
    folders.dedup();
    Ok(folders)
}

/// The configurations that a containerd of the node may have.
fn configs(root: &Root) -> BTreeSet<PathBuf> {
    let mut configs = BTreeSet::from([PathBuf::from(daemon::CONFIG)]);
    let record = Record::load(root).unwrap_or_default();
    configs.extend(record.edits.into_keys());
    // Where the main one imported it already, nothing of that was edited.
    let texts = record.files.into_keys();
    configs.extend(texts.filter(|path| path.extension() == Some(OsStr::new("toml"))));
    if root.is_own() {
        let daemons = daemon::all();
        configs.extend(daemons.iter().map(|daemon| daemon.config().to_owned()));
    }
    configs
}

/// The folder that a policy among a handler's options names, whether or not all of it is one.
fn own_root(handler: Handler<'_>) -> Option<PathBuf> {
    let runsc = handler.settings.get("options")?.get("runsc")?;
    let folder = Path::new(runsc.get("root")?.as_str()?);
    folder.is_absolute().then(|| folder.to_owned())
}

fn root_of(policy: &str) -> Option<PathBuf> {
    let policy = Policy::parse(policy, "a handler's policy").ok()?;
    Some(policy.runsc().root.clone())
}

/// Sandboxes that run, and shims that may have one: what a policy says now does not tell where one was made under an earlier one, so
/// processes are asked as well.
pub(super) fn sandboxes(root: &Root) -> Result<Vec<Running>, Failure> {
    let mut folders = BTreeSet::new();
    for base in bases(root)? {
        let entries = fs::read_dir(root.at(&base)?);
        let entries = entries.into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| base.join(entry.file_name())));
    }
    let mut shims = Vec::new();
    for process in processes::all() {
        let words = process.words();
        folders.extend(folder_of(root, &words));
        if is_shim(root, process, &words) {
            shims.push(process.pid);
        }
    }
    let mut found = Vec::new();
    for folder in folders {
        let here = root.at(&folder)?;
        let Some(known) = Known::of(&here) else {
            continue;
        };
        if known.runs(&folder, &here) {
            shims.retain(|pid| known.shim_pid != Some(*pid));
            found.push(Running::Sandbox(folder));
        }
    }
    found.extend(shims.into_iter().map(Running::Shim));
    Ok(found)
}

/// The same, once shims have ended that have nothing to do any more, as they do some seconds after their last container.
pub(super) fn settled(root: &Root) -> Result<Vec<Running>, Failure> {
    let until = Instant::now() + IDLE;
    loop {
        let found = sandboxes(root)?;
        let is_idle = |one: &Running| matches!(one, Running::Shim(_));
        if found.is_empty() || !found.iter().all(is_idle) || Instant::now() >= until {
            return Ok(found);
        }
        thread::sleep(PAUSE);
    }
}

/// How many run, in words.
pub(super) fn count(sandboxes: &[Running]) -> String {
    match sandboxes.len() {
        1 => "1 sandbox runs".to_owned(),
        many => format!("{many} sandboxes run"),
    }
}

/// Whether a process is a shim of this root: root's, so that nobody else keeps a package on the node, and of these processes, not of a
/// node in a container.
fn is_shim(root: &Root, process: Process, words: &[Vec<u8>]) -> bool {
    let word = words.first().map(|word| Path::new(OsStr::from_bytes(word)));
    let program = process.program();
    let of_shim = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name.as_bytes().starts_with(SHIM.as_bytes())
    };
    let is_one = |path: &Path| of_shim(path) && (root.is_own() || path.starts_with(root.path()));
    program.as_deref().or(word).is_some_and(is_one) && process.is_roots() && process.shares("pid")
}

/// The folder that the command line of a sandbox's process names as runsc's root. Anybody can name one: only root's alone counts.
fn folder_of(root: &Root, words: &[Vec<u8>]) -> Option<PathBuf> {
    let folder = words.iter().find_map(|word| word.strip_prefix(ROOT))?;
    let folder = Path::new(OsStr::from_bytes(folder));
    let here = root.at(folder).ok().filter(|_| folder.is_absolute())?;
    let metadata = fs::symlink_metadata(here).ok()?;
    let is_private = metadata.is_dir() && metadata.uid() == 0 && metadata.mode() & 0o077 == 0;
    is_private.then(|| folder.to_owned())
}

/// What is known of a sandbox by its record. A field that is not there, or of another kind, is not known.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Known {
    shim_pid: Option<u32>,
    sandbox_pid: Option<u32>,
}

impl Known {
    /// None where a folder has no record.
    fn of(folder: &Path) -> Option<Self> {
        let path = folder.join(RECORD);
        fs::symlink_metadata(&path).ok()?;
        let text = files::read(&path).unwrap_or_default();
        Some(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Whether the sandbox of a folder, which lies `here`, has a shim or lives on without one. containerd needs the program for both.
    fn runs(&self, folder: &Path, here: &Path) -> bool {
        is_served(here) || self.lives(folder) || is_listened_to(here)
    }

    /// Whether its sentry is there: the process has to name the folder, since another one may have the number by now.
    fn lives(&self, folder: &Path) -> bool {
        let Some(pid) = self.sandbox_pid else {
            return false;
        };
        let mut argument = ROOT.to_vec();
        argument.extend_from_slice(folder.as_os_str().as_bytes());
        Process { pid }.words().contains(&argument)
    }
}

/// Whether there is a shim for a sandbox's folder. Only a refused connection says that there is none.
fn is_served(folder: &Path) -> bool {
    dial::knock(&folder.join(SOCKET)) != Err(Errno::ECONNREFUSED)
}

/// Whether somebody has another socket there, as the sentry has. It tells of one whose processes cannot be seen, as in a container that
/// has the node mounted.
fn is_listened_to(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_socket = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_socket());
    let mut sockets = entries.filter(is_socket);
    sockets.any(|socket| dial::is_alive(&socket.path()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn a_sandbox_runs_unless_its_shim_is_known_to_be_gone() {
        let base = tempfile::tempdir().expect("a folder");
        let root = Root::new(base.path()).expect("a root");
        let found = || sandboxes(&root).expect("a list");
        assert!(found().is_empty());
        let folder = base.path().join("run/bulkhead/0123456789abcdef");
        fs::create_dir_all(&folder).expect("mkdir");
        assert!(found().is_empty(), "a folder alone is no sandbox");
        fs::write(folder.join("bulkhead.json"), "{}").expect("write");
        assert_eq!(
            found(),
            [Running::Sandbox("/run/bulkhead/0123456789abcdef".into())]
        );
        let listener = UnixListener::bind(folder.join(node::names::METRICS_SOCKET)).expect("bind");
        assert_eq!(found().len(), 1);
        drop(listener);
        assert!(found().is_empty(), "nobody has the socket");
        let sentry = UnixListener::bind(folder.join("runsc-x.sock")).expect("bind");
        assert_eq!(found().len(), 1, "its sentry has one");
        drop(sentry);
        assert!(found().is_empty(), "nobody has either");
    }

    /// A process that is called something, with an argument that it leaves alone.
    fn process(program: &Path, argument: &str) -> Child {
        fs::copy("/bin/sh", program).expect("copy");
        let mut command = Command::new(program);
        command.args(["-c", "read line", argument]);
        processes::started(command.stdin(Stdio::piped()))
    }

    fn end(mut child: Child) {
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// A sandbox whose shim is gone: the socket has nobody.
    fn left(folder: &Path) {
        fs::create_dir_all(folder).expect("mkdir");
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).expect("chmod");
        drop(UnixListener::bind(folder.join(SOCKET)).expect("bind"));
    }

    #[test]
    fn a_sandbox_that_lives_on_without_its_shim_runs_wherever_it_was_made() {
        if !node::testing::has_root() {
            return;
        }
        let base = tempfile::tempdir().expect("a folder");
        let root = Root::new(base.path()).expect("a root");
        let found = || sandboxes(&root).expect("a list");
        // The second is where no policy puts one any more.
        for name in [
            "/run/bulkhead/0123456789abcdef",
            "/run/earlier/0123456789abcdef",
        ] {
            let folder = base.path().join(name.trim_start_matches('/'));
            left(&folder);
            let sentry = process(&base.path().join("sentry"), &format!("--root={name}"));
            let record = folder.join(RECORD);
            for pid in [sentry.id(), std::process::id()] {
                let text = format!("{{\"sandbox_pid\": {pid}, \"shim_pid\": 1}}");
                fs::write(&record, text).expect("write");
                let expected: &[_] = if pid == sentry.id() {
                    &[Running::Sandbox(name.into())]
                } else {
                    // Another process has the number.
                    &[]
                };
                assert_eq!(found(), expected, "{name}");
            }
            let text = format!("{{\"sandbox_pid\": {}}}", sentry.id());
            fs::write(&record, text).expect("write");
            end(sentry);
            assert!(found().is_empty(), "{name}: it has ended");
        }
    }

    #[test]
    fn a_folder_that_others_can_make_is_no_sandbox() {
        if !node::testing::has_root() {
            return;
        }
        let base = tempfile::tempdir().expect("a folder");
        let root = Root::new(base.path()).expect("a root");
        let folder = base.path().join("tmp/mine");
        left(&folder);
        let sentry = process(&base.path().join("sentry"), "--root=/tmp/mine");
        let text = format!("{{\"sandbox_pid\": {}}}", sentry.id());
        fs::write(folder.join(RECORD), text).expect("write");
        let found = || sandboxes(&root).expect("a list").len();
        let as_root = found();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("chmod");
        let of_all = found();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("chmod");
        std::os::unix::fs::chown(&folder, Some(65534), None).expect("chown");
        let of_nobody = found();
        end(sentry);
        assert_eq!((as_root, of_all, of_nobody), (1, 0, 0));
    }

    #[test]
    fn a_shim_counts_that_runs_from_a_file_of_this_root() {
        if !node::testing::has_root() {
            return;
        }
        let base = tempfile::tempdir().expect("a folder");
        let root = Root::new(base.path()).expect("a root");
        let found = || sandboxes(&root).expect("a list");
        let place = base.path().join(SHIM);
        let shim = process(&place, "-namespace");
        let other = process(&base.path().join("other"), SHIM);
        assert_eq!(found(), [Running::Shim(shim.id())]);
        // An upgrade has replaced it.
        fs::remove_file(&place).expect("remove");
        assert_eq!(found(), [Running::Shim(shim.id())]);
        // Its sandbox is known: one of both counts.
        let folder = base.path().join("run/bulkhead/0123456789abcdef");
        fs::create_dir_all(&folder).expect("mkdir");
        let text = format!("{{\"shim_pid\": {}}}", shim.id());
        fs::write(folder.join(RECORD), text).expect("write");
        assert_eq!(
            found(),
            [Running::Sandbox("/run/bulkhead/0123456789abcdef".into())]
        );
        fs::remove_dir_all(&folder).expect("remove");
        end(shim);
        assert!(found().is_empty(), "it has ended");
        end(other);
        // Nobody else's keeps a package on the node.
        fs::copy("/bin/sh", &place).expect("copy");
        for path in [base.path(), &place] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        let mut nobodys = Command::new(&place);
        nobodys.args(["-c", "read line"]).uid(65534).gid(65534);
        let nobodys = processes::started(nobodys.stdin(Stdio::piped()));
        let seen = found();
        end(nobodys);
        assert!(seen.is_empty(), "{seen:?}");
    }

    #[test]
    fn sandboxes_are_looked_for_where_handlers_policies_put_them() {
        let base = tempfile::tempdir().expect("a folder");
        let root = Root::new(base.path()).expect("a root");
        for folder in ["etc/bulkhead", "etc/containerd/conf.d"] {
            fs::create_dir_all(base.path().join(folder)).expect("mkdir");
        }
        let write = |path: &str, text: &str| {
            fs::write(base.path().join(path), text).expect("write");
        };
        write(
            "etc/containerd/config.toml",
            "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n",
        );
        let place = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes";
        let kind = "runtime_type = 'io.containerd.bulkhead.v1'";
        let handlers = format!(
            "version = 3\n[{place}.a]\n{kind}\n[{place}.a.options]\nConfigPath = '/etc/bulkhead/builds.toml'\n\
             [{place}.b]\n{kind}\n[{place}.b.options.runsc]\nroot = '/run/inline'\n\
             [{place}.c]\nruntime_type = 'io.containerd.runc.v2'\n[{place}.c.options.runsc]\nroot = '/run/other'\n"
        );
        write("etc/containerd/conf.d/x.toml", &handlers);
        write("etc/bulkhead/builds.toml", "runsc.root = \"/run/builds\"");
        let expected = ["/run/builds", "/run/bulkhead", "/run/inline"].map(PathBuf::from);
        assert_eq!(bases(&root).expect("folders"), expected);
        let folder = base.path().join("run/builds/0123456789abcdef");
        fs::create_dir_all(&folder).expect("mkdir");
        fs::write(folder.join(RECORD), "{}").expect("write");
        assert_eq!(sandboxes(&root).expect("a list").len(), 1);
    }

    #[test]
    fn sandboxes_are_looked_for_where_the_policy_puts_them() {
        let base = tempfile::tempdir().expect("a folder");
        let root = Root::new(base.path()).expect("a root");
        for folder in ["etc/bulkhead", "run/other/0123456789abcdef"] {
            fs::create_dir_all(base.path().join(folder)).expect("mkdir");
        }
        let policy = base.path().join("etc/bulkhead/network.toml");
        fs::write(policy, "runsc.root = \"/run/other\"").expect("write");
        let record = base.path().join("run/other/0123456789abcdef/bulkhead.json");
        fs::write(record, "{}").expect("write");
        assert_eq!(sandboxes(&root).expect("a list").len(), 1);
    }
}
