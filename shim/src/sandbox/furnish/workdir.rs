//! The working folder of a container, where neither its image nor a mount has it.
//!
//! gVisor makes it inside of the sandbox, and cannot where the root is read-only. runc makes it before it makes the root that.

use std::io;
use std::path::{Path, PathBuf};

use runsc_config::{HardenedSpec, Holder};
use rustix::fs::{FileType, Mode, OFlags, openat2};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::sandbox::furnish::mountpoints::MountPoints;
use crate::sandbox::furnish::places::{self, INSIDE, LOOK, open_judged};
use crate::sandbox::furnish::scenes::Image;

/// What helps where the image has no such folder.
const OF_THE_IMAGE: &str =
    "make it in the image, or allow the root to be written (policy key rootfs.writable)";

/// A working folder in the root. It goes again unless it is kept.
#[derive(Debug, Default)]
pub(crate) struct Made {
    place: Option<PathBuf>,
    made: MountPoints,
}

impl Made {
    /// Where it was made, below the root.
    pub(crate) fn place(&self) -> Option<&Path> {
        self.place.as_deref()
    }

    pub(crate) fn keep(self) {
        self.made.keep();
    }
}

/// Makes the folder in the root where it is missing there and gVisor cannot make it.
///
/// # Errors
/// `FailedPrecondition`, naming the folder, the reason and what would help.
pub(crate) fn make(spec: &HardenedSpec, root: &Path) -> Result<Made> {
    let nothing = Made::default();
    let Some(folder) = spec.working_folder() else {
        return Ok(nothing);
    };
    let place = folder.display();
    let image = Image::open(root)
        .map_err(|e| Error::precondition(format!("root.path: {}: {e}", root.display())))?;
    let real = image.real(folder);
    let refuse = |error: io::Error, advice: &str| {
        Error::precondition(format!(
            "process.cwd: {place} is not there and cannot be made: {error}; {advice}"
        ))
    };
    match spec.holder(&real) {
        Holder::Root if spec.has_writable_root() => Ok(nothing),
        Holder::Root => {
            if let Ok((found, _)) = image.find(folder) {
                let is_folder = places::kind(&found).is_ok_and(|kind| kind == FileType::Directory);
                let problem = format!("process.cwd: {place} is no folder of the image");
                return is_folder
                    .then_some(nothing)
                    .ok_or_else(|| Error::precondition(problem));
            }
            let below = real.strip_prefix("/").unwrap_or(&real);
            let mut made = MountPoints::default();
            made.open(image.root(), below, true)
                .map_err(|e| refuse(e, OF_THE_IMAGE))?;
            let place = Some(below.to_owned());
            Ok(Made { place, made })
        }
        Holder::Bind(source, below) if spec.is_read_only_at(&real) => {
            let is_there = is_there(source, &below);
            // A folder of the image that scratch has too little room for is bound as well, and the copy that an engine makes of one.
            let copies = spec.sceneries().iter();
            let copies = copies.filter_map(|scenery| scenery.source.as_deref());
            let is_of_the_image = copies.chain([root]).any(|of| source.starts_with(of));
            let advice = if is_of_the_image {
                OF_THE_IMAGE
            } else {
                "make it in the folder that is bound read-only, or bind that to write"
            };
            is_there.map(|()| nothing).map_err(|e| refuse(e, advice))
        }
        // gVisor makes it.
        Holder::Bind(..) | Holder::Shared | Holder::Other => Ok(nothing),
    }
}

/// What a link of a bind leads to is for the sandbox to see.
fn is_there(source: &Path, below: &Path) -> io::Result<()> {
    let source = open_judged(source)?;
    let here = below == Path::new("");
    let below = if here { Path::new(".") } else { below };
    match openat2(
        source,
        below,
        LOOK | OFlags::DIRECTORY,
        Mode::empty(),
        INSIDE,
    ) {
        Err(error @ (Errno::NOENT | Errno::NOTDIR)) => Err(error.into()),
        _ => Ok(()),
    }
}
