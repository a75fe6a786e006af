//! The OpenMetrics text of a shim, taken apart so that the texts of many become one.
//!
//! A family's samples must not stand apart from each other (OpenMetrics 1.0.0), so families are merged by name. A node has
//! thousands of samples, and most scrapes only hand them on: a sample is checked and kept as the line that it is.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::ser::{Serialize, SerializeStruct as _, Serializer};

/// One family of all shims together.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Family {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) unit: String,
    pub(super) help: String,
    pub(super) samples: Samples,
}

/// Samples, each a line that was checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Samples(String);

impl Samples {
    pub(super) fn iter(&self) -> impl Iterator<Item = Sample<'_>> {
        self.0.lines().filter_map(Sample::parse)
    }

    /// Adds those of another shim.
    pub(super) fn extend(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }

    /// Adds one.
    pub(super) fn push(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        let labels = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", quoted(value)))
            .collect::<Vec<_>>()
            .join(",");
        // Writing to a string does not fail.
        let _ = if labels.is_empty() {
            writeln!(self.0, "{name} {value}")
        } else {
            writeln!(self.0, "{name}{{{labels}}} {value}")
        };
    }
}

impl Serialize for Samples {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// One sample: `NAME{LABEL="VALUE",…} VALUE`, or without the braces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample<'a> {
    name: &'a str,
    /// What is between the braces.
    labels: &'a str,
    /// As it was written.
    value: &'a str,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let end = line.bytes().position(|b| b == b'{' || b == b' ')?;
        let (name, rest) = line.split_at_checked(end)?;
        if !is_name(name) {
            return None;
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(inside) => {
                let mut left = inside;
                while !left.starts_with('}') {
                    (_, _, left) = take_label(left)?;
                }
                let (labels, rest) = inside.split_at(inside.len() - left.len());
                (labels, rest.strip_prefix('}')?)
            }
            None => ("", rest),
        };
        let value = rest.strip_prefix(' ')?;
        value.parse::<f64>().ok()?;
        Some(Self {
            name,
            labels,
            value,
        })
    }

    pub(super) fn number(&self) -> f64 {
        self.value.parse().unwrap_or_default()
    }

    /// The value of a label; empty where it has none of that name.
    pub(super) fn label(&self, name: &str) -> Cow<'a, str> {
        let mut labels = self.labels();
        let found = labels.find(|(label, _)| *label == name);
        found.map_or(Cow::Borrowed(""), |(_, value)| unquoted(value))
    }

    /// By name, each value as it is written.
    fn labels(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut left = self.labels;
        std::iter::from_fn(move || {
            let (name, value, rest) = take_label(left)?;
            left = rest;
            Some((name, value))
        })
    }
}

impl Serialize for Sample<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let labels = self.labels().map(|(name, value)| (name, unquoted(value)));
        let labels: BTreeMap<&str, Cow<'_, str>> = labels.collect();
        let mut map = serializer.serialize_struct("Sample", 3)?;
        map.serialize_field("name", self.name)?;
        map.serialize_field("labels", &labels)?;
        map.serialize_field("value", self.value)?;
        map.end()
    }
}

/// The first label's name, its value as it is written, and what comes after it and its comma.
fn take_label(text: &str) -> Option<(&str, &str, &str)> {
    let (name, after) = text.split_at_checked(text.bytes().position(|b| b == b'=')?)?;
    let after = after.strip_prefix("=\"")?;
    if !is_name(name) {
        return None;
    }
    let mut end = 0;
    loop {
        match after.as_bytes().get(end)? {
            b'"' => break,
            b'\\' => match after.as_bytes().get(end + 1)? {
                b'\\' | b'"' | b'n' => end += 2,
                _ => return None,
            },
            _ => end += 1,
        }
    }
    let rest = after.get(end + 1..)?;
    let rest = match rest.strip_prefix(',') {
        Some(next) if !next.starts_with('}') => next,
        None if rest.is_empty() || rest.starts_with('}') => rest,
        _ => return None,
    };
    Some((name, after.get(..end)?, rest))
}

/// What the format takes for the name of a metric or of a label. Ours have no colon.
fn is_name(name: &str) -> bool {
    name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
        && name
            .bytes()
            .next()
            .is_some_and(|first| !first.is_ascii_digit())
}

