//! Shows a plan and carries it out. What is written down is written before and after each step, so that a run that was cut
//! short is gone on with by the next.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use similar::TextDiff;

use super::plan::{Action, NEW, Plan};
use super::record::{self, Record, Sums};
use super::root::Root;
use super::write;
use crate::Failure;
use crate::text::{block, say};

/// Prints what would be done, with every difference.
pub(super) fn show(plan: &Plan) {
    for action in &plan.actions {
        say(headline(action));
        if let Action::Text { path, text, before }
        | Action::Edit {
            path, text, before, ..
        } = action
        {
            block(&difference(path, before.as_deref(), text));
        }
    }
    for note in &plan.notes {
        say(format_args!("note: {note}"));
    }
}

fn headline(action: &Action) -> String {
    match action {
        Action::Folder(path) => format!("make    {}/", path.display()),
        Action::Program { path, from, .. } => {
            let size = fs::metadata(from).map_or(0, |metadata| metadata.len());
            format!(
                "put     {} (from {}, {size} bytes)",
                path.display(),
                from.display()
            )
        }
        Action::Text { path, .. } => format!("put     {}", path.display()),
        Action::Edit { path, .. } => format!("edit    {}", path.display()),
        Action::Aside { path, to } => format!("keep    {} as {}", path.display(), to.display()),
        Action::Remove { path, why } => format!("remove  {} ({why})", path.display()),
        Action::RemoveFolder(path) => format!("remove  {}/ (if it is empty)", path.display()),
        Action::Forget(path) => format!("forget  {}", path.display()),
    }
}

/// As diff(1) shows it. A text beside one that stays is compared with that.
fn difference(path: &Path, before: Option<&str>, after: &str) -> String {
    let name = path.display().to_string();
    let old = match before {
        Some(_) => name.strip_suffix(NEW).unwrap_or(&name),
        None => "/dev/null",
    };
    let diff = TextDiff::from_lines(before.unwrap_or_default(), after);
    diff.unified_diff().header(old, &name).to_string()
}

/// Carries a plan out.
pub(super) fn run(plan: Plan, root: &Root, record: &mut Record) -> Result<(), Failure> {
    for action in plan.actions {
        let text = headline(&action);
        step(action, root, record).map_err(|e| format!("{text}: {e}"))?;
    }
    Ok(())
}

fn step(action: Action, root: &Root, record: &mut Record) -> Result<(), Failure> {
    match action {
        Action::Folder(path) => {
            let made = fs::DirBuilder::new().mode(0o755).create(root.at(&path)?);
            match made {
                Ok(()) => drop(record.folders.insert(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
            // The record's own folder is the first that is made.
            if root
                .at(Path::new(record::PATH))?
                .parent()
                .is_some_and(Path::is_dir)
            {
                record.save(root)?;
            }
            Ok(())
        }
        Action::Program { path, from, sum } => {
            put(root, record, &path, sum, |here| write::program(here, &from))
        }
        Action::Text { path, text, .. } => {
            let sum = record::sum_of(text.as_bytes());
            put(root, record, &path, sum, |here| {
                write::text(here, &text, 0o644)
            })
        }
        Action::Edit {
            path, text, edit, ..
        } => {
            // The record never says less than there is: it comes first with an addition, last when that is taken away.
            if !edit.is_nothing() {
                record.edits.insert(path.clone(), edit.clone());
                record.save(root)?;
            }
            write::text(&root.at(&path)?, &text, 0o644)?;
            if edit.is_nothing() {
                record.edits.remove(&path);
                record.save(root)?;
            }
            Ok(())
        }
        Action::Aside { path, to } => {
            fs::hard_link(root.at(&path)?, root.at(&to)?)?;
            Ok(())
        }
        Action::Remove { path, .. } => {
            gone(fs::remove_file(root.at(&path)?))?;
            record.files.remove(&path);
            record.edits.remove(&path);
            record.save(root)
        }
        Action::RemoveFolder(path) => {
            match fs::remove_dir(root.at(&path)?) {
                // An administrator's files keep their folder.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                removed => gone(removed)?,
            }
            record.folders.remove(&path);
            Ok(())
        }
        Action::Forget(path) => {
            record.files.remove(&path);
            record.edits.remove(&path);
            record.save(root)
        }
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Both the old sum and the new are ours while nobody can tell which of them is there.
fn put(
    root: &Root,
    record: &mut Record,
    path: &Path,
    sum: String,
    write: impl FnOnce(&Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let sums = record.files.entry(path.to_owned()).or_default();
    sums.0.push(sum.clone());
    record.save(root)?;
    write(&root.at(path)?)?;
    record.files.insert(path.to_owned(), Sums(vec![sum]));
    record.save(root)
}
