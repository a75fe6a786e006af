//! The other sides of a shim misbehave: a sandbox's control socket, containerd's event service, the disk.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_client::tonic::{Code, Status};
use containerd_client::types::v1::Status as TaskStatus;
use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty,
    ExecProcessRequest, ForwardRequest, Mount, ShutdownRequest, StartRequest, StartResponse,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::events::task::{TaskDelete, TaskExit};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim_async::{Events, create_events};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::asynchronous::{Server, TtrpcContext};
use integration::bed::{Bed, IMAGE, SOCKET};
use integration::client::NAMESPACE;
use integration::patience::patience;
use integration::processes::{Process, Role, eventually, of, peak_kb};
use integration::runtime::Needs;
use integration::shim::{self, Shim};
use integration::spec;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::figures::metrics::{scrape, socket, value};
use crate::figures::stats::figures;
use crate::life::pod::{member, sandbox};
use integration::cases;

cases! {
    Needs::Bulkhead => [
        a_control_socket_that_never_answers_costs_its_deadline,
        a_control_socket_that_answers_garbage_is_given_up,
        a_control_socket_that_answers_a_gigabyte_costs_no_memory,
        a_control_socket_that_closes_half_way_is_given_up,
        each_method_falls_back_alone_when_its_socket_refuses,
        events_wait_a_minute_for_containerd_in_order_and_none_is_lost,
        a_full_disk_in_the_bundle_is_an_error_and_leaves_nothing,
    ],
}

/// How a peer in the sentry's place answers.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    Never,
    Garbage,
    Gigabyte,
    Half,
}

pub(crate) fn serve(listener: &UnixListener, answer: Answer) {
    let mut held = Vec::new();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let mut request = [0; 65536];
        if !matches!(stream.read(&mut request), Ok(1..)) {
            continue;
        }
        match answer {
            Answer::Never => held.push(stream),
            Answer::Garbage => drop(stream.write_all(b"}{ no such thing\n")),
            Answer::Half => drop(stream.write_all(b"{\"success\":tr")),
            Answer::Gigabyte => {
                let _ = stream.write_all(b"{\"success\":true,\"err\":\"");
                let chunk = vec![b'a'; 1 << 20];
                for _ in 0..1024 {
                    if stream.write_all(&chunk).is_err() {
                        break;
                    }
                }
            }
        }
    }
}

/// Every request is answered, whatever the answer is; SIGKILL ends the container, and its delete leaves nothing.
async fn misbehaving_socket(bed: &Bed, answer: Answer) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let socket = control_socket(&container.id);
    fs::rename(&socket, socket.with_extension("aside")).expect("move the socket away");
    let listener = UnixListener::bind(&socket).expect("take its place");
    std::thread::spawn(move || serve(&listener, answer));
    let began = Instant::now();
    let is_silent = |asked: Instant, answered: Result<(), Status>| {
        if let Answer::Never = answer {
            let error = answered.expect_err("nobody answers");
            assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
            let took = asked.elapsed();
            let limits = Duration::from_secs(9)..patience(Duration::from_secs(15));
            assert!(limits.contains(&took), "{took:?}");
        }
    };
    is_silent(Instant::now(), container.kill(15).await);
    if let Ok(exec) = container.exec("peer", &["true"]).add().await {
        is_silent(Instant::now(), exec.start().await.map(drop));
        let _ = exec.delete().await;
    }
    // What the host counts stands without the sentry.
    let asked = Instant::now();
    let metrics = bed.client().metrics(&container.id).await.expect("metrics");
    assert!(!metrics.value.is_empty());
    let took = asked.elapsed();
    assert!(took < patience(Duration::from_secs(8)), "{took:?}");
    container.kill(9).await.expect("SIGKILL needs no sentry");
    assert_eq!(container.wait().await.expect("wait").status, 137);
    assert!(
        began.elapsed() < Duration::from_secs(100),
        "{:?}",
        began.elapsed()
    );
    let shims = of(Role::Shim, &container.id);
    assert_eq!(shims.len(), 1, "the shim lives");
    assert!(
        peak(&shims[0]) < 40_000,
        "peak memory {} kB",
        peak(&shims[0])
    );
    container.delete().await.expect("delete");
}

