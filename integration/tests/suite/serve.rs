//! The serving shim: whom it answers, what a signal does to it, and when it ends by itself.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{StateRequest, StateResponse};
use containerd_shim_protos::ttrpc::Code;
use integration::bed::Bed;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use integration::shim::{self, Shim};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use integration::cases;

cases! {
    Needs::Bulkhead => [
        nobody_but_root_is_answered_whatever_the_sockets_mode,
        a_shim_without_descriptors_left_neither_spins_nor_dies,
        a_signal_to_a_shim_with_a_container_is_ignored,
        a_signal_to_a_shim_without_a_container_ends_it,
        a_shim_without_a_container_and_a_client_ends,
        a_shim_without_a_container_stays_for_its_client,
    ],
}

/// What a connection of uid 1000 reads: nothing, to its end.
fn read_as_nobody(socket: &Path) -> std::io::Result<Vec<u8>> {
    let user = rustix::thread::Uid::from_raw(1000);
    // Of this thread alone.
    rustix::thread::set_thread_res_uid(user, user, user)?;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(text)
}

async fn nobody_but_root_is_answered_whatever_the_sockets_mode(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let socket = socket_of(&Shim::address(bed, &container.id));
    // Its folder is nobody's to enter, either.
    let open = PathBuf::from("/run/open.sock");
    fs::rename(&socket, &open).expect("move the socket");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).expect("chmod");
    let path = open.clone();
    let read = std::thread::spawn(move || read_as_nobody(&path));
    let read = read
        .join()
        .expect("joined")
        .expect("the end, not a timeout");
    assert_eq!(read, b"");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::rename(&open, &socket).expect("put the socket back");
    let done = container.exec("e", &["echo", "alive"]).finish().await;
    assert_eq!(done.stdout, "alive\n");
    container.remove().await;
}

fn socket_of(address: &str) -> PathBuf {
    PathBuf::from(address.trim_start_matches("unix://"))
}

fn shim_of(id: &str) -> Pid {
    let shims = processes::of(Role::Shim, id);
    assert_eq!(shims.len(), 1, "{shims:?}");
    Pid::from_raw(shims[0].pid)
}

/// The limit of open files that a process has, set to another where one is given.
fn open_files(pid: Pid, limit: Option<usize>) -> usize {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), "--raw", "--noheadings"]);
    match limit {
        Some(limit) => command.arg(format!("--nofile={limit}:")),
        None => command.args(["--nofile", "--output", "SOFT"]),
    };
    let output = command.output().expect("run prlimit (Debian: util-linux)");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    limit.unwrap_or_else(|| text.trim().parse().expect("a number"))
}

/// Hundredths of a second of CPU time.
fn cpu_time(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("read its times");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    // The state is field 3, what it used itself 14 and 15.
    let times = fields.split_whitespace().skip(11).take(2);
    times
        .map(|time| time.parse::<u64>().expect("a number"))
        .sum()
}

async fn a_shim_without_descriptors_left_neither_spins_nor_dies(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let shim = shim_of(&container.id);
    let socket = socket_of(&Shim::address(bed, &container.id));
    let before = open_files(shim, None);
    let open = processes::descriptors(shim.as_raw()).expect("its descriptors");
    open_files(shim, Some(open + 2));
    let connect = |_| UnixStream::connect(&socket).expect("a place in the queue");
    let crowd: Vec<_> = (0..8).map(connect).collect();
    let began = cpu_time(shim);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = cpu_time(shim) - began;
    assert!(used < 20, "{used} hundredths of a second in two");
    open_files(shim, Some(before));
    drop(crowd);
    let done = container.exec("e", &["echo", "alive"]).finish().await;
    assert_eq!(done.stdout, "alive\n");
    container.remove().await;
}

async fn a_signal_to_a_shim_with_a_container_is_ignored(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let shim = shim_of(&container.id);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        kill(shim, signal).expect("signal the shim");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(shim_of(&container.id), shim, "{signal}");
        let done = container.exec("e", &["echo", "alive"]).finish().await;
        assert_eq!(done.stdout, "alive\n", "{signal}");
    }
    container.remove().await;
}

/// A shim that `start` has started and nobody has asked for anything.
struct Lone {
    id: String,
    bundle: PathBuf,
    address: String,
}

impl Lone {
    fn start(bed: &Bed) -> Self {
        let id = bed.id("lone");
        let bundle = crate::start::bundle(bed, &id);
        let args = [&shim::flags(&id)[..], &["start"]].concat();
        let output = shim::run(bed, &bundle, &args, &crate::start::params(&id));
        let address = crate::start::answer(&output)["address"].clone();
        Self {
            id,
            bundle,
            address: address.as_str().expect("an address").to_owned(),
        }
    }

    fn is_there(&self) -> bool {
        !processes::of(Role::Shim, &self.id).is_empty()
    }

    async fn ends_within(self, limit: Duration) {
        eventually("the shim ends", limit, || !self.is_there()).await;
        let socket = socket_of(&self.address);
        assert!(!socket.exists(), "{} stays", socket.display());
        fs::remove_dir_all(self.bundle).expect("remove the bundle");
    }
}

async fn a_signal_to_a_shim_without_a_container_ends_it(bed: &Bed) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let lone = Lone::start(bed);
        // Its client keeps it from ending by itself, and knows that it serves by now.
        let client = Shim::at(&lone.address).await;
        let body = StateRequest {
            id: lone.id.clone(),
            ..StateRequest::default()
        };
        let state = client.call::<StateResponse>(3, "State", &body).await;
        assert_eq!(state.expect_err("no container"), Code::NOT_FOUND);
        kill(shim_of(&lone.id), signal).expect("signal the shim");
        lone.ends_within(Duration::from_secs(3)).await;
        drop(client);
    }
}

async fn a_shim_without_a_container_and_a_client_ends(bed: &Bed) {
    let lone = Lone::start(bed);
    let began = Instant::now();
    // containerd has the time to connect.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(lone.is_there(), "gone after {:?}", began.elapsed());
    lone.ends_within(Duration::from_secs(8)).await;
}

async fn a_shim_without_a_container_stays_for_its_client(bed: &Bed) {
    let lone = Lone::start(bed);
    let client = Shim::at(&lone.address).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(lone.is_there(), "gone with a client");
    drop(client);
    lone.ends_within(Duration::from_secs(10)).await;
}
