//! What came of a program: its own words, and what was seen from outside.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// One attempt.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) got: bool,
    pub(crate) how: String,
    /// Why it gets nothing on runc, where it does not.
    pub(crate) runc: String,
}

/// What one program did in one container.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) attempts: BTreeMap<String, Attempt>,
    /// Work of the twin that did not go well.
    pub(crate) failed: Vec<String>,
    /// Pieces of such work.
    pub(crate) work: usize,
    /// Ways on which the host heard of it.
    pub(crate) heard: BTreeSet<String>,
    /// All it printed.
    pub(crate) text: String,
}

impl Outcome {
    pub(crate) fn read(text: String, heard: BTreeSet<String>) -> Self {
        let mut outcome = Self {
            heard,
            ..Self::default()
        };
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for line in lines {
            let said = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            if line["probe"].is_string() {
                let attempt = Attempt {
                    got: line["got"] == true,
                    how: said("how"),
                    runc: said("runc"),
                };
                outcome.attempts.insert(said("probe"), attempt);
            } else if line["twin"].is_string() {
                outcome.work += 1;
                if line["done"] != true {
                    outcome
                        .failed
                        .push(format!("{}: {}", said("twin"), said("how")));
                }
            }
        }
        // What claims to have sent something counts if it was heard.
        for attempt in outcome.attempts.values_mut() {
            if WAYS.contains(&attempt.how.as_str()) {
                attempt.got = outcome.heard.contains(&attempt.how);
            }
        }
        outcome.text = text;
        outcome
    }

    /// The attempts that got something.
    pub(crate) fn broken(&self) -> Vec<String> {
        let broken = self.attempts.iter().filter(|(_, attempt)| attempt.got);
        broken
            .map(|(name, attempt)| format!("{name}: {}", attempt.how))
            .collect()
    }
}

/// What a program calls its ways out.
const WAYS: [&str; 10] = [
    "tcp4", "udp4", "tcp6", "udp6", "metadata", "raw", "packet", "arp", "dns", "seed",
];
