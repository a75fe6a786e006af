//! Files that are whole or not there: written beside their place, then renamed. What runs from a file that is replaced keeps it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::Failure;

/// Writes a text. A file that is replaced keeps its owner and mode.
pub(super) fn text(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    put(path, mode, &mut text.as_bytes())
}

/// Copies a program.
pub(super) fn program(path: &Path, from: &Path) -> Result<(), Failure> {
    let mut from = File::open(from).map_err(|e| format!("read {}: {e}", from.display()))?;
    put(path, 0o755, &mut from)
}

fn put(path: &Path, mode: u32, from: &mut dyn io::Read) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut write = || {
        let mut staged = tempfile::Builder::new()
            .prefix(".bulkhead-")
            .tempfile_in(folder)?;
        io::copy(from, &mut staged)?;
        let before = fs::symlink_metadata(path).ok();
        let kept = before
            .as_ref()
            .map_or(mode, |before| before.mode() & 0o7777);
        let made = staged.as_file().metadata()?;
        if let Some(before) =
            before.filter(|one| (one.uid(), one.gid()) != (made.uid(), made.gid()))
        {
            std::os::unix::fs::fchown(staged.as_file(), Some(before.uid()), Some(before.gid()))?;
        }
        staged
            .as_file()
            .set_permissions(fs::Permissions::from_mode(kept))?;
        staged.flush()?;
        staged.as_file().sync_all()?;
        staged.persist(path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|e: io::Error| format!("write {}: {e}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_its_mode_stays_and_nothing_is_left_beside() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.toml");
        text(&path, "one", 0o644).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        let open = File::open(&path).expect("open");
        text(&path, "two", 0o644).expect("write");
        assert_eq!(fs::read_to_string(&path).expect("read"), "two");
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o600);
        assert_eq!(io::read_to_string(open).expect("read"), "one");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = text(Path::new("/nonexistent/x"), "", 0o644).expect_err("refused");
        assert!(error.to_string().contains("/nonexistent/x"), "{error}");
    }
}
