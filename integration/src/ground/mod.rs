//! Where the tests run: namespaces, folders, tools, the runtime under test, and how patient they are.

pub mod cgroups;
pub mod isolate;
pub mod patience;
pub(crate) mod places;
pub mod policy;
pub mod runtime;
