//! `slow`: thousands of streams that take their time, and requests of many megabytes.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::time::sleep;

use super::child::{Child, Ended};
use super::place::{Database, Kind};
use super::prompt;
use super::report::{Floor, Of};
use super::{Api, Bench};
use crate::cli::exit::Stop;
use crate::cli::files;

/// Streams at once. Each brings a piece every half second.
const STREAMS: usize = 10_000;
const STREAMS_QUICK: usize = 1_000;
const PACE: Duration = Duration::from_millis(500);
/// Tokens of a piece: slowly, and as fast as a model speaks.
const PIECE: [usize; 2] = [2, 32];
/// Pieces of each: the first stream must not have ended when the last begins. Where no limit is known
/// the daemon doubles what is in flight, and sends one call every two milliseconds at most meanwhile.
const PIECES: usize = 150;
const PIECES_QUICK: usize = 40;
/// The lease is made short, so that there are beats enough to be late: one every quarter of it.
const LEASE: Duration = Duration::from_secs(8);
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// How often the beat and the streams are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Requests with so many megabytes each, all in flight at once.
const BIG: [(usize, usize); 2] = [(64, 5), (16, 30)];
const BIG_QUICK: [(usize, usize); 2] = [(16, 5), (4, 30)];

fn of(what: &str, kind: Kind, conditions: &str, unit: &'static str) -> Of {
    Of { what: what.to_owned(), database: Some(kind), conditions: conditions.to_owned(), unit }
}

/// Measures slow streams, then big requests.
pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let (streams, pieces) = if bench.quick { (STREAMS_QUICK, PIECES_QUICK) } else { (STREAMS, PIECES) };
    let streams = bench.jobs.unwrap_or(streams);
    if let Some(calls) = files::calls_max(8).filter(|&calls| calls < streams) {
        return Err(Stop::failure(format!(
            "{streams} streams need a file each, and this process may open so few that {calls} fit: raise the hard \
             limit (ulimit -Hn), or take --quick"
        )));
    }
    for _ in 0..bench.runs {
        for kind in bench.kinds.clone() {
            let pieces = if bench.jobs.is_some() { 4 } else { pieces };
            for piece in PIECE {
                slow(bench, kind, streams, pieces, piece).await?;
            }
        }
    }
    for _ in 0..bench.runs {
        for kind in bench.kinds.clone() {
            let sizes = if bench.quick { BIG_QUICK } else { BIG };
            // Tiny runs are for tests.
            let tiny = bench.jobs.map(|jobs| vec![(jobs, 1)]);
            for (jobs, mb) in tiny.unwrap_or_else(|| sizes.to_vec()) {
                big(bench, kind, jobs, mb).await?;
            }
        }
    }
    Ok(())
}

async fn slow(
    bench: &mut Bench,
    kind: Kind,
    streams: usize,
    pieces: usize,
    piece: usize,
) -> anyhow::Result<()> {
    let api = bench.api(&["--pace-ms", &PACE.as_millis().to_string()]).await?;
    let database = bench.place.fresh(kind, &bench.mill).await?;
    let markers = format!(" [[delta {piece}]] [[tokens {}]]", piece * pieces);
    database.insert_with(streams, &markers).await?;
    database.rest().await?;
    let lease = LEASE.as_secs().to_string();
    let args = ["--drain", "--concurrency", &streams.to_string()];
    let daemon = bench.daemon(&database, &api.url, &args, &[("PROMPTMILL_WORKER__LEASE_SECONDS", &lease)])?;
    let (seen, ended) = watch(&api, &database, daemon, streams).await?;
    database.check(streams).await?;
    ensure!(seen.at_once as usize == streams, "{} streams of {streams} were there at once", seen.at_once);
    let conditions = format!("{streams} streams of {} tokens/s", piece * 1_000 / PACE.as_millis() as usize);
    let report = &mut bench.report;
    report.add(
        of("slow streams, memory at most", kind, &conditions, "MB"),
        ended.used.peak as f64 / 1e6,
        None,
    );
    if let Some(share) = seen.share {
        let of = of("slow streams, CPU while all are there", kind, &conditions, "% of a core");
        report.add(of, share * 100.0, None);
    }
    if let Some(late) = seen.late {
        let beats = format!("{conditions}, a beat every {} s", BEAT_EVERY.as_secs());
        report.add(of("slow streams, beat late by at most", kind, &beats, "ms"), late, None);
    }
    api.stop().await
}

/// What was seen of the streams.
#[derive(Default)]
struct Seen {
    /// Most streams at once, as the stand-in counts them.
    at_once: u64,
    /// Share of a core while all were there.
    share: Option<f64>,
    /// The longest that a beat was late, in milliseconds.
    late: Option<f64>,
}

