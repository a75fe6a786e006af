//! What metrics and Stats do with a sentry that says what it likes: it is the untrusted side.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use integration::bed::Bed;
use integration::cases;
use integration::processes::{Role, eventually, of, resident_kb};
use integration::runtime::Needs;
use serde_json::{Value, json};

use crate::figures::metrics::{independently_read, scrape, socket, value};
use crate::life::pod::{end, member, sandbox};
use crate::trouble::peers::control_socket;
use crate::trouble::relay::trickle;

cases! {
    Needs::Bulkhead => [
        a_sentry_that_hangs_costs_its_limit_once_and_is_asked_again,
        a_sentry_that_has_answered_wrongly_is_asked_again,
        what_a_sentry_makes_up_adds_no_series,
        no_answer_of_any_kind_costs_time_or_memory,
    ],
}

/// Until two scrapes do not get the same answer.
const FRESH: Duration = Duration::from_millis(1100);

/// How a peer in the sentry's place answers one call.
enum Reply {
    Never,
    Whole(String),
    /// A byte now and then.
    Slowly(String),
}

/// Something in the place of a sandbox's control socket; dropped, the real one is back.
struct Peer(PathBuf);

impl Peer {
    /// `reply` is given a method and how many calls there were before.
    fn new(id: &str, reply: impl Fn(&str, u64) -> Reply + Send + Sync + 'static) -> Self {
        let peer = Self::nobody(id);
        let listener = UnixListener::bind(&peer.0).expect("take its place");
        let (reply, count) = (std::sync::Arc::new(reply), AtomicU64::new(0));
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut request = vec![0; 65536];
                let Ok(read @ 1..) = stream.read(&mut request) else {
                    continue;
                };
                let request: Value = serde_json::from_slice(&request[..read]).unwrap_or_default();
                let method = request["method"].as_str().unwrap_or_default();
                match reply(method, count.fetch_add(1, Ordering::Relaxed)) {
                    Reply::Never => held.push(stream),
                    Reply::Whole(text) => drop(stream.write_all(text.as_bytes())),
                    Reply::Slowly(text) => {
                        drop(std::thread::spawn(move || trickle(&mut stream, &text)));
                    }
                }
            }
        });
        peer
    }

    /// No socket at all.
    fn nobody(id: &str) -> Self {
        let socket = control_socket(id);
        fs::rename(&socket, socket.with_extension("aside")).expect("move the socket away");
        Self(socket)
    }

    /// A socket that nobody listens at.
    fn refusing(id: &str) -> Self {
        let peer = Self::nobody(id);
        drop(UnixListener::bind(&peer.0).expect("take its place"));
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = fs::rename(self.0.with_extension("aside"), &self.0);
    }
}

fn up(id: &str) -> Option<f64> {
    value(&scrape(&socket(id)), "bulkhead_sandbox_guest_up", &[])
}

async fn stats_take(bed: &Bed, id: &str) -> Duration {
    let began = Instant::now();
    bed.client().metrics(id).await.expect("Stats");
    began.elapsed()
}

async fn a_sentry_that_hangs_costs_its_limit_once_and_is_asked_again(bed: &Bed) {
    let pod = sandbox(bed).await;
    let one = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let two = member(bed, &pod, "sleep 1000").run().await.expect("run");
    let peer = Peer::new(&pod.id, |_, _| Reply::Never);
    let first = stats_take(bed, &one.id).await;
    // As containerd's CRI asks: for one container after the other.
    let mut others = Vec::new();
    for id in [&two.id, &pod.id, &one.id] {
        others.push(stats_take(bed, id).await);
    }
    assert!(
        (Duration::from_millis(400)..Duration::from_secs(2)).contains(&first),
        "{first:?}"
    );
    // Any one may be late for want of a CPU.
    let quickest = others.iter().min().expect("some");
    assert!(*quickest < Duration::from_millis(50), "{others:?}");
    assert!(
        others.iter().sum::<Duration>() < first,
        "{first:?}, then {others:?}"
    );
    assert_eq!(up(&pod.id), Some(0.0));
    drop(peer);
    eventually("it is asked again", Duration::from_secs(15), || {
        up(&pod.id) == Some(1.0)
    })
    .await;
    for container in [one, two] {
        container.remove().await;
    }
    end(pod).await;
}

async fn a_sentry_that_has_answered_wrongly_is_asked_again(bed: &Bed) {
    let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
    assert_eq!(up(&container.id), Some(1.0));
    tokio::time::sleep(FRESH).await;
    let peer = Peer::new(&container.id, |_, _| {
        Reply::Whole("}{ no such thing\n".into())
    });
    let text = scrape(&socket(&container.id));
    assert_eq!(value(&text, "bulkhead_sandbox_guest_up", &[]), Some(0.0));
    for method in ["Usage.Collect", "Metrics.Export", "containerManager.Event"] {
        let label = format!("method=\"{method}\"");
        assert_eq!(
            value(&text, "bulkhead_control_fallbacks_total", &[&label]),
            Some(1.0),
            "{text}"
        );
    }
    drop(peer);
    eventually("it is asked again", Duration::from_secs(15), || {
        up(&container.id) == Some(1.0)
    })
    .await;
    container.remove().await;
}

/// The names and labels of all samples.
fn series(text: &str) -> BTreeSet<String> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
        .collect()
}

