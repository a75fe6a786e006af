//! What an image brings to /tmp and /run is there, as it is in the image, or the report says why not.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::bed::{Bed, IMAGE};
use integration::cases;
use integration::cgroups;
use integration::client::NAMESPACE;
use integration::container::{Builder, overlay};
use integration::patience::patience;
use integration::processes::{self, Role};
use integration::runtime::Needs;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::mounts::binds::bound;

cases! {
    Needs::Bulkhead => [
        what_an_image_has_in_tmp_and_run_is_as_on_runc,
        scratch_with_folders_of_an_image_has_its_size,
        what_cannot_be_shown_is_reported_and_never_opened,
        a_folder_with_too_much_in_it_starts_at_once,
        a_place_that_is_a_link_holds_nothing_of_the_hosts,
        what_a_client_mounts_is_what_is_there,
        what_is_masked_in_an_images_run_is_hidden,
        a_writable_root_has_its_own_tmp_where_that_holds_something,
        a_missing_working_folder_is_made_where_runc_makes_it,
        a_working_folder_that_cannot_be_made_is_named,
        what_a_link_in_scratch_leads_to_is_refused_by_name,
        a_root_that_is_a_clients_folder_keeps_nothing,
    ],
}

/// A layer on the tests' image.
struct Layer {
    folder: PathBuf,
}

impl Layer {
    fn new(bed: &Bed) -> Self {
        let folder = bed.folder.join(bed.id("layer"));
        fs::create_dir_all(folder.join("upper")).expect("make a layer");
        let layer = Self { folder };
        layer.folder("tmp", 0o1777, 0).folder("run", 0o755, 0)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join("upper").join(name)
    }

    fn own(path: &Path, mode: u32, user: u32) {
        chown(path, Some(user), Some(user)).expect("chown");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    fn folder(self, name: &str, mode: u32, user: u32) -> Self {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("make a folder");
        Self::own(&path, mode, user);
        self
    }

    fn file(self, name: &str, text: &str, mode: u32, user: u32) -> Self {
        let path = self.path(name);
        fs::write(&path, text).expect("write");
        Self::own(&path, mode, user);
        self
    }

    /// A container of it without any mount at /tmp or /run.
    fn bare<'a>(&self, builder: Builder<'a>) -> Builder<'a> {
        let usual =
            |mount: &Value| mount["destination"] != "/tmp" && mount["destination"] != "/run";
        self.as_of_ctr(builder).with(|spec| {
            let mounts = spec["mounts"].as_array_mut().expect("mounts");
            mounts.retain(usual);
        })
    }

    /// A container of it with the mounts that ctr makes.
    fn as_of_ctr<'a>(&self, builder: Builder<'a>) -> Builder<'a> {
        let builder = builder.rootfs(overlay(Path::new(IMAGE), &self.folder));
        builder.with(|spec| {
            let mounts = spec["mounts"].as_array_mut().expect("mounts");
            mounts.retain(|mount| mount["destination"] != "/tmp");
        })
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn as_user(spec: &mut Value, cwd: &str) {
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    spec["process"]["cwd"] = json!(cwd);
}

async fn output(builder: Builder<'_>) -> String {
    let done = builder.run().await.expect("run").finish().await;
    assert_eq!(done.status, 0, "{done:?}");
    done.stdout
}

/// The same on runc, which leaves a cgroup where it found none.
async fn on_runc(builder: Builder<'_>) -> String {
    let groups = cgroups::hierarchies().into_iter();
    let groups = groups.map(|hierarchy| hierarchy.path.join(NAMESPACE));
    let absent: Vec<PathBuf> = groups.filter(|group| !group.exists()).collect();
    let text = output(builder.on("io.containerd.runc.v2")).await;
    for group in absent.iter().filter(|group| group.exists()) {
        fs::remove_dir(group).expect("an empty cgroup");
    }
    text
}

