//! Metrics of one sandbox in the OpenMetrics text format, on a unix socket beside its control socket.
//!
//! Pull only. The shim counts events as they happen, which is an addition each, and looks at everything else when somebody
//! asks. One task gathers what a scrape of Prometheus asks for. So it asks the sandbox at most once a second and
//! never twice at a time, however many scrape.
//!
//! The shim writes the text itself. The one library for it (`prometheus-client`) does not escape the values
//! of labels, which must not go wrong if a guest may choose a part of them.

mod collect;
mod describe;
mod sentry;
mod server;
mod text;

use std::sync::Arc;

use crate::task::container::Container;
use crate::task::pod::Pod;

/// Lets the sandbox be looked at that this container has come with, for as long as the sandbox is known. One that nobody can look at
/// runs all the same.
pub(crate) fn serve(pod: &Arc<Pod>, container: &Container) {
    let sandbox = container.sandbox();
    if container.id != sandbox.id {
        return;
    }
    match server::serve(
        sandbox.runsc.root(),
        collect::Collector::new(pod, &container.id),
    ) {
        Ok(serving) => sandbox.keep(serving),
        Err(error) => tracing::warn!(%error, id = sandbox.id, "no metrics of this sandbox"),
    }
}
