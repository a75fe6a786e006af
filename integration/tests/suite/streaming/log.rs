//! Log URIs, as `nerdctl run -d` and others give them: output goes to a file or to a program.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use containerd_client::tonic::Code;
use integration::bed::Bed;
use integration::processes::eventually;
use integration::runtime::Needs;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::figures::metrics::{scrape, socket, value};

use integration::cases;

cases! {
    Needs::Any => [
        a_log_file_gets_both_outputs_and_is_appended_to,
        a_logger_gets_both_outputs_its_arguments_and_the_ids,
        a_logger_of_an_exec_is_told_the_execs_id,
        a_logger_takes_the_output_of_a_terminal,
        a_logger_that_closes_its_pipe_is_ready,
        a_logger_that_must_say_it_is_ready_and_does_not_is_refused,
        a_logger_that_must_say_it_is_ready_and_does_takes_the_output,
        a_slow_logger_loses_nothing,
    ],
    Needs::NotRunc("its message names neither stream nor rule, or it starts the container all the same") => [
        a_logger_that_fails_is_refused,
        a_logger_that_dies_half_way_does_not_hold_back_the_exit,
        a_logger_that_does_not_end_is_ended,
        uris_of_other_kinds_are_refused,
    ],
    Needs::Bulkhead => [
        a_full_disk_costs_a_log_its_lines_and_not_the_program,
        a_logger_that_is_never_ready_costs_its_deadline,
    ],
}

/// A folder for what loggers write.
struct Folder(PathBuf);

impl Folder {
    fn new(bed: &Bed) -> Self {
        let folder = bed.folder.join(bed.id("log"));
        fs::create_dir_all(&folder).expect("make a folder");
        Self(folder)
    }

