//! What one look of `status --watch` reads, and the few things that are remembered between two looks.
//!
//! Each look is made of bounded reads, alike whatever the tables hold. Whole counts of what is more than
//! those reach are made beside it, rarely: they take a fiftieth of the time at most.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::batch::{Activity, Batch, Count, NEXT, choose};
use super::pace::{Pace, WINDOW, eta_ms, pace};
use crate::cli::gates::scope::Scope;
use crate::cli::open;
use crate::config::Config;
use crate::domain::job::JobId;
use crate::store::board::{
    BatchTally, Board, COUNT_MAX, Head, Oldest, OpenState, OpenWalk, Pulse, Tally, Wish, speed,
};
use crate::store::{Database, Desk, GateLine, Listed, Moment, Opened, StoreError};

/// Results that the rates are made of, at most twice as many.
const BEATS: i64 = 512;
/// The stretch of time whose outcomes are told.
const HOUR: Duration = Duration::from_hours(1);
/// How old what is known of that may be, where it is so much that it is known by a sample.
const HOUR_AGAIN: Duration = Duration::from_secs(10);
/// Jobs of each of many batches are counted up to here in a look.
const QUICK_MAX: i64 = 2_000;
/// Whole counts stop here.
const WHOLE_MAX: i64 = 10_000_000;
/// Shortest time between two whole counts, and how many times as long as they took.
const WHOLE_AGAIN: (Duration, u32) = (Duration::from_secs(5), 50);
/// Running and newest jobs whose batches are looked up.
const JOBS_MAX: i64 = 100;
/// Gates and paused queues that are read out.
const NAMES_MAX: usize = 20;
/// Results that tell how fast one slow batch goes.
const SPEED_OF: usize = 50;

/// What one look saw.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// When, by the database's clock.
    pub at: Option<Moment>,
    /// Jobs without a result by state, in the order of a list.
    pub jobs: Vec<(&'static str, Count)>,
    /// The job that has been due for longest.
    pub oldest: Option<Oldest>,
    /// How fast jobs end.
    pub pace: Pace,
    /// Whether something keeps some of what is next back: no rate says when that ends.
    pub stands: bool,
    /// How results of the last hour ended, or those of the one batch.
    pub outcomes: Vec<(String, Count)>,
    /// The batches, or the one.
    pub batches: Vec<Batch>,
    /// Gates that do not flow.
    pub gates: Vec<GateLine>,
    /// How many more there are.
    pub more_gates: usize,
    /// Queues that are paused.
    pub paused: Vec<String>,
    /// Daemons that are there.
    pub workers: usize,
}

impl Look {
    /// All jobs without a result.
    pub fn left(&self) -> Count {
        Count::sum(self.jobs.iter().map(|(_, count)| *count))
    }

    /// How many of them daemons work on or take next, and in how many milliseconds those will have ended.
    pub fn eta_ms(&self) -> (Count, Option<i64>) {
        let is_next = |state: &str| NEXT.iter().any(|next| next.as_str() == state);
        let next = Count::sum(self.jobs.iter().filter(|(state, _)| is_next(state)).map(|(_, count)| *count));
        (next, (!self.stands).then(|| eta_ms(next.n, self.pace.jobs)).flatten())
    }
}

/// Looks at one database.
pub struct Lens {
    config: Config,
    batch: Option<String>,
    memory: Mutex<Memory>,
}

/// An open database; a SQLite file by its place, since another may take its name.
#[derive(Clone)]
struct Sight {
    desk: Arc<dyn Desk>,
    board: Arc<dyn Board>,
    file: Option<(u64, u64)>,
}

/// `None` stands for all jobs, else for those of a batch.
type What = Option<String>;

#[derive(Default)]
struct Memory {
    sight: Option<Sight>,
    shown: Vec<String>,
    hour: Option<(Instant, Arc<Pulse>)>,
    /// What a quick count did not reach.
    wanted: Vec<What>,
    whole: HashMap<What, BatchTally>,
}

impl Lens {
    /// Returns a lens for all that an open database holds, or for one batch.
    pub fn new(config: Config, opened: &Opened, batch: Option<String>) -> Self {
        let sight = Some(Sight::new(&config, opened));
        Self { config, batch, memory: Mutex::new(Memory { sight, ..Memory::default() }) }
    }

    /// Opens the database anew at the next look: this one does not answer.
    pub fn forget(&self) {
        self.memory().sight = None;
    }

