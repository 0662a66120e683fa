//! How many jobs of a labelled batch may run at once: few until the API has begun to answer, so that
//! a mistake in a million rows costs a few calls. Doubles with each round of answers.

/// Jobs of an unknown batch that run at once.
pub(super) const FIRST: usize = 1;
/// So many at once, and the batch is trusted without end.
const PROVEN: usize = 1024;

/// The trust in one batch.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    window: usize,
    running: usize,
}

impl Default for Trust {
    fn default() -> Self {
        Self { window: FIRST, running: 0 }
    }
}

impl Trust {
    /// How many more may be claimed; `None`: any number.
    pub(super) const fn room(&self) -> Option<usize> {
        if self.window >= PROVEN { None } else { Some(self.window.saturating_sub(self.running)) }
    }

    /// A job was claimed.
    pub(super) const fn begin(&mut self) {
        self.running += 1;
    }

    /// It is over.
    pub(super) const fn end(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// The API began to answer one of its jobs. Returns whether more may run now.
    pub(super) const fn clean(&mut self) -> bool {
        let grows = self.window < PROVEN;
        self.window += grows as usize;
        grows
    }

    /// The API refused one of its jobs, for the nth time in a row with the same error. One alone says
    /// nothing about the others.
    pub(super) fn refused(&mut self, same: u32) {
        if same > 1 {
            self.window = (self.window / 2).max(FIRST);
        }
    }

    /// A person lets it fail: its refusals are no news.
    pub(super) const fn vouch(&mut self) {
        self.window = PROVEN;
    }

    /// Whether something is known of it that counts.
    pub(super) const fn is_in_use(&self) -> bool {
        self.running > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_doubles_with_each_round_of_answers_until_it_is_trusted() {
        let mut trust = Trust::default();
        let mut rounds = 0;
        while let Some(room) = trust.room() {
            (0..room).for_each(|_| trust.begin());
            (0..room).for_each(|_| assert!(trust.clean() || trust.room().is_none()));
            (0..room).for_each(|_| trust.end());
            rounds += 1;
        }
        assert_eq!(rounds, 10);
    }

    #[test]
    fn one_refusal_says_nothing_and_the_same_again_and_again_leaves_one_at_a_time() {
        let mut trust = Trust::default();
        (0..63).for_each(|_| assert!(trust.clean()));
        trust.refused(1);
        assert_eq!(trust.room(), Some(64));
        (2..=8).for_each(|same| trust.refused(same));
        assert_eq!(trust.room(), Some(1));
    }
}
