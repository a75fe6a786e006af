//! Removes what was installed, unless somebody changed it since.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::lock::Lock;
use super::plan::{Action, Node, Plan};
use super::record::{self, Edit, Record, sum_of};
use super::root::Root;
use super::running::{self, Running};
use super::{apply, edit, needs_root};
use crate::Failure;
use crate::containerd::{CRI_2, CRI_3};
use crate::text::say;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print every action and every difference, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Root of the node's file system.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Uninstall while sandboxes run. They go on, but a running pod starts no further container, and nothing cleans up after a
    /// shim that is killed.
    #[arg(long)]
    force: bool,
    /// Fail while sandboxes run, even if nothing was installed. For a package, which removes its own programs.
    #[arg(long, conflicts_with = "force")]
    unless_running: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let root = Root::new(&arguments.root)?;
    needs_root(&root, arguments.dry_run)?;
    let mut lock = if arguments.dry_run {
        None
    } else {
        Some(Lock::take(&root)?)
    };
    let mut record = Record::load(&root)?;
    let is_refused =
        arguments.unless_running || !(arguments.force || arguments.dry_run || record.is_empty());
    let sandboxes = if is_refused {
        running::settled(&root)?
    } else {
        running::sandboxes(&root)?
    };
    if !sandboxes.is_empty() && arguments.unless_running {
        return Err(still_run(&sandboxes).into());
    }
    if record.is_empty() {
        say(format_args!(
            "nothing to do: {} is not there, so nothing was installed by `bulkhead install`",
            record::PATH
        ));
        return Ok(ExitCode::SUCCESS);
    }
    if !sandboxes.is_empty() && !arguments.force && !arguments.dry_run {
        return Err(still_run(&sandboxes).into());
    }
    let mut plan = Plan::default();
    if !sandboxes.is_empty() {
        plan.notes.push(running::count(&sandboxes));
    }
    let node = Node {
        root: &root,
        record: &record,
        replace: false,
    };
    let touches_containerd = !record.edits.is_empty();
    for (path, ours) in &record.edits {
        unedit(&mut plan, &node, path, ours)?;
    }
    for path in record.files.keys() {
        plan.no_longer(&node, path)?;
    }
    let mut folders = Plan::default();
    for path in record.folders.iter().rev() {
        folders.actions.push(Action::RemoveFolder(path.clone()));
    }
    apply::show(&plan);
    say(format_args!("remove  {}", record::PATH));
    apply::show(&folders);
    if arguments.dry_run {
        say("nothing was changed: --dry-run");
        return Ok(ExitCode::SUCCESS);
    }
    apply::run(plan, &root, &mut record)?;
    let path = root.at(Path::new(record::PATH))?;
    fs::remove_file(&path).map_err(|e| format!("remove {}: {e}", path.display()))?;
    if let Some(lock) = &mut lock {
        let mut others = Vec::new();
        for action in folders.actions {
            match &action {
                Action::RemoveFolder(path) if lock.takes_away(&root, path)? => {}
                _ => others.push(action),
            }
        }
        folders.actions = others;
    }
    apply::run(folders, &root, &mut record)?;
    drop(lock);
    say("uninstalled");
    if touches_containerd {
        say(
            "containerd forgets its handlers with a restart, which containers survive: systemctl restart containerd",
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn still_run(sandboxes: &[Running]) -> String {
    let first: Vec<_> = sandboxes.iter().take(3).map(Running::to_string).collect();
    format!(
        "nothing was changed: {} ({}{}): stop what runs first, or pass --force: --help names its price",
        running::count(sandboxes),
        first.join(", "),
        if sandboxes.len() > first.len() {
            ", …"
        } else {
            ""
        }
    )
}

/// Plans containerd's file as it was. A file that was made here and not touched since is removed.
fn unedit(plan: &mut Plan, node: &Node<'_>, path: &Path, ours: &Edit) -> Result<(), Failure> {
    let here = node.root.at(path)?;
    let Ok(before) = fs::read_to_string(&here) else {
        plan.actions.push(Action::Forget(path.to_owned()));
        return Ok(());
    };
    if ours.created.as_deref() == Some(&sum_of(before.as_bytes())) {
        plan.actions.push(Action::Remove {
            path: path.to_owned(),
            why: "as it was installed",
        });
        return Ok(());
    }
    let edited = edit::remove(&before, &[CRI_2, CRI_3], ours).map_err(|problem| {
        format!(
            "{}: {problem}: take the handlers out by hand",
            path.display()
        )
    })?;
    for name in edited.left {
        plan.notes.push(format!(
            "{}: handler {name} was changed since it was installed: it stays, and makes no container without the shim",
            path.display()
        ));
    }
    if edited.text == before {
        plan.actions.push(Action::Forget(path.to_owned()));
        return Ok(());
    }
    plan.actions.push(Action::Edit {
        path: path.to_owned(),
        text: edited.text,
        before: Some(before),
        edit: edited.edit,
    });
    Ok(())
}
