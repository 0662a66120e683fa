//! How far long work has come, for a person who waits: a line on stderr, where that is a terminal, from
//! the second second on. What is over sooner says nothing.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that takes no longer shows nothing.
const QUIET: Duration = Duration::from_secs(1);

/// The progress of one piece of work; the line goes away with it.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    began: Instant,
    quiet: bool,
}

/// Where else the work shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Nowhere.
    Nothing,
    /// Its own output goes to the same terminal.
    Output,
}

impl Progress {
    /// Begins work on things that are called so, of which there are so many, if that is known.
    pub fn begin(things: &str, count: Option<u64>, beside: Beside) -> Self {
        let template = match count {
            Some(_) => "{wide_bar} {human_pos} of {human_len} {msg}, {a_second}/s, {eta} left",
            None => "{spinner} {human_pos} {msg}, {a_second}/s",
        };
        let bar = match count {
            Some(count) => ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::hidden()),
            None => ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
        };
        let style = ProgressStyle::with_template(template).expect("the template is a constant").with_key(
            "a_second",
            |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
                let rate = state.pos() as f64 / state.elapsed().as_secs_f64().max(0.001);
                // Writing into a String cannot fail.
                write!(out, "{}", super::out::number(rate.round() as i64)).ok();
            },
        );
        bar.set_style(style);
        bar.set_message(things.to_owned());
        Self { bar, began: Instant::now(), quiet: beside == Beside::Nothing }
    }

    /// So many more are done.
    pub fn add(&mut self, count: u64) {
        if self.quiet && self.began.elapsed() >= QUIET {
            self.quiet = false;
            // Hidden where stderr is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(count);
    }

    /// Says something above the line.
    pub fn say(&self, sentence: &str) {
        self.bar.suspend(|| super::out::say(sentence));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
