//! The testbed: a private containerd, and the folders that containerd, runtimes and tests use. Every path is short, since
//! an address of a unix socket ends at 108 bytes.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Client, NAMESPACE};
use crate::container::{self, Builder};
use crate::cri;
use crate::fifo::Streams;
use crate::patience::patience;
use crate::processes;
use crate::runtime::Runtime;

/// Where the root filesystem of all containers is mounted.
pub const IMAGE: &str = "/run/b/image";
/// Name of the image for `ctr run`.
pub const IMAGE_NAME: &str = "bulkhead.test/busybox:latest";
/// containerd's socket.
pub const SOCKET: &str = "/run/b/c.sock";
/// Searched before every other folder: `runsc` is here, and faults are put in its place.
pub const PATH_FOLDER: &str = "/run/b/path";
/// containerd's state: bundles are in there.
pub const STATE: &str = "/run/b/state";
const LOG: &str = "/run/b/log";

/// What containerd is to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Services {
    /// Tasks, as `ctr` and `nerdctl` use them.
    Tasks,
    /// Kubernetes' runtime interface as well.
    Cri,
    /// The same, with the handlers that the tests of a node use.
    Kubernetes,
}

/// containerd and its surroundings; there is one for all tests.
#[derive(Debug)]
pub struct Bed {
    /// The runtime under test.
    pub runtime: Runtime,
    /// On disk, for what is large.
    pub folder: PathBuf,
    /// What runs the async calls.
    tokio: tokio::runtime::Runtime,
    daemon: Mutex<Child>,
    client: Client,
    /// The real `runsc`, if there is one.
    pub runsc: Option<PathBuf>,
    count: AtomicU32,
    adopted: Mutex<Vec<u32>>,
}

/// Where tools are looked for: `BULKHEAD_TEST_PATH`, what `make` builds, then `PATH`.
fn search_path() -> Vec<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let mut path: Vec<PathBuf> = Vec::new();
    if let Some(first) = std::env::var_os("BULKHEAD_TEST_PATH") {
        path.extend(std::env::split_paths(&first));
    }
    path.extend([target.join("dist"), target.join("tools/bin")]);
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    path.into_iter()
        .map(|folder| folder.canonicalize().unwrap_or(folder))
        .collect()
}

