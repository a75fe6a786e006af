//! Several containers in one sandbox, made as containerd's CRI plugin makes them: by annotations. What CRI adds
//! to that is in the tests of pods.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::time::{Duration, Instant};

use containerd_client::tonic::Code;
use containerd_client::types::v1::Status;
use integration::bed::{Bed, is_before_2};
use integration::client::Events;
use integration::container::{Builder, Container};
use integration::patience::patience;
use integration::policy::NodePolicy;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;

use crate::life::events::heard;
use integration::cases;

cases! {
    Needs::Gvisor => [
        the_containers_of_a_pod_have_one_shim_and_one_sandbox,
        containers_come_and_go_one_by_one,
        each_container_has_its_own_exit_code,
        what_one_container_writes_to_shm_another_reads,
        a_killed_sandbox_ends_every_container,
        a_sandbox_that_ends_by_itself_ends_every_container,
        two_containers_have_execs_of_the_same_id,
    ],
    Needs::Bulkhead => [
        cri_os_annotations_are_refused,
        a_container_joins_the_sandbox_of_its_own_pod_alone,
        what_comes_as_another_engines_pod_has_nothing_of_the_host,
        a_container_that_starts_changes_nothing_in_another,
        a_malformed_container_leaves_the_others_unharmed,
        a_container_that_was_never_started_can_be_deleted,
        a_container_cannot_join_what_is_no_sandbox,
        a_container_cannot_join_a_sandbox_that_has_exited,
        contradicting_annotations_are_refused,
        a_terminal_in_a_pod,
        a_program_that_is_missing_leaves_the_others_unharmed,
        one_container_of_a_pod_cannot_be_paused,
        a_paused_pod_is_paused_in_all_its_containers,
        a_killed_shim_leaves_nothing_of_a_pod,
        a_forged_mount_hint_opens_nothing,
        kill_all_reaches_one_container_of_a_pod,
        a_policy_of_a_containers_own_is_not_followed_in_a_pod,
    ],
}

/// A policy under which a pod may bind what a test has made. One that is not Kubernetes' own has nothing of the host else.
pub(crate) const TESTS_OWN: &str = "binds.writable = [\"/tmp\"]\n";
const CONTAINERD: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.sandbox-id",
];
const CRI_O: [&str; 2] = [
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.cri-o.SandboxID",
];

fn annotated<'a>(builder: Builder<'a>, keys: [&str; 2], kind: &str, sandbox: &str) -> Builder<'a> {
    builder.with(|spec| {
        spec["annotations"][keys[0]] = kind.into();
        spec["annotations"][keys[1]] = sandbox.into();
    })
}

/// A pod's first container, which only waits.
pub(crate) async fn sandbox(bed: &Bed) -> Container<'_> {
    let created = first(bed, CONTAINERD).run().await;
    created.expect("run the sandbox")
}

/// A pod to be.
pub(crate) fn pod(bed: &Bed) -> Builder<'_> {
    first(bed, CONTAINERD)
}

fn first<'a>(bed: &'a Bed, keys: [&str; 2]) -> Builder<'a> {
    let id = bed.id("pod");
    let builder = bed.named(&id, &["sleep", "1000"]).null_streams();
    annotated(builder, keys, "sandbox", &id)
}

/// A further container.
pub(crate) fn member<'a>(bed: &'a Bed, pod: &Container<'_>, script: &str) -> Builder<'a> {
    annotated(bed.shell(script), CONTAINERD, "container", &pod.id)
}

pub(crate) async fn end(pod: Container<'_>) {
    pod.kill(9).await.expect("kill the sandbox");
    assert_eq!(pod.wait().await.expect("wait").status, 137);
    pod.delete().await.expect("delete the sandbox");
}

