//! `daemons`: several over one Postgres. No job twice, and where the time goes.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::future::try_join_all;

use super::place::Kind;
use super::report::{Floor, Of};
use super::server::Backends;
use super::{Api, Bench};
use crate::cli::out::{count, say};

/// How many daemons.
const DAEMONS: [usize; 4] = [1, 2, 4, 8];
/// Calls in flight in each.
const IN_FLIGHT: usize = 256;
/// Milliseconds that a call takes: none, where the machine is the limit from the first daemon on, and so
/// many that one daemon leaves much of it free.
const LATENCIES: [usize; 2] = [0, 200];
/// Jobs that a run has at most, and for how many seconds a daemon has work where calls take long.
const JOBS: usize = 30_000;
const JOBS_QUICK: usize = 6_000;
const SECONDS: f64 = 6.0;

/// Measures each number of daemons.
pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    if !bench.kinds.contains(&Kind::Postgres) {
        say("daemons are measured on Postgres alone: SQLite is one machine's, and one daemon's");
        return Ok(());
    }
    for _ in 0..bench.runs {
        for latency in LATENCIES {
            let api = bench.api(&["--delay-ms", &latency.to_string()]).await?;
            let mut one = None;
            for daemons in DAEMONS {
                let rate = run(bench, &api, latency, daemons, one).await?;
                one = one.or(Some(rate));
            }
            api.stop().await?;
        }
    }
    Ok(())
}

async fn run(
    bench: &mut Bench,
    api: &Api,
    latency: usize,
    daemons: usize,
    one: Option<f64>,
) -> anyhow::Result<f64> {
    let at_once = (daemons * IN_FLIGHT) as f64;
    let most = bench.size(JOBS, JOBS_QUICK);
    let jobs = match latency {
        0 => most,
        ms => ((at_once * 1_000.0 / ms as f64 * SECONDS) as usize).min(most),
    };
    let database = bench.place.fresh(Kind::Postgres, &bench.mill).await?;
    database.fill(jobs, 0).await?;
    let backends = Backends::of(&database).await;
    let before = (backends.cpu(), api.child.cpu(), api.counted("total").await?);
    let began = Instant::now();
    let drains = (0..daemons).map(|_| bench.drain(&database, api, IN_FLIGHT, &[]));
    let ended = try_join_all(drains).await?;
    let took = began.elapsed();
    database.check(jobs).await?;
    let asked = api.counted("total").await? - before.2;
    ensure!(asked as usize == jobs, "the API was asked {asked} times for {jobs} jobs");

    let conditions = format!(
        "{}, {IN_FLIGHT} in flight each, {latency} ms, {jobs} jobs",
        count(daemons as i64, "daemon", "daemons")
    );
    let of = |what: &str, unit| Of {
        what: what.to_owned(),
        database: Some(Kind::Postgres),
        conditions: conditions.clone(),
        unit,
    };
    let rate = jobs as f64 / took.as_secs_f64();
    let alone = one.map(|value| Floor { name: "1 daemon", value });
    bench.report.add(of("daemons", "jobs/s"), rate, alone);
    let share = |cpu: Duration| cpu.as_secs_f64() / took.as_secs_f64() * 100.0;
    let own: Duration = ended.iter().map(|ended| ended.used.cpu).sum();
    bench.report.add(of("daemons, their CPU", "% of a core"), share(own), None);
    if let Some((after, before)) = backends.cpu().zip(before.0) {
        bench.report.add(
            of("daemons, server's CPU", "% of a core"),
            share(after.saturating_sub(before)),
            None,
        );
    }
    let api_cpu = api.child.cpu().saturating_sub(before.1);
    bench.report.add(of("daemons, stand-in's CPU", "% of a core"), share(api_cpu), None);
    Ok(rate)
}
