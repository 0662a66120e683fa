//! How a gate is shown: a few lines that fit a terminal, or an object for programs.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::scope::{Scope, option, quoted};
use crate::cli::out::{duration, number, printable, table, time, time_rfc3339};
use crate::store::{Desk, GateLine, Waiting};

/// Jobs behind one gate are counted up to here.
const JOBS_MAX: i64 = 10_000;
/// No line is longer, however wide the terminal is.
const WIDTH_MAX: usize = 100;
/// Where the terminal does not say how wide it is.
const WIDTH: usize = 80;

/// A gate, and what a person wants to know of it.
pub struct Shown {
    pub line: GateLine,
    pub scope: Scope,
    /// The profiles that have its key; `None`: it is not about a key, or no daemon ever said.
    pub profiles: Option<Vec<String>>,
    pub jobs: Option<Jobs>,
}

/// Pending jobs behind a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jobs {
    count: i64,
    more: bool,
}

/// Counts the pending jobs behind a gate, where that can be told.
pub async fn behind(desk: &dyn Desk, scope: &Scope, default_model: &str) -> anyhow::Result<Option<Jobs>> {
    let Some(behind) = scope.behind(default_model) else { return Ok(None) };
    let Waiting { jobs, more } = desk.jobs_behind(&behind, JOBS_MAX).await.context("failed to count jobs")?;
    Ok(Some(Jobs { count: jobs, more }))
}

impl Jobs {
    /// "3 pending jobs wait behind it".
    pub fn sentence(self) -> String {
        let (more, jobs) = match (self.more, self.count) {
            (false, 1) => ("", "pending job waits"),
            (false, _) => ("", "pending jobs wait"),
            (true, _) => ("+", "pending jobs wait"),
        };
        format!("{}{more} {jobs} behind it", number(self.count))
    }
}

/// How wide the terminal is.
pub fn width() -> usize {
    table(&[]).width().map_or(WIDTH, usize::from).min(WIDTH_MAX)
}

impl Shown {
    fn flows(&self) -> bool {
        self.line.state == "flowing"
    }

    /// What one may do, each with its command.
    fn ways(&self) -> Vec<(&'static str, String)> {
        let free = format!("promptmill gates free {}", quoted(&self.line.scope));
        match &self.scope {
            _ if self.flows() && self.line.ignored => vec![("count again", free)],
            _ if self.flows() => Vec::new(),
            Scope::Batch { queue, batch } => {
                let let_fail = format!("{free} --let-fail");
                let mut ways = vec![("go on", free)];
                // Without a label nothing else names these jobs and no others.
                if !batch.is_empty() {
                    let which = format!("{} {}", option("--batch", batch), option("--queue", queue));
                    ways.push(("cancel the rest", format!("promptmill cancel {which}")));
                }
                ways.push(("let it fail", let_fail));
                ways
            }
            _ => vec![("open it", free)],
        }
    }

    /// What goes through it, in words.
    pub fn what(&self) -> String {
        let words = self.scope.words();
        match self.profiles.as_deref() {
            None => words,
            Some([]) => format!("{words}, which no profile has now"),
            Some([profile]) => format!("{words}, profile {profile}"),
            Some(profiles) => format!("{words}, profiles {}", profiles.join(", ")),
        }
    }

    pub fn until(&self) -> Option<String> {
        // Up to the whole second: what was just blocked for 2 h is blocked for 2 h, and not 1 h 59 min.
        let left = self.line.until_ms.unwrap_or_default();
        let left = left.saturating_add(999) / 1000 * 1000;
        let at = self.line.until.map(time).unwrap_or_default();
        match (self.line.state.as_str(), self.line.until) {
            ("flowing", _) => None,
            ("blocked", None) => Some("a person opens it".to_owned()),
            ("blocked", Some(_)) if left > 0 => {
                Some(format!("{at} (in {}), then one call asks whether it flows again", duration(left)))
            }
            ("blocked", Some(_)) => Some("now: the next call asks whether it flows again".to_owned()),
            (_, Some(_)) if left > 0 => {
                Some(format!("its probe is answered, or given up at {at} (in {})", duration(left)))
            }
            _ => Some("the next call asks anew: the last probe never came back".to_owned()),
        }
    }

