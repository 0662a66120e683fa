//! The store, watched: how long each operation took, how it failed, and when the database was last
//! heard of. Passes everything on as it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::vitals::Vitals;
use crate::domain::job::{Claimed, JobId, Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};
use crate::domain::pace::{Each, Grant, Take};
use crate::domain::retention::{DoneJob, Erasure, Sweep};
use crate::domain::tool::{Asked, ToolResult};
use crate::store::{
    AccountRow, Backlog, Due, Erased, GateNews, GateRow, Me, Moment, Peer, Rescued, Store, StoreError,
    Wanted, Written,
};

/// A store that is watched.
pub(super) struct Measured {
    store: Arc<dyn Store>,
    vitals: Arc<Vitals>,
    /// Gates that this process brought into a state other than flowing.
    stopped: Mutex<HashMap<String, &'static str>>,
}

impl Measured {
    pub(super) fn over(store: Arc<dyn Store>, vitals: Arc<Vitals>) -> Arc<dyn Store> {
        Arc::new(Self { store, vitals, stopped: Mutex::default() })
    }

    /// Counts a write that changes how a gate stands; others only change what it counts.
    fn turned(&self, row: &GateRow) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let state = match row.state.as_str() {
            "blocked" => "blocked",
            "probing" => "probing",
            _ => "flowing",
        };
        let before = match state {
            "flowing" => stopped.remove(&row.scope),
            _ => stopped.insert(row.scope.clone(), state),
        };
        if before.unwrap_or("flowing") != state {
            self.vitals.meters.turned(&row.scope, state);
        }
    }

    async fn watched<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let done = work.await;
        self.vitals.went_on();
        self.vitals.meters.asked(operation, began.elapsed(), done.as_ref().err().map(class));
        // One that was refused or that met a lock was answered, too.
        if !matches!(done, Err(StoreError::Unavailable(_) | StoreError::NoEntry(_))) {
            self.vitals.heard();
        }
        done
    }
}

/// The label of an error.
const fn class(error: &StoreError) -> &'static str {
    match error {
        // The worker's own operations set no limit that ends in `Late`.
        StoreError::Unavailable(_) | StoreError::Late(_) => "unavailable",
        StoreError::NoEntry(_) => "no_entry",
        StoreError::Locked(_) => "locked",
        StoreError::Schema(_) => "schema",
        StoreError::Refused(_) => "refused",
        StoreError::Corrupt { .. } => "corrupt",
        StoreError::Denied(_) | StoreError::Database(_) => "database",
    }
}

/// Passes on what takes these and gives that, under its own name.
macro_rules! watched {
    ($($name:ident($($arg:ident: $given:ty),*) -> $gives:ty;)+) => {
        #[async_trait]
        impl Store for Measured {
            fn database_id(&self) -> &str {
                self.store.database_id()
            }

            $(
                async fn $name(&self, $($arg: $given),*) -> Result<$gives, StoreError> {
                    self.watched(stringify!($name), self.store.$name($($arg),*)).await
                }
            )+

            async fn set_gate(&self, row: &GateRow) -> Result<Option<i64>, StoreError> {
                let written = self.watched("set_gate", self.store.set_gate(row)).await?;
                if written.is_some() {
                    self.turned(row);
                }
                Ok(written)
            }

            async fn changed(&self, up_to: Duration) {
                self.store.changed(up_to).await;
            }
        }
    };
}

watched! {
    enlist(me: &Me) -> WorkerId;
    beat(worker: WorkerId, running: usize, asleep: bool) -> bool;
    sleep(worker: WorkerId, asleep: bool) -> ();
    retire(worker: WorkerId) -> ();
    claim(wanted: &Wanted) -> Vec<Claimed>;
    append(lease: &Lease, call: &Call, worker: WorkerId) -> bool;
    checkpoint(parts: &[Arc<Checkpoint>]) -> Vec<Lease>;
    settle(settlements: &[Arc<Settlement>], worker: WorkerId) -> Written;
    release(releases: &[Arc<Release>], worker: WorkerId) -> Written;
    open_tools(lease: &Lease, asked: &Asked, worker: WorkerId) -> bool;
    answer_tool(lease: &Lease, claim: i64, seq: i32, position: i32, result: &ToolResult) -> bool;
    promote_answered(limit: i64) -> u64;
    fill(lease: &Lease, answer: &Answer) -> bool;
    lost(leases: &[Lease]) -> Vec<Lease>;
    promote(limit: i64) -> u64;
    expire(limit: i64) -> Vec<JobId>;
    outdated() -> Option<String>;
    clock() -> Duration;
    promote_overdue(released: &[Lease]) -> u64;
    peers(me: WorkerId) -> Vec<Peer>;
    rescue(dead: WorkerId, limit: i64) -> Vec<Rescued>;
    absolve(leases: &[Lease]) -> ();
    gates() -> Vec<GateRow>;
    gate_news(since: Option<Moment>) -> GateNews;
    set_accounts(accounts: &[AccountRow]) -> ();
    count_refusal(scope: &str, word: &str) -> u32;
    take_rates(scope: &str, take: &Take) -> Each<Option<Grant>>;
    prune_gates(limit: i64) -> u64;
    due(sweep: &Sweep, after: i64, window: i64) -> Due;
    erase(what: Erasure, jobs: &[DoneJob]) -> Option<Erased>;
    backlog(wanted: &Wanted, horizon: Duration) -> Backlog;
    traceparents(jobs: &[JobId]) -> Vec<(JobId, String)>;
    next_due() -> Option<Duration>;
}
