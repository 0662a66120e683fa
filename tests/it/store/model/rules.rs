//! What the queue promises where it could have promised something else: the one place to change
//! when a promise changes.

use promptmill::domain::outcome::Outcome;

/// From so many crashes on a job is a suspect, of which a claim takes one at most.
pub const SUSPECT_AT: i32 = 3;
/// With so many crashes a job ends as `quarantined`.
pub const QUARANTINED_AT: i32 = 5;

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
