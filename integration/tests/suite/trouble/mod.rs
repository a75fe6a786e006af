//! What fails, hangs or lies beside a shim, and whom that reaches.

pub(crate) mod control;
pub(crate) mod faults;
pub(crate) mod lies;
pub(crate) mod neighbours;
pub(crate) mod peers;
pub(crate) mod relay;
pub(crate) mod sentry;

integration::room![faults, peers, control, neighbours, lies, sentry];
