//! Where binds come to stand: looked at before anything of runsc's touches it.
//!
//! For each bind runsc makes, and for a file opens, what its destination leads to, as root on the host, before the gofer is
//! sealed (`SafeSetupAndMount` in `runsc/specutils`). What is there is the image's, or in a folder that another container
//! writes: a FIFO would hold it for ever, a device would be opened, and a link would be followed out of everything. So every
//! destination is followed here, link by link and without opening anything, as the container's own root would have it.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use runsc_config::{Bind, HardenedSpec, Holder};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2, readlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::io::location;
use node::trail;

/// The kernel follows no more (path_resolution(7)).
pub(crate) const LINKS_MAX: usize = 40;
/// How many names are looked at for one place. Each of those links may lead through thousands of folders.
const NAMES_MAX: usize = 1024;
/// To look at a file and never to open it.
pub(crate) const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// No link is followed, and nothing leads out.
pub(crate) const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// To open what was judged by its name without links: one that is there now somebody has put there since. Owners and modes
/// do not tell who can: a container's root writes a bind as root of the host.
const WITHOUT_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);

/// Opens what was judged by its name, to look at it.
///
/// # Errors
/// `ELOOP` for a link in its path; else what the kernel says, or that others hang there.
pub(crate) fn open_judged(path: &Path) -> io::Result<OwnedFd> {
    trail::at(path)?;
    Ok(openat2(CWD, path, LOOK, Mode::empty(), WITHOUT_LINKS)?)
}

/// Where below a folder a file is that was found there.
///
/// # Errors
/// What the kernel says, and where it is not below it.
pub(crate) fn below(folder: &OwnedFd, file: &OwnedFd) -> io::Result<PathBuf> {
    let (folder, full) = (location(folder)?, location(file)?);
    let below = full.strip_prefix(&folder).map_err(io::Error::other)?;
    Ok(below.to_owned())
}

/// A path as a spec can have it. runsc would be told of another name, at which nobody has looked.
///
/// # Errors
/// Names the path that is no UTF-8.
pub(crate) fn text(path: &Path) -> io::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| {
        let problem =
            format!("leads to {path:?}, a name that is no UTF-8 and that no spec can have");
        io::Error::other(problem)
    })
}

/// A bind and where it comes to stand.
#[derive(Debug)]
pub(crate) struct Stand<'a> {
    pub(crate) bind: Bind<'a>,
    pub(crate) source: OwnedFd,
    pub(crate) is_folder: bool,
    /// In the source of which bind, by its number in the list; `None` is the root filesystem.
    pub(crate) tree: Option<usize>,
    /// Below that, without links.
    pub(crate) path: PathBuf,
    /// A later one in the spec has the same place, or it lies in one that another hides.
    pub(crate) is_hidden: bool,
}

/// Where files and folders are to be mounted over in a root filesystem.
#[derive(Debug, Default)]
pub(crate) struct InRoot {
    root: PathBuf,
    /// Below the root, without links, and whether a folder is to be mounted there.
    places: Vec<(PathBuf, bool)>,
}

impl InRoot {
    pub(crate) fn of(stands: &[Stand<'_>], root: &Path) -> Self {
        let in_root = |stand: &&Stand<'_>| stand.tree.is_none() && !stand.is_hidden;
        let places = stands.iter().filter(in_root);
        Self {
            root: root.to_owned(),
            places: places
                .map(|stand| (stand.path.clone(), stand.is_folder))
                .collect(),
        }
    }

    /// Looks whether they are still what they were: runsc is about to open them.
    ///
    /// # Errors
    /// As [`find`].
    pub(crate) fn look_again(&self) -> Result<()> {
        if self.places.is_empty() {
            return Ok(());
        }
        let root = open_root(&self.root)?;
        for (path, is_folder) in &self.places {
            let found = look(&root, path).map(|found| found.map(|(_, kind)| kind));
            let problem = match found {
                Ok(found) => found.and_then(|found| misfit(found, *is_folder)),
                Err(error) => Some(format!("{error}; it was a path of the image")),
            };
            if let Some(problem) = problem {
                return Err(refusal(&Path::new("/").join(path), &problem));
            }
        }
        Ok(())
    }
}

fn refusal(place: &Path, problem: &str) -> Error {
    let place = place.display();
    Error::precondition(format!("mounts: destination {place}: {problem}"))
}

/// The root filesystem and the binds that have been placed, each after what it lies in.
#[derive(Debug)]
struct Trees<'a> {
    root: OwnedFd,
    path: &'a Path,
    /// Below the root, without links: where something else than a bind is mounted over it.
    veils: Vec<PathBuf>,
    stands: Vec<Stand<'a>>,
}

