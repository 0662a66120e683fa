//! What was paid for while the database could not take it: kept in a file, settled later, asked
//! for once.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sqlx::{Connection as _, Executor as _, SqliteConnection};

use super::harness::Mill;
use crate::support::{Ground, on_both};

on_both! {
    an_answer_outlives_a_database_that_is_away_and_a_kill,
    an_answer_in_the_middle_of_a_job_outlives_them_too,
    calls_of_tools_outlive_them_too,
    nothing_is_claimed_while_answers_wait_for_the_database,
    a_stop_while_the_database_is_away_ends_in_time_and_keeps_what_was_paid_for,
    what_a_killed_daemon_had_of_a_cancelled_job_is_added_to_its_result,
    answers_of_another_database_are_left_and_named,
    where_no_file_can_be_written_answers_are_held_in_memory,
    an_answer_that_the_database_refuses_is_kept_whole_in_a_file,
}

/// A table of its own for each way in which the database takes nothing: claims go on.
const TAKE_AWAY: &str = "ALTER TABLE results RENAME TO away";
const BRING_BACK: &str = "ALTER TABLE away RENAME TO results";

fn file(mill: &Mill<'_>) -> PathBuf {
    mill.state().join("spool.jsonl")
}

/// Waits until so many lines stand in the file.
async fn until_kept(mill: &Mill<'_>, lines: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = fs::read_to_string(file(mill)).unwrap_or_default();
        if text.lines().count() == lines {
            return;
        }
        assert!(Instant::now() < deadline, "not {lines} lines: {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a daemon has had the time for several tries.
async fn until_two_beats(mill: &Mill<'_>) {
    let beats = mill.ground.line("SELECT max(beat) + 2 FROM workers").await;
    mill.until(&format!("SELECT max(beat) >= {beats} FROM workers"), mill.ground.either("1", "t")).await;
}

async fn an_answer_outlives_a_database_that_is_away_and_a_kill(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[seed a]] [[tokens 40]]"]).await;
    ground.run(TAKE_AWAY).await;
    let daemon = mill.start();
    until_kept(&mill, 1).await;
    daemon.kill().await;
    let metadata = fs::metadata(file(&mill)).expect("the file is there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    ground.run(BRING_BACK).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let text = ground.line("SELECT text FROM results WHERE outcome = 'complete'").await;
    assert_eq!(text, promptmill::stand_in::text("a", 40));
    assert_eq!(
        ground.line("SELECT claims FROM job_state").await,
        "1",
        "its own claim ends it, before a rescue"
    );
    assert_eq!(ground.line("SELECT count(*) FROM calls WHERE NOT late").await, "1");
    assert_eq!(mill.api.counts().total, 1);
    assert_eq!(fs::read(file(&mill)).expect("the file is there"), b"");
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn an_answer_in_the_middle_of_a_job_outlives_them_too(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ground.run("INSERT INTO jobs (prompt, max_tokens) VALUES ('[[seed m]] [[tokens 1500]] [[delay 500ms]]', 1000)").await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    ground.run("ALTER TABLE calls RENAME TO away").await;
    until_kept(&mill, 1).await;
    daemon.kill().await;
    ground.run("ALTER TABLE away RENAME TO calls").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // Whether the next call was under way when it was killed nobody can know, so the rescue says `lost`.
    assert_eq!(
        ground.lines("SELECT kind, error_type FROM calls ORDER BY claim, seq").await,
        ["ask|NULL", "ask|lost", "continue|NULL"]
    );
    assert_eq!(ground.line("SELECT count(*) FROM calls WHERE late").await, "0");
    assert_eq!(mill.api.counts().total, 2, "what was answered is not asked again");
    let text = ground.line("SELECT text FROM results WHERE outcome = 'complete'").await;
    assert!(text == promptmill::stand_in::text("m", 1500), "it is whole, letter for letter");
}

async fn calls_of_tools_outlive_them_too(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let params = r#"{"tools": [{"name": "find", "input_schema": {"type": "object"}}]}"#;
    ground
        .run(&format!(
            r#"INSERT INTO jobs (prompt, params, policy)
               VALUES ('[[tool find {{"q": 1}}]] [[delay 500ms]]', '{params}', '{{"on_tool_use": "wait"}}')"#
        ))
        .await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    ground.run("ALTER TABLE calls RENAME TO away").await;
    until_kept(&mill, 1).await;
    daemon.kill().await;
    ground.run("ALTER TABLE away RENAME TO calls").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT state, claims FROM job_state").await, "waiting|1");
    assert_eq!(ground.run("UPDATE tool_calls SET result = input").await, 1);
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT outcome, text FROM results").await, r#"complete|find: {"q": 1}"#);
    assert_eq!(mill.api.counts().total, 2, "what was answered is not asked again");
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn nothing_is_claimed_while_answers_wait_for_the_database(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "4");
    mill.insert(&["first"]).await;
    ground.run(TAKE_AWAY).await;
    let daemon = mill.start();
    until_kept(&mill, 1).await;
    mill.insert(&["second"]).await;
    until_two_beats(&mill).await;
    assert_eq!(ground.line("SELECT claims FROM job_state WHERE job_id = 2").await, "0");
    ground.run(BRING_BACK).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("does not take answers").count(), 1, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("all that was kept for it").count(), 1, "{}", ran.stderr);
    assert_eq!(fs::read(file(&mill)).expect("the file is there"), b"");
    mill.ledger_is_the_stand_ins().await;
}

async fn a_stop_while_the_database_is_away_ends_in_time_and_keeps_what_was_paid_for(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__DRAIN_SECONDS", "1");
    mill.insert(&["[[seed a]] [[tokens 40]]"]).await;
    ground.run(TAKE_AWAY).await;
    let daemon = mill.start();
    until_kept(&mill, 1).await;
    let told = Instant::now();
    let ran = daemon.stop().await;
    assert!(told.elapsed() < Duration::from_secs(15), "it took {:?}", told.elapsed());
    assert_eq!(ran.code, 1);
    let said = format!("the database did not take 1 answer in time: kept in {}", file(&mill).display());
    assert!(ran.stderr.contains(&said), "{}", ran.stderr);
    // The next one finds it, and is told to stop before the database is back.
    let next = mill.start();
    mill.until("SELECT count(*) FROM workers", "2").await;
    // What is promoted now is promoted by a later tick than the first, which looks for the dead.
    ground.run(&format!("INSERT INTO jobs (prompt, run_at) VALUES ('later', {})", ground.at(1))).await;
    mill.until("SELECT state FROM job_state WHERE job_id = 2", "pending").await;
    assert_eq!(
        ground.line("SELECT claims FROM job_state WHERE job_id = 1").await,
        "1",
        "nobody takes it from the dead"
    );
    let ran = next.stop().await;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains(&said), "{}", ran.stderr);
    until_kept(&mill, 1).await;
    ground.run(BRING_BACK).await;
    ground.run("DELETE FROM jobs WHERE id = 2").await;
    assert_eq!(mill.drain().await.code, 0);
    mill.until("SELECT outcome FROM results", "complete").await;
    mill.ledger_is_the_stand_ins().await;
}

async fn what_a_killed_daemon_had_of_a_cancelled_job_is_added_to_its_result(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[seed c]] [[tokens 40]]"]).await;
    ground.run(TAKE_AWAY).await;
    let daemon = mill.start();
    until_kept(&mill, 1).await;
    daemon.kill().await;
    ground.run(BRING_BACK).await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    let drained = mill.drain().await;
    assert_eq!(drained.code, 0);
    assert!(!drained.stderr.contains("complete"), "it was cancelled: {}", drained.stderr);
    let result = ground.line("SELECT outcome, calls, text FROM results").await;
    assert_eq!(result, format!("cancelled|1|{}", promptmill::stand_in::text("c", 40)));
    assert_eq!(ground.line("SELECT count(*) FROM calls WHERE late").await, "1");
    assert_eq!(fs::read(file(&mill)).expect("the file is there"), b"");
}

