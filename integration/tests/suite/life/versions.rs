//! Versions of one shim beside and after each other, and one containerd for several owners of the same ids.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::bed::{Bed, IMAGE_NAME, PATH_FOLDER, STATE, tool};
use integration::cgroups;
use integration::container::Container;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;

use integration::cases;

cases! {
    Needs::Bulkhead => [
        two_versions_by_their_paths_serve_their_own_containers,
        two_versions_by_their_names_serve_their_own_containers,
        a_new_binary_serves_new_containers_and_the_old_one_its_own,
        one_id_in_two_namespaces_is_two_containers,
    ],
}

/// A copy of the shim under a name of its own. It is taken away when this is dropped.
struct Copy(PathBuf);

impl Copy {
    fn new(bed: &Bed, folder: &str, name: &str) -> Self {
        let folder = bed.folder.join("versions").join(folder);
        fs::create_dir_all(&folder).expect("make a folder");
        let copy = folder.join(name);
        let shim = tool(&bed.runtime.binary()).expect("the shim");
        fs::copy(shim, &copy).expect("copy the shim");
        Self(copy)
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The file that a container's one shim was started from.
fn program(id: &str) -> PathBuf {
    let shims = processes::of(Role::Shim, id);
    assert_eq!(shims.len(), 1, "{shims:?}");
    fs::read_link(format!("/proc/{}/exe", shims[0].pid)).expect("the shim's program")
}

async fn runs(container: &Container<'_>) {
    let done = container.exec("still", &["echo", "here"]).finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (0, "here\n"));
}

/// Two containers of two runtimes: each has the shim it asked for, before and after containerd was away, and the end of the
/// one is not the end of the other.
async fn side_by_side(bed: &Bed, runtimes: [&str; 2], programs: [&Path; 2]) {
    let run = async |runtime: &str| {
        let container = bed.container(&["sleep", "1000"]).on(runtime);
        container.run().await.expect("run")
    };
    let (one, two) = (run(runtimes[0]).await, run(runtimes[1]).await);
    for _ in 0..2 {
        assert_eq!([&one, &two].map(|it| program(&it.id)), programs);
        runs(&one).await;
        runs(&two).await;
        bed.kill_containerd();
        bed.start_containerd().await;
    }
    one.kill(9).await.expect("kill");
    assert_eq!(one.wait().await.expect("wait").status, 137);
    one.delete().await.expect("delete");
    eventually("its shim ends", Duration::from_secs(5), || {
        processes::of(Role::Shim, &one.id).is_empty()
    })
    .await;
    runs(&two).await;
    // A shim that died: what it left is removed by its own binary.
    assert_eq!(processes::kill_role(Role::Shim, &two.id), 1);
    two.remove().await;
}

async fn two_versions_by_their_paths_serve_their_own_containers(bed: &Bed) {
    let binary = bed.runtime.binary();
    let (old, new) = (
        Copy::new(bed, "old", &binary),
        Copy::new(bed, "new", &binary),
    );
    side_by_side(bed, [&old.path(), &new.path()], [&old.0, &new.0]).await;
}

async fn two_versions_by_their_names_serve_their_own_containers(bed: &Bed) {
    let name = "containerd-shim-bulkheadnext-v1";
    let next = Copy::new(bed, "names", name);
    let link = Path::new(PATH_FOLDER).join(name);
    symlink(&next.0, &link).expect("put it in containerd's PATH");
    let usual = tool(&bed.runtime.binary()).expect("the shim");
    let runtimes = [&bed.runtime.name, "io.containerd.bulkheadnext.v1"];
    side_by_side(bed, runtimes, [&usual, &next.0]).await;
    fs::remove_file(&link).expect("take it away");
}

async fn a_new_binary_serves_new_containers_and_the_old_one_its_own(bed: &Bed) {
    let binary = bed.runtime.binary();
    let place = Copy::new(bed, "place", &binary);
    let run = async || {
        let container = bed.container(&["sleep", "1000"]).on(&place.path());
        container.run().await.expect("run")
    };
    let old = run().await;
    // As a package manager does it: another file under the same name.
    let staged = Copy::new(bed, "staged", &binary);
    fs::rename(&staged.0, &place.0).expect("replace the shim");
    let new = run().await;
    assert_eq!(program(&new.id), place.0);
    let gone = format!("{} (deleted)", place.path());
    assert_eq!(program(&old.id), Path::new(&gone));
    bed.kill_containerd();
    bed.start_containerd().await;
    runs(&old).await;
    runs(&new).await;
    // The new binary's `delete` removes what a shim of the old one left.
    assert_eq!(processes::kill_role(Role::Shim, &old.id), 1);
    old.remove().await;
    runs(&new).await;
    new.remove().await;
}

async fn one_id_in_two_namespaces_is_two_containers(bed: &Bed) {
    let (id, spaces) = (bed.id("same"), ["first", "second"]);
    for space in spaces {
        bed.import(space, "busybox");
        let at = ["--namespace", space, "run", "-d", "--null-io"];
        let what = ["--runtime", &bed.runtime.name, IMAGE_NAME, &id];
        let run = [&at[..], &what[..], &["sleep", "1000"]].concat();
        bed.ctr_ok(&run);
    }
    assert_eq!(processes::of(Role::Shim, &id).len(), 2);
    let exec = |space, script| {
        let exec = ["--namespace", space, "task", "exec", "--exec-id", "e"];
        bed.ctr_ok(&[&exec[..], &[&id, "sh", "-c", script]].concat())
    };
    let remove = |space| {
        // It ends with the task's own status.
        let _ = bed.ctr(&["--namespace", space, "task", "rm", "-f", &id]);
        bed.ctr_ok(&["--namespace", space, "container", "rm", &id]);
    };
    exec(spaces[0], "echo one >/tmp/whose");
    exec(spaces[1], "test ! -e /tmp/whose && echo two >/tmp/whose");
    assert_eq!(exec(spaces[0], "cat /tmp/whose"), "one\n");
    remove(spaces[0]);
    assert_eq!(exec(spaces[1], "cat /tmp/whose"), "two\n");
    remove(spaces[1]);
    // What containerd and `ctr` keep for a namespace is empty: nothing else can be removed so.
    let tasks = Path::new(STATE).join("io.containerd.runtime.v2.task");
    let groups = cgroups::hierarchies().into_iter().map(|it| it.path);
    for folder in groups.chain([tasks]) {
        for space in spaces {
            if let Err(error) = fs::remove_dir(folder.join(space)) {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{folder:?}: {error}");
            }
        }
    }
}
