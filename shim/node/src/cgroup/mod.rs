//! The sandbox's cgroups: where they are, what they count, and their removal.
//!
//! A handful of files, read by hand: the one library for it brings a D-Bus client with it.

pub mod limits;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MOUNT: &str = "/sys/fs/cgroup";
/// How long all folders together may take to be removable.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);

/// The host's cgroup mode, by looking at the host (cgroups(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Mode {
    /// One hierarchy per controller, with or without a unified one beside them.
    V1,
    /// The unified hierarchy alone.
    V2,
}

impl Mode {
    /// # Errors
    /// When /sys/fs/cgroup is not there.
    pub fn of_host() -> io::Result<Self> {
        let kind = nix::sys::statfs::statfs(MOUNT)?.filesystem_type();
        Ok(if kind == nix::sys::statfs::CGROUP2_SUPER_MAGIC {
            Self::V2
        } else {
            Self::V1
        })
    }
}

/// The folders of one sandbox's cgroups. Recorded while the sandbox lives, so that figures can be read and the folders
/// removed after it has gone.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Cgroups {
    /// How the host mounts its cgroups.
    pub mode: Mode,
    /// By controller on v1, under the empty name on v2.
    folders: BTreeMap<String, PathBuf>,
}

impl Cgroups {
    /// The cgroups a sandbox is in, as far as they are its own: those that end in the path its spec asked for. A
    /// controller that runsc did not move it in leaves it in the cgroup of whoever started it.
    ///
    /// # Errors
    /// When /proc or the cgroup mount cannot be read.
    pub fn of_sandbox(pid: i32, path: &str) -> io::Result<Self> {
        let mode = Mode::of_host()?;
        let table = table(pid)?;
        let own = path.trim_matches('/');
        let is_own = |folder: &Path| !own.is_empty() && folder.ends_with(own) && folder.is_dir();
        let folders = folders(mode, &table)
            .filter(|(_, folder)| is_own(folder))
            .collect();
        Ok(Self { mode, folders })
    }

    /// The cgroups that another process is in and this one is not.
    ///
    /// # Errors
    /// When /proc or the cgroup mount cannot be read.
    pub fn unshared(pid: i32) -> io::Result<Self> {
        let mode = Mode::of_host()?;
        let (its, own) = (table(pid)?, table("self")?);
        let own: BTreeMap<_, _> = folders(mode, &own).collect();
        // One that holds this process's would be an ancestor of it.
        let is_shared = |folder: &Path| own.values().any(|own| own.starts_with(folder));
        let folders = folders(mode, &its)
            .filter(|(_, folder)| folder.is_dir() && !is_shared(folder))
            .collect();
        Ok(Self { mode, folders })
    }

    /// The cgroups runsc is about to make for this path (absolute, as cgroupfs takes it), so that they can be removed
    /// even when it is killed half way.
    ///
    /// # Errors
    /// When the cgroup mount cannot be read.
    pub fn expected(path: &str) -> io::Result<Self> {
        let (mode, path) = (Mode::of_host()?, path.trim_matches('/'));
        let mut folders = BTreeMap::new();
        if path.is_empty() || path.contains(':') || path.split('/').any(|part| part == "..") {
            return Ok(Self { mode, folders });
        }
        match mode {
            Mode::V2 => {
                folders.insert(String::new(), Path::new(MOUNT).join(path));
            }
            Mode::V1 => {
                for entry in fs::read_dir(MOUNT)?.filter_map(Result::ok) {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    folders.insert(name, entry.path().join(path));
                }
            }
        }
        Ok(Self { mode, folders })
    }

