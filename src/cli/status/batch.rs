//! Batches as they are watched: how many of one are done, and which of many are shown. Pure.

use std::fmt;

use super::pace::eta_ms;
use crate::cli::out::number;
use crate::domain::outcome::Outcome;
use crate::store::board::{BatchTally, OpenState};

/// States of jobs whose end a rate tells.
pub const NEXT: [OpenState; 2] = [OpenState::Running, OpenState::Pending];

/// How many; a count that stopped somewhere says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// So many.
    pub n: i64,
    /// And more.
    pub more: bool,
}

impl Count {
    /// Returns what a count up to `limit` + 1 found, helped by one that went further some time ago.
    pub fn new(quick: i64, limit: i64, whole: Option<(i64, i64)>) -> Self {
        match whole {
            _ if quick <= limit => Self { n: quick, more: false },
            Some((n, whole_limit)) if n > limit => Self { n: n.min(whole_limit), more: n > whole_limit },
            _ => Self { n: limit, more: true },
        }
    }

    /// Returns the sum.
    pub fn sum(counts: impl Iterator<Item = Self>) -> Self {
        counts.fold(Self::default(), |sum, count| Self { n: sum.n + count.n, more: sum.more || count.more })
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", number(self.n), if self.more { "+" } else { "" })
    }
}

/// A batch, counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Its label.
    pub name: String,
    /// Jobs without a result by state, those that have any.
    pub open: Vec<(String, Count)>,
    /// Results by outcome, those that have any.
    pub done: Vec<(String, Count)>,
    /// Jobs that end in a second.
    pub a_second: f64,
    /// Whether something keeps it back: no rate says when that ends.
    pub stands: bool,
}

impl Batch {
    /// Puts a count up to `limit` + 1 and an older one that went further into one.
    pub fn new(name: String, quick: &BatchTally, limit: i64, whole: Option<(&BatchTally, i64)>) -> Self {
        let merge = |quick: &[(String, i64)], of: fn(&BatchTally) -> &[(String, i64)]| {
            let one = |(word, n): &(String, i64)| {
                let further = whole.and_then(|(whole, limit)| {
                    of(whole).iter().find(|(known, _)| known == word).map(|(_, n)| (*n, limit))
                });
                (word.clone(), Count::new(*n, limit, further))
            };
            quick.iter().map(one).collect()
        };
        let open = merge(&quick.open, |tally| &tally.open);
        let done = merge(&quick.done, |tally| &tally.done);
        Self { name, open, done, a_second: 0.0, stands: false }
    }

    /// Jobs without a result.
    pub fn left(&self) -> Count {
        Count::sum(self.open.iter().map(|(_, count)| *count))
    }

    /// Jobs that a daemon works on or takes next: no rate says when the others are due, or answered.
    pub fn next(&self) -> Count {
        Count::sum(NEXT.into_iter().map(|state| self.of_state(state)))
    }

    /// Jobs with a result.
    pub fn ended(&self) -> Count {
        Count::sum(self.done.iter().map(|(_, count)| *count))
    }

    /// All its jobs.
    pub fn total(&self) -> Count {
        Count::sum([self.left(), self.ended()].into_iter())
    }

    /// Jobs in a state.
    pub fn of_state(&self, state: OpenState) -> Count {
        self.open.iter().find(|(known, _)| known == state.as_str()).map_or(Count::default(), |(_, n)| *n)
    }

    /// Jobs that are complete.
    pub fn complete(&self) -> Count {
        let complete = Outcome::Complete.as_str();
        self.done.iter().find(|(known, _)| known == complete).map_or(Count::default(), |(_, n)| *n)
    }

    /// Jobs that ended otherwise.
    pub fn otherwise(&self) -> Count {
        let complete = Outcome::Complete.as_str();
        Count::sum(self.done.iter().filter(|(known, _)| known != complete).map(|(_, count)| *count))
    }

    /// The share that is done, and that is complete, where all were counted.
    pub fn shares(&self) -> Option<(f64, f64)> {
        let total = self.total();
        let share = |count: Count| count.n as f64 / total.n as f64;
        (!total.more && total.n > 0).then(|| (share(self.ended()), share(self.complete())))
    }