/// Runs a container, and returns what it printed and what was reported.
async fn told(bed: &Bed, builder: Builder<'_>) -> (String, Vec<String>) {
    let since = Instant::now();
    let container = builder.run().await.expect("run");
    let passed = since.elapsed();
    assert!(passed < patience(Duration::from_secs(3)), "{passed:?}");
    let file = bed.bundle(&container.id).join("bulkhead-explanation.json");
    let text = fs::read(file).expect("an explanation");
    let explanation: Value = serde_json::from_slice(&text).expect("JSON");
    let changes = explanation["changes"].as_array().expect("changes").iter();
    let of_the_image = changes.filter(|change| change["control"] == "image");
    let lines = of_the_image.map(|change| {
        let text = |key: &str| change[key].as_str().expect("text").to_owned();
        format!("{}: {}", text("asked"), text("given"))
    });
    let lines = lines.collect();
    let done = container.finish().await;
    assert_eq!(done.status, 0, "{done:?}");
    (done.stdout, lines)
}

async fn what_an_image_has_in_tmp_and_run_is_as_on_runc(bed: &Bed) {
    let layer = Layer::new(bed)
        .file("tmp/run.sh", "#!/bin/sh\necho ran\n", 0o755, 0)
        .folder("tmp/deep", 0o700, 1000)
        .folder("tmp/deep/er", 0o770, 1000)
        .file("tmp/deep/er/file", "deep\n", 0o600, 1000)
        .folder("run/postgresql", 0o3777, 1000)
        .folder("run/app", 0o2750, 1000)
        .file("run/app/conf", "configured\n", 0o440, 1000)
        .folder("run/closed", 0, 0)
        .file("run/closed/key", "secret\n", 0o600, 0);
    let script = "/tmp/run.sh; cat conf /tmp/deep/er/file; pwd; \
                  echo new >new && cat new; echo x >/run/postgresql/s && echo x >/tmp/deep/er/x && echo x >/tmp/x; \
                  ls /run/closed 2>&1; ls -A /tmp /run . /tmp/deep/er; cd /; \
                  stat -c '%n %a %u %g %F' /tmp /run /tmp/* /tmp/deep/* /tmp/deep/er/file /run/* /run/app/conf";
    let builder = || {
        let builder = layer.bare(bed.shell(script));
        builder.with(|spec| {
            as_user(spec, "/run/app");
            spec["root"]["readonly"] = false.into();
        })
    };
    let expected = on_runc(builder()).await;
    for word in [
        "ran\n",
        "configured\ndeep\n/run/app\nnew\n",
        "/run/app 2750 1000 1000 directory",
    ] {
        assert!(expected.contains(word), "{word}: {expected}");
    }
    // What was written is in the layer.
    for new in ["run/app/new", "run/postgresql/s", "tmp/deep/er/x", "tmp/x"] {
        fs::remove_file(layer.path(new)).expect("runc's");
    }
    assert_eq!(output(builder()).await, expected);
    // ctr's own /run is there for nobody's wish.
    let of_ctr = layer.as_of_ctr(bed.shell(script));
    let of_ctr = of_ctr.with(|spec| as_user(spec, "/run/app"));
    assert_eq!(output(of_ctr).await, expected);
    for new in ["run/app/new", "tmp/x"] {
        assert!(!layer.path(new).exists(), "{new}");
    }
}

async fn scratch_with_folders_of_an_image_has_its_size(bed: &Bed) {
    let layer = Layer::new(bed)
        .folder("tmp/a", 0o777, 0)
        .folder("tmp/b", 0o777, 0);
    let script = "for f in /tmp /tmp/a /tmp/b /run; do df -k $f | tail -n 1 | awk '{ print $2, $6 }'; done; \
                  dd if=/dev/zero of=/tmp/a/x bs=1M count=100 2>/dev/null || echo full; mount | grep ' /tmp'";
    let (text, lines) = told(bed, layer.bare(bed.shell(script))).await;
    assert!(
        text.starts_with("32768 /tmp\n16384 /tmp/a\n16384 /tmp/b\n8192 /run\nfull\n"),
        "{text}"
    );
    assert_eq!(text.matches("noexec").count(), 3, "{text}");
    assert_eq!(
        lines,
        ["67108864 bytes for all of /tmp: 33554432 bytes, and 16777216 for each of its 2 folders"]
    );
}

