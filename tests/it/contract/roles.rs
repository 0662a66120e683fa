//! The roles of Postgres, and that the triggers cannot be turned against their owner.

use sqlx::postgres::{PgListener, PgPool};
use sqlx::{AssertSqlSafe, Executor, Row as _};

use crate::support::Ground;

/// A connection as a role of ours, from a program with tables of its own first on its path.
async fn connect(role: &str) -> PgPool {
    Ground::postgres_pool(|options| options.options([("role", role), ("search_path", "pg_temp, public")]))
        .await
}

async fn attempt(pool: &PgPool, ground: &Ground, sql: &str) -> Result<u64, String> {
    let sql = sql.replace("MILL", ground.schema());
    let done = pool.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await;
    done.map(|done| done.rows_affected()).map_err(|err| {
        err.as_database_error().map_or_else(|| err.to_string(), |err| err.message().to_owned())
    })
}

async fn ground_with_roles() -> Ground {
    let ground = Ground::postgres().await;
    ground.grant_roles().await;
    ground
}

#[tokio::test]
async fn the_sql_of_the_roles_may_be_run_again() {
    let ground = ground_with_roles().await;
    ground.grant_roles().await;
    assert_eq!(
        ground
            .lines("SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = current_schema()
                     UNION SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = current_schema()::regnamespace")
            .await,
        ["promptmill_owner"]
    );
    ground.close().await;
}

#[tokio::test]
async fn the_sql_of_the_roles_waits_for_no_table_that_has_its_owner() {
    let ground = ground_with_roles().await;
    let person = Ground::postgres_pool(|options| options.application_name("somebody")).await;
    let mut looking = person.begin().await.unwrap();
    looking.execute(AssertSqlSafe(format!("SELECT FROM {}", ground.table("job_state")))).await.unwrap();
    ground.grant_roles().await;
    looking.rollback().await.unwrap();
    ground.close().await;
}

#[tokio::test]
async fn roles_of_two_schemas_with_a_prefix_each_see_their_own_alone() {
    let (one, other) = (Ground::postgres().await, Ground::postgres().await);
    for ground in [&one, &other] {
        ground.run(&promptmill::store::roles::roles(ground.schema(), ground.schema())).await;
    }
    let reader = connect(&format!("{}_reader", one.schema())).await;
    attempt(&reader, &one, "SELECT FROM MILL.results").await.unwrap();
    let refused = attempt(&reader, &other, "SELECT FROM MILL.results").await.unwrap_err();
    assert_eq!(refused, format!("permission denied for schema {}", other.schema()));
    reader.close().await;
    one.close().await;
    other.close().await;
}

#[tokio::test]
async fn an_enqueuer_enqueues_in_every_form_from_its_own_search_path() {
    let ground = ground_with_roles().await;
    let pool = connect("promptmill_enqueuer").await;
    for insert in [
        "(prompt) VALUES ('a')",
        "(prompt, params) VALUES ('a', '{\"top_k\": 1}'), ('b', '{\"model\": \"m\"}')",
        "(prompt, queue) SELECT 'p' || n, 'new' FROM generate_series(1, 3) n",
        "(prompt, key) VALUES ('a', 'k') ON CONFLICT (key) DO NOTHING",
        "(prompt, key) VALUES ('a', 'k') ON CONFLICT (key) DO NOTHING",
    ] {
        attempt(&pool, &ground, &format!("INSERT INTO MILL.jobs {insert}")).await.unwrap();
    }
    let id = pool
        .fetch_one(sqlx::raw_sql(AssertSqlSafe(format!(
            "INSERT INTO {}.jobs (prompt) VALUES ('a') RETURNING id",
            ground.schema()
        ))))
        .await
        .unwrap();
    assert!(!id.get_unchecked::<String, _>(0).is_empty());
    let mut connection = pool.acquire().await.unwrap();
    let mut copy =
        connection.copy_in_raw(&format!("COPY {}.jobs (prompt) FROM STDIN", ground.schema())).await.unwrap();
    copy.send("one\ntwo\n".as_bytes()).await.unwrap();
    assert_eq!(copy.finish().await.unwrap(), 2);
    drop(connection);
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await, "10");
    assert_eq!(ground.lines("SELECT name FROM queues ORDER BY name").await, ["default", "new"]);
    pool.close().await;
    ground.close().await;
}

