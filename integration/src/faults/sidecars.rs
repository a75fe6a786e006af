//! The folder `gvisor-bin` beside the tests' runsc, as a release has it: no official release can be had here, so its sentry is a
//! copy of runsc, and what starts it is a script.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bed::Bed;
use crate::faults::wrapper;

/// The sentry.
pub const SENTRY: &str = "gvisor_sentry";
/// What starts the sentry.
pub const PREWARMER: &str = "gvisor-sentry-prewarmer";

/// As runsc calls it: the program, its first argument, and the others.
const SCRIPT: &str =
    "#!/bin/bash\nprogram=$1 name=$2\nshift 2\nexec -a \"$name\" \"$program\" \"$@\"\n";

/// Takes the folder away when dropped.
#[derive(Debug)]
pub struct Sidecars {
    /// Where it is.
    pub folder: PathBuf,
}

impl Sidecars {
    /// Beside the runsc that the runtime finds.
    ///
    /// # Panics
    /// When that is not possible.
    #[must_use]
    pub fn beside_runsc(bed: &Bed) -> Self {
        Self::beside(bed.runsc.as_deref().expect("runsc"))
    }

    /// Beside any runsc.
    ///
    /// # Panics
    /// When that is not possible.
    #[must_use]
    pub fn beside(runsc: &Path) -> Self {
        let folder = runsc.with_file_name("gvisor-bin");
        fs::create_dir(&folder).expect("make the folder");
        let sidecars = Self { folder };
        fs::copy(runsc, sidecars.at(SENTRY)).expect("copy runsc");
        sidecars.script(PREWARMER, SCRIPT);
        sidecars
    }

    /// A file in it.
    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Puts a script there.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn script(&self, name: &str, text: &str) {
        wrapper::put(&self.at(name), text, 0o755);
    }
}

impl Drop for Sidecars {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
