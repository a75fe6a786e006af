//! The metrics of a sandbox, by the socket beside its control socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::bed::{Bed, tool};
use integration::cases;
use integration::patience::patience;
use integration::processes::{Role, of, resident_kb};
use integration::runtime::Needs;

use crate::life::pod::{end, member, sandbox};
use crate::trouble::peers::{Answer, control_socket, serve};

cases! {
    Needs::Bulkhead => [
        a_scrape_tells_of_the_sandbox,
        each_container_of_a_pod_has_its_series,
        the_host_side_stands_whatever_the_sentry_answers,
        a_scraper_that_stalls_holds_nothing_up,
        a_thousand_scrapes_ask_the_sandbox_once_a_second,
        a_real_prometheus_scrapes_the_node,
        a_server_on_a_unix_socket_keeps_no_capability,
        over_a_network_only_clients_with_a_certificate_are_served,
        the_node_tool_gathers_all_and_a_hanging_shim_costs_its_own_time,
    ],
}

pub(crate) fn socket(id: &str) -> PathBuf {
    control_socket(id).with_file_name("metrics.sock")
}

/// One scrape of a socket: the text.
pub(crate) fn scrape(socket: &PathBuf) -> String {
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
pub(crate) fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
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
    let folder = fs::metadata(socket.with_file_name("")).expect("its folder");
    assert_eq!(folder.permissions().mode() & 0o777, 0o700);
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

/// Runs `bulkhead metrics`.
pub(crate) fn node_tool(args: &[&str]) -> String {
    let mut command = Command::new(tool("bulkhead").expect("bulkhead"));
    let output = command
        .arg("metrics")
        .args(args)
        .output()
        .expect("run bulkhead");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Another reader of OpenMetrics takes the text; it says how many samples there are.
pub(crate) fn independently_read(text: &str) -> usize {
    let script = "import sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as f; \
                  print(sum(len(m.samples) for m in f(sys.stdin.read())))";
    read_by_python(script, text)
        .trim()
        .parse()
        .expect("a number")
}

/// What a script of Python says of a text.
fn read_by_python(script: &str, text: &str) -> String {
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run python3");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(text.as_bytes())
        .expect("write");
    let output = child.wait_with_output().expect("wait");
    assert!(
        output.status.success(),
        "{}\n{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn the_node_tool_gathers_all_and_a_hanging_shim_costs_its_own_time(bed: &Bed) {
    let one = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let two = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let shim = scrape(&socket(&one.id));
    let lines = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(independently_read(&shim), lines(&shim));
    let text = node_tool(&[]);
    assert_eq!(independently_read(&text), lines(&text));
    for id in [&one.id, &two.id] {
        let label = format!("sandbox=\"{id}\"");
        assert!(
            value(&text, "bulkhead_memory_usage_bytes", &[&label]).is_some_and(|bytes| bytes > 1e6),
            "{text}"
        );
    }
    let table = node_tool(&["--top", "--rounds", "1"]);
    assert!(
        table.contains(&one.id) && table.contains("running"),
        "{table}"
    );
    let json: serde_json::Value = serde_json::from_str(&node_tool(&["--json"])).expect("JSON");
    let families = json.as_array().expect("families").iter();
    let samples = families.map(|family| family["samples"].as_array().expect("samples").len());
    assert_eq!(samples.sum::<usize>(), lines(&text));
    // A shim that hangs, and one that has died and left its socket.
    let shims = of(Role::Shim, &two.id);
    let pid = nix::unistd::Pid::from_raw(shims[0].pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stop the shim");
    let dead = PathBuf::from("/run/bulkhead/00000000000000ff");
    fs::create_dir_all(&dead).expect("make a folder");
    drop(UnixListener::bind(dead.join("metrics.sock")).expect("bind"));
    let began = Instant::now();
    let text = node_tool(&["--timeout", "500"]);
    let took = began.elapsed();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).expect("go on");
    fs::remove_dir_all(&dead).expect("remove the folder");
    assert!(took < patience(Duration::from_secs(3)), "{took:?}");
    let label = format!("sandbox=\"{}\"", one.id);
    assert!(
        value(&text, "bulkhead_memory_usage_bytes", &[&label]).is_some(),
        "{text}"
    );
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("bulkhead_shim_up{") && line.ends_with(" 0"))
            .count(),
        1,
        "{text}"
    );
    assert!(text.contains("bulkhead_shims_dead 1\n"), "{text}");
    one.remove().await;
    two.remove().await;
}

/// An answer of Prometheus' API: what came of an expression.
fn query(port: u16, expression: &str) -> Option<Vec<serde_json::Value>> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    let encoded: String = expression
        .bytes()
        .map(|byte| format!("%{byte:02X}"))
        .collect();
    let request = format!("GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let json: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    json.pointer("/data/result")?.as_array().cloned()
}

/// A sample as Prometheus has it: its name and its labels, but for those that Prometheus adds, and its value.
fn stored(sample: &serde_json::Value) -> (String, f64) {
    let labels = sample["metric"].as_object().expect("labels");
    let mut labels: Vec<String> = labels
        .iter()
        .filter(|(name, _)| !["instance", "job"].contains(&name.as_str()))
        .map(|(name, value)| format!("{name}={}", value.as_str().expect("a text")))
        .collect();
    labels.sort();
    let value = sample["value"][1].as_str().expect("a value");
    (labels.join(","), value.parse().expect("a number"))
}

/// The samples of an OpenMetrics text in the same words, by another reader.
fn exported(text: &str) -> BTreeMap<String, f64> {
    let script = "import json, sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as f; \
                  print(json.dumps([[dict(s.labels, __name__=s.name), s.value] for m in f(sys.stdin.read()) for s in m.samples]))";
    let json: serde_json::Value =
        serde_json::from_str(&read_by_python(script, text)).expect("JSON");
    let samples = json.as_array().expect("samples").iter();
    samples
        .map(|sample| {
            let labels = sample[0].as_object().expect("labels");
            let mut labels: Vec<String> = labels
                .iter()
                .map(|(name, value)| (name, value.as_str().expect("a text")))
                // An empty label is none to Prometheus.
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            labels.sort();
            (labels.join(","), sample[1].as_f64().expect("a number"))
        })
        .collect()
}

/// What may differ from one look to the next in sandboxes that do nothing.
const MOVING: [&str; 9] = [
    "bulkhead_cpu_",
    "bulkhead_memory_",
    "resident_memory_bytes",
    "bulkhead_container_cpu_",
    "bulkhead_container_memory_",
    "bulkhead_io_",
    "bulkhead_sentry_",
    "kind=host",
    "bulkhead_network_",
];

async fn a_real_prometheus_scrapes_the_node(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let other = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let folder = bed.folder.join("prometheus");
    fs::create_dir_all(&folder).expect("make a folder");
    let config = "global: { scrape_interval: 1s }\nscrape_configs:\n  - job_name: bulkhead\n    static_configs: [{ targets: ['127.0.0.1:9476'] }]\n";
    fs::write(folder.join("config.yml"), config).expect("write");
    let (exporter, _) = server(&["--listen", "127.0.0.1:9476"]);
    let mut prometheus = Command::new("/usr/bin/prometheus")
        .arg(format!(
            "--config.file={}",
            folder.join("config.yml").display()
        ))
        .arg(format!(
            "--storage.tsdb.path={}",
            folder.join("data").display()
        ))
        .arg("--web.listen-address=127.0.0.1:9490")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("run prometheus");
    let mut found = None;
    for _ in 0..150 {
        found = query(9490, "bulkhead_memory_limit_bytes").filter(|found| found.len() == 3);
        if found.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let text = over_tcp("127.0.0.1:9476");
    // The text that Prometheus has scraped since.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let up = query(9490, "up").map(|up| up.iter().map(stored).collect::<Vec<_>>());
    let all = query(9490, "{__name__=~\"bulkhead_.+\"}").expect("all series");
    let mut names: BTreeSet<String> = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        names.extend(line.split(['{', ' ']).next().map(str::to_owned));
    }
    let not_understood: Vec<String> = dashboard()
        .into_iter()
        .chain(alerts())
        .filter(|expression| !is_understood(9490, &names, expression))
        .collect();
    prometheus.kill().expect("kill");
    prometheus.wait().expect("wait");
    end_server(exporter);
    fs::remove_dir_all(folder).expect("remove the folder");
    assert!(found.is_some(), "three sandboxes");
    assert_eq!(up, Some(vec![("__name__=up".to_owned(), 1.0)]));
    let (stored, exported): (BTreeMap<_, _>, _) =
        (all.iter().map(stored).collect(), exported(&text));
    let missing: Vec<_> = exported
        .keys()
        .filter(|name| !stored.contains_key(*name))
        .collect();
    let more: Vec<_> = stored
        .keys()
        .filter(|name| !exported.contains_key(*name))
        .collect();
    assert!(
        missing.is_empty() && more.is_empty(),
        "missing {missing:?}, more {more:?}"
    );
    let still = |name: &str| !MOVING.iter().any(|moving| name.contains(moving));
    let differ: Vec<_> = exported
        .iter()
        .filter(|(name, _)| still(name))
        .filter(|(name, value)| (stored[*name] - *value).abs() > 1e-6 * value.abs())
        .collect();
    assert!(differ.is_empty(), "{differ:?}");
    let compared = exported.keys().filter(|name| still(name)).count();
    assert!(compared > 300, "{compared} of {}", exported.len());
    assert_eq!(not_understood, Vec::<String>::new());
    one.remove().await;
    end(pod).await;
    for container in [container, other] {
        container.remove().await;
    }
}

/// The exporter's own text.
fn over_tcp(address: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect("connect");
    stream
        .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        .expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    body.to_owned()
}

/// What the alert rules ask for.
fn alerts() -> Vec<String> {
    let rules = include_str!("../../../../docs/prometheus/alerts.yml");
    let expressions = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    let expressions: Vec<String> = expressions.map(str::to_owned).collect();
    assert!(expressions.len() > 8 && !expressions.iter().any(|one| one == "|" || one == ">"));
    expressions
}

/// What the dashboard asks for.
fn dashboard() -> Vec<String> {
    let text = include_str!("../../../../docs/prometheus/dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let expressions = targets.map(|target| target["expr"].as_str().expect("an expression"));
    expressions
        .map(|expression| {
            expression
                .replace("$__rate_interval", "1m")
                .replace("$namespace", ".*")
                .replace("$sandbox", ".*")
        })
        .collect()
}

/// Whether Prometheus takes an expression, and every name in it is one that was scraped, or one that is there only for some.
fn is_understood(port: u16, scraped: &BTreeSet<String>, expression: &str) -> bool {
    const FOR_SOME: [&str; 4] = [
        // A network, a device that is counted, a method that was given up.
        "bulkhead_network_receive_bytes_total",
        "bulkhead_network_transmit_bytes_total",
        "bulkhead_io_written_bytes_total",
        "bulkhead_control_fallbacks_total",
    ];
    let mut names = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let known = names.all(|name| {
        !name.starts_with("bulkhead_") || scraped.contains(name) || FOR_SOME.contains(&name)
    });
    known && query(port, expression).is_some()
}

/// A server of the node tool, and what it says of its address.
pub(crate) fn server(args: &[&str]) -> (std::process::Child, String) {
    let mut child = Command::new(tool("bulkhead").expect("bulkhead"))
        .arg("metrics")
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .expect("serve");
    let mut line = String::new();
    let stdout = child.stdout.as_mut().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("read");
    (child, line.trim().to_owned())
}

pub(crate) fn end_server(mut child: std::process::Child) {
    child.kill().expect("kill");
    child.wait().expect("wait");
}

async fn a_server_on_a_unix_socket_keeps_no_capability(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let path = bed.folder.join("metrics.sock");
    let address = format!("unix:{}", path.display());
    let (child, said) = server(&["--listen", &address]);
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("its status");
    let text = scrape(&path);
    let mode = fs::metadata(&path).expect("stat").permissions().mode();
    end_server(child);
    // One that was left is replaced, any other file is not.
    let (second, _) = server(&["--listen", &address]);
    let again = scrape(&path);
    end_server(second);
    fs::remove_file(&path).expect("remove");
    fs::write(&path, "mine").expect("write");
    let refused = Command::new(tool("bulkhead").expect("bulkhead"))
        .args(["metrics", "--listen", &address])
        .output()
        .expect("run");
    assert_eq!((said, mode & 0o777), (address, 0o600));
    for line in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapInh:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let label = format!("sandbox=\"{}\"", container.id);
    for text in [text, again] {
        assert!(
            value(&text, "bulkhead_pids_limit", &[&label]).is_some(),
            "{text}"
        );
    }
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(fs::read_to_string(&path).expect("read"), "mine");
    container.remove().await;
}

async fn over_a_network_only_clients_with_a_certificate_are_served(bed: &Bed) {
    let refused = Command::new(tool("bulkhead").expect("bulkhead"))
        .args(["metrics", "--listen", "0.0.0.0:9477"])
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("--tls-client-ca"),
        "{said}"
    );
    let folder = bed.folder.join(bed.id("tls"));
    let tls = certificates(&folder);
    let (child, said) = tls.server("0.0.0.0:9477");
    let (known, unknown) = (
        tls.ask("https://127.0.0.1:9477/metrics", "known"),
        tls.ask("https://127.0.0.1:9477/metrics", "unknown"),
    );
    end_server(child);
    fs::remove_dir_all(&folder).expect("remove");
    assert_eq!(said, "https://0.0.0.0:9477/metrics");
    let text = String::from_utf8_lossy(&known.stdout).into_owned();
    assert!(
        known.status.success() && text.contains("# EOF"),
        "{known:?}"
    );
    assert!(
        !unknown.status.success() && unknown.stdout.is_empty(),
        "{unknown:?}"
    );
}

/// Certificates of an authority, a server and a client.
pub(crate) struct Certificates(PathBuf);

/// Makes them in a folder.
pub(crate) fn certificates(folder: &Path) -> Certificates {
    fs::create_dir_all(folder).expect("make a folder");
    let script = "set -e; cd \"$0\"
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        for who in server client; do
            openssl req -newkey rsa:2048 -nodes -subj /CN=$who -keyout $who.key -out $who.csr
            printf 'subjectAltName=IP:127.0.0.1\n' >$who.ext
            openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $who.ext -out $who.pem
        done";
    let made = Command::new("sh").args(["-c", script]).arg(folder).output();
    let made = made.expect("run openssl");
    assert!(made.status.success(), "{made:?}");
    Certificates(folder.to_owned())
}

impl Certificates {
    /// A server of the node tool at this address, and what it says of it.
    pub(crate) fn server(&self, address: &str) -> (std::process::Child, String) {
        let file = |name: &str| self.0.join(name).display().to_string();
        server(&[
            "--listen",
            address,
            "--tls-cert",
            &file("server.pem"),
            "--tls-key",
            &file("server.key"),
            "--tls-client-ca",
            &file("ca.pem"),
        ])
    }

    /// Asks as a client with a certificate (`known`), or without.
    pub(crate) fn ask(&self, url: &str, who: &str) -> std::process::Output {
        let client = "import ssl, sys, urllib.request as r
context = ssl.create_default_context(cafile='ca.pem')
if sys.argv[2] == 'known': context.load_cert_chain('client.pem', 'client.key')
print(r.urlopen(sys.argv[1], context=context, timeout=10).read().decode())";
        let mut command = Command::new("/usr/bin/python3");
        let command = command.args(["-c", client, url, who]).current_dir(&self.0);
        command.output().expect("run python3")
    }
}
