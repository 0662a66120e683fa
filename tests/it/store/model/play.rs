//! Plays a sequence on a database and on the model, and compares the two after each step.

mod compare;
mod people;
mod tools;
mod workers;
mod writes;

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use promptmill::domain::job::Lease;
use promptmill::domain::ledger::{Call, Release, Settlement};
use promptmill::domain::outcome::{Outcome, Usage};
use promptmill::store::{Migrate, Store, open};

use super::super::{me, settings};
use super::job::{Claim, Job, Paid, Said, State, Sums, Turn};
use super::queue::Model;
use super::step::{End, Pick, Step};
use crate::support::Ground;

const OPEN_QUEUES: &str = "UPDATE queues SET paused = FALSE, max_running = NULL";

/// A database that many sequences are played on, one after the other.
pub struct Stage {
    ground: Ground,
    /// Two processes' worth: each remembers what it was given, and what it saw last.
    stores: [Arc<dyn Store>; 2],
    /// The claims of all sequences. A store believes what it saw for a while, but only where the same is
    /// wanted again: so nothing is, not even what the sequence before wanted.
    claims: AtomicI64,
}

impl Stage {
    pub async fn on(ground: Ground) -> Self {
        ground.run("INSERT INTO queues (name) VALUES ('a'), ('b')").await;
        let store = async || {
            let opened = open(&ground.url(), &settings(ground.schema()), Migrate::Never).await;
            opened.expect("the ground has the tables").store
        };
        let stores = [store().await, store().await];
        Self { ground, stores, claims: AtomicI64::new(0) }
    }

    pub async fn close(self) {
        drop(self.stores);
        self.ground.close().await;
    }

    /// Plays a sequence to its end; an error tells what was done and what differs.
    pub async fn play(&self, steps: &[Step]) -> Result<Seen, String> {
        self.ground
            .run(
                "DELETE FROM jobs; DELETE FROM workers; UPDATE queues SET paused = FALSE, max_running = NULL",
            )
            .await;
        let mut play = Play {
            stage: self,
            model: Model::default(),
            slots: [0; 3],
            hands: Vec::new(),
            told: Vec::new(),
            seen: Seen::new(),
            clock: 0,
            spent: 0,
        };
        for slot in 0..3 {
            play.enlist(slot).await;
        }
        let mut played = Ok(());
        for step in steps {
            played = play.step(step).await;
            if played.is_err() {
                break;
            }
        }
        if played.is_ok() {
            played = play.finish().await;
        }
        played.map_err(|why| format!("{}\n\n{why}", play.told.join("\n")))?;
        Ok(play.seen)
    }
}

/// How often what happened, so that a test can say that it did.
pub type Seen = BTreeMap<&'static str, usize>;

/// A lease in the hands of a worker, be it still good or not.
struct Hand {
    job: usize,
    lease: Lease,
    worker: i64,
    /// The number of the call that is under way.
    seq: i32,
    /// Parts written of it.
    parts: i32,
    failures: i32,
    deferrals: i32,
    /// What its worker knows to have been spent.
    known: Sums,
    /// The row that was appended last.
    appended: Option<(Call, Paid)>,
    /// How it was given up.
    closed: Option<Closed>,
}

enum Closed {
    Settled(Arc<Settlement>, Said, Option<Paid>),
    Released(Arc<Release>, Option<Paid>),
    Waits(Arc<Release>, Option<Paid>, Turn),
}

struct Play<'a> {
    stage: &'a Stage,
    model: Model,
    /// Which worker sits where: an index into the model's workers.
    slots: [usize; 3],
    hands: Vec<Hand>,
    told: Vec<String>,
    seen: Seen,
    /// Grows, so that no two times are the same.
    clock: i64,
    /// Grows, so that no two calls cost the same.
    spent: i64,
}

