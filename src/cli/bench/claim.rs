//! `claim`: how long a claim takes, idle and while another task settles.
//!
//! It is asked of the store itself, in this process: what a claim costs is mostly the database's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::place::{Database, Kind};
use super::prompt::MODEL;
use super::report::{Of, quantile};
use super::{Bench, bare_sql};
use crate::domain::job::{Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, CallKind, Settlement};
use crate::domain::outcome::{Outcome, Usage};
use crate::store::{self, Blocked, Me, Migrate, Rooms, Store, StoreSettings, Wanted};

/// Slots that a claim fills: the default of the daemon, and what its finishing takes at once.
const SLOTS: [usize; 2] = [64, 256];
/// Claims of one run.
const CLAIMS: usize = 200;
const CLAIMS_QUICK: usize = 40;

/// A worker of ours at the store.
pub(super) struct Claimer {
    store: Arc<dyn Store>,
    wanted: Wanted,
}

impl Claimer {
    /// Enlists at a database.
    pub(super) async fn at(database: &Database, slots: usize) -> anyhow::Result<Self> {
        let settings = StoreSettings {
            schema: "promptmill".to_owned(),
            connections_max: 8,
            connect_max: Duration::from_secs(10),
            operation_max: Duration::from_mins(5),
            answers_once: true,
            transaction_pooler: false,
            listen_url: None,
        };
        let store = store::open(&database.url, &settings, Migrate::Never).await?.store;
        let me = Me {
            host: "bench".to_owned(),
            boot: "bench".to_owned(),
            pid: i64::from(std::process::id()),
            pid_started: 0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            default_model: MODEL.to_owned(),
        };
        let worker = store.enlist(&me).await?;
        Ok(Self { store, wanted: wanted(worker, slots) })
    }

    /// Claims, and tells how many milliseconds that took.
    pub(super) async fn claim(&self) -> anyhow::Result<(Vec<Lease>, f64)> {
        let began = Instant::now();
        let jobs = self.store.claim(&self.wanted).await?;
        let took = began.elapsed().as_secs_f64() * 1_000.0;
        anyhow::ensure!(jobs.len() == self.wanted.slots, "a claim brought {} jobs", jobs.len());
        Ok((jobs.iter().map(|job| job.lease).collect(), took))
    }

    /// Ends jobs.
    pub(super) async fn settle(&self, leases: &[Lease]) -> anyhow::Result<()> {
        let ends: Vec<Arc<Settlement>> = leases.iter().map(|&lease| Arc::new(end(lease))).collect();
        let written = self.store.settle(&ends, self.wanted.worker).await?;
        anyhow::ensure!(
            written.done.len() == leases.len(),
            "{} of {} were settled",
            written.done.len(),
            leases.len()
        );
        Ok(())
    }
}

fn wanted(worker: WorkerId, slots: usize) -> Wanted {
    Wanted {
        worker,
        slots,
        bytes_max: i64::MAX,
        queues: Vec::new(),
        suspect: true,
        default_model: MODEL.to_owned(),
        profiles: BTreeMap::new(),
        blocked: Blocked::default(),
        rooms: Rooms::default(),
    }
}

/// A whole answer such as the stand-in's.
fn end(lease: Lease) -> Settlement {
    let now = Instant::now();
    let usage = Usage { input: 14, output: 53, ..Usage::default() };
    let content = Some(format!(r#"[{{"type":"text","text":"{}"}}]"#, bare_sql::TEXT).into());
    let request_id = Some(format!("req_011CT{}", lease.job.0));
    let call = Call {
        seq: 1,
        kind: CallKind::Ask,
        probe: false,
        model: MODEL.to_owned(),
        max_tokens: 128_000,
        messages: 1,
        request: None,
        sent: now,
        first_token: Some(now),
        ended: now,
        http_status: Some(200),
        request_id: request_id.clone(),
        message_id: Some(format!("msg_011CT{}", lease.job.0)),
        stop_reason: Some("end_turn".to_owned()),
        stop_details: None,
        usage,
        usage_raw: Some(bare_sql::USAGE.to_owned()),
        content: content.clone(),
        container: None,
        partial: false,
        fault: None,
        retry_after: None,
        checkpointed: false,
    };
    let answer = Answer {
        stop_reason: Some("end_turn".to_owned()),
        text: Some(bare_sql::TEXT.to_owned()),
        content,
        model: Some(MODEL.to_owned()),
        usage,
        calls: 1,
        request_id,
        started: Some(now),
        ..Answer::of(Outcome::Complete)
    };
    Settlement::new(lease, answer, Some(call))
}

/// Measures claims of each size.
pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let claims = bench.jobs.unwrap_or(if bench.quick { CLAIMS_QUICK } else { CLAIMS });
    for _ in 0..bench.runs {
        for kind in bench.kinds.clone() {
            for slots in SLOTS {
                let database = bench.place.fresh(kind, &bench.mill).await?;
                // One claim more than are timed: the first opens connections.
                database.fill(slots * (claims + 1), 0).await?;
                note(bench, kind, slots, "idle", &idle(&database, slots, claims).await?);
                let database = bench.place.fresh(kind, &bench.mill).await?;
                database.fill(slots * (claims + 1), 0).await?;
                note(
                    bench,
                    kind,
                    slots,
                    "while another task settles",
                    &busy(&database, slots, claims).await?,
                );
            }
        }
    }
    Ok(())
}

fn note(bench: &mut Bench, kind: Kind, slots: usize, when: &str, took: &[f64]) {
    for (what, part) in [("claim, p50", 0.5), ("claim, p99", 0.99)] {
        let conditions = format!("{slots} slots, {when}, {} claims", took.len());
        let of = Of { what: what.to_owned(), database: Some(kind), conditions, unit: "ms" };
        bench.report.add(of, quantile(took, part), None);
    }
}

async fn idle(database: &Database, slots: usize, claims: usize) -> anyhow::Result<Vec<f64>> {
    let claimer = Claimer::at(database, slots).await?;
    claimer.claim().await?;
    let mut took = Vec::new();
    for _ in 0..claims {
        took.push(claimer.claim().await?.1);
    }
    Ok(took)
}

async fn busy(database: &Database, slots: usize, claims: usize) -> anyhow::Result<Vec<f64>> {
    let claimer = Arc::new(Claimer::at(database, slots).await?);
    let (ended, mut ends) = mpsc::unbounded_channel::<Vec<Lease>>();
    let settler = Arc::clone(&claimer);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(leases) = ends.recv().await {
            settler.settle(&leases).await?;
        }
        anyhow::Ok(())
    });
    ended.send(claimer.claim().await?.0).ok();
    let mut took = Vec::new();
    for _ in 0..claims {
        let (leases, ms) = claimer.claim().await?;
        took.push(ms);
        ended.send(leases).ok();
    }
    drop(ended);
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    database.check(slots * (claims + 1)).await?;
    Ok(took)
}
