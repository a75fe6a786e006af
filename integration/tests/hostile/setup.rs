//! What is done on the host, by root, to set a container up: none of it for an image's node, or a link of somebody's who writes a
//! folder that is bound.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use integration::bed::{Bed, IMAGE};
use integration::cases;
use integration::client::NAMESPACE;
use integration::container::{Builder, overlay};
use integration::runtime::Needs;
use nix::sys::stat::Mode;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use crate::contender::Contender;
use crate::programs::append;

cases! {
    Needs::Bulkhead => [
        a_fifo_at_a_binds_place,
        a_link_swapped_in_a_folder_that_is_bound,
    ],
}

const TITLE: &str = "what sets a container up";

/// A thread that goes on until it is told to end. Returns whether it has seen what it looks for.
struct Beside {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<bool>,
}

impl Beside {
    fn run(mut round: impl FnMut() -> bool + Send + 'static) -> Self {
        let over = Arc::<AtomicBool>::default();
        let end = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut seen = false;
            while !end.load(Ordering::Relaxed) {
                seen |= round();
            }
            seen
        });
        Self { over, thread }
    }

    fn end(self) -> bool {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread")
    }
}

fn folder(bed: &Bed, name: &str) -> PathBuf {
    let folder = bed.folder.join(bed.id(name));
    fs::create_dir_all(&folder).expect("make a folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("chmod");
    folder
}

/// A container with a layer of its own, and what is bound in it.
fn container<'a>(bed: &'a Bed, script: &str, binds: &[(&Path, &str)]) -> Builder<'a> {
    let layer = bed.folder.join(bed.id("layer"));
    let builder = bed.shell(script).rootfs(overlay(Path::new(IMAGE), &layer));
    builder.with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.extend(binds.iter().map(|(source, place)| {
            json!({ "destination": place, "type": "bind", "source": source, "options": ["rbind"] })
        }));
    })
}

/// Runs it, where it is not refused. Returns what it wrote.
async fn run(contender: Contender, bed: &Bed, builder: Builder<'_>) -> String {
    let id = builder.id.clone();
    if contender == Contender::Runsc {
        let said = contender.run(bed, builder).await;
        remove_cgroups(&id);
        return said;
    }
    match contender.by_containerd(builder).run().await {
        Ok(container) => container.finish().await.stdout,
        Err(error) => {
            bed.remove(&id).await;
            error.to_string()
        }
    }
}

/// What runsc leaves where it fails.
fn remove_cgroups(id: &str) {
    let own = Path::new(NAMESPACE).join(id);
    let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("list").flatten();
    for hierarchy in hierarchies {
        let _ = fs::remove_dir(hierarchy.path().join(&own));
    }
    let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(&own));
}

fn write_down(attempt: &str, got: [bool; 3]) {
    let [runc, runsc, bulkhead] = got.map(|got| if got { "**works**" } else { "held" });
    let runc = match runc {
        "held" => "held: it makes and mounts by descriptors",
        works => works,
    };
    append(&format!(
        "| {TITLE} | {attempt} | {runc} | {runsc} | {bulkhead} |\n"
    ));
    assert_eq!(got[1..], [true, false], "{attempt}");
}

async fn a_fifo_at_a_binds_place(bed: &Bed) {
    let source = folder(bed, "source");
    fs::write(source.join("file"), "bound").expect("write");
    let mut got = Vec::new();
    for contender in Contender::ALL {
        let (volume, file) = (folder(bed, "volume"), source.join("file"));
        let twin = [(volume.as_path(), "/data"), (file.as_path(), "/data/twin")];
        let said = run(contender, bed, container(bed, "cat /data/twin", &twin)).await;
        assert!(said.starts_with("bound"), "{contender:?}: {said}");

        let fifo = volume.join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).expect("make a FIFO");
        // It can be opened for writing when somebody has opened it for reading, who then goes on.
        let watch = Beside::run(move || {
            std::thread::sleep(Duration::from_millis(2));
            let mut options = fs::File::options();
            options.write(true).custom_flags(nix::libc::O_NONBLOCK);
            options.open(&fifo).is_ok()
        });
        let binds = [(volume.as_path(), "/data"), (file.as_path(), "/data/fifo")];
        run(contender, bed, container(bed, "true", &binds)).await;
        got.push(watch.end());
    }
    write_down(
        "a FIFO at a bind's place, opened by root of the host",
        got.try_into().expect("three"),
    );
}

async fn a_link_swapped_in_a_folder_that_is_bound(bed: &Bed) {
    let source = folder(bed, "source");
    fs::write(source.join("file"), "bound").expect("write");
    let mut got = Vec::new();
    for contender in Contender::ALL {
        let (volume, outside) = (folder(bed, "volume"), folder(bed, "outside"));
        let file = source.join("file");
        let binds = [
            (volume.as_path(), "/data"),
            (file.as_path(), "/data/s/twin"),
        ];
        let said = run(contender, bed, container(bed, "cat /data/s/twin", &binds)).await;
        assert!(said.starts_with("bound"), "{contender:?}: {said}");

        symlink(&outside, volume.join("link")).expect("link");
        let (one, other) = (volume.join("s"), volume.join("link"));
        let swaps = Beside::run(move || {
            renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_err()
        });
        let is_outside = || fs::read_dir(&outside).expect("list").next().is_some();
        for number in 0..if contender == Contender::Runsc {
            100
        } else {
            10
        } {
            let place = format!("/data/s/{number}");
            let binds = [
                (volume.as_path(), "/data"),
                (file.as_path(), place.as_str()),
            ];
            run(contender, bed, container(bed, "true", &binds)).await;
            if is_outside() {
                break;
            }
        }
        assert!(!swaps.end(), "it was not swapped");
        got.push(is_outside());
    }
    write_down(
        "a link swapped in a folder that is bound, followed by root of the host",
        got.try_into().expect("three"),
    );
}
