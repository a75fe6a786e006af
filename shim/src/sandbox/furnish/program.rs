//! Whether a container's program is there at all, told at Create. runsc tells it at Start, when a client has its task.
//!
//! The image is anybody's: it is looked at by descriptors beneath the root, link by link, and nothing is opened. What cannot be
//! judged from outside is left to runsc: a path that a mount covers somewhere, and a root that a hook may still change.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use runsc_config::HardenedSpec;
use rustix::fs::{FileType, Mode, OFlags, openat2, readlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::sandbox::furnish::places::{self, INSIDE, LINKS_MAX, LOOK};
use crate::sandbox::furnish::scenes::Image;

/// In how many folders of a `PATH`, which may be as long as a spec, a program is looked for.
const FOLDERS_MAX: usize = 256;
/// What gVisor mounts in each container, whether its spec has it or not (`compileMounts` in `runsc/boot/vfs.go`).
const ALWAYS_COVERED: [&str; 3] = ["/dev", "/proc", "/sys"];
/// How often the root is looked at for one container. A path may lead through links to thousands of folders, and so may each of `PATH`.
const LOOKS_MAX: usize = 4096;

/// Characters of a program's name, and of `PATH`, in a message.
const SHOWN_MAX: usize = 512;

/// Refuses a container whose program is nowhere in its root, which must be mounted.
///
/// # Errors
/// `InvalidArgument` with the program, and where it was looked for.
pub(crate) fn look_for(spec: &HardenedSpec, root: &Path) -> Result<()> {
    let Some(program) = spec.program() else {
        return Ok(());
    };
    if spec.has_hooks_before_start() {
        return Ok(());
    }
    let image = Image::open(root)
        .map_err(|e| Error::precondition(format!("root.path: {}: {e}", root.display())))?;
    let covered: BTreeSet<PathBuf> = spec
        .destinations()
        .flat_map(|place| [place.to_owned(), image.real(place)])
        .chain(ALWAYS_COVERED.map(PathBuf::from))
        .collect();
    // gVisor drops a `..` together with the name before it, which may be a link: not judged.
    let is_plain = |place: &Path| !place.components().any(|part| part == Component::ParentDir);
    let mut looks = LOOKS_MAX;
    let mut is_missing = |place: &Path| {
        is_plain(place)
            && matches!(
                walk(&image, &covered, place, &mut looks),
                Ok(Walked::Missing)
            )
    };
    if program.contains('/') {
        let place = spec
            .working_folder()
            .unwrap_or(Path::new("/"))
            .join(program);
        return if is_missing(&place) {
            let program = shown(program);
            Err(Error::invalid(format!(
                "process.args: {program:?}: no such file or directory in the image, and no mount covers it"
            )))
        } else {
            Ok(())
        };
    }
    let Some(path) = spec.search_path() else {
        return Ok(());
    };
    // gVisor skips folders that are not absolute.
    let folders = path.split(':').map(Path::new);
    let places = folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program));
    let places: Vec<PathBuf> = places.take(FOLDERS_MAX + 1).collect();
    if places.len() <= FOLDERS_MAX && places.iter().all(|place| is_missing(place)) {
        let (program, path) = (shown(program), shown(path));
        return Err(Error::invalid(format!(
            "process.args: {program:?}: executable file not found in $PATH: no folder of {path:?} has it in the image, and \
             no mount covers one"
        )));
    }
    Ok(())
}

/// As much of a spec's own text as a message repeats.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

/// What is at a path of the container.
#[derive(Debug, PartialEq, Eq)]
enum Walked {
    /// Something of the root's, whatever it is.
    There,
    Missing,
    /// A mount lies over it, or over what leads there.
    Covered,
}

/// Follows a path as the container's own root would have it, with as many looks as are left.
///
/// # Errors
/// What the kernel says besides that there is no such thing; `ELOOP` where no look is left.
fn walk(
    image: &Image<'_>,
    covered: &BTreeSet<PathBuf>,
    place: &Path,
    looks: &mut usize,
) -> io::Result<Walked> {
    let mut rest: VecDeque<OsString> = places::parts(place).collect();
    let (mut at, mut links) = (PathBuf::new(), 0);
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        if covered.contains(&Path::new("/").join(&next)) {
            return Ok(Walked::Covered);
        }
        *looks = looks.checked_sub(1).ok_or(Errno::LOOP)?;
        let flags = LOOK | OFlags::NOFOLLOW;
        let file = match openat2(image.root(), &next, flags, Mode::empty(), INSIDE) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Walked::Missing),
            Err(error) => return Err(error.into()),
        };
        if places::kind(&file)? != FileType::Symlink {
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Ok(Walked::Missing);
        }
        let target = readlinkat(&file, "", Vec::new())?.into_bytes();
        let target = PathBuf::from(OsString::from_vec(target));
        if target.has_root() {
            at = PathBuf::new();
        }
        let target: Vec<OsString> = places::parts(&target).collect();
        for part in target.into_iter().rev() {
            rest.push_front(part);
        }
    }
    Ok(Walked::There)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_is_followed_within_the_root_and_as_far_as_no_mount_covers_it() {
        let folder = tempfile::tempdir().expect("tempdir");
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("usr/bin")).expect("mkdir");
        fs::create_dir_all(root.join("opt")).expect("mkdir");
        fs::write(root.join("usr/bin/tool"), "").expect("write");
        fs::write(folder.path().join("outside"), "").expect("write");
        for (target, link) in [
            ("usr/bin", "bin"),
            ("/usr/bin/tool", "opt/absolute"),
            ("../../../outside", "opt/outside"),
            ("/opt/loop", "opt/loop"),
            ("/vol/tool", "opt/volume"),
            ("/nowhere", "opt/nowhere"),
        ] {
            symlink(target, root.join(link)).expect("symlink");
        }
        let image = Image::open(&root).expect("open the root");
        let covered = BTreeSet::from([PathBuf::from("/vol"), PathBuf::from("/usr/bin/mounted")]);
        for (place, expected) in [
            ("/usr/bin/tool", Walked::There),
            ("/bin/tool", Walked::There),
            ("/opt/absolute", Walked::There),
            ("/usr/bin/none", Walked::Missing),
            ("/usr/bin/tool/none", Walked::Missing),
            ("/nowhere/tool", Walked::Missing),
            ("/opt/nowhere", Walked::Missing),
            ("/opt/loop", Walked::Missing),
            // Outside of the root there is such a file.
            ("/opt/outside", Walked::Missing),
            ("/vol/tool", Walked::Covered),
            ("/opt/volume", Walked::Covered),
            ("/bin/mounted", Walked::Covered),
        ] {
            let mut looks = LOOKS_MAX;
            let walked = walk(&image, &covered, Path::new(place), &mut looks).expect("walk");
            assert_eq!(walked, expected, "{place}");
        }
        let place = Path::new("/usr/bin/none");
        walk(&image, &covered, place, &mut 2).expect_err("no look is left");
    }
}
