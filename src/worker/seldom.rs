//! What is done in a loop, but not at each turn.

use std::time::{Duration, Instant};

/// What is done in a loop, but no more often than so; what turns out to be costly takes a tenth of the time.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    begun: Option<Instant>,
    took: Duration,
}

impl Seldom {
    /// So many times as long as it takes lies between two beginnings.
    const WORTH: u32 = 10;
    /// But it is done this often in any case.
    const EVERY_MAX: Duration = Duration::from_secs(30);

    /// Whether it is time, the first time in any case; then it begins.
    pub(super) fn is_due(&mut self, every: Duration) -> bool {
        let now = Instant::now();
        let every = self.pause(every);
        let due = self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= every);
        if due {
            self.begun = Some(now);
        }
        due
    }

    /// Notes how long it took.
    pub(super) fn done(&mut self) {
        self.took = self.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
    }

    fn pause(&self, every: Duration) -> Duration {
        every.max((self.took * Self::WORTH).min(Self::EVERY_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause_after(took: Duration) -> Duration {
        Seldom { begun: None, took }.pause(Duration::from_secs(1))
    }

    #[test]
    fn what_is_costly_takes_a_tenth_of_the_time_at_most_and_is_done_twice_a_minute() {
        assert_eq!(pause_after(Duration::from_millis(99)), Duration::from_secs(1));
        assert_eq!(pause_after(Duration::from_millis(800)), Duration::from_secs(8));
        assert_eq!(pause_after(Duration::from_mins(1)), Duration::from_secs(30));
    }
}
