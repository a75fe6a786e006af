//! Things break at every step: the client gets an answer, and after delete nothing is left.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use containerd_client::tonic::{Code, Status};
use containerd_client::types::v1::Status as TaskStatus;
use integration::bed::Bed;
use integration::container::Builder;
use integration::patience::patience;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;
use integration::wrapper::Wrapper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use integration::cases;

cases! {
    Needs::Any => [
        containerd_killed_during_start,
        containerd_killed_during_exec,
        containerd_killed_during_wait,
        containerd_killed_during_delete,
    ],
    Needs::NotRunc("a shim that containerd did not live to use may stay") => [
        containerd_killed_during_create,
    ],
    Needs::NotRunc("a killed shim's socket stays, and what it had not yet written down") => [
        shim_killed_during_create,
        shim_killed_during_start,
        shim_killed_during_exec,
        shim_killed_during_wait,
        shim_killed_during_delete,
    ],
    Needs::Gvisor => [
        sandbox_killed_during_create,
        sandbox_killed_during_start,
        sandbox_killed_during_exec,
        sandbox_killed_during_wait,
        sandbox_killed_during_delete,
        gofer_killed_during_create,
        gofer_killed_during_start,
        gofer_killed_during_exec,
        gofer_killed_during_wait,
        gofer_killed_during_delete,
    ],
    Needs::Bulkhead => [
        command_killed_during_create,
        command_killed_during_start,
        command_killed_during_exec,
        command_killed_during_wait,
        command_killed_during_delete,
        an_exec_outlives_the_command_that_waits_for_it,
        runsc_missing_is_named,
        runsc_not_executable_is_named,
        runsc_that_hangs_when_asked_for_its_features_is_ended_with_its_children,
        runsc_that_fails_at_create_tells_its_own_message,
        runsc_that_fails_at_start_tells_its_own_message,
        runsc_that_writes_no_pid_file_is_an_error,
        runsc_that_prints_100_mb_is_an_error_and_no_memory,
        runsc_that_hangs_at_create_is_ended_at_the_deadline,
        runsc_that_hangs_at_start_is_ended_at_the_deadline,
        runsc_that_hangs_at_the_start_of_a_pods_container_leaves_the_others,
        a_pod_whose_sentry_hangs_is_ended_when_a_container_cannot_be_started,
        runsc_that_fails_at_pause_or_resume_changes_nothing,
        runsc_that_hangs_at_pause_is_ended_at_the_deadline,
        runsc_that_fails_at_delete_leaves_nothing,
        runsc_that_hangs_at_delete_leaves_nothing,
        runsc_that_dies_after_its_work_at_create_leaves_nothing,
        shim_and_sandbox_both_killed_leave_nothing,
    ],
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Create,
    Start,
    Exec,
    Wait,
    Delete,
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    Containerd,
    Process(Role),
}

/// From when on the victim is looked for, in milliseconds after the step has begun.
const DELAYS: [u64; 6] = [0, 15, 40, 90, 200, 700];
/// For how long: some live for a few milliseconds only.
const LOOK: Duration = Duration::from_millis(250);

