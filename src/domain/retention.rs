//! How long done jobs keep their prompts, and how long they stay at all. Pure.
//!
//! Says what is to be looked for ([`Rules::sweeps`]) and how much of it goes at once ([`Steps`]). What is
//! old enough says the database by its own clock: ages go in, no times. See `worker::retention`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::job::JobId;

/// What is taken away of a done job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erasure {
    /// What was asked: `prompt`, `system`, `params`. Result and ledger stay.
    Prompts,
    /// The job with everything that belongs to it.
    Jobs,
}

/// How long after its end a job keeps what; `None`: for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// What was asked.
    pub prompts: Option<Duration>,
    /// The job itself.
    pub jobs: Option<Duration>,
}

impl Retention {
    /// Whether the job is gone before its prompt would be.
    pub fn is_redacted_in_vain(&self) -> bool {
        self.jobs.is_some_and(|jobs| self.prompts.is_some_and(|prompts| prompts >= jobs))
    }
}

/// How long the jobs of each queue keep what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Those of all queues that are not named.
    pub all: Retention,
    /// Those of one queue.
    pub queues: BTreeMap<String, Retention>,
}

/// Which queues are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Among {
    /// These.
    Only(Vec<String>),
    /// All but these.
    AllBut(Vec<String>),
}

impl Among {
    /// Returns the names.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Only(names) | Self::AllBut(names) => names,
        }
    }

    /// Whether the names are those that are not meant.
    pub const fn is_all_but(&self) -> bool {
        matches!(self, Self::AllBut(_))
    }
}

/// One thing to be looked for: done jobs of some queues whose results are of a certain age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// What goes.
    pub what: Erasure,
    /// Since the result was written.
    pub age: Duration,
    /// Of which queues.
    pub queues: Among,
}

impl Rules {
    /// Returns what is to be looked for, queues of one age together; nothing where all is kept.
    pub fn sweeps(&self) -> Vec<Sweep> {
        // Jobs first: what goes as a whole need not be redacted before.
        [Erasure::Jobs, Erasure::Prompts].into_iter().flat_map(|what| self.sweeps_of(what)).collect()
    }

    fn sweeps_of(&self, what: Erasure) -> Vec<Sweep> {
        let age = |retention: &Retention| match what {
            Erasure::Jobs => retention.jobs,
            Erasure::Prompts => retention.prompts.filter(|_| !retention.is_redacted_in_vain()),
        };
        let usual = age(&self.all);
        let mut others: BTreeMap<Duration, Vec<String>> = BTreeMap::new();
        let mut unlike = Vec::new();
        for (name, retention) in self.queues.iter().filter(|(_, retention)| age(retention) != usual) {
            unlike.push(name.clone());
            if let Some(age) = age(retention) {
                others.entry(age).or_default().push(name.clone());
            }
        }
        let usual = usual.map(|age| Sweep { what, age, queues: Among::AllBut(unlike) });
        let others = others.into_iter().map(|(age, names)| Sweep { what, age, queues: Among::Only(names) });
        usual.into_iter().chain(others).collect()
    }
}

/// A done job, as it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoneJob {
    /// Which.
    pub job: JobId,
    /// `results.seq`: another one once it was run again.
    pub seq: i64,
    /// About how many bytes it holds.
    pub bytes: i64,
}

/// How much goes in one step: as much as takes [`Steps::TIME`], found by trying. Others wait for as
/// long as a step takes.
#[derive(Debug, Clone)]
pub struct Steps {
    /// In jobs without texts worth mentioning.
    room: u64,
}

impl Default for Steps {
    fn default() -> Self {
        Self { room: Self::FIRST }
    }
}

impl Steps {
    /// What takes longer is halved.
    pub const TIME: Duration = Duration::from_millis(20);
    /// The first step: nobody knows yet how fast it is.
    const FIRST: u64 = 64;
    /// The smallest: a commit takes as long for one job as for so many, and where that alone is slow
    /// nothing would ever get done.
    const MIN: u64 = 32;
    /// The largest step.
    const MAX: u64 = 4096;
    /// So many bytes take about as long as a row.
    const BYTES: u64 = 16 * 1024;

    /// Returns how many jobs the next step takes at most.
    pub const fn room(&self) -> u64 {
        self.room
    }

