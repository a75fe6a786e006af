//! What of containerd's configuration concerns Bulkhead.

use std::fs;
use std::path::Path;

use runsc_config::Policy;

use super::{Findings, ONLY_BY_PATH, State, beside_this};
use crate::ask::look_up;
use crate::containerd::{
    self, CRI_2, CRI_3, ConfigFile, Handler, PATTERN, RUNTIME, covers, version,
};
use crate::files;
use crate::install::{Root, SHIM};

/// Handlers that run Bulkhead, in containerd's configuration and what that imports. Returns the names of all handlers.
pub(super) fn check(root: &Root, config: &Path, findings: &mut Findings) -> Vec<String> {
    let files = containerd::read(root, config);
    if files.is_empty() {
        let text = format!(
            "{} is not there: no handler for Kubernetes",
            config.display()
        );
        none(text, findings);
        return Vec::new();
    }
    let (mut names, mut ours) = (Vec::new(), 0);
    for file in &files {
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
            names.push(handler.name.to_owned());
            if handler.is_bulkhead() {
                ours += 1;
                judge(handler, table, file, findings);
            }
        }
    }
    not_imported(root, config, &files, findings);
    if let Some(main) = files.first() {
        replaced(main, files.get(1..).unwrap_or_default(), findings);
    }
    if ours == 0 {
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

/// One handler that runs Bulkhead.
fn judge(handler: Handler<'_>, table: &toml::Table, file: &ConfigFile, findings: &mut Findings) {
    let name = handler.name;
    let expected = if version(table) == 2 { CRI_2 } else { CRI_3 };
    if handler.plugin == expected {
        let text = format!("{}: handler {name}", file.path.display());
        findings.ok("containerd", text);
    } else {
        let text = format!(
            "{}: handler {name} is under {:?}, which containerd does not read in a file of version {}",
            file.path.display(),
            handler.plugin,
            version(table)
        );
        let fix = format!("put it under plugins.{expected:?}.containerd.runtimes");
        findings.add("containerd", State::Fail, text, fix);
    }
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
fn not_imported(root: &Root, config: &Path, files: &[ConfigFile], findings: &mut Findings) {
    let folder = config.parent().unwrap_or(Path::new("/")).join("conf.d");
    let entries = root
        .at(&folder)
        .ok()
        .and_then(|here| fs::read_dir(here).ok());
    for entry in entries.into_iter().flatten().flatten() {
        let path = folder.join(entry.file_name());
        if !covers(&folder.join("*.toml"), &path) || files.iter().any(|file| file.path == path) {
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

/// In containerd 1.7 a plugin's section of an imported file replaces that of the main file.
fn replaced(main: &ConfigFile, imported: &[ConfigFile], findings: &mut Findings) {
    for file in imported
        .iter()
        .filter(|file| main.has_cri_2() && file.has_cri_2())
    {
        let text = format!(
            "{} has a section {CRI_2}, and so has {}: containerd 1.7 reads the former alone",
            file.path.display(),
            main.path.display()
        );
        findings.add("containerd", State::Warn, text, "keep both in one file");
    }
}

/// What a containerd that runs would find, which is not always what this shell finds.
pub(super) fn running(runsc: &Path, findings: &mut Findings) {
    for (pid, path) in daemons() {
        for program in [Path::new(SHIM), runsc] {
            if look_up(program, Some(&path)).is_some() {
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

/// Every containerd that runs, with its PATH; none that this user may not look at.
fn daemons() -> Vec<(u32, String)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found = Vec::new();
    for process in processes {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let name = fs::read(process.path().join("comm")).unwrap_or_default();
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        if name.trim_ascii() == b"containerd" && !environment.is_empty() {
            let variables = environment.split(|byte| *byte == 0);
            let path = variables
                .filter_map(|one| one.strip_prefix(b"PATH="))
                .next();
            let path = String::from_utf8_lossy(path.unwrap_or_default()).into_owned();
            found.push((pid, path));
        }
    }
    found
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