    /// Looks, at `room` batches.
    pub async fn look(&self, room: usize) -> Result<Look, StoreError> {
        let sight = self.sight().await?;
        let pulse = sight.board.pulse(WINDOW, BEATS).await?;
        let gates = sight.desk.gate_lines(Listed::Stopped).await?;
        let workers = sight.desk.worker_lines().await?;
        let mut look = Look {
            at: Some(sight.board.now().await?),
            paused: sight.board.paused_queues(NAMES_MAX as i64).await?,
            workers: workers.iter().filter(|worker| !worker.is_silent()).count(),
            ..Look::default()
        };
        match &self.batch {
            Some(batch) => self.look_at_one(&sight, batch, &pulse, &mut look).await?,
            None => self.look_at_all(&sight, room, &pulse, &mut look).await?,
        }
        let heads = sight.board.heads().await?;
        look.oldest = heads.first().map(|head| head.oldest).filter(|_| self.batch.is_none());
        for batch in &mut look.batches {
            batch.stands = stands(&batch.name, &heads, &gates);
        }
        look.stands = match (&self.batch, look.batches.first()) {
            (Some(_), Some(batch)) => batch.stands,
            _ => heads.iter().any(|head| !head.free),
        };
        let of_it = |gate: &GateLine| match (&self.batch, Scope::parse(&gate.scope)) {
            (Some(watched), Scope::Batch { batch, .. }) => batch == *watched,
            _ => true,
        };
        look.gates = gates.into_iter().filter(of_it).collect();
        look.more_gates = look.gates.len().saturating_sub(NAMES_MAX);
        look.gates.truncate(NAMES_MAX);
        Ok(look)
    }

    async fn look_at_one(
        &self,
        sight: &Sight,
        name: &str,
        pulse: &Pulse,
        look: &mut Look,
    ) -> Result<(), StoreError> {
        let mut batch = self.count(sight, name, COUNT_MAX).await?;
        look.pace = pace(of_batch(pulse, name), pulse.step, WINDOW);
        if look.pace.jobs == 0.0 && batch.left().n > 0 {
            let speed = speed(&*sight.board, name, SPEED_OF).await?;
            if speed.results > 1 && speed.newest_ms < HOUR.as_millis() as i64 {
                look.pace.jobs = speed.results as f64 * 1_000.0 / speed.since_ms.max(1_000) as f64;
            }
        }
        batch.a_second = look.pace.jobs;
        look.jobs = OpenState::ALL.map(|state| (state.as_str(), batch.of_state(state))).to_vec();
        look.outcomes.clone_from(&batch.done);
        look.batches = vec![batch];
        Ok(())
    }

    async fn look_at_all(
        &self,
        sight: &Sight,
        room: usize,
        pulse: &Pulse,
        look: &mut Look,
    ) -> Result<(), StoreError> {
        let quick = sight.board.tally(None, COUNT_MAX + 1).await?;
        let quick = BatchTally { open: states(&quick).to_vec(), done: Vec::new() };
        let all = self.merge(None, &quick, COUNT_MAX);
        look.jobs = OpenState::ALL.map(|state| (state.as_str(), all.of_state(state))).to_vec();
        look.pace = pace(pulse.beats.iter(), pulse.step, WINDOW);
        let hour = self.hour(sight).await?;
        look.outcomes = outcomes(&hour);

        let found = active(sight, pulse, room).await?;
        let chosen = choose(&self.memory().shown, found, room);
        for name in &chosen {
            let mut batch = self.count(sight, name, QUICK_MAX).await?;
            let mut lately = pace(of_batch(pulse, name), pulse.step, WINDOW);
            if lately.jobs == 0.0 {
                lately = pace(of_batch(&hour, name), hour.step, HOUR);
            }
            batch.a_second = lately.jobs;
            look.batches.push(batch);
        }
        self.memory().shown = chosen;
        Ok(())
    }

    async fn count(&self, sight: &Sight, name: &str, limit: i64) -> Result<Batch, StoreError> {
        let quick = sight.board.batch_tally(name, limit + 1).await?;
        Ok(self.merge(Some(name.to_owned()), &quick, limit))
    }

    /// Puts a count up to `limit` + 1 together with the last whole one, which is asked for where it is needed.
    fn merge(&self, what: What, quick: &BatchTally, limit: i64) -> Batch {
        let mut memory = self.memory();
        memory.wanted.retain(|wanted| *wanted != what);
        if quick.open.iter().chain(&quick.done).any(|(_, n)| *n > limit) {
            memory.wanted.push(what.clone());
        } else {
            memory.whole.remove(&what);
        }
        let whole = memory.whole.get(&what).map(|whole| (whole, WHOLE_MAX));
        Batch::new(what.unwrap_or_default(), quick, limit, whole)
    }

    /// Returns what the last hour brought, as of some seconds ago.
    async fn hour(&self, sight: &Sight) -> Result<Arc<Pulse>, StoreError> {
        if let Some((at, hour)) = &self.memory().hour
            && hour.step > 1
            && at.elapsed() < HOUR_AGAIN
        {
            return Ok(Arc::clone(hour));
        }
        let hour = Arc::new(sight.board.pulse(HOUR, BEATS).await?);
        self.memory().hour = Some((Instant::now(), Arc::clone(&hour)));
        Ok(hour)
    }

