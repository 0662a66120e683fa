//! Jobs that wait for tools, tools that the worker runs itself, and what a resuming job is told of both.

use std::time::Duration;

use futures_util::future::join_all;
use promptmill::domain::job::{Claimed, Lease};
use promptmill::domain::ledger::{Back, Release};
use promptmill::domain::tool::{Asked, PastTool, ToolCall, ToolContent, ToolResult};
use promptmill::store::StoreError;
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::{Bench, call, end, jobs, one_job};
use crate::support::{Ground, on_both};

on_both!(
    a_job_that_waits_for_tools_holds_no_slot,
    a_wait_that_is_tried_again_opens_nothing_twice,
    a_wait_for_what_is_answered_sends_the_job_on_at_once,
    a_lost_lease_opens_and_answers_nothing,
    a_worker_says_that_it_starts_a_tool_before_it_does,
    a_worker_answers_its_calls_once_and_keeps_its_job,
    what_no_text_can_hold_is_replaced,
    blocks_that_are_no_array_are_refused,
    a_claim_brings_the_tool_calls_of_its_run_in_order,
    a_result_that_cannot_be_shown_is_the_account_of_a_failure,
    a_waiting_job_that_was_not_sent_on_is_found,
    many_servers_at_once_leave_no_job_waiting,
    a_whole_answer_ends_a_job_that_waits,
    a_deadline_ends_a_job_that_waits,
    waiting_jobs_are_counted_apart,
);

const STATE: &str =
    "SELECT state, claims, claimed_by, failures, deferrals, reason FROM job_state ORDER BY job_id";
const CALLS: &str = "SELECT job_id, claim, seq, position, run, call_id, taken_by, result FROM tool_calls
                      ORDER BY job_id, claim, seq, position";

fn tool(position: i32, call_id: &str) -> ToolCall {
    let input = format!(r#"{{"b": {position}, "a": 1.50}}"#);
    ToolCall { position, call_id: call_id.to_owned(), name: "weather".to_owned(), input }
}

/// The calls of the first reply of a claim.
fn asked(lease: &Lease, calls: &[&str]) -> Asked {
    let tools = calls.iter().enumerate().map(|(at, call_id)| tool(at as i32, call_id)).collect();
    Asked { claim: lease.claim, seq: 1, tools }
}

fn wait(lease: Lease, asked: Asked) -> Release {
    let mut asking = call(1);
    asking.stop_reason = Some("tool_use".to_owned());
    Release {
        lease,
        back: Back::Waiting(asked),
        failures: 1,
        deferrals: 2,
        reason: Some("waits for tools".to_owned()),
        call: Some(asking),
    }
}

fn said(text: &str) -> ToolResult {
    ToolResult { content: ToolContent::Text(text.to_owned()), is_error: false }
}

/// A job that waits for calls `a` and `b`.
async fn waiting(ground: &Ground) -> (Bench, Lease) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    let written = bench.release(wait(lease, asked(&lease, &["a", "b"]))).await;
    assert_eq!(written.done, [lease]);
    (bench, lease)
}

async fn answer(ground: &Ground, call: &str, result: &str) {
    let sql = format!("UPDATE tool_calls SET result = '{result}' WHERE call_id = '{call}'");
    assert_eq!(ground.run(&sql).await, 1);
}

