//! Further processes of a container.

use std::time::Duration;

use containerd_client::tonic::Code;
use integration::bed::{Bed, is_before_2};
use integration::container::Container;
use integration::policy::NodePolicy;
use integration::runtime::Needs;
use integration::spec::ask_capabilities;
use integration::wrapper::Wrapper;
use serde_json::json;

use crate::life::pod::{end, member, sandbox};
use integration::cases;
use integration::harness::join_all;

cases! {
    Needs::Any => [
        a_hundred_execs_in_turn_each_keep_their_code,
        a_hundred_execs_at_once_each_keep_their_code,
        a_signal_is_128_and_its_number,
        the_working_folder_is_as_asked,
        the_environment_is_as_asked,
        the_user_is_as_asked,
        additional_groups_are_as_asked,
        stdin_reaches_the_program_and_close_io_ends_it,
        stdout_and_stderr_come_separately,
        an_unknown_program_fails_and_leaves_nothing,
        a_duplicate_id_already_exists,
        an_id_can_be_used_again_after_delete,
        delete_before_start_takes_it_away,
        three_clients_wait_and_all_hear,
        kill_reaches_only_the_exec,
        an_exec_of_an_unknown_container_is_not_found,
        an_exec_that_was_never_added_is_not_found,
        state_tells_created_running_and_stopped,
        the_end_of_init_ends_the_execs,
    ],
    Needs::NotRunc("its code is Unknown") => [
        an_exec_in_a_stopped_container_is_refused,
    ],
    Needs::NotRunc("its shim ends and leaves its socket") => [
        a_start_after_start_is_refused,
    ],
    Needs::Bulkhead => [
        all_of_an_exec_is_its_process_group,
        an_exec_whose_command_is_killed_is_not_called_invalid,
        a_process_spec_that_does_not_parse_is_invalid,
        an_exec_has_no_more_capabilities_than_init,
        no_exec_has_raw_sockets_whatever_the_policy_allows,
        kill_while_an_exec_starts_never_reaches_init,
        no_process_stays_beside_sandbox_and_gofer,
        a_hundred_execs_leave_no_descriptor_and_no_memory,
    ],
}

async fn sleeper(bed: &Bed) -> Container<'_> {
    bed.container(&["sleep", "1000"]).run().await.expect("run")
}

async fn a_hundred_execs_in_turn_each_keep_their_code(bed: &Bed) {
    let container = sleeper(bed).await;
    for code in 0..100 {
        let done = container
            .exec(&format!("e{code}"), &["sh", "-c", &format!("exit {code}")])
            .finish()
            .await;
        assert_eq!(done.status, code);
    }
    container.remove().await;
}

async fn a_hundred_execs_at_once_each_keep_their_code(bed: &Bed) {
    let container = sleeper(bed).await;
    let one = async |code: u32| {
        let id = format!("e{code}");
        container
            .exec(&id, &["sh", "-c", &format!("echo {id}; exit {code}")])
            .finish()
            .await
    };
    let mut all = Vec::new();
    for code in 0..100 {
        all.push(one(code));
    }
    for (code, done) in (0..100).zip(join_all(all).await) {
        assert_eq!((done.status, done.stdout), (code, format!("e{code}\n")));
    }
    container.remove().await;
}

async fn a_signal_is_128_and_its_number(bed: &Bed) {
    let container = sleeper(bed).await;
    for (name, status) in [("KILL", 137), ("TERM", 143), ("USR1", 138)] {
        let done = container
            .exec(name, &["sh", "-c", &format!("kill -{name} $$")])
            .finish()
            .await;
        assert_eq!(done.status, status, "{name}");
    }
    container.remove().await;
}

async fn the_working_folder_is_as_asked(bed: &Bed) {
    let container = sleeper(bed).await;
    let done = container
        .exec("cwd", &["pwd"])
        .with(|spec| spec["cwd"] = "/usr/bin".into())
        .finish()
        .await;
    assert_eq!(done.stdout, "/usr/bin\n");
    container.remove().await;
}

