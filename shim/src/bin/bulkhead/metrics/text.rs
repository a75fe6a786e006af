//! The OpenMetrics text of a shim, taken apart so that the texts of many become one.
//!
//! A family's samples must not stand apart from each other (OpenMetrics 1.0.0), so families are merged by name.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// One family of all shims together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Family {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) unit: String,
    pub(super) help: String,
    pub(super) samples: Vec<Sample>,
}

/// One sample, with the value as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: String,
}

impl Sample {
    pub(super) fn number(&self) -> f64 {
        self.value.parse().unwrap_or_default()
    }

    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
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
        let sample = sample(line).ok_or_else(wrong)?;
        let family = families.last_mut().ok_or_else(wrong)?;
        if !sample.name.starts_with(&family.name) {
            return Err(wrong());
        }
        family.samples.push(sample);
    }
    Ok(families)
}

/// `NAME{LABEL="VALUE",…} VALUE`, or without the braces.
fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = unquote(after)?;
            labels.insert(label.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.strip_prefix(' ')?;
    value.parse::<f64>().ok()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: value.to_owned(),
    })
}

/// The value of a label up to its closing quote, and what comes after.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            character => value.push(character),
        }
    }
    None
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
        for sample in &family.samples {
            let labels: Vec<String> = sample
                .labels
                .iter()
                .map(|(label, value)| format!("{label}=\"{}\"", quoted(value)))
                .collect();
            let labels = match labels.join(",") {
                none if none.is_empty() => none,
                labels => format!("{{{labels}}}"),
            };
            let _ = writeln!(text, "{}{labels} {}", sample.name, sample.value);
        }
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
        assert_eq!(families[0].samples[0].label("a"), "q\"},\\\n");
        assert_eq!(write(families.iter()), TEXT);
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
            "# TYPE a gauge\na many\n# EOF\n",
            "# TYPE\n# EOF\n",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
