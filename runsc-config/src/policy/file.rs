//! The source of a policy: a file that root alone can write.

use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Policy, PolicyError};
use crate::sidecars::Sidecars;

/// Where the policy is looked for when the handler names none.
const DEFAULT_PATH: &str = "/etc/bulkhead/config.toml";
/// No policy is longer, in bytes.
const SIZE_MAX: u64 = 256 * 1024;
/// As many links as the kernel follows for one path (path_resolution(7)).
const LINKS_MAX: u32 = 40;

impl Policy {
    /// Reads the policy file at `path`. It must be there.
    ///
    /// # Errors
    /// As [`Policy::parse`]; and when the file or a folder above it is not root's alone to write.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let failed = |problem: String| PolicyError {
            origin: path.display().to_string(),
            problem,
        };
        if !path.is_absolute() {
            return Err(failed("must be an absolute path".to_owned()));
        }
        // From here on only root can put something else there: a FIFO would be waited for, for ever.
        trusted(path).map_err(failed)?;
        let judged = fs::metadata(path).map_err(|e| failed(e.to_string()))?;
        if !judged.is_file() {
            return Err(failed("is not a regular file".to_owned()));
        }
        let mut file = File::open(path).map_err(|e| failed(e.to_string()))?;
        // What is read is what was judged: another one may have had the name in between.
        let opened = file.metadata().map_err(|e| failed(e.to_string()))?;
        if (judged.dev(), judged.ino()) != (opened.dev(), opened.ino()) {
            return Err(failed("was exchanged while it was read".to_owned()));
        }
        if let Some(problem) = of_others(&opened, false) {
            return Err(failed(problem));
        }
        let mut text = String::new();
        (&mut file)
            .take(SIZE_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|e| failed(e.to_string()))?;
        if text.len() as u64 > SIZE_MAX {
            return Err(failed(format!("is larger than {SIZE_MAX} bytes")));
        }
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads `/etc/bulkhead/config.toml`; absent, the policy is [`Policy::strict`].
    ///
    /// # Errors
    /// As [`Policy::load`], for a file that is there.
    pub fn load_default() -> Result<Self, PolicyError> {
        let path = Path::new(DEFAULT_PATH);
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::strict()),
            _ => Self::load(path),
        }
    }
}

/// Checks that nobody but root can write a file or folder, or replace it by way of a folder above it or above a link that
/// leads to it: what others can write is not the administrator's word.
///
/// # Errors
/// Names the part of the path that is not there or not root's, and what is wrong with it.
pub fn trusted(path: &Path) -> Result<(), String> {
    trusted_by(path, false, LINKS_MAX)
}

/// The same of a folder that is made where it is missing: of the nearest one above it that is there, which may be sticky, as
/// /tmp is.
///
/// # Errors
/// As [`trusted`], and where something else than a folder is there.
pub fn trusted_folder(path: &Path) -> Result<(), String> {
    let mut above = path.ancestors();
    let there = above.find(|part| fs::symlink_metadata(part).is_ok());
    let there = there.unwrap_or(path);
    trusted_by(there, there != path, LINKS_MAX)?;
    if there.is_dir() {
        Ok(())
    } else {
        Err(format!("{} is no folder", there.display()))
    }
}

/// The same of runsc, and of the programs beside it that it starts sandboxes by.
///
/// # Errors
/// As [`trusted`] and [`Sidecars::of`].
pub fn trusted_runsc(path: &Path) -> Result<(), String> {
    trusted(path)?;
    Sidecars::of(path)?.map_or(Ok(()), |sidecars| sidecars.trusted())
}

/// What makes a file or folder somebody's beside root. In a sticky folder above it nobody can replace what is root's; one that is
/// itself looked at holds what others have put there.
fn of_others(metadata: &Metadata, may_be_sticky: bool) -> Option<String> {
    const STICKY: u32 = 0o1000;
    let (mode, uid) = (metadata.mode(), metadata.uid());
    if uid != 0 {
        return Some(format!("belongs to uid {uid}: it must belong to root"));
    }
    let is_sticky = may_be_sticky && metadata.is_dir() && mode & STICKY != 0;
    // A link has no mode of its own.
    if mode & 0o022 != 0 && !metadata.is_symlink() && !is_sticky {
        let mode = mode & 0o7777;
        return Some(format!("has mode {mode:04o}: only root may write it"));
    }
    None
}

