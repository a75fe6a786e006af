//! Metrics of one sandbox in the OpenMetrics text format, on a unix socket beside its control socket.
//!
//! Pull only: events are counted as they happen, which is an addition each, and everything else is looked at when somebody
//! asks. What Prometheus' scrape asks for is gathered by one task, so that the sandbox is asked at most once a second and
//! never twice at a time, however many scrape.
//!
//! The text is written here and not by a library: the one that there is (`prometheus-client`) does not escape the values
//! of labels, which is the one thing that must not go wrong where a guest may have a say.

mod collect;
mod counters;
mod describe;
mod sentry;
mod server;
mod text;

pub(crate) use collect::Collector;
pub(crate) use counters::{COUNTERS, Operation};
pub(crate) use sentry::Export;
pub(crate) use server::{Serving, serve};
