//! A root filesystem that is a folder of the client's, with the places of binds out of everybody's reach.
//!
//! runsc follows the place of each bind in the root by its names, as root of the host, and makes what is missing. A root of
//! containerd's is nobody else's. A folder of the client's another container may have in a bind: there a folder on the way
//! can be exchanged for a link that leads out. So an overlay is laid over the folder. Its upper layer, in memory, has every
//! folder on the way and every place, and what an upper layer has stays what it is, whatever the folder below becomes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};

use crate::sandbox::furnish::apart::{apart, in_memory, mounted, take_on};
use crate::sandbox::furnish::binds::detach_foreign;
use crate::sandbox::furnish::places::{INSIDE, LOOK, open_judged};
use node::mountinfo;
use node::trail;

/// A place in the root, without links, and whether a folder is to be mounted there.
pub(crate) type Place<'a> = (&'a Path, bool);

/// A root filesystem, mounted nowhere yet.
#[derive(Debug)]
pub(crate) struct Shielded {
    pub(crate) tree: OwnedFd,
    /// What is mounted below the folder, and the folders and files of `tree` that it is to cover.
    pub(crate) covering: Vec<(OwnedFd, OwnedFd)>,
    /// It is an overlay.
    pub(crate) is_shielded: bool,
}

/// Lays the overlay. `folder` is one of root's own, which nothing but the name of is used.
///
/// # Errors
/// What the kernel says; where a place is not what it was when it was looked at, or lies in a mount of its own.
pub(crate) fn shield(root: &Path, folder: &Path, places: &[Place<'_>]) -> io::Result<Shielded> {
    // Layers are named, and must be mounted where the one is who names them.
    apart(|| lay(root, folder, places))
}

fn lay(root: &Path, folder: &Path, places: &[Place<'_>]) -> io::Result<Shielded> {
    let lower = open_judged(root)?;
    let memory = in_memory(folder, &[])?;
    let made = |name: &str| {
        mkdirat(&memory, name, Mode::RWXU)?;
        open_folder(&memory, Path::new(name))
    };
    let (upper, work) = (made("upper")?, made("work")?);
    take_on(&upper, &fstat(&lower)?)?;
    for (path, is_folder) in places {
        pin(&lower, &upper, path, *is_folder)?;
    }
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, layer) in [
        ("lowerdir", &lower),
        ("upperdir", &upper),
        ("workdir", &work),
    ] {
        let name = format!("/proc/thread-self/fd/{}", layer.as_raw_fd());
        fsconfig_set_string(&overlay, key, name)?;
    }
    let tree = mounted(&overlay)?;
    let mut covering = Vec::new();
    for point in mounts_below(root)? {
        let path = point.strip_prefix(root).map_err(io::Error::other)?;
        if places.iter().any(|(place, _)| path.starts_with(place)) {
            continue;
        }
        if let Some((place, _)) = places.iter().find(|(place, _)| place.starts_with(path)) {
            return Err(io::Error::other(format!(
                "/{} lies in what is mounted at {}: unmount that, or bind it to the container",
                place.display(),
                point.display()
            )));
        }
        let failed = |error: io::Error| {
            let point = point.display();
            io::Error::other(format!("what is mounted at {point}: {error}; unmount it"))
        };
        trail::at(&point).map_err(failed)?;
        let over = openat2(&tree, path, LOOK, Mode::empty(), INSIDE);
        let over = over.map_err(|error| failed(error.into()))?;
        covering.push((detach_foreign(&point).map_err(failed)?, over));
    }
    Ok(Shielded {
        tree,
        covering,
        is_shielded: true,
    })
}

/// Where something is mounted below a folder; not what is mounted in that again.
fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let points = mountinfo::entries()?.into_iter().map(|mount| mount.point);
    let points: BTreeSet<PathBuf> = points
        .filter(|point| point.starts_with(root) && point != root)
        .collect();
    let is_outer = |point: &&PathBuf| {
        !points
            .iter()
            .any(|one| *point != one && point.starts_with(one))
    };
    Ok(points.iter().filter(is_outer).cloned().collect())
}

/// Makes a place in the upper layer, and the folders on the way, each as it is below.
fn pin(lower: &OwnedFd, upper: &OwnedFd, path: &Path, is_folder: bool) -> io::Result<()> {
    let (mut below, mut above) = (Some(lower.try_clone()?), upper.try_clone()?);
    let mut parts = path.iter().map(Path::new).peekable();
    while let Some(part) = parts.next() {
        let is_folder = is_folder || parts.peek().is_some();
        below = match below.map(|folder| openat2(folder, part, LOOK, Mode::empty(), INSIDE)) {
            Some(Ok(found)) => Some(found),
            None | Some(Err(Errno::NOENT)) => None,
            Some(Err(error)) => return Err(error.into()),
        };
        let like = below.as_ref().map(fstat).transpose()?;
        let wanted = if is_folder {
            FileType::Directory
        } else {
            FileType::RegularFile
        };
        if like.is_some_and(|like| FileType::from_raw_mode(like.st_mode) != wanted) {
            let path = path.display();
            return Err(io::Error::other(format!(
                "/{path} was exchanged since it was looked at"
            )));
        }
        let mode = Mode::from_raw_mode(0o755);
        let made = if is_folder {
            match mkdirat(&above, part, mode) {
                Ok(()) => open_folder(&above, part)?,
                Err(Errno::EXIST) => {
                    above = open_folder(&above, part)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&above, part, flags, mode)?
        };
        if let Some(like) = like {
            take_on(&made, &like)?;
        }
        above = made;
    }
    Ok(())
}

fn open_folder(folder: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_way_to_a_place_stays_what_it_was() {
        if !node::testing::has_root() {
            return;
        }
        let base = tempfile::tempdir().expect("tempdir");
        let made = |name: &str| {
            let path = base.path().join(name);
            fs::create_dir_all(&path).expect("mkdir");
            path
        };
        let (root, folder, outside) = (made("root"), made("folder"), made("outside"));
        fs::write(made("root/s").join("theirs"), "theirs").expect("write");
        fs::write(outside.join("place"), "outside").expect("write");
        let places = [(Path::new("s/place"), false), (Path::new("new/way"), true)];
        let shielded = shield(&root, &folder, &places).expect("an overlay");
        // Somebody who has the folder in a bind, before anybody has looked at what was laid over it.
        fs::rename(root.join("s"), root.join("old")).expect("rename");
        for name in ["s", "new"] {
            symlink(&outside, root.join(name)).expect("link");
        }
        let way = openat2(&shielded.tree, "s", LOOK, Mode::empty(), INSIDE).expect("a folder");
        let kind = |fd: &OwnedFd| FileType::from_raw_mode(fstat(fd).expect("stat").st_mode);
        assert_eq!(kind(&way), FileType::Directory);
        for (place, is_folder) in places {
            let found = openat2(&shielded.tree, place, LOOK, Mode::empty(), INSIDE);
            let found = found.expect("the place");
            assert_eq!(kind(&found) == FileType::Directory, is_folder);
            assert_eq!(fstat(&found).expect("stat").st_size == 0, !is_folder);
        }
        let names = fs::read_dir(root.join("old")).expect("list").count();
        assert_eq!(names, 1, "it is the client's folder");
    }
}
