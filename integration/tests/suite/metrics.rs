//! The metrics of a sandbox, by the socket beside its control socket.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use integration::bed::Bed;
use integration::cases;
use integration::processes::{Role, of, resident_kb};
use integration::runtime::Needs;

use crate::peers::{Answer, control_socket, serve};
use crate::pod::{end, member, sandbox};

cases! {
    Needs::Bulkhead => [
        a_scrape_tells_of_the_sandbox,
        each_container_of_a_pod_has_its_series,
        the_host_side_stands_whatever_the_sentry_answers,
        a_scraper_that_stalls_holds_nothing_up,
        a_thousand_scrapes_ask_the_sandbox_once_a_second,
    ],
}

fn socket(id: &str) -> PathBuf {
    control_socket(id).with_file_name("metrics.sock")
}

/// One scrape of a socket: the text.
fn scrape(socket: &PathBuf) -> String {
    let mut stream = UnixStream::connect(socket).expect("connect");
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit).expect("a limit");
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        .expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.0 200 OK"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    body.to_owned()
}

/// The value of the first sample of a name that has all of these labels.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line = text.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
            && labels.iter().all(|label| line.contains(label))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

async fn a_scrape_tells_of_the_sandbox(bed: &Bed) {
    let container = bed
        .shell("echo said; sleep 1000 & wait")
        .run()
        .await
        .expect("run");
    assert_eq!(container.exec("e", &["true"]).finish().await.status, 0);
    let socket = socket(&container.id);
    let mode = fs::metadata(&socket)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = scrape(&socket);
    let get = |name: &str, labels: &[&str]| value(&text, &format!("bulkhead_{name}"), labels);
    let label = format!("sandbox=\"{}\"", container.id);
    let info = [
        "network=\"none\"",
        "platform=\"systrap\"",
        "rootfs=\"read-only\"",
        "seccomp=\"enforced\"",
        &label,
    ];
    assert_eq!(get("sandbox_info", &info), Some(1.0), "{text}");
    assert_eq!(get("sandbox_state", &["state=\"running\""]), Some(1.0));
    assert_eq!(get("sandbox_guest_up", &[]), Some(1.0));
    assert_eq!(get("memory_limit_bytes", &[]), Some(536_870_912.0));
    for (name, least) in [
        ("cpu_usage_seconds_total", 0.001),
        ("memory_usage_bytes", 1e6),
        ("memory_working_set_bytes", 1e6),
        ("memory_peak_bytes", 1e6),
        ("memory_guest_bytes", 1e5),
        ("sentry_resident_memory_bytes", 1e6),
        ("gofer_resident_memory_bytes", 1e6),
        ("shim_resident_memory_bytes", 1e6),
        ("sandbox_start_time_seconds", 1.7e9),
        ("sentry_fs_opens_total", 1.0),
        ("create_duration_seconds_count", 1.0),
        ("start_duration_seconds_count", 1.0),
        ("exec_duration_seconds_count", 1.0),
    ] {
        assert!(
            get(name, &[]).is_some_and(|value| value >= least),
            "{name}: {text}"
        );
    }
    assert_eq!(
        get("pids", &["kind=\"guest\""]),
        Some(2.0),
        "a shell and sleep"
    );
    assert!(get("pids", &["kind=\"host\""]).is_some_and(|tasks| tasks > 2.0));
    assert_eq!(get("pids_limit", &[]), Some(256.0));
    assert_eq!(get("oom_kills_total", &[]), Some(0.0));
    assert_eq!(get("log_bytes_total", &[]), Some(5.0), "{text}");
    assert_eq!(get("execs_total", &["outcome=\"started\""]), Some(1.0));
    assert_eq!(get("exits_total", &["reason=\"completed\""]), Some(1.0));
    let create = ["command=\"create\""];
    assert_eq!(
        get("runsc_command_duration_seconds_count", &create),
        Some(1.0)
    );
    assert_eq!(get("container_tasks", &[]), Some(2.0));
    container.kill(9).await.expect("kill");
    container.wait().await.expect("wait");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let text = scrape(&socket);
    assert_eq!(
        value(&text, "bulkhead_sandbox_state", &["state=\"stopped\""]),
        Some(1.0)
    );
    assert_eq!(value(&text, "bulkhead_sandbox_guest_up", &[]), Some(0.0));
    container.delete().await.expect("delete");
    UnixStream::connect(&socket).expect_err("gone with the sandbox");
}