async fn a_job_that_waits_for_tools_holds_no_slot(ground: &Ground) {
    let (bench, lease) = waiting(ground).await;
    assert_eq!(ground.line(STATE).await, "waiting|1|NULL|1|2|waits for tools");
    assert_eq!(ground.line("SELECT claim, seq, stop_reason FROM calls").await, "1|1|tool_use");
    assert_eq!(ground.lines(CALLS).await, ["1|1|1|0|1|a|NULL|NULL", "1|1|1|1|1|b|NULL|NULL"]);
    assert_eq!(
        ground.line("SELECT name, input, worker FROM tool_calls WHERE call_id = 'b'").await,
        format!(r#"weather|{{"b": 1, "a": 1.50}}|{}"#, bench.worker)
    );
    assert!(bench.claim(1).await.is_empty(), "nothing can run");
    assert_eq!(bench.store.lost(&[lease]).await.expect("a look"), [lease]);
    answer(ground, "a", "sunny").await;
    assert!(bench.claim(1).await.is_empty(), "half of it is missing");
    answer(ground, "b", "").await;
    assert_eq!(bench.lease().await.claim, 2);
}

async fn a_wait_that_is_tried_again_opens_nothing_twice(ground: &Ground) {
    let (bench, lease) = waiting(ground).await;
    let again = async || {
        let written = bench.release(wait(lease, asked(&lease, &["a", "b"]))).await;
        assert_eq!((written.done, written.lost), (vec![lease], vec![]));
        (ground.line(STATE).await, ground.lines(CALLS).await)
    };
    let before = (ground.line(STATE).await, ground.lines(CALLS).await);
    assert_eq!(again().await, before);
    answer(ground, "a", "sunny").await;
    let before = (ground.line(STATE).await, ground.lines(CALLS).await);
    assert_eq!(again().await, before);
    answer(ground, "b", "rainy").await;
    let before = (ground.line(STATE).await, ground.lines(CALLS).await);
    assert_eq!(again().await, before);
    assert!(before.0.starts_with("pending|1|"), "{}", before.0);
}

async fn a_wait_for_what_is_answered_sends_the_job_on_at_once(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    let asked = asked(&lease, &["a", "b"]);
    assert!(bench.store.open_tools(&lease, &asked, bench.worker).await.expect("opened"));
    for position in [0, 1] {
        let answered = bench.store.answer_tool(&lease, 1, 1, position, &said("done")).await;
        assert!(answered.expect("an answer"));
    }
    // A call that was not opened before stays open; those that were keep what they have.
    let mut more = asked.clone();
    more.tools.push(tool(2, "c"));
    let written = bench.release(wait(lease, asked)).await;
    assert_eq!(written.done, [lease]);
    assert_eq!(ground.line(STATE).await, "pending|1|NULL|1|2|NULL");
    let lease = bench.lease().await;
    assert_eq!(bench.release(wait(lease, more)).await.done, [lease]);
    assert_eq!(ground.line(STATE).await, "waiting|2|NULL|1|2|waits for tools");
    assert_eq!(ground.line("SELECT call_id FROM open_tool_calls").await, "c");
}

async fn a_lost_lease_opens_and_answers_nothing(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let old = bench.lease().await;
    bench.store.rescue(bench.worker, 10).await.expect("a rescue");
    let asked = asked(&old, &["a"]);
    let written = bench.release(wait(old, asked.clone())).await;
    assert_eq!((written.done, written.lost), (vec![], vec![old]));
    assert!(!bench.store.open_tools(&old, &asked, bench.worker).await.expect("a look"));
    assert_eq!(ground.lines(CALLS).await, Vec::<String>::new());
    assert!(ground.line(STATE).await.starts_with("pending|2|"));
    assert_eq!(
        ground.line("SELECT claim, late, stop_reason FROM calls").await,
        ground.either("1|1|tool_use", "1|t|tool_use"),
        "it was paid for"
    );

    let bench = Bench::on(ground).await;
    let new = bench.lease().await;
    let asked = Asked { claim: new.claim, ..asked };
    assert!(bench.store.open_tools(&new, &asked, bench.worker).await.expect("opened"));
    assert!(!bench.store.answer_tool(&old, new.claim, 1, 0, &said("late")).await.expect("a look"));
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert!(!bench.store.answer_tool(&new, new.claim, 1, 0, &said("late")).await.expect("a look"));
    assert_eq!(ground.line("SELECT count(result) FROM tool_calls").await, "0");
}

async fn a_worker_says_that_it_starts_a_tool_before_it_does(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    let asked = asked(&lease, &["a", "b"]);
    assert!(bench.store.open_tools(&lease, &asked, bench.worker).await.expect("opened"));
    assert!(bench.store.answer_tool(&lease, 1, 1, 0, &said("sunny")).await.expect("an answer"));
    let first = format!("worker {}", bench.worker);
    assert_eq!(
        ground.lines(CALLS).await,
        [format!("1|1|1|0|1|a|{first}|sunny"), format!("1|1|1|1|1|b|{first}|NULL")]
    );
    let taken = "SELECT count(*) FROM tool_calls WHERE taken_at = created_at";
    assert_eq!(ground.line(taken).await, "2");
    assert_eq!(ground.lines("SELECT call_id FROM open_tool_calls").await, Vec::<String>::new());

    bench.store.rescue(bench.worker, 10).await.expect("a rescue");
    let bench = Bench::on(ground).await;
    let claimed = bench.claim(1).await.remove(0);
    let taken: Vec<(bool, bool)> =
        claimed.tools.iter().map(|tool| (tool.taken, tool.result.is_some())).collect();
    assert_eq!(
        taken,
        [(true, true), (true, false)],
        "the second was started, and nobody knows what became of it"
    );
    assert!(bench.store.open_tools(&claimed.lease, &asked, bench.worker).await.expect("opened"));
    let second = format!("worker {}", bench.worker);
    assert_eq!(
        ground.lines(CALLS).await,
        [format!("1|1|1|0|1|a|{first}|sunny"), format!("1|1|1|1|1|b|{second}|NULL")]
    );
    assert!(ground.line(STATE).await.starts_with("running|3|"));
}

async fn a_worker_answers_its_calls_once_and_keeps_its_job(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    assert!(bench.store.open_tools(&lease, &asked(&lease, &["a"]), bench.worker).await.expect("opened"));
    let blocks = r#"[{"type":"text", "text":"z"}]"#.to_owned();
    let failed = ToolResult { content: ToolContent::Blocks(blocks.clone()), is_error: true };
    for result in [failed, said("another")] {
        assert!(bench.store.answer_tool(&lease, 1, 1, 0, &result).await.expect("an answer"));
    }
    assert_eq!(
        ground
            .line("SELECT result, result_content, is_error FROM tool_calls WHERE answered_at IS NOT NULL")
            .await,
        format!("NULL|{blocks}|{}", ground.either("1", "t"))
    );
    assert_eq!(ground.line(STATE).await, format!("running|1|{}|0|0|NULL", bench.worker));
    assert!(bench.store.lost(&[lease]).await.expect("a look").is_empty());
}

async fn what_no_text_can_hold_is_replaced(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    let odd = ToolCall {
        position: 0,
        call_id: "a\0".to_owned(),
        name: "na\0me".to_owned(),
        input: r#"{"a":"\u0000\ud800"}"#.to_owned(),
    };
    let asked = Asked { claim: 1, seq: 1, tools: vec![odd, tool(1, "b")] };
    assert!(bench.store.open_tools(&lease, &asked, bench.worker).await.expect("opened"));
    let blocks = r#"[{"type":"text","text":"\u0000"}]"#.to_owned();
    let results = [said("x\0y"), ToolResult { content: ToolContent::Blocks(blocks), is_error: false }];
    for (position, result) in results.iter().enumerate() {
        let answered = bench.store.answer_tool(&lease, 1, 1, position as i32, result).await;
        assert!(answered.expect("an answer"));
    }
    assert_eq!(
        ground
            .lines("SELECT call_id, name, input, result, result_content FROM tool_calls ORDER BY position")
            .await,
        [
            "a\u{fffd}|na\u{fffd}me|{\"a\":\"\\ufffd\\ufffd\"}|x\u{fffd}y|NULL",
            r#"b|weather|{"b": 1, "a": 1.50}|NULL|[{"type":"text","text":"\ufffd"}]"#
        ]
    );
}

async fn blocks_that_are_no_array_are_refused(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    assert!(bench.store.open_tools(&lease, &asked(&lease, &["a"]), bench.worker).await.expect("opened"));
    for blocks in ["{}", "no JSON"] {
        let result = ToolResult { content: ToolContent::Blocks(blocks.to_owned()), is_error: false };
        let refused = bench.store.answer_tool(&lease, 1, 1, 0, &result).await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{blocks}: {refused:?}");
    }
    assert!(bench.store.answer_tool(&lease, 1, 1, 0, &said("text")).await.expect("an answer"));
}

/// What a claim says of tool calls, in short.
fn brought(claimed: &Claimed) -> Vec<(i64, i32, i32, &str, Option<&str>)> {
    fn text(tool: &PastTool) -> Option<&str> {
        match &tool.result.as_ref()?.content {
            ToolContent::Text(text) | ToolContent::Blocks(text) => Some(text),
        }
    }
    fn brought(tool: &PastTool) -> (i64, i32, i32, &str, Option<&str>) {
        let PastTool { claim, seq, call, .. } = tool;
        (*claim, *seq, call.position, call.call_id.as_str(), text(tool))
    }
    claimed.tools.iter().map(brought).collect()
}

async fn a_claim_brings_the_tool_calls_of_its_run_in_order(ground: &Ground) {
    let (bench, _) = waiting(ground).await;
    jobs(ground, 1, "queue", "'default'").await;
    ground.run("UPDATE tool_calls SET result = 'sunny' WHERE call_id = 'a'").await;
    let blocks = r#"[{"type":"text",  "text":"rainy"}]"#;
    ground
        .run(&format!(
            "UPDATE tool_calls SET result_content = '{blocks}', is_error = {} WHERE call_id = 'b'",
            ground.either("1", "TRUE")
        ))
        .await;
    let mut claimed = bench.claim(2).await;
    claimed.sort_by_key(|job| job.lease.job);
    assert_eq!(claimed[1].tools, [], "another job has none");
    let first = claimed.remove(0);
    assert_eq!(brought(&first), [(1, 1, 0, "a", Some("sunny")), (1, 1, 1, "b", Some(blocks))]);
    assert_eq!(first.tools[0].call, tool(0, "a"));
    let flags: Vec<(bool, bool)> = first
        .tools
        .iter()
        .map(|tool| (tool.taken, tool.result.as_ref().is_some_and(|result| result.is_error)))
        .collect();
    assert_eq!(flags, [(false, false), (false, true)]);

    // The next turn, of which one call is answered before its worker dies.
    let next = asked(&first.lease, &["d", "c"]);
    assert!(bench.store.open_tools(&first.lease, &next, bench.worker).await.expect("opened"));
    assert!(bench.store.answer_tool(&first.lease, 2, 1, 1, &said("hail")).await.expect("an answer"));
    bench.store.rescue(bench.worker, 10).await.expect("a rescue");
    let bench = Bench::on(ground).await;
    let claimed = bench.claim(2).await;
    let again = claimed.iter().find(|job| job.lease.job == first.lease.job).expect("the job");
    let turns = [
        (1, 1, 0, "a", Some("sunny")),
        (1, 1, 1, "b", Some(blocks)),
        (2, 1, 0, "d", None),
        (2, 1, 1, "c", Some("hail")),
    ];
    assert_eq!(brought(again), turns);

    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 1").await;
    assert_eq!(bench.claim(1).await[0].tools, [], "another run");
}

async fn a_result_that_cannot_be_shown_is_the_account_of_a_failure(ground: &Ground) {
    let (bench, _) = waiting(ground).await;
    ground.run("UPDATE tool_calls SET result_content = '[1]' WHERE call_id = 'a'").await;
    // SQLite keeps any bytes as TEXT, and a CHECK can be left out.
    let no_text = ground.either(
        "PRAGMA ignore_check_constraints = ON;
         UPDATE tool_calls SET result = CAST(x'61ff' AS TEXT) WHERE call_id = 'b';
         PRAGMA ignore_check_constraints = OFF",
        "UPDATE tool_calls SET result_content = '[[]]' WHERE call_id = 'b'",
    );
    ground.run(no_text).await;
    let claimed = bench.claim(1).await.remove(0);
    let results: Vec<&ToolResult> = claimed.tools.iter().filter_map(|tool| tool.result.as_ref()).collect();
    assert_eq!(results.len(), 2);
    for (result, why) in results.iter().zip(["content blocks", ground.either("UTF-8", "content blocks")]) {
        let ToolContent::Text(text) = &result.content else { panic!("not a text: {result:?}") };
        assert!(result.is_error && text.contains("cannot be shown") && text.contains(why), "{result:?}");
    }
}

async fn a_waiting_job_that_was_not_sent_on_is_found(ground: &Ground) {
    jobs(ground, 3, "queue", "'default'").await;
    let bench = Bench::on(ground).await;
    for claimed in bench.claim(3).await {
        bench.release(wait(claimed.lease, asked(&claimed.lease, &["a"]))).await;
    }
    let sweep = async |limit| bench.store.promote_answered(limit).await.expect("a sweep");
    assert_eq!(sweep(10).await, 0);
    // As two servers leave it that each took the other's answer for missing.
    ground
        .run(&format!(
            "UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 7 WHERE job_id < 3;
             UPDATE tool_calls SET result = 'x', answered_at = {} WHERE job_id < 3;
             UPDATE job_state SET state = 'waiting', claims = claims - 1, claimed_by = NULL WHERE job_id < 3",
            ground.at(0)
        ))
        .await;
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'waiting'").await, "3");
    assert_eq!(sweep(1).await, 1);
    assert_eq!(sweep(10).await, 1);
    assert_eq!(sweep(10).await, 0);
    assert_eq!(
        ground.lines("SELECT state, claims, reason FROM job_state ORDER BY job_id").await,
        ["pending|1|NULL", "pending|1|NULL", "waiting|1|waits for tools"]
    );
}

async fn many_servers_at_once_leave_no_job_waiting(ground: &Ground) {
    jobs(ground, 10, "queue", "'default'").await;
    let bench = Bench::on(ground).await;
    for claimed in bench.claim(10).await {
        let calls = ["a", "b", "c", "d", "e"];
        bench.release(wait(claimed.lease, asked(&claimed.lease, &calls))).await;
    }
    let answers: Vec<String> = (1..=10)
        .flat_map(|job| {
            (0..5).map(move |at| {
                format!("UPDATE tool_calls SET result = 'x' WHERE job_id = {job} AND position = {at}")
            })
        })
        .collect();
    assert_eq!(join_all(answers.iter().map(|sql| ground.run(sql))).await, [1; 50]);
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await, "10");
}