async fn watch(
    api: &Api,
    database: &Database,
    daemon: Child,
    streams: usize,
) -> anyhow::Result<(Seen, Ended)> {
    let mut seen = Seen::default();
    let mut last: Option<(i64, i64)> = None;
    let mut all: Option<(Duration, Instant)> = None;
    let mut peak = 0;
    loop {
        sleep(LOOK_EVERY).await;
        peak = peak.max(daemon.used().peak);
        if daemon.is_over() {
            break;
        }
        let in_flight = api.counted("in_flight").await?;
        match all {
            None if in_flight as usize == streams => all = Some((daemon.cpu(), Instant::now())),
            Some((cpu, since)) if in_flight as usize == streams => {
                let used = daemon.cpu().saturating_sub(cpu);
                seen.share = Some(used.as_secs_f64() / since.elapsed().as_secs_f64());
            }
            _ => {}
        }
        // Beats are some seconds apart: none is missed, and each is read as the daemon wrote it.
        if let Some((beat, at)) = beat(database).await? {
            if let Some((number, before)) = last
                && beat == number + 1
            {
                let late = (at - before) as f64 - BEAT_EVERY.as_secs_f64() * 1_000.0;
                seen.late = Some(seen.late.unwrap_or(0.0).max(late));
            }
            if last.is_none_or(|(number, _)| number != beat) {
                last = Some((beat, at));
            }
        }
    }
    let mut ended = daemon.wait().await?;
    ended.used.peak = peak;
    seen.at_once = api.counted("in_flight_max").await?;
    Ok((seen, ended))
}

/// The number of the last beat, and its time in milliseconds.
async fn beat(database: &Database) -> anyhow::Result<Option<(i64, i64)>> {
    let ms = database.kind.either("seen_at", "CAST(extract(epoch FROM seen_at) * 1000 AS bigint)");
    // One number, of both: a beat is none of the two apart.
    let both = database
        .number(&format!(
            "SELECT coalesce(max(beat * 100000000000000 + {ms}), 0) FROM workers WHERE beat > 0"
        ))
        .await?;
    Ok((both > 0).then_some((both / 100_000_000_000_000, both % 100_000_000_000_000)))
}

async fn big(bench: &mut Bench, kind: Kind, jobs: usize, mb: usize) -> anyhow::Result<()> {
    let delay = if bench.jobs.is_some() { 1 } else { 15 };
    let api = bench.api(&["--delay-ms", &format!("{delay}000")]).await?;
    let database = bench.place.fresh(kind, &bench.mill).await?;
    let bytes = mb * 1_000_000;
    // As people write it: an image as base64 and a question about it.
    let (object, array) =
        (kind.either("json_object", "json_build_object"), kind.either("json_array", "json_build_array"));
    let data = match kind {
        Kind::Sqlite => format!("hex(zeroblob({}))", bytes / 2),
        Kind::Postgres => format!("repeat('0', {bytes})"),
    };
    let began = Instant::now();
    database
        .run(&format!(
            "INSERT INTO jobs (params)
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {jobs})
             SELECT {object}('messages', {array}({object}('role', 'user', 'content', {array}(
                        {object}('type', 'image', 'source',
                            {object}('type', 'base64', 'media_type', 'image/png', 'data', {data})),
                        {object}('type', 'text', 'text', '{}' || i)))))
               FROM n",
            prompt::START
        ))
        .await?;
    let inserted = began.elapsed();
    database.rest().await?;
    let vars = [("PROMPTMILL_WORKER__BYTES_IN_FLIGHT_MAX", "1 GiB")];
    let ended = bench.drain(&database, &api, jobs, &vars).await?;
    database.check(jobs).await?;
    let ms = kind.either(
        "max(sent_at) - min(sent_at)",
        "CAST(extract(epoch FROM max(sent_at) - min(sent_at)) * 1000 AS bigint)",
    );
    let sent = database.number(&format!("SELECT {ms} FROM calls")).await?;
    let conditions = format!("{jobs} requests of {mb} MB in flight, a limit that nobody reaches");
    let floor = Some(Floor { name: "bytes in flight", value: (jobs * mb) as f64 });
    let report = &mut bench.report;
    report.add(
        of("big requests, memory at most", kind, &conditions, "MB"),
        ended.used.peak as f64 / 1e6,
        floor,
    );
    report.add(of("big requests, all sent within", kind, &conditions, "ms"), sent as f64, None);
    report.add(of("big requests, inserted", kind, &conditions, "s"), inserted.as_secs_f64(), None);
    api.stop().await
}
