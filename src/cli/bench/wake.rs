//! `wake`, `start` and `idle`: the daemon that has little to do.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::place::{Database, Kind, Pool};
use super::prompt;
use super::report::{Of, quantile};
use super::wire::Wire;
use super::{Api, Bench};

/// INSERTs of one run into an idle daemon, and how long it is left alone before each, in milliseconds:
/// at random, or its polls would fall in step with us.
const WAKES: usize = 60;
const WAKES_QUICK: usize = 15;
const ALONE: std::ops::Range<u64> = 250..650;
/// The same under load, which is so many rows at a time, so many milliseconds apart.
const LOADED: usize = 200;
const LOADED_QUICK: usize = 40;
const LOADED_ALONE: std::ops::Range<u64> = 20..100;
const LOAD_ROWS: usize = 25;
const LOAD_EVERY: Duration = Duration::from_millis(50);
/// How long the daemon gets to come up, and to be at full speed under load.
const SETTLE: Duration = Duration::from_secs(3);
/// The first number that is a probe's: those below are load.
const PROBES: u64 = 1_000_000_000;

/// Starts of one run.
const STARTS: usize = 10;
const STARTS_QUICK: usize = 4;

/// Seconds that an idle daemon is watched for.
const IDLE: u64 = 20;
const IDLE_QUICK: u64 = 8;

fn of(what: &str, kind: Kind, conditions: String, unit: &'static str) -> Of {
    Of { what: what.to_owned(), database: Some(kind), conditions, unit }
}

fn note(bench: &mut Bench, what: &str, kind: Kind, conditions: &str, took: &[f64]) {
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let of = of(&format!("{what}, {name}"), kind, format!("{conditions}, {} times", took.len()), "ms");
        bench.report.add(of, quantile(took, part), None);
    }
}

/// Measures from an INSERT on a connection of ours to the call's first byte at the API.
pub(super) async fn wake(bench: &mut Bench) -> anyhow::Result<()> {
    let many = |usual, quick| bench.jobs.unwrap_or(if bench.quick { quick } else { usual });
    let (idle, loaded) = (many(WAKES, WAKES_QUICK), many(LOADED, LOADED_QUICK));
    let api = bench.api(&[]).await?;
    let slow = bench.api(&["--delay-ms", "20"]).await?;
    for _ in 0..bench.runs {
        for kind in bench.kinds.clone() {
            let took = woken(bench, &api, kind, idle, None).await?;
            note(bench, "INSERT to call", kind, "idle", &took);
            let took = woken(bench, &slow, kind, loaded, Some(LOAD_EVERY)).await?;
            let a_second = LOAD_ROWS as u128 * 1_000 / LOAD_EVERY.as_millis();
            note(bench, "INSERT to call", kind, &format!("{a_second} other jobs/s of 20 ms"), &took);
        }
    }
    api.stop().await?;
    slow.stop().await
}

async fn woken(
    bench: &mut Bench,
    api: &Api,
    kind: Kind,
    times: usize,
    load: Option<Duration>,
) -> anyhow::Result<Vec<f64>> {
    let database = bench.place.fresh(kind, &bench.mill).await?;
    let mut wire = Wire::to(&api.url).await?;
    let daemon = bench.daemon(&database, &wire.url, &["--concurrency", "256"], &[])?;
    // It is up when it has asked for the first job.
    insert(&database, PROBES).await?;
    wire.call(PROBES).await?;
    let mut loading = JoinSet::new();
    if let Some(every) = load {
        let pool = database.pool.clone();
        loading.spawn(async move { keep_loading(&pool, every).await });
        sleep(SETTLE).await;
    }
    let alone = if load.is_some() { LOADED_ALONE } else { ALONE };
    let mut took = Vec::new();
    for number in (1..=times).map(|time| PROBES + time as u64) {
        sleep(Duration::from_millis(fastrand::u64(alone.clone()))).await;
        let began = Instant::now();
        insert(&database, number).await?;
        let at = wire.call(number).await?;
        took.push(at.saturating_duration_since(began).as_secs_f64() * 1_000.0);
    }
    // A load that broke off was none.
    if let Some(broken) = loading.try_join_next() {
        broken??;
    }
    drop(loading);
    daemon.stop().await?;
    Ok(took)
}

async fn keep_loading(pool: &Pool, every: Duration) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        Database::insert_into(pool, LOAD_ROWS, 0).await?;
    }
}

/// One plain INSERT, committed by itself.
async fn insert(database: &Database, number: u64) -> anyhow::Result<()> {
    database
        .run(&format!("INSERT INTO jobs (prompt) VALUES ('{}')", prompt::text(number as usize, ".")))
        .await?;
    Ok(())
}

/// Measures from the start of the process to the first call's first byte at the API, with a job waiting.
pub(super) async fn start(bench: &mut Bench) -> anyhow::Result<()> {
    let times = bench.jobs.unwrap_or(if bench.quick { STARTS_QUICK } else { STARTS });
    let api = bench.api(&[]).await?;
    for _ in 0..bench.runs {
        for kind in bench.kinds.clone() {
            let database = bench.place.fresh(kind, &bench.mill).await?;
            let mut took = Vec::new();
            for number in (0..times).map(|time| PROBES + time as u64) {
                insert(&database, number).await?;
                let mut wire = Wire::to(&api.url).await?;
                let daemon = bench.daemon(&database, &wire.url, &[], &[])?;
                let at = wire.call(number).await?;
                took.push(at.duration_since(daemon.began()).as_secs_f64() * 1_000.0);
                daemon.stop().await?;
            }
            note(bench, "start to first call", kind, "tables there, one job waiting", &took);
        }
    }
    api.stop().await
}

/// Measures the share of a core that a daemon takes with nothing to do.
pub(super) async fn idle(bench: &mut Bench) -> anyhow::Result<()> {
    let seconds = if bench.quick { IDLE_QUICK } else { IDLE };
    // Tiny runs are for tests.
    let seconds = bench.jobs.map_or(seconds, |jobs| (jobs as u64).min(seconds));
    let api = bench.api(&[]).await?;
    for _ in 0..bench.runs {
        for kind in bench.kinds.clone() {
            let database = bench.place.fresh(kind, &bench.mill).await?;
            let daemon = bench.daemon(&database, &api.url, &[], &[])?;
            sleep(SETTLE.min(Duration::from_secs(seconds))).await;
            let (before, began) = (daemon.cpu(), Instant::now());
            sleep(Duration::from_secs(seconds)).await;
            let used = daemon.used();
            let share = used.cpu.saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
            daemon.stop().await?;
            let conditions = format!("nothing to do, {seconds} s");
            bench.report.add(of("idle, CPU", kind, conditions.clone(), "% of a core"), share * 100.0, None);
            bench.report.add(of("idle, memory", kind, conditions, "MB"), used.peak as f64 / 1e6, None);
        }
    }
    api.stop().await
}
