//! Batched finishing: many jobs, one statement. A job's slot is free when the database has said
//! that its end is written, and no sooner.
//!
//! While one batch is being written the next one gathers, so a lone job waits for nobody and a
//! thousand wait for few commits. A database that is away is waited for: what was paid for is held.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::domain::job::{Lease, WorkerId};
use crate::domain::ledger::{Call, Release, Settlement};
use crate::domain::outcome::{Fault, Outcome};
use crate::store::{Store, StoreError, Written};

/// Most jobs one statement finishes.
const BATCH_MAX: usize = 256;
/// How long a row that somebody locks is left alone before it is tried again.
const LOCKED_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait between two tries at a database that is away.
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// What became of a fenced write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is in the database.
    Done,
    /// It is in the database, but as `unstorable`: the answer itself was refused.
    Bare,
    /// The fence did not match: the job is somebody else's now, or done, or gone.
    Lost,
}

enum Write {
    Settle(Arc<Settlement>),
    Release(Arc<Release>),
}

struct Entry {
    write: Write,
    told: oneshot::Sender<Kept>,
    /// How often the database held something against its data.
    refusals: u8,
}

impl Write {
    fn lease(&self) -> Lease {
        match self {
            Self::Settle(settlement) => settlement.lease,
            Self::Release(release) => release.lease,
        }
    }
}

/// Takes the ends of jobs and writes them in batches.
#[derive(Clone)]
pub struct Recorder {
    entries: mpsc::Sender<Entry>,
}

/// The writing half, run by the worker until every [`Recorder`] is gone.
pub struct Recording {
    entries: mpsc::Receiver<Entry>,
}

impl Recorder {
    /// Returns both halves; at most `room` ends wait in between.
    pub fn new(room: usize) -> (Self, Recording) {
        let (sender, receiver) = mpsc::channel(room.max(1));
        (Self { entries: sender }, Recording { entries: receiver })
    }

    /// Ends a job; returns when the database has it.
    pub async fn settle(&self, settlement: Settlement) -> Kept {
        self.write(Write::Settle(Arc::new(settlement))).await
    }

    /// Puts a job back; returns when the database has it.
    pub async fn release(&self, release: Release) -> Kept {
        self.write(Write::Release(Arc::new(release))).await
    }

    async fn write(&self, write: Write) -> Kept {
        let (told, hear) = oneshot::channel();
        if self.entries.send(Entry { write, told, refusals: 0 }).await.is_err() {
            return Kept::Lost;
        }
        // The recorder goes only when the process does; its jobs are rescued then.
        hear.await.unwrap_or(Kept::Lost)
    }
}

impl Recording {
    /// Writes until every recorder is gone.
    pub async fn run(mut self, store: Arc<dyn Store>, worker: impl Fn() -> WorkerId) {
        let mut batch: Vec<Entry> = Vec::with_capacity(BATCH_MAX);
        let mut locked: VecDeque<Entry> = VecDeque::new();
        loop {
            if locked.is_empty() {
                if self.entries.recv_many(&mut batch, BATCH_MAX).await == 0 {
                    return;
                }
            } else {
                // `recv_many` loses nothing when it is dropped, and what it took is in `batch`.
                let open =
                    tokio::time::timeout(LOCKED_PAUSE, self.entries.recv_many(&mut batch, BATCH_MAX)).await;
                if open == Ok(0) {
                    tokio::time::sleep(LOCKED_PAUSE).await;
                }
            }
            let (settles, releases): (Vec<Entry>, Vec<Entry>) =
                batch.drain(..).partition(|entry| matches!(entry.write, Write::Settle(_)));
            for kind in [settles, releases] {
                locked.extend(flush(&*store, worker(), kind).await);
            }
            // One at a time: a row that a person locks stalls itself alone.
            for _ in 0..locked.len() {
                let Some(entry) = locked.pop_front() else { break };
                locked.extend(flush(&*store, worker(), vec![entry]).await);
            }
        }
    }
}

/// Writes entries of one kind; returns those that must wait: somebody locks their rows, or the
/// database takes nothing of them.
async fn flush(store: &dyn Store, worker: WorkerId, entries: Vec<Entry>) -> Vec<Entry> {
    let mut locked = Vec::new();
    let mut parts = VecDeque::from([entries]);
    while let Some(mut part) = parts.pop_front() {
        if part.is_empty() {
            continue;
        }
        match write(store, worker, &part).await {
            Ok(written) => locked.extend(tell(part, &written)),
            // The data of one of them is at fault: halve until it stands alone.
            Err(_) if part.len() > 1 => {
                let rest = part.split_off(part.len() / 2);
                parts.push_front(rest);
                parts.push_front(part);
            }
            Err(why) => {
                let entry = with_less(part.pop().expect("a part that is not empty"), &why);
                if entry.refusals > 2 {
                    locked.push(entry);
                } else {
                    parts.push_front(vec![entry]);
                }
            }
        }
    }
    locked
}

