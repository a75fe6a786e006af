//! What `bulkhead install` put on a node runs pods, lives through an upgrade, and goes only when nothing runs by it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use integration::bed::{Bed, tool};
use integration::cases;
use integration::cri::Pod;
use integration::processes::{self, Role};
use integration::runtime::Needs;

cases! {
    Needs::Tool("bulkhead") => [
        pods_run_by_the_handlers_that_were_installed,
        a_sandbox_lives_through_an_upgrade_and_holds_an_uninstall_back,
        a_forced_uninstall_leaves_what_runs_to_its_end,
    ],
}

/// The testbed's own configuration, as an administrator's.
const CONFIG: &str = "/run/b/log/config.toml";
const SHIM: &str = "containerd-shim-bulkhead-v1";

/// This machine with Bulkhead on it, in a folder that containerd's PATH does not lead to. `/etc` and `/var/lib` are layers of the
/// tests' own.
struct Installed<'a> {
    bed: &'a Bed,
    prefix: PathBuf,
    before: String,
}

impl<'a> Installed<'a> {
    async fn on(bed: &'a Bed) -> Self {
        let prefix = Path::new("/run/b/log").join(bed.id("opt"));
        let before = fs::read_to_string(CONFIG).expect("read");
        let installed = Self {
            bed,
            prefix,
            before,
        };
        installed.install(&tool("bulkhead").expect("found before"));
        installed.restart().await;
        installed
    }

