//! What of containerd's configuration concerns Bulkhead.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use runsc_config::Policy;

use super::{Findings, ONLY_BY_PATH, State, beside_this};
use crate::ask::look_up;
use crate::containerd::{
    self, CRI_1, CRI_2, CRI_3, Config, ConfigFile, Handler, Merged, PATTERN, RUNTIME, covers,
    version,
};
use crate::daemon::{self, Daemon};
use crate::files;
use crate::install::{Root, SHIM};

/// Handlers that run Bulkhead, in containerd's configuration and what that imports. Returns the names of all handlers.
pub(super) fn check(
    root: &Root,
    config: &Path,
    read: &Config,
    findings: &mut Findings,
) -> Vec<String> {
    if read.files.is_empty() {
        let text = format!(
            "{} is not there: no handler for Kubernetes",
            config.display()
        );
        none(text, findings);
        return Vec::new();
    }
    let merged = Merged::of(read);
    let mut is_some = false;
    for file in &read.files {
        let table = match &file.table {
            Ok(table) => table,
            Err(problem) => {
                let text = format!("{}: {problem}", file.path.display());
                findings.add(
                    "containerd",
                    State::Fail,
                    text,
                    "mend the file, or what imports it",
                );
                continue;
            }
        };
        if let Some(name) = containerd::disabled_cri(table) {
            let text = format!("{}: disabled_plugins has {name:?}", file.path.display());
            let fix = "take it out for Kubernetes; ctr and nerdctl need no CRI";
            findings.add("containerd", State::Warn, text, fix);
        }
        for handler in containerd::handlers(table) {
            if handler.is_bulkhead() || merged.is_bulkhead(handler.name) {
                is_some = true;
                misplaced(handler, table, file, findings);
            }
        }
    }
    let mut names = Vec::new();
    for handler in merged.handlers() {
        names.push(handler.name.to_owned());
        if handler.is_bulkhead() {
            let text = format!("{}: handler {}", merged.files(handler.name), handler.name);
            let mistyped = handler.mistyped();
            if mistyped.is_empty() {
                findings.ok("containerd", text.as_str());
            }
            for (key, has, expected) in mistyped {
                let text = format!("{text}: {key} is {has} and must be {expected}");
                let fix = "mend it: with this containerd's CRI does not start";
                findings.add("containerd", State::Fail, text, fix);
            }
            judge(handler, findings);
        }
    }
    if let Some(text) = read.unread() {
        let fix = "put what is in these files into fewer";
        findings.add("containerd", State::Warn, text, fix);
    }
    not_imported(root, config, read, findings);
    replaced(&read.files, findings);
    mixed(&read.files, findings);
    if !is_some {
        let text = format!(
            "{}: no handler has runtime_type {RUNTIME:?}",
            config.display()
        );
        none(text, findings);
    }
    names
}

fn none(text: String, findings: &mut Findings) {
    let fix = "nothing for ctr and nerdctl; for Kubernetes: bulkhead install";
    findings.add("containerd", State::Warn, text, fix);
}

/// What a file has of a handler that runs Bulkhead, under a name of the plugin that not every containerd reads in that file.
fn misplaced(
    handler: Handler<'_>,
    table: &toml::Table,
    file: &ConfigFile,
    findings: &mut Findings,
) {
    let version = version(table);
    let reader = match (handler.plugin, version) {
        (CRI_2, 2) => return,
        (CRI_3, 2) => "containerd 1.7",
        (CRI_3, _) => return,
        (CRI_2, ..=3) | (CRI_1, ..=1) => "containerd 2.0 to 2.2",
        _ => "containerd",
    };
    let text = format!(
        "{}: handler {} is under {:?}, which {reader} does not read in a file of version {version}",
        file.path.display(),
        handler.name,
        handler.plugin,
    );
    let expected = if version == 2 { CRI_2 } else { CRI_3 };
    let fix = format!("put it under plugins.{expected:?}.containerd.runtimes");
    findings.add("containerd", State::Fail, text, fix);
}

