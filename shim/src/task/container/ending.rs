//! The reason of an exit, as it is counted.

use std::time::{Duration, Instant};

use crate::sys::reaper::Exit;
use crate::task::container::Container;
use crate::task::process::Exited;

/// What a Go program exits with after a panic.
const PANICKED: Exit = Exit::Code(2);
/// After so much time the sentry has been asked for init's exit, and would have told of one.
const ASKED: Duration = Duration::from_secs(1);

impl Container {
    /// Notes the exit of the sandbox where it was neither asked to end nor had a reason to: it was killed from outside, or
    /// its sentry panicked. `asked` is since when the sentry was waited for to tell init's exit.
    pub(super) fn note_death(&self, exit: Exit, asked: Option<Instant>) {
        if !self.is_root() || self.sandbox.was_ended() || self.sandbox.ran_out_of_memory() {
            return;
        }
        // It exits with init's code as well: then it has told it, or there was no time to.
        let panicked = exit == PANICKED && asked.is_some_and(|asked| asked.elapsed() > ASKED);
        if panicked || matches!(exit, Exit::Signal(_)) {
            tracing::error!(
                id = self.id,
                ?exit,
                "the sandbox has died: was it killed from outside, or did its sentry panic?"
            );
            self.sandbox.note_death();
        }
    }

    /// For `exits_total`.
    pub(super) fn reason(&self, exited: Exited, is_exec: bool) -> &'static str {
        if !is_exec && self.is_root() && self.sandbox.has_died() {
            return "sandbox_died";
        }
        match exited.status {
            0 => "completed",
            137 if self.sandbox.ran_out_of_memory() => "oom",
            _ if exited.by_signal => "signal",
            _ => "error",
        }
    }
}
