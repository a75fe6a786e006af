//! Copies of the programs in folders of containerd's PATH. The first one is run, so that a copy hides what a package brings, and all
//! of its upgrades.

use std::path::{Path, PathBuf};

use super::content::{SHIM, TOOL, USUAL, is_usual};
use super::plan::{Node, Plan};
use super::running;
use crate::Failure;
use crate::ask;
use crate::containerd::{self, Merged};
use crate::daemon;

/// A shim that containerd finds without an installation, as a package brings one. A copy in another folder of its PATH would be in front
/// of it, or behind it. A copy in `prefix` is not one.
pub(super) fn shadowed(node: &Node<'_>, prefix: &Path) -> Result<Option<PathBuf>, Failure> {
    // Links of the node make one folder of two (/bin and /usr/bin).
    let mut ours = vec![node.root.at(&prefix.join(SHIM))?];
    for path in node.record.files.keys() {
        ours.push(node.root.at(path)?);
    }
    for folder in USUAL {
        let path = Path::new(folder).join(SHIM);
        let here = node.root.at(&path)?;
        if here.is_file() && !ours.contains(&here) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Plans that copies of earlier installations make way for `other`, a shim that is in another folder of PATH. One that is not on record
/// is somebody else's, and is named.
pub(super) fn make_way(
    plan: &mut Plan,
    node: &Node<'_>,
    other: &Path,
    config: &Path,
) -> Result<(), Failure> {
    for name in [TOOL, SHIM] {
        let stands = other.with_file_name(name);
        let mut recorded = Vec::new();
        for path in node.record.files.keys() {
            let is_copy = path.file_name().is_some_and(|one| one == name)
                && path.parent().is_some_and(is_usual);
            if is_copy {
                recorded.push(path.clone());
            }
        }
        strangers(plan, node, &stands)?;
        let needed = if name == SHIM && !recorded.is_empty() {
            needed(node, &recorded, config)?
        } else {
            None
        };
        for path in recorded {
            match &needed {
                Some(why) => plan.notes.push(format!(
                    "{} stays, and hides {}: {why}",
                    path.display(),
                    stands.display()
                )),
                None => plan.no_longer(node, &path)?,
            }
        }
    }
    Ok(())
}

/// Names what is in front of a program and not on record.
fn strangers(plan: &mut Plan, node: &Node<'_>, stands: &Path) -> Result<(), Failure> {
    let name = stands.file_name().unwrap_or_default();
    let mut known = vec![node.root.at(stands)?];
    for folder in USUAL {
        let path = Path::new(folder).join(name);
        if path == stands {
            break;
        }
        let here = node.root.at(&path)?;
        let is_recorded = node.record.files.contains_key(&path);
        if !is_recorded && here.is_file() && !known.contains(&here) {
            plan.notes.push(format!(
                "{} is run in place of {} and of what upgrades that, and `bulkhead install` has no record of it: remove it if it is a copy",
                path.display(),
                stands.display()
            ));
        }
        known.push(here);
    }
    Ok(())
}

/// Why copies of the shim have to stay, if anything needs them.
fn needed(node: &Node<'_>, copies: &[PathBuf], config: &Path) -> Result<Option<String>, Failure> {
    let running = running::sandboxes(node.root)?;
    if !running.is_empty() {
        // It is written down in the container's bundle (`shim-binary-path`), and containerd drops a container whose program is gone.
        return Ok(Some(format!(
            "{}, for which containerd goes on to call the shim by the path it was started by: once none does, \
             `bulkhead install --without binaries` takes it away",
            running::count(&running)
        )));
    }
    let read = containerd::read(node.root, config);
    for handler in Merged::of(&read).handlers() {
        let named = ["runtime_path", "runtime_type"].map(|key| handler.text(key));
        let is_copy = |path: &&str| copies.iter().any(|copy| copy == Path::new(path));
        if let Some(path) = named.into_iter().flatten().find(is_copy) {
            return Ok(Some(format!(
                "handler {} of {} names {path}",
                handler.name,
                config.display()
            )));
        }
    }
    if !node.root.is_own() {
        return Ok(None);
    }
    // A unit may have another PATH than systemd's own.
    for daemon in daemon::all() {
        let mut found = ask::all(Path::new(SHIM), Some(&daemon.path)).into_iter();
        if found.all(|path| copies.contains(&path)) {
            return Ok(Some(format!(
                "the containerd that runs (pid {}) would find no other in its PATH, {}",
                daemon.pid, daemon.path
            )));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::plan::Action;
    use super::super::record::{Record, Sums, sum_of};
    use super::super::root::Root;
    use super::*;

    const CONFIG: &str = "/etc/containerd/config.toml";

    struct Bench {
        base: tempfile::TempDir,
        record: Record,
    }

    impl Bench {
        fn new() -> Self {
            let bench = Self {
                base: tempfile::tempdir().expect("a folder"),
                record: Record::default(),
            };
            for name in [SHIM, TOOL] {
                bench.write(&format!("usr/bin/{name}"), "a package's");
            }
            bench
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.base.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
            fs::write(path, text).expect("write");
        }

        fn copies(&mut self, folder: &str) {
            for name in [SHIM, TOOL] {
                let path = format!("{folder}/{name}");
                self.write(path.trim_start_matches('/'), "a copy");
                let sums = Sums(vec![sum_of(b"a copy")]);
                self.record.files.insert(path.into(), sums);
            }
        }

        /// What is removed, and what is said.
        fn plan(&self) -> (Vec<PathBuf>, Vec<String>) {
            let root = Root::new(self.base.path()).expect("a root");
            let node = Node {
                root: &root,
                record: &self.record,
                replace: false,
            };
            let other = shadowed(&node, Path::new("/usr/local/bin")).expect("a look");
            let other = other.expect("a package");
            assert_eq!(other, Path::new("/usr/bin").join(SHIM));
            let mut plan = Plan::default();
            make_way(&mut plan, &node, &other, Path::new(CONFIG)).expect("a plan");
            let removed = plan.actions.into_iter().filter_map(|action| match action {
                Action::Remove { path, .. } => Some(path),
                _ => None,
            });
            (removed.collect(), plan.notes)
        }
    }

    fn at(folder: &str, names: &[&str]) -> Vec<PathBuf> {
        names
            .iter()
            .map(|name| Path::new(folder).join(name))
            .collect()
    }

    #[test]
    fn copies_on_record_make_way_in_every_folder_of_the_path() {
        for folder in ["/usr/local/bin", "/usr/local/sbin"] {
            let mut bench = Bench::new();
            bench.copies(folder);
            assert_eq!(bench.plan(), (at(folder, &[TOOL, SHIM]), Vec::new()));
        }
        // Elsewhere they hide nothing.
        let mut bench = Bench::new();
        bench.copies("/opt/b");
        assert_eq!(bench.plan(), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_copy_that_was_changed_or_is_on_no_record_stays_and_is_named() {
        let mut bench = Bench::new();
        bench.copies("/usr/local/bin");
        bench.write(&format!("usr/local/bin/{SHIM}"), "another");
        let (removed, notes) = bench.plan();
        assert_eq!(removed, at("/usr/local/bin", &[TOOL]));
        assert!(
            notes.len() == 1 && notes[0].contains("was changed"),
            "{notes:?}"
        );
        bench.record.files.clear();
        let (removed, notes) = bench.plan();
        assert!(removed.is_empty() && notes.len() == 2, "{notes:?}");
        for (note, name) in notes.iter().zip([TOOL, SHIM]) {
            let expected = format!("/usr/local/bin/{name} is run in place of /usr/bin/{name}");
            assert!(note.starts_with(&expected), "{note}");
        }
        // One behind it hides nothing.
        let bench = Bench::new();
        bench.write(&format!("bin/{SHIM}"), "another");
        assert_eq!(bench.plan(), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_copy_of_the_shim_stays_while_sandboxes_run() {
        let mut bench = Bench::new();
        bench.copies("/usr/local/bin");
        let record = "run/bulkhead/0123456789abcdef/bulkhead.json";
        bench.write(record, "{}");
        let (removed, notes) = bench.plan();
        assert_eq!(removed, at("/usr/local/bin", &[TOOL]));
        assert!(
            notes.len() == 1 && notes[0].contains("1 sandbox runs"),
            "{notes:?}"
        );
        fs::remove_file(bench.base.path().join(record)).expect("remove");
        assert_eq!(bench.plan().0.len(), 2);
    }

    #[test]
    fn a_copy_that_a_handler_names_stays() {
        for key in ["runtime_path", "runtime_type"] {
            let mut bench = Bench::new();
            bench.copies("/usr/local/bin");
            let config = format!(
                "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.own]\n{key} = '/usr/local/bin/{SHIM}'\n"
            );
            bench.write("etc/containerd/config.toml", &config);
            let (removed, notes) = bench.plan();
            assert_eq!(removed, at("/usr/local/bin", &[TOOL]));
            assert!(
                notes.len() == 1 && notes[0].contains("handler own of /etc/containerd/config.toml"),
                "{notes:?}"
            );
        }
    }
}
