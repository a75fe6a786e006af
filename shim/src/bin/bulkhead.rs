//! `bulkhead`: the node tool. It shows what the policy makes of a container, before or while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use runsc_config::{ContainerKind, Context, Features, Hardened, HostFacts, Policy, Role, harden};
use serde_json::Value;

/// Shows what Bulkhead's policy makes of a container.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Says what a container asked for, what it is given, and which policy key decides it.
    Explain {
        /// A bundle, or a config.json. In the bundle of a running container the original request is used.
        path: PathBuf,
        /// The policy file of the handler; default: the node's own.
        #[arg(long)]
        policy: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let Action::Explain { path, policy, json } = Arguments::parse().action;
    match explain(&path, policy.as_deref(), json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead: {error}");
            ExitCode::FAILURE
        }
    }
}

fn explain(path: &Path, policy: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let policy = match policy {
        Some(path) => Policy::load(&fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()))?,
        None => Policy::load_default()?,
    };
    let (bundle, config) = if path.is_dir() {
        (path.to_owned(), config_of(path))
    } else {
        (parent(path), path.to_owned())
    };
    let asked = read(&config)?;
    let features = features(&policy.runsc().path)?;
    let bundle = fs::canonicalize(&bundle).unwrap_or(bundle);
    let hardened = given(asked, &bundle, &policy, &features)?;
    if as_json {
        println!("{}", serde_json::to_string_pretty(&hardened.report)?);
    } else {
        print(&hardened);
    }
    Ok(())
}

/// What a container in `bundle` is given. For one that joins a pod, the pod's sandbox is looked at first: in the bundle
/// beside it, where containerd keeps them all.
fn given(
    asked: Value,
    bundle: &Path,
    policy: &Policy,
    features: &Features,
) -> Result<Hardened, Failure> {
    let name = |path: Option<&Path>| Some(path?.file_name()?.to_str()?.to_owned());
    let id = name(Some(bundle)).unwrap_or_else(|| "container".to_owned());
    let namespace = name(bundle.parent()).unwrap_or_else(|| "default".to_owned());
    let judge = |asked, sandbox: &str, kind| {
        let context = Context {
            id: &id,
            sandbox_id: sandbox,
            kind,
            namespace: &namespace,
            bundle,
            features,
            host: HostFacts {
                resolve: |path| fs::canonicalize(path).ok(),
                ..HostFacts::default()
            },
        };
        harden(asked, policy, &context).map_err(|refusal| format!("refused: {refusal}").into())
    };
    match Role::of(&asked, &id).map_err(|refusal| format!("refused: {refusal}"))? {
        Role::Plain => judge(asked, &id, ContainerKind::Plain),
        Role::PodSandbox => judge(asked, &id, ContainerKind::PodSandbox),
        Role::PodContainer { sandbox } => {
            let beside = bundle.with_file_name(&sandbox);
            let root = read(&config_of(&beside))?;
            if Role::of(&root, &sandbox) != Ok(Role::PodSandbox) {
                return Err(format!("{} is no pod's sandbox", beside.display()).into());
            }
            let root = given(root, &beside, policy, features)?;
            judge(asked, &sandbox, ContainerKind::PodContainer(&root.shared))
        }
    }
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

fn features(runsc: &Path) -> Result<Features, Failure> {
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
    Ok(Features::parse(
        &String::from_utf8_lossy(&help),
        json.as_deref(),
    )?)
}

fn print(hardened: &Hardened) {
    println!(
        "{:<16} {:<44} {:<28} POLICY KEY",
        "CONTROL", "ASKED", "GIVEN"
    );
    for change in &hardened.report.changes {
        println!(
            "{:<16} {:<44} {:<28} {}",
            change.control,
            shorten(&change.asked, 44),
            shorten(&change.given, 28),
            change.key
        );
    }
    println!("\nrunsc {}", hardened.flags.args().join(" "));
}

/// Cut to a column; the JSON has it whole. Control characters of a spec must not reach the terminal.
fn shorten(text: &str, width: usize) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().count() <= width {
        return text;
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}
