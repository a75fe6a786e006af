//! Binds what was judged, not what its name may lead to by now.
//!
//! A folder that lies in a user's own can be exchanged for a link between the moment the policy judges it and the moment
//! a gofer mounts it. Such a source is opened here without following a link, and the command that starts the gofer runs
//! in a mount namespace of its own, where what was opened stands under a name of the shim's. The host sees an empty file or
//! folder of that name, so removing the sandbox's folder never reaches what is bound.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use runsc_config::{Bind, HardenedSpec, trusted};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, unlinkat};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::error::{Error, Result};
use crate::{aside, trail};

/// The sources that were opened for one container.
#[derive(Debug, Default)]
pub(crate) struct Opened(BTreeMap<usize, Source>);

#[derive(Debug)]
struct Source {
    /// A mount that is nowhere yet.
    tree: OwnedFd,
    place: PathBuf,
    is_folder: bool,
    /// Where the place is. A later sandbox may have a folder of that name, and in it a place of the same one.
    folder: Arc<OwnedFd>,
}

/// What no command has got is of no use: neither the places nor the mounts stay.
impl Drop for Opened {
    fn drop(&mut self) {
        let sources = std::mem::take(&mut self.0);
        for source in sources.values() {
            let flags = if source.is_folder {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            if let Some(name) = source.place.file_name() {
                let _ = unlinkat(&source.folder, name, flags);
            }
        }
        if !sources.is_empty() {
            aside::let_go(sources);
        }
    }
}

impl Opened {
    /// Opens every source that somebody else than root could exchange. `place` gives names in `folder` that nothing has yet.
    ///
    /// # Errors
    /// `FailedPrecondition` for a source that is not there, or is reached by a link by now.
    pub(crate) fn new(
        spec: &HardenedSpec,
        folder: &Path,
        place: impl Fn() -> PathBuf,
    ) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, folder, flags, Mode::empty());
        let folder = opened.map_err(|e| Error::io(format!("open {}", folder.display()), &e.into()));
        let folder = Arc::new(folder?);
        let mut opened = Self::default();
        for bind in spec.binds().filter(|bind| is_exchangeable(bind.source)) {
            let source = open(&bind, &folder, place()).map_err(|error| {
                Error::precondition(format!(
                    "mounts: source {:?}: {error}; it must be there, and no link since it was judged",
                    bind.source
                ))
            })?;
            opened.0.insert(bind.number, source);
        }
        Ok(opened)
    }

    /// The names under which they will stand, by the number of their mount.
    pub(crate) fn places(&self) -> BTreeMap<usize, PathBuf> {
        let places = self.0.iter();
        places
            .map(|(number, source)| (*number, source.place.clone()))
            .collect()
    }

    /// Makes a command find them.
    ///
    /// # Errors
    /// For a name that is none of the kernel's.
    pub(crate) fn give_to(mut self, command: &mut Command) -> Result<()> {
        use std::os::unix::process::CommandExt as _;
        if self.0.is_empty() {
            return Ok(());
        }
        let sources = std::mem::take(&mut self.0).into_values().map(|source| {
            let place = CString::new(source.place.as_os_str().as_bytes());
            place.map(|place| (source.tree, place))
        });
        let sources: Vec<(OwnedFd, CString)> = sources
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| Error::internal(format!("name of a bind: {e}")))?;
        // SAFETY: between fork and exec only system calls happen, on strings and descriptors made before.
        unsafe {
            command.pre_exec(move || {
                unshare_unsafe(UnshareFlags::NEWNS)?;
                let below = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
                mount_change(c"/", below)?;
                for (tree, place) in &sources {
                    let from_itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                    move_mount(tree, c"", CWD, place.as_c_str(), from_itself)?;
                    // A copy of a shared mount is its peer; from here it is to hear of the host's mounts alone.
                    mount_change(place.as_c_str(), below)?;
                }
                Ok(())
            });
        }
        Ok(())
    }
}

/// Whether anybody but root can put something else in a path's place: whoever can write a folder above it.
fn is_exchangeable(path: &Path) -> bool {
    let Some(parent) = path.parent() else {
        return false;
    };
    let metadata = trail::at(path).and_then(|()| fs::symlink_metadata(parent));
    let open = metadata.map_or(true, |parent| parent.mode() & 0o022 != 0);
    open || trusted(parent).is_err()
}

fn open(bind: &Bind<'_>, folder: &Arc<OwnedFd>, place: PathBuf) -> io::Result<Source> {
    trail::at(bind.source)?;
    let no_link = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat2(CWD, bind.source, flags, Mode::empty(), no_link)?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if bind.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(&file, c"", flags)?;
    let file = fs::File::from(file);
    let is_folder = file.metadata()?.is_dir();
    let name = place.file_name().unwrap_or_default();
    if is_folder {
        mkdirat(folder, name, Mode::RWXU)?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?;
    }
    Ok(Source {
        tree,
        is_folder,
        folder: Arc::clone(folder),
        place,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_exchange_is_told_from_what_they_cannot() {
        assert!(!is_exchangeable(Path::new("/etc")));
        assert!(!is_exchangeable(Path::new("/usr/bin/env")));
        // In a sticky folder everybody can exchange what is his own.
        assert!(is_exchangeable(Path::new("/tmp/x")));
        assert!(is_exchangeable(Path::new("/nonexistent/x")));
    }

    #[test]
    fn a_link_is_not_opened() {
        let folder = tempfile::tempdir().expect("tempdir");
        let file = fs::File::open(folder.path()).expect("open");
        let root = Arc::new(OwnedFd::from(file));
        std::os::unix::fs::symlink("/etc", folder.path().join("link")).expect("link");
        for source in ["link", "link/ssl", "none"] {
            let source = folder.path().join(source);
            let bind = Bind {
                number: 0,
                source: &source,
                recursive: true,
            };
            open(&bind, &root, folder.path().join("place")).expect_err("refused");
            assert!(!folder.path().join("place").exists());
        }
    }
}
