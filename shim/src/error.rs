//! The one error type of the shim, and its gRPC code.
//!
//! Every failure that reaches a client names what was attempted, on what, and the rule. The code is the one
//! that containerd's own error helpers (`errdefs`) look for: a client tells "already gone" from "broken" by it.

use std::fmt;
use std::io;

use crate::metrics::COUNTERS;
use containerd_shim_protos::ttrpc;
use runsc_config::{PolicyError, Refusal, RefusalKind, printable};

/// Result of everything that can answer a client.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a request failed, as one of the gRPC codes that containerd's clients tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
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

/// A failure with the code it is answered with.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Error {
    code: Code,
    message: String,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// An input or output error, with the act and the thing it was done to.
    pub(crate) fn io(act: impl fmt::Display, error: &io::Error) -> Self {
        Self::internal(format!("{act}: {error}"))
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// Puts the act that failed in front of the reason.
    pub(crate) fn context(mut self, act: impl fmt::Display) -> Self {
        self.message = format!("{act}: {}", self.message);
        self
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.kind {
            RefusalKind::InvalidArgument => Code::InvalidArgument,
            RefusalKind::FailedPrecondition => Code::FailedPrecondition,
            RefusalKind::PermissionDenied => Code::PermissionDenied,
        };
        if code != Code::InvalidArgument {
            COUNTERS.denials.add(refusal.control);
        }
        Self::new(code, refusal.to_string())
    }
}

impl From<PolicyError> for Error {
    fn from(error: PolicyError) -> Self {
        Self::precondition(error.to_string())
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let code = match error.code {
            Code::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
            Code::NotFound => ttrpc::Code::NOT_FOUND,
            Code::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
            Code::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
            Code::PermissionDenied => ttrpc::Code::PERMISSION_DENIED,
            Code::ResourceExhausted => ttrpc::Code::RESOURCE_EXHAUSTED,
            Code::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
            Code::Unavailable => ttrpc::Code::UNAVAILABLE,
            Code::Unimplemented => ttrpc::Code::UNIMPLEMENTED,
            Code::Internal => ttrpc::Code::INTERNAL,
        };
        // containerd's clients print it as it is.
        let message = printable(&error.message);
        Self::RpcStatus(ttrpc::get_status(code, message))
    }
}
