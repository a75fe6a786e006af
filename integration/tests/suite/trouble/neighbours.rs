//! Neighbours that hang: what a pod, a client or containerd can make slow holds up nobody else.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use containerd_client::tonic::Code;
use containerd_shim_protos::api::{
    DeleteRequest, DeleteResponse, Empty, KillRequest, StateRequest, StateResponse, Status,
};
use integration::bed::{Bed, SOCKET};
use integration::patience::patience;
use integration::processes::{self, Role};
use integration::runtime::Needs;
use integration::shim::{self, Shim};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};

use integration::cases;

use crate::life::pod::{end, member, pod};
use crate::mounts::binds::bound;
use crate::trouble::faults::hurried;

cases! {
    Needs::Any => [
        a_mount_whose_name_is_no_text_is_in_nobodys_way,
    ],
    Needs::Bulkhead => [
        a_containerd_that_accepts_nothing_holds_up_no_pod,
        a_volume_that_never_answers_holds_up_nobody_else,
        a_delete_waits_for_a_start_before_it_removes_a_socket,
    ],
}

/// A socket whose only place in the queue is taken.
pub(crate) struct Full {
    _socket: OwnedFd,
    _first: UnixStream,
}

impl Full {
    pub(crate) fn at(path: &Path) -> Self {
        let (kind, flags) = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
        let full = socket(AddressFamily::Unix, kind, flags, None).expect("a socket");
        bind(full.as_raw_fd(), &UnixAddr::new(path).expect("an address")).expect("bind");
        listen(&full, Backlog::new(0).expect("a backlog")).expect("listen");
        let first = UnixStream::connect(path).expect("the only place");
        Self {
            _socket: full,
            _first: first,
        }
    }
}

async fn a_containerd_that_accepts_nothing_holds_up_no_pod(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let shim = Shim::of(bed, &container.id).await;
    bed.kill_containerd();
    let events = PathBuf::from(format!("{SOCKET}.ttrpc"));
    fs::remove_file(&events).expect("remove containerd's socket");
    let full = Full::at(&events);
    let (id, began) = (container.id.clone(), Instant::now());
    let kill = KillRequest {
        id: id.clone(),
        signal: 9,
        ..KillRequest::default()
    };
    shim.call::<Empty>(3, "Kill", &kill).await.expect("kill");
    let ask = StateRequest {
        id: id.clone(),
        ..StateRequest::default()
    };
    let is_stopped = |state: StateResponse| state.status == Status::STOPPED.into();
    // Its exit is queued as an event by then, and containerd is dialled for that.
    let mut answers = 0;
    while answers < 5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let state = shim.call(3, "State", &ask).await.expect("an answer");
        answers += i32::from(is_stopped(state));
        assert!(
            began.elapsed() < patience(Duration::from_secs(10)),
            "not reaped"
        );
    }
    fs::remove_file(&events).expect("remove the socket");
    drop(full);
    bed.start_containerd().await;
    assert_eq!(container.wait().await.expect("wait").status, 137);
    container.delete().await.expect("delete");
}

async fn a_mount_whose_name_is_no_text_is_in_nobodys_way(bed: &Bed) {
    let place = bed.folder.join(OsStr::from_bytes(b"no \xff text"));
    fs::create_dir(&place).expect("make a folder");
    let none = None::<&str>;
    mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), none).expect("mount");
    let container = bed.container(&["true"]).run().await.expect("run");
    container.wait().await.expect("wait");
    // containerd would unmount it as well.
    let shim = Shim::of(bed, &container.id).await;
    let delete = DeleteRequest {
        id: container.id.clone(),
        ..DeleteRequest::default()
    };
    let deleted = shim.call::<DeleteResponse>(3, "Delete", &delete).await;
    let mounts = fs::read("/proc/self/mountinfo").expect("read the mounts");
    let rootfs = bed.bundle(&container.id).join("rootfs");
    let left = String::from_utf8_lossy(&mounts).contains(rootfs.to_str().expect("text"));
    umount2(&place, MntFlags::MNT_DETACH).expect("unmount");
    fs::remove_dir(&place).expect("remove the folder");
    container.remove().await;
    deleted.expect("delete");
    assert!(!left, "its root is mounted still");
}

/// A FUSE filesystem whose server never answers.
struct Dead {
    place: PathBuf,
    /// Closing it ends all that waits.
    _server: fs::File,
}

