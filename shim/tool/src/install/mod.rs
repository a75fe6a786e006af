//! Installs Bulkhead on a node, and removes it. It decides everything before it does anything, and leaves running containers
//! and files that somebody else wrote or changed.

mod apply;
mod content;
mod copies;
mod edit;
mod handlers;
mod lock;
mod plan;
mod record;
mod root;
pub(crate) mod running;
mod sidecars;
pub(crate) mod uninstall;
mod write;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use runsc_config::{Policy, RunscFlags, Sidecars};

pub(crate) use content::{CLASSES, SHIM};
use handlers::Release;
use lock::Lock;
use plan::{Node, Plan};
use record::Record;
pub(crate) use root::Root;

use crate::Failure;
use crate::ask::ask_named;
use crate::explain::features;
use crate::text::{complain, say};

/// Where the programs go by default.
const PREFIX: &str = "/usr/local/bin";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print every action and every difference, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Folder of the programs on the node.
    #[arg(long, default_value = PREFIX)]
    prefix: PathBuf,
    /// Install this runsc too, and the folder gvisor-bin if it is beside it.
    #[arg(long, value_name = "FILE")]
    runsc: Option<PathBuf>,
    /// Root of the node's file system, for an image or for a container that has the node mounted.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// containerd's configuration on the node.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/containerd/config.toml"
    )]
    containerd_config: PathBuf,
    /// containerd's release, if it has no configuration and cannot be asked.
    #[arg(long, value_enum, value_name = "RELEASE")]
    containerd_version: Option<Release>,
    /// Leave a part out. Repeat for several.
    #[arg(long, value_enum, value_name = "PART")]
    without: Vec<Part>,
    /// Replace files of somebody else too. Each is kept as NAME.bulkhead-old.
    #[arg(long)]
    replace: bool,
}

