//! One look at a sandbox: the host's figures first, then what the sentry says of itself within its deadline.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::timeout;

use crate::container::Container;
use crate::metrics::describe::{self, Facts};
use crate::metrics::sentry::{self, Counts};
use crate::metrics::text::Text;
use crate::pod::Pod;
use crate::runsc::state_file::StateFile;
use crate::runsc::usage::Usage;

/// How long the sentry may take for all of its answers to one scrape.
const GUEST_LIMIT: Duration = Duration::from_secs(1);

/// What the sentry said; empty where it did not.
#[derive(Debug, Default)]
pub(super) struct GuestSide {
    /// Whether it answered all that it was asked.
    pub(super) is_up: bool,
    /// By container id.
    pub(super) usage: HashMap<String, Usage>,
    /// Bytes, of the whole sandbox.
    pub(super) memory: Option<u64>,
    pub(super) counts: Option<Counts>,
}

/// Gathers the metrics of one sandbox.
#[derive(Debug)]
pub(crate) struct Collector {
    pod: Weak<Pod>,
    sandbox: String,
    /// What does not change: looked up by the first scrape.
    facts: Option<Facts>,
    gofers: HashMap<String, i32>,
}

impl Collector {
    pub(crate) fn new(pod: &Arc<Pod>, sandbox: &str) -> Self {
        Self {
            pod: Arc::downgrade(pod),
            sandbox: sandbox.to_owned(),
            facts: None,
            gofers: HashMap::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn empty() -> Self {
        Self {
            pod: Weak::new(),
            sandbox: String::new(),
            facts: None,
            gofers: HashMap::new(),
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
        describe::text(
            facts,
            &root,
            &containers,
            &guest,
            self.gofers.values().copied(),
        )
    }
}

/// Asks the sentry, within one deadline for all. What it said before the deadline counts.
async fn ask(root: &Arc<Container>, containers: &[Arc<Container>]) -> GuestSide {
    let mut guest = GuestSide::default();
    let sandbox = root.sandbox();
    if sandbox.exit.get().is_some() {
        return guest;
    }
    let control = &sandbox.control;
    let asked = async {
        guest.memory = control.guest_memory(GUEST_LIMIT).await;
        guest.memory?;
        let export = control.export(&sentry::argument(), GUEST_LIMIT).await?;
        guest.counts = Some(export.counts());
        for container in containers
            .iter()
            .filter(|container| container.has_processes())
        {
            let usage = control.usage_told(&container.id, GUEST_LIMIT).await?;
            guest.usage.insert(container.id.clone(), usage);
        }
        Some(())
    };
    let is_up = matches!(timeout(GUEST_LIMIT, asked).await, Ok(Some(())));
    GuestSide { is_up, ..guest }
}