#[tokio::test]
async fn an_enqueuer_may_do_nothing_else() {
    let ground = ground_with_roles().await;
    let pool = connect("promptmill_enqueuer").await;
    attempt(&pool, &ground, "INSERT INTO MILL.jobs (prompt) VALUES ('a')").await.unwrap();
    for sql in [
        "SELECT prompt FROM MILL.jobs",
        "SELECT * FROM MILL.results",
        "UPDATE MILL.job_state SET state = 'cancelled'",
        "DELETE FROM MILL.jobs",
        "TRUNCATE MILL.jobs",
        "INSERT INTO MILL.jobs (prompt, created_at) VALUES ('a', now())",
        "INSERT INTO MILL.queues (name) VALUES ('q')",
        "UPDATE MILL.jobs SET redacted_at = now()",
        "INSERT INTO MILL.jobs (prompt, redacted_at) VALUES ('a', now())",
    ] {
        let sentence = attempt(&pool, &ground, sql).await.unwrap_err();
        assert!(sentence.contains("permission denied"), "{sql}: {sentence}");
    }
    pool.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_reader_reads_and_an_operator_turns() {
    let ground = ground_with_roles().await;
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b'), ('a', 'b')").await;
    ground
        .run("INSERT INTO rates (scope, kind, rate, learnt, level) VALUES ('rate:f/c', 'input', 60, 60, 4)")
        .await;
    let reader = connect("promptmill_reader").await;
    for relation in [
        "jobs",
        "job_state",
        "results",
        "calls",
        "queues",
        "gates",
        "rates",
        "tool_calls",
        "workers",
        "audit",
        "meta",
        "open_tool_calls",
        "job_overview",
        "batch_progress",
    ] {
        attempt(&reader, &ground, &format!("SELECT * FROM MILL.{relation}")).await.unwrap();
    }
    for sql in [
        "UPDATE MILL.job_state SET state = 'cancelled'",
        "UPDATE MILL.jobs SET redacted_at = now()",
        "DELETE FROM MILL.jobs",
        "INSERT INTO MILL.jobs (prompt) VALUES ('a')",
        "INSERT INTO MILL.gates (scope, state) VALUES ('key:f', 'blocked')",
        "UPDATE MILL.queues SET paused = TRUE",
        "UPDATE MILL.tool_calls SET result = 'x'",
        "UPDATE MILL.results SET text = 'x'",
        "INSERT INTO MILL.audit (actor, action, target) VALUES ('me', 'cancel', 'jobs 1')",
    ] {
        assert!(attempt(&reader, &ground, sql).await.unwrap_err().contains("permission denied"), "{sql}");
    }

    let operator = connect("promptmill_operator").await;
    for sql in [
        "UPDATE MILL.job_state SET state = 'cancelled'",
        "UPDATE MILL.job_state SET state = 'pending' WHERE job_id = 1",
        "UPDATE MILL.job_state SET priority = 5, available_at = now() + interval '1 hour' WHERE job_id = 1",
        "UPDATE MILL.queues SET paused = TRUE",
        "INSERT INTO MILL.gates (scope, state) VALUES ('key:f', 'blocked')",
        "UPDATE MILL.gates SET state = 'flowing'",
        "UPDATE MILL.rates SET rate = 30, cap = 1",
        "INSERT INTO MILL.audit (actor, action, target) VALUES ('me', 'cancel', 'jobs 1')",
        "UPDATE MILL.audit SET count = 3",
    ] {
        assert!(attempt(&operator, &ground, sql).await.unwrap() > 0, "{sql}");
    }
    assert_eq!(
        ground.lines("SELECT job_id, state, run FROM job_state ORDER BY job_id").await,
        ["1|scheduled|2", "2|done|1"]
    );
    for sql in [
        "UPDATE MILL.job_state SET claims = 9",
        "UPDATE MILL.rates SET level = 9",
        "UPDATE MILL.audit SET actor = 'nobody'",
        "DELETE FROM MILL.audit",
        "DELETE FROM MILL.results",
        "UPDATE MILL.jobs SET metadata = NULL",
        "UPDATE MILL.jobs SET redacted_at = now()",
        "DELETE FROM MILL.jobs",
    ] {
        let sentence = attempt(&operator, &ground, sql).await.unwrap_err();
        assert!(sentence.contains("permission denied"), "{sql}: {sentence}");
    }
    reader.close().await;
    operator.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_tool_server_answers_and_may_do_nothing_else() {
    let ground = ground_with_roles().await;
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    ground
        .run(
            "UPDATE job_state SET state = 'running', claims = 1, claimed_by = 7;
             INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, worker)
             VALUES (1, 1, 1, 0, 1, 'toolu', 'weather', 7);
             UPDATE job_state SET state = 'waiting', claimed_by = NULL",
        )
        .await;
    let tool = connect("promptmill_tool").await;
    for sql in [
        "SELECT prompt FROM MILL.jobs",
        "SELECT state FROM MILL.job_state",
        "UPDATE MILL.job_state SET state = 'pending'",
        "UPDATE MILL.tool_calls SET name = 'another'",
        "UPDATE MILL.tool_calls SET result = 'x', answered_at = now()",
        "INSERT INTO MILL.tool_calls (job_id) VALUES (1)",
        "DELETE FROM MILL.tool_calls",
        "TRUNCATE MILL.tool_calls",
    ] {
        let sentence = attempt(&tool, &ground, sql).await.unwrap_err();
        assert!(sentence.contains("permission denied"), "{sql}: {sentence}");
    }
    for sql in [
        "SELECT job_id, call_id, name, input FROM MILL.open_tool_calls",
        "UPDATE MILL.tool_calls SET taken_by = 'me', taken_at = now()
          WHERE (job_id, claim, seq, position) IN (SELECT job_id, claim, seq, position FROM MILL.open_tool_calls)",
        "UPDATE MILL.tool_calls SET result = 'sunny' WHERE job_id = 1 AND call_id = 'toolu'",
    ] {
        assert!(attempt(&tool, &ground, sql).await.unwrap() > 0, "{sql}");
    }
    assert_eq!(ground.line("SELECT state FROM job_state").await, "pending");
    tool.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_worker_works_without_ddl() {
    let ground = ground_with_roles().await;
    let pool = connect("promptmill_worker").await;
    for sql in [
        "INSERT INTO MILL.jobs (prompt, key) VALUES ('a', 'k'), ('b', 'l')",
        "INSERT INTO MILL.workers (host, boot, pid, pid_started, version) VALUES ('h', 'b', 1, 1, '0')",
        "UPDATE MILL.workers SET beat = beat + 1",
        "UPDATE MILL.job_state SET state = 'running', claims = claims + 1, claimed_by = 1",
        "SELECT id FROM MILL.jobs FOR UPDATE",
        "SELECT name FROM MILL.queues FOR UPDATE",
        "INSERT INTO MILL.calls (job_id, claim, seq, run, kind) VALUES (1, 1, 1, 1, 'ask')",
        "INSERT INTO MILL.checkpoints (job_id, claim, seq, part, content) VALUES (1, 1, 1, 1, 'x')",
        "DELETE FROM MILL.checkpoints",
        "INSERT INTO MILL.results (job_id, run, queue, outcome) VALUES (1, 1, 'default', 'complete')",
        "UPDATE MILL.job_state SET state = 'done', claimed_by = NULL WHERE job_id = 1",
        "INSERT INTO MILL.tool_calls (job_id, claim, seq, position, run, call_id, name, worker, taken_by)
         VALUES (2, 1, 1, 0, 1, 'toolu', 'weather', 1, 'worker 1')
             ON CONFLICT (job_id, claim, seq, position) DO UPDATE SET taken_by = excluded.taken_by",
        "UPDATE MILL.tool_calls SET result = 'sunny', answered_at = now()",
        "INSERT INTO MILL.gates (scope, state, generation) VALUES ('key:f', 'blocked', 1)",
        "INSERT INTO MILL.rates (scope, kind, rate, learnt, level) VALUES ('rate:f/c', 'input', 60, 60, 4)",
        "UPDATE MILL.rates SET level = 3, at = now()",
        "SELECT kind FROM MILL.rates FOR NO KEY UPDATE SKIP LOCKED",
        "DELETE FROM MILL.rates",
        "UPDATE MILL.jobs SET redacted_at = now() WHERE id = 1",
        "DELETE FROM MILL.jobs WHERE id = 1",
    ] {
        assert!(attempt(&pool, &ground, sql).await.unwrap() > 0, "{sql}");
    }
    for sql in [
        "CREATE TABLE MILL.mine (id integer)",
        "ALTER TABLE MILL.jobs ADD COLUMN x text",
        "DROP TABLE MILL.jobs",
        "TRUNCATE MILL.results",
        "DELETE FROM MILL.results",
        "DELETE FROM MILL.audit",
        "UPDATE MILL.audit SET actor = 'nobody'",
        "UPDATE MILL.meta SET schema_min = 99",
        "UPDATE MILL.jobs SET metadata = NULL",
        "UPDATE MILL.jobs SET prompt = 'another'",
    ] {
        let sentence = attempt(&pool, &ground, sql).await.unwrap_err();
        let is_denied = sentence.contains("permission denied") || sentence.contains("must be owner");
        assert!(is_denied, "{sql}: {sentence}");
    }
    pool.close().await;
    ground.close().await;
}

#[tokio::test]
async fn trigger_functions_cannot_be_hung_on_a_table_of_ones_own() {
    let ground = ground_with_roles().await;
    let pool = connect("promptmill_enqueuer").await;
    let functions = ground
        .lines("SELECT proname FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND prorettype = 'trigger'::regtype")
        .await;
    assert!(functions.len() >= 8, "{functions:?}");
    for function in functions {
        let sql = format!(
            "CREATE TEMP TABLE bait (id bigint, queue text);
             CREATE TRIGGER bait AFTER DELETE ON bait FOR EACH ROW EXECUTE FUNCTION MILL.{function}()"
        );
        let sentence = attempt(&pool, &ground, &sql).await.unwrap_err();
        assert!(sentence.contains("permission denied for function"), "{sentence}");
    }
    pool.close().await;
    ground.close().await;
}

#[tokio::test]
async fn the_owners_functions_keep_their_own_search_path() {
    let ground = Ground::postgres().await;
    let settings = ground
        .lines("SELECT array_to_string(proconfig, ';') FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND prosecdef")
        .await;
    assert!(settings.len() >= 6, "{settings:?}");
    for setting in settings {
        let own = format!("search_path={}, pg_temp", ground.schema());
        assert!(setting.split(';').any(|setting| setting == own), "{setting}");
    }
    ground.close().await;
}

#[tokio::test]
async fn tables_of_the_callers_own_do_not_catch_what_triggers_write() {
    let ground = ground_with_roles().await;
    let pool = connect("promptmill_enqueuer").await;
    let sql = "CREATE TEMP TABLE queues (name text); CREATE TEMP TABLE job_state (LIKE pg_class);
               INSERT INTO MILL.jobs (prompt) VALUES ('a')";
    attempt(&pool, &ground, sql).await.unwrap();
    assert_eq!(ground.line("SELECT queue, state FROM job_state").await, "default|pending");
    pool.close().await;
    ground.close().await;
}

#[tokio::test]
async fn an_insert_knocks_only_where_somebody_sleeps() {
    let ground = Ground::postgres().await;
    let mut listener = PgListener::connect(&ground.url()).await.unwrap();
    listener.listen(ground.schema()).await.unwrap();
    ground
        .run("INSERT INTO workers (host, boot, pid, pid_started, version) VALUES ('h', 'b', 1, 1, '0')")
        .await;
    ground.run("INSERT INTO jobs (prompt) VALUES ('nobody sleeps')").await;
    ground.run(&format!("NOTIFY {}, 'first'", ground.schema())).await;
    assert_eq!(listener.recv().await.unwrap().payload(), "first");

    ground.run("UPDATE workers SET asleep = TRUE").await;
    ground.run("INSERT INTO jobs (prompt) SELECT 'p' FROM generate_series(1, 100)").await;
    assert_eq!(listener.recv().await.unwrap().payload(), "");
    ground.run(&format!("NOTIFY {}, 'second'", ground.schema())).await;
    assert_eq!(listener.recv().await.unwrap().payload(), "second", "one knock a statement");

    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id = 1").await;
    ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 1").await;
    assert_eq!(listener.recv().await.unwrap().payload(), "", "running again knocks too");

    ground.run("UPDATE workers SET seen_at = now() - interval '1 day'").await;
    ground.run("INSERT INTO jobs (prompt) VALUES ('whoever slept is gone')").await;
    ground.run(&format!("NOTIFY {}, 'third'", ground.schema())).await;
    assert_eq!(listener.recv().await.unwrap().payload(), "third");
    ground.close().await;
}