async fn the_environment_is_as_asked(bed: &Bed) {
    let container = sleeper(bed).await;
    let environment = json!(["PATH=/bin", "COLOUR=a b=c", "EMPTY="]);
    let done = container
        .exec("env", &["env"])
        .with(|spec| spec["env"] = environment)
        .finish()
        .await;
    assert!(
        done.stdout.contains("COLOUR=a b=c\n") && done.stdout.contains("EMPTY=\n"),
        "{done:?}"
    );
    container.remove().await;
}

async fn the_user_is_as_asked(bed: &Bed) {
    let container = sleeper(bed).await;
    let user = json!({ "uid": 1000, "gid": 1000 });
    let done = container
        .exec("id", &["sh", "-c", "id -u; id -g"])
        .with(|spec| spec["user"] = user)
        .finish()
        .await;
    assert_eq!(done.stdout, "1000\n1000\n");
    container.remove().await;
}

async fn additional_groups_are_as_asked(bed: &Bed) {
    let container = sleeper(bed).await;
    let user = json!({ "uid": 1000, "gid": 1000, "additionalGids": [7, 4242] });
    let done = container
        .exec("id", &["id", "-G"])
        .with(|spec| spec["user"] = user)
        .finish()
        .await;
    let mut groups: Vec<_> = done.stdout.split_whitespace().collect();
    groups.sort_unstable();
    assert_eq!(groups, ["1000", "4242", "7"]);
    container.remove().await;
}

async fn stdin_reaches_the_program_and_close_io_ends_it(bed: &Bed) {
    let container = sleeper(bed).await;
    let exec = container
        .exec("cat", &["cat"])
        .stdin()
        .run()
        .await
        .expect("run");
    exec.streams
        .write([b"through\n".to_vec()])
        .await
        .expect("written");
    exec.close_stdin().await.expect("CloseIO");
    let done = exec.finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (0, "through\n"));
    container.remove().await;
}

async fn stdout_and_stderr_come_separately(bed: &Bed) {
    let container = sleeper(bed).await;
    let done = container
        .exec("both", &["sh", "-c", "echo out; echo err >&2"])
        .finish()
        .await;
    assert_eq!(
        (done.stdout.as_str(), done.stderr.as_str()),
        ("out\n", "err\n")
    );
    container.remove().await;
}

async fn an_unknown_program_fails_and_leaves_nothing(bed: &Bed) {
    let container = sleeper(bed).await;
    let error = container
        .exec("x", &["/no/such/program"])
        .run()
        .await
        .expect_err("refused");
    assert!(error.message().contains("/no/such/program"), "{error:?}");
    // Its id is free again, the container unharmed.
    assert_eq!(container.exec("x", &["true"]).finish().await.status, 0);
    container.remove().await;
}

async fn a_duplicate_id_already_exists(bed: &Bed) {
    let container = sleeper(bed).await;
    let first = container
        .exec("same", &["sleep", "1000"])
        .run()
        .await
        .expect("run");
    let error = container
        .exec("same", &["true"])
        .add()
        .await
        .expect_err("refused");
    assert_eq!(error.code(), Code::AlreadyExists, "{error:?}");
    first.kill(9).await.expect("kill");
    assert_eq!(first.finish().await.status, 137);
    container.remove().await;
}

async fn an_id_can_be_used_again_after_delete(bed: &Bed) {
    let container = sleeper(bed).await;
    for code in [1, 2] {
        let done = container
            .exec("again", &["sh", "-c", &format!("exit {code}")])
            .finish()
            .await;
        assert_eq!(done.status, code);
    }
    container.remove().await;
}

async fn a_start_after_start_is_refused(bed: &Bed) {
    let container = sleeper(bed).await;
    let exec = container
        .exec("twice", &["sleep", "1000"])
        .run()
        .await
        .expect("run");
    exec.start().await.expect_err("refused");
    exec.kill(9).await.expect("kill");
    assert_eq!(exec.finish().await.status, 137, "it ran once and goes on");
    container.remove().await;
}