fn peak(shim: &Process) -> u64 {
    peak_kb(shim.pid).expect("its memory")
}

pub(crate) fn control_socket(id: &str) -> PathBuf {
    let name = format!("runsc-{id}.sock");
    let roots = fs::read_dir("/run/bulkhead")
        .expect("read /run/bulkhead")
        .flatten();
    roots
        .map(|root| root.path().join(&name))
        .find(|path| path.exists())
        .expect("a control socket")
}

async fn a_control_socket_that_never_answers_costs_its_deadline(bed: &Bed) {
    misbehaving_socket(bed, Answer::Never).await;
}

async fn a_control_socket_that_answers_garbage_is_given_up(bed: &Bed) {
    misbehaving_socket(bed, Answer::Garbage).await;
}

async fn a_control_socket_that_answers_a_gigabyte_costs_no_memory(bed: &Bed) {
    misbehaving_socket(bed, Answer::Gigabyte).await;
}

async fn a_control_socket_that_closes_half_way_is_given_up(bed: &Bed) {
    misbehaving_socket(bed, Answer::Half).await;
}

/// Moves a sandbox's control socket and tells runsc, but not the shim: it is refused from here on, its commands are not.
fn refuse_the_shim(id: &str) {
    let old = control_socket(id);
    let new = old.with_file_name("moved.sock");
    fs::rename(&old, &new).expect("move the socket");
    let state = old.with_file_name(format!("{id}_sandbox:{id}.state"));
    let text = fs::read_to_string(&state).expect("read runsc's state");
    let (old, new) = (old.display().to_string(), new.display().to_string());
    assert_eq!(text.matches(&old).count(), 1, "{text}");
    fs::write(&state, text.replace(&old, &new)).expect("write runsc's state");
}

async fn each_method_falls_back_alone_when_its_socket_refuses(bed: &Bed) {
    let pod = sandbox(bed).await;
    let metrics = socket(&pod.id);
    refuse_the_shim(&pod.id);
    let script = "trap 'exit 21' USR1; sleep 1000 & while :; do sleep 0.05; done";
    let one = member(bed, &pod, script).run().await.expect("run");
    let done = one.exec("e", &["sh", "-c", "echo out; exit 7"]);
    let done = done.finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (7, "out\n"));
    let failed = one.exec("none", &["/none"]).run().await;
    failed.expect_err("there is no such program");
    let figures = figures(bed, &one.id).await;
    assert!((2..=3).contains(&figures.tasks), "{figures:?}");
    assert_eq!(one.status().await.expect("state"), TaskStatus::Running);
    one.kill(10).await.expect("SIGUSR1");
    assert_eq!(one.wait().await.expect("wait").status, 21);
    one.delete().await.expect("delete");
    let given_up = |text: &str, method: &str| {
        let label = format!("method=\"{method}\"");
        value(text, "bulkhead_control_fallbacks_total", &[&label])
    };
    // They are told once it is known that no sandbox was on its way out.
    for method in ["Wait", "Signal", "ExecuteAsync"] {
        let method = format!("containerManager.{method}");
        eventually(&method, Duration::from_secs(15), || {
            given_up(&scrape(&metrics), &method) == Some(1.0)
        })
        .await;
    }
    let text = scrape(&metrics);
    let given_up = |method: &str| given_up(&text, method);
    let exec = ["command=\"exec\""];
    let failures = value(&text, "bulkhead_runsc_command_failures_total", &exec);
    assert_eq!(failures, Some(1.0), "{text}");
    let commands = value(
        &text,
        "bulkhead_runsc_command_duration_seconds_count",
        &exec,
    );
    assert_eq!(commands, Some(2.0), "{text}");
    // What only informs is asked again after a while, and counted each time.
    let asked = given_up("containerManager.Event");
    assert!(asked.is_some_and(|times| times >= 1.0), "{text}");
    // The first container's wait was open before, and nobody has asked for the rest.
    for method in ["WaitPID", "ContainerRuntimeState"] {
        let method = format!("containerManager.{method}");
        assert_eq!(given_up(&method), None, "{method}: {text}");
    }
    pod.kill(9).await.expect("kill");
    assert_eq!(pod.wait().await.expect("wait").status, 137);
    pod.delete().await.expect("delete");
}

