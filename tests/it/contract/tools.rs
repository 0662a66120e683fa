//! Tool calls as a tool server meets them: plain SQL, with no daemon anywhere.

use crate::support::{Ground, on_both};

on_both! {
    the_last_answer_sends_the_job_on,
    one_statement_may_answer_all,
    blocks_are_an_answer_and_so_is_an_empty_text,
    an_answer_to_one_job_sends_no_other_on,
    an_open_call_is_shown_while_its_job_waits,
    who_takes_a_call_says_so,
    an_answered_call_is_not_changed,
    the_same_answer_again_changes_nothing,
    a_call_has_one_kind_of_result,
    blocks_are_a_json_array,
    only_the_calls_of_a_waiting_job_are_answered,
    what_the_model_asked_is_not_changed,
    answered_at_is_nobodys_to_set,
    nobody_inserts_a_call,
    a_call_of_a_waiting_job_is_not_deleted,
    a_waiting_job_is_not_pending_while_a_call_is_open,
    a_waiting_job_without_open_calls_can_be_made_pending,
    a_cancel_takes_the_open_calls_and_leaves_the_answered,
    a_deadline_takes_the_open_calls_and_leaves_the_answered,
    an_answer_of_another_worker_takes_the_open_calls,
    running_again_takes_the_open_calls_and_leaves_the_answered,
    a_call_of_an_earlier_run_does_not_count,
    a_workers_own_answer_leaves_its_job_running,
    an_overview_says_how_many_results_a_job_waits_for,
}

const JOB: &str = "SELECT state, run, claims, claimed_by, reason FROM job_state WHERE job_id = 1";
const CALLS: &str =
    "SELECT call_id, result, answered_at IS NOT NULL AS answered FROM tool_calls ORDER BY call_id";

/// Opens calls of a running job, as its worker does.
async fn open(ground: &Ground, job: i64, calls: &[&str]) {
    let rows: Vec<String> = calls
        .iter()
        .enumerate()
        .map(|(at, call)| format!("({job}, 1, 1, {at}, 1, '{call}', 'weather', '{{\"city\":\"Paris\"}}', 7)"))
        .collect();
    ground
        .run(&format!(
            "INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, input, worker) VALUES {}",
            rows.join(", ")
        ))
        .await;
}

/// A job that a worker runs.
async fn running(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('What is the weather?', 'b')").await;
    ground
        .run("UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 7 WHERE state = 'pending'")
        .await;
}

/// A job that waits for these calls.
async fn waiting(ground: &Ground, calls: &[&str]) {
    running(ground).await;
    let job = ground.line("SELECT max(job_id) FROM job_state").await.parse().expect("an id");
    open(ground, job, calls).await;
    ground
        .run(&format!(
            "UPDATE job_state SET state = 'waiting', claimed_by = NULL, reason = 'tools' WHERE job_id = {job}"
        ))
        .await;
}

async fn answer(ground: &Ground, call: &str) {
    let sql = format!("UPDATE tool_calls SET result = 'sunny' WHERE job_id = 1 AND call_id = '{call}'");
    assert_eq!(ground.run(&sql).await, 1);
}

fn yes<'a>(ground: &Ground) -> &'a str {
    match ground.kind() {
        crate::support::Kind::Sqlite => "1",
        crate::support::Kind::Postgres => "t",
    }
}

fn no<'a>(ground: &Ground) -> &'a str {
    match ground.kind() {
        crate::support::Kind::Sqlite => "0",
        crate::support::Kind::Postgres => "f",
    }
}

async fn the_last_answer_sends_the_job_on(ground: &Ground) {
    waiting(ground, &["a", "b"]).await;
    ground.run("UPDATE job_state SET priority = 1").await;
    answer(ground, "b").await;
    assert_eq!(ground.line(JOB).await, "waiting|1|1|NULL|tools");
    let (yes, no) = (yes(ground), no(ground));
    assert_eq!(ground.lines(CALLS).await, [format!("a|NULL|{no}"), format!("b|sunny|{yes}")]);
    let since = ground.line(&format!("SELECT {}", ground.at(0))).await;
    answer(ground, "a").await;
    assert_eq!(ground.line(JOB).await, "pending|1|1|NULL|NULL");
    let fresh = format!(
        "SELECT count(*) FROM job_state s JOIN tool_calls t ON t.call_id = 'a'
          WHERE s.available_at BETWEEN {since} AND {now} AND t.answered_at BETWEEN {since} AND {now}",
        now = ground.at(0),
        since = if ground.either("s", "p") == "s" { since } else { format!("'{since}'") },
    );
    assert_eq!(ground.line(&fresh).await, "1");
}

