//! Newer tables under running daemons, and migrations beside them.

use std::time::{Duration, Instant};

use promptmill::store::migrations::{LATEST, STEPS, Step};
use promptmill::store::{Migrate, StoreError, StoreSettings, migrate, open};

use crate::mill::harness::{Daemon, Mill};
use crate::support::{Ground, Kind, on_both};

on_both!(
    a_daemon_that_a_migration_outdates_finishes_its_calls_and_leaves_with_exit_5,
    a_daemon_runs_on_over_newer_tables_that_say_nothing_else,
    four_processes_that_migrate_at_once_make_each_step_once,
);

/// A step after the last one that this version knows.
const NEXT: Step = Step {
    version: LATEST + 1,
    name: "add_colour",
    postgres: "ALTER TABLE job_state ADD COLUMN colour text; UPDATE meta SET schema_version = schema_version + 1;",
    sqlite: "ALTER TABLE job_state ADD COLUMN colour TEXT; UPDATE meta SET schema_version = schema_version + 1;",
};

/// A step that no older version can live with.
const BREAKING: Step = Step {
    version: LATEST + 2,
    name: "rename_beat",
    postgres: "-- breaking\nALTER TABLE workers RENAME COLUMN running TO busy;
               UPDATE meta SET schema_version = schema_version + 1, schema_min = schema_version + 1;",
    sqlite: "-- breaking\nALTER TABLE workers RENAME COLUMN running TO busy;
             UPDATE meta SET schema_version = schema_version + 1, schema_min = schema_version + 1;",
};

fn settings(ground: &Ground) -> StoreSettings {
    StoreSettings {
        schema: ground.schema().to_owned(),
        connections_max: 4,
        operation_max: Duration::from_secs(30),
        answers_once: true,
        connect_max: Duration::from_secs(10),
        listen_url: None,
        transaction_pooler: false,
    }
}

fn steps(more: &[Step]) -> Vec<Step> {
    [STEPS, more].concat()
}

/// Puts the ground under migrations as the product runs them: on its own it is made by the driver.
async fn bring_up(ground: &Ground, more: &[Step]) -> Result<(), StoreError> {
    migrate(&ground.url(), &settings(ground), &steps(more)).await
}

async fn a_daemon_that_a_migration_outdates_finishes_its_calls_and_leaves_with_exit_5(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[tokens 60]] [[delay 5s]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    bring_up(ground, &[NEXT, BREAKING]).await.expect("the steps run beside the daemon");
    mill.until_said(&daemon, "install a newer promptmill; nothing more is claimed").await;
    mill.insert(&["too late"]).await;
    let ran = daemon.ended().await;
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert!(ran.stderr.trim_end().ends_with("install a newer promptmill"), "{}", ran.stderr);
    assert_eq!(
        ground.lines("SELECT state FROM job_state ORDER BY job_id").await,
        ["done", "pending"],
        "{}",
        ran.stderr
    );
    assert_eq!(ground.line("SELECT outcome FROM results").await, "complete");
    mill.holds().await;
    let again = mill.run(&["run"]).await;
    assert_eq!(again.code, 5, "{}", again.stderr);
}

async fn a_daemon_runs_on_over_newer_tables_that_say_nothing_else(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let daemon = mill.start();
    mill.until("SELECT count(*) FROM workers", "1").await;
    bring_up(ground, &[NEXT]).await.expect("the step runs beside the daemon");
    let beats = ground.line("SELECT beat FROM workers").await;
    mill.insert(&["afterwards"]).await;
    mill.until("SELECT outcome FROM results", "complete").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{beats}: {}", ran.stderr);
    assert_eq!(mill.drain().await.code, 0, "it also starts on them");
}

async fn four_processes_that_migrate_at_once_make_each_step_once(ground: &Ground) {
    let mill = Mill::new(ground).await;
    // From nothing, by the binary.
    let (url, schema) = (ground.url().replace("mill.db", "new.db"), format!("{}_new", ground.schema()));
    let mut started = Vec::new();
    for _ in 0..4 {
        let mut command = mill.command(&["migrate"]);
        command.env("DATABASE_URL", &url);
        if ground.kind() == Kind::Postgres {
            command.env("PROMPTMILL_DATABASE__SCHEMA", &schema);
        }
        started.push(Daemon::by(command));
    }
    for process in started {
        let ran = process.ended().await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    let there = StoreSettings { schema: schema.clone(), ..settings(ground) };
    open(&url, &there, Migrate::Never).await.map(drop).expect("the tables are there");
    if ground.kind() == Kind::Postgres {
        ground.run(&format!("SET client_min_messages = warning; DROP SCHEMA {schema} CASCADE")).await;
    }
    // From the version before, with jobs in the tables. A step that ran twice would fail.
    mill.insert(&["one"]).await;
    let all = (0..4).map(|_| bring_up(ground, &[NEXT]));
    for done in futures_util::future::join_all(all).await {
        done.expect("each of them finds the step made");
    }
    let version = ground.line("SELECT schema_version FROM meta").await;
    assert_eq!(version, (LATEST + 1).to_string());
    assert_eq!(ground.line("SELECT colour FROM job_state").await, "NULL");
}

/// Postgres alone: SQLite has one writer, and no lock of a table.
#[tokio::test]
async fn a_migration_that_meets_a_persons_lock_stands_in_nobodys_way() {
    let ground = Ground::postgres().await;
    let mill = Mill::new(&ground).await;
    let person = Ground::postgres_pool(|options| options.application_name("somebody")).await;
    let state = ground.table("job_state");
    let mut holding = person.begin().await.expect("a transaction");
    sqlx::query(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {state}")))
        .fetch_one(&mut *holding)
        .await
        .expect("a look that keeps its lock");
    let daemon = mill.start();
    mill.until("SELECT count(*) FROM workers", "1").await;
    let migrating = bring_up(&ground, &[NEXT]);
    let working = async {
        let mut worst = Duration::ZERO;
        for _ in 0..20 {
            let began = Instant::now();
            mill.insert(&["meanwhile"]).await;
            worst = worst.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        worst
    };
    let (refused, worst) = tokio::join!(migrating, working);
    let said = refused.expect_err("the lock is held").to_string();
    assert!(said.contains("(somebody) has had a lock there for longest"), "{said}");
    assert!(worst < Duration::from_secs(3), "an insert waited for {worst:?}");
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "20").await;
    holding.commit().await.expect("it lets go");
    bring_up(&ground, &[NEXT]).await.expect("now it runs");
    assert_eq!(daemon.stop().await.code, 0);
    person.close().await;
    ground.close().await;
}
