//! What is to be done, decided before anything is: each file is absent, ours, or somebody else's.

use std::fs;
use std::path::{Path, PathBuf};

use super::record::{Edit, Record, sum, sum_of};
use super::root::Root;
use crate::Failure;

/// One step. Paths are the node's.
#[derive(Debug)]
pub(super) enum Action {
    /// Makes a folder.
    Folder(PathBuf),
    /// Puts a program there; one that runs from the old file keeps it.
    Program {
        path: PathBuf,
        from: PathBuf,
        sum: String,
    },
    /// Puts a text there, in place of `before`.
    Text {
        path: PathBuf,
        text: String,
        before: Option<String>,
    },
    /// Changes an administrator's file.
    Edit {
        path: PathBuf,
        text: String,
        before: Option<String>,
        edit: Edit,
    },
    /// Keeps the old file under a second name.
    Aside { path: PathBuf, to: PathBuf },
    /// Takes a file away.
    Remove { path: PathBuf, why: &'static str },
    /// Takes a folder away that is empty by then.
    RemoveFolder(PathBuf),
    /// No longer ours.
    Forget(PathBuf),
}

/// Everything that is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) actions: Vec<Action>,
    /// What is left as it is, and what else is worth knowing.
    pub(super) notes: Vec<String>,
    /// Why nothing is done at all.
    pub(super) refusals: Vec<String>,
}

/// What a plan is made from.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) root: &'a Root,
    pub(super) record: &'a Record,
    /// Somebody else's files are replaced, and kept beside.
    pub(super) replace: bool,
}

/// What the name of a text ends with that stands beside one which stays.
pub(super) const NEW: &str = ".bulkhead-new";

/// A name with something added.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

fn theirs(path: &Path) -> String {
    format!(
        "{} is there, and not as `bulkhead install` put it: move it away, or give --replace",
        path.display()
    )
}

impl Plan {
    /// A folder, with those above it.
    pub(super) fn folder(&mut self, node: &Node<'_>, path: &Path) -> Result<(), Failure> {
        let mut missing = Vec::new();
        for part in path.ancestors() {
            let here = node.root.at(part)?;
            match fs::metadata(&here) {
                Ok(metadata) if metadata.is_dir() => break,
                Ok(_) => return Err(format!("{} is not a folder", part.display()).into()),
                Err(_) => missing.push(part.to_owned()),
            }
        }
        for part in missing.into_iter().rev() {
            let is_planned =
                |action: &Action| matches!(action, Action::Folder(path) if *path == part);
            if !self.actions.iter().any(is_planned) {
                self.actions.push(Action::Folder(part));
            }
        }
        Ok(())
    }

    /// A program. One that is somebody else's refuses the whole: half an installation is none.
    pub(super) fn program(
        &mut self,
        node: &Node<'_>,
        path: &Path,
        from: &Path,
    ) -> Result<(), Failure> {
        let new = sum(from)?.ok_or_else(|| format!("{} is not there", from.display()))?;
        let here = self.place(node, path)?;
        match sum(&here)? {
            Some(old) if old == new => return Ok(()),
            Some(old) if !node.record.is_ours(path, &old) => {
                if !node.replace {
                    self.refusals.push(theirs(path));
                    return Ok(());
                }
                self.aside(node, path)?;
            }
            _ => {}
        }
        self.actions.push(Action::Program {
            path: path.to_owned(),
            from: from.to_owned(),
            sum: new,
        });
        Ok(())
    }

    /// A program of somebody else's that must not be there, and that nothing is put in the place of.
    pub(super) fn out_of_the_way(&mut self, node: &Node<'_>, path: &Path) -> Result<(), Failure> {
        if !node.replace {
            self.refusals.push(theirs(path));
            return Ok(());
        }
        self.aside(node, path)?;
        self.actions.push(Action::Remove {
            path: path.to_owned(),
            why: "kept beside",
        });
        Ok(())
    }

