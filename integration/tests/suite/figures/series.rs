//! Every series by its cause, and the table of `docs/metrics.md` by what is scraped.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use integration::bed::{Bed, IMAGE};
use integration::cases;
use integration::container::{Container, overlay};
use integration::policy::NodePolicy;
use integration::processes::{Role, eventually, of};
use integration::runtime::Needs;
use integration::wrapper::Wrapper;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::figures::limits::cgroup_file;
use crate::figures::metrics::{node_tool, scrape, socket, value};
use crate::life::pod::{end, member, pod, sandbox};

cases! {
    Needs::Bulkhead => [
        the_names_are_those_of_the_docs,
        runsc_has_every_counter_that_it_is_asked_for,
        a_network_has_its_series_and_no_network_has_none,
        limits_show_where_they_hold,
        one_container_is_enough_for_a_sandbox_that_is_writable_or_without_a_filter,
        what_the_policy_refuses_and_rewrites_is_counted,
        failures_of_runsc_are_counted,
        a_system_call_that_is_missing_is_counted,
        an_end_is_counted_by_its_reason,
        a_sandbox_that_dies_is_told_from_a_program_that_does,
    ],
}

/// How long the numbers of one look are told.
pub(crate) const FRESH: Duration = Duration::from_millis(1100);

/// A value of a container's sandbox, without the prefix of its name.
fn told(id: &str, name: &str, labels: &[&str]) -> Option<f64> {
    value(&scrape(&socket(id)), &format!("bulkhead_{name}"), labels)
}

/// The rows of the tables in `docs/metrics.md`: names, types with units, labels, and sources.
fn documented() -> Vec<[String; 4]> {
    let text = include_str!("../../../../docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() == 7)
        .map(|cells| [1, 2, 3, 4].map(|at| cells[at].trim_matches('`').to_owned()))
        .collect()
}

/// Families of a text, as the docs name them: the name of a sample, its type, and its unit.
fn families(text: &str) -> BTreeSet<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "TYPE", name, kind] => {
                let suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                let name = name.strip_prefix("bulkhead_").expect("the prefix");
                all.push((format!("{name}{suffix}"), kind.to_owned()));
            }
            ["#", "UNIT", _, unit] => {
                let (_, kind) = all.last_mut().expect("after its type");
                *kind = format!("{kind}, {unit}");
            }
            _ => {}
        }
    }
    all.into_iter().collect()
}

async fn the_names_are_those_of_the_docs(bed: &Bed) {
    let link = Link::new(bed);
    let container = link.container(bed, &["sleep", "1000"]).await;
    let text = scrape(&socket(&container.id)) + &node_tool(&[]);
    container.remove().await;
    drop(link);
    let scraped = families(&text);
    let documented: BTreeSet<(String, String)> = documented()
        .into_iter()
        .map(|[name, kind, ..]| (name, kind.replace(", 1 for the state", "")))
        .collect();
    let unknown: Vec<_> = scraped.difference(&documented).collect();
    assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
    // The kernel may count no device.
    let missing: Vec<_> = documented
        .difference(&scraped)
        .filter(|(name, _)| !name.starts_with("io_"))
        .collect();
    assert!(missing.is_empty(), "only in docs/metrics.md: {missing:?}");
}

async fn runsc_has_every_counter_that_it_is_asked_for(bed: &Bed) {
    let mut command = Command::new(bed.runsc.as_ref().expect("runsc"));
    let output = command.arg("metric-metadata").output().expect("run runsc");
    assert!(output.status.success(), "{output:?}");
    let known = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows = documented();
    let sources = rows.iter().filter_map(|[name, kind, _, source]| {
        let theirs = source.strip_prefix("sentry `")?;
        Some((name, kind, theirs))
    });
    let mut count = 0;
    for (name, kind, theirs) in sources {
        count += 1;
        let named = format!("\"{theirs}\"\n");
        let (_, after) = known
            .split_once(&named)
            .unwrap_or_else(|| panic!("runsc has no {theirs} for {name}"));
        let entry = after.split("metrics:").next().unwrap_or_default();
        assert_eq!(
            entry.contains("cumulative:  true"),
            kind == "counter",
            "{name}: {entry}"
        );
    }
    assert_eq!(count, 14, "{rows:?}");
}

/// A network namespace with one interface, `eth0`.
struct Link(String);