/// One handler that runs Bulkhead, as all files together have it.
fn judge(handler: Handler<'_>, findings: &mut Findings) {
    let name = handler.name;
    if let Some(path) = handler.text("runtime_path")
        && look_up(Path::new(path), None).is_none()
    {
        let text = format!("handler {name}: runtime_path {path} is not there");
        let fix = format!("put {SHIM} there: until then the handler makes no container");
        findings.add("containerd", State::Fail, text, fix);
    }
    let fix = format!("pod_annotations = [{PATTERN:?}], and no container_annotations");
    for (key, pattern, own) in handler.open_patterns() {
        let text = format!(
            "handler {name}: {key} lets a pod write containerd's own annotations: {pattern:?} matches {own}"
        );
        findings.add("containerd", State::Warn, text, fix.as_str());
    }
    if !handler.hears_requests() {
        let text = format!("handler {name}: what pods ask for by {PATTERN} does not arrive");
        findings.add("containerd", State::Warn, text, fix);
    }
    let foreign = handler.runc_options();
    if !foreign.is_empty() {
        let text = format!(
            "handler {name}: options has {}, which is runc's",
            foreign.join(", ")
        );
        // containerd hands all of the options on as a policy, unless they name a file.
        if handler.policy().is_some() {
            let fix = "take it out: it has no effect here";
            findings.add("containerd", State::Warn, text, fix);
        } else {
            let fix = "take it out: until then the handler makes no container. A sandbox is in systemd's cgroups if the kubelet's driver is";
            findings.add("containerd", State::Fail, text, fix);
        }
    }
    let Some(path) = handler.policy() else {
        return;
    };
    match Policy::load(Path::new(path)) {
        Ok(policy) => {
            // The runsc of its own policy, as far as there is something to say of it.
            let mut own = Findings::default();
            super::runsc(&policy, &mut own);
            own.0.retain(|finding| finding.state != State::Ok);
            for finding in own.0 {
                let text = format!("handler {name}, policy {path}: {}", finding.found);
                findings.add(finding.what, finding.state, text, finding.fix);
            }
        }
        Err(error) => {
            let fix = "mend the file: until then the handler makes no container";
            let text = format!("handler {name}: {error}");
            findings.add("containerd", State::Fail, text, fix);
        }
    }
}

/// A file of handlers that lies where it should and that nothing imports.
fn not_imported(root: &Root, config: &Path, read: &Config, findings: &mut Findings) {
    let folder = config.parent().unwrap_or(Path::new("/")).join("conf.d");
    let entries = root
        .at(&folder)
        .ok()
        .and_then(|here| fs::read_dir(here).ok());
    for entry in entries.into_iter().flatten().flatten() {
        let path = folder.join(entry.file_name());
        let is_imported =
            read.files.iter().any(|file| file.path == path) || read.left_out.contains(&path);
        if is_imported || !covers(&folder.join("*.toml"), &path) {
            continue;
        }
        let text = files::read_text(&entry.path()).unwrap_or_default();
        let table: toml::Table = text.parse().unwrap_or_default();
        if containerd::handlers(&table)
            .iter()
            .any(Handler::is_bulkhead)
        {
            let text = format!("{} is not imported by {}", path.display(), config.display());
            let fix = format!(
                "imports = [{:?}] in {}",
                folder.join("*.toml"),
                config.display()
            );
            findings.add("containerd", State::Fail, text, fix);
        }
    }
}

/// In containerd 1.7 a plugin's section of a later file replaces that of an earlier one.
fn replaced(files: &[ConfigFile], findings: &mut Findings) {
    let is_newer = |file: &ConfigFile| file.table.as_ref().is_ok_and(|table| version(table) > 2);
    if files.iter().any(is_newer) {
        // 1.7 does not start with it.
        return;
    }
    let mut sections = files.iter().rev().filter(|file| file.has_cri_2());
    let Some(last) = sections.next() else { return };
    for file in sections {
        let text = format!(
            "{} has a section {CRI_2}, and so has {}: containerd 1.7 reads the former alone",
            last.path.display(),
            file.path.display()
        );
        findings.add("containerd", State::Warn, text, "keep both in one file");
    }
}

/// Handlers under both names of the plugin, of which not every containerd reads both.
fn mixed(files: &[ConfigFile], findings: &mut Findings) {
    let is_read = |file: &&ConfigFile| file.table.as_ref().is_ok_and(|table| version(table) < 4);
    let has = |file: &&ConfigFile, plugin| is_read(file) && file.has_handlers(plugin);
    let (old, new) = (
        files.iter().find(|file| has(file, CRI_2)),
        files.iter().find(|file| file.has_handlers(CRI_3)),
    );
    let both = files
        .iter()
        .find(|file| has(file, CRI_2) && has(file, CRI_3));
    let (old, new, reader) = match (both, old, new) {
        (Some(both), ..) => (both, both, "containerd"),
        (None, Some(old), Some(new)) => (old, new, "containerd 2.0 to 2.2"),
        _ => return,
    };
    let text = format!(
        "{} has handlers under {CRI_2:?}, and {} under {CRI_3:?}: {reader} reads the latter alone",
        old.path.display(),
        new.path.display()
    );
    let fix = "put all of them under one name of the plugin";
    findings.add("containerd", State::Warn, text, fix);
}