    /// A text. One that somebody changed stays; the new one goes beside it.
    pub(super) fn text(&mut self, node: &Node<'_>, path: &Path, text: &str) -> Result<(), Failure> {
        let here = self.place(node, path)?;
        let fresh = beside(path, NEW);
        let before = match fs::read_to_string(&here) {
            Ok(before) => Some(before),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("read {}: {error}", path.display()).into()),
        };
        let old = before.as_ref().map(|before| sum_of(before.as_bytes()));
        let is_ours = old
            .as_ref()
            .is_some_and(|old| node.record.is_ours(path, old));
        let new = sum_of(text.as_bytes());
        match &old {
            Some(old) if *old == new => return self.no_longer(node, &fresh),
            // Theirs is a change of what would be put there now: there is nothing new to tell them.
            Some(_) if !is_ours && !node.replace && node.record.is_ours(path, &new) => {
                self.notes.push(format!(
                    "{} was changed since it was installed: it stays",
                    path.display()
                ));
                return self.no_longer(node, &fresh);
            }
            Some(_) if !is_ours && !node.replace => {
                self.notes.push(format!(
                    "{} is not as `bulkhead install` would put it: it stays, and the other is beside it as {}",
                    path.display(),
                    fresh.file_name().unwrap_or_default().display(),
                ));
                let shown = fs::read_to_string(node.root.at(&fresh)?).ok();
                if shown.as_deref() != Some(text) {
                    self.actions.push(Action::Text {
                        path: fresh,
                        text: text.to_owned(),
                        before,
                    });
                }
                return Ok(());
            }
            Some(_) if !is_ours => self.aside(node, path)?,
            _ => {}
        }
        self.no_longer(node, &fresh)?;
        self.actions.push(Action::Text {
            path: path.to_owned(),
            text: text.to_owned(),
            before,
        });
        Ok(())
    }

    /// A file that was put there and has no use any more.
    pub(super) fn no_longer(&mut self, node: &Node<'_>, path: &Path) -> Result<(), Failure> {
        if !node.record.files.contains_key(path) {
            return Ok(());
        }
        match sum(&node.root.at(path)?)? {
            Some(sum) if node.record.is_ours(path, &sum) => self.actions.push(Action::Remove {
                path: path.to_owned(),
                why: "as it was installed",
            }),
            Some(_) => {
                self.notes.push(format!(
                    "{} was changed since it was installed: it stays",
                    path.display()
                ));
                self.actions.push(Action::Forget(path.to_owned()));
            }
            None => self.actions.push(Action::Forget(path.to_owned())),
        }
        Ok(())
    }

    /// Where a file is, with its folder planned.
    fn place(&mut self, node: &Node<'_>, path: &Path) -> Result<PathBuf, Failure> {
        self.folder(node, path.parent().unwrap_or(Path::new("/")))?;
        let here = node.root.at(path)?;
        if fs::symlink_metadata(&here).is_ok_and(|metadata| metadata.is_symlink()) {
            return Err(format!("{} is a link that leads nowhere", path.display()).into());
        }
        Ok(here)
    }

    fn aside(&mut self, node: &Node<'_>, path: &Path) -> Result<(), Failure> {
        let to = beside(path, ".bulkhead-old");
        if fs::symlink_metadata(node.root.at(&to)?).is_ok() {
            let text = format!(
                "{} is there from an earlier --replace: move it away",
                to.display()
            );
            self.refusals.push(text);
            return Ok(());
        }
        let path = path.to_owned();
        self.actions.push(Action::Aside { path, to });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Sums;
    use super::*;

    struct Bench {
        folder: tempfile::TempDir,
        record: Record,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                folder: tempfile::tempdir().expect("a folder"),
                record: Record::default(),
            }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.path().join(name), text).expect("write");
        }

        fn ours(&mut self, path: &str, text: &str) {
            let sums = Sums(vec![sum_of(text.as_bytes())]);
            self.record.files.insert(path.into(), sums);
        }

        fn plan(&self, replace: bool, work: impl Fn(&mut Plan, &Node<'_>)) -> Plan {
            let root = Root::new(self.folder.path()).expect("a root");
            let node = Node {
                root: &root,
                record: &self.record,
                replace,
            };
            let mut plan = Plan::default();
            work(&mut plan, &node);
            plan
        }

        fn text(&self, replace: bool, text: &str) -> Plan {
            self.plan(replace, |plan, node| {
                plan.text(node, Path::new("/c"), text).expect("a plan");
            })
        }

        fn program(&self, replace: bool) -> Plan {
            let from = self.folder.path().join("new");
            self.plan(replace, |plan, node| {
                plan.program(node, Path::new("/p"), &from).expect("a plan");
            })
        }
    }

    #[test]
    fn a_text_is_put_once_and_replaced_while_it_is_ours() {
        let mut bench = Bench::new();
        assert!(matches!(
            bench.text(false, "one").actions[..],
            [Action::Text { .. }]
        ));
        bench.write("c", "one");
        assert!(bench.text(false, "one").actions.is_empty());
        bench.ours("/c", "one");
        let plan = bench.text(false, "two");
        assert!(
            matches!(&plan.actions[..], [Action::Text { path, .. }] if path == Path::new("/c"))
        );
    }

    #[test]
    fn a_text_that_somebody_changed_stays_with_the_new_one_beside_it() {
        let mut bench = Bench::new();
        bench.ours("/c", "one");
        bench.write("c", "mine");
        let plan = bench.text(false, "two");
        let new = Path::new("/c.bulkhead-new");
        assert!(matches!(&plan.actions[..], [Action::Text { path, .. }] if path == new));
        assert_eq!(plan.notes.len(), 1);
        // What they changed is the same as would be put there again: then there is nothing to say.
        let plan = bench.text(false, "one");
        assert!(plan.actions.is_empty() && plan.notes.len() == 1, "{plan:?}");
        // And no second time.
        bench.write("c.bulkhead-new", "two");
        bench.ours("/c.bulkhead-new", "two");
        assert!(bench.text(false, "two").actions.is_empty());
        // Once they agree, the one beside it goes.
        bench.write("c", "two");
        let plan = bench.text(false, "two");
        assert!(matches!(&plan.actions[..], [Action::Remove { path, .. }] if path == new));
    }

    #[test]
    fn a_program_that_is_somebody_elses_refuses_the_whole_or_is_kept_aside() {
        let mut bench = Bench::new();
        bench.write("new", "new");
        assert!(matches!(
            bench.program(false).actions[..],
            [Action::Program { .. }]
        ));
        bench.write("p", "theirs");
        let plan = bench.program(false);
        assert!(plan.actions.is_empty() && plan.refusals[0].contains("/p is there"));
        let plan = bench.program(true);
        assert!(matches!(
            plan.actions[..],
            [Action::Aside { .. }, Action::Program { .. }]
        ));
        bench.write("p.bulkhead-old", "older");
        assert!(bench.program(true).refusals[0].contains("earlier --replace"));
        bench.ours("/p", "theirs");
        assert!(matches!(
            bench.program(false).actions[..],
            [Action::Program { .. }]
        ));
        bench.write("p", "new");
        assert!(bench.program(false).actions.is_empty());
    }

    #[test]
    fn folders_are_made_from_the_top_and_once() {
        let bench = Bench::new();
        let plan = bench.plan(false, |plan, node| {
            for path in ["/a/b", "/a/b", "/a/c"] {
                plan.folder(node, Path::new(path)).expect("a plan");
            }
        });
        let folders = plan.actions.iter().map(|action| match action {
            Action::Folder(path) => path.display().to_string(),
            other => panic!("{other:?}"),
        });
        assert_eq!(folders.collect::<Vec<_>>(), ["/a", "/a/b", "/a/c"]);
        bench.write("file", "");
        let root = Root::new(bench.folder.path()).expect("a root");
        let record = Record::default();
        let node = Node {
            root: &root,
            record: &record,
            replace: false,
        };
        let error = Plan::default().folder(&node, Path::new("/file/x"));
        assert!(
            error
                .expect_err("refused")
                .to_string()
                .contains("/file is not a folder")
        );
    }
}
