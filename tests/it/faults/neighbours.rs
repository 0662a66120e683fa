//! Others on the same Postgres: people who lock rows, and programs that take all the connections.

use std::time::Instant;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::{RECOVERY_MAX, Site};
use crate::support::{Ground, server};

/// Somebody in psql, with the tables in sight.
async fn person(ground: &Ground) -> PgConnection {
    let mut person = server::connect(&ground.url()).await;
    say(&mut person, format!("SET search_path = {}, pg_temp", ground.schema())).await;
    person
}

async fn say(person: &mut PgConnection, sql: impl Into<String>) {
    let sql = sql.into();
    person
        .execute(sqlx::raw_sql(AssertSqlSafe(sql.clone())))
        .await
        .unwrap_or_else(|err| panic!("{err}: {sql}"));
}

#[tokio::test]
async fn a_row_that_a_person_locks_stalls_itself_alone() {
    let ground = Ground::postgres().await;
    let site = Site::new(&ground).await;
    site.insert(30, "100ms").await;
    let daemon = site.mill.start();
    site.mill.until_asked(2).await;
    let mut person = person(&ground).await;
    // One that waits, one that runs, one that runs by the time it is to be written.
    for job in [1, 2, 30] {
        say(
            &mut person,
            format!("BEGIN; SAVEPOINT s; SELECT FROM job_state WHERE job_id = {job} FOR UPDATE"),
        )
        .await;
    }
    let locked = ground.line("SELECT count(*) FROM results WHERE job_id IN (1, 2, 30)").await;
    let began = Instant::now();
    site.mill.until("SELECT count(*) FROM results WHERE job_id NOT IN (1, 2, 30)", "27").await;
    assert!(began.elapsed() < RECOVERY_MAX, "the others waited {:?}", began.elapsed());
    // And the daemon goes on with what comes later.
    site.mill.insert(&["later"]).await;
    site.mill.until("SELECT count(*) FROM results WHERE job_id = 31", "1").await;
    let still = ground.line("SELECT count(*) FROM results WHERE job_id IN (1, 2, 30)").await;
    assert_eq!(still, locked, "what is locked waits");
    say(&mut person, "ROLLBACK").await;
    site.recovers(31).await;
    site.every_job_was_called_once(31).await;
    assert_eq!(daemon.stop().await.code, 0);
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn people_who_lock_in_the_wrong_order_deadlock_nobody() {
    let ground = Ground::postgres().await;
    let site = Site::new(&ground).await;
    site.insert(60, "50ms").await;
    let (one, two) = (site.mill.start(), site.mill.start());
    let mut person = person(&ground).await;
    let mut locked = 0;
    while ground.line("SELECT count(*) FROM results").await != "60" {
        say(&mut person, "BEGIN").await;
        for job in [59, 41, 40, 23, 7, 2] {
            say(&mut person, format!("UPDATE job_state SET reason = reason WHERE job_id = {job}")).await;
        }
        say(&mut person, "COMMIT").await;
        locked += 1;
    }
    assert!(locked > 3, "the person locked {locked} times");
    site.until_complete(60).await;
    site.every_job_was_called_once(60).await;
    for daemon in [one, two] {
        assert_eq!(daemon.stop().await.code, 0);
    }
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_deadlock_that_the_daemon_loses_is_tried_again() {
    let ground = Ground::postgres().await;
    // Nobody else may say when deadlocks are looked for.
    let site = Site::with_role(&ground, "SUPERUSER").await;
    // A counter of somebody's own makes a settle wait for a row that a person has.
    ground
        .run(
            "CREATE TABLE tally (n integer); INSERT INTO tally VALUES (0);
             CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN UPDATE tally SET n = n + 1; RETURN NULL; END $$;
             CREATE TRIGGER counted AFTER INSERT ON results FOR EACH ROW EXECUTE FUNCTION counted()",
        )
        .await;
    // Whoever waits the shorter time finds the deadlock and gives way.
    let role = &site.role;
    ground.run(&format!("ALTER ROLE {role} SET deadlock_timeout = '500ms'")).await;
    let mut site = site;
    site.mill.set("PROMPTMILL_DATABASE__OPERATION_SECONDS", "30");
    let mut person = person(&ground).await;
    say(&mut person, "SET deadlock_timeout = '60s'; BEGIN; UPDATE tally SET n = n").await;
    site.mill.insert(&["one"]).await;
    let daemon = site.mill.start();
    site.until_sessions("wait_event_type = 'Lock'", 1).await;
    // Returns as soon as the daemon has given way.
    say(&mut person, "SELECT FROM job_state WHERE job_id = 1 FOR UPDATE; COMMIT").await;
    site.recovers(1).await;
    assert_eq!(ground.line("SELECT n FROM tally").await, "1", "counted once");
    site.every_job_was_called_once(1).await;
    assert_eq!(daemon.stop().await.code, 0);
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_server_without_a_free_connection_is_waited_for() {
    const LIMIT: usize = 6;
    let ground = Ground::postgres().await;
    // A superuser would pass by the limit.
    let limited = format!("IN ROLE promptmill_worker CONNECTION LIMIT {LIMIT}");
    let site = Site::with_role(&ground, &limited).await;
    site.insert(24, "100ms").await;
    let daemon = site.mill.start();
    site.mill.until_asked(8).await;
    // Others take every connection there is as soon as it is free.
    let url = super::lead(&ground.url(), super::address_of(&ground.url()), &site.role);
    let mut others = Vec::new();
    while others.len() < LIMIT {
        ground
            .run(&format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE usename = '{}' AND application_name = 'promptmill'",
                site.role
            ))
            .await;
        if let Ok(connection) = PgConnection::connect_with(&server::options_of(&url)).await {
            others.push(connection);
        }
    }
    site.until_calls_are_over().await;
    let before = site.proxy.seen().connections;
    super::until("it is tried again", || site.proxy.seen().connections >= before + 5).await;
    for other in others {
        other.close().await.expect("it goes");
    }
    site.recovers(24).await;
    site.every_job_was_called_once(24).await;
    assert_eq!(daemon.stop().await.code, 0);
    site.close().await;
    ground.close().await;
}
