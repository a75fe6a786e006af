//! The shim itself, without containerd between: its command line, and its ttrpc socket.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim_async::Client;
use containerd_shim_protos::ttrpc::{Code, Error, proto};

use crate::bed::Bed;
use crate::clients::client::NAMESPACE;
use crate::ground::places::{PATH_FOLDER, SOCKET};

/// Calls of a shim's Task service.
#[derive(Clone)]
pub struct Shim {
    client: Client,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shim").finish_non_exhaustive()
    }
}

impl Shim {
    /// The address of a container's shim, as it told containerd: 2.x writes that down, for 1.x the shim does.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn address(bed: &Bed, id: &str) -> String {
        let read = |name: &str| std::fs::read_to_string(bed.bundle(id).join(name));
        let Ok(text) = read("bootstrap.json") else {
            return read("address").expect("read the shim's address");
        };
        let text: serde_json::Value = serde_json::from_str(&text).expect("parse bootstrap.json");
        text["address"].as_str().expect("an address").to_owned()
    }

    /// Connects to the shim of a container.
    ///
    /// # Panics
    /// When there is none.
    pub async fn of(bed: &Bed, id: &str) -> Self {
        Self::at(&Self::address(bed, id)).await
    }

    /// Connects to an address.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn at(address: &str) -> Self {
        Self {
            client: Client::connect(address).await.expect("connect to the shim"),
        }
    }

    /// Calls a method of `containerd.task.v2.Task` or `v3`.
    ///
    /// # Errors
    /// The code of the shim's answer.
    pub async fn call<T: Message>(
        &self,
        version: u32,
        method: &str,
        body: &impl Message,
    ) -> Result<T, Code> {
        self.raw(version, method, body.write_to_bytes().expect("encode"))
            .await
            .map(|answer| T::parse_from_bytes(&answer).expect("decode the answer"))
    }

    /// The same, with the message of a refusal.
    ///
    /// # Errors
    /// The code and the message of the shim's answer.
    pub async fn told<T: Message>(
        &self,
        version: u32,
        method: &str,
        body: &impl Message,
    ) -> Result<T, (Code, String)> {
        let payload = body.write_to_bytes().expect("encode");
        let answer = self.request(version, method, payload).await;
        answer.map(|answer| T::parse_from_bytes(&answer).expect("decode the answer"))
    }

    /// Calls a method with any bytes.
    ///
    /// # Errors
    /// The code of the shim's answer.
    pub async fn raw(&self, version: u32, method: &str, payload: Vec<u8>) -> Result<Vec<u8>, Code> {
        let answer = self.request(version, method, payload).await;
        answer.map_err(|(code, _)| code)
    }

    async fn request(
        &self,
        version: u32,
        method: &str,
        payload: Vec<u8>,
    ) -> Result<Vec<u8>, (Code, String)> {
        let request = proto::Request {
            service: format!("containerd.task.v{version}.Task"),
            method: method.to_owned(),
            payload,
            timeout_nano: 20_000_000_000,
            ..proto::Request::default()
        };
        match self.client.request(request).await {
            Ok(response) => Ok(response.payload),
            Err(Error::RpcStatus(status)) => Err((status.code(), status.message)),
            Err(error) => Err((Code::UNAVAILABLE, error.to_string())),
        }
    }
}

/// Runs the shim's binary as containerd does, in `folder`, with `input` on its stdin.
///
/// # Panics
/// When it does not end within 20 seconds.
#[must_use]
pub fn run(bed: &Bed, folder: &Path, args: &[&str], input: &[u8]) -> Output {
    let program = binary(bed);
    give(spawn(folder, Command::new(program), args), args, input)
}

/// The same where the shim finds itself spared by the kernel, as little as may be, as containerd is. Nobody may lower a score
/// everywhere that tests run: what it reads is not its own, which is 500.
///
/// # Panics
/// When it does not end within 20 seconds.
#[must_use]
pub fn run_spared(bed: &Bed, folder: &Path, args: &[&str]) -> Output {
    let score = bed.folder.join(bed.id("score"));
    std::fs::write(&score, "-1\n").expect("write the score");
    let script = "echo 500 >/proc/self/oom_score_adj && mount -n --bind \"$0\" /proc/$$/oom_score_adj && exec \"$@\"";
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--propagation", "slave", "sh", "-c", script]);
    shell.arg(score).arg(binary(bed));
    give(spawn(folder, shell, args), args, b"")
}

fn give(mut child: Child, args: &[&str], input: &[u8]) -> Output {
    // A program that reads no stdin may be gone already.
    let _ = child.stdin.take().expect("stdin").write_all(input);
    finish(child, args)
}

/// The same with nothing on its stdin, which stays open until what is returned is dropped.
///
/// # Panics
/// When it does not end within 20 seconds.
#[must_use]
pub fn run_open(bed: &Bed, folder: &Path, args: &[&str]) -> (Output, ChildStdin) {
    let mut child = spawn(folder, Command::new(binary(bed)), args);
    let stdin = child.stdin.take().expect("stdin");
    (finish(child, args), stdin)
}

fn binary(bed: &Bed) -> PathBuf {
    Path::new(PATH_FOLDER).join(bed.runtime.binary())
}

fn spawn(folder: &Path, mut program: Command, args: &[&str]) -> Child {
    let path = std::env::var("PATH").unwrap_or_default();
    program
        .args(args)
        .current_dir(folder)
        .env("PATH", format!("{PATH_FOLDER}:{path}"))
        .env("NAMESPACE", NAMESPACE)
        .env("GRPC_ADDRESS", SOCKET)
        .env("TTRPC_ADDRESS", format!("{SOCKET}.ttrpc"))
        .envs([
            ("GOMAXPROCS", "2"),
            ("MAX_SHIM_VERSION", "2"),
            ("RUST_LOG", "trace"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run the shim")
}

fn finish(child: Child, args: &[&str]) -> Output {
    let pid = i32::try_from(child.id()).expect("a pid");
    let (done, watch) = std::sync::mpsc::channel::<()>();
    let watcher = std::thread::spawn(move || {
        if watch.recv_timeout(Duration::from_secs(20))
            == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            crate::look::processes::sigkill(pid);
        }
    });
    let began = Instant::now();
    let output = child.wait_with_output().expect("wait for the shim");
    drop(done);
    watcher.join().expect("the watcher ends");
    assert!(
        began.elapsed() < Duration::from_secs(19),
        "{args:?} did not end: {output:?}"
    );
    output
}

/// The flags that containerd gives for an action on a container.
#[must_use]
pub fn flags(id: &str) -> Vec<&str> {
    vec![
        "-namespace",
        NAMESPACE,
        "-address",
        SOCKET,
        "-publish-binary",
        "containerd",
        "-id",
        id,
    ]
}