async fn what_cannot_be_shown_is_reported_and_never_opened(bed: &Bed) {
    let layer = Layer::new(bed)
        .file("tmp/file", "a file\n", 0o644, 0)
        .folder("tmp/in", 0o755, 0);
    let made = |name: &str| layer.path(name);
    symlink("/etc/passwd", made("tmp/in/link")).expect("link");
    symlink("../../../../../../etc", made("tmp/out")).expect("link");
    nix::unistd::mkfifo(&made("tmp/fifo"), Mode::S_IRWXU).expect("make a FIFO");
    mknod(
        &made("tmp/device"),
        SFlag::S_IFCHR,
        Mode::S_IRWXU,
        makedev(240, 7),
    )
    .expect("make a node");
    UnixListener::bind(made("run/socket")).expect("bind");
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"tmp/\xff");
    fs::write(layer.folder.join("upper").join(name), "").expect("write");
    fs::write(made("tmp/a\nline"), "").expect("write");
    let script = "cat /tmp/file; ls -A /tmp /tmp/in /run; echo x >/tmp/fifo && cat /tmp/fifo";
    let (text, lines) = told(bed, layer.bare(bed.shell(script))).await;
    let seen = "a file\n/run:\n\n/tmp:\na?line\nfile\nin\n\n/tmp/in:\nx\n";
    assert_eq!(text, seen);
    for line in [
        r"a\nline, file in /tmp, to write: read-only",
        "device in /tmp: not shown: a device",
        "fifo in /tmp: not shown: a FIFO",
        "out, in/link in /tmp: not shown: a link",
        "socket in /run: not shown: a socket",
        "in /tmp: not shown: its name is no text",
    ] {
        assert!(
            lines.iter().any(|told| told.ends_with(line)),
            "{line}: {lines:#?}"
        );
    }
}

async fn a_folder_with_too_much_in_it_starts_at_once(bed: &Bed) {
    const FILES: usize = 20_000;
    let layer = Layer::new(bed).folder("tmp/many", 0o755, 0);
    for number in 0..FILES {
        fs::write(layer.path(&format!("tmp/many/{number}")), "").expect("write");
        fs::hard_link(
            layer.path(&format!("tmp/many/{number}")),
            layer.path(&format!("run/{number}")),
        )
        .expect("link");
    }
    let deep: PathBuf = std::iter::repeat_n("d", 30).collect();
    fs::create_dir_all(layer.path("tmp").join(&deep)).expect("make folders");
    fs::write(layer.path("tmp").join(&deep).join("file"), "deepest\n").expect("write");
    let script = format!(
        "ls /tmp/many | wc -l; ls -A /run; echo x >/run/x && ls /run; cat /tmp/{}/file; \
         echo x >/tmp/d/d/x && echo x >/tmp/d/d/d/d/d/x || echo whole",
        deep.display()
    );
    let (text, lines) = told(bed, layer.bare(bed.shell(&script))).await;
    assert_eq!(text, format!("{FILES}\nx\ndeepest\nwhole\n"));
    for line in [
        "* in /run: not shown: too many files and folders",
        "many, d/d/d/d/d in /tmp, to write: read-only",
    ] {
        assert!(lines.iter().any(|told| told == line), "{line}: {lines:#?}");
    }
}