async fn each_container_of_a_pod_has_its_series(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "echo x; sleep 1000 & wait").with(|spec| {
        spec["annotations"]["io.kubernetes.cri.container-name"] = "quote\"} 1\nfake 2\\".into();
    });
    let one = one.run().await.expect("run");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let text = scrape(&socket(&pod.id));
    let id = format!("container_id=\"{}\"", one.id);
    assert_eq!(
        value(&text, "bulkhead_container_tasks", &[&id]),
        Some(2.0),
        "{text}"
    );
    assert_eq!(
        value(&text, "bulkhead_log_bytes_total", &[&id]),
        Some(2.0),
        "{text}"
    );
    let escaped = "container=\"quote\\\"} 1\\nfake 2\\\\\"";
    assert!(
        value(&text, "bulkhead_container_tasks", &[escaped]).is_some(),
        "{text}"
    );
    one.remove().await;
    end(pod).await;
}

async fn the_host_side_stands_whatever_the_sentry_answers(bed: &Bed) {
    for answer in [
        Answer::Never,
        Answer::Garbage,
        Answer::Half,
        Answer::Gigabyte,
    ] {
        let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
        let metrics = socket(&container.id);
        let control = control_socket(&container.id);
        fs::rename(&control, control.with_extension("aside")).expect("move the socket away");
        let listener = UnixListener::bind(&control).expect("take its place");
        std::thread::spawn(move || serve(&listener, answer));
        let began = Instant::now();
        let text = scrape(&metrics);
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(
            value(&text, "bulkhead_sandbox_guest_up", &[]),
            Some(0.0),
            "{text}"
        );
        assert_eq!(value(&text, "bulkhead_pids", &["kind=\"guest\""]), None);
        assert_eq!(value(&text, "bulkhead_memory_guest_bytes", &[]), None);
        assert_eq!(value(&text, "bulkhead_sentry_fs_opens_total", &[]), None);
        assert!(value(&text, "bulkhead_memory_usage_bytes", &[]).is_some_and(|bytes| bytes > 1e6));
        container.kill(9).await.expect("SIGKILL needs no sentry");
        container.wait().await.expect("wait");
        container.delete().await.expect("delete");
    }
}

async fn a_scraper_that_stalls_holds_nothing_up(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let socket = socket(&container.id);
    let stalled: Vec<_> = (0..7)
        .map(|_| UnixStream::connect(&socket).expect("connect"))
        .collect();
    let began = Instant::now();
    scrape(&socket);
    container.status().await.expect("state");
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    drop(stalled);
    container.remove().await;
}

async fn a_thousand_scrapes_ask_the_sandbox_once_a_second(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let (metrics, control) = (socket(&container.id), control_socket(&container.id));
    scrape(&metrics);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // Whoever asks more often gets the same answer: with the control socket away nothing is missed within a second.
    let first = scrape(&metrics);
    fs::rename(&control, control.with_extension("aside")).expect("move the socket away");
    let again = scrape(&metrics);
    fs::rename(control.with_extension("aside"), &control).expect("put it back");
    assert!(first == again, "asked twice within a second");
    for _ in 0..1000 {
        scrape(&metrics);
    }
    let shims = of(Role::Shim, &container.id);
    let resident = resident_kb(shims[0].pid).expect("resident memory");
    // A debug build is larger; the figure for the shipped one is a bench's.
    assert!(resident < 40_000, "{resident} kB after 1000 scrapes");
    container.remove().await;
}
