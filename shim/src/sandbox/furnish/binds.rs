//! Binds the folder or file that the policy judged, not what its name leads to by now.
//!
//! A user of the host, or root of a container that has the folder above, can exchange a folder for a link between the
//! judgement and the gofer's mount. So the shim opens each source without following a link. The command that starts the gofer
//! runs in a mount namespace of its own, in which the opened source stands under a name of the shim's. Until the command has ended, the host sees an
//! empty file or folder of that name, so the removal of the sandbox's folder never reaches what is bound.
//!
//! A destination in another bind is handled alike: a writer of that bind could lead runsc anywhere. The shim makes the place by
//! descriptors below what it opened, and mounts in the same namespace. runsc gets the outer bind alone, with everything that is
//! mounted in it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use runsc_config::{Bind, HardenedSpec};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::error::{Error, Result};
use crate::sandbox::furnish::mount::{Restriction, restrict};
use crate::sandbox::furnish::mountpoints::MountPoints;
use crate::sandbox::furnish::places::{self, InRoot, Stand, open_judged};
use crate::sandbox::furnish::shield::{self, Place, Shielded};
use crate::sandbox::furnish::small::{Copies, Messages};
use crate::sys::aside;
use node::trail;

/// What a command fails with where a mount, or its place, has gone since it was opened.
pub(crate) const GONE: Errno = Errno::STALE;

/// The mounts that a command finds in a namespace of its own.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    named: Vec<Named>,
    /// Mounts, and the files and folders in other mounts that they are to cover, each after the one it lies in.
    covering: Vec<(OwnedFd, OwnedFd)>,
    /// What runsc makes and opens itself.
    in_root: InRoot,
    /// An overlay is laid over the root.
    is_shielded: bool,
    /// What the container writes for the kubelet to read.
    messages: Messages,
}

/// A mount that is nowhere yet, and the name that it is to have.
#[derive(Debug)]
struct Named {
    tree: OwnedFd,
    name: PathBuf,
    made: Made,
}

/// What no command has got is of no use: neither the names nor the mounts stay.
impl Drop for Opened {
    fn drop(&mut self) {
        let (named, covering) = (
            std::mem::take(&mut self.named),
            std::mem::take(&mut self.covering),
        );
        if !named.is_empty() {
            // The names go first: what is let go of may hang.
            let trees: Vec<OwnedFd> = named.into_iter().map(|named| named.tree).collect();
            aside::let_go((trees, covering));
        }
    }
}

/// What was made to have the name of a mount: a file or a folder with nothing in it. It is removed when this is dropped. In the namespace of
/// a command that still has something mounted there the kernel unmounts it.
#[derive(Debug)]
pub(crate) struct Made {
    name: OsString,
    is_folder: bool,
    /// Where the name is. A later sandbox may have a folder of that name, and in it a place of the same one.
    folder: Arc<OwnedFd>,
}

impl Drop for Made {
    fn drop(&mut self) {
        let flags = if self.is_folder {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        let _ = unlinkat(&self.folder, &self.name, flags);
    }
}

/// The root filesystem of a container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root<'a> {
    pub(crate) path: &'a Path,
    /// It is not mounted for this container alone.
    pub(crate) is_foreign: bool,
}

