//! The storm for as long as one likes: `tests/run soak MINUTES` prints what it came to.

use std::ops::Range;
use std::time::{Duration, Instant};

use comfy_table::Table;

use super::storm::Storm;
use super::work::{self, Expect, SLOW_TWICE_MAX, Spec};
use crate::support::Ground;

/// How long it lasts.
#[expect(clippy::disallowed_methods, reason = "the runner says it by this variable")]
fn minutes() -> f64 {
    std::env::var("PROMPTMILL_SOAK_MINUTES").ok().and_then(|minutes| minutes.parse().ok()).unwrap_or(10.0)
}

/// Milliseconds between two kills: each daemon lives for some seconds.
const PAUSES: Range<u64> = 500..2500;

/// One batch: the mixed jobs, and streams of ten seconds.
fn batch() -> Vec<Spec> {
    let long = Spec::new("[[tokens 2000]] [[delta 4]] [[pace 20ms]]", Expect::Whole(2000), SLOW_TWICE_MAX);
    [work::mixed(), vec![long; 6]].concat()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "lasts for minutes: tests/run soak"]
#[expect(clippy::print_stdout, reason = "its table is what it is run for")]
async fn a_storm_of_kills_loses_nothing_however_long_it_lasts() {
    let time = Duration::from_secs_f64(minutes() * 60.0);
    let mut table = Table::new();
    table.set_header([
        "database",
        "minutes",
        "kills",
        "jobs",
        "calls",
        "killed calls",
        "lost",
        "duplicated",
        "unknown",
        "quarantined",
        "tokens",
        "paid twice",
        "most a stream",
        "allowed",
    ]);
    let mut ends = Vec::new();
    for (name, ground) in [("SQLite", Ground::sqlite().await), ("Postgres", Ground::postgres().await)] {
        let seed = fastrand::u64(..);
        println!("{name}: three daemons, seed {seed}, {:.1} minutes", minutes());
        let mut storm = Storm::new(&ground, seed).await;
        let batch = batch();
        tokio::select! {
            () = storm.rage(Instant::now() + time, PAUSES, &batch) => {}
            _ = work::serve(&ground) => unreachable!("it serves for ever"),
        }
        let (kills, found) = storm.end().await;
        table.add_row([
            name.to_owned(),
            format!("{:.1}", minutes()),
            kills.to_string(),
            found.jobs.to_string(),
            found.calls.to_string(),
            found.killed.to_string(),
            found.lost.to_string(),
            found.duplicated.to_string(),
            found.unknown.to_string(),
            found.given_up.to_string(),
            found.tokens.to_string(),
            found.twice.to_string(),
            found.twice_max.to_string(),
            SLOW_TWICE_MAX.to_string(),
        ]);
        ends.push((format!("{name}, seed {seed}, {kills} kills"), found));
        ground.close().await;
    }
    println!("{table}");
    for (about, found) in ends {
        found.assert(&about);
    }
}
