//! Small files that the kubelet and containerd make on the node's disk for a container to write: the termination log, and what they
//! bind into `/etc`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::bed::Bed;
use integration::cases;
use integration::cri::{Pod, mount};
use integration::policy::NodePolicy;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use k8s_cri::v1::ContainerConfig;

use crate::node::limits::{limit_pod, memory};

cases! {
    Needs::Any => [
        a_message_is_in_the_termination_log_when_the_exit_is_told,
        a_termination_log_in_a_volume_has_its_message,
        a_termination_log_at_two_places_is_one_file,
        a_container_that_runs_out_of_memory_has_its_message,
    ],
    Needs::Bulkhead => [
        a_termination_log_holds_a_mebibyte_and_the_kubelet_gets_its_end,
        a_sandbox_that_is_killed_leaves_the_message_of_each_container,
        a_shim_that_is_killed_leaves_the_log_as_it_was,
        a_container_that_never_starts_is_let_go_of_before_its_pod_ends,
        files_in_etc_are_read_only_as_the_root_is,
        files_in_etc_are_copies_with_a_size_where_the_root_is_written,
    ],
}

const PLACE: &str = "/dev/termination-log";

/// A termination log as the kubelet makes it before the container.
fn log_of(pod: &Pod, name: &str) -> PathBuf {
    let folder = pod.folder().join("containers").join(name);
    fs::create_dir_all(&folder).expect("make the folder of the container");
    let log = folder.join("1a2b3c4d");
    fs::write(&log, "").expect("make the log");
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).expect("open the log");
    log
}

/// A shell script with a termination log.
fn shell(pod: &Pod, name: &str, script: &str) -> (ContainerConfig, PathBuf) {
    let log = log_of(pod, name);
    let mut config = pod.shell(name, script);
    config.mounts.push(mount(&log, PLACE, false));
    (config, log)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("read")
}

async fn a_message_is_in_the_termination_log_when_the_exit_is_told(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    for user in [None, Some(1000)] {
        let name = format!("of-{}", user.unwrap_or_default());
        let (mut config, log) = shell(
            &pod,
            &name,
            &format!("cat {PLACE}; echo because >{PLACE}; exit 3"),
        );
        fs::write(&log, "earlier, and longer\n").expect("write");
        let context = config
            .linux
            .as_mut()
            .expect("linux")
            .security_context
            .as_mut();
        context.expect("a context").run_as_user =
            user.map(|value| k8s_cri::v1::Int64Value { value });
        let id = pod.launch(config).await.expect("launch");
        assert_eq!(pod.ended(&id).await.exit_code, 3);
        assert_eq!(text(&log), "because\n");
        assert_eq!(pod.log(&name), "earlier, and longer\n");
    }
    let (config, log) = shell(&pod, "silent", "true");
    fs::write(&log, "kept\n").expect("write");
    let id = pod.launch(config).await.expect("launch");
    pod.ended(&id).await;
    assert_eq!(text(&log), "kept\n");
    pod.remove().await;
}

/// By the pod's `terminationMessagePath`.
async fn a_termination_log_in_a_volume_has_its_message(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let volume = pod.folder().join("volumes/kubernetes.io~csi/data");
    fs::create_dir_all(&volume).expect("make the volume");
    let log = log_of(&pod, "main");
    let mut config = pod.shell("main", "echo because >/data/log; exit 3");
    config.mounts.push(mount(&volume, "/data", false));
    config.mounts.push(mount(&log, "/data/log", false));
    let id = pod.launch(config).await.expect("launch");
    assert_eq!(pod.ended(&id).await.exit_code, 3);
    assert_eq!(text(&log), "because\n");
    assert_eq!(text(&volume.join("log")), "");
    pod.remove().await;
}

async fn a_termination_log_at_two_places_is_one_file(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    for (name, place) in [("first", PLACE), ("last", "/srv/log")] {
        let script = format!("echo because >{place}; cat {PLACE} /srv/log; exit 3");
        let (mut config, log) = shell(&pod, name, &script);
        config.mounts.push(mount(&log, "/srv/log", false));
        fs::write(&log, "earlier\n").expect("write");
        let id = pod.launch(config).await.expect("launch");
        assert_eq!(pod.ended(&id).await.exit_code, 3);
        assert_eq!(pod.log(name), "because\nbecause\n");
        assert_eq!(text(&log), "because\n");
    }
    pod.remove().await;
}

async fn a_container_that_runs_out_of_memory_has_its_message(bed: &Bed) {
    let config = Pod::config(bed);
    limit_pod(&config, 128);
    let pod = Pod::run(config).await.expect("run");
    let (mut config, log) = shell(
        &pod,
        "main",
        &format!("echo much >{PLACE}; exec dd if=/dev/zero of=/dev/null bs=200M count=1"),
    );
    config.linux.as_mut().expect("linux").resources = Some(memory(100));
    let id = pod.launch(config).await.expect("launch");
    assert_eq!(pod.ended(&id).await.exit_code, 137);
    assert_eq!(text(&log), "much\n");
    pod.remove().await;
}

