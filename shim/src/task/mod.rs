//! Containers and processes of one pod, from create to delete.

pub(crate) mod container;
pub(crate) mod create;
pub(crate) mod event;
pub(crate) mod names;
pub(crate) mod pod;
pub(crate) mod process;
pub(crate) mod request;
