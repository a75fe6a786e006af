//! What is on the host: processes, what a test has left behind, and what grows.

pub mod gauge;
pub mod leaks;
pub mod processes;
