//! When `--drain` is over: nothing pending or running, nor scheduled within the horizon.

use std::time::Duration;

use super::{End, Mill, Seldom};
use crate::store::{Rooms, Wanted};

/// The backlog is counted so often at most.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Watches over a drain.
pub struct Drain {
    horizon: Duration,
    looked: Seldom,
}

impl Drain {
    /// `horizon`: what is scheduled within it is waited for.
    pub fn new(horizon: Duration) -> Self {
        Self { horizon, looked: Seldom::default() }
    }

    /// Returns how the drain ends, if it does now. Asked while nothing runs here.
    pub async fn is_over(&mut self, mill: &Mill) -> Option<End> {
        if !self.looked.is_due(LOOK_EVERY) {
            return None;
        }
        let wanted = Wanted {
            worker: mill.worker(),
            slots: 0,
            bytes_max: 0,
            suspect: false,
            queues: mill.settings.queues.clone(),
            default_model: mill.me.default_model.clone(),
            profiles: mill.profiles.words(),
            blocked: mill.gates.held(),
            rooms: Rooms::default(),
        };
        // Millions that nothing may be claimed of are counted one by one.
        let counted = mill.store.backlog(&wanted, self.horizon).await;
        self.looked.done();
        let left = match counted {
            Ok(left) => left,
            Err(err) => {
                tracing::warn!(error = %err, "failed to count what is left: trying again");
                return None;
            }
        };
        if left.running > 0 {
            return None;
        }
        if left.pending + left.soon > 0 {
            return None;
        }
        Some(if left.blocked > 0 { End::Blocked(left) } else { End::Drained(left) })
    }
}
