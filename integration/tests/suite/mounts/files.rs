//! Files in great number: the guest's own work is slow or fails, and nothing else does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::types::Mount;
use integration::bed::{Bed, IMAGE};
use integration::container::{Builder, Container, overlay};
use integration::exec::Exec;
use integration::policy::NodePolicy;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};

use integration::cases;

use crate::life::pod::{end, member, sandbox};

cases! {
    Needs::Bulkhead => [
        more_names_than_are_remembered_are_only_slow,
        more_open_files_than_there_are_descriptors_fail_in_the_guest_alone,
        many_mounts_and_containers_share_one_bound,
        the_containers_of_a_pod_hold_all_they_can_and_their_sandbox_runs_on,
        a_bind_shows_what_the_host_writes_unless_the_request_says_that_nobody_does,
        what_is_written_to_an_exclusive_bind_is_the_hosts_at_once,
    ],
}

const SIGUSR1: u32 = 10;

/// Folders of empty files, on the host's disk.
struct Tree(PathBuf);

impl Tree {
    fn new(bed: &Bed, folders: usize, each: usize) -> Self {
        let root = bed.folder.join(bed.id("tree"));
        for folder in 0..folders {
            let folder = root.join(folder.to_string());
            fs::create_dir_all(&folder).expect("make a folder");
            for file in 0..each {
                fs::File::create(folder.join(file.to_string())).expect("make a file");
            }
        }
        Self(root)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The image with Python, for as long as a test needs it.
struct Python<'a>(&'a Bed, PathBuf);

impl<'a> Python<'a> {
    fn new(bed: &'a Bed) -> Self {
        Self(bed, bed.image("python"))
    }

    /// A container for `files.py` to work in, with a folder.
    fn container(&self, folder: &Path) -> Builder<'a> {
        bound(
            self.image(self.0.container(&["/bin/sleep", "1000"])),
            folder,
            "/srv",
        )
    }

    /// With the image for its root.
    fn image<'b>(&self, builder: Builder<'b>) -> Builder<'b> {
        let mount = Mount {
            r#type: "bind".into(),
            source: self.1.display().to_string(),
            target: String::new(),
            options: vec!["rbind".into(), "ro".into()],
        };
        builder.rootfs(mount)
    }

    /// `files.py`, started.
    async fn start<'c>(&self, container: &'c Container<'a>, what: &str) -> Exec<'c, 'a> {
        let script = include_str!("files.py");
        let work = ["/usr/bin/python3", "-c", script, what, "/srv"];
        container.exec(what, &work).run().await.expect("exec")
    }
}

/// What `files.py` prints.
async fn finished(work: Exec<'_, '_>) -> String {
    let done = work.finish().await;
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    done.stdout
}

impl Drop for Python<'_> {
    fn drop(&mut self) {
        let place = self.1.display().to_string();
        let _ = self.0.ctr(&["image", "unmount", "--rm", &place]);
    }
}

/// With a limit of open files that leaves it to the gofer.
fn wide(builder: Builder<'_>) -> Builder<'_> {
    let limit = json!([{ "type": "RLIMIT_NOFILE", "hard": 1_048_576, "soft": 1_048_576 }]);
    builder.with(|spec| spec["process"]["rlimits"] = limit)
}

/// With a root in which places for binds can be made.
fn rooted<'a>(bed: &Bed, builder: Builder<'a>) -> Builder<'a> {
    builder.rootfs(overlay(Path::new(IMAGE), &bed.folder.join(bed.id("root"))))
}

fn bound<'a>(builder: Builder<'a>, folder: &Path, place: &str) -> Builder<'a> {
    builder.with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({
            "destination": place, "type": "bind", "source": folder, "options": ["rbind", "rw"],
        }));
    })
}

/// A flag of the sandbox, as `bulkhead explain` tells it.
fn number(bed: &Bed, id: &str, flag: &str) -> usize {
    let file = bed.bundle(id).join("bulkhead-explanation.json");
    let text = fs::read_to_string(file).expect("the explanation");
    let told: Value = serde_json::from_str(&text).expect("JSON");
    let mut flags = told["flags"].as_array().expect("flags").iter();
    let value = flags.find_map(|given| given.as_str()?.strip_prefix(flag));
    value.and_then(|value| value.parse().ok()).expect(flag)
}

/// The most descriptors that the sentry or a gofer of a sandbox has.
fn most_descriptors(id: &str) -> usize {
    let all = [Role::Sandbox, Role::Gofer].map(|role| processes::of(role, id));
    let counts = all
        .iter()
        .flatten()
        .map(|one| processes::descriptors(one.pid));
    counts.map(Option::unwrap_or_default).max().expect("one")
}

/// How many files must be there for more than are remembered. It is counted, not timed.
fn beyond_what_is_remembered() -> usize {
    (most() / 5 * 2).min(16_384) + 2000
}

