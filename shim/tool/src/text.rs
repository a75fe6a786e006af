//! The only place that prints. Control characters of a spec, a file or a shim's answer do not reach the terminal.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "everything goes through here"
)]

use std::fmt::Display;
use std::io::Write as _;

use runsc_config::{is_steering, printable};
use serde::Serialize;

use crate::Failure;

/// Prints one line.
pub(crate) fn say(line: impl Display) {
    println!("{}", printable(&line.to_string()));
}

/// Prints one line on stderr, with the program's name.
pub(crate) fn complain(line: impl Display) {
    eprintln!("bulkhead: {}", printable(&line.to_string()));
}

/// Prints lines.
pub(crate) fn block(text: &str) {
    for line in text.split_inclusive('\n') {
        match line.strip_suffix('\n') {
            Some(line) => println!("{}", printable(line)),
            None => print!("{}", printable(line)),
        }
    }
}

/// Empties a terminal and puts its cursor at the beginning.
pub(crate) fn clear() {
    print!("\x1b[H\x1b[2J");
}

/// What was printed gets to its reader.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn flush() -> std::io::Result<()> {
    std::io::stdout().flush()
}

/// Prints JSON.
///
/// # Errors
/// For what JSON cannot hold.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    println!("{}", json_text(value)?);
    Ok(())
}

/// JSON has to escape control characters below a space alone; some terminals obey others.
fn json_text(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value)?;
    let is_plain = |c: char| c == '\n' || !is_steering(c);
    if text.chars().all(is_plain) {
        return Ok(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_plain(c) {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Ok(escaped)
}

/// Cut to a column; JSON has it whole.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= width {
        return text.into_owned();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_no_raw_control_characters_and_means_the_same() {
        let value = vec!["a\u{1b}b\u{7f}c\u{9b}d\ne\u{202e}f\u{e0041}g"];
        let text = json_text(&value).expect("JSON");
        assert!(!text.replace('\n', "").contains(is_steering), "{text:?}");
        assert_eq!(
            serde_json::from_str::<Vec<String>>(&text).expect("JSON"),
            value
        );
    }

    #[test]
    fn a_column_has_its_width_after_escaping() {
        assert_eq!(shorten("a\u{1b}bcdefgh", 8), "a\\u{1b}…");
        assert_eq!(shorten("abc", 8), "abc");
    }
}
