//! The signals of a terminal: keys, and changes of its size, for the group in front in the sandbox.

use std::sync::Arc;

use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use super::STARTING_GRACE;
use crate::error::{Kind, Result};
use crate::io::Raised;
use crate::runsc::control::Target;
use crate::task::container::Container;
use crate::task::process::{Phase, Process};

impl Container {
    /// Delivers what the terminal of a process raises, if it has one, for as long as the process lives.
    pub(super) fn obey_terminal(self: &Arc<Self>, process: &Arc<Process>) {
        if let Some(raised) = process.take_raised() {
            tokio::spawn(Arc::clone(self).deliver(Arc::clone(process), raised));
        }
    }

    async fn deliver(self: Arc<Self>, process: Arc<Process>, mut raised: mpsc::Receiver<Raised>) {
        loop {
            let raised = tokio::select! {
                _ = process.wait() => return,
                raised = raised.recv() => raised,
            };
            let Some(raised) = raised else { return };
            match self.signal_foreground(&process, raised.signal).await {
                Err(error) if error.kind() != Kind::NotFound => {
                    let (id, exec) = (&self.id, &process.exec_id);
                    tracing::warn!(%error, id, exec, "a terminal's signal was not delivered");
                }
                _ => {}
            }
        }
    }

    async fn signal_foreground(&self, process: &Process, signal: i32) -> Result<()> {
        // There is no program yet that could take it.
        if process.phase() == Phase::Created {
            return Ok(());
        }
        let pid = if process.exec_id.is_empty() {
            None
        } else {
            Some(process.guest_pid(STARTING_GRACE).await?)
        };
        // A `runsc exec` that stays hands on what it is sent, and to the group in front (`Container.ForwardSignals`).
        if let Some(keeper) = process.keeper()
            && let Ok(signal) = Signal::try_from(signal)
            && keeper.get().is_none()
        {
            keeper.signal(signal);
            return Ok(());
        }
        self.signal(process, Target::Foreground(pid), signal).await
    }
}
