//! What is counted as it happens. A shim serves one sandbox, so it has one set of counters, which each room is handed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use runsc_config::REFUSING;

/// Upper bounds in seconds: a create takes 0.1 to 0.4, a control call a thousandth of that.
pub(crate) const BOUNDS: [f64; 10] = [0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// How many values of one label are told apart: ours are some thirty, and nothing else may add to them.
const VALUES_MAX: usize = 64;

/// What the shim does for containerd and takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Start,
    Exec,
    Delete,
}

impl Operation {
    pub(crate) const ALL: [Self; 4] = [Self::Create, Self::Start, Self::Exec, Self::Delete];
}

/// Bounds with how many were at most that, how many there were, and their sum in nanoseconds.
pub(crate) type Reading = (Vec<(f64, u64)>, u64, u64);

/// How long something took, by upper bound.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Histogram {
    const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BOUNDS.len()],
            count: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
        }
    }

    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            if seconds <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Reading {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let buckets = BOUNDS.into_iter().zip(self.buckets.iter().map(read));
        (buckets.collect(), read(&self.count), read(&self.nanos))
    }
}

/// A counter with one label. The values that are known are there from the start: a rate cannot be told of a series that
/// begins at 1.
#[derive(Debug)]
pub(crate) struct Labelled {
    known: &'static [&'static str],
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Labelled {
    const fn new(known: &'static [&'static str]) -> Self {
        Self {
            known,
            counts: Mutex::new(BTreeMap::new()),
        }
    }

    pub(crate) fn add(&self, value: &str) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(value) {
            *count += 1;
        } else if all.len() < VALUES_MAX {
            all.insert(value.to_owned(), 1);
        } else {
            *all.entry("other".to_owned()).or_default() += 1;
        }
    }

    pub(crate) fn read(&self) -> Vec<(String, u64)> {
        let all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let unseen = self.known.iter().filter(|known| !all.contains_key(**known));
        let unseen = unseen.map(|known| ((*known).to_owned(), 0));
        all.iter()
            .map(|(value, count)| (value.clone(), *count))
            .chain(unseen)
            .collect()
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Counters {
    operations: [Histogram; 4],
    commands: Mutex<BTreeMap<String, Histogram>>,
    pub(crate) command_failures: Labelled,
    pub(crate) fallbacks: Labelled,
    pub(crate) denials: Labelled,
    pub(crate) rewrites: Labelled,
    pub(crate) execs: Labelled,
    pub(crate) exits: Labelled,
    pub(crate) forced_ends: Labelled,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            operations: [const { Histogram::new() }; 4],
            commands: Mutex::new(BTreeMap::new()),
            command_failures: Labelled::new(&[]),
            fallbacks: Labelled::new(&[]),
            denials: Labelled::new(&REFUSING),
            rewrites: Labelled::new(&[]),
            execs: Labelled::new(&["failed", "refused", "started"]),
            exits: Labelled::new(&["completed", "error", "oom", "sandbox_died", "signal"]),
            forced_ends: Labelled::new(&["kill_ignored", "kill_unanswered", "outlived", "silent"]),
        }
    }
}

impl Counters {
    /// Counts an operation that began then, whatever came of it.
    pub(crate) fn operation(&self, operation: Operation, began: Instant) {
        if let Some(histogram) = self.operations.get(operation as usize) {
            histogram.observe(began.elapsed());
        }
    }

    pub(crate) fn read_operation(&self, operation: Operation) -> Option<Reading> {
        self.operations.get(operation as usize).map(Histogram::read)
    }

    /// Counts a runsc command; the names are those that the shim runs.
    pub(crate) fn command(&self, command: &str, began: Instant) {
        let mut all = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(command) && all.len() < VALUES_MAX {
            all.insert(command.to_owned(), Histogram::new());
        }
        if let Some(histogram) = all.get(command) {
            histogram.observe(began.elapsed());
        }
    }

    pub(crate) fn read_commands(&self) -> Vec<(String, Reading)> {
        let all = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|(name, histogram)| (name.clone(), histogram.read()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_by_upper_bound() {
        let histogram = Histogram::new();
        for millis in [1, 30, 200, 90_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let (buckets, count, nanos) = histogram.read();
        let counts: Vec<u64> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1, 1, 2, 2, 3, 3, 3, 3, 3, 3]);
        assert_eq!((count, nanos), (4, 90_231_000_000));
    }

    #[test]
    fn the_values_of_a_label_are_bounded() {
        let labelled = Labelled::new(&[]);
        for number in 0..1000 {
            labelled.add(&number.to_string());
        }
        let all = labelled.read();
        assert_eq!(all.len(), VALUES_MAX + 1);
        assert_eq!(all.iter().map(|(_, count)| count).sum::<u64>(), 1000);
    }

    #[test]
    fn what_is_known_is_there_before_it_happens() {
        let labelled = Labelled::new(&["a", "b"]);
        labelled.add("b");
        labelled.add("c");
        let mut all = labelled.read();
        all.sort();
        let told: Vec<_> = all
            .iter()
            .map(|(value, count)| (value.as_str(), *count))
            .collect();
        assert_eq!(told, [("a", 0), ("b", 1), ("c", 1)]);
    }
}
