//! The delays that this process gave to jobs, by its own monotonic clock: a database clock that jumps
//! back an hour must not make a pause of a second one of an hour.
//!
//! `job_state.available_at` is the truth, and people may set it. So what stands here counts only
//! for jobs that were put back before a jump was seen.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::job::Lease;

/// A clock that is put right by less than this, beside the time that reading it takes, did not jump.
const JUMP_MIN: Duration = Duration::from_secs(2);
/// Most delays that are remembered; of those beyond, the database's clock alone decides.
const DELAYS_MAX: usize = 100_000;

#[derive(Debug)]
struct Delay {
    due: Instant,
    lease: Lease,
    /// Whether the clock jumped back since.
    jumped: bool,
}

/// What the database's clock said, and when.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    wall: Duration,
}

/// Remembers delays, and watches the clock.
#[derive(Debug, Default)]
pub struct Delays(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    delays: Vec<Delay>,
    last: Option<Reading>,
}

impl Delays {
    /// Notes that a job went back for so long.
    pub fn note(&self, lease: Lease, delay: Duration, now: Instant) {
        self.with(|inner| {
            if inner.delays.len() < DELAYS_MAX {
                inner.delays.push(Delay { due: now + delay, lease, jumped: false });
            }
        });
    }

    /// Takes a reading of the database's clock, asked for at `asked` and answered at `now`; returns
    /// how far it jumped back since the last one, if it did.
    pub fn read(&self, wall: Duration, asked: Instant, now: Instant) -> Option<Duration> {
        self.with(|inner| {
            let last = inner.last.replace(Reading { at: now, wall })?;
            // It was read somewhere between asking and hearing: the later limit is the fair one.
            let expected = last.wall + asked.saturating_duration_since(last.at);
            let back = expected.saturating_sub(wall);
            if back < JUMP_MIN {
                return None;
            }
            for delay in &mut inner.delays {
                delay.jumped = true;
            }
            Some(back)
        })
    }

    /// Takes out what is due; returns the jobs that the database's clock holds back.
    pub fn overdue(&self, now: Instant) -> Vec<Lease> {
        self.with(|inner| {
            let due = inner.delays.extract_if(.., |delay| delay.due <= now);
            due.filter(|delay| delay.jumped).map(|delay| delay.lease).collect()
        })
    }

    /// Puts back what could not be written.
    pub fn again(&self, leases: &[Lease], now: Instant) {
        self.with(|inner| {
            inner.delays.extend(leases.iter().map(|lease| Delay { due: now, lease: *lease, jumped: true }));
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::JobId;

    const fn lease(job: i64) -> Lease {
        Lease { job: JobId(job), claim: 1, run: 1 }
    }

    #[test]
    fn only_a_jump_back_makes_what_was_put_back_before_it_overdue() {
        let (start, delays) = (Instant::now(), Delays::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let read = |wall, seconds| delays.read(Duration::from_secs(wall), at(seconds), at(seconds));
        assert_eq!(read(10_000, 0), None);
        delays.note(lease(1), Duration::from_secs(1), at(0));
        assert_eq!(read(10_001, 1), None);
        assert!(delays.overdue(at(1)).is_empty(), "the clock of the database is right");
        delays.note(lease(2), Duration::from_secs(3), at(1));
        assert_eq!(read(6_402, 2), Some(Duration::from_hours(1)));
        delays.note(lease(3), Duration::from_secs(1), at(2));
        assert!(delays.overdue(at(3)).is_empty(), "the one is not due, the other knows the new clock");
        assert_eq!(delays.overdue(at(4)), [lease(2)]);
        assert!(delays.overdue(at(9)).is_empty());
        delays.note(lease(4), Duration::from_secs(1), at(9));
        assert_eq!(read(10_010, 10), None, "forward is no harm");
        assert!(delays.overdue(at(10)).is_empty());
    }

    #[test]
    fn a_slow_answer_is_no_jump() {
        let (start, delays) = (Instant::now(), Delays::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(delays.read(Duration::from_secs(100), at(0), at(0)), None);
        // Read at once, heard of ten seconds later.
        assert_eq!(delays.read(Duration::from_secs(101), at(1), at(11)), None);
        // Read at the last moment: ten seconds after the one before was, and five after it was heard.
        assert_eq!(delays.read(Duration::from_secs(116), at(11), at(16)), None);
    }
}