/// A shim without containerd: its bundle, and the socket it answers at.
struct Lone {
    id: String,
    bundle: PathBuf,
    shim: Shim,
}

impl Lone {
    async fn start(bed: &Bed, name: &str, bundle: &Path, events: &Path, args: &[&str]) -> Self {
        let id = bed.id(name);
        fs::create_dir_all(bundle.join("rootfs")).expect("make a bundle");
        let config = spec::container(NAMESPACE, &id, args).to_string();
        fs::write(bundle.join("config.json"), config).expect("write the spec");
        let params = BootstrapParams {
            instance_id: id.clone(),
            namespace: NAMESPACE.into(),
            containerd_grpc_address: SOCKET.into(),
            containerd_ttrpc_address: events.display().to_string(),
            ..BootstrapParams::default()
        };
        let action = [&shim::flags(&id)[..], &["start"]].concat();
        let input = params.write_to_bytes().expect("encode");
        let output = shim::run(bed, bundle, &action, &input);
        assert!(output.status.success(), "{output:?}");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let shim = Shim::at(answer["address"].as_str().expect("address")).await;
        Self {
            id,
            bundle: bundle.to_owned(),
            shim,
        }
    }

    fn create_request(&self) -> CreateTaskRequest {
        let rootfs = Mount {
            type_: "bind".into(),
            source: IMAGE.into(),
            options: vec!["rbind".into(), "ro".into()],
            ..Mount::default()
        };
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            rootfs: vec![rootfs],
            ..CreateTaskRequest::default()
        }
    }

    async fn start_process(&self, exec: &str) {
        let request = StartRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            ..StartRequest::default()
        };
        self.shim
            .call::<StartResponse>(3, "Start", &request)
            .await
            .expect("start");
    }

    async fn wait(&self, exec: &str) -> u32 {
        let request = WaitRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            ..WaitRequest::default()
        };
        self.shim
            .call::<WaitResponse>(3, "Wait", &request)
            .await
            .expect("wait")
            .exit_status
    }

    async fn delete(&self, exec: &str) {
        let request = DeleteRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            ..DeleteRequest::default()
        };
        self.shim
            .call::<DeleteResponse>(3, "Delete", &request)
            .await
            .expect("delete");
    }

    async fn shutdown(&self) {
        let request = ShutdownRequest {
            id: self.id.clone(),
            ..ShutdownRequest::default()
        };
        let _ = self.shim.call::<Empty>(3, "Shutdown", &request).await;
    }
}

/// containerd's event service, as it comes back: it takes events and remembers them.
#[derive(Default)]
struct Taken(Mutex<Vec<String>>);

struct Service(Arc<Taken>);

#[async_trait]
impl Events for Service {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope;
        let topic = envelope.topic.trim_start_matches("/tasks/").to_owned();
        let value = envelope.event.value.as_slice();
        let text = match topic.as_str() {
            "exit" => {
                let exit = TaskExit::parse_from_bytes(value).expect("TaskExit");
                format!("exit {}", exit.exit_status)
            }
            "delete" => {
                let delete = TaskDelete::parse_from_bytes(value).expect("TaskDelete");
                format!("delete {}", delete.exit_status)
            }
            _ => topic,
        };
        self.0.0.lock().expect("lock").push(text);
        Ok(Empty::new())
    }
}

