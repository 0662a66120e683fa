//! The writing half: takes writes in, hands them to the database, keeps in the spool what it does
//! not take, and tells those who wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::entry::{Kind, Said, Write, hand_over};
use super::keeping::Keeping;
use super::lanes::{Lanes, Number};
use super::{Entry, Kept, Recorder, Standing};
use crate::domain::job::{Lease, WorkerId};
use crate::domain::outcome::Outcome;
use crate::store::{Store, StoreError, Written};
use crate::worker::spool::{Left, Spool};

/// So many writes are taken in at once.
const INTAKE_MAX: usize = 256;
/// How long a row that somebody locks is left alone before it is tried again.
const LOCKED_PAUSE: Duration = Duration::from_millis(500);
/// First wait between two tries at a database that is away. It doubles.
const AWAY_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait between two tries at a database that is away.
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// What the database has not taken for so long is kept in the spool, as long as the process goes on.
const PATIENCE: Duration = Duration::from_secs(2);
/// After so many refusals what is left of a write is not the answer's fault (a trigger of
/// somebody's, say).
const REFUSALS_MAX: u8 = 2;

/// The writing half, run by the worker until every [`Recorder`] is gone.
pub struct Recording {
    entries: mpsc::Receiver<Entry>,
    open: bool,
    pub(super) standing: Arc<Standing>,
    pub(super) keeping: Keeping,
    /// In the order in which they came.
    pub(super) pending: BTreeMap<Number, Pending>,
    /// How many of them are kept in some place beside our memory, or should be.
    pub(super) kept: usize,
    next: Number,
    lanes: Lanes,
    /// What waits until its time: rows that somebody locks.
    aside: VecDeque<(Instant, Number)>,
    pub(super) away: Option<Away>,
    /// Who is to be told what.
    news: Vec<(oneshot::Sender<Kept>, Kept)>,
    /// Files that earlier processes left, and how many of their lines are still pending.
    pub(super) left: Vec<Option<(Left, usize)>>,
}

/// A write that the database has not taken yet.
pub(super) struct Pending {
    pub(super) write: Write,
    /// Who had the claim, where it was not this worker.
    pub(super) by: Option<WorkerId>,
    told: oneshot::Sender<Kept>,
    /// How often the database held something against its data.
    refusals: u8,
    /// Where the whole of it is, once it has been refused.
    whole: Option<String>,
    pub(super) since: Instant,
    pub(super) place: Place,
    /// It waits for a row alone, and stalls nobody.
    pub(super) is_aside: bool,
}

/// Where a write is, beside our memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Nowhere,
    /// It should be in the file, but there is none.
    Memory,
    File,
    /// In a file that an earlier process left.
    Left(usize),
}

/// The database did not take the last that it was given.
pub(super) struct Away {
    pub(super) why: String,
    pause: Duration,
    until: Instant,
}

/// A job whose end an earlier process left.
pub struct Restored {
    /// Its claim.
    pub lease: Lease,
    /// How it ends, where the database takes it.
    pub outcome: Outcome,
    /// What becomes of it.
    pub hear: oneshot::Receiver<Kept>,
}

/// The answer of the database to a group.
struct Answered {
    kind: Kind,
    group: Vec<Number>,
    said: Result<Said, StoreError>,
}

impl Recorder {
    /// Returns both halves; at most `room` writes wait in between.
    pub fn new(room: usize, spool: Spool) -> (Self, Recording) {
        let (sender, receiver) = mpsc::channel(room.max(1));
        let standing = Arc::new(Standing::default());
        let recording = Recording {
            entries: receiver,
            open: true,
            standing: Arc::clone(&standing),
            keeping: Keeping::new(spool),
            pending: BTreeMap::new(),
            kept: 0,
            next: 0,
            lanes: Lanes::default(),
            aside: VecDeque::new(),
            away: None,
            news: Vec::new(),
            left: Vec::new(),
        };
        (Self { entries: sender, standing }, recording)
    }
}

impl Recording {
    /// Takes up what earlier processes left: until the database has it, nothing is claimed.
    /// Returns the jobs that it ends.
    pub async fn restore(&mut self) -> Vec<Restored> {
        let mut restored = Vec::new();
        for mut left in self.with_spool(|spool| spool.left()).await {
            let lines = std::mem::take(&mut left.lines);
            let (path, many) = (left.path.display().to_string(), lines.len());
            if many > 0 {
                tracing::info!(
                    "{path} holds what an earlier process could not write ({many}): that goes first"
                );
                self.name_file(left.path.clone());
            }
            let place = Place::Left(self.left.len());
            for line in lines {
                let by = Some(line.worker);
                let write = Write::from(line.into_write());
                let (told, hear) = oneshot::channel();
                if let Write::Settle(settlement) = &write {
                    let (lease, outcome) = (settlement.lease, settlement.answer.outcome);
                    restored.push(Restored { lease, outcome, hear });
                }
                self.take_in(write, told, by, place);
            }
            self.left.push(Some((left, many)));
            if many == 0 {
                self.clear_left(self.left.len() - 1).await;
            }
        }
        self.keeping.said_stalled = !self.pending.is_empty();
        self.tell_standing();
        restored
    }

