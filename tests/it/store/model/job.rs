//! A job as the contract tells it, and what each of its changes does.

use std::collections::BTreeMap;

use promptmill::domain::outcome::Outcome;

use super::rules;

/// `job_state.state`. `waiting` comes with the tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Pending,
    Scheduled,
    Running,
    Done,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Done => "done",
        }
    }
}

/// How many calls, and their four kinds of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    pub calls: i64,
    pub tokens: [i64; 4],
}

impl Sums {
    pub fn add(&mut self, tokens: [i64; 4]) {
        self.calls += 1;
        for (sum, more) in self.tokens.iter_mut().zip(tokens) {
            *sum += more;
        }
    }
}

/// A row of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub run: i64,
    pub late: bool,
    pub error: Option<&'static str>,
    pub tokens: [i64; 4],
    /// Bytes of text folded into a `lost` row.
    pub folded: Option<usize>,
    /// Whether its own worker wrote it, or wrote to it.
    pub spoken: bool,
}

impl Row {
    /// The row of a call that may have been made: nobody is left to say.
    fn lost(run: i64, folded: Option<usize>) -> Self {
        let output = folded.map_or(0, rules::estimate);
        Self { run, late: false, error: Some("lost"), tokens: [0, output, 0, 0], folded, spoken: false }
    }

    pub fn is_lost(&self) -> bool {
        self.error == Some("lost")
    }
}

/// A call that is over, and not in the ledger yet.
#[derive(Debug, Clone)]
pub struct Paid {
    pub seq: i32,
    pub row: Row,
    /// Whether parts of it were kept, which its row makes superfluous.
    pub checkpointed: bool,
}

/// A row of `results`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub run: i64,
    pub outcome: Outcome,
    pub text: Option<String>,
    pub error: Option<&'static str>,
    pub failures: i32,
    pub sums: Sums,
}

/// The right that a claim gave: `domain::job::Lease` without the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub claim: i64,
    pub run: i64,
}

/// What a worker says of the end of a job.
#[derive(Debug, Clone)]
pub struct Said {
    pub outcome: Outcome,
    pub text: Option<String>,
    pub failures: i32,
}

/// What becomes of a fenced write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Done,
    Lost,
}

/// A job and all that belongs to it.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: i64,
    pub gone: bool,
    pub queue: usize,
    pub priority: i32,
    pub state: State,
    /// Whether `available_at` has come.
    pub due: bool,
    /// Whether there is a deadline, and whether it has passed.
    pub deadline: Option<bool>,
    pub run: i64,
    pub claims: i64,
    pub failures: i32,
    pub deferrals: i32,
    pub crashes: i32,
    /// Whether it says itself why it waits.
    pub reason: bool,
    /// Who holds it.
    pub holder: Option<i64>,
    pub result: Option<Ended>,
    /// By (claim, seq).
    pub ledger: BTreeMap<(i64, i32), Row>,
    /// By (claim, seq, part); part 0 is the head.
    pub parts: BTreeMap<(i64, i32, i32), usize>,
}

impl Job {
    pub fn new(id: i64, queue: usize, priority: i32, later: bool, deadline: bool) -> Self {
        Self {
            id,
            gone: false,
            queue,
            priority,
            state: if later { State::Scheduled } else { State::Pending },
            due: !later,
            deadline: deadline.then_some(false),
            run: 1,
            claims: 0,
            failures: 0,
            deferrals: 0,
            crashes: 0,
            reason: false,
            holder: None,
            result: None,
            ledger: BTreeMap::new(),
            parts: BTreeMap::new(),
        }
    }

    pub fn is_suspect(&self) -> bool {
        self.crashes >= rules::SUSPECT_AT
    }

    pub fn holds(&self, lease: Claim) -> bool {
        !self.gone && self.state == State::Running && (self.claims, self.run) == (lease.claim, lease.run)
    }

    /// The sums over the ledger of one run: lost, late and failed calls too.
    pub fn sums(&self, run: i64) -> Sums {
        let mut sums = Sums::default();
        for row in self.ledger.values().filter(|row| row.run == run) {
            sums.add(row.tokens);
        }
        sums
    }

