//! What may this sandbox do?
//!
//! Pure functions from what a client asks for (an OCI spec, an exec's process) and what the node allows (a policy file)
//! to what the sandbox gets: a hardened spec, the global flags of runsc, and a report of every change and its rule. One
//! rule holds everywhere: what a sandbox gets is what was asked for, intersected with the node's policy. An empty policy
//! is the strictest one.
//!
//! [`HardenedSpec`] and [`HardenedProcess`] can only be made here, and the shim writes nothing else into a bundle.

#![forbid(unsafe_code)]

mod binds;
mod calls;
mod cgroups;
mod exec;
mod features;
mod files;
mod flags;
mod hardened;
mod image;
mod json;
mod limits;
mod linux;
mod mounts;
mod never;
mod origins;
mod paths;
mod pod;
mod policy;
mod process;
mod report;
mod requests;
mod rlimits;
mod seccomp;
mod sidecars;
mod spec;
mod text;
mod types;

pub use binds::Writes;
pub use calls::Calls;
pub use exec::{Capabilities, ExecCeiling, HardenedProcess, harden_exec};
pub use features::{Features, FeaturesError};
pub use flags::RunscFlags;
pub use hardened::{Bind, HardenedSpec, Holder, Place};
pub use image::{Budget, Scene, Scenery, Seen, SeenFolder};
pub use limits::{CpuTime, Declared, SandboxLimits};
pub use origins::Origin;
pub use paths::Mask;
pub use pod::{Identity, Role, Shared, Volume, sandbox_of};
pub use policy::{
    Backend, Binds, Granted, Hooks, ImageVolumes, Kubernetes, Limits, Log, LogLevel, Network,
    Platform, Policy, PolicyError, Rootfs, RunscPolicy, Scratch, options_of_runc, trusted,
    trusted_folder, trusted_runsc,
};
pub use report::{Change, REFUSING, Refusal, RefusalKind, Report};
pub use sidecars::Sidecars;
pub use spec::{
    Caller, ContainerKind, Context, Explanation, Hardened, HostFacts, harden, validate,
};
pub use text::{is_steering, printable};
