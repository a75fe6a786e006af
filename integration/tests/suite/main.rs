//! Behaviours of a containerd runtime, judged through real containerd. `BULKHEAD_TEST_RUNTIME` names the runtime; see the
//! README of this crate.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is a test: it ends at the first thing that is not as expected"
)]

mod create;
mod events;
mod exec;
mod faults;
mod io;
mod kill;
mod limits;
mod log;
mod peers;
mod pod;
mod posture;
mod service;
mod start;
mod terminal;
mod user;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use integration::bed::Bed;
use integration::isolate;
use integration::leaks::{Snapshot, settle};
use integration::runtime::{Needs, Runtime};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// No behaviour takes longer, whatever goes wrong.
const LIMIT: Duration = Duration::from_secs(150);

type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A behaviour and what it needs to make sense.
struct Case {
    name: &'static str,
    needs: Needs,
    run: for<'a> fn(&'a Bed) -> Work<'a>,
}

/// Lists the tests of a module; the path gives the name its first part.
macro_rules! cases {
    ($($needs:expr => [$($test:ident),* $(,)?]),* $(,)?) => {
        pub(crate) fn cases() -> Vec<crate::Case> {
            vec![$($(crate::Case {
                name: concat!(module_path!(), "::", stringify!($test)),
                needs: $needs,
                run: |bed| Box::pin($test(bed)),
            }),*),*]
        }
    };
}
pub(crate) use cases;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // What is left after one test can only be told while no other runs.
    arguments.test_threads = Some(1);
    let runtime = Runtime::from_environment();
    let cases: Vec<Case> = [
        start::cases(),
        create::cases(),
        io::cases(),
        exec::cases(),
        kill::cases(),
        service::cases(),
        events::cases(),
        faults::cases(),
        peers::cases(),
        terminal::cases(),
        posture::cases(),
        user::cases(),
        pod::cases(),
        limits::cases(),
        log::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    if arguments.list {
        let trials = cases
            .into_iter()
            .map(|case| Trial::test(name(&case), || Ok(())))
            .collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let folder = isolate::enter();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        PLACES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(place);
    }));
    let bed: &'static Bed = Box::leak(Box::new(Bed::start(folder, runtime)));
    warm_up(bed);
    let trials = cases.into_iter().map(|case| trial(bed, case)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    println!(
        "suite: {} passed, {} failed, {} skipped ({})",
        conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored, bed.runtime.name
    );
    bed.kill_containerd();
    if conclusion.num_failed > 0
        && let Ok(keep) = std::env::var("BULKHEAD_TEST_LOG")
    {
        let _ = std::fs::copy("/run/b/log/containerd.log", keep);
    }
    conclusion.exit_code()
}

fn name(case: &Case) -> String {
    case.name.trim_start_matches("suite::").to_owned()
}

/// Makes what a runtime's first container makes for all.
fn warm_up(bed: &Bed) {
    let result = catch_unwind(AssertUnwindSafe(|| {
        bed.block_on(async {
            if let Ok(container) = bed.container(&["true"]).run().await {
                container.finish().await;
            }
        });
    }));
    if result.is_err() {
        bed.sweep(&[]);
    }
}

fn trial(bed: &'static Bed, case: Case) -> Trial {
    let lacks = bed.runtime.lacks(case.needs);
    Trial::ignorable_test(name(&case), move || match lacks {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => judge(bed, &case).map(|()| Completion::Completed),
    })
}

/// Where the last panics were: a failed test is reported with its place, once, in its own words.
static PLACES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs a test and looks for what it left, whether it failed or not.
fn judge(bed: &Bed, case: &Case) -> Result<(), Failed> {
    let before = Snapshot::take(&bed.known_processes());
    let run = || bed.block_on(async { tokio::time::timeout(LIMIT, (case.run)(bed)).await });
    let result = catch_unwind(AssertUnwindSafe(run));
    let failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some(format!("not done within {LIMIT:?}")),
        Err(panic) => {
            let places =
                std::mem::take(&mut *PLACES.lock().unwrap_or_else(PoisonError::into_inner));
            Some(format!(
                "{}: {}",
                places.join(", "),
                text_of(panic.as_ref())
            ))
        }
    };
    if let Some(failure) = failure {
        bed.sweep(&settle_after_failure(bed, &before));
        return Err(failure.into());
    }
    let left = settle(&before, || bed.known_processes());
    if left.is_empty() {
        return Ok(());
    }
    bed.sweep(&left);
    Err(format!("left behind:\n  {}", left.join("\n  ")).into())
}

fn settle_after_failure(bed: &Bed, before: &Snapshot) -> Vec<String> {
    Snapshot::take(&bed.known_processes()).since(before)
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}