    /// A few lines; those with words are wrapped to the width, commands are left whole.
    pub fn text(&self, width: Option<usize>) -> String {
        let width = width.unwrap_or(usize::MAX);
        let mut text = format!("{}  {}\n", printable(&self.line.scope), self.line.state);
        let mut words = self.what();
        if let Some(jobs) = self.jobs
            && !self.flows()
        {
            words = format!("{words}; {}", jobs.sentence());
        }
        if self.line.ignored {
            words.push_str("; refusals do not stop it: a person lets it fail");
        }
        entry(&mut text, "what", &words, width);
        if let Some(reason) = &self.line.reason {
            entry(&mut text, "why", reason, width);
        }
        let since = format!("{} ({} ago)", time(self.line.since), duration(self.line.since_ms_ago));
        entry(&mut text, "since", &since, width);
        if let Some(until) = self.until() {
            entry(&mut text, "until", &until, width);
        }
        let ways = self.ways();
        let column = ways.iter().map(|(what, _)| what.len() + 1).max().unwrap_or(0);
        for (what, command) in ways {
            let what = format!("{what}:");
            // Writing into a String cannot fail.
            writeln!(text, "  {what:<column$} {command}").ok();
        }
        text
    }

    /// An object for programs.
    pub fn json(&self) -> Value {
        let ways: serde_json::Map<String, Value> =
            self.ways().into_iter().map(|(what, command)| (what.replace(' ', "_"), command.into())).collect();
        json!({
            "scope": self.line.scope, "what": self.what(), "profiles": self.profiles, "state": self.line.state,
            "reason": self.line.reason, "since": time_rfc3339(self.line.since),
            "until": self.line.until.map(time_rfc3339), "until_ms": self.line.until_ms,
            "pending": self.jobs.map(|jobs| jobs.count), "pending_more": self.jobs.map(|jobs| jobs.more),
            "refusals_ignored": self.line.ignored, "ways": ways,
        })
    }
}

/// Writes "  name:  text", its further lines under the text.
fn entry(into: &mut String, name: &str, text: &str, width: usize) {
    const INDENT: usize = 9;
    let mut line = format!("  {:<1$}", format!("{name}:"), INDENT - 2);
    let mut length = INDENT;
    for word in printable(text).split_whitespace() {
        let letters = word.chars().count();
        if length > INDENT && length.saturating_add(letters + 1) > width {
            into.push_str(&line);
            into.push('\n');
            (line, length) = (" ".repeat(INDENT), INDENT);
        }
        if length > INDENT {
            line.push(' ');
            length += 1;
        }
        line.push_str(word);
        length += letters;
    }
    into.push_str(&line);
    into.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Moment;

    fn shown(scope: &str, state: &str) -> Shown {
        let line = GateLine {
            scope: scope.to_owned(),
            state: state.to_owned(),
            reason: Some(
                "the API refused 20 jobs of this batch in a row with the same error; see results.error"
                    .to_owned(),
            ),
            until: None,
            until_ms: None,
            since: Moment(0),
            since_ms_ago: 61_000,
            ignored: false,
        };
        let scope = Scope::parse(scope);
        Shown { line, scope, profiles: None, jobs: Some(Jobs { count: JOBS_MAX, more: true }) }
    }

    #[test]
    fn words_fit_a_terminal_of_80_columns_and_commands_stay_whole() {
        assert_eq!(
            shown("batch:default/typo's", "blocked").text(Some(80)),
            "batch:default/typo's  blocked\n  \
               what:  batch typo's of queue default; 10,000+ pending jobs wait behind it\n  \
               why:   the API refused 20 jobs of this batch in a row with the same error; see\n         \
                      results.error\n  \
               since: 1970-01-01 00:00:00Z (1 min 1 s ago)\n  \
               until: a person opens it\n  \
               go on:           promptmill gates free 'batch:default/typo'\\''s'\n  \
               cancel the rest: promptmill cancel --batch 'typo'\\''s' --queue default\n  \
               let it fail:     promptmill gates free 'batch:default/typo'\\''s' --let-fail\n"
        );
    }

    #[test]
    fn an_end_is_told_with_the_time_that_is_left() {
        let until = |state: &str, left: Option<i64>| {
            let mut gate = shown("model:p/m", state);
            (gate.line.until, gate.line.until_ms) = (left.map(|_| Moment(0)), left);
            gate.until().unwrap_or_default()
        };
        assert!(until("blocked", Some(7_199_001)).contains("(in 2 h 0 min), then one call asks"));
        assert!(until("blocked", Some(-1)).starts_with("now"));
        assert_eq!(until("blocked", None), "a person opens it");
        assert!(until("probing", Some(2_000)).contains("given up at"));
        assert!(until("probing", Some(-1)).contains("never came back"));
        assert_eq!(until("flowing", None), "");
    }
}