async fn a_place_that_is_a_link_holds_nothing_of_the_hosts(bed: &Bed) {
    for (target, says) in [
        ("/../../../../../../srv/there", "in the image\n"),
        ("../srv/there", "in the image\n"),
        ("/", "none: the image has a link to its root there"),
        ("/srv/none", "/tmp: a link to what is not there"),
        ("loop", "/tmp: a link to what is not there"),
        (
            "/etc/passwd",
            "none: the image has something else than a folder there",
        ),
    ] {
        let layer = Layer::new(bed).folder("srv/there", 0o1777, 0).file(
            "srv/there/file",
            "in the image\n",
            0o644,
            0,
        );
        fs::remove_dir(layer.path("tmp")).expect("remove");
        symlink(target, layer.path("tmp")).expect("link");
        let script = "cat /tmp/file 2>/dev/null; true";
        let since = Instant::now();
        match layer.bare(bed.shell(script)).run().await {
            Ok(container) => {
                let file = bed.bundle(&container.id).join("bulkhead-explanation.json");
                let told = fs::read_to_string(file).expect("an explanation");
                let done = container.finish().await;
                assert!(
                    told.contains(says) || done.stdout.contains(says),
                    "{target}: {done:?} {told}"
                );
            }
            Err(error) => assert!(error.message().contains(says), "{target}: {error:?}"),
        }
        let passed = since.elapsed();
        assert!(
            passed < patience(Duration::from_secs(3)),
            "{target}: {passed:?}"
        );
    }
}

async fn what_a_client_mounts_is_what_is_there(bed: &Bed) {
    let layer = Layer::new(bed)
        .folder("run/app", 0o755, 0)
        .file("run/app/conf", "the image's\n", 0o644, 0)
        .file("run/name", "the image's\n", 0o644, 0)
        .file("tmp/file", "the image's\n", 0o644, 0);
    symlink("run", layer.path("r")).expect("link");
    let own = bed.folder.join(bed.id("own"));
    fs::create_dir_all(&own).expect("make a folder");
    fs::write(own.join("conf"), "the client's\n").expect("write");
    for app in ["/run/app", "/r/app", "/r/app/conf"] {
        let source = if app.ends_with("conf") {
            own.join("conf")
        } else {
            own.clone()
        };
        let builder = layer.bare(bed.shell("cat /run/app/conf /run/name; ls -A /tmp"));
        let builder = bound(builder, &source, app).with(|spec| {
            let mounts = spec["mounts"].as_array_mut().expect("mounts");
            mounts.push(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"] }));
        });
        assert_eq!(
            output(builder).await,
            "the client's\nthe image's\n",
            "{app}"
        );
    }
    // As runc's engines ask for a copy.
    let builder = layer.bare(bed.shell("cat /tmp/file")).with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
    });
    assert_eq!(output(builder).await, "the image's\n");
    fs::remove_dir_all(own).expect("remove");
}

async fn what_is_masked_in_an_images_run_is_hidden(bed: &Bed) {
    let layer = Layer::new(bed)
        .folder("run/app", 0o755, 0)
        .file("run/app/key", "secret\n", 0o644, 0)
        .file("run/key", "secret\n", 0o644, 0)
        .folder("run/keys", 0o755, 0)
        .file("run/keys/key", "secret\n", 0o644, 0);
    let script =
        "cat /run/key /run/app/key; ls -A /run/keys; ls -A /run; echo x >/run/app/x || echo held";
    let builder = layer.bare(bed.shell(script)).with(|spec| {
        spec["linux"]["maskedPaths"] = json!(["/run/key", "/run/app/key", "/run/keys"]);
        spec["linux"]["readonlyPaths"] = json!(["/run"]);
    });
    assert_eq!(output(builder).await, "app\nkey\nkeys\nheld\n");
}

