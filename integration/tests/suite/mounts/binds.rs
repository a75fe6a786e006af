//! Binds: a container has the folder that was judged, whatever its name leads to by then.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::tonic::Code;
use integration::bed::Bed;
use integration::container::Builder;
use integration::policy::NodePolicy;
use integration::processes::eventually;
use integration::runtime::Needs;
use integration::wrapper::Wrapper;
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};

use integration::cases;

use crate::life::delete::root_of;
use crate::life::pod::{TESTS_OWN, end, member, pod, sandbox};

cases! {
    Needs::Any => [
        a_bound_folder_is_the_hosts_own,
    ],
    Needs::Bulkhead => [
        a_place_that_cannot_be_made_is_named,
        a_folder_exchanged_for_a_link_is_not_followed,
        a_file_exchanged_for_a_link_is_not_followed,
        a_folder_exchanged_before_a_pods_container_starts_is_not_followed,
        what_was_opened_for_a_container_that_never_starts_goes_with_it,
        the_names_of_binds_go_once_a_container_has_them,
        a_folder_of_roots_exchanged_for_a_link_is_not_followed,
        a_link_to_a_name_that_is_no_text_is_refused,
        a_link_is_judged_by_where_it_leads,
        what_is_mounted_in_a_users_folder_later_appears_where_the_policy_gives_it,
        what_is_mounted_for_a_container_does_not_appear_on_the_host,
    ],
}

/// A folder of a user's with something of his in it, beside something that is not his.
struct Home(PathBuf);

impl Home {
    fn new(bed: &Bed) -> Self {
        Self::at(bed.folder.join(bed.id("home")))
    }

    fn at(folder: PathBuf) -> Self {
        for (place, text) in [("user/work", "his own"), ("secret", "not his")] {
            fs::create_dir_all(folder.join(place)).expect("make a folder");
            fs::write(folder.join(place).join("file"), text).expect("write");
        }
        for place in ["user", "user/work", "user/work/file"] {
            chown(folder.join(place), Some(1000), Some(1000)).expect("chown");
        }
        // Root of a container is no superuser: it writes where anybody may.
        let open = fs::Permissions::from_mode(0o777);
        fs::set_permissions(folder.join("user/work"), open).expect("chmod");
        Self(folder)
    }

    fn path(&self, place: &str) -> PathBuf {
        self.0.join(place)
    }

    /// What the user would do, as a script: `place` becomes a link to what is not his.
    fn exchange(&self, place: &str, secret: &str) -> String {
        let (place, secret) = (self.path(place), self.path(secret));
        let (place, secret) = (place.display(), secret.display());
        format!("mv {place} {place}.old && ln -s {secret} {place} || exit 1")
    }
}

pub(crate) fn bound<'a>(builder: Builder<'a>, source: &Path, destination: &str) -> Builder<'a> {
    builder.with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(serde_json::json!({
            "destination": destination, "type": "bind", "source": source, "options": ["rbind", "rw"],
        }));
    })
}

async fn a_bound_folder_is_the_hosts_own(bed: &Bed) {
    let home = Home::new(bed);
    let container = bed.shell("cat /srv/file && echo seen >/srv/new");
    let container = bound(container, &home.path("user/work"), "/srv");
    let done = container.run().await.expect("run").finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (0, "his own"));
    let new = fs::read_to_string(home.path("user/work/new"));
    assert_eq!(new.expect("the container's file"), "seen\n");
}

/// The gofer finds it out, and the runsc command knows only that it is gone.
async fn a_place_that_cannot_be_made_is_named(bed: &Bed) {
    let home = Home::new(bed);
    // The tests' image is mounted read-only.
    let container = bound(bed.shell("true"), &home.path("user/work"), "/not-there");
    let error = container.create().await.expect_err("refused");
    for said in ["/not-there", "read-only file system"] {
        assert!(error.message().contains(said), "{error:?}");
    }
}

async fn a_folder_exchanged_for_a_link_is_not_followed(bed: &Bed) {
    let home = Home::new(bed);
    let _wrapper = Wrapper::at(bed, "create", &home.exchange("user/work", "secret"));
    let container = bed.shell("cat /srv/file && echo seen >/srv/new");
    let container = bound(container, &home.path("user/work"), "/srv");
    let done = container.run().await.expect("run").finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (0, "his own"));
    assert!(home.path("user/work").is_symlink(), "it was exchanged");
    assert!(home.path("user/work.old/new").exists());
    assert!(!home.path("secret/new").exists());
}

async fn a_file_exchanged_for_a_link_is_not_followed(bed: &Bed) {
    let home = Home::new(bed);
    let exchange = home.exchange("user/work/file", "secret/file");
    let _wrapper = Wrapper::at(bed, "create", &exchange);
    let container = bound(
        bed.shell("cat /etc/passwd"),
        &home.path("user/work/file"),
        "/etc/passwd",
    );
    let done = container.run().await.expect("run").finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (0, "his own"));
}

