//! Those who ask for metrics: many at once, those who say nothing, and one that may not.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use integration::bed::{Bed, tool};
use integration::cases;
use integration::patience::patience;
use integration::runtime::Needs;

use crate::figures::metrics::{certificates, end_server, node_tool, scrape, server, socket, value};
use crate::figures::stats::{LOAD, loaded};

cases! {
    Needs::Bulkhead => [
        those_who_connect_and_say_nothing_keep_nobody_out,
        one_who_does_not_take_its_answer_keeps_nobody_out,
        many_at_once_get_one_answer,
        the_node_tool_fails_where_it_cannot_look,
        the_table_shows_what_a_busy_sandbox_does,
    ],
}

/// A GET of the node tool's server over TCP: the head and the body.
fn get(port: u16) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit).expect("a limit");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

async fn those_who_connect_and_say_nothing_keep_nobody_out(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let (plain, _) = server(&["--listen", "127.0.0.1:9481"]);
    let silent = |port: u16| -> Vec<TcpStream> {
        let connect = |_| TcpStream::connect(("127.0.0.1", port)).expect("connect");
        (0..32).map(connect).collect()
    };
    let held = silent(9481);
    let began = Instant::now();
    let (head, body) = get(9481);
    let took = began.elapsed();
    // They are let go.
    let mut first = held.into_iter().next().expect("one");
    let limit = Some(Duration::from_secs(8));
    first.set_read_timeout(limit).expect("a limit");
    let let_go = first.read(&mut [0; 64]);
    end_server(plain);
    assert!(took < patience(Duration::from_secs(4)), "{took:?}");
    assert!(
        head.starts_with("HTTP/1.1 200") && body.ends_with("# EOF\n"),
        "{head}"
    );
    assert!(let_go.is_ok(), "{let_go:?}");
    // The same before a handshake.
    let folder = bed.folder.join(bed.id("tls"));
    let tls = certificates(&folder);
    let (child, _) = tls.server("127.0.0.1:9482");
    let held = silent(9482);
    let began = Instant::now();
    let known = tls.ask("https://127.0.0.1:9482/metrics", "known");
    let took = began.elapsed();
    drop(held);
    end_server(child);
    fs::remove_dir_all(&folder).expect("remove");
    assert!(known.status.success(), "{known:?}");
    // Python's own start is among it.
    assert!(took < patience(Duration::from_secs(4)), "{took:?}");
    container.remove().await;
}

async fn one_who_does_not_take_its_answer_keeps_nobody_out(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let (child, _) = server(&["--listen", "127.0.0.1:9483"]);
    let asked: Vec<TcpStream> = (0..32)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", 9483)).expect("connect");
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                .expect("ask");
            stream
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    let (head, _) = get(9483);
    let took = began.elapsed();
    drop(asked);
    end_server(child);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(took < patience(Duration::from_secs(4)), "{took:?}");
    container.remove().await;
}

async fn many_at_once_get_one_answer(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let (child, _) = server(&["--listen", "127.0.0.1:9484"]);
    let path = socket(&container.id);
    // What the sandbox was asked shows in what differs from one answer to the next: its CPU time.
    let answers: Vec<_> = (0..12)
        .map(|_| std::thread::spawn(|| get(9484)))
        .chain((0..6).map(|_| {
            let path = path.clone();
            std::thread::spawn(move || ("HTTP/1.1 200".to_owned(), scrape(&path)))
        }))
        .map(|thread| thread.join().expect("an answer"))
        .collect();
    end_server(child);
    let told: std::collections::BTreeSet<String> = answers
        .iter()
        .map(|(head, body)| {
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            let labels = [format!("sandbox=\"{}\"", container.id)];
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let time = value(body, "bulkhead_cpu_usage_seconds_total", &labels);
            format!("{time:?}")
        })
        .collect();
    // A second may begin in between.
    assert!(told.len() <= 2, "{told:?}");
    container.remove().await;
}

async fn the_node_tool_fails_where_it_cannot_look(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    // Where anybody can run it.
    let copy = std::path::Path::new("/tmp").join(bed.id("node-tool"));
    fs::copy(tool("bulkhead").expect("bulkhead"), &copy).expect("copy");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("chmod");
    let run = |args: &[&str]| {
        let mut command = Command::new(&copy);
        command.arg("metrics").args(args).uid(65534).gid(65534);
        command.output().expect("run the node tool")
    };
    let outputs = [
        &["--root", "/run/bulkhead"][..],
        &["--root", "/run/bulkhead", "--json"],
        &["--root", "/run/bulkhead", "--top"],
    ]
    .map(run);
    fs::remove_file(&copy).expect("remove");
    for output in outputs {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{output:?}");
        assert!(said.contains("/run/bulkhead: Permission denied"), "{said}");
    }
    // A node without any sandbox is none that cannot be looked at.
    let text = node_tool(&["--root", "/run/nothing-here"]);
    assert!(text.contains("bulkhead_shims_dead 0\n"), "{text}");
    // Limits below a second are said as they are.
    let shim = integration::processes::of(integration::processes::Role::Shim, &container.id)[0].pid;
    let pid = nix::unistd::Pid::from_raw(shim);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stop the shim");
    let mut command = Command::new(tool("bulkhead").expect("bulkhead"));
    let output = command.args(["metrics", "--timeout", "300"]).output();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).expect("go on");
    let output = output.expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no answer within 300 ms"), "{said}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let id = format!("sandbox=\"{}\"", container.id);
    assert_eq!(
        value(&text, "bulkhead_shim_up", &[&id]),
        Some(0.0),
        "{text}"
    );
    container.remove().await;
}

async fn the_table_shows_what_a_busy_sandbox_does(bed: &Bed) {
    let idle = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let busy = bed.shell(LOAD).run().await.expect("run");
    loaded(&busy).await;
    // dd touches its buffer page by page.
    let held = |text: &str| value(text, "bulkhead_memory_working_set_bytes", &[]);
    integration::processes::eventually("200 MiB are held", Duration::from_secs(30), || {
        held(&scrape(&socket(&busy.id))).is_some_and(|bytes| bytes >= 200.0 * 1_048_576.0)
    })
    .await;
    let table = node_tool(&["--top", "--rounds", "2", "--interval", "2"]);
    let last = table.rfind("NAMESPACE").expect("a table");
    let mut lines = table[last..].lines();
    let head: Vec<&str> = lines.next().expect("a head").split_whitespace().collect();
    let first: Vec<&str> = lines.next().expect("a row").split_whitespace().collect();
    let column = |name: &str| {
        let at = head
            .iter()
            .position(|column| *column == name)
            .expect("a column");
        first[at].to_owned()
    };
    // The busiest is first.
    assert!(
        busy.id.starts_with(column("SANDBOX").trim_end_matches('…')),
        "{table}"
    );
    assert_eq!(column("STATE"), "running", "{table}");
    let number = |text: String| text.trim_end_matches(char::is_alphabetic).parse::<f64>();
    assert!(number(column("CPU%")).expect("a number") > 30.0, "{table}");
    assert!(
        number(column("TASKS")).expect("a number") >= 52.0,
        "{table}"
    );
    let memory = column("MEM");
    assert!(
        memory.ends_with('M') && number(memory).expect("a number") >= 200.0,
        "{table}"
    );
    assert_eq!(column("LIMIT"), "512M", "{table}");
    for container in [busy, idle] {
        container.remove().await;
    }
}
