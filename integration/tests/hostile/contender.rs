//! What a program is run on.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::bed::{Bed, PATH_FOLDER};
use integration::container::Builder;
use serde_json::Value;

/// How long a program may take.
const LIMIT: Duration = Duration::from_secs(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// As containerd runs it.
    Runc,
    /// By its command, with its own defaults: nothing stands between the request and it.
    Runsc,
    /// The runtime under test.
    Bulkhead,
}

impl Contender {
    pub(crate) const ALL: [Self; 3] = [Self::Runc, Self::Runsc, Self::Bulkhead];

    /// Has containerd run it on this one; runsc alone is not known to containerd.
    pub(crate) fn by_containerd(self, builder: Builder<'_>) -> Builder<'_> {
        match self {
            Self::Runc => builder.on("io.containerd.runc.v2"),
            Self::Runsc | Self::Bulkhead => builder,
        }
    }

    /// Runs what `builder` describes to its end; returns what it wrote to stdout and stderr.
    pub(crate) async fn run(self, bed: &Bed, builder: Builder<'_>) -> String {
        if self == Self::Runsc {
            return by_command(bed, &builder);
        }
        let builder = self.by_containerd(builder);
        let container = builder.run().await.expect("run");
        let ended = bed
            .client()
            .wait_for(&container.id, LIMIT)
            .await
            .expect("wait");
        let done = container.finish().await;
        format!(
            "{}{}\nexit status {}",
            done.stdout, done.stderr, ended.status
        )
    }
}

/// `runsc run` in a bundle made for it.
fn by_command(bed: &Bed, builder: &Builder<'_>) -> String {
    let folder = bed.folder.join(&builder.id);
    let rootfs = folder.join("rootfs");
    std::fs::create_dir_all(&rootfs).expect("make a bundle");
    let mount = &builder.rootfs[0];
    mount_at(mount, &rootfs);
    std::fs::write(folder.join("config.json"), builder.spec.to_string()).expect("write the spec");
    let output = run_limited(&folder, &builder.id, &builder.spec);
    nix::mount::umount2(&rootfs, nix::mount::MntFlags::MNT_DETACH).expect("unmount the rootfs");
    output
}

fn mount_at(mount: &containerd_client::types::Mount, place: &Path) {
    let options = mount.options.join(",");
    let kind = Some(mount.r#type.as_str());
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(kind, place, kind, flags, Some(options.as_str())).expect("mount the rootfs");
}

fn run_limited(bundle: &Path, id: &str, spec: &Value) -> String {
    assert!(
        spec["process"]["terminal"] != true,
        "programs have no terminal"
    );
    let root = bundle.join("state");
    let runsc = |arguments: &[&str]| {
        let mut command = Command::new(Path::new(PATH_FOLDER).join("runsc"));
        // Its sandbox has no network of the host's only because the spec names a namespace.
        command.arg("--root").arg(&root).args(arguments);
        command
    };
    let output = bundle.join("output");
    let file = std::fs::File::create(&output).expect("make a file");
    let child = runsc(&["run", "--bundle", &bundle.display().to_string(), id])
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("share the file"))
        .stderr(file)
        .spawn();
    let mut child = child.expect("run runsc");
    let until = Instant::now() + LIMIT;
    while child.try_wait().expect("wait for runsc").is_none() {
        if Instant::now() > until {
            let _ = runsc(&["kill", id, "KILL"]).status();
            let _ = child.wait();
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = runsc(&["delete", "--force", id]).output();
    // It pins an empty namespace, and leaves it.
    let _ = nix::mount::umount2(&root.join("null-netns"), nix::mount::MntFlags::MNT_DETACH);
    std::fs::read_to_string(output).unwrap_or_default()
}
