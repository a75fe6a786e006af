//! What a request was not given, for the log and the counters: of a create, an exec and an update alike.

use runsc_config::Report;

use crate::metrics::COUNTERS;

/// Tells of every change to a request of the container `id`; `exec` is the exec's id, or empty.
pub(crate) fn tell(id: &str, exec: &str, report: &Report) {
    for change in &report.changes {
        COUNTERS.rewrites.add(&change.control);
        if exec.is_empty() {
            tracing::info!(id, "policy: {change}");
        } else {
            tracing::info!(id, exec, "policy: {change}");
        }
    }
}
