//! The programs that a release of gVisor has beside runsc, in the folder `gvisor-bin`.
//!
//! runsc starts a sandbox by two of them, if they are there: the sentry, in the place of itself, and a small program that makes
//! the process ready for it. Names and places: `runsc/gvisorbinaries`. What runs here runs as root on the node, so the folder is
//! judged as runsc is.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::policy::trusted;
use crate::text::short;

/// The sentry.
const SENTRY: &str = "gvisor_sentry";
/// What starts the sentry. It is a program of its own that knows no flag, so nobody can ask it for its release.
const PREWARMER: &str = "gvisor-sentry-prewarmer";
/// A release of 2026-09 has 4 files.
const FILES_MAX: usize = 64;

/// The folder beside one runsc. Without it runsc boots sandboxes by itself, or says that it needs one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecars {
    folder: PathBuf,
    files: Vec<PathBuf>,
}

const FIX: &str = Sidecars::FIX;

impl Sidecars {
    /// The name of the folder.
    pub const FOLDER: &str = "gvisor-bin";
    /// What to do about a folder that is not used.
    pub const FIX: &str = "put the gvisor-bin of runsc's release there, root's alone to write, or take the folder away";

    /// The folder that the runsc at `runsc` looks into: the one beside its real file. `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or one of the two programs is no program: runsc would leave it out without a word.
    pub fn of(runsc: &Path) -> Result<Option<Self>, String> {
        let real = runsc.canonicalize();
        let real = real.map_err(|e| format!("{} is not there: {e}", runsc.display()))?;
        Self::at(&real.with_file_name(Self::FOLDER))
    }

    fn at(folder: &Path) -> Result<Option<Self>, String> {
        let broken = |path: &Path, problem: &str| format!("{} {problem}; {FIX}", path.display());
        let unreadable = |path: &Path, e: io::Error| broken(path, &format!("cannot be read: {e}"));
        match fs::symlink_metadata(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(|e| unreadable(folder, e))?,
        };
        let mut files = Vec::new();
        for (count, entry) in fs::read_dir(folder)
            .map_err(|e| unreadable(folder, e))?
            .enumerate()
        {
            if count == FILES_MAX {
                return Err(broken(folder, &format!("has more than {FILES_MAX} files")));
            }
            let entry = entry.map_err(|e| unreadable(folder, e))?;
            let (name, path) = (entry.file_name(), entry.path());
            let is_run = name == SENTRY || name == PREWARMER;
            // What is being written there has such a name.
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // A link's own file.
            match fs::metadata(&path) {
                Ok(file) if file.is_file() => {
                    if is_run && file.permissions().mode() & 0o111 == 0 {
                        return Err(broken(&path, "is not executable"));
                    }
                    files.push(path);
                }
                Ok(_) if is_run => return Err(broken(&path, "is no regular file")),
                Err(error) if is_run => return Err(unreadable(&path, error)),
                _ => {}
            }
        }
        files.sort();
        let folder = folder.to_owned();
        Ok(Some(Self { folder, files }))
    }

    /// Whether root alone can write the folder and each file in it, or exchange them.
    ///
    /// # Errors
    /// Names the file, what is wrong with it, and what to do.
    pub fn trusted(&self) -> Result<(), String> {
        let mut all = std::iter::once(&self.folder).chain(&self.files);
        all.try_for_each(|path| trusted(path).map_err(|problem| format!("{problem}; {FIX}")))
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All files in it, by their names.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Whether runsc runs a file of this name.
    #[must_use]
    pub fn runs(name: &std::ffi::OsStr) -> bool {
        name == SENTRY || name == PREWARMER
    }

    /// The sentry that runsc starts in its own place.
    #[must_use]
    pub fn sentry(&self) -> Option<&Path> {
        self.file(SENTRY)
    }

    /// The programs of a start that are not there. runsc does without them, and is slower.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let all = [SENTRY, PREWARMER];
        all.into_iter()
            .filter(|name| self.file(name).is_none())
            .collect()
    }

    /// The release in what a runsc or a sentry prints for `--version`.
    #[must_use]
    pub fn release_in(printed: &str) -> Option<&str> {
        let first = printed.lines().next()?.strip_prefix("runsc version ")?;
        Some(first.trim()).filter(|release| !release.is_empty())
    }

