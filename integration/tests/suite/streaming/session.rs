//! What a person at a terminal does: keys, job control, a window that is turned. The client is `ctr`, in a real terminal.

use integration::bed::{Bed, IMAGE_NAME};
use integration::container::Container;
use integration::runtime::Needs;
use integration::session::{Session, drops, obeys};

use crate::life::pod;
use integration::busy::Busy;
use integration::cases;

cases! {
    Needs::Any => [
        a_container_obeys_its_terminal,
        an_exec_obeys_its_terminal,
        a_key_drops_what_was_typed_ahead_of_it_on_a_busy_host,
    ],
    Needs::Gvisor => [
        a_further_container_of_a_pod_obeys_its_terminal,
    ],
    Needs::Bulkhead => [
        an_exec_by_command_obeys_its_terminal,
        the_first_program_of_one_by_command_obeys_its_terminal,
        a_flood_of_keys_is_survived,
        a_flood_of_keys_by_command_is_survived,
    ],
}

const SIZE: [u16; 2] = [33, 101];

async fn a_container_obeys_its_terminal(bed: &Bed) {
    let id = bed.id("ctr");
    let flags = bed.run_flags(&["--rm", "-t"]);
    let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
    args.extend([IMAGE_NAME, &id, "sh"]);
    assert_eq!(obeys(Session::ctr(&args, SIZE)).await, 7);
}

async fn an_exec_obeys_its_terminal(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    assert_eq!(obeys(exec(&container.id, &["sh"])).await, 7);
    container.remove().await;
}

async fn a_key_drops_what_was_typed_ahead_of_it_on_a_busy_host(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let busy = [Busy::new(), Busy::new()];
    drops(exec(&container.id, &["sh"]), 15).await;
    drop(busy);
    container.remove().await;
}

fn exec(id: &str, program: &[&str]) -> Session {
    let args = ["task", "exec", "-t", "--exec-id", "tty", id];
    Session::ctr(&[&args, program].concat(), SIZE)
}

/// There a `runsc exec` stays, and hands on what it is sent.
async fn an_exec_by_command_obeys_its_terminal(bed: &Bed) {
    let container = bed
        .container(&["sleep", "1000"])
        .policy("", "runsc.control = \"command\"\n");
    let container = container.run().await.expect("run");
    assert_eq!(obeys(exec(&container.id, &["sh"])).await, 7);
    container.remove().await;
}

/// A person leans on Ctrl-C. Nothing piles up, others are answered, and the last line is read.
async fn a_flood_of_keys_is_survived(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    flood(exec(&container.id, &["sh", "-c", READER]), &container).await;
    container.remove().await;
}

/// There each signal costs two runsc commands.
async fn a_flood_of_keys_by_command_is_survived(bed: &Bed) {
    let pod = pod::pod(bed).policy("", "runsc.control = \"command\"\n");
    let pod = pod.run().await.expect("run the sandbox");
    flood(further(bed, &pod.id, &["sh", "-c", READER]), &pod).await;
    pod::end(pod).await;
}

/// A shell that edits its line has switched the key off, so it is no shell that is typed to.
const READER: &str = "trap '' INT; echo here; read line; [ \"$line\" = last ] && exit 3";

async fn flood(mut session: Session, beside: &Container<'_>) {
    session.sees("here\r").await;
    for _ in 0..10 {
        session.types(&"\x03".repeat(100));
    }
    session.types("last\n");
    let other = beside.exec("other", &["true"]).finish().await;
    assert_eq!(other.status, 0);
    assert_eq!(session.end().await, 3);
}

async fn a_further_container_of_a_pod_obeys_its_terminal(bed: &Bed) {
    let pod = pod::sandbox(bed).await;
    assert_eq!(obeys(further(bed, &pod.id, &["sh"])).await, 7);
    pod::end(pod).await;
}

/// There `runsc kill` reaches the group of its first program.
async fn the_first_program_of_one_by_command_obeys_its_terminal(bed: &Bed) {
    let pod = pod::pod(bed).policy("", "runsc.control = \"command\"\n");
    let pod = pod.run().await.expect("run the sandbox");
    let script = "trap 'echo interrupted; exit 5' INT; echo here; while :; do sleep 0.1; done";
    let mut session = further(bed, &pod.id, &["sh", "-c", script]);
    session.sees("here\r").await;
    session.types("\x03");
    session.sees("interrupted").await;
    assert_eq!(session.end().await, 5);
    pod::end(pod).await;
}

/// `ctr run` of a container in a pod.
fn further(bed: &Bed, pod: &str, program: &[&str]) -> Session {
    let id = bed.id("ctr");
    let flags = bed.run_flags(&["--rm", "-t"]);
    let sandbox = format!("--annotation=io.kubernetes.cri.sandbox-id={}", pod);
    let kind = "--annotation=io.kubernetes.cri.container-type=container";
    let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
    args.extend([kind, &sandbox, IMAGE_NAME, &id]);
    args.extend(program);
    Session::ctr(&args, SIZE)
}
