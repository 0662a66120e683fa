//! What the web page needs of the database beside [`super::Desk`]: lists of jobs by page, counts that
//! stop, what the last hour brought, and the book of what people did.
//!
//! No statement here reads more than a bounded number of rows, whatever the tables hold: each goes
//! along an index and stops. Where a filter has no index of its own, so many rows are looked at, and
//! the answer says how far it came ([`Found::next`]).

use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{Moment, NewJob, StoreError};
use crate::domain::job::JobId;
use crate::domain::outcome::{Outcome, Usage};

/// Counts stop here: more is "10,000+".
pub const COUNT_MAX: i64 = 10_000;
/// Rows that one walk looks at where no index knows the answer.
pub const SCAN_MAX: i64 = 4_000;
/// The same of each outcome, where a search walks through what ended in any way but one.
const SCAN_EACH_MAX: i64 = 1_000;
/// A search that has not filled its page goes on for so long.
const SEARCH_MAX: Duration = Duration::from_millis(30);
/// Jobs of one state that are sorted to find the newest: more are met on a walk by id.
const FEW_MAX: i64 = 2_000;
/// Pending jobs that are counted over all queues together, if each has its share.
const QUEUES_COUNT_MAX: i64 = 50_000;

/// Which jobs a list shows. `None` does not narrow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// `job_state.state`.
    pub state: Option<String>,
    /// `queue`.
    pub queue: Option<String>,
    /// `batch`.
    pub batch: Option<String>,
    /// `results.outcome`.
    pub outcome: Option<String>,
    /// `results.stop_reason`.
    pub stop_reason: Option<String>,
    /// The model that answered; of a job that is not done, the one that it names.
    pub model: Option<String>,
    /// `results.error_type`.
    pub error_type: Option<String>,
    /// `results.error_code`.
    pub error_code: Option<String>,
}

impl Wish {
    /// Whether only jobs with a result can match.
    pub fn is_of_results(&self) -> bool {
        [&self.outcome, &self.stop_reason, &self.error_type, &self.error_code]
            .into_iter()
            .any(Option::is_some)
    }
}

/// Where a list goes on. Jobs that are not done stand before those that are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// Jobs with lower ids than this.
    Job(i64),
    /// Results with lower `seq` than this.
    Result(i64),
}

/// A page of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The jobs, newest first.
    pub jobs: Vec<JobId>,
    /// Where to go on; `None`: that was all.
    pub next: Option<Cursor>,
}

/// What one statement found: (cursor, job), highest cursor first, and how far it looked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stretch {
    /// What matched.
    pub hits: Vec<(i64, i64)>,
    /// The lowest cursor that was looked at; `None`: there is nothing lower than that.
    pub reached: Option<i64>,
}

/// Which results one statement walks through, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk<'a> {
    /// All of them.
    All,
    /// Those that ended so, which is not `complete`.
    Ended(&'a str),
    /// Those of a batch that ended so.
    Batch(&'a str, &'a str),
}

/// Which jobs one statement walks through, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenWalk<'a> {
    /// All there are, done ones too.
    All,
    /// All in this state, where they are few.
    Few(OpenState),
    /// All in this state of a batch.
    Batch(&'a str, OpenState),
}

/// The states of a job that has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenState {
    /// May be claimed now.
    Pending,
    /// Not due yet.
    Scheduled,
    /// With a worker.
    Running,
    /// For tool results.
    Waiting,
}

impl OpenState {
    /// All four, in the order of a list.
    pub const ALL: [Self; 4] = [Self::Running, Self::Waiting, Self::Pending, Self::Scheduled];

    /// Returns the word of `job_state.state`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Waiting => "waiting",
        }
    }
}

/// A job in a list. Neither prompt nor answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobLine {
    /// `jobs.id`.
    pub id: JobId,
    /// `queue`.
    pub queue: String,
    /// `batch`.
    pub batch: Option<String>,
    /// `key`.
    pub key: Option<String>,
    /// `state`.
    pub state: String,
    /// `outcome`.
    pub outcome: Option<String>,
    /// `stop_reason`.
    pub stop_reason: Option<String>,
    /// The model that answered, else the one that the job names.
    pub model: Option<String>,
    /// `priority`.
    pub priority: i64,
    /// `failures`.
    pub failures: i64,
    /// Of the result.
    pub usage: Usage,
    /// `error_type`.
    pub error_type: Option<String>,
    /// `jobs.created_at`.
    pub created_at: Moment,
    /// `available_at`.
    pub available_at: Moment,
    /// `finished_at`.
    pub finished_at: Option<Moment>,
}

