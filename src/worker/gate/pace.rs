//! How fast each class of models is asked with each key: who waits for a ticket, what is taken from the shared
//! budget, and what a class's pause looks like in the table `gates`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::scope::Scope;
use super::{Gates, Inner, Permit, Refusal};
use crate::domain::job::{Job, Lease};
use crate::domain::pace::{self, Each, Estimates, Hold, Pace, RateLimits, Spent, Ticket};
use crate::store::Store;

/// A ticket is waited for so long; who would wait longer gives the slot to others.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Without a sign the ticket is asked for again after so long.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// A pause of this length shows in the table: nobody would see a shorter one.
const SHOWN: Duration = Duration::from_secs(2);
/// Ends that differ by less are the same: they are taken over with the time that reading took.
const SAME_END: Duration = Duration::from_secs(5);

/// What the configuration says of models' limits.
#[derive(Debug, Clone, Default)]
pub struct PaceSettings {
    /// The class of a model, where it is not told by its name.
    pub classes: HashMap<String, String>,
    /// Limits a minute, by class.
    pub limits: HashMap<String, Each<Option<f64>>>,
}

impl PaceSettings {
    /// Which models share a limit.
    pub fn class(&self, model: &str) -> String {
        pace::class(model, self.classes.get(model).map(String::as_str))
    }
}

/// A key, and a class of models: what has one rate limit.
pub(super) type Tier = (String, String);

/// The name of its budget, and of its gate.
pub(super) fn scope((key, class): &Tier) -> String {
    format!("rate:{key}/{class}")
}

/// The paces of this process.
#[derive(Default)]
pub(super) struct Paces {
    settings: Arc<PaceSettings>,
    by_class: HashMap<Tier, Class>,
    estimates: Estimates,
    /// Where each job belongs that was claimed and has no ticket yet.
    waiting: HashMap<Lease, Tier>,
}

/// One class.
struct Class {
    pace: Pace,
    waiting: usize,
    /// A pause that others should know of.
    until: Option<Instant>,
    /// Whether the table says so, whoever wrote it: once it is over, anybody takes it out again.
    shown: bool,
    /// A person blocks it: no pause ends that.
    held: Option<String>,
}

impl Class {
    fn pause(&mut self, until: Instant, now: Instant) {
        self.until = Some(self.until.map_or(until, |known| known.max(until)));
        self.pace.pause(Some(until.saturating_duration_since(now)), now, 0.0);
    }

    /// Nothing of the table holds it any more.
    fn let_go(&mut self) {
        (self.held, self.until, self.shown) = (None, None, false);
    }

    fn free(&mut self) {
        self.let_go();
        self.pace.free();
    }

    fn blocks(&self, now: Instant) -> bool {
        self.held.is_some() || self.until.is_some_and(|until| now < until)
    }

    /// How many more jobs may be claimed, if they cost what is typical.
    fn room(&self, typical: Each<f64>, now: Instant) -> usize {
        let slots = if self.blocks(now) { 0 } else { self.pace.slots(typical, now) };
        slots.saturating_sub(self.waiting)
    }
}

/// What was set aside for one call.
pub(super) struct Paced {
    tier: Tier,
    queue: String,
    model: String,
    bytes: usize,
    ticket: Ticket,
}

impl Paces {
    pub(super) fn new(settings: Arc<PaceSettings>) -> Self {
        Self { settings, ..Self::default() }
    }

    /// A key is not in use any more: its limits say nothing about another's. What is known of the models
    /// stays.
    pub(super) fn forget_key(&mut self, key: &str) {
        self.by_class.retain(|(of, _), _| of != key);
        self.waiting.retain(|_, (of, _)| of != key);
    }

    fn of(&mut self, tier: &Tier, now: Instant) -> &mut Class {
        if self.by_class.len() >= super::REMEMBERED {
            let counts = |class: &Class| class.waiting > 0 || class.shown || class.held.is_some();
            self.by_class.retain(|_, class| !class.pace.is_idle(now) || counts(class));
        }
        let limits = self.settings.limits.get(&tier.1);
        self.by_class.entry(tier.clone()).or_insert_with(|| {
            let mut pace = Pace::new(now);
            if let Some(limits) = limits {
                pace.configure(*limits);
            }
            Class { pace, waiting: 0, until: None, shown: false, held: None }
        })
    }

    /// How many more jobs of each class may be claimed now.
    pub(super) fn rooms(&self, now: Instant) -> HashMap<Tier, usize> {
        let typical = self.estimates.typical();
        self.by_class.iter().map(|(name, class)| (name.clone(), class.room(typical, now))).collect()
    }

