//! Where binds come to stand: nothing of the image or of another bind is opened, followed or made there that should not be.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use containerd_client::tonic::{Code, Status};
use integration::bed::{Bed, IMAGE};
use integration::container::{Builder, Container, overlay};
use integration::patience::patience;
use integration::policy::NodePolicy;
use integration::processes::{self, Role};
use integration::runtime::Needs;
use integration::wrapper::Wrapper;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use integration::cases;

use crate::life::pod::{TESTS_OWN, end, member, sandbox};
use crate::mounts::binds::bound;

cases! {
    Needs::Any => [
        a_bind_in_a_bind_is_what_is_there,
    ],
    Needs::Bulkhead => [
        what_an_image_has_at_a_binds_place_is_not_opened,
        what_comes_to_a_binds_place_before_the_start_is_not_opened,
        what_a_failed_start_leaves_is_ended_with_it,
        no_file_of_a_root_filesystem_is_a_device_to_the_host,
        a_folder_that_is_a_root_is_seen_as_it_is,
        what_was_mounted_in_a_bind_stays_in_the_container,
        what_is_read_only_can_hold_what_is_not,
        nothing_is_made_in_what_is_bound_read_only,
        a_bind_that_cannot_be_mounted_in_another_is_refused,
        a_swapped_link_in_a_bind_leads_nowhere,
        a_swapped_link_in_a_root_leads_nowhere,
        a_link_of_an_image_into_a_bind_leads_nowhere_else,
        a_mask_at_a_name_that_is_no_text_is_refused,
        of_two_binds_at_one_place_the_last_is_seen,
    ],
}

/// A folder of the host's that everybody may write.
struct Folder(PathBuf);

impl Folder {
    fn new(bed: &Bed, name: &str) -> Self {
        let folder = bed.folder.join(bed.id(name));
        fs::create_dir_all(&folder).expect("make a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("chmod");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn with(self, name: &str, text: &str) -> Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(path, text).expect("write");
        self
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("list").flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }
}

fn read_only<'a>(builder: Builder<'a>, source: &Path, destination: &str) -> Builder<'a> {
    let mut builder = bound(builder, source, destination);
    let mounts = builder.spec["mounts"].as_array_mut().expect("mounts");
    mounts.last_mut().expect("the bind")["options"] = json!(["rbind", "ro"]);
    builder
}

/// A container whose image has a layer of its own, and the layer.
fn layered<'a>(bed: &'a Bed, builder: Builder<'a>) -> (Builder<'a>, PathBuf) {
    let folder = bed.folder.join(bed.id("layer"));
    let builder = builder.rootfs(overlay(Path::new(IMAGE), &folder));
    let upper = folder.join("upper");
    fs::create_dir(upper.join("etc")).expect("make a folder");
    (builder, upper)
}

/// The places that runsc is told of, which it follows by name.
fn told(bed: &Bed, id: &str) -> Vec<String> {
    let told = fs::read_to_string(bed.bundle(id).join("config.json")).expect("the spec");
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let mounts = told["mounts"].as_array().expect("mounts").iter();
    let places = mounts.filter_map(|mount| mount["destination"].as_str());
    places.map(str::to_owned).collect()
}

/// A character device that no driver has: who opens it gets ENXIO.
fn device(path: &Path) {
    let mode = Mode::from_bits_truncate(0o666);
    mknod(path, SFlag::S_IFCHR, mode, makedev(240, 7)).expect("make a node");
}

fn assert_refused<T>(answer: Result<T, Status>, since: Instant, words: [&str; 2]) {
    let Err(error) = answer else {
        panic!("{words:?}: it was not refused")
    };
    let passed = since.elapsed();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    for word in words {
        assert!(error.message().contains(word), "{word}: {error:?}");
    }
    // A second on an idle machine. What opens such a thing takes a minute.
    assert!(passed < patience(Duration::from_secs(3)), "{passed:?}");
}