async fn events_wait_a_minute_for_containerd_in_order_and_none_is_lost(bed: &Bed) {
    let folder = bed.folder.join("lone");
    let address = folder.join("events.ttrpc");
    let lone = Lone::start(bed, "events", &folder, &address, &["sleep", "1000"]).await;
    let away = Instant::now();
    let request = lone.create_request();
    lone.shim
        .call::<CreateTaskResponse>(3, "Create", &request)
        .await
        .expect("create");
    lone.start_process("").await;
    let mut expected = vec!["create".to_owned(), "start".to_owned()];
    for number in 1..=20 {
        let exec = format!("exec-{number}");
        let process = spec::process(&["sh", "-c", &format!("exit {number}")]);
        let request = ExecProcessRequest {
            id: lone.id.clone(),
            exec_id: exec.clone(),
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: process.to_string().into_bytes(),
                ..Any::default()
            }),
            ..ExecProcessRequest::default()
        };
        lone.shim
            .call::<Empty>(3, "Exec", &request)
            .await
            .expect("exec");
        lone.start_process(&exec).await;
        assert_eq!(lone.wait(&exec).await, number);
        lone.delete(&exec).await;
        expected.extend([
            "exec-added".into(),
            "exec-started".into(),
            format!("exit {number}"),
        ]);
    }
    let kill = containerd_shim_protos::api::KillRequest {
        id: lone.id.clone(),
        signal: 9,
        ..Default::default()
    };
    lone.shim
        .call::<Empty>(3, "Kill", &kill)
        .await
        .expect("kill");
    assert_eq!(lone.wait("").await, 137);
    lone.delete("").await;
    expected.extend(["exit 137".into(), "delete 137".into()]);
    // Nobody is connected and there is no container: it is the events alone that keep the shim.
    let Lone { id, shim, .. } = lone;
    drop(shim);
    tokio::time::sleep(Duration::from_secs(60).saturating_sub(away.elapsed())).await;
    let shims = of(Role::Shim, &id);
    assert_eq!(shims.len(), 1, "the shim waits for containerd");
    assert!(
        peak(&shims[0]) < 20_000,
        "peak memory {} kB",
        peak(&shims[0])
    );
    let taken = Arc::<Taken>::default();
    let mut server = Server::new()
        .bind(&format!("unix://{}", address.display()))
        .expect("bind")
        .register_service(create_events(Arc::new(Service(Arc::clone(&taken)))));
    server.start().await.expect("serve");
    let deadline = Instant::now() + Duration::from_secs(20);
    while taken.0.lock().expect("lock").len() < expected.len() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(*taken.0.lock().expect("lock"), expected);
    eventually("the shim ends by itself", Duration::from_secs(20), || {
        of(Role::Shim, &id).is_empty()
    })
    .await;
    server.shutdown().await.expect("shut down");
    fs::remove_dir_all(folder).expect("remove the bundle");
}

async fn a_full_disk_in_the_bundle_is_an_error_and_leaves_nothing(bed: &Bed) {
    let folder = bed.folder.join("full");
    fs::create_dir_all(&folder).expect("make a folder");
    let size = Some("size=64k");
    mount(Some("full"), &folder, Some("tmpfs"), MsFlags::empty(), size).expect("mount");
    let events = bed.folder.join("nobody.ttrpc");
    let lone = Lone::start(bed, "full", &folder, &events, &["true"]).await;
    // Everything up to here had room; nothing more has.
    let mut filler = fs::File::create(folder.join("filler")).expect("a file");
    while filler.write_all(&[0; 512]).is_ok() {}
    drop(filler);
    let request = lone.create_request();
    let created = lone
        .shim
        .call::<CreateTaskResponse>(3, "Create", &request)
        .await;
    assert!(created.is_err(), "created on a full disk");
    lone.shutdown().await;
    let id = lone.id.clone();
    drop(lone);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !of(Role::Shim, &id).is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    umount2(&folder, MntFlags::empty()).expect("nothing holds the bundle");
    fs::remove_dir(&folder).expect("remove the folder");
}
