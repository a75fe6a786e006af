//! Looks at what an image has where the policy puts scratch, so that it can be shown there.
//!
//! The image is anybody's. So everything is looked at by descriptors beneath the root and by links of the root's own alone, nothing
//! but folders is opened, a folder is read as far as the bound goes, and what is looked at is bounded for a container as a whole.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use runsc_config::{Budget, HardenedSpec, Report, Scene, Scenery, Seen, SeenFolder};
use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fstat, openat, openat2};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::sandbox::furnish::places::{self, INSIDE, LOOK, open_judged};

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// The spec with what its root filesystem, which must be mounted, has where the policy puts scratch; what is not shown as it is
/// there is reported.
///
/// # Errors
/// `FailedPrecondition` for a folder that cannot be looked at.
pub(crate) fn show(spec: &HardenedSpec, root: &Path) -> Result<(HardenedSpec, Report)> {
    let mut report = Report::default();
    if spec.sceneries().is_empty() {
        return Ok((spec.clone(), report));
    }
    let image = Image::open(root)
        .map_err(|e| Error::precondition(format!("root.path: {}: {e}", root.display())))?;
    let places: Vec<(&Path, PathBuf)> = spec
        .destinations()
        .map(|place| (place, image.real(place)))
        .collect();
    let mut budget = Budget::OF_A_CONTAINER;
    let mut scenes: Vec<Scene> = Vec::new();
    for scenery in spec.sceneries() {
        // Of two sceneries at one place, by a link of the image, the first stays.
        let covered = spec.sceneries().iter().zip(&scenes);
        let covered =
            covered.filter(|(_, scene)| matches!(scene, Scene::Covered | Scene::OfTheRoot));
        let gone: Vec<&Path> = covered
            .map(|(other, _)| other.destination.as_path())
            .collect();
        let is_other = |place: &Path| place != scenery.destination && !gone.contains(&place);
        let others = places.iter().filter(|(place, _)| is_other(place));
        let others: Vec<&Path> = others.map(|(_, real)| real.as_path()).collect();
        // Its tmpfs would be where the link leads, and the container has no link.
        let seen = places::look_for_veils(spec, root, &scenery.destination);
        let scene = seen.and_then(|()| image.look_at(spec, scenery, &others, &mut budget));
        scenes.push(scene.map_err(|e| {
            let place = scenery.destination.display();
            Error::precondition(format!("what the image has at {place}: {e}"))
        })?);
    }
    Ok((spec.with_scenes(&scenes, &mut report), report))
}

/// A root filesystem.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    path: &'a Path,
    root: OwnedFd,
}

/// A folder that is looked at.
struct Inside {
    file: OwnedFd,
    path: PathBuf,
    depth: usize,
}

impl<'a> Image<'a> {
    pub(crate) fn open(path: &'a Path) -> io::Result<Self> {
        let root = open_judged(path)?;
        Ok(Self { path, root })
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// A path of the container without the links of the image.
    pub(crate) fn real(&self, place: &Path) -> PathBuf {
        // What is not there is made there. Nothing is below what is not there, so few of many names have to be looked at.
        let above: Vec<&Path> = place.ancestors().collect();
        let missing = above.partition_point(|there| self.find(there).is_err());
        let found = above
            .get(missing)
            .and_then(|there| Some((there, self.find(there).ok()?)));
        match found {
            Some((there, (_, real))) => {
                join(&real, place.strip_prefix(there).unwrap_or(Path::new("")))
            }
            None => place.to_owned(),
        }
    }

    /// What a path of the container leads to in the root, by links of its own, and where that is.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn find(&self, place: &Path) -> io::Result<(OwnedFd, PathBuf)> {
        let file = openat2(&self.root, place, LOOK, Mode::empty(), IN_ROOT)?;
        let below = places::below(&self.root, &file)?;
        Ok((file, join(Path::new("/"), &below)))
    }

    fn is_link(&self, place: &Path) -> bool {
        let file = openat2(
            &self.root,
            place,
            LOOK | OFlags::NOFOLLOW,
            Mode::empty(),
            IN_ROOT,
        );
        let stat = file.and_then(fstat);
        stat.is_ok_and(|stat| kind(&stat) == FileType::Symlink)
    }