/// Takes a text apart.
///
/// # Errors
/// For what is no whole text of this format, with the line.
pub(super) fn parse(text: &str) -> Result<Vec<Family>, String> {
    let body = text
        .strip_suffix("# EOF\n")
        .ok_or_else(|| "it does not end in \"# EOF\"".to_owned())?;
    let mut families: Vec<Family> = Vec::new();
    for line in body.lines() {
        let wrong = || format!("not understood: {:?}", shorten(line));
        if let Some(described) = line.strip_prefix("# ") {
            let mut words = described.splitn(3, ' ');
            let (what, name) = (words.next(), words.next().ok_or_else(wrong)?);
            let rest = words.next().unwrap_or_default().to_owned();
            if families.last().is_none_or(|family| family.name != name) {
                families.push(Family {
                    name: name.to_owned(),
                    ..Family::default()
                });
            }
            let family = families.last_mut().ok_or_else(wrong)?;
            match what {
                Some("TYPE") => family.kind = rest,
                Some("UNIT") => family.unit = rest,
                Some("HELP") => family.help = rest,
                _ => return Err(wrong()),
            }
            continue;
        }
        let sample = Sample::parse(line).ok_or_else(wrong)?;
        let family = families.last_mut().ok_or_else(wrong)?;
        if !sample.name.starts_with(&family.name) {
            return Err(wrong());
        }
        family.samples.0.push_str(line);
        family.samples.0.push('\n');
    }
    Ok(families)
}

/// The value of a label as it was meant.
fn unquoted(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut meant = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => meant.push('\n'),
                escaped => meant.extend(escaped),
            },
            character => meant.push(character),
        }
    }
    Cow::Owned(meant)
}

/// One text of all families, in the order of their names.
pub(super) fn write<'a>(families: impl Iterator<Item = &'a Family>) -> String {
    let mut text = String::new();
    for family in families {
        let name = &family.name;
        // Writing to a string does not fail.
        let _ = writeln!(text, "# TYPE {name} {}", family.kind);
        if !family.unit.is_empty() {
            let _ = writeln!(text, "# UNIT {name} {}", family.unit);
        }
        let _ = writeln!(text, "# HELP {name} {}", family.help);
        text.push_str(&family.samples.0);
    }
    text.push_str("# EOF\n");
    text
}

fn quoted(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn shorten(line: &str) -> String {
    line.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE bulkhead_x_bytes counter\n# UNIT bulkhead_x_bytes bytes\n# HELP bulkhead_x_bytes What x has.\n\
                        bulkhead_x_bytes_total{a=\"q\\\"},\\\\\\n\",b=\"\"} 7\n# TYPE bulkhead_y gauge\n# HELP bulkhead_y Y.\n# EOF\n";

    #[test]
    fn what_is_taken_apart_is_put_together_again() {
        let families = parse(TEXT).expect("a text");
        assert_eq!(families.len(), 2);
        assert_eq!(families[0].unit, "bytes");
        let samples: Vec<Sample<'_>> = families[0].samples.iter().collect();
        assert_eq!(samples.len(), 1);
        assert_eq!(samples[0].label("a"), "q\"},\\\n");
        assert_eq!(
            (samples[0].label("b"), samples[0].label("c")),
            ("".into(), "".into())
        );
        assert_eq!(samples[0].number(), 7.0);
        assert_eq!(write(families.iter()), TEXT);
        let json = serde_json::to_value(&families[0]).expect("json");
        let sample = serde_json::json!({
            "name": "bulkhead_x_bytes_total", "labels": { "a": "q\"},\\\n", "b": "" }, "value": "7",
        });
        assert_eq!(json["samples"], serde_json::json!([sample]));
        assert_eq!(json["type"], "counter");
    }

    #[test]
    fn a_sample_that_is_added_reads_as_it_was_meant() {
        let mut samples = Samples::default();
        samples.push("a", &[("x", "q\"},\\\n"), ("y", "")], "1");
        samples.push("b", &[], "2");
        let read: Vec<Sample<'_>> = samples.iter().collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].label("x"), "q\"},\\\n");
        assert_eq!((read[1].name, read[1].value), ("b", "2"));
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for text in [
            "",
            "# TYPE a gauge\n",
            "a 1\n# EOF\n",
            "# TYPE a gauge\nb 1\n# EOF\n",
            "# TYPE a gauge\na{x=\"1} 1\n# EOF\n",
            "# TYPE a gauge\na{x} 1\n# EOF\n",
            "# TYPE a gauge\na{x=\"\\x\"} 1\n# EOF\n",
            "# TYPE a gauge\na{} {=\"\"} 1\n# EOF\n",
            "# TYPE a gauge\na{x y=\"\"} 1\n# EOF\n",
            "# TYPE a gauge\na{x=\"\"y=\"\"} 1\n# EOF\n",
            "# TYPE a gauge\na{x=\"\",} 1\n# EOF\n",
            "# TYPE a gauge\na{1x=\"\"} 1\n# EOF\n",
            "# TYPE a gauge\na\u{7f} 1\n# EOF\n",
            "# TYPE a gauge\na many\n# EOF\n",
            "# TYPE\n# EOF\n",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
