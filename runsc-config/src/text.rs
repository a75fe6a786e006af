//! Text for people and logs.

use std::borrow::Cow;

/// One line that a terminal shows as it is: control characters, which could rewrite a terminal or forge a line of a log, are
/// written as Rust writes them in a literal.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rewrites_a_terminal_or_forges_a_line_is_shown_as_text() {
        let forged = "a\u{1b}[31mb\r\nc\td\u{9b}2J\u{7f}\0é";
        assert_eq!(
            printable(forged),
            "a\\u{1b}[31mb\\r\\nc\\td\\u{9b}2J\\u{7f}\\u{0}é"
        );
        assert!(matches!(printable("as it is"), Cow::Borrowed("as it is")));
    }
}
