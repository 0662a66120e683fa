//! `purge`: what goes, what is refused, and that nothing comes back from the files of this host.

use std::fs;
use std::path::PathBuf;

use promptmill::domain::job::{JobId, Lease, WorkerId};
use promptmill::domain::ledger::{Back, Release};
use promptmill::worker::spool::Spool;
use promptmill::worker::spool::line::{Line, Write};

use super::{Desk, settle};
use crate::support::{Ground, on_both};

on_both! {
    purge_erases_done_jobs_with_all_that_belongs_to_them,
    purge_says_how_many_and_asks,
    what_is_not_done_is_refused_with_what_to_do,
    purge_by_time_takes_what_ended_before,
    redact_takes_only_what_was_asked,
    a_redacted_job_is_shown_as_one_and_cannot_be_retried,
    a_key_of_a_redacted_job_is_still_taken_by_it,
    lines_of_erased_jobs_go_from_the_spool_and_others_stay,
    a_file_of_a_living_process_is_left_to_it_and_named,
    names_that_are_nobodys_are_told,
    many_jobs_go_in_steps,
}

/// Jobs 1 to 3 are done, 4 is not; 1 and 2 are a batch.
async fn four(ground: &Ground) {
    ground
        .run("INSERT INTO jobs (prompt, batch, key, queue) VALUES ('a', 'b', 'b/1', 'q'), ('b', 'b', 'b/2', 'default'), ('c', NULL, NULL, 'q'), ('d', NULL, NULL, 'q')")
        .await;
    for job in 1..=3 {
        settle(ground, job, "complete", "end_turn", "x").await;
    }
}

async fn jobs(ground: &Ground) -> String {
    ground.lines("SELECT id FROM jobs ORDER BY id").await.join(" ")
}

async fn purge_erases_done_jobs_with_all_that_belongs_to_them(ground: &Ground) {
    four(ground).await;
    let desk = Desk::new(ground);
    let said = desk.mill(&["purge", "--batch", "b", "--yes"]).said(0);
    assert_eq!(
        said,
        "2 done jobs will be erased, with their answers, ledger and all that belongs to them\n2 jobs erased\n"
    );
    assert_eq!(jobs(ground).await, "3 4");
    for part in ["results", "calls"] {
        assert_eq!(ground.line(&format!("SELECT job_id FROM {part}")).await, "3", "{part}");
    }
    let json = desk.mill(&["purge", "--queue", "q", "--done-only", "--yes", "--json"]).json();
    assert_eq!((json["matched"].as_i64(), json["erased"].as_i64()), (Some(1), Some(1)));
    assert_eq!(jobs(ground).await, "4");
}

async fn purge_says_how_many_and_asks(ground: &Ground) {
    four(ground).await;
    let desk = Desk::new(ground);
    assert!(desk.mill(&["purge"]).said(2).contains("say which jobs"));
    let said = desk.mill_with(&["purge", "1"], "yes\n").said(2);
    assert!(
        said.contains("1 done job will be erased") && said.contains("no terminal to ask on: add --yes"),
        "{said}"
    );
    let said = desk.mill(&["purge", "1", "2", "--dry-run"]).said(0);
    assert_eq!(
        said,
        "2 done jobs would be erased, with their answers, ledger and all that belongs to them\n"
    );
    assert_eq!(jobs(ground).await, "1 2 3 4");
}

async fn what_is_not_done_is_refused_with_what_to_do(ground: &Ground) {
    four(ground).await;
    let desk = Desk::new(ground);
    for args in [
        &["purge", "--queue", "q", "--yes"][..],
        &["purge", "3", "4", "--yes"],
        &["purge", "4", "--redact", "--yes"],
    ] {
        let said = desk.mill(args).said(1);
        assert!(
            said.contains("1 job of these is not done (1 pending): nothing was erased; end them with `promptmill cancel`"),
            "{said}"
        );
    }
    ground.run("UPDATE job_state SET state = 'running', claims = 1, claimed_by = 1 WHERE job_id = 4").await;
    assert!(desk.mill(&["purge", "4", "--yes"]).said(1).contains("(1 running)"));
    assert_eq!(jobs(ground).await, "1 2 3 4");
    assert_eq!(desk.mill(&["cancel", "4"]).code, 0);
    assert!(desk.mill(&["purge", "4", "--yes"]).said(0).ends_with("1 job erased\n"));
}

