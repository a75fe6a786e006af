//! Patterns as containerd matches them, with Go's `path.Match`: annotations that a handler passes on, files that a configuration
//! imports. The `glob` crate reads `\`, `[^…]` and `**` otherwise.

/// A pattern that `path.Match` reports as malformed (`ErrBadPattern`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

#[derive(Debug)]
enum Token {
    /// `*`: anything within one part of a path.
    Many,
    /// `?`: one character within one part of a path.
    One,
    Literal(char),
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Whether a pattern matches all of a text.
///
/// # Errors
/// For a malformed pattern, which matches nothing in containerd.
pub(crate) fn matches(pattern: &str, text: &str) -> Result<bool, Malformed> {
    let tokens = tokens(pattern)?;
    let text: Vec<char> = text.chars().collect();
    // Where the text may be after each token; one set of places, so the work is bounded by pattern times text.
    let mut places: Vec<bool> = (0..=text.len()).map(|place| place == 0).collect();
    for token in &tokens {
        let mut next = vec![false; text.len() + 1];
        let mut is_within = false;
        for (place, is_here) in places.iter().enumerate() {
            let at = text.get(place);
            if let Token::Many = token {
                is_within |= is_here;
                if let Some(reached) = next.get_mut(place) {
                    *reached = is_within;
                }
                is_within &= at != Some(&'/');
            } else if *is_here
                && at.is_some_and(|c| token.takes(*c))
                && let Some(reached) = next.get_mut(place + 1)
            {
                *reached = true;
            }
        }
        places = next;
    }
    Ok(places.last().copied().unwrap_or_default())
}

impl Token {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Many | Self::One => c != '/',
            Self::Literal(literal) => *literal == c,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

fn tokens(pattern: &str) -> Result<Vec<Token>, Malformed> {
    let mut rest = pattern.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = rest.next() {
        tokens.push(match c {
            '*' => Token::Many,
            '?' => Token::One,
            '\\' => Token::Literal(rest.next().ok_or(Malformed)?),
            '[' => {
                let negated = rest.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                while ranges.is_empty() || rest.next_if_eq(&']').is_none() {
                    let low = bound(&mut rest)?;
                    let high = match rest.next_if_eq(&'-') {
                        Some(_) => bound(&mut rest)?,
                        None => low,
                    };
                    ranges.push((low, high));
                }
                Token::Class { negated, ranges }
            }
            literal => Token::Literal(literal),
        });
    }
    Ok(tokens)
}

/// One end of a range: `-` and `]` have to be escaped.
fn bound(rest: &mut impl Iterator<Item = char>) -> Result<char, Malformed> {
    match rest.next() {
        None | Some('-' | ']') => Err(Malformed),
        Some('\\') => rest.next().ok_or(Malformed),
        Some(c) => Ok(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outcomes of Go's `path.Match`.
    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, text, expected) in [
            ("dev.bulkhead.*", "dev.bulkhead.network", Ok(true)),
            ("dev.bulkhead.*", "dev.bulkhead.a/b", Ok(false)),
            ("*", "io.kubernetes.cri.sandbox-id", Ok(true)),
            ("**", "abc", Ok(true)),
            ("i*d", "io.kubernetes.cri.sandbox-id", Ok(true)),
            ("[i]o.*", "io.x", Ok(true)),
            ("[^a-h]o.*", "io.x", Ok(true)),
            ("[!i]o.*", "io.x", Ok(true)),
            ("[^i]o.*", "io.x", Ok(false)),
            ("?o.\\*", "io.*", Ok(true)),
            ("?o.\\*", "io.x", Ok(false)),
            ("[\\]a-c]", "]", Ok(true)),
            ("a*/c", "ab/c", Ok(true)),
            ("a*", "a/c", Ok(false)),
            ("", "", Ok(true)),
            ("*", "", Ok(true)),
            ("?", "", Ok(false)),
            ("[", "a", Err(Malformed)),
            ("[]a]", "a", Err(Malformed)),
            ("[a-]", "a", Err(Malformed)),
            ("a\\", "a", Err(Malformed)),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