    /// Milliseconds until [`Self::next`] have ended, at this pace.
    pub fn eta_ms(&self) -> Option<i64> {
        let next = self.next();
        (!self.stands && !next.more).then(|| eta_ms(next.n, self.a_second)).flatten()
    }
}

/// How much a batch does: results lately, jobs with workers, its newest job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Activity {
    /// Results lately.
    pub results: i64,
    /// Jobs with workers.
    pub running: i64,
    /// Its newest job.
    pub newest: i64,
}

impl Activity {
    /// Whether anything happens in it.
    pub const fn is_busy(self) -> bool {
        self.results > 0 || self.running > 0
    }
}

/// Returns which of the batches to show, at most `room`: those that were shown stay where they are, so that
/// nothing jumps, but make room for busier ones when nothing happens in them any more.
pub fn choose(shown: &[String], mut found: Vec<(String, Activity)>, room: usize) -> Vec<String> {
    found.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let is_busy = |name: &String| found.iter().any(|(known, activity)| known == name && activity.is_busy());
    let mut chosen: Vec<String> = shown.iter().filter(|name| is_busy(name)).take(room).cloned().collect();
    for (name, _) in &found {
        if chosen.len() >= room {
            break;
        }
        if !chosen.contains(name) {
            chosen.push(name.clone());
        }
    }
    let place = |name: &String| shown.iter().position(|known| known == name).unwrap_or(usize::MAX);
    chosen.sort_by_key(place);
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(open: &[(&str, i64)], done: &[(&str, i64)]) -> BatchTally {
        let own = |list: &[(&str, i64)]| list.iter().map(|(word, n)| ((*word).to_owned(), *n)).collect();
        BatchTally { open: own(open), done: own(done) }
    }

    #[test]
    fn an_older_count_helps_where_the_quick_one_stopped() {
        let quick = tally(&[("pending", 101), ("running", 5)], &[("complete", 101)]);
        let alone = Batch::new("b".into(), &quick, 100, None);
        assert_eq!((alone.left().to_string().as_str(), alone.shares(), alone.eta_ms()), ("105+", None, None));

        let whole = tally(&[("pending", 595), ("running", 9)], &[("complete", 400)]);
        let mut helped = Batch::new("b".into(), &quick, 100, Some((&whole, 1_000)));
        helped.a_second = 2.0;
        assert_eq!((helped.total().to_string().as_str(), helped.eta_ms()), ("1,000", Some(300_000)));
        assert_eq!(helped.shares(), Some((0.4, 0.4)));

        let beyond = Batch::new("b".into(), &quick, 100, Some((&whole, 500)));
        assert_eq!((beyond.left().to_string().as_str(), beyond.shares()), ("505+", None));
    }

    #[test]
    fn only_what_runs_or_is_next_has_a_time_and_nothing_where_the_batch_stands() {
        let open = [("pending", 30), ("running", 10), ("scheduled", 1_000), ("waiting", 1_000)];
        let batch = Batch { a_second: 2.0, ..Batch::new("b".into(), &tally(&open, &[]), 2_000, None) };
        assert_eq!((batch.left().n, batch.eta_ms()), (2_040, Some(20_000)));
        assert_eq!(Batch { stands: true, ..batch }.eta_ms(), None);
        let later = Batch { a_second: 2.0, ..Batch::new("b".into(), &tally(&open[2..], &[]), 2_000, None) };
        assert_eq!(later.eta_ms(), None);
    }

    #[test]
    fn a_batch_that_is_shown_keeps_its_place_until_a_busier_one_needs_it() {
        let busy = |results| Activity { results, ..Activity::default() };
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let found = vec![("a".to_owned(), busy(1)), ("b".to_owned(), busy(9)), ("c".to_owned(), busy(0))];
        assert_eq!(choose(&[], found.clone(), 2), names(&["b", "a"]));
        assert_eq!(choose(&names(&["a", "b"]), found.clone(), 2), names(&["a", "b"]));
        assert_eq!(choose(&names(&["c", "a"]), found.clone(), 2), names(&["a", "b"]));
        assert_eq!(choose(&names(&["c", "a"]), found, 3), names(&["c", "a", "b"]));
    }
}
