//! containerd's configuration as it is on a node: one file and what that imports.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::install::Root;

/// Name of the runtime in containerd.
pub(crate) const RUNTIME: &str = "io.containerd.bulkhead.v1";
/// The plugin that handlers belong to, in configurations of version 2.
pub(crate) const CRI_2: &str = "io.containerd.grpc.v1.cri";
/// The same since version 3.
pub(crate) const CRI_3: &str = "io.containerd.cri.v1.runtime";
/// The annotations of a pod that its policy may look at.
pub(crate) const PATTERN: &str = "dev.bulkhead.*";
/// Files of one configuration; one that includes itself ends here.
const IMPORTS_MAX: usize = 64;

/// A file of the configuration.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    /// Its path on the node.
    pub(crate) path: PathBuf,
    /// Its content, or why there is none.
    pub(crate) table: Result<toml::Table, String>,
}

impl ConfigFile {
    /// Whether it has the section that CRI has in version 2 of the configuration.
    pub(crate) fn has_cri_2(&self) -> bool {
        let table = self.table.as_ref().ok();
        let plugins = table.and_then(|table| table.get("plugins"));
        plugins.is_some_and(|plugins| plugins.get(CRI_2).is_some())
    }
}

/// A runtime handler of CRI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handler<'a> {
    /// What a RuntimeClass names.
    pub(crate) name: &'a str,
    /// The plugin it stands under.
    pub(crate) plugin: &'a str,
    /// Its settings.
    pub(crate) settings: &'a toml::Value,
}

/// The file at `main` first, then what it imports; nothing when it is not there.
pub(crate) fn read(root: &Root, main: &Path) -> Vec<ConfigFile> {
    let mut paths = vec![main.to_owned()];
    let mut files = Vec::new();
    while let Some(path) = paths.get(files.len()).cloned() {
        let text = root
            .at(&path)
            .and_then(|here| fs::read_to_string(here).map_err(Into::into));
        let table = match text {
            Ok(text) => text
                .parse::<toml::Table>()
                .map_err(|error| error.message().to_owned()),
            Err(error) if files.is_empty() && is_missing(error.as_ref()) => return files,
            Err(error) => Err(error.to_string()),
        };
        let imported = table.iter().flat_map(|table| imports(root, table, &path));
        for imported in imported.collect::<Vec<_>>() {
            if paths.len() < IMPORTS_MAX && !paths.contains(&imported) {
                paths.push(imported);
            }
        }
        files.push(ConfigFile { path, table });
    }
    files
}

fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The patterns of `imports`, as absolute paths.
pub(crate) fn patterns(table: &toml::Table, file: &Path) -> Vec<PathBuf> {
    let list = table.get("imports").and_then(toml::Value::as_array);
    let folder = file.parent().unwrap_or(Path::new("/"));
    let patterns = list.into_iter().flatten().filter_map(toml::Value::as_str);
    patterns.map(|pattern| folder.join(pattern)).collect()
}

/// Whether a pattern is for a path. The last part of it may hold one star (`cmd/containerd/server/config` in containerd).
pub(crate) fn covers(pattern: &Path, path: &Path) -> bool {
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let (Some(pattern_name), Some(path_name)) = (name(pattern), name(path)) else {
        return false;
    };
    pattern.parent() == path.parent()
        && match pattern_name.split_once('*') {
            None => pattern_name == path_name,
            Some((before, after)) => {
                path_name.len() >= before.len() + after.len()
                    && path_name.starts_with(before)
                    && path_name.ends_with(after)
            }
        }
}

/// Files that a file imports.
fn imports(root: &Root, table: &toml::Table, file: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for pattern in patterns(table, file) {
        if !pattern.to_string_lossy().contains('*') {
            found.push(pattern);
            continue;
        }
        let Some(folder) = pattern.parent() else {
            continue;
        };
        let entries = root
            .at(folder)
            .ok()
            .and_then(|here| fs::read_dir(here).ok());
        let paths = entries.into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = paths
            .map(|entry| folder.join(entry.file_name()))
            .filter(|path| covers(&pattern, path))
            .collect();
        paths.sort();
        found.append(&mut paths);
    }
    found
}