async fn answers_of_another_database_are_left_and_named(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["here"]).await;
    ground.run(TAKE_AWAY).await;
    let daemon = mill.start();
    until_kept(&mill, 1).await;
    daemon.kill().await;
    let before = fs::read(file(&mill)).expect("the file is there");

    let elsewhere = Ground::sqlite().await;
    let mut other = Mill::new(&elsewhere).await;
    other.set("PROMPTMILL_WORKER__STATE_DIR", &mill.state().display().to_string());
    other.insert(&["elsewhere"]).await;
    let ran = other.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let database = ground.line("SELECT database_id FROM meta").await;
    let named = ran.stderr.lines().find(|line| line.contains(&database)).unwrap_or_default();
    assert!(named.contains("WARN") && named.contains(&file(&mill).display().to_string()), "{}", ran.stderr);
    assert_eq!(fs::read(file(&mill)).expect("the file is there"), before);
    elsewhere.close().await;

    ground.run(BRING_BACK).await;
    assert_eq!(mill.drain().await.code, 0);
    assert_eq!(mill.api.counts().total, 1);
}

async fn where_no_file_can_be_written_answers_are_held_in_memory(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "4");
    fs::write(mill.home().join("file"), "no folder").expect("written");
    mill.set("PROMPTMILL_WORKER__STATE_DIR", "file/state");
    mill.insert(&["first"]).await;
    ground.run(TAKE_AWAY).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    until_two_beats(&mill).await;
    mill.insert(&["second"]).await;
    until_two_beats(&mill).await;
    assert_eq!(mill.api.counts().total, 1, "nothing more is claimed");
    ground.run(BRING_BACK).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.stderr.matches("held in memory").count(), 1, "{}", ran.stderr);
    mill.ledger_is_the_stand_ins().await;
}

