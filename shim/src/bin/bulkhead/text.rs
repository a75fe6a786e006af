//! Words for a terminal.

/// Cut to a column; JSON has it whole. Control characters of a spec must not reach the terminal.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().count() <= width {
        return text;
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}