async fn more_names_than_are_remembered_are_only_slow(bed: &Bed) {
    let (python, count) = (Python::new(bed), beyond_what_is_remembered());
    let tree = Tree::new(bed, 20, count / 20 + 1);
    let container = python.container(&tree.0).run().await.expect("run");
    let (dentries, limit) = (
        number(bed, &container.id, "--dcache="),
        number(bed, &container.id, "--fdlimit="),
    );
    assert!(
        dentries < count && 2 * dentries < limit,
        "{dentries} {limit}"
    );
    let files = count / 20 * 20 + 20;
    let done = finished(python.start(&container, "walk").await).await;
    assert_eq!(done, format!("done {files}\n"));
    assert!(most_descriptors(&container.id) <= limit);
    container.remove().await;
}

/// How many descriptors a process of this host may have, or a gofer of a plain container at most.
fn most() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    usize::try_from(most).unwrap_or(usize::MAX).min(65_536)
}

/// Waits until the gofer of a container has no descriptor left.
async fn full(id: &str, limit: usize) {
    let is_full = || {
        let gofers = processes::of(Role::Gofer, id);
        let mut open = gofers
            .iter()
            .filter_map(|one| processes::descriptors(one.pid));
        open.any(|open| open + 16 >= limit)
    };
    eventually("nothing is left", Duration::from_secs(100), is_full).await;
}

/// How many files a program held, which ran into the limit of its gofer.
fn held(output: &str) -> usize {
    assert!(output.contains(" EMFILE"), "{output:?}");
    let held = output.split([' ', '\n']).nth(1);
    held.and_then(|word| word.parse().ok()).expect("a number")
}

async fn serves(container: &Container<'_>) {
    let after = ["/bin/cat", "/etc/passwd"];
    let done = container.exec("after", &after).finish().await;
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
}

/// The program hears EMFILE, others of its container may while it holds them, and what it gives back is there again.
async fn more_open_files_than_there_are_descriptors_fail_in_the_guest_alone(bed: &Bed) {
    let (python, files) = (Python::new(bed), most() / 2 + 2000);
    let tree = Tree::new(bed, 10, files / 10 + 1);
    let neighbour = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let _policy = NodePolicy::set("limits.open_files = 1048576\nlimits.memory_mib = 1024");
    let container = wide(python.container(&tree.0)).run().await.expect("run");
    let limit = number(bed, &container.id, "--fdlimit=");
    assert!(limit <= most(), "{limit}");
    let hold = python.start(&container, "hold").await;
    full(&container.id, limit).await;
    serves(&neighbour).await;
    // It may fail: a program of this container needs files as well. It has an answer.
    if let Ok(exec) = container.exec("during", &["/bin/true"]).run().await {
        exec.finish().await;
    }
    hold.kill(SIGUSR1).await.expect("signal");
    let held = held(&finished(hold).await);
    assert!((limit / 4..=limit / 2).contains(&held), "{held} of {limit}");
    assert!(most_descriptors(&container.id) <= limit);
    serves(&container).await;
    container.remove().await;
    neighbour.remove().await;
}

/// A sentry has a descriptor for each file that is open in any container, and ends where it has none left.
async fn the_containers_of_a_pod_hold_all_they_can_and_their_sandbox_runs_on(bed: &Bed) {
    let python = Python::new(bed);
    let tree = Tree::new(bed, 10, most() / 20 + 201);
    let policy = format!(
        "limits.open_files = 1048576\nlimits.memory_mib = 1024\nbinds.writable = [{:?}]",
        tree.0
    );
    let _policy = NodePolicy::set(&policy);
    let pod = sandbox(bed).await;
    let mut members = Vec::new();
    for _ in 0..4 {
        let one = wide(python.image(member(bed, &pod, "sleep 1000")));
        members.push(bound(one, &tree.0, "/srv").run().await.expect("run"));
    }
    let mut holds = Vec::new();
    for one in &members {
        let limit = number(bed, &one.id, "--fdlimit=");
        assert!(4 * limit <= number(bed, &pod.id, "--fdlimit="), "{limit}");
        let hold = python.start(one, "hold").await;
        full(&one.id, limit).await;
        holds.push(hold);
    }
    serves(&pod).await;
    for hold in holds {
        hold.kill(SIGUSR1).await.expect("signal");
        assert!(held(&finished(hold).await) > 0);
    }
    for one in members {
        serves(&one).await;
        one.remove().await;
    }
    end(pod).await;
}

