//! Where the handlers go: into a file that containerd's configuration imports, or into that configuration itself.
//!
//! A file of version 3 or later gets an import. One of version 2 gets the handlers themselves, whichever containerd reads it: in
//! 1.7 a CRI section of an imported file replaces the whole section of the main one, and 2.0 and 2.1 read all files as the
//! version of the last (`cmd/containerd/server/config` of each). So there the administrator's own settings would be lost.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::content;
use super::edit::{self, Addition};
use super::plan::{Action, Node, Plan};
use super::record::{Edit, sum_of};
use super::root::Root;
use crate::Failure;
use crate::ask::{ask_named, look_up};
use crate::containerd::{self, CRI_2, CRI_3, ConfigFile, covers, patterns, version};

/// containerd's releases as far as their configuration differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Release {
    /// 1.7.
    #[value(name = "1.7", alias = "1")]
    One,
    /// 2.0 and later.
    #[value(name = "2")]
    Two,
}

/// Plans for a configuration and the handlers that it is to have.
pub(super) fn plan(
    plan: &mut Plan,
    node: &Node<'_>,
    main: &Path,
    release: Option<Release>,
    mut handlers: BTreeMap<String, String>,
) -> Result<(), Failure> {
    let config = containerd::read(node.root, main);
    if let Some(problem) = config.unread() {
        plan.refusals.push(format!(
            "{problem}: put what is in these into fewer files first"
        ));
        return Ok(());
    }
    let files = config.files;
    for file in &files {
        if let Err(problem) = &file.table {
            let text = format!("{}: {problem}: mend it first", file.path.display());
            plan.refusals.push(text);
            return Ok(());
        }
    }
    let main_version = files
        .first()
        .and_then(|file| file.table.as_ref().ok().map(version));
    let is_old = match main_version {
        Some(..=1) => {
            plan.refusals.push(format!(
                "{} is of version 1: bring it up to date (`containerd config migrate` prints it so), or give --without \
                 containerd, which is enough for ctr and nerdctl",
                main.display()
            ));
            return Ok(());
        }
        Some(version) => version == 2,
        None => match release.map_or_else(|| ask(node.root), Ok) {
            Ok(release) => release == Release::One,
            Err(problem) => {
                plan.refusals.push(format!(
                    "{} is not there, and {problem}: give --containerd-version 1.7 or 2",
                    main.display()
                ));
                return Ok(());
            }
        },
    };
    note_what_is_off(plan, &files);
    let drop_in = content::drop_in_path(main);
    let ours = node.record.edits.get(main).cloned().unwrap_or_default();
    for (name, file) in foreign(&files, main, &drop_in, is_old, &ours) {
        if handlers.remove(&name).is_some() {
            plan.notes.push(format!(
                "{} has a handler {name} of its own: it stays, see `bulkhead check`",
                file.display()
            ));
        }
    }
    if is_old {
        if let Some(file) = replacing_import(&files) {
            plan.refusals.push(format!(
                "{} is imported and has a section {CRI_2}, which containerd 1.7 takes instead of that in {}: move the \
                 section there first",
                file.display(),
                main.display()
            ));
            return Ok(());
        }
        let addition = Addition {
            import: None,
            plugin: CRI_2,
            handlers,
        };
        return edit_main(plan, node, main, &addition, &ours, "version = 2\n");
    }
    if handlers.is_empty() {
        return Ok(());
    }
    plan.text(node, &drop_in, &content::drop_in(&handlers))?;
    let imported = files.iter().any(|file| {
        let patterns = file
            .table
            .iter()
            .flat_map(|table| patterns(table, &file.path));
        patterns
            .into_iter()
            .any(|pattern| covers(&pattern, &drop_in))
    });
    let addition = Addition {
        import: (!imported).then(|| content::import(main)),
        plugin: CRI_3,
        handlers: BTreeMap::new(),
    };
    edit_main(plan, node, main, &addition, &ours, "version = 3\n")
}