impl Link {
    fn new(bed: &Bed) -> Self {
        let link = Self(bed.id("net"));
        let script = "set -e
            mkdir -p /run/netns
            ip netns add \"$0\"
            ip link add bulkheadtest0 type veth peer name eth0 netns \"$0\"
            ip address add 10.99.0.1/24 dev bulkheadtest0
            ip link set bulkheadtest0 up
            ip -n \"$0\" address add 10.99.0.2/24 dev eth0
            ip -n \"$0\" link set eth0 up
            ip -n \"$0\" link set lo up";
        let made = Command::new("sh").args(["-c", script, &link.0]).output();
        let made = made.expect("run ip");
        assert!(made.status.success(), "{made:?}");
        link
    }

    async fn container<'a>(&self, bed: &'a Bed, args: &[&str]) -> Container<'a> {
        let path = PathBuf::from("/run/netns").join(&self.0);
        let container = bed
            .container(args)
            .policy("", "network = \"sandbox\"\n")
            .with(|spec| {
                let namespaces = spec["linux"]["namespaces"]
                    .as_array_mut()
                    .expect("namespaces");
                namespaces.retain(|namespace| namespace["type"] != "network");
                namespaces.push(json!({ "type": "network", "path": path }));
            });
        container.run().await.expect("run")
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
        let _ = Command::new("ip")
            .args(["link", "del", "bulkheadtest0"])
            .output();
        // ip makes a mount of the folder.
        let _ = umount2("/run/netns", MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir("/run/netns");
    }
}