async fn a_whole_answer_ends_a_job_that_waits(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let old = bench.lease().await;
    bench.store.rescue(bench.worker, 10).await.expect("a rescue");
    let bench = Bench::on(ground).await;
    let new = bench.lease().await;
    bench.release(wait(new, asked(&new, &["a", "b"]))).await;
    answer(ground, "a", "sunny").await;
    let written = bench.settle(vec![end(old)]).await;
    assert_eq!((written.done, written.lost), (vec![old], vec![]));
    assert_eq!(ground.line("SELECT state, claims FROM job_state").await, "done|4");
    assert_eq!(ground.line("SELECT call_id FROM tool_calls").await, "a");
    // Whoever comes late with the wait changes nothing.
    let written = bench.release(wait(new, asked(&new, &["a", "b"]))).await;
    assert_eq!(written.lost, [new]);
    assert_eq!(ground.line("SELECT call_id FROM tool_calls").await, "a");
}

async fn a_deadline_ends_a_job_that_waits(ground: &Ground) {
    let (bench, lease) = waiting(ground).await;
    ground.run(&format!("UPDATE job_state SET deadline_at = {}", ground.at(-1))).await;
    assert_eq!(bench.store.expire(10).await.expect("an end"), [lease.job]);
    assert_eq!(
        ground.line("SELECT outcome, error, calls FROM results").await,
        "expired|its deadline passed while it was waiting|1"
    );
    assert_eq!(ground.line("SELECT state, claims FROM job_state").await, "done|2");
    assert_eq!(ground.lines(CALLS).await, Vec::<String>::new());
}

