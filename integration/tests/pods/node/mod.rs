//! What a node holds pods to, and what becomes of them when it breaks or changes.

pub(crate) mod faults;
pub(crate) mod install;
pub(crate) mod limits;
pub(crate) mod stats;

integration::room![limits, stats, faults, install];