/// How many jobs are where, each counted up to a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// May be claimed now.
    pub pending: i64,
    /// Not due yet.
    pub scheduled: i64,
    /// With a worker.
    pub running: i64,
    /// For tool results.
    pub waiting: i64,
}

/// A queue, its jobs counted up to a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueCard {
    /// `name`.
    pub name: String,
    /// `paused`.
    pub paused: bool,
    /// `max_running`.
    pub max_running: Option<i64>,
    /// `model`.
    pub model: Option<String>,
    /// Its jobs; the scheduled ones among the first [`COUNT_MAX`] of all.
    pub jobs: Tally,
}

/// One of the results of a stretch of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beat {
    /// Milliseconds since it ended.
    pub age_ms: i64,
    /// `outcome`.
    pub outcome: String,
    /// `stop_reason`.
    pub stop_reason: Option<String>,
    /// Tokens in, of all kinds.
    pub tokens_in: i64,
    /// Tokens out.
    pub tokens_out: i64,
    /// `calls`.
    pub calls: i64,
    /// `batch`.
    pub batch: Option<String>,
}

/// What a stretch of time brought: every result, or every so many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Results.
    pub beats: Vec<Beat>,
    /// Each stands for so many.
    pub step: i64,
}

/// The job that has been due for longest, among those that are next in their lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oldest {
    /// Which.
    pub job: JobId,
    /// Milliseconds that it has been due.
    pub age_ms: i64,
}

/// The next job of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its queue.
    pub queue: String,
    /// Its batch; `''` is none.
    pub batch: String,
    /// Which, and since when it is due.
    pub oldest: Oldest,
    /// Whether nothing keeps it back: no pause, and no gate of a key, a model or a batch.
    pub free: bool,
}

/// Queues that are listed.
pub const QUEUES_MAX: i64 = 500;

/// Results of each outcome that are grouped.
pub const FAULTS_MAX: i64 = 500;

/// Results that ended alike, among the newest [`FAULTS_MAX`] of each outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultCard {
    /// `outcome`.
    pub outcome: String,
    /// `error_type`.
    pub error_type: Option<String>,
    /// `error_code`.
    pub error_code: Option<String>,
    /// `stop_reason`.
    pub stop_reason: Option<String>,
    /// How many.
    pub count: i64,
    /// The newest.
    pub newest: JobId,
    /// When that ended.
    pub at: Moment,
    /// Its `error`, at most 300 characters.
    pub error: Option<String>,
}

/// How many jobs of a batch are where, each counted up to a limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchTally {
    /// By state, those that have any.
    pub open: Vec<(String, i64)>,
    /// By outcome, those that have any.
    pub done: Vec<(String, i64)>,
}

/// How fast a batch goes: its newest results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Speed {
    /// How many were looked at.
    pub results: i64,
    /// Milliseconds since the oldest of them ended.
    pub since_ms: i64,
    /// Milliseconds since the newest of them ended.
    pub newest_ms: i64,
}

/// What the calls of a job said: one row a call that brought something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// `claim`.
    pub claim: i64,
    /// `seq`.
    pub seq: i64,
    /// `content`, of the result where the ledger left it there: JSON text, cut to as many characters as were asked for.
    pub content: String,
}

/// What tells whether a job changed since it was looked at, but for the text of its running stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mark {
    /// `job_state.state`.
    pub state: String,
    /// `run`.
    pub run: i64,
    /// `claims`.
    pub claims: i64,
    /// `failures`.
    pub failures: i64,
    /// `priority`.
    pub priority: i64,
    /// `available_at`.
    pub available_at: i64,
    /// `jobs.redacted_at`.
    pub redacted_at: Option<i64>,
    /// Why it waits.
    pub reason: Option<String>,
    /// Rows of the ledger.
    pub calls: i64,
    /// Tool calls, and how many were taken and answered.
    pub tools: i64,
}

