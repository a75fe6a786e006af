//! Reports to an administrator what confines a container beside its sandbox.

use runsc_config::HardenedSpec;
use sha2::{Digest as _, Sha256};

/// What one container was given of what its pod's containers may differ in.
#[derive(Debug)]
pub(crate) struct Confinement {
    pub(crate) has_writable_root: bool,
    /// The SHA-256 of its seccomp profile, where it has one.
    pub(crate) profile: Option<[u8; 32]>,
    /// How that is written.
    pub(crate) form: Option<&'static str>,
}

impl Confinement {
    pub(crate) fn of(spec: &HardenedSpec) -> Self {
        let profile = spec.seccomp();
        Self {
            has_writable_root: spec.has_writable_root(),
            form: spec.profile_form(),
            profile: profile.map(|profile| Sha256::digest(profile.to_string().as_bytes()).into()),
        }
    }
}