async fn waiting_jobs_are_counted_apart(ground: &Ground) {
    let (bench, _) = waiting(ground).await;
    jobs(ground, 2, "queue", "'other'").await;
    let count = async |queues: &[&str]| {
        let mut wanted = bench.wanted(1);
        wanted.queues = queues.iter().map(|queue| (*queue).to_owned()).collect();
        let left = bench.store.backlog(&wanted, Duration::from_mins(1)).await.expect("a count");
        (left.pending, left.running, left.waiting)
    };
    assert_eq!(count(&[]).await, (2, 0, 1));
    assert_eq!(count(&["other"]).await, (2, 0, 0));
}

/// Connections of a tool server's own.
async fn servers(ground: &Ground) -> PgPool {
    let path = ground.schema().to_owned();
    Ground::postgres_pool(|options| options.options([("search_path", path)])).await
}

/// Runs a statement while something is held that it waits for; `held` is given back when it waits,
/// or when it is done without waiting.
async fn while_held(servers: &PgPool, sql: &str, held: impl AsyncFnOnce()) -> Result<u64, String> {
    let mut server = servers.acquire().await.expect("a connection");
    let pid: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *server).await.expect("a number");
    let waits = async {
        let waits = "SELECT count(*) > 0 FROM pg_locks WHERE pid = $1 AND NOT granted";
        while !sqlx::query_scalar::<_, bool>(waits).bind(pid).fetch_one(servers).await.expect("a look") {}
    };
    let mut answer = std::pin::pin!(server.execute(AssertSqlSafe(sql.to_owned())));
    tokio::select! {
        done = &mut answer => {
            held().await;
            return done.map(|done| done.rows_affected()).map_err(|error| error.to_string());
        }
        () = waits => held().await,
    }
    answer.await.map(|done| done.rows_affected()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn two_servers_that_answer_the_last_two_calls_at_once_send_the_job_on() {
    let ground = Ground::postgres().await;
    let (_bench, _) = waiting(&ground).await;
    let servers = servers(&ground).await;
    let mut first = servers.begin().await.expect("a transaction");
    first.execute("UPDATE tool_calls SET result = 'sunny' WHERE call_id = 'a'").await.expect("an answer");
    // Neither sees the other's answer.
    let second =
        while_held(&servers, "UPDATE tool_calls SET result = 'rainy' WHERE call_id = 'b'", async || {
            first.commit().await.expect("it is answered");
        });
    assert_eq!(second.await, Ok(1));
    assert_eq!(ground.line("SELECT state FROM job_state").await, "pending");
    servers.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_cancel_and_an_answer_at_the_same_moment_do_not_lock_each_other_out() {
    let ground = Ground::postgres().await;
    let (_bench, _) = waiting(&ground).await;
    let servers = servers(&ground).await;
    let mut person = servers.begin().await.expect("a transaction");
    person.execute("SELECT FROM job_state FOR UPDATE").await.expect("the row");
    let answer = while_held(&servers, "UPDATE tool_calls SET result = 'x' WHERE call_id = 'a'", async || {
        person.execute("UPDATE job_state SET state = 'cancelled'").await.expect("a cancel");
        person.commit().await.expect("it is cancelled");
    });
    assert_eq!(answer.await, Ok(1));
    assert_eq!(ground.line("SELECT state, claims FROM job_state").await, "done|2");
    assert_eq!(ground.line("SELECT call_id, result FROM tool_calls").await, "a|x");
    servers.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_deleted_job_takes_a_call_along_that_is_answered_at_the_same_moment() {
    let ground = Ground::postgres().await;
    let (_bench, _) = waiting(&ground).await;
    let servers = servers(&ground).await;
    for set in ["taken_by = 'me'", "result = 'x'"] {
        let mut person = servers.begin().await.expect("a transaction");
        person.execute("SELECT FROM job_state FOR UPDATE").await.expect("the row");
        let sql = format!("UPDATE tool_calls SET {set} WHERE call_id = 'a'");
        let answer = while_held(&servers, &sql, async || {
            person.execute("DELETE FROM jobs").await.expect("it is deleted");
            person.commit().await.expect("it is gone");
        });
        assert_eq!(answer.await, Ok(1));
        assert_eq!(ground.line("SELECT count(*) FROM tool_calls").await, "0", "{set}");
        waiting(&ground).await;
    }
    servers.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_locked_job_is_told_from_a_lost_one() {
    let ground = Ground::postgres().await;
    one_job(&ground).await;
    let bench = Bench::on(&ground).await;
    let lease = bench.lease().await;
    let asked = asked(&lease, &["a"]);
    let servers = servers(&ground).await;
    let mut person = servers.begin().await.expect("a transaction");
    person.execute("SELECT FROM job_state FOR UPDATE").await.expect("the row");
    let opened = bench.store.open_tools(&lease, &asked, bench.worker).await;
    assert!(matches!(opened, Err(StoreError::Locked(_))), "{opened:?}");
    person.rollback().await.expect("it lets go");
    assert!(bench.store.open_tools(&lease, &asked, bench.worker).await.expect("opened"));
    servers.close().await;
    ground.close().await;
}

#[tokio::test]
async fn many_servers_at_once_share_a_sqlite_file() {
    let ground = Ground::sqlite().await;
    jobs(&ground, 5, "queue", "'default'").await;
    let bench = Bench::on(&ground).await;
    for claimed in bench.claim(5).await {
        bench.release(wait(claimed.lease, asked(&claimed.lease, &["a", "b", "c", "d"]))).await;
    }
    let file = format!("sqlite:{}", ground.file().display());
    // Each call has a server with a connection of its own, as programs have them.
    let server = async |job: i64, at: i32| {
        let mut server = sqlx::SqliteConnection::connect(&file).await.expect("a connection");
        let sql = format!("UPDATE tool_calls SET result = 'x' WHERE job_id = {job} AND position = {at}");
        let done = server.execute(AssertSqlSafe(sql)).await.expect("an answer").rows_affected();
        server.close().await.expect("it closes");
        done
    };
    let servers = (1..=5).flat_map(|job| (0..4).map(move |at| (job, at)));
    assert_eq!(join_all(servers.map(|(job, at)| server(job, at))).await, [1; 20]);
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await, "5");
    ground.close().await;
}