/// What a queue says for the jobs in it that say nothing themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueSays {
    /// `queues.model`.
    pub model: Option<String>,
    /// `queues.policy`: JSON text.
    pub policy: Option<String>,
}

/// The text of a running stream from some part on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Partial {
    /// Which claim and call it belongs to; zero: none runs, or nothing was kept of it yet.
    pub call: (i64, i64),
    /// Which call of all that the job has had, from 1.
    pub number: i64,
    /// The last part that is in `text`.
    pub part: i64,
    /// What it said.
    pub text: String,
    /// `job_state.state`.
    pub state: String,
}

/// A row of `audit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// `id`.
    pub id: i64,
    /// `at`.
    pub at: Moment,
    /// `actor`.
    pub actor: String,
    /// `action`.
    pub action: String,
    /// `target`.
    pub target: String,
    /// `count`.
    pub count: i64,
    /// `detail`.
    pub detail: Option<String>,
}

/// What the page needs of the database beside [`super::Desk`].
#[async_trait]
pub trait Board: Send + Sync {
    /// Returns how a statement of anybody's names a table.
    fn name_of(&self, table: &str) -> String;

    /// Returns the database's time.
    async fn now(&self) -> Result<Moment, StoreError>;

    /// Walks through results below `before`, at most `scan` of them; returns at most `limit` that match.
    async fn results_of(
        &self,
        walk: Walk<'_>,
        wish: &Wish,
        before: i64,
        scan: i64,
        limit: i64,
    ) -> Result<Stretch, StoreError>;

    /// Walks through jobs below `before`, at most `scan` of them; returns at most `limit` that match.
    async fn jobs_of(
        &self,
        walk: OpenWalk<'_>,
        wish: &Wish,
        before: i64,
        scan: i64,
        limit: i64,
    ) -> Result<Stretch, StoreError>;

    /// Returns these jobs, in no order.
    async fn job_lines(&self, jobs: &[JobId]) -> Result<Vec<JobLine>, StoreError>;

    /// Counts the jobs without a result, of a batch or of all, each state up to `limit`.
    async fn tally(&self, batch: Option<&str>, limit: i64) -> Result<Tally, StoreError>;

    /// Counts results, at most `limit`.
    async fn results_count(&self, limit: i64) -> Result<i64, StoreError>;

    /// Returns what so long a time brought, by at most `most` results.
    async fn pulse(&self, window: Duration, most: i64) -> Result<Pulse, StoreError>;

    /// Returns the pending jobs that have been due for longest, each the first of one of at most 500 lanes;
    /// the oldest first.
    async fn heads(&self) -> Result<Vec<Head>, StoreError>;

    /// Returns the one of them that has been due for longest.
    async fn oldest(&self) -> Result<Option<Oldest>, StoreError> {
        Ok(self.heads().await?.first().map(|head| head.oldest))
    }

    /// Returns the names of the queues, sorted, at most `limit`.
    async fn first_queues(&self, limit: i64) -> Result<Vec<String>, StoreError>;

    /// Returns what a queue says for its jobs; `None`: there is no such queue.
    async fn queue_says(&self, name: &str) -> Result<Option<QueueSays>, StoreError>;

    /// Returns the queues, by name, at most [`QUEUES_MAX`], their jobs counted up to `limit`.
    async fn queue_cards(&self, limit: i64) -> Result<Vec<QueueCard>, StoreError>;

    /// Returns the names of paused queues, at most `limit`.
    async fn paused_queues(&self, limit: i64) -> Result<Vec<String>, StoreError>;

    /// Returns batches with unfinished jobs, by name, those after `after`.
    async fn batches_open(&self, after: &str, limit: i64) -> Result<Vec<String>, StoreError>;

    /// Returns batches with results, by name, those after `after`.
    async fn batches_done(&self, after: &str, limit: i64) -> Result<Vec<String>, StoreError>;

    /// Counts a batch's jobs, each state and outcome up to `limit`.
    async fn batch_tally(&self, batch: &str, limit: i64) -> Result<BatchTally, StoreError>;