/// A link of the root that a path needs, in a place where something is mounted over it. runsc follows it on the host, and the
/// container has no such link.
#[derive(Debug)]
struct Veiled {
    link: PathBuf,
    veil: PathBuf,
}

impl std::error::Error for Veiled {}

impl std::fmt::Display for Veiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [link, veil] = [&self.link, &self.veil].map(|path| Path::new("/").join(path));
        write!(
            f,
            "{} is a link of the image, and not to be seen in what is mounted at {}: name the place that it leads to, or \
             allow the root to be written (policy key rootfs.writable)",
            link.display(),
            veil.display()
        )
    }
}

fn is_veiled(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<Veiled>())
}

/// Whether there is more to a path than was looked at.
fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error())
}

/// Fails where a path of the container needs a link of the root that is not to be seen, whatever is bound.
///
/// # Errors
/// Names the link and what would help.
pub(crate) fn look_for_veils(spec: &HardenedSpec, root: &Path, place: &Path) -> io::Result<()> {
    let trees = Trees::new(spec, open_judged(root)?, root)?;
    match trees.follow(place) {
        Err(error) if is_veiled(&error) || is_too_long(&error) => Err(error),
        // What else is wrong there is found where it is used.
        _ => Ok(()),
    }
}

/// Where a path of the container leads.
#[derive(Debug)]
struct Found {
    tree: Option<usize>,
    path: PathBuf,
    /// What is there, if anything is.
    kind: Option<FileType>,
}

/// A bind, its source and whether that is a folder, and how deep in the container it is to be looked for.
type Waiting<'a> = (Bind<'a>, OwnedFd, bool, usize);

/// Finds the place of every bind, the ones that others lie in first. `open` opens a source to look at it.
///
/// # Errors
/// `FailedPrecondition`, naming the destination, what is there and what could be; nothing is made.
pub(crate) fn find<'a>(
    spec: &'a HardenedSpec,
    root: &'a Path,
    open: impl Fn(&Bind<'_>) -> Result<OwnedFd>,
) -> Result<Vec<Stand<'a>>> {
    let waiting = spec.binds().map(|bind| {
        let depth = bind.destination.components().count();
        let source = open(&bind)?;
        // A dead filesystem hangs here first, so nothing else may be what was touched last.
        let kind = kind(&source)
            .map_err(|e| Error::precondition(format!("mounts: source {:?}: {e}", bind.source)))?;
        Ok((bind, source, kind == FileType::Directory, depth))
    });
    let trees = place(spec, root, waiting.collect::<Result<_>>()?)?;
    if trees.astray().is_none() {
        return trees.settled(spec);
    }
    // By a link one came to lie in another that was placed after it: by where they lead, that one comes first.
    let depths = trees.stands.iter().map(|stand| {
        let full = trees.full(stand.tree, &stand.path);
        full.components().count()
    });
    let depths: Vec<usize> = depths.collect();
    let again = trees.stands.into_iter().zip(depths);
    let again = again.map(|(stand, depth)| (stand.bind, stand.source, stand.is_folder, depth));
    let trees = place(spec, root, again.collect())?;
    match trees.astray() {
        None => trees.settled(spec),
        Some((stand, other)) => Err(refusal(
            stand.bind.destination,
            &format!(
                "by a link it lies in the bind at {}, which leads elsewhere without it: name the place without links",
                other.bind.destination.display()
            ),
        )),
    }
}

fn place<'a>(
    spec: &HardenedSpec,
    root: &'a Path,
    mut waiting: Vec<Waiting<'a>>,
) -> Result<Trees<'a>> {
    let mut trees = Trees::new(spec, open_root(root)?, root)
        .map_err(|e| Error::precondition(format!("mounts: {e}")))?;
    waiting.sort_by_key(|(bind, _, _, depth)| (*depth, bind.number));
    for (bind, source, is_folder, _) in waiting {
        let refuse = |problem: String| refusal(bind.destination, &problem);
        let unreadable = |e: io::Error| {
            if is_veiled(&e) {
                return refuse(e.to_string());
            }
            refuse(format!("{e}; it must be a path of the image or of a bind"))
        };
        let found = trees.follow(bind.destination).map_err(unreadable)?;
        if let Some(problem) = found.kind.and_then(|kind| misfit(kind, is_folder)) {
            return Err(refuse(problem));
        }
        text(&found.path).map_err(|problem| refuse(problem.to_string()))?;
        let mut stand = Stand {
            bind,
            source,
            is_folder,
            tree: found.tree,
            path: found.path,
            is_hidden: false,
        };
        trees.judge(spec, &stand).map_err(refuse)?;
        trees.hide(&mut stand);
        trees.stands.push(stand);
    }
    Ok(trees)
}