impl Dead {
    fn new(bed: &Bed) -> Self {
        let place = bed.folder.join(bed.id("dead"));
        fs::create_dir(&place).expect("make a folder");
        let mut device = fs::File::options();
        let server = device.read(true).write(true).open("/dev/fuse");
        let server = server.expect("open /dev/fuse");
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            server.as_raw_fd()
        );
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(
            Some("dead"),
            &place,
            Some("fuse"),
            flags,
            Some(data.as_str()),
        )
        .expect("mount");
        Self {
            place,
            _server: server,
        }
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        let _ = umount2(&self.place, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.place);
    }
}

async fn a_volume_that_never_answers_holds_up_nobody_else(bed: &Bed) {
    let dead = Dead::new(bed);
    let volume = dead.place.join("volume");
    let pod = hurried(pod(bed)).run().await.expect("run");
    let other = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let late = bound(member(bed, &pod, "true"), &volume, "/srv").create();
    let mut late = pin!(late);
    let mut execs = 0;
    let error = loop {
        let exec = format!("e{execs}");
        let alive = async {
            let (began, done) = (
                Instant::now(),
                other.exec(&exec, &["echo", "alive"]).finish().await,
            );
            bed.client().metrics(&other.id).await.expect("stats");
            assert_eq!((done.status, done.stdout.as_str()), (0, "alive\n"));
            assert!(
                began.elapsed() < patience(Duration::from_secs(1)),
                "{:?}",
                began.elapsed()
            );
        };
        tokio::select! {
            biased;
            created = &mut late => break created.map(drop).expect_err("it hangs"),
            () = alive => execs += 1,
        }
    };
    assert!(execs > 1, "{execs}");
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    assert!(
        error.message().contains(volume.to_str().expect("text")),
        "{error:?}"
    );
    // Who tries again and again gets an answer at once, and takes nobody's place.
    let began = Instant::now();
    for _ in 0..20 {
        let again = bound(member(bed, &pod, "true"), &volume, "/srv").create();
        let error = again.await.map(drop).expect_err("it hangs");
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
        assert!(error.message().contains("earlier"), "{error:?}");
    }
    // So it is with the root of one, which is touched when it is judged and not when it is opened.
    let whole = Dead::new(bed);
    for word in std::iter::once("within").chain(std::iter::repeat_n("earlier", 20)) {
        let hangs = bound(member(bed, &pod, "true"), &whole.place, "/srv").create();
        let error = hangs.await.map(drop).expect_err("it hangs");
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
        let place = whole.place.to_str().expect("text");
        for part in [word, place] {
            assert!(error.message().contains(part), "{part}: {error:?}");
        }
    }
    drop(whole);
    // A log file there, too.
    let uri = format!("file://{}", volume.display());
    let logs = member(bed, &pod, "true").log_to(&uri).create();
    let error = logs.await.map(drop).expect_err("it hangs");
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    let limit = patience(Duration::from_secs(12));
    assert!(began.elapsed() < limit, "{:?}", began.elapsed());
    // While it hangs on: another container joins, and a shim whose only container hung is gone with it.
    let done = member(bed, &pod, "exit 7")
        .run()
        .await
        .expect("run")
        .finish()
        .await;
    assert_eq!(done.status, 7);
    let alone = bed.id("alone");
    let hangs = bound(hurried(bed.named(&alone, &["true"])), &volume, "/srv");
    let error = hangs.create().await.map(drop).expect_err("it hangs");
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    let again = bed.named(&alone, &["true"]).run().await.expect("run");
    assert_eq!(again.finish().await.status, 0);
    drop(dead);
    other.remove().await;
    end(pod).await;
}

/// What a start has just put there may be no socket of a dead shim's any more.
async fn a_delete_waits_for_a_start_before_it_removes_a_socket(bed: &Bed) {
    let container = bed
        .container(&["sleep", "1000"])
        .create()
        .await
        .expect("create");
    let id = &container.id;
    let bundle = bed.bundle(id);
    let socket = PathBuf::from(Shim::address(bed, id).trim_start_matches("unix://"));
    let folder = fs::File::open(socket.parent().expect("a folder")).expect("open the folder");
    let held = Flock::lock(folder, FlockArg::LockExclusive).expect("lock the folder");
    let args = [
        &shim::flags(id)[..],
        &["-bundle", bundle.to_str().expect("text"), "delete"],
    ]
    .concat();
    let output = shim::run(bed, &bundle, &args, &[]);
    assert!(output.status.success(), "{output:?}");
    assert!(socket.exists(), "a start is about to use it");
    drop(held);
    // containerd has noticed by now, and may have taken the bundle away.
    let output = shim::run(bed, &bed.folder, &args, &[]);
    assert!(output.status.success(), "{output:?}");
    assert!(!socket.exists());
    assert_eq!(processes::of(Role::Shim, id), []);
    container.remove().await;
}