async fn a_network_has_its_series_and_no_network_has_none(bed: &Bed) {
    let link = Link::new(bed);
    // A server that answers one connection.
    let container = link
        .container(
            bed,
            &["sh", "-c", "echo hello | nc -l -p 7000; exec sleep 1000"],
        )
        .await;
    let alone = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let mut answer = String::new();
    for _ in 0..100 {
        if let Ok(mut stream) = std::net::TcpStream::connect(("10.99.0.2", 7000)) {
            let limit = Some(Duration::from_secs(5));
            stream.set_read_timeout(limit).expect("a limit");
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = std::io::Read::read_to_string(&mut stream, &mut answer);
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(FRESH).await;
    let text = scrape(&socket(&container.id));
    let none = scrape(&socket(&alone.id));
    for container in [container, alone] {
        container.remove().await;
    }
    drop(link);
    assert_eq!(answer, "hello\n", "{text}");
    for (direction, least) in [("receive", 100.0), ("transmit", 100.0)] {
        let of = |what: &str| {
            let name = format!("bulkhead_network_{direction}_{what}_total");
            value(&text, &name, &["interface=\"eth0\""])
        };
        assert!(of("bytes").is_some_and(|bytes| bytes >= least), "{text}");
        assert!(
            of("packets").is_some_and(|packets| packets >= 3.0),
            "{text}"
        );
        assert_eq!(of("drops"), Some(0.0), "{text}");
    }
    assert!(!text.contains("interface=\"lo\""), "{text}");
    assert!(!none.contains("bulkhead_network_"), "{none}");
}

async fn limits_show_where_they_hold(bed: &Bed) {
    let policy = "[limits]\ncpus = 0.2\noutput_mib_per_second = 1\n";
    let script = "dd if=/dev/zero bs=1M count=4 2>/dev/null; while :; do :; done";
    let container = bed
        .shell(script)
        .policy("", policy)
        .run()
        .await
        .expect("run");
    // Somebody has to read it.
    eventually("it is throttled", Duration::from_secs(30), || {
        let text = scrape(&socket(&container.id));
        let above =
            |name: &str, least: f64| value(&text, name, &[]).is_some_and(|value| value >= least);
        above("bulkhead_cpu_throttled_seconds_total", 0.1)
            && above("bulkhead_cpu_throttled_periods_total", 2.0)
            && above("bulkhead_log_throttled_seconds_total", 1.0)
            && above("bulkhead_log_bytes_total", 2_097_152.0)
    })
    .await;
    container.remove().await;
}

async fn one_container_is_enough_for_a_sandbox_that_is_writable_or_without_a_filter(bed: &Bed) {
    let _policy =
        NodePolicy::set("allow_unconfined = true\nrootfs = { writable = true, size_mib = 16 }");
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
    let with_profile = |spec: &mut Value| spec["linux"]["seccomp"] = profile.clone();
    let pod = pod(bed).with(with_profile).run().await.expect("run");
    let info = |labels: &[&str]| told(&pod.id, "sandbox_info", labels) == Some(1.0);
    let strict = ["rootfs=\"read-only\"", "seccomp=\"enforced\""];
    assert!(info(&strict), "{}", scrape(&socket(&pod.id)));
    let layer = overlay(Path::new(IMAGE), &bed.folder.join(bed.id("layer")));
    let open = member(bed, &pod, "sleep 1000").rootfs(layer).with(|spec| {
        spec["root"]["readonly"] = false.into();
        spec["linux"]["seccomp"] = Value::Null;
    });
    let open = open.run().await.expect("run");
    tokio::time::sleep(FRESH).await;
    let loose = ["rootfs=\"writable\"", "seccomp=\"off\""];
    assert!(info(&loose), "{}", scrape(&socket(&pod.id)));
    open.kill(9).await.expect("kill");
    open.wait().await.expect("wait");
    open.delete().await.expect("delete");
    tokio::time::sleep(FRESH).await;
    assert!(info(&strict), "{}", scrape(&socket(&pod.id)));
    end(pod).await;
}

async fn what_the_policy_refuses_and_rewrites_is_counted(bed: &Bed) {
    let container = bed
        .container(&["sleep", "1000"])
        .policy("", "run_as_non_root = true\n")
        .with(|spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            let caps = json!(["CAP_NET_ADMIN"]);
            spec["process"]["capabilities"] =
                json!({ "bounding": caps, "effective": caps, "permitted": caps });
        });
    let container = container.run().await.expect("run");
    let id = &container.id;
    assert_eq!(
        told(id, "policy_denials_total", &["control=\"user\""]),
        Some(0.0),
        "there before it happens"
    );
    let text = scrape(&socket(id));
    let rewritten = value(
        &text,
        "bulkhead_policy_rewrites_total",
        &["control=\"capabilities\""],
    );
    assert!(rewritten.is_some_and(|count| count >= 1.0), "{text}");
    let root = container.exec("root", &["true"]).with(|process| {
        process["user"] = json!({ "uid": 0, "gid": 0 });
    });
    root.add().await.map(drop).expect_err("root is refused");
    tokio::time::sleep(FRESH).await;
    assert_eq!(
        told(id, "policy_denials_total", &["control=\"user\""]),
        Some(1.0)
    );
    assert_eq!(told(id, "execs_total", &["outcome=\"refused\""]), Some(1.0));
    assert_eq!(told(id, "execs_total", &["outcome=\"failed\""]), Some(0.0));
    container.remove().await;
}

async fn failures_of_runsc_are_counted(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000")
        .create()
        .await
        .expect("create");
    let wrapper = Wrapper::at(bed, "start", "log broken; exit 1");
    one.start().await.map(drop).expect_err("broken");
    drop(wrapper);
    let text = scrape(&socket(&pod.id));
    let start = ["command=\"start\""];
    let failures = value(&text, "bulkhead_runsc_command_failures_total", &start);
    assert_eq!(failures, Some(1.0), "{text}");
    // The sandbox itself was started by its control socket.
    let took = value(
        &text,
        "bulkhead_runsc_command_duration_seconds_count",
        &start,
    );
    assert_eq!(took, Some(1.0), "{text}");
    one.remove().await;
    end(pod).await;
}

async fn a_system_call_that_is_missing_is_counted(bed: &Bed) {
    let python = bed.image("python");
    let mount = containerd_client::types::Mount {
        r#type: "bind".into(),
        source: python.display().to_string(),
        target: String::new(),
        options: vec!["rbind".into(), "ro".into()],
    };
    // PR_GET_TIMING, which gVisor knows of and does not have.
    let script = "import ctypes, time; ctypes.CDLL(None).prctl(13, 0, 0, 0, 0); time.sleep(1000)";
    let container = bed
        .container(&["/usr/bin/python3", "-c", script])
        .rootfs(mount);
    let container = container.run().await.expect("run");
    eventually("it is counted", Duration::from_secs(30), || {
        told(&container.id, "unimplemented_syscalls_total", &[]).is_some_and(|count| count >= 1.0)
    })
    .await;
    container.remove().await;
    bed.ctr_ok(&["image", "unmount", "--rm", &python.display().to_string()]);
}

async fn an_end_is_counted_by_its_reason(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    let id = &container.id;
    for reason in ["completed", "error", "oom", "sandbox_died", "signal"] {
        let label = format!("reason=\"{reason}\"");
        assert_eq!(told(id, "exits_total", &[&label]), Some(0.0), "{reason}");
    }
    for (name, script, status) in [
        ("fine", "exit 0", 0),
        ("wrong", "exit 3", 3),
        // Its own code, though it looks like a signal's.
        ("odd", "exit 143", 143),
        ("killed", "kill -9 $$", 137),
    ] {
        let ended = container.exec(name, &["sh", "-c", script]).finish().await;
        assert_eq!(ended.status, status, "{name}");
    }
    tokio::time::sleep(FRESH).await;
    for (reason, count) in [
        ("completed", 1.0),
        ("error", 2.0),
        ("signal", 1.0),
        ("oom", 0.0),
    ] {
        let label = format!("reason=\"{reason}\"");
        assert_eq!(told(id, "exits_total", &[&label]), Some(count), "{reason}");
    }
    assert_eq!(told(id, "execs_total", &["outcome=\"started\""]), Some(4.0));
    container.remove().await;
    // Memory that runs out ends the sandbox, which is no death of its own.
    let eater = bed
        .shell("sleep 1; exec dd if=/dev/zero of=/dev/null bs=300M count=1")
        .with(|spec| spec["linux"]["resources"]["memory"] = json!({ "limit": 128 << 20 }));
    let eater = eater.run().await.expect("run");
    assert_eq!(eater.wait().await.expect("wait").status, 137);
    let text = scrape(&socket_of_ended(&eater.id));
    let counted = |reason: &str| {
        value(
            &text,
            "bulkhead_exits_total",
            &[&format!("reason=\"{reason}\"")],
        )
    };
    assert_eq!(
        (counted("oom"), counted("sandbox_died")),
        (Some(1.0), Some(0.0)),
        "{text}"
    );
    let kills = value(&text, "bulkhead_oom_kills_total", &[]);
    assert!(kills.is_some_and(|kills| kills >= 1.0), "{text}");
    eater.delete().await.expect("delete");
}

/// The metrics socket of a sandbox that may be gone, with its control socket.
fn socket_of_ended(id: &str) -> PathBuf {
    let folders = std::fs::read_dir("/run/bulkhead").expect("read the folder");
    let record = |folder: &PathBuf| {
        std::fs::read_to_string(folder.join("bulkhead.json")).unwrap_or_default()
    };
    let mut own = folders
        .flatten()
        .map(|entry| entry.path())
        .filter(|folder| record(folder).contains(&format!("\"{id}\"")));
    own.next().expect("its folder").join("metrics.sock")
}

/// How a sandbox ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    /// The sentry panics where it gets no thread of the host.
    Panics,
    /// Its program is killed, which is its client's will.
    Asked,
}

