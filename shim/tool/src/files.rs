//! Reads whole files, whoever wrote them.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FsWord, fstatfs};

/// No file that is read here is larger, in bytes; specs are the largest.
const SIZE_MAX: u64 = 8 * 1024 * 1024;

/// Filesystems whose files are the kernel's answers, by the number that statfs(2) gives: a read may wait, take away what is read,
/// or never end. proc, sysfs, debugfs, tracefs, securityfs, configfs, cgroup, cgroup2, bpf, selinuxfs, efivarfs and pstore.
const KERNELS: [FsWord; 12] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x6265_6570,
    0x0027_e0eb,
    0x6367_7270,
    0xcafe_4a11,
    0xf97c_ff8c,
    0xde5e_81e4,
    0x6165_676c,
];

/// Reads a regular file. Of a FIFO the open alone would let a writer go on, of a device it may do anything; so what is there
/// is looked at before it is opened.
///
/// # Errors
/// When there is none, it cannot be read, it is too large, or it is not stored anywhere.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // O_PATH opens nothing.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    if KERNELS.contains(&fstatfs(&file)?.f_type) {
        return Err(io::Error::other("is a file of the kernel's own"));
    }
    // The same file by its descriptor, whatever has the name by now. O_NONBLOCK is for one that somebody has a lease on.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mut content = Vec::new();
    file.take(SIZE_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > SIZE_MAX {
        return Err(io::Error::other(format!("is larger than {SIZE_MAX} bytes")));
    }
    Ok(content)
}

/// The same, of a text.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_a_regular_file_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "text").expect("write");
        assert_eq!(read_text(&path).expect("read"), "text");
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).expect("mkfifo");
        for other in [&fifo, Path::new("/dev/zero"), folder.path()] {
            let error = read(other).expect_err("refused").to_string();
            assert!(error.contains("regular file"), "{error}");
        }
    }

    #[test]
    fn what_is_no_regular_file_is_not_even_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).expect("mkfifo");
        let opens = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
        opens
            .add_watch(&fifo, AddWatchFlags::IN_OPEN)
            .expect("watch");
        read(&fifo).expect_err("refused");
        assert!(opens.read_events().is_err(), "it was opened");
        let text = folder.path().join("text");
        std::fs::write(&text, "x").expect("write");
        opens
            .add_watch(&text, AddWatchFlags::IN_OPEN)
            .expect("watch");
        read(&text).expect("read");
        assert_eq!(opens.read_events().expect("events").len(), 1);
    }

    #[test]
    fn a_file_of_the_kernels_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("config.json");
        std::os::unix::fs::symlink("/proc/self/environ", &link).expect("link");
        for path in [
            &link,
            Path::new("/proc/version"),
            Path::new("/sys/kernel/notes"),
        ] {
            let error = read(path).expect_err("refused").to_string();
            assert!(error.contains("kernel's own"), "{error}");
        }
    }
}
