//! Streams: FIFOs, stdin until CloseIO, none at all, and much of everything.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use integration::bed::Bed;
use integration::fifo::{Output, sha256};
use integration::patience::patience;
use integration::runtime::Needs;

use integration::cases;

cases! {
    Needs::Any => [
        stdout_and_stderr_come_separately,
        stdin_reaches_the_program_and_close_io_ends_it,
        stdin_of_64_mib_arrives_intact,
        stdout_of_1_gib_arrives_intact,
        a_slow_reader_slows_the_program_and_gets_everything,
        a_reader_that_comes_back_gets_the_rest,
        two_readers_share_the_output,
        two_clients_that_attach_share_the_output_and_hear_the_end,
        null_streams_do_not_block_a_program_that_writes,
        output_read_after_the_exit_is_whole,
        many_lines_before_exit_are_not_cut,
        a_background_child_that_holds_stdout_does_not_hold_back_the_exit,
        stdout_reader_that_goes_away_does_not_hold_back_the_exit,
        stdout_reader_that_goes_away_holds_back_neither_kill_nor_delete,
        close_io_of_a_container_without_stdin_is_no_error,
    ],
    Needs::Bulkhead => [
        a_reader_that_comes_after_the_exit_gets_what_was_written,
        fifty_mib_beyond_the_rate_arrive_whole_and_slowed,
        a_program_that_floods_its_output_is_killed_at_once,
        an_exec_has_no_rate,
        output_that_nobody_reads_does_not_hold_back_delete,
    ],
}

/// A MiB that compresses badly and repeats nowhere near.
fn chunk(number: u32) -> Vec<u8> {
    let mut state = number.wrapping_mul(2_654_435_761) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..1 << 18).flat_map(|_| next().to_le_bytes()).collect()
}

async fn stdout_and_stderr_come_separately(bed: &Bed) {
    let done = bed
        .shell("echo out; echo err >&2")
        .run()
        .await
        .expect("run")
        .finish()
        .await;
    assert_eq!(
        (done.status, done.stdout.as_str(), done.stderr.as_str()),
        (0, "out\n", "err\n")
    );
}

async fn stdin_reaches_the_program_and_close_io_ends_it(bed: &Bed) {
    let container = bed.container(&["cat"]).stdin().run().await.expect("run");
    container
        .streams
        .write([b"hello\n".to_vec()])
        .await
        .expect("written");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = container.status().await.expect("state");
    assert_eq!(
        status,
        containerd_client::types::v1::Status::Running,
        "stdin stays open until CloseIO"
    );
    bed.client()
        .close_stdin(&container.id, "")
        .await
        .expect("CloseIO");
    let done = container.finish().await;
    assert_eq!((done.status, done.stdout.as_str()), (0, "hello\n"));
}

async fn stdin_of_64_mib_arrives_intact(bed: &Bed) {
    let container = bed
        .container(&["sha256sum"])
        .stdin()
        .run()
        .await
        .expect("run");
    let written = container.streams.write((0..64).map(chunk));
    let expected = sha256((0..64).map(chunk));
    tokio::time::timeout(Duration::from_secs(90), written)
        .await
        .expect("written in time")
        .expect("written");
    bed.client()
        .close_stdin(&container.id, "")
        .await
        .expect("CloseIO");
    let done = container.finish().await;
    assert_eq!(done.stdout.split(' ').next(), Some(expected.as_str()));
}

async fn stdout_of_1_gib_arrives_intact(bed: &Bed) {
    // What makes the bytes must not be slower than what is tested.
    let script = "yes 0123456789abcdef0123456789abcde | head -c 33554432 >/tmp/x; \
        i=0; while [ $i -lt 32 ]; do cat /tmp/x; i=$((i+1)); done";
    let mut builder = bed.shell(script);
    if bed.runtime.is_bulkhead() {
        builder = builder.policy("", "limits.output_mib_per_second = 0");
    }
    let mut container = builder.run().await.expect("run");
    let output = container.streams.stdout().await;
    assert_eq!(output.length, 1 << 30);
    let expected = b"0123456789abcdef0123456789abcde\n".repeat(32768);
    assert_eq!(output.sha256, sha256((0..1024).map(|_| expected.clone())));
    assert_eq!(container.wait().await.expect("wait").status, 0);
    container.delete().await.expect("delete");
}

/// A FIFO of the test's own, read when the test wants to.
struct Fifo(PathBuf);

