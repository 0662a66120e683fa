//! What a daemon does all day: every statement of the worker's, each at least once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use promptmill::domain::job::{JobId, Lease};
use promptmill::domain::ledger::{Back, Call, Checkpoint, Release, Settlement};
use promptmill::domain::pace::{Each, Take};
use promptmill::domain::tool::{Asked, ToolCall, ToolContent, ToolResult};
use promptmill::store::{AccountRow, Blocked, DEFAULT_PROFILE, GateRow, Wanted};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::BATCH;
use super::seen::BY_HAND;
use crate::store::{Bench, answer, back, call, end, me};
use crate::support::{Ground, Kind, server};

/// Looks for work while there is none.
pub async fn idle(bench: &Bench) {
    assert!(bench.store.claim(&wanted(bench)).await.expect("a claim").is_empty());
    bench.store.promote(100).await.expect("promoted");
    assert!(bench.store.expire(100).await.expect("expired").is_empty());
    keep(bench).await;
    share(bench).await;
    bench.store.backlog(&wanted(bench), Duration::from_mins(1)).await.expect("a count");
}

/// Lives through a day, with another daemon beside that misses the answer to a claim.
pub async fn live(ground: &Ground, bench: &Bench, astray: &Bench) {
    prepare(ground).await;
    assert_eq!(bench.store.expire(100).await.expect("expired").len(), 1);
    keep(bench).await;
    share(bench).await;
    bench.store.changed(Duration::ZERO).await;
    miss(astray).await;
    let claimed = bench.store.claim(&wanted(bench)).await.expect("a claim");
    assert!(claimed.len() > BATCH / 2, "there is work for a day, not for {} jobs", claimed.len());
    let leases: Vec<Lease> = claimed.iter().map(|job| job.lease).collect();
    let jobs: Vec<JobId> = leases.iter().map(|lease| lease.job).collect();
    bench.store.traceparents(&jobs).await.expect("a look");
    stream(bench, &leases).await;
    put_back(bench, &leases[..8]).await;
    run_tools(bench, leases[8]).await;
    lose(bench).await;
    let ends =
        leases[8..].iter().map(|lease| end(*lease)).map(|end| Settlement { call: Some(kept(1)), ..end });
    bench.settle(ends.collect()).await;
    bench.store.backlog(&wanted(bench), Duration::from_mins(1)).await.expect("a count");
    look_again(ground, bench).await;
}

/// Some jobs are past their deadline, and one waits although its calls are all answered.
async fn prepare(ground: &Ground) {
    let past = ground.at(-1);
    let some = |at: usize| {
        format!(
            "(SELECT job_id FROM job_state WHERE state = 'pending' ORDER BY job_id DESC LIMIT 1 OFFSET {at})"
        )
    };
    for sql in [
        format!("UPDATE job_state SET deadline_at = {past} WHERE job_id = {}", some(0)),
        format!("UPDATE job_state SET state = 'waiting', claims = claims + 1 WHERE job_id = {}", some(1)),
    ] {
        ground.run(&format!("{BY_HAND} {sql}")).await;
    }
}

fn wanted(bench: &Bench) -> Wanted {
    let blocked = Blocked {
        profiles: vec!["shut".to_owned()],
        models: vec![(DEFAULT_PROFILE.to_owned(), "shut".to_owned())],
        batches: vec![("q0".to_owned(), "b0".to_owned())],
    };
    let profiles = [("q9".to_owned(), "shut".to_owned())].into();
    Wanted { blocked, profiles, ..bench.wanted(BATCH) }
}

/// A claim that nobody waits for, and the next, which looks for what that one may have brought.
async fn miss(bench: &Bench) {
    let wanted = Wanted { slots: BATCH / 8, ..wanted(bench) };
    assert!(tokio::time::timeout(Duration::ZERO, bench.store.claim(&wanted)).await.is_err());
    bench.store.claim(&wanted).await.expect("a claim");
}

