//! The DaemonSet of the documentation, as it stands, but for the folders of the node: those are a test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use integration::bed::{Bed, tool};
use integration::cases;
use integration::cri::NAMESPACE;
use integration::kubernetes::{NODE, note};
use integration::runtime::Needs;

use crate::cluster;

cases! {
    Needs::Bulkhead => [
        the_daemonset_installs_on_labelled_nodes_and_takes_away_again,
    ],
}

const FILE: &str = "../docs/kubernetes/daemonset.yaml";
const OWN: &str = "bulkhead-system";
/// What has to be there once it is installed.
const INSTALLED: [&str; 8] = [
    "usr/local/bin/bulkhead",
    "usr/local/bin/containerd-shim-bulkhead-v1",
    "usr/local/bin/runsc",
    "etc/bulkhead/config.toml",
    "etc/bulkhead/network.toml",
    "etc/bulkhead/runtimeclass.yaml",
    "etc/containerd/conf.d/bulkhead.toml",
    "var/lib/bulkhead/installed.json",
];
const CONFIGURATION: &str = "# A node's own.\nversion = 3\n";

/// The image that the file's head describes: a release in /opt/bulkhead, over a small Debian.
fn build_image(bed: &Bed, name: &str) {
    let folder = bed.folder.join(bed.id("image"));
    let (mounted, tree, archive) = (folder.join("from"), folder.join("tree"), folder.join("tar"));
    fs::create_dir_all(&mounted).expect("make a folder");
    let place = mounted.display().to_string();
    bed.import(integration::client::NAMESPACE, "python");
    bed.ctr_ok(&["image", "mount", "bulkhead.test/python:latest", &place]);
    run(Command::new("cp").arg("-a").args([&mounted, &tree]));
    bed.ctr_ok(&["image", "unmount", "--rm", &place]);
    let release = tree.join("opt/bulkhead");
    fs::create_dir_all(&release).expect("make a folder");
    let runsc = bed.runsc.clone().expect("runsc");
    let programs = ["bulkhead", "containerd-shim-bulkhead-v1"].map(|name| tool(name).expect(name));
    for program in programs.iter().chain([&runsc]) {
        let to = release.join(program.file_name().expect("a name"));
        fs::copy(program, to).expect("copy a program");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("testbed/oci_archive.py");
    let mut python = Command::new("python3");
    run(python
        .arg(script)
        .arg(&tree)
        .arg(name)
        .arg(&archive)
        .arg("sh"));
    bed.import_archive(NAMESPACE, &archive);
    fs::remove_dir_all(folder).expect("remove the image's folder");
}

fn run(command: &mut Command) {
    let output = command.output().expect("run a command");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// The folder that stands for the node's `/`, with what the file says must be there.
fn node(bed: &Bed) -> PathBuf {
    let node = bed.folder.join(bed.id("node"));
    for folder in ["usr/local/bin", "etc/containerd"] {
        fs::create_dir_all(node.join(folder)).expect("make a folder");
    }
    fs::write(node.join("etc/containerd/config.toml"), CONFIGURATION).expect("write");
    node
}

/// What the file's head says of taking it away, read from there.
fn for_uninstall(manifest: &str) -> String {
    let line = manifest
        .lines()
        .find_map(|line| line.strip_prefix("#   sed "));
    let line = line
        .expect("the head says how")
        .replace("daemonset.yaml", "-");
    let (sed, _) = line.split_once(" | ").expect("into kubectl");
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("printf '%s' \"$1\" | sed {sed}"));
    let output = shell.arg("sh").arg(manifest).output().expect("run sed");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

async fn apply(manifest: &str) {
    let answer = cluster().kubectl_with(&["apply", "-f", "-"], manifest);
    answer.await.ok();
}

/// Waits for the controller's next pod, binds it to the node as a scheduler does, and returns what its installer said
/// once it runs.
async fn next_pod(after: &str) -> (String, String) {
    let limit = Duration::from_secs(60);
    let names = [
        "get",
        "pods",
        "-n",
        OWN,
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ];
    let is_next = |text: &str| !text.is_empty() && !text.contains(' ') && text != after;
    let pods = cluster().until("the next pod", limit, &names, |answer| {
        is_next(&answer.stdout)
    });
    let pod = pods.await.stdout;
    cluster().bind_in(OWN, &pod).await;
    let state = "jsonpath={.status.containerStatuses[0].ready} {.status.initContainerStatuses[0].restartCount}";
    let state = ["get", "pod", "-n", OWN, &pod, "-o", state];
    let ready = "true 0";
    let came = |text: &str| text == ready || !text.ends_with(" 0");
    let came = cluster().until("its pod runs", limit, &state, |answer| came(&answer.stdout));
    let came = came.await.stdout;
    let log = ["logs", "-n", OWN, &pod, "-c", "install"];
    let log = cluster().kubectl(&log).await.text();
    assert_eq!(came, ready, "{log}");
    note("daemonset.txt", &log);
    (pod, log)
}

async fn the_daemonset_installs_on_labelled_nodes_and_takes_away_again(bed: &Bed) {
    let node = node(bed);
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE));
    let manifest = manifest.expect("read the DaemonSet");
    let image = manifest
        .lines()
        .find_map(|line| line.trim().strip_prefix("image: "));
    build_image(bed, image.expect("an image"));
    let place = format!("hostPath: {{ path: {}/", node.display());
    let manifest = manifest.replace("hostPath: { path: /", &place);
    let controllers =
        cluster().start_controllers(bed, &["daemonset", "namespace", "garbagecollector"]);

    apply(&manifest).await;
    let wanted = "jsonpath={.status.observedGeneration} {.status.desiredNumberScheduled}";
    let state = [
        "get",
        "daemonset",
        "-n",
        OWN,
        "bulkhead-install",
        "-o",
        wanted,
    ];
    let limit = Duration::from_secs(60);
    cluster()
        .until("no node has the label", limit, &state, |answer| {
            answer.stdout == "1 0"
        })
        .await;
    let label = ["label", "node", NODE, "dev.bulkhead/node=true"];
    cluster().kubectl(&label).await.ok();
    let (first, log) = next_pod("").await;
    assert!(log.contains("installed;"), "{log}");
    for file in INSTALLED {
        assert!(node.join(file).is_file(), "{file}: {log}");
    }
    let shim = Command::new(node.join(INSTALLED[1]))
        .arg("-v")
        .output()
        .expect("run the shim");
    assert!(shim.status.success(), "{shim:?}");

    // A pod that is made anew finds its work done.
    let delete = ["delete", "pod", "-n", OWN, &first, "--timeout=60s"];
    cluster().kubectl(&delete).await.ok();
    let (second, log) = next_pod(&first).await;
    assert_eq!(log, "nothing to do\n");

    apply(&for_uninstall(&manifest)).await;
    let (_, log) = next_pod(&second).await;
    assert!(log.contains("uninstalled"), "{log}");
    for file in INSTALLED {
        assert!(!node.join(file).exists(), "{file}: {log}");
    }
    let configuration = fs::read_to_string(node.join("etc/containerd/config.toml"));
    assert_eq!(configuration.expect("the node's own"), CONFIGURATION);

    let delete = cluster().kubectl_with(&["delete", "--timeout=60s", "-f", "-"], &manifest);
    delete.await.ok();
    let label = ["label", "node", NODE, "dev.bulkhead/node-"];
    cluster().kubectl(&label).await.ok();
    drop(controllers);
    cluster().collect().await;
}
