//! What all daemons share against an API that refuses, overloads or is out of credit: a mistake costs a
//! handful of calls, an outage one probe at a time, and no job fails for what is not its fault.

use std::time::{Duration, Instant};

use promptmill::stand_in::Options;

use super::harness::{Daemon, Mill};
use crate::support::{Ground, on_both};

on_both! {
    a_mistake_in_thousands_of_rows_costs_a_handful_of_calls,
    jobs_without_a_batch_that_are_all_refused_are_tried_ever_more_seldom_until_one_succeeds,
    a_credit_that_runs_out_stops_all_daemons_and_one_update_lets_them_go_on,
    an_overload_costs_no_job_and_one_probe_an_interval_over_all_daemons,
    after_an_outage_a_daemon_sends_one_call_then_two_then_four,
    a_rate_limit_that_a_person_blocks_for_hours_is_free_at_their_word,
    a_small_batch_behind_a_large_one_waits_no_more_than_two_claims,
    a_queue_runs_no_more_than_its_limit_over_all_daemons,
}

/// A mistake of this many rows would be this many calls.
const ROWS: usize = 20_000;

/// Inserts so many jobs; `values` may name the number `i`.
async fn fill(ground: &Ground, jobs: usize, columns: &str, values: &str) {
    let numbers =
        format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {jobs})");
    ground.run(&format!("INSERT INTO jobs ({columns}) {numbers} SELECT {values} FROM n")).await;
}

fn start(mill: &Mill<'_>, daemons: usize) -> Vec<Daemon> {
    (0..daemons).map(|_| mill.start()).collect()
}

async fn stop(daemons: Vec<Daemon>) {
    for daemon in &daemons {
        daemon.terminate();
    }
    for daemon in daemons {
        let ran = daemon.ended().await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
}

/// Waits until so many results are whole.
async fn until_complete(mill: &Mill<'_>, jobs: usize, rest: &str) {
    let sql = format!("SELECT count(*) FROM results WHERE outcome = 'complete' {rest}");
    mill.until(&sql, &jobs.to_string()).await;
}

/// How many calls the API answered with this status.
fn answered(mill: &Mill<'_>, status: u16) -> u64 {
    mill.api.counts().by_status.get(&status).copied().unwrap_or(0)
}

async fn a_mistake_in_thousands_of_rows_costs_a_handful_of_calls(ground: &Ground) {
    let mill = Mill::new(ground).await;
    for daemons in [1, 4] {
        let (typo, fine) = (format!("typo-{daemons}"), format!("fine-{daemons}"));
        let values = format!("'row ' || i, '{typo}', '{{\"temprature\": 1}}'");
        fill(ground, ROWS, "prompt, batch, params", &values).await;
        fill(ground, 200, "prompt, batch", &format!("'row ' || i, '{fine}'")).await;
        let running = start(&mill, daemons);
        until_complete(&mill, 200, &format!("AND batch = '{fine}'")).await;
        let gate = format!("SELECT state FROM gates WHERE scope = 'batch:default/{typo}'");
        mill.until(&gate, "blocked").await;
        let shown = mill.run(&["gates"]).await.stdout;
        assert!(shown.contains(&format!("batch:default/{typo}")), "{shown}");
        stop(running).await;
        let calls = answered(&mill, 400);
        assert!((20..=25).contains(&calls), "{calls} calls by {daemons} daemons");
        mill.ledger_is_the_stand_ins().await;
        ground.run("DELETE FROM calls").await;
        mill.api.reset();
    }
    mill.holds().await;
}

async fn jobs_without_a_batch_that_are_all_refused_are_tried_ever_more_seldom_until_one_succeeds(
    ground: &Ground,
) {
    let mill = Mill::new(ground).await;
    for daemons in [1, 4] {
        ground.run("DELETE FROM jobs").await;
        ground.run("DELETE FROM gates").await;
        ground.run("DELETE FROM calls").await;
        fill(ground, 100, "prompt, params", "'row ' || i, '{\"temprature\": 1}'").await;
        let running = start(&mill, daemons);
        // Two probes behind the twenty that stopped it. Each daemon may have had a call on its way, and
        // sent another before it heard that its own was counted behind a gate that blocks.
        let is_probe = format!("probe = {}", ground.either("1", "true"));
        mill.until(&format!("SELECT count(*) FROM calls WHERE {is_probe}"), "2").await;
        let calls = sent(ground, "true").await.len();
        assert!((22..22 + 2 * daemons).contains(&calls), "{calls} calls by {daemons} daemons");
        let probes = sent(ground, &is_probe).await;
        let pause = probes[1] - probes[0];
        assert!(pause >= 1900, "a pause of {pause} ms between the probes");
        ground.run("INSERT INTO jobs (prompt, priority) VALUES ('good', 1)").await;
        until_complete(&mill, 1, "").await;
        // Twenty more at once, where as many probes would take a quarter of an hour.
        let good = sent(ground, "http_status = 200").await[0];
        let behind = format!("{} > {good}", sent_at(ground));
        let more = format!("SELECT count(*) >= 20 FROM calls WHERE {behind}");
        mill.until(&more, ground.either("1", "t")).await;
        let took = sent(ground, &behind).await[19] - good;
        assert!(took < 30_000, "twenty calls after a good one took {took} ms");
        stop(running).await;
    }
    mill.holds().await;
}

async fn after_an_outage_a_daemon_sends_one_call_then_two_then_four(ground: &Ground) {
    let options = Options { delay: Duration::from_millis(300), ..Options::default() };
    let mut mill = Mill::with(ground, options).await;
    mill.knows_a_limit();
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "32");
    mill.api.fail(Some("500")).expect("it knows this error");
    fill(ground, 200, "prompt", "'row ' || i").await;
    let running = start(&mill, 1);
    mill.until("SELECT state FROM gates WHERE scope LIKE 'model:%'", "blocked").await;
    mill.until("SELECT count(*) FROM job_state WHERE state = 'running'", "0").await;
    mill.api.fail(None).expect("it does");
    until_complete(&mill, 200, "").await;
    stop(running).await;
    let heard_at = ground.either("first_token_at", "(extract(epoch FROM first_token_at) * 1000)::bigint");
    let heard = format!("SELECT {heard_at} FROM calls WHERE http_status = 200 ORDER BY 1");
    let heard: Vec<i64> =
        ground.lines(&heard).await.iter().map(|at| at.parse().expect("milliseconds")).collect();
    let sent = sent(ground, &format!("{} > {}", sent_at(ground), heard[0])).await;
    // Whenever one is sent, at most one more is on its way unheard than were heard since the probe.
    for (before, at) in sent.iter().enumerate() {
        let heard = heard[1..].iter().filter(|heard| **heard <= at + 1).count();
        assert!(before <= 2 * heard, "{} calls were sent, and {heard} heard", before + 1);
    }
    mill.ledger_is_the_stand_ins().await;
}

