//! Text for people and logs.

use std::borrow::Cow;

/// Whether a character shows nothing of itself and steers what shows it: control characters, and Unicode's format characters
/// and separators of lines (Cf, Zl and Zp of Unicode 16), some of which turn the order of a text around or join what differs.
#[must_use]
pub fn is_steering(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{890}'..='\u{891}'
                | '\u{8e2}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{110bd}'
                | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0001}'
                | '\u{e0020}'..='\u{e007f}'
        )
}

/// How many names a line of the report has.
pub(crate) const NAMES_MAX: usize = 8;
/// How long a name is there that anybody can choose, in characters. The longest of Linux's capabilities has 22.
const NAME_MAX: usize = 64;

/// The first of some names, and how many more there are.
pub(crate) fn some(mut names: Vec<String>, separator: &str) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    names.truncate(NAMES_MAX);
    let names = names.join(separator);
    if more == 0 {
        names
    } else {
        format!("{names} and {more} more")
    }
}

/// A name that anybody can choose, as far as a line has room for it.
pub(crate) fn short(name: &str) -> String {
    match name.char_indices().nth(NAME_MAX) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
    }
}

/// One line that a terminal shows as it is: characters that could rewrite a terminal, forge a line of a log or show another text
/// than there is ([`is_steering`]) are written as Rust writes them in a literal.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_steering) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_steering(c) {
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
        for plain in ["as it is", "né 中文 שלום 🙂"] {
            assert!(matches!(printable(plain), Cow::Borrowed(same) if same == plain));
        }
    }

    #[test]
    fn what_shows_another_text_is_shown_as_text() {
        for steering in [
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200f}',
            '\u{2028}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            let shown = printable(&format!("a{steering}b")).into_owned();
            assert_eq!(shown, format!("a\\u{{{:x}}}b", u32::from(steering)));
        }
    }
}