fn open_root(root: &Path) -> Result<OwnedFd> {
    open_judged(root)
        .map_err(|e| Error::precondition(format!("root.path: {}: {e}", root.display())))
}

/// What is at a path below a folder; a link as such.
fn look(folder: &OwnedFd, path: &Path) -> io::Result<Option<(OwnedFd, FileType)>> {
    let here = path == Path::new("");
    let path = if here { Path::new(".") } else { path };
    let flags = LOOK | OFlags::NOFOLLOW;
    match openat2(folder, path, flags, Mode::empty(), INSIDE) {
        Ok(file) => {
            let kind = kind(&file)?;
            Ok(Some((file, kind)))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What is wrong with mounting a folder, or else a file, over what is there.
fn misfit(found: FileType, is_folder: bool) -> Option<String> {
    let (wanted, word) = if is_folder {
        (FileType::Directory, "a folder")
    } else {
        (FileType::RegularFile, "a file")
    };
    (found != wanted).then(|| {
        let there = name(found);
        format!(
            "{there} is there; {word} is mounted over {word} or where there is nothing: take it out of the image or \
             the folder, or mount at another place"
        )
    })
}

impl<'a> Trees<'a> {
    /// Without any bind yet.
    ///
    /// # Errors
    /// For a place that has too many names to be followed.
    fn new(spec: &HardenedSpec, root: OwnedFd, path: &'a Path) -> io::Result<Self> {
        let mut trees = Self {
            root,
            path,
            veils: Vec::new(),
            stands: Vec::new(),
        };
        let mut veils: Vec<&Path> = spec.veils().collect();
        // What one lies in comes before it, as in gVisor.
        veils.sort_by_key(|place| place.components().count());
        for place in veils {
            let veil = match trees.follow(place) {
                Ok(found) => found.path,
                Err(error) if is_too_long(&error) => return Err(error),
                Err(_) => parts(place).collect(),
            };
            // runsc mounts nothing over the root itself.
            if veil != Path::new("") {
                trees.veils.push(veil);
            }
        }
        Ok(trees)
    }

    /// What was placed, once the working folder was looked for in it. gVisor would make an empty one where a link is not to be seen.
    fn settled(self, spec: &HardenedSpec) -> Result<Vec<Stand<'a>>> {
        match spec
            .working_folder()
            .map(|folder| (folder, self.follow(folder)))
        {
            Some((folder, Err(error))) if is_veiled(&error) || is_too_long(&error) => {
                let folder = folder.display();
                Err(Error::precondition(format!(
                    "process.cwd: {folder}: {error}"
                )))
            }
            _ => Ok(self.stands),
        }
    }

    fn veil(&self, link: &Path) -> Option<Veiled> {
        let is_over = |veil: &&PathBuf| link.starts_with(veil) && link != veil.as_path();
        self.veils.iter().find(is_over).map(|veil| Veiled {
            link: link.to_owned(),
            veil: veil.clone(),
        })
    }

    /// The bind that stands at a place.
    fn standing(&self, tree: Option<usize>, path: &Path) -> Option<usize> {
        let is_there =
            |stand: &Stand<'_>| !stand.is_hidden && stand.tree == tree && stand.path == path;
        self.stands.iter().rposition(is_there)
    }

    /// Of two at one place the last of the spec is seen. gVisor would show either.
    fn hide(&mut self, stand: &mut Stand<'_>) {
        let Some(number) = self.standing(stand.tree, &stand.path) else {
            return;
        };
        let Some(other) = self.stands.get_mut(number) else {
            return;
        };
        stand.is_hidden = other.bind.number > stand.bind.number;
        other.is_hidden = !stand.is_hidden;
        let mut hidden = BTreeSet::from_iter(other.is_hidden.then_some(number));
        for (number, stand) in self.stands.iter_mut().enumerate().skip(number) {
            if stand.tree.is_some_and(|outer| hidden.contains(&outer)) {
                stand.is_hidden = true;
                hidden.insert(number);
            }
        }
    }

    /// Where a path of the container leads, by its links and by what has been placed.
    fn follow(&self, place: &Path) -> io::Result<Found> {
        let mut rest: VecDeque<OsString> = parts(place).collect();
        let (mut tree, mut at, mut links) = (None, PathBuf::new(), 0);
        let mut names = 0;
        while let Some(part) = rest.pop_front() {
            while let Some(number) = self.standing(tree, &at) {
                (tree, at) = (Some(number), PathBuf::new());
            }
            if part == ".." {
                // The folder above a bind is that of its place.
                while let Some(stand) = tree.and_then(|number| self.stands.get(number))
                    && at == Path::new("")
                {
                    (tree, at) = (stand.tree, stand.path.clone());
                }
                at.pop();
                continue;
            }
            names += 1;
            if names > NAMES_MAX {
                return Err(Errno::NAMETOOLONG.into());
            }
            let next = at.join(&part);
            let Some((file, FileType::Symlink)) = self.look(tree, &next)? else {
                at = next;
                continue;
            };
            if let Some(veiled) = self.veil(&next).filter(|_| tree.is_none()) {
                return Err(io::Error::other(veiled));
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP.into());
            }
            let target = readlinkat(&file, "", Vec::new())?.into_bytes();
            let target = PathBuf::from(OsString::from_vec(target));
            if target.has_root() {
                (tree, at) = (None, PathBuf::new());
            }
            let target: Vec<OsString> = parts(&target).collect();
            target
                .into_iter()
                .rev()
                .for_each(|part| rest.push_front(part));
        }
        // A folder is mounted over by each of two binds at its place.
        let kind = self.look(tree, &at)?.map(|(_, kind)| kind);
        let path = at;
        Ok(Found { tree, path, kind })
    }

    fn look(&self, tree: Option<usize>, path: &Path) -> io::Result<Option<(OwnedFd, FileType)>> {
        let stand = tree.and_then(|number| self.stands.get(number));
        trail::at(stand.map_or(self.path, |stand| stand.bind.source))?;
        look(stand.map_or(&self.root, |stand| &stand.source), path)
    }

    /// What a bind in another one cannot have. It is mounted in the other's source, so gVisor knows one mount alone.
    fn judge(&self, spec: &HardenedSpec, stand: &Stand<'_>) -> std::result::Result<(), String> {
        let Some(outer) = stand.tree.and_then(|number| self.stands.get(number)) else {
            return Ok(());
        };
        let place = self.full(stand.tree, &stand.path);
        let is_in_bind = matches!(
            place.parent().map(|above| spec.holder(above)),
            Some(Holder::Bind(..))
        );
        // By name it may lie in the root, by a link of the image in the bind.
        if !is_in_bind && place.starts_with(outer.bind.destination) {
            return Err(format!(
                "it lies in a filesystem in memory that lies in the bind at {}; what is bound must lie in the bind itself",
                outer.bind.destination.display()
            ));
        }
        if stand.bind.no_exec != outer.bind.no_exec && !stand.bind.is_mask {
            return Err(format!(
                "it lies in the bind at {}: both must have the option noexec, or none",
                outer.bind.destination.display()
            ));
        }
        Ok(())
    }

    /// One that lies in another by where it leads, and was looked for outside of it.
    fn astray(&self) -> Option<(&Stand<'_>, &Stand<'_>)> {
        let mut seen = self.stands.iter().enumerate();
        seen.find_map(|(number, stand)| {
            if stand.is_hidden {
                return None;
            }
            let place = self.full(stand.tree, &stand.path);
            let others = self.stands.iter().enumerate();
            let mut others = others.filter(|(other, bind)| *other != number && !bind.is_hidden);
            let is_around = |other: &Stand<'_>| {
                let around = self.full(other.tree, &other.path);
                place != around && place.starts_with(around)
            };
            let found = others.find(|(other, bind)| is_around(bind) && !self.is_in(stand, *other));
            found.map(|(_, other)| (stand, other))
        })
    }

    fn is_in(&self, stand: &Stand<'_>, other: usize) -> bool {
        let mut tree = stand.tree;
        while let Some(number) = tree {
            if number == other {
                return true;
            }
            tree = self.stands.get(number).and_then(|stand| stand.tree);
        }
        false
    }

    fn full(&self, tree: Option<usize>, path: &Path) -> PathBuf {
        let (mut tree, mut full) = (tree, path.to_owned());
        while let Some(stand) = tree.and_then(|number| self.stands.get(number)) {
            full = stand.path.join(full);
            tree = stand.tree;
        }
        Path::new("/").join(full)
    }
}

