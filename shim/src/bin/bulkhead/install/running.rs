//! Sandboxes that run on the node.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use runsc_config::Policy;

use super::content::{NETWORK, POLICY};
use super::root::Root;
use crate::{Failure, dial, files};

/// The folders that the node's policies put sandboxes in.
pub(crate) fn bases(root: &Root) -> Result<Vec<PathBuf>, Failure> {
    let mut folders = vec![Policy::strict().runsc().root.clone()];
    for policy in [POLICY, NETWORK] {
        // One that does not parse makes no sandbox.
        let text = files::read_text(&root.at(Path::new(policy))?);
        if let Some(policy) = text.ok().and_then(|text| Policy::parse(&text, policy).ok()) {
            folders.push(policy.runsc().root.clone());
        }
    }
    folders.sort();
    folders.dedup();
    Ok(folders)
}

/// The folders of sandboxes whose shim is there, below the roots that the node's policies name.
pub(super) fn sandboxes(root: &Root) -> Result<Vec<PathBuf>, Failure> {
    let folders = bases(root)?;
    let mut found = Vec::new();
    for folder in folders {
        let entries = fs::read_dir(root.at(&folder)?);
        for entry in entries.into_iter().flatten().flatten() {
            if entry.path().join("bulkhead.json").exists() && is_served(&entry.path()) {
                found.push(folder.join(entry.file_name()));
            }
        }
    }
    Ok(found)
}

/// How many run, in words.
pub(super) fn count(sandboxes: &[PathBuf]) -> String {
    match sandboxes.len() {
        1 => "1 sandbox runs".to_owned(),
        many => format!("{many} sandboxes run"),
    }
}

/// Whether there is a shim for a sandbox's folder. Only a refused connection says that there is none.
fn is_served(folder: &Path) -> bool {
    dial::knock(&folder.join("metrics.sock")) != Err(Errno::ECONNREFUSED)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_sandbox_runs_unless_its_shim_is_known_to_be_gone() {
        let base = tempfile::tempdir().expect("a folder");
        let root = Root::new(base.path()).expect("a root");
        let found = || sandboxes(&root).expect("a list");
        assert!(found().is_empty());
        let folder = base.path().join("run/bulkhead/0123456789abcdef");
        fs::create_dir_all(&folder).expect("mkdir");
        assert!(found().is_empty(), "a folder alone is no sandbox");
        fs::write(folder.join("bulkhead.json"), "{}").expect("write");
        assert_eq!(found(), [Path::new("/run/bulkhead/0123456789abcdef")]);
        let listener = UnixListener::bind(folder.join("metrics.sock")).expect("bind");
        assert_eq!(found().len(), 1);
        drop(listener);
        assert!(found().is_empty(), "nobody has the socket");
    }

    #[test]
    fn sandboxes_are_looked_for_where_the_policy_puts_them() {
        let base = tempfile::tempdir().expect("a folder");
        let root = Root::new(base.path()).expect("a root");
        for folder in ["etc/bulkhead", "run/other/0123456789abcdef"] {
            fs::create_dir_all(base.path().join(folder)).expect("mkdir");
        }
        let policy = base.path().join("etc/bulkhead/network.toml");
        fs::write(policy, "runsc.root = \"/run/other\"").expect("write");
        let record = base.path().join("run/other/0123456789abcdef/bulkhead.json");
        fs::write(record, "{}").expect("write");
        assert_eq!(sandboxes(&root).expect("a list").len(), 1);
    }
}
