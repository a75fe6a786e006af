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
use integration::patience::patience;
use integration::policy::NodePolicy;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use integration::shim::{self, Shim};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use integration::cases;

cases! {
    Needs::Bulkhead => [
        nobody_but_root_is_answered_whatever_the_sockets_mode,
        the_log_has_no_line_for_each_probe_and_each_line_has_its_sandbox,
        a_shim_without_descriptors_left_neither_spins_nor_dies,
        small_writes_cost_no_more_than_large_ones,
        a_signal_to_a_shim_with_a_container_is_ignored,
        a_signal_to_a_shim_whose_sandbox_has_ended_ends_it,
        a_signal_to_a_shim_without_a_container_ends_it,
        a_shim_without_a_container_and_a_client_ends,
        a_shim_without_a_container_stays_for_its_client,
        a_shim_that_is_about_to_end_stays_for_who_comes,
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

/// As the kubelet probes: the same exec again and again, and containerd kills each once more when it has ended.
async fn the_log_has_no_line_for_each_probe_and_each_line_has_its_sandbox(bed: &Bed) {
    let folder = bed.folder.join(bed.id("log"));
    fs::create_dir_all(&folder).expect("make a folder");
    let policy = format!("log.folder = {:?}", folder.display());
    let container = bed.container(&["sleep", "1000"]).policy("", &policy);
    let container = container.run().await.expect("run");
    let log = || {
        let file = fs::read_dir(&folder).expect("list").flatten().next();
        fs::read_to_string(file.expect("a log").path()).expect("read")
    };
    let probe = async |name: &str| {
        let exec = container.exec(name, &["true"]).with(|process| {
            process["user"]["umask"] = 0o77.into();
        });
        let exec = exec.run().await.expect("run");
        exec.wait().await.expect("wait");
        exec.kill(9).await.expect_err("it has ended");
        exec.delete().await.expect("delete");
        exec.kill(9).await.expect_err("it has gone");
    };
    probe("first").await;
    let first = log();
    assert!(first.contains("umask: asked 0o77"), "{first}");
    for name in ["second", "third"] {
        probe(name).await;
    }
    assert_eq!(log(), first);
    // A signal, and what has gone wrong for it.
    let shim = shim_of(&container.id);
    kill(shim, Signal::SIGTERM).expect("SIGTERM");
    eventually("it is told", Duration::from_secs(5), || log() != first).await;
    container.remove().await;
    let log = log();
    let own = format!(" sandbox={}", container.id);
    assert!(log.lines().all(|line| line.ends_with(&own)), "{log}");
    fs::remove_dir_all(folder).expect("remove");
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

/// In a shutdown of the node the signal reaches both at once, and nobody deletes anything before the shim has to be gone.
async fn a_signal_to_a_shim_whose_sandbox_has_ended_ends_it(bed: &Bed) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for before in [true, false] {
            let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
            let shim = shim_of(&container.id);
            let sandbox = nix::unistd::Pid::from_raw(container.pid.cast_signed());
            if before {
                kill(sandbox, Signal::SIGKILL).expect("kill the sandbox");
                assert_eq!(container.wait().await.expect("wait").status, 137);
                kill(shim, signal).expect("signal the shim");
            } else {
                kill(shim, signal).expect("signal the shim");
                tokio::time::sleep(Duration::from_millis(500)).await;
                assert_eq!(shim_of(&container.id), shim, "{signal}");
                kill(sandbox, Signal::SIGKILL).expect("kill the sandbox");
            }
            let limit = Duration::from_secs(4);
            eventually("the shim ends", limit, || {
                processes::of(Role::Shim, &container.id).is_empty()
            })
            .await;
            // containerd sees it go and cleans up by the `delete` action.
            let code = container.delete().await.map(|exit| exit.status);
            assert!(
                code.as_ref().is_ok_and(|code| *code == 137) || code.is_err(),
                "{code:?}"
            );
        }
    }
}

/// How many reads a process has made (proc_pid_io(5)).
fn reads(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).expect("read its counts");
    let reads = text.lines().find_map(|line| line.strip_prefix("syscr: "));
    reads.expect("a count").parse().expect("a number")
}

/// Each byte by itself: what counts is how often the shim wakes for them.
async fn small_writes_cost_no_more_than_large_ones(bed: &Bed) {
    let _policy = NodePolicy::set("limits.output_mib_per_second = 1");
    let script = "exec dd if=/dev/zero bs=1 2>/dev/null";
    let container = bed.shell(script).run().await.expect("run");
    let shim = shim_of(&container.id);
    // A second's worth is free.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let began = reads(shim);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let made = reads(shim) - began;
    // 256 pieces of 4 KiB a second, and what else it does.
    assert!(made < 4 * 3 * 256, "{made} reads in three seconds");
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
        let bundle = crate::life::start::bundle(bed, &id);
        let args = [&shim::flags(&id)[..], &["start"]].concat();
        let output = shim::run(bed, &bundle, &args, &crate::life::start::params(&id));
        let address = crate::life::start::answer(&output)["address"].clone();
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

/// While it waits for the lock, which the start of another container holds on a busy node.
async fn a_shim_that_is_about_to_end_stays_for_who_comes(bed: &Bed) {
    let lone = Lone::start(bed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let socket = socket_of(&lone.address);
    let folder = fs::File::open(socket.parent().expect("a folder")).expect("open the folder");
    let held = Flock::lock(folder, FlockArg::LockExclusive).expect("lock the folder");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let client = Shim::at(&lone.address).await;
    drop(held);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let body = StateRequest {
        id: lone.id.clone(),
        ..StateRequest::default()
    };
    let state = client.call::<StateResponse>(3, "State", &body).await;
    assert_eq!(state.expect_err("no container"), Code::NOT_FOUND);
    assert!(socket.exists(), "its socket has gone");
    drop(client);
    lone.ends_within(patience(Duration::from_secs(10))).await;
}
