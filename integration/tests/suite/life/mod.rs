//! From `start` to `delete`: containers, execs and pods, and who is told of them.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod kill;
pub(crate) mod pod;
pub(crate) mod serve;
pub(crate) mod service;
pub(crate) mod start;
pub(crate) mod versions;

integration::room![
    start, create, exec, pod, kill, delete, events, serve, service, versions
];
