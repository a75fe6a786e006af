//! What a container asked for, what it is given, and by which key.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use runsc_config::{ContainerKind, Context, Explanation, Features, Hardened, Policy, Role, harden};
use serde_json::{Value, json};

use crate::text::shorten;
use crate::{Failure, host};

/// containerd's address unless it is told otherwise (`defaults/defaults_unix.go`).
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Where containerd keeps bundles, below its state.
const TASKS: &str = "io.containerd.runtime.v2.task";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A running container's id, a bundle, or a config.json.
    container: PathBuf,
    /// Judge by this policy file: of a running container, what it would be given now. Default: for a running container
    /// what it was given; else the node's own policy.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// containerd's namespace of the id; default: the one that has it.
    #[arg(short, long)]
    namespace: Option<String>,
    /// containerd's state folder, where bundles are.
    #[arg(long, default_value_os_t = crate::default_state())]
    state: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let path = locate(arguments)?;
    let (bundle, config) = if path.is_dir() {
        (path.clone(), config_of(&path))
    } else {
        (parent(&path), path.clone())
    };
    let written = fs::read(bundle.join(Explanation::FILE)).ok();
    let explained = match (&arguments.policy, written) {
        (None, Some(written)) if path.is_dir() => Ok(serde_json::from_slice(&written)?),
        _ => judge(&bundle, &config, arguments.policy.as_deref())?,
    };
    match explained {
        Ok(explanation) if arguments.json => {
            println!("{}", serde_json::to_string_pretty(&explanation)?);
        }
        Ok(explanation) => print(&explanation),
        Err(refusal) => {
            if arguments.json {
                println!(
                    "{}",
                    serde_json::to_string_pretty(&json!({ "refused": refusal }))?
                );
            }
            return Err(format!("refused: {refusal}").into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The bundle of an id, or the path as it is.
fn locate(arguments: &Arguments) -> Result<PathBuf, Failure> {
    let asked = &arguments.container;
    if asked.exists() {
        return Ok(asked.clone());
    }
    let shown = asked.display();
    if asked.components().count() != 1 {
        return Err(format!("{shown}: there is no such file or folder").into());
    }
    let tasks = arguments.state.join(TASKS);
    let namespaces = fs::read_dir(&tasks).map_err(|e| format!("read {}: {e}", tasks.display()))?;
    let mut found: Vec<PathBuf> = namespaces
        .flatten()
        .filter(|entry| {
            let wanted = arguments.namespace.as_deref();
            wanted.is_none_or(|wanted| entry.file_name() == wanted)
        })
        .map(|entry| entry.path().join(asked))
        .filter(|bundle| bundle.is_dir())
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(bundle), true) => Ok(bundle),
        (Some(_), false) => {
            Err(format!("{shown} is in several namespaces: give --namespace").into())
        }
        (None, _) => Err(format!("no container {shown} runs below {}", tasks.display()).into()),
    }
}

/// The explanation, or the words of the refusal.
fn judge(
    bundle: &Path,
    config: &Path,
    policy: Option<&Path>,
) -> Result<Result<Explanation, String>, Failure> {
    let policy = crate::policy(policy)?;
    let asked = read(config)?;
    let features = features(&policy.runsc().path)?;
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
    let text = fs::read(config).map_err(|e| format!("read {}: {e}", config.display()))?;
    let value = serde_json::from_slice(&text);
    Ok(value.map_err(|e| format!("parse {}: {e}", config.display()))?)
}

/// The request as the client made it, where the shim has put the hardened spec in its place.
fn config_of(bundle: &Path) -> PathBuf {
    let asked = bundle.join("config.asked.json");
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

/// What a runsc can do, by its own word.
pub(crate) fn features(runsc: &Path) -> Result<Features, Failure> {
    let run = |question: &str| {
        Command::new(runsc)
            .arg(question)
            .output()
            .map_err(|e| format!("run {} {question}: {e}", runsc.display()))
    };
    let (flags, features) = (run("flags")?, run("features")?);
    let help = [flags.stdout, flags.stderr].concat();
    let json = features
        .status
        .success()
        .then(|| String::from_utf8_lossy(&features.stdout).into_owned());
    let help = String::from_utf8_lossy(&help);
    Ok(Features::parse(&help, json.as_deref())?)
}

fn print(explanation: &Explanation) {
    println!("policy: {}\n", shorten(&explanation.policy, 100));
    println!(
        "{:<16} {:<44} {:<28} POLICY KEY",
        "CONTROL", "ASKED", "GIVEN"
    );
    for change in &explanation.changes {
        println!(
            "{:<16} {:<44} {:<28} {}",
            change.control,
            shorten(&change.asked, 44),
            shorten(&change.given, 28),
            change.key
        );
    }
    println!("\nrunsc {}", explanation.flags.join(" "));
}
