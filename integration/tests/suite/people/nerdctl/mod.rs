//! What nerdctl asks of a runtime, request by request, without nerdctl.

pub(crate) mod flags;
pub(crate) mod hooks;
pub(crate) mod outside;
mod request;

use std::time::{Duration, Instant};

use containerd_client::services::v1::CreateTaskRequest;
use containerd_client::types::v1::Status;
use containerd_shim_protos::api::{Empty, ResizePtyRequest};
use integration::bed::Bed;
use integration::cases;
use integration::client::NAMESPACE;
use integration::container::Container;
use integration::processes::eventually;
use integration::runtime::Needs;
use integration::shim::Shim;
use integration::spec::ask_capabilities;
use serde_json::{Value, json};

use request::{LOGGING, Store};

cases! {
    Needs::Any => [
        a_detached_container_is_logged_by_nerdctl_itself,
        a_detached_containers_log_can_be_followed,
        services_of_a_compose_file_share_a_volume_and_end_apart,
        a_terminal_needs_no_stderr_though_one_is_named,
        an_exec_takes_its_terminals_size_before_it_is_started,
        a_paused_container_is_removed_by_force,
        a_paused_container_is_killed_and_then_resumed,
        a_paused_container_is_resumed_to_be_stopped,
        an_exec_waits_while_its_container_is_paused,
        a_container_is_started_again_under_its_id,
    ],
    Needs::Bulkhead => [
        an_exec_with_everything_has_nothing,
    ],
}

/// `nerdctl run -d`: the URI for both outputs (`pkg/taskutil/taskutil.go`); the logger is told its store, and by the
/// environment whose output it is (`pkg/logging/logging.go`).
async fn a_detached_container_is_logged_by_nerdctl_itself(bed: &Bed) {
    let store = Store::new(bed);
    let run = store.run(bed, &["sh", "-c", "echo to out; echo to err >&2; exit 3"]);
    let container = run.log_to(&store.log_uri()).run().await.expect("run");
    assert_eq!(container.wait().await.expect("wait").status, 3);
    container.delete().await.expect("delete");
    eventually("both outputs", Duration::from_secs(5), || {
        (store.read("out"), store.read("err")) == ("to out\n".into(), "to err\n".into())
    })
    .await;
    let folder = store.path("");
    let folder = folder.display().to_string();
    let args = format!("{LOGGING}\n{}\n", folder.trim_end_matches('/'));
    assert_eq!(store.read("logger.args"), args);
    let environment = store.read("logger.env");
    for line in [
        format!("CONTAINER_ID={}", container.id),
        format!("CONTAINER_NAMESPACE={NAMESPACE}"),
    ] {
        assert!(environment.lines().any(|one| one == line), "{environment}");
    }
}

/// `nerdctl logs -f`: it reads what the logger has written (`pkg/logging/json_logger.go`), so each line must be there while the program
/// runs.
async fn a_detached_containers_log_can_be_followed(bed: &Bed) {
    let store = Store::new(bed);
    let script = "echo first; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo second; sleep 1000";
    let run = store.run(bed, &["sh", "-c", script]);
    let container = run.log_to(&store.log_uri()).run().await.expect("run");
    let has = |text: &'static str| {
        let store = &store;
        eventually(text, Duration::from_secs(5), move || {
            store.read("out") == text
        })
    };
    has("first\n").await;
    container.exec("go", &["touch", "/tmp/go"]).finish().await;
    has("first\nsecond\n").await;
    container.remove().await;
}

/// `nerdctl compose up`: containers of their own with compose's labels, that have a volume of nerdctl's (`pkg/composer`,
/// `pkg/mountutil/volumestore`) in common.
async fn services_of_a_compose_file_share_a_volume_and_end_apart(bed: &Bed) {
    let store = Store::new(bed);
    let volume = store.path("volumes/app_data/_data");
    std::fs::create_dir_all(&volume).expect("make the volume");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&volume, mode).expect("open the volume");
    let service = async |name: &str, script: &str| {
        let run = store.run(bed, &["sh", "-c", script]).with(|spec| {
            spec["annotations"]["com.docker.compose.project"] = "app".into();
            spec["annotations"]["com.docker.compose.service"] = name.into();
            let mounts = spec["mounts"].as_array_mut().expect("mounts");
            mounts.push(json!({
                "destination": "/srv", "type": "none", "source": volume, "options": ["rbind", "rprivate"],
            }));
        });
        run.run().await.expect("run")
    };
    let reader = "until [ -e /srv/asked ]; do sleep 0.05; done; cat /srv/asked; echo answered >/srv/answer; sleep 1000";
    let reader = service("reader", reader).await;
    let writer = "echo asked >/srv/asked; until [ -e /srv/answer ]; do sleep 0.05; done; cat /srv/answer; exit 4";
    let done = service("writer", writer).await.finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (4, "answered\n"));
    assert_eq!(reader.status().await.expect("status"), Status::Running);
    reader.remove().await;
}

