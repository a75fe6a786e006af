//! Finds what a node has and lacks, and says how to mend each fault.

mod containerd;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use runsc_config::{
    Features, Platform, Policy, RunscFlags, Sidecars, trusted, trusted_folder, trusted_runsc,
};
use serde::Serialize;

use crate::Failure;
use crate::ask::{self, ask, look_up};
use crate::explain::{features, version_of};
use crate::install::{CLASSES, Root, SHIM};
use crate::text::{self, say};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Policy file of the handler. Default: the node's own.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// containerd's configuration.
    #[arg(long, default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// RuntimeClasses as YAML. containerd must have their handlers. Default: the installed ones.
    #[arg(long, value_name = "FILE")]
    runtime_classes: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// It works, with a weakness.
    Warn,
    /// Bulkhead makes no container, or does not enforce the policy.
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    /// What to do about it. Empty if there is nothing to do.
    fix: String,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, what: &'static str, found: impl Into<String>) {
        self.add(what, State::Ok, found, "");
    }

    fn add(
        &mut self,
        what: &'static str,
        state: State,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let (found, fix) = (found.into(), fix.into());
        self.0.push(Finding {
            what,
            state,
            found,
            fix,
        });
    }
}

/// Fails if a finding prevents containers.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut findings = Findings::default();
    let policy = policy(arguments.policy.as_deref(), &mut findings);
    runsc(&policy, &mut findings);
    platform(&policy, &mut findings);
    kernel(&mut findings);
    cgroups(&mut findings);
    folders(&policy, &mut findings);
    shim(&mut findings);
    let config = std::path::absolute(&arguments.containerd_config)?;
    let root = Root::new(Path::new("/"))?;
    let read = crate::containerd::read(&root, &config);
    containerd::running(&policy.runsc().path, &config, &read, &mut findings);
    let handlers = containerd::check(&root, &config, &read, &mut findings);
    let classes = arguments.runtime_classes.as_deref();
    let file = classes.unwrap_or(Path::new(CLASSES));
    containerd::classes(file, classes.is_some(), &handlers, &mut findings);
    if arguments.json {
        text::json(&findings.0)?;
    } else {
        for finding in &findings.0 {
            let state = match finding.state {
                State::Ok => "ok",
                State::Warn => "WARN",
                State::Fail => "FAIL",
            };
            say(format_args!(
                "{state:<5} {:<12} {}",
                finding.what, finding.found
            ));
            if !finding.fix.is_empty() {
                say(format_args!("{:<18} fix: {}", "", finding.fix));
            }
        }
    }
    let failed = findings
        .0
        .iter()
        .any(|finding| finding.state == State::Fail);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The policy. If it cannot be read, the strictest one stands in for the other checks.
fn policy(path: Option<&Path>, findings: &mut Findings) -> Policy {
    match crate::policy(path) {
        Ok(policy) => {
            findings.ok("policy", policy.origin());
            policy
        }
        Err(error) => {
            let fix = "mend the file: until then every create is refused";
            findings.add("policy", State::Fail, error.to_string(), fix);
            Policy::strict()
        }
    }
}

/// The shim beside this tool, if the prefix is no folder of PATH.
fn beside_this() -> Option<PathBuf> {
    let shim = std::env::current_exe().ok()?.with_file_name(SHIM);
    shim.is_file().then_some(shim)
}

/// What finds a shim that is in no folder of PATH.
const ONLY_BY_PATH: &str = "handlers with a runtime_path find it; for ctr and nerdctl, put the folder into containerd's PATH";