/// The names in a path, and its `..`.
pub(crate) fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::new("..").to_owned()),
        _ => None,
    })
}

pub(crate) fn kind(file: &OwnedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode))
}

fn name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file",
        FileType::Directory => "a folder",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Symlink => "a link",
        FileType::Unknown => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runsc_config::Writes;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    /// An image and a volume that another container writes.
    fn folders() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| folder.path().join(name);
        for name in ["image/var/run", "image/data", "image/etc", "volume/sub"] {
            fs::create_dir_all(at(name)).expect("mkdir");
        }
        for name in ["image/etc/hosts", "volume/sub/file"] {
            fs::write(at(name), "").expect("write");
        }
        for (link, target) in [
            ("image/run", "/var/run"),
            ("image/up", "../../../etc/hosts"),
            ("image/loop", "loop"),
            ("image/out", "/proc/self/root/etc/passwd"),
            ("image/to-fifo", "/var/fifo"),
            ("image/in", "data/sub"),
            ("volume/to-image", "/etc"),
            ("volume/above", "../etc"),
        ] {
            symlink(target, at(link)).expect("link");
        }
        nix::unistd::mkfifo(&at("image/var/fifo"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        UnixListener::bind(at("image/var/socket")).expect("bind");
        folder
    }

    fn opened(path: &Path) -> OwnedFd {
        fs::File::open(path).expect("open").into()
    }

    fn stand<'a>(
        number: usize,
        place: &'a str,
        source: &'a Path,
        tree: Option<usize>,
    ) -> Stand<'a> {
        let destination = Path::new(place);
        let bind = Bind {
            number,
            source,
            destination,
            recursive: true,
            read_only: false,
            no_exec: false,
            private: true,
            is_mask: false,
            writes: Writes::Host,
        };
        Stand {
            bind,
            source: opened(source),
            is_folder: true,
            tree,
            path: destination.strip_prefix("/").expect("absolute").into(),
            is_hidden: false,
        }
    }

    #[test]
    fn what_lies_in_another_by_a_link_is_told_from_what_was_looked_for_in_it() {
        let folder = folders();
        let (image, volume) = (folder.path().join("image"), folder.path().join("volume"));
        let trees = |inner| Trees {
            root: opened(&image),
            path: &image,
            veils: Vec::new(),
            stands: vec![
                stand(0, "/data", &volume, None),
                inner,
                stand(2, "/var/run", &volume, None),
            ],
        };
        // Found in the root, where the bind comes to stand around it, and in the bind.
        let outside = trees(stand(1, "/data/sub", &volume, None));
        let (one, other) = outside.astray().expect("it lies in the other");
        assert_eq!((one.bind.number, other.bind.number), (1, 0));
        let mut inside = stand(1, "/x", &volume, Some(0));
        inside.path = "sub".into();
        assert!(trees(inside).astray().is_none());
        let mut hidden = stand(1, "/data/sub", &volume, None);
        hidden.is_hidden = true;
        assert!(trees(hidden).astray().is_none());
    }

    #[test]
    fn a_place_is_where_the_containers_own_links_lead() {
        let folder = folders();
        let (image, volume) = (folder.path().join("image"), folder.path().join("volume"));
        let trees = Trees {
            root: opened(&image),
            path: &image,
            veils: Vec::new(),
            stands: vec![stand(0, "/data", &volume, None)],
        };
        let (file, directory) = (Some(FileType::RegularFile), Some(FileType::Directory));
        for (place, tree, path, kind) in [
            ("/", None, "", directory),
            ("/none/x", None, "none/x", None),
            ("/etc/hosts", None, "etc/hosts", file),
            ("/up", None, "etc/hosts", file),
            ("/run/x", None, "var/run/x", None),
            ("/var/../run", None, "var/run", directory),
            // Of the image, which has no /proc, and not of the host.
            ("/out", None, "proc/self/root/etc/passwd", None),
            ("/to-fifo", None, "var/fifo", Some(FileType::Fifo)),
            ("/var/socket", None, "var/socket", Some(FileType::Socket)),
            ("/data", None, "data", directory),
            ("/data/sub/file", Some(0), "sub/file", file),
            ("/data/new/x", Some(0), "new/x", None),
            ("/in/x", Some(0), "sub/x", None),
            ("/data/to-image/hosts", None, "etc/hosts", file),
            ("/data/above/hosts", None, "etc/hosts", file),
            ("/data/sub/../../etc", None, "etc", directory),
        ] {
            let found = trees.follow(Path::new(place)).expect(place);
            let found = (found.tree, found.path.as_path(), found.kind);
            assert_eq!(found, (tree, Path::new(path), kind), "{place}");
        }
        for place in ["/loop", "/etc/hosts/x", "/var/fifo/x"] {
            trees.follow(Path::new(place)).expect_err(place);
        }
    }

    #[test]
    fn no_link_is_followed_that_something_is_mounted_over() {
        let folder = folders();
        let (image, volume) = (folder.path().join("image"), folder.path().join("volume"));
        symlink("/etc", image.join("var/run/link")).expect("link");
        symlink("/var/run/link", volume.join("to-link")).expect("link");
        let mut trees = Trees {
            root: opened(&image),
            path: &image,
            veils: vec!["var/run".into()],
            stands: vec![stand(0, "/data", &volume, None)],
        };
        for place in ["/var/run/link", "/run/link/hosts", "/data/to-link/new"] {
            let error = trees.follow(Path::new(place)).expect_err(place);
            assert!(is_veiled(&error), "{place}: {error}");
            let words = "/var/run/link is a link of the image, and not to be seen in what is mounted at /var/run";
            assert!(error.to_string().starts_with(words), "{place}: {error}");
        }
        // What covers it is reached by a link.
        trees.follow(Path::new("/run/x")).expect("no link in it");
        // One of a bind that lies in it.
        let mut inside = stand(1, "/var/run/bound", &volume, None);
        inside.path = "var/run/bound".into();
        trees.stands.push(inside);
        let place = Path::new("/var/run/bound/to-image/hosts");
        assert_eq!(
            trees.follow(place).expect("a link").path,
            Path::new("etc/hosts")
        );
    }

    #[test]
    fn a_file_goes_over_a_file_and_a_folder_over_a_folder() {
        let kinds = [
            FileType::RegularFile,
            FileType::Directory,
            FileType::Fifo,
            FileType::Socket,
            FileType::CharacterDevice,
            FileType::BlockDevice,
            FileType::Symlink,
            FileType::Unknown,
        ];
        let fits = |is_folder| kinds.map(|kind| misfit(kind, is_folder).is_none());
        assert_eq!(
            fits(false),
            [true, false, false, false, false, false, false, false]
        );
        assert_eq!(
            fits(true),
            [false, true, false, false, false, false, false, false]
        );
    }

    #[test]
    fn of_two_at_one_place_the_later_in_the_spec_is_seen() {
        let folder = folders();
        let (image, volume) = (folder.path().join("image"), folder.path().join("volume"));
        for (earlier, later, hidden) in [(0, 3, [true, true, false]), (3, 0, [false, false, true])]
        {
            let mut trees = Trees {
                root: opened(&image),
                path: &image,
                veils: Vec::new(),
                stands: vec![
                    stand(earlier, "/data", &volume, None),
                    stand(1, "/sub", &volume, Some(0)),
                ],
            };
            let mut other = stand(later, "/data", &volume, None);
            trees.hide(&mut other);
            trees.stands.push(other);
            let found: Vec<_> = trees.stands.iter().map(|stand| stand.is_hidden).collect();
            assert_eq!(found, hidden);
        }
    }

    #[test]
    fn what_has_become_something_else_is_refused() {
        let folder = folders();
        let (image, volume) = (folder.path().join("image"), folder.path().join("volume"));
        let stands = [
            stand(0, "/data", &volume, None),
            stand(1, "/data/none", &volume, None),
        ];
        let looked = InRoot::of(&stands, &image);
        looked.look_again().expect("as it was");
        symlink("/etc", image.join("data/none")).expect("link");
        let error = looked.look_again().expect_err("a link");
        assert!(error.to_string().contains("/data/none"), "{error}");
        fs::remove_file(image.join("data/none")).expect("remove");
        fs::write(image.join("data/none"), "").expect("write");
        looked.look_again().expect_err("a file");
    }
}
