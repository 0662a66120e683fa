//! What one daemon may spend of the shared budget: granted about once a second, spent as calls are
//! admitted, corrected when they end.
//!
//! It may owe: a call that costs more than a second's worth is admitted when a second's worth is
//! there, and the debt is paid by the next grants. So a large prompt waits like all others, neither
//! for ever nor hoarding what others could use.

use std::time::{Duration, Instant};

use super::bucket::{Grant, LEASE, Take, worth};
use super::limits::{Each, RateLimits};

/// How often a daemon takes, to be spread by ± 20 % so that daemons take turns at being first. Less
/// than a lease: a take that is late must not cost throughput.
pub const TAKE_EVERY: Duration = Duration::from_millis(750);

/// The part of the time until the next take over which the allowance is spread: the early half of a
/// spread take must find it used.
const SPREAD: f64 = 0.8;

/// What is known of one limit here.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Share {
    /// The limit, a minute.
    rate: f64,
    /// What may be spent; below 0 it is owed.
    level: f64,
    /// What there was to spend after the last grant.
    granted: f64,
    /// The limit that the API or the configuration named last here. Another one may be in force: a person's.
    named: Option<f64>,
    /// The budget has not been told of it yet.
    news: bool,
    /// What the API had left, and when.
    left: Option<(f64, Instant)>,
}

impl Share {
    const fn new(rate: f64) -> Self {
        Self { rate, level: 0.0, granted: 0.0, named: None, news: false, left: None }
    }

    /// What a daemon holds at most.
    fn target(&self) -> f64 {
        worth(self.rate, LEASE)
    }

    /// What the API may have left by now.
    fn left(&self, now: Instant) -> Option<f64> {
        let (left, at) = self.left?;
        Some(left + worth(self.rate, now.saturating_duration_since(at)))
    }
}

/// What one daemon may spend.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Allowance(Each<Option<Share>>);

impl Allowance {
    /// Whether any limit is known.
    pub fn knows_limits(&self) -> bool {
        self.0.into_iter().any(|share| share.is_some())
    }

    /// Whether there is enough for a call of this cost.
    pub fn admits(&self, cost: Each<f64>) -> bool {
        self.known(cost).all(|(share, cost)| share.level >= cost.min(share.target()) - f64::EPSILON)
    }

    /// How many calls of this cost there is enough for.
    pub fn slots(&self, cost: Each<f64>) -> usize {
        let slots = self.known(cost).map(|(share, cost)| {
            let cost = cost.max(f64::MIN_POSITIVE);
            // The last one may owe.
            if share.level < cost.min(share.target()) { 0.0 } else { (share.level / cost).floor().max(1.0) }
        });
        slots.fold(usize::MAX, |least, slots| least.min(slots as usize))
    }

    /// Sets the cost of a call aside.
    pub fn spend(&mut self, cost: Each<f64>) {
        self.correct(Each::default(), cost);
    }

    /// A call for which `estimate` was set aside cost `cost`.
    pub fn correct(&mut self, estimate: Each<f64>, cost: Each<f64>) {
        for (share, (estimate, cost)) in self.0.as_mut().zip(estimate.zip(cost)) {
            if let Some(share) = share {
                share.level += estimate - cost;
            }
        }
    }

    /// Returns how long to wait after a call of this cost, so that the calls of one grant are spaced.
    pub fn interval(&self, cost: Each<f64>) -> Duration {
        let part = self
            .known(cost)
            .map(|(share, cost)| (cost / share.granted.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0))
            .fold(0.0, f64::max);
        TAKE_EVERY.mul_f64(part * SPREAD)
    }

    /// Takes over limits a minute, where they are named.
    pub fn configure(&mut self, limits: Each<Option<f64>>) {
        for (share, limit) in self.0.as_mut().zip(limits) {
            if let Some(limit) = limit {
                name(share, limit);
            }
        }
    }

    /// Takes in what the headers of a response said.
    pub fn learn(&mut self, limits: &RateLimits, now: Instant) {
        for (share, said) in self.0.as_mut().zip(limits.each) {
            if let Some(limit) = said.limit {
                name(share, limit as f64);
            }
            if let (Some(share), Some(left)) = (share, said.remaining) {
                let said = Share { left: Some((left as f64, limits.at)), ..*share };
                if share.left(now).is_none_or(|known| said.left(now).is_some_and(|left| left < known)) {
                    share.left = said.left;
                }
                // The rest of a second's worth may be more than the API has.
                share.level = share.level.min(said.left(now).unwrap_or(f64::MAX));
            }
        }
    }

    /// What to ask of the shared budget now, with what it is to be told.
    pub fn take(&mut self, now: Instant) -> Take {
        let take = Take {
            want: self.0.map(|share| share.map_or(0.0, |share| share.target() - share.level)),
            rate: self
                .0
                .map(|share| share.filter(|share| share.news).map(|share| share.named.unwrap_or(share.rate))),
            left: self.0.map(|share| share.and_then(|share| share.left(now))),
        };
        for share in self.0.as_mut().into_iter().flatten() {
            (share.news, share.left) = (false, None);
        }
        take
    }

    /// Takes in what the shared budget gave. One that gave nothing may not have heard: it is told again.
    pub fn granted(&mut self, grants: Each<Option<Grant>>) {
        for (share, grant) in self.0.as_mut().zip(grants) {
            match (grant, share) {
                (Some(grant), share) => {
                    let share = share.get_or_insert_with(|| Share::new(grant.rate));
                    share.rate = grant.rate;
                    share.level += grant.amount;
                    share.granted = share.level;
                }
                (None, Some(share)) => share.news = true,
                (None, None) => {}
            }
        }
    }

    /// Whether more was spent than was granted.
    pub fn owes(&self) -> bool {
        self.0.into_iter().flatten().any(|share| share.level < 0.0)
    }

    fn known(&self, cost: Each<f64>) -> impl Iterator<Item = (Share, f64)> {
        self.0.zip(cost).into_iter().filter_map(|(share, cost)| Some((share?, cost)))
    }
}

/// The API, or the configuration, names a limit. What it has named before says nothing new: what is in
/// force may have been changed since by a person, in the shared budget.
fn name(share: &mut Option<Share>, limit: f64) {
    let share = share.get_or_insert_with(|| Share::new(limit));
    if share.named.map(f64::to_bits) != Some(limit.to_bits()) {
        (share.rate, share.named, share.news) = (limit, Some(limit), true);
    }
}
