//! Metrics of one sandbox in the OpenMetrics text format, on a unix socket beside its control socket.
//!
//! Pull only. The shim counts events as they happen, which is an addition each, and looks at everything else when somebody
//! asks. One task gathers what a scrape of Prometheus asks for. So it asks the sandbox at most once a second and
//! never twice at a time, however many scrape.
//!
//! The shim writes the text itself. The one library for it (`prometheus-client`) does not escape the values
//! of labels, which must not go wrong if a guest may choose a part of them.

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
