//! A cgroup of the testbed's own in every hierarchy, v1 and v2: inside, it is the root, and whatever a runtime makes lies
//! below it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub path: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub kind: String,
    /// What names a v1 hierarchy to mount(2): its controllers or `name=`.
    pub data: String,
}

/// The hierarchies that are mounted here.
#[must_use]
pub fn hierarchies() -> Vec<Hierarchy> {
    let text = fs::read_to_string("/proc/self/mounts").expect("read /proc/self/mounts");
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let (path, kind, options) = (*fields.get(1)?, *fields.get(2)?, *fields.get(3)?);
        let flags = [
            "rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime",
        ];
        let data: Vec<&str> = options
            .split(',')
            .filter(|option| !flags.contains(option))
            .collect();
        kind.starts_with("cgroup").then(|| Hierarchy {
            path: path.into(),
            kind: kind.to_owned(),
            data: if kind == "cgroup2" {
                String::new()
            } else {
                data.join(",")
            },
        })
    };
    text.lines().filter_map(parse).collect()
}

fn controllers(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Makes the cgroup `name` in every hierarchy and returns the folders.
///
/// # Errors
/// When one cannot be made.
pub fn make(name: &str) -> io::Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for hierarchy in hierarchies() {
        let own = hierarchy.path.join(name);
        fs::create_dir_all(&own)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // v1 refuses processes while these are empty, and starts with them empty.
            if own.join(file).exists() && hierarchy.kind == "cgroup" {
                fs::write(own.join(file), fs::read(hierarchy.path.join(file))?)?;
            }
        }
        made.push(own);
    }
    Ok(made)
}

/// Inside of the new cgroup and mount namespaces: mounts every hierarchy again, so that its root is the testbed's.
///
/// # Errors
/// When one cannot be mounted.
pub fn remount() -> io::Result<()> {
    for Hierarchy { path, kind, data } in hierarchies() {
        umount2(&path, MntFlags::MNT_DETACH)?;
        let data = (!data.is_empty()).then_some(data.as_str());
        mount(
            Some("cgroup"),
            &path,
            Some(kind.as_str()),
            MsFlags::empty(),
            data,
        )?;
        let names = controllers(&path);
        if kind == "cgroup2" && !names.is_empty() {
            // A v2 cgroup that hands controllers on may hold no process itself.
            let leaf = path.join("testbed");
            fs::create_dir_all(&leaf)?;
            fs::write(leaf.join("cgroup.procs"), "0")?;
            delegate(&path);
        }
    }
    Ok(())
}

/// Lets the cgroups below a v2 cgroup have all its controllers.
///
/// # Panics
/// When the kernel refuses one.
pub fn delegate(folder: &Path) {
    for name in controllers(folder) {
        let file = folder.join("cgroup.subtree_control");
        fs::write(file, format!("+{name}")).expect("hand a controller on");
    }
}

/// Removes a cgroup and all below it, once its processes are gone.
///
/// # Errors
/// When something is still in use after some seconds.
pub fn remove(folder: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match remove_tree(folder) {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
            Ok(()) => return Ok(()),
        }
    }
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
