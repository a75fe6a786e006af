//! The methods of an agent's steps, side by side in one run on one machine: prints their medians and 95th percentiles, and gates
//! nothing. By containerd's API, so without the start of a client; "own socket" is without containerd as well, and "by ctr" is with both.
//! A start by the command is one under `runsc.control = "command"`. Beside them is runsc without a shim, by its command and by its
//! control socket, with the spec and the flags that Bulkhead gives it. `bench [RUNS]`: how often each is measured (30).
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a bench that cannot measure ends"
)]

use std::fs::{self, File};
use std::io::{BufReader, IoSlice};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    Empty, ExecProcessRequest, StartRequest, StartResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use integration::bed::{Bed, IMAGE, Services};
use integration::isolate;
use integration::measure::{Table, each, of_runc, percentile, report, runs, spread, timed};
use integration::shim::Shim;
use integration::sidecars::Sidecars;
use integration::wrapper::Wrapper;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

/// A name, and how long each time took.
type Row = (&'static str, Vec<Duration>);

const CREATE: &str = "create";
const START: &str = "start";
const STEP_BY_SOCKET: &str = "exec, start, wait of `true` by the shim's own socket, no streams";
const STEP_BY_CTR: &str = "`ctr task exec … true`";
const CLIENT: &str = "`ctr version`, which is ctr alone";
const BARE: &str = "runsc, same profile";
const BY_COMMAND: &str = "runsc.control = \"command\"";
/// What a shell's step is, as a client asks the shim for it.
const STEP: &str =
    r#"{"args":["true"],"cwd":"/","env":["PATH=/usr/bin:/bin"],"user":{"uid":0,"gid":0}}"#;

fn main() {
    let runs = runs(30);
    let folder = isolate::enter();
    let mut bare = None;
    let mut all = each(&folder, Services::Tasks, |bed, _| {
        let rows = bed.block_on(measure(bed, runs))?;
        if bed.runtime.is_bulkhead() {
            bare = Some(bed.block_on(bare_runsc(bed, runs)));
        }
        Ok(rows)
    });
    all.extend(bare.map(|rows| (BARE.to_owned(), rows)));
    print(&all, runs);
}

fn print(all: &[(String, Vec<Row>)], runs: usize) {
    let mut names: Vec<&str> = vec![];
    for (name, _) in all.iter().flat_map(|(_, rows)| rows) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let mut table = Table::new(all.iter().map(|(name, _)| name.as_str()));
    for name in names {
        let of = |rows: &[Row]| {
            let found = rows.iter().find(|(known, _)| *known == name);
            found.map(|(_, times)| times.clone())
        };
        let beside = of_runc(all).and_then(|rows| of(rows));
        let beside = beside.map(|times| percentile(&times, 50));
        let cell = |(_, rows): &(String, Vec<Row>)| {
            of(rows).map_or_else(String::new, |times| spread(&times, 1, "", beside))
        };
        table.row(name, all.iter().map(cell));
    }
    report(
        "methods",
        &format!(
            "Milliseconds: median of {runs}, in brackets the 95th percentile, and times runc's median. \"{BARE}\": without a shim, by its command, \
             with the spec and the flags that Bulkhead gives it. A program that starts the sentry is a script here, as no official one can be \
             had."
        ),
        &table,
    );
}

/// # Errors
/// What containerd answers when the runtime runs nothing here.
async fn measure(bed: &Bed, runs: usize) -> Result<Vec<Row>, String> {
    let first = bed.container(&["sleep", "1000"]).run().await;
    let first = first.map_err(|error| error.to_string())?;
    let mut rows = Vec::from(creates(bed, "", [CREATE, START], runs).await?);
    rows.extend(steps(bed, &first.id, runs).await);
    let mut steps = vec![];
    for number in 0..runs {
        let began = Instant::now();
        let exec = first.exec(&format!("e{number}"), &["true"]);
        assert_eq!(exec.finish().await.status, 0);
        steps.push(began.elapsed());
    }
    rows.push(("exec, start, wait, delete of `true`", steps));
    first.remove().await;
    if bed.runtime.is_bulkhead() {
        let names = [
            "create, `runsc.control = \"command\"`",
            "start, `runsc.control = \"command\"`",
        ];
        rows.extend(creates(bed, BY_COMMAND, names, runs).await?);
        let sidecars = Sidecars::beside_runsc(bed);
        let names = ["create, by sidecars", "start, by sidecars"];
        rows.extend(creates(bed, "", names, runs).await?);
        drop(sidecars);
        // One that does not tell its table: the profile is an allow list then. It is a script, so its create is not compared.
        let wrapper = Wrapper::at(bed, "help", "exit 1");
        let names = ["", "start, the profile as an allow list"];
        let [_, starts] = creates(bed, "", names, runs).await?;
        rows.push(starts);
        let listed = bed.container(&["sleep", "1000"]).run().await.expect("run");
        let name = "exec, start, wait by its own socket, the profile as an allow list";
        rows.push((name, by_socket(bed, &listed.id, runs).await));
        listed.remove().await;
        drop(wrapper);
    }
    Ok(rows)
}

/// Creates and starts under a policy, with their names.
async fn creates(
    bed: &Bed,
    policy: &str,
    names: [&'static str; 2],
    runs: usize,
) -> Result<[Row; 2], String> {
    let (mut creates, mut starts) = (vec![], vec![]);
    // The first fills what is kept of a binary.
    for number in 0..=runs {
        let mut container = bed.container(&["sleep", "1000"]);
        if !policy.is_empty() {
            container = container.policy("", policy);
        }
        let began = Instant::now();
        let container = container
            .create()
            .await
            .map_err(|error| error.to_string())?;
        let created = began.elapsed();
        let began = Instant::now();
        container.start().await.map_err(|error| error.to_string())?;
        if number > 0 {
            creates.push(created);
            starts.push(began.elapsed());
        }
        container.remove().await;
    }
    Ok([(names[0], creates), (names[1], starts)])
}

/// Execs of a container by the shim's own socket, and by `ctr`.
async fn steps(bed: &Bed, id: &str, runs: usize) -> [Row; 3] {
    let own = by_socket(bed, id, runs).await;
    let ctr = |args: &[&str]| timed(|| bed.ctr_ok(args)).0;
    let by_ctr = (0..runs).map(|number| {
        let exec = format!("ctr{number}");
        ctr(&["task", "exec", "--exec-id", &exec, id, "true"])
    });
    let by_ctr = by_ctr.collect();
    let alone = (0..runs).map(|_| ctr(&["version"])).collect();
    [
        (STEP_BY_SOCKET, own),
        (STEP_BY_CTR, by_ctr),
        (CLIENT, alone),
    ]
}

async fn by_socket(bed: &Bed, id: &str, runs: usize) -> Vec<Duration> {
    let shim = Shim::of(bed, id).await;
    // gVisor's own serves the older one alone, runc's the newer.
    let version = if bed.runtime.name == "io.containerd.runsc.v1" {
        2
    } else {
        3
    };
    let mut times = vec![];
    for number in 0..runs {
        let exec_id = format!("own{number}");
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: STEP.into(),
            ..Any::default()
        };
        let add = ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec_id.clone(),
            spec: MessageField::some(spec),
            ..ExecProcessRequest::default()
        };
        let start = StartRequest {
            id: id.to_owned(),
            exec_id: exec_id.clone(),
            ..StartRequest::default()
        };
        let wait = WaitRequest {
            id: id.to_owned(),
            exec_id,
            ..WaitRequest::default()
        };
        let began = Instant::now();
        shim.call::<Empty>(version, "Exec", &add)
            .await
            .expect("Exec");
        shim.call::<StartResponse>(version, "Start", &start)
            .await
            .expect("Start");
        let exit: WaitResponse = shim.call(version, "Wait", &wait).await.expect("Wait");
        assert_eq!(exit.exit_status, 0);
        times.push(began.elapsed());
    }
    times
}

