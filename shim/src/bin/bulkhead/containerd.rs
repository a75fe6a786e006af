//! containerd's configuration as it is on a node: one file and what that imports.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::files;
use crate::install::Root;
use crate::pattern::{self, Malformed};

/// Name of the runtime in containerd.
pub(crate) const RUNTIME: &str = "io.containerd.bulkhead.v1";
/// The plugin that handlers belong to, in configurations of version 2.
pub(crate) const CRI_2: &str = "io.containerd.grpc.v1.cri";
/// The same since version 3.
pub(crate) const CRI_3: &str = "io.containerd.cri.v1.runtime";
/// The annotations of a pod that its policy may look at.
pub(crate) const PATTERN: &str = "dev.bulkhead.*";
/// What a pod may ask of its policy.
const REQUESTS: [&str; 3] = [
    "dev.bulkhead.network",
    "dev.bulkhead.rootfs",
    "dev.bulkhead.scratch",
];
/// What containerd tells a runtime of a pod (`internal/cri/annotations` in containerd), and what CRI-O does.
const OWN_ANNOTATIONS: [&str; 18] = [
    "io.containerd.cri.runtime-handler",
    "io.kubernetes.cri.container-name",
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri.pod-annotations",
    "io.kubernetes.cri.podsandbox.image-name",
    "io.kubernetes.cri.sandbox-cpu-period",
    "io.kubernetes.cri.sandbox-cpu-quota",
    "io.kubernetes.cri.sandbox-cpu-shares",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri.sandbox-log-directory",
    "io.kubernetes.cri.sandbox-memory",
    "io.kubernetes.cri.sandbox-name",
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.cri.sandbox-uid",
    "io.kubernetes.cri.untrusted-workload",
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.cri-o.SandboxID",
];
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
            .and_then(|here| files::read_text(&here).map_err(Into::into));
        let mut table = match text {
            Ok(text) => text
                .parse::<toml::Table>()
                .map_err(|error| error.message().to_owned()),
            Err(error) if files.is_empty() && is_missing(error.as_ref()) => return files,
            Err(error) => Err(error.to_string()),
        };
        let imported = match table.as_ref().map(|table| imports(root, table, &path)) {
            Ok(Ok(imported)) => imported,
            Ok(Err(problem)) => {
                table = Err(problem);
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        for imported in imported {
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
    patterns
        .map(|pattern| clean(&folder.join(pattern)))
        .collect()
}

/// Without `.` and `..`, by the words of the path alone (`filepath.Clean`).
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(cleaned.pop()),
            part => cleaned.push(part),
        }
    }
    cleaned
}

/// Only a star makes a pattern of an import: without one it is a path, whatever else it holds (`resolveImports` of
/// `cmd/containerd/server/config` in containerd).
fn is_pattern(import: &Path) -> bool {
    import.as_os_str().as_encoded_bytes().contains(&b'*')
}

