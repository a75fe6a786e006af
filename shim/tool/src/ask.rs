//! Questions to other programs. Root alone can replace such a program. It gets no environment of this shell, and a deadline.

use std::io::{self, PipeReader, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use runsc_config::trusted_runsc;

use crate::Failure;

/// How long one question may take; the shim waits as long.
const LIMIT: Duration = Duration::from_secs(10);
/// How much of an answer is read, in bytes; `runsc flags` prints some 20 KiB.
const ANSWER_MAX: usize = 1024 * 1024;
/// How often a program is looked at that has closed its output and not ended.
const LOOK: Duration = Duration::from_millis(5);
/// A program that is found by no path of its own, as what it starts is.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) is_success: bool,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// A way to ask.
pub(crate) type Ask = fn(&Path, &[&str]) -> Result<Answer, Failure>;

/// Asks a program that was found on this node.
///
/// # Errors
/// When anybody but root can replace it, when it does not run, or does not end in time.
pub(crate) fn ask(program: &Path, args: &[&str]) -> Result<Answer, Failure> {
    let program = std::path::absolute(program)?;
    trusted_runsc(&program).map_err(|problem| format!("{problem}; it is not run"))?;
    ask_any(&program, args, LIMIT)
}

/// Asks a program that the administrator names to be run, wherever it lies.
///
/// # Errors
/// When it does not run, or does not end in time.
pub(crate) fn ask_named(program: &Path, args: &[&str]) -> Result<Answer, Failure> {
    ask_any(program, args, LIMIT)
}

/// Where a program is found: by its path, or in the folders of a PATH, this shell's unless another is given.
pub(crate) fn look_up(program: &Path, path: Option<&str>) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    all(program, path).into_iter().next()
}

/// All places of a program in the folders of a PATH, this shell's unless another is given; the first one is run.
pub(crate) fn all(program: &Path, path: Option<&str>) -> Vec<PathBuf> {
    let path = path.map_or_else(|| std::env::var_os("PATH"), |path| Some(path.into()));
    let path = path.unwrap_or_default();
    let places = std::env::split_paths(&path).map(|folder| folder.join(program));
    places.filter(|candidate| candidate.is_file()).collect()
}

fn ask_any(program: &Path, args: &[&str], limit: Duration) -> Result<Answer, Failure> {
    let question = format!("{} {}", program.display(), args.join(" "));
    let failed = |e: io::Error| format!("run {question}: {e}");
    let (output, to_output) = io::pipe().map_err(failed)?;
    let (errors, to_errors) = io::pipe().map_err(failed)?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .stdout(to_output)
        .stderr(to_errors)
        // Killed with all that it may have started.
        .process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    // Its copies of the pipes' ends would keep the answer from ending.
    drop(command);
    let until = Instant::now() + limit;
    let answered =
        read([output, errors], until).and_then(|said| Ok((wait(&mut child, until)?, said)));
    if answered.is_err() {
        if let Ok(group) = i32::try_from(child.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = child.wait();
    }
    let (status, [output, errors]) = answered.map_err(failed)?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Answer {
        is_success: status.success(),
        output: text(output),
        errors: text(errors),
    })
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// Everything until the end of both, which has to come in time.
fn read(pipes: [PipeReader; 2], until: Instant) -> io::Result<[Vec<u8>; 2]> {
    let mut open = pipes.map(Some);
    let mut said = [Vec::new(), Vec::new()];
    let mut part = [0; 16 * 1024];
    while open.iter().any(Option::is_some) {
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut waited: Vec<_> = open
            .iter()
            .flatten()
            .map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
            .collect();
        match poll(&mut waited, left) {
            Ok(0) => return Err(late()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut ready = waited.iter().map(|one| one.any().unwrap_or_default());
        let ready = open
            .each_ref()
            .map(|one| one.is_some() && ready.next() == Some(true));
        for ((pipe, said), _) in open
            .iter_mut()
            .zip(&mut said)
            .zip(ready)
            .filter(|(_, ready)| *ready)
        {
            let Some(reader) = pipe else { continue };
            let count = reader.read(&mut part)?;
            said.extend_from_slice(part.get(..count).unwrap_or_default());
            if said.len() > ANSWER_MAX {
                let problem = format!("its answer is larger than {ANSWER_MAX} bytes");
                return Err(io::Error::other(problem));
            }
            if count == 0 {
                *pipe = None;
            }
        }
    }
    Ok(said)
}

fn wait(child: &mut Child, until: Instant) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= until {
            return Err(late());
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Result<Answer, Failure> {
        let limit = Duration::from_millis(500);
        ask_any(Path::new("/bin/sh"), &["-c", script], limit)
    }

    #[test]
    fn an_answer_is_whole_and_in_time_or_an_error() {
        let answer = sh("echo one; echo two >&2; exit 3").expect("an answer");
        let said = (answer.is_success, &*answer.output, &*answer.errors);
        assert_eq!(said, (false, "one\n", "two\n"));
        for silent in [
            "exec sleep 100",
            "exec >&- 2>&-; exec sleep 100",
            "sleep 100 & exit 0",
            "yes",
        ] {
            let began = Instant::now();
            let error = sh(silent).expect_err(silent).to_string();
            assert!(
                error.contains("in time") || error.contains("larger"),
                "{error}"
            );
            assert!(began.elapsed() < Duration::from_secs(5), "{silent}");
        }
    }

    #[test]
    fn nothing_of_this_environment_is_passed_on() {
        let answer = sh("env").expect("an answer").output;
        let mut names: Vec<_> = answer
            .lines()
            .filter_map(|line| line.split('=').next())
            .collect();
        // The shell's own.
        names.retain(|name| !["PWD", "_", "SHLVL", "OLDPWD"].contains(name));
        assert_eq!(names, ["PATH"]);
    }
}
