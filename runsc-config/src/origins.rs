//! The place of a file in its own filesystem. A bind mount gives a folder another path, which does not tell whose
//! folder it is. Its origin stays the same.

use std::path::{Path, PathBuf};

/// Where a file or folder lies in its filesystem, wherever that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The filesystem's device, as the kernel names it in mountinfo (proc_pid_mountinfo(5)).
    pub device: String,
    /// The path from the filesystem's own root.
    pub path: PathBuf,
}

impl Origin {
    pub(crate) fn is_in(&self, folder: &Self) -> bool {
        self.device == folder.device && self.path.starts_with(&folder.path)
    }
}

/// The origins of a folder and of what is mounted below it.
pub(crate) fn of_all_in(
    folder: &Path,
    origin: fn(&Path) -> Option<Origin>,
    mounted_below: fn(&Path) -> Vec<Origin>,
) -> Vec<Origin> {
    origin(folder)
        .into_iter()
        .chain(mounted_below(folder))
        .collect()
}
