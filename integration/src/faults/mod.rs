//! What breaks or hinders a runtime: another `runsc` in its place, programs beside it, busy CPUs.

pub mod busy;
pub mod sidecars;
pub mod wrapper;