fn runsc(policy: &Policy, findings: &mut Findings) {
    let asked = &policy.runsc().path;
    let Some(found) = look_up(asked, None) else {
        let fix = "install runsc 2026-05 or later into containerd's PATH, or set runsc.path in the policy";
        let text = format!("{} is not in PATH", asked.display());
        return findings.add("runsc", State::Fail, text, fix);
    };
    let shown = found.display().to_string();
    if let Err(problem) = trusted_runsc(&found) {
        let fix = "make it and the folders above it root's alone to write: it runs as root";
        // Nor is it asked anything.
        return findings.add("runsc", State::Fail, problem, fix);
    }
    let features = match features(&found, ask) {
        Ok(features) => features,
        Err(error) => {
            let fix = "install a runsc that runs on this machine, with the gvisor-bin of its release or with none";
            return findings.add("runsc", State::Fail, error.to_string(), fix);
        }
    };
    let version = ask(&found, &["--version"]).map(|answer| answer.output);
    let version = version.unwrap_or_default();
    let version = version_of(&version);
    if features.calls().is_none() {
        let text = format!(
            "{shown}, {version}: its table of system calls is not believed, so seccomp profiles are allow lists, which slows starts and execs"
        );
        let fix = "install a released runsc with the gvisor-bin folder of its release";
        findings.add("runsc", State::Warn, text, fix);
    }
    match RunscFlags::check(policy, &features) {
        Ok(lost) if lost.is_empty() => findings.ok("runsc", format!("{shown}, {version}")),
        Ok(lost) => {
            let text = format!(
                "{shown}, {version}: allow_old_runsc accepts that it lacks {}",
                lost.join(", ")
            );
            findings.add("runsc", State::Warn, text, "install runsc 2026-05 or later");
        }
        Err(refusal) => {
            let fix = "install runsc 2026-05 or later";
            findings.add(
                "runsc",
                State::Fail,
                format!("{shown}, {version}: {refusal}"),
                fix,
            );
        }
    }
    sidecars(&found, &features, findings);
}

/// What is beside a runsc whose own word was right. A node without it is as good as before there was any.
fn sidecars(runsc: &Path, features: &Features, findings: &mut Findings) {
    let fix = "copy the gvisor-bin of runsc's release whole, or take the folder away";
    let shown = runsc.display();
    let found = match Sidecars::of(runsc) {
        Ok(Some(found)) => found,
        Ok(None) if features.knows_sidecars() => {
            let text = format!(
                "no {} beside {shown}: it starts sandboxes by itself",
                Sidecars::FOLDER
            );
            return findings.ok("sidecars", text);
        }
        Ok(None) => return,
        Err(problem) => return findings.add("sidecars", State::Fail, problem, fix),
    };
    let folder = found.folder().display();
    let missing = found.missing();
    if !features.knows_sidecars() {
        let text = format!("{folder}: {shown} is of a release that does not use it");
        findings.ok("sidecars", text);
    } else if missing.is_empty() {
        findings.ok("sidecars", format!("{folder}, of runsc's release"));
    } else {
        let text = format!(
            "{folder} lacks {}: starts are slower, or fail if runsc cannot do without",
            missing.join(", ")
        );
        findings.add("sidecars", State::Warn, text, fix);
    }
}

fn platform(policy: &Policy, findings: &mut Findings) {
    match policy.runsc().platform {
        Platform::Systrap => findings.ok("platform", "systrap"),
        Platform::Ptrace => findings.add(
            "platform",
            State::Warn,
            "ptrace",
            "remove runsc.platform from the policy: systrap is faster and as strict",
        ),
        Platform::Kvm if Path::new("/dev/kvm").exists() => {
            findings.ok("platform", "kvm, /dev/kvm is there")
        }
        Platform::Kvm => findings.add(
            "platform",
            State::Fail,
            "kvm, and there is no /dev/kvm",
            "remove runsc.platform from the policy, or load the kvm module",
        ),
    }
}

/// The kernel's parts that confine a sandbox.
fn kernel(findings: &mut Findings) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let users = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if users.trim() == "0" {
        let fix = "sysctl user.max_user_namespaces=15000: the sentry runs as nobody in one";
        findings.add("kernel", State::Fail, "user.max_user_namespaces is 0", fix);
    }
    if !Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        let fix = "a kernel with CONFIG_SECCOMP_FILTER: the sentry is filtered by it";
        findings.add("kernel", State::Fail, "there is no seccomp", fix);
        return;
    }
    findings.ok(
        "kernel",
        format!("{}, seccomp, user namespaces", release.trim()),
    );
}