    /// Counts whole, now and then, what the looks could not. Never ends.
    pub async fn count_whole(&self) {
        loop {
            let began = Instant::now();
            let (wanted, sight) = {
                let memory = self.memory();
                (memory.wanted.clone(), memory.sight.clone())
            };
            let pause = if wanted.is_empty() { Duration::from_secs(1) } else { WHOLE_AGAIN.0 };
            if let Some(sight) = sight {
                for what in wanted {
                    // What is wrong with the database, the looks say.
                    if let Ok(whole) = whole(&sight, what.as_deref()).await {
                        self.memory().whole.insert(what, whole);
                    }
                }
            }
            tokio::time::sleep(pause.max(began.elapsed() * WHOLE_AGAIN.1)).await;
        }
    }

    /// Returns the database: opened anew where it did not answer, or where its file is another one now.
    async fn sight(&self) -> Result<Sight, StoreError> {
        let known = self.memory().sight.clone();
        if let Some(sight) = known
            && sight.file == file(&self.config)
        {
            return Ok(sight);
        }
        self.forget();
        let sight = Sight::new(&self.config, &open::once(&self.config).await?);
        *self.memory() = Memory { sight: Some(sight.clone()), ..Memory::default() };
        Ok(sight)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sight {
    fn new(config: &Config, opened: &Opened) -> Self {
        let (desk, board): (Arc<dyn Desk>, Arc<dyn Board>) = match &opened.database {
            Database::Sqlite(store) => (store.clone(), store.clone()),
            Database::Postgres(store) => (store.clone(), store.clone()),
        };
        Self { desk, board, file: file(config) }
    }
}

/// Returns which file stands where the configuration says, if it names one.
fn file(config: &Config) -> Option<(u64, u64)> {
    let found = config.database.url.file()?.metadata().ok()?;
    Some((found.dev(), found.ino()))
}

async fn whole(sight: &Sight, batch: Option<&str>) -> Result<BatchTally, StoreError> {
    if let Some(batch) = batch {
        return sight.board.batch_tally(batch, WHOLE_MAX + 1).await;
    }
    let tally = sight.board.tally(None, WHOLE_MAX + 1).await?;
    Ok(BatchTally { open: states(&tally).to_vec(), done: Vec::new() })
}

fn states(tally: &Tally) -> [(String, i64); 4] {
    OpenState::ALL.map(|state| {
        let n = match state {
            OpenState::Pending => tally.pending,
            OpenState::Scheduled => tally.scheduled,
            OpenState::Running => tally.running,
            OpenState::Waiting => tally.waiting,
        };
        (state.as_str().to_owned(), n)
    })
}

fn of_batch<'a>(
    pulse: &'a Pulse,
    name: &'a str,
) -> impl Iterator<Item = &'a crate::store::board::Beat> + Clone {
    pulse.beats.iter().filter(move |beat| beat.batch.as_deref() == Some(name))
}

/// Whether a batch is kept back, in one of its queues at least: its next jobs tell, or its gate where there are
/// more lanes than were looked at.
fn stands(batch: &str, heads: &[Head], gates: &[GateLine]) -> bool {
    let is_its = |gate: &GateLine| matches!(Scope::parse(&gate.scope), Scope::Batch { batch: its, .. } if its == batch);
    heads.iter().any(|head| !head.free && head.batch == batch) || gates.iter().any(is_its)
}

/// Returns how the results ended, the most frequent first.
fn outcomes(pulse: &Pulse) -> Vec<(String, Count)> {
    let mut counts: HashMap<&str, i64> = HashMap::new();
    for beat in &pulse.beats {
        *counts.entry(&beat.outcome).or_default() += pulse.step;
    }
    let mut counts: Vec<_> =
        counts.into_iter().map(|(word, n)| (word.to_owned(), Count { n, more: false })).collect();
    counts.sort_by(|a, b| b.1.n.cmp(&a.1.n).then_with(|| a.0.cmp(&b.0)));
    counts
}

/// Finds batches: where results came lately, where workers are, of the newest jobs, and any that are not done.
async fn active(sight: &Sight, pulse: &Pulse, room: usize) -> Result<Vec<(String, Activity)>, StoreError> {
    let mut found: HashMap<String, Activity> = HashMap::new();
    for batch in pulse.beats.iter().filter_map(|beat| beat.batch.as_ref()) {
        found.entry(batch.clone()).or_default().results += pulse.step;
    }
    let wish = Wish::default();
    let mut jobs: Vec<JobId> = Vec::new();
    for walk in [OpenWalk::Few(OpenState::Running), OpenWalk::All] {
        let stretch = sight.board.jobs_of(walk, &wish, i64::MAX, JOBS_MAX, JOBS_MAX).await?;
        jobs.extend(stretch.hits.into_iter().map(|(_, job)| JobId(job)));
    }
    for line in sight.board.job_lines(&jobs).await? {
        let Some(batch) = line.batch.filter(|_| line.state != "done") else { continue };
        let activity = found.entry(batch).or_default();
        activity.running += i64::from(line.state == "running");
        activity.newest = activity.newest.max(line.id.0);
    }
    for batch in sight.board.batches_open("", room as i64).await? {
        found.entry(batch).or_default();
    }
    Ok(found.into_iter().filter(|(name, _)| !name.is_empty()).collect())
}
