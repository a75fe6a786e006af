//! containerd's configuration on a node: one file and its imports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::files;
use crate::install::Root;
use crate::pattern::{self, Malformed};

/// Name of the runtime in containerd.
pub(crate) const RUNTIME: &str = "io.containerd.bulkhead.v1";
/// What the types of all of its versions begin with that are on a node at a time.
const FAMILY: &str = "io.containerd.bulkhead";
/// And the names of their files.
const PROGRAM: &str = "containerd-shim-bulkhead";
const LIST: &str = "a list of strings";
const TABLE: &str = "a table";
const TEXT: &str = "a string";
/// Settings of a handler that are looked at, with their types (`Runtime` of `internal/cri/config` in containerd).
const TYPES: [(&str, &str); 6] = [
    ("runtime_type", TEXT),
    ("runtime_path", TEXT),
    ("pod_annotations", LIST),
    ("container_annotations", LIST),
    ("options", TABLE),
    ("options.ConfigPath", TEXT),
];
/// The plugin that handlers belong to, in configurations of version 2.
pub(crate) const CRI_2: &str = "io.containerd.grpc.v1.cri";
/// The same since version 3.
pub(crate) const CRI_3: &str = "io.containerd.cri.v1.runtime";
/// The annotations of a pod that its policy may look at.
pub(crate) const PATTERN: &str = "dev.bulkhead.*";
/// What a pod may ask of its policy.
const REQUESTS: [&str; 4] = [
    "dev.bulkhead.binds",
    "dev.bulkhead.network",
    "dev.bulkhead.rootfs",
    "dev.bulkhead.scratch",
];
/// What containerd tells a runtime of a pod (`internal/cri/annotations` in containerd).
const OWN_ANNOTATIONS: [&str; 16] = [
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
];
/// The name of the plugin in configurations of version 1.
pub(crate) const CRI_1: &str = "cri";
/// Files of one configuration that are read. containerd has no limit; what is above is told.
const FILES_MAX: usize = 256;

/// A configuration, file by file.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// The main file first, then in containerd's order; none where there is no main file.
    pub(crate) files: Vec<ConfigFile>,
    /// Files that are imported as well and were not read, as they are more than [`FILES_MAX`]. What these import is not known.
    pub(crate) left_out: BTreeSet<PathBuf>,
}

/// A file of the configuration.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    /// Its path on the node.
    pub(crate) path: PathBuf,
    /// Its content, or why there is none.
    pub(crate) table: Result<toml::Table, String>,
}

impl ConfigFile {
    /// Whether it has handlers under a plugin.
    pub(crate) fn has_handlers(&self, plugin: &str) -> bool {
        let table = self.table.as_ref().ok();
        table.is_some_and(|table| runtimes(table, plugin).is_some())
    }

    /// Whether it has the section that CRI has in version 2 of the configuration.
    pub(crate) fn has_cri_2(&self) -> bool {
        let table = self.table.as_ref().ok();
        let plugins = table.and_then(|table| table.get("plugins"));
        plugins.is_some_and(|plugins| plugins.get(CRI_2).is_some())
    }
}

/// The handlers of a whole configuration, as containerd 2 reads it (`LoadConfig` of `cmd/containerd/server/config`): tables of
/// later files are merged into those of earlier ones, key by key, and all else of a later one replaces the earlier, lists included.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    runtimes: toml::Table,
    files: BTreeMap<String, Vec<PathBuf>>,
}

impl Merged {
    /// What the files that could be read come to.
    pub(crate) fn of(config: &Config) -> Self {
        let mut merged = Self::default();
        for file in &config.files {
            let Some(runtimes) = file.table.as_ref().ok().and_then(read_runtimes) else {
                continue;
            };
            merge(&mut merged.runtimes, runtimes);
            for name in runtimes.keys() {
                let files = merged.files.entry(name.clone()).or_default();
                files.push(file.path.clone());
            }
        }
        merged
    }

    /// All of them, whichever runtime they run.
    pub(crate) fn handlers(&self) -> impl Iterator<Item = Handler<'_>> {
        self.runtimes.iter().map(|(name, settings)| Handler {
            name,
            plugin: CRI_3,
            settings,
        })
    }

    /// Whether a handler of this name runs Bulkhead.
    pub(crate) fn is_bulkhead(&self, name: &str) -> bool {
        let mut handlers = self.handlers();
        handlers.any(|handler| handler.name == name && handler.is_bulkhead())
    }

    /// The files that have something of a handler, for people.
    pub(crate) fn files(&self, name: &str) -> String {
        let files = self.files.get(name).map(Vec::as_slice).unwrap_or_default();
        let files: Vec<_> = files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        files.join(", ")
    }
}

