//! Hides the masked paths of a spec, which runsc does not: by a mount over each path, once the shim knows what is there.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use runsc_config::{HardenedSpec, Holder, Mask};
use rustix::fs::{Mode, ResolveFlags, openat2};

use crate::error::{Error, Result};
use crate::sandbox::furnish::places::{LOOK, below, open_judged, text};
use crate::sandbox::layout::Bundle;

/// Name of the file in a bundle that stands for every masked file.
const EMPTY: &str = "bulkhead-masked";

/// The spec with a mount over everything that it masks and that is there; its root filesystem must be mounted.
///
/// # Errors
/// `FailedPrecondition` for a path that cannot be looked at: nothing that was to be hidden is shown.
pub(crate) fn hide(spec: &HardenedSpec, bundle: &Bundle) -> Result<HardenedSpec> {
    let mut masks: Vec<Mask> = Vec::new();
    for place in spec.masked() {
        let found = find(spec, bundle, place).map_err(|error| {
            Error::precondition(format!(
                "linux.maskedPaths: {}: {error}; it must be a path of the image, or one without links in a bind",
                place.display()
            ))
        })?;
        let Some(mask) = found else { continue };
        let is_hidden = |other: &Mask| {
            other.place == mask.place
                || (other.is_folder && Path::new(&mask.place).starts_with(&other.place))
        };
        if !masks.iter().any(is_hidden) {
            masks.push(mask);
        }
    }
    if masks.is_empty() {
        return Ok(spec.clone());
    }
    let empty = bundle.path().join(EMPTY);
    make_empty(&empty).map_err(|e| Error::io(format!("write {}", empty.display()), &e))?;
    let named = text(&empty).map_err(|e| Error::io("name the file that masks", &e))?;
    Ok(spec.with_masks(&masks, &named))
}

/// Every user of the container may read it: what is hidden is empty, not forbidden.
fn make_empty(path: &Path) -> io::Result<()> {
    fs::write(path, "")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o444))
}

/// What is at a place of the container, by the links of its image; nothing where it has none, and in memory, where there is
/// nothing yet.
fn find(spec: &HardenedSpec, bundle: &Bundle, place: &Path) -> io::Result<Option<Mask>> {
    if let Some(found) = in_mount(spec, place)? {
        return Ok(found);
    }
    let root = spec.root().unwrap_or(Path::new("rootfs"));
    let root = bundle.path().join(root);
    let flags = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let Some((below, is_folder)) = look(&root, place, flags)? else {
        return Ok(None);
    };
    let found = Path::new("/").join(below);
    // A link of the image may lead to a mount.
    if let Some(found) = in_mount(spec, &found)? {
        return Ok(found);
    }
    Ok(Some(Mask {
        place: text(&found)?,
        is_folder,
    }))
}

/// What is at a place that lies in a mount; nothing for one of the root filesystem.
fn in_mount(spec: &HardenedSpec, place: &Path) -> io::Result<Option<Option<Mask>>> {
    match spec.holder(place) {
        Holder::Root => Ok(None),
        // Empty already, and in place of it what cannot be written.
        Holder::Other if spec.has_mount_at(place) => Ok(Some(Some(Mask {
            place: text(place)?,
            is_folder: true,
        }))),
        Holder::Other => Ok(Some(None)),
        Holder::Bind(source, below) => in_bind(place, source, &below).map(Some),
        Holder::Shared => Err(io::Error::other("is of a volume inside of the sandbox")),
    }
}

/// A link in there would lead elsewhere in the container than on the host.
fn in_bind(place: &Path, source: &Path, below: &Path) -> io::Result<Option<Mask>> {
    let flags = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let here = below == Path::new("");
    let below = if here { Path::new(".") } else { below };
    let found = look(source, below, flags)?;
    found
        .map(|(_, is_folder)| {
            let place = text(place)?;
            Ok(Mask { place, is_folder })
        })
        .transpose()
}

/// Where a path below a folder leads to, below that folder, and whether it is a folder.
fn look(root: &Path, path: &Path, resolve: ResolveFlags) -> io::Result<Option<(PathBuf, bool)>> {
    let is_absent =
        |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    let open = || -> io::Result<_> {
        let root = open_judged(root)?;
        // A file that is bound has nothing below it, not even itself.
        let file = if path == Path::new(".") {
            root.try_clone()?
        } else {
            openat2(&root, path, LOOK, Mode::empty(), resolve)?
        };
        Ok((root, file))
    };
    let (root, file) = match open() {
        Err(error) if is_absent(&error) => return Ok(None),
        opened => opened?,
    };
    let below = below(&root, &file)?;
    let is_folder = fs::File::from(file).metadata()?.is_dir();
    Ok(Some((below, is_folder)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("usr/bin")).expect("mkdir");
        fs::write(at("usr/bin/ls"), "x").expect("write");
        symlink("/usr/bin", at("bin")).expect("link");
        symlink("../../../../usr", at("up")).expect("link");
        symlink("usr/bin", at("inside")).expect("link");
        symlink("/proc/self/root", at("out")).expect("link");
        root
    }

    #[test]
    fn a_path_of_an_image_is_found_by_the_images_own_links() {
        let root = image();
        let in_root = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let look = |path: &str| look(root.path(), Path::new(path), in_root).expect("look");
        let found = |below: &str, is_folder| Some((PathBuf::from(below), is_folder));
        assert_eq!(look("/bin/ls"), found("usr/bin/ls", false));
        assert_eq!(look("/up"), found("usr", true));
        assert_eq!(look("/none/x"), None);
        assert_eq!(look("/bin/ls/x"), None);
        // Of the image, which has no /proc, and not of the host.
        assert_eq!(look("/out"), None);
    }

    #[test]
    fn a_link_in_a_bind_is_an_error_and_not_followed() {
        let root = image();
        let find = |below: &str| in_bind(Path::new("/data/x"), root.path(), Path::new(below));
        let found = |is_folder| {
            Some(Mask {
                place: "/data/x".into(),
                is_folder,
            })
        };
        assert_eq!(find("usr/bin/ls").expect("look"), found(false));
        assert_eq!(find("").expect("look"), found(true));
        let of_a_file = in_bind(
            Path::new("/data/x"),
            &root.path().join("usr/bin/ls"),
            Path::new(""),
        );
        assert_eq!(of_a_file.expect("look"), found(false));
        assert_eq!(find("none").expect("look"), None);
        for link in ["bin", "bin/ls", "up", "inside", "inside/ls"] {
            find(link).expect_err(link);
        }
    }
}
