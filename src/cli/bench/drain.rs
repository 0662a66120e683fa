//! `drain`: from the table through the stand-in to the results, with nothing to wait for.

use super::bare_sql;
use super::place::Kind;
use super::report::{Floor, Of, quantile};
use super::server::Backends;
use super::{Bench, Looped};

/// Calls in flight.
const IN_FLIGHT: usize = 256;

/// Measures jobs a second, CPU, memory and bytes of log, in turns with the floors.
pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let jobs = bench.size(30_000, 6_000);
    let api = bench.api(&[]).await?;
    for _ in 0..bench.runs {
        let bare = bench.bare_loop(&api, jobs, IN_FLIGHT, 0).await?;
        note_loop(bench, &bare, jobs);
        for kind in bench.kinds.clone() {
            mill(bench, &api, kind, jobs, &bare).await?;
        }
    }
    api.stop().await
}

fn of(what: &str, kind: Option<Kind>, jobs: usize, unit: &'static str) -> Of {
    let conditions = format!("{jobs} jobs, {IN_FLIGHT} in flight, no latency");
    Of { what: what.to_owned(), database: kind, conditions, unit }
}

fn note_loop(bench: &mut Bench, bare: &Looped, jobs: usize) {
    let report = &mut bench.report;
    report.add(of("bare loop", None, jobs, "calls/s"), bare.rate, None);
    report.add(of("bare loop, CPU", None, jobs, "s/1000 calls"), bare.cpu_a_thousand, None);
    report.add(of("bare loop, stand-in's CPU", None, jobs, "s/1000 calls"), bare.api_a_thousand, None);
    report.add(of("bare loop, memory at most", None, jobs, "MB"), bare.peak_mb, None);
}

async fn mill(
    bench: &mut Bench,
    api: &super::Api,
    kind: Kind,
    jobs: usize,
    bare: &Looped,
) -> anyhow::Result<()> {
    let database = bench.place.fresh(kind, &bench.mill).await?;
    database.fill(jobs, 0).await?;
    let (wal, backends) = (database.wal().await?, Backends::of(&database).await);
    let before = backends.cpu();
    let api_before = api.child.cpu();
    let ended = bench.drain(&database, api, IN_FLIGHT, &[]).await?;
    let api_cpu = api.child.cpu().saturating_sub(api_before);
    let backends = backends.cpu().zip(before).map(|(after, before)| after.saturating_sub(before));
    let wal = database.wal().await?.zip(wal).map(|(after, before)| after - before);
    database.check(jobs).await?;

    let database = bench.place.fresh(kind, &bench.mill).await?;
    database.fill(jobs, 0).await?;
    let moved = bare_sql::run(&database).await?;
    database.check(jobs).await?;

    let thousands = jobs as f64 / 1_000.0;
    let rate = jobs as f64 / ended.took.as_secs_f64();
    let sql = jobs as f64 / moved.took.as_secs_f64();
    let claims = quantile(&moved.claims, 0.5);
    let against_loop = |value| Some(Floor { name: "bare loop", value });
    let report = &mut bench.report;
    report.add(of("bare SQL", Some(kind), jobs, "jobs/s"), sql, None);
    report.add(of("bare SQL, a claim of 256", Some(kind), jobs, "ms"), claims, None);
    report.add(of("drain", Some(kind), jobs, "jobs/s"), rate, against_loop(bare.rate));
    report.add(
        of("drain, against bare SQL", Some(kind), jobs, "jobs/s"),
        rate,
        Some(Floor { name: "bare SQL", value: sql }),
    );
    let cpu = ended.used.cpu.as_secs_f64() / thousands;
    report.add(of("drain, CPU", Some(kind), jobs, "s/1000 jobs"), cpu, against_loop(bare.cpu_a_thousand));
    let over = of("drain, CPU over the bare loop's", Some(kind), jobs, "s/1000 jobs");
    report.add(over, cpu - bare.cpu_a_thousand, None);
    let api_cpu = api_cpu.as_secs_f64() / thousands;
    report.add(
        of("drain, stand-in's CPU", Some(kind), jobs, "s/1000 jobs"),
        api_cpu,
        against_loop(bare.api_a_thousand),
    );
    if let Some(cpu) = backends {
        let of = of("drain, server's CPU", Some(kind), jobs, "s/1000 jobs");
        report.add(of, cpu.as_secs_f64() / thousands, None);
    }
    let peak = ended.used.peak as f64 / 1e6;
    report.add(of("drain, memory at most", Some(kind), jobs, "MB"), peak, against_loop(bare.peak_mb));
    let a_job = |bytes: i64| bytes as f64 / jobs as f64;
    match (wal, moved.wal) {
        (Some(wal), Some(floor)) => report.add(
            of("drain, log (WAL)", Some(kind), jobs, "bytes/job"),
            a_job(wal),
            Some(Floor { name: "bare SQL", value: a_job(floor) }),
        ),
        // On a file system in memory nothing is written to a disk.
        _ if ended.used.written > 0 => report.add(
            of("drain, written (log and file)", Some(kind), jobs, "bytes/job"),
            a_job(ended.used.written as i64),
            None,
        ),
        _ => {}
    }
    Ok(())
}
