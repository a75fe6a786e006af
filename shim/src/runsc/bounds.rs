//! What a runsc command may take of the node. It reads what a sentry answers without a bound (`pkg/urpc`, `unmarshal`),
//! some 230 MB a second, in no cgroup but the shim's: it cannot be in the sandbox's, where a guest that has filled its
//! memory would kill its own kill, and where the kernel's choice of the command would end the pod.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::resource::{Resource, setrlimit};

const MIB: u64 = 1024 * 1024;
/// Memory that a command can write, in bytes (RLIMIT_DATA; RLIMIT_AS is of no use, Go reserves more than it takes). runsc
/// fails to start with 96 MiB and starts with 128; the longest honest answer is below 1 MiB.
const DATA: u64 = 256 * MIB;
/// The same for `delete`, which runs hooks: they inherit it.
const DATA_WITH_HOOKS: u64 = 1024 * MIB;
/// Seconds of CPU time. An honest command takes a twentieth of one; one that waits takes a millisecond in minutes.
const CPU: u64 = 10;

/// The limits of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    data: u64,
    cpu: Option<u64>,
}

impl Bounds {
    /// None for a command that starts a sandbox or a gofer: they would inherit the limits for life.
    pub(super) fn of(subcommand: &str) -> Option<Self> {
        let (data, cpu) = match subcommand {
            "create" | "start" => return None,
            "delete" => (DATA_WITH_HOOKS, None),
            _ => (DATA, Some(CPU)),
        };
        Some(Self { data, cpu })
    }

    pub(super) fn apply_to(self, command: &mut Command) {
        // SAFETY: between fork and exec only setrlimit(2) is called, which is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                // This fails where the limit is lower already.
                let _ = setrlimit(Resource::RLIMIT_DATA, self.data, self.data);
                if let Some(cpu) = self.cpu {
                    // Equal limits: SIGKILL at once, where Go would take SIGXCPU for a notice.
                    let _ = setrlimit(Resource::RLIMIT_CPU, cpu, cpu);
                }
                Ok(())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_starts_nothing_is_bounded() {
        for unbounded in ["create", "start"] {
            assert_eq!(Bounds::of(unbounded), None);
        }
        for command in [
            "wait", "kill", "ps", "state", "events", "exec", "pause", "resume",
        ] {
            let bounds = Bounds::of(command).expect("bounds");
            assert_eq!(
                (bounds.data, bounds.cpu),
                (256 << 20, Some(10)),
                "{command}"
            );
        }
        let delete = Bounds::of("delete").expect("bounds");
        assert_eq!((delete.data, delete.cpu), (1 << 30, None));
    }
}
