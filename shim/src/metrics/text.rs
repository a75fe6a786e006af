//! The OpenMetrics text format, version 1.0.0.
//!
//! Source: the specification (`specification/OpenMetrics.md` of the OpenMetrics project): a family's metadata comes first,
//! its samples follow without another family's between them, and `# EOF` ends the text.

use std::fmt::{self, Write as _};

/// What a family counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows; samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bound.
    Histogram,
    /// Facts, as labels.
    Info,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// A label: its name, which is always ours, and its value.
pub(super) type Label<'a> = (&'a str, &'a str);

/// A text being written. Every sample is written where it stays: a shim has little memory to build it in.
#[derive(Debug, Default)]
pub(super) struct Text {
    out: String,
    /// The family being written, with its prefix.
    family: String,
    suffix: &'static str,
    /// The labels of every sample, as text.
    common: String,
}

impl Text {
    /// With labels that every sample has, and room for so many bytes.
    pub(super) fn new(common: &[Label<'_>], capacity: usize) -> Self {
        let mut text = Self {
            out: String::with_capacity(capacity),
            ..Self::default()
        };
        for label in common {
            let is_first = text.common.is_empty();
            push_label(&mut text.common, *label, is_first);
        }
        text
    }

    /// Begins a family. `name` has neither the prefix nor `_total`; `unit` is its last word where there is one.
    pub(super) fn family(&mut self, name: &str, kind: Kind, unit: &str, help: &str) {
        debug_assert!(
            unit.is_empty() || name.ends_with(unit),
            "{name} ends in {unit}"
        );
        self.family.clear();
        self.family.push_str("bulkhead_");
        self.family.push_str(name);
        self.suffix = match kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        // Writing to a string does not fail.
        let _ = writeln!(self.out, "# TYPE {} {}", self.family, kind.name());
        if !unit.is_empty() {
            let _ = writeln!(self.out, "# UNIT {} {unit}", self.family);
        }
        let _ = writeln!(self.out, "# HELP {} {help}", self.family);
    }

    /// A sample of the family.
    pub(super) fn sample(&mut self, labels: &[Label<'_>], value: impl fmt::Display) {
        let suffix = self.suffix;
        self.line(suffix, labels, None, value);
    }

    /// A family of one sample, or of none where it is not known.
    pub(super) fn single(
        &mut self,
        name: &str,
        kind: Kind,
        unit: &str,
        help: &str,
        value: Option<impl fmt::Display>,
    ) {
        if let Some(value) = value {
            self.family(name, kind, unit, help);
            self.sample(&[], value);
        }
    }

    /// A histogram's samples: `buckets` has the upper bounds and how many were at most that; `sum` is in seconds.
    pub(super) fn histogram(
        &mut self,
        labels: &[Label<'_>],
        buckets: &[(f64, u64)],
        count: u64,
        sum: Seconds,
    ) {
        for (bound, at_most) in buckets {
            // A float of OpenMetrics has a point.
            let bound = format!("{bound:?}");
            self.line("_bucket", labels, Some(("le", &bound)), at_most);
        }
        self.line("_bucket", labels, Some(("le", "+Inf")), count);
        self.line("_count", labels, None, count);
        self.line("_sum", labels, None, sum);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[Label<'_>],
        last: Option<Label<'_>>,
        value: impl fmt::Display,
    ) {
        let out = &mut self.out;
        for part in [&self.family, suffix, "{", &self.common] {
            out.push_str(part);
        }
        let mut is_first = self.common.is_empty();
        for label in labels.iter().copied().chain(last) {
            push_label(out, label, is_first);
            is_first = false;
        }
        // Writing to a string does not fail.
        let _ = writeln!(out, "}} {value}");
    }

    /// The whole text.
    pub(super) fn finish(mut self) -> String {
        self.out.push_str("# EOF\n");
        self.out
    }
}

/// Nanoseconds shown as seconds, exactly.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seconds(pub(super) u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:09}",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000
        )
    }
}

/// `name="value"`, with what would end the value escaped; control characters become spaces, since not every reader takes
/// them.
fn push_label(out: &mut String, (name, value): Label<'_>, is_first: bool) {
    if !is_first {
        out.push(',');
    }
    out.push_str(name);
    out.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_its_metadata_first_and_an_end() {
        let mut text = Text::new(&[("sandbox", "a")], 0);
        text.family("cpu_usage_seconds", Kind::Counter, "seconds", "CPU time.");
        text.sample(&[("container", "x")], Seconds(1_500_000_001));
        text.single("none", Kind::Gauge, "", "Nothing.", None::<u64>);
        assert_eq!(
            text.finish(),
            "# TYPE bulkhead_cpu_usage_seconds counter\n# UNIT bulkhead_cpu_usage_seconds seconds\n\
             # HELP bulkhead_cpu_usage_seconds CPU time.\n\
             bulkhead_cpu_usage_seconds_total{sandbox=\"a\",container=\"x\"} 1.500000001\n# EOF\n"
        );
    }

    #[test]
    fn no_value_of_a_label_ends_it() {
        let mut out = String::new();
        push_label(&mut out, ("a", "x\"} 1\nbulkhead_fake 2\r\\\u{1b}"), true);
        assert_eq!(out, "a=\"x\\\"} 1\\nbulkhead_fake 2 \\\\ \"");
    }
}