/// And what was not written is the program's to see. It is killed at the end.
async fn a_termination_log_holds_a_mebibyte_and_the_kubelet_gets_its_end(bed: &Bed) {
    const SIZE: usize = 1 << 20;
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let fill = format!(
        "seq 1 200000 >{PLACE} 2>/dev/null; dd if=/dev/zero bs=1M count=100 2>&1 >>{PLACE} | grep -o 'No space.*'; \
         wc -c <{PLACE}; sleep 1000"
    );
    let (config, log) = shell(&pod, "main", &fill);
    let id = pod.launch(config).await.expect("launch");
    let is_full = || pod.log("main").ends_with("1048576\n");
    eventually("the log is full", Duration::from_secs(60), is_full).await;
    assert_eq!(pod.log("main"), "No space left on device\n1048576\n");
    assert_eq!(text(&log), "", "nothing reaches the node's disk yet");
    let stop = k8s_cri::v1::StopContainerRequest {
        container_id: id.clone(),
        timeout: 0,
    };
    pod.cri.stop_container(stop).await.expect("StopContainer");
    assert_eq!(pod.ended(&id).await.exit_code, 137);
    let all: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(text(&log), all[SIZE - 4096..SIZE]);
    pod.remove().await;
}

async fn a_sandbox_that_is_killed_leaves_the_message_of_each_container(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let mut all = Vec::new();
    for name in ["one", "two"] {
        let script = format!("echo {name} >{PLACE}; echo done; sleep 1000");
        let (config, log) = shell(&pod, name, &script);
        let id = pod.launch(config).await.expect("launch");
        let is_done = || pod.log(name) == "done\n";
        eventually("it has written", Duration::from_secs(20), is_done).await;
        all.push((name, id, log));
    }
    assert_eq!(processes::kill_role(Role::Sandbox, &pod.id), 1);
    for (name, id, log) in &all {
        pod.ended(id).await;
        assert_eq!(text(log), format!("{name}\n"));
    }
    pod.remove().await;
}

async fn a_shim_that_is_killed_leaves_the_log_as_it_was(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let (config, log) = shell(
        &pod,
        "main",
        &format!("echo lost >{PLACE}; echo done; sleep 1000"),
    );
    fs::write(&log, "earlier\n").expect("write");
    let id = pod.launch(config).await.expect("launch");
    let is_done = || pod.log("main") == "done\n";
    eventually("it has written", Duration::from_secs(20), is_done).await;
    assert_eq!(processes::kill_role(Role::Shim, &pod.id), 1);
    pod.ended(&id).await;
    assert_eq!(text(&log), "earlier\n");
    pod.remove().await;
}

/// By the descriptors of its termination log: what the shim holds for a container goes when the container is removed, whether it was
/// never started, or its start has failed.
async fn a_container_that_never_starts_is_let_go_of_before_its_pod_ends(bed: &Bed) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let shim = processes::of(Role::Shim, &pod.id)[0].pid;
    let held = || processes::descriptors(shim).expect("its descriptors");
    let mut before = None;
    for round in 0..3 {
        for command in ["true", "no-such-program"] {
            let name = format!("{command}-{round}");
            let log = log_of(&pod, &name);
            let mut config = pod.container(&name, &[command]);
            config.mounts.push(mount(&log, PLACE, false));
            let id = pod.create(config).await.expect("create");
            if command == "no-such-program" {
                pod.start(&id).await.expect_err("there is no such program");
            }
            pod.remove_container(&id).await;
        }
        // The first ones open what all others share.
        let before = *before.get_or_insert_with(held);
        let goes = || held() <= before;
        eventually("their descriptors go", Duration::from_secs(10), goes).await;
    }
    pod.remove().await;
}

/// A pod whose hosts file is the kubelet's, and what a container of it says to a script.
async fn with_hosts(bed: &Bed, script: &str) -> (String, [String; 3]) {
    let pod = Pod::run(Pod::config(bed)).await.expect("run");
    let hosts = pod.folder().join("etc-hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("write");
    let made = bed.folder.join("root/io.containerd.grpc.v1.cri/sandboxes");
    let made = made.join(&pod.id);
    let files = [
        hosts.clone(),
        made.join("hostname"),
        made.join("resolv.conf"),
    ];
    let before = files.each_ref().map(|file| text(file));
    let mut config = pod.shell("main", "sleep 1000");
    config.mounts.push(mount(&hosts, "/etc/hosts", false));
    let id = pod.launch(config).await.expect("launch");
    let (_, said) = pod.exec(&id, &["sh", "-c", script]).await;
    let after = files.each_ref().map(|file| text(file));
    let is_same = after == before;
    assert!(is_same, "the node's own files are written");
    pod.remove().await;
    (said, before)
}

const EACH: &str = "for file in hosts hostname resolv.conf";

async fn files_in_etc_are_read_only_as_the_root_is(bed: &Bed) {
    let script = format!(
        "cd /etc; cat hosts; {EACH}; do echo more >>$file && echo written; done 2>&1; true"
    );
    let (said, _) = with_hosts(bed, &script).await;
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("127.0.0.1 localhost"));
    let refused: Vec<_> = lines.collect();
    assert_eq!(refused.len(), 3, "{said}");
    assert!(
        refused
            .iter()
            .all(|line| line.contains("Read-only file system")),
        "{said}"
    );
}

async fn files_in_etc_are_copies_with_a_size_where_the_root_is_written(bed: &Bed) {
    let _policy = NodePolicy::set("rootfs.writable = true");
    let script = format!(
        "cd /etc; {EACH}; do echo more >>$file && cat $file; dd if=/dev/zero bs=1M count=2 2>/dev/null >>$file && echo written; done; true"
    );
    let (said, [hosts, hostname, resolv]) = with_hosts(bed, &script).await;
    assert_eq!(said, format!("{hosts}more\n{hostname}more\n{resolv}more\n"));
}
