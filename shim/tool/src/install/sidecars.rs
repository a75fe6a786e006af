//! runsc with the folder beside it that it starts sandboxes by: the two come and go together.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use runsc_config::Sidecars;

use super::content::RUNSC;
use super::plan::{Action, Node, Plan};
use super::record::sum;
use crate::Failure;

/// Refuses to copy what anybody could have written. Whether root alone can is asked of the copies, where they are run.
pub(super) fn judge(sidecars: &Sidecars) -> Result<(), Failure> {
    let folder = [sidecars.folder().to_owned()];
    for path in folder.iter().chain(sidecars.files()) {
        let mode = mode(path)?;
        if mode & 0o002 != 0 {
            let path = path.display();
            return Err(format!(
                "{path} has mode {mode:04o}, so anybody may have written it: unpack the release anew, or chmod o-w"
            )
            .into());
        }
    }
    Ok(())
}

fn mode(path: &Path) -> Result<u32, Failure> {
    let file = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(file.permissions().mode() & 0o7777)
}

/// Puts the runsc `from` into `prefix`, and what is beside it. What an earlier one had beside it goes first: a sandbox that is
/// started meanwhile starts without it, and not by programs of two releases.
pub(super) fn plan(
    plan: &mut Plan,
    node: &Node<'_>,
    prefix: &Path,
    from: &Path,
    beside: Option<&Sidecars>,
) -> Result<(), Failure> {
    let (runsc, folder) = (prefix.join(RUNSC), prefix.join(Sidecars::FOLDER));
    let files = beside.map(Sidecars::files).unwrap_or_default().iter();
    let wanted: BTreeMap<&OsStr, &PathBuf> = files
        .filter_map(|file| Some((file.file_name()?, file)))
        .collect();
    let link = node.root.at(prefix)?.join(RUNSC);
    if !wanted.is_empty() && link.is_symlink() {
        plan.refusals.push(format!(
            "{} is a link, and runsc looks for {} beside the file that it leads to: give that folder by --prefix, or move the \
             link away",
            runsc.display(),
            Sidecars::FOLDER
        ));
        return Ok(());
    }
    let here = node.root.at(&folder)?;
    let there = names(&here)?;
    if here.is_dir() && mode(&here)? & 0o022 != 0 {
        plan.refusals.push(format!(
            "{} has mode {:04o}: only root may write it: chmod go-w, or move it away",
            folder.display(),
            mode(&here)?
        ));
        return Ok(());
    }
    let is_exchanged = match sum(&node.root.at(&runsc)?)? {
        Some(old) => Some(old) != sum(from)?,
        None => false,
    };
    let mut is_emptied = wanted.is_empty() && here.is_dir();
    for name in &there {
        let path = folder.join(name);
        let old = match node.root.at(&path)? {
            file if file.is_file() => sum(&file)?,
            _ => None,
        };
        let is_ours = old.is_some_and(|old| node.record.is_ours(&path, &old));
        let new = wanted.get(name.as_os_str());
        let is_same = match new {
            Some(new) => sum(new)? == sum(&node.root.at(&path)?)?,
            None => false,
        };
        if is_ours && !is_same && (is_exchanged || new.is_none()) {
            let why = "of the runsc before";
            plan.actions.push(Action::Remove { path, why });
            continue;
        }
        is_emptied = false;
        if !is_ours && new.is_none() && Sidecars::runs(name) {
            plan.out_of_the_way(node, &path)?;
        }
    }
    if is_emptied && node.record.folders.contains(&folder) {
        plan.actions.push(Action::RemoveFolder(folder.clone()));
    }
    plan.program(node, &runsc, from)?;
    for (name, from) in wanted {
        plan.program(node, &folder.join(name), from)?;
    }
    Ok(())
}