/// A scan that takes long is followed by a count of what it found. This one waits for a lock.
async fn look_again(ground: &Ground, bench: &Bench) {
    if ground.kind() == Kind::Sqlite {
        return;
    }
    // Of one queue, so that the last look at all of them does not do.
    let one = Wanted { slots: 1, queues: vec!["q1".to_owned()], ..wanted(bench) };
    let mut somebody = server::connect(&ground.url()).await;
    let table = ground.table("queues");
    let lock = format!("{BY_HAND} BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
    somebody.execute(sqlx::raw_sql(AssertSqlSafe(lock))).await.expect("nobody else has it");
    let waits = format!(
        "{BY_HAND} SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '{table}'::regclass
           AND waitstart < clock_timestamp() - interval '200 milliseconds'"
    );
    let release = async {
        while ground.line(&waits).await == "0" {}
        somebody.close().await.expect("the lock goes with its connection");
    };
    let (first, ()) = tokio::join!(bench.store.claim(&one), release);
    first.expect("a claim");
    // A look is believed for a quarter of a second. One claim begins behind that, however long the others take.
    let began = Instant::now();
    let mut is_over = false;
    while !is_over {
        is_over = began.elapsed() >= Duration::from_millis(300);
        bench.store.claim(&one).await.expect("a claim");
    }
}

/// The ticks.
async fn keep(bench: &Bench) {
    let store = &bench.store;
    store.beat(bench.worker, 1, false).await.expect("a beat");
    store.sleep(bench.worker, true).await.expect("asleep");
    store.sleep(bench.worker, false).await.expect("awake");
    store.promote_answered(100).await.expect("a look");
    store.peers(bench.worker).await.expect("peers");
    store.clock().await.expect("a time");
    store.outdated().await.expect("a look");
    store.next_due().await.expect("a time");
}

/// What all daemons share.
async fn share(bench: &Bench) {
    let store = &bench.store;
    let news = store.gate_news(None).await.expect("news");
    store.gate_news(Some(news.at)).await.expect("news");
    let row = GateRow {
        scope: "model:p/m".to_owned(),
        state: "flowing".to_owned(),
        reason: None,
        until_in: None,
        generation: news.rows.iter().find(|row| row.scope == "model:p/m").map_or(0, |row| row.generation),
        counters: None,
    };
    store.set_gate(&row).await.expect("written").expect("nobody else writes it");
    store.count_refusal("batch:q0/b0", "word").await.expect("counted");
    store.prune_gates(100).await.expect("pruned");
    let account = AccountRow {
        queue: String::new(),
        profile: DEFAULT_PROFILE.to_owned(),
        key: "f00d".to_owned(),
        classes: None,
    };
    store.set_accounts(&[account]).await.expect("written");
    let learnt = Take { rate: Each { requests: Some(50.0), ..Each::default() }, ..Take::default() };
    store.take_rates("rate:f00d/class", &learnt).await.expect("a take");
    store.take_rates("rate:f00d/class", &Take::default()).await.expect("a look");
}

fn kept(seq: i32) -> Call {
    Call { checkpointed: true, ..call(seq) }
}

/// Text comes, and is kept; one call is followed by another.
async fn stream(bench: &Bench, leases: &[Lease]) {
    let part = |lease: &Lease, part| Checkpoint { lease: *lease, seq: 1, part, content: "{}".to_owned() };
    let parts: Vec<Arc<Checkpoint>> =
        leases.iter().flat_map(|lease| [part(lease, 0), part(lease, 1)]).map(Arc::new).collect();
    assert_eq!(bench.store.checkpoint(&parts).await.expect("kept").len(), leases.len());
    assert!(bench.store.lost(leases).await.expect("a look").is_empty());
    bench.append(&leases[0], &kept(1)).await;
}

/// Back at once, later, and until tools are answered; what was put off is due at once, and by our own clock too.
async fn put_back(bench: &Bench, leases: &[Lease]) {
    let asked = |lease: &Lease| Asked { claim: lease.claim, seq: 1, tools: vec![tool(0), tool(1)] };
    let releases = leases.iter().enumerate().map(|(at, lease)| match at % 4 {
        0 => Release { back: Back::Waiting(asked(lease)), ..back(*lease, None) },
        1 => back(*lease, None),
        2 => back(*lease, Some(Duration::ZERO)),
        _ => back(*lease, Some(Duration::from_hours(1))),
    });
    let releases: Vec<Arc<Release>> = releases.map(Arc::new).collect();
    let written = bench.store.release(&releases, bench.worker).await.expect("released");
    assert_eq!(written.done.len(), leases.len());
    assert_eq!(bench.store.promote(100).await.expect("promoted"), leases.len() as u64 / 4);
    assert_eq!(bench.store.promote_overdue(leases).await.expect("promoted"), leases.len() as u64 / 4);
}

fn tool(position: i32) -> ToolCall {
    ToolCall { position, call_id: format!("c{position}"), name: "tool".to_owned(), input: "{}".to_owned() }
}

async fn run_tools(bench: &Bench, lease: Lease) {
    let asked = Asked { claim: lease.claim, seq: 1, tools: vec![tool(0)] };
    assert!(bench.store.open_tools(&lease, &asked, bench.worker).await.expect("opened"));
    let result = ToolResult { content: ToolContent::Text("sunny".to_owned()), is_error: false };
    assert!(bench.store.answer_tool(&lease, lease.claim, 1, 0, &result).await.expect("answered"));
}

/// A worker loses its jobs, and brings two answers all the same: one is taken, one fills what a deadline ended.
async fn lose(bench: &Bench) {
    let dead = bench.store.enlist(&me()).await.expect("a worker enlists");
    let mut wanted = Wanted { worker: dead, slots: BATCH / 4, ..wanted(bench) };
    // Not the lanes of the last look: their order is another day's.
    wanted.blocked.batches.clear();
    let claimed = bench.store.claim(&wanted).await.expect("a claim");
    let leases: Vec<Lease> = claimed.iter().map(|job| job.lease).collect();
    stream_of(bench, &leases).await;
    assert_eq!(bench.store.rescue(dead, 100).await.expect("rescued").len(), leases.len());
    bench.store.absolve(&leases).await.expect("absolved");
    assert_eq!(bench.settle(vec![end(leases[0])]).await.done.len(), 1, "a whole answer is taken");
    bench.store.fill(&leases[0], &answer("late")).await.expect("filled");
    bench.store.retire(dead).await.expect("retired");
}

async fn stream_of(bench: &Bench, leases: &[Lease]) {
    let part = |lease: &Lease| Checkpoint { lease: *lease, seq: 1, part: 0, content: "{}".to_owned() };
    let parts: Vec<Arc<Checkpoint>> = leases.iter().map(part).map(Arc::new).collect();
    bench.store.checkpoint(&parts).await.expect("kept");
}
