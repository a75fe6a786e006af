//! What a sandbox may use and what it has used: limits, Stats, metrics.

pub(crate) mod cgroup;
pub(crate) mod limits;
pub(crate) mod metrics;
pub(crate) mod scrapers;
pub(crate) mod series;
pub(crate) mod stats;

integration::room![limits, cgroup, stats, metrics, scrapers, series];