    /// Writes until every recorder is gone.
    pub async fn run(mut self, store: Arc<dyn Store>, worker: impl Fn() -> WorkerId) {
        let mut writing: FuturesUnordered<BoxFuture<'static, Answered>> = FuturesUnordered::new();
        let mut fresh: Vec<Entry> = Vec::with_capacity(INTAKE_MAX);
        let standing = Arc::clone(&self.standing);
        while self.open || !self.pending.is_empty() {
            while let Some((kind, group)) = self.next_group(writing.is_empty()) {
                writing.push(self.start(&store, worker(), kind, group));
            }
            let due = self.next_time();
            tokio::select! {
                many = self.entries.recv_many(&mut fresh, INTAKE_MAX), if self.open => {
                    self.open = many > 0;
                    for Entry { write, told } in fresh.drain(..) {
                        self.take_in(write, told, None, Place::Nowhere);
                    }
                }
                Some(answered) = writing.next(), if !writing.is_empty() => self.hear(answered, worker()).await,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                () = standing.hurry.notified() => {}
            }
            self.wake_aside();
            self.look_after(&worker).await;
            // Last: whoever hears that all is written may ask whether something is not.
            for (told, kept) in self.news.drain(..) {
                // Nobody listens any more where the attempt was dropped at the end of the process.
                told.send(kept).ok();
            }
        }
    }

    fn take_in(&mut self, write: Write, told: oneshot::Sender<Kept>, by: Option<WorkerId>, place: Place) {
        let kind = write.kind();
        let since = Instant::now();
        let pending = Pending { write, by, told, refusals: 0, whole: None, since, place, is_aside: false };
        self.pending.insert(self.next, pending);
        self.kept += usize::from(place != Place::Nowhere);
        self.lanes.push(kind, self.next);
        self.next += 1;
    }

    /// Returns what goes to the database now. One that is away is tried with one group at a time.
    fn next_group(&mut self, is_idle: bool) -> Option<(Kind, Vec<Number>)> {
        if self.away.as_ref().is_some_and(|away| !is_idle || Instant::now() < away.until) {
            return None;
        }
        let pending = &self.pending;
        let by = |number: Number| pending.get(&number).and_then(|pending| pending.by);
        let bytes = |number: Number| pending.get(&number).map_or(0, |pending| pending.write.bytes());
        self.lanes.next(|one, other| by(one) == by(other), bytes)
    }

