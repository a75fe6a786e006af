//! Where a policy comes from: a file that is root's alone to write.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Policy, PolicyError};

/// Where the policy is looked for when the handler names none.
const DEFAULT_PATH: &str = "/etc/bulkhead/config.toml";
/// No policy is longer, in bytes.
const SIZE_MAX: u64 = 256 * 1024;

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
        let mut file = File::open(path).map_err(|e| failed(e.to_string()))?;
        let metadata = file.metadata().map_err(|e| failed(e.to_string()))?;
        if !metadata.is_file() {
            return Err(failed("is not a regular file".to_owned()));
        }
        let real = fs::canonicalize(path).map_err(|e| failed(e.to_string()))?;
        trusted(&real).map_err(failed)?;
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

/// Checks that nobody but root can write a file or folder, or replace it by way of a folder above it: what others can write
/// is not the administrator's word. `path` has to be free of links.
///
/// # Errors
/// Names the part of the path that is not root's, and what is wrong with it.
pub fn trusted(path: &Path) -> Result<(), String> {
    const STICKY: u32 = 0o1000;
    for part in path.ancestors() {
        let metadata =
            fs::symlink_metadata(part).map_err(|e| format!("{}: {e}", part.display()))?;
        let (mode, uid) = (metadata.mode(), metadata.uid());
        if uid != 0 {
            return Err(format!(
                "{} belongs to uid {uid}: it must belong to root",
                part.display()
            ));
        }
        // In a sticky folder (/tmp) nobody can replace root's files.
        if mode & 0o022 != 0 && !(metadata.is_dir() && mode & STICKY != 0) {
            let mode = mode & 0o7777;
            return Err(format!(
                "{} has mode {mode:04o}: only root may write it",
                part.display()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
