//! The handlers of a Kubernetes node.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::ground::places::{PATH_FOLDER, tool};

/// Handlers of containerd that the tests use: the name, and the policy file where it has one of its own.
pub const HANDLERS: [(&str, Option<&str>); 6] = [
    ("bulkhead", None),
    ("bulkhead-net", Some("/etc/handlers/network.toml")),
    ("bulkhead-ordinary", Some("/etc/handlers/ordinary.toml")),
    ("bulkhead-compat", Some("/etc/handlers/compat.toml")),
    // Faults of a node: a policy that does not parse, and a runsc that cannot hold it.
    ("broken-policy", Some("/etc/handlers/broken.toml")),
    ("old-runsc", Some("/etc/handlers/old.toml")),
];
/// What containerd's configuration needs for the handlers; writes their policies as well.
pub(super) fn containerd_handlers(runtime: &str) -> String {
    let folder = Path::new("/etc/handlers");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policies");
    fs::create_dir_all(folder).expect("make the policies' folder");
    for name in ["network.toml", "ordinary.toml", "compat.toml"] {
        let text = fs::read(examples.join(name)).expect("read an example policy");
        fs::write(folder.join(name), text).expect("write a policy");
    }
    fs::write(folder.join("broken.toml"), "netwrok = \"none\"\n").expect("write a policy");
    let old = tool("old-runsc").expect("an old runsc: make tools");
    let copy = Path::new(PATH_FOLDER).join("real/old-runsc");
    fs::create_dir_all(copy.with_file_name("")).expect("make a folder");
    fs::copy(old, &copy).expect("copy the old runsc");
    let text = format!("[runsc]\npath = {:?}\n", copy.display().to_string());
    fs::write(folder.join("old.toml"), text).expect("write a policy");
    let mut text = String::new();
    let mut handler = |name: &str, kind: &str, policy: Option<&str>| {
        let table = format!("plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.{name}");
        let annotations = r#"["dev.bulkhead.*"]"#;
        let _ = write!(
            text,
            "[{table}]\nruntime_type = {kind:?}\npod_annotations = {annotations}\n"
        );
        if let Some(policy) = policy {
            let _ = write!(text, "[{table}.options]\nConfigPath = {policy:?}\n");
        }
    };
    handler("runc", "io.containerd.runc.v2", None);
    for (name, policy) in HANDLERS {
        handler(name, runtime, policy);
    }
    // A handler whose shim was never installed.
    handler("no-binary", "io.containerd.absent.v1", None);
    text
}