async fn one_statement_may_answer_all(ground: &Ground) {
    waiting(ground, &["a", "b", "c"]).await;
    waiting(ground, &["d", "e"]).await;
    assert_eq!(ground.run("UPDATE tool_calls SET result = upper(name) WHERE call_id <> 'e'").await, 4);
    let states = "SELECT state FROM job_state ORDER BY job_id";
    assert_eq!(ground.lines(states).await, ["pending", "waiting"]);
    let open = "UPDATE tool_calls SET result = 'x' WHERE result IS NULL AND result_content IS NULL";
    assert_eq!(ground.run(open).await, 1);
    assert_eq!(ground.lines(states).await, ["pending", "pending"]);
}

async fn blocks_are_an_answer_and_so_is_an_empty_text(ground: &Ground) {
    waiting(ground, &["a", "b"]).await;
    let blocks = r#"[{"type": "text",  "text": "z"}]"#;
    let sql = format!(
        "UPDATE tool_calls SET result_content = '{blocks}', is_error = {} WHERE call_id = 'a'",
        ground.either("1", "TRUE")
    );
    ground.run(&sql).await;
    assert_eq!(ground.line(JOB).await, "waiting|1|1|NULL|tools");
    assert_eq!(ground.line("SELECT result_content FROM tool_calls WHERE call_id = 'a'").await, blocks);
    ground.run("UPDATE tool_calls SET result = '' WHERE call_id = 'b'").await;
    assert_eq!(ground.line(JOB).await, "pending|1|1|NULL|NULL");
}

async fn an_answer_to_one_job_sends_no_other_on(ground: &Ground) {
    waiting(ground, &["a"]).await;
    waiting(ground, &["a"]).await;
    answer(ground, "a").await;
    assert_eq!(ground.lines("SELECT state FROM job_state ORDER BY job_id").await, ["pending", "waiting"]);
}

async fn an_open_call_is_shown_while_its_job_waits(ground: &Ground) {
    running(ground).await;
    open(ground, 1, &["a", "b"]).await;
    let shown = "SELECT job_id, claim, seq, position, queue, batch, call_id, name, input, taken_by, taken_at
                   FROM open_tool_calls WHERE created_at IS NOT NULL ORDER BY position";
    assert_eq!(ground.lines(shown).await, Vec::<String>::new(), "its worker sees to it");
    ground.run("UPDATE job_state SET state = 'waiting', claimed_by = NULL").await;
    let row =
        |at: i32, call: &str| format!("1|1|1|{at}|default|b|{call}|weather|{{\"city\":\"Paris\"}}|NULL|NULL");
    assert_eq!(ground.lines(shown).await, [row(0, "a"), row(1, "b")]);
    answer(ground, "a").await;
    assert_eq!(ground.lines(shown).await, [row(1, "b")]);
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(ground.lines(shown).await, Vec::<String>::new());
}

async fn who_takes_a_call_says_so(ground: &Ground) {
    waiting(ground, &["a", "b"]).await;
    let take = format!(
        "UPDATE tool_calls SET taken_by = 'server 1', taken_at = {}
          WHERE (job_id, claim, seq, position) IN (
                SELECT job_id, claim, seq, position FROM open_tool_calls WHERE taken_by IS NULL
                 ORDER BY created_at, position LIMIT 1)",
        ground.at(0)
    );
    assert_eq!(ground.run(&take).await, 1);
    assert_eq!(ground.run(&take).await, 1);
    assert_eq!(ground.run(&take).await, 0, "all are taken");
    assert_eq!(ground.line(JOB).await, "waiting|1|1|NULL|tools");
    ground.run("UPDATE tool_calls SET taken_by = NULL, taken_at = NULL WHERE call_id = 'a'").await;
    assert_eq!(ground.run(&take).await, 1, "it was given back");
}