async fn purge_by_time_takes_what_ended_before(ground: &Ground) {
    four(ground).await;
    ground
        .run(&format!("UPDATE results SET finished_at = {} WHERE job_id = 1", ground.at(-40 * 86_400)))
        .await;
    ground
        .run(&format!("UPDATE results SET finished_at = {} WHERE job_id = 2", ground.at(-20 * 86_400)))
        .await;
    let desk = Desk::new(ground);
    assert_eq!(desk.mill(&["purge", "--before", "41d", "--yes"]).said(0), "no done job to erase\n");
    assert!(desk.mill(&["purge", "--before", "30d", "--yes"]).said(0).ends_with("1 job erased\n"));
    assert_eq!(jobs(ground).await, "2 3 4");
    assert!(desk.mill(&["purge", "--before", "2000-01-01", "--yes"]).said(0).contains("no done job"));
    assert!(
        desk.mill(&["purge", "--before", "2999-01-01", "--queue", "default", "--yes"])
            .said(0)
            .ends_with("1 job erased\n")
    );
    assert_eq!(jobs(ground).await, "3 4");
    assert_eq!(desk.mill(&["purge", "--before", "yesterday"]).code, 2);
}

async fn redact_takes_only_what_was_asked(ground: &Ground) {
    four(ground).await;
    let desk = Desk::new(ground);
    let said = desk.mill(&["purge", "--key", "b/1", "--key", "b/2", "--redact", "--yes"]).said(0);
    assert_eq!(
        said,
        "what 2 done jobs asked will be erased; answers and ledger stay, and they cannot run again\n2 jobs redacted\n"
    );
    assert_eq!(
        ground.lines("SELECT id FROM jobs WHERE redacted_at IS NOT NULL AND prompt IS NULL").await,
        ["1", "2"]
    );
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE text = 'x'").await, "3");
    assert_eq!(desk.mill(&["purge", "--batch", "b", "--redact", "--yes"]).said(0), "no done job to erase\n");
    assert!(desk.mill(&["purge", "--batch", "b", "--yes"]).said(0).ends_with("2 jobs erased\n"));
}

async fn a_redacted_job_is_shown_as_one_and_cannot_be_retried(ground: &Ground) {
    four(ground).await;
    let desk = Desk::new(ground);
    desk.mill(&["purge", "1", "--redact", "--yes"]).good();
    let out = desk.mill(&["show", "1"]).good();
    assert!(out.contains("prompt, system and params were redacted at 2") && out.contains("text: x"), "{out}");
    let shown = desk.mill(&["show", "1", "--json"]).json();
    assert!(shown["job"]["redacted_at"].is_string() && shown["job"]["prompt"].is_null(), "{shown}");
    let told = desk.mill(&["results"]).said(0);
    assert_eq!(told, "3 results\n1 prompt was redacted; promptmill show JOB tells when\n");
    let lines = desk.mill(&["results", "--json"]).good();
    assert_eq!(lines.lines().filter(|line| line.contains("\"redacted_at\":\"2")).count(), 1);

    let said = desk.mill(&["retry", "1"]).said(1);
    assert!(
        said.contains("job 1 was redacted at 2") && said.contains("cannot run again; enqueue it anew"),
        "{said}"
    );
    assert!(said.ends_with("0 jobs run again, 1 job redacted and left as they are\n"), "{said}");
    let said = desk.mill(&["retry", "--batch", "b", "--outcome", "complete", "--dry-run"]).said(0);
    assert_eq!(said, "1 job would run again, 1 job redacted and left as they are\n");
    let json = desk.mill(&["retry", "--batch", "b", "--outcome", "complete", "--json"]).json();
    assert_eq!((json["retried"].as_i64(), json["redacted"].as_i64()), (Some(1), Some(1)));
    assert_eq!(
        ground.lines("SELECT state FROM job_state WHERE job_id < 3 ORDER BY job_id").await,
        ["done", "pending"]
    );
}

async fn a_key_of_a_redacted_job_is_still_taken_by_it(ground: &Ground) {
    let desk = Desk::new(ground);
    let line =
        "{\"custom_id\": \"1\", \"params\": {\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}}\n";
    let file = desk.file("a.jsonl", line);
    desk.mill(&["enqueue", file, "--batch", "b"]).good();
    settle(ground, 1, "complete", "end_turn", "x").await;
    desk.mill(&["purge", "--batch", "b", "--redact", "--yes"]).good();
    assert_eq!(desk.mill(&["enqueue", file, "--batch", "b"]).said(0), "batch b: 0 new, 1 already there\n");
    desk.mill(&["purge", "--batch", "b", "--yes"]).good();
    assert_eq!(desk.mill(&["enqueue", file, "--batch", "b"]).said(0), "batch b: 1 new, 0 already there\n");
}