async fn a_writable_root_has_its_own_tmp_where_that_holds_something(bed: &Bed) {
    let layer = Layer::new(bed)
        .file("tmp/file", "the image's\n", 0o666, 0)
        .folder("run/app", 0o755, 1000);
    fs::remove_dir_all(layer.path("run/app")).expect("remove");
    let script = "cat /tmp/file && echo new >/tmp/file && cat /tmp/file && rm /tmp/file; \
                  stat -c '%a %u' /tmp /run; df -k /run | tail -n 1 | awk '{ print $2, $6 }'; mount | grep -c ' /tmp '";
    let builder = layer.bare(bed.shell(&format!("{script}; true")));
    let builder = builder.policy("", "rootfs.writable = true");
    let builder = builder.with(|spec| spec["root"]["readonly"] = false.into());
    assert_eq!(
        output(builder).await,
        "the image's\nnew\n1777 0\n755 0\n8192 /run\n0\n"
    );
    assert_eq!(
        fs::read_to_string(layer.path("tmp/file")).expect("read"),
        "the image's\n"
    );
}

async fn a_missing_working_folder_is_made_where_runc_makes_it(bed: &Bed) {
    let layer = Layer::new(bed).folder("srv/real", 0o755, 0);
    symlink("../../../srv/real", layer.path("srv/link")).expect("link");
    for cwd in [
        "/work/deep",
        "/srv/link/new",
        "/run/new/deep",
        "/tmp/new",
        "/dev/shm/new",
    ] {
        let expected = format!("{}\n755 0 0\n", cwd.replace("link", "real"));
        for runc in [true, false] {
            let builder = layer.bare(bed.shell("pwd; stat -c '%a %u %g' ."));
            let builder = builder.with(|spec| spec["process"]["cwd"] = cwd.into());
            let text = if runc {
                on_runc(builder).await
            } else {
                output(builder).await
            };
            assert_eq!(text, expected, "runc: {runc}");
            for made in [cwd.trim_start_matches('/'), "srv/real/new"] {
                let _ = fs::remove_dir_all(layer.path(made));
            }
        }
    }
}

async fn refused(builder: Builder<'_>, words: &[&str]) {
    let error = builder.run().await.expect_err("refused");
    for word in words {
        assert!(error.message().contains(word), "{word}: {error:?}");
    }
}

/// Its links are not to be seen there: a bind would come to stand elsewhere, and a working folder be a new one.
async fn what_a_link_in_scratch_leads_to_is_refused_by_name(bed: &Bed) {
    let layer = Layer::new(bed)
        .folder("opt/app", 0o755, 0)
        .folder("srv", 0o755, 0)
        .file("opt/app/file", "the image's\n", 0o644, 0);
    symlink("/opt/app", layer.path("tmp/app")).expect("link");
    symlink("../tmp/app", layer.path("run/again")).expect("link");
    let own = bed.folder.join(bed.id("own"));
    fs::create_dir_all(&own).expect("make a folder");
    fs::write(own.join("conf"), "the client's\n").expect("write");
    symlink("/tmp/app", own.join("link")).expect("link");
    let at = |cwd: &'static str| {
        let builder = layer.bare(bed.shell("pwd; cat file /tmp/app/data/conf"));
        builder.with(move |spec| spec["process"]["cwd"] = cwd.into())
    };
    let link = "/tmp/app is a link of the image, and not to be seen in what is mounted at /tmp: name the place that it \
                leads to, or allow the root to be written (policy key rootfs.writable)";
    for place in ["/tmp/app/data", "/tmp/app"] {
        let place_word = format!("mounts: destination {place}: {link}");
        refused(bound(at("/"), &own, place), &[&place_word]).await;
    }
    let again = ["mounts: destination /run/again/data: /run/again is a link"];
    refused(bound(at("/"), &own, "/run/again/data"), &again).await;
    for cwd in ["/tmp/app", "/tmp/app/new", "/srv/link"] {
        let word = format!("process.cwd: {cwd}: {link}");
        refused(bound(at(cwd), &own, "/srv"), &[&word]).await;
    }
    let copied = at("/").with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        let options = ["tmpcopyup"];
        mounts.push(json!({ "destination": "/tmp/app/data", "type": "tmpfs", "source": "tmpfs", "options": options }));
    });
    refused(copied, &["what the image has at /tmp/app/data", link]).await;
    assert!(!layer.path("opt/app/data").exists() && !layer.path("opt/app/new").exists());
    // By the key of the message, and as runc does.
    for runc in [false, true] {
        let builder = bound(at("/tmp/app"), &own, "/tmp/app/data");
        let builder = builder.with(|spec| spec["root"]["readonly"] = false.into());
        let text = if runc {
            on_runc(builder).await
        } else {
            output(builder.policy("", "rootfs.writable = true")).await
        };
        assert_eq!(
            text, "/opt/app\nthe image's\nthe client's\n",
            "runc: {runc}"
        );
    }
    fs::remove_dir_all(own).expect("remove");
}

