//! Processes of the node, as `/proc` shows them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use node::procfs;

/// What the kernel adds to the name of a program whose file was replaced or removed.
const DELETED: &[u8] = b" (deleted)";

/// A process, by its number. It may end at any time, and then there is nothing to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
}

/// All that there are.
pub(crate) fn all() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some(Process { pid })
    })
}

impl Process {
    fn read(self, name: &str) -> Vec<u8> {
        fs::read(format!("/proc/{}/{name}", self.pid)).unwrap_or_default()
    }

    /// The name that it has.
    pub(crate) fn name(self) -> Vec<u8> {
        self.read("comm").trim_ascii().to_vec()
    }

    /// The file that it runs, under the name which that had. A user who may not look at it sees none.
    pub(crate) fn program(self) -> Option<PathBuf> {
        let path = fs::read_link(format!("/proc/{}/exe", self.pid)).ok()?;
        let bytes = path.as_os_str().as_bytes();
        let bytes = bytes.strip_suffix(DELETED).unwrap_or(bytes);
        Some(OsString::from_vec(bytes.to_vec()).into())
    }

    /// Its command line, word by word.
    pub(crate) fn words(self) -> Vec<Vec<u8>> {
        i32::try_from(self.pid).map_or_else(|_| Vec::new(), procfs::arguments)
    }

    /// A variable of its environment; none as well where this user may not look at that.
    pub(crate) fn variable(self, name: &str) -> Option<String> {
        let environment = self.read("environ");
        let mut variables = environment.split(|byte| *byte == 0);
        let value = variables.find_map(|one| {
            let rest = one.strip_prefix(name.as_bytes())?;
            rest.strip_prefix(b"=")
        })?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    /// Whether this user may look at its environment, and it has one.
    pub(crate) fn has_environment(self) -> bool {
        !self.read("environ").is_empty()
    }

    /// Whether it is root's in all ways. The owner of its folder does not tell: that is root for all that no debugger may look at.
    pub(crate) fn is_roots(self) -> bool {
        let status = self.read("status");
        let status = String::from_utf8_lossy(&status);
        let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        users.is_some_and(|users| users.split_whitespace().all(|user| user == "0"))
    }

    /// Whether it is in the namespace of a kind (`mnt`, `pid`) that this process is in.
    pub(crate) fn shares(self, namespace: &str) -> bool {
        let of = |process: &str| {
            let path = Path::new("/proc").join(process).join("ns").join(namespace);
            fs::read_link(path).ok()
        };
        let own = of("self");
        own.is_some() && own == of(&self.pid.to_string())
    }
}

/// Starts a program, which a test has just written. Returns once the process is that.
#[cfg(test)]
pub(crate) fn started(command: &mut std::process::Command) -> std::process::Child {
    use std::io::ErrorKind;
    let pause = || std::thread::sleep(std::time::Duration::from_millis(2));
    // It cannot be run while another thread's child, which is not yet what it runs, has it open.
    let child = loop {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => pause(),
            child => break child.expect("run"),
        }
    };
    let process = Process { pid: child.id() };
    let name = command.get_program().as_encoded_bytes();
    // For an instant it still shows what its parent is.
    while process.words().first().is_none_or(|word| word != name) {
        pause();
    }
    child
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_told_by_its_program_its_words_and_its_environment() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("slow");
        fs::copy("/bin/sleep", &program).expect("copy");
        let mut command = Command::new(&program);
        command.arg("100").env_clear();
        command.env("PATHS", "/no").env("PATH", "/one");
        let mut child = started(&mut command);
        let process = Process { pid: child.id() };
        let seen = (
            all().any(|one| one == process),
            process.program(),
            process.words().last().cloned(),
            process.variable("PATH"),
            process.shares("pid"),
        );
        // What runs is told by the name it had, also when an upgrade has replaced it.
        fs::remove_file(&program).expect("remove");
        let replaced = process.program();
        child.kill().expect("kill");
        child.wait().expect("wait");
        let expected = (
            true,
            Some(program.clone()),
            Some(b"100".to_vec()),
            Some("/one".to_owned()),
            true,
        );
        assert_eq!(seen, expected);
        assert_eq!(replaced, Some(program));
        assert_eq!(process.program(), None, "it has ended");
    }
}