async fn a_sandbox_that_dies_is_told_from_a_program_that_does(bed: &Bed) {
    const FORKS: &str = "while ! [ -e /tmp/go ]; do sleep 0.1; done; \
                         i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done; wait";
    for how in [End::Killed, End::Panics, End::Asked] {
        let container = bed.shell(FORKS).run().await.expect("run");
        tokio::time::sleep(FRESH).await;
        match how {
            End::Killed => {
                let sentry = of(Role::Sandbox, &container.id)[0].pid;
                kill(Pid::from_raw(sentry), Signal::SIGKILL).expect("kill the sentry");
            }
            End::Panics => {
                let limit = cgroup_file(&container.id, "pids/pids.max", "pids.max");
                let count = limit.with_file_name("pids.current");
                let go = container.exec("go", &["touch", "/tmp/go"]);
                let tasks = std::fs::read_to_string(count).expect("tasks");
                let tasks: u64 = tasks.trim().parse().expect("a number");
                std::fs::write(limit, (tasks + 8).to_string()).expect("limit it");
                let _ = go.run().await;
            }
            End::Asked => container.kill(9).await.expect("kill"),
        }
        container.wait().await.expect("wait");
        let text = scrape(&socket_of_ended(&container.id));
        let counted = |reason: &str| {
            let label = format!("reason=\"{reason}\"");
            value(&text, "bulkhead_exits_total", &[&label]).expect("a count")
        };
        let died = if how == End::Asked { 0.0 } else { 1.0 };
        assert!(
            (counted("sandbox_died") - died).abs() < 0.1,
            "{how:?}: {text}"
        );
        if how == End::Asked {
            assert!((counted("signal") - 1.0).abs() < 0.1, "{text}");
        }
        container.delete().await.expect("delete");
    }
}
