//! What was changed or refused, by which rule, and what would allow it.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One difference between what was asked and what is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The control: `network`, `capabilities`, `rootfs`, …
    pub control: Cow<'static, str>,
    /// What was asked for.
    pub asked: String,
    /// What the sandbox gets.
    pub given: String,
    /// The policy key that decides it; empty where no key does.
    pub key: Cow<'static, str>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: asked {}, given {}",
            self.control, self.asked, self.given
        )?;
        if self.key.is_empty() {
            Ok(())
        } else {
            write!(f, " (policy key {})", self.key)
        }
    }
}

/// Every change to one request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order of the rules.
    pub changes: Vec<Change>,
}

impl Report {
    pub(crate) fn note(
        &mut self,
        control: &'static str,
        asked: impl fmt::Display,
        given: impl fmt::Display,
        key: &'static str,
    ) {
        self.changes.push(Change {
            control: control.into(),
            asked: asked.to_string(),
            given: given.to_string(),
            key: key.into(),
        });
    }
}

/// Every control that may refuse a request that is well formed.
pub const REFUSING: [&str; 16] = [
    "binds",
    "devices",
    "hooks",
    "memory",
    "mounts",
    "namespaces",
    "network",
    "pids",
    "policy",
    "rootfs",
    "runsc",
    "scratch",
    "seccomp",
    "sysctls",
    "user",
    "user_namespace",
];

/// What kind of no it is; containerd's clients tell them apart by the gRPC code of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request is malformed: no policy would help.
    InvalidArgument,
    /// The node cannot give it, or not safely.
    FailedPrecondition,
    /// The node's policy forbids it.
    PermissionDenied,
}

/// A request that is not granted, in one sentence: what was asked, the rule, what would allow it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind of no it is.
    pub kind: RefusalKind,
    /// The control that refused, for counting.
    pub control: &'static str,
    message: String,
}

impl Refusal {
    pub(crate) fn invalid(field: impl fmt::Display, problem: impl fmt::Display) -> Self {
        let message = format!("{field}: {problem}");
        Self {
            kind: RefusalKind::InvalidArgument,
            control: "spec",
            message,
        }
    }

    /// `key` is the policy key that would allow it; `None` where nothing does.
    pub(crate) fn denied(
        control: &'static str,
        asked: impl fmt::Display,
        rule: impl fmt::Display,
        key: Option<&str>,
    ) -> Self {
        debug_assert!(REFUSING.contains(&control), "{control} is missing there");
        let message = match key {
            Some(key) => format!("{asked}: {rule}; policy key {key} would allow it"),
            None => format!("{asked}: {rule}; no policy key allows it"),
        };
        Self {
            kind: RefusalKind::PermissionDenied,
            control,
            message,
        }
    }

    pub(crate) fn unenforceable(
        control: &'static str,
        asked: impl fmt::Display,
        reason: impl fmt::Display,
    ) -> Self {
        debug_assert!(REFUSING.contains(&control), "{control} is missing there");
        let message = format!("{asked}: {reason}");
        Self {
            kind: RefusalKind::FailedPrecondition,
            control,
            message,
        }
    }
}