async fn what_an_image_has_at_a_binds_place_is_not_opened(bed: &Bed) {
    type Plant = fn(&Path);
    let fifo: Plant = |path| nix::unistd::mkfifo(path, Mode::S_IRWXU).expect("make a FIFO");
    let source = Folder::new(bed, "source").with("file", "bound");
    for (word, is_file, plant) in [
        ("a FIFO", true, fifo),
        ("a FIFO", false, fifo),
        ("a FIFO", true, |path| {
            let real = path.with_file_name("real");
            nix::unistd::mkfifo(&real, Mode::S_IRWXU).expect("make a FIFO");
            symlink("/etc/real", path).expect("link");
        }),
        ("a device", true, device),
        ("a device", true, |path| {
            device(&path.with_file_name("real"));
            symlink("real", path).expect("link");
        }),
        ("a socket", true, |path| {
            UnixListener::bind(path).map(drop).expect("listen");
        }),
        ("a folder", true, |path| {
            fs::create_dir(path).expect("mkdir")
        }),
        ("a file", false, |path| fs::write(path, "").expect("write")),
        ("symbolic links", true, |path| {
            symlink("place", path).expect("link");
        }),
        // By the name that it would have in a spec it is another.
        ("no UTF-8", true, |path| {
            let other = path.with_file_name("real\u{fffd}");
            nix::unistd::mkfifo(&other, Mode::S_IRWXU).expect("make a FIFO");
            symlink(OsStr::from_bytes(b"real\xff"), path).expect("link");
        }),
        ("Not a directory", true, |path| {
            nix::unistd::mkfifo(&path.with_file_name("real"), Mode::S_IRWXU).expect("a FIFO");
            symlink("real/below", path).expect("link");
        }),
    ] {
        let (container, upper) = layered(bed, bed.shell("true"));
        plant(&upper.join("etc/place"));
        let source = if is_file {
            source.path("file")
        } else {
            source.0.clone()
        };
        let container = bound(container, &source, "/etc/place");
        let since = Instant::now();
        assert_refused(container.create().await, since, ["/etc/place", word]);
    }
    // The twins: what images have there.
    for plant in [
        |_: &Path| {},
        |path: &Path| fs::write(path, "").expect("write"),
        |path: &Path| symlink("hosts", path).expect("link"),
        |path: &Path| symlink("/var/none", path).expect("link"),
    ] {
        let (container, upper) = layered(bed, bed.shell("cat /etc/place"));
        plant(&upper.join("etc/place"));
        let container = bound(container, &source.path("file"), "/etc/place");
        let done = container.run().await.expect("run").finish().await;
        assert_eq!((done.status, done.stdout.as_str()), (0, "bound"));
    }
}

/// A container of a pod that has been made, and the place of its bind on the host.
async fn with_a_place<'a>(bed: &'a Bed, pod: &Container<'_>) -> (Container<'a>, PathBuf) {
    let source = Folder::new(bed, "source").with("file", "bound");
    let (one, _) = layered(bed, member(bed, pod, "true"));
    let one = bound(one, &source.path("file"), "/etc/place");
    let one = one.create().await.expect("create");
    let place = bed.bundle(&one.id).join("rootfs/etc/place");
    (one, place)
}

async fn what_comes_to_a_binds_place_before_the_start_is_not_opened(bed: &Bed) {
    let _policy = NodePolicy::set(TESTS_OWN);
    let pod = sandbox(bed).await;
    let (one, place) = with_a_place(bed, &pod).await;
    nix::unistd::mkfifo(&place, Mode::S_IRWXU).expect("make a FIFO");
    let since = Instant::now();
    assert_refused(one.start().await, since, ["/etc/place", "a FIFO"]);
    one.remove().await;
    end(pod).await;
}

/// It comes when the shim has looked: the gofer waits for somebody who writes to it.
async fn what_a_failed_start_leaves_is_ended_with_it(bed: &Bed) {
    let _policy = NodePolicy::set(&format!("{TESTS_OWN}runsc.start_timeout = 2"));
    let pod = sandbox(bed).await;
    let (one, place) = with_a_place(bed, &pod).await;
    {
        let script = format!("mkfifo {}", place.display());
        let _wrapper = Wrapper::at(bed, "start", &script);
        let error = one.start().await.expect_err("the gofer waits");
        assert!(error.message().contains("within 2 s"), "{error:?}");
        assert!(fs::symlink_metadata(&place).is_ok(), "it is there");
    }
    let left = processes::of(Role::Gofer, &one.id);
    assert!(left.is_empty(), "{left:?}");
    let twin = member(bed, &pod, "echo alive").run().await.expect("run");
    assert_eq!(twin.finish().await.stdout, "alive\n");
    one.remove().await;
    end(pod).await;
}

fn copy_image(to: &Path) {
    let copied = std::process::Command::new("cp")
        .args(["-a", &format!("{IMAGE}/."), to.to_str().expect("text")])
        .status();
    assert!(copied.expect("copy the image").success());
}

