//! What of containerd's configuration concerns Bulkhead.

use std::fs;
use std::path::{Path, PathBuf};

use runsc_config::Policy;

use super::{Findings, State};

const RUNTIME: &str = "io.containerd.bulkhead.v1";
/// Files of one configuration; one that includes itself ends here.
const IMPORTS_MAX: usize = 64;

/// Handlers that run Bulkhead, in containerd's configuration and what that imports.
pub(super) fn check(config: &Path, findings: &mut Findings) {
    if !config.exists() {
        let text = format!(
            "{} is not there: no handler for Kubernetes",
            config.display()
        );
        let fix = "nothing for ctr and nerdctl; for Kubernetes, a handler: see README.md";
        return findings.add("containerd", State::Warn, text, fix);
    }
    let mut files = vec![config.to_owned()];
    let mut handlers = 0;
    let mut next = 0;
    while let Some(file) = files.get(next).cloned() {
        next += 1;
        let table = match fs::read_to_string(&file).map(|text| text.parse::<toml::Table>()) {
            Ok(Ok(table)) => table,
            Ok(Err(error)) => {
                let text = format!("{}: {}", file.display(), error.message());
                findings.add("containerd", State::Fail, text, "mend the file");
                continue;
            }
            Err(error) => {
                let text = format!("{}: {error}", file.display());
                findings.add("containerd", State::Fail, text, "mend the import");
                continue;
            }
        };
        if files.len() < IMPORTS_MAX {
            files.extend(imports(&table, &file));
        }
        handlers += handlers_of(&table, &file, findings);
    }
    if handlers == 0 {
        let text = format!(
            "{}: no handler has runtime_type {RUNTIME:?}",
            config.display()
        );
        let fix = "nothing for ctr and nerdctl; for Kubernetes, a handler: see README.md";
        findings.add("containerd", State::Warn, text, fix);
    }
}

/// Files that a configuration imports; the last part of a path may hold a star (`cmd/containerd/server/config` in containerd).
fn imports(table: &toml::Table, file: &Path) -> Vec<PathBuf> {
    let list = table.get("imports").and_then(toml::Value::as_array);
    let folder = file.parent().unwrap_or(Path::new("/"));
    let patterns = list.into_iter().flatten().filter_map(toml::Value::as_str);
    patterns
        .flat_map(|pattern| {
            let path = folder.join(pattern);
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            let name = name.unwrap_or_default();
            let Some((before, after)) = name.split_once('*') else {
                return vec![path];
            };
            let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok());
            let mut found: Vec<PathBuf> = entries
                .into_iter()
                .flatten()
                .flatten()
                .filter(|entry| {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    name.starts_with(before) && name.ends_with(after)
                })
                .map(|entry| entry.path())
                .collect();
            found.sort();
            found
        })
        .collect()
}

fn handlers_of(table: &toml::Table, file: &Path, findings: &mut Findings) -> usize {
    let plugins = table.get("plugins").and_then(toml::Value::as_table);
    let runtimes = plugins
        .into_iter()
        .flatten()
        .filter_map(|(_, plugin)| plugin.get("containerd")?.get("runtimes")?.as_table());
    let mut handlers = 0;
    for (name, handler) in runtimes.flatten() {
        if handler.get("runtime_type").and_then(toml::Value::as_str) != Some(RUNTIME) {
            continue;
        }
        handlers += 1;
        findings.ok("containerd", format!("{}: handler {name}", file.display()));
        let patterns = handler
            .get("pod_annotations")
            .and_then(toml::Value::as_array);
        let patterns: Vec<&str> = patterns
            .into_iter()
            .flatten()
            .filter_map(toml::Value::as_str)
            .collect();
        if patterns
            .iter()
            .any(|pattern| pattern.starts_with('*') || pattern.starts_with("io.kub"))
        {
            let text = format!(
                "handler {name}: pod_annotations lets a pod write containerd's own annotations"
            );
            let fix = "pod_annotations = [\"dev.bulkhead.*\"]";
            findings.add("containerd", State::Warn, text, fix);
        } else if !patterns.contains(&"dev.bulkhead.*") {
            let text =
                format!("handler {name}: what pods ask for by dev.bulkhead.* does not arrive");
            let fix = "pod_annotations = [\"dev.bulkhead.*\"]";
            findings.add("containerd", State::Warn, text, fix);
        }
        let options = handler
            .get("options")
            .and_then(|options| options.get("ConfigPath"));
        if let Some(path) = options
            .and_then(toml::Value::as_str)
            .filter(|path| !path.is_empty())
            && let Err(error) = Policy::load(Path::new(path))
        {
            let fix = "mend the file: until then the handler makes no container";
            findings.add(
                "containerd",
                State::Fail,
                format!("handler {name}: {error}"),
                fix,
            );
        }
    }
    handlers
}
