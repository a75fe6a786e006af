//! Terminals: what `ctr run -t` and `ctr task exec -t` ask for.

use containerd_shim_protos::api::{Empty, ResizePtyRequest};
use containerd_shim_protos::ttrpc::Code;
use integration::bed::Bed;
use integration::runtime::Needs;
use integration::shim::Shim;

use integration::cases;

cases! {
    Needs::Any => [
        a_container_has_a_terminal_and_its_output_is_whole,
        an_exec_has_a_terminal_and_its_output_is_whole,
        a_terminal_has_the_size_it_was_given,
        control_c_interrupts_the_program,
        the_first_size_is_the_one_asked_for,
        the_request_says_whether_an_exec_has_a_terminal,
    ],
    Needs::Bulkhead => [
        an_execs_terminal_has_the_size_it_was_given,
        a_size_that_cannot_be_given_is_refused,
    ],
}

/// Says whether it has a terminal, then prints more than a terminal buffers, and ends at once.
const SCRIPT: &str = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo yes; \
    i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; exit 6";

fn expected() -> String {
    let lines = (0..2000).map(|number| format!("line {number}\r\n"));
    std::iter::once("yes\r\n".to_owned()).chain(lines).collect()
}

async fn a_container_has_a_terminal_and_its_output_is_whole(bed: &Bed) {
    let mut container = bed
        .shell(SCRIPT)
        .with(|spec| spec["process"]["terminal"] = true.into())
        .run()
        .await
        .expect("run");
    assert_eq!(container.wait().await.expect("wait").status, 6);
    assert_eq!(container.streams.stdout().await.text(), expected());
    container.delete().await.expect("delete");
}

async fn an_exec_has_a_terminal_and_its_output_is_whole(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let mut exec = container
        .exec("tty", &["sh", "-c", SCRIPT])
        .with(|process| process["terminal"] = true.into())
        .run()
        .await
        .expect("exec");
    assert_eq!(exec.wait().await.expect("wait").status, 6);
    assert_eq!(exec.streams.stdout().await.text(), expected());
    exec.delete().await.expect("delete");
    container.remove().await;
}

async fn a_terminal_has_the_size_it_was_given(bed: &Bed) {
    let mut container = bed
        .shell("read line; stty size")
        .with(|spec| spec["process"]["terminal"] = true.into())
        .stdin()
        .run()
        .await
        .expect("run");
    resize(bed, &container.id, "", [100, 40])
        .await
        .expect("resize");
    container.streams.write([b"go\n".to_vec()]);
    assert_eq!(container.wait().await.expect("wait").status, 0);
    let text = container.streams.stdout().await.text();
    assert!(text.ends_with("40 100\r\n"), "{text:?}");
    container.delete().await.expect("delete");
}

/// Asks the shim itself, whose codes containerd does not change.
async fn resize(bed: &Bed, id: &str, exec: &str, [width, height]: [u32; 2]) -> Result<(), Code> {
    let shim = Shim::of(bed, id).await;
    let request = ResizePtyRequest {
        id: id.into(),
        exec_id: exec.into(),
        width,
        height,
        ..ResizePtyRequest::default()
    };
    let resized = shim.call::<Empty>(3, "ResizePty", &request).await;
    resized.map(drop)
}

async fn an_execs_terminal_has_the_size_it_was_given(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let exec = container.exec("tty", &["sh", "-c", "read line; stty size"]);
    let exec = exec
        .with(|process| process["terminal"] = true.into())
        .stdin();
    let mut exec = exec.run().await.expect("exec");
    let resized = resize(bed, &container.id, &exec.id, [91, 32]).await;
    resized.expect("resize");
    exec.streams.write([b"go\n".to_vec()]);
    assert_eq!(exec.wait().await.expect("wait").status, 0);
    let text = exec.streams.stdout().await.text();
    assert!(text.ends_with("32 91\r\n"), "{text:?}");
    exec.delete().await.expect("delete");
    container.remove().await;
}

async fn a_size_that_cannot_be_given_is_refused(bed: &Bed) {
    let plain = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let code = resize(bed, &plain.id, "", [80, 25]).await;
    assert_eq!(code.expect_err("no terminal"), Code::FAILED_PRECONDITION);
    let code = resize(bed, &plain.id, "nobody", [80, 25]).await;
    assert_eq!(code.expect_err("no exec"), Code::NOT_FOUND);
    plain.remove().await;
    let container = bed
        .shell("read line; stty size")
        .with(|spec| spec["process"]["terminal"] = true.into())
        .stdin();
    let mut container = container.run().await.expect("run");
    resize(bed, &container.id, "", [80, 25])
        .await
        .expect("resize");
    for size in [[65536, 25], [80, 65536], [u32::MAX, u32::MAX]] {
        let code = resize(bed, &container.id, "", size).await;
        assert_eq!(code.expect_err("too large"), Code::INVALID_ARGUMENT);
    }
    container.streams.write([b"go\n".to_vec()]);
    assert_eq!(container.wait().await.expect("wait").status, 0);
    // A client that turns its window while the program ends is told nothing bad.
    let late = resize(bed, &container.id, "", [70, 20]).await;
    late.expect("resize of an exited");
    let text = container.streams.stdout().await.text();
    assert!(text.ends_with("25 80\r\n"), "{text:?}");
    container.delete().await.expect("delete");
    let stopped = bed.container(&["true"]).run().await.expect("run");
    stopped.wait().await.expect("wait");
    let code = resize(bed, &stopped.id, "", [80, 25]).await;
    assert_eq!(code.expect_err("exited"), Code::FAILED_PRECONDITION);
    stopped.delete().await.expect("delete");
}

async fn control_c_interrupts_the_program(bed: &Bed) {
    let mut container = bed
        .shell("trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.1; done")
        .with(|spec| spec["process"]["terminal"] = true.into())
        .stdin()
        .run()
        .await
        .expect("run");
    // The trap has to be set before the key is pressed.
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    container.streams.write([b"\x03".to_vec()]);
    assert_eq!(container.wait().await.expect("wait").status, 4);
    let text = container.streams.stdout().await.text();
    assert!(text.contains("interrupted"), "{text:?}");
    container.delete().await.expect("delete");
}

/// Only a program that asks at once sees whether the size was there before it.
async fn the_first_size_is_the_one_asked_for(bed: &Bed) {
    let size = serde_json::json!({ "height": 31, "width": 97 });
    let sized = |process: &mut serde_json::Value| {
        process["terminal"] = true.into();
        process["consoleSize"] = size.clone();
    };
    let mut container = bed
        .shell("stty size; exec sleep 1000")
        .with(|spec| sized(&mut spec["process"]))
        .run()
        .await
        .expect("run");
    let exec = container.exec("tty", &["stty", "size"]).with(sized);
    assert_eq!(exec.finish().await.stdout, "31 97\r\n");
    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    assert_eq!(container.streams.stdout().await.text(), "31 97\r\n");
    container.delete().await.expect("delete");
}

/// Its process may say otherwise, as in containerd's own test of much output.
async fn the_request_says_whether_an_exec_has_a_terminal(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let script = "for fd in 0 1 2; do [ -t $fd ] && echo yes || echo no; done";
    for (asked, said) in [(true, "yes\r\n"), (false, "no\n")] {
        let exec = container.exec("tty", &["sh", "-c", script]);
        let exec = exec.with(|process| process["terminal"] = (!asked).into());
        let finished = exec.terminal(asked).stdin().run().await.expect("exec");
        finished.streams.write([]);
        let finished = finished.finish().await;
        assert_eq!(finished.stdout, said.repeat(3), "a request for {asked}");
    }
    container.remove().await;
}