async fn the_containers_of_a_pod_have_one_shim_and_one_sandbox(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let two = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let count = |role| {
        let all = [&pod.id, &one.id, &two.id];
        let mut pids: Vec<i32> = all
            .iter()
            .flat_map(|id| processes::of(role, id))
            .map(|process| process.pid)
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids.len()
    };
    assert_eq!(count(Role::Shim), 1, "shims");
    assert_eq!(count(Role::Sandbox), 1, "sandboxes");
    assert_eq!((one.pid, two.pid), (pod.pid, pod.pid), "the sandbox's pid");
    for container in [one, two] {
        container.remove().await;
    }
    end(pod).await;
}

async fn containers_come_and_go_one_by_one(bed: &Bed) {
    let pod = sandbox(bed).await;
    let stays = member(bed, &pod, "sleep 1000").run().await.expect("run");
    for round in 0..3 {
        let done = member(bed, &pod, "echo init").run().await.expect("run");
        let done = done.finish().await;
        assert_eq!(
            (done.status, done.stdout.as_str()),
            (0, "init\n"),
            "round {round}"
        );
    }
    assert_eq!(stays.status().await.expect("state"), Status::Running);
    let exec = stays.exec("e", &["echo", "alive"]).finish().await;
    assert_eq!(exec.stdout, "alive\n");
    stays.remove().await;
    end(pod).await;
}

async fn each_container_has_its_own_exit_code(bed: &Bed) {
    let pod = sandbox(bed).await;
    let mut running = Vec::new();
    for code in [0, 7, 255] {
        let script = format!("exit {code}");
        let container = member(bed, &pod, &script).run().await.expect("run");
        running.push((code, container));
    }
    let killed = member(bed, &pod, "sleep 1000").run().await.expect("run");
    killed.kill(9).await.expect("kill");
    assert_eq!(killed.finish().await.status, 137);
    for (code, container) in running {
        assert_eq!(container.finish().await.status, code);
    }
    end(pod).await;
}

async fn what_one_container_writes_to_shm_another_reads(bed: &Bed) {
    let pod = sandbox(bed).await;
    let writer = member(bed, &pod, "echo shared > /dev/shm/x")
        .run()
        .await
        .expect("run");
    assert_eq!(writer.finish().await.status, 0);
    let reader = member(bed, &pod, "cat /dev/shm/x; df -k /dev/shm | tail -n 1")
        .run()
        .await
        .expect("run");
    let read = reader.finish().await;
    assert!(read.stdout.starts_with("shared\n"), "{}", read.stdout);
    if bed.runtime.is_bulkhead() {
        assert!(read.stdout.contains(" 16384 "), "16 MiB: {}", read.stdout);
    }
    end(pod).await;
}

/// Each container of a pod that was killed is told of with its own exit, and the pod's first with the last.
async fn everybody_hears(containers: Vec<Container<'_>>, pod: Container<'_>, events: &Events) {
    for container in &containers {
        let exit = container.wait().await.expect("wait");
        assert_eq!(exit.status, 137, "{}", container.id);
    }
    pod.wait().await.expect("wait for the sandbox");
    let mut ids = Vec::new();
    for container in containers {
        ids.push(container.id.clone());
        container.delete().await.expect("delete");
    }
    ids.push(pod.id.clone());
    pod.delete().await.expect("delete the sandbox");
    for id in &ids {
        heard(events, id, &["create", "start", "exit", "delete"]).await;
    }
    let exits = events.all().into_iter().filter_map(|event| {
        let payload = event.event.filter(|_| event.topic == "/tasks/exit")?;
        let names = |id: &&String| {
            payload
                .value
                .windows(id.len())
                .any(|part| part == id.as_bytes())
        };
        ids.iter().find(names)
    });
    let exits: Vec<&String> = exits.collect();
    assert_eq!(exits.len(), ids.len(), "{exits:?}");
    assert_eq!(exits.last(), ids.iter().last().as_ref(), "{exits:?}");
}

async fn a_killed_sandbox_ends_every_container(bed: &Bed) {
    let events = bed.client().events().await;
    let pod = sandbox(bed).await;
    let mut containers = Vec::new();
    for _ in 0..2 {
        containers.push(member(bed, &pod, "sleep 1000").run().await.expect("run"));
    }
    assert_eq!(processes::kill_role(Role::Sandbox, &pod.id), 1);
    everybody_hears(containers, pod, &events).await;
}