/// SQL for the milliseconds at which a call was sent.
fn sent_at(ground: &Ground) -> &str {
    ground.either("sent_at", "(extract(epoch FROM sent_at) * 1000)::bigint")
}

/// When these calls were sent, one after the other.
async fn sent(ground: &Ground, which: &str) -> Vec<i64> {
    let sql = format!("SELECT {} FROM calls WHERE {which} ORDER BY 1", sent_at(ground));
    ground.lines(&sql).await.iter().map(|at| at.parse().expect("milliseconds")).collect()
}

async fn a_credit_that_runs_out_stops_all_daemons_and_one_update_lets_them_go_on(ground: &Ground) {
    const CONCURRENCY: u64 = 8;
    let options = Options { delay: Duration::from_millis(20), ..Options::default() };
    let mut mill = Mill::with(ground, options).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", &CONCURRENCY.to_string());
    for daemons in [1, 4] {
        fill(ground, 2000, "prompt", "'row ' || i").await;
        let running = start(&mill, daemons);
        mill.until_asked(300).await;
        mill.api.fail(Some("credit")).expect("it knows this error");
        mill.until("SELECT state FROM gates WHERE scope LIKE 'key:%'", "blocked").await;
        mill.until("SELECT count(*) FROM job_state WHERE state = 'running'", "0").await;
        let (refused, many) = (answered(&mill, 400), daemons as u64);
        assert!((1..=many * (CONCURRENCY + 2)).contains(&refused), "{refused} calls by {daemons} daemons");
        assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE failures > 0").await, "0");
        mill.api.fail(None).expect("it does");
        ground.run("UPDATE gates SET state = 'flowing' WHERE scope LIKE 'key:%'").await;
        until_complete(&mill, 2000, "").await;
        stop(running).await;
        mill.ledger_is_the_stand_ins().await;
        ground.run("DELETE FROM jobs").await;
        ground.run("DELETE FROM calls").await;
        mill.api.reset();
    }
}