async fn an_answer_that_the_database_refuses_is_kept_whole_in_a_file(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let refuse = ground.either(
        "CREATE TRIGGER refuse BEFORE INSERT ON results WHEN NEW.outcome = 'complete'
         BEGIN SELECT RAISE(ABORT, 'not in this house'); END",
        "ALTER TABLE results ADD CONSTRAINT refuse CHECK (outcome <> 'complete')",
    );
    ground.run(refuse).await;
    mill.insert(&["[[seed u]] [[tokens 40]]"]).await;
    assert_eq!(mill.drain().await.code, 7);
    let aside = mill.state().join("unstorable.jsonl");
    let error = ground.line("SELECT error FROM results WHERE error_type = 'unstorable'").await;
    assert!(error.contains(&aside.display().to_string()), "{error}");
    let kept = fs::read_to_string(&aside).expect("the file is there");
    let text = serde_json::to_string(&promptmill::stand_in::text("u", 40)).expect("a text");
    assert!(kept.contains(&format!("\"text\":{text}")), "{kept}");
    assert_eq!(fs::metadata(&aside).expect("the file is there").permissions().mode() & 0o777, 0o600);
    assert!(!file(&mill).exists(), "it is never taken up again");
}

#[tokio::test]
async fn an_answer_whose_row_somebody_locks_is_kept_in_the_file_and_stalls_nobody() {
    let ground = Ground::postgres().await;
    let mill = Mill::new(&ground).await;
    mill.insert(&["[[delay 500ms]] locked"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    let schema = ground.schema().to_owned();
    let person = Ground::postgres_pool(|options| options.options([("search_path", schema.as_str())])).await;
    let mut lock = person.begin().await.expect("a transaction");
    lock.execute("SELECT 1 FROM job_state FOR UPDATE").await.expect("locked");
    until_kept(&mill, 1).await;
    mill.insert(&["free"]).await;
    mill.until("SELECT job_id FROM results", "2").await;
    lock.rollback().await.expect("free again");
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    let ran = daemon.stop().await;
    assert!(!ran.stderr.contains("does not take answers"), "{}", ran.stderr);
    assert_eq!(fs::read(file(&mill)).expect("the file is there"), b"");
    person.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_file_that_another_program_locks_does_not_keep_an_answer_in_memory_alone() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    mill.insert(&["[[seed l]] [[tokens 40]] [[delay 500ms]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    let mut other = SqliteConnection::connect(&ground.url()).await.expect("a file");
    other.execute("PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE").await.expect("locked");
    until_kept(&mill, 1).await;
    daemon.kill().await;
    other.execute("ROLLBACK").await.expect("free again");
    assert_eq!(mill.drain().await.code, 0);
    assert_eq!(
        ground.line("SELECT outcome, text FROM results").await,
        format!("complete|{}", promptmill::stand_in::text("l", 40))
    );
    mill.ledger_is_the_stand_ins().await;
    ground.close().await;
}