/// Finds a tool.
#[must_use]
pub fn tool(name: &str) -> Option<PathBuf> {
    search_path()
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

impl Bed {
    /// Starts containerd for `runtime` and imports the image.
    ///
    /// # Panics
    /// When a tool is missing or containerd does not come up.
    #[must_use]
    pub fn start(folder: PathBuf, runtime: Runtime, services: Services) -> Self {
        for path in [PATH_FOLDER, STATE, LOG, "/run/lock"] {
            fs::create_dir_all(path).expect("make the testbed's folders");
        }
        // Only by this link is runsc found, so that a test can take it away. It is a copy, since a checkout may be anybody's
        // and a runsc that is not root's alone is refused.
        let runsc = tool("runsc").map(|from| {
            let copy = Path::new(PATH_FOLDER).join("real/runsc");
            fs::create_dir_all(copy.with_file_name("")).expect("make a folder");
            fs::copy(from, &copy).expect("copy runsc");
            copy
        });
        for name in ["containerd", "ctr", &runtime.binary(), "runsc"] {
            let found = if name == "runsc" {
                runsc.clone()
            } else {
                tool(name)
            };
            let Some(path) = found else {
                assert!(
                    name == "runsc" && !runtime.is_gvisor(),
                    "{name} is missing: make build tools"
                );
                continue;
            };
            symlink(path, Path::new(PATH_FOLDER).join(name)).expect("link the tools");
        }
        for helper in ["containerd-shim-runc-v2", "containerd-shim-bulkhead-v1"] {
            if let (Some(path), false) = (tool(helper), runtime.binary() == helper) {
                symlink(path, Path::new(PATH_FOLDER).join(helper)).expect("link the tools");
            }
        }
        let text = configuration(&folder, &runtime, services);
        fs::write("/run/b/log/config.toml", text).expect("configure containerd");
        let tokio = tokio::runtime::Runtime::new().expect("start the async runtime");
        let daemon = Mutex::new(spawn_containerd(runtime.needs_user_namespace()));
        let client = tokio.block_on(connect());
        let bed = Self {
            runtime,
            folder,
            tokio,
            daemon,
            client,
            runsc,
            count: AtomicU32::new(0),
            adopted: Mutex::default(),
        };
        bed.mount_image("busybox", Path::new(IMAGE));
        if services != Services::Tasks {
            for image in ["busybox", "pause"] {
                bed.import(cri::NAMESPACE, image);
            }
        }
        bed
    }

    /// Imports an image into a namespace of containerd.
    ///
    /// # Panics
    /// When it is not made or containerd does not take it.
    pub fn import(&self, namespace: &str, image: &str) {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/images");
        let folder = std::env::var_os("BULKHEAD_TEST_IMAGES").map_or(built, PathBuf::from);
        let archive = folder.join(format!("{image}.tar"));
        assert!(
            archive.is_file(),
            "{} is missing: make images",
            archive.display()
        );
        self.import_archive(namespace, &archive);
    }

    /// Imports an image from its archive.
    ///
    /// # Panics
    /// When containerd does not take it.
    pub fn import_archive(&self, namespace: &str, archive: &Path) {
        let archive = archive.display().to_string();
        // The later of two --namespace counts.
        self.ctr_ok(&[
            "--namespace",
            namespace,
            "image",
            "import",
            "--digests=false",
            &archive,
        ]);
    }

    /// Mounts an image for containers to share, to be read only, and returns where.
    ///
    /// # Panics
    /// When it is not made or cannot be mounted.
    #[must_use]
    pub fn image(&self, image: &str) -> PathBuf {
        let place = self.image_path(image);
        self.mount_image(image, &place);
        place
    }

    /// Where [`Bed::image`] mounts an image.
    #[must_use]
    pub fn image_path(&self, image: &str) -> PathBuf {
        self.folder.join("images").join(image)
    }

    fn mount_image(&self, image: &str, place: &Path) {
        fs::create_dir_all(place).expect("make a folder");
        self.import(NAMESPACE, image);
        let name = format!("bulkhead.test/{image}:latest");
        self.ctr_ok(&["image", "mount", &name, &place.display().to_string()]);
    }

    /// Runs to its end what a test does.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.tokio.block_on(work)
    }

    /// A connection to containerd.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A new connection, for after a restart of containerd.
    pub async fn new_client(&self) -> Client {
        connect().await
    }

    /// An id that no other test has.
    #[must_use]
    pub fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// A container that runs `args`.
    #[must_use]
    pub fn container(&self, args: &[&str]) -> Builder<'_> {
        Builder::new(self, self.id("c"), args)
    }

    /// A container that runs a shell script.
    #[must_use]
    pub fn shell(&self, script: &str) -> Builder<'_> {
        self.container(&["sh", "-c", script])
    }

    /// A container of a given id.
    #[must_use]
    pub fn named(&self, id: &str, args: &[&str]) -> Builder<'_> {
        Builder::new(self, id.to_owned(), args)
    }

    /// New streams.
    #[must_use]
    pub fn streams(&self, name: &str) -> Streams {
        Streams::new(self.streams_folder(name))
    }

    /// New streams whose outputs nobody has open.
    #[must_use]
    pub fn unopened_streams(&self, name: &str) -> Streams {
        Streams::unopened(self.streams_folder(name))
    }

    fn streams_folder(&self, name: &str) -> PathBuf {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        Path::new("/run/b/io").join(format!("{name}@{count}"))
    }

    /// The bundle of a container.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        Path::new(STATE)
            .join("io.containerd.runtime.v2.task")
            .join(NAMESPACE)
            .join(id)
    }

    /// Runs `ctr` in the tests' namespace.
    #[must_use]
    pub fn ctr(&self, args: &[&str]) -> Output {
        // Less than the harness gives a test: nothing else can end one that waits for a command.
        self.ctr_within(patience(Duration::from_secs(100)), args)
    }

    /// Runs `ctr` for so long at most; it is killed then, and has no exit code.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn ctr_within(&self, limit: Duration, args: &[&str]) -> Output {
        let limit = format!("{}s", limit.as_secs());
        // A client that waits for a stream minds no `--timeout`.
        let mut command = Command::new("timeout");
        command
            .args(["-s", "KILL", &limit])
            .arg(tool("ctr").expect("ctr"))
            .args(["--address", SOCKET, "--namespace", NAMESPACE])
            .args(["--timeout", &limit])
            .args(args)
            .stdin(Stdio::null());
        command
            .env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "true")
            .output()
            .expect("run ctr")
    }

    /// Runs `ctr` and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ctr_ok(&self, args: &[&str]) -> String {
        let output = self.ctr(args);
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(
            output.status.success(),
            "ctr {args:?}: {}: {stderr}{stdout}",
            output.status
        );
        stdout.into_owned()
    }

    fn annotations(&self) -> Vec<String> {
        let annotations = self.runtime.annotations().into_iter();
        annotations
            .map(|(key, value)| format!("--annotation={key}={value}"))
            .collect()
    }

    /// `run` and its flags for `ctr`: the runtime under test, what it needs, and these.
    #[must_use]
    pub fn run_flags(&self, flags: &[&str]) -> Vec<String> {
        let runtime = self.runtime.name.clone();
        let mut all = vec!["run".to_owned(), "--runtime".to_owned(), runtime];
        all.extend(self.annotations());
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        all
    }

    /// `ctr run` of the runtime under test, with what it needs.
    #[must_use]
    pub fn ctr_run<'a>(&'a self, flags: &[&'a str], id: &'a str, args: &[&'a str]) -> Output {
        let flags = self.run_flags(flags);
        let mut all: Vec<&str> = flags.iter().map(String::as_str).collect();
        all.extend([IMAGE_NAME, id]);
        all.extend(args);
        self.ctr(&all)
    }

    /// `ctr run -t` in a terminal of 33 rows and 101 columns, into which `typed` is typed.
    ///
    /// # Panics
    /// When there is no `script`, which makes the terminal (Debian: bsdutils).
    #[must_use]
    pub fn ctr_in_a_terminal(&self, id: &str, program: &str, typed: &str) -> Output {
        let ctr = tool("ctr").expect("ctr").display().to_string();
        let annotations = self.annotations().join(" ");
        let line = format!(
            "stty rows 33 cols 101; exec {ctr} --address {SOCKET} --namespace {NAMESPACE} \
             run --runtime {} {annotations} --rm -t {IMAGE_NAME} {id} {program}",
            self.runtime.name
        );
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        let child = command
            .env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "true")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.expect("run script");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(typed.as_bytes()).expect("type");
        // The pipe stays open until the end: its closing would type ctrl-D.
        let output = child.wait_with_output().expect("wait for script");
        drop(stdin);
        output
    }

    /// Processes that are the testbed's own.
    #[must_use]
    pub fn known_processes(&self) -> Vec<u32> {
        let daemon = self.daemon.lock().expect("unpoisoned").id();
        let mut known = vec![1, std::process::id(), daemon];
        known.extend(self.adopted.lock().expect("unpoisoned").iter());
        known
    }

    /// Takes a process for one of the testbed's own from now on.
    ///
    /// # Panics
    /// Never.
    pub fn adopt(&self, pid: u32) {
        self.adopted.lock().expect("unpoisoned").push(pid);
    }

    /// SIGKILL to containerd.
    ///
    /// # Panics
    /// When it is not there.
    pub fn kill_containerd(&self) {
        let mut daemon = self.daemon.lock().expect("unpoisoned");
        daemon.kill().expect("kill containerd");
        daemon.wait().expect("wait for containerd");
    }

    /// Ends containerd as a service manager does.
    ///
    /// # Panics
    /// When it is not there.
    pub fn stop_containerd(&self) {
        let mut daemon = self.daemon.lock().expect("unpoisoned");
        let pid = Pid::from_raw(daemon.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("end containerd");
        daemon.wait().expect("wait for containerd");
    }

    /// containerd's pid.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn containerd(&self) -> i32 {
        self.daemon.lock().expect("unpoisoned").id().cast_signed()
    }

    /// Starts containerd again and waits until it answers.
    pub async fn start_containerd(&self) {
        *self.daemon.lock().expect("unpoisoned") =
            spawn_containerd(self.runtime.needs_user_namespace());
        connect().await;
    }

    /// Deletes a container whatever its state, as `ctr task rm -f` does.
    ///
    /// # Panics
    /// When that fails.
    pub async fn remove(&self, id: &str) {
        container::remove(&self.client, id)
            .await
            .unwrap_or_else(|error| panic!("remove {id}: {error}"));
    }

    /// After a failed test: deletes all containers, then kills what is left and unmounts it, so that the next test begins
    /// well.
    pub fn sweep(&self, left: &[String]) {
        self.block_on(async {
            for id in self.client.list_containers().await.unwrap_or_default() {
                let _ = tokio::time::timeout(
                    Duration::from_secs(20),
                    container::remove(&self.client, &id),
                )
                .await;
            }
        });
        let known = self.known_processes();
        for process in processes::all() {
            if !known
                .iter()
                .any(|pid| i64::from(*pid) == i64::from(process.pid))
            {
                processes::sigkill(process.pid);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        for place in left
            .iter()
            .rev()
            .filter_map(|line| line.strip_prefix("mount ")?.split(' ').next())
        {
            let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.kill_containerd();
    }
}

fn configuration(folder: &Path, runtime: &Runtime, services: Services) -> String {
    // Nothing but what the tests need.
    let mut unused = vec![
        "io.containerd.internal.v1.opt",
        "io.containerd.internal.v1.restart",
        "io.containerd.internal.v1.tracing",
        "io.containerd.nri.v1.nri",
        "io.containerd.snapshotter.v1.blockfile",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.erofs",
        "io.containerd.snapshotter.v1.zfs",
        "io.containerd.tracing.processor.v1.otlp",
    ];
    let more = if services != Services::Tasks {
        cri::configuration(folder, runtime, services, is_before_2())
    } else {
        unused.extend([
            "io.containerd.cri.v1.images",
            "io.containerd.cri.v1.runtime",
            "io.containerd.grpc.v1.cri",
            "io.containerd.podsandbox.controller.v1",
        ]);
        String::new()
    };
    let version = if is_before_2() { 2 } else { 3 };
    format!(
        "version = {version}\nroot = {:?}\nstate = {STATE:?}\noom_score = 0\ndisabled_plugins = {unused:?}\n\
         [grpc]\naddress = {SOCKET:?}\n{more}",
        folder.join("root").display().to_string(),
    )
}

/// Whether this containerd is a 1.x, whose configuration has another version, and which knows fewer codes of a shim's errors.
///
/// # Panics
/// When it cannot be asked.
#[must_use]
pub fn is_before_2() -> bool {
    let containerd = Path::new(PATH_FOLDER).join("containerd");
    let output = Command::new(containerd).arg("--version").output();
    let text = output.expect("run containerd").stdout;
    // "containerd MODULE VERSION REVISION"
    let text = String::from_utf8_lossy(&text);
    let version = text.split_whitespace().nth(2).unwrap_or_default();
    version.trim_start_matches('v').starts_with("1.")
}

fn spawn_containerd(in_user_namespace: bool) -> Child {
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

async fn connect() -> Client {
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
