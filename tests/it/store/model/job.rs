//! A job as the contract tells it, and what each of its changes does.

use std::collections::BTreeMap;

use promptmill::domain::outcome::Outcome;

use super::rules;

/// `job_state.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Pending,
    Scheduled,
    Running,
    Waiting,
    Done,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Waiting => "waiting",
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
    /// Whether what it said stands in the result alone.
    pub in_result: bool,
}

impl Row {
    /// The row of a call that may have been made: nobody is left to say.
    fn lost(run: i64, folded: Option<usize>) -> Self {
        let output = folded.map_or(0, rules::estimate);
        Self {
            run,
            late: false,
            error: Some("lost"),
            tokens: [0, output, 0, 0],
            folded,
            spoken: false,
            in_result: false,
        }
    }

    pub fn is_lost(&self) -> bool {
        self.error == Some("lost")
    }
}

/// A row of `tool_calls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    pub run: i64,
    /// Who said last that it works on it.
    pub taken_by: Option<String>,
    pub result: Option<String>,
}

/// The calls of one reply: its row of the ledger, and how many there are.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    pub claim: i64,
    pub seq: i32,
    pub calls: i32,
}

impl Turn {
    pub fn keys(self) -> impl Iterator<Item = (i64, i32, i32)> {
        (0..self.calls).map(move |position| (self.claim, self.seq, position))
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
    /// By (claim, seq, position).
    pub tools: BTreeMap<(i64, i32, i32), Tool>,
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
            tools: BTreeMap::new(),
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
    /// Returns whether it was written.
    fn write(&mut self, lease: Claim, call: &Paid, late: bool) -> bool {
        if call.checkpointed {
            self.parts.retain(|&(claim, ..), _| claim != lease.claim);
        }
        let at = (lease.claim, call.seq);
        let goes_on = self.state != State::Done && self.run == lease.run;
        let row = match self.ledger.get(&at) {
            Some(row) if !row.is_lost() => return false,
            Some(row) if late && goes_on && row.folded.is_some() => {
                Row { tokens: call.row.tokens, spoken: true, ..row.clone() }
            }
            _ => Row { run: lease.run, late, ..call.row.clone() },
        };
        self.ledger.insert(at, row);
        true
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
            self.waits_no_more();
            self.claims += 1;
        }
        if held || adopted {
            self.state = State::Done;
        }
        if let Some(call) = call
            && self.write(lease, call, !held)
            && let Some(row) = self.ledger.get_mut(&(lease.claim, call.seq))
        {
            row.in_result = (held || adopted) && row.error.is_none();
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

    /// Waits for the calls of a reply, unless all of them are answered.
    pub fn wait(
        &mut self,
        lease: Claim,
        turn: Turn,
        failures: i32,
        deferrals: i32,
        call: Option<&Paid>,
    ) -> Fate {
        let held = self.holds(lease);
        let due = self.due;
        let fate = self.release(lease, false, failures, deferrals, call);
        if !held {
            return fate;
        }
        self.open(turn, None);
        self.due = due;
        if turn.keys().any(|key| self.tools[&key].result.is_none()) {
            self.state = State::Waiting;
        } else {
            self.reason = false;
        }
        fate
    }

    /// A worker says that it starts the tools of a reply; `false`: the lease is lost.
    pub fn open_tools(&mut self, lease: Claim, turn: Turn, by: &str) -> bool {
        let held = self.holds(lease);
        if held {
            self.open(turn, Some(by));
        }
        held
    }

    fn open(&mut self, turn: Turn, by: Option<&str>) {
        for key in turn.keys() {
            let new = Tool { run: self.run, taken_by: None, result: None };
            let tool = self.tools.entry(key).or_insert(new);
            if by.is_some() && tool.result.is_none() {
                tool.taken_by = by.map(str::to_owned);
            }
        }
    }

    /// A worker writes what a tool gave; `false`: the lease is lost.
    pub fn answer_tool(&mut self, lease: Claim, key: (i64, i32, i32), result: &str) -> bool {
        let held = self.holds(lease);
        if held && let Some(tool) = self.tools.get_mut(&key) {
            tool.result.get_or_insert_with(|| result.to_owned());
        }
        held
    }

    /// A tool server answers; `false`: refused.
    pub fn answer(&mut self, key: (i64, i32, i32), result: &str) -> bool {
        let Some(tool) = self.tools.get_mut(&key) else { return false };
        if tool.result.is_some() || tool.run != self.run || self.state != State::Waiting {
            return false;
        }
        tool.result = Some(result.to_owned());
        if self.open_calls() == 0 {
            (self.state, self.due, self.reason) = (State::Pending, true, false);
        }
        true
    }

    /// How many calls of this run have no result.
    pub fn open_calls(&self) -> usize {
        self.tools.values().filter(|tool| tool.run == self.run && tool.result.is_none()).count()
    }

    /// The reply whose calls are open, if there is one.
    pub fn open_turn(&self) -> Option<Turn> {
        let open = |&(_, tool): &(_, &Tool)| tool.run == self.run && tool.result.is_none();
        let (&(claim, seq, _), _) = self.tools.iter().rfind(open)?;
        let calls = self.tools.range((claim, seq, 0)..=(claim, seq, i32::MAX)).count() as i32;
        Some(Turn { claim, seq, calls })
    }

    /// Nobody will answer what it waits for.
    fn waits_no_more(&mut self) {
        if self.state == State::Waiting {
            self.tools.retain(|_, tool| tool.result.is_some());
        }
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
        self.waits_no_more();
        self.end_as(outcome);
    }

    /// A person says `pending`: run again, run now, nothing; `false`: refused.
    pub fn make_pending(&mut self, later: bool) -> bool {
        match self.state {
            State::Running | State::Waiting => return false,
            State::Pending => {}
            State::Scheduled => (self.state, self.due) = (State::Pending, true),
            State::Done => {
                self.state = if later { State::Scheduled } else { State::Pending };
                self.due = !later;
                self.ledger.values_mut().for_each(|row| row.in_result = false);
                self.run += 1;
                self.claims += 1;
                (self.failures, self.deferrals, self.crashes) = (0, 0, 0);
                self.deadline = self.deadline.map(|_| false);
                self.result = None;
                self.parts.clear();
                self.tools.retain(|_, tool| tool.result.is_some());
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
        self.tools.clear();
        self.result = None;
    }
}
