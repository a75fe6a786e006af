//! What was installed, so that a file that somebody changed since is told from one that nobody did.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::root::Root;
use super::write;
use crate::Failure;

/// Where it is written down on the node.
pub(super) const PATH: &str = "/var/lib/bulkhead/installed.json";

/// What an installation has put on the node and not yet taken away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// Version of the tool that wrote this.
    pub(super) version: String,
    /// By the path on the node.
    pub(super) files: BTreeMap<PathBuf, Sums>,
    /// Files that are an administrator's and had something added.
    pub(super) edits: BTreeMap<PathBuf, Edit>,
    /// Folders that were not there before.
    pub(super) folders: BTreeSet<PathBuf>,
}

/// SHA-256 of what a file of ours may be: one while it stands, two while it is replaced and nobody knows how far that got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Sums(pub(super) Vec<String>);

/// What was added to containerd's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    /// SHA-256 of the whole file, where there was none before.
    pub(super) created: Option<String>,
    /// The entry of `imports`.
    pub(super) import: Option<String>,
    /// There was no `imports`.
    pub(super) created_imports: bool,
    /// Handlers by their name, each with its table as it was written.
    pub(super) handlers: BTreeMap<String, String>,
}

impl Edit {
    /// Whether nothing of the file is ours.
    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Record {
    /// What the node's file says; empty where there is none.
    pub(super) fn load(root: &Root) -> Result<Self, Failure> {
        let path = root.at(Path::new(PATH))?;
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| format!("{}: {e}: mend or remove it; without it every file counts as the administrator's", path.display()).into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(format!("read {}: {error}", path.display()).into()),
        }
    }

    pub(super) fn save(&self, root: &Root) -> Result<(), Failure> {
        let path = root.at(Path::new(PATH))?;
        let text = serde_json::to_string_pretty(self)? + "\n";
        write::text(&path, &text, 0o644)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.edits.is_empty() && self.folders.is_empty()
    }

    /// Whether a file is as it was put here.
    pub(super) fn is_ours(&self, path: &Path, sum: &str) -> bool {
        self.files
            .get(path)
            .is_some_and(|sums| sums.0.iter().any(|ours| ours == sum))
    }
}

/// SHA-256 of a text.
pub(super) fn sum_of(text: &[u8]) -> String {
    hex(&Sha256::digest(text))
}

/// SHA-256 of a file; none when there is no such file.
pub(super) fn sum(path: &Path) -> Result<Option<String>, Failure> {
    let failed = |e: io::Error| format!("read {}: {e}", path.display());
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(format!("{} is not a regular file", path.display()).into());
    }
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        match buffer.get(..read) {
            Some([]) | None => return Ok(Some(hex(&hash.finalize()))),
            Some(part) => hash.update(part),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written_and_a_broken_one_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::new(folder.path()).expect("a root");
        assert!(Record::load(&root).expect("none").is_empty());
        let place = folder.path().join("var/lib/bulkhead");
        fs::create_dir_all(&place).expect("mkdir");
        let mut record = Record::default();
        let sums = Sums(vec![sum_of(b"one")]);
        record.files.insert("/usr/local/bin/x".into(), sums);
        record.save(&root).expect("save");
        assert_eq!(Record::load(&root).expect("load"), record);
        assert!(record.is_ours(Path::new("/usr/local/bin/x"), &sum_of(b"one")));
        assert!(!record.is_ours(Path::new("/usr/local/bin/x"), &sum_of(b"two")));
        fs::write(place.join("installed.json"), "{").expect("write");
        let error = Record::load(&root).expect_err("broken").to_string();
        assert!(error.contains("installed.json"), "{error}");
    }

    #[test]
    fn a_file_and_its_text_have_one_sum() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        assert_eq!(sum(&path).expect("no file"), None);
        fs::write(&path, "text").expect("write");
        assert_eq!(sum(&path).expect("a sum"), Some(sum_of(b"text")));
    }
}
