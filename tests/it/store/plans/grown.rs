//! Tables that have seen much, made by plain SQL beside the store.

use super::seen::BY_HAND;
use crate::support::Ground;

/// Enough for the tables to hold many times what a statement may read.
pub const MANY: usize = 60_000;

/// As many as a new installation may have when it is analysed.
pub const FEW: usize = 600;

/// Adds so many jobs: a third each done, scheduled and pending; of the last some run elsewhere or wait for
/// tools. Every pending job was claimed before, so that each claim has a ledger to read; they stand
/// in twenty lanes, some of which have a limit.
pub async fn grow(ground: &Ground, jobs: usize) {
    let series = |rows: usize| {
        let sqlite = format!(
            "(WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) SELECT i FROM n)"
        );
        ground.either(&sqlite, &format!("generate_series(1, {rows}) AS n (i)")).to_owned()
    };
    let later = ground.at(3600);
    let (jobs, parts) = (series(jobs), series(20));
    for sql in [
        format!(
            "INSERT INTO jobs (prompt, queue, batch, model)
             SELECT 'say hello', 'q' || (i / 3 % 5), 'b' || (i / 15 % 2), CASE WHEN i / 3 % 2 = 0 THEN 'm' END FROM {jobs}"
        ),
        "UPDATE queues SET max_running = 1000000 WHERE name = 'q4'".to_owned(),
        "UPDATE job_state SET state = 'done', claims = 1 WHERE job_id % 3 = 0".to_owned(),
        format!("UPDATE job_state SET state = 'scheduled', available_at = {later}, claims = 1 WHERE job_id % 3 = 1"),
        "UPDATE job_state SET state = 'running', claimed_by = 999, claims = 1 WHERE job_id % 60 = 2".to_owned(),
        "UPDATE job_state SET state = 'waiting', claims = 1 WHERE job_id % 60 = 5".to_owned(),
        "UPDATE job_state SET claims = 1 WHERE state = 'pending'".to_owned(),
        format!("UPDATE job_state SET deadline_at = {later} WHERE job_id % 5 = 0"),
        "INSERT INTO results (job_id, run, queue, batch, outcome)
         SELECT id, 1, queue, batch, 'complete' FROM jobs WHERE id % 3 = 0"
            .to_owned(),
        "INSERT INTO calls (job_id, claim, seq, run, kind) SELECT id, 1, 1, 1, 'ask' FROM jobs WHERE id % 3 <> 1"
            .to_owned(),
        "INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, worker)
         SELECT job_id, 1, 1, 0, 1, 'c', 'tool', 1 FROM job_state WHERE state = 'waiting'"
            .to_owned(),
        "INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, worker, result, answered_at)
         SELECT id, 1, 1, 0, 1, 'c', 'tool', 1, '', created_at FROM jobs WHERE id % 3 = 0"
            .to_owned(),
        format!(
            "INSERT INTO checkpoints (job_id, claim, seq, part, content)
             SELECT job_id, 1, 1, i, 'text' FROM job_state CROSS JOIN {parts} WHERE claimed_by = 999"
        ),
    ] {
        ground.run(&format!("{BY_HAND} {sql}")).await;
    }
}

/// Leaves statistics as the server makes them by and by.
pub async fn analyze(ground: &Ground) {
    ground.run(&format!("{BY_HAND} ANALYZE")).await;
}
