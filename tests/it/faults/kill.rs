//! The real binary, killed at every step: at the first time that it comes there, and at later ones.
//!
//! For each point: start, let it die, start again with the next occurrence, then drain without
//! failpoints and look at everything. A job meets at most three deaths.

use futures_util::StreamExt as _;
use promptmill::failpoint::ALL;
use promptmill::stand_in::Options;

use super::invariants::Invariants;
use super::work;
use crate::mill::harness::Mill;
use crate::support::{Ground, Kind};

/// Cases that run at the same time: they wait more than they work.
const AT_ONCE: usize = 8;
/// Points that only a dead worker's peers reach: somebody has to die first.
const AFTER_A_DEATH: [&str; 2] = ["rescue.before", "rescue.after"];
/// Points that only one database has.
const SQLITE_ONLY: [&str; 1] = ["commit"];
/// Points that no job of the mixed ones reaches: `points` kills there.
const ELSEWHERE: [&str; 1] = ["measure"];

/// Deaths on the way: a point, and the how manieth time that it is reached.
fn deaths(point: &'static str) -> Vec<(&'static str, u32)> {
    let often = match point {
        // Once in the life of a process.
        "enlist" | "retire" => vec![(point, 1), (point, 1)],
        // Many times in a second.
        "ask.text" | "commit" => vec![(point, 1), (point, 9), (point, 70)],
        // Few of its kind.
        "taken" | "lost" | "fill.before" | "fill.after" | "expire" => vec![(point, 1), (point, 2)],
        _ => vec![(point, 1), (point, 3)],
    };
    if AFTER_A_DEATH.contains(&point) { vec![("ask.text", 20), (point, 1), (point, 2)] } else { often }
}

/// Kills at one point; returns what is wrong.
async fn case(kind: Kind, point: &'static str) -> Result<(), String> {
    let ground = match kind {
        Kind::Sqlite => Ground::sqlite().await,
        Kind::Postgres => Ground::postgres().await,
    };
    let mut mill = Mill::with(&ground, Options { calls_kept: 100_000, ..Options::default() }).await;
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "2");
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "12");
    mill.set("PROMPTMILL_WORKER__CHECKPOINT_SECONDS", "0.2");
    work::configure(&mill);
    Invariants::watch(&ground).await;
    let jobs = work::insert(&ground, &work::mixed(), 1).await;
    let (mut died, mut said) = (0, Vec::new());
    for (at, count) in deaths(point) {
        mill.set("FAILPOINTS", &format!("{at}={}*off->return(kill)", count - 1));
        let ran = tokio::select! {
            ran = mill.drain() => ran,
            _ = work::serve(&ground) => unreachable!("it serves for ever"),
            () = async { work::cancel_one(&ground, &jobs).await; std::future::pending().await } => unreachable!("it waits for ever"),
        };
        if ran.code == -1 {
            died += usize::from(at == point);
        }
        said.push(format!("{at} {count}: {}", ran.code));
    }
    mill.unset("FAILPOINTS");
    let ran = work::drain(&mill).await;
    let found = Invariants::check(&mill, &jobs).await;
    let mut wrong = found.wrong.clone();
    if !matches!(ran.code, 0 | 7) {
        wrong.push(format!("the drain ended with {}: {}", ran.code, ran.stderr));
    }
    if died == 0 {
        wrong.push("it was never reached".to_owned());
    }
    drop(mill);
    ground.close().await;
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!("{kind:?}, killed at {point} ({}): {found}\n{}", said.join(", "), wrong.join("\n")))
}

async fn all_of(kind: Kind, points: impl Iterator<Item = &'static str>) {
    let wrong: Vec<String> = futures_util::stream::iter(points)
        .map(|point| case(kind, point))
        .buffer_unordered(AT_ONCE)
        .filter_map(async |done| done.err())
        .collect()
        .await;
    assert!(wrong.is_empty(), "{} points:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// The first half of the list, up to here, is a job's walk; the rest goes on beside.
const WALK_ENDS: &str = "append.before";

fn half(kind: Kind, first: bool) -> impl Iterator<Item = &'static str> {
    let middle = ALL.iter().position(|name| *name == WALK_ENDS).expect("it is in the list");
    let points = if first { &ALL[..middle] } else { &ALL[middle..] };
    let is_here = move |point: &&str| kind == Kind::Sqlite || !SQLITE_ONLY.contains(point);
    points.iter().copied().filter(is_here).filter(|point| !ELSEWHERE.contains(point))
}

mod sqlite {
    use super::{Kind, all_of, half};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_death_at_any_step_up_to_an_answer_loses_nothing() {
        all_of(Kind::Sqlite, half(Kind::Sqlite, true)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_death_at_any_step_behind_an_answer_or_beside_the_walk_loses_nothing() {
        all_of(Kind::Sqlite, half(Kind::Sqlite, false)).await;
    }
}

mod postgres {
    use super::{Kind, all_of, half};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_death_at_any_step_up_to_an_answer_loses_nothing() {
        all_of(Kind::Postgres, half(Kind::Postgres, true)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_death_at_any_step_behind_an_answer_or_beside_the_walk_loses_nothing() {
        all_of(Kind::Postgres, half(Kind::Postgres, false)).await;
    }
}