/// Writes one batch, waiting for a database that is away. An error is the data's.
async fn write(store: &dyn Store, worker: WorkerId, entries: &[Entry]) -> Result<Written, String> {
    let settlements: Vec<Arc<Settlement>> = entries
        .iter()
        .filter_map(|entry| match &entry.write {
            Write::Settle(settlement) => Some(Arc::clone(settlement)),
            Write::Release(_) => None,
        })
        .collect();
    let releases: Vec<Arc<Release>> = entries
        .iter()
        .filter_map(|entry| match &entry.write {
            Write::Release(release) => Some(Arc::clone(release)),
            Write::Settle(_) => None,
        })
        .collect();
    let what = "write the ends of jobs";
    if releases.is_empty() {
        crate::failpoint::failpoint!("settle.before");
        let written = waiting(what, || store.settle(&settlements, worker)).await;
        crate::failpoint::failpoint!("settle.after");
        written
    } else {
        crate::failpoint::failpoint!("release.before");
        let written = waiting(what, || store.release(&releases, worker)).await;
        crate::failpoint::failpoint!("release.after");
        written
    }
}

/// Runs a database operation until the database takes it; an error is what it holds against the
/// data. Everything else is waited for, with one line in the log when it starts and one when it ends.
pub(super) async fn waiting<T, F>(what: &str, operation: impl Fn() -> F) -> Result<T, String>
where
    F: Future<Output = Result<T, StoreError>> + Send,
{
    let mut pause = Duration::from_millis(50);
    let mut away = false;
    loop {
        match operation().await {
            Ok(value) => {
                if away {
                    tracing::info!("the database is back: could {what}");
                }
                return Ok(value);
            }
            Err(StoreError::Refused(why)) => return Err(why),
            Err(err) => {
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(error = %err, "failed to {what}: trying again until it works");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AWAY_PAUSE_MAX);
            }
        }
    }
}

fn tell(entries: Vec<Entry>, written: &Written) -> Vec<Entry> {
    let done: std::collections::HashSet<Lease> = written.done.iter().copied().collect();
    let skipped: std::collections::HashSet<Lease> = written.skipped.iter().copied().collect();
    let mut locked = Vec::new();
    for entry in entries {
        let lease = entry.write.lease();
        if skipped.contains(&lease) {
            locked.push(entry);
            continue;
        }
        let kept = match (done.contains(&lease), entry.refusals) {
            (false, _) => Kept::Lost,
            (true, 0) => Kept::Done,
            (true, _) => Kept::Bare,
        };
        // Nobody listens any more where the attempt was dropped at the end of the process.
        entry.told.send(kept).ok();
    }
    locked
}

/// The same end with less of what the database may hold against it: first without what the API
/// brought, then with hardly more than the state. What is refused even so is not the answer's fault
/// (a trigger of somebody's, say): it waits beside the others, and is tried again.
fn with_less(mut entry: Entry, why: &str) -> Entry {
    entry.refusals = entry.refusals.saturating_add(1);
    let job = entry.write.lease().job;
    if entry.refusals <= 3 {
        tracing::error!(job.id = %job, "the database refused what job {job} brought");
    }
    entry.write = match entry.write {
        Write::Settle(settlement) => {
            let mut bare = (*settlement).clone();
            make_bare(&mut bare, entry.refusals, why);
            Write::Settle(Arc::new(bare))
        }
        Write::Release(release) => {
            let mut bare = (*release).clone();
            bare.reason = Some("what had arrived could not be stored".to_owned());
            bare.call = bare.call.filter(|_| entry.refusals == 1);
            if let Some(call) = &mut bare.call {
                without_answer(call);
                call.fault = None;
            }
            Write::Release(Arc::new(bare))
        }
    };
    entry
}

fn make_bare(settlement: &mut Settlement, refusals: u8, why: &str) {
    let answer = &mut settlement.answer;
    answer.outcome = Outcome::Failed;
    (answer.text, answer.content, answer.output) = (None, None, None);
    (answer.stop_details, answer.stop_sequence, answer.model) = (None, None, None);
    let why = format!("the answer came but the database refused to store it: {}", why.replace('\0', ""));
    answer.fault = Some(Fault::new("unstorable", None, why));
    if let Some(call) = &mut settlement.call {
        without_answer(call);
    }
    if refusals > 1 {
        answer.fault =
            Some(Fault::new("unstorable", None, "the answer came but the database refused to store it"));
        (answer.stop_reason, answer.request_id) = (None, None);
        settlement.call = None;
    }
}

fn without_answer(call: &mut Call) {
    (call.content, call.usage_raw, call.stop_details, call.container, call.request) =
        (None, None, None, None, None);
}