async fn a_sandbox_that_ends_by_itself_ends_every_container(bed: &Bed) {
    let events = bed.client().events().await;
    let pod = sandbox(bed).await;
    let container = member(bed, &pod, "sleep 1000").run().await.expect("run");
    pod.kill(9).await.expect("kill");
    everybody_hears(vec![container], pod, &events).await;
}

async fn two_containers_have_execs_of_the_same_id(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "export WHO=1; exec sleep 1000")
        .run()
        .await
        .expect("run");
    let two = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let first = one
        .exec("same", &["sh", "-c", "read x; exit 3"])
        .stdin()
        .run()
        .await
        .expect("exec");
    let second = two
        .exec("same", &["sh", "-c", "exit 4"])
        .run()
        .await
        .expect("exec");
    assert_eq!(second.wait().await.expect("wait").status, 4);
    first.close_stdin().await.expect("close stdin");
    assert_eq!(first.wait().await.expect("wait").status, 3);
    for container in [one, two] {
        container.remove().await;
    }
    end(pod).await;
}

async fn cri_os_annotations_are_refused(bed: &Bed) {
    let pod = sandbox(bed).await;
    let others = sandbox(bed).await;
    let alone = annotated(bed.shell("true"), CRI_O, "container", &pod.id);
    // What containerd wrote and what a pod passed on beside it.
    let both = annotated(member(bed, &pod, "true"), CRI_O, "container", &others.id);
    for builder in [alone, both, first(bed, CRI_O)] {
        let error = builder.create().await.map(drop).expect_err("CRI-O's");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("is CRI-O's"), "{error}");
    }
    end(others).await;
    end(pod).await;
}

async fn a_container_joins_the_sandbox_of_its_own_pod_alone(bed: &Bed) {
    const UID: &str = "io.kubernetes.cri.sandbox-uid";
    fn of<'a>(builder: Builder<'a>, uid: &str) -> Builder<'a> {
        builder.with(|spec| spec["annotations"][UID] = uid.into())
    }
    let pod = of(first(bed, CONTAINERD), "7b8f-01")
        .run()
        .await
        .expect("run");
    for uid in ["7b8f-02", ""] {
        let other = of(member(bed, &pod, "true"), uid).create().await;
        let error = other.map(drop).expect_err(uid);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(UID), "{error}");
    }
    let own = of(member(bed, &pod, "exit 5"), "7b8f-01").run().await;
    assert_eq!(own.expect("run").finish().await.status, 5);
    end(pod).await;
}

async fn what_comes_as_another_engines_pod_has_nothing_of_the_host(bed: &Bed) {
    let folder = bed.folder.join(bed.id("bound"));
    std::fs::create_dir(&folder).expect("make a folder");
    let bound = |spec: &mut serde_json::Value| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(serde_json::json!({
            "destination": "/srv", "type": "bind", "source": folder, "options": ["rbind", "rw"],
        }));
    };
    let own = bed.shell("ls -d /srv").with(bound).run().await;
    assert_eq!(own.expect("run").finish().await.stdout, "/srv\n");
    // cri-dockerd writes no annotation; a CRI in a namespace of its own writes containerd's.
    let id = bed.id("docker");
    let cgroup = format!("/kubepods/besteffort/pod{id}/{id}");
    let docker = bed
        .shell("true")
        .with(bound)
        .with(|spec| spec["linux"]["cgroupsPath"] = cgroup.clone().into());
    let other = bed.shell("true").with(bound).with(|spec| {
        spec["annotations"]["io.kubernetes.cri.sandbox-namespace"] = "agents".into();
    });
    // Where the kubelet makes no cgroups, what it gives of its folder is left.
    let kubelet = bed.folder.join(bed.id("kubelet"));
    let message = kubelet.join("pods/1-a/containers/c/1");
    std::fs::create_dir_all(message.parent().expect("a folder")).expect("make a folder");
    std::fs::write(&message, "").expect("write");
    let given = bed.shell("true").with(bound).with(|spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(serde_json::json!({
            "destination": "/dev/termination-log", "type": "bind", "source": message, "options": ["rbind", "rw"],
        }));
    });
    let _policy = NodePolicy::set(&format!("kubernetes.kubelet_root = {kubelet:?}"));
    for builder in [docker, other, given] {
        let error = builder.create().await.map(drop).expect_err("a pod's");
        // containerd 1.7 does not know the code of the shim's answer.
        let code = if is_before_2() {
            Code::Unknown
        } else {
            Code::PermissionDenied
        };
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains("cri-dockerd"), "{error}");
    }
}

