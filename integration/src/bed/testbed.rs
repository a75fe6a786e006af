//! The testbed: one containerd for all tests, and what every test asks of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::bed::configuration::{self, Services};
use crate::bed::daemon::{Daemon, connect};
use crate::bed::images;
use crate::clients::client::{Client, NAMESPACE};
use crate::clients::fifo::Streams;
use crate::clients::{cri, ctr};
use crate::ground::places::{IMAGE, LOG, PATH_FOLDER, STATE, tool};
use crate::ground::runtime::Runtime;
use crate::look::processes;

/// containerd and its surroundings; there is one for all tests.
#[derive(Debug)]
pub struct Bed {
    /// The runtime under test.
    pub runtime: Runtime,
    /// On disk, for what is large.
    pub folder: PathBuf,
    /// What runs the async calls.
    tokio: tokio::runtime::Runtime,
    daemon: Daemon,
    client: Client,
    /// The real `runsc`, if there is one.
    pub runsc: Option<PathBuf>,
    count: AtomicU32,
    adopted: Mutex<Vec<u32>>,
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
        let runsc = link_tools(&runtime);
        let text = configuration::of(&folder, &runtime, services);
        fs::write("/run/b/log/config.toml", text).expect("configure containerd");
        let tokio = tokio::runtime::Runtime::new().expect("start the async runtime");
        let daemon = Daemon::spawn(runtime.needs_user_namespace());
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
        images::mount("busybox", Path::new(IMAGE));
        if services != Services::Tasks {
            for image in ["busybox", "pause"] {
                images::import(cri::NAMESPACE, image);
            }
        }
        bed
    }

    /// Imports an image into a namespace of containerd.
    ///
    /// # Panics
    /// When it is not made or containerd does not take it.
    pub fn import(&self, namespace: &str, image: &str) {
        images::import(namespace, image);
    }

    /// Imports an image from its archive.
    ///
    /// # Panics
    /// When containerd does not take it.
    pub fn import_archive(&self, namespace: &str, archive: &Path) {
        images::import_archive(namespace, archive);
    }

    /// Mounts an image for containers to share, to be read only, and returns where.
    ///
    /// # Panics
    /// When it is not made or cannot be mounted.
    #[must_use]
    pub fn image(&self, image: &str) -> PathBuf {
        let place = self.image_path(image);
        images::mount(image, &place);
        place
    }

    /// Where [`Bed::image`] mounts an image.
    #[must_use]
    pub fn image_path(&self, image: &str) -> PathBuf {
        self.folder.join("images").join(image)
    }

    /// Runs `ctr` in the tests' namespace.
    #[must_use]
    pub fn ctr(&self, args: &[&str]) -> Output {
        ctr::run(args)
    }

    /// Runs `ctr` for so long at most; it is killed then, and has no exit code.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn ctr_within(&self, limit: Duration, args: &[&str]) -> Output {
        ctr::run_within(limit, args)
    }

    /// Runs `ctr` and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ctr_ok(&self, args: &[&str]) -> String {
        ctr::ok(args)
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

    /// Processes that are the testbed's own.
    #[must_use]
    pub fn known_processes(&self) -> Vec<u32> {
        let mut known = vec![1, std::process::id(), self.daemon.pid()];
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
        self.daemon.kill();
    }

    /// Ends containerd as a service manager does.
    ///
    /// # Panics
    /// When it is not there.
    pub fn stop_containerd(&self) {
        self.daemon.stop();
    }

    /// containerd's pid.
    #[must_use]
    pub fn containerd(&self) -> i32 {
        self.daemon.pid().cast_signed()
    }

    /// Starts containerd again and waits until it answers.
    pub async fn start_containerd(&self) {
        self.daemon.respawn();
        connect().await;
    }

    /// Deletes a container whatever its state, as `ctr task rm -f` does.
    ///
    /// # Panics
    /// When that fails.
    pub async fn remove(&self, id: &str) {
        self.client
            .remove(id)
            .await
            .unwrap_or_else(|error| panic!("remove {id}: {error}"));
    }

    /// After a failed test: deletes all containers, then kills what is left and unmounts it, so that the next test begins
    /// well.
    pub fn sweep(&self, left: &[String]) {
        self.block_on(async {
            for id in self.client.list_containers().await.unwrap_or_default() {
                let _ =
                    tokio::time::timeout(Duration::from_secs(20), self.client.remove(&id)).await;
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

/// Puts the tools where containerd finds them, and returns the real `runsc`.
fn link_tools(runtime: &Runtime) -> Option<PathBuf> {
    let link = |name: &str, path: &Path| {
        symlink(path, Path::new(PATH_FOLDER).join(name)).expect("link the tools");
    };
    // Only by this link is runsc found, so that a test can take it away. It is a copy, since a checkout may be anybody's
    // and a runsc that is not root's alone is refused.
    let runsc = tool("runsc").map(|from| {
        let copy = Path::new(PATH_FOLDER).join("real/runsc");
        fs::create_dir_all(copy.with_file_name("")).expect("make a folder");
        fs::copy(from, &copy).expect("copy runsc");
        copy
    });
    match &runsc {
        Some(path) => link("runsc", path),
        None => assert!(!runtime.is_gvisor(), "runsc is missing: make build tools"),
    }
    for name in ["containerd", "ctr", &runtime.binary()] {
        let path = tool(name).unwrap_or_else(|| panic!("{name} is missing: make build tools"));
        link(name, &path);
    }
    for helper in ["containerd-shim-runc-v2", "containerd-shim-bulkhead-v1"] {
        if let (Some(path), false) = (tool(helper), runtime.binary() == helper) {
            link(helper, &path);
        }
    }
    runsc
}
