//! Files that are read whole, whoever wrote them.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// No file that is read here is larger, in bytes; specs are the largest.
const SIZE_MAX: u64 = 8 * 1024 * 1024;

/// Reads a regular file. A FIFO or a device would be waited for, for ever.
///
/// # Errors
/// When there is none, it cannot be read, or it is too large.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK, which a regular file does not know, the open itself may wait.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
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
}
