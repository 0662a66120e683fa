//! Jobs that a person or a deadline ends over the head of a worker that dies: the call was made and
//! paid for, and the ledger says so.

use promptmill::stand_in::Options;

use super::invariants::Invariants;
use super::work::{self, Expect, Spec, Work};
use crate::mill::harness::{Daemon, Mill};
use crate::support::{Ground, on_both};

on_both! {
    a_dead_workers_call_is_in_the_ledger_of_a_job_that_was_cancelled_then,
    a_dead_workers_call_is_in_the_ledger_of_a_job_whose_deadline_passed_then,
    a_worker_that_dies_before_it_sees_a_cancel_leaves_its_call_in_the_ledger,
    a_worker_that_dies_of_a_deadline_leaves_its_call_in_the_ledger,
}

/// Starts a daemon on one stream, and waits until some of it is in `checkpoints`.
async fn streaming<'g>(ground: &'g Ground, spec: Spec, failpoints: &str) -> (Mill<'g>, Vec<Work>, Daemon) {
    let mut mill = Mill::with(ground, Options { calls_kept: 100, ..Options::default() }).await;
    mill.set("PROMPTMILL_WORKER__CHECKPOINT_SECONDS", "0.05");
    mill.set("FAILPOINTS", failpoints);
    Invariants::watch(ground).await;
    let jobs = work::insert(ground, &[spec], 1).await;
    let daemon = mill.start();
    mill.until("SELECT count(*) FROM checkpoints WHERE part = 1", "1").await;
    mill.unset("FAILPOINTS");
    (mill, jobs, daemon)
}

async fn told(mill: &Mill<'_>, jobs: &[Work]) {
    let ran = mill.drain().await;
    assert!(matches!(ran.code, 0 | 7), "{}", ran.stderr);
    let found = Invariants::check(mill, jobs).await;
    found.assert("the job was ended over a dead worker's head");
    assert_eq!((found.calls, found.killed), (1, 1), "{found}");
}

fn endless(expect: Expect) -> Spec {
    Spec::new("[[tokens 400]] [[hang after=300]]", expect, 300)
}

async fn a_dead_workers_call_is_in_the_ledger_of_a_job_that_was_cancelled_then(ground: &Ground) {
    let (mill, jobs, daemon) = streaming(ground, endless(Expect::Outcome("cancelled")), "").await;
    daemon.kill().await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    told(&mill, &jobs).await;
}

async fn a_dead_workers_call_is_in_the_ledger_of_a_job_whose_deadline_passed_then(ground: &Ground) {
    let (mill, jobs, daemon) = streaming(ground, endless(Expect::Outcome("expired")), "").await;
    daemon.kill().await;
    ground.run(&format!("UPDATE job_state SET deadline_at = {}", ground.at(-1))).await;
    told(&mill, &jobs).await;
}

async fn a_worker_that_dies_before_it_sees_a_cancel_leaves_its_call_in_the_ledger(ground: &Ground) {
    let spec = endless(Expect::Outcome("cancelled"));
    let (mill, jobs, daemon) = streaming(ground, spec, "taken=return(kill)").await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(daemon.ended().await.code, -1);
    told(&mill, &jobs).await;
}

async fn a_worker_that_dies_of_a_deadline_leaves_its_call_in_the_ledger(ground: &Ground) {
    let spec = endless(Expect::Outcome("expired"));
    let (mill, jobs, daemon) = streaming(ground, spec, "taken=return(kill)").await;
    ground.run(&format!("UPDATE job_state SET deadline_at = {}", ground.at(-1))).await;
    assert_eq!(daemon.ended().await.code, -1);
    told(&mill, &jobs).await;
}