    /// A logging program: `$out` is the folder, descriptors 3 and 4 are the output, 5 the pipe to be ready by.
    fn program(&self, script: &str) -> String {
        let path = self.0.join("logger");
        let text = format!("#!/bin/sh\nout={}\n{script}\n", self.0.display());
        fs::write(&path, text).expect("write the logger");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, mode).expect("make it executable");
        path.display().to_string()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies both outputs to files and ends with them.
const COPY: &str = "cat <&3 >>$out/out & cat <&4 >>$out/err & printf r >&5; exec 5>&-; wait";

async fn run(bed: &Bed, uri: &str, script: &str) -> u32 {
    let container = bed.shell(script).log_to(uri).run().await.expect("run");
    let exit = container.wait().await.expect("wait");
    container.delete().await.expect("delete");
    exit.status
}

async fn a_log_file_gets_both_outputs_and_is_appended_to(bed: &Bed) {
    let folder = Folder::new(bed);
    let path = folder.0.join("deep/er/log");
    let uri = format!("file://{}", path.display());
    for word in ["one", "two"] {
        let script = format!("echo {word}; sleep 0.3; echo {word} error >&2; exit 3");
        assert_eq!(run(bed, &uri, &script).await, 3);
    }
    assert_eq!(
        folder.read("deep/er/log"),
        "one\none error\ntwo\ntwo error\n"
    );
}

async fn a_full_disk_costs_a_log_its_lines_and_not_the_program(bed: &Bed) {
    let folder = Folder::new(bed);
    let (none, size) = (MsFlags::empty(), Some("size=64k"));
    mount(Some("tmpfs"), &folder.0, Some("tmpfs"), none, size).expect("mount");
    let log = folder.0.join("log");
    // More than there is room for, and so much that it passes the pipes.
    let script = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; read x; echo $x; exit 3";
    let uri = format!("file://{}", log.display());
    let container = bed
        .shell(script)
        .stdin()
        .log_to(&uri)
        .run()
        .await
        .expect("run");
    let dropped = || {
        let text = scrape(&socket(&container.id));
        value(&text, "bulkhead_log_dropped_bytes_total", &[&container.id])
    };
    eventually(
        "what has no room is dropped",
        Duration::from_secs(10),
        || dropped() == Some(600_000.0 - 65_536.0),
    )
    .await;
    let file = fs::File::options().write(true).open(&log).expect("open");
    file.set_len(0).expect("make room");
    drop(file);
    container
        .streams
        .write([b"later\n".to_vec()])
        .await
        .expect("written");
    assert_eq!(container.wait().await.expect("wait").status, 3);
    container.delete().await.expect("delete");
    assert_eq!(folder.read("log"), "later\n");
    eventually("the log is closed", Duration::from_secs(5), || {
        umount2(&folder.0, MntFlags::empty()).is_ok()
    })
    .await;
}

async fn a_logger_gets_both_outputs_its_arguments_and_the_ids(bed: &Bed) {
    let folder = Folder::new(bed);
    let script = format!(
        "echo \"$1=$2 $CONTAINER_NAMESPACE $CONTAINER_ID\" >$out/told; env >$out/env; {COPY}"
    );
    let program = folder.program(&script);
    let uri = format!("binary://{program}?key=a%20value");
    let id = bed.id("logged");
    let container = bed
        .named(&id, &["sh", "-c", "echo to out; echo to err >&2"])
        .log_to(&uri)
        .run()
        .await
        .expect("run");
    assert_eq!(container.wait().await.expect("wait").status, 0);
    container.delete().await.expect("delete");
    eventually("the logger has ended", Duration::from_secs(5), || {
        folder.read("err") == "to err\n"
    })
    .await;
    assert_eq!(folder.read("out"), "to out\n");
    assert_eq!(folder.read("told"), format!("key=a value suite {id}\n"));
    assert!(
        !folder.read("env").contains("TTRPC"),
        "{}",
        folder.read("env")
    );
}

async fn a_logger_of_an_exec_is_told_the_execs_id(bed: &Bed) {
    let folder = Folder::new(bed);
    let program = folder.program(&format!("echo $CONTAINER_ID >$out/id; {COPY}"));
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let exec = container
        .exec("logged", &["sh", "-c", "echo from exec"])
        .log_to(&format!("binary-v2://{program}"))
        .run()
        .await
        .expect("exec");
    assert_eq!(exec.wait().await.expect("wait").status, 0);
    exec.delete().await.expect("delete");
    eventually("the logger has ended", Duration::from_secs(5), || {
        folder.read("out") == "from exec\n"
    })
    .await;
    assert_eq!(folder.read("id"), "logged\n");
    container.remove().await;
}

async fn a_logger_takes_the_output_of_a_terminal(bed: &Bed) {
    let folder = Folder::new(bed);
    let program = folder.program(COPY);
    let container = bed
        .shell("[ -t 1 ] && echo terminal")
        .with(|spec| spec["process"]["terminal"] = true.into())
        .log_to(&format!("binary://{program}"))
        .run()
        .await
        .expect("run");
    assert_eq!(container.wait().await.expect("wait").status, 0);
    container.delete().await.expect("delete");
    eventually("the logger has ended", Duration::from_secs(5), || {
        folder.read("out") == "terminal\r\n"
    })
    .await;
}

async fn a_logger_that_closes_its_pipe_is_ready(bed: &Bed) {
    let folder = Folder::new(bed);
    let program = folder.program("exec 5>&-; cat <&3 >$out/out");
    assert_eq!(
        run(bed, &format!("binary://{program}"), "echo hello").await,
        0
    );
    eventually("the output has come", Duration::from_secs(5), || {
        folder.read("out") == "hello\n"
    })
    .await;
}

async fn a_logger_that_must_say_it_is_ready_and_does_not_is_refused(bed: &Bed) {
    let folder = Folder::new(bed);
    let program = folder.program("exec 5>&-; cat <&3 >$out/out");
    let builder = bed
        .shell("echo hello")
        .log_to(&format!("binary-v2://{program}"));
    let error = builder.create().await.map(drop).expect_err("not ready");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("before it was ready"), "{error}");
}

