//! The sentry's own counters, by an allow-list. Shapes are those of `pkg/prometheus/prometheus.go` and
//! `pkg/sentry/control/metrics.go`; the names are runsc's (`pkg/sentry/fsmetric`, `pkg/sentry/socket/netstack`).
//!
//! The sentry leaves out a counter that is zero, so one that is missing from an answer is zero.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// One counter: runsc's name, ours, and what it counts.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) theirs: &'static str,
    /// Without prefix and `_total`.
    pub(super) ours: &'static str,
    /// Grows only.
    pub(super) is_counter: bool,
    pub(super) help: &'static str,
}

const fn known(
    theirs: &'static str,
    ours: &'static str,
    is_counter: bool,
    help: &'static str,
) -> Known {
    Known {
        theirs,
        ours,
        is_counter,
        help,
    }
}

/// What is asked for, and all that is taken of the answer.
pub(super) const KNOWN: [Known; 13] = [
    known(
        "fs_opens",
        "sentry_fs_opens",
        true,
        "Files opened by the guest.",
    ),
    known("fs_reads", "sentry_fs_reads", true, "Reads by the guest."),
    known(
        "gofer_opens_9p",
        "sentry_gofer_opens_lisafs",
        true,
        "Files opened by way of the gofer.",
    ),
    known(
        "gofer_opens_host",
        "sentry_gofer_opens_host",
        true,
        "Files of the host opened with a descriptor.",
    ),
    known(
        "gofer_reads_9p",
        "sentry_gofer_reads_lisafs",
        true,
        "Reads by way of the gofer.",
    ),
    known(
        "gofer_reads_host",
        "sentry_gofer_reads_host",
        true,
        "Reads of a host descriptor.",
    ),
    known(
        "in_memory_file_opens_w",
        "sentry_memory_file_opens_write",
        true,
        "Files in memory opened to write.",
    ),
    known(
        "in_memory_file_reads",
        "sentry_memory_file_reads",
        true,
        "Reads of files in memory.",
    ),
    known(
        "netstack_tcp_current_established",
        "sentry_tcp_established",
        false,
        "TCP connections that are established.",
    ),
    known(
        "netstack_tcp_current_open",
        "sentry_tcp_open",
        false,
        "TCP endpoints that are open.",
    ),
    known(
        "netstack_tcp_retransmits",
        "sentry_tcp_retransmits",
        true,
        "TCP segments sent again.",
    ),
    known(
        "netstack_tcp_resets_received",
        "sentry_tcp_resets_received",
        true,
        "TCP resets received.",
    ),
    known(
        "netstack_dropped_packets",
        "sentry_network_dropped_packets",
        true,
        "Packets that the network stack dropped.",
    ),
];

/// The one that is summed over its label, a number of a system call.
const UNIMPLEMENTED: &str = "unimplemented_syscalls";

/// What the sentry told.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// By runsc's name.
    pub(super) values: HashMap<String, u64>,
    pub(super) unimplemented_syscalls: u64,
}

#[derive(Debug, Deserialize)]
struct Metric {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Number {
    #[serde(default)]
    int: u64,
}

#[derive(Debug, Deserialize)]
struct Data {
    metric: Metric,
    #[serde(default)]
    val: Option<Number>,
}

#[derive(Debug, Deserialize)]
struct Snapshot {
    #[serde(default)]
    data: Option<Vec<Data>>,
}

/// The answer to `Metrics.Export` (`control.MetricsExportData`).
#[derive(Debug, Deserialize)]
pub(crate) struct Export {
    snapshot: Snapshot,
}

/// The argument: a regular expression of the names wanted, the same each time, since the sentry keeps the last one
/// compiled.
pub(super) fn argument() -> Value {
    let names: Vec<&str> = KNOWN.iter().map(|known| known.theirs).collect();
    json!({ "only_metrics": format!("^({}|{UNIMPLEMENTED})$", names.join("|")) })
}

impl Export {
    /// What of it was asked for.
    pub(super) fn counts(self) -> Counts {
        let mut counts = Counts::default();
        for data in self.snapshot.data.unwrap_or_default() {
            let value = data.val.map_or(0, |val| val.int);
            if data.metric.name == UNIMPLEMENTED {
                counts.unimplemented_syscalls = counts.unimplemented_syscalls.saturating_add(value);
            } else if KNOWN.iter().any(|known| known.theirs == data.metric.name) {
                counts.values.insert(data.metric.name, value);
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_taken() {
        let text = r#"{"snapshot":{"when":"x","data":[
            {"metric":{"name":"fs_opens","type":2,"help":"h"},"val":{"int":8}},
            {"metric":{"name":"fs_opens\"} 1"},"val":{"int":8}},
            {"metric":{"name":"unimplemented_syscalls"},"labels":{"sysno":"334"},"val":{"int":2}},
            {"metric":{"name":"unimplemented_syscalls"},"labels":{"sysno":"7"},"val":{"int":3}},
            {"metric":{"name":"netstack_tcp_current_open"},"val":{}}]}}"#;
        let counts = serde_json::from_str::<Export>(text)
            .expect("export")
            .counts();
        assert_eq!(counts.unimplemented_syscalls, 5);
        assert_eq!(counts.values.len(), 2);
        assert_eq!(counts.values.get("fs_opens"), Some(&8));
    }
}
