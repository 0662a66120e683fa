//! What a killed stream costs: no more than came since its last checkpoint.

use promptmill::stand_in::Options;

use super::invariants::Invariants;
use super::work::{self, Expect, SLOW_RATE, Spec};
use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

on_both! { a_killed_stream_is_paid_twice_for_its_last_interval_at_most }

/// Checkpoints of 0.2 s, a tick of a second, and a machine that is late by another.
const LAST_INTERVAL: u64 = SLOW_RATE * 22 / 10;

async fn a_killed_stream_is_paid_twice_for_its_last_interval_at_most(ground: &Ground) {
    let mut mill = Mill::with(ground, Options { calls_kept: 1000, ..Options::default() }).await;
    mill.set("PROMPTMILL_WORKER__CHECKPOINT_SECONDS", "0.2");
    mill.knows_a_limit();
    Invariants::watch(ground).await;
    let stream = Spec::new("[[tokens 1300]] [[delta 4]] [[pace 20ms]]", Expect::Whole(1300), LAST_INTERVAL);
    let jobs = work::insert(ground, &vec![stream; 4], 1).await;
    let daemon = mill.start();
    let streamed = || mill.api.counts().calls.iter().map(|call| call.streamed_tokens).min();
    while mill.api.counts().total < 4 || streamed() < Some(1000) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    daemon.kill().await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let found = Invariants::check(&mill, &jobs).await;
    found.assert("killed in the middle of four streams");
    assert_eq!((found.calls, found.killed), (8, 4), "{found}");
}