/// A container whose root filesystem is a folder of the client's.
fn rooted<'a>(builder: Builder<'a>, root: &Path, is_writable: bool) -> Builder<'a> {
    let mut builder = builder.with(|spec| {
        spec["root"] = json!({ "path": root, "readonly": !is_writable });
    });
    builder.rootfs.clear();
    let policy = format!("rootfs.writable = {is_writable}");
    builder.policy("", &policy)
}

/// Owners, modes and contents of the folders on the way, and what is mounted below the root.
async fn a_folder_that_is_a_root_is_seen_as_it_is(bed: &Bed) {
    let source = Folder::new(bed, "source").with("file", "bound");
    let root = Folder::new(bed, "root");
    copy_image(&root.0);
    fs::create_dir_all(root.path("srv/own/mounted")).expect("mkdir");
    fs::write(root.path("srv/own/theirs"), "theirs").expect("write");
    chown(root.path("srv/own"), Some(1234), Some(1234)).expect("chown");
    fs::set_permissions(root.path("srv/own"), fs::Permissions::from_mode(0o1711)).expect("chmod");
    let mounted = root.path("srv/own/mounted");
    let kind = Some("tmpfs");
    mount(kind, &mounted, kind, MsFlags::empty(), None::<&str>).expect("mount");
    fs::write(root.path("srv/own/mounted/file"), "mounted").expect("write");
    // One in another, which hides something of it.
    let inner = root.path("srv/own/mounted/inner");
    fs::create_dir(&inner).expect("mkdir");
    fs::write(inner.join("file"), "hidden").expect("write");
    mount(kind, &inner, kind, MsFlags::empty(), None::<&str>).expect("mount");
    fs::write(inner.join("file"), "inner").expect("write");
    let program = "stat -c '%u %g %a' /srv/own; cat /srv/own/theirs /srv/own/mounted/file /srv/own/mounted/inner/file /srv/own/new/place";
    for is_writable in [false, true] {
        let container = rooted(bed.shell(program), &root.0, is_writable);
        let container = bound(container, &source.path("file"), "/srv/own/new/place");
        let done = container.run().await.expect("run").finish().await;
        assert_eq!(
            done.stdout, "1234 1234 1711\ntheirsmountedinnerbound",
            "{done:?}"
        );
        assert!(
            !root.path("srv/own/new").exists(),
            "it is the client's folder"
        );
    }
    // What is mounted there is not the root's own, and runsc would follow it by name.
    let container = rooted(bed.shell("true"), &root.0, false);
    let container = bound(container, &source.path("file"), "/srv/own/mounted/place");
    let since = Instant::now();
    assert_refused(
        container.create().await,
        since,
        ["root.path", "lies in what is mounted at"],
    );
    umount2(&mounted, MntFlags::MNT_DETACH).expect("unmount");
}

/// What the command sees that sets the root up, of a root that containerd mounts and of one that it does not.
async fn no_file_of_a_root_filesystem_is_a_device_to_the_host(bed: &Bed) {
    let seen = bed.folder.join(bed.id("seen"));
    let root = Folder::new(bed, "root");
    copy_image(&root.0);
    device(&root.path("device"));
    for by_path in [false, true] {
        let (container, upper) = layered(bed, bed.shell("ls /device && cat /etc/passwd"));
        device(&upper.join("device"));
        let container = if by_path {
            rooted(container, &root.0, false)
        } else {
            container
        };
        // A folder of the client's has another name by then.
        let bundle = bed.bundle(&container.id);
        let script = format!(
            "cd {}; root=$(grep -o '\"root\":{{[^}}]*}}' config.json | grep -o '\"path\":\"[^\"]*' | cut -d'\"' -f4); \
             root=$(realpath $root); grep \" $root \" /proc/self/mountinfo >{seen}; cat $root/device 2>>{seen}",
            bundle.display(),
            seen = seen.display()
        );
        let _wrapper = Wrapper::at(bed, "create", &script);
        let done = container.run().await.expect("run").finish().await;
        assert_eq!(done.status, 0, "{done:?}");
        let seen = fs::read_to_string(&seen).expect("what was seen");
        for word in ["nosuid", "nodev", "Permission denied"] {
            assert!(seen.contains(word), "by its path {by_path}: {word}: {seen}");
        }
    }
}

