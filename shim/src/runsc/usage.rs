//! What the sentry says a container uses, in the shapes of `runsc/boot/events.go`.
//!
//! It is the word of an untrusted peer: names are bounded and printable, figures are judged by those who use them.

use std::collections::HashMap;

use serde::Deserialize;

/// A sandbox has a loopback and what CNI gave it; more is a sentry that makes names up.
const INTERFACES_MAX: usize = 8;
/// `IFNAMSIZ` without its end.
const NAME_MAX: usize = 15;

/// One network interface of the sandbox (`boot.NetworkInterface`); counts are since the sandbox's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_packets: u64,
    pub(crate) rx_errors: u64,
    pub(crate) rx_dropped: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_errors: u64,
    pub(crate) tx_dropped: u64,
}

/// What one container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Tasks (threads).
    pub(crate) tasks: u64,
    /// Bytes of memory. Without a cgroup mount in a container of the sandbox the sentry splits its whole evenly among the
    /// containers of a pod.
    pub(crate) memory: u64,
    /// CPU time of the processes there are, in nanoseconds, by container.
    pub(crate) cpu_nanos: HashMap<String, u64>,
    /// The sandbox's interfaces.
    pub(crate) interfaces: Vec<Interface>,
}

#[derive(Debug, Default, Deserialize)]
struct Number {
    #[serde(default)]
    usage: u64,
}

#[derive(Debug, Default, Deserialize)]
struct Memory {
    #[serde(default)]
    usage: Number,
}

#[derive(Debug, Default, Deserialize)]
struct Pids {
    #[serde(default)]
    current: u64,
}

#[derive(Debug, Default, Deserialize)]
struct CpuUsage {
    #[serde(default)]
    total: u64,
}

#[derive(Debug, Default, Deserialize)]
struct Cpu {
    #[serde(default)]
    usage: CpuUsage,
}

/// `boot.Stats`; cpu is only set in what the command prints.
#[derive(Debug, Deserialize)]
struct Data {
    #[serde(default)]
    cpu: Cpu,
    memory: Memory,
    pids: Pids,
    #[serde(default)]
    network_interfaces: Option<Vec<Interface>>,
}

/// What `runsc events --stats` prints (`boot.Event`).
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    data: Data,
}

/// What `containerManager.Event` answers (`boot.EventOut`).
#[derive(Debug, Deserialize)]
pub(super) struct EventOut {
    event: Event,
    #[serde(default, rename = "containerUsage")]
    container_usage: Option<HashMap<String, u64>>,
}

impl EventOut {
    pub(super) fn usage(self) -> Usage {
        Usage {
            cpu_nanos: self.container_usage.unwrap_or_default(),
            ..self.event.usage_of(None)
        }
    }
}

impl Event {
    /// `id` is the container whose CPU time the event tells.
    pub(super) fn usage_of(self, id: Option<&str>) -> Usage {
        let data = self.data;
        let mut interfaces = data.network_interfaces.unwrap_or_default();
        interfaces.retain(|interface| is_name(&interface.name));
        interfaces.truncate(INTERFACES_MAX);
        let total = data.cpu.usage.total;
        Usage {
            tasks: data.pids.current,
            memory: data.memory.usage.usage,
            cpu_nanos: id.map(|id| (id.to_owned(), total)).into_iter().collect(),
            interfaces,
        }
    }
}

/// Whether Linux would take this name for an interface, and any reader for text.
fn is_name(name: &str) -> bool {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_and_names_of_the_guests_making_are_left_out() {
        let text = r#"{"event":{"type":"stats","id":"a","data":{"cpu":{"usage":{}},
            "memory":{"usage":{"limit":0,"usage":23003136,"failcnt":0}},"pids":{"current":3},
            "network_interfaces":[{"Name":"lo","RxBytes":7},{"Name":"x\"} 1\n"},{"Name":"eth0-but-far-too-long"}]}},
            "containerUsage":{"a":20000000}}"#;
        let usage = serde_json::from_str::<EventOut>(text)
            .expect("event")
            .usage();
        assert_eq!((usage.tasks, usage.memory), (3, 23_003_136));
        assert_eq!(usage.cpu_nanos.get("a"), Some(&20_000_000));
        let names: Vec<_> = usage
            .interfaces
            .iter()
            .map(|i| (i.name.as_str(), i.rx_bytes))
            .collect();
        assert_eq!(names, [("lo", 7)]);
    }

    #[test]
    fn an_event_without_its_figures_is_none() {
        serde_json::from_str::<EventOut>(r#"{"event":{"data":{}}}"#).expect_err("no memory");
        serde_json::from_str::<EventOut>(
            r#"{"event":{"data":{"memory":{"usage":{"usage":-1}},"pids":{}}}}"#,
        )
        .expect_err("negative");
    }
}