/// What is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The shim, this tool, and runsc with --runsc.
    Binaries,
    /// /etc/bulkhead/config.toml and network.toml.
    Policy,
    /// Handlers in containerd's configuration.
    Containerd,
    /// /etc/bulkhead/runtimeclass.yaml.
    Classes,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    absolute("--prefix", &arguments.prefix)?;
    absolute("--containerd-config", &arguments.containerd_config)?;
    let root = Root::new(&arguments.root)?;
    needs_root(&root, arguments.dry_run)?;
    let lock = if arguments.dry_run {
        None
    } else {
        Some(Lock::take(&root)?)
    };
    let mut record = Record::load(&root)?;
    let made = lock.as_ref().map(Lock::made).into_iter().flatten();
    let made: Vec<_> = made.map(Path::to_owned).collect();
    record.folders.extend(made.iter().cloned());
    let node = Node {
        root: &root,
        record: &record,
        replace: arguments.replace,
    };
    let mut plan = Plan::default();
    // The lock has them already; a dry run shows that they would be made.
    plan.actions
        .extend(made.into_iter().map(plan::Action::Folder));
    let folder = Path::new(record::PATH).parent().unwrap_or(Path::new("/"));
    plan.folder(&node, folder)?;
    fill(&mut plan, &node, arguments)?;
    if !plan.refusals.is_empty() {
        refuse(&plan.refusals);
        return Ok(ExitCode::FAILURE);
    }
    if !plan.actions.iter().any(is_change) {
        for note in &plan.notes {
            say(format_args!("note: {note}"));
        }
        say("nothing to do");
        return Ok(ExitCode::SUCCESS);
    }
    warn_of_runsc(&mut plan, &root)?;
    apply::show(&plan);
    if arguments.dry_run {
        say("nothing was changed: --dry-run");
        return Ok(ExitCode::SUCCESS);
    }
    let touches_containerd = plan
        .actions
        .iter()
        .any(|action| concerns(action, &arguments.containerd_config));
    let classes = plan
        .actions
        .iter()
        .any(|action| concerns(action, Path::new(CLASSES)));
    record.version = env!("CARGO_PKG_VERSION").to_owned();
    apply::run(plan, &root, &mut record)?;
    record.save(&root)?;
    say(format_args!(
        "installed; what `bulkhead uninstall` takes away is in {}",
        record::PATH
    ));
    if touches_containerd {
        say(
            "containerd knows its handlers after a restart, which containers survive: systemctl restart containerd",
        );
    }
    if classes {
        say(format_args!(
            "once for the cluster: kubectl apply -f {CLASSES}"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// A folder for the record is nothing by itself.
fn is_change(action: &plan::Action) -> bool {
    !matches!(action, plan::Action::Folder(_))
}

/// Whether a file, or the one that containerd imports beside it, is written.
fn concerns(action: &plan::Action, file: &Path) -> bool {
    match action {
        plan::Action::Text { path, .. } | plan::Action::Edit { path, .. } => {
            path == file || *path == content::drop_in_path(file)
        }
        _ => false,
    }
}

fn fill(plan: &mut Plan, node: &Node<'_>, arguments: &Arguments) -> Result<(), Failure> {
    let wants = |part| !arguments.without.contains(&part);
    let place = |name| arguments.prefix.join(name);
    if wants(Part::Binaries) {
        let own = std::env::current_exe().map_err(|e| format!("find this program: {e}"))?;
        let shim = own.with_file_name(SHIM);
        if !shim.is_file() {
            return Err(format!(
                "{} is not there: it is installed from beside this tool",
                shim.display()
            )
            .into());
        }
        if let Some(runsc) = &arguments.runsc {
            let beside = judge(runsc)?;
            sidecars::plan(plan, node, &arguments.prefix, runsc, beside.as_ref())?;
        }
        let other = match content::is_usual(&arguments.prefix) {
            true => copies::shadowed(node, &arguments.prefix)?,
            false => None,
        };
        match other {
            Some(other) => {
                plan.notes.push(format!(
                    "{} is there, and containerd finds it: no second one is put into {}, where it would hide what an upgrade of \
                     the first one brings",
                    other.display(),
                    arguments.prefix.display()
                ));
                copies::make_way(plan, node, &other, &arguments.containerd_config)?;
            }
            None => {
                plan.program(node, &place(SHIM), &shim)?;
                plan.program(node, &place(content::TOOL), &own)?;
            }
        }
    } else if arguments.runsc.is_some() {
        return Err("--runsc is one of the binaries, which --without leaves out".into());
    } else if let Some(other) = copies::shadowed(node, Path::new(PREFIX))? {
        // As a package calls it, whose programs an earlier installation from elsewhere would hide.
        copies::make_way(plan, node, &other, &arguments.containerd_config)?;
    }
    // containerd is told of a folder that it would not look into.
    let is_told = !content::is_usual(&arguments.prefix);
    let has_runsc = arguments.runsc.is_some() || node.root.at(&place(content::RUNSC))?.is_file();
    let runsc = (is_told && has_runsc).then(|| place(content::RUNSC));
    if wants(Part::Policy) {
        for (path, text) in content::policies(runsc.as_deref()) {
            plan.text(node, Path::new(path), &text)?;
        }
    }
    if wants(Part::Containerd) {
        let has_network =
            wants(Part::Policy) || node.root.at(Path::new(content::NETWORK))?.is_file();
        if !has_network {
            plan.notes.push(format!(
                "{} is not there: no handler bulkhead-net",
                content::NETWORK
            ));
        }
        let shim = is_told.then(|| place(SHIM));
        let handlers = content::handlers(shim.as_deref(), has_network);
        let (main, release) = (&arguments.containerd_config, arguments.containerd_version);
        handlers::plan(plan, node, main, release, handlers)?;
    }
    if wants(Part::Classes) {
        plan.text(node, Path::new(CLASSES), content::CLASSES_TEXT)?;
    }
    Ok(())
}

/// Refuses a runsc that cannot enforce the policy, or that has programs of another release beside it. Returns what is beside it.
fn judge(runsc: &Path) -> Result<Option<Sidecars>, Failure> {
    let failed =
        |problem: &dyn std::fmt::Display| format!("--runsc {}: {problem}", runsc.display());
    let path = std::path::absolute(runsc)?;
    if !path.is_file() {
        return Err(failed(&"there is no such file").into());
    }
    let beside = Sidecars::of(&path).map_err(|e| failed(&e))?;
    // Before the sentry is asked for its release.
    if let Some(beside) = &beside {
        sidecars::judge(beside).map_err(|e| failed(&e))?;
    }
    let features = features(&path, ask_named).map_err(|e| failed(&e))?;
    match RunscFlags::check(&Policy::strict(), &features) {
        Ok(_) => Ok(beside),
        Err(refusal) => Err(failed(&refusal).into()),
    }
}

/// Commands of a new runsc speak to sandboxes of the old one, which gVisor promises nothing about.
fn warn_of_runsc(plan: &mut Plan, root: &Root) -> Result<(), Failure> {
    let is_replaced = |action: &plan::Action| match action {
        plan::Action::Program { path, .. } => {
            path.ends_with(content::RUNSC) && root.at(path).is_ok_and(|here| here.exists())
        }
        _ => false,
    };
    let running = running::sandboxes(root)?;
    if !running.is_empty() && plan.actions.iter().any(is_replaced) {
        plan.notes.push(format!(
            "{} on the runsc that is replaced, and would go on: drain the node first if the versions are far apart",
            running::count(&running)
        ));
    }
    Ok(())
}

fn absolute(name: &str, path: &Path) -> Result<(), Failure> {
    let is_plain = path.is_absolute()
        && path
            .to_str()
            .is_some_and(|text| !text.contains(char::is_control));
    if is_plain {
        Ok(())
    } else {
        Err(format!("{name} {}: must be an absolute path", path.display()).into())
    }
}

/// Files of a node belong to root. Files of an image belong to its builder.
fn needs_root(root: &Root, dry_run: bool) -> Result<(), Failure> {
    if root.is_own() && !dry_run && !nix::unistd::geteuid().is_root() {
        return Err("only root can change a node: run it by sudo, or look with --dry-run".into());
    }
    Ok(())
}

fn refuse(refusals: &[String]) {
    for refusal in refusals {
        complain(format_args!("nothing was changed: {refusal}"));
    }
}