    fn look_at(
        &self,
        spec: &HardenedSpec,
        scenery: &Scenery,
        others: &[&Path],
        budget: &mut Budget,
    ) -> io::Result<Scene> {
        let none = |reason| Ok(Scene::None { reason });
        let found = match self.find(&scenery.destination) {
            Ok(found) => Some(found),
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(error),
        };
        let place = self.real(&scenery.destination);
        if others.contains(&place.as_path()) {
            return Ok(Scene::Covered);
        }
        // A link may lead to what another one is for, or to a folder that holds more than scratch.
        if place == Path::new("/") {
            return none("none: the image has a link to its root there");
        }
        let is_folder = |file: &OwnedFd| fstat(file).map(|stat| kind(&stat) == FileType::Directory);
        let is_writable = spec.has_writable_root();
        let (file, source) = match (found, &scenery.source) {
            (Some((file, _)), None) => {
                if !is_folder(&file)? {
                    return none("none: the image has something else than a folder there");
                }
                if is_writable && !entries(&file, 0)?.is_empty_folder() {
                    return Ok(Scene::OfTheRoot);
                }
                (
                    file,
                    join(self.path, place.strip_prefix("/").unwrap_or(&place)),
                )
            }
            (Some((file, _)), Some(_)) if is_writable && is_folder(&file)? => {
                return Ok(Scene::OfTheRoot);
            }
            (None, _) if self.is_link(&scenery.destination) => {
                // runsc would put an own one at /tmp, and fail.
                let problem = "a link to what is not there; make it a folder";
                return Err(io::Error::other(problem));
            }
            (_, Some(source)) => {
                let file = open_judged(source)?;
                if !is_folder(&file)? {
                    return none("none: the image has something else than a folder there");
                }
                (file, source.clone())
            }
            // Ours is made.
            (None, None) => return Ok(Scene::Absent),
        };
        // It would be shown at another place, or be another's content.
        if place.to_str().is_none() || source.to_str().is_none() {
            return none("none: a link leads to a name there that is no UTF-8");
        }
        *budget = budget.at(spec.size_at(&scenery.destination).unwrap_or_default());
        let mut seen = Seen {
            place,
            source,
            folders: Vec::new(),
            bound: Vec::new(),
            hidden: Vec::new(),
        };
        look_around(file, &mut seen, others, budget)?;
        Ok(Scene::Seen(seen))
    }
}

/// Looks at a folder and at those in it, the nearest first.
fn look_around(
    file: OwnedFd,
    seen: &mut Seen,
    others: &[&Path],
    budget: &mut Budget,
) -> io::Result<()> {
    let path = PathBuf::new();
    let mut waiting = VecDeque::from([Inside {
        file,
        path,
        depth: 0,
    }]);
    while let Some(Inside { file, path, depth }) = waiting.pop_front() {
        let found = entries(&file, budget.entries())?;
        let is_place = depth == 0;
        let fits = match &found {
            Entries::Some(names) if is_place => budget.take(names.len()),
            Entries::Some(names) => budget.take_folder(depth, names.len()),
            Entries::TooMany => false,
        };
        let place = join(&seen.place, &path);
        if !fits && !is_place {
            if others.iter().any(|other| other.starts_with(&place)) {
                seen.hidden.push((
                    path,
                    "not shown: another mount lies in it, and it holds too much",
                ));
            } else {
                seen.bound.push(path);
            }
            continue;
        }
        seen.folders.push(folder(&file, &path)?);
        let Entries::Some(names) = found else {
            seen.hidden
                .push((path.join("*"), "not shown: too many files and folders"));
            continue;
        };
        if !fits {
            seen.hidden
                .push((path.join("*"), "not shown: too many files and folders"));
            continue;
        }
        for name in names {
            let path = path.join(&name);
            if others.contains(&join(&seen.place, &path).as_path()) {
                continue;
            }
            if name.to_str().is_none() {
                seen.hidden.push((path, "not shown: its name is no text"));
                continue;
            }
            let entry = match openat2(&file, &name, LOOK | OFlags::NOFOLLOW, Mode::empty(), INSIDE)
            {
                Ok(entry) => entry,
                // It went meanwhile.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            match kind(&fstat(&entry)?) {
                FileType::RegularFile => seen.bound.push(path),
                FileType::Directory => waiting.push_back(Inside {
                    file: entry,
                    path,
                    depth: depth + 1,
                }),
                FileType::Symlink => seen.hidden.push((path, "not shown: a link")),
                FileType::Fifo => seen.hidden.push((path, "not shown: a FIFO")),
                FileType::Socket => seen.hidden.push((path, "not shown: a socket")),
                _ => seen.hidden.push((path, "not shown: a device")),
            }
        }
    }
    Ok(())
}

fn folder(file: &OwnedFd, path: &Path) -> io::Result<SeenFolder> {
    let stat = fstat(file)?;
    Ok(SeenFolder {
        path: path.to_owned(),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode & 0o7777,
    })
}

/// The names in a folder.
enum Entries {
    Some(Vec<OsString>),
    TooMany,
}

impl Entries {
    fn is_empty_folder(&self) -> bool {
        matches!(self, Self::Some(names) if names.is_empty())
    }
}

/// Reads a folder, of which all that counts is known after `most` names.
fn entries(folder: &OwnedFd, most: usize) -> io::Result<Entries> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(folder, ".", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut folder = RawDir::new(folder, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = folder.next() {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name == "." || name == ".." {
            continue;
        }
        if names.len() >= most {
            return Ok(Entries::TooMany);
        }
        names.push(name);
    }
    names.sort_unstable();
    Ok(Entries::Some(names))
}

/// Without a slash at the end where `below` is empty.
fn join(above: &Path, below: &Path) -> PathBuf {
    above.iter().chain(below.iter()).collect()
}

fn is_absent(error: &io::Error) -> bool {
    let errors = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP];
    errors
        .iter()
        .any(|known| error.raw_os_error() == Some(known.raw_os_error()))
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
