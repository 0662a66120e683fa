//! Several accounts in one daemon: what stops one of them stops its queues and nothing else.

use promptmill::stand_in::{Options, Running, StandIn};

use super::harness::{Daemon, Mill};
use crate::support::{Ground, on_both};

on_both! {
    a_key_out_of_credit_stops_its_queue_and_the_other_flows_on,
    profiles_with_the_same_key_have_one_gate_one_probe_and_one_pace,
    the_same_model_at_two_servers_has_a_breaker_at_each,
    sighup_reads_the_key_of_each_profile_and_what_blocked_the_old_one_is_nobodys,
    a_drain_ends_what_it_can_where_the_key_of_one_profile_is_refused,
    a_profile_without_its_key_is_named_before_anything_is_asked,
}

/// A second account, for the queue `b`.
fn second(mill: &mut Mill<'_>, account: &str) {
    mill.set("SECOND_KEY", "sk-ant-second");
    let config = format!("[profiles.second]\n{account}\n[queues.b]\nprofile = \"second\"\n");
    std::fs::write(mill.home().join("promptmill.toml"), config).expect("written");
}

async fn server() -> Running {
    StandIn::start(Options::default()).await.expect("the stand-in starts")
}

fn at(api: &Running) -> String {
    format!("base_url = \"{}\"\nkey_env = \"SECOND_KEY\"", api.url())
}

async fn fill(ground: &Ground, queue: &str, jobs: usize) {
    let rows: Vec<String> = (0..jobs).map(|job| format!("('{queue} {job}', '{queue}')")).collect();
    ground.run(&format!("INSERT INTO jobs (prompt, queue) VALUES {}", rows.join(", "))).await;
}

async fn until_complete(mill: &Mill<'_>, queue: &str, jobs: usize) {
    let sql = format!("SELECT count(*) FROM results WHERE outcome = 'complete' AND queue = '{queue}'");
    mill.until(&sql, &jobs.to_string()).await;
}

