//! The one error type of the shim.
//!
//! Every failure that reaches a client names what was attempted, on what, and the rule. Its kind says what a client can do about it;
//! the edge makes a gRPC code of the kind.

use std::fmt;
use std::io;

use runsc_config::{PolicyError, Refusal, RefusalKind};

/// Result of everything that can answer a client.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a request failed, as far as a client acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The request itself is malformed: retrying it unchanged cannot help.
    InvalidArgument,
    /// The task, process or sandbox does not exist (any more).
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The object is in the wrong state, or the node's policy refuses what was asked.
    FailedPrecondition,
    /// The node's policy forbids this caller to ask for it.
    PermissionDenied,
    /// A limit of the sandbox is used up.
    ResourceExhausted,
    /// The other side did not answer in time.
    DeadlineExceeded,
    /// The other side cannot be spoken to at all.
    Unavailable,
    /// Not part of what this shim does.
    Unimplemented,
    /// Everything else.
    Internal,
}

/// A failure.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Error {
    kind: Kind,
    message: String,
    denied: Option<&'static str>,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            denied: None,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(Kind::FailedPrecondition, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// An input or output error, with the act and the thing it was done to.
    pub(crate) fn io(act: impl fmt::Display, error: &io::Error) -> Self {
        Self::internal(format!("{act}: {error}"))
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The control of the policy that refused the request, if one did.
    pub(crate) fn denied(&self) -> Option<&'static str> {
        self.denied
    }

    /// Puts the act that failed in front of the reason.
    pub(crate) fn context(mut self, act: impl fmt::Display) -> Self {
        self.message = format!("{act}: {}", self.message);
        self
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.kind {
            RefusalKind::InvalidArgument => Kind::InvalidArgument,
            RefusalKind::FailedPrecondition => Kind::FailedPrecondition,
            RefusalKind::PermissionDenied => Kind::PermissionDenied,
        };
        Self {
            denied: (kind != Kind::InvalidArgument).then_some(refusal.control),
            ..Self::new(kind, refusal.to_string())
        }
    }
}

impl From<PolicyError> for Error {
    fn from(error: PolicyError) -> Self {
        Self::precondition(error.to_string())
    }
}