    pub fn claimed(&mut self, worker: i64) -> Claim {
        self.state = State::Running;
        self.claims += 1;
        self.holder = Some(worker);
        self.reason = false;
        Claim { claim: self.claims, run: self.run }
    }

    /// Parts of a stream; returns whether they are kept.
    pub fn checkpoint(&mut self, lease: Claim, seq: i32, parts: &[(i32, usize)]) -> bool {
        if !self.holds(lease) {
            return false;
        }
        if !self.ledger.contains_key(&(lease.claim, seq)) {
            for &(part, bytes) in parts {
                self.parts.entry((lease.claim, seq, part)).or_insert(bytes);
            }
        }
        true
    }

    /// Writes a row of the ledger, once. A `lost` one gives way, but for a text that somebody may have
    /// gone on with: then what was paid is noted in it.
    fn write(&mut self, lease: Claim, call: &Paid, late: bool) {
        if call.checkpointed {
            self.parts.retain(|&(claim, ..), _| claim != lease.claim);
        }
        let at = (lease.claim, call.seq);
        let goes_on = self.state != State::Done && self.run == lease.run;
        let row = match self.ledger.get(&at) {
            Some(row) if !row.is_lost() => return,
            Some(row) if late && goes_on && row.folded.is_some() => {
                Row { tokens: call.row.tokens, spoken: true, ..row.clone() }
            }
            _ => Row { run: lease.run, late, ..call.row.clone() },
        };
        self.ledger.insert(at, row);
    }

    /// Returns whether it came late.
    pub fn append(&mut self, lease: Claim, call: &Paid) -> bool {
        if self.gone {
            return true;
        }
        let late = !self.holds(lease);
        if !late {
            self.crashes = 0;
        }
        self.write(lease, call, late);
        late
    }

    /// Whether the same write came through before, or nobody has taken the job since.
    fn is_repeated(&self, lease: Claim) -> bool {
        self.state != State::Running && (self.claims, self.run) == (lease.claim, lease.run)
    }

    pub fn settle(&mut self, lease: Claim, said: &Said, call: Option<&Paid>) -> Fate {
        if self.gone {
            return Fate::Lost;
        }
        if self.is_repeated(lease) {
            return Fate::Done;
        }
        let held = self.holds(lease);
        let adopted =
            !held && self.state != State::Done && self.run == lease.run && rules::is_answer(said.outcome);
        if adopted {
            self.taken_away();
            self.claims += 1;
        }
        if held || adopted {
            self.state = State::Done;
        }
        if let Some(call) = call {
            self.write(lease, call, !held);
        }
        if !held && !adopted {
            return Fate::Lost;
        }
        self.failures = said.failures;
        let failed = !rules::is_answer(said.outcome);
        self.end(Ended {
            run: lease.run,
            outcome: said.outcome,
            text: said.text.clone(),
            error: failed.then_some("overloaded"),
            failures: said.failures,
            sums: self.sums(lease.run),
        });
        Fate::Done
    }

    fn end(&mut self, result: Ended) {
        self.state = State::Done;
        self.holder = None;
        self.reason = false;
        self.result = Some(result);
    }

    /// Ends without an answer: what it cost is what the ledger says.
    fn end_as(&mut self, outcome: Outcome) {
        self.end(Ended {
            run: self.run,
            outcome,
            text: None,
            error: Some(outcome.as_str()),
            failures: self.failures,
            sums: self.sums(self.run),
        });
        self.claims += 1;
    }

    pub fn release(
        &mut self,
        lease: Claim,
        later: bool,
        failures: i32,
        deferrals: i32,
        call: Option<&Paid>,
    ) -> Fate {
        if self.gone {
            return Fate::Lost;
        }
        if self.is_repeated(lease) {
            return Fate::Done;
        }
        let held = self.holds(lease);
        if let Some(call) = call {
            self.write(lease, call, !held);
        }
        if !held {
            return Fate::Lost;
        }
        if call.is_some() {
            self.crashes = 0;
        }
        (self.failures, self.deferrals) = (failures, deferrals);
        self.state = if later { State::Scheduled } else { State::Pending };
        self.due = !later;
        self.holder = None;
        self.reason = true;
        Fate::Done
    }

