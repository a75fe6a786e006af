//! What goes in and out of a container: streams, logs, terminals.

pub(crate) mod io;
pub(crate) mod log;
pub(crate) mod session;
pub(crate) mod streams;
pub(crate) mod terminal;

integration::room![io, streams, log, terminal, session];
