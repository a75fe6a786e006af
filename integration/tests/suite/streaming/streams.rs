//! Streams whose clients come late, go early, or never come; and what nobody may wait for because of them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use integration::bed::Bed;
use integration::busy::Busy;
use integration::container::Container;
use integration::exec::ExecBuilder;
use integration::fifo::Streams;
use integration::harness::join_all;
use integration::patience::patience;
use integration::processes::{Role, eventually, of};
use integration::runtime::Needs;

use integration::cases;

cases! {
    Needs::NotRunc("a client that comes late waits for ever") => [
        execs_by_ctr_never_hang,
        execs_by_ctr_without_input_end,
    ],
    Needs::Any => [
        execs_that_nobody_reads_do_not_hold_back_delete,
        close_io_before_the_start_is_remembered,
        input_comes_before_the_start_and_ends_by_close_io,
    ],
    Needs::Bulkhead => [
        the_input_of_an_exec_ends_with_its_client,
        an_exec_waits_for_a_client_that_writes_late,
        an_exec_does_not_wait_for_a_client_that_has_left_it,
        what_an_exec_leaves_behind_keeps_its_reader_and_not_the_end,
        a_client_that_opens_a_stream_late_sees_its_output_and_its_end,
        a_client_that_has_gone_is_not_waited_for,
    ],
}

/// How often the loops go round: once where the whole suite runs, more by `make loop`.
fn rounds() -> usize {
    let text = std::env::var("BULKHEAD_TEST_ROUNDS").unwrap_or_default();
    text.parse().unwrap_or(1)
}

/// Writes what a loop did to where `make loop` adds it up: what was counted, how many there were, and how many of them hung.
fn note(what: &str, count: usize, hung: usize) {
    let Ok(path) = std::env::var("BULKHEAD_LOOP_COUNTS") else {
        return;
    };
    let file = File::options().append(true).create(true).open(path);
    writeln!(file.expect("open the counts"), "{what} {count} {hung}").expect("write the counts");
}

/// Four at a time in eight containers, a third of them with the CPUs busy.
async fn execs_by_ctr_never_hang(bed: &Bed) {
    const A_ROUND: usize = 100;
    const LIMIT: Duration = Duration::from_secs(30);
    let containers = join_all((0..8).map(|_| bed.container(&["sleep", "1000"]).run())).await;
    let containers: Vec<Container<'_>> = containers
        .into_iter()
        .map(|one| one.expect("run"))
        .collect();
    let count = A_ROUND * rounds();
    let hung = AtomicUsize::new(0);
    for (execs, busy) in [
        (0..count * 2 / 3, None),
        (count * 2 / 3..count, Some(Busy::new())),
    ] {
        let next = AtomicUsize::new(execs.start);
        let client = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= execs.end {
                    return;
                }
                let (id, exec) = (
                    &containers[number % containers.len()].id,
                    format!("e{number}"),
                );
                let began = Instant::now();
                let args = ["task", "exec", "--exec-id", &exec, id, "true"];
                let output = bed.ctr_within(LIMIT, &args);
                if began.elapsed() >= LIMIT {
                    hung.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let status = output.status.code();
                assert_eq!(status, Some(0), "exec {number} of {count}: {output:?}");
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(client);
            }
        });
        drop(busy);
    }
    let hung = hung.into_inner();
    note("execs by ctr", count, hung);
    assert_eq!(hung, 0, "of {count} execs so many hung");
    for container in containers {
        container.remove().await;
    }
}

/// When the client of a stream opens it, after the exit of the process.
const DELAYS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(500),
    Duration::from_secs(3),
    Duration::from_secs(9),
];

/// Opens one output of a process that has exited, and the other one so much later. Returns whether that open hung.
async fn open_late(streams: &Streams, late: &str, delay: Duration, written: [&str; 2]) -> bool {
    // From the open on: nobody makes a client wait for the rest of its ten seconds.
    let limit = patience(Duration::from_secs(4));
    let other = if late == "stdout" { "stderr" } else { "stdout" };
    let [written_early, written_late] = written;
    let early = streams.open(other, limit).await;
    assert_eq!(early.as_deref(), Some(written_early), "{other}, at once");
    tokio::time::sleep(delay).await;
    let Some(came) = streams.open(late, limit).await else {
        return true;
    };
    assert_eq!(came, written_late, "{late}, {delay:?} after the exit");
    false
}

