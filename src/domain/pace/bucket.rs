//! The token bucket of one limit, and the three of a model class: what all daemons share.
//!
//! The database holds it (one row a bucket: `rate`, `cap`, `level`, `at`) and refills it by its own
//! clock; the SQL is these functions over again, and this is what it is tested against.

use std::time::{Duration, Instant};

use super::limits::Each;

/// A bucket holds what comes in this time. The API's own holds a minute's worth; most of it is left
/// there for wrong estimates and for others who use the key, and because a limit of 60 a minute may be
/// enforced as one a second. A few leases, so that takes that are late lose nothing.
pub const BURST: Duration = Duration::from_secs(4);

/// One take gets at most what comes in this time: all that a daemon can lose when it dies.
pub const LEASE: Duration = Duration::from_secs(1);

/// A token bucket. Amounts are requests or tokens, and fractions of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    rate: f64,
    cap: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// Returns a full bucket that so much a minute flows into.
    pub fn new(rate: f64, now: Instant) -> Self {
        let cap = worth(rate, BURST);
        Self { rate, cap, level: cap, at: now }
    }

    /// What flows in, a minute.
    pub const fn rate(&self) -> f64 {
        self.rate
    }

    /// What it holds at most.
    pub const fn cap(&self) -> f64 {
        self.cap
    }

    /// What is in it now.
    pub fn level(&self, now: Instant) -> f64 {
        // An instant before the last one adds nothing: those who ask come in no order.
        let passed = now.saturating_duration_since(self.at);
        (self.level + worth(self.rate, passed)).min(self.cap)
    }

    /// Takes as much of `want` as is there, at most a lease's worth, and returns it. What is less than
    /// nothing is given back.
    pub fn take(&mut self, want: f64, now: Instant) -> f64 {
        self.refill(now);
        let granted = want.min(worth(self.rate, LEASE)).min(self.level);
        self.level = (self.level - granted).min(self.cap);
        granted
    }

    /// Lets another amount a minute flow in from now on. The level stays, as far as it fits.
    pub fn set_rate(&mut self, rate: f64, now: Instant) {
        self.refill(now);
        self.rate = rate;
        self.cap = worth(rate, BURST);
        self.level = self.level.min(self.cap);
    }

    /// No more than this is left. May only lower the level: what the API still has may be promised to
    /// calls that it does not know of yet.
    pub fn lower(&mut self, left: f64, now: Instant) {
        self.refill(now);
        self.level = self.level.min(left.max(0.0));
    }

    /// Returns how long it takes until so much can be in it; more than it holds waits for a full one.
    pub fn wait(&self, amount: f64, now: Instant) -> Duration {
        let missing = amount.min(self.cap) - self.level(now);
        if missing <= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(missing / self.rate * 60.0).unwrap_or(Duration::MAX)
    }

    fn refill(&mut self, now: Instant) {
        self.level = self.level(now);
        self.at = self.at.max(now);
    }
}

/// What one daemon asks of the shared budget at once.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Take {
    /// How much it wants; less than 0 is given back.
    pub want: Each<f64>,
    /// The limits a minute that it saw since its last take: they make a bucket, or change its rate.
    pub rate: Each<Option<f64>>,
    /// What the API has left at most, where it said so since the last take.
    pub left: Each<Option<f64>>,
}

impl Take {
    /// Whether it neither asks for anything nor tells anything: it only hears what the others know.
    pub fn is_empty(&self) -> bool {
        let told = self.rate.zip(self.left).into_iter().any(|(rate, left)| rate.is_some() || left.is_some());
        // What was granted to the full leaves the dust of a sum.
        !told && self.want.into_iter().all(|want| want.abs() < 1e-6)
    }
}

/// What the budget gave of one limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grant {
    /// How much.
    pub amount: f64,
    /// The limit a minute: a daemon that saw no header learns it here.
    pub rate: f64,
}

/// The buckets of one (key, model class): `None` where no limit is known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Budget(pub Each<Option<Bucket>>);

impl Budget {
    /// Takes in what a daemon learnt, and gives it what there is.
    pub fn take(&mut self, take: &Take, now: Instant) -> Each<Option<Grant>> {
        let asked = take.want.zip(take.rate).zip(take.left);
        self.0.as_mut().zip(asked).map(|(slot, ((want, rate), left))| {
            match (slot.as_mut(), rate) {
                (None, Some(rate)) => *slot = Some(Bucket::new(rate, now)),
                (Some(bucket), Some(rate)) if rate.to_bits() != bucket.rate().to_bits() => {
                    bucket.set_rate(rate, now);
                }
                _ => {}
            }
            let bucket = slot.as_mut()?;
            if let Some(left) = left {
                bucket.lower(left, now);
            }
            Some(Grant { amount: bucket.take(want, now), rate: bucket.rate() })
        })
    }
}

/// What comes in such a time at so much a minute.
pub(super) fn worth(rate: f64, time: Duration) -> f64 {
    rate * time.as_secs_f64() / 60.0
}