async fn a_folder_exchanged_before_a_pods_container_starts_is_not_followed(bed: &Bed) {
    let _policy = NodePolicy::set(TESTS_OWN);
    let home = Home::new(bed);
    let pod = sandbox(bed).await;
    let one = bound(
        member(bed, &pod, "cat /srv/file"),
        &home.path("user/work"),
        "/srv",
    );
    let one = one.create().await.expect("create");
    {
        let _wrapper = Wrapper::at(bed, "start", &home.exchange("user/work", "secret"));
        one.start().await.expect("start");
    }
    let done = one.finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (0, "his own"));
    assert!(home.path("user/work").is_symlink(), "it was exchanged");
    end(pod).await;
}

/// How many files and folders of a sandbox stand for what is bound.
fn names_in(root: &Path) -> usize {
    let entries = fs::read_dir(root).expect("read the sandbox's folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names
        .filter(|name| name.as_encoded_bytes().starts_with(b"bind-"))
        .count()
}

/// Each restart of a pod's container would leave its own else, until the pod ends.
async fn the_names_of_binds_go_once_a_container_has_them(bed: &Bed) {
    let _policy = NodePolicy::set(TESTS_OWN);
    let home = Home::new(bed);
    let first = bound(pod(bed), &home.path("user/work"), "/srv");
    let pod = first.run().await.expect("run the sandbox");
    let root = root_of(&bed.bundle(&pod.id));
    // What no look at a root can find out before the start.
    let bad = home.path("user/work/bad");
    fs::write(&bad, "no program").expect("write");
    fs::set_permissions(&bad, fs::Permissions::from_mode(0o755)).expect("chmod");
    assert_eq!(names_in(&root), 0, "of the pod's first container");
    for script in ["echo more >/srv/new; sleep 1000", "/srv/bad"] {
        let is_bad = script == "/srv/bad";
        let one = bound(member(bed, &pod, script), &home.path("user/work"), "/srv");
        let mut one = bound(one, &home.path("user/work/file"), "/etc/group");
        if is_bad {
            one = one.with(|spec| spec["process"]["args"] = serde_json::json!([script]));
        }
        let created = one.create().await.expect("create");
        assert_eq!(names_in(&root), 2, "before the start");
        let started = created.start().await;
        assert_eq!(started.is_err(), is_bad, "{script}: {started:?}");
        assert_eq!(names_in(&root), 0, "after the start of {script}");
        if !is_bad {
            // And it still has what they led to.
            let read = created.exec("read", &["cat", "/srv/file", "/etc/group"]);
            assert_eq!(read.finish().await.stdout, "his ownhis own");
            let is_written = || home.path("user/work/new").exists();
            eventually("it writes", Duration::from_secs(5), is_written).await;
        }
        created.remove().await;
    }
    let read = pod.exec("read", &["cat", "/srv/file"]).finish().await;
    assert_eq!(read.stdout, "his own");
    end(pod).await;
}

async fn what_was_opened_for_a_container_that_never_starts_goes_with_it(bed: &Bed) {
    let _policy = NodePolicy::set(TESTS_OWN);
    let home = Home::new(bed);
    let pod = sandbox(bed).await;
    let root = root_of(&bed.bundle(&pod.id));
    let opened = || names_in(&root);
    let one = bound(member(bed, &pod, "true"), &home.path("user/work"), "/srv");
    let one = bound(one, &home.path("user/work/file"), "/srv2")
        .create()
        .await
        .expect("create");
    assert_eq!(opened(), 2);
    one.delete().await.expect("delete");
    assert_eq!(opened(), 0);
    end(pod).await;
}

/// Root of a container that has the folder above it may be the one who exchanges it: owners and modes tell nothing.
async fn a_folder_of_roots_exchanged_for_a_link_is_not_followed(bed: &Bed) {
    let home = Home::at(PathBuf::from("/run").join(bed.id("roots")));
    for place in ["user", "user/work", "user/work/file"] {
        chown(home.path(place), Some(0), Some(0)).expect("chown");
        let kept = fs::Permissions::from_mode(0o755);
        fs::set_permissions(home.path(place), kept).expect("chmod");
    }
    {
        let _wrapper = Wrapper::at(bed, "create", &home.exchange("user/work", "secret"));
        let container = bound(bed.shell("cat /srv/file"), &home.path("user/work"), "/srv");
        let done = container.run().await.expect("run").finish().await;
        assert_eq!((done.status, done.stdout.as_str()), (0, "his own"));
        assert!(home.path("user/work").is_symlink(), "it was exchanged");
    }
    fs::remove_dir_all(&home.0).expect("remove");
}

/// By the name that it would have in a spec it is another, which nobody has judged.
async fn a_link_to_a_name_that_is_no_text_is_refused(bed: &Bed) {
    let home = Home::new(bed);
    let odd = home.path("user").join(OsStr::from_bytes(b"d\xff"));
    fs::create_dir(&odd).expect("make a folder");
    symlink(&odd, home.path("user/link")).expect("link");
    symlink(home.path("secret"), home.path("user/d\u{fffd}")).expect("link");
    let as_bind = bound(bed.shell("ls /srv"), &home.path("user/link"), "/srv");
    let as_root = bed.shell("true").with(|spec| {
        spec["root"]["path"] = home.path("user/link").display().to_string().into();
    });
    for container in [as_bind, as_root] {
        let error = container.create().await.expect_err("refused");
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
        assert!(error.message().contains("no UTF-8"), "{error:?}");
    }
}

async fn a_link_is_judged_by_where_it_leads(bed: &Bed) {
    let home = Home::new(bed);
    for (name, target) in [
        ("to_work", home.path("user/work")),
        ("to_run", "/run".into()),
    ] {
        symlink(target, home.path("user").join(name)).expect("link");
    }
    let container = bound(
        bed.shell("cat /srv/file"),
        &home.path("user/to_work"),
        "/srv",
    );
    let done = container.run().await.expect("run").finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (0, "his own"));
    let container = bound(bed.shell("ls /srv"), &home.path("user/to_run"), "/srv");
    let error = container.create().await.expect_err("refused");
    assert!(error.message().contains("never given"), "{error:?}");
}