    /// Returns (`seq`, milliseconds since it ended) of a batch's newest results that ended so.
    async fn batch_newest(
        &self,
        batch: &str,
        outcome: &str,
        most: i64,
    ) -> Result<Vec<(i64, i64)>, StoreError>;

    /// Returns (`seq`, job) of a batch's results that ended so, with `seq` above `after`, lowest first.
    async fn batch_results(
        &self,
        batch: &str,
        outcome: &str,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, JobId)>, StoreError>;

    /// Returns what is not complete, grouped, the most frequent first.
    async fn faults(&self) -> Result<Vec<FaultCard>, StoreError>;

    /// Returns what a job asks, whole.
    async fn asked(&self, job: JobId) -> Result<Option<NewJob>, StoreError>;

    /// Returns what the calls of a job said, each cut to `most` characters.
    async fn said(&self, job: JobId, most: i64) -> Result<Vec<Said>, StoreError>;

    /// Returns what tells whether a job changed: little, whatever the job holds.
    async fn mark(&self, job: JobId) -> Result<Option<Mark>, StoreError>;

    /// Returns what is kept of the newest call of a running job: what comes after a part, else all of it.
    async fn partial(&self, job: JobId, after: (i64, i64, i64)) -> Result<Option<Partial>, StoreError>;

    /// Gives those of these jobs that are not done another priority; returns how many.
    async fn prioritise(&self, jobs: &[JobId], priority: i32) -> Result<u64, StoreError>;

    /// Sets how many jobs of a queue may run at once; `None`: as many as there is room for.
    async fn limit_queue(&self, name: &str, max_running: Option<i32>) -> Result<bool, StoreError>;

    /// Writes down what somebody is about to do; returns its id.
    async fn write_down(
        &self,
        actor: &str,
        action: &str,
        target: &str,
        count: i64,
        detail: Option<&str>,
    ) -> Result<i64, StoreError>;

    /// Corrects how many jobs were changed by what was written down.
    async fn correct(&self, deed: i64, count: i64) -> Result<(), StoreError>;

    /// Returns what was done, newest first, below this id.
    async fn deeds(&self, before: i64, limit: i64) -> Result<Vec<Deed>, StoreError>;
}

/// Returns up to how many jobs are counted in each of so many queues.
pub fn queue_count_max(queues: usize) -> i64 {
    (QUEUES_COUNT_MAX / queues.max(1) as i64).clamp(500, COUNT_MAX)
}

/// Returns how fast a batch goes, by its newest `most` results.
///
/// # Errors
/// Whatever the database says.
pub async fn speed(board: &dyn Board, batch: &str, most: usize) -> Result<Speed, StoreError> {
    let mut newest = Vec::new();
    for outcome in Outcome::ALL {
        newest.extend(board.batch_newest(batch, outcome.as_str(), most as i64).await?);
    }
    newest.sort_unstable_by(|a, b| b.cmp(a));
    newest.truncate(most);
    let ages = || newest.iter().map(|(_, age)| *age);
    Ok(Speed {
        results: newest.len() as i64,
        since_ms: ages().max().unwrap_or(0),
        newest_ms: ages().min().unwrap_or(0),
    })
}

/// What `stop_reason` a complete result has: the others are found among those that are not complete.
const WHOLE: [&str; 2] = ["end_turn", "stop_sequence"];

/// Returns a page of the jobs that match. What is rare among many is looked for a little while; the page may
/// be short then, or empty, and says where to go on.
///
/// # Errors
/// Whatever the database says.
pub async fn find(
    board: &dyn Board,
    wish: &Wish,
    from: Option<Cursor>,
    limit: usize,
) -> Result<Found, StoreError> {
    let began = Instant::now();
    let mut found = step(board, wish, from, limit).await?;
    while let Some(next) = found.next
        && found.jobs.len() < limit
        && began.elapsed() < SEARCH_MAX
    {
        let more = step(board, wish, Some(next), limit - found.jobs.len()).await?;
        found.jobs.extend(more.jobs);
        found.next = more.next;
    }
    Ok(found)
}