    fn room(&self, tier: &Tier, now: Instant) -> usize {
        let typical = self.estimates.typical();
        self.by_class.get(tier).map_or(0, |class| class.room(typical, now))
    }

    /// Whether a class gives no room just now.
    pub(super) fn is_limiting(&self, now: Instant) -> bool {
        let typical = self.estimates.typical();
        self.by_class.values().any(|class| class.room(typical, now) == 0)
    }

    pub(super) fn claimed(&mut self, lease: Lease, tier: Tier, now: Instant) {
        self.of(&tier, now).waiting += 1;
        self.waiting.insert(lease, tier);
    }

    pub(super) fn waits_no_more(&mut self, lease: Lease) {
        if let Some(tier) = self.waiting.remove(&lease)
            && let Some(class) = self.by_class.get_mut(&tier)
        {
            class.waiting = class.waiting.saturating_sub(1);
        }
    }

    /// A class is refused by the API until then. Returns whether the table is to say so: what a person holds
    /// stays theirs, and a later end that stands there stays.
    fn refused(&mut self, tier: &Tier, until: Instant, now: Instant) -> bool {
        let class = self.of(tier, now);
        let is_news = class.held.is_none() && class.until.is_none_or(|known| known < until);
        class.pause(until, now);
        class.shown |= is_news;
        is_news
    }

    /// The table says that a class pauses until then. `unsaid`: what was to be said here of another end is not
    /// there yet. Daemons only ever put an end off: an earlier one than was there is a person's word, which is
    /// obeyed, as is one in the place of a block without an end.
    pub(super) fn paused_elsewhere(&mut self, tier: &Tier, until: Instant, unsaid: bool, now: Instant) {
        let class = self.of(tier, now);
        if !unsaid && class.until.is_some_and(|known| until + SAME_END < known) {
            class.free();
        }
        class.held = None;
        class.pause(until, now);
        class.shown = true;
    }

    /// A gate rests in place of this class's own pause, or opened: only what the server asked for is waited for.
    pub(super) fn resume(&mut self, tier: &Tier) {
        if let Some(class) = self.by_class.get_mut(tier) {
            class.pace.resume();
        }
    }

    /// A person blocks a class without an end.
    pub(super) fn hold(&mut self, tier: &Tier, reason: String, now: Instant) {
        let class = self.of(tier, now);
        class.let_go();
        class.held = Some(reason);
    }

    /// Another daemon saw that a pause was over. What the server asked for here is still waited for.
    pub(super) fn is_over(&mut self, tier: &Tier, now: Instant) {
        self.of(tier, now).let_go();
    }

    /// A person lets a class flow.
    pub(super) fn free(&mut self, tier: &Tier, now: Instant) {
        self.of(tier, now).free();
    }

    /// What the table is to say of a class: the reason and the end, if it does not flow.
    pub(super) fn row(&self, tier: &Tier, now: Instant) -> Option<(String, Option<Instant>)> {
        let class = self.by_class.get(tier)?;
        if let Some(reason) = &class.held {
            return Some((reason.clone(), None));
        }
        let until = class.until.filter(|until| now < *until)?;
        Some((super::sync::RATE_LIMIT.to_owned(), Some(until)))
    }

    /// Ends the pauses that are over; returns those that the table shows.
    pub(super) fn end_pauses(&mut self, now: Instant) -> Vec<Tier> {
        let mut over = Vec::new();
        for (name, class) in &mut self.by_class {
            if class.until.is_some_and(|until| until <= now) {
                class.until = None;
            }
            if class.shown && class.until.is_none() {
                class.shown = false;
                over.push(name.clone());
            }
        }
        over
    }

    pub(super) fn is_paused(&self) -> bool {
        self.by_class.values().any(|class| class.until.is_some() || class.held.is_some())
    }
}

