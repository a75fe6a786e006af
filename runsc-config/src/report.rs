//! What was changed or refused, by which rule, and what would allow it.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::printable;

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
            asked: one_line(asked),
            given: one_line(given),
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
        let message = one_line(format_args!("{field}: {problem}"));
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
            Some(key) => one_line(format_args!(
                "{asked}: {rule}; policy key {key} would allow it"
            )),
            None => one_line(format_args!("{asked}: {rule}; no policy key allows it")),
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
        let message = one_line(format_args!("{asked}: {reason}"));
        Self {
            kind: RefusalKind::FailedPrecondition,
            control,
            message,
        }
    }
}

/// Nothing that was asked for begins a line of its own, in a log or on a terminal.
fn one_line(text: impl fmt::Display) -> String {
    printable(&text.to_string()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_begins_no_line_of_its_own() {
        let asked = "CAP_X\nlevel=error msg=\"forged\"\r\u{1b}[2J\u{85}ü";
        let mut report = Report::default();
        report.note("capabilities", asked, asked, "");
        let told = report.changes[0].to_string();
        let refusals = [
            Refusal::invalid(asked, asked),
            Refusal::denied("user", asked, asked, Some("x")),
            Refusal::denied("user", asked, asked, None),
            Refusal::unenforceable("user", asked, asked),
        ];
        let all = refusals.iter().map(ToString::to_string).chain([told]);
        for text in all {
            assert!(!text.contains(char::is_control), "{text:?}");
            let kept = r#"CAP_X\nlevel=error msg="forged"\r\u{1b}[2J\u{85}ü"#;
            assert_eq!(text.matches(kept).count(), 2, "{text}");
        }
    }
}
