//! What every page shares: its frame, and numbers, times and states as people read them.

use askama::Template;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::Web;
use crate::cli::out;
use crate::store::Moment;
use crate::store::board::COUNT_MAX;

/// What stands around a page.
pub struct Frame {
    /// Its heading.
    pub title: String,
    /// Which entry of the navigation it belongs to.
    pub section: &'static str,
    /// Whether nothing can be changed here.
    pub read_only: bool,
    /// Whether one can leave.
    pub door: bool,
    /// Seconds until the script looks again; 0: never.
    pub refresh: u32,
    /// What it says of itself, so that it need not be sent again where that is still so.
    pub mark: String,
}

impl Frame {
    /// Returns the frame of a page that does not change by itself.
    pub fn new(web: &Web, title: impl Into<String>, section: &'static str) -> Self {
        Self {
            title: title.into(),
            section,
            read_only: web.settings.read_only,
            door: web.door.has_lock(),
            refresh: 0,
            mark: String::new(),
        }
    }

    /// Returns the frame of a page that does.
    #[must_use]
    pub fn every(self, seconds: u32) -> Self {
        Self { refresh: seconds, ..self }
    }

    /// The entries of the navigation.
    #[expect(clippy::unused_self, reason = "templates call methods")]
    pub fn entries(&self) -> [(&'static str, &'static str); 9] {
        [
            ("/", "Overview"),
            ("/jobs", "Jobs"),
            ("/batches", "Batches"),
            ("/queues", "Queues"),
            ("/gates", "Gates"),
            ("/errors", "Errors"),
            ("/workers", "Workers"),
            ("/audit", "Audit"),
            ("/config", "Config"),
        ]
    }
}

/// Answers with a page.
pub fn page<T: Template>(template: &T) -> Response {
    match template.render() {
        Ok(html) => {
            let mut answer = html.into_response();
            let kind = HeaderValue::from_static("text/html; charset=utf-8");
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            answer
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// A plain value, or a reference to one to a reference: templates hand over what they have.
pub trait Plain<T> {
    /// Returns the value.
    fn plain(&self) -> T;
}

macro_rules! plain {
    ($($type:ty),*) => {
        $(impl Plain<$type> for $type {
            fn plain(&self) -> $type {
                *self
            }
        })*
    };
}
plain!(i64, f64, Moment);

impl<T, P: Plain<T>> Plain<T> for &P {
    fn plain(&self) -> T {
        (**self).plain()
    }
}

/// Returns a number with its thousands apart.
pub fn number(n: impl Plain<i64>) -> String {
    out::number(n.plain())
}

/// Returns a time to the second, in UTC.
pub fn time(at: impl Plain<Moment>) -> String {
    out::time(at.plain())
}

/// Returns the time of day of a moment, in UTC.
pub fn clock(at: impl Plain<Moment>) -> String {
    let time = out::time(at.plain());
    time.split_once(' ').map(|(_, clock)| clock.to_owned()).unwrap_or(time)
}

/// Returns a length of time in the unit that suits it.
pub fn duration(ms: impl Plain<i64>) -> String {
    out::duration(ms.plain())
}

/// Returns a number that was counted up to [`COUNT_MAX`].
pub fn capped(n: impl Plain<i64>) -> String {
    capped_at(n, COUNT_MAX)
}

/// Returns a number that was counted up to a limit.
pub fn capped_at(n: impl Plain<i64>, limit: impl Plain<i64>) -> String {
    let (n, limit) = (n.plain(), limit.plain());
    if n > limit { format!("{}+", out::number(limit)) } else { out::number(n) }
}

/// Returns a number to two decimals.
pub fn hundredths(n: f64) -> f64 {
    (n * 100.0).round() / 100.0
}

/// Returns a number in few letters: 0.17, 950, 12.3k, 4.5M.
pub fn short(n: impl Plain<f64>) -> String {
    match n.plain() {
        // What is rare is not nothing.
        n if hundredths(n) > 0.0 && hundredths(n) < 1.0 => format!("{n:.2}"),
        n if n < 999.5 => format!("{}", n.round()),
        n if n < 99_950.0 => format!("{:.1}k", n / 1e3),
        n if n < 999_500.0 => format!("{:.0}k", n / 1e3),
        n if n < 99_950_000.0 => format!("{:.1}M", n / 1e6),
        n => format!("{:.0}M", n / 1e6),
    }
}

/// Returns how long ago a moment was; of one to come, in how long it is.
pub fn ago(at: impl Plain<Moment>, now: impl Plain<Moment>) -> String {
    let ms = now.plain().0 - at.plain().0;
    if ms < 0 { format!("in {}", brief(-ms)) } else { format!("{} ago", brief(ms)) }
}

/// Returns a length of time in one unit.
pub fn brief(ms: impl Plain<i64>) -> String {
    match ms.plain() {
        ..1_000 => "0 s".to_owned(),
        ms @ 1_000..60_000 => format!("{} s", ms / 1_000),
        ms @ 60_000..3_600_000 => format!("{} min", ms / 60_000),
        ms @ 3_600_000..172_800_000 => format!("{} h", ms / 3_600_000),
        ms => format!("{} d", ms / 86_400_000),
    }
}

/// Returns the length of time between two moments, if both are known.
pub fn between(from: Option<Moment>, to: Option<Moment>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => out::duration(to.0 - from.0),
        _ => String::new(),
    }
}

/// Returns how a state, an outcome or a stop reason is coloured. Its word always stands beside.
pub fn tone(word: impl AsRef<str>) -> &'static str {
    match word.as_ref() {
        "complete" | "end_turn" | "stop_sequence" | "flowing" => "good",
        "running" | "probing" => "busy",
        "failed" | "invalid" | "quarantined" | "invalid_output" | "blocked" | "expired" => "bad",
        "truncated"
        | "refused"
        | "empty"
        | "unreviewed"
        | "max_tokens"
        | "refusal"
        | "paused"
        | "model_context_window_exceeded"
        | "waiting"
        | "needs_tool" => "warn",
        _ => "quiet",
    }
}

/// Returns the start of a text, and whether that is not all of it.
pub fn start(text: &str, most: usize) -> (&str, bool) {
    match text.char_indices().nth(most) {
        Some((at, _)) => (&text[..at], true),
        None => (text, false),
    }
}

/// Characters of a text that a page shows.
pub const TEXT_MAX: usize = 60_000;

/// Returns as much of a text as a page shows.
pub fn excerpt(text: &str) -> String {
    match start(text, TEXT_MAX) {
        (text, false) => text.to_owned(),
        (text, true) => format!("{text}\n… the rest is left out here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_say_where_counting_stopped() {
        assert_eq!(capped(10_001), "10,000+");
        assert_eq!(capped(10_000), "10,000");
        for (n, text) in [
            (0.0, "0"),
            (0.004, "0"),
            (0.1667, "0.17"),
            (0.996, "1"),
            (999.0, "999"),
            (1_234.0, "1.2k"),
            (123_456.0, "123k"),
            (4_500_000.0, "4.5M"),
        ] {
            assert_eq!(short(n), text);
        }
    }

    #[test]
    fn a_moment_is_told_from_now() {
        assert_eq!(ago(Moment(0), Moment(90_000)), "1 min ago");
        assert_eq!(ago(Moment(7_200_000), Moment(0)), "in 2 h");
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(start("héllo", 2), ("hé", true));
        assert_eq!(start("hé", 2), ("hé", false));
    }
}