impl Fifo {
    fn new(bed: &Bed) -> Self {
        let path = bed.folder.join(bed.id("fifo"));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600))
            .expect("mkfifo");
        Self(path)
    }

    fn open(&self) -> File {
        File::open(&self.0).expect("open the FIFO")
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Numbered lines: what is lost or comes twice shows.
const LINES: &str = "i=0; while [ $i -lt 40000 ]; do echo $i; i=$((i+1)); done";

fn lines() -> String {
    (0..40000).map(|number| format!("{number}\n")).collect()
}

async fn a_slow_reader_slows_the_program_and_gets_everything(bed: &Bed) {
    let fifo = Fifo::new(bed);
    let container = bed
        .shell(LINES)
        .log_to(&fifo.path())
        .run()
        .await
        .expect("run");
    let mut reader = fifo.open();
    // Far more than the pipes between them hold is still to be written.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let status = container.status().await.expect("state");
    assert_eq!(
        status,
        containerd_client::types::v1::Status::Running,
        "it waits for its reader"
    );
    let (mut text, mut buffer) = (Vec::new(), [0; 3001]);
    while text.len() < lines().len() {
        let count = reader.read(&mut buffer).expect("read");
        text.extend_from_slice(&buffer[..count]);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(text == lines().into_bytes(), "lines differ");
    assert_eq!(container.wait().await.expect("wait").status, 0);
    container.delete().await.expect("delete");
}

/// containerd's clients open their ends beside what else they do: a program can be faster.
async fn a_reader_that_comes_after_the_exit_gets_what_was_written(bed: &Bed) {
    let fifo = Fifo::new(bed);
    let container = bed.shell("echo last words; exit 5").log_to(&fifo.path());
    let container = container.run().await.expect("run");
    assert_eq!(container.wait().await.expect("wait").status, 5);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Where nobody had it open any more, a blocking open would wait for ever.
    let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let open = File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(&fifo.0);
    let mut reader = open.expect("open the FIFO");
    container.delete().await.expect("delete");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    // Both outputs go there, and only one had any.
    assert_eq!(text, "last words\n");
}

async fn a_reader_that_comes_back_gets_the_rest(bed: &Bed) {
    let fifo = Fifo::new(bed);
    let container = bed
        .shell(LINES)
        .log_to(&fifo.path())
        .run()
        .await
        .expect("run");
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    for _ in 0..3 {
        let mut reader = fifo.open();
        for _ in 0..5 {
            let count = reader.read(&mut buffer).expect("read");
            text.extend_from_slice(&buffer[..count]);
        }
        drop(reader);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut reader = fifo.open();
    while text.len() < lines().len() {
        let count = reader.read(&mut buffer).expect("read");
        text.extend_from_slice(&buffer[..count]);
    }
    assert!(text == lines().into_bytes(), "lines differ");
    assert_eq!(container.wait().await.expect("wait").status, 0);
    container.delete().await.expect("delete");
}

async fn two_readers_share_the_output(bed: &Bed) {
    let fifo = Fifo::new(bed);
    let container = bed
        .shell(LINES)
        .log_to(&fifo.path())
        .run()
        .await
        .expect("run");
    let readers = [fifo.open(), fifo.open()].map(|mut reader| {
        std::thread::spawn(move || {
            let (mut total, mut buffer) = (0, [0; 4096]);
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                total += count;
            }
            total
        })
    });
    assert_eq!(container.wait().await.expect("wait").status, 0);
    container.delete().await.expect("delete");
    let total: usize = readers
        .map(|reader| reader.join().expect("reader"))
        .iter()
        .sum();
    assert_eq!(total, lines().len());
}

async fn two_clients_that_attach_share_the_output_and_hear_the_end(bed: &Bed) {
    let fifo = Fifo::new(bed);
    let container = bed
        .shell(&format!("read line; {LINES}; exit 5"))
        .stdin()
        .log_to(&fifo.path())
        .run()
        .await
        .expect("run");
    let attach = || bed.ctr(&["task", "attach", &container.id]);
    let outputs = std::thread::scope(|scope| {
        let clients = [scope.spawn(attach), scope.spawn(attach)];
        std::thread::sleep(Duration::from_secs(1));
        container.streams.write([b"go\n".to_vec()]);
        clients.map(|client| client.join().expect("ctr"))
    });
    let mut total = 0;
    for output in outputs {
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        total += output.stdout.len() + output.stderr.len();
    }
    assert_eq!(total, lines().len());
    // The first of them that heard the end has deleted the task.
    container.remove().await;
}

async fn null_streams_do_not_block_a_program_that_writes(bed: &Bed) {
    let script = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; read line; exit 7";
    let container = bed.shell(script).null_streams().run().await.expect("run");
    assert_eq!(container.wait().await.expect("wait").status, 7);
    container.delete().await.expect("delete");
}

async fn output_read_after_the_exit_is_whole(bed: &Bed) {
    // The client that has not opened its end yet is the slowest.
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done";
    let mut container = bed.shell(script).run().await.expect("run");
    assert_eq!(container.wait().await.expect("wait").status, 0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let text = container.streams.stdout().await.text();
    let expected: String = (0..2000).map(|number| format!("line {number}\n")).collect();
    assert_eq!(text, expected);
    container.delete().await.expect("delete");
}

async fn many_lines_before_exit_are_not_cut(bed: &Bed) {
    for _ in 0..10 {
        let done = bed
            .shell("head -c 50000 /dev/zero | tr '\\0' x")
            .run()
            .await
            .expect("run")
            .finish()
            .await;
        assert_eq!(done.stdout.len(), 50000);
    }
}

async fn a_background_child_that_holds_stdout_does_not_hold_back_the_exit(bed: &Bed) {
    let container = bed
        .shell("sleep 60 & echo started; exit 5")
        .run()
        .await
        .expect("run");
    let exit = tokio::time::timeout(Duration::from_secs(20), container.wait())
        .await
        .expect("exit in time");
    assert_eq!(exit.expect("wait").status, 5);
    let done = container.finish().await;
    assert_eq!(done.stdout, "started\n");
}

async fn stdout_reader_that_goes_away_does_not_hold_back_the_exit(bed: &Bed) {
    let mut container = bed
        .shell("read line; head -c 1000 /dev/zero; exit 9")
        .stdin()
        .run()
        .await
        .expect("run");
    // Dropping the streams closes the reading ends and removes the FIFOs; stdin is told by CloseIO.
    let streams = std::mem::replace(&mut container.streams, bed.streams("spare"));
    drop(streams);
    bed.client()
        .close_stdin(&container.id, "")
        .await
        .expect("CloseIO");
    let exit = tokio::time::timeout(Duration::from_secs(30), container.wait())
        .await
        .expect("exit in time");
    // 141 where the write met a closed pipe first.
    assert!([9, 141].contains(&exit.expect("wait").status));
    container.delete().await.expect("delete");
}

async fn stdout_reader_that_goes_away_holds_back_neither_kill_nor_delete(bed: &Bed) {
    let mut container = bed
        .shell("trap '' PIPE; read line; head -c 1000000 /dev/zero; exec sleep 1000")
        .stdin()
        .run()
        .await
        .expect("run");
    drop(std::mem::replace(
        &mut container.streams,
        bed.streams("spare"),
    ));
    bed.client()
        .close_stdin(&container.id, "")
        .await
        .expect("CloseIO");
    // More than the pipes on the way hold: it waits in its write, or has met a closed pipe.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    container.kill(9).await.expect("kill");
    assert_eq!(container.wait().await.expect("wait").status, 137);
    container.delete().await.expect("delete");
    let took = began.elapsed();
    assert!(took < patience(Duration::from_secs(10)), "{took:?}");
}

async fn output_that_nobody_reads_does_not_hold_back_delete(bed: &Bed) {
    // Of a FIFO that no client ever opens.
    let fifo = Fifo::new(bed);
    let container = bed
        .shell("head -c 1000000 /dev/zero")
        .log_to(&fifo.path())
        .run()
        .await
        .expect("run");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let status = container.status().await.expect("state");
    assert_eq!(
        status,
        containerd_client::types::v1::Status::Running,
        "it waits for a reader"
    );
    container.kill(9).await.expect("kill");
    assert_eq!(container.wait().await.expect("wait").status, 137);
    let began = Instant::now();
    container.delete().await.expect("delete");
    let took = began.elapsed();
    assert!(took < patience(Duration::from_secs(8)), "{took:?}");
}

async fn close_io_of_a_container_without_stdin_is_no_error(bed: &Bed) {
    let container = bed.container(&["sleep", "100"]).run().await.expect("run");
    bed.client()
        .close_stdin(&container.id, "")
        .await
        .expect("CloseIO");
    container.remove().await;
}

const LINE: &str = "0123456789abcdef0123456789abcde";

/// Makes a file of 50 MiB.
const MIB_50: &str = "yes 0123456789abcdef0123456789abcde | head -c 52428800 >/tmp/x";

fn is_mib_50(output: &Output) {
    assert_eq!(output.length, 50 << 20);
    let mib = format!("{LINE}\n").repeat(32768).into_bytes();
    assert_eq!(output.sha256, sha256((0..50).map(|_| mib.clone())));
}

async fn fifty_mib_beyond_the_rate_arrive_whole_and_slowed(bed: &Bed) {
    let script = format!("{MIB_50}; cat /tmp/x");
    let began = Instant::now();
    let mut container = bed.shell(&script).run().await.expect("run");
    is_mib_50(&container.streams.stdout().await);
    // 10 MiB a second, of which the first second's worth is free.
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(3900), "{took:?}");
    assert_eq!(container.wait().await.expect("wait").status, 0);
    container.delete().await.expect("delete");
}

async fn a_program_that_floods_its_output_is_killed_at_once(bed: &Bed) {
    let container = bed.container(&["yes"]).run().await.expect("run");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let began = Instant::now();
    container.kill(9).await.expect("kill");
    assert_eq!(container.wait().await.expect("wait").status, 137);
    assert!(began.elapsed() < patience(Duration::from_secs(3)));
    container.delete().await.expect("delete");
}

async fn an_exec_has_no_rate(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let made = container.exec("make", &["sh", "-c", MIB_50]).finish().await;
    assert_eq!(made.status, 0, "{made:?}");
    let began = Instant::now();
    let exec = container.exec("e", &["cat", "/tmp/x"]).run().await;
    let mut exec = exec.expect("run");
    is_mib_50(&exec.streams.stdout().await);
    let took = began.elapsed();
    assert!(took < patience(Duration::from_millis(3900)), "{took:?}");
    assert_eq!(exec.wait().await.expect("wait").status, 0);
    exec.delete().await.expect("delete");
    container.remove().await;
}
