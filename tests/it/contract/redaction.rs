//! A done job loses what it asked by one UPDATE, keeps what was paid for, and cannot run again.

use sqlx::{AssertSqlSafe, Executor as _};

use crate::support::{Ground, Kind, on_both};

on_both! {
    one_update_redacts_a_done_job,
    a_redaction_may_name_all_that_goes,
    a_second_redaction_is_passed_by,
    only_done_jobs_are_redacted,
    a_redaction_changes_nothing_else_and_is_not_taken_back,
    nobody_inserts_a_redacted_job,
    a_redacted_job_cannot_run_again,
    a_redacted_job_can_be_deleted_and_its_metadata_updated,
    the_overview_says_when_a_prompt_was_redacted,
}

/// Two done jobs, and one that is pending.
async fn jobs(ground: &Ground) {
    ground
        .run("INSERT INTO jobs (prompt, system, params, key) VALUES ('a', 's', '{\"top_k\": 1}', 'k1'), ('b', NULL, NULL, 'k2'), ('c', NULL, NULL, 'k3')")
        .await;
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id < 3").await;
    ground.run("INSERT INTO calls (job_id, claim, seq, run, kind) VALUES (1, 1, 1, 1, 'ask')").await;
}

/// What is left of what each job asked.
async fn asked(ground: &Ground) -> Vec<String> {
    ground.lines("SELECT id, prompt, system, params, redacted_at IS NOT NULL FROM jobs ORDER BY id").await
}

fn line(ground: &Ground, asked: &str, redacted: bool) -> String {
    let said = match ground.kind() {
        Kind::Sqlite => ["0", "1"],
        Kind::Postgres => ["f", "t"],
    };
    format!("{asked}|{}", said[usize::from(redacted)])
}

async fn one_update_redacts_a_done_job(ground: &Ground) {
    jobs(ground).await;
    let changed =
        ground.run(&format!("UPDATE jobs SET redacted_at = {} WHERE id = 1", ground.at(-999_999))).await;
    assert_eq!(changed, 1);
    assert_eq!(
        asked(ground).await,
        [
            line(ground, "1|NULL|NULL|NULL", true),
            line(ground, "2|b|NULL|NULL", false),
            line(ground, "3|c|NULL|NULL", false)
        ]
    );
    let near = format!("SELECT count(*) FROM jobs WHERE redacted_at > {}", ground.at(-60));
    assert_eq!(ground.line(&near).await, "1", "the time is the database's, whatever is written");
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "2");
    assert_eq!(ground.line("SELECT count(*) FROM calls").await, "1");
}

async fn a_redaction_may_name_all_that_goes(ground: &Ground) {
    jobs(ground).await;
    let sql = "UPDATE jobs SET prompt = NULL, system = NULL, params = NULL, redacted_at = NOW WHERE id <= 2";
    assert_eq!(ground.run(&sql.replace("NOW", &ground.at(0))).await, 2);
    assert_eq!(asked(ground).await[0], line(ground, "1|NULL|NULL|NULL", true));
    assert_eq!(asked(ground).await[1], line(ground, "2|NULL|NULL|NULL", true));
}

async fn a_second_redaction_is_passed_by(ground: &Ground) {
    jobs(ground).await;
    ground.run(&format!("UPDATE jobs SET redacted_at = {} WHERE id = 1", ground.at(0))).await;
    let before = ground.line("SELECT redacted_at FROM jobs WHERE id = 1").await;
    let bulk = format!("UPDATE jobs SET redacted_at = {} WHERE id <= 2", ground.at(60));
    assert_eq!(ground.run(&bulk).await, 1, "the other is redacted");
    assert_eq!(ground.line("SELECT redacted_at FROM jobs WHERE id = 1").await, before);
}

async fn only_done_jobs_are_redacted(ground: &Ground) {
    jobs(ground).await;
    let all = format!("UPDATE jobs SET redacted_at = {}", ground.at(0));
    let sentence = ground.refused(&all).await;
    assert!(
        sentence.contains("only done jobs are redacted") && sentence.contains("cancel the job first"),
        "{sentence}"
    );
    assert_eq!(asked(ground).await[0], line(ground, "1|a|s|{\"top_k\": 1}", false), "all or nothing");
    let done = format!("{all} WHERE id IN (SELECT job_id FROM results)");
    assert_eq!(ground.run(&done).await, 2, "what the sentence says works");
    for state in ["state = 'running', claimed_by = 7", "state = 'waiting', claimed_by = NULL"] {
        ground.run(&format!("UPDATE job_state SET claims = claims + 1, {state} WHERE job_id = 3")).await;
        ground.refused(&format!("{all} WHERE id = 3")).await;
    }
}

