//! One look at a sandbox: the host's figures first, then the sentry's own within its deadline.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::timeout;

use crate::metrics::describe::{self, Facts};
use crate::metrics::sentry::{self, Counts, Export};
use crate::metrics::text::Text;
use crate::runsc::state_file::StateFile;
use crate::runsc::usage::Usage;
use crate::task::container::Container;
use crate::task::pod::Pod;

/// How long the sentry may take for all that it says of containers in one scrape.
const GUEST_LIMIT: Duration = Duration::from_secs(1);

/// A text grows by a few digits from one scrape to the next, in bytes.
const GROWTH: usize = 512;

/// What the sentry said; empty where it did not.
#[derive(Debug, Default)]
pub(super) struct GuestSide {
    /// Whether there is somebody to ask: `runsc.control = "command"` never asks.
    pub(super) is_asked: bool,
    /// Whether it told of every container.
    pub(super) told_all: bool,
    /// By container id.
    pub(super) usage: HashMap<String, Usage>,
    /// Bytes, of the whole sandbox.
    pub(super) memory: Option<u64>,
    pub(super) counts: Option<Counts>,
}

impl GuestSide {
    /// Whether it answered all that it was asked.
    pub(super) fn is_up(&self) -> bool {
        self.told_all && self.memory.is_some() && self.counts.is_some()
    }
}

/// Gathers the metrics of one sandbox.
#[derive(Debug)]
pub(crate) struct Collector {
    pod: Weak<Pod>,
    sandbox: String,
    /// What does not change: looked up by the first scrape.
    facts: Option<Facts>,
    /// By container id.
    gofers: HashMap<String, i32>,
    /// Length of the last text: the next one is not moved while it grows.
    length: usize,
}

impl Collector {
    pub(crate) fn new(pod: &Arc<Pod>, sandbox: &str) -> Self {
        Self {
            pod: Arc::downgrade(pod),
            sandbox: sandbox.to_owned(),
            facts: None,
            gofers: HashMap::new(),
            length: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn empty() -> Self {
        Self {
            pod: Weak::new(),
            sandbox: String::new(),
            facts: None,
            gofers: HashMap::new(),
            length: 0,
        }
    }

    /// The text of one scrape.
    pub(super) async fn collect(&mut self) -> String {
        let Some(pod) = self.pod.upgrade() else {
            return Text::default().finish();
        };
        let mut containers = pod.containers();
        containers.sort_by(|a, b| a.id.cmp(&b.id));
        let root = containers
            .iter()
            .find(|container| container.id == self.sandbox);
        let Some(root) = root.cloned() else {
            // It is being deleted.
            return Text::default().finish();
        };
        let facts = self
            .facts
            .get_or_insert_with(|| Facts::of(&root, &pod.owner.namespace));
        let guest = ask(&root, &containers).await;
        for container in &containers {
            if !self.gofers.contains_key(&container.id)
                && let Some(state) = StateFile::read(root.sandbox().runsc.root(), &container.id)
                && let Some(pid) = state.gofer_pid()
            {
                self.gofers.insert(container.id.clone(), pid);
            }
        }
        self.gofers
            .retain(|id, _| containers.iter().any(|container| container.id == *id));
        let text = describe::text(
            facts,
            &root,
            &containers,
            &guest,
            self.gofers.values().copied(),
            self.length + GROWTH,
        );
        self.length = text.len();
        text
    }
}

/// Asks the sentry three things, none of which waits for another. What it said before the deadline counts.
async fn ask(root: &Arc<Container>, containers: &[Arc<Container>]) -> GuestSide {
    let sandbox = root.sandbox();
    let control = &sandbox.control;
    if !control.tells() {
        return GuestSide::default();
    }
    let mut guest = GuestSide {
        is_asked: true,
        ..GuestSide::default()
    };
    if sandbox.exit.get().is_some() {
        return guest;
    }
    let mut usage = HashMap::new();
    let of_containers = async {
        let mut told_all = true;
        for container in containers {
            if !container.has_processes() {
                continue;
            }
            match control.usage_told(&container.id).await {
                Some(told) => drop(usage.insert(container.id.clone(), told)),
                // It may just have ended.
                None => told_all &= !container.has_processes(),
            }
        }
        told_all
    };
    let argument = sentry::argument();
    let (told_all, memory, export) = tokio::join!(
        timeout(GUEST_LIMIT, of_containers),
        control.guest_memory(),
        control.export::<Export>(&argument),
    );
    guest.told_all = told_all.unwrap_or(false);
    guest.usage = usage;
    guest.memory = memory;
    guest.counts = export.map(Export::counts);
    guest
}
