//! The table of mounts (proc_pid_mountinfo(5)): what lies where, and where it comes from.
//!
//! It is read as bytes: any user of the node may have a mount point whose name is no text.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use runsc_config::Origin;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::trail;

/// One mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in mountinfo (proc_pid_mountinfo(5)).
    pub number: u64,
    /// What of which filesystem is mounted.
    origin: Origin,
    /// Where.
    pub point: PathBuf,
}

impl Entry {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').take(5).collect();
        let &[number, _, device, root, point] = fields.as_slice() else {
            return None;
        };
        Some(Self {
            number: std::str::from_utf8(number).ok()?.parse().ok()?,
            origin: Origin {
                device: std::str::from_utf8(device).ok()?.to_owned(),
                path: unescape(root),
            },
            point: unescape(point),
        })
    }
}

/// All mounts that this process sees, in mount order.
///
/// # Errors
/// When /proc cannot be read.
pub fn entries() -> io::Result<Vec<Entry>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(Entry::parse).collect())
}

/// Where a file or folder, named without links, lies in its filesystem. It is the mount that the name leads to that counts,
/// not the last one at a folder above it, so the kernel is asked which one that is.
pub fn origin(path: &Path) -> Option<Origin> {
    trail::at(path).ok()?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty()).ok()?;
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let number = facts.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let number: u64 = number?.trim().parse().ok()?;
    let mount = entries().ok()?.into_iter().find(|one| one.number == number);
    let Entry { origin, point, .. } = mount?;
    let below = path.strip_prefix(&point).ok()?;
    Some(Origin {
        // Joining nothing would leave a slash at the end, which says that a file is a folder.
        path: if below == Path::new("") {
            origin.path
        } else {
            origin.path.join(below)
        },
        device: origin.device,
    })
}

/// What is mounted at and below a folder.
pub fn below(folder: &Path) -> Vec<Origin> {
    let entries = entries().unwrap_or_default().into_iter();
    let below = entries.filter(|entry| entry.point.starts_with(folder));
    below.map(|entry| entry.origin).collect()
}

/// Where a filesystem is mounted, by its device.
pub fn points(device: &str) -> Vec<PathBuf> {
    let entries = entries().unwrap_or_default().into_iter();
    let of_it = entries.filter(|entry| entry.origin.device == device);
    of_it.map(|entry| entry.point).collect()
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'\\', digits @ ..] => digits.get(..3).and_then(octal),
            _ => None,
        };
        plain.push(escaped.unwrap_or(*first));
        let skipped = if escaped.is_some() { 3 } else { 0 };
        rest = after.get(skipped..).unwrap_or_default();
    }
    OsString::from_vec(plain).into()
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_spaces_in_its_names_is_read() {
        let line = b"36 35 98:0 /a\\040b /mnt\\134040a rw,noatime master:1 - ext3 /dev/root rw";
        let entry = Entry {
            number: 36,
            origin: Origin {
                device: "98:0".into(),
                path: "/a b".into(),
            },
            point: "/mnt\\040a".into(),
        };
        assert_eq!(Entry::parse(line), Some(entry));
        assert_eq!(Entry::parse(b"36 35 98:0 /"), None);
    }

    #[test]
    fn a_name_that_is_no_text_is_read() {
        let line = b"36 35 98:0 / /mnt/\xff\\011\\43 rw - ext3 /dev/root rw";
        let entry = Entry::parse(line).expect("an entry");
        assert_eq!(
            entry.point.as_os_str().as_encoded_bytes(),
            b"/mnt/\xff\t\\43"
        );
    }

    #[test]
    fn a_files_origin_is_that_of_the_mount_it_is_in() {
        let root = origin(Path::new("/")).expect("the root");
        let proc = origin(Path::new("/proc/sys/kernel")).expect("a folder of /proc");
        assert_ne!(root.device, proc.device);
        assert_eq!(proc.path, Path::new("/sys/kernel"));
        assert!(points(&proc.device).contains(&"/proc".into()));
        assert!(!points(&proc.device).contains(&"/".into()) && points("no").is_empty());
        assert!(below(Path::new("/proc")).contains(&Origin {
            path: "/".into(),
            ..proc
        }));
        let folder = tempfile::tempdir().expect("tempdir");
        let name = fs::canonicalize(folder.path()).expect("a folder");
        let (own, above) = (origin(&name), origin(name.parent().expect("a folder")));
        let (own, above) = (own.expect("own"), above.expect("above"));
        assert_eq!(own.path.parent(), Some(above.path.as_path()));
        assert_eq!(origin(&name.join("none")), None);
    }
}
