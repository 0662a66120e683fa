//! The worker's side of the store: every claim about it, held on both databases.

mod claim;
mod gates;
mod model;
mod open;
mod pauses;
mod plans;
mod rates;
mod retention;
mod settle;
mod tools;
mod upkeep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use promptmill::domain::job::{Claimed, JobId, Lease, WorkerId};
use promptmill::domain::ledger::{Answer, Call, CallKind, Release, Settlement};
use promptmill::domain::outcome::{Outcome, Usage};
use promptmill::store::{Blocked, DEFAULT_PROFILE, Me, Migrate, Rooms, Store, StoreSettings, Wanted, open};

use crate::support::Ground;

/// A store on the ground's database, with a worker that is enlisted.
pub(crate) struct Bench {
    store: Arc<dyn Store>,
    worker: WorkerId,
}

fn settings(schema: &str) -> StoreSettings {
    StoreSettings {
        schema: schema.to_owned(),
        connections_max: 4,
        operation_max: Duration::from_secs(30),
        answers_once: true,
        connect_max: Duration::from_secs(30),
        transaction_pooler: false,
        listen_url: None,
    }
}

fn me() -> Me {
    Me {
        host: "here".to_owned(),
        boot: "boot".to_owned(),
        pid: 7,
        pid_started: 99,
        version: "0.0.0".to_owned(),
        default_model: "default-model".to_owned(),
    }
}

impl Bench {
    pub(crate) async fn on(ground: &Ground) -> Self {
        let opened = open(&ground.url(), &settings(ground.schema()), Migrate::Never)
            .await
            .expect("the ground has the tables");
        let worker = opened.store.enlist(&me()).await.expect("a worker enlists");
        Self { store: opened.store, worker }
    }

    fn wanted(&self, slots: usize) -> Wanted {
        Wanted {
            worker: self.worker,
            slots,
            bytes_max: 1 << 30,
            suspect: true,
            queues: Vec::new(),
            default_model: "default-model".to_owned(),
            profiles: BTreeMap::new(),
            blocked: Blocked::default(),
            rooms: Rooms::default(),
        }
    }

    pub(crate) async fn claim(&self, slots: usize) -> Vec<Claimed> {
        self.store.claim(&self.wanted(slots)).await.expect("a claim")
    }

    /// Claims one job and returns the right to end it.
    async fn lease(&self) -> Lease {
        let claimed = self.claim(1).await;
        assert_eq!(claimed.len(), 1, "one job is there to be claimed");
        claimed[0].lease
    }

    async fn append(&self, lease: &Lease, call: &Call) -> bool {
        self.store.append(lease, call, self.worker).await.expect("an append")
    }

    async fn settle(&self, ends: Vec<Settlement>) -> promptmill::store::Written {
        let ends: Vec<Arc<Settlement>> = ends.into_iter().map(Arc::new).collect();
        self.store.settle(&ends, self.worker).await.expect("a settle")
    }

    async fn release(&self, back: Release) -> promptmill::store::Written {
        self.store.release(&[Arc::new(back)], self.worker).await.expect("a release")
    }
}

/// Inserts so many jobs with these columns.
async fn jobs(ground: &Ground, count: usize, columns: &str, values: &str) {
    let rows = vec![format!("('say hello', {values})"); count].join(", ");
    ground.run(&format!("INSERT INTO jobs (prompt, {columns}) VALUES {rows}")).await;
}

async fn one_job(ground: &Ground) {
    jobs(ground, 1, "queue", "'default'").await;
}

fn call(seq: i32) -> Call {
    let now = Instant::now();
    Call {
        seq,
        kind: if seq == 1 { CallKind::Ask } else { CallKind::Continue },
        probe: false,
        model: "model-a".to_owned(),
        max_tokens: 1000,
        messages: 1,
        request: Some(r#"{"seam":"anchored"}"#.to_owned()),
        sent: now,
        first_token: Some(now),
        ended: now,
        http_status: Some(200),
        request_id: Some(format!("req_{seq}")),
        message_id: Some(format!("msg_{seq}")),
        stop_reason: Some("end_turn".to_owned()),
        stop_details: None,
        usage: Usage { input: 10, output: 20, cache_creation: 1, cache_read: 2 },
        usage_raw: Some(r#"{"input_tokens":10,"b":1,"a":2}"#.to_owned()),
        content: Some(r#"[{"type":"text","text":"hi"}]"#.into()),
        container: None,
        partial: false,
        fault: None,
        retry_after: None,
        checkpointed: false,
    }
}

fn answer(text: &str) -> Answer {
    Answer {
        stop_reason: Some("end_turn".to_owned()),
        text: Some(text.to_owned()),
        content: Some(r#"[{"type":"text","text":"hi"}]"#.into()),
        model: Some("model-a".to_owned()),
        usage: Usage { input: 10, output: 20, cache_creation: 1, cache_read: 2 },
        calls: 1,
        request_id: Some("req_1".to_owned()),
        started: Some(Instant::now()),
        ..Answer::of(Outcome::Complete)
    }
}

fn end(lease: Lease) -> Settlement {
    Settlement { lease, answer: answer("hi"), call: Some(call(1)) }
}

fn back(lease: Lease, delay: Option<Duration>) -> Release {
    Release {
        lease,
        back: delay.into(),
        failures: 1,
        deferrals: 2,
        reason: Some("overloaded".to_owned()),
        call: Some(call(1)),
    }
}

/// A model as claims name it where it is asked with the profile of `[api]`.
fn of_default(model: &str) -> (String, String) {
    (DEFAULT_PROFILE.to_owned(), model.to_owned())
}

fn ids(claimed: &[Claimed]) -> Vec<i64> {
    let mut ids: Vec<i64> = claimed.iter().map(|job| job.lease.job.0).collect();
    ids.sort_unstable();
    ids
}

fn job(lease: &Lease) -> i64 {
    let JobId(id) = lease.job;
    id
}