async fn a_working_folder_that_cannot_be_made_is_named(bed: &Bed) {
    let mut layer = Layer::new(bed).folder("tmp/full", 0o755, 0);
    for number in 0..60 {
        layer = layer.file(&format!("tmp/full/{number}"), "", 0o644, 0);
    }
    let own = bed.folder.join(bed.id("own"));
    fs::create_dir_all(&own).expect("make a folder");
    // The tests' image is mounted read-only.
    let builder = bed
        .shell("pwd")
        .with(|spec| spec["process"]["cwd"] = "/work".into());
    refused(
        builder,
        &[
            "process.cwd: /work",
            "ead-only file system",
            "rootfs.writable",
        ],
    )
    .await;
    let builder = layer.bare(bed.shell("pwd"));
    let builder = builder.with(|spec| spec["process"]["cwd"] = "/etc/passwd".into());
    refused(builder, &["process.cwd: /etc/passwd is no folder"]).await;
    let builder = layer.bare(bed.shell("pwd")).with(|spec| {
        spec["process"]["cwd"] = "/srv/x".into();
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({ "destination": "/srv", "type": "bind", "source": own, "options": ["rbind", "ro"] }));
    });
    refused(
        builder,
        &["process.cwd: /srv/x", "No such file", "bound read-only"],
    )
    .await;
    assert_eq!(fs::read_dir(&own).expect("list").count(), 0);
    fs::remove_dir(own).expect("remove");
    // The image's own, of which too much is there for scratch.
    let builder = layer.bare(bed.shell("pwd"));
    let builder = builder.with(|spec| spec["process"]["cwd"] = "/tmp/full/new".into());
    let words = [
        "process.cwd: /tmp/full/new",
        "No such file",
        "make it in the image",
        "rootfs.writable",
    ];
    refused(builder, &words).await;
}

async fn a_root_that_is_a_clients_folder_keeps_nothing(bed: &Bed) {
    let root = bed.folder.join(bed.id("root"));
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(IMAGE)
        .arg(&root)
        .status();
    assert!(copied.expect("cp").success());
    let names = || {
        let mut names: Vec<_> = fs::read_dir(&root)
            .expect("list")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        names.sort();
        names
    };
    let before = names();
    let id = bed.id("own");
    let builder = || {
        let mut builder = bed.named(
            &id,
            &["sh", "-c", "echo written >/x && cat /x && exec sleep 1000"],
        );
        builder.rootfs.clear();
        let builder = builder.policy("", "rootfs.writable = true");
        builder.with(|spec| spec["root"] = json!({ "path": root, "readonly": false }))
    };
    for crash in [false, true, false] {
        let container = builder().run().await.expect("run");
        assert_eq!(names(), before, "others could read it while it runs");
        if crash {
            assert_eq!(
                processes::kill_role(Role::Shim, &container.id),
                1,
                "one shim"
            );
        } else {
            container.kill(9).await.expect("kill");
        }
        container.remove().await;
        assert_eq!(names(), before);
    }
    // One that nobody can write.
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(
        Some(&root),
        &root,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .expect("bind");
    mount(None::<&str>, &root, None::<&str>, flags, None::<&str>).expect("read-only");
    builder().run().await.expect("run").remove().await;
    umount2(&root, MntFlags::MNT_DETACH).expect("unmount");
    assert_eq!(names(), before);
    fs::remove_dir_all(root).expect("remove");
}
