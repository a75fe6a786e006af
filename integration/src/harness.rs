//! The tests' own test program: one behaviour after the other, each followed by a look at what it left.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::bed::{Bed, Services};
use crate::ground::isolate;
use crate::ground::patience::patience;
use crate::ground::runtime::{Needs, Runtime};
use crate::look::leaks::{Snapshot, settle};
use crate::workload::cri::Pod;

/// No behaviour takes longer, whatever goes wrong, unless its program says so.
const LIMIT: Duration = Duration::from_secs(150);

/// What a behaviour does.
pub type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A behaviour and what it needs to make sense.
#[derive(Debug)]
pub struct Case {
    /// Its path.
    pub name: String,
    /// What it needs.
    pub needs: Needs,
    /// What it does.
    pub run: for<'a> fn(&'a Bed) -> Work<'a>,
}

/// Lists the behaviours of a module; the path gives the name its first part.
#[macro_export]
macro_rules! cases {
    ($($needs:expr => [$($test:ident),* $(,)?]),* $(,)?) => {
        pub(crate) fn cases() -> Vec<$crate::harness::Case> {
            vec![$($($crate::harness::Case {
                name: concat!(module_path!(), "::", stringify!($test)).to_owned(),
                needs: $needs,
                run: |bed| Box::pin($test(bed)),
            }),*),*]
        }
    };
}

/// Lists the subjects of a room. Rooms are for a reader of the tree: a test is called as if its subject lay in none.
#[macro_export]
macro_rules! room {
    ($($($subject:ident)::+),* $(,)?) => {
        pub(crate) fn cases() -> Vec<$crate::harness::Case> {
            let subjects = [$($($subject)::+::cases()),*];
            let cases = subjects.into_iter().flatten();
            cases.map(|case| case.without_room(module_path!())).collect()
        }
    };
}

impl Case {
    /// Under a name that lacks the room.
    #[must_use]
    pub fn without_room(mut self, room: &str) -> Self {
        let program = room.rsplit_once("::").map_or("", |(program, _)| program);
        if let Some(rest) = self.name.strip_prefix(room) {
            self.name = format!("{program}{rest}");
        }
        self
    }
}

/// What containerd and the runtime make for the first container serves all others.
pub async fn first_container(bed: &Bed) {
    if let Ok(container) = bed.container(&["true"]).run().await {
        container.finish().await;
    }
}

/// The same for the first pod.
pub async fn first_pod(bed: &Bed) {
    if let Ok(pod) = Pod::run(Pod::config(bed)).await {
        if let Ok(id) = pod.launch(pod.container("warm", &["true"])).await {
            pod.ended(&id).await;
        }
        pod.remove().await;
    }
}

/// The test program that the cases belong to.
fn program(cases: &[Case]) -> String {
    let first = cases.first().and_then(|case| case.name.split_once("::"));
    first.map_or("tests", |(program, _)| program).to_owned()
}

/// Runs a test program. `warm_up` makes what a first container or pod makes for all of them.
pub fn main(
    services: Services,
    cases: Vec<Case>,
    warm_up: for<'a> fn(&'a Bed) -> Work<'a>,
) -> ExitCode {
    main_within(LIMIT, services, cases, warm_up)
}

/// The same for behaviours that take longer; `limit` is that of each.
pub fn main_within(
    limit: Duration,
    services: Services,
    cases: Vec<Case>,
    warm_up: for<'a> fn(&'a Bed) -> Work<'a>,
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // What is left after one test can only be told while no other runs.
    arguments.test_threads = Some(1);
    let runtime = Runtime::from_environment();
    let program = program(&cases);
    let cases = match chosen(cases) {
        Ok(cases) => cases,
        Err(problem) => {
            eprintln!("{program}: {problem}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.list {
        let trials = cases
            .into_iter()
            .map(|case| Trial::test(name(&case), || Ok(())))
            .collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let folder = isolate::enter();
    let bed: &'static Bed = Box::leak(Box::new(Bed::start(folder, runtime, services)));
    // From here on it is the tests that panic; a testbed that does not start has said so.
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
    prepare(bed, warm_up);
    let trials = cases
        .into_iter()
        .map(|case| trial(bed, case, limit))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    println!(
        "{program}: {} passed, {} failed, {} skipped ({})",
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

/// The names that two tests have. Two subjects of one name in different rooms would have such.
fn twice(cases: &[Case]) -> Vec<&str> {
    let mut names: Vec<&str> = cases.iter().map(|case| &*case.name).collect();
    names.sort_unstable();
    let pairs = names.windows(2).filter(|pair| pair[0] == pair[1]);
    pairs.map(|pair| pair[0]).collect()
}

/// Those that `BULKHEAD_TEST_ONLY` names, each by the beginning of its name; all where it names none. A beginning that no
/// test has is an error: whoever renames a test would else take it out of a list in silence.
fn chosen(mut cases: Vec<Case>) -> Result<Vec<Case>, String> {
    let twice = twice(&cases);
    if !twice.is_empty() {
        return Err(format!("two tests are called {}", twice.join(", ")));
    }
    let only = std::env::var("BULKHEAD_TEST_ONLY").unwrap_or_default();
    let beginnings: Vec<&str> = only.split_whitespace().collect();
    let is_idle = |beginning: &&&str| !cases.iter().any(|case| name(case).starts_with(**beginning));
    let idle: Vec<&str> = beginnings.iter().filter(is_idle).copied().collect();
    if !idle.is_empty() {
        return Err(format!(
            "BULKHEAD_TEST_ONLY: no test begins with {}",
            idle.join(", ")
        ));
    }
    cases.retain(|case| {
        beginnings.is_empty() || beginnings.iter().any(|only| name(case).starts_with(only))
    });
    Ok(cases)
}

/// Without the name of the test program.
fn name(case: &Case) -> String {
    let (_, name) = case.name.split_once("::").unwrap_or(("", &case.name));
    name.to_owned()
}

fn prepare(bed: &Bed, warm_up: for<'a> fn(&'a Bed) -> Work<'a>) {
    let work = || bed.block_on(async { tokio::time::timeout(patience(LIMIT), warm_up(bed)).await });
    if !matches!(catch_unwind(AssertUnwindSafe(work)), Ok(Ok(()))) {
        bed.sweep(&[]);
    }
}

fn trial(bed: &'static Bed, case: Case, limit: Duration) -> Trial {
    let lacks = bed.runtime.lacks(case.needs);
    Trial::ignorable_test(name(&case), move || match lacks {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => judge(bed, &case, limit).map(|()| Completion::Completed),
    })
}

/// Where the last panics were: a failed test is reported with its place, once, in its own words.
static PLACES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs a test and looks for what it left, whether it failed or not.
fn judge(bed: &Bed, case: &Case, limit: Duration) -> Result<(), Failed> {
    let before = Snapshot::take(&bed.known_processes());
    let run =
        || bed.block_on(async { tokio::time::timeout(patience(limit), (case.run)(bed)).await });
    let result = catch_unwind(AssertUnwindSafe(run));
    let failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some(format!("not done within {limit:?}")),
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

/// Runs futures side by side on this task.
pub async fn join_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    std::future::poll_fn(|context| {
        let mut done = true;
        for (future, result) in &mut pending {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *result = Some(value),
                    std::task::Poll::Pending => done = false,
                }
            }
        }
        if done {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pending
        .into_iter()
        .map(|(_, result)| result.expect("every future has ended"))
        .collect()
}