async fn delete_before_start_takes_it_away(bed: &Bed) {
    let container = sleeper(bed).await;
    let exec = container.exec("early", &["true"]).add().await.expect("add");
    exec.delete().await.expect("delete");
    exec.start().await.expect_err("it is gone");
    container.remove().await;
}

async fn three_clients_wait_and_all_hear(bed: &Bed) {
    let container = sleeper(bed).await;
    let exec = container
        .exec("waited", &["sh", "-c", "sleep 0.5; exit 42"])
        .run()
        .await
        .expect("run");
    let heard = join_all(vec![exec.wait(), exec.wait(), exec.wait()]).await;
    for exit in heard {
        assert_eq!(exit.expect("wait").status, 42);
    }
    assert_eq!(exec.wait().await.expect("wait after the end").status, 42);
    exec.delete().await.expect("delete");
    container.remove().await;
}

async fn kill_reaches_only_the_exec(bed: &Bed) {
    let container = sleeper(bed).await;
    let other = container
        .exec("other", &["sleep", "1000"])
        .run()
        .await
        .expect("run");
    let exec = container
        .exec("killed", &["sleep", "1000"])
        .run()
        .await
        .expect("run");
    exec.kill(15).await.expect("kill");
    assert_eq!(exec.finish().await.status, 143);
    let process = bed
        .client()
        .get(&container.id, &other.id)
        .await
        .expect("state");
    assert_eq!(
        process.status(),
        containerd_client::types::v1::Status::Running
    );
    other.kill(9).await.expect("kill");
    assert_eq!(other.finish().await.status, 137);
    assert_eq!(container.exec("still", &["true"]).finish().await.status, 0);
    container.remove().await;
}

/// By the shim's own socket: containerd passes no `all` on with an exec (`core/runtime/v2/process.go`).
async fn all_of_an_exec_is_its_process_group(bed: &Bed) {
    use containerd_shim_protos::api::{Empty, KillRequest};
    // Its PID namespace is its own: the pid that it has there is not the one that the sentry goes by.
    let pod = sandbox(bed).await;
    let container = member(bed, &pod, "exec sleep 1000").run().await;
    let container = container.expect("run");
    let shim = integration::shim::Shim::of(bed, &pod.id).await;
    let script = "sleep 1000 & echo $! >/tmp/child; wait";
    for (all, state) in [(true, "zombie"), (false, "sleeping")] {
        let exec = container.exec("group", &["sh", "-c", script]);
        let exec = exec.run().await.expect("run");
        let child = async || {
            let look = "grep State: /proc/$(cat /tmp/child)/status";
            let look = container.exec(&bed.id("look"), &["sh", "-c", look]);
            look.finish().await.stdout
        };
        while !child().await.contains("sleeping") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let body = KillRequest {
            id: container.id.clone(),
            exec_id: "group".into(),
            signal: 9,
            all,
            ..Default::default()
        };
        let killed = shim.call::<Empty>(3, "Kill", &body).await;
        killed.expect("kill");
        assert_eq!(exec.wait().await.expect("wait").status, 137);
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Nobody reaps it: init is no shell.
        let child = child().await;
        assert!(child.contains(state), "all: {all}: {child:?}");
        exec.delete().await.expect("delete");
    }
    container.remove().await;
    end(pod).await;
}

async fn an_exec_whose_command_is_killed_is_not_called_invalid(bed: &Bed) {
    let _policy = NodePolicy::set("runsc.control = \"command\"");
    for (fault, code) in [
        ("kill -9 $$", Code::Unavailable),
        (
            "log 'write /x: no space left on device'; exit 128",
            Code::Internal,
        ),
        (
            "log 'urpc method failed: connection reset by peer'; exit 128",
            Code::Internal,
        ),
        (
            "log 'fork/exec /x: exec format error'; exit 128",
            Code::InvalidArgument,
        ),
    ] {
        let _wrapper = Wrapper::at(bed, "exec", fault);
        let container = sleeper(bed).await;
        let error = container.exec("e", &["true"]).run().await.expect_err(fault);
        // containerd 1.7 does not know the code of the shim's answer.
        let code = match code {
            Code::Internal if is_before_2() => Code::Unknown,
            code => code,
        };
        assert_eq!(error.code(), code, "{fault}: {error:?}");
        container.remove().await;
    }
}

