//! How many calls go to a model that was unwell a moment ago: one, then two, then four, so that what has just
//! come back is not met by all that waited for it, from every daemon at once.
//!
//! Counted are calls that nothing is heard of yet: those that have begun to answer hold nobody up.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::domain::breaker::Health;
use crate::domain::job::Lease;
use crate::worker::profiles::ProfileId;

/// So many unheard calls at once, and the model is trusted again without end.
const PROVEN: usize = 1024;
/// Without a call for so long what was learnt is old, and nothing is held back any more.
const IDLE: Duration = Duration::from_mins(1);
/// A job that nothing is heard of for so long leaves its place to another: it may run a tool before its call.
const PATIENCE: Duration = Duration::from_mins(1);

/// The models that come back.
#[derive(Debug, Default)]
pub(super) struct Ramps(HashMap<(ProfileId, String), Ramp>);

#[derive(Debug)]
struct Ramp {
    window: usize,
    /// With the time of their claim.
    unheard: HashMap<Lease, Instant>,
    last: Instant,
}

impl Ramp {
    fn is_over(&self, now: Instant) -> bool {
        let idle = self.unheard.is_empty() && now.saturating_duration_since(self.last) >= IDLE;
        idle || self.window >= PROVEN
    }

    fn room(&self, now: Instant) -> usize {
        let fresh = |since: &&Instant| now.saturating_duration_since(**since) < PATIENCE;
        self.window.saturating_sub(self.unheard.values().filter(fresh).count())
    }
}

impl Ramps {
    /// A model's probe was answered, here or elsewhere: one call goes next.
    pub(super) fn begin(&mut self, profile: ProfileId, model: &str, now: Instant) {
        self.0.retain(|_, ramp| !ramp.is_over(now));
        let ramp = Ramp { window: 1, unheard: HashMap::new(), last: now };
        self.0.insert((profile, model.to_owned()), ramp);
    }

    /// It does not flow any more: its next answered probe begins anew.
    pub(super) fn forget(&mut self, profile: ProfileId, model: &str) {
        self.0.remove(&(profile, model.to_owned()));
    }

    /// How many more jobs of each model may be claimed.
    pub(super) fn rooms(&self, now: Instant) -> impl Iterator<Item = (ProfileId, &str, usize)> {
        let slow = self.0.iter().filter(move |(_, ramp)| !ramp.is_over(now));
        slow.map(move |((profile, model), ramp)| (*profile, model.as_str(), ramp.room(now)))
    }

    /// A job was claimed that will ask this model.
    pub(super) fn claimed(&mut self, lease: Lease, profile: ProfileId, model: &str, now: Instant) {
        if let Some(ramp) = self.0.get_mut(&(profile, model.to_owned())) {
            ramp.unheard.insert(lease, now);
            ramp.last = now;
        }
    }

    /// Something was heard of a call, or it was never made. Returns whether another may be claimed in its place.
    pub(super) fn heard(&mut self, lease: Lease) -> bool {
        // No short cut: a run may ask another model than its lane names.
        self.0.values_mut().filter_map(|ramp| ramp.unheard.remove(&lease)).count() > 0
    }

    /// How a call looked: with each round of answers twice as many go, and after a failure half as many. Returns
    /// whether more may be claimed than before.
    pub(super) fn report(&mut self, profile: ProfileId, model: &str, health: Health, now: Instant) -> bool {
        let Some(ramp) = self.0.get_mut(&(profile, model.to_owned())) else { return false };
        ramp.last = now;
        match health {
            Health::Well => ramp.window += 1,
            Health::Sick => ramp.window = (ramp.window / 2).max(1),
        }
        health == Health::Well
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::JobId;

    const MODEL: &str = "m";

    fn lease(job: i64) -> Lease {
        Lease { job: JobId(job), claim: 1, run: 1 }
    }

    fn room(ramps: &Ramps, now: Instant) -> Option<usize> {
        ramps.rooms(now).next().map(|(_, _, room)| room)
    }

    #[test]
    fn calls_double_with_each_round_of_answers_until_nothing_holds_them() {
        let (mut ramps, now) = (Ramps::default(), Instant::now());
        ramps.begin(ProfileId::DEFAULT, MODEL, now);
        let mut rounds = Vec::new();
        while let Some(room) = room(&ramps, now) {
            rounds.push(room);
            let round = 0..room as i64;
            round.clone().for_each(|job| ramps.claimed(lease(job), ProfileId::DEFAULT, MODEL, now));
            assert_eq!(self::room(&ramps, now), Some(0), "nothing was heard of them");
            for job in round {
                assert!(ramps.heard(lease(job)) && !ramps.heard(lease(job)), "once");
                assert!(ramps.report(ProfileId::DEFAULT, MODEL, Health::Well, now));
            }
        }
        assert_eq!(rounds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
    }

    #[test]
    fn a_failure_halves_what_goes_and_leaves_one() {
        let (mut ramps, now) = (Ramps::default(), Instant::now());
        ramps.begin(ProfileId::DEFAULT, MODEL, now);
        (0..7).for_each(|_| assert!(ramps.report(ProfileId::DEFAULT, MODEL, Health::Well, now)));
        let mut sick = || {
            assert!(!ramps.report(ProfileId::DEFAULT, MODEL, Health::Sick, now));
            room(&ramps, now)
        };
        assert_eq!([sick(), sick(), sick(), sick()], [Some(4), Some(2), Some(1), Some(1)]);
    }

    #[test]
    fn a_model_that_nobody_asked_for_a_while_is_not_held_back() {
        let (mut ramps, now) = (Ramps::default(), Instant::now());
        ramps.begin(ProfileId::DEFAULT, MODEL, now);
        ramps.claimed(lease(1), ProfileId::DEFAULT, MODEL, now);
        assert_eq!(room(&ramps, now + PATIENCE / 2), Some(0), "one is on its way");
        assert_eq!(room(&ramps, now + 2 * IDLE), Some(1), "it hangs, which is no answer: the next one asks");
        ramps.heard(lease(1));
        assert_eq!(room(&ramps, now + IDLE / 2), Some(1));
        assert_eq!(room(&ramps, now + IDLE), None);
    }
}