/// Whether an import is for a path.
pub(crate) fn covers(import: &Path, path: &Path) -> bool {
    if !is_pattern(import) {
        return import == path;
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    pattern::matches(&text(import), &text(path)) == Ok(true)
}

/// Files that a file imports.
///
/// # Errors
/// For a malformed pattern, with which containerd does not start.
fn imports(root: &Root, table: &toml::Table, file: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for import in patterns(table, file) {
        if is_pattern(&import) {
            let expanded = expand(root, &import);
            found.append(
                &mut expanded
                    .map_err(|Malformed| format!("imports has a malformed pattern, {import:?}"))?,
            );
        } else {
            found.push(import);
        }
    }
    Ok(found)
}

/// What is there for a pattern, which may have stars in any part of it (`filepath.Glob`).
fn expand(root: &Root, import: &Path) -> Result<Vec<PathBuf>, Malformed> {
    let mut found = vec![PathBuf::from("/")];
    for part in import.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        let name = name.to_string_lossy();
        let mut next = Vec::new();
        for folder in found {
            if !name.contains(['*', '?', '[', '\\']) {
                next.push(folder.join(name.as_ref()));
                continue;
            }
            pattern::matches(&name, "")?;
            let entries = root
                .at(&folder)
                .ok()
                .and_then(|here| fs::read_dir(here).ok());
            let entries = entries.into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name());
            let mut matching: Vec<_> = names
                .filter(|entry| pattern::matches(&name, &entry.to_string_lossy()) == Ok(true))
                .collect();
            matching.sort();
            next.extend(
                matching
                    .iter()
                    .take(IMPORTS_MAX)
                    .map(|entry| folder.join(entry)),
            );
        }
        found = next;
    }
    found.retain(|path| {
        root.at(path)
            .is_ok_and(|here| here.symlink_metadata().is_ok())
    });
    Ok(found)
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

    /// The patterns by which it passes annotations on.
    fn patterns(&self, key: &str) -> Vec<&str> {
        let patterns = self.settings.get(key).and_then(toml::Value::as_array);
        let patterns = patterns.into_iter().flatten();
        patterns.filter_map(toml::Value::as_str).collect()
    }

    /// The patterns that let a pod write what containerd tells the runtime itself: each with its key and an annotation that it
    /// matches.
    pub(crate) fn open_patterns(&self) -> Vec<(&'static str, &str, &'static str)> {
        let mut found = Vec::new();
        for key in ["pod_annotations", "container_annotations"] {
            for pattern in self.patterns(key) {
                let mut own = OWN_ANNOTATIONS.into_iter();
                let own = own.find(|own| pattern::matches(pattern, own) == Ok(true));
                found.extend(own.map(|own| (key, pattern, own)));
            }
        }
        found
    }

    /// Whether everything that a pod may ask of its policy arrives.
    pub(crate) fn hears_requests(&self) -> bool {
        let patterns = self.patterns("pod_annotations");
        REQUESTS.iter().all(|request| {
            patterns
                .iter()
                .any(|pattern| pattern::matches(pattern, request) == Ok(true))
        })
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
        assert!(covers("/e/*.d/*.toml", "/e/conf.d/bulkhead.toml"));
        assert!(covers("/e/[a-c]*.toml", "/e/bulkhead.toml"));
        // Without a star it is a path.
        assert!(!covers("/e/bulkhea?.toml", "/e/bulkhead.toml"));
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

    #[test]
    fn imports_are_expanded_as_containerd_expands_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::new(folder.path()).expect("a root");
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
            fs::write(path, text).expect("write");
        };
        for file in ["a.d/x.toml", "b.d/y.toml", "c.d/z.toml", "b.d/y.txt"] {
            write(&format!("etc/containerd/{file}"), "");
        }
        let names = |imports: &str| {
            write(
                "etc/containerd/config.toml",
                &format!("imports = [{imports}]"),
            );
            let files = read(&root, Path::new("/etc/containerd/config.toml"));
            let files = files.iter().skip(1);
            let names = files.map(|file| file.path.display().to_string());
            names.collect::<Vec<_>>()
        };
        let expected = ["/etc/containerd/a.d/x.toml", "/etc/containerd/b.d/y.toml"];
        assert_eq!(names("'[ab].d/*.toml'"), expected);
        assert_eq!(names("'../containerd/./[^c].d/*.toml'"), expected);
        assert_eq!(names("'/etc/*/?.d/[xy].toml'"), expected);
        // Without a star it is the name of a file, which is not there.
        assert_eq!(names("'a.d/?.toml'"), ["/etc/containerd/a.d/?.toml"]);
        assert!(names("'[.d/*'").is_empty());
        let files = read(&root, Path::new("/etc/containerd/config.toml"));
        let problem = files[0].table.as_ref().expect_err("malformed");
        assert!(problem.contains("malformed pattern"), "{problem}");
    }
}