/// Kills what has this role in a sandbox, as soon as it is there; false if it never was.
async fn shoot_at(role: Role, id: &str, delay: u64) -> bool {
    tokio::time::sleep(Duration::from_millis(delay)).await;
    let until = Instant::now() + LOOK;
    while processes::kill_role(role, id) == 0 {
        if Instant::now() > until {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    true
}

/// Waits until containerd has connected to a container's shim, or has given it up. A shim that dies before that is never
/// cleaned up after: containerd runs no `delete` for it (`core/runtime/v2/binary.go`), and its socket stays until the next
/// start of the same id.
async fn connected(bed: &Bed, id: &str) {
    let until = Instant::now() + LOOK;
    let is_connected = || {
        let address = std::fs::read_to_string(bed.bundle(id).join("address")).ok()?;
        let socket = address.strip_prefix("unix://")?;
        let all = std::fs::read_to_string("/proc/net/unix").ok()?;
        // The one that listens and one for each client bear the name.
        (all.lines().filter(|line| line.ends_with(socket)).count() > 1).then_some(())
    };
    while is_connected().is_none() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Kills the victim at several moments of a step. Whatever the step then answers, it answers, and the container can be
/// deleted.
async fn fault(bed: &Bed, step: Step, victim: Victim) {
    let mut row = Row::new(step, victim);
    // Over the control socket these need no command.
    let by_command = matches!(
        (step, victim),
        (
            Step::Start | Step::Exec | Step::Wait,
            Victim::Process(Role::Command)
        )
    );
    for delay in DELAYS {
        let id = bed.id("fault");
        let shoot = async {
            match victim {
                Victim::Containerd => {
                    tokio::time::sleep(Duration::from_millis(delay)).await;
                    bed.kill_containerd();
                    bed.start_containerd().await;
                    true
                }
                Victim::Process(role) => {
                    if let (Step::Create, Role::Shim) = (step, role) {
                        connected(bed, &id).await;
                    }
                    shoot_at(role, &id, delay).await
                }
            }
        };
        let (answer, hit) = perform(bed, &id, step, by_command, shoot).await;
        row.add(answer, hit);
        bed.remove(&id).await;
        if let (Step::Delete, Victim::Process(Role::Shim)) = (step, victim) {
            remove_dead_sockets();
        }
    }
    row.finish();
}

/// A shim that is killed after it has answered the delete, and before it is told to end, leaves its socket: containerd has forgotten
/// the container, and runs no `delete`.
fn remove_dead_sockets() {
    let sockets = std::fs::read_dir("/run/containerd/s").into_iter().flatten();
    for socket in sockets.flatten().map(|entry| entry.path()) {
        let answer = std::os::unix::net::UnixStream::connect(&socket);
        if answer.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            std::fs::remove_file(&socket).expect("remove the socket");
        }
    }
}

/// The same at the delete of one container of a pod, whose sandbox and gofers live on until the pod ends.
async fn fault_in_pod(bed: &Bed, role: Role) {
    let mut row = Row::new(Step::Delete, Victim::Process(role));
    for delay in DELAYS {
        let pod = crate::life::pod::sandbox(bed).await;
        let member = crate::life::pod::member(bed, &pod, "sleep 1000");
        let member = member.run().await.expect("run");
        member.kill(9).await.expect("kill");
        member.wait().await.expect("wait");
        let (deleted, hit) = tokio::join!(member.delete(), shoot_at(role, &pod.id, delay));
        row.add(told(&deleted), hit);
        for id in [&member.id, &pod.id] {
            bed.remove(id).await;
        }
    }
    row.finish();
}

/// What came of one fault, for the table of `docs/reliability.md`.
struct Row {
    victim: Victim,
    step: Step,
    hits: u32,
    answers: BTreeSet<String>,
}

impl Row {
    fn new(step: Step, victim: Victim) -> Self {
        Self {
            victim,
            step,
            hits: 0,
            answers: BTreeSet::new(),
        }
    }

    fn add(&mut self, answer: String, hit: bool) {
        self.hits += u32::from(hit);
        self.answers.insert(answer);
    }

    fn finish(self) {
        assert!(self.hits > 0, "no shot has met a {:?}", self.victim);
        write_down(&self);
    }
}

/// Appends a line to the table that `BULKHEAD_FAULT_TABLE` names. That nothing is left is judged by the harness: a line is
/// worth as much as its test.
fn write_down(row: &Row) {
    let Some(path) = std::env::var_os("BULKHEAD_FAULT_TABLE") else {
        return;
    };
    let victim = match row.victim {
        Victim::Containerd => "containerd".to_owned(),
        Victim::Process(Role::Command) => "the runsc command".to_owned(),
        Victim::Process(role) => format!("{role:?}").to_lowercase(),
    };
    let answers: Vec<&str> = row.answers.iter().map(String::as_str).collect();
    let line = format!(
        "| {victim} | {} | {} of {} | {} | nothing |\n",
        format!("{:?}", row.step).to_lowercase(),
        row.hits,
        DELAYS.len(),
        answers.join(", ")
    );
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    std::io::Write::write_all(&mut file.expect("open the table"), line.as_bytes()).expect("write");
}

/// An answer in a word.
fn told<T>(result: &Result<T, Status>) -> String {
    match result {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("{:?}", error.code()),
    }
}

/// The policy under which a command waits for each process.
const BY_COMMAND: &str = "runsc.control = \"command\"";

/// With a hook that runs after the container: without one there is no command at delete that anything could happen to.
fn with_hook(builder: Builder<'_>) -> Builder<'_> {
    builder.with(|spec| spec["hooks"]["poststop"] = serde_json::json!([{ "path": "/bin/true" }]))
}

/// Goes as far as the step and takes it while `shoot` runs. Only what comes before the step must succeed.
async fn perform(
    bed: &Bed,
    id: &str,
    step: Step,
    by_command: bool,
    shoot: impl Future<Output = bool>,
) -> (String, bool) {
    let mut builder = with_hook(bed.named(id, &["sleep", "1000"]));
    if by_command {
        builder = builder.policy("", BY_COMMAND);
    }
    if let Step::Create = step {
        let (created, hit) = tokio::join!(builder.create(), shoot);
        return (told(&created), hit);
    }
    let container = builder.create().await.expect("create");
    if let Step::Start = step {
        let (started, hit) = tokio::join!(container.start(), shoot);
        return (told(&started), hit);
    }
    container.start().await.expect("start");
    match step {
        Step::Create | Step::Start | Step::Exec => {
            let exec = container.exec("e", &["sleep", "1000"]).run();
            let (added, hit) = tokio::join!(exec, shoot);
            (told(&added), hit)
        }
        Step::Wait => {
            // A restarted containerd and an untouched container: the wait would go on.
            let wait = tokio::time::timeout(Duration::from_secs(3), container.wait());
            let (waited, hit) = tokio::join!(wait, shoot);
            let answer = match waited {
                Ok(Ok(exit)) => format!("exit {}", exit.status),
                Ok(Err(error)) => format!("{:?}", error.code()),
                Err(_) => "it runs on".to_owned(),
            };
            (answer, hit)
        }
        Step::Delete => {
            container.kill(9).await.expect("kill");
            container.wait().await.expect("wait");
            let (deleted, hit) = tokio::join!(container.delete(), shoot);
            (told(&deleted), hit)
        }
    }
}

macro_rules! faults {
    ($($name:ident: $step:ident, $victim:expr;)*) => {
        $(async fn $name(bed: &Bed) {
            fault(bed, Step::$step, $victim).await;
        })*
    };
}

faults! {
    containerd_killed_during_create: Create, Victim::Containerd;
    containerd_killed_during_start: Start, Victim::Containerd;
    containerd_killed_during_exec: Exec, Victim::Containerd;
    containerd_killed_during_wait: Wait, Victim::Containerd;
    containerd_killed_during_delete: Delete, Victim::Containerd;
    shim_killed_during_create: Create, Victim::Process(Role::Shim);
    shim_killed_during_start: Start, Victim::Process(Role::Shim);
    shim_killed_during_exec: Exec, Victim::Process(Role::Shim);
    shim_killed_during_wait: Wait, Victim::Process(Role::Shim);
    shim_killed_during_delete: Delete, Victim::Process(Role::Shim);
    sandbox_killed_during_create: Create, Victim::Process(Role::Sandbox);
    sandbox_killed_during_start: Start, Victim::Process(Role::Sandbox);
    sandbox_killed_during_exec: Exec, Victim::Process(Role::Sandbox);
    sandbox_killed_during_wait: Wait, Victim::Process(Role::Sandbox);
    gofer_killed_during_create: Create, Victim::Process(Role::Gofer);
    gofer_killed_during_start: Start, Victim::Process(Role::Gofer);
    gofer_killed_during_exec: Exec, Victim::Process(Role::Gofer);
    gofer_killed_during_wait: Wait, Victim::Process(Role::Gofer);
    command_killed_during_create: Create, Victim::Process(Role::Command);
    command_killed_during_start: Start, Victim::Process(Role::Command);
    command_killed_during_exec: Exec, Victim::Process(Role::Command);
    command_killed_during_wait: Wait, Victim::Process(Role::Command);
    command_killed_during_delete: Delete, Victim::Process(Role::Command);
}

async fn sandbox_killed_during_delete(bed: &Bed) {
    fault_in_pod(bed, Role::Sandbox).await;
}

async fn gofer_killed_during_delete(bed: &Bed) {
    fault_in_pod(bed, Role::Gofer).await;
}

async fn an_exec_outlives_the_command_that_waits_for_it(bed: &Bed) {
    let builder = bed.container(&["sleep", "1000"]).policy("", BY_COMMAND);
    let container = builder.run().await.expect("run");
    let exec = container.exec("e", &["sh", "-c", "read x; exit 7"]).stdin();
    let exec = exec.run().await.expect("exec");
    let commands = processes::of(Role::Command, &container.id);
    let keepers: Vec<_> = commands
        .iter()
        .filter(|process| process.command.contains(" exec "))
        .collect();
    assert_eq!(keepers.len(), 1, "{commands:?}");
    processes::sigkill(keepers[0].pid);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let state = bed.client().get(&container.id, "e").await.expect("state");
    assert_eq!(state.status(), TaskStatus::Running, "{state:?}");
    exec.close_stdin().await.expect("close stdin");
    assert_eq!(exec.finish().await.status, 7);
    container.remove().await;
}

async fn create_fails(bed: &Bed) -> Status {
    bed.container(&["true"])
        .create()
        .await
        .expect_err("create must fail")
}

/// What cannot be run is named, and the key that would name another.
fn assert_names_runsc(error: &Status) {
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    for text in ["runsc.path", "install"] {
        assert!(error.message().contains(text), "{text}: {error:?}");
    }
}

async fn runsc_missing_is_named(bed: &Bed) {
    let _wrapper = Wrapper::missing(bed);
    let error = create_fails(bed).await;
    assert_names_runsc(&error);
    assert!(error.message().contains("not in PATH"), "{error:?}");
}

async fn runsc_not_executable_is_named(bed: &Bed) {
    let wrapper = Wrapper::not_executable(bed);
    let error = create_fails(bed).await;
    assert_names_runsc(&error);
    let place = wrapper.place().display().to_string();
    assert!(error.message().contains(&place), "{place}: {error:?}");
}

async fn runsc_that_hangs_when_asked_for_its_features_is_ended_with_its_children(bed: &Bed) {
    // The child holds the pipe that the answer would come by.
    let _wrapper = Wrapper::at(bed, "flags", "sleep 1000 & wait");
    let id = bed.id("asked");
    let began = Instant::now();
    let created = bed.named(&id, &["true"]).create().await;
    let error = created.map(drop).expect_err("create must fail");
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    assert!(error.message().contains("runsc flags"), "{error:?}");
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    eventually("the shim has gone", Duration::from_secs(6), || {
        processes::of(Role::Shim, &id).is_empty()
    })
    .await;
}

async fn runsc_that_fails_at_create_tells_its_own_message(bed: &Bed) {
    let _wrapper = Wrapper::at(bed, "create", "log 'the moon is not in place'; exit 1");
    let error = create_fails(bed).await;
    assert!(
        error.message().contains("the moon is not in place"),
        "{error:?}"
    );
    assert!(!error.message().contains('\n'), "one line: {error:?}");
}

async fn runsc_that_fails_at_start_tells_its_own_message(bed: &Bed) {
    let _wrapper = Wrapper::at(bed, "start", "log 'the moon has set'; exit 1");
    let container = bed.container(&["true"]).policy("", BY_COMMAND);
    let container = container.create().await.expect("create");
    let error = container.start().await.expect_err("start must fail");
    assert!(error.message().contains("the moon has set"), "{error:?}");
    assert!(!error.message().contains('\n'), "one line: {error:?}");
    container.remove().await;
}

async fn runsc_that_writes_no_pid_file_is_an_error(bed: &Bed) {
    let _wrapper = Wrapper::at(bed, "create", "exit 0");
    let error = create_fails(bed).await;
    assert_eq!(error.code(), Code::Internal, "{error:?}");
    assert!(error.message().contains("no pid file"), "{error:?}");
}

async fn runsc_that_prints_100_mb_is_an_error_and_no_memory(bed: &Bed) {
    // Beside a shim that lives on, so that its memory can be seen.
    let fault = "head -c 100000000 /dev/zero; head -c 100000000 /dev/zero >&2; head -c 100000000 /dev/zero >>\"$log\"; exit 1";
    let container = bed.container(&["true"]).policy("", BY_COMMAND);
    let container = container.create().await.expect("create");
    {
        let _wrapper = Wrapper::at(bed, "start", fault);
        container.start().await.expect_err("start must fail");
        let shim = &processes::of(Role::Shim, &container.id)[0];
        let memory = processes::peak_kb(shim.pid).expect("its memory");
        assert!(memory < 40_000, "the shim has had {memory} kB");
    }
    container.remove().await;
}

async fn runsc_that_hangs_at_create_is_ended_at_the_deadline(bed: &Bed) {
    let _wrapper = Wrapper::at(bed, "create", "exec sleep 1000");
    let began = Instant::now();
    let created = hurried(bed.container(&["true"])).create().await;
    assert_ended_at_its_deadline(&created.map(drop).expect_err("create must fail"));
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
}

async fn runsc_that_hangs_at_start_is_ended_at_the_deadline(bed: &Bed) {
    let _wrapper = Wrapper::at(bed, "start", "exec sleep 1000");
    let policy = format!("{BY_COMMAND}\nrunsc.start_timeout = 2");
    let container = bed.container(&["true"]).policy("", &policy);
    let container = container.create().await.expect("create");
    let began = Instant::now();
    let error = container.start().await.expect_err("start must fail");
    assert_ended_at_its_deadline(&error);
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    container.remove().await;
}

async fn runsc_that_hangs_at_the_start_of_a_pods_container_leaves_the_others(bed: &Bed) {
    let pod = hurried(crate::life::pod::pod(bed))
        .run()
        .await
        .expect("run");
    let other = crate::life::pod::member(bed, &pod, "sleep 1000");
    let other = other.run().await.expect("run");
    let late = crate::life::pod::member(bed, &pod, "sleep 1000");
    let late = late.create().await.expect("create");
    {
        let _wrapper = Wrapper::at(bed, "start", "exec sleep 1000");
        assert_ended_at_its_deadline(&late.start().await.expect_err("start must fail"));
    }
    // The sentry answers at once, so that it is not taken for one that hangs.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(other.exec("e", &["true"]).finish().await.status, 0);
    late.delete().await.expect("delete");
    other.remove().await;
    crate::life::pod::end(pod).await;
}

async fn a_pod_whose_sentry_hangs_is_ended_when_a_container_cannot_be_started(bed: &Bed) {
    let pod = hurried(crate::life::pod::pod(bed))
        .run()
        .await
        .expect("run");
    let late = crate::life::pod::member(bed, &pod, "sleep 1000");
    let late = late.create().await.expect("create");
    let sentry = processes::of(Role::Sandbox, &pod.id)[0].pid;
    kill(Pid::from_raw(sentry), Signal::SIGSTOP).expect("stop the sentry");
    assert_ended_at_its_deadline(&late.start().await.expect_err("start must fail"));
    // Nobody has asked for its end.
    assert_eq!(pod.wait().await.expect("wait").status, 137);
    late.delete().await.expect("delete");
    pod.delete().await.expect("delete");
}

fn assert_ended_at_its_deadline(error: &Status) {
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
    let says = "did not finish within 2 s";
    assert!(error.message().contains(says), "{error:?}");
}

async fn runsc_that_fails_at_pause_or_resume_changes_nothing(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let (client, id) = (bed.client(), container.id.clone());
    {
        let _wrapper = Wrapper::at(bed, "pause", "log 'the moon stands still'; exit 1");
        let error = client.pause(&id).await.expect_err("pause must fail");
        let text = error.message();
        assert!(text.contains("the moon stands still"), "{error:?}");
        let status = container.status().await.expect("state");
        assert_eq!(status, TaskStatus::Running);
        assert_eq!(container.exec("e", &["true"]).finish().await.status, 0);
    }
    client.pause(&id).await.expect("pause");
    {
        let _wrapper = Wrapper::at(bed, "resume", "log 'the moon has stopped'; exit 1");
        let error = client.resume(&id).await.expect_err("resume must fail");
        let text = error.message();
        assert!(text.contains("the moon has stopped"), "{error:?}");
        let status = container.status().await.expect("state");
        assert_eq!(status, TaskStatus::Paused);
    }
    client.resume(&id).await.expect("resume");
    assert_eq!(container.exec("e", &["true"]).finish().await.status, 0);
    container.remove().await;
}

async fn runsc_that_hangs_at_pause_is_ended_at_the_deadline(bed: &Bed) {
    let container = hurried(bed.container(&["sleep", "1000"])).run().await;
    let container = container.expect("run");
    let (client, id) = (bed.client(), container.id.clone());
    for command in ["pause", "resume"] {
        let _wrapper = Wrapper::at(bed, command, "exec sleep 1000");
        let began = Instant::now();
        let answer = if command == "pause" {
            client.pause(&id).await
        } else {
            client.resume(&id).await
        };
        assert_ended_at_its_deadline(&answer.expect_err(command));
        let took = began.elapsed();
        assert!(took < patience(Duration::from_secs(10)), "{took:?}");
        drop(_wrapper);
        if command == "pause" {
            assert_eq!(container.exec("e", &["true"]).finish().await.status, 0);
            client.pause(&id).await.expect("pause");
        }
    }
    let status = container.status().await.expect("state");
    assert_eq!(status, TaskStatus::Paused);
    container.kill(9).await.expect("kill");
    assert_eq!(container.finish().await.status, 137);
}

/// Under a policy with short deadlines.
pub(crate) fn hurried(builder: Builder<'_>) -> Builder<'_> {
    let text = format!(
        "{}[runsc]\ncreate_timeout = 2\nstart_timeout = 2\n",
        crate::life::pod::TESTS_OWN
    );
    builder.policy("", &text)
}

async fn runsc_that_fails_at_delete_leaves_nothing(bed: &Bed) {
    let container = with_hook(bed.container(&["true"]));
    let container = container.run().await.expect("run");
    let _wrapper = Wrapper::at(bed, "delete", "log 'cannot'; exit 1");
    container.finish().await;
}

async fn runsc_that_hangs_at_delete_leaves_nothing(bed: &Bed) {
    let container = with_hook(bed.container(&["true"]));
    let container = container.run().await.expect("run");
    let _wrapper = Wrapper::at(bed, "delete", "exec sleep 1000");
    container.finish().await;
}

async fn runsc_that_dies_after_its_work_at_create_leaves_nothing(bed: &Bed) {
    let _wrapper = Wrapper::at(bed, "create", "\"$real\" \"$@\"; kill -KILL $$");
    create_fails(bed).await;
}

async fn shim_and_sandbox_both_killed_leave_nothing(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    processes::kill_role(Role::Sandbox, &container.id);
    processes::kill_role(Role::Shim, &container.id);
    container.remove().await;
}
