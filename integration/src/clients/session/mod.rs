//! A person at a terminal: `ctr` in a real one, or what `kubectl` sends for one.

mod channels;
mod keys;
mod line;
mod person;
mod terminal;

pub use keys::{drops, obeys};
pub use person::Session;
