//! Everything that talks to runsc: the command, its log, its state file, and the sandbox's control socket.

mod bounds;
pub(crate) mod command;
pub(crate) mod control;
pub(crate) mod exec;
pub(crate) mod features;
pub(crate) mod log;
pub(crate) mod socket;
mod start;
pub(crate) mod state_file;
pub(crate) mod told;
pub(crate) mod usage;