    /// Sees to it that none of them is there: in one that it finds runsc sets no limits, and what is in a sandbox's cgroups
    /// ends with it. Empty ones, as a sandbox that died leaves them, are removed; if one is in use, none is.
    ///
    /// # Errors
    /// Names the one that is in use.
    pub fn clear(&self) -> Result<(), (&Path, io::Error)> {
        for folder in self.folders.values() {
            check_unused(folder).map_err(|error| (folder.as_path(), error))?;
        }
        for folder in self.folders.values() {
            match fs::remove_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err((folder, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The folder of a controller; on v2 all share one.
    pub fn folder(&self, controller: &str) -> Option<&Path> {
        let key = if self.mode == Mode::V2 {
            ""
        } else {
            controller
        };
        self.folders.get(key).map(PathBuf::as_path)
    }

    /// Reads one file of a controller.
    pub fn read(&self, controller: &str, file: &str) -> Option<String> {
        read_small(&self.folder(controller)?.join(file)).ok()
    }

    /// Reads a file that holds one number; `max` is the largest.
    pub fn number(&self, controller: &str, file: &str) -> Option<u64> {
        parse_number(self.read(controller, file)?.trim())
    }

    /// Reads a file of `key value` lines.
    pub fn table(&self, controller: &str, file: &str) -> BTreeMap<String, u64> {
        self.read(controller, file)
            .map(|text| parse_table(&text))
            .unwrap_or_default()
    }

    /// CPU time of all its processes, in nanoseconds.
    pub fn cpu_nanos(&self) -> Option<u64> {
        match self.mode {
            Mode::V1 => self.number("cpuacct", "cpuacct.usage"),
            Mode::V2 => {
                let micros = value_of(&self.read("", "cpu.stat")?, "usage_usec")?;
                Some(micros.saturating_mul(1000))
            }
        }
    }

    /// CPU periods of the sandbox's cgroup and of those above it, whose quotas hold for it as well: each is counted only where
    /// it is set.
    pub fn cpu_periods(&self) -> Vec<Periods> {
        let folders = self.folder("cpu").into_iter().flat_map(Path::ancestors);
        let below = folders.take_while(|folder| *folder != Path::new(MOUNT));
        below
            .map(|folder| {
                let text = read_small(&folder.join("cpu.stat")).unwrap_or_default();
                let value = |key| value_of(&text, key).unwrap_or_default();
                Periods {
                    all: value("nr_periods"),
                    throttled: value("nr_throttled"),
                }
            })
            .collect()
    }

    /// Memory in use, in bytes, caches included.
    pub fn memory(&self) -> Option<u64> {
        match self.mode {
            Mode::V1 => self.number("memory", "memory.usage_in_bytes"),
            Mode::V2 => self.number("", "memory.current"),
        }
    }

    /// What it counts, for metrics.
    pub fn figures(&self) -> Figures {
        match self.mode {
            Mode::V1 => self.figures_v1(),
            Mode::V2 => self.figures_v2(),
        }
    }

    fn figures_v1(&self) -> Figures {
        let (cpu, memory) = (
            self.read("cpu", "cpu.stat").unwrap_or_default(),
            self.read("memory", "memory.stat").unwrap_or_default(),
        );
        let usage = self.memory();
        let inactive = value_of(&memory, "total_inactive_file").unwrap_or_default();
        let served = self.read("blkio", "blkio.throttle.io_service_bytes_recursive");
        let io = |operation: &str| bytes_of(served.as_deref()?, operation);
        Figures {
            cpu_nanos: self.cpu_nanos(),
            throttled_nanos: value_of(&cpu, "throttled_time"),
            throttled_periods: value_of(&cpu, "nr_throttled"),
            memory: usage,
            working_set: usage.map(|usage| usage.saturating_sub(inactive)),
            memory_peak: self.number("memory", "memory.max_usage_in_bytes"),
            memory_limit: self
                .number("memory", "memory.limit_in_bytes")
                .filter(is_limit),
            io_read: io("Read"),
            io_written: io("Write"),
        }
    }

    fn figures_v2(&self) -> Figures {
        let (cpu, memory) = (
            self.read("", "cpu.stat").unwrap_or_default(),
            self.read("", "memory.stat").unwrap_or_default(),
        );
        let usage = self.memory();
        let inactive = value_of(&memory, "inactive_file").unwrap_or_default();
        let io = |key: &str| {
            let text = self.read("", "io.stat")?;
            let fields = text
                .split_whitespace()
                .filter_map(|field| field.strip_prefix(key));
            Some(
                fields
                    .filter_map(|value| value.parse::<u64>().ok())
                    .fold(0, u64::saturating_add),
            )
        };
        Figures {
            cpu_nanos: value_of(&cpu, "usage_usec").map(|micros| micros.saturating_mul(1000)),
            throttled_nanos: value_of(&cpu, "throttled_usec")
                .map(|micros| micros.saturating_mul(1000)),
            throttled_periods: value_of(&cpu, "nr_throttled"),
            memory: usage,
            working_set: usage.map(|usage| usage.saturating_sub(inactive)),
            memory_peak: self.number("", "memory.peak"),
            memory_limit: self.number("", "memory.max").filter(is_limit),
            io_read: io("rbytes="),
            io_written: io("wbytes="),
        }
    }

    /// Tasks of the host in it.
    pub fn tasks(&self) -> Option<u64> {
        self.number("pids", "pids.current")
    }

    /// The pids of all processes in it, as the host counts them.
    pub fn pids(&self) -> Vec<i32> {
        let controller = if self.mode == Mode::V2 { "" } else { "pids" };
        let text = self.read(controller, "cgroup.procs").unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Kills all processes in it at once, which the kernel does by itself on v2 (Linux 5.14). Where it does not, nothing is done.
    pub fn kill(&self) {
        if self.mode == Mode::V2
            && let Some(folder) = self.folder("")
        {
            let file = fs::File::options()
                .write(true)
                .open(folder.join("cgroup.kill"));
            let _ = file.and_then(|mut file| file.write_all(b"1"));
        }
    }

    /// Removes the folders, retrying for as long as the kernel still counts a dying process in them.
    pub async fn remove(&self) {
        let deadline = tokio::time::Instant::now() + REMOVE_LIMIT;
        for folder in self.folders.values() {
            // A killed process is in its cgroup until the kernel has got round to it.
            while let Err(error) = fs::remove_dir(folder)
                && error.kind() == io::ErrorKind::ResourceBusy
                && tokio::time::Instant::now() < deadline
            {
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            if folder.exists() {
                tracing::warn!(folder = %folder.display(), "cgroup not removed: it still has processes");
            }
        }
    }
}

/// Moves this process into the cgroup of a path: on v1 into each of the hierarchies that have it.
///
/// # Errors
/// For a path that is not absolute or leads upwards, for one that is nowhere, and what the kernel says.
pub fn enter(path: &str) -> io::Result<()> {
    let is_plain = path.starts_with('/') && path.split('/').all(|part| part != "..");
    let below = path.trim_matches('/');
    if !is_plain || below.is_empty() {
        return Err(io::Error::other("no absolute path of a cgroup"));
    }
    let folders = match Mode::of_host()? {
        Mode::V2 => vec![Path::new(MOUNT).join(below)],
        Mode::V1 => fs::read_dir(MOUNT)?
            .filter_map(|entry| Some(entry.ok()?.path().join(below)))
            .collect(),
    };
    let mut entered = false;
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        fs::write(folder.join("cgroup.procs"), "0")?;
        entered = true;
    }
    if !entered {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    Ok(())
}

/// Whether a cgroup is not there, or has neither processes nor cgroups of its own.
fn check_unused(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        if entry?.file_type()?.is_dir() {
            return Err(io::Error::other("it has cgroups below it"));
        }
    }
    if !fs::read_to_string(folder.join("cgroup.procs"))?.is_empty() {
        return Err(io::Error::other("it has processes"));
    }
    Ok(())
}

/// Periods of a CPU quota in which there was something to run, and in how many of them the quota was used up (cpu.stat).
#[derive(Debug, Clone, Copy)]
pub struct Periods {
    /// Periods of the CPU quota so far.
    pub all: u64,
    /// Those in which the quota was used up.
    pub throttled: u64,
}

impl Periods {
    /// Whether the quota was used up in most of the periods since `before`.
    pub fn mostly_throttled_since(&self, before: &Self) -> bool {
        let all = self.all.saturating_sub(before.all);
        self.throttled.saturating_sub(before.throttled) * 2 > all
    }
}

/// What a cgroup counts; none where the kernel does not say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// CPU time, in nanoseconds.
    pub cpu_nanos: Option<u64>,
    /// Time for which the CPU quota held it back, in nanoseconds.
    pub throttled_nanos: Option<u64>,
    /// Periods in which it did.
    pub throttled_periods: Option<u64>,
    /// This and what follows is in bytes.
    pub memory: Option<u64>,
    /// Memory in use without what the kernel can drop at once, in bytes.
    pub working_set: Option<u64>,
    /// The most memory that was in use, in bytes.
    pub memory_peak: Option<u64>,
    /// The memory limit, in bytes.
    pub memory_limit: Option<u64>,
    /// Bytes read from block devices.
    pub io_read: Option<u64>,
    /// Bytes written to block devices.
    pub io_written: Option<u64>,
}

/// The sum over all devices of what a blkio file has of an operation: `8:0 Read 4096`. None where it names no device: the
/// last line (`Total 0`) is there even where the kernel counts nothing for anybody.
fn bytes_of(text: &str, operation: &str) -> Option<u64> {
    let values = text.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let is_wanted = fields.next()?.contains(':') && fields.next()? == operation;
        is_wanted.then_some(fields.next()?.parse::<u64>().ok()?)
    });
    values.reduce(u64::saturating_add)
}

/// cgroup v1 shows no limit as the largest number of pages there is.
fn is_limit(bytes: &u64) -> bool {
    *bytes < 1 << 62
}

/// The cgroups of a process (cgroups(7)). A name that is no text leads nowhere: runsc is never given one.
fn table(process: impl std::fmt::Display) -> io::Result<String> {
    let table = fs::read(format!("/proc/{process}/cgroup"))?;
    Ok(String::from_utf8_lossy(&table).into_owned())
}

/// The lines of /proc/PID/cgroup as folders. Roots are left out: they are the host's own.
fn folders(mode: Mode, table: &str) -> impl Iterator<Item = (String, PathBuf)> {
    table.lines().flat_map(move |line| {
        let mut fields = line.splitn(3, ':');
        let (controllers, path) = (
            fields.nth(1).unwrap_or_default(),
            fields.next().unwrap_or_default(),
        );
        let path = path.trim_start_matches('/');
        let wanted = !path.is_empty()
            && !path.contains("..")
            && (mode == Mode::V2) == controllers.is_empty();
        let folder = |controller: &str| match mode {
            Mode::V2 => Path::new(MOUNT).join(path),
            Mode::V1 => {
                // Controllers mounted together share a folder that is linked under each name.
                let name = controller.trim_start_matches("name=");
                Path::new(MOUNT).join(name).join(path)
            }
        };
        let found: Vec<_> = if wanted {
            controllers
                .split(',')
                .map(|c| (c.trim_start_matches("name=").to_owned(), folder(c)))
                .collect()
        } else {
            Vec::new()
        };
        found
    })
}

/// Reads a file that the kernel makes as it is read. One of a few lines comes in one piece; asking for its length first, as
/// the standard library does, and for it bit by bit, is what most of the time would go into.
///
/// # Errors
/// The kernel's, and for what is no text.
pub fn read_small(path: &Path) -> io::Result<String> {
    const PIECE: usize = 4096;
    let mut file = fs::File::open(path)?;
    let mut content = Vec::with_capacity(PIECE);
    loop {
        let before = content.len();
        content.resize(before + PIECE, 0);
        let read = match file.read(content.get_mut(before..).unwrap_or_default()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                content.truncate(before);
                continue;
            }
            read => read?,
        };
        content.truncate(before + read);
        if read == 0 {
            return String::from_utf8(content).map_err(io::Error::other);
        }
    }
}

/// The number of a key in lines of `key value`.
pub fn value_of(table: &str, key: &str) -> Option<u64> {
    let mut values = table.lines().filter_map(|line| line.strip_prefix(key));
    let value = values.find_map(|rest| rest.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// A number as cgroup files have it; `max` is the largest.
pub fn parse_number(text: &str) -> Option<u64> {
    if text == "max" {
        Some(u64::MAX)
    } else {
        text.parse().ok()
    }
}

fn parse_table(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), parse_number(value.trim())?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_controllers_are_found_and_the_host_root_is_not() {
        let table = "5:cpu,cpuacct:/default/a\n4:memory:/default/a\n3:pids:/\n9:name=systemd:/default/a\n0::/x\n";
        let found: BTreeMap<_, _> = folders(Mode::V1, table).collect();
        assert_eq!(
            found.get("memory").map(PathBuf::as_path),
            Some(Path::new("/sys/fs/cgroup/memory/default/a"))
        );
        assert_eq!(
            found.get("cpuacct").map(PathBuf::as_path),
            Some(Path::new("/sys/fs/cgroup/cpuacct/default/a"))
        );
        assert!(
            found.contains_key("systemd") && !found.contains_key("pids") && !found.contains_key("")
        );
    }

    #[test]
    fn what_somebody_uses_is_not_cleared_away() {
        let base = tempfile::tempdir().expect("tempdir");
        let folder = |name: &str| base.path().join(name);
        let cgroups = |names: &[&str]| Cgroups {
            mode: Mode::V1,
            folders: names
                .iter()
                .map(|name| ((*name).to_owned(), folder(name)))
                .collect(),
        };
        for name in ["a_free", "busy", "above/below"] {
            fs::create_dir_all(folder(name)).expect("mkdir");
        }
        for free in ["a_free", "above"] {
            fs::write(folder(free).join("cgroup.procs"), "").expect("write");
        }
        fs::write(folder("busy/cgroup.procs"), "7\n").expect("write");
        for used in ["busy", "above"] {
            let cgroups = cgroups(&["a_free", used]);
            let (named, _) = cgroups.clear().expect_err("in use");
            assert_eq!(named, folder(used));
            assert!(folder("a_free").exists() && folder(used).exists());
        }
        cgroups(&["none"]).clear().expect("nothing is there");
    }

    #[test]
    fn all_of_a_cgroup_are_killed_at_once_where_the_kernel_can() {
        let base = tempfile::tempdir().expect("tempdir");
        let cgroups = |mode, name: &str| Cgroups {
            mode,
            folders: BTreeMap::from([(name.to_owned(), base.path().to_owned())]),
        };
        let file = base.path().join("cgroup.kill");
        cgroups(Mode::V2, "").kill();
        assert!(!file.exists(), "an older kernel has none");
        fs::write(&file, "").expect("write");
        cgroups(Mode::V1, "pids").kill();
        assert_eq!(fs::read_to_string(&file).expect("read"), "");
        cgroups(Mode::V2, "").kill();
        assert_eq!(fs::read_to_string(&file).expect("read"), "1");
    }

    #[test]
    fn v2_has_one_folder() {
        let found: BTreeMap<_, _> = folders(Mode::V2, "0::/kubepods/pod1/c\n").collect();
        assert_eq!(
            found.get("").map(PathBuf::as_path),
            Some(Path::new("/sys/fs/cgroup/kubepods/pod1/c"))
        );
    }

    #[test]
    fn bytes_are_none_where_no_device_is_counted() {
        let text = "8:0 Read 4096\n8:0 Write 512\n8:16 Read 1\n8:0 Total 4609\nTotal 4609\n";
        assert_eq!(bytes_of(text, "Read"), Some(4097));
        assert_eq!(bytes_of(text, "Write"), Some(512));
        assert_eq!(bytes_of("Total 0\n", "Read"), None);
    }

    #[test]
    fn numbers_and_tables_are_read() {
        assert_eq!(parse_number("max"), Some(u64::MAX));
        let table = "nr_throttled_x 1\nnr_throttled 7\nbroken\n";
        assert_eq!(value_of(table, "nr_throttled"), Some(7));
        assert_eq!(value_of(table, "nr"), None);
        assert_eq!(
            parse_table("cache 4096\nrss 8\nbroken\n").get("cache"),
            Some(&4096)
        );
    }
}
