//! Shows what a container asked for, what it is given, and the key that decides.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use runsc_config::{
    Calls, ContainerKind, Context, Explanation, Features, Hardened, Policy, Role, Sidecars, harden,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Failure;
use crate::ask::{Ask, ask, look_up};
use crate::files;
use crate::install::{Root, running};
use crate::text::{self, say, shorten};
use node::host;
use node::names::RECORD;

/// containerd's address unless it is told otherwise (`defaults/defaults_unix.go`).
const CONTAINERD: &str = "/run/containerd/containerd.sock";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Id of a running container, or path of a bundle or a config.json. A path has a "/" in it.
    container: PathBuf,
    /// Policy file to judge by: shows what the container would be given now. Default: what a running container was given;
    /// the node's policy for a path.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// containerd's namespace of the id. Default: the one that has the id.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Folder of the sandboxes. Repeat for several. Default: the folders of the node's policies.
    #[arg(long)]
    root: Vec<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let path = locate(arguments)?;
    let (bundle, config) = if path.is_dir() {
        (path.clone(), config_of(&path))
    } else {
        (parent(&path), path.clone())
    };
    let written = files::read(&bundle.join(Explanation::FILE)).ok();
    let explained = match (&arguments.policy, written) {
        (None, Some(written)) if path.is_dir() => Ok(serde_json::from_slice(&written)?),
        _ => judge(&bundle, &config, arguments.policy.as_deref())?,
    };
    match explained {
        Ok(explanation) if arguments.json => {
            text::json(&explanation)?;
        }
        Ok(explanation) => print(&explanation),
        Err(refusal) => {
            if arguments.json {
                text::json(&json!({ "refused": refusal }))?;
            }
            return Err(format!("refused: {refusal}").into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The bundle of an id, or the path as it is.
fn locate(arguments: &Arguments) -> Result<PathBuf, Failure> {
    let asked = &arguments.container;
    let shown = asked.display();
    if asked.as_os_str().as_bytes().contains(&b'/') {
        fs::metadata(asked).map_err(|e| format!("{shown}: {e}"))?;
        return Ok(asked.clone());
    }
    let id = asked.to_str().filter(|id| !matches!(*id, "" | "." | ".."));
    let id =
        id.ok_or_else(|| format!("{shown} is no container's id; a path needs a \"/\": ./{shown}"))?;
    let bases = match arguments.root.as_slice() {
        [] => running::bases(&Root::new(Path::new("/"))?)?,
        given => given.to_vec(),
    };
    let mut found: Vec<PathBuf> = bases
        .iter()
        .filter_map(|base| fs::read_dir(base).ok())
        .flat_map(|folders| folders.flatten())
        .filter_map(|folder| bundle_in(&folder.path(), id, arguments.namespace.as_deref()))
        .collect();
    let names = |paths: &[PathBuf]| {
        let names: Vec<_> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        names.join(", ")
    };
    match (found.pop(), found.is_empty()) {
        (Some(bundle), true) => Ok(bundle),
        (Some(bundle), false) => {
            found.push(bundle);
            let places = names(&found);
            Err(
                format!("{id} is there more than once: give --namespace, or one of {places}")
                    .into(),
            )
        }
        (None, _) => {
            let places = names(&bases);
            Err(format!(
                "no container {id} runs, by the sandboxes in {places}; a path needs a \"/\""
            )
            .into())
        }
    }
}

/// What is needed here of what a shim writes down of its sandbox.
#[derive(Debug, Deserialize)]
struct Record {
    id: String,
    namespace: String,
    bundle: PathBuf,
}

/// The bundle of a container in one sandbox: the sandbox's own, or of one that joined it, which is beside that.
fn bundle_in(sandbox: &Path, id: &str, namespace: Option<&str>) -> Option<PathBuf> {
    let text = files::read(&sandbox.join(RECORD)).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    if namespace.is_some_and(|wanted| wanted != record.namespace) {
        return None;
    }
    if record.id == id {
        return Some(record.bundle);
    }
    let beside = record.bundle.with_file_name(id);
    let root = files::read_text(&beside.join(node::names::SANDBOX_ROOT)).ok()?;
    (Path::new(root.trim()) == sandbox).then_some(beside)
}

/// The explanation, or the words of the refusal.
fn judge(
    bundle: &Path,
    config: &Path,
    policy: Option<&Path>,
) -> Result<Result<Explanation, String>, Failure> {
    let policy = crate::policy(policy)?;
    let asked = read(config)?;
    let runsc = &policy.runsc().path;
    let runsc =
        look_up(runsc, None).ok_or_else(|| format!("{} is not in PATH", runsc.display()))?;
    let features = features(&runsc, ask)?;
    let bundle = fs::canonicalize(bundle).unwrap_or_else(|_| bundle.to_owned());
    Ok(given(asked, &bundle, &policy, &features)?.map(|hardened| hardened.explanation()))
}

/// What a container in `bundle` is given, or the words of the refusal. For one that joins a pod, the pod's sandbox is looked
/// at first: in the bundle beside it, where containerd keeps them all.
fn given(
    asked: Value,
    bundle: &Path,
    policy: &Policy,
    features: &Features,
) -> Result<Result<Hardened, String>, Failure> {
    let name = |path: Option<&Path>| Some(path?.file_name()?.to_str()?.to_owned());
    let id = name(Some(bundle)).unwrap_or_else(|| "container".to_owned());
    let namespace = name(bundle.parent()).unwrap_or_else(|| "default".to_owned());
    let judge = |asked, policy: &Policy, sandbox: &str, kind| {
        let context = Context {
            id: &id,
            sandbox_id: sandbox,
            kind,
            namespace: &namespace,
            bundle,
            features,
            // What the shim would see at a create.
            host: host::facts(CONTAINERD),
        };
        harden(asked, policy, &context).map_err(|refusal| refusal.to_string())
    };
    let role = match Role::of(&asked, &id) {
        Ok(role) => role,
        Err(refusal) => return Ok(Err(refusal.to_string())),
    };
    Ok(match role {
        Role::Plain => judge(asked, policy, &id, ContainerKind::Plain),
        Role::PodSandbox => judge(asked, policy, &id, ContainerKind::PodSandbox),
        Role::PodContainer { sandbox } => {
            let beside = bundle.with_file_name(&sandbox);
            let root = read(&config_of(&beside))?;
            if Role::of(&root, &sandbox) != Ok(Role::PodSandbox) {
                return Err(format!("{} is no pod's sandbox", beside.display()).into());
            }
            match given(root, &beside, policy, features)? {
                Ok(root) => {
                    let kind = ContainerKind::PodContainer(&root.shared);
                    judge(asked, &root.policy, &sandbox, kind)
                }
                Err(refusal) => Err(format!("its sandbox: {refusal}")),
            }
        }
    })
}

fn read(config: &Path) -> Result<Value, Failure> {
    let text = files::read(config).map_err(|e| format!("read {}: {e}", config.display()))?;
    let value = serde_json::from_slice(&text);
    Ok(value.map_err(|e| format!("parse {}: {e}", config.display()))?)
}

/// The request as the client made it, where the shim has put the hardened spec in its place.
fn config_of(bundle: &Path) -> PathBuf {
    let asked = bundle.join(node::names::ASKED);
    if asked.is_file() {
        asked
    } else {
        bundle.join("config.json")
    }
}

fn parent(file: &Path) -> PathBuf {
    file.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
        .to_owned()
}

/// What a runsc can do, by its own word, with what is beside it.
///
/// # Errors
/// When it does not answer as runsc does, or the sentry beside it is of another release.
pub(crate) fn features(runsc: &Path, ask: Ask) -> Result<Features, Failure> {
    let (flags, features) = (ask(runsc, &["flags"])?, ask(runsc, &["features"])?);
    let (version, table) = (ask(runsc, &["--version"])?, ask(runsc, &Calls::QUESTION)?);
    let help = [flags.output, flags.errors].concat();
    let json = features.is_success.then_some(features.output);
    let features = Features::parse(&help, json.as_deref())?;
    let sidecars = Sidecars::of(runsc)?;
    let sidecars = sidecars.as_ref();
    let used = sidecars.filter(|_| features.knows_sidecars());
    if let Some((sidecars, sentry)) = used.and_then(|found| Some((found, found.sentry()?))) {
        let said = ask(sentry, &["--version"])?;
        let release = Sidecars::release_in(&said.output).filter(|_| said.is_success);
        sidecars.fits(version_of(&version.output), release)?;
    }
    let answer = table.is_success.then_some(table.output.as_str());
    let table = Calls::of(sidecars, version_of(&version.output), &features, answer);
    let calls = table.and_then(|table| Calls::new(&table));
    let features = features.with_sidecars(sidecars);
    Ok(features.with_calls(calls.ok()))
}

/// The version in what `runsc --version` prints.
pub(crate) fn version_of(printed: &str) -> &str {
    let first = printed.lines().next().unwrap_or_default();
    first.trim_start_matches("runsc version ").trim()
}

fn print(explanation: &Explanation) {
    say(format_args!("policy: {}", explanation.policy));
    say("");
    say(format_args!(
        "{:<16} {:<44} {:<28} POLICY KEY",
        "CONTROL", "ASKED", "GIVEN"
    ));
    for change in &explanation.changes {
        say(format_args!(
            "{:<16} {:<44} {:<28} {}",
            change.control,
            shorten(&change.asked, 44),
            shorten(&change.given, 28),
            change.key
        ));
    }
    if !explanation.profile_form.is_empty() {
        say("");
        say(format_args!(
            "seccomp profile: {}",
            explanation.profile_form
        ));
    }
    say("");
    say(format_args!("runsc {}", explanation.flags.join(" ")));
}