/// runsc without a shim: its flags and its spec are those of a container of Bulkhead's.
async fn bare_runsc(bed: &Bed, runs: usize) -> Vec<Row> {
    let told = bed.folder.join("told");
    let wrapper = Wrapper::at(
        bed,
        "create",
        &format!("printf '%s\\n' \"$@\" >{}", told.display()),
    );
    let model = bed.container(&["sleep", "1000"]).run().await.expect("run");
    drop(wrapper);
    let told = fs::read_to_string(told).expect("read the flags");
    let flags = told.lines().take_while(|word| *word != "create");
    let own = ["--root=", "--log=", "--log-format="];
    let flags: Vec<&str> = flags
        .filter(|word| !own.iter().any(|prefix| word.starts_with(prefix)))
        .collect();
    let text = fs::read_to_string(bed.bundle(&model.id).join("config.json")).expect("read");
    model.remove().await;
    let bundle = bed.folder.join("bare");
    fs::create_dir_all(&bundle).expect("make a bundle");
    let mut spec: Value = serde_json::from_str(&text).expect("parse config.json");
    spec["root"]["path"] = IMAGE.into();
    let bare = Bare {
        runsc: bed.runsc.clone().expect("runsc"),
        flags: flags.into_iter().map(str::to_owned).collect(),
    };
    let (mut creates, mut starts) = (vec![], vec![]);
    let (mut commands, mut calls) = (vec![], vec![]);
    for number in 0..=runs {
        let id = format!("bare{number}");
        spec["linux"]["cgroupsPath"] = format!("/bare/{id}").into();
        fs::write(bundle.join("config.json"), spec.to_string()).expect("write config.json");
        let place = bundle.display().to_string();
        let created = timed(|| bare.run(&["create", "--bundle", &place, &id])).0;
        let started = timed(|| bare.run(&["start", &id])).0;
        if number > 0 {
            creates.push(created);
            starts.push(started);
        }
        if number == runs {
            for _ in 0..runs {
                commands.push(timed(|| bare.run(&["exec", &id, "true"])).0);
            }
            let socket = Path::new(Bare::ROOT).join(format!("runsc-{id}.sock"));
            for _ in 0..runs {
                calls.push(timed(|| step(&socket, &id)).0);
            }
        }
        bare.run(&["delete", "--force", &id]);
    }
    vec![
        (CREATE, creates),
        (START, starts),
        ("`runsc exec … true`, by the command", commands),
        (
            "ExecuteAsync, WaitPID of `true` by the sandbox's control socket",
            calls,
        ),
    ]
}