impl Play<'_> {
    /// Notes what is done next, in words.
    fn tell(&mut self, words: impl Display) {
        self.told.push(format!("{:>3}. {words}", self.told.len() + 1));
    }

    /// Adds how it went to what was told last.
    fn add(&mut self, words: &str) {
        if let Some(last) = self.told.last_mut() {
            last.push_str(words);
        }
    }

    fn see(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// The n-th newest job that is there.
    fn job(&self, pick: Pick) -> Option<usize> {
        self.job_that(pick, |_| true)
    }

    /// The n-th newest job that is as it is wanted.
    fn job_that(&self, pick: Pick, wanted: impl Fn(&Job) -> bool) -> Option<usize> {
        let fits = |&at: &usize| !self.model.jobs[at].gone && wanted(&self.model.jobs[at]);
        let fit: Vec<usize> = (0..self.model.jobs.len()).filter(fits).collect();
        newest(&fit, pick).copied()
    }

    /// The n-th newest lease that is as it is wanted.
    fn hand(&self, pick: Pick, wanted: impl Fn(&Hand) -> bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.hands.len()).filter(|&at| wanted(&self.hands[at])).collect();
        newest(&fit, pick).copied()
    }

    fn store(&self, worker: i64) -> Arc<dyn Store> {
        let at =
            self.model.workers.iter().position(|one| one.0 == worker).expect("a worker that was enlisted");
        self.stage.stores[at % 2].clone()
    }

    fn name(&self, worker: i64) -> String {
        let at =
            self.model.workers.iter().position(|one| one.0 == worker).expect("a worker that was enlisted");
        format!("worker {}", at + 1)
    }

    async fn enlist(&mut self, slot: usize) {
        let at = self.model.workers.len();
        let worker = self.stage.stores[at % 2].enlist(&me()).await.expect("a worker enlists");
        self.model.workers.push((worker.0, true));
        self.slots[slot] = at;
    }

    /// Does one step on both, where there is something to do.
    async fn step(&mut self, step: &Step) -> Result<(), String> {
        let before = self.told.len();
        match step {
            Step::Claim { worker, slots, suspects } => self.claim(*worker, *slots, *suspects).await?,
            Step::Heartbeat { worker } => self.heartbeat(*worker).await?,
            Step::Checkpoint { lease, length } => self.checkpoint(*lease, *length).await?,
            Step::Append { lease, fails } => self.append(*lease, *fails).await?,
            Step::AppendAgain { lease } => self.append_again(*lease).await?,
            Step::Settle { ends } => self.settle(ends).await?,
            Step::SettleAgain { lease } => self.settle_again(*lease).await?,
            Step::Release { lease, later, call } => self.release(*lease, *later, *call).await?,
            Step::Wait { lease, calls, call } => self.wait(*lease, *calls, *call).await?,
            Step::OpenTools { lease, calls } => self.open_tools(*lease, *calls).await?,
            Step::AnswerTool { lease, call } => self.answer_tool(*lease, *call).await?,
            Step::RunTools { lease, calls, answered, then } => {
                self.run_tools(*lease, *calls, *answered, *then).await?;
            }
            Step::Answer { job, call } => self.answer(*job, *call).await?,
            Step::ReleaseAgain { lease } => self.release_again(*lease).await?,
            Step::Fill { lease, text } => self.fill(*lease, *text).await?,
            Step::Absolve { lease } => self.absolve(*lease).await?,
            Step::Retire { worker } => self.retire(*worker).await,
            Step::Restart { worker } => self.restart(*worker).await,
            Step::Rescue { worker, limit } => self.rescue_one(*worker, *limit).await?,
            Step::CrashLoop { worker, times } => self.crash_loop(*worker, *times).await?,
            Step::Promote => self.promote().await?,
            Step::Expire { limit } => self.expire(*limit).await?,
            by_sql => self.by_sql(by_sql).await?,
        }
        if self.told.len() > before { self.compare().await } else { Ok(()) }
    }

    /// Whatever went before, everything that is there comes to its end.
    async fn finish(&mut self) -> Result<(), String> {
        self.tell("in the end no queue is paused or limited");
        self.stage.ground.run(OPEN_QUEUES).await;
        self.model.queues = Default::default();
        for at in 0..self.model.jobs.len() {
            if !self.model.jobs[at].gone && self.model.jobs[at].state == State::Scheduled {
                self.comes_due(at, &self.stage.ground.at(-7200)).await;
            }
        }
        self.promote().await?;
        for (worker, _) in self.model.workers.clone() {
            if !self.model.held_by(worker).is_empty() {
                self.rescue(worker, 100).await?;
            }
        }
        self.answer_all().await?;
        self.enlist(0).await;
        while self.model.there().any(|job| job.state == State::Pending) {
            let before = self.hands.len();
            self.claim(0, 8, true).await?;
            let batch = (0..self.hands.len() - before).map(|lease| End {
                lease: lease as Pick,
                outcome: Outcome::Complete,
                call: true,
            });
            // Each end takes one lease out of those that are open, the newest first.
            let batch: Vec<End> = batch.map(|end| End { lease: 0, ..end }).collect();
            self.settle(&batch).await?;
        }
        let open = self.model.there().find(|job| job.state != State::Done || job.result.is_none());
        same("what has no result", &None, &open.map(|job| job.id))?;
        self.compare().await
    }
}

fn newest<T>(of: &[T], pick: Pick) -> Option<&T> {
    let at = usize::from(pick) % of.len().max(1);
    of.iter().rev().nth(at)
}

fn claim(lease: &Lease) -> Claim {
    Claim { claim: lease.claim, run: lease.run }
}

fn tokens(usage: Usage) -> [i64; 4] {
    [usage.input, usage.output, usage.cache_creation, usage.cache_read]
}

fn same<T: PartialEq + Debug>(what: &str, expected: &T, found: &T) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!("{what}\n  the model has:    {expected:?}\n  the database has: {found:?}"))
}
