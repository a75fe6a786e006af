//! What a client asks for, in plain types. The edge makes them of containerd's messages.

use std::path::{Path, PathBuf};

use node::cgroup;
use runsc_config::Policy;

use crate::error::{Error, Result};
use crate::sandbox::furnish::mount::RootfsMount;
use crate::task::event::Streams;

/// A container to create.
#[derive(Debug, Clone, Default)]
pub(crate) struct CreateRequest {
    pub(crate) id: String,
    pub(crate) bundle: String,
    pub(crate) rootfs: Vec<RootfsMount>,
    pub(crate) streams: Streams,
    /// The folder of a checkpoint to restore; empty for none.
    pub(crate) checkpoint: String,
    pub(crate) options: Options,
}

/// The options of a runtime.
#[derive(Debug, Clone, Default)]
pub(crate) enum Options {
    /// None: the node's own policy holds.
    #[default]
    None,
    /// The policy of this file.
    PolicyFile(PathBuf),
    /// The policy of this text.
    PolicyText(String),
    /// Options of runc's shim, of which a client sends some whatever the runtime.
    Runc {
        /// The cgroup for the shim itself; empty for none.
        shim_cgroup: String,
        /// The fields that are set and mean nothing here, under their names in containerd's configuration.
        not_followed: Vec<(&'static str, String)>,
    },
}

impl Options {
    /// Reads the policy that the options name. One that they name replaces the default file; sources are never merged.
    ///
    /// # Errors
    /// `FailedPrecondition` for a policy that cannot be used.
    pub(crate) fn load_policy(&self) -> Result<Policy> {
        Ok(match self {
            Self::None | Self::Runc { .. } => Policy::load_default()?,
            Self::PolicyText(text) => Policy::parse(text, "config_body")?,
            Self::PolicyFile(path) => Policy::load(Path::new(path))?,
        })
    }

    /// Follows what options of runc's ask of the shim itself, for the sandbox `id`: its cgroup. The rest means nothing here and is
    /// reported.
    ///
    /// # Errors
    /// `FailedPrecondition` for a cgroup that the shim cannot be put in.
    pub(crate) fn follow(&self, id: &str) -> Result<()> {
        let Self::Runc {
            shim_cgroup,
            not_followed,
        } = self
        else {
            return Ok(());
        };
        for (field, value) in not_followed {
            tracing::info!(
                id,
                "options: {field} {value}: not followed, it is for runc alone"
            );
        }
        if shim_cgroup.is_empty() {
            return Ok(());
        }
        cgroup::enter(shim_cgroup).map_err(|e| {
            Error::precondition(format!(
                "options: ShimCgroup {shim_cgroup:?}: {e}; it must be the absolute path of a cgroup that is there and takes processes"
            ))
        })
    }
}