    fn start(
        &self,
        store: &Arc<dyn Store>,
        worker: WorkerId,
        kind: Kind,
        group: Vec<Number>,
    ) -> BoxFuture<'static, Answered> {
        let all = || group.iter().filter_map(|number| self.pending.get(number));
        let writes = all().map(|pending| pending.write.clone()).collect();
        let worker = all().find_map(|pending| pending.by).unwrap_or(worker);
        let store = Arc::clone(store);
        Box::pin(async move { Answered { kind, group, said: hand_over(store, worker, writes).await } })
    }

    /// What the database has not taken for so long is kept, whatever the reason.
    pub(super) fn patience(&self) -> Duration {
        if self.standing.at_once.load(Ordering::Acquire) { Duration::ZERO } else { PATIENCE }
    }

    /// When something is to be done although nothing happens.
    fn next_time(&self) -> Option<Instant> {
        let again = self.away.as_ref().map(|away| away.until).filter(|until| *until > Instant::now());
        let aside = self.aside.iter().map(|(until, _)| *until).min();
        let oldest = self.pending.values().find(|pending| pending.place == Place::Nowhere);
        let overdue = oldest.map(|pending| pending.since + self.patience());
        [again, aside, overdue].into_iter().flatten().min()
    }

    /// What waited for a row goes once more, alone.
    fn wake_aside(&mut self) {
        let now = Instant::now();
        let (due, rest) = self.aside.drain(..).partition::<VecDeque<_>, _>(|(until, _)| *until <= now);
        self.aside = rest;
        for (_, number) in due {
            if let Some(pending) = self.pending.get(&number) {
                self.lanes.push_group(pending.write.kind(), vec![number]);
            }
        }
    }

    /// Takes the answer of the database to a group.
    async fn hear(&mut self, Answered { kind, group, said }: Answered, worker: WorkerId) {
        self.lanes.written(kind);
        match said {
            Ok(said) => {
                self.away = None;
                match said {
                    Said::Batch(written) => self.sort(&group, &written),
                    Said::Late(late) => self.finish_all(&group, !late),
                    Said::Filled => self.finish_all(&group, true),
                }
            }
            Err(StoreError::Refused(why)) => {
                self.away = None;
                self.refused(kind, group, &why, worker).await;
            }
            Err(StoreError::Locked(_)) => self.leave_aside(&group),
            Err(err) => self.go_away(kind, group, &err),
        }
    }

    /// Tells those whose writes are done or lost; leaves aside those whose rows somebody locks.
    fn sort(&mut self, group: &[Number], written: &Written) {
        let done: std::collections::HashSet<Lease> = written.done.iter().copied().collect();
        let skipped: std::collections::HashSet<Lease> = written.skipped.iter().copied().collect();
        for &number in group {
            let Some(pending) = self.pending.get(&number) else { continue };
            let lease = pending.write.lease();
            if skipped.contains(&lease) {
                self.leave_aside(&[number]);
            } else {
                self.finish(number, done.contains(&lease));
            }
        }
    }

    fn finish_all(&mut self, group: &[Number], in_time: bool) {
        for &number in group {
            self.finish(number, in_time);
        }
    }

    /// The database has it, or holds that it is too late.
    fn finish(&mut self, number: Number, in_time: bool) {
        let Some(pending) = self.pending.remove(&number) else { return };
        self.kept -= usize::from(pending.place != Place::Nowhere);
        // Who fills a result did not end the job.
        let in_time = in_time && !matches!(pending.write, Write::Fill(..));
        let kept = match (in_time, pending.refusals) {
            (false, _) => Kept::Lost,
            (true, 0) => Kept::Done,
            (true, _) => Kept::Bare,
        };
        // Of an earlier process' job nobody else adds to the result what it had.
        if let (Place::Left(_), Kept::Lost, Write::Settle(settlement)) = (pending.place, kept, &pending.write)
        {
            let fill = Write::Fill(settlement.lease, Arc::new(settlement.answer.clone()));
            return self.take_in(fill, pending.told, pending.by, pending.place);
        }
        if let Place::Left(file) = pending.place
            && let Some(Some((_, lines))) = self.left.get_mut(file)
        {
            *lines -= 1;
        }
        self.news.push((pending.told, kept));
    }

    /// Somebody locks their rows: they stall themselves alone.
    fn leave_aside(&mut self, group: &[Number]) {
        let until = Instant::now() + LOCKED_PAUSE;
        for number in group {
            if let Some(pending) = self.pending.get_mut(number) {
                pending.is_aside = true;
                self.aside.push_back((until, *number));
            }
        }
    }

    /// The database took nothing of a group.
    fn go_away(&mut self, kind: Kind, group: Vec<Number>, err: &StoreError) {
        let is_fill = |number: &Number| {
            self.pending.get(number).is_some_and(|pending| matches!(pending.write, Write::Fill(..)))
        };
        // The result is there, and what was spent is in the ledger: nobody has to wait for this.
        if group.iter().any(is_fill) {
            return self.leave_aside(&group);
        }
        let last = self.away.as_ref().map(|away| away.pause);
        let pause = last.map_or(AWAY_PAUSE, |last| (last * 2).min(AWAY_PAUSE_MAX));
        self.away = Some(Away { why: err.to_string(), pause, until: Instant::now() + pause });
        self.keeping.try_again = true;
        for number in &group {
            if let Some(pending) = self.pending.get_mut(number) {
                pending.is_aside = false;
            }
        }
        self.lanes.back(kind, group);
    }

    /// The data of one of a group is at fault: it is halved until the culprit stands alone, and that
    /// one goes again with less in it.
    async fn refused(&mut self, kind: Kind, mut group: Vec<Number>, why: &str, worker: WorkerId) {
        if group.len() > 1 {
            let rest = group.split_off(group.len() / 2);
            self.lanes.push_group(kind, group);
            return self.lanes.push_group(kind, rest);
        }
        let Some(&number) = group.first() else { return };
        let Some(pending) = self.pending.get_mut(&number) else { return };
        pending.refusals = pending.refusals.saturating_add(1);
        let (refusals, write) = (pending.refusals, pending.write.clone());
        let (job, worker) = (write.lease().job, pending.by.unwrap_or(worker));
        if refusals > REFUSALS_MAX || matches!(write, Write::Fill(..)) {
            if matches!(write, Write::Settle(_) | Write::Release(_)) {
                return self.leave_aside(&group);
            }
            // The talk goes on from memory; the whole of it is in the file of what is unstorable.
            tracing::error!(job.id = %job, "the database takes nothing of a call of job {job}: giving up");
            return self.finish(number, true);
        }
        tracing::error!(job.id = %job, "the database refused what job {job} brought");
        let whole = if refusals == 1 && write.brings_an_answer() {
            self.set_aside(&write, worker).await
        } else {
            None
        };
        if let Some(pending) = self.pending.get_mut(&number) {
            pending.whole = whole.or(pending.whole.take());
            pending.write = write.with_less(refusals, why, pending.whole.as_deref());
        }
        self.lanes.push_group(kind, group);
    }
}
