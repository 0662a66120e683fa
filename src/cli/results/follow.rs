//! Which results are new, for a reader of `results.seq`. Pure: the time comes from the caller.
//!
//! `seq` is handed out before its transaction commits, so a lower one may appear after a higher
//! one. The recipe of the contract: read again what came in the last minute, and skip what is known.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::domain::job::JobId;

/// How long a transaction that writes results may take before a follower could miss it.
const OVERLAP: Duration = Duration::from_mins(1);

/// What a follower has seen.
#[derive(Debug, Default)]
pub struct Follow {
    /// The highest `seq` known at a time, oldest first.
    marks: VecDeque<(Instant, i64)>,
    /// Every `seq` above the floor.
    seen: BTreeSet<i64>,
    floor: i64,
    highest: i64,
}

impl Follow {
    /// Returns a follower that knows what came up to this `seq`, and nothing else.
    pub fn after(seq: i64) -> Self {
        Self { floor: seq, highest: seq, ..Self::default() }
    }

    /// Returns the `seq` above which to read: the highest that was known a minute ago.
    pub fn floor(&mut self, now: Instant) -> i64 {
        while let Some((at, seq)) = self.marks.front().copied() {
            if now.duration_since(at) < OVERLAP {
                break;
            }
            self.floor = seq;
            self.marks.pop_front();
        }
        self.seen = self.seen.split_off(&(self.floor + 1));
        self.floor
    }

    /// Returns the jobs of those rows that were not seen yet, in order of their ids.
    pub fn fresh(&mut self, rows: &[(i64, JobId)], now: Instant) -> Vec<JobId> {
        let mut jobs: Vec<JobId> =
            rows.iter().filter(|(seq, _)| self.seen.insert(*seq)).map(|(_, job)| *job).collect();
        if let Some(highest) = rows.iter().map(|(seq, _)| *seq).max()
            && highest > self.highest
        {
            self.highest = highest;
            self.marks.push_back((now, highest));
        }
        jobs.sort_unstable();
        jobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_commits_late_is_not_missed_and_none_comes_twice() {
        let start = Instant::now();
        let mut follow = Follow::after(0);
        assert_eq!(follow.floor(start), 0);
        assert_eq!(follow.fresh(&[(1, JobId(10)), (3, JobId(30))], start), [JobId(10), JobId(30)]);

        let later = start + Duration::from_secs(30);
        assert_eq!(follow.floor(later), 0, "within the overlap everything is read again");
        let rows = [(1, JobId(10)), (2, JobId(20)), (3, JobId(30)), (4, JobId(40))];
        assert_eq!(follow.fresh(&rows, later), [JobId(20), JobId(40)]);

        let much_later = start + Duration::from_secs(61);
        assert_eq!(follow.floor(much_later), 3);
        assert!(follow.fresh(&[(4, JobId(40))], much_later).is_empty());
    }

    #[test]
    fn a_follower_goes_on_where_it_is_told_to() {
        let start = Instant::now();
        let mut follow = Follow::after(7);
        assert_eq!(follow.floor(start), 7);
        assert_eq!(follow.fresh(&[(8, JobId(1))], start), [JobId(1)]);
        assert_eq!(follow.floor(start + Duration::from_secs(30)), 7, "within the overlap");
        assert_eq!(follow.floor(start + Duration::from_secs(61)), 8);
    }

    #[test]
    fn a_job_that_ran_again_is_shown_again() {
        let start = Instant::now();
        let mut follow = Follow::after(0);
        assert_eq!(follow.fresh(&[(1, JobId(10))], start), [JobId(10)]);
        assert_eq!(follow.fresh(&[(2, JobId(10))], start), [JobId(10)]);
    }
}
