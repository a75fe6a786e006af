//! `-info`: what containerd can know about the runtime without starting anything.

use std::io::Write as _;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::error::{Error, Result};

/// Prints the runtime's description, and only what works: containerd turns features on by it (an id-mapped rootfs, for
/// one).
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn run() -> Result<()> {
    let features = serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "mountOptions": [
            "bind", "dev", "exec", "nodev", "noexec", "nosuid", "private", "rbind", "ro", "rprivate", "rro", "rw", "suid",
        ],
        "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "mountExtensions": { "idmap": { "enabled": false } },
        },
    });
    let version = RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..RuntimeVersion::default()
    };
    let info = RuntimeInfo {
        name: "io.containerd.bulkhead.v1".to_owned(),
        version: MessageField::some(version),
        features: MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
                .to_owned(),
            value: features.to_string().into_bytes(),
            ..Any::default()
        }),
        ..RuntimeInfo::default()
    };
    let answer = info
        .write_to_bytes()
        .map_err(|e| Error::internal(format!("encode the answer: {e}")))?;
    std::io::stdout()
        .write_all(&answer)
        .map_err(|e| Error::io("answer containerd", &e))
}