async fn a_container_that_starts_changes_nothing_in_another(bed: &Bed) {
    let pod = sandbox(bed).await;
    // Its first process looks at itself, once before and once after: an exec would only tell of its own.
    let script = "while read line; do ulimit -n; ulimit -u; ulimit -c; hostname; env; cat /proc/self/mounts; \
                  set -- /proc/[0-9]*; echo $#; echo end; done";
    let fifo = bed.folder.join(bed.id("look"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let one = member(bed, &pod, script).stdin();
    let one = one.log_to(&fifo.display().to_string()).run().await;
    let one = one.expect("run");
    let mut told = BufReader::new(File::open(&fifo).expect("open the FIFO"));
    let mut look = async || {
        one.streams.write([b"look\n".to_vec()]).await.expect("ask");
        let lines = (&mut told).lines().map(|line| line.expect("read"));
        lines
            .take_while(|line| line != "end")
            .collect::<Vec<String>>()
    };
    let before = look().await;
    assert!(before.len() > 10, "{before:?}");
    let script =
        "echo $COLOUR; grep -c ' /srv ' /proc/self/mounts; echo >/tmp/told; exec sleep 1000";
    let two = member(bed, &pod, script).with(|spec| {
        spec["hostname"] = "another".into();
        let env = &mut spec["process"]["env"];
        env.as_array_mut().expect("env").push("COLOUR=blue".into());
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts
            .push(serde_json::json!({ "destination": "/srv", "type": "tmpfs", "source": "tmpfs" }));
        spec["process"]["rlimits"] =
            serde_json::json!([{ "type": "RLIMIT_NOFILE", "hard": 77, "soft": 77 }]);
        spec["linux"]["resources"]["pids"] = serde_json::json!({ "limit": 9 });
        spec["linux"]["resources"]["memory"] = serde_json::json!({ "limit": 64 << 20 });
    });
    let two = two.run().await.expect("run");
    let wait = "while ! [ -e /tmp/told ]; do sleep 0.1; done";
    let done = two.exec("e", &["sh", "-c", wait]).finish().await;
    assert_eq!(done.status, 0, "it runs");
    assert_eq!(look().await, before);
    std::fs::remove_file(fifo).expect("remove the FIFO");
    two.kill(9).await.expect("kill");
    assert_eq!(two.finish().await.stdout, "blue\n1\n", "it has its own");
    one.remove().await;
    end(pod).await;
}

async fn a_malformed_container_leaves_the_others_unharmed(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let broken = member(bed, &pod, "true").with(|spec| spec["process"]["cwd"] = "nowhere".into());
    let error = broken.create().await.map(drop).expect_err("malformed");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let crashing = member(bed, &pod, "true").with(|spec| {
        spec["linux"]["seccomp"] = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
            "names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 6, "value": 1, "op": "SCMP_CMP_EQ" }],
        }]});
    });
    let error = crashing
        .create()
        .await
        .map(drop)
        .expect_err("an index that would kill the sandbox");
    assert!(error.message().contains("index"), "{error}");
    let refused = member(bed, &pod, "true").with(|spec| {
        spec["mounts"]
            .as_array_mut()
            .expect("mounts")
            .push(serde_json::json!({
                "destination": "/host", "type": "bind", "source": "/", "options": ["rbind"],
            }));
    });
    refused
        .create()
        .await
        .map(drop)
        .expect_err("the host's root");
    assert_eq!(
        one.exec("e", &["echo", "alive"]).finish().await.stdout,
        "alive\n"
    );
    one.remove().await;
    end(pod).await;
}

