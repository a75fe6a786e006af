//! What is installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::containerd::{CRI_3, PATTERN, RUNTIME};

/// The shim, as containerd names it after the runtime.
pub(crate) const SHIM: &str = "containerd-shim-bulkhead-v1";
/// This tool.
pub(super) const TOOL: &str = "bulkhead";
/// gVisor.
pub(super) const RUNSC: &str = "runsc";
/// The node's policy.
pub(super) const POLICY: &str = "/etc/bulkhead/config.toml";
/// The policy of the handler with a network.
pub(super) const NETWORK: &str = "/etc/bulkhead/network.toml";
/// What `kubectl apply` takes.
pub(crate) const CLASSES: &str = "/etc/bulkhead/runtimeclass.yaml";

/// Text of the classes.
pub(super) const CLASSES_TEXT: &str = include_str!("../../../../docs/kubernetes/runtimeclass.yaml");
const POLICY_TEXT: &str = include_str!("config.toml");
const NETWORK_TEXT: &str = include_str!("../../../../docs/policies/network.toml");

/// The PATH that systemd gives its services (systemd.exec(5)), and so containerd.
pub(super) const USUAL: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// Whether containerd looks for programs in a folder without being told.
pub(super) fn is_usual(prefix: &Path) -> bool {
    USUAL.iter().any(|usual| prefix == Path::new(usual))
}

/// The policies, with the place of runsc where containerd would not find it.
pub(super) fn policies(runsc: Option<&Path>) -> [(&'static str, String); 2] {
    let place = runsc.map_or_else(String::new, |path| {
        format!("\n# Installed where containerd's PATH does not lead.\n[runsc]\npath = {path:?}\n")
    });
    [
        (POLICY, format!("{POLICY_TEXT}{place}")),
        (NETWORK, format!("{NETWORK_TEXT}{place}")),
    ]
}

/// The handlers, each as the text of its table. `shim` is named where containerd would not find it.
pub(super) fn handlers(shim: Option<&Path>, with_network: bool) -> BTreeMap<String, String> {
    let shim = shim.map_or_else(String::new, |path| format!("runtime_path = {path:?}\n"));
    let strict = format!("runtime_type = \"{RUNTIME}\"\n{shim}pod_annotations = [\"{PATTERN}\"]\n");
    let network = format!(
        "{strict}\n[options]\nTypeUrl = \"runtimeoptions.v1.Options\"\nConfigPath = \"{NETWORK}\"\n"
    );
    let mut handlers = BTreeMap::from([("bulkhead".to_owned(), strict)]);
    if with_network {
        handlers.insert("bulkhead-net".to_owned(), network);
    }
    handlers
}

/// The file that containerd imports.
pub(super) fn drop_in(handlers: &BTreeMap<String, String>) -> String {
    let mut text = "# Put here by `bulkhead install`: the handlers that RuntimeClasses name. containerd reads it when it starts.\n\
                    # pod_annotations: what a pod may ask its policy for. A wider pattern would let it write containerd's own.\n\
                    version = 3\n"
        .to_owned();
    for (name, table) in handlers {
        let place = format!("plugins.'{CRI_3}'.containerd.runtimes.{name}");
        let table = table.replace("[options]", &format!("[{place}.options]"));
        text += &format!("\n[{place}]\n{table}");
    }
    text
}

/// Where that file goes: beside the main one.
pub(super) fn drop_in_path(main: &Path) -> PathBuf {
    let folder = main.parent().unwrap_or(Path::new("/"));
    folder.join("conf.d/bulkhead.toml")
}

/// What the main file imports. With a star, a file that was removed does not keep containerd from starting; not all of
/// the folder, since that would switch on whatever else lies in it.
pub(super) fn import(main: &Path) -> PathBuf {
    let folder = main.parent().unwrap_or(Path::new("/"));
    folder.join("conf.d/bulkhead*.toml")
}

#[cfg(test)]
mod tests {
    use runsc_config::Policy;

    use super::*;
    use crate::containerd::{covers, handlers as handlers_of};

    #[test]
    fn the_policies_are_what_their_names_say_also_with_a_place_for_runsc() {
        for runsc in [None, Some(Path::new("/opt/b/runsc"))] {
            for (name, text) in policies(runsc) {
                let policy = Policy::parse(&text, name).expect(name);
                let expected = runsc.unwrap_or(Path::new("runsc"));
                assert_eq!(policy.runsc().path, expected);
                assert_eq!(
                    text.lines().any(|line| line == "network = \"sandbox\""),
                    name == NETWORK
                );
            }
        }
        assert!(
            POLICY_TEXT.lines().all(|line| line.starts_with('#')),
            "strict"
        );
    }

    #[test]
    fn the_examples_in_the_policy_are_keys_that_there_are() {
        let text: String = POLICY_TEXT
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(text.contains("[limits]"), "{text}");
        Policy::parse(&text, "examples").expect("a policy");
    }

    #[test]
    fn the_drop_in_has_both_handlers_and_is_imported() {
        let text = drop_in(&handlers(Some(Path::new("/opt/b/shim")), true));
        let table: toml::Table = text.parse().expect("TOML");
        let handlers = handlers_of(&table);
        let names: Vec<_> = handlers.iter().map(|handler| handler.name).collect();
        assert_eq!(names, ["bulkhead", "bulkhead-net"]);
        for handler in &handlers {
            assert!(
                handler.is_bulkhead() && handler.plugin == CRI_3,
                "{handler:?}"
            );
            assert!(handler.open_patterns().is_empty() && handler.hears_requests());
            assert_eq!(handler.text("runtime_path"), Some("/opt/b/shim"));
        }
        let policies: Vec<_> = handlers.iter().map(|one| one.policy()).collect();
        assert_eq!(policies, [None, Some(NETWORK)]);
        let main = Path::new("/etc/containerd/config.toml");
        assert!(covers(&import(main), &drop_in_path(main)));
    }

    #[test]
    fn each_class_names_a_handler() {
        let handlers = handlers(None, true);
        let named: Vec<_> = CLASSES_TEXT
            .lines()
            .filter_map(|line| line.strip_prefix("handler: "))
            .collect();
        assert_eq!(named, handlers.keys().collect::<Vec<_>>());
    }
}
