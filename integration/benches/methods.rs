//! The methods of an agent's steps, side by side in one run on one machine: prints their medians and 95th percentiles, and gates
//! nothing. By containerd's API, so without the start of a client; "own socket" is without containerd as well. A start by the command is one under
//! `runsc.control = "command"`. `bench [RUNS]`: how often each is measured (30).
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a bench that cannot measure ends"
)]

use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    Empty, ExecProcessRequest, StartRequest, StartResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use integration::bed::{Bed, Services};
use integration::isolate;
use integration::measure::{each, percentile};
use integration::shim::Shim;

/// A name, and how long each time took.
type Row = (&'static str, Vec<Duration>);

const BY_COMMAND: &str = "runsc.control = \"command\"";
/// What a shell's step is, as a client asks the shim for it.
const STEP: &str =
    r#"{"args":["true"],"cwd":"/","env":["PATH=/usr/bin:/bin"],"user":{"uid":0,"gid":0}}"#;

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok());
    let runs = numbers.next().unwrap_or(30);
    let folder = isolate::enter();
    let all = each(&folder, Services::Tasks, |bed, _| {
        bed.block_on(measure(bed, runs))
    });
    for (name, rows) in &all {
        println!("\n{name}: milliseconds, {runs} times each\n");
        println!("| | median | p95 |\n|---|---|---|");
        for (what, times) in rows {
            let at = |percent| percentile(times, percent);
            println!("| {what} | {:.1} | {:.1} |", at(50), at(95));
        }
    }
}

/// # Errors
/// What containerd answers when the runtime runs nothing here.
async fn measure(bed: &Bed, runs: usize) -> Result<Vec<Row>, String> {
    let first = bed.container(&["sleep", "1000"]).run().await;
    let first = first.map_err(|error| error.to_string())?;
    let mut rows = vec![];
    let mut kinds = vec![("", "create", "start")];
    if bed.runtime.is_bulkhead() {
        kinds.push((BY_COMMAND, "create, by command", "start, by command"));
    }
    for (policy, create, start) in kinds {
        let (mut creates, mut starts) = (vec![], vec![]);
        for _ in 0..runs {
            let mut container = bed.container(&["sleep", "1000"]);
            if !policy.is_empty() {
                container = container.policy("", policy);
            }
            let began = Instant::now();
            let container = container
                .create()
                .await
                .map_err(|error| error.to_string())?;
            creates.push(began.elapsed());
            let began = Instant::now();
            container.start().await.map_err(|error| error.to_string())?;
            starts.push(began.elapsed());
            container.remove().await;
        }
        rows.extend([(create, creates), (start, starts)]);
    }
    let mut steps = vec![];
    for number in 0..runs {
        let began = Instant::now();
        let exec = first.exec(&format!("e{number}"), &["true"]);
        assert_eq!(exec.finish().await.status, 0);
        steps.push(began.elapsed());
    }
    rows.push(("exec, start, wait, delete of `true`", steps));
    rows.push((
        "the same by the shim's own socket, no streams",
        by_socket(bed, &first.id, runs).await,
    ));
    first.remove().await;
    Ok(rows)
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