async fn a_container_that_was_never_started_can_be_deleted(bed: &Bed) {
    let pod = sandbox(bed).await;
    let deleted = member(bed, &pod, "true").create().await.expect("create");
    deleted.delete().await.expect("delete");
    let killed = member(bed, &pod, "true").create().await.expect("create");
    killed.kill(9).await.expect("kill");
    assert_eq!(killed.wait().await.expect("wait").status, 137);
    killed.delete().await.expect("delete");
    end(pod).await;
}

async fn a_container_cannot_join_what_is_no_sandbox(bed: &Bed) {
    let plain = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let error = member(bed, &plain, "true")
        .create()
        .await
        .map(drop)
        .expect_err("no pod");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_eq!(plain.status().await.expect("state"), Status::Running);
    plain.remove().await;
    let orphan = annotated(bed.shell("true"), CONTAINERD, "container", "nobody");
    let error = orphan.create().await.map(drop).expect_err("no sandbox");
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

async fn a_container_cannot_join_a_sandbox_that_has_exited(bed: &Bed) {
    let pod = sandbox(bed).await;
    pod.kill(9).await.expect("kill");
    pod.wait().await.expect("wait");
    let error = member(bed, &pod, "true")
        .create()
        .await
        .map(drop)
        .expect_err("exited");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    pod.delete().await.expect("delete");
}

async fn contradicting_annotations_are_refused(bed: &Bed) {
    let pod = sandbox(bed).await;
    for (kind, sandbox) in [("sandbox", pod.id.as_str()), ("teapot", pod.id.as_str())] {
        let error = annotated(bed.shell("true"), CONTAINERD, kind, sandbox)
            .create()
            .await;
        let error = error.map(drop).expect_err(kind);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    end(pod).await;
}

async fn a_terminal_in_a_pod(bed: &Bed) {
    let pod = sandbox(bed).await;
    let script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && stty size";
    let builder = member(bed, &pod, script).with(|spec| {
        spec["process"]["terminal"] = true.into();
        spec["process"]["consoleSize"] = serde_json::json!({ "height": 31, "width": 97 });
    });
    let mut container = builder.run().await.expect("run");
    assert_eq!(container.wait().await.expect("wait").status, 0);
    let text = container.streams.stdout().await.text();
    assert_eq!(text, "31 97\r\n");
    container.delete().await.expect("delete");
    end(pod).await;
}

async fn a_program_that_is_missing_leaves_the_others_unharmed(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let builder = member(bed, &pod, "").with(|spec| {
        // In a mount, into which the shim does not look: what the image lacks fails at create.
        spec["process"]["args"] = serde_json::json!(["/tmp/no/such/program"]);
    });
    let events = bed.client().events().await;
    let missing = builder.create().await.expect("create");
    let id = missing.id.clone();
    let began = Instant::now();
    let error = missing.start().await.expect_err("start");
    assert!(error.message().contains("/tmp/no/such/program"), "{error}");
    let took = began.elapsed();
    assert!(took < patience(Duration::from_secs(3)), "{took:?}");
    missing.remove().await;
    heard(&events, &id, &["create", "exit", "delete"]).await;
    assert_eq!(
        one.exec("e", &["echo", "alive"]).finish().await.stdout,
        "alive\n"
    );
    one.remove().await;
    end(pod).await;
}

async fn one_container_of_a_pod_cannot_be_paused(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let error = bed.client().pause(&one.id).await.expect_err("pause");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_eq!(
        one.exec("e", &["echo", "alive"]).finish().await.stdout,
        "alive\n"
    );
    one.remove().await;
    end(pod).await;
}

async fn a_paused_pod_is_paused_in_all_its_containers(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    bed.client().pause(&pod.id).await.expect("pause");
    assert_eq!(one.status().await.expect("state"), Status::Paused);
    let error = one
        .exec("e", &["true"])
        .add()
        .await
        .map(drop)
        .expect_err("exec in a paused pod");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    // Only the pod as a whole can be ended now.
    let error = one.kill(9).await.expect_err("SIGKILL in a paused pod");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains(&pod.id), "{error}");
    bed.client().resume(&pod.id).await.expect("resume");
    assert_eq!(
        one.exec("f", &["echo", "alive"]).finish().await.stdout,
        "alive\n"
    );
    bed.client().pause(&pod.id).await.expect("pause");
    pod.kill(9).await.expect("kill the paused pod");
    for container in [&one, &pod] {
        let exit = container.wait().await.expect("wait");
        assert_eq!(exit.status, 137, "{}", container.id);
    }
    for container in [one, pod] {
        container.delete().await.expect("delete");
    }
}

async fn a_killed_shim_leaves_nothing_of_a_pod(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    assert_eq!(processes::kill_role(Role::Shim, &pod.id), 1);
    eventually("the sandbox is gone", Duration::from_secs(20), || {
        processes::of(Role::Sandbox, &pod.id).is_empty()
    })
    .await;
    one.remove().await;
    pod.remove().await;
}

async fn kill_all_reaches_one_container_of_a_pod(bed: &Bed) {
    let pod = sandbox(bed).await;
    let killed = member(bed, &pod, "sleep 1000 & sleep 1000 & wait");
    let killed = killed.run().await.expect("run");
    let stays = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let exec = stays.exec("e", &["sleep", "1000"]).run().await;
    let exec = exec.expect("exec");
    let answer = bed.client().kill(&killed.id, "", 9, true).await;
    answer.expect("kill");
    assert_eq!(killed.finish().await.status, 137);
    assert_eq!(pod.status().await.expect("state"), Status::Running);
    assert_eq!(stays.status().await.expect("state"), Status::Running);
    let state = bed.client().get(&stays.id, "e").await.expect("state");
    assert_eq!(state.status(), Status::Running);
    exec.kill(9).await.expect("kill");
    exec.finish().await;
    stays.remove().await;
    end(pod).await;
}

async fn a_policy_of_a_containers_own_is_not_followed_in_a_pod(bed: &Bed) {
    let pod = sandbox(bed).await;
    // Half a pod under one policy and half under another would have neither.
    let wider = "rootfs = \"writable\"\nlimits.open_files = 7777\n";
    let script = "ulimit -n; touch /x 2>/dev/null && echo written";
    let one = member(bed, &pod, script).policy("", wider).run().await;
    let done = one.expect("run").finish().await;
    assert_eq!(done.stdout, "1024\n");
    let missing = member(bed, &pod, "exit 3").policy("/no/such/policy.toml", "");
    let missing = missing.run().await.expect("run");
    assert_eq!(missing.finish().await.status, 3);
    end(pod).await;
}

async fn a_forged_mount_hint_opens_nothing(bed: &Bed) {
    let id = bed.id("pod");
    let forge = |spec: &mut serde_json::Value| {
        for (field, value) in [("source", "/etc"), ("type", "bind"), ("share", "shared")] {
            spec["annotations"][format!("dev.gvisor.spec.mount.v0.{field}")] = value.into();
        }
    };
    let builder = bed
        .named(&id, &["sleep", "1000"])
        .null_streams()
        .with(forge);
    let pod = annotated(builder, CONTAINERD, "sandbox", &id)
        .run()
        .await
        .expect("run");
    let bundle = std::fs::read_to_string(bed.bundle(&id).join("config.json")).expect("config.json");
    assert!(!bundle.contains("\"/etc\""), "{bundle}");
    end(pod).await;
}