/// Looks at so many rows as one look may.
async fn step(
    board: &dyn Board,
    wish: &Wish,
    from: Option<Cursor>,
    limit: usize,
) -> Result<Found, StoreError> {
    let of_results = wish.is_of_results();
    let done_only = of_results || wish.state.as_deref() == Some("done");
    if wish.state.as_deref().is_some_and(|state| state != "done") && of_results {
        return Ok(Found::default());
    }
    if wish.state.is_none() && !of_results && wish.batch.is_none() {
        let before = if let Some(Cursor::Job(id)) = from { id } else { i64::MAX };
        let stretch = board.jobs_of(OpenWalk::All, wish, before, scan(wish, limit), limit as i64 + 1).await?;
        return Ok(merge(vec![stretch], limit, Cursor::Job));
    }
    let mut found = Found::default();
    if !done_only && !matches!(from, Some(Cursor::Result(_))) {
        found = find_open(board, wish, from, limit).await?;
        if found.next.is_some() || found.jobs.len() == limit || wish.state.is_some() {
            if found.next.is_none() && wish.state.is_none() {
                found.next = Some(Cursor::Result(i64::MAX));
            }
            return Ok(found);
        }
    }
    let before = if let Some(Cursor::Result(seq)) = from { seq } else { i64::MAX };
    let done = find_done(board, wish, before, limit - found.jobs.len()).await?;
    found.jobs.extend(done.jobs);
    found.next = done.next;
    Ok(found)
}

/// How many rows to look at: as many as fill the page, where each row does.
fn scan(wish: &Wish, limit: usize) -> i64 {
    let narrowed =
        wish.queue.is_some() || wish.model.is_some() || wish.is_of_results() || wish.state.is_some();
    if narrowed { SCAN_MAX.max(limit as i64 + 1) } else { limit as i64 + 1 }
}

async fn find_open(
    board: &dyn Board,
    wish: &Wish,
    from: Option<Cursor>,
    limit: usize,
) -> Result<Found, StoreError> {
    let before = if let Some(Cursor::Job(id)) = from { id } else { i64::MAX };
    let states = OpenState::ALL.into_iter();
    let states: Vec<OpenState> =
        states.filter(|state| wish.state.as_deref().is_none_or(|wanted| wanted == state.as_str())).collect();
    let most = limit as i64 + 1;
    let mut stretches = Vec::new();
    if let Some(batch) = &wish.batch {
        let narrowed = wish.queue.is_some() || wish.model.is_some();
        let scan = if narrowed { SCAN_MAX } else { most };
        for state in states {
            stretches.push(board.jobs_of(OpenWalk::Batch(batch, state), wish, before, scan, most).await?);
        }
        return Ok(merge(stretches, limit, Cursor::Job));
    }
    for state in states {
        let few = board.jobs_of(OpenWalk::Few(state), wish, before, FEW_MAX + 1, most).await?;
        // More than are sorted at once: then they are many, and a walk by id meets them.
        stretches.push(if few.reached.is_some() {
            let wish = Wish { state: Some(state.as_str().to_owned()), ..wish.clone() };
            board.jobs_of(OpenWalk::All, &wish, before, SCAN_MAX, most).await?
        } else {
            few
        });
    }
    Ok(merge(stretches, limit, Cursor::Job))
}

async fn find_done(board: &dyn Board, wish: &Wish, before: i64, limit: usize) -> Result<Found, StoreError> {
    if limit == 0 {
        return Ok(Found { jobs: Vec::new(), next: Some(Cursor::Result(before)) });
    }
    let most = limit as i64 + 1;
    let complete = Outcome::Complete.as_str();
    let all = Outcome::ALL.iter().map(|outcome| outcome.as_str());
    let errors = [&wish.error_type, &wish.error_code].into_iter().any(Option::is_some);
    let never_complete = errors || wish.stop_reason.as_deref().is_some_and(|reason| !WHOLE.contains(&reason));
    let outcomes: Vec<&str> = all
        .filter(|outcome| wish.outcome.as_deref().is_none_or(|wanted| wanted == *outcome))
        .filter(|outcome| *outcome != complete || !never_complete)
        .collect();
    let narrowed = wish.queue.is_some() || wish.model.is_some() || wish.stop_reason.is_some() || errors;
    let scan = if narrowed { SCAN_MAX } else { most };
    let mut stretches = Vec::new();
    match &wish.batch {
        Some(batch) => {
            for outcome in outcomes {
                let walk = Walk::Batch(batch, outcome);
                stretches.push(board.results_of(walk, wish, before, scan, most).await?);
            }
        }
        None if outcomes.contains(&complete) => {
            let scan = if wish.outcome.is_some() { SCAN_MAX } else { scan };
            stretches.push(board.results_of(Walk::All, wish, before, scan, most).await?);
        }
        None => {
            let scan = if outcomes.len() > 1 { scan.min(SCAN_EACH_MAX.max(most)) } else { scan };
            for outcome in outcomes {
                stretches.push(board.results_of(Walk::Ended(outcome), wish, before, scan, most).await?);
            }
        }
    }
    Ok(merge(stretches, limit, Cursor::Result))
}

