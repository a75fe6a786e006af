//! Every containerd that runs on the node.

use std::path::{Path, PathBuf};

use crate::processes::{self, Process};

/// What containerd reads unless it is told otherwise.
pub(crate) const CONFIG: &str = "/etc/containerd/config.toml";

/// A containerd that runs.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) pid: u32,
    /// Where it looks for programs.
    pub(crate) path: String,
    /// The configuration that its command line names.
    reads: Option<PathBuf>,
}

impl Daemon {
    /// The configuration that it has read.
    pub(crate) fn config(&self) -> &Path {
        self.reads.as_deref().unwrap_or(Path::new(CONFIG))
    }

    fn of(process: Process) -> Option<Self> {
        let is_one = process.name() == b"containerd"
            && process.is_roots()
            && ["mnt", "pid"].iter().all(|one| process.shares(one))
            && process.has_environment();
        is_one.then(|| Self {
            pid: process.pid,
            path: process.variable("PATH").unwrap_or_default(),
            reads: config_of(&process.words()),
        })
    }
}

/// All of them; none that this user may not look at. Anybody may call a process so, and one in another container finds other files by
/// its PATH: only root's of this node count.
pub(crate) fn all() -> Vec<Daemon> {
    processes::all().filter_map(Daemon::of).collect()
}

/// What `--config FILE`, `--config=FILE` or `-c FILE` says.
fn config_of(words: &[Vec<u8>]) -> Option<PathBuf> {
    let mut words = words.iter().map(|word| String::from_utf8_lossy(word));
    while let Some(word) = words.next() {
        match word.trim_start_matches('-').split_once('=') {
            _ if !word.starts_with('-') => {}
            Some(("config" | "c", file)) => return Some(file.into()),
            Some(_) => {}
            None if matches!(&*word, "--config" | "-config" | "-c" | "--c") => {
                return words.next().map(|file| file.into_owned().into());
            }
            None => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containerd_reads_what_its_command_line_says() {
        let reads = |line: &str| {
            let words: Vec<_> = line
                .split(' ')
                .map(|word| word.as_bytes().to_vec())
                .collect();
            config_of(&words)
        };
        assert_eq!(reads("/usr/bin/containerd"), None);
        for line in [
            "containerd -c /x",
            "containerd --config /x",
            "containerd -l debug --config=/x",
        ] {
            assert_eq!(reads(line).as_deref(), Some(Path::new("/x")), "{line}");
        }
    }
}