    /// What a worker had when the job was taken from it; returns whether its text was added.
    pub fn fill(&mut self, lease: Claim, text: Option<&str>) -> bool {
        // The worker is back: it would have written the call, had it made one. One of which text was
        // kept was made.
        self.ledger.retain(|&(claim, _), row| claim != lease.claim || row.spoken || row.folded.is_some());
        let sums = self.sums(lease.run);
        let Some(result) = self.result.as_mut().filter(|result| result.run == lease.run) else {
            return false;
        };
        result.sums = sums;
        let open = rules::is_taken_away(result.outcome) && result.text.is_none();
        if open {
            result.text = text.map(str::to_owned);
        }
        open
    }

    /// A living worker says that a crash which was counted was none.
    pub fn absolve(&mut self, lease: Claim) {
        if !self.gone && self.claims > lease.claim && self.run == lease.run && self.state != State::Done {
            self.crashes = (self.crashes - 1).max(0);
        }
    }

    /// Leaves the call that may be under way in the ledger, where somebody holds the job.
    fn taken_away(&mut self) {
        if self.holder.is_none() {
            return;
        }
        let seq = self.seq_under_way();
        let lost = Row::lost(self.run, self.folded(seq));
        self.ledger.insert((self.claims, seq), lost);
        self.parts.clear();
    }

    /// The number of the call that may be under way in a claim.
    fn seq_under_way(&self) -> i32 {
        let rows = self.ledger.range((self.claims, 0)..=(self.claims, i32::MAX));
        1 + rows.last().map_or(0, |(&(_, seq), _)| seq)
    }

    /// The text of the stream under way, where no part of it is missing.
    fn folded(&self, seq: i32) -> Option<usize> {
        let parts = self.parts.range((self.claims, seq, 0)..=(self.claims, seq, i32::MAX));
        let parts: Vec<(i32, usize)> = parts.map(|(&(.., part), &bytes)| (part, bytes)).collect();
        let whole = parts.iter().enumerate().all(|(at, &(part, _))| at as i32 == part);
        (whole && parts.len() > 1).then(|| parts[1..].iter().map(|(_, bytes)| bytes).sum())
    }

    /// Takes the job from a dead worker.
    pub fn rescue(&mut self) {
        let claim = self.claims;
        let before = self.ledger.values().filter(|row| row.run == self.run && row.is_lost());
        let longest = before.filter_map(|row| row.folded).max().unwrap_or(0);
        let progress = self.folded(self.seq_under_way()).is_some_and(|bytes| bytes > longest)
            || self.ledger.keys().any(|&(of, _)| of == claim);
        self.taken_away();
        self.crashes = if progress { 0 } else { self.crashes + 1 };
        if self.crashes >= rules::QUARANTINED_AT {
            return self.end_as(Outcome::Quarantined);
        }
        self.claims += 1;
        self.state = State::Pending;
        self.holder = None;
        self.reason = true;
    }

    /// A person or the deadline ends the job; nothing where it is done.
    pub fn take_away(&mut self, outcome: Outcome) {
        if self.gone || self.state == State::Done {
            return;
        }
        self.taken_away();
        self.end_as(outcome);
    }

    /// A person says `pending`: run again, run now, nothing; `false`: refused.
    pub fn make_pending(&mut self, later: bool) -> bool {
        match self.state {
            State::Running => return false,
            State::Pending => {}
            State::Scheduled => (self.state, self.due) = (State::Pending, true),
            State::Done => {
                self.state = if later { State::Scheduled } else { State::Pending };
                self.due = !later;
                self.run += 1;
                self.claims += 1;
                (self.failures, self.deferrals, self.crashes) = (0, 0, 0);
                self.deadline = self.deadline.map(|_| false);
                self.result = None;
                self.parts.clear();
            }
        }
        true
    }

    /// A person moves `available_at`; `false`: refused.
    pub fn move_to(&mut self, later: bool) -> bool {
        if !matches!(self.state, State::Pending | State::Scheduled) {
            return false;
        }
        self.state = if later { State::Scheduled } else { State::Pending };
        self.due = !later;
        true
    }

    pub fn delete(&mut self) {
        self.gone = true;
        self.ledger.clear();
        self.parts.clear();
        self.result = None;
    }
}
