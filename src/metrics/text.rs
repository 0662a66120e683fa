//! The text that Prometheus reads (exposition format 0.0.4).
//!
//! Written here and not by a crate: `prometheus-client` writes `OpenMetrics` only, where counters are named
//! otherwise; `metrics` goes through a global recorder and leaves out what has no value yet, as does
//! `prometheus`; none bounds its labels. What is left of them is this file.

use std::fmt::{Display, Write as _};

use crate::worker::meters::Spread;

/// What stands before every name.
const PREFIX: &str = "promptmill_";

/// What a metric is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Only grows, while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How values spread.
    Histogram,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Labels, by name.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// A page that is being written.
#[derive(Default)]
pub(super) struct Text {
    page: String,
    name: &'static str,
}

impl Text {
    /// Begins a metric; it is told also where it has no value yet.
    pub(super) fn metric(&mut self, kind: Kind, name: &'static str, help: &str) -> &mut Self {
        self.name = name;
        let (help, kind) = (help.replace('\\', "\\\\").replace('\n', "\\n"), kind.word());
        self.put(format_args!("# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n"));
        self
    }

    /// Adds a value to it.
    pub(super) fn value(&mut self, labels: Labels<'_>, value: impl Display) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// Adds how values spread over these bounds.
    pub(super) fn spread(&mut self, labels: Labels<'_>, bounds: &[f64], spread: &Spread) {
        let mut below = 0;
        for (bound, count) in bounds.iter().zip(&spread.counts) {
            below += count;
            self.line("_bucket", labels, Some(&bound.to_string()), below);
        }
        let all: u64 = spread.counts.iter().sum();
        self.line("_bucket", labels, Some("+Inf"), all);
        self.line("_sum", labels, None, spread.sum);
        self.line("_count", labels, None, all);
    }

    /// Returns the page.
    pub(super) fn finish(self) -> String {
        self.page
    }

    fn line(&mut self, end: &str, labels: Labels<'_>, bound: Option<&str>, value: impl Display) {
        let name = self.name;
        self.put(format_args!("{PREFIX}{name}{end}"));
        let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let mut before = '{';
        for (label, said) in labels {
            let said = said.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.put(format_args!("{before}{label}=\"{said}\""));
            before = ',';
        }
        let end = if before == ',' { "}" } else { "" };
        self.put(format_args!("{end} {value}\n"));
    }

    fn put(&mut self, words: std::fmt::Arguments<'_>) {
        self.page.write_fmt(words).expect("a String takes everything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_name_holds_ends_neither_its_label_nor_its_line() {
        let mut text = Text::default();
        text.metric(Kind::Gauge, "x", "one\ntwo").value(&[("queue", "a\"} 1\nb\\")], 2);
        let page = text.finish();
        let last = page.lines().last().expect("a line");
        assert_eq!(last, "promptmill_x{queue=\"a\\\"} 1\\nb\\\\\"} 2");
        assert_eq!(page.lines().count(), 3, "{page}");
    }

    #[test]
    fn each_bucket_counts_what_is_below_it_too() {
        let mut text = Text::default();
        let spread = Spread { counts: vec![1, 2, 3], sum: 4.5 };
        text.metric(Kind::Histogram, "x_seconds", "x").spread(&[("a", "b")], &[0.5, 10.0], &spread);
        let page = text.finish();
        let lines: Vec<&str> = page.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "promptmill_x_seconds_bucket{a=\"b\",le=\"0.5\"} 1",
                "promptmill_x_seconds_bucket{a=\"b\",le=\"10\"} 3",
                "promptmill_x_seconds_bucket{a=\"b\",le=\"+Inf\"} 6",
                "promptmill_x_seconds_sum{a=\"b\"} 4.5",
                "promptmill_x_seconds_count{a=\"b\"} 6",
            ]
        );
    }
}