/// What a folder has; nothing if it is not there.
fn names(folder: &Path) -> Result<Vec<OsString>, Failure> {
    let failed = |e: io::Error| format!("{}: {e}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name()));
    let mut names: Vec<_> = names.collect::<io::Result<_>>().map_err(failed)?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::super::record::{Record, Sums, sum_of};
    use super::super::root::Root;
    use super::*;

    const FILES: [&str; 2] = ["gvisor-sentry-prewarmer", "gvisor_sentry"];

    struct Bench {
        folder: tempfile::TempDir,
        record: Record,
    }

    impl Bench {
        fn new() -> Self {
            let bench = Self {
                folder: tempfile::tempdir().expect("a folder"),
                record: Record::default(),
            };
            for folder in ["release", "node/bin"] {
                fs::create_dir_all(bench.at(folder)).expect("mkdir");
            }
            bench
        }

        fn at(&self, path: &str) -> PathBuf {
            self.folder.path().join(path)
        }

        /// A release whose files have `text`, with its folder or without.
        fn put(&self, place: &str, text: &str, is_whole: bool) {
            let write = |path: PathBuf| {
                fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
                fs::write(&path, text).expect("write");
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
            };
            write(self.at(place).join("runsc"));
            let folder = self.at(place).join(Sidecars::FOLDER);
            let _ = fs::remove_dir_all(&folder);
            for name in FILES.iter().filter(|_| is_whole) {
                write(folder.join(name));
            }
        }

        fn ours(&mut self, text: &str) {
            let sums = || Sums(vec![sum_of(text.as_bytes())]);
            self.record.files.insert("/bin/runsc".into(), sums());
            for name in FILES {
                let path = Path::new("/bin/gvisor-bin").join(name);
                self.record.files.insert(path, sums());
            }
            self.record.folders.insert("/bin/gvisor-bin".into());
        }

        /// The steps, shortened, and the refusals.
        fn plan(&self, replace: bool) -> (Vec<String>, Vec<String>) {
            let root = Root::new(&self.at("node")).expect("a root");
            let node = Node {
                root: &root,
                record: &self.record,
                replace,
            };
            let from = self.at("release/runsc");
            let beside = Sidecars::of(&from).expect("readable");
            let mut made = Plan::default();
            plan(&mut made, &node, Path::new("/bin"), &from, beside.as_ref()).expect("a plan");
            let name = |path: &Path| path.file_name().expect("a name").display().to_string();
            let steps = made.actions.iter().map(|action| match action {
                Action::Folder(path) => format!("make {}", name(path)),
                Action::Program { path, .. } => format!("put {}", name(path)),
                Action::Remove { path, .. } => format!("remove {}", name(path)),
                Action::RemoveFolder(path) => format!("remove {}/", name(path)),
                Action::Aside { path, .. } => format!("keep {}", name(path)),
                other => panic!("{other:?}"),
            });
            (steps.collect(), made.refusals)
        }

        fn steps(&self, replace: bool) -> String {
            let (steps, refusals) = self.plan(replace);
            assert_eq!(refusals, [""; 0]);
            steps.join(", ")
        }
    }

    #[test]
    fn the_folder_comes_and_goes_with_runsc() {
        let mut bench = Bench::new();
        bench.put("release", "one", true);
        let all = "put runsc, make gvisor-bin, put gvisor-sentry-prewarmer, put gvisor_sentry";
        assert_eq!(bench.steps(false), all);
        bench.put("node/bin", "one", true);
        bench.ours("one");
        assert_eq!(bench.steps(false), "");
        // No sandbox starts by two releases, whenever it is started.
        bench.put("release", "two", true);
        assert_eq!(
            bench.steps(false),
            "remove gvisor-sentry-prewarmer, remove gvisor_sentry, put runsc, put gvisor-sentry-prewarmer, put gvisor_sentry"
        );
        // Back to a release that has none.
        bench.put("release", "two", false);
        let gone = "remove gvisor-sentry-prewarmer, remove gvisor_sentry, remove gvisor-bin/";
        assert_eq!(bench.steps(false), format!("{gone}, put runsc"));
        // The same runsc, whose folder is mended or taken away.
        bench.put("release", "one", false);
        assert_eq!(bench.steps(false), gone);
        bench.put("release", "one", true);
        fs::write(bench.at("release/gvisor-bin/gvisor_sentry"), "mended").expect("write");
        assert_eq!(bench.steps(false), "put gvisor_sentry");
    }

    #[test]
    fn what_somebody_else_put_there_is_not_mixed_with_another_runsc() {
        let mut bench = Bench::new();
        bench.put("node/bin", "theirs", true);
        for is_whole in [true, false] {
            bench.put("release", "one", is_whole);
            let (_, refusals) = bench.plan(false);
            for name in FILES.iter().chain(&["runsc"]) {
                let is_named = |refusal: &String| refusal.contains(&format!("{name} is there"));
                assert!(refusals.iter().any(is_named), "{name}: {refusals:?}");
            }
        }
        assert_eq!(
            bench.steps(true),
            "keep gvisor-sentry-prewarmer, remove gvisor-sentry-prewarmer, keep gvisor_sentry, remove gvisor_sentry, \
             keep runsc, put runsc"
        );
        // What runsc does not run stays.
        fs::remove_dir_all(bench.at("node/bin")).expect("remove");
        fs::create_dir_all(bench.at("node/bin/gvisor-bin")).expect("mkdir");
        fs::write(bench.at("node/bin/gvisor-bin/notes"), "").expect("write");
        assert_eq!(bench.steps(false), "put runsc");
        // Changed since it was installed: it is theirs.
        bench.put("node/bin", "one", true);
        bench.ours("one");
        fs::write(bench.at("node/bin/gvisor-bin/gvisor_sentry"), "theirs").expect("write");
        let (_, refusals) = bench.plan(false);
        assert!(
            refusals
                .iter()
                .any(|one| one.contains("gvisor_sentry is there"))
        );
    }

    #[test]
    fn a_folder_that_others_can_write_is_neither_copied_nor_filled() {
        let bench = Bench::new();
        let chmod = |path: &str, mode| {
            fs::set_permissions(bench.at(path), fs::Permissions::from_mode(mode)).expect("chmod");
        };
        let judged = || {
            let found = Sidecars::of(&bench.at("release/runsc")).expect("readable");
            judge(&found.expect("a folder")).map_err(|error| error.to_string())
        };
        bench.put("release", "one", true);
        chmod("release/gvisor-bin", 0o775);
        judged().expect("as tar leaves it for many users");
        for path in ["release/gvisor-bin", "release/gvisor-bin/gvisor_sentry"] {
            chmod(path, 0o777);
            let problem = judged().expect_err("refused");
            assert!(
                problem.contains(path) && problem.contains("0777"),
                "{problem}"
            );
            chmod(path, 0o755);
        }
        judged().expect("root's");
        fs::create_dir_all(bench.at("node/bin/gvisor-bin")).expect("mkdir");
        for mode in [0o777, 0o775, 0o1777] {
            chmod("node/bin/gvisor-bin", mode);
            let (steps, refusals) = bench.plan(true);
            assert!(steps.is_empty() && refusals[0].contains("/bin/gvisor-bin has mode"));
        }
        chmod("node/bin/gvisor-bin", 0o755);
        bench.steps(false);
        std::os::unix::fs::symlink("../runsc", bench.at("node/bin/runsc")).expect("link");
        fs::write(bench.at("node/runsc"), "").expect("write");
        let (steps, refusals) = bench.plan(true);
        assert!(steps.is_empty() && refusals[0].contains("/bin/runsc is a link"));
    }
}
