//! Which jobs a bulk command means, and going through them a page at a time.

use std::collections::HashSet;

use anyhow::Context as _;

use super::exit::Stop;
use super::out::{say, time};
use crate::domain::job::JobId;
use crate::domain::outcome::Outcome;
use crate::store::{Desk, JobFilter, Moment, StateCounts, StoreError};

/// Jobs changed in one statement.
const PAGE: usize = 1_000;

/// Which jobs: by id, or by label and queue, or all.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// Jobs, by id
    #[arg(value_name = "JOB", value_parser = job_id, conflicts_with_all = ["batch", "queue", "all"])]
    pub jobs: Vec<i64>,
    /// All of this batch
    #[arg(long, short, value_name = "LABEL")]
    pub batch: Option<String>,
    /// All of this queue
    #[arg(long, value_name = "QUEUE")]
    pub queue: Option<String>,
    /// All there are
    #[arg(long, conflicts_with_all = ["batch", "queue"])]
    pub all: bool,
    /// Only say how many it would be
    #[arg(long)]
    pub dry_run: bool,
}

/// A change of some jobs, in one statement.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// Cancels those that are not done.
    Cancel,
    /// Makes done and scheduled ones pending.
    RunAgain,
}

impl Change {
    async fn apply(self, desk: &dyn Desk, jobs: &[JobId]) -> Result<u64, StoreError> {
        match self {
            Self::Cancel => desk.cancel(jobs).await,
            Self::RunAgain => desk.run_again(jobs).await,
        }
    }

    /// Returns those that cannot run again.
    async fn redacted(self, desk: &dyn Desk, jobs: &[JobId]) -> anyhow::Result<Vec<(JobId, Moment)>> {
        match self {
            Self::Cancel => Ok(Vec::new()),
            Self::RunAgain => desk.redacted(jobs).await.context("failed to look at the jobs"),
        }
    }
}

/// Which of the jobs that are meant are to be changed. Empty lists do not narrow.
#[derive(Debug, Default)]
pub struct Only {
    /// Those in one of these states.
    pub states: &'static [&'static str],
    /// Those that ended so.
    pub outcomes: Vec<String>,
    /// Those whose result names such an error.
    pub error_types: Vec<String>,
}

/// What became of a bulk command.
#[derive(Debug, Default)]
pub struct Changed {
    /// Jobs that were changed, or would be.
    pub done: u64,
    /// Jobs that were named and need no change.
    pub left: u64,
    /// Jobs that were named and are not there.
    pub missing: Vec<JobId>,
    /// Jobs that cannot run again: nobody knows what they asked.
    pub redacted: u64,
}

impl Which {
    /// Refuses a command that names nothing.
    pub fn check(&self, command: &str) -> anyhow::Result<()> {
        if self.jobs.is_empty() && self.batch.is_none() && self.queue.is_none() && !self.all {
            return Err(Stop::usage(format!(
                "say which jobs: promptmill {command} JOB…, --batch LABEL, --queue QUEUE, or --all"
            )));
        }
        Ok(())
    }

    /// Changes the jobs in order of their ids, [`PAGE`] a statement.
    pub async fn change(&self, desk: &dyn Desk, change: Change, only: Only) -> anyhow::Result<Changed> {
        if !self.jobs.is_empty() {
            return self.change_named(desk, change, only.states).await;
        }
        let filter = JobFilter {
            batch: self.batch.clone(),
            queue: self.queue.clone(),
            states: only.states.iter().map(|state| (*state).to_owned()).collect(),
            outcomes: only.outcomes,
            error_types: only.error_types,
        };
        check_exists(desk, self.batch.as_deref(), self.queue.as_deref()).await?;
        let mut changed = Changed::default();
        let mut after = JobId(0);
        loop {
            let jobs = desk.select(&filter, after, PAGE as i64).await.context("failed to select jobs")?;
            let Some(last) = jobs.last() else { return Ok(changed) };
            after = *last;
            let redacted = change.redacted(desk, &jobs).await?.len() as u64;
            changed.redacted += redacted;
            changed.done += if self.dry_run {
                jobs.len() as u64 - redacted
            } else {
                change.apply(desk, &jobs).await.with_context(|| {
                    format!("failed after {} jobs were changed; the same command goes on", changed.done)
                })?
            };
        }
    }

    async fn change_named(
        &self,
        desk: &dyn Desk,
        change: Change,
        states: &[&str],
    ) -> anyhow::Result<Changed> {
        let mut jobs: Vec<JobId> = self.jobs.iter().copied().map(JobId).collect();
        jobs.sort_unstable();
        jobs.dedup();
        let mut changed = Changed::default();
        for jobs in jobs.chunks(PAGE) {
            let found = desk.outcomes(jobs).await.context("failed to look at the jobs")?;
            let there: HashSet<JobId> = found.iter().map(|(job, _)| *job).collect();
            changed.missing.extend(jobs.iter().filter(|job| !there.contains(job)));
            let redacted = change.redacted(desk, jobs).await?;
            for (job, at) in &redacted {
                say(&format!(
                    "job {job} was redacted at {}: its prompt is gone and cannot run again; enqueue it anew",
                    time(*at)
                ));
            }
            let redacted = redacted.len() as u64;
            let done = if self.dry_run {
                let done = states.contains(&"done");
                found.iter().filter(|(_, outcome)| outcome.is_some() == done).count() as u64 - redacted
            } else {
                change.apply(desk, jobs).await.context("failed to change the jobs")?
            };
            changed.done += done;
            changed.redacted += redacted;
            changed.left += (found.len() as u64).saturating_sub(done + redacted);
        }
        for job in &changed.missing {
            say(&format!("job {job} does not exist"));
        }
        Ok(changed)
    }
}

/// A label with a typing error must not pass for one whose jobs are all done, nor a queue's name.
pub async fn check_exists(desk: &dyn Desk, batch: Option<&str>, queue: Option<&str>) -> anyhow::Result<()> {
    if let Some(batch) = batch
        && desk.batch_counts(batch).await.context("failed to look at the batch")? == StateCounts::default()
    {
        return Err(Stop::failure(format!("no job has batch \"{batch}\"")));
    }
    if let Some(queue) = queue {
        let queues = desk.queue_names().await.context("failed to look at the queues")?;
        if !queues.iter().any(|known| known == queue) {
            return Err(unknown_queue(queue, &queues));
        }
    }
    Ok(())
}

/// Says that a queue is not there, and which are.
pub fn unknown_queue(queue: &str, known: &[String]) -> anyhow::Error {
    let known = if known.is_empty() {
        "there is none yet".to_owned()
    } else {
        format!("there are: {}", known.join(", "))
    };
    Stop::failure(format!("no queue is named \"{queue}\"; {known}"))
}

/// Reads a job's id from the command line.
pub fn job_id(word: &str) -> Result<i64, String> {
    word.parse().map_err(|_| {
        "a job is named by its id, a whole number; `promptmill show KEY` tells the id of a key".to_owned()
    })
}

/// Reads an outcome's word; for clap.
pub fn outcome(word: &str) -> Result<String, String> {
    Outcome::parse(word).map(|outcome| outcome.as_str().to_owned()).ok_or_else(|| {
        let known: Vec<&str> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
        format!("known are {}", known.join(", "))
    })
}