/// Puts what several walks found into one page. A walk that stopped before its end may hide jobs that
/// are older than where it stopped: the page ends there, and the next one begins there.
fn merge(stretches: Vec<Stretch>, limit: usize, cursor: fn(i64) -> Cursor) -> Found {
    let floor = stretches.iter().filter_map(|stretch| stretch.reached).max();
    let mut hits: Vec<(i64, i64)> = stretches.into_iter().flat_map(|stretch| stretch.hits).collect();
    hits.retain(|(at, _)| floor.is_none_or(|floor| *at >= floor));
    hits.sort_unstable_by(|a, b| b.cmp(a));
    let more = hits.len() > limit;
    hits.truncate(limit);
    let next = match hits.last() {
        Some((last, _)) if more => Some(cursor(*last)),
        _ => floor.map(cursor),
    };
    Found { jobs: hits.into_iter().map(|(_, job)| JobId(job)).collect(), next }
}

/// Reads where a walk came to: it is at its end where it saw less than it might have.
pub(super) fn stretch(
    hits: Vec<(i64, i64)>,
    looked: i64,
    reached: Option<i64>,
    scan: i64,
    limit: i64,
) -> Stretch {
    // A full page tells by itself where the next one begins.
    let reached = match hits.last() {
        Some((last, _)) if hits.len() as i64 == limit => Some(*last),
        _ => reached.filter(|_| looked >= scan),
    };
    Stretch { hits, reached }
}

/// A row of a job and one part of its running stream: state, claim, which call of all, call, part, text.
pub(super) type Part = (String, i64, i64, Option<i64>, Option<i64>, Option<String>);

/// Puts the parts of a stream together; `None`: there is no such job.
pub(super) fn parts(rows: Vec<Part>, after: (i64, i64, i64)) -> Option<Partial> {
    let (state, claim, ..) = rows.first()?;
    let mut partial = Partial { state: state.clone(), ..Partial::default() };
    if *claim == after.0 {
        (partial.call, partial.part) = ((after.0, after.1), after.2);
    }
    for (_, claim, number, seq, part, text) in rows {
        partial.number = number;
        if let (Some(seq), Some(part), Some(text)) = (seq, part, text) {
            (partial.call, partial.part) = ((claim, seq), part);
            partial.text.push_str(&text);
        }
    }
    Some(partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walked(hits: &[i64], reached: Option<i64>) -> Stretch {
        Stretch { hits: hits.iter().map(|at| (*at, *at)).collect(), reached }
    }

    #[test]
    fn a_page_ends_where_the_first_walk_stopped() {
        let found = merge(vec![walked(&[90, 40], Some(30)), walked(&[80, 10], None)], 5, Cursor::Result);
        assert_eq!(found.jobs, [JobId(90), JobId(80), JobId(40)]);
        assert_eq!(found.next, Some(Cursor::Result(30)));
    }

    #[test]
    fn a_full_page_goes_on_behind_its_last_row_and_the_last_one_does_not() {
        let found = merge(vec![walked(&[9, 8, 7], Some(7)), walked(&[6], None)], 2, Cursor::Job);
        assert_eq!((found.jobs.len(), found.next), (2, Some(Cursor::Job(8))));
        assert_eq!(merge(vec![walked(&[9], None)], 2, Cursor::Job).next, None);
        assert_eq!(merge(Vec::new(), 2, Cursor::Job), Found::default());
    }
}
