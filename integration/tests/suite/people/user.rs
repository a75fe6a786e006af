//! What a person does with `ctr`.

use std::time::Duration;

use containerd_client::tonic::Code;
use integration::bed::Bed;
use integration::processes::{self, Role, eventually};
use integration::runtime::Needs;

use integration::cases;

cases! {
    Needs::Any => [
        run_and_remove_prints_output_and_keeps_the_code,
        run_with_a_terminal_is_a_session,
        run_detached_then_a_hundred_execs_kill_and_delete,
        task_rm_force_of_a_running_task_leaves_nothing,
        ps_and_metrics_are_printed,
    ],
    Needs::NotRunc("a killed shim's socket stays") => [
        task_rm_force_after_the_shim_was_killed_leaves_nothing,
    ],
    Needs::Gvisor => [
        plain_ctr_run_prints_gvisors_boot_lines,
    ],
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn run_and_remove_prints_output_and_keeps_the_code(bed: &Bed) {
    let id = bed.id("ctr");
    let output = bed.ctr_run(&["--rm"], &id, &["sh", "-c", "echo hello; exit 3"]);
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(3), "hello\n"),
        "{output:?}"
    );
}

async fn run_with_a_terminal_is_a_session(bed: &Bed) {
    let id = bed.id("ctr");
    // What is typed before the prompt is there when the shell reads.
    // ctr gives the terminal its size some time after the start.
    let typed =
        "test -t 0 && echo a terminal; until stty size | grep .; do sleep 0.1; done; exit 7\n";
    let output = bed.ctr_in_a_terminal(&id, "sh", typed);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(
        said.contains("\na terminal") && said.contains("33 101"),
        "{said}"
    );
}

async fn plain_ctr_run_prints_gvisors_boot_lines(bed: &Bed) {
    let output = bed.ctr_run(&["--rm"], &bed.id("ctr"), &["dmesg"]);
    assert!(
        output.status.success() && text(&output.stdout).contains("Starting gVisor"),
        "{output:?}"
    );
}

fn detached(bed: &Bed) -> String {
    let id = bed.id("ctr");
    let output = bed.ctr_run(&["-d", "--null-io"], &id, &["sleep", "1000"]);
    assert!(output.status.success(), "{output:?}");
    id
}

async fn run_detached_then_a_hundred_execs_kill_and_delete(bed: &Bed) {
    let id = detached(bed);
    for code in 0..100 {
        let output = bed.ctr(&[
            "task",
            "exec",
            "--exec-id",
            "e",
            &id,
            "sh",
            "-c",
            &format!("echo in; exit {code}"),
        ]);
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str()),
            (Some(code), "in\n"),
            "{output:?}"
        );
    }
    bed.ctr_ok(&["task", "kill", "--signal", "SIGKILL", &id]);
    bed.client().wait(&id, "").await.expect("wait");
    bed.ctr_ok(&["task", "rm", &id]);
    bed.ctr_ok(&["container", "rm", &id]);
}

async fn is_gone(bed: &Bed, id: &str) {
    let task = bed.client().get(id, "").await.map(drop);
    let error = task.expect_err("the task is gone");
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

async fn task_rm_force_of_a_running_task_leaves_nothing(bed: &Bed) {
    let id = detached(bed);
    // It ends with the task's own status.
    let _ = bed.ctr(&["task", "rm", "-f", &id]);
    is_gone(bed, &id).await;
    bed.ctr_ok(&["container", "rm", &id]);
}

async fn task_rm_force_after_the_shim_was_killed_leaves_nothing(bed: &Bed) {
    let id = detached(bed);
    assert_eq!(processes::kill_role(Role::Shim, &id), 1);
    let _ = bed.ctr(&["task", "rm", "-f", &id]);
    is_gone(bed, &id).await;
    // containerd cleans up after it has forgotten the task.
    eventually("nothing of it runs", Duration::from_secs(10), || {
        let count = |role| processes::of(role, &id).len();
        count(Role::Sandbox) + count(Role::Gofer) == 0
    })
    .await;
    bed.ctr_ok(&["container", "rm", &id]);
}

async fn ps_and_metrics_are_printed(bed: &Bed) {
    let id = detached(bed);
    assert!(bed.ctr_ok(&["task", "ps", &id]).lines().count() > 1);
    assert!(bed.ctr_ok(&["task", "metrics", &id]).contains(&id));
    assert!(bed.ctr_ok(&["task", "ls"]).contains("RUNNING"));
    let _ = bed.ctr(&["task", "rm", "-f", &id]);
    bed.ctr_ok(&["container", "rm", &id]);
}
