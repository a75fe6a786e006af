//! How long the shim keeps the streams of a process: to the exit, to `Delete`, and for a while after.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How long after the exit of its process an output waits for a client that has not opened its end yet. containerd's clients
/// open theirs beside what else they do (`OpenFifo` in containerd/fifo), so a program that ends at once can be faster.
pub(crate) const HOLD_LIMIT: Duration = Duration::from_secs(10);
/// How long after `Delete` a client may take to read the rest, where that is later.
const REST_LIMIT: Duration = Duration::from_secs(3);

/// Held by the streams of a process until `Delete`.
#[derive(Debug)]
pub(crate) struct Lifetime(watch::Sender<Option<Instant>>);

impl Default for Lifetime {
    fn default() -> Self {
        Self(watch::channel(None).0)
    }
}

impl Lifetime {
    /// The process has exited; the first time counts.
    pub(crate) fn set_exited(&self) {
        self.0.send_if_modified(|exit| {
            let is_first = exit.is_none();
            exit.get_or_insert_with(Instant::now);
            is_first
        });
    }

    pub(crate) fn subscribe(&self) -> Life {
        Life(self.0.subscribe())
    }
}

/// Looks at the life of a process and its streams.
#[derive(Debug, Clone)]
pub(crate) struct Life(watch::Receiver<Option<Instant>>);

impl Life {
    /// When the process exited, if it has.
    pub(crate) fn exit(&self) -> Option<Instant> {
        *self.0.borrow()
    }

    /// Waits for the exit; `None` where the streams are let go of without one.
    pub(crate) async fn exited(&mut self) -> Option<Instant> {
        let exit = self.0.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| *exit)
    }

    /// Returns [`HOLD_LIMIT`] after the exit.
    pub(crate) async fn held_long_enough(&mut self) {
        if let Some(exit) = self.exited().await {
            sleep_until(exit + HOLD_LIMIT).await;
        }
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.0.has_changed().is_err()
    }

    /// Returns at `Delete`.
    pub(crate) async fn deleted(&mut self) {
        while self.0.changed().await.is_ok() {}
    }

    /// Returns once a client has had its time after `Delete` for the rest.
    pub(crate) async fn rest_is_over(&self) {
        if let Some(exit) = self.exit() {
            sleep_until((exit + HOLD_LIMIT).max(Instant::now() + REST_LIMIT)).await;
        }
    }
}

/// The streams that outlive their process and their container. The shim ends after the last of them.
#[derive(Debug)]
pub(crate) struct Holds(watch::Sender<()>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Hold(
    #[allow(dead_code, reason = "it is counted while it is there")] watch::Receiver<()>,
);

impl Default for Holds {
    fn default() -> Self {
        Self(watch::channel(()).0)
    }
}

impl Holds {
    pub(crate) fn hold(&self) -> Hold {
        Hold(self.0.subscribe())
    }

    /// Returns once there is none.
    pub(crate) async fn ended(&self) {
        self.0.closed().await;
    }
}
