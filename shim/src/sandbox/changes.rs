//! What a create, an exec or an update asked for and did not get, for the log and the counters.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use runsc_config::Report;

use crate::sys::counters::Counters;

/// How many changes to the execs of a container are remembered. It bounds their lines as well: what a request names may be new in
/// each.
const REMEMBERED: usize = 256;

/// The changes to the execs of a container that were told. A probe runs the same exec every few seconds, and the first one has said it
/// all.
#[derive(Debug, Default)]
pub(crate) struct Repeats(Mutex<HashSet<String>>);

impl Repeats {
    fn is_new(&self, change: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < REMEMBERED && told.insert(change.to_owned())
    }

    /// Tells of every change to an exec of the container `id`: a new one at INFO, one that was told at DEBUG.
    pub(crate) fn tell(&self, id: &str, exec: &str, report: &Report, counters: &Counters) {
        for change in &report.changes {
            counters.rewrites.add(&change.control);
            let change = change.to_string();
            if self.is_new(&change) {
                tracing::info!(id, exec, "policy: {change}");
            } else {
                tracing::debug!(id, exec, "policy: {change}");
            }
        }
    }
}

/// Tells of every change to a create or an update of the container `id`.
pub(crate) fn tell(id: &str, report: &Report, counters: &Counters) {
    for change in &report.changes {
        counters.rewrites.add(&change.control);
        tracing::info!(id, "policy: {change}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changes_that_are_told_are_bounded() {
        let repeats = Repeats::default();
        assert!(repeats.is_new("a"));
        assert!(!repeats.is_new("a"));
        let told = (0..10 * REMEMBERED).filter(|number| repeats.is_new(&number.to_string()));
        assert_eq!(told.count(), REMEMBERED - 1);
    }
}
