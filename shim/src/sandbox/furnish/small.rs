//! Small files of the kubelet's and containerd's that a container may write: `/etc/hosts` where its root can be written, and the
//! termination log.
//!
//! They lie on the node's disk, have no size, and no limit counts what is in them. So a container gets a copy in memory that has one,
//! on a filesystem of its own that nothing but the container and this shim has: it goes with both. Of a termination log the kubelet
//! reads the last 4 KiB, once the container has ended. These are written to its file before the exit is told.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runsc_config::Writes;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::Error;
use crate::sandbox::furnish::apart::{apart, in_memory, take_on};
use crate::sandbox::furnish::places::{self, Stand};
use crate::sys::aside;
use node::trail;

/// What such a file may hold, in bytes.
const SIZE: u64 = 1024 * 1024;
/// What the kubelet reads of a termination log (`MaxContainerTerminationMessageLength` in Kubernetes), in bytes.
const TOLD: u64 = 4096;
/// How long an exit waits for it to be written: the disk may be dead.
const LIMIT: Duration = Duration::from_secs(2);
/// The name of the copy, on a filesystem that has nothing else.
const NAME: &str = "file";

/// What a container has to say to the kubelet when it ends.
#[derive(Debug, Default)]
pub(crate) struct Messages(Arc<Vec<Message>>);

/// A termination log.
#[derive(Debug)]
pub(crate) struct Message {
    /// What the container writes.
    copy: File,
    /// What the kubelet reads.
    file: File,
    path: PathBuf,
    /// What the copy was made with.
    before: End,
}

/// The last of a file, and how long all of it is.
#[derive(Debug, PartialEq, Eq)]
struct End {
    length: u64,
    tail: Vec<u8>,
}

/// The last close of a file writes what its filesystem still has to.
impl Drop for Messages {
    fn drop(&mut self) {
        let messages = std::mem::take(&mut self.0);
        if !messages.is_empty() {
            aside::let_go(messages);
        }
    }
}

impl Messages {
    /// Writes them, within bounds; `id` is the container's.
    pub(crate) async fn tell(&self, id: &str) {
        if self.0.is_empty() {
            return;
        }
        let messages = Arc::clone(&self.0);
        let write = move || {
            messages.iter().try_for_each(|message| {
                let failed = |e| Error::io(format!("write {}", message.path.display()), &e);
                message.tell().map_err(failed)
            })
        };
        let what = "the termination log";
        if let Err(error) = aside::CLEANING.within(LIMIT, what, write, drop).await {
            tracing::warn!(%error, id, "the kubelet does not get the container's last message");
        }
    }
}

impl Message {
    fn tell(&self) -> io::Result<()> {
        trail::at(&self.path)?;
        let end = End::of(&self.copy)?;
        // What the container has not written may be older than what is in the kubelet's file by now. A time of change would not
        // tell: what is written by a mapping leaves it as it was.
        if end == self.before {
            return Ok(());
        }
        self.file.write_all_at(&end.tail, 0)?;
        self.file.set_len(length(&end.tail))
    }
}

impl End {
    /// That of a file as it is now.
    fn of(file: &File) -> io::Result<Self> {
        let whole = file.metadata()?.len();
        let start = whole.saturating_sub(TOLD);
        let mut tail = Vec::new();
        let mut piece = [0_u8; 1024];
        while length(&tail) < TOLD {
            let read = file.read_at(&mut piece, start.saturating_add(length(&tail)))?;
            match piece.get(..read) {
                Some(read) if !read.is_empty() => tail.extend_from_slice(read),
                _ => break,
            }
        }
        let length = whole;
        Ok(Self { length, tail })
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// The copies of the files of a container.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// The mounts of each file's one copy, for the binds of it that are still to have theirs. A file may be bound at several places.
    left: BTreeMap<(u64, u64), Vec<OwnedFd>>,
    messages: Vec<Message>,
}

impl Copies {
    /// A mount of the copy of a bind's file, which all binds of it among `stands` share. It is nowhere yet. `folder` is one of the
    /// shim's own.
    ///
    /// # Errors
    /// As [`copy`].
    pub(crate) fn of(
        &mut self,
        stand: &Stand<'_>,
        stands: &[Stand<'_>],
        folder: &Path,
    ) -> io::Result<OwnedFd> {
        trail::at(stand.bind.source)?;
        let file = identity(stand)?;
        if let Some(tree) = self.left.get_mut(&file).and_then(Vec::pop) {
            return Ok(tree);
        }
        let is_another = |other: &&Stand<'_>| {
            other.bind.number != stand.bind.number
                && other.is_copied()
                && identity(other).is_ok_and(|other| other == file)
        };
        let others = stands.iter().filter(is_another).count();
        let (tree, more, message) = copy(stand, others, folder)?;
        self.messages.extend(message);
        self.left.insert(file, more);
        Ok(tree)
    }

