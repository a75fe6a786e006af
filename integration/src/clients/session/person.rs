//! A session: what a person types, and what appears.

use std::process::Command;
use std::time::{Duration, Instant};

use super::channels::Channels;
use super::line::Line;
use super::terminal::Terminal;
use crate::clients::ctr;
use crate::ground::patience::patience;

/// How long something may take to appear.
const LIMIT: Duration = Duration::from_secs(15);

/// A person's session. Dropped, its client goes.
#[allow(missing_debug_implementations, reason = "a line is one of several")]
pub struct Session {
    line: Box<dyn Line>,
    said: String,
    seen: usize,
}

impl Session {
    /// Starts a program in a terminal of some rows and columns.
    ///
    /// # Panics
    /// When that is not possible.
    #[must_use]
    pub fn start(command: Command, rows_columns: [u16; 2]) -> Self {
        Self::on(Terminal::start(command, rows_columns))
    }

    /// `ctr` in a terminal.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn ctr(args: &[&str], rows_columns: [u16; 2]) -> Self {
        let mut command = ctr::command();
        command.args(args);
        Self::start(command, rows_columns)
    }

    /// What an answer to CRI's Exec or Attach names, by websocket.
    ///
    /// # Panics
    /// When it cannot be reached.
    #[must_use]
    pub fn cri(url: &str, rows_columns: [u16; 2]) -> Self {
        let mut line = Channels::open(url);
        line.resize(rows_columns);
        Self::on(line)
    }

    fn on(line: impl Line + 'static) -> Self {
        Self {
            line: Box::new(line),
            said: String::new(),
            seen: 0,
        }
    }

    /// Types.
    ///
    /// # Panics
    /// When nobody is there.
    pub fn types(&mut self, text: &str) {
        self.line.types(text.as_bytes());
    }

    /// Turns the window.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn resize(&mut self, rows_columns: [u16; 2]) {
        self.line.resize(rows_columns);
    }

    /// Waits until a text has appeared after what was seen last.
    ///
    /// # Panics
    /// When it does not.
    pub async fn sees(&mut self, text: &str) {
        let deadline = Instant::now() + patience(LIMIT);
        loop {
            self.said.push_str(&self.line.read());
            if let Some(found) = self.said[self.seen..].find(text) {
                self.seen += found + text.len();
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{text:?} does not appear in {:?}, after {:?}",
                &self.said[self.seen..],
                &self.said[..self.seen]
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether a text has appeared at any time.
    #[must_use]
    pub fn has_seen(&self, text: &str) -> bool {
        self.said.contains(text)
    }

    /// Waits for the end, and returns the exit code.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn end(mut self) -> i32 {
        let deadline = Instant::now() + patience(LIMIT);
        loop {
            self.said.push_str(&self.line.read());
            if let Some(code) = self.line.code() {
                return code;
            }
            assert!(
                Instant::now() < deadline,
                "the client does not end: {:?}",
                self.said
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
