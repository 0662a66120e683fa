//! What `/metrics` reads of the tables that all daemons share. Bounded like [`super::board`]: whatever
//! the tables hold, so many entries of an index are counted, and the answer says where it stopped.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::StoreError;
use super::board::{Board, OpenState, Tally, queue_count_max};

/// How many jobs of one state are counted.
pub const DEPTH_MAX: i64 = 50_000;
/// How many queues, gates and workers are.
const FEW_MAX: i64 = 10_000;

/// What the tables hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Jobs that are not done, by state and queue.
    pub jobs: BTreeMap<(&'static str, String), i64>,
    /// States of which there are more than were counted.
    pub capped: Vec<OpenState>,
    /// How long the job that could start for longest has been waiting, in milliseconds; none: there is none.
    pub oldest_ms: Option<i64>,
    /// The same by queue, where one waits.
    pub oldest_of: BTreeMap<String, i64>,
    /// Gates by the first word of their scope and their state.
    pub gates: Vec<(String, String, i64)>,
    /// Queues and workers.
    pub crew: Crew,
}

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crew {
    /// Queues.
    pub queues: i64,
    /// Queues that are paused.
    pub paused: i64,
    /// Rows of `workers`.
    pub workers: i64,
}

/// The single reads.
#[async_trait]
pub trait Gauge: Board {
    /// Counts the jobs of a state by queue, as far as `most` of them.
    async fn depth(&self, state: OpenState, most: i64) -> Result<Vec<(String, i64)>, StoreError>;

    /// Counts gates by kind and state, as far as `most` of them.
    async fn gate_counts(&self, most: i64) -> Result<Vec<(String, String, i64)>, StoreError>;

    /// Counts queues and workers, each as far as `most`.
    async fn crew(&self, most: i64) -> Result<Crew, StoreError>;
}

/// Reads all of it.
pub async fn read(store: &dyn Gauge) -> Result<Gauges, StoreError> {
    let mut gauges = Gauges { crew: store.crew(FEW_MAX).await?, ..Gauges::default() };
    for state in OpenState::ALL {
        let queues = store.depth(state, DEPTH_MAX + 1).await?;
        if queues.iter().map(|(_, jobs)| jobs).sum::<i64>() > DEPTH_MAX {
            gauges.capped.push(state);
        }
        gauges.jobs.extend(queues.into_iter().map(|(queue, jobs)| ((state.as_str(), queue), jobs)));
    }
    // The many of one queue may have kept the others from being seen: then each is counted by itself.
    if !gauges.capped.is_empty() {
        let limit = queue_count_max(gauges.crew.queues as usize);
        for card in store.queue_cards(limit).await? {
            for state in &gauges.capped {
                let jobs = gauges.jobs.entry((state.as_str(), card.name.clone())).or_default();
                *jobs = (*jobs).max(of(&card.jobs, *state));
            }
        }
    }
    for head in store.heads().await?.into_iter().filter(|head| head.free) {
        let age_ms = head.oldest.age_ms;
        gauges.oldest_ms = gauges.oldest_ms.max(Some(age_ms));
        let oldest = gauges.oldest_of.entry(head.queue).or_insert(age_ms);
        *oldest = (*oldest).max(age_ms);
    }
    gauges.gates = store.gate_counts(FEW_MAX).await?;
    Ok(gauges)
}

const fn of(tally: &Tally, state: OpenState) -> i64 {
    match state {
        OpenState::Pending => tally.pending,
        OpenState::Scheduled => tally.scheduled,
        OpenState::Running => tally.running,
        OpenState::Waiting => tally.waiting,
    }
}