/// runsc by its command.
struct Bare {
    runsc: PathBuf,
    flags: Vec<String>,
}

impl Bare {
    const ROOT: &str = "/run/bare";

    fn run(&self, args: &[&str]) {
        let status = Command::new(&self.runsc)
            .args(["--root", Self::ROOT])
            .args(&self.flags)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.expect("run runsc").success(), "runsc {args:?}");
    }
}

/// What an exec asks of the sandbox, and nothing else.
fn step(socket: &Path, id: &str) {
    let none = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .expect("open");
    let no_capabilities = json!({
        "PermittedCaps": 0, "InheritableCaps": 0, "EffectiveCaps": 0, "BoundingCaps": 0, "AmbientCaps": 0,
    });
    let execute = json!({
        "argv": ["true"], "envv": ["PATH=/usr/bin:/bin"], "wd": "/", "KUID": 0, "KGID": 0, "ExtraKGIDs": [],
        "NoNewPrivileges": true, "Capabilities": no_capabilities, "StdioIsPty": false, "SupportTTYs": true,
        "GuestFDs": [0, 1, 2], "ContainerID": id,
    });
    let files = [none.as_raw_fd(); 3];
    let pid = call(socket, "containerManager.ExecuteAsync", &execute, &files);
    let wait = json!({ "PID": pid, "CID": id });
    assert_eq!(call(socket, "containerManager.WaitPID", &wait, &[]), 0);
}

/// One call of the sentry's (`urpc`).
fn call(socket: &Path, method: &str, argument: &Value, files: &[RawFd]) -> Value {
    let mut stream = UnixStream::connect(socket).expect("connect to the sandbox");
    let request = json!({ "method": method, "arg": argument }).to_string();
    let rights = [ControlMessage::ScmRights(files)];
    let control = &rights[..usize::from(!files.is_empty())];
    let data = [IoSlice::new(request.as_bytes())];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &data, control, MsgFlags::empty(), None);
    assert_eq!(sent.expect("send"), request.len());
    let mut values = serde_json::Deserializer::from_reader(BufReader::new(&mut stream)).into_iter();
    let answer: Value = values.next().expect("an answer").expect("JSON");
    assert_eq!(answer["success"], true, "{method}: {answer}");
    answer["result"].clone()
}