    /// Returns those of the jobs that go in the next step: at least one, if there is one.
    pub fn next<'a>(&self, jobs: &'a [DoneJob]) -> &'a [DoneJob] {
        let mut left = self.room;
        let fits = jobs.iter().take_while(|job| {
            let cost = 1 + job.bytes.max(0) as u64 / Self::BYTES;
            let fits = cost <= left;
            left = left.saturating_sub(cost);
            fits
        });
        &jobs[..fits.count().max(1).min(jobs.len())]
    }

    /// Learns from a step; `was_full`: there was more than it took.
    pub fn took(&mut self, time: Duration, was_full: bool) {
        if time > Self::TIME {
            self.room = (self.room / 2).max(Self::MIN);
        } else if was_full && time < Self::TIME / 2 {
            self.room = (self.room * 2).min(Self::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn retention(prompts: Option<u32>, jobs: Option<u32>) -> Retention {
        Retention { prompts: prompts.map(|days| DAY * days), jobs: jobs.map(|days| DAY * days) }
    }

    fn rules(all: Retention, queues: &[(&str, Retention)]) -> Rules {
        Rules { all, queues: queues.iter().map(|(name, queue)| ((*name).to_owned(), *queue)).collect() }
    }

    fn sweep(what: Erasure, days: u32, queues: Among) -> Sweep {
        Sweep { what, age: DAY * days, queues }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn by_default_nothing_is_looked_for() {
        assert_eq!(Rules::default().sweeps(), []);
        let rules = rules(retention(None, None), &[("a", retention(None, None))]);
        assert_eq!(rules.sweeps(), []);
    }

    #[test]
    fn queues_of_one_age_are_looked_for_together_and_those_that_differ_are_left_out() {
        let rules = rules(
            retention(Some(7), Some(30)),
            &[
                ("kept", retention(None, None)),
                ("short-1", retention(Some(1), Some(30))),
                ("short-2", retention(Some(1), Some(90))),
                ("usual", retention(Some(7), Some(30))),
            ],
        );
        assert_eq!(
            rules.sweeps(),
            [
                sweep(Erasure::Jobs, 30, Among::AllBut(names(&["kept", "short-2"]))),
                sweep(Erasure::Jobs, 90, Among::Only(names(&["short-2"]))),
                sweep(Erasure::Prompts, 7, Among::AllBut(names(&["kept", "short-1", "short-2"]))),
                sweep(Erasure::Prompts, 1, Among::Only(names(&["short-1", "short-2"]))),
            ]
        );
    }

    #[test]
    fn a_job_that_goes_first_is_not_redacted() {
        let rules = rules(retention(Some(30), Some(7)), &[]);
        assert_eq!(rules.sweeps(), [sweep(Erasure::Jobs, 7, Among::AllBut(Vec::new()))]);
    }

    #[test]
    fn a_step_grows_while_it_is_fast_and_halves_when_it_is_slow() {
        let mut steps = Steps::default();
        for _ in 0..20 {
            steps.took(Steps::TIME / 4, true);
        }
        assert_eq!(steps.room(), Steps::MAX);
        steps.took(Steps::TIME / 4 * 3, true);
        assert_eq!(steps.room(), Steps::MAX, "near the goal it stays");
        steps.took(Steps::TIME * 2, true);
        assert_eq!(steps.room(), Steps::MAX / 2);
        for _ in 0..20 {
            steps.took(Steps::TIME * 2, true);
        }
        assert_eq!(steps.room(), Steps::MIN, "a slow commit does not stop it");
        steps.took(Duration::ZERO, false);
        assert_eq!(steps.room(), Steps::MIN, "what was not full says nothing");
    }

    #[test]
    fn long_texts_make_a_step_smaller_and_one_job_always_goes() {
        let job = |bytes| DoneJob { job: JobId(1), seq: 1, bytes };
        let mut steps = Steps::default();
        assert_eq!(steps.next(&vec![job(0); 1000]).len(), 64);
        assert_eq!(steps.next(&vec![job(16 * 1024); 1000]).len(), 32);
        assert_eq!(steps.next(&[job(1 << 40), job(0)]).len(), 1);
        assert_eq!(steps.next(&[]).len(), 0);
        steps.took(Steps::TIME * 2, true);
        assert_eq!(steps.next(&vec![job(0); 1000]).len(), 32);
    }
}
