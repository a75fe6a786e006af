//! What `bulkhead` does for a node.

pub(crate) mod check;
pub(crate) mod install;

integration::room![install, check];
