//! How long a claim waits while a million old jobs are deleted: measured, beside the same without.
//!
//! Lasts for minutes and takes gigabytes, so it runs when asked for:
//!
//! ```sh
//! tests/with-postgres durable cargo nextest run --run-ignored only --no-capture store::pauses
//! ```
//!
//! `PROMPTMILL_PAUSES_JOBS` says how many old jobs there are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use promptmill::domain::retention::{Among, Erasure, Sweep};
use promptmill::worker::retention::Way;
use tokio_util::sync::CancellationToken;

use super::{Bench, end};
use crate::support::{Ground, Kind};

/// No claim may wait longer.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// So long it is deleted, and so long not, by turns.
const SLICE: Duration = Duration::from_secs(2);
/// Jobs of one claim.
const SLOTS: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "lasts for minutes: see the module"]
async fn sqlite() {
    Box::pin(measure(Ground::sqlite().await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "lasts for minutes: see the module"]
async fn postgres() {
    Box::pin(measure(Ground::postgres().await)).await;
}

#[expect(clippy::disallowed_methods, reason = "how long it lasts is said by whoever measures")]
fn old_jobs() -> i64 {
    std::env::var("PROMPTMILL_PAUSES_JOBS").map_or(1_000_000, |jobs| jobs.parse().expect("a number"))
}

async fn measure(ground: Ground) {
    let jobs = old_jobs();
    let began = Instant::now();
    fill(&ground, jobs).await;
    report(&ground, &format!("{jobs} old jobs are there after {:.0?}", began.elapsed()));
    let bench = Bench::on(&ground).await;
    let (deleting, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let work = async {
        let busy = delete(&ground, jobs, &deleting).await;
        over.store(true, Ordering::Relaxed);
        busy
    };
    let ([control, during], busy) = tokio::join!(claims(&ground, &bench, &deleting, &over), work);
    control.tell(&ground, "nobody deletes");
    during.tell(&ground, "a daemon deletes");
    let rate = jobs as f64 / busy.as_secs_f64();
    report(&ground, &format!("deleted within {busy:.0?}: {rate:.0} jobs a second"));
    ground.close().await;
    let limit = PAUSE_MAX.max(control.claim.max());
    assert!(during.claim.max() <= limit, "a claim waited for {:?}", during.claim.max());
}

/// Deletes as a daemon of its own does, by turns with slices of the same length in which nobody does:
/// whatever else this machine is doing, both have to bear it. Returns for how long it was at it.
async fn delete(ground: &Ground, jobs: i64, deleting: &AtomicBool) -> Duration {
    let bench = Bench::on(ground).await;
    let queues = Among::AllBut(Vec::new());
    let mut way = Way::new(Sweep { what: Erasure::Jobs, age: Duration::from_hours(24 * 30), queues });
    let (mut deleted, mut busy) = (0, Duration::ZERO);
    while deleted < jobs {
        tokio::time::sleep(SLICE).await;
        deleting.store(true, Ordering::Relaxed);
        let (began, stop) = (Instant::now(), CancellationToken::new());
        let timer = async {
            tokio::time::sleep(SLICE).await;
            stop.cancel();
        };
        let (gone, ()) = tokio::join!(way.go(&*bench.store, &stop), timer);
        deleted += gone.expect("it goes") as i64;
        busy += began.elapsed();
        deleting.store(false, Ordering::Relaxed);
    }
    busy
}

fn report(ground: &Ground, line: &str) {
    eprintln!("{:?}: {line}", ground.kind());
}

/// Old done jobs, each with a prompt, a result and a call.
async fn fill(ground: &Ground, jobs: i64) {
    let long_ago = ground.at(-40 * 86_400);
    let numbers = |from: i64, to: i64| match ground.kind() {
        Kind::Sqlite => format!(
            "(WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i < {to}) SELECT i FROM n)"
        ),
        Kind::Postgres => format!("generate_series({from}, {to}) AS n(i)"),
    };
    let text = "a few words of this and that ".repeat(10);
    let mut from = 1;
    while from <= jobs {
        let to = (from + 49_999).min(jobs);
        ground
            .run(&format!(
                "INSERT INTO jobs (prompt, batch) SELECT '{text}', 'b' || (i / 10000) FROM {};
                 UPDATE job_state SET claims = 1, state = 'done' WHERE job_id BETWEEN {from} AND {to};
                 INSERT INTO results (job_id, run, queue, batch, outcome, text, content, output_tokens, finished_at)
                 SELECT id, 1, queue, batch, 'complete', '{text}', '[{{\"type\":\"text\",\"text\":\"{text}\"}}]', 80, {long_ago}
                   FROM jobs WHERE id BETWEEN {from} AND {to};
                 INSERT INTO calls (job_id, claim, seq, run, kind, content, usage)
                 SELECT id, 1, 1, 1, 'ask', '[{{\"type\":\"text\",\"text\":\"{text}\"}}]', '{{\"input_tokens\":10}}'
                   FROM jobs WHERE id BETWEEN {from} AND {to};",
                numbers(from, to)
            ))
            .await;
        from = to + 1;
    }
    // What was filled in is not to be written out while it is measured.
    match ground.kind() {
        Kind::Sqlite => {
            ground.run("PRAGMA wal_checkpoint(TRUNCATE)").await;
        }
        Kind::Postgres => {
            ground.run("VACUUM ANALYZE").await;
            ground.run("CHECKPOINT").await;
        }
    }
}

/// How long each took.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn at(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * share).ceil() as usize).copied().unwrap_or_default()
    }

    fn max(&self) -> Duration {
        self.at(1.0)
    }

    fn line(&self) -> String {
        let ms = |share| format!("{:.1}", self.at(share).as_secs_f64() * 1000.0);
        format!("p50 {} p99 {} p99.9 {} max {} ms", ms(0.5), ms(0.99), ms(0.999), ms(1.0))
    }
}

/// Claims and settles, timed.
#[derive(Default)]
struct Measured {
    claim: Times,
    settle: Times,
}

impl Measured {
    fn tell(&self, ground: &Ground, when: &str) {
        let (claim, settle) = (self.claim.line(), self.settle.line());
        report(ground, &format!("{when}: {} claims: {claim}; settles: {settle}", self.claim.0.len()));
    }
}

/// Claims and settles without a pause until it is over; returns the times without anybody's deleting,
/// and with it.
async fn claims(ground: &Ground, bench: &Bench, deleting: &AtomicBool, over: &AtomicBool) -> [Measured; 2] {
    let mut measured = [Measured::default(), Measured::default()];
    while !over.load(Ordering::Relaxed) {
        let (began, before) = (Instant::now(), deleting.load(Ordering::Relaxed));
        let claimed = bench.claim(SLOTS).await;
        if claimed.is_empty() {
            let rows = vec!["('say hello')"; 5_000].join(", ");
            ground.run(&format!("INSERT INTO jobs (prompt) VALUES {rows}")).await;
            continue;
        }
        let claim = began.elapsed();
        let began = Instant::now();
        bench.settle(claimed.iter().map(|job| end(job.lease)).collect()).await;
        // What began in one slice and ended in another belongs to the deleting.
        let times = &mut measured[usize::from(before || deleting.load(Ordering::Relaxed))];
        times.claim.0.push(claim);
        times.settle.0.push(began.elapsed());
    }
    measured
}
