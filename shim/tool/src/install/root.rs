//! The root of a node's file system, which is another folder when an image is built or a container has the node mounted.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::Failure;

/// Says where a path of the node is here. Links are the node's: an absolute one leads to the node's root, not to this one.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    folder: File,
}

impl Root {
    pub(crate) fn new(path: &Path) -> Result<Self, Failure> {
        let failed = |e: io::Error| format!("--root {}: {e}", path.display());
        let path = fs::canonicalize(path).map_err(failed)?;
        let folder = File::open(&path).map_err(failed)?;
        if !folder.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()).into());
        }
        Ok(Self { path, folder })
    }

    /// Whether this is the root that this process has.
    pub(crate) fn is_own(&self) -> bool {
        self.path == Path::new("/")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a path of the node is here, with the links of what is there followed. The rest of it is to be made.
    pub(crate) fn at(&self, path: &Path) -> Result<PathBuf, Failure> {
        let mut missing = Vec::new();
        for part in path.ancestors() {
            match self.find(part) {
                Ok(found) => return Ok(missing.iter().rev().fold(found, |to, name| to.join(name))),
                // Below a file there is nothing either.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    missing.extend(part.file_name());
                }
                Err(error) => return Err(format!("{}: {error}", part.display()).into()),
            }
        }
        Err(format!("{}: there is no root", path.display()).into())
    }

    fn find(&self, path: &Path) -> io::Result<PathBuf> {
        if self.is_own() {
            return fs::canonicalize(path);
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = openat2(
            &self.folder,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )?;
        fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_node_stay_in_the_node() {
        let folder = tempfile::tempdir().expect("a folder");
        let base = folder.path().canonicalize().expect("a path");
        fs::create_dir_all(base.join("var/usrlocal/bin")).expect("mkdir");
        fs::create_dir_all(base.join("usr")).expect("mkdir");
        std::os::unix::fs::symlink("/var/usrlocal", base.join("usr/local")).expect("link");
        std::os::unix::fs::symlink("../../../../../etc", base.join("usr/up")).expect("link");
        let root = Root::new(&base).expect("a root");
        let at = |path: &str| root.at(Path::new(path)).expect("a place");
        assert_eq!(at("/usr/local/bin/x"), base.join("var/usrlocal/bin/x"));
        assert_eq!(at("/usr/local/new/x"), base.join("var/usrlocal/new/x"));
        assert_eq!(at("/usr/up/passwd"), base.join("usr/up/passwd"));
        assert_eq!(at("/a/b/c"), base.join("a/b/c"));
    }

    #[test]
    fn a_root_that_is_not_there_is_named() {
        let error = Root::new(Path::new("/nonexistent/root")).expect_err("refused");
        assert!(error.to_string().contains("--root /nonexistent/root"));
    }
}
