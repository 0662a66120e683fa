//! The buckets of the rate budget on their way in and out: the same on both databases.

use std::time::Duration;

use crate::domain::pace::bucket::{BURST, LEASE};
use crate::domain::pace::{Each, Grant, Take};

/// `rates.kind`.
const KINDS: Each<&str> = Each { requests: "requests", input: "input", output: "output" };

/// What `rates.rate` takes: beyond it sums overflow, and nobody has such a limit.
const RATE_MAX: f64 = 1e15;
const RATE_MIN: f64 = 0.001;

/// A bucket holds what comes in so many seconds, where a person did not say otherwise.
pub(super) const BURST_SECONDS: f64 = BURST.as_secs_f64();
/// One take gets what comes in so many seconds, at most.
pub(super) const LEASE_SECONDS: f64 = LEASE.as_secs_f64();
/// A bucket that nobody took from for so long goes, unless a person changed it.
pub(super) const UNUSED_MAX: Duration = Duration::from_hours(7 * 24);

/// What is asked of one bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// `rates.kind`.
    pub(super) kind: &'static str,
    /// How much.
    pub(super) want: f64,
    /// The limit a minute that was learnt.
    pub(super) learnt: Option<f64>,
    /// No more than this is left; infinite where nothing was said.
    pub(super) left: f64,
}

/// Returns what a take asks, one bucket after the other.
pub(super) fn asked(take: &Take) -> [Asked; 3] {
    let each = KINDS.zip(take.want).zip(take.rate.zip(take.left));
    let each = each.map(|((kind, want), (rate, left))| Asked {
        kind,
        want,
        learnt: rate.filter(|rate| *rate > 0.0).map(|rate| rate.clamp(RATE_MIN, RATE_MAX)),
        left: left.map_or(f64::INFINITY, |left| left.max(0.0)),
    });
    [each.requests, each.input, each.output]
}

/// Returns what was granted, of rows of kind, amount and rate.
pub(super) fn grants(rows: &[(String, f64, f64)]) -> Each<Option<Grant>> {
    KINDS.map(|kind| {
        let (_, amount, rate) = rows.iter().find(|row| row.0 == kind)?;
        Some(Grant { amount: *amount, rate: *rate })
    })
}