/// The version a file says it has; 1 where it says none, as containerd reads it.
pub(crate) fn version(table: &toml::Table) -> i64 {
    let version = table.get("version").and_then(toml::Value::as_integer);
    version.unwrap_or(1)
}

/// The entry of `disabled_plugins` that switches CRI off.
pub(crate) fn disabled_cri(table: &toml::Table) -> Option<&str> {
    let list = table
        .get("disabled_plugins")
        .and_then(toml::Value::as_array);
    let mut names = list.into_iter().flatten().filter_map(toml::Value::as_str);
    names.find(|name| ["cri", CRI_2, CRI_3].contains(name))
}

/// All handlers of a file, whichever runtime they run.
pub(crate) fn handlers(table: &toml::Table) -> Vec<Handler<'_>> {
    let plugins = table.get("plugins").and_then(toml::Value::as_table);
    let mut handlers = Vec::new();
    for (plugin, settings) in plugins.into_iter().flatten() {
        let containerd = settings.get("containerd");
        let runtimes = containerd.and_then(|containerd| containerd.get("runtimes")?.as_table());
        for (name, settings) in runtimes.into_iter().flatten() {
            handlers.push(Handler {
                name,
                plugin,
                settings,
            });
        }
    }
    handlers
}

impl Handler<'_> {
    /// Whether it runs Bulkhead.
    pub(crate) fn is_bulkhead(&self) -> bool {
        self.text("runtime_type") == Some(RUNTIME)
    }

    /// A setting that is text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.settings.get(key)?.as_str()
    }

    /// The policy file it names.
    pub(crate) fn policy(&self) -> Option<&str> {
        let path = self.settings.get("options")?.get("ConfigPath")?.as_str();
        path.filter(|path| !path.is_empty())
    }

    /// Its `pod_annotations`.
    pub(crate) fn pod_annotations(&self) -> Vec<&str> {
        let patterns = self.settings.get("pod_annotations");
        let patterns = patterns.and_then(toml::Value::as_array);
        let patterns = patterns.into_iter().flatten();
        patterns.filter_map(toml::Value::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_containerd_would_import() {
        let covers = |pattern, path| covers(Path::new(pattern), Path::new(path));
        assert!(covers("/e/conf.d/*.toml", "/e/conf.d/bulkhead.toml"));
        assert!(covers(
            "/e/conf.d/bulkhead*.toml",
            "/e/conf.d/bulkhead.toml"
        ));
        assert!(covers("/e/b.toml", "/e/b.toml"));
        assert!(!covers("/e/conf.d/*.toml", "/e/conf.d/bulkhead.toml.old"));
        assert!(!covers("/e/*.toml", "/e/conf.d/bulkhead.toml"));
        assert!(!covers("/e/aa*aa", "/e/aaa"));
    }

    #[test]
    fn what_is_imported_is_read_once_and_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::new(folder.path()).expect("a root");
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        let main = Path::new("/etc/containerd/config.toml");
        assert!(read(&root, main).is_empty());
        let text = "version = 3\nimports = [\"conf.d/*.toml\", \"/etc/containerd/config.toml\"]";
        write("etc/containerd/config.toml", text);
        write("etc/containerd/conf.d/b.toml", "not toml");
        write(
            "etc/containerd/conf.d/a.toml",
            "[plugins.x.containerd.runtimes.y]\nruntime_type = \"io.containerd.bulkhead.v1\"",
        );
        let files = read(&root, main);
        let names: Vec<_> = files
            .iter()
            .filter_map(|file| file.path.file_name())
            .collect();
        assert_eq!(names, ["config.toml", "a.toml", "b.toml"]);
        let second = files[1].table.as_ref().expect("a table");
        let handlers = handlers(second);
        assert_eq!((handlers[0].name, handlers[0].plugin), ("y", "x"));
        assert!(handlers[0].is_bulkhead());
        assert!(files[2].table.is_err());
    }
}