impl Gates {
    /// Waits for the right to make a call of so many bytes, as far as the pace is concerned.
    pub(super) async fn pace(
        &self,
        job: &Job,
        tier: Tier,
        bytes: usize,
        stop: &CancellationToken,
    ) -> Result<Paced, Refusal> {
        let began = Instant::now();
        loop {
            let now = Instant::now();
            let hold = match self.try_pace(job, &tier, bytes, now) {
                Ok(paced) => return Ok(paced),
                Err(hold) => hold,
            };
            let until = match hold {
                Hold::Until(at) => at,
                Hold::Window | Hold::Allowance => now + LOOK_AGAIN,
            };
            if stop.is_cancelled() || until.max(now) >= began + WAIT_MAX {
                return Err(Refusal::Blocked(super::sync::RATE_LIMIT.to_owned()));
            }
            let moved = self.moved.notified();
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = moved, if !matches!(hold, Hold::Until(_)) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    fn try_pace(&self, job: &Job, tier: &Tier, bytes: usize, now: Instant) -> Result<Paced, Hold> {
        let mut inner = self.lock();
        let estimate = inner.paces.estimates.of(&job.queue, &job.model, bytes);
        let ticket = inner.paces.of(tier, now).pace.admit(estimate, now)?;
        Ok(Paced { tier: tier.clone(), queue: job.queue.clone(), model: job.model.clone(), bytes, ticket })
    }

    /// What a response to a job's call said of the limits, be it a refusal.
    pub fn learn(&self, job: &Job, limits: &RateLimits, now: Instant) {
        let mut inner = self.lock();
        let tier = self.tier(&inner, &job.queue, &job.model);
        let pace = &mut inner.paces.of(&tier, now).pace;
        let knew = pace.knows_limits();
        pace.learn(limits, now);
        if !knew && pace.knows_limits() {
            self.take_now.notify_one();
        }
    }

    /// Takes from the shared budgets what the calls of the next second need, and tells them what was
    /// learnt, for each class that is asked.
    pub async fn take_rates(&self, store: &dyn Store) {
        let takes: Vec<_> = {
            let mut inner = self.lock();
            let now = Instant::now();
            let classes = inner.paces.by_class.iter_mut();
            let asked = classes.filter(|(_, class)| class.waiting > 0 || !class.pace.is_idle(now));
            asked.map(|(tier, class)| (tier.clone(), class.pace.take(now))).collect()
        };
        // Nobody waits, and no claim would find more than before.
        if takes.is_empty() {
            return;
        }
        for (tier, take) in takes {
            let grants = match store.take_rates(&scope(&tier), &take).await {
                Ok(grants) => grants,
                Err(err) => {
                    tracing::debug!(error = %err, "failed to take from the rate budget");
                    Each::default()
                }
            };
            let mut inner = self.lock();
            if let Some(class) = inner.paces.by_class.get_mut(&tier) {
                let knew = class.pace.knows_limits();
                class.pace.granted(grants);
                if !knew && class.pace.knows_limits() {
                    self.take_now.notify_one();
                }
            }
        }
        self.moved.notify_waiters();
        self.opened.notify_one();
    }

    /// Waits until a limit is known that nothing was taken of yet.
    pub async fn knows_more(&self) {
        self.take_now.notified().await;
    }

    /// Tells those who wait for a ticket, and the claims where there is more room than before.
    fn has_moved(&self, inner: &Inner, tier: &Tier, room: usize, now: Instant) {
        self.moved.notify_waiters();
        if inner.paces.room(tier, now) > room {
            self.opened.notify_one();
        }
    }

    /// A call ended, or was never made.
    pub(super) fn end_pace(&self, inner: &mut Inner, paced: Paced, spent: Spent, now: Instant) {
        let Paced { tier, queue, model, bytes, ticket } = paced;
        if let Spent::Answered { input, output } = spent {
            inner.paces.estimates.learn(&queue, &model, bytes, input, output);
        }
        // The key was replaced while the call ran: nobody needs its limits any more.
        if !inner.paces.by_class.contains_key(&tier) {
            return self.moved.notify_waiters();
        }
        let room = inner.paces.room(&tier, now);
        if let Spent::Refused(_, Some(hint)) = spent
            && hint >= SHOWN
            && inner.paces.refused(&tier, now + hint, now)
        {
            self.tell(inner, Scope::Rate(tier.clone()));
        }
        inner.paces.of(&tier, now).pace.end(ticket, spent, now, fastrand::f64());
        self.has_moved(inner, &tier, room, now);
    }
}

impl Permit<'_> {
    /// The first content came: the window may grow.
    pub(super) fn pace_content(&self, inner: &mut Inner, now: Instant) {
        if let Some(paced) = &self.paced {
            let room = inner.paces.room(&paced.tier, now);
            if let Some(class) = inner.paces.by_class.get_mut(&paced.tier) {
                class.pace.content(&paced.ticket, now);
            }
            self.gates.has_moved(inner, &paced.tier, room, now);
        }
    }

    /// The call ended so: what was set aside goes back, and what it cost is learnt.
    ///
    /// What says nothing of the pace keeps its place until the permit goes: a refusal is to be counted
    /// before the next call sets out, or where counting takes long the next ones are refused uncounted.
    pub fn spent(&mut self, spent: Spent, now: Instant) {
        if spent != Spent::Nothing {
            self.end_paced(spent, now);
        }
    }

    /// Gives its place to others.
    pub(super) fn end_paced(&mut self, spent: Spent, now: Instant) {
        if let Some(paced) = self.paced.take() {
            let mut inner = self.gates.lock();
            self.gates.end_pace(&mut inner, paced, spent, now);
        }
    }
}