/// Answers that have the right shape, and names and figures that nobody has.
fn invented(method: &str, call: u64) -> Reply {
    let most = u64::MAX;
    let result = match method {
        "containerManager.Event" => {
            let interface =
                |name: String| json!({ "Name": name, "RxBytes": most, "TxDropped": most });
            let mut interfaces: Vec<Value> = ["lo", "eth0", "eth0", "x\"} 1\nfake 2"]
                .map(|name| interface(name.to_owned()))
                .into();
            interfaces.extend((0..20).map(|number| interface(format!("e{call}-{number}"))));
            let data = json!({
                "memory": { "usage": { "usage": most } }, "pids": { "current": most },
                "network_interfaces": interfaces,
            });
            json!({ "event": { "data": data }, "containerUsage": { "nobody": most, format!("c{call}"): 1 } })
        }
        "Usage.Collect" => json!({ "Total": most }),
        "Metrics.Export" => {
            let metric = |name: String| json!({ "metric": { "name": name, "help": "\n# EOF\n" }, "val": { "int": most } });
            let mut data: Vec<Value> = [
                "fs_opens",
                "fs_opens",
                "fs_opens\"} 1\nfake",
                "unimplemented_syscalls",
            ]
            .map(|name| metric(name.to_owned()))
            .into();
            data.extend((0..200).map(|number| metric(format!("foreign_{call}_{number}"))));
            json!({ "snapshot": { "data": data } })
        }
        _ => return Reply::Never,
    };
    Reply::Whole(json!({ "success": true, "err": "", "result": result }).to_string())
}

async fn what_a_sentry_makes_up_adds_no_series(bed: &Bed) {
    let container = bed
        .container(&["sleep", "1000"])
        .policy("", "network = \"sandbox\"\n");
    let container = container.run().await.expect("run");
    let path = socket(&container.id);
    let before = series(&scrape(&path));
    let peer = Peer::new(&container.id, invented);
    let mut texts = Vec::new();
    for _ in 0..3 {
        tokio::time::sleep(FRESH).await;
        texts.push(scrape(&path));
        bed.client().metrics(&container.id).await.expect("Stats");
    }
    drop(peer);
    container.remove().await;
    let mut added = BTreeSet::new();
    for text in &texts {
        let all = series(text);
        assert_eq!(
            independently_read(text),
            all.len(),
            "no series is there twice: {text}"
        );
        assert!(
            !text.contains("foreign") && !text.contains("fake"),
            "{text}"
        );
        assert_eq!(
            value(text, "bulkhead_sandbox_guest_up", &[]),
            Some(1.0),
            "{text}"
        );
        // What the host counts bounds what the sentry says of containers.
        let told = |name: &str| value(text, name, &[]).expect("a value");
        assert!(
            told("bulkhead_container_memory_bytes") <= told("bulkhead_memory_usage_bytes") * 1.1,
            "{text}"
        );
        assert!(
            told("bulkhead_container_cpu_usage_seconds_total") < 1e6,
            "{text}"
        );
        added.extend(all.difference(&before).cloned());
    }
    let is_bounded = |name: &String| name.contains("interface=");
    assert!(added.iter().all(is_bounded), "{added:?}");
    // Six families, each of the seven names that came first (the loopback is the eighth) and one for all later ones.
    assert_eq!(added.len(), 6 * 8, "{added:?}");
    assert_eq!(series(&texts[1]), series(&texts[2]));
}

fn array(length: usize) -> Reply {
    let zeros = vec!["0"; length].join(",");
    Reply::Whole(format!(
        "{{\"success\":true,\"err\":\"\",\"result\":[{zeros}]}}"
    ))
}

async fn no_answer_of_any_kind_costs_time_or_memory(bed: &Bed) {
    type Make = fn(&str) -> Peer;
    let kinds: [(&str, Make); 6] = [
        ("absent", Peer::nobody),
        ("refused", Peer::refusing),
        ("slow", |id| {
            let text = "{\"success\":true,\"err\":\"\",\"result\":{}}";
            Peer::new(id, move |_, _| Reply::Slowly(text.to_owned()))
        }),
        ("nested", |id| {
            let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
            let text = format!("{{\"success\":true,\"result\":{open}{close}}}");
            Peer::new(id, move |_, _| Reply::Whole(text.clone()))
        }),
        ("a long array", |id| {
            Peer::new(id, move |_, _| array(100_000))
        }),
        ("a huge array", |id| {
            Peer::new(id, move |_, _| array(2_000_000))
        }),
    ];
    for (kind, make) in kinds {
        let container = bed.container(&["sleep", "1000"]).run().await.expect("run");
        let path = socket(&container.id);
        scrape(&path);
        bed.client().metrics(&container.id).await.expect("Stats");
        tokio::time::sleep(FRESH).await;
        let shim = of(Role::Shim, &container.id)[0].pid;
        let before = resident_kb(shim).expect("resident memory");
        let peer = make(&container.id);
        for round in 0..3 {
            let began = Instant::now();
            let text = scrape(&path);
            let scraped = began.elapsed();
            let told = stats_take(bed, &container.id).await;
            let limit = Duration::from_secs(3);
            assert!(
                scraped < limit && told < limit,
                "{kind}, {round}: {scraped:?}, {told:?}"
            );
            assert_eq!(
                value(&text, "bulkhead_sandbox_guest_up", &[]),
                Some(0.0),
                "{kind}: {text}"
            );
            let host = value(&text, "bulkhead_memory_usage_bytes", &[]);
            assert!(host.is_some_and(|bytes| bytes > 1e6), "{kind}: {text}");
            tokio::time::sleep(FRESH).await;
        }
        let after = resident_kb(shim).expect("resident memory");
        // Pages of a debug build that were not needed before are among it.
        assert!(
            after < before + 6_000,
            "{kind}: {before} kB, then {after} kB"
        );
        drop(peer);
        container.remove().await;
    }
}