async fn an_answered_call_is_not_changed(ground: &Ground) {
    waiting(ground, &["a", "b"]).await;
    answer(ground, "a").await;
    let before = ground.line("SELECT result, result_content, is_error, taken_by, answered_at FROM tool_calls WHERE call_id = 'a'").await;
    for set in [
        "result = 'rainy'",
        "result = NULL",
        "result = NULL, result_content = '[]'",
        &format!("is_error = {}", ground.either("1", "TRUE")),
        "taken_by = 'me'",
        &format!("taken_at = {}", ground.at(0)),
        "answered_at = NULL",
    ] {
        let sentence = ground.refused(&format!("UPDATE tool_calls SET {set} WHERE call_id = 'a'")).await;
        assert!(
            sentence.contains("an answered call is not changed; add: AND result IS NULL"),
            "{set}: {sentence}"
        );
    }
    let after = ground.line("SELECT result, result_content, is_error, taken_by, answered_at FROM tool_calls WHERE call_id = 'a'").await;
    assert_eq!(before, after);
    // A statement that hits one of them changes nothing of the others.
    ground.refused("UPDATE tool_calls SET result = 'rainy'").await;
    assert_eq!(ground.line("SELECT count(result) FROM tool_calls").await, "1");
    assert_eq!(ground.line(JOB).await, "waiting|1|1|NULL|tools");
}

async fn the_same_answer_again_changes_nothing(ground: &Ground) {
    waiting(ground, &["a"]).await;
    answer(ground, "a").await;
    let before = ground.line("SELECT answered_at FROM tool_calls").await;
    answer(ground, "a").await;
    assert_eq!(ground.line("SELECT answered_at FROM tool_calls").await, before);
}

async fn a_call_has_one_kind_of_result(ground: &Ground) {
    waiting(ground, &["a"]).await;
    let sentence = ground.refused("UPDATE tool_calls SET result = 'x', result_content = '[]'").await;
    assert!(sentence.contains("result_or_result_content"), "{sentence}");
    assert_eq!(ground.line(JOB).await, "waiting|1|1|NULL|tools");
}

async fn blocks_are_a_json_array(ground: &Ground) {
    waiting(ground, &["a"]).await;
    for json in [r#"{"type":"text"}"#, "\"x\"", "1", "null"] {
        let sentence = ground.refused(&format!("UPDATE tool_calls SET result_content = '{json}'")).await;
        assert!(sentence.contains("result_content_is_a_json_array"), "{json}: {sentence}");
    }
    ground.refused("UPDATE tool_calls SET result_content = '[no JSON'").await;
    assert_eq!(ground.line(JOB).await, "waiting|1|1|NULL|tools");
}

async fn only_the_calls_of_a_waiting_job_are_answered(ground: &Ground) {
    let answer = "UPDATE tool_calls SET result = 'x' WHERE call_id = 'a'";
    running(ground).await;
    open(ground, 1, &["a"]).await;
    let refused = async || {
        let sentence = ground.refused(answer).await;
        assert!(sentence.contains("only the calls in open_tool_calls are answered"), "{sentence}");
    };
    refused().await;
    ground.run("UPDATE job_state SET state = 'pending', claims = claims + 1, claimed_by = NULL").await;
    refused().await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    refused().await;
}

async fn what_the_model_asked_is_not_changed(ground: &Ground) {
    waiting(ground, &["a"]).await;
    for column in
        ["job_id", "claim", "seq", "position", "run", "call_id", "name", "created_at", "worker", "input"]
    {
        let sentence = ground.refused(&format!("UPDATE tool_calls SET {column} = NULL, result = 'x'")).await;
        assert!(
            sentence.contains("only result, result_content, is_error, taken_by and taken_at"),
            "{column}: {sentence}"
        );
    }
}

async fn answered_at_is_nobodys_to_set(ground: &Ground) {
    waiting(ground, &["a"]).await;
    let now = ground.at(0);
    for set in [format!("answered_at = {now}"), format!("result = 'x', answered_at = {now}")] {
        let sentence = ground.refused(&format!("UPDATE tool_calls SET {set}")).await;
        assert!(sentence.contains("answered_at is set by itself"), "{set}: {sentence}");
    }
    assert_eq!(ground.line(JOB).await, "waiting|1|1|NULL|tools");
}

async fn nobody_inserts_a_call(ground: &Ground) {
    waiting(ground, &["a"]).await;
    for insert in
        ["INSERT", ground.either("INSERT OR IGNORE", "INSERT"), ground.either("INSERT OR REPLACE", "INSERT")]
    {
        let sentence = ground
            .refused(&format!("{insert} INTO tool_calls (job_id, claim, seq, position, run, call_id, name) VALUES (1, 1, 1, 0, 1, 'mine', 'x')"))
            .await;
        assert!(sentence.contains("nobody inserts them"), "{sentence}");
    }
    assert_eq!(ground.line("SELECT call_id FROM tool_calls").await, "a");
}

