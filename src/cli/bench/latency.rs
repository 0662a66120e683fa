//! `latency` and `prompts`: what is left of a bare loop's speed where the API takes its time, and where prompts
//! are long.
//!
//! The mill is measured as it is. Where no limit is known it begins with one call and doubles with
//! each round, so a run is shown twice: whole, and its steady part.

use super::place::{Database, Kind};
use super::prompt::Steady;
use super::report::{Floor, Of};
use super::{Api, Bench};

/// Milliseconds before the first event of an answer.
const LATENCIES: [usize; 3] = [0, 20, 200];
/// Calls in flight.
const IN_FLIGHT: [usize; 4] = [1, 64, 256, 4096];
/// What two cores do at most, about: no more jobs are needed to fill the seconds of a cell.
const RATE_MAX: f64 = 8_000.0;
/// What one job takes beside the latency where it runs alone, in seconds.
const ALONE: f64 = 0.004;
/// How long a cell is to last, and in a quick run.
const SECONDS: f64 = 5.0;
const SECONDS_QUICK: f64 = 1.5;

/// Bytes of a prompt, and how many such jobs a run has.
const PROMPTS: [(usize, usize); 3] = [(1_000, 20_000), (20_000, 8_000), (200_000, 1_000)];
/// Calls in flight with long prompts.
const PROMPTS_IN_FLIGHT: usize = 256;

/// One run: how many jobs of which size, so many at once.
#[derive(Debug, Clone)]
struct Cell {
    what: &'static str,
    jobs: usize,
    in_flight: usize,
    bytes: usize,
    conditions: String,
}

impl Cell {
    fn of(&self, what: &str, kind: Option<Kind>, unit: &'static str) -> Of {
        Of { what: what.to_owned(), database: kind, conditions: self.conditions.clone(), unit }
    }
}

/// Measures each latency with each number of calls in flight.
pub(super) async fn latency(bench: &mut Bench) -> anyhow::Result<()> {
    let seconds = if bench.quick { SECONDS_QUICK } else { SECONDS };
    for _ in 0..bench.runs {
        for latency in LATENCIES {
            let api = bench.api(&["--delay-ms", &latency.to_string()]).await?;
            for in_flight in IN_FLIGHT {
                let rate = in_flight as f64 / (latency as f64 / 1_000.0 + ALONE);
                let jobs = bench.jobs.unwrap_or((rate.min(RATE_MAX) * seconds) as usize);
                let conditions = format!("{latency} ms, {in_flight} in flight, {jobs} jobs");
                measure(bench, &api, &Cell { what: "latency", jobs, in_flight, bytes: 0, conditions })
                    .await?;
            }
            api.stop().await?;
        }
    }
    Ok(())
}

/// Measures long prompts.
pub(super) async fn prompts(bench: &mut Bench) -> anyhow::Result<()> {
    let api = bench.api(&[]).await?;
    for _ in 0..bench.runs {
        for (bytes, jobs) in PROMPTS {
            let jobs = bench.size(jobs, jobs / 5);
            let in_flight = PROMPTS_IN_FLIGHT;
            let conditions = format!("prompts of {} KB, {in_flight} in flight, {jobs} jobs", bytes / 1_000);
            measure(bench, &api, &Cell { what: "prompts", jobs, in_flight, bytes, conditions }).await?;
        }
    }
    api.stop().await
}

async fn measure(bench: &mut Bench, api: &Api, cell: &Cell) -> anyhow::Result<()> {
    let bare = bench.bare_loop(api, cell.jobs, cell.in_flight, cell.bytes).await?;
    bench.report.add(cell.of("bare loop", None, "calls/s"), bare.rate, None);
    if let Some(steady) = bare.steady {
        bench.report.add(cell.of("bare loop, steady", None, "calls/s"), steady, None);
    }
    for kind in bench.kinds.clone() {
        let database = bench.place.fresh(kind, &bench.mill).await?;
        database.fill(cell.jobs, cell.bytes).await?;
        let ended = bench.drain(&database, api, cell.in_flight, &[]).await?;
        database.check(cell.jobs).await?;
        let rate = cell.jobs as f64 / ended.took.as_secs_f64();
        let floor = |value| Some(Floor { name: "bare loop", value });
        bench.report.add(cell.of(cell.what, Some(kind), "jobs/s"), rate, floor(bare.rate));
        if cell.bytes > 0 {
            let mb = |rate: f64| rate * cell.bytes as f64 / 1e6;
            let of = cell.of(&format!("{}, bytes", cell.what), Some(kind), "MB/s");
            bench.report.add(of, mb(rate), floor(mb(bare.rate)));
        }
        if let Some((steady, bare)) = steady(&database, cell.jobs).await?.zip(bare.steady) {
            let of = cell.of(&format!("{}, steady", cell.what), Some(kind), "jobs/s");
            bench.report.add(of, steady, floor(bare));
        }
    }
    Ok(())
}

/// Answers a second in the steady part of a run, by the times in the ledger.
async fn steady(database: &Database, jobs: usize) -> anyhow::Result<Option<f64>> {
    let steady = Steady::of(jobs);
    let mut ends = [0; 2];
    for (end, number) in ends.iter_mut().zip(steady.ends) {
        let ms = database.kind.either("ended_at", "CAST(extract(epoch FROM ended_at) * 1000 AS bigint)");
        let offset = number.saturating_sub(1);
        *end = database
            .number(&format!("SELECT {ms} FROM calls ORDER BY ended_at LIMIT 1 OFFSET {offset}"))
            .await?;
    }
    let took = std::time::Duration::from_millis((ends[1] - ends[0]).unsigned_abs());
    Ok(steady.rate(took))
}
