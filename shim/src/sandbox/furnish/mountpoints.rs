//! Files and folders to mount over, made below a folder that somebody else can write.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, openat2, unlinkat};
use rustix::io::Errno;

use crate::sandbox::furnish::places::{INSIDE, LOOK};

/// What was made. Unless it is kept it is removed again.
#[derive(Debug, Default)]
pub(crate) struct MountPoints(Vec<(OwnedFd, PathBuf, AtFlags)>);

impl MountPoints {
    /// Opens a place below a mount, following no link, and makes what is missing of it.
    ///
    /// # Errors
    /// What the kernel says, and where something else is there.
    pub(crate) fn open(
        &mut self,
        tree: &OwnedFd,
        path: &Path,
        is_folder: bool,
    ) -> io::Result<OwnedFd> {
        let look =
            |folder: &OwnedFd, name: &Path| openat2(folder, name, LOOK, Mode::empty(), INSIDE);
        let mut at = look(tree, Path::new("."))?;
        let mut parts = path.iter().map(Path::new).peekable();
        while let Some(part) = parts.next() {
            let is_folder = is_folder || parts.peek().is_some();
            let next = match look(&at, part) {
                Err(Errno::NOENT) => {
                    self.make(&at, part, is_folder)?;
                    look(&at, part)?
                }
                found => found?,
            };
            at = next;
        }
        let found = File::from(at);
        let kind = found.metadata()?.file_type();
        if kind.is_dir() != is_folder || !(kind.is_dir() || kind.is_file()) {
            return Err(io::Error::other("was exchanged since it was looked at"));
        }
        Ok(found.into())
    }

    fn make(&mut self, folder: &OwnedFd, name: &Path, is_folder: bool) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o755);
        let how = if is_folder {
            mkdirat(folder, name, mode)?;
            AtFlags::REMOVEDIR
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(folder, name, flags, mode)?;
            AtFlags::empty()
        };
        self.0.push((folder.try_clone()?, name.to_owned(), how));
        Ok(())
    }

    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MountPoints {
    fn drop(&mut self) {
        for (folder, name, how) in self.0.drain(..).rev() {
            let _ = unlinkat(folder, name, how);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn volume() -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("there")).expect("mkdir");
        fs::write(at("there/file"), "").expect("write");
        symlink("/etc", at("out")).expect("link");
        symlink("there", at("within")).expect("link");
        let tree = File::open(folder.path()).expect("open").into();
        (folder, tree)
    }

    #[test]
    fn what_is_missing_is_made_and_goes_again_unless_it_is_kept() {
        let (folder, tree) = volume();
        for is_kept in [false, true] {
            let mut made = MountPoints::default();
            for (place, is_folder) in [("a/b/file", false), ("a/c", true), ("there/file", false)] {
                made.open(&tree, Path::new(place), is_folder)
                    .expect("a place");
            }
            assert!(folder.path().join("a/c").is_dir());
            assert!(folder.path().join("a/b/file").is_file());
            if is_kept {
                made.keep();
            } else {
                drop(made);
            }
            assert_eq!(folder.path().join("a").exists(), is_kept);
        }
        assert!(folder.path().join("there/file").exists());
    }

    #[test]
    fn no_link_is_followed_and_nothing_else_is_covered() {
        let (folder, tree) = volume();
        let mut made = MountPoints::default();
        for (place, is_folder) in [
            ("out/new", false),
            ("out", true),
            ("within/new", true),
            ("there/file", true),
            ("there", false),
            ("../new", true),
        ] {
            made.open(&tree, Path::new(place), is_folder)
                .expect_err(place);
        }
        drop(made);
        assert!(!folder.path().join("there/new").exists());
    }
}