    /// Whether the sentry is of runsc's release, as far as it tells one.
    ///
    /// # Errors
    /// Names both releases, and what to do.
    pub fn fits(&self, runsc: &str, sentry: Option<&str>) -> Result<(), String> {
        match (self.sentry(), sentry) {
            (Some(path), Some(sentry)) if sentry != runsc => Err(format!(
                "{} is of {:?}, and runsc is of {:?}: all of gVisor must be of one release; {FIX}",
                path.display(),
                short(sentry),
                short(runsc)
            )),
            _ => Ok(()),
        }
    }

    fn file(&self, name: &str) -> Option<&Path> {
        let mut files = self.files.iter();
        let found = files.find(|file| file.file_name().is_some_and(|one| one == name));
        found.map(PathBuf::as_path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench(PathBuf);

    impl Bench {
        fn new(name: &str) -> Self {
            let folder =
                std::env::temp_dir().join(format!("bulkhead-{name}-{}", std::process::id()));
            fs::create_dir_all(folder.join("real")).expect("mkdir");
            let bench = Self(folder.canonicalize().expect("a path"));
            bench.put("real/runsc", 0o755);
            std::os::unix::fs::symlink("real/runsc", bench.at("runsc")).expect("link");
            bench
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.join(path)
        }

        fn put(&self, path: &str, mode: u32) {
            fs::write(self.at(path), "").expect("write");
            self.mode(path, mode);
        }

        fn mode(&self, path: &str, mode: u32) {
            fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode)).expect("chmod");
        }

        fn whole(&self) {
            fs::create_dir_all(self.at("real/gvisor-bin")).expect("mkdir");
            for name in [SENTRY, PREWARMER, "checkpointgofer"] {
                self.put(&format!("real/gvisor-bin/{name}"), 0o755);
            }
        }

        fn found(&self) -> Option<Sidecars> {
            Sidecars::of(&self.at("runsc")).expect("readable")
        }

        fn refused(&self, words: &[&str]) {
            let judged = Sidecars::of(&self.at("runsc"));
            let judged = judged.and_then(|found| found.expect("a folder").trusted());
            let problem = judged.expect_err(words.concat().as_str());
            for word in words.iter().chain(&["take the folder away"]) {
                assert!(problem.contains(word), "{word}: {problem}");
            }
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_folder_is_beside_the_real_file_and_need_not_be_there() {
        let bench = Bench::new("sidecars-place");
        fs::create_dir(bench.at("gvisor-bin")).expect("mkdir");
        assert_eq!(bench.found(), None, "beside a link there is nothing");
        fs::create_dir(bench.at("real/gvisor-bin")).expect("mkdir");
        let empty = bench.found().expect("a folder");
        assert_eq!(empty.missing(), [SENTRY, PREWARMER]);
        assert_eq!((empty.sentry(), empty.files().len()), (None, 0));
        bench.whole();
        // Neither what is being written, nor a folder.
        bench.put("real/gvisor-bin/.new", 0o777);
        fs::create_dir(bench.at("real/gvisor-bin/more")).expect("mkdir");
        let found = bench.found().expect("a folder");
        assert_eq!(found.missing(), [""; 0]);
        assert_eq!(found.folder(), bench.at("real/gvisor-bin"));
        let names: Vec<_> = found.files().iter().map(|file| file.file_name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(
            found.sentry(),
            Some(&*bench.at("real/gvisor-bin/gvisor_sentry"))
        );
        Sidecars::of(&bench.at("nothing")).expect_err("no runsc");
    }

    #[test]
    fn what_runsc_would_leave_out_without_a_word_is_named() {
        let bench = Bench::new("sidecars-broken");
        let folder = bench.at("real/gvisor-bin");
        fs::write(&folder, "").expect("write");
        bench.refused(&["gvisor-bin cannot be read"]);
        fs::remove_file(&folder).expect("remove");
        std::os::unix::fs::symlink("nowhere", &folder).expect("link");
        bench.refused(&["gvisor-bin cannot be read"]);
        fs::remove_file(&folder).expect("remove");
        for name in [SENTRY, PREWARMER] {
            bench.whole();
            bench.mode(&format!("real/gvisor-bin/{name}"), 0o644);
            bench.refused(&[name, "is not executable"]);
            fs::remove_file(folder.join(name)).expect("remove");
            fs::create_dir(folder.join(name)).expect("mkdir");
            bench.refused(&[name, "is no regular file"]);
            fs::remove_dir(folder.join(name)).expect("remove");
            std::os::unix::fs::symlink("nowhere", folder.join(name)).expect("link");
            bench.refused(&[name, "cannot be read"]);
            fs::remove_file(folder.join(name)).expect("remove");
        }
        bench.whole();
        for number in 0..FILES_MAX {
            bench.put(&format!("real/gvisor-bin/{number}"), 0o755);
        }
        bench.refused(&["gvisor-bin has more than 64 files"]);
    }

    /// A program that others can write, or put there by a folder or a link of theirs, would be root's next sandbox.
    #[test]
    fn what_others_can_write_is_refused_with_its_name() {
        if nix_uid() != 0 {
            return;
        }
        let bench = Bench::new("sidecars-trust");
        bench.whole();
        let judge = || bench.found().expect("a folder").trusted();
        assert_eq!(judge(), Ok(()));
        for path in [
            "real/gvisor-bin",
            "real/gvisor-bin/gvisor_sentry",
            "real/gvisor-bin/gvisor-sentry-prewarmer",
            "real/gvisor-bin/checkpointgofer",
            "real",
        ] {
            bench.mode(path, 0o777);
            bench.refused(&[&*bench.at(path).display().to_string(), "has mode 0777"]);
            bench.mode(path, 0o775);
            bench.refused(&["has mode 0775"]);
            bench.mode(path, 0o755);
        }
        // In a sticky folder others put what is not there yet.
        bench.mode("real/gvisor-bin", 0o1777);
        bench.refused(&["gvisor-bin has mode 1777"]);
        bench.mode("real/gvisor-bin", 0o755);
        let sentry = bench.at("real/gvisor-bin/gvisor_sentry");
        std::os::unix::fs::chown(&sentry, Some(1000), None).expect("chown");
        bench.refused(&["gvisor_sentry belongs to uid 1000"]);
        std::os::unix::fs::chown(&sentry, Some(0), None).expect("chown");
        assert_eq!(judge(), Ok(()));
        // By a link: of the folder, and of a file in it.
        fs::create_dir(bench.at("open")).expect("mkdir");
        fs::rename(bench.at("real/gvisor-bin"), bench.at("open/gvisor-bin")).expect("move");
        std::os::unix::fs::symlink("../open/gvisor-bin", bench.at("real/gvisor-bin"))
            .expect("link");
        assert_eq!(judge(), Ok(()));
        bench.mode("open", 0o777);
        bench.refused(&["open has mode 0777"]);
        fs::remove_file(bench.at("real/gvisor-bin")).expect("remove");
        bench.whole();
        fs::remove_file(&sentry).expect("remove");
        std::os::unix::fs::symlink("../../open/gvisor-bin/gvisor_sentry", &sentry).expect("link");
        bench.refused(&["open has mode 0777"]);
        bench.mode("open", 0o755);
        assert_eq!(judge(), Ok(()));
    }

    fn nix_uid() -> u32 {
        std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").expect("self"))
    }

    #[test]
    fn a_sentry_of_another_release_is_named_with_both() {
        let bench = Bench::new("sidecars-release");
        let (one, other) = ("release-20260905.0", "release-20261001.0");
        bench.whole();
        let found = bench.found().expect("a folder");
        assert_eq!(found.fits(one, Some(one)), Ok(()));
        // runsc compares the two by itself when it starts such a sentry.
        assert_eq!(found.fits(one, None), Ok(()));
        let problem = found.fits(one, Some(other)).expect_err("refused");
        for word in [one, other, "gvisor-bin/gvisor_sentry", FIX] {
            assert!(problem.contains(word), "{word}: {problem}");
        }
        fs::remove_file(bench.at("real/gvisor-bin/gvisor_sentry")).expect("remove");
        let found = bench.found().expect("a folder");
        assert_eq!(found.missing(), [SENTRY]);
        assert_eq!(found.fits(one, Some(other)), Ok(()));
        let printed = |text| Sidecars::release_in(text);
        assert_eq!(
            printed("runsc version release-20260905.0\nspec: 1.2.0\n"),
            Some(one)
        );
        for nothing in ["", "\n", "runsc version \n", "usage: prewarmer FILE"] {
            assert_eq!(printed(nothing), None, "{nothing:?}");
        }
    }
}