async fn a_client_that_opens_a_stream_late_sees_its_output_and_its_end(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let (mut count, mut hung) = (0, 0);
    for round in 0..rounds() {
        let mut clients = Vec::new();
        for (number, delay) in DELAYS.into_iter().enumerate() {
            for late in ["stdout", "stderr"] {
                // One of its streams carries something, and that is once the late one and once the other.
                let is_late_silent = (number + round) % 2 == 0;
                let silent = if (late == "stdout") == is_late_silent {
                    1
                } else {
                    2
                };
                let script = format!("echo words >&{}; exit 5", 3 - silent);
                let written = if is_late_silent {
                    ["words\n", ""]
                } else {
                    ["", "words\n"]
                };
                clients.push(late_client(
                    bed,
                    Some(&container),
                    script.clone(),
                    late,
                    delay,
                    written,
                ));
                // A container costs more than an exec: half of them in a round.
                if (late == "stdout") == (round % 2 == 0) {
                    clients.push(late_client(bed, None, script, late, delay, written));
                }
            }
        }
        let opened = join_all(clients).await;
        count += opened.len();
        hung += opened.into_iter().filter(|hung| *hung).count();
    }
    note("late opens", count, hung);
    assert_eq!(hung, 0, "of {count} late opens so many hung");
    container.remove().await;
}

/// Runs the script as an exec of the container, or as a container of its own, deletes it at its end and opens its streams.
async fn late_client(
    bed: &Bed,
    container: Option<&Container<'_>>,
    script: String,
    late: &str,
    delay: Duration,
    written: [&str; 2],
) -> bool {
    let command = ["sh", "-c", &script];
    let limit = patience(Duration::from_secs(5));
    if let Some(container) = container {
        let exec = container
            .exec(&bed.id("late"), &command)
            .unopened()
            .run()
            .await
            .expect("exec");
        assert_eq!(exec.wait().await.expect("wait").status, 5);
        let began = Instant::now();
        exec.delete().await.expect("delete");
        assert!(began.elapsed() < limit, "Delete took {:?}", began.elapsed());
        open_late(&exec.streams, late, delay, written).await
    } else {
        let container = bed.container(&command).unopened().run().await.expect("run");
        assert_eq!(container.wait().await.expect("wait").status, 5);
        let began = Instant::now();
        // As `ctr run --rm`: the shim is shut down with it.
        container.delete().await.expect("delete");
        assert!(began.elapsed() < limit, "Delete took {:?}", began.elapsed());
        open_late(&container.streams, late, delay, written).await
    }
}

async fn a_client_that_has_gone_is_not_waited_for(bed: &Bed) {
    for script in ["read line", "echo words; echo words >&2; read line"] {
        let container = bed
            .shell(script)
            .stdin()
            .unopened()
            .run()
            .await
            .expect("run");
        // Clients that are killed, once they have read something where there is something.
        for name in ["stdout", "stderr"] {
            let mut client = File::open(container.streams.path(name)).expect("open");
            if script.contains("words") {
                client.read_exact(&mut [0]).expect("read");
            }
        }
        container
            .streams
            .write([b"\n".to_vec()])
            .await
            .expect("written");
        assert_eq!(container.wait().await.expect("wait").status, 0);
        container.delete().await.expect("delete");
        eventually("the shim ends", Duration::from_secs(3), || {
            of(Role::Shim, &container.id).is_empty()
        })
        .await;
    }
}