async fn a_redaction_changes_nothing_else_and_is_not_taken_back(ground: &Ground) {
    jobs(ground).await;
    let now = ground.at(0);
    for change in [
        format!("redacted_at = {now}, prompt = 'other'"),
        format!("redacted_at = {now}, params = '{{}}'"),
        format!("redacted_at = {now}, queue = 'q'"),
        format!("redacted_at = {now}, key = NULL"),
        format!("redacted_at = {now}, policy = '{{}}'"),
        format!("redacted_at = {now}, created_at = {now}"),
        "prompt = NULL".to_owned(),
        "redacted_at = NULL".to_owned(),
    ] {
        let sentence = ground.refused(&format!("UPDATE jobs SET {change} WHERE id = 1")).await;
        assert!(sentence.contains("jobs are not changed"), "{change}: {sentence}");
    }
    ground.run(&format!("UPDATE jobs SET redacted_at = {now} WHERE id = 1")).await;
    for change in ["redacted_at = NULL", "prompt = 'back'", "redacted_at = NULL, prompt = 'back'"] {
        ground.refused(&format!("UPDATE jobs SET {change} WHERE id = 1")).await;
    }
    ground.refused(&format!("UPDATE jobs SET redacted_at = {now}, prompt = 'back' WHERE id = 1")).await;
    assert_eq!(asked(ground).await[0], line(ground, "1|NULL|NULL|NULL", true));
}

async fn nobody_inserts_a_redacted_job(ground: &Ground) {
    let now = ground.at(0);
    for row in [format!("(prompt, redacted_at) VALUES ('a', {now})"), format!("(redacted_at) VALUES ({now})")]
    {
        let sentence = ground.refused(&format!("INSERT INTO jobs {row}")).await;
        let checked =
            sentence.contains("nobody_inserts_redacted_jobs") || sentence.contains("job_has_one_prompt");
        assert!(checked, "{sentence}");
    }
    let sentence = ground.refused(&format!("INSERT INTO jobs (redacted_at) VALUES ({now})")).await;
    assert!(sentence.contains("nobody_inserts_redacted_jobs: redacted_at says when"), "{sentence}");
    assert_eq!(ground.line("SELECT count(*) FROM jobs").await, "0");
    ground.run("INSERT INTO jobs (prompt, redacted_at) VALUES ('a', NULL)").await;
}

async fn a_redacted_job_cannot_run_again(ground: &Ground) {
    jobs(ground).await;
    ground.run(&format!("UPDATE jobs SET redacted_at = {} WHERE id = 1", ground.at(0))).await;
    for change in
        ["state = 'pending'".to_owned(), format!("state = 'pending', available_at = {}", ground.at(60))]
    {
        let sentence = ground.refused(&format!("UPDATE job_state SET {change}")).await;
        assert!(sentence.contains("its prompt is gone and cannot run again"), "{sentence}");
    }
    assert_eq!(
        ground.lines("SELECT state, run FROM job_state ORDER BY job_id").await,
        ["done|1", "done|1", "pending|1"]
    );
    let others = "UPDATE job_state SET state = 'pending'
                   WHERE job_id NOT IN (SELECT id FROM jobs WHERE redacted_at IS NOT NULL)";
    ground.run(others).await;
    assert_eq!(ground.line("SELECT state, run FROM job_state WHERE job_id = 2").await, "pending|2");
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE job_id = 1").await, "1");
}

async fn a_redacted_job_can_be_deleted_and_its_metadata_updated(ground: &Ground) {
    jobs(ground).await;
    ground.run(&format!("UPDATE jobs SET redacted_at = {} WHERE id = 1", ground.at(0))).await;
    assert_eq!(ground.run("UPDATE jobs SET metadata = '1' WHERE id = 1").await, 1);
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id = 1").await;
    ground.run("DELETE FROM jobs WHERE id = 1").await;
    ground.run("INSERT INTO jobs (prompt, key) VALUES ('again', 'k1')").await;
}

async fn the_overview_says_when_a_prompt_was_redacted(ground: &Ground) {
    jobs(ground).await;
    ground.run(&format!("UPDATE jobs SET redacted_at = {} WHERE id = 1", ground.at(0))).await;
    assert_eq!(
        ground.line("SELECT o.id FROM job_overview o JOIN jobs j ON j.id = o.id WHERE o.redacted_at = j.redacted_at").await,
        "1"
    );
    assert_eq!(ground.line("SELECT count(*) FROM job_overview WHERE redacted_at IS NULL").await, "2");
}

/// Of the two that come at once, one waits and finds what the other did: no job is pending without a prompt.
#[tokio::test]
async fn a_redaction_and_a_run_again_at_once_do_not_both_happen() {
    for redacted_first in [true, false] {
        let ground = Ground::postgres().await;
        jobs(&ground).await;
        let schema = ground.schema().to_owned();
        let pool = Ground::postgres_pool(|options| options.options([("search_path", schema.as_str())])).await;
        let redact = "UPDATE jobs SET redacted_at = now() WHERE id = 1";
        let again = "UPDATE job_state SET state = 'pending' WHERE job_id = 1";
        let (first, second) = if redacted_first { (redact, again) } else { (again, redact) };
        let mut holder = pool.begin().await.unwrap();
        holder.execute(first).await.unwrap();
        let mut waiter = pool.acquire().await.unwrap();
        let waiting = async { waiter.execute(sqlx::raw_sql(AssertSqlSafe(second.to_owned()))).await };
        let waits = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                      WHERE NOT l.granted AND a.query LIKE 'UPDATE job%id = 1'";
        let freed = async {
            while ground.line(waits).await == "0" {
                tokio::task::yield_now().await;
            }
            holder.commit().await.unwrap();
        };
        let (done, ()) = tokio::join!(waiting, freed);
        let sentence = done.unwrap_err().to_string();
        drop(waiter);
        let expected = if redacted_first { "cannot run again" } else { "only done jobs are redacted" };
        assert!(sentence.contains(expected), "{sentence}");
        pool.close().await;
        ground.close().await;
    }
}