async fn a_call_of_a_waiting_job_is_not_deleted(ground: &Ground) {
    waiting(ground, &["a", "b"]).await;
    answer(ground, "a").await;
    for call in ["a", "b"] {
        let sentence = ground.refused(&format!("DELETE FROM tool_calls WHERE call_id = '{call}'")).await;
        assert!(sentence.contains("needs its tool calls"), "{sentence}");
    }
    // Postgres says so before it lets go of the rows, and a cancel passes by what somebody holds.
    ground.rows(&format!("SELECT position FROM tool_calls{}", ground.either("", " FOR UPDATE"))).await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(ground.run("DELETE FROM tool_calls").await, 1, "of a done job it is only history");
}

async fn a_waiting_job_is_not_pending_while_a_call_is_open(ground: &Ground) {
    waiting(ground, &["a", "b"]).await;
    let pending = "UPDATE job_state SET state = 'pending' WHERE job_id = 1";
    let sentence = ground.refused(pending).await;
    let two = ground.either("the job waits for several tool results", "job 1 waits for 2 tool results");
    assert!(sentence.contains(two) && sentence.contains("UPDATE tool_calls SET result"), "{sentence}");
    answer(ground, "a").await;
    let sentence = ground.refused(pending).await;
    assert!(sentence.contains("waits for 1 tool result:"), "{sentence}");
    assert_eq!(ground.line(JOB).await, "waiting|1|1|NULL|tools");
}

async fn a_waiting_job_without_open_calls_can_be_made_pending(ground: &Ground) {
    waiting(ground, &["a"]).await;
    // As two servers leave it that each took the other's answer for missing.
    slip_an_answer_in(ground).await;
    assert_eq!(ground.line(JOB).await, "waiting|1|1|NULL|tools");
    assert_eq!(ground.run("UPDATE job_state SET state = 'pending'").await, 1);
    assert_eq!(ground.line(JOB).await, "pending|1|1|NULL|NULL");
    let due = format!("SELECT count(*) FROM job_state WHERE available_at <= {}", ground.at(0));
    assert_eq!(ground.line(&due).await, "1");
}

/// Answers all calls of job 1 while it runs, and has it wait afterwards.
async fn slip_an_answer_in(ground: &Ground) {
    ground
        .run("UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 7 WHERE job_id = 1")
        .await;
    ground.run(&format!("UPDATE tool_calls SET result = 'x', answered_at = {}", ground.at(0))).await;
    ground
        .run(
            "UPDATE job_state SET state = 'waiting', claims = claims - 1, claimed_by = NULL WHERE job_id = 1",
        )
        .await;
}

async fn a_cancel_takes_the_open_calls_and_leaves_the_answered(ground: &Ground) {
    waiting(ground, &["a", "b"]).await;
    answer(ground, "a").await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(ground.line(JOB).await, "done|1|2|NULL|NULL");
    assert_eq!(ground.lines(CALLS).await, [format!("a|sunny|{}", yes(ground))]);
    assert_eq!(ground.line("SELECT error FROM results").await, "cancelled while waiting");
    assert_eq!(ground.run("UPDATE tool_calls SET result = 'x' WHERE call_id = 'b'").await, 0);
}

async fn a_deadline_takes_the_open_calls_and_leaves_the_answered(ground: &Ground) {
    waiting(ground, &["a", "b"]).await;
    answer(ground, "a").await;
    ground.run("UPDATE job_state SET state = 'done', claims = claims + 1, reason = NULL").await;
    assert_eq!(ground.lines(CALLS).await, [format!("a|sunny|{}", yes(ground))]);
}

async fn an_answer_of_another_worker_takes_the_open_calls(ground: &Ground) {
    waiting(ground, &["a"]).await;
    waiting(ground, &["b"]).await;
    ground.run("UPDATE job_state SET state = 'done', claims = claims + 1 WHERE job_id = 1").await;
    assert_eq!(ground.lines(CALLS).await, [format!("b|NULL|{}", no(ground))]);
}

async fn running_again_takes_the_open_calls_and_leaves_the_answered(ground: &Ground) {
    running(ground).await;
    open(ground, 1, &["a", "b"]).await;
    ground
        .run(&format!(
            "UPDATE tool_calls SET result = 'x', answered_at = {} WHERE call_id = 'a'",
            ground.at(0)
        ))
        .await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(ground.line("SELECT count(*) FROM tool_calls").await, "2", "its worker may have started both");
    ground.run("UPDATE job_state SET state = 'pending'").await;
    assert_eq!(ground.line(JOB).await, "pending|2|3|NULL|NULL");
    assert_eq!(ground.lines(CALLS).await, [format!("a|x|{}", yes(ground))]);
}

