//! The edge: containerd's messages become plain requests here, and answers, events and failures become messages.

pub(crate) mod clock;
pub(crate) mod convert;
pub(crate) mod events;
pub(crate) mod failure;
pub(crate) mod options;
pub(crate) mod service;
pub(crate) mod stats;
