//! What the sentry says a container uses, in the shapes of `runsc/boot/events.go`.
//!
//! It is the word of an untrusted peer: names are bounded and printable, figures are judged by those who use them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A sandbox has a loopback and what CNI gave it; more is a sentry that makes names up.
const INTERFACES_MAX: usize = 8;
/// How many are looked at in one answer.
const INTERFACES_READ: usize = 4 * INTERFACES_MAX;
/// What stands for those whose names came too late.
const OTHER: &str = "other";
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
    #[serde(default, deserialize_with = "some_interfaces")]
    network_interfaces: Vec<Interface>,
}

/// gVisor's kernel has no more (`TasksLimit` in `pkg/sentry/kernel/threads.go`).
const TASKS_MAX: u64 = 1 << 16;

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
        let total = data.cpu.usage.total;
        Usage {
            tasks: data.pids.current.min(TASKS_MAX),
            memory: data.memory.usage.usage,
            cpu_nanos: id.map(|id| (id.to_owned(), total)).into_iter().collect(),
            interfaces: data.network_interfaces,
        }
    }
}

/// The names of a sandbox's interfaces, as it said them first: what is later made up adds no series.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<Vec<String>>);

impl Names {
    /// Leaves one interface for each name, the first that is told; those of names that are not known are summed.
    pub(crate) fn settle(&self, interfaces: &mut Vec<Interface>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut settled: Vec<Interface> = Vec::with_capacity(interfaces.len().min(INTERFACES_MAX));
        for mut interface in interfaces.drain(..) {
            if !is_name(&interface.name) {
                continue;
            }
            if !known.contains(&interface.name) {
                if known.len() < INTERFACES_MAX {
                    known.push(interface.name.clone());
                } else {
                    OTHER.clone_into(&mut interface.name);
                }
            }
            match settled
                .iter_mut()
                .find(|there| there.name == interface.name)
            {
                None => settled.push(interface),
                Some(there) if there.name == OTHER => there.add(&interface),
                Some(_) => {}
            }
        }
        *interfaces = settled;
    }
}

impl Interface {
    fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.rx_bytes, other.rx_bytes),
            (&mut self.rx_packets, other.rx_packets),
            (&mut self.rx_errors, other.rx_errors),
            (&mut self.rx_dropped, other.rx_dropped),
            (&mut self.tx_bytes, other.tx_bytes),
            (&mut self.tx_packets, other.tx_packets),
            (&mut self.tx_errors, other.tx_errors),
            (&mut self.tx_dropped, other.tx_dropped),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// Reads the first of a list that may be as long as a reply, or null, and keeps no more than those.
fn some_interfaces<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Interface>, D::Error> {
    struct First;

    impl<'de> Visitor<'de> for First {
        type Value = Vec<Interface>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("network interfaces")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut read = Vec::new();
            while read.len() < INTERFACES_READ {
                match list.next_element()? {
                    Some(interface) => read.push(interface),
                    None => return Ok(read),
                }
            }
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(read)
        }
    }

    from.deserialize_any(First)
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
        let mut usage = serde_json::from_str::<EventOut>(text)
            .expect("event")
            .usage();
        Names::default().settle(&mut usage.interfaces);
        assert_eq!((usage.tasks, usage.memory), (3, 23_003_136));
        assert_eq!(usage.cpu_nanos.get("a"), Some(&20_000_000));
        let names: Vec<_> = usage
            .interfaces
            .iter()
            .map(|i| (i.name.as_str(), i.rx_bytes))
            .collect();
        assert_eq!(names, [("lo", 7)]);
    }

    fn interface(name: &str, rx_bytes: u64) -> Interface {
        Interface {
            name: name.to_owned(),
            rx_bytes,
            ..Interface::default()
        }
    }

    #[test]
    fn names_that_are_made_up_later_are_one() {
        let names = Names::default();
        let settled = |list: &[Interface]| {
            let mut list = list.to_vec();
            names.settle(&mut list);
            let told = list.into_iter().map(|i| (i.name, i.rx_bytes));
            told.collect::<Vec<_>>()
        };
        let twice = [interface("eth0", 5), interface("eth0", 9)];
        assert_eq!(settled(&twice), [("eth0".to_owned(), 5)]);
        for round in 0..100 {
            let list: Vec<Interface> = (0..20)
                .map(|number| interface(&format!("e{round}-{number}"), u64::MAX))
                .collect();
            let told = settled(&list);
            assert!(told.len() <= INTERFACES_MAX, "{told:?}");
            assert_eq!(told.last(), Some(&(OTHER.to_owned(), u64::MAX)));
        }
        assert_eq!(names.0.lock().expect("lock").len(), INTERFACES_MAX);
        assert_eq!(settled(&twice), [("eth0".to_owned(), 5)]);
    }

    #[test]
    fn a_list_that_fills_a_reply_is_not_kept() {
        let list = vec!["{}"; 80_000].join(",");
        let text =
            format!(r#"{{"data":{{"memory":{{}},"pids":{{}},"network_interfaces":[{list}]}}}}"#);
        let event = serde_json::from_str::<Event>(&text).expect("event");
        assert_eq!(event.data.network_interfaces.len(), INTERFACES_READ);
        let null = r#"{"data":{"memory":{},"pids":{},"network_interfaces":null}}"#;
        serde_json::from_str::<Event>(null).expect("event");
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