async fn an_exec_of_an_unknown_container_is_not_found(bed: &Bed) {
    let body = containerd_client::services::v1::ExecProcessRequest {
        container_id: "nobody".into(),
        exec_id: "x".into(),
        ..Default::default()
    };
    let error = bed.client().exec(body).await.expect_err("refused");
    assert_eq!(error.code(), Code::NotFound, "{error:?}");
}

async fn an_exec_that_was_never_added_is_not_found(bed: &Bed) {
    let container = sleeper(bed).await;
    let client = bed.client();
    let code =
        |result: Result<(), containerd_client::tonic::Status>| result.expect_err("refused").code();
    assert_eq!(
        code(client.start(&container.id, "nobody").await.map(drop)),
        Code::NotFound
    );
    assert_eq!(
        code(client.kill(&container.id, "nobody", 9, false).await),
        Code::NotFound
    );
    assert_eq!(
        code(client.delete_exec(&container.id, "nobody").await.map(drop)),
        Code::NotFound
    );
    container.remove().await;
}

async fn state_tells_created_running_and_stopped(bed: &Bed) {
    use containerd_client::types::v1::Status;
    let container = sleeper(bed).await;
    let client = bed.client();
    let exec = container
        .exec("state", &["sh", "-c", "sleep 0.3; exit 3"])
        .add()
        .await
        .expect("add");
    let state = async || client.get(&container.id, "state").await.expect("state");
    assert_eq!(state().await.status(), Status::Created);
    let pid = exec.start().await.expect("start");
    assert!(pid > 0);
    assert_eq!(state().await.status(), Status::Running);
    exec.wait().await.expect("wait");
    let stopped = state().await;
    assert_eq!(
        (stopped.status(), stopped.exit_status),
        (Status::Stopped, 3)
    );
    exec.delete().await.expect("delete");
    container.remove().await;
}

async fn the_end_of_init_ends_the_execs(bed: &Bed) {
    let container = bed.shell("read line").stdin().run().await.expect("run");
    let exec = container
        .exec("longer", &["sleep", "1000"])
        .run()
        .await
        .expect("run");
    bed.client()
        .close_stdin(&container.id, "")
        .await
        .expect("CloseIO");
    container.streams.write([b"\n".to_vec()]);
    container.wait().await.expect("wait");
    let exit = tokio::time::timeout(Duration::from_secs(20), exec.wait())
        .await
        .expect("the exec ends too");
    assert_eq!(exit.expect("wait").status, 137);
    exec.delete().await.expect("delete the exec");
    container.delete().await.expect("delete");
}

async fn an_exec_in_a_stopped_container_is_refused(bed: &Bed) {
    let container = bed.container(&["true"]).run().await.expect("run");
    container.wait().await.expect("wait");
    let error = container
        .exec("late", &["true"])
        .run()
        .await
        .expect_err("refused");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    container.delete().await.expect("delete");
}

async fn a_process_spec_that_does_not_parse_is_invalid(bed: &Bed) {
    let container = sleeper(bed).await;
    for spec in [
        json!([]),
        json!(7),
        json!({ "args": 7, "cwd": "/" }),
        json!({ "args": [], "cwd": "/" }),
    ] {
        let text = spec.to_string();
        let error = container
            .exec("bad", &[])
            .with(|process| *process = spec)
            .run()
            .await
            .expect_err(&text);
        assert_eq!(error.code(), Code::InvalidArgument, "{text}: {error:?}");
    }
    container.remove().await;
}

