//! What the queue promises where it could have promised something else: the one place to change
//! when a promise changes.

use promptmill::domain::outcome::Outcome;

/// Whether a whole answer of a worker that lost its lease is taken.
pub const ADOPTS: bool = true;
/// Whether a sign of life in a claim takes back what the crashes before it counted.
pub const PROGRESS_FORGIVES: bool = true;
/// From so many crashes on a job is a suspect, of which a claim takes one at most.
pub const SUSPECT_AT: Option<i32> = Some(3);
/// With so many crashes a job ends as `quarantined`.
pub const QUARANTINED_AT: Option<i32> = Some(5);
/// Whether a job that is cancelled or expires while it runs gets a `lost` row for the call that may
/// be under way.
pub const TAKING_AWAY_WRITES_LOST: bool = true;
/// Whether a settle sums up the ledger, and not only what its worker knew.
pub const SETTLE_SUMS_LEDGER: bool = true;
/// Whether a fill sums up the ledger anew whatever the outcome, and not only once.
pub const FILL_SUMS_ALWAYS: bool = true;

/// Whether an outcome is an answer of the model, which is as good from one worker as from another.
pub fn is_answer(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Complete
        | Outcome::Truncated
        | Outcome::Refused
        | Outcome::NeedsTool
        | Outcome::Paused
        | Outcome::Empty
        | Outcome::InvalidOutput
        | Outcome::Unreviewed => true,
        Outcome::Invalid | Outcome::Failed | Outcome::Expired | Outcome::Cancelled | Outcome::Quarantined => {
            false
        }
    }
}

/// Whether a job was taken from its worker by a person or by the time, so that what the worker
/// still brings is added to the result.
pub fn is_taken_away(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Cancelled | Outcome::Expired)
}

/// Tokens that a text of so many bytes is taken for, where the API never said.
pub fn estimate(bytes: usize) -> i64 {
    (bytes as i64 * 2 + 6) / 7
}
