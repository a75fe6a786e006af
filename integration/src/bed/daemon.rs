//! The process of containerd.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clients::client::Client;
use crate::ground::patience::patience;
use crate::ground::places::{PATH_FOLDER, SOCKET};

/// containerd, which tests end and start again.
#[derive(Debug)]
pub(super) struct Daemon {
    in_user_namespace: bool,
    process: Mutex<Child>,
}

impl Daemon {
    /// Starts it.
    pub(super) fn spawn(in_user_namespace: bool) -> Self {
        let process = Mutex::new(spawn(in_user_namespace));
        Self {
            in_user_namespace,
            process,
        }
    }

    /// Starts it again.
    pub(super) fn respawn(&self) {
        *self.process() = spawn(self.in_user_namespace);
    }

    /// Its pid.
    pub(super) fn pid(&self) -> u32 {
        self.process().id()
    }

    /// SIGKILL to it.
    pub(super) fn kill(&self) {
        let mut process = self.process();
        process.kill().expect("kill containerd");
        process.wait().expect("wait for containerd");
    }

    /// Ends it as a service manager does.
    pub(super) fn stop(&self) {
        let mut process = self.process();
        let pid = Pid::from_raw(process.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("end containerd");
        process.wait().expect("wait for containerd");
    }

    fn process(&self) -> MutexGuard<'_, Child> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn(in_user_namespace: bool) -> Child {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open("/run/b/log/containerd.log")
        .expect("open the log");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = if in_user_namespace {
        // Waits for its map, then becomes containerd with mounts and a network of its own: one pid through all of it.
        let script = "while ! [ -e /run/b/mapped ]; do sleep 0.05; done; \
                      exec unshare --mount --net --propagation private /run/b/path/containerd \
                      --config /run/b/log/config.toml";
        let mut command = Command::new("unshare");
        command.args(["--user", "sh", "-c", script]);
        command
    } else {
        let mut command = Command::new(Path::new(PATH_FOLDER).join("containerd"));
        command.args(["--config", "/run/b/log/config.toml"]);
        command
    };
    let child = command
        .env("PATH", format!("{PATH_FOLDER}:{path}"))
        // A shim that lets its libraries log to stderr spoils its answer to containerd.
        .envs([
            ("RUST_LOG", "trace"),
            ("RUST_BACKTRACE", "1"),
            ("GODEBUG", "inittrace=0"),
        ])
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("share the log"))
        .stderr(log)
        .spawn()
        .expect("start containerd");
    if in_user_namespace {
        map_root(child.id());
    }
    child
}

/// Makes root of a new user namespace out of root. The map leaves out the last ids: a whole one counts as none.
fn map_root(pid: u32) {
    // unshare(1) has made the namespace when it has become the shell.
    std::thread::sleep(Duration::from_millis(300));
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), "0 0 65536").expect("map the ids");
    }
    fs::write("/run/b/mapped", "").expect("let containerd start");
}

/// Waits until containerd answers.
pub(super) async fn connect() -> Client {
    let deadline = Instant::now() + patience(Duration::from_secs(20));
    loop {
        if let Ok(client) = Client::connect(Path::new(SOCKET)).await
            && client.list_containers().await.is_ok()
        {
            return client;
        }
        assert!(
            Instant::now() < deadline,
            "containerd does not answer within 20 s: see its log"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
