//! What `/proc` shows of a process.

use std::fs;
use std::str::SplitWhitespace;
use std::thread;
use std::time::Duration;

/// A new program has an empty command line until the kernel has laid out its memory (Linux fs/binfmt_elf.c, create_elf_tables).
/// On a busy node that lasts until the process has a CPU again: what is asked for right after its start would be nobody's.
const EXECVE_PAUSE: Duration = Duration::from_millis(2);
const EXECVE_TRIES: u32 = 500;

/// The command line of a process; empty for one that has gone. Waits up to `EXECVE_TRIES` times `EXECVE_PAUSE` for one in the
/// middle of an `execve`, so it is nothing for the loop.
pub fn arguments(pid: i32) -> Vec<Vec<u8>> {
    let read = || fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut line = read();
    for _ in 0..EXECVE_TRIES {
        if !line.is_empty() {
            break;
        }
        let is_early = is_in_execve(pid);
        if is_early {
            thread::sleep(EXECVE_PAUSE);
        }
        // It may have got there since it was read.
        line = read();
        if !is_early {
            break;
        }
    }
    let line = line.strip_suffix(&[0]).unwrap_or(&line);
    line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// Whether the kernel has not yet said where this process's environment ends: field 51 of `/proc/PID/stat`, `env_end`. It does so
/// after the command line. A zombie and a thread of the kernel have no program. A stub of a sentry has one, and an end, and has
/// unmapped what is in between.
fn is_in_execve(pid: i32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    fields_after_name(&stat).nth(51 - 3) == Some("0")
        && fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// The fields of `/proc/PID/stat` from the state on. They follow the name, which is in parentheses and may hold any byte
/// (proc_pid_stat(5)).
pub fn fields_after_name(stat: &str) -> SplitWhitespace<'_> {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::thread;

    #[test]
    fn nobody_and_who_runs_are_in_no_execve() {
        let own = std::process::id().cast_signed();
        assert!(!is_in_execve(own) && !arguments(own).concat().is_empty());
        // Nobody, and a thread of the kernel where this is the node's own namespace.
        assert!([-1, 2].iter().all(|pid| !is_in_execve(*pid)));
        assert!(arguments(-1).concat().is_empty());
    }

    #[test]
    fn a_program_that_was_started_a_moment_ago_has_its_command_line() {
        // Where no CPU is free the moment lasts, and most of these are looked at within it.
        let ended = std::sync::atomic::AtomicBool::new(false);
        let busy = || {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        thread::scope(|scope| {
            let cpus = thread::available_parallelism().map_or(1, usize::from);
            (0..cpus * 2).for_each(|_| drop(scope.spawn(busy)));
            let lines: Vec<_> = (0..50)
                .map(|_| {
                    let mut command = Command::new("/bin/cat");
                    let mut child = command.stdin(Stdio::piped()).spawn().expect("spawn");
                    let line = arguments(child.id().cast_signed());
                    child.wait().expect("wait");
                    line
                })
                .collect();
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
            // A child shares its parent's memory for an instant longer than its parent waits for it (execve, exec_mmap).
            let own = arguments(std::process::id().cast_signed());
            let is_right = |line: &Vec<Vec<u8>>| *line == [b"/bin/cat"] || *line == own;
            assert!(lines.iter().all(is_right), "{lines:?}");
        });
    }
}