async fn an_overload_costs_no_job_and_one_probe_an_interval_over_all_daemons(ground: &Ground) {
    // The product's times through sixty.
    let (open, open_max) = (Duration::from_millis(250), Duration::from_secs(1));
    let options = Options { delay: Duration::from_millis(50), ..Options::default() };
    let mut mill = Mill::with(ground, options).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "16");
    mill.set("PROMPTMILL_BREAKER__OPEN_MS", &open.as_millis().to_string());
    mill.set("PROMPTMILL_BREAKER__OPEN_MAX_MS", &open_max.as_millis().to_string());
    fill(ground, 1000, "prompt", "'row ' || i").await;
    let running = start(&mill, 4);
    mill.until_asked(150).await;
    let began = Instant::now();
    let probes = format!("SELECT count(*) >= {{}} FROM calls WHERE probe = {}", ground.either("1", "true"));
    let yes = ground.either("1", "t");
    mill.api.fail(Some("529")).expect("it knows this error");
    mill.until(&probes.replace("{}", "5"), yes).await;
    mill.api.fail(Some("500")).expect("it knows this error");
    mill.until(&probes.replace("{}", "10"), yes).await;
    mill.api.fail(None).expect("it does");
    let (outage, ended) = (began.elapsed(), Instant::now());
    until_complete(&mill, 1000, "").await;
    let recovered = ended.elapsed();
    stop(running).await;
    let sick = format!(
        "SELECT count(*) FROM calls WHERE probe = {} AND http_status >= 500",
        ground.either("1", "true")
    );
    let sick = ground.line(&sick).await.parse::<usize>().expect("a number");
    // Each interval is a fifth shorter at most, and the first two are short.
    let rest = outage.saturating_sub((open + open * 2).mul_f64(0.8)).as_secs_f64();
    let intervals = 3 + (rest / (open_max.as_secs_f64() * 0.8)) as usize;
    assert!(sick <= intervals, "{sick} probes in {intervals} intervals of {outage:?}");
    assert!(recovered < open_max.mul_f64(1.2) + Duration::from_secs(10), "{recovered:?}");
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn a_rate_limit_that_a_person_blocks_for_hours_is_free_at_their_word(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["first"]).await;
    assert_eq!(mill.drain().await.code, 0);
    let key = ground.line("SELECT key FROM accounts WHERE queue = ''").await;
    let scope = format!("rate:{key}/sonnet-5");
    let blocked = mill.run(&["gates", "block", &scope, "--for", "2h"]).await;
    assert_eq!(blocked.code, 0, "{}", blocked.stderr);
    mill.insert(&["behind it"]).await;
    ground.run("INSERT INTO jobs (prompt, model) VALUES ('another class', 'claude-haiku-4-5')").await;
    let daemon = mill.start();
    until_complete(&mill, 2, "").await;
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await, "1");
    let freed = mill.run(&["gates", "free", &scope]).await;
    assert_eq!(freed.code, 0, "{}", freed.stderr);
    until_complete(&mill, 3, "").await;
    stop(vec![daemon]).await;

    // As a daemon leaves it that dies while its class pauses.
    let past = ground.either("1600000000000", "'2020-09-13 12:26:40+00'");
    ground.run(&format!("UPDATE gates SET state = 'blocked', until = {past} WHERE scope = '{scope}'")).await;
    let daemon = mill.start();
    mill.until(&format!("SELECT state FROM gates WHERE scope = '{scope}'"), "flowing").await;
    stop(vec![daemon]).await;
}

async fn a_small_batch_behind_a_large_one_waits_no_more_than_two_claims(ground: &Ground) {
    const CONCURRENCY: usize = 16;
    // A round of calls takes longer than a look at the lanes is believed, as it does at any API.
    let options = Options { delay: Duration::from_millis(500), ..Options::default() };
    let mut mill = Mill::with(ground, options).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", &CONCURRENCY.to_string());
    fill(ground, ROWS, "prompt, batch", "'row ' || i, 'large'").await;
    let daemon = mill.start();
    mill.until_asked(64).await;
    // One whose lane comes before the large one's, and one behind it: no order of lanes may decide.
    fill(ground, 20, "prompt, batch", "'row ' || i, CASE WHEN i <= 10 THEN 'a' ELSE 'z' END").await;
    let before = mill.api.counts().total as usize;
    until_complete(&mill, 20, "AND batch <> 'large'").await;
    stop(vec![daemon]).await;
    let order = "SELECT j.batch FROM calls c JOIN jobs j ON j.id = c.job_id ORDER BY c.sent_at, c.job_id";
    let order = ground.lines(order).await;
    for small in ["a", "z"] {
        let first = order.iter().position(|batch| batch == small).expect("it was asked");
        assert!(first <= before + 2 * CONCURRENCY, "{first} calls, {before} before {small} was there");
        // A batch that nobody knows is trusted with one job, then two, then four.
        let last = order.iter().rposition(|batch| batch == small).expect("it was asked");
        assert!(last <= before + 7 * CONCURRENCY, "{last} calls, {before} before {small} was there");
    }
}

async fn a_queue_runs_no_more_than_its_limit_over_all_daemons(ground: &Ground) {
    // Long calls: on a busy machine too the next is claimed before the others end.
    let options = Options { delay: Duration::from_millis(200), ..Options::default() };
    let mill = Mill::with(ground, options).await;
    ground.run("INSERT INTO queues (name, max_running) VALUES ('narrow', 5)").await;
    fill(ground, 100, "prompt, queue", "'row ' || i, 'narrow'").await;
    let running = start(&mill, 4);
    until_complete(&mill, 100, "").await;
    stop(running).await;
    let at_once = mill.api.counts().in_flight_max;
    assert_eq!(at_once, 5);
    mill.ledger_is_the_stand_ins().await;
}
