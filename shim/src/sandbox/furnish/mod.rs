//! What a container finds in its sandbox: its root filesystem, its binds, and what covers them.

pub(crate) mod apart;
pub(crate) mod binds;
pub(crate) mod masks;
pub(crate) mod mount;
pub(crate) mod mountpoints;
pub(crate) mod places;
pub(crate) mod program;
pub(crate) mod scenes;
pub(crate) mod shield;
pub(crate) mod small;
pub(crate) mod workdir;