async fn stop(daemon: Daemon) {
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

const REASONS: &str = "SELECT DISTINCT queue, CASE WHEN reason LIKE '%credit%' THEN 'credit' ELSE reason END \
                       FROM job_overview WHERE state = 'pending' ORDER BY queue";

async fn a_key_out_of_credit_stops_its_queue_and_the_other_flows_on(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let other = server().await;
    second(&mut mill, &at(&other));
    mill.api.fail(Some("credit")).expect("it knows this error");
    fill(ground, "default", 50).await;
    let daemon = mill.start();
    mill.until("SELECT state FROM gates WHERE scope LIKE 'key:%'", "blocked").await;
    fill(ground, "b", 50).await;
    until_complete(&mill, "b", 50).await;
    assert!(mill.api.counts().total <= 8, "{} calls for nothing", mill.api.counts().total);
    assert_eq!(ground.lines(REASONS).await, ["default|credit"]);
    // Whose gate it is shows; that of the other key holds nobody here.
    let shown = mill.run(&["gates"]).await.stdout;
    assert!(shown.contains("profile default; 50 pending jobs wait behind it"), "{shown}");
    let status = mill.run(&["status"]).await.stdout;
    assert!(status.contains("second"), "{status}");
    ground
        .run("INSERT INTO jobs (prompt, queue, run_at) SELECT 'later', 'b', run_at FROM jobs LIMIT 1")
        .await;
    until_complete(&mill, "b", 51).await;
    mill.api.fail(None).expect("it does");
    ground.run("UPDATE gates SET state = 'flowing' WHERE scope LIKE 'key:%'").await;
    until_complete(&mill, "default", 50).await;
    stop(daemon).await;
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE failures > 0").await, "0");
    assert_eq!(other.counts().total, 51);
    mill.holds().await;
}

async fn profiles_with_the_same_key_have_one_gate_one_probe_and_one_pace(ground: &Ground) {
    let options = Options { rpm: Some(60_000), ..Options::default() };
    let mut mill = Mill::with(ground, options).await;
    // The same server, the same key: once because nothing else is said.
    second(&mut mill, "");
    for queue in ["default", "b"] {
        fill(ground, queue, 1).await;
        until_complete_by_a_drain(&mill).await;
    }
    assert_eq!(ground.line("SELECT count(DISTINCT scope) FROM rates").await, "1", "one pace");
    mill.api.fail(Some("credit")).expect("it knows this error");
    fill(ground, "default", 20).await;
    fill(ground, "b", 20).await;
    let daemon = mill.start();
    mill.until("SELECT count(*) FROM gates WHERE scope LIKE 'key:%' AND state = 'blocked'", "1").await;
    mill.until("SELECT count(*) FROM job_state WHERE state = 'running'", "0").await;
    assert_eq!(ground.lines(REASONS).await, ["b|credit", "default|credit"]);
    mill.api.fail(None).expect("it does");
    ground.run("UPDATE gates SET state = 'flowing' WHERE scope LIKE 'key:%'").await;
    until_complete(&mill, "default", 21).await;
    until_complete(&mill, "b", 21).await;
    stop(daemon).await;
    let probes = format!("SELECT count(*) FROM calls WHERE probe = {}", ground.either("1", "true"));
    assert_eq!(ground.line(&probes).await, "1", "one probe for both");
    mill.ledger_is_the_stand_ins().await;
}

async fn until_complete_by_a_drain(mill: &Mill<'_>) {
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

async fn the_same_model_at_two_servers_has_a_breaker_at_each(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let other = server().await;
    second(&mut mill, &at(&other));
    mill.set("PROMPTMILL_BREAKER__FAILURES_IN_A_ROW", "3");
    mill.set("PROMPTMILL_BREAKER__OPEN_MS", "60000");
    mill.set("PROMPTMILL_BREAKER__OPEN_MAX_MS", "60000");
    mill.api.fail(Some("529")).expect("it knows this error");
    fill(ground, "default", 10).await;
    let daemon = mill.start();
    let model = "SELECT scope, state FROM gates WHERE scope LIKE 'model:%'";
    mill.until(model, "model:default/claude-sonnet-5-5|blocked").await;
    fill(ground, "b", 30).await;
    until_complete(&mill, "b", 30).await;
    assert_eq!(ground.lines(model).await, ["model:default/claude-sonnet-5-5|blocked"]);
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE queue <> 'b'").await, "0");
    stop(daemon).await;
    assert_eq!(other.counts().total, 30);
}

async fn sighup_reads_the_key_of_each_profile_and_what_blocked_the_old_one_is_nobodys(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let file = mill.home().join("second.key");
    std::fs::write(&file, "bad-key\n").expect("written");
    second(&mut mill, &format!("key_file = \"{}\"", file.display()));
    fill(ground, "b", 5).await;
    let daemon = mill.start();
    let blocked = "SELECT count(*) FROM gates WHERE scope LIKE 'key:%' AND state = 'blocked'";
    mill.until(blocked, "1").await;
    mill.until(
        "SELECT DISTINCT reason LIKE '%401%' FROM job_overview WHERE queue = 'b'",
        ground.either("1", "t"),
    )
    .await;
    fill(ground, "default", 5).await;
    until_complete(&mill, "default", 5).await;
    let keys = async || ground.lines("SELECT key FROM accounts ORDER BY queue").await;
    let before = keys().await;
    std::fs::write(&file, "good-key\n").expect("written");
    daemon.signal("-HUP");
    until_complete(&mill, "b", 5).await;
    mill.until_said(&daemon, "the key file of profile second was read again").await;
    mill.until("SELECT count(DISTINCT key) FROM accounts WHERE queue = ''", "1").await;
    mill.until(&format!("SELECT count(*) FROM accounts WHERE queue = 'b' AND key <> '{}'", before[1]), "1")
        .await;
    assert_eq!(keys().await[0], before[0], "the other key is what it was");
    stop(daemon).await;
    // The old key's gate blocks for ever, and explains no job any more.
    assert_eq!(ground.line(blocked).await, "1");
    fill(ground, "b", 1).await;
    assert_eq!(ground.lines(REASONS).await, ["b|NULL"]);
}

async fn a_drain_ends_what_it_can_where_the_key_of_one_profile_is_refused(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    second(&mut mill, "key_env = \"SECOND_KEY\"");
    mill.set("SECOND_KEY", "bad-key");
    fill(ground, "default", 5).await;
    fill(ground, "b", 5).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 8, "{}", ran.stderr);
    assert!(ran.stderr.contains("5 behind a gate"), "{}", ran.stderr);
    assert_eq!(
        ground
            .lines("SELECT queue, state, count(*) FROM job_state GROUP BY queue, state ORDER BY queue")
            .await,
        ["b|pending|5", "default|done|5"]
    );
    // Where it is the only one that is used, the exit code says it.
    let ran = mill.run(&["run", "--drain", "--queue", "b"]).await;
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert!(ran.stderr.contains("profile second"), "{}", ran.stderr);
}

async fn a_profile_without_its_key_is_named_before_anything_is_asked(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    second(&mut mill, "key_env = \"THIRD_KEY\"");
    fill(ground, "default", 1).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert!(ran.stderr.contains("profile second: there is no API key: set THIRD_KEY"), "{}", ran.stderr);
    assert_eq!(mill.api.counts().total, 0);
    assert_eq!(mill.run(&["run", "--drain", "--queue", "default"]).await.code, 0, "nobody needs it");
}