async fn many_mounts_and_containers_share_one_bound(bed: &Bed) {
    let tree = Tree::new(bed, 12, 100);
    let policy = format!("runsc.dentry_cache = 256\nbinds.writable = [{:?}]", tree.0);
    let _policy = NodePolicy::set(&policy);
    let pod = sandbox(bed).await;
    let dentries = number(bed, &pod.id, "--dcache=");
    assert_eq!(dentries, 256);
    let mut members = Vec::new();
    for _ in 0..4 {
        let mut one = rooted(bed, member(bed, &pod, "sleep 1000"));
        for mount in 0..12 {
            let folder = tree.0.join(mount.to_string());
            one = bound(one, &folder, &format!("/srv/{mount}"));
        }
        let one = one.run().await.expect("run");
        let read = ["sh", "-c", "find /srv -type f -exec cat {} + && echo read"];
        let done = one.exec("read", &read).finish().await;
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("read\n", ""));
        members.push(one);
    }
    // What all gofers keep open is of the one cache: names and their content.
    let ids = std::iter::once(&pod.id).chain(members.iter().map(|one| &one.id));
    let open: Vec<usize> = ids
        .flat_map(|id| processes::of(Role::Gofer, id))
        .filter_map(|gofer| processes::descriptors(gofer.pid))
        .collect();
    // Of a gofer some 40, and some 8 for each mount: each container reads 1200 files, and a cache for each mount would keep all.
    let own = 40 * open.len() + 10 * 12 * members.len();
    assert_eq!(open.len(), 5, "{open:?}");
    assert!(open.iter().sum::<usize>() <= 2 * dentries + own, "{open:?}");
    for one in members {
        one.remove().await;
    }
    end(pod).await;
}

async fn a_bind_shows_what_the_host_writes_unless_the_request_says_that_nobody_does(bed: &Bed) {
    let tree = Tree::new(bed, 1, 1);
    let see = "ls /srv/0; cat /srv/0/later";
    for (policy, asked, access) in [
        ("", None, "shared"),
        ("", Some("exclusive"), "exclusive"),
        ("binds.exclusive = true", None, "exclusive"),
        ("binds.exclusive = true", Some("shared"), "shared"),
    ] {
        let _policy = NodePolicy::set(policy);
        let container = bound(bed.container(&["sleep", "1000"]), &tree.0, "/srv");
        let container = container.with(|spec| {
            if let Some(asked) = asked {
                spec["annotations"]["dev.bulkhead.binds"] = asked.into();
            }
        });
        let container = container.run().await.expect("run");
        let file = bed.bundle(&container.id).join("bulkhead-explanation.json");
        let text = fs::read_to_string(file).expect("the explanation");
        let flag = format!("--file-access-mounts={access}");
        assert!(text.contains(&flag), "{policy} {asked:?}: {text}");
        let before = container.exec("before", &["sh", "-c", see]).finish().await;
        assert_eq!(before.stdout, "0\n");
        fs::write(tree.0.join("0/later"), "later").expect("write");
        let after = container.exec("after", &["sh", "-c", see]).finish().await;
        // An exclusive bind promises nothing of what others write.
        if access == "shared" {
            assert_eq!(after.stdout, "0\nlater\nlater");
        }
        fs::remove_file(tree.0.join("0/later")).expect("remove");
        container.remove().await;
    }
    // The same folder by two ways would be remembered twice.
    let twice = rooted(bed, bed.container(&["sleep", "1000"]));
    let twice = bound(twice, &tree.0, "/srv");
    let twice = bound(twice, &tree.0.join("0"), "/mnt/twice").with(|spec| {
        spec["annotations"]["dev.bulkhead.binds"] = "exclusive".into();
    });
    let twice = twice.run().await.expect("run");
    let file = bed.bundle(&twice.id).join("bulkhead-explanation.json");
    let text = fs::read_to_string(file).expect("the explanation");
    assert!(text.contains("--file-access-mounts=shared"), "{text}");
    assert!(text.contains("have files in common"), "{text}");
    twice.remove().await;
}

/// A kill takes nothing of it.
async fn what_is_written_to_an_exclusive_bind_is_the_hosts_at_once(bed: &Bed) {
    let tree = Tree::new(bed, 1, 1);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(tree.0.join("0"), open).expect("chmod");
    let script =
        "cd /srv/0; echo one >new; echo two >>new; mv new moved; mkdir made; echo three >made/file";
    let container = bound(bed.container(&["sleep", "1000"]), &tree.0, "/srv").with(|spec| {
        spec["annotations"]["dev.bulkhead.binds"] = "exclusive".into();
    });
    let container = container.run().await.expect("run");
    let done = container
        .exec("write", &["sh", "-c", script])
        .finish()
        .await;
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    processes::kill_role(Role::Sandbox, &container.id);
    let read = |name: &str| fs::read_to_string(tree.0.join("0").join(name)).expect("read");
    assert_eq!(read("moved"), "one\ntwo\n");
    assert_eq!(read("made/file"), "three\n");
    container.remove().await;
}