async fn a_call_of_an_earlier_run_does_not_count(ground: &Ground) {
    waiting(ground, &["a"]).await;
    answer(ground, "a").await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    ground.run("UPDATE job_state SET state = 'pending'").await;
    ground.run("UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 7").await;
    ground
        .run(
            "INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, worker)
             VALUES (1, 4, 1, 0, 2, 'b', 'weather', 7)",
        )
        .await;
    ground.run("UPDATE job_state SET state = 'waiting', claimed_by = NULL").await;
    assert_eq!(ground.line("SELECT call_id FROM open_tool_calls").await, "b");
    answer(ground, "b").await;
    assert_eq!(ground.line(JOB).await, "pending|2|4|NULL|NULL");
}

async fn a_workers_own_answer_leaves_its_job_running(ground: &Ground) {
    running(ground).await;
    open(ground, 1, &["a"]).await;
    ground.run(&format!("UPDATE tool_calls SET result = 'x', answered_at = {}", ground.at(0))).await;
    assert_eq!(ground.line(JOB).await, "running|1|1|7|NULL");
}

async fn an_overview_says_how_many_results_a_job_waits_for(ground: &Ground) {
    waiting(ground, &["a", "b"]).await;
    let reason = "SELECT reason FROM job_overview";
    assert_eq!(ground.line(reason).await, "waits for 2 tool results");
    answer(ground, "a").await;
    assert_eq!(ground.line(reason).await, "waits for 1 tool result");
    assert_eq!(ground.line("SELECT waiting, total FROM batch_progress").await, "1|1");
    answer(ground, "b").await;
    assert_eq!(ground.line(reason).await, "NULL");
}

#[tokio::test]
async fn an_answer_knocks_where_a_worker_sleeps() {
    let ground = Ground::postgres().await;
    let mut listener = sqlx::postgres::PgListener::connect(&ground.url()).await.unwrap();
    listener.listen(ground.schema()).await.unwrap();
    waiting(&ground, &["a", "b"]).await;
    ground
        .run("INSERT INTO workers (host, boot, pid, pid_started, version, asleep) VALUES ('h', 'b', 1, 1, '0', TRUE)")
        .await;
    answer(&ground, "a").await;
    ground.run(&format!("NOTIFY {}, 'first'", ground.schema())).await;
    assert_eq!(listener.recv().await.unwrap().payload(), "first", "nothing can run yet");
    answer(&ground, "b").await;
    ground.run(&format!("NOTIFY {}, 'second'", ground.schema())).await;
    assert_eq!(listener.recv().await.unwrap().payload(), "");
    ground.close().await;
}

#[tokio::test]
async fn tool_calls_are_truncated_with_their_jobs() {
    let ground = Ground::postgres().await;
    waiting(&ground, &["a"]).await;
    let sentence = ground.refused("TRUNCATE tool_calls").await;
    assert!(sentence.contains("TRUNCATE jobs instead"), "{sentence}");
    ground.run("TRUNCATE jobs").await;
    assert_eq!(ground.line("SELECT count(*) FROM tool_calls").await, "0");
    ground.close().await;
}

#[tokio::test]
async fn a_result_that_is_no_text_is_kept_as_it_is() {
    let ground = Ground::sqlite().await;
    waiting(&ground, &["a"]).await;
    ground.run("UPDATE tool_calls SET result = CAST(x'ff' AS TEXT)").await;
    assert_eq!(
        ground.line("SELECT state, hex(result) FROM job_state JOIN tool_calls USING (job_id)").await,
        "pending|FF"
    );
    ground.close().await;
}

#[tokio::test]
async fn sqlite_answers_hold_with_recursive_triggers_too() {
    let ground = Ground::sqlite().await;
    waiting(&ground, &["a", "b"]).await;
    waiting(&ground, &["c"]).await;
    let all = "PRAGMA recursive_triggers = ON;";
    ground.run(&format!("{all} UPDATE tool_calls SET result = 'x' WHERE job_id = 1")).await;
    assert_eq!(ground.lines("SELECT state FROM job_state ORDER BY job_id").await, ["pending", "waiting"]);
    ground.run(&format!("{all} UPDATE job_state SET state = 'cancelled'")).await;
    assert_eq!(ground.lines(CALLS).await, ["a|x|1", "b|x|1"]);
    ground.run(&format!("{all} DELETE FROM jobs")).await;
    assert_eq!(ground.line("SELECT count(*) FROM tool_calls").await, "0");
    ground.close().await;
}