/// What a containerd that runs would find, which is not always what this shell finds.
pub(super) fn running(runsc: &Path, config: &Path, read: &Config, findings: &mut Findings) {
    for daemon in daemon::all() {
        let Daemon { pid, path, .. } = &daemon;
        super::two_shims(Some(path), findings);
        // Another one's configuration is not known.
        if daemon.config() == config {
            started_before(*pid, read, findings);
        }
        for program in [Path::new(SHIM), runsc] {
            if look_up(program, Some(path)).is_some() {
                continue;
            }
            let text = format!(
                "{} is not in the PATH of the containerd that runs (pid {pid}): {path}",
                program.display()
            );
            if program == Path::new(SHIM) && beside_this().is_some() {
                findings.add("containerd", State::Warn, text, ONLY_BY_PATH);
            } else {
                let fix = "put it into one of these folders, or add its folder to containerd's unit: Environment=PATH=…";
                findings.add("containerd", State::Fail, text, fix);
            }
        }
    }
}

/// A configuration that was changed after a containerd had read it. Every file of it counts: one that has no handler may import the
/// file that has them, or replace what that says.
fn started_before(pid: u32, read: &Config, findings: &mut Findings) {
    let Some(age) = age(pid) else { return };
    if !Merged::of(read)
        .handlers()
        .any(|handler| handler.is_bulkhead())
    {
        return;
    }
    let later = |file: &&ConfigFile| {
        changed(&file.path).is_some_and(|changed| changed + Duration::from_secs(1) < age)
    };
    let later: Vec<_> = read
        .files
        .iter()
        .filter(later)
        .map(|file| file.path.display().to_string())
        .collect();
    if later.is_empty() {
        return;
    }
    let text = format!(
        "{} was written after the containerd that runs (pid {pid}) had started, so that it does not know the handlers as they are now",
        later.join(", ")
    );
    let fix = "systemctl restart containerd: containers survive it";
    findings.add("containerd", State::Warn, text, fix);
}

/// How long ago a file was put there: a package's keeps the time of its making. A link that leads to another file since counts as well.
fn changed(path: &Path) -> Option<Duration> {
    let since = |metadata: fs::Metadata| {
        let since = u64::try_from(metadata.ctime()).unwrap_or_default();
        SystemTime::UNIX_EPOCH + Duration::from_secs(since)
    };
    let both = [fs::metadata(path), fs::symlink_metadata(path)];
    let latest = both.into_iter().flatten().map(since).max()?;
    latest.elapsed().ok()
}

/// How long ago a process was started (proc_pid_stat(5)).
fn age(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let started: u64 = stat
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()?;
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let ticks = u64::try_from(ticks).ok()?;
    let started = Duration::from_millis(started.checked_mul(1000)?.checked_div(ticks)?);
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(uptime)
        .ok()?
        .checked_sub(started)
}

/// RuntimeClasses that name a handler which containerd does not have.
pub(super) fn classes(file: &Path, is_asked: bool, handlers: &[String], findings: &mut Findings) {
    let text = match files::read_text(file) {
        Ok(text) => text,
        // Before an installation there is none to look at.
        Err(_) if !is_asked => return,
        Err(error) => {
            let text = format!("{}: {error}", file.display());
            return findings.add("classes", State::Fail, text, "give a file that is there");
        }
    };
    for name in named(&text) {
        if handlers.iter().any(|handler| handler == name) {
            let text = format!("{}: handler {name} is containerd's", file.display());
            findings.ok("classes", text);
        } else {
            let text = format!("{}: containerd has no handler {name}", file.display());
            let fix = "bulkhead install adds it; until then a pod of that class stays in ContainerCreating";
            // Installed, it may be for a cluster that this node is not of.
            let state = if is_asked { State::Fail } else { State::Warn };
            findings.add("classes", state, text, fix);
        }
    }
}

/// The handlers that RuntimeClasses name, in YAML as it is written and as kubectl prints it.
fn named(text: &str) -> Vec<&str> {
    let values = text.lines().filter_map(|line| {
        let line = line.trim_start().trim_start_matches("- ");
        let value = line.strip_prefix("handler:")?;
        let value = value.split(" #").next().unwrap_or_default().trim();
        Some(value.trim_matches(['"', '\'']))
    });
    values.filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_of_classes_are_read_from_what_people_write_and_kubectl_prints() {
        let written = "# handler: none\nkind: RuntimeClass\nhandler: bulkhead # ours\n---\nhandler: \"net\"\n";
        assert_eq!(named(written), ["bulkhead", "net"]);
        let printed = "items:\n- apiVersion: node.k8s.io/v1\n  handler: 'kata'\n- handler: runc\n";
        assert_eq!(named(printed), ["kata", "runc"]);
    }
}