/// What a process that is gone left in its spool: a line for each of these jobs.
async fn spooled(ground: &Ground, dir: PathBuf, jobs: &[i64]) -> (Spool, PathBuf) {
    let database = ground.line("SELECT database_id FROM meta").await;
    let lines: Vec<Line> = jobs
        .iter()
        .map(|&job| {
            let lease = Lease { job: JobId(job), claim: 1, run: 1 };
            let reason = Some(format!("canary-{job}"));
            let release = Release { lease, back: Back::Now, failures: 0, deferrals: 0, reason, call: None };
            Line::new(&database, WorkerId(1), Write::Release(release))
        })
        .collect();
    let mut spool = Spool::new(Some(dir), &database);
    let file = spool.keep(&lines).expect("the folder can be written");
    spool.set_aside(&lines[0]).expect("the folder can be written");
    (spool, file)
}

fn canaries(desk: &Desk<'_>) -> String {
    let mut found = Vec::new();
    for entry in fs::read_dir(state(desk)).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("a file");
        found.extend((1..=4).filter(|job| text.contains(&format!("canary-{job}"))));
    }
    found.sort_unstable();
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn state(desk: &Desk<'_>) -> PathBuf {
    desk.dir.path().join("state")
}

async fn lines_of_erased_jobs_go_from_the_spool_and_others_stay(ground: &Ground) {
    four(ground).await;
    let desk = Desk::new(ground);
    let (spool, file) = spooled(ground, state(&desk), &[1, 2, 3]).await;
    drop(spool);
    assert_eq!(canaries(&desk), "1 1 2 3");
    let json = desk.mill(&["purge", "--batch", "b", "--yes", "--json"]).json();
    assert_eq!(json["spool_lines"], 3);
    assert_eq!(canaries(&desk), "3");
    let left = Spool::new(Some(state(&desk)), &ground.line("SELECT database_id FROM meta").await).left();
    assert_eq!(left.len(), 1, "the next daemon takes up what stays");
    assert_eq!(left[0].lines.len(), 1);
    drop(left);
    // Jobs that went by hand are gone from the files with the next purge.
    ground.run("DELETE FROM jobs WHERE id = 3").await;
    let said = desk.mill(&["purge", "--before", "9999d", "--yes"]).said(0);
    assert_eq!(said, "no done job to erase\n1 line taken out of spool files\n");
    assert_eq!(fs::metadata(file).expect("the file stays").len(), 0);
}

async fn a_file_of_a_living_process_is_left_to_it_and_named(ground: &Ground) {
    four(ground).await;
    let desk = Desk::new(ground);
    let (living, file) = spooled(ground, state(&desk), &[1, 3]).await;
    let said = desk.mill(&["purge", "1", "--yes"]).said(1);
    assert!(
        said.contains("1 job erased") && said.contains(&format!("1 line is left in {}", file.display())),
        "{said}"
    );
    assert_eq!(canaries(&desk), "1 3", "but what was set aside is gone");
    drop(living);
    assert!(desk.mill(&["purge", "1", "--yes"]).said(1).contains("1 line taken out of spool files"));
    assert_eq!(canaries(&desk), "3");
}

async fn names_that_are_nobodys_are_told(ground: &Ground) {
    four(ground).await;
    let desk = Desk::new(ground);
    assert!(
        desk.mill(&["purge", "--batch", "nobody", "--yes"]).said(1).contains("no job has batch \"nobody\"")
    );
    assert!(desk.mill(&["purge", "--queue", "nobody", "--yes"]).said(1).contains("no queue is named"));
    let said = desk.mill(&["purge", "--key", "b/1", "--key", "nobody", "--yes"]).said(1);
    assert!(said.contains("no job has the key \"nobody\"") && said.contains("1 job erased"), "{said}");
    assert!(desk.mill(&["purge", "99", "--yes"]).said(1).contains("job 99 does not exist"));
    assert!(desk.mill(&["purge", "--key", "nobody", "--yes"]).said(1).contains("no done job to erase"));
    assert_eq!(jobs(ground).await, "2 3 4");
}

async fn many_jobs_go_in_steps(ground: &Ground) {
    let rows = vec!["('p', 'many')"; 3_000].join(", ");
    ground.run(&format!("INSERT INTO jobs (prompt, batch) VALUES {rows}")).await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    let desk = Desk::new(ground);
    assert!(desk.mill(&["purge", "--batch", "many", "--yes"]).said(0).ends_with("3,000 jobs erased\n"));
    assert_eq!(jobs(ground).await, "");
}