    /// What is to be told when the container ends.
    pub(crate) fn into_messages(self) -> Messages {
        Messages(Arc::new(self.messages))
    }
}

impl Stand<'_> {
    /// Whether the container has a copy of its source. What others hide it has not.
    pub(crate) fn is_copied(&self) -> bool {
        self.bind.writes != Writes::Host && !self.is_hidden
    }
}

/// Which file of the host it is, by whatever name.
fn identity(stand: &Stand<'_>) -> io::Result<(u64, u64)> {
    let stat = fstat(&stand.source)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Makes the copy of a file, as a mount that is nowhere yet and as many `others`. `folder` is one of the shim's own.
///
/// # Errors
/// For what is no file or is larger than a copy may be; else what the kernel says.
fn copy(
    stand: &Stand<'_>,
    others: usize,
    folder: &Path,
) -> io::Result<(OwnedFd, Vec<OwnedFd>, Option<Message>)> {
    let path = stand.bind.source;
    if places::kind(&stand.source)? != FileType::RegularFile {
        let problem = format!(
            "{path:?} is no file: what the kubelet makes there for a container to write is one"
        );
        return Err(io::Error::other(problem));
    }
    let is_told = stand.bind.writes == Writes::Told;
    // What was judged, whatever has its name by now.
    let mut how = OpenOptions::new();
    let file = how.read(true).write(is_told);
    let file = file.open(format!("/proc/self/fd/{}", stand.source.as_raw_fd()));
    let file = file.map_err(|error| {
        let problem = format!("{path:?}, of which the container has a copy: {error}");
        io::Error::other(problem)
    })?;
    let mut content = Vec::new();
    (&file).take(SIZE + 1).read_to_end(&mut content)?;
    if length(&content) > SIZE {
        let problem = format!(
            "{path:?} is larger than {SIZE} bytes, and a container that may write it has a copy of that size"
        );
        return Err(io::Error::other(problem));
    }
    let facts = fstat(&file)?;
    let make = || -> io::Result<(OwnedFd, Vec<OwnedFd>, File)> {
        let size = SIZE.to_string();
        // The folder that the file is in counts as one of two.
        let options = [
            ("size", size.as_str()),
            ("nr_inodes", "2"),
            ("mode", "0700"),
        ];
        let filesystem = in_memory(folder, &options)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let mut copy = File::from(openat(&filesystem, NAME, flags, Mode::RUSR | Mode::WUSR)?);
        copy.write_all(&content)?;
        take_on(&copy, &facts)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        // None can be made of these later, before Linux 6.15.
        let clone = || open_tree(&filesystem, NAME, flags);
        let more = (0..others).map(|_| clone()).collect::<Result<_, _>>()?;
        Ok((clone()?, more, copy))
    };
    let (tree, more, copy) = apart(make)?;
    if !is_told {
        return Ok((tree, more, None));
    }
    let message = Message {
        before: End::of(&copy)?,
        copy,
        file,
        path: path.to_owned(),
    };
    Ok((tree, more, Some(message)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use runsc_config::Bind;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    fn stand(source: &Path, writes: Writes) -> Stand<'_> {
        Stand {
            bind: Bind {
                number: 0,
                source,
                destination: Path::new("/dev/termination-log"),
                recursive: true,
                read_only: false,
                no_exec: false,
                private: true,
                is_mask: false,
                writes,
            },
            source: places::open_judged(source).expect("open"),
            is_folder: false,
            tree: None,
            path: "dev/termination-log".into(),
            is_hidden: false,
        }
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("tempdir");
        fs::create_dir(folder.path().join("own")).expect("mkdir");
        folder
    }

    #[test]
    fn a_copy_has_a_size_and_its_end_is_told() {
        if !node::testing::has_root() {
            return;
        }
        let folder = folder();
        let log = folder.path().join("log");
        fs::write(&log, "earlier\n").expect("write");
        fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).expect("chmod");
        let mounts = || fs::read("/proc/self/mountinfo").expect("mountinfo");
        let before = mounts();
        let own = folder.path().join("own");
        let (_tree, _, message) = copy(&stand(&log, Writes::Told), 0, &own).expect("a copy");
        assert_eq!(mounts(), before);
        let message = message.expect("a message");
        assert_eq!(message.copy.metadata().expect("facts").mode(), 0o100_666);
        message.tell().expect("told");
        assert_eq!(fs::read(&log).expect("read"), b"earlier\n");
        // Whoever has the name now is not written to.
        fs::rename(&log, folder.path().join("moved")).expect("rename");
        std::os::unix::fs::symlink("/etc/passwd", &log).expect("link");
        let more: Vec<u8> = (0..2 * SIZE).map(|n| (n % 251) as u8).collect();
        message.copy.write_all_at(&more, 0).expect_err("full");
        let held = message.copy.metadata().expect("facts").len();
        assert_eq!(held, SIZE);
        message.tell().expect("told");
        let told = fs::read(folder.path().join("moved")).expect("read");
        let all = usize::try_from(SIZE).expect("a size");
        assert_eq!(told, &more[all - 4096..all]);
        // Less than there was.
        message.copy.set_len(3).expect("cut");
        message.tell().expect("told");
        let told = fs::read(folder.path().join("moved")).expect("read");
        assert_eq!(told, &more[..3]);
    }

    #[test]
    fn all_places_of_a_file_have_one_copy_and_what_is_not_written_is_not_told() {
        if !node::testing::has_root() {
            return;
        }
        let folder = folder();
        let (log, own) = (folder.path().join("log"), folder.path().join("own"));
        fs::write(&log, "earlier\n").expect("write");
        let number = |number| {
            let mut stand = stand(&log, Writes::Told);
            stand.bind.number = number;
            stand
        };
        let mut stands = [number(0), number(1), number(2)];
        stands[2].is_hidden = true;
        let mut copies = Copies::default();
        let mounts = stands.each_ref().map(|stand| {
            let mount = (!stand.is_hidden).then(|| copies.of(stand, &stands, &own));
            mount.transpose().expect("a copy")
        });
        let inode = |mount: &OwnedFd| fstat(mount).map(|stat| (stat.st_dev, stat.st_ino));
        let [one, two] = [&mounts[0], &mounts[1]].map(|mount| mount.as_ref().expect("a mount"));
        assert_eq!(inode(one).expect("facts"), inode(two).expect("facts"));
        assert!(copies.left.values().all(Vec::is_empty));
        let messages = copies.into_messages();
        assert_eq!(messages.0.len(), 1);
        // Another container's, say.
        fs::write(&log, "newer\n").expect("write");
        messages.0[0].tell().expect("told");
        assert_eq!(fs::read(&log).expect("read"), b"newer\n");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        if !node::testing::has_root() {
            return;
        }
        let folder = folder();
        let (log, own) = (folder.path().join("log"), folder.path().join("own"));
        fs::write(&log, "").expect("write");
        let tree = File::open(folder.path()).expect("open").into();
        let tree = crate::sandbox::furnish::binds::detach(&tree, false).expect("detach");
        let to = crate::sandbox::furnish::mount::Restriction {
            read_only: true,
            ..Default::default()
        };
        crate::sandbox::furnish::mount::restrict(&tree, to).expect("restrict");
        let mut stand = stand(&log, Writes::Told);
        stand.source = openat(&tree, "log", places::LOOK, Mode::empty()).expect("open");
        let error = copy(&stand, 0, &own).expect_err("refused").to_string();
        assert!(error.contains(log.to_str().expect("text")), "{error}");
        assert!(error.contains("Read-only file system"), "{error}");
    }

    #[test]
    fn what_is_no_file_or_too_large_has_no_copy() {
        if !node::testing::has_root() {
            return;
        }
        let folder = folder();
        let own = folder.path().join("own");
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let large = folder.path().join("large");
        File::create(&large)
            .and_then(|file| file.set_len(SIZE + 1))
            .expect("a file");
        for (source, problem) in [(&own, "no file"), (&fifo, "no file"), (&large, "larger")] {
            let error = copy(&stand(source, Writes::Copy), 0, &own).expect_err(problem);
            assert!(error.to_string().contains(problem), "{error}");
        }
        File::options()
            .write(true)
            .open(&large)
            .and_then(|file| file.set_len(SIZE))
            .expect("cut");
        let (_, _, message) = copy(&stand(&large, Writes::Copy), 0, &own).expect("a copy");
        assert!(message.is_none());
    }
}
