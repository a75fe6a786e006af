//! One installation at a time.
//!
//! The lock is on a file that nobody but root can open: whoever can open a file, or a folder, can lock it. It lies in the folder of
//! the record, which is the same one for a container that has the node mounted and for the node itself. The file is gone with its
//! lock, and with it what was made for it and is empty.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::record;
use super::root::Root;
use crate::Failure;

/// The file's name, beside the record.
const NAME: &str = "lock";
/// How often one that goes away just then is made anew.
const TRIES: usize = 100;

/// Held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    /// The file, with its path here.
    file: Option<(Flock<File>, PathBuf)>,
    /// Folders that are taken away when they are empty: the node's paths, and those here.
    folders: Vec<(PathBuf, PathBuf)>,
}

impl Lock {
    /// # Errors
    /// When somebody else has it, or what is there in its place is not root's alone.
    pub(super) fn take(root: &Root) -> Result<Self, Failure> {
        let folder = Path::new(record::PATH).parent().unwrap_or(Path::new("/"));
        let mut lock = Self {
            file: None,
            folders: Vec::new(),
        };
        for _ in 0..TRIES {
            lock.make(root, folder)?;
            // The folder's links are the node's; the file is to be none.
            let here = root.at(folder)?.join(NAME);
            let shown = folder.join(NAME);
            let file = match open(&here) {
                Ok(file) => file,
                // Another one has just taken its folder away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(format!("open {}: {error}", shown.display()).into()),
            };
            judge(&file).map_err(|problem| format!("{}: {problem}", shown.display()))?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => {
                    let text = format!(
                        "another installation is at work: {} is locked",
                        shown.display()
                    );
                    return Err(text.into());
                }
                Err((_, error)) => return Err(format!("lock {}: {error}", shown.display()).into()),
            };
            // Else another one has ended since it was opened, and took it away.
            if is_at(&file, &here) {
                lock.file = Some((file, here));
                return Ok(lock);
            }
        }
        Err("another installation is at work".into())
    }

    /// Folders that were made for the file, the outer ones first.
    pub(super) fn made(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(|(path, _)| path.as_path())
    }

    /// Leaves it to the end of the lock to take a folder away that the file lies in. Says whether it does so.
    pub(super) fn takes_away(&mut self, root: &Root, path: &Path) -> Result<bool, Failure> {
        if !Path::new(record::PATH).starts_with(path) {
            return Ok(false);
        }
        if !self.made().any(|made| made == path) {
            self.folders.push((path.to_owned(), root.at(path)?));
            self.folders.sort();
        }
        Ok(true)
    }

    fn make(&mut self, root: &Root, folder: &Path) -> Result<(), Failure> {
        let mut parts: Vec<_> = folder.ancestors().collect();
        parts.reverse();
        for part in parts {
            let here = root.at(part)?;
            match DirBuilder::new().mode(0o755).create(&here) {
                Ok(()) if !self.made().any(|made| made == part) => {
                    self.folders.push((part.to_owned(), here));
                }
                Ok(()) => {}
                Err(_) if here.is_dir() => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(format!("{} is not a folder", part.display()).into());
                }
                Err(error) => return Err(format!("make {}: {error}", part.display()).into()),
            }
        }
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some((_, here)) = &self.file {
            // While it is locked: another one that opened it finds it gone, and makes its own.
            let _ = fs::remove_file(here);
        }
        for (_, here) in self.folders.iter().rev() {
            // What is in use stays.
            let _ = fs::remove_dir(here);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// Nobody else can have it open.
fn judge(file: &File) -> Result<(), String> {
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    let mode = metadata.mode() & 0o777;
    let own = nix::unistd::geteuid().as_raw();
    if metadata.is_file() && metadata.uid() == own && mode & 0o077 == 0 {
        return Ok(());
    }
    Err(format!(
        "is no regular file of one's own with mode 0600 (user {}, mode {mode:04o}), so that others could lock it: remove it",
        metadata.uid()
    ))
}

/// Whether the file still has its name.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |one: &fs::Metadata, other: &fs::Metadata| {
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => same(&open, &named),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn bench() -> (tempfile::TempDir, Root, PathBuf) {
        let base = tempfile::tempdir().expect("a folder");
        let root = Root::new(base.path()).expect("a root");
        let folder = base.path().join("var/lib/bulkhead");
        (base, root, folder)
    }

    #[test]
    fn one_has_it_and_nothing_of_it_is_left() {
        let (base, root, folder) = bench();
        let lock = Lock::take(&root).expect("a lock");
        assert_eq!(
            lock.made().collect::<Vec<_>>(),
            ["/var", "/var/lib", "/var/lib/bulkhead"].map(Path::new)
        );
        let mode = fs::metadata(folder.join(NAME)).expect("stat").mode();
        assert_eq!(mode & 0o777, 0o600, "nobody else can open it");
        let error = Lock::take(&root).expect_err("locked").to_string();
        assert!(error.contains("another installation is at work"), "{error}");
        assert!(
            folder.join(NAME).exists(),
            "who did not get it leaves it alone"
        );
        drop(lock);
        assert!(!base.path().join("var").exists());
        // What was there stays, and so does what somebody needs.
        fs::create_dir_all(base.path().join("var/lib")).expect("mkdir");
        drop(Lock::take(&root).expect("a lock"));
        assert!(base.path().join("var/lib").exists() && !folder.exists());
        let lock = Lock::take(&root).expect("a lock");
        fs::write(folder.join("installed.json"), "").expect("write");
        drop(lock);
        let left: Vec<_> = fs::read_dir(&folder).expect("list").flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_lock_that_was_left_is_taken_over_and_one_that_is_gone_is_none() {
        let (_base, root, folder) = bench();
        fs::create_dir_all(&folder).expect("mkdir");
        let left = open(&folder.join(NAME)).expect("one that was killed");
        drop(Lock::take(&root).expect("a lock"));
        // Its name is gone, so a lock on it holds nobody back.
        let left = Flock::lock(left, FlockArg::LockExclusiveNonblock);
        let left = left.map_err(|(_, error)| error).expect("a lock");
        assert!(!is_at(&left, &folder.join(NAME)));
        drop(Lock::take(&root).expect("a lock"));
    }

    #[test]
    fn what_others_could_open_is_no_lock_and_a_link_is_not_followed() {
        let (base, root, folder) = bench();
        fs::create_dir_all(&folder).expect("mkdir");
        let place = folder.join(NAME);
        symlink(base.path().join("elsewhere"), &place).expect("link");
        let error = Lock::take(&root).expect_err("a link").to_string();
        assert!(error.contains("/var/lib/bulkhead/lock"), "{error}");
        assert!(!base.path().join("elsewhere").exists());
        fs::remove_file(&place).expect("remove");
        fs::write(&place, "").expect("write");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = Lock::take(&root).expect_err("open to all").to_string();
        assert!(
            error.contains("/var/lib/bulkhead/lock") && error.contains("mode 0644"),
            "{error}"
        );
        assert!(place.exists(), "it is somebody's");
    }
}