fn terminal(spec: &mut Value) {
    spec["process"]["terminal"] = true.into();
}

/// `nerdctl run -it`, `nerdctl exec -it`: containerd's client names a stderr, and makes no FIFO for it where there is a
/// terminal (`pkg/cio/io_unix.go` of containerd, `pkg/cioutil/container_io_unix.go`).
async fn a_terminal_needs_no_stderr_though_one_is_named(bed: &Bed) {
    let store = Store::new(bed);
    let script = "[ -t 0 ] && [ -t 2 ] && echo a terminal >&2; read line; exit 6";
    let run = store.run(bed, &["sh", "-c", script]).with(terminal);
    let mut container = run.absent_stderr().stdin().run().await.expect("run");
    let exec = container.exec("tty", &["sh", "-c", script]);
    let exec = exec.with(|process| process["terminal"] = true.into());
    let mut exec = exec.absent_stderr().stdin().run().await.expect("exec");
    exec.streams.write([b"go\n".to_vec()]);
    assert_eq!(exec.wait().await.expect("wait").status, 6);
    let text = exec.streams.stdout().await.text();
    assert!(text.contains("a terminal\r\n"), "{text:?}");
    exec.delete().await.expect("delete");
    container.streams.write([b"go\n".to_vec()]);
    assert_eq!(container.wait().await.expect("wait").status, 6);
    let text = container.streams.stdout().await.text();
    assert!(text.contains("a terminal\r\n"), "{text:?}");
    container.delete().await.expect("delete");
}

/// `nerdctl exec -it` sets `consoleSize`, adds the exec, resizes it, and starts it (`pkg/cmd/container/exec.go`).
async fn an_exec_takes_its_terminals_size_before_it_is_started(bed: &Bed) {
    let store = Store::new(bed);
    let container = store.run(bed, &["sleep", "1000"]).run().await.expect("run");
    for (id, resized) in [("resized", true), ("asked", false)] {
        let exec = container
            .exec(id, &["stty", "size"])
            .stdin()
            .with(|process| {
                process["terminal"] = true.into();
                process["consoleSize"] = json!({ "height": 33, "width": 101 });
            });
        let mut exec = exec.add().await.expect("add");
        if resized {
            let request = ResizePtyRequest {
                id: container.id.clone(),
                exec_id: id.to_owned(),
                width: 101,
                height: 33,
                ..ResizePtyRequest::default()
            };
            let shim = Shim::of(bed, &container.id).await;
            let done = shim.call::<Empty>(3, "ResizePty", &request).await;
            done.expect("a size for later");
        }
        exec.start().await.expect("start");
        assert_eq!(exec.wait().await.expect("wait").status, 0, "{id}");
        assert_eq!(exec.streams.stdout().await.text(), "33 101\r\n", "{id}");
        exec.delete().await.expect("delete");
    }
    container.remove().await;
}

async fn paused<'a>(bed: &'a Bed, store: &Store, script: &str) -> Container<'a> {
    let container = store
        .run(bed, &["sh", "-c", script])
        .run()
        .await
        .expect("run");
    // Its trap has to be set.
    tokio::time::sleep(Duration::from_millis(500)).await;
    bed.client().pause(&container.id).await.expect("pause");
    container
}

/// `nerdctl rm -f`: SIGKILL to all, and a wait without a resume (`pkg/cmd/container/remove.go`, `WithProcessKill` of
/// containerd's client).
async fn a_paused_container_is_removed_by_force(bed: &Bed) {
    let store = Store::new(bed);
    let container = paused(bed, &store, "while :; do sleep 1; done").await;
    bed.client()
        .kill(&container.id, "", 9, true)
        .await
        .expect("kill");
    assert_eq!(container.wait().await.expect("wait").status, 137);
    container.delete().await.expect("delete");
}

/// `nerdctl kill`: a resume that fails is a warning (`pkg/cmd/container/kill.go`).
async fn a_paused_container_is_killed_and_then_resumed(bed: &Bed) {
    let store = Store::new(bed);
    let container = paused(bed, &store, "while :; do sleep 1; done").await;
    container.kill(9).await.expect("kill");
    let _ = bed.client().resume(&container.id).await;
    assert_eq!(container.wait().await.expect("wait").status, 137);
    container.delete().await.expect("delete");
}