async fn a_bind_in_a_bind_is_what_is_there(bed: &Bed) {
    let volume = Folder::new(bed, "volume").with("there/file", "hidden");
    let other = Folder::new(bed, "other").with("file", "other");
    let config = Folder::new(bed, "config").with("file", "config");
    let (container, upper) = layered(
        bed,
        bed.shell(
            "cat /data/there/file /data/new/conf /data/new/deep/file /data/x/conf && \
             echo w >/data/own && echo w >/data/there/own && ! echo w >/data/new/conf",
        ),
    );
    symlink("/data/x", upper.join("link")).expect("link");
    let container = bound(container, &volume.0, "/data");
    let container = bound(container, &other.0, "/data/there");
    let container = bound(container, &Folder::new(bed, "new").0, "/data/new");
    let container = read_only(container, &config.0, "/data/new/deep");
    let container = read_only(container, &config.path("file"), "/data/new/conf");
    let container = read_only(container, &config.path("file"), "/link/conf");
    let done = container.run().await.expect("run").finish().await;
    assert_eq!(
        (done.status, done.stdout.as_str()),
        (0, "otherconfigconfigconfig"),
        "{done:?}"
    );
    // What was written is where it was bound from, and so is what was mounted over.
    let read = |path: PathBuf| fs::read_to_string(path).expect("read");
    assert_eq!(read(volume.path("own")), "w\n");
    assert_eq!(read(other.path("own")), "w\n");
    assert_eq!(read(volume.path("there/file")), "hidden");
    assert_eq!(read(volume.path("x/conf")), "");
    assert_eq!(read(config.path("file")), "config");
}

/// Further containers of a pod have their gofers by `start`.
async fn what_was_mounted_in_a_bind_stays_in_the_container(bed: &Bed) {
    let _policy = NodePolicy::set(TESTS_OWN);
    let volume = Folder::new(bed, "volume");
    let config = Folder::new(bed, "config").with("file", "config");
    let pod = sandbox(bed).await;
    let script = "cat /srv/file; sleep 1000";
    let one = bound(member(bed, &pod, script), &volume.0, "/srv");
    let one = read_only(one, &config.path("file"), "/srv/file");
    let one = one.run().await.expect("run");
    let two = bound(member(bed, &pod, "cat /srv/file"), &volume.0, "/srv");
    let done = two.run().await.expect("run").finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (0, ""));
    assert_eq!(fs::read(volume.path("file")).expect("a file"), b"");
    let places = told(bed, &one.id);
    assert!(places.contains(&"/srv".to_owned()), "{places:?}");
    assert!(!places.contains(&"/srv/file".to_owned()), "{places:?}");
    let seen = one.exec("seen", &["cat", "/srv/file"]).finish().await;
    assert_eq!(seen.stdout, "config");
    one.remove().await;
    end(pod).await;
}

async fn what_is_read_only_can_hold_what_is_not(bed: &Bed) {
    let outer = Folder::new(bed, "outer")
        .with("in/there", "")
        .with("file", "");
    let inner = Folder::new(bed, "inner");
    let script = "echo w >/srv/in/own; ! echo w >/srv/own && ! echo w >/srv/file && \
                  ! rm /srv/file && cat /srv/in/own";
    let container = read_only(bed.shell(script), &outer.0, "/srv");
    let container = bound(container, &inner.0, "/srv/in");
    let done = container.run().await.expect("run").finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (0, "w\n"), "{done:?}");
    assert_eq!(fs::read(inner.path("own")).expect("read"), b"w\n");
    assert!(!outer.path("own").exists());
}

/// A pod may read a folder of the host's by the policy, and a file's name in it can do harm.
async fn nothing_is_made_in_what_is_bound_read_only(bed: &Bed) {
    let outer = Folder::new(bed, "outer");
    let inner = Folder::new(bed, "inner").with("file", "");
    for (source, place) in [
        (inner.0.clone(), "/srv/new"),
        (inner.path("file"), "/srv/file"),
    ] {
        let container = read_only(bed.shell("true"), &outer.0, "/srv");
        let container = bound(container, &source, place);
        let since = Instant::now();
        assert_refused(container.create().await, since, [place, "Read-only"]);
    }
    assert_eq!(outer.names(), [""; 0]);
}

