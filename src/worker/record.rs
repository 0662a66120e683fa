//! Everything that was paid for goes to the database through here: ends of jobs in batches, rows of
//! the ledger and additions to results one by one. A job's slot is free when the database has said
//! that its end is written, and no sooner.
//!
//! While one batch is being written the next one gathers, so a lone job waits for nobody and a
//! thousand wait for few commits. What a database that is away does not take goes into the
//! [`super::spool`] and is tried again until it does; so does what waits for a row that somebody locks.

mod entry;
mod keeping;
mod lanes;
mod recording;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc, oneshot};

use crate::domain::job::Lease;
use crate::domain::ledger::{Answer, Call, Release, Settlement};

use entry::Write;
pub use recording::{Recording, Restored};

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is in the database.
    Done,
    /// It is in the database, but as `unstorable`: the answer itself was refused.
    Bare,
    /// The fence did not match: the job is somebody else's now, or done, or gone. A row of the
    /// ledger is in the database, as late.
    Lost,
}

/// A write, and who waits for it.
struct Entry {
    write: Write,
    told: oneshot::Sender<Kept>,
}

/// Takes what attempts bring.
#[derive(Clone)]
pub struct Recorder {
    entries: mpsc::Sender<Entry>,
    standing: Arc<Standing>,
}

/// How it stands with what the database has not taken.
#[derive(Debug, Default)]
struct Standing {
    /// Something was kept because the database does not take it: nothing may be claimed.
    stalled: AtomicBool,
    in_file: AtomicUsize,
    in_memory: AtomicUsize,
    under_way: AtomicUsize,
    file: Mutex<Option<PathBuf>>,
    /// The process is about to end: what the database has not taken is kept without waiting.
    at_once: AtomicBool,
    hurry: Notify,
    /// The database has everything.
    emptied: Notify,
}

/// What was not in the database when the process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unwritten {
    /// So many writes stand in the spool file, and are taken up at the next start.
    pub in_file: usize,
    /// So many do not: there was no file that could be written.
    pub in_memory: usize,
    /// So many came a moment ago, and are on their way: they wait for nothing.
    pub under_way: usize,
    /// The spool file.
    pub file: Option<PathBuf>,
}

impl Unwritten {
    /// Returns how many there are that no file holds.
    pub const fn in_no_file(&self) -> usize {
        self.in_memory + self.under_way
    }
}

impl Recorder {
    /// Ends a job; returns when the database has it.
    pub async fn settle(&self, settlement: Arc<Settlement>) -> Kept {
        self.write(Write::Settle(settlement)).await
    }

    /// Puts a job back; returns when the database has it.
    pub async fn release(&self, release: Release) -> Kept {
        self.write(Write::Release(Arc::new(release))).await
    }

    /// Appends a call to the ledger; returns when the database has it.
    pub async fn append(&self, lease: Lease, call: Call) -> Kept {
        self.write(Write::Append(lease, Arc::new(call))).await
    }

    /// Adds to the result of a job that was cancelled or expired.
    pub async fn fill(&self, lease: Lease, answer: Answer) -> Kept {
        self.write(Write::Fill(lease, Arc::new(answer))).await
    }

    /// Waits until the database has all that was brought, by this process or an earlier one.
    pub async fn all_written(&self) {
        loop {
            let mut emptied = std::pin::pin!(self.standing.emptied.notified());
            emptied.as_mut().enable();
            if self.unwritten() == Unwritten::default() {
                return;
            }
            emptied.await;
        }
    }

    /// From now on what the database has not taken is kept in the spool without patience.
    pub fn keep_at_once(&self) {
        self.standing.at_once.store(true, Ordering::Release);
        self.standing.hurry.notify_one();
    }

    /// Whether the database does not take what was paid for, so that nothing more may be claimed.
    pub fn is_stalled(&self) -> bool {
        self.standing.stalled.load(Ordering::Acquire)
    }

    /// Returns what the database has not taken yet.
    pub fn unwritten(&self) -> Unwritten {
        let file = self.standing.file.lock().unwrap_or_else(PoisonError::into_inner);
        let in_file = self.standing.in_file.load(Ordering::Acquire);
        Unwritten {
            in_file,
            in_memory: self.standing.in_memory.load(Ordering::Acquire),
            under_way: self.standing.under_way.load(Ordering::Acquire),
            file: file.clone().filter(|_| in_file > 0),
        }
    }

    async fn write(&self, write: Write) -> Kept {
        let (told, hear) = oneshot::channel();
        if self.entries.send(Entry { write, told }).await.is_err() {
            return Kept::Lost;
        }
        // The recorder goes only when the process does; its jobs are rescued then.
        hear.await.unwrap_or(Kept::Lost)
    }
}
