//! What a person looks at: a line for each sandbox, the busiest first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use super::gather::Gathered;
use super::text::Sample;
use crate::text::shorten;

/// Lines on a terminal; a pipe gets all.
const LINES_MAX: usize = 60;

/// One look at all sandboxes.
#[derive(Debug)]
pub(super) struct Rows {
    at: Instant,
    by_sandbox: BTreeMap<(String, String), Row>,
    down: usize,
}

#[derive(Debug, Default)]
struct Row {
    pod: String,
    state: String,
    cpu_seconds: f64,
    throttled_seconds: f64,
    memory: f64,
    memory_limit: f64,
    tasks: f64,
    written: f64,
    received: f64,
    sent: f64,
    kills: f64,
}

impl Rows {
    pub(super) fn of(gathered: &Gathered) -> Self {
        let mut rows = Self {
            at: Instant::now(),
            by_sandbox: BTreeMap::new(),
            down: 0,
        };
        let states = gathered.samples("bulkhead_sandbox_state");
        for sample in states.filter(|sample| sample.number() > 0.0) {
            let pod = [sample.label("pod_namespace"), sample.label("pod")];
            let row = rows.row(&sample);
            row.state = sample.label("state").into_owned();
            if pod.iter().all(|part| !part.is_empty()) {
                row.pod = pod.join("/");
            }
        }
        type Set = fn(&mut Row) -> &mut f64;
        let figures: [(&str, Set); 9] = [
            ("cpu_usage_seconds", |row| &mut row.cpu_seconds),
            ("cpu_throttled_seconds", |row| &mut row.throttled_seconds),
            ("memory_working_set_bytes", |row| &mut row.memory),
            ("memory_limit_bytes", |row| &mut row.memory_limit),
            ("io_written_bytes", |row| &mut row.written),
            ("network_receive_bytes", |row| &mut row.received),
            ("network_transmit_bytes", |row| &mut row.sent),
            ("oom_kills", |row| &mut row.kills),
            ("pids", |row| &mut row.tasks),
        ];
        for (name, figure) in figures {
            for sample in gathered.samples(&format!("bulkhead_{name}")) {
                if sample.label("kind") != "host" {
                    *figure(rows.row(&sample)) += sample.number();
                }
            }
        }
        let shims = gathered.samples("bulkhead_shim_up");
        rows.down = shims.filter(|shim| shim.number() < 1.0).count();
        rows
    }

    fn row(&mut self, sample: &Sample<'_>) -> &mut Row {
        let key = (
            sample.label("namespace").into_owned(),
            sample.label("sandbox").into_owned(),
        );
        self.by_sandbox.entry(key).or_default()
    }

    /// A table with the rates since `before`.
    pub(super) fn shown(&self, before: &Self, is_terminal: bool) -> String {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(0.001);
        let mut rows: Vec<_> = self
            .by_sandbox
            .iter()
            .map(|(key, row)| {
                let old = before.by_sandbox.get(key);
                let rate = |of: fn(&Row) -> f64| {
                    old.map_or(0.0, |old| (of(row) - of(old)).max(0.0) / seconds)
                };
                let cpu = rate(|row| row.cpu_seconds) * 100.0;
                let throttled = rate(|row| row.throttled_seconds) * 100.0;
                let network = rate(|row| row.received + row.sent);
                (key, row, [cpu, throttled, rate(|row| row.written), network])
            })
            .collect();
        rows.sort_by(|a, b| b.2[0].total_cmp(&a.2[0]));
        let mut text = format!(
            "{:<10} {:<20} {:<24} {:<8} {:>6} {:>6} {:>8} {:>8} {:>5} {:>10} {:>10} {:>4}\n",
            "NAMESPACE",
            "SANDBOX",
            "POD",
            "STATE",
            "CPU%",
            "THROT%",
            "MEM",
            "LIMIT",
            "TASKS",
            "WRITTEN/s",
            "NET/s",
            "OOM"
        );
        let most = if is_terminal { LINES_MAX } else { usize::MAX };
        for ((namespace, sandbox), row, [cpu, throttled, written, network]) in
            rows.iter().take(most)
        {
            let _ = writeln!(
                text,
                "{:<10} {:<20} {:<24} {:<8} {:>6.1} {:>6.1} {:>8} {:>8} {:>5} {:>10} {:>10} {:>4}",
                shorten(namespace, 10),
                shorten(sandbox, 20),
                shorten(if row.pod.is_empty() { "-" } else { &row.pod }, 24),
                shorten(&row.state, 8),
                cpu,
                throttled,
                bytes(row.memory),
                bytes(row.memory_limit),
                row.tasks,
                bytes(*written),
                bytes(*network),
                row.kills
            );
        }
        let hidden = rows.len().saturating_sub(most);
        let _ = writeln!(
            text,
            "{} sandboxes{}{}",
            rows.len(),
            if hidden > 0 {
                format!(", {hidden} not shown")
            } else {
                String::new()
            },
            if self.down > 0 {
                format!(", {} shims DOWN", self.down)
            } else {
                String::new()
            }
        );
        text
    }
}

/// In the largest unit that leaves a whole number.
fn bytes(bytes: f64) -> String {
    let units = ["B", "K", "M", "G", "T"];
    let mut rest = bytes;
    for unit in units {
        if rest < 1024.0 {
            return if unit == "B" || rest >= 100.0 {
                format!("{rest:.0}{unit}")
            } else {
                format!("{rest:.1}{unit}")
            };
        }
        rest /= 1024.0;
    }
    format!("{rest:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_unit_that_fits() {
        let told = [0.0, 1023.0, 1536.0, 200.0 * 1024.0 * 1024.0].map(bytes);
        assert_eq!(told, ["0B", "1023B", "1.5K", "200M"]);
    }
}