fn trusted_by(path: &Path, may_be_sticky: bool, links: u32) -> Result<(), String> {
    for part in path.ancestors() {
        let failed = |problem: String| format!("{} {problem}", part.display());
        let metadata =
            fs::symlink_metadata(part).map_err(|e| failed(format!("is not there: {e}")))?;
        let may_be_sticky = may_be_sticky || part != path;
        if let Some(problem) = of_others(&metadata, may_be_sticky) {
            return Err(failed(problem));
        }
        if metadata.is_symlink() {
            let target = fs::read_link(part).map_err(|e| failed(e.to_string()))?;
            let Some(links) = links.checked_sub(1) else {
                return Err(failed("leads through too many links".to_owned()));
            };
            let target = part.parent().unwrap_or(part).join(target);
            trusted_by(&target, may_be_sticky, links)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_trusted_as_little_as_the_folder_it_lies_in() {
        if fs::metadata("/proc/self").expect("self").uid() != 0 {
            return;
        }
        let base = std::env::temp_dir().join(format!("bulkhead-links-{}", std::process::id()));
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("chmod");
        };
        for folder in ["open", "closed"] {
            fs::create_dir_all(base.join(folder)).expect("mkdir");
            mode(&base.join(folder), 0o755);
        }
        fs::write(base.join("closed/file"), "").expect("write");
        mode(&base.join("closed/file"), 0o644);
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, base.join(name)).expect("link");
        };
        link("../closed/file", "open/link");
        link("../open/link", "closed/twice");
        link("loop", "closed/loop");
        let judged = |name: &str| trusted(&base.join(name)).is_ok();
        let all_closed = [judged("open/link"), judged("closed/twice")];
        mode(&base.join("open"), 0o777);
        let one_open = [
            judged("open/link"),
            judged("closed/twice"),
            judged("closed/file"),
        ];
        let in_a_loop = judged("closed/loop");
        let file = base.join("closed/file");
        std::os::unix::fs::chown(&file, Some(1000), None).expect("chown");
        let of_another = Policy::load(&file).map(|_| ());
        fs::remove_dir_all(&base).expect("remove");
        assert_eq!(all_closed, [true, true]);
        assert_eq!(one_open, [false, false, true]);
        assert!(!in_a_loop);
        let refused = of_another.expect_err("refused").to_string();
        assert!(refused.contains("belongs to uid 1000"), "{refused}");
    }

    /// In /tmp nobody replaces what is root's, and everybody puts there what root would find in a folder of its own.
    #[test]
    fn a_sticky_folder_is_trusted_above_alone() {
        if fs::metadata("/proc/self").expect("self").uid() != 0 {
            return;
        }
        let base = std::env::temp_dir().join(format!("bulkhead-sticky-{}", std::process::id()));
        fs::create_dir_all(base.join("gvisor-bin")).expect("mkdir");
        let (sentry, runsc) = (base.join("gvisor-bin/gvisor_sentry"), base.join("runsc"));
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("chmod");
        };
        for file in [&sentry, &runsc] {
            fs::write(file, "").expect("write");
            mode(file, 0o755);
        }
        mode(&base, 0o1777);
        let judged = [
            trusted(&base).is_ok(),
            trusted_folder(&base.join("new")).is_ok(),
            trusted(&runsc).is_ok(),
            trusted_runsc(&runsc).is_ok(),
        ];
        mode(&base, 0o777);
        let open = trusted_folder(&base.join("new")).is_ok();
        mode(&base, 0o755);
        mode(&sentry, 0o777);
        let of_the_sentry = trusted_runsc(&runsc);
        fs::remove_dir_all(&base).expect("remove");
        assert_eq!(judged, [false, true, true, true]);
        assert!(!open);
        assert!(
            of_the_sentry
                .expect_err("refused")
                .contains("gvisor_sentry")
        );
    }

    #[test]
    fn a_file_that_others_can_write_is_not_trusted() {
        let path =
            std::env::temp_dir().join(format!("bulkhead-policy-{}.toml", std::process::id()));
        fs::write(&path, "").expect("write");
        let mode = |mode| {
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("chmod")
        };
        mode(0o644);
        let trusted = Policy::load(&path);
        mode(0o666);
        let open = Policy::load(&path);
        fs::remove_file(&path).expect("remove");
        // The tests may run as any user: a file of another owner than root is refused as well.
        if fs::metadata("/proc/self").expect("self").uid() == 0 {
            assert_eq!(trusted, Ok(Policy::strict()));
            assert!(
                open.expect_err("refused")
                    .to_string()
                    .contains("only root may write")
            );
        } else {
            assert!(
                trusted
                    .expect_err("refused")
                    .to_string()
                    .contains("must belong to root")
            );
        }
        assert!(
            Policy::load(Path::new("/nonexistent/p.toml")).is_err(),
            "a named file must be there"
        );
    }
}
