//! How clients speak to containerd: its API, CRI, `ctr`, FIFOs, and a person at a terminal.

pub mod client;
pub(crate) mod cri;
pub(crate) mod ctr;
pub mod fifo;
pub mod session;
pub mod spec;