    fn install(&self, tool: &Path) -> String {
        let (prefix, runsc) = (
            self.prefix.display().to_string(),
            self.bed.runsc.clone().expect("runsc"),
        );
        let runsc = runsc.display().to_string();
        let output = run(
            tool,
            &[
                "install",
                "--prefix",
                &prefix,
                "--containerd-config",
                CONFIG,
                "--runsc",
                &runsc,
            ],
        );
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    async fn restart(&self) {
        self.bed.kill_containerd();
        self.bed.start_containerd().await;
    }

    fn tool(&self) -> PathBuf {
        self.prefix.join("bulkhead")
    }

    async fn take_away(self) {
        let output = run(&tool("bulkhead").expect("found before"), &["uninstall"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read_to_string(CONFIG).expect("read"), self.before);
        for path in [
            self.prefix.as_path(),
            Path::new("/etc/bulkhead"),
            Path::new("/var/lib/bulkhead"),
        ] {
            assert!(!path.exists(), "{} stays", path.display());
        }
        self.restart().await;
    }
}

fn run(tool: &Path, args: &[&str]) -> Output {
    Command::new(tool)
        .args(args)
        .output()
        .expect("run bulkhead")
}

/// The program that a sandbox's process runs, by its device and number: the process has mounts of its own, in which its path may
/// be another.
fn program(role: Role, pod: &Pod) -> (u64, u64) {
    let found = processes::of(role, &pod.id);
    let first = found
        .first()
        .unwrap_or_else(|| panic!("{role:?} of {}", pod.id));
    file(Path::new(&format!("/proc/{}/exe", first.pid)))
}

fn file(path: &Path) -> (u64, u64) {
    let metadata = fs::metadata(path).expect("look at a program");
    (metadata.dev(), metadata.ino())
}

async fn pods_run_by_the_handlers_that_were_installed(bed: &Bed) {
    let installed = Installed::on(bed).await;
    for (handler, devices) in [("bulkhead", 1), ("bulkhead-net", 2)] {
        let pod = Pod::run_by(handler, Pod::config(bed)).await.expect(handler);
        let script = "tail -n +3 /proc/net/dev | wc -l; touch /etc/x 2>&1 || echo read-only";
        let id = pod.launch(pod.shell("main", script)).await.expect("launch");
        assert_eq!(pod.ended(&id).await.exit_code, 0);
        assert_eq!(
            pod.log("main").lines().next(),
            Some(devices.to_string().as_str()),
            "{handler}"
        );
        assert!(
            pod.log("main").ends_with("read-only\n"),
            "{}",
            pod.log("main")
        );
        // Neither was found by containerd's PATH.
        assert_eq!(
            program(Role::Shim, &pod),
            file(&installed.prefix.join(SHIM))
        );
        assert_eq!(
            program(Role::Sandbox, &pod),
            file(&installed.prefix.join("runsc"))
        );
        pod.remove().await;
    }
    // The testbed's containerd finds a shim in its PATH as well, so that nothing is wrong with this node.
    let check = run(&installed.tool(), &["check", "--containerd-config", CONFIG]);
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    for line in [
        "handler bulkhead-net is containerd's",
        "handler bulkhead is containerd's",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains("FAIL"), "{text}");
    installed.take_away().await;
}

/// The same release with another shim, as an upgrade brings one: what follows an ELF file's own does nothing.
fn newer(bed: &Bed) -> PathBuf {
    let folder = bed.folder.join(bed.id("release"));
    fs::create_dir(&folder).expect("make a folder");
    let own = tool("bulkhead").expect("found before");
    for name in ["bulkhead", SHIM] {
        fs::copy(own.with_file_name(name), folder.join(name)).expect("copy");
    }
    let shim = fs::File::options().append(true).open(folder.join(SHIM));
    shim.and_then(|mut shim| shim.write_all(b"newer"))
        .expect("append");
    folder.join("bulkhead")
}

async fn a_sandbox_lives_through_an_upgrade_and_holds_an_uninstall_back(bed: &Bed) {
    let installed = Installed::on(bed).await;
    let old = Pod::run_by("bulkhead", Pod::config(bed))
        .await
        .expect("run");
    let sleeper = old
        .launch(old.container("main", &["sleep", "1000"]))
        .await
        .expect("launch");
    let shown = installed.install(&newer(bed));
    let put: Vec<_> = shown
        .lines()
        .filter(|line| line.starts_with("put "))
        .collect();
    assert!(put.len() == 1 && put[0].contains(SHIM), "{shown}");
    // The running pod has the old program, whose file is gone by now, and works on.
    assert_ne!(
        program(Role::Shim, &old),
        file(&installed.prefix.join(SHIM))
    );
    let (code, text) = old.exec(&sleeper, &["echo", "alive"]).await;
    assert_eq!((code, text.as_str()), (0, "alive\n"));
    let second = old
        .launch(old.shell("second", "exit 3"))
        .await
        .expect("launch");
    assert_eq!(old.ended(&second).await.exit_code, 3);
    let new = Pod::run_by("bulkhead", Pod::config(bed))
        .await
        .expect("run");
    assert_eq!(
        program(Role::Shim, &new),
        file(&installed.prefix.join(SHIM))
    );
    // An uninstall waits until nothing runs.
    let refused = run(&installed.tool(), &["uninstall"]);
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && complaint.contains("nothing was changed: 2 sandboxes run"),
        "{complaint}"
    );
    assert!(installed.prefix.join(SHIM).is_file());
    new.remove().await;
    old.remove().await;
    installed.take_away().await;
}

async fn a_forced_uninstall_leaves_what_runs_to_its_end(bed: &Bed) {
    let installed = Installed::on(bed).await;
    let pod = Pod::run_by("bulkhead", Pod::config(bed))
        .await
        .expect("run");
    let id = pod
        .launch(pod.container("main", &["sleep", "1000"]))
        .await
        .expect("launch");
    let output = run(&installed.tool(), &["uninstall", "--force"]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && shown.contains("note: 1 sandbox runs"),
        "{output:?}"
    );
    assert_eq!(
        pod.exec(&id, &["echo", "alive"]).await,
        (0, "alive\n".into())
    );
    let second = pod
        .launch(pod.shell("second", "exit 3"))
        .await
        .expect_err("no shim");
    assert!(
        second.message().contains("no such file or directory"),
        "{second:?}"
    );
    pod.remove().await;
    installed.take_away().await;
}