async fn a_bind_that_cannot_be_mounted_in_another_is_refused(bed: &Bed) {
    let volume = Folder::new(bed, "volume");
    let other = Folder::new(bed, "other").with("file", "");
    nix::unistd::mkfifo(&volume.path("fifo"), Mode::S_IRWXU).expect("make a FIFO");
    symlink("fifo", volume.path("link")).expect("link");
    type Change = fn(&mut Vec<serde_json::Value>);
    for (place, word, change) in [
        ("/srv/fifo", "a FIFO", (|_| {}) as Change),
        ("/srv/link", "a FIFO", |_| {}),
        ("/srv/tmp/x", "in memory", |mounts| {
            let tmpfs = json!({ "destination": "/srv/tmp", "type": "tmpfs", "source": "tmpfs" });
            mounts.push(tmpfs);
        }),
        ("/srv/x", "noexec", |mounts| {
            let bind = mounts.last_mut().expect("the bind");
            bind["options"] = json!(["rbind", "noexec"]);
        }),
    ] {
        let container = bound(bed.shell("true"), &volume.0, "/srv");
        let container = bound(container, &other.path("file"), place).with(|spec| {
            change(spec["mounts"].as_array_mut().expect("mounts"));
        });
        let since = Instant::now();
        assert_refused(container.create().await, since, [place, word]);
    }
    let mut left = volume.names();
    left.sort();
    assert_eq!(left, ["fifo", "link"]);
}

/// Exchanges a folder for a link and back, as a container does that shares what it lies in, only faster.
struct Swapping {
    is_over: Arc<AtomicBool>,
    /// How long the folder is there each time, in microseconds.
    pause: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Swapping {
    fn start(folder: PathBuf, link: PathBuf) -> Self {
        let (is_over, pause) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (over, held) = (Arc::clone(&is_over), Arc::clone(&pause));
        let swap = move || {
            renameat_with(CWD, &folder, CWD, &link, RenameFlags::EXCHANGE).expect("swap");
        };
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                swap();
                swap();
                match held.load(Ordering::Relaxed) {
                    0 => {}
                    micros => std::thread::sleep(Duration::from_micros(micros)),
                }
            }
        });
        Self {
            is_over,
            pause,
            thread,
        }
    }

    /// Leaves more time to those who look twice: on an idle machine a create would find the folder each time by chance alone.
    fn ease(&self) {
        let more = |micros: u64| Some(if micros == 0 { 100 } else { micros * 4 });
        let _ = self
            .pause
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the swaps");
    }
}

const CREATES: usize = 12;

/// Makes containers until chance has had its time. Returns what those printed that could be made: one has to be.
async fn made<'a>(
    bed: &Bed,
    swapping: &Swapping,
    builder: impl Fn(usize) -> Builder<'a>,
) -> Vec<String> {
    let (mut number, mut made) = (0, Vec::new());
    while number < CREATES || (made.is_empty() && number < 10 * CREATES) {
        number += 1;
        let container = builder(number);
        let id = container.id.clone();
        match container.run().await {
            Ok(container) => made.push(container.finish().await.stdout),
            Err(_) => bed.remove(&id).await,
        }
        if made.is_empty() && number % CREATES == 0 {
            swapping.ease();
        }
    }
    assert!(!made.is_empty(), "otherwise it shows nothing");
    made
}

/// The links lead out by a name and by a process of root's.
async fn a_swapped_link_in_a_bind_leads_nowhere(bed: &Bed) {
    let source = Folder::new(bed, "source").with("file", "bound");
    let outside = Folder::new(bed, "outside");
    let here = std::process::id();
    let by_process = format!("/proc/{here}/root{}", outside.0.display());
    for target in [outside.0.clone(), PathBuf::from(by_process)] {
        let volume = Folder::new(bed, "volume");
        fs::create_dir(volume.path("s")).expect("make a folder");
        symlink(&target, volume.path("link")).expect("link");
        let swapping = Swapping::start(volume.path("s"), volume.path("link"));
        made(bed, &swapping, |number| {
            let (container, _) = layered(bed, bed.shell("true"));
            let container = bound(container, &volume.0, "/srv");
            bound(container, &source.path("file"), &format!("/srv/s/{number}"))
        })
        .await;
        swapping.end();
        assert_eq!(outside.names(), [""; 0], "by {}", target.display());
    }
}