async fn a_logger_that_must_say_it_is_ready_and_does_takes_the_output(bed: &Bed) {
    let folder = Folder::new(bed);
    let uri = format!("binary-v2://{}", folder.program(COPY));
    let script = "echo to out; echo to err >&2; exit 3";
    assert_eq!(run(bed, &uri, script).await, 3);
    eventually("the logger has ended", Duration::from_secs(5), || {
        folder.read("err") == "to err\n"
    })
    .await;
    assert_eq!(folder.read("out"), "to out\n");
}

async fn a_slow_logger_loses_nothing(bed: &Bed) {
    let folder = Folder::new(bed);
    let program = folder.program("printf r >&5; exec 5>&-; sleep 2; wc -c <&3 >$out/count");
    let uri = format!("binary://{program}");
    assert_eq!(run(bed, &uri, "head -c 3000000 /dev/zero; exit 4").await, 4);
    eventually("the logger has ended", Duration::from_secs(5), || {
        folder.read("count").trim() == "3000000"
    })
    .await;
}

async fn a_logger_that_fails_is_refused(bed: &Bed) {
    let folder = Folder::new(bed);
    for (uri, reason) in [
        (
            format!("binary://{}", folder.program("exit 3")),
            "before it was ready",
        ),
        ("binary:///no/such/logger".to_owned(), "cannot run"),
        (format!("file://{}", folder.0.display()), "stdout"),
    ] {
        let error = bed
            .shell("true")
            .log_to(&uri)
            .create()
            .await
            .map(drop)
            .expect_err(&uri);
        assert!(error.message().contains(reason), "{uri}: {error}");
    }
}

async fn a_logger_that_is_never_ready_costs_its_deadline(bed: &Bed) {
    let folder = Folder::new(bed);
    let program = folder.program("sleep 1000 >&5");
    let start = Instant::now();
    let builder = bed.shell("true").log_to(&format!("binary://{program}"));
    let error = builder.create().await.map(drop).expect_err("never ready");
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    eventually("its child is gone", Duration::from_secs(5), || {
        kill_sleeper() == 0
    })
    .await;
}

/// The child of a killed shell script belongs to nobody: it is the test's to end.
fn kill_sleeper() -> usize {
    let mut left = 0;
    for process in integration::processes::all() {
        let line = fs::read(
            Path::new("/proc")
                .join(process.pid.to_string())
                .join("cmdline"),
        );
        if line.is_ok_and(|line| line == b"sleep\x001000\0") {
            integration::processes::sigkill(process.pid);
            left += 1;
        }
    }
    left
}

async fn a_logger_that_dies_half_way_does_not_hold_back_the_exit(bed: &Bed) {
    let folder = Folder::new(bed);
    let program = folder.program("printf r >&5; exec 5>&-; head -c 1000 <&3 >/dev/null");
    let uri = format!("binary://{program}");
    let script = "trap '' PIPE; head -c 2000000 /dev/zero 2>/dev/null; sleep 0.2; echo more 2>/dev/null; exit 6";
    assert_eq!(run(bed, &uri, script).await, 6);
}

async fn a_logger_that_does_not_end_is_ended(bed: &Bed) {
    let folder = Folder::new(bed);
    let program =
        folder.program("trap '' TERM; printf r >&5; exec 5>&-; while :; do sleep 0.2; done");
    assert_eq!(
        run(bed, &format!("binary://{program}"), "echo x; exit 2").await,
        2
    );
}

async fn uris_of_other_kinds_are_refused(bed: &Bed) {
    for uri in [
        "streaming:///x",
        "http://example.invalid/x",
        "file://host/x",
        "binary:///x?a=%zz",
    ] {
        let error = bed
            .shell("true")
            .log_to(uri)
            .create()
            .await
            .map(drop)
            .expect_err(uri);
        assert_eq!(error.code(), Code::InvalidArgument, "{uri}: {error}");
        assert!(error.message().contains("stdout"), "{error}");
    }
}
