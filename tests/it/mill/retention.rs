//! A daemon takes away what done jobs are not to keep any longer, as it is configured, and nothing else.

use std::fs;

use super::harness::Mill;
use crate::support::{Ground, on_both};

on_both! {
    a_daemon_redacts_and_deletes_what_is_too_old,
    by_default_everything_is_kept,
    what_waited_in_a_file_for_an_erased_job_is_dropped,
}

/// Jobs that ended so many days ago.
async fn ended(mill: &Mill<'_>, days: &[i64]) {
    let prompts: Vec<String> = days.iter().map(|days| format!("[[tokens 5]] of {days} days ago")).collect();
    mill.insert(&prompts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(mill.drain().await.code, 0);
    for days in days {
        let at = mill.ground.at(-days * 86_400 - 60);
        let job = format!("SELECT id FROM jobs WHERE prompt LIKE '% of {days} days ago'");
        mill.ground.run(&format!("UPDATE results SET finished_at = {at} WHERE job_id = ({job})")).await;
    }
}

const LEFT: &str = "SELECT id, prompt FROM jobs ORDER BY id";

async fn a_daemon_redacts_and_deletes_what_is_too_old(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.knows_a_limit();
    ended(&mill, &[40, 10, 1]).await;
    mill.set("PROMPTMILL_RETENTION__REDACT_DAYS", "9.5");
    mill.set("PROMPTMILL_RETENTION__DELETE_DAYS", "30");
    let daemon = mill.start();
    mill.until(LEFT, "2|NULL\n3|[[tokens 5]] of 1 days ago").await;
    mill.until_said(&daemon, "1 old job deleted").await;
    mill.until_said(&daemon, "the prompt of 1 old job redacted").await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE text IS NOT NULL").await, "2");
    assert_eq!(ground.line("SELECT count(*) FROM calls").await, "2");
    mill.holds().await;
}

async fn by_default_everything_is_kept(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ended(&mill, &[9_999]).await;
    let daemon = mill.start();
    mill.until("SELECT max(beat) > 0 FROM workers", ground.either("1", "t")).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.line(LEFT).await, "1|[[tokens 5]] of 9999 days ago");
}

async fn what_waited_in_a_file_for_an_erased_job_is_dropped(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[seed a]] [[tokens 40]]"]).await;
    ground.run("ALTER TABLE results RENAME TO away").await;
    let daemon = mill.start();
    let file = mill.state().join("spool.jsonl");
    while fs::read_to_string(&file).unwrap_or_default().lines().count() == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    daemon.kill().await;
    ground.run("ALTER TABLE away RENAME TO results").await;
    ground.run("DELETE FROM jobs").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(fs::read(&file).expect("the file stays"), b"");
    for part in ["jobs", "job_state", "results", "calls", "checkpoints"] {
        assert_eq!(ground.line(&format!("SELECT count(*) FROM {part}")).await, "0", "{part}");
    }
    assert_eq!(mill.api.counts().total, 1);
}