/// So it is with a folder of the client's that is a root, and with its own path.
async fn a_swapped_link_in_a_root_leads_nowhere(bed: &Bed) {
    let source = Folder::new(bed, "source").with("file", "bound");
    let outside = Folder::new(bed, "outside");
    let root = Folder::new(bed, "root");
    copy_image(&root.0);
    fs::create_dir(root.path("s")).expect("make a folder");
    symlink(&outside.0, root.path("link")).expect("link");
    for is_writable in [false, true] {
        let swapping = Swapping::start(root.path("s"), root.path("link"));
        let seen = made(bed, &swapping, |number| {
            let container = rooted(bed.shell("cat /place"), &root.0, is_writable);
            let container = bound(container, &source.path("file"), "/place");
            bound(container, &source.path("file"), &format!("/s/{number}"))
        })
        .await;
        swapping.end();
        assert!(seen.iter().all(|text| text == "bound"), "{seen:?}");
        assert_eq!(outside.names(), [""; 0]);
        assert!(!root.path("place").exists(), "it is the client's folder");
    }
    fs::write(root.path("mark"), "").expect("write");
    // What the policy refuses as a root.
    let link = root.0.with_extension("link");
    symlink("/", &link).expect("link");
    let swapping = Swapping::start(root.0.clone(), link.clone());
    for has_bind in [false, true] {
        let seen = made(bed, &swapping, |_| {
            let container = rooted(bed.shell("ls /mark"), &root.0, false);
            if has_bind {
                bound(container, &source.path("file"), "/place")
            } else {
                container
            }
        })
        .await;
        assert!(seen.iter().all(|text| text == "/mark\n"), "{seen:?}");
    }
    swapping.end();
    let _ = fs::remove_file(link);
}

/// By its own name the place has fewer parts than the bind that it comes to lie in.
async fn a_link_of_an_image_into_a_bind_leads_nowhere_else(bed: &Bed) {
    let source = Folder::new(bed, "source").with("file", "bound");
    let outside = Folder::new(bed, "outside");
    for is_swapped in [false, true] {
        let volume = Folder::new(bed, "volume");
        fs::create_dir(volume.path("s")).expect("make a folder");
        let (container, upper) = layered(bed, bed.shell("cat /etc/x/y/z/w/s*/new"));
        fs::create_dir_all(upper.join("etc/x/y/z/w")).expect("make a folder");
        symlink("x/y/z/w", upper.join("etc/a")).expect("link");
        let container = bound(container, &volume.0, "/etc/x/y/z/w");
        let container = bound(container, &source.path("file"), "/etc/a/s/new");
        let (s, out) = (volume.path("s"), outside.0.display().to_string());
        let swap = format!("mv {0} {0}.old && ln -s {out} {0} || exit 1", s.display());
        let _wrapper = is_swapped.then(|| Wrapper::at(bed, "create", &swap));
        let container = container.create().await.expect("create");
        let places = told(bed, &container.id);
        let below = places
            .iter()
            .find(|place| place.starts_with("/etc/x/y/z/w/"));
        assert_eq!(below, None);
        container.start().await.expect("start");
        let done = container.finish().await;
        assert_eq!((done.status, done.stdout.as_str()), (0, "bound"));
    }
    assert_eq!(outside.names(), [""; 0]);
}

async fn a_mask_at_a_name_that_is_no_text_is_refused(bed: &Bed) {
    let pod = sandbox(bed).await;
    let (one, upper) = layered(bed, member(bed, &pod, "true"));
    fs::write(upper.join("etc").join(OsStr::from_bytes(b"real\xff")), "").expect("write");
    symlink(OsStr::from_bytes(b"real\xff"), upper.join("etc/place")).expect("link");
    let one = one.with(|spec| spec["linux"]["maskedPaths"] = json!(["/etc/place"]));
    let since = Instant::now();
    assert_refused(one.create().await, since, ["/etc/place", "no UTF-8"]);
    let twin = member(bed, &pod, "echo alive").run().await.expect("run");
    assert_eq!(twin.finish().await.stdout, "alive\n");
    end(pod).await;
}

async fn of_two_binds_at_one_place_the_last_is_seen(bed: &Bed) {
    let one = Folder::new(bed, "one").with("file", "one");
    let two = Folder::new(bed, "two").with("file", "two");
    for (first, last, seen) in [(&one, &two, "two"), (&two, &one, "one")] {
        let (container, upper) = layered(bed, bed.shell("cat /etc/real/file"));
        fs::create_dir(upper.join("etc/real")).expect("make a folder");
        symlink("real", upper.join("etc/link")).expect("link");
        let container = bound(container, &first.0, "/etc/link");
        let container = bound(container, &last.0, "/etc/real");
        let done = container.run().await.expect("run").finish().await;
        assert_eq!((done.status, done.stdout.as_str()), (0, seen));
    }
}
