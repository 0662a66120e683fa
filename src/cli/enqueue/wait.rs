//! Waiting for jobs to be done, by looking: a result may be written by any daemon anywhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::cli::exit::{Exit, Stop};
use crate::cli::out::{Out, count, number, say};
use crate::cli::progress::{Beside, Progress};
use crate::cli::results::json_of;
use crate::domain::job::JobId;
use crate::domain::outcome::Outcome;
use crate::store::{Desk, Texts, WorkerLine};

/// Jobs looked at in one statement.
const LOOK_MAX: usize = 10_000;
/// Shortest pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// Waits for one job and prints its answer, where it is complete.
pub async fn for_answer(desk: &dyn Desk, job: JobId, json: bool, out: &mut Out) -> anyhow::Result<Exit> {
    let ended = wait(desk, vec![job]).await?;
    if ended.deleted > 0 {
        return Err(Stop::failure(format!("job {job} was deleted while it was waited for")));
    }
    let row = desk.results(&[job], Texts::Whole).await?.pop();
    let row = row.with_context(|| format!("job {job} was run again while it was waited for"))?;
    let complete = row.outcome == Outcome::Complete.as_str();
    if json {
        out.line(&json_of(&row))?;
    } else if complete {
        out.line(row.text.as_deref().unwrap_or_default())?;
    }
    out.flush()?;
    if complete {
        return Ok(Exit::Good);
    }
    let why = row.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    say(&format!("job {job} ended as {}{why}; promptmill show {job} tells its story", row.outcome));
    Ok(Exit::NotComplete)
}

/// Waits for jobs and says how they ended.
pub async fn for_all(desk: &dyn Desk, jobs: Vec<JobId>) -> anyhow::Result<Exit> {
    let ended = wait(desk, jobs).await?;
    let mut parts: Vec<String> =
        ended.outcomes.iter().map(|(outcome, n)| format!("{} {outcome}", number(*n))).collect();
    if ended.deleted > 0 {
        parts.push(format!("{} deleted", number(ended.deleted)));
    }
    let done: i64 = ended.outcomes.values().sum();
    let all =
        ended.deleted == 0 && ended.outcomes.keys().all(|outcome| outcome == Outcome::Complete.as_str());
    say(&format!("{} done: {}", count(done, "job", "jobs"), parts.join(", ")));
    Ok(if all { Exit::Good } else { Exit::NotComplete })
}

#[derive(Debug, Default)]
struct Ended {
    outcomes: BTreeMap<String, i64>,
    deleted: i64,
}

async fn wait(desk: &dyn Desk, mut left: Vec<JobId>) -> anyhow::Result<Ended> {
    left.sort_unstable();
    left.dedup();
    let mut progress = Progress::begin("jobs done", Some(left.len() as u64), Beside::Nothing);
    let mut ended = Ended::default();
    let mut warned = false;
    loop {
        let began = Instant::now();
        let mut still = Vec::new();
        for jobs in left.chunks(LOOK_MAX) {
            let found = desk.outcomes(jobs).await.context("failed to look at the jobs")?;
            ended.deleted += (jobs.len() - found.len()) as i64;
            for (job, outcome) in found {
                match outcome {
                    Some(outcome) => *ended.outcomes.entry(outcome).or_default() += 1,
                    None => still.push(job),
                }
            }
        }
        progress.add((left.len() - still.len()) as u64);
        left = still;
        if left.is_empty() {
            return Ok(ended);
        }
        if !warned {
            warned = true;
            let workers = desk.worker_lines().await.context("failed to look at the workers")?;
            if workers.iter().all(WorkerLine::is_silent) {
                progress.say("nobody is at work on this database yet: promptmill run starts a daemon");
            }
        }
        // A million jobs take a while to look at: look a fifth of the time at most.
        tokio::time::sleep(PAUSE_MIN.max(began.elapsed() * 4)).await;
    }
}