/// As `mergo.Merge` does it with an override.
fn merge(to: &mut toml::Table, from: &toml::Table) {
    for (key, value) in from {
        match (to.get_mut(key), value) {
            (Some(toml::Value::Table(to)), toml::Value::Table(from)) => merge(to, from),
            _ => {
                to.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The handlers under a plugin of a file.
fn runtimes<'a>(table: &'a toml::Table, plugin: &str) -> Option<&'a toml::Table> {
    let plugin = table.get("plugins")?.get(plugin)?;
    plugin.get("containerd")?.get("runtimes")?.as_table()
}

/// The handlers that containerd reads of a file, which it brings up to date first, since 2.3: what is under an older name of the
/// plugin counts only if there is nothing under the newer one (`configMigration` of `plugins/cri/runtime`).
fn read_runtimes(table: &toml::Table) -> Option<&toml::Table> {
    let older: &[&str] = match version(table) {
        ..=1 => &[CRI_2, CRI_1],
        2..=3 => &[CRI_2],
        _ => &[],
    };
    let mut plugins = [CRI_3].iter().chain(older);
    plugins.find_map(|plugin| runtimes(table, plugin))
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

/// The file at `main` and all that is imported; nothing when it is not there.
pub(crate) fn read(root: &Root, main: &Path) -> Config {
    let mut paths = vec![main.to_owned()];
    let mut known = BTreeSet::from([main.to_owned()]);
    let mut config = Config::default();
    while let Some(path) = paths.get(config.files.len()).cloned() {
        let text = root
            .at(&path)
            .and_then(|here| files::read_text(&here).map_err(Into::into));
        let mut table = match text {
            Ok(text) => text
                .parse::<toml::Table>()
                .map_err(|error| error.message().to_owned()),
            Err(error) if config.files.is_empty() && is_missing(error.as_ref()) => return config,
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
            if !known.insert(imported.clone()) {
                continue;
            }
            if paths.len() < FILES_MAX {
                paths.push(imported);
            } else {
                config.left_out.insert(imported);
            }
        }
        config.files.push(ConfigFile { path, table });
    }
    config
}

impl Config {
    /// Says what was not read, if anything.
    pub(crate) fn unread(&self) -> Option<String> {
        let first = self.left_out.first()?;
        let main = self.files.first()?;
        Some(format!(
            "{}: more than {FILES_MAX} files are imported, and {} of them were not looked at: {} and what is after it",
            main.path.display(),
            self.left_out.len(),
            first.display()
        ))
    }
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
            next.extend(matching.iter().map(|entry| folder.join(entry)));
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
    names.find(|name| [CRI_1, CRI_2, CRI_3].contains(name))
}

/// All handlers that a file has something of, whichever plugin they are under.
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
    /// Whether it runs Bulkhead: by its type, or by the file that containerd runs instead of the type's.
    pub(crate) fn is_bulkhead(&self) -> bool {
        let is_ours = |path: &str| {
            let name = Path::new(path).file_name();
            name.is_some_and(|name| name.as_encoded_bytes().starts_with(PROGRAM.as_bytes()))
        };
        let asked = ["runtime_type", "runtime_path"].map(|key| self.text(key));
        asked[0].is_some_and(|kind| kind.starts_with(FAMILY))
            || asked.into_iter().flatten().any(is_ours)
    }

    /// Settings that are not of the type which containerd expects, and with which its CRI does not start: each with what is
    /// there and what must be.
    pub(crate) fn mistyped(&self) -> Vec<(&'static str, &'static str, &'static str)> {
        let is_list = |value: &toml::Value| {
            let list = value.as_array();
            list.is_some_and(|list| list.iter().all(toml::Value::is_str))
        };
        let mut found = Vec::new();
        for (key, expected) in TYPES {
            let mut parts = key.split('.');
            let Some(value) = parts.try_fold(self.settings, |settings, part| settings.get(part))
            else {
                continue;
            };
            let is_right = match expected {
                LIST => is_list(value),
                TABLE => value.is_table(),
                _ => value.is_str(),
            };
            if !is_right {
                let has = if value.is_array() && expected == LIST {
                    "an array with others than strings"
                } else {
                    value.type_str()
                };
                found.push((key, has, expected));
            }
        }
        found
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

    /// Its options that are runc's.
    pub(crate) fn runc_options(&self) -> Vec<&str> {
        let options = self.settings.get("options").and_then(toml::Value::as_table);
        options
            .map(runsc_config::options_of_runc)
            .unwrap_or_default()
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
    fn a_handler_is_bulkheads_by_its_type_or_by_the_file_it_runs() {
        let is_bulkhead = |settings: &str| {
            let settings = toml::Value::Table(settings.parse().expect("TOML"));
            let (name, plugin, settings) = ("x", CRI_3, &settings);
            Handler {
                name,
                plugin,
                settings,
            }
            .is_bulkhead()
        };
        for ours in [
            "runtime_type = 'io.containerd.bulkhead.v1'",
            "runtime_type = 'io.containerd.bulkheadnext.v1'",
            "runtime_type = '/opt/containerd-shim-bulkhead-v1'",
            "runtime_type = 'io.containerd.bulkhead.v1'\nruntime_path = '/opt/shim'",
            "runtime_type = 'io.containerd.runc.v2'\nruntime_path = '/opt/containerd-shim-bulkhead-v1'",
        ] {
            assert!(is_bulkhead(ours), "{ours}");
        }
        for other in [
            "",
            "runtime_type = 'io.containerd.runc.v2'",
            "runtime_type = 'io.containerd.runsc.v1'\nruntime_path = '/opt/bulkhead/containerd-shim-runsc-v1'",
            "runtime_path = '/opt/containerd-shim-bulkhead-v1/shim'",
        ] {
            assert!(!is_bulkhead(other), "{other}");
        }
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
        assert!(read(&root, main).files.is_empty());
        let text = "version = 3\nimports = [\"conf.d/*.toml\", \"/etc/containerd/config.toml\"]";
        write("etc/containerd/config.toml", text);
        write("etc/containerd/conf.d/b.toml", "not toml");
        write(
            "etc/containerd/conf.d/a.toml",
            "[plugins.x.containerd.runtimes.y]\nruntime_type = \"io.containerd.bulkhead.v1\"",
        );
        let files = read(&root, main).files;
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
            let config = read(&root, Path::new("/etc/containerd/config.toml"));
            let files = config.files.iter().skip(1);
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
        let config = read(&root, Path::new("/etc/containerd/config.toml"));
        let problem = config.files[0].table.as_ref().expect_err("malformed");
        assert!(problem.contains("malformed pattern"), "{problem}");
    }

    #[test]
    fn later_files_are_merged_into_earlier_ones_as_containerd_does_it() {
        let merged = |texts: &[&str]| {
            let files = texts.iter().enumerate();
            let files = files.map(|(number, text)| ConfigFile {
                path: format!("/{number}").into(),
                table: Ok(text.parse().expect("TOML")),
            });
            let config = Config {
                files: files.collect(),
                ..Config::default()
            };
            let merged = Merged::of(&config);
            let files = merged.files("b");
            (toml::Value::Table(merged.runtimes), files)
        };
        let old = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.b]\n";
        let new = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.b]\n";
        let value = |text: &str| toml::Value::Table(text.parse().expect("TOML"));
        for (texts, expected, files) in [
            // Tables come together, and a list replaces a list, also by none.
            (
                &[
                    format!("{old}a = [1, 2]\nt = 'x'\no.k = 1\no.l = 1"),
                    format!("{new}a = [3]\nc = []\no.l = 2"),
                    format!("{new}c = [4]"),
                    format!("{new}a = []"),
                ][..],
                "b = { a = [], t = 'x', c = [4], o = { k = 1, l = 2 } }",
                "/0, /1, /2, /3",
            ),
            // A value of another kind replaces what was there.
            (
                &[
                    format!("{new}a = 1\nt.x = 1"),
                    format!("{new}a.x = 1\nt = ''"),
                ],
                "b = { a = { x = 1 }, t = '' }",
                "/0, /1",
            ),
            // Within a file the newer name counts alone.
            (&[format!("{old}a = 1\n{new}t = 1")], "b = { t = 1 }", "/0"),
            // Names of the plugin that the version of a file does not have are not read, older ones are.
            (
                &[
                    old.replace("= 2", "= 4") + "a = 1",
                    old.replace("= 2", "= 3") + "t = 1",
                    "[plugins.cri.containerd.runtimes.b]\nc = 1".to_owned(),
                    "version = 2\n[plugins.cri.containerd.runtimes.b]\nd = 1".to_owned(),
                ],
                "b = { t = 1, c = 1 }",
                "/1, /2",
            ),
        ] {
            let texts: Vec<_> = texts.iter().map(String::as_str).collect();
            assert_eq!(
                merged(&texts),
                (value(expected), files.to_owned()),
                "{texts:?}"
            );
        }
    }

    #[test]
    fn files_above_the_limit_are_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::new(folder.path()).expect("a root");
        let main = Path::new("/config.toml");
        fs::write(
            folder.path().join("config.toml"),
            "imports = ['d/*', 'd/*', 'e']",
        )
        .expect("write");
        fs::create_dir(folder.path().join("d")).expect("mkdir");
        for number in 0..FILES_MAX - 1 {
            fs::write(folder.path().join(format!("d/{number:04}")), "").expect("write");
        }
        let config = read(&root, main);
        assert_eq!((config.files.len(), config.left_out.len()), (FILES_MAX, 1));
        let told = config.unread().expect("told");
        assert!(told.contains("1 of them were not looked at: /e "), "{told}");
        fs::remove_file(folder.path().join("d/0000")).expect("remove");
        assert_eq!(read(&root, main).unread(), None);
    }
}