/// Looks at the place of every bind and opens what runsc must not look for by name: every source, and everything that lies in
/// another bind. `working_folder` is what was made in the root for the container.
/// `name` gives names in `within` that nothing has yet. The returned
/// spec is the one for runsc.
///
/// # Errors
/// `FailedPrecondition` for a source that is not there or is reached by a link by now, and for a destination where something
/// else is. Nothing is left behind.
pub(crate) fn open(
    spec: &HardenedSpec,
    root: Root<'_>,
    working_folder: Option<&Path>,
    within: &Path,
    name: impl Fn() -> PathBuf,
) -> Result<(HardenedSpec, Opened)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let held = openat(CWD, within, flags, Mode::empty());
    let held = held.map_err(|e| Error::io(format!("open {}", within.display()), &e.into()))?;
    let folder = Arc::new(held);
    let stands = places::find(spec, root.path, look_at_source)?;
    let nested = Nested::of(&stands);
    let mut opened = Opened::default();
    let mut root_name = None;
    if root.is_foreign {
        let failed = |e| Error::precondition(format!("root.path: {}: {e}", root.path.display()));
        let tree = open_foreign(
            root.path,
            &stands,
            spec.has_writable_root(),
            working_folder,
            within,
        )
        .map_err(failed)?;
        opened.covering = tree.covering;
        opened.is_shielded = tree.is_shielded;
        let named = Named::new(tree.tree, name(), true, &folder)
            .map_err(|e| Error::io("make a name for the root", &e))?;
        root_name = Some(text("runsc.root", &named.name)?);
        opened.named.push(named);
    } else {
        opened.in_root = InRoot::of(&stands, root.path);
    }
    let mut mount_points = MountPoints::default();
    // The trees of those that others lie in come before the others.
    let mut trees: Vec<Option<OwnedFd>> = Vec::with_capacity(stands.len());
    let (mut covered, mut copies) = (BTreeMap::new(), Copies::default());
    for (number, stand) in stands.iter().enumerate() {
        let failed = |error: io::Error| {
            let place = stand.bind.destination.display();
            Error::precondition(format!("mounts: destination {place}: {error}"))
        };
        if stand.is_hidden {
            trees.push(None);
            continue;
        }
        let tree = if stand.is_copied() {
            copies.of(stand, &stands, within)
        } else {
            trail::at(stand.bind.source).and_then(|()| detach(&stand.source, stand.bind.recursive))
        };
        let tree = tree.and_then(|tree| restricted(tree, stand));
        trees.push(Some(tree.map_err(failed)?));
        if let Some(outer) = stand.tree.and_then(|outer| trees.get(outer)?.as_ref()) {
            let place = mount_points.open(outer, &stand.path, stand.is_folder);
            covered.insert(number, place.map_err(failed)?);
        }
    }
    let (mut sources, mut kept, mut gone) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for (number, (stand, tree)) in stands.iter().zip(trees).enumerate() {
        let Some(tree) = tree else {
            gone.insert(stand.bind.number);
            continue;
        };
        if let Some(place) = covered.remove(&number) {
            opened.covering.push((tree, place));
            gone.insert(stand.bind.number);
            continue;
        }
        let named = Named::new(tree, name(), stand.is_folder, &folder)
            .map_err(|e| Error::io("make a name for a bind", &e))?;
        sources.insert(stand.bind.number, text("runsc.root", &named.name)?);
        opened.named.push(named);
        let place = runsc_config::Place {
            destination: text("mounts: destination", &Path::new("/").join(&stand.path))?,
            holds_others: nested.holders.contains(&number),
            is_sealed: nested.sealed.contains(&number),
        };
        kept.insert(stand.bind.number, place);
    }
    mount_points.keep();
    opened.messages = copies.into_messages();
    let mut spec = spec.with_sources(&sources).with_places(&kept, &gone);
    if let Some(name) = root_name {
        spec = spec.with_root(&name);
    }
    Ok((spec, opened))
}

/// Which binds have others in them, by their number in the list.
#[derive(Debug, Default)]
struct Nested {
    holders: BTreeSet<usize>,
    /// The read-only ones that something to write lies in. gVisor would make all of it read-only, so the mount is.
    sealed: BTreeSet<usize>,
}

impl Nested {
    fn of(stands: &[Stand<'_>]) -> Self {
        let mut nested = Self::default();
        for stand in stands.iter().filter(|stand| !stand.is_hidden) {
            let Some(mut outer) = stand.tree else {
                continue;
            };
            nested.holders.insert(outer);
            while let Some(above) = stands.get(outer).and_then(|stand| stand.tree) {
                outer = above;
                nested.holders.insert(outer);
            }
            let is_read_only = stands.get(outer).is_some_and(|stand| stand.bind.read_only);
            if is_read_only && !stand.bind.read_only {
                nested.sealed.insert(outer);
            }
        }
        nested
    }
}

impl Named {
    fn new(
        tree: OwnedFd,
        name: PathBuf,
        is_folder: bool,
        folder: &Arc<OwnedFd>,
    ) -> io::Result<Self> {
        let last = name.file_name().unwrap_or_default().to_owned();
        if is_folder {
            mkdirat(folder, &last, Mode::RWXU)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(folder, &last, flags, Mode::RUSR | Mode::WUSR)?;
        }
        let made = Made {
            name: last,
            is_folder,
            folder: Arc::clone(folder),
        };
        Ok(Self { tree, name, made })
    }
}

impl Opened {
    /// Whether an overlay is laid over the root, so that nothing needs to be in it for runsc.
    pub(crate) fn is_shielded(&self) -> bool {
        self.is_shielded
    }

    /// What is to be told when the container ends.
    pub(crate) fn take_messages(&mut self) -> Messages {
        std::mem::take(&mut self.messages)
    }

    /// Looks again at what a command is about to make and open, where some time has passed.
    ///
    /// # Errors
    /// As [`open`].
    pub(crate) async fn looked_at_again(self, limit: Duration) -> Result<Self> {
        let look = move || {
            self.in_root.look_again()?;
            Ok(self)
        };
        aside::VOLUMES
            .within(limit, "look where binds are mounted", look, drop)
            .await
    }

