//! Failures as containerd's clients read them. The gRPC code is chosen here alone.

use containerd_shim_protos::ttrpc::{self, Code};
use runsc_config::printable;

use crate::error::{Error, Kind};

/// The answer to a request that failed. The code is the one that containerd's own error helpers (`errdefs`) look for: a client tells
/// "already gone" from "broken" by it.
pub(crate) fn reply(error: &Error) -> ttrpc::Error {
    let code = match error.kind() {
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::PermissionDenied => Code::PERMISSION_DENIED,
        Kind::ResourceExhausted => Code::RESOURCE_EXHAUSTED,
        Kind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        Kind::Unavailable => Code::UNAVAILABLE,
        Kind::Unimplemented => Code::UNIMPLEMENTED,
        Kind::Internal => Code::INTERNAL,
    };
    // containerd's clients print it as it is.
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, printable(&error.to_string())))
}