fn cgroups(findings: &mut Findings) {
    let folder = Path::new("/sys/fs/cgroup");
    let is_v2 = folder.join("cgroup.controllers").exists();
    let has = |controller: &str| {
        if is_v2 {
            let all = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
            all.split_whitespace().any(|one| one == controller)
        } else {
            folder.join(controller).is_dir()
        }
    };
    let mode = if is_v2 { "v2" } else { "v1" };
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|one| !has(one))
        .collect();
    if missing.is_empty() {
        findings.ok("cgroups", mode);
    } else {
        let text = format!("{mode}, without {}", missing.join(", "));
        let fix = "mount the controllers, or enable them in cgroup.subtree_control: limits are set by them";
        findings.add("cgroups", State::Fail, text, fix);
    }
    let swap = fs::read("/proc/swaps").is_ok_and(|swaps| swaps.trim_ascii().contains(&b'\n'));
    if swap && !is_v2 && !folder.join("memory/memory.memsw.limit_in_bytes").exists() {
        let fix = "boot with swapaccount=1, or switch swap off";
        findings.add(
            "cgroups",
            State::Warn,
            "there is swap, and nothing limits it",
            fix,
        );
    }
}

/// The folders that the policy names. The first sandbox makes missing ones.
fn folders(policy: &Policy, findings: &mut Findings) {
    let state = Some(policy.runsc().root.as_path());
    let log = policy.log().folder.as_deref();
    for (what, key, folder) in [("state", "runsc.root", state), ("log", "log.folder", log)] {
        let Some(folder) = folder else { continue };
        let shown = folder.display();
        match trusted_folder(folder) {
            Ok(()) if fs::symlink_metadata(folder).is_ok() => {
                findings.ok(what, format!("{shown}, root's alone to write"))
            }
            Ok(()) => findings.ok(what, format!("{shown}, made by the first sandbox")),
            Err(problem) => {
                let fix = format!(
                    "make it root's alone to write, or set {key} to another folder: no container is made"
                );
                findings.add(what, State::Fail, problem, fix);
            }
        }
    }
}

/// Shims that differ, in the folders of one PATH: what replaces the second one, as the upgrade of a package does, is never run.
fn two_shims(path: Option<&str>, findings: &mut Findings) {
    let places = ask::all(Path::new(SHIM), path);
    let Some((first, others)) = places.split_first() else {
        return;
    };
    let run = fs::read(first).unwrap_or_default();
    for other in others {
        if fs::read(other).is_ok_and(|other| other != run) {
            let text = format!(
                "{} is run, and {} is another one, which is not",
                first.display(),
                other.display()
            );
            if findings.0.iter().any(|finding| finding.found == text) {
                continue;
            }
            let fix = "remove the older one; if it is a copy beside a package, `bulkhead install` removes it";
            findings.add("shim", State::Warn, text, fix);
        }
    }
}

fn shim(findings: &mut Findings) {
    let found = look_up(Path::new(SHIM), None).or_else(|| {
        let beside = beside_this()?;
        let text = format!("{} is not in PATH", beside.display());
        findings.add("shim", State::Warn, text, ONLY_BY_PATH);
        Some(beside)
    });
    let Some(found) = found else {
        let text = format!("{SHIM} is not in PATH");
        let fix = "bulkhead install, or put it into containerd's PATH: /usr/local/bin";
        return findings.add("shim", State::Fail, text, fix);
    };
    let shown = found.display().to_string();
    two_shims(None, findings);
    if let Err(problem) = trusted(&found) {
        let fix = "make it and the folders above it root's alone to write: it runs as root";
        return findings.add("shim", State::Warn, problem, fix);
    }
    let text = ask(&found, &["-v"])
        .map(|answer| answer.output)
        .unwrap_or_default();
    let own = env!("CARGO_PKG_VERSION");
    if text.contains(own) {
        findings.ok("shim", format!("{shown}, {own}"));
    } else {
        let text = format!("{shown} is not of version {own}, which this tool is of");
        findings.add("shim", State::Warn, text, "install both from one release");
    }
}