async fn an_exec_has_no_more_capabilities_than_init(bed: &Bed) {
    let container = sleeper(bed).await;
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status";
    let change = |spec: &mut serde_json::Value| spec["noNewPrivileges"] = false.into();
    let done = container
        .exec("caps", &["sh", "-c", script])
        .with(change)
        .finish()
        .await;
    for line in done.stdout.lines() {
        let (name, value) = line.split_once(':').expect("a field");
        let expected = match name {
            "NoNewPrivs" => "1",
            "Seccomp" => "2",
            _ => "0000000000000000",
        };
        assert_eq!(value.trim(), expected, "{name}");
    }
    container.remove().await;
}

/// runsc takes CAP_NET_RAW from what it starts by its command, and not from what is asked for by its socket.
async fn no_exec_has_raw_sockets_whatever_the_policy_allows(bed: &Bed) {
    for control in ["socket", "command"] {
        let _policy = NodePolicy::set(&format!(
            "runsc.control = {control:?}\ncapabilities.allow = [\"CAP_NET_RAW\", \"CAP_CHOWN\"]"
        ));
        let ask = |process: &mut serde_json::Value| {
            ask_capabilities(process, &["CAP_NET_RAW", "CAP_CHOWN"]);
        };
        let container = bed
            .shell("sleep 1000")
            .with(move |spec| ask(&mut spec["process"]));
        let container = container.run().await.expect("run");
        let script = "grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status; ping -c 1 -W 1 127.0.0.1 >/dev/null && echo raw";
        let exec = container.exec("raw", &["sh", "-c", script]).with(ask);
        let done = exec.finish().await;
        let only_chown = ":\t0000000000000001\n";
        assert_eq!(
            done.stdout.matches(only_chown).count(),
            3,
            "{control}: {done:?}"
        );
        assert!(!done.stdout.contains("raw"), "{control}: {done:?}");
        container.remove().await;
    }
}

async fn kill_while_an_exec_starts_never_reaches_init(bed: &Bed) {
    let container = sleeper(bed).await;
    for round in 0..50 {
        let id = format!("e{round}");
        let exec = container.exec(&id, &["sleep", "1000"]).add().await;
        let exec = exec.expect("add");
        let (started, killed) = tokio::join!(exec.start(), exec.kill(9));
        started.expect("start");
        if let Err(error) = killed {
            // It was there before the start.
            assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
            exec.kill(9).await.expect("kill");
        }
        assert_eq!(exec.finish().await.status, 137, "round {round}");
    }
    let done = container.exec("last", &["echo", "alive"]).finish().await;
    assert_eq!(done.stdout, "alive\n");
    container.remove().await;
}

async fn no_process_stays_beside_sandbox_and_gofer(bed: &Bed) {
    use integration::processes::{Role, of};
    let container = sleeper(bed).await;
    let exec = container
        .exec("beside", &["sleep", "1000"])
        .run()
        .await
        .expect("run");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let count = |role| of(role, &container.id).len();
    assert_eq!(
        (
            count(Role::Shim),
            count(Role::Sandbox),
            count(Role::Gofer),
            count(Role::Command)
        ),
        (1, 1, 1, 0)
    );
    exec.kill(9).await.expect("kill");
    exec.finish().await;
    container.remove().await;
}

async fn a_hundred_execs_leave_no_descriptor_and_no_memory(bed: &Bed) {
    use integration::processes::{Role, descriptors, eventually, of, resident_kb};
    let container = sleeper(bed).await;
    let shim = of(Role::Shim, &container.id)[0].pid;
    let run = async |from: u32, to: u32| {
        for number in from..to {
            let exec = container.exec(&format!("e{number}"), &["echo", "out"]);
            assert_eq!(exec.finish().await.stdout, "out\n");
        }
    };
    // The first ones make what all of them use.
    run(0, 20).await;
    let (open, resident) = (descriptors(shim), resident_kb(shim).expect("its memory"));
    run(20, 120).await;
    // Streams are let go of after the answer to Delete.
    eventually("no descriptor stays", Duration::from_secs(5), || {
        descriptors(shim) <= open
    })
    .await;
    let now = resident_kb(shim).expect("its memory");
    assert!(now < resident + 1024, "{resident} kB before, {now} kB now");
    container.remove().await;
}