    /// Makes a command find them. What is returned has to stay until the command has ended: by then its gofer has them in its own
    /// root, and runsc has what the gofer says of them (`cmd/gofer.go`).
    ///
    /// # Errors
    /// For a name that is none of the kernel's.
    pub(crate) fn give_to(mut self, command: &mut Command) -> Result<Vec<Made>> {
        use std::os::unix::process::CommandExt as _;
        if self.named.is_empty() {
            return Ok(Vec::new());
        }
        let mut made = Vec::new();
        let mut named: Vec<(OwnedFd, CString)> = Vec::new();
        for one in std::mem::take(&mut self.named) {
            made.push(one.made);
            let name = CString::new(one.name.as_os_str().as_bytes());
            let name = name.map_err(|e| Error::internal(format!("name of a bind: {e}")))?;
            named.push((one.tree, name));
        }
        let covering = std::mem::take(&mut self.covering);
        // SAFETY: between fork and exec only system calls happen, on strings and descriptors made before.
        unsafe {
            command.pre_exec(move || {
                unshare_unsafe(UnshareFlags::NEWNS)?;
                let below = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
                mount_change(c"/", below)?;
                let from_itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                for (tree, place) in &named {
                    move_mount(tree, c"", CWD, place.as_c_str(), from_itself)?;
                }
                let to_itself = from_itself | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
                for (tree, place) in &covering {
                    move_mount(tree, c"", place, c"", to_itself).map_err(|_| GONE)?;
                }
                Ok(())
            });
        }
        Ok(made)
    }
}

/// A path for the spec; what is `what` there.
fn text(what: &str, path: &Path) -> Result<String> {
    places::text(path).map_err(|problem| Error::precondition(format!("{what} {problem}")))
}

/// Opens a source to look at it, and to be what is mounted.
fn look_at_source(bind: &Bind<'_>) -> Result<OwnedFd> {
    open_judged(bind.source).map_err(|error| {
        Error::precondition(format!(
            "mounts: source {:?}: {error}; it must be there, and no link since it was judged",
            bind.source
        ))
    })
}

/// The mount of a bind's source, or of a copy of it, as the bind is. What is bound read-only is so already: nothing is made in it to be
/// mounted over.
fn restricted(tree: OwnedFd, stand: &Stand<'_>) -> io::Result<OwnedFd> {
    let restriction = Restriction {
        read_only: stand.bind.read_only,
        no_exec: stand.bind.no_exec,
        // A copy of a shared mount is its peer: what is mounted in it would be seen on the host.
        propagation: if stand.bind.private {
            libc::MS_PRIVATE
        } else {
            libc::MS_SLAVE
        },
    };
    restrict(&tree, restriction)?;
    Ok(tree)
}

/// A root filesystem that was not mounted for its container: no file of it is a device to the host, and where runsc is to
/// make something in it nobody else can lead it elsewhere.
fn open_foreign(
    root: &Path,
    stands: &[Stand<'_>],
    is_writable: bool,
    working_folder: Option<&Path>,
    folder: &Path,
) -> io::Result<Shielded> {
    trail::at(root)?;
    let in_root = stands
        .iter()
        .filter(|stand| stand.tree.is_none() && !stand.is_hidden);
    let places: Vec<Place<'_>> = in_root
        .map(|stand| (stand.path.as_path(), stand.is_folder))
        .collect();
    // What a writable root takes is a file in it (`boot.SelfFilestorePath`), which every other container of that root could read.
    if is_writable || !places.is_empty() {
        let working_folder = working_folder.map(|folder| (folder, true));
        let places: Vec<Place<'_>> = places.into_iter().chain(working_folder).collect();
        return shield::shield(root, folder, &places);
    }
    Ok(Shielded {
        tree: detach_foreign(root)?,
        covering: Vec::new(),
        is_shielded: false,
    })
}

/// A copy of what is at a path of the client's, with all that is mounted in it: nothing in it is a device to the host.
///
/// # Errors
/// `ELOOP` for a link in the path; else what the kernel says.
pub(crate) fn detach_foreign(path: &Path) -> io::Result<OwnedFd> {
    let tree = detach(&open_judged(path)?, true)?;
    let restriction = Restriction {
        propagation: libc::MS_SLAVE,
        ..Restriction::default()
    };
    restrict(&tree, restriction)?;
    Ok(tree)
}

/// A copy of a mount, or of a part of it, that is mounted nowhere yet.
///
/// # Errors
/// What the kernel says.
pub(crate) fn detach(file: &OwnedFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(file, c"", flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runsc_config::Writes;

    #[test]
    fn a_link_is_not_opened() {
        let folder = tempfile::tempdir().expect("tempdir");
        std::os::unix::fs::symlink("/etc", folder.path().join("link")).expect("link");
        for source in ["link", "link/ssl", "none"] {
            let source = folder.path().join(source);
            let bind = Bind {
                number: 0,
                source: &source,
                destination: Path::new("/srv"),
                recursive: true,
                read_only: false,
                no_exec: false,
                private: true,
                is_mask: false,
                writes: Writes::Host,
            };
            look_at_source(&bind).expect_err("refused");
        }
    }
}
