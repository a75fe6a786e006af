//! `kubectl`, with a deadline.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::programs::program;
use crate::ground::patience::patience;

/// No answer of the API server takes longer.
const LIMIT: Duration = Duration::from_secs(90);

/// What `kubectl` said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its exit code: that of the program it ran, for `exec`.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Answer {
    /// What it printed, where all went well.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    #[must_use = "or call `ok`"]
    pub fn text(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stderr, self.stdout);
        self.stdout
    }

    /// Insists that all went well.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) {
        drop(self.text());
    }
}

pub(super) async fn run(folder: &Path, args: &[&str], stdin: &str) -> Answer {
    let mut command = Command::new(program("kubectl"));
    command
        .arg("--kubeconfig")
        .arg(folder.join("access.json"))
        .args(args);
    answer(command, folder, args, stdin).await
}

/// In a terminal of 33 rows and 101 columns, which `script` makes (Debian: bsdutils).
pub(super) async fn in_a_terminal(folder: &Path, args: &[&str]) -> Answer {
    let quoted = args.iter().map(|arg| format!("'{arg}'"));
    let line = format!(
        "stty rows 33 cols 101; exec {} --kubeconfig {} {}",
        program("kubectl").display(),
        folder.join("access.json").display(),
        quoted.collect::<Vec<_>>().join(" ")
    );
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    answer(command, folder, args, "").await
}

async fn answer(mut command: Command, folder: &Path, args: &[&str], stdin: &str) -> Answer {
    command
        .env("HOME", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().expect("run kubectl");
    let mut pipe = child.stdin.take().expect("a pipe");
    // One that does not read its stdin closes it.
    let _ = pipe.write_all(stdin.as_bytes()).await;
    drop(pipe);
    let output = tokio::time::timeout(patience(LIMIT), child.wait_with_output()).await;
    let output = output
        .unwrap_or_else(|_| panic!("kubectl {args:?}: no answer within {LIMIT:?}"))
        .expect("wait for kubectl");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Answer {
        code: crate::ground::isolate::code_of(output.status),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}