async fn execs_that_nobody_reads_do_not_hold_back_delete(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let mut execs = Vec::new();
    for number in 0..5 {
        let exec = container.exec(
            &format!("e{number}"),
            &["head", "-c", "1000000", "/dev/zero"],
        );
        let exec = exec.unopened().run().await.expect("exec");
        // They were there and are there still, and read nothing.
        let client = ["stdout", "stderr"].map(|name| File::open(exec.streams.path(name)));
        execs.push((exec, client));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    let began = Instant::now();
    container.delete().await.expect("delete");
    let took = began.elapsed();
    assert!(took < patience(Duration::from_secs(3)), "{took:?}");
}

/// An exec that says what it is told.
fn cat<'c, 'a>(container: &'c Container<'a>) -> ExecBuilder<'c, 'a> {
    container.exec("cat", &["cat"]).stdin()
}

async fn close_io_before_the_start_is_remembered(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let exec = cat(&container).add().await.expect("add");
    // A client whose input is empty: it has come and gone.
    drop(
        File::options()
            .read(true)
            .write(true)
            .open(exec.streams.path("stdin")),
    );
    exec.close_stdin().await.expect("CloseIO");
    exec.start().await.expect("start");
    let exit = tokio::time::timeout(patience(Duration::from_secs(3)), exec.wait()).await;
    assert_eq!(exit.expect("it ends").expect("wait").status, 0);
    exec.delete().await.expect("delete");
    container.remove().await;
}

async fn input_comes_before_the_start_and_ends_by_close_io(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let exec = cat(&container).add().await.expect("add");
    let written = exec.streams.write([b"words".to_vec()]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    exec.close_stdin().await.expect("CloseIO");
    exec.start().await.expect("start");
    written.await.expect("written");
    assert_eq!(exec.finish().await.stdout, "words");
    container.remove().await;
}

async fn the_input_of_an_exec_ends_with_its_client(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let exec = cat(&container).run().await.expect("run");
    exec.streams
        .write([b"words".to_vec()])
        .await
        .expect("written");
    // No CloseIO: the client was killed.
    let done = tokio::time::timeout(patience(Duration::from_secs(5)), exec.finish()).await;
    assert_eq!(done.expect("it ends").stdout, "words");
    container.remove().await;
}

/// `ctr` may be done with an empty input before it has an exec that it could tell, and before the shim has opened the FIFO.
async fn execs_by_ctr_without_input_end(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let client = |number: usize| {
        let exec = format!("e{number}");
        let limit = patience(Duration::from_secs(15));
        bed.ctr_within(
            limit,
            &["task", "exec", "--exec-id", &exec, &container.id, "cat"],
        )
    };
    let outputs = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        let joined = clients
            .into_iter()
            .map(|client| client.join().expect("ctr"));
        joined.collect::<Vec<_>>()
    });
    for output in outputs {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    container.remove().await;
}

/// Where it has opened the outputs, and where it has opened nothing.
async fn an_exec_waits_for_a_client_that_writes_late(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let reads = container.exec("reads", &["cat"]).stdin();
    let absent = container.exec("absent", &["cat"]).stdin().unopened();
    let (reads, absent) = (
        reads.run().await.expect("run"),
        absent.run().await.expect("run"),
    );
    tokio::time::sleep(Duration::from_secs(8)).await;
    let limit = patience(Duration::from_secs(5));
    for exec in [&reads, &absent] {
        let written = exec.streams.write([b"words".to_vec()]);
        let written = tokio::time::timeout(limit, written).await;
        written.expect("its open returns").expect("written");
    }
    assert_eq!(reads.finish().await.stdout, "words");
    let output = absent.streams.open("stdout", limit).await;
    assert_eq!(output.as_deref(), Some("words"));
    assert_eq!(absent.wait().await.expect("wait").status, 0);
    absent.delete().await.expect("delete");
    container.remove().await;
}

/// `ctr task exec -d` is done with an empty input before the shim has opened the FIFO, and ends.
async fn an_exec_does_not_wait_for_a_client_that_has_left_it(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    // It leaves its FIFOs behind; this folder is removed with the container's.
    let folder = container.streams.path("left");
    let args = [
        "task",
        "exec",
        "-d",
        "--exec-id",
        "left",
        "--fifo-dir",
        &folder,
    ];
    bed.ctr_ok(&[&args[..], &[&container.id, "cat"]].concat());
    let deadline = Instant::now() + patience(Duration::from_secs(15));
    let is_there = "ps -o args | grep -qx cat";
    while container
        .exec("ps", &["sh", "-c", is_there])
        .finish()
        .await
        .status
        == 0
    {
        assert!(Instant::now() < deadline, "its stdin is still open");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    container.remove().await;
}

/// One child prints for ever and one keeps silent; neither holds back the client, and the one that prints is not killed by a
/// pipe without a reader.
async fn what_an_exec_leaves_behind_keeps_its_reader_and_not_the_end(bed: &Bed) {
    const BOUND: Duration = Duration::from_secs(3);
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let printing = "(n=0; while echo x; do n=$((n+1)); echo $n >/tmp/n; sleep 0.1; done) & exit 3";
    let ends = ["sleep 1000 & exit 3", printing].map(async |script| {
        let exec = container.exec(&bed.id("left"), &["sh", "-c", script]);
        let mut exec = exec.run().await.expect("exec");
        assert_eq!(exec.wait().await.expect("wait").status, 3);
        let ended = async { (exec.streams.stdout().await, exec.streams.stderr().await) };
        let ended = tokio::time::timeout(patience(BOUND), ended).await;
        assert!(
            ended.is_ok(),
            "{script}: its streams have not ended {BOUND:?} after the exit"
        );
        let began = Instant::now();
        exec.delete().await.expect("delete");
        assert!(
            began.elapsed() < patience(Duration::from_secs(1)),
            "Delete took {:?}",
            began.elapsed()
        );
    });
    join_all(ends).await;
    let lines = async || {
        let read = container
            .exec(&bed.id("read"), &["cat", "/tmp/n"])
            .finish()
            .await;
        read.stdout.trim().parse::<u32>().expect("a number")
    };
    let before = lines().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(lines().await > before, "it ended at its {before}th line");
    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    let began = Instant::now();
    container.delete().await.expect("delete");
    assert!(
        began.elapsed() < patience(BOUND),
        "Delete took {:?}",
        began.elapsed()
    );
}
