//! Task stats: the cgroup metrics message of the host's own mode.
//!
//! A sandbox's first container shows the sandbox's cgroup. The others of a pod share that cgroup, and show what the
//! sentry counts for them. Every sub-message that clients look into is set, even where it is empty: `nerdctl stats`
//! dereferences them. The tasks counted under `pids` are the guest's, because that is what the pids limit of a sandbox
//! counts; the host's own count is of the sentry's threads and says nothing about the program.

mod v1;
mod v2;

use std::fs;

use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::error::{Error, Result};
use crate::runsc::usage::Interface;
use node::cgroup::{Cgroups, Mode};

/// What the sandbox itself counts of a container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guest {
    /// Tasks (threads) of the container; none where the sentry does not say.
    pub(crate) tasks: Option<u64>,
    /// The limit on those of one uid (RLIMIT_NPROC).
    pub(crate) tasks_limit: u64,
    /// The sandbox's network interfaces.
    pub(crate) interfaces: Vec<Interface>,
    /// What it uses of the sandbox's cgroup, unless that is its own.
    pub(crate) share: Option<Share>,
}

/// What one container uses of a cgroup that it shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// CPU time, in nanoseconds.
    pub(crate) cpu_nanos: u64,
    /// Bytes.
    pub(crate) memory: u64,
}

/// So much of `share` as `part` is of `whole`.
fn scaled(share: u64, part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let scaled = u128::from(share) * u128::from(part) / u128::from(whole);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// The metrics message for a container of the sandbox with these cgroups.
///
/// # Errors
/// Only when the message cannot be encoded.
pub(crate) fn collect(cgroups: &Cgroups, guest: &Guest) -> Result<Any> {
    // The names containerd registers for its own types (`github.com/containerd/cgroups/v3/*/stats`).
    let (type_url, encoded) = match cgroups.mode {
        Mode::V1 => {
            let metrics = match guest.share {
                Some(share) => v1::metrics_of_share(cgroups, guest, share),
                None => v1::metrics(cgroups, guest),
            };
            ("io.containerd.cgroups.v1.Metrics", metrics.write_to_bytes())
        }
        Mode::V2 => {
            let metrics = match guest.share {
                Some(share) => v2::metrics_of_share(cgroups, guest, share),
                None => v2::metrics(cgroups, guest),
            };
            ("io.containerd.cgroups.v2.Metrics", metrics.write_to_bytes())
        }
    };
    let value = encoded.map_err(|e| Error::internal(format!("encode the metrics: {e}")))?;
    Ok(Any {
        type_url: type_url.to_owned(),
        value,
        ..Any::default()
    })
}

/// The sizes of huge pages that a cgroup counts, as its files name them: `hugetlb.2MB.usage_in_bytes`.
fn page_sizes(cgroups: &Cgroups, controller: &str, suffix: &str) -> Vec<String> {
    let folder = cgroups.folder(controller);
    let entries = folder.and_then(|folder| fs::read_dir(folder).ok());
    let names = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut sizes: Vec<String> = names
        .filter_map(|name| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
            // `hugetlb.2MB.rsvd.usage_in_bytes` counts reservations.
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort_unstable();
    sizes
}