/// `nerdctl stop`: resume, SIGTERM, wait (`Stop` in `pkg/containerutil/containerutil.go`).
async fn a_paused_container_is_resumed_to_be_stopped(bed: &Bed) {
    let store = Store::new(bed);
    let script = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
    let container = paused(bed, &store, script).await;
    bed.client().resume(&container.id).await.expect("resume");
    container.kill(15).await.expect("kill");
    assert_eq!(container.wait().await.expect("wait").status, 3);
    container.delete().await.expect("delete");
}

async fn an_exec_waits_while_its_container_is_paused(bed: &Bed) {
    let store = Store::new(bed);
    let container = store.run(bed, &["sleep", "1000"]).run().await.expect("run");
    let script = "i=0; while [ $i -lt 20 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 4";
    let exec = container.exec("counts", &["sh", "-c", script]);
    let mut exec = exec.run().await.expect("exec");
    let client = bed.client();
    client.pause(&container.id).await.expect("pause");
    // Longer than it would have taken.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let state = client.get(&container.id, "").await.expect("get").status();
    assert_eq!(state, Status::Paused);
    let error = container.exec("late", &["true"]).run().await;
    let error = error.map(drop).expect_err("paused");
    assert!(error.message().contains("paused"), "{error}");
    client.resume(&container.id).await.expect("resume");
    let resumed = Instant::now();
    assert_eq!(exec.wait().await.expect("wait").status, 4);
    assert!(resumed.elapsed() > Duration::from_secs(1), "it had waited");
    let counted: String = (0..20).map(|number| format!("{number}\n")).collect();
    assert_eq!(exec.streams.stdout().await.text(), counted);
    exec.delete().await.expect("delete");
    container.remove().await;
}

/// `nerdctl start`, and containerd's restart monitor: the task is deleted and another made of the same container
/// (`Start` in `pkg/containerutil/containerutil.go`).
async fn a_container_is_started_again_under_its_id(bed: &Bed) {
    let store = Store::new(bed);
    let run = store.run(bed, &["sh", "-c", "echo again; exit 5"]);
    let container = run.log_to(&store.log_uri()).run().await.expect("run");
    let client = bed.client();
    for _ in 0..2 {
        assert_eq!(container.wait().await.expect("wait").status, 5);
        client.delete(&container.id).await.expect("delete the task");
        let task = CreateTaskRequest {
            container_id: container.id.clone(),
            rootfs: vec![store.snapshot()],
            stdout: store.log_uri(),
            stderr: store.log_uri(),
            ..CreateTaskRequest::default()
        };
        client.create(task).await.expect("create");
        container.start().await.expect("start");
    }
    assert_eq!(container.wait().await.expect("wait").status, 5);
    container.delete().await.expect("delete");
    eventually("its output", Duration::from_secs(5), || {
        store.read("out") == "again\nagain\nagain\n"
    })
    .await;
    assert_eq!(store.read("hooks"), "createRuntime\npostStop\n".repeat(3));
}

/// The init's own process with other arguments; `--privileged` sets every capability (`pkg/cmd/container/exec_linux.go`).
async fn an_exec_with_everything_has_nothing(bed: &Bed) {
    const ALL: [&str; 4] = [
        "CAP_SYS_ADMIN",
        "CAP_NET_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_CHOWN",
    ];
    let store = Store::new(bed);
    let run = store.run(bed, &["sleep", "1000"]);
    let process = run.spec["process"].clone();
    let container = run.run().await.expect("run");
    let exec = container.exec("all", &[]).with(|exec| {
        exec.clone_from(&process);
        exec["args"] = json!([
            "sh",
            "-c",
            "grep -h -e ^Cap -e ^NoNew /proc/self/status; echo $HOSTNAME"
        ]);
        exec["apparmorProfile"] = "nerdctl-default".into();
        ask_capabilities(exec, &ALL);
    });
    let done = exec.finish().await;
    let none = "0000000000000000";
    let caps: String = ["Inh", "Prm", "Eff", "Bnd", "Amb"]
        .map(|set| format!("Cap{set}:\t{none}\n"))
        .concat();
    let hostname = container.id.get(..12).expect("an id");
    assert_eq!(
        done.stdout,
        format!("{caps}NoNewPrivs:\t1\n{hostname}\n"),
        "{done:?}"
    );
    container.remove().await;
}