fn tmpfs(place: &Path, flags: MsFlags) {
    mount(Some("tmpfs"), place, Some("tmpfs"), flags, None::<&str>).expect("mount");
}

/// A mount in a user's folder that others hear of, with a folder to mount something in.
fn shared_mount(home: &Home) -> (PathBuf, PathBuf) {
    let (work, below) = (home.path("user/work"), home.path("user/work/below"));
    tmpfs(&work, MsFlags::empty());
    tmpfs(&work, MsFlags::MS_SHARED);
    fs::create_dir(&below).expect("make a folder");
    (work, below)
}

fn with_propagation<'a>(builder: Builder<'a>, work: &Path, option: &str) -> Builder<'a> {
    builder.with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(serde_json::json!({
            "destination": "/srv", "type": "bind", "source": work, "options": ["rbind", option],
        }));
    })
}

/// The folder is opened for the container, so what it has is a copy of the mount.
async fn what_is_mounted_in_a_users_folder_later_appears_where_the_policy_gives_it(bed: &Bed) {
    let home = Home::new(bed);
    let (work, below) = shared_mount(&home);
    let mut seen = Vec::new();
    for policy in ["", "binds.propagation = true"] {
        let _policy = NodePolicy::set(policy);
        for option in ["rprivate", "rslave"] {
            let container = with_propagation(bed.container(&["sleep", "1000"]), &work, option);
            let container = container.run().await.expect("run");
            tmpfs(&below, MsFlags::empty());
            fs::write(below.join("later"), "").expect("write");
            seen.push(
                container
                    .exec("ls", &["ls", "/srv/below"])
                    .finish()
                    .await
                    .stdout,
            );
            // gVisor's gofer keeps open what was looked at, so it is taken away from all at once.
            umount2(&below, MntFlags::MNT_DETACH).expect("unmount");
            seen.push(
                container
                    .exec("again", &["ls", "/srv/below"])
                    .finish()
                    .await
                    .stdout,
            );
            container.remove().await;
        }
    }
    umount(&work).expect("unmount");
    assert_eq!(seen, ["", "", "", "", "", "", "later\n", ""]);
}

/// Whoever mounts in the namespace that runsc is given: nothing of it is to reach the mount that was opened.
async fn what_is_mounted_for_a_container_does_not_appear_on_the_host(bed: &Bed) {
    let home = Home::new(bed);
    let (work, below) = shared_mount(&home);
    let _policy = NodePolicy::set("binds.propagation = true");
    let script = r"place=$(grep -o '/[^ ]*/bind-[0-9]*' /proc/self/mountinfo | head -n 1)/below
mount -n -t tmpfs inside $place && touch $place/inside || exit 1";
    let _wrapper = Wrapper::at(bed, "create", script);
    let container = with_propagation(bed.shell("ls /srv/below"), &work, "rslave");
    let done = container.run().await.expect("run").finish().await;
    let on_host: Vec<_> = fs::read_dir(&below).expect("list").collect();
    umount(&work).expect("nothing is mounted in it");
    assert_eq!((done.stdout.as_str(), on_host.len()), ("inside\n", 0));
}