/// Plans the edit of the main file, which is made from `empty` where there is none.
fn edit_main(
    plan: &mut Plan,
    node: &Node<'_>,
    main: &Path,
    addition: &Addition,
    ours: &Edit,
    empty: &str,
) -> Result<(), Failure> {
    plan.folder(node, main.parent().unwrap_or(Path::new("/")))?;
    let before = fs::read_to_string(node.root.at(main)?).ok();
    let edited = edit::add(before.as_deref().unwrap_or(empty), addition, ours);
    let mut edited = match edited {
        Ok(edited) => edited,
        Err(problem) => {
            plan.refusals.push(format!(
                "{}: {problem}; add by hand, and give --without containerd:\n{}",
                main.display(),
                content::drop_in(&addition.handlers)
            ));
            return Ok(());
        }
    };
    for name in edited.left {
        plan.notes.push(format!(
            "{}: handler {name} is not as `bulkhead install` would put it: it stays",
            main.display()
        ));
    }
    let sum = sum_of(edited.text.as_bytes());
    if before.is_none() {
        edited.edit.created = Some(sum);
    } else if ours.created.as_deref()
        == before
            .as_ref()
            .map(|text| sum_of(text.as_bytes()))
            .as_deref()
        && ours.created.is_some()
    {
        // Nobody has touched what was made here, so it stays all ours.
        edited.edit.created = Some(sum);
    }
    if before.as_deref() != Some(&edited.text) {
        plan.actions.push(Action::Edit {
            path: main.to_owned(),
            text: edited.text,
            before,
            edit: edited.edit,
        });
    }
    Ok(())
}

/// Handlers that are not of an earlier installation, with their files.
fn foreign<'a>(
    files: &'a [ConfigFile],
    main: &Path,
    drop_in: &Path,
    is_old: bool,
    ours: &Edit,
) -> Vec<(String, &'a Path)> {
    let mut found = Vec::new();
    for file in files {
        // What is in the file for us alone is judged as a file.
        if !is_old && file.path == drop_in {
            continue;
        }
        for handler in file.table.iter().flat_map(containerd::handlers) {
            if file.path != main || !ours.handlers.contains_key(handler.name) {
                found.push((handler.name.to_owned(), file.path.as_path()));
            }
        }
    }
    found
}

/// An imported file whose CRI section replaces the main one's.
fn replacing_import(files: &[ConfigFile]) -> Option<&Path> {
    files
        .iter()
        .skip(1)
        .find(|file| file.has_cri_2())
        .map(|file| file.path.as_path())
}

/// Whether CRI itself is switched off, as it is in the file that Docker's packages bring.
fn note_what_is_off(plan: &mut Plan, files: &[ConfigFile]) {
    for file in files {
        if let Some(name) = file.table.as_ref().ok().and_then(containerd::disabled_cri) {
            plan.notes.push(format!(
                "{}: disabled_plugins has {name:?}: Kubernetes finds no handler until it is taken out",
                file.path.display()
            ));
        }
    }
}

/// Asks the node's containerd for its release.
fn ask(root: &Root) -> Result<Release, String> {
    let silent =
        |problem: &dyn std::fmt::Display| format!("containerd does not say its version: {problem}");
    let answer = if root.is_own() {
        let program =
            look_up(Path::new("containerd"), None).ok_or_else(|| silent(&"it is not in PATH"))?;
        ask_named(&program, &["--version"])
    } else {
        let root = root.path().to_string_lossy();
        ask_named(Path::new("chroot"), &[&*root, "containerd", "--version"])
    };
    let text = answer.map_err(|e| silent(&e))?.output;
    // "containerd MODULE VERSION REVISION"
    let version = text.split_whitespace().nth(2).unwrap_or_default();
    match version.trim_start_matches('v').split('.').next() {
        Some("1") => Ok(Release::One),
        Some("2") => Ok(Release::Two),
        _ => Err("containerd does not say its version".to_owned()),
    }
}
