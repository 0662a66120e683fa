//! Tool calls: what workers open and answer, and what tool servers do by plain SQL.

use std::sync::Arc;

use promptmill::domain::job::WorkerId;
use promptmill::domain::ledger::{Back, Release};
use promptmill::domain::tool::{Asked, PastTool, ToolCall, ToolContent, ToolResult};

use super::super::job::{Job, State, Turn};
use super::super::step::{Pick, Then};
use super::{Closed, Hand, Play, claim, newest, same};

impl Play<'_> {
    /// The reply whose calls a worker sees to: the one that has open calls, else its own newest.
    fn turn(&self, at: usize, calls: i32) -> Turn {
        let hand = &self.hands[at];
        let (claim, seq, job) = (hand.lease.claim, hand.seq, &self.model.jobs[hand.job]);
        if let Some(open) = job.open_turn().filter(|_| job.run == hand.lease.run) {
            return open;
        }
        let there = job.tools.range((claim, seq, 0)..=(claim, seq, i32::MAX)).count() as i32;
        Turn { claim, seq, calls: if there > 0 { there } else { calls } }
    }

    pub(super) async fn wait(&mut self, pick: Pick, calls: i32, with_call: bool) -> Result<(), String> {
        let Some(at) = self.hand(pick, |hand| hand.closed.is_none()) else { return Ok(()) };
        self.wait_as(at, calls, with_call).await
    }

    async fn wait_as(&mut self, at: usize, calls: i32, with_call: bool) -> Result<(), String> {
        let with_call = with_call || self.hands[at].parts > 0;
        let turn = self.turn(at, calls);
        let (call, paid) = match with_call.then(|| self.paid(at, false)) {
            Some((call, paid)) => (Some(call), Some(paid)),
            None => (None, None),
        };
        let with = if with_call { " with its call" } else { "" };
        self.tell(format!("{} waits for {}{with}", self.title(at), named(turn)));
        let hand = &mut self.hands[at];
        let back = Release {
            lease: hand.lease,
            back: Back::Waiting(asked(turn)),
            failures: hand.failures,
            deferrals: hand.deferrals,
            reason: Some("waits for tools".to_owned()),
            call,
        };
        hand.closed = Some(Closed::Waits(Arc::new(back), paid, turn));
        let (job, lease) = (hand.job, claim(&hand.lease));
        let held = self.model.jobs[job].holds(lease);
        self.write_released(at).await?;
        self.see(match (held, self.model.jobs[job].state) {
            (false, _) => "a wait that was lost",
            (true, State::Waiting) => "a job that waits",
            (true, _) => "a wait for what is answered",
        });
        Ok(())
    }

    pub(super) async fn open_tools(&mut self, pick: Pick, calls: i32) -> Result<(), String> {
        let Some(at) = self.hand(pick, |hand| hand.closed.is_none()) else { return Ok(()) };
        self.open_as(at, calls).await
    }

    async fn open_as(&mut self, at: usize, calls: i32) -> Result<(), String> {
        let turn = self.turn(at, calls);
        self.tell(format!("{} starts {}", self.title(at), named(turn)));
        let hand = &self.hands[at];
        let (lease, worker) = (hand.lease, WorkerId(hand.worker));
        let opened = self.store(hand.worker).open_tools(&lease, &asked(turn), worker).await;
        let opens = self.model.jobs[hand.job].open_tools(claim(&lease), turn, &format!("worker {worker}"));
        if opens {
            self.see(if turn.claim == lease.claim {
                "a tool started"
            } else {
                "a tool of another claim started again"
            });
        }
        same("whether it may start", &opens, &opened.map_err(|error| error.to_string())?)
    }

    pub(super) async fn answer_tool(&mut self, pick: Pick, call: u8) -> Result<(), String> {
        let has_tools = |hand: &Hand| hand.closed.is_none() && !self.model.jobs[hand.job].tools.is_empty();
        let Some(at) = self.hand(pick, has_tools) else { return Ok(()) };
        let (job, lease) = (self.hands[at].job, self.hands[at].lease);
        let run = lease.run;
        let of_run = self.model.jobs[job].tools.iter().filter(|(_, tool)| tool.run == run);
        let keys: Vec<_> = of_run.map(|(&key, _)| key).collect();
        let Some(&key) = newest(&keys, call) else { return Ok(()) };
        self.answer_as(at, key).await
    }

    /// What a worker does that runs tools itself, as far as it gets.
    pub(super) async fn run_tools(
        &mut self,
        pick: Pick,
        calls: i32,
        answered: usize,
        then: Then,
    ) -> Result<(), String> {
        let holds =
            |hand: &Hand| hand.closed.is_none() && self.model.jobs[hand.job].holds(claim(&hand.lease));
        let Some(at) = self.hand(pick, holds) else { return Ok(()) };
        self.open_as(at, calls).await?;
        self.compare().await?;
        let turn = self.turn(at, calls);
        for key in turn.keys().take(answered) {
            self.answer_as(at, key).await?;
            self.compare().await?;
        }
        match then {
            Then::Nothing => Ok(()),
            Then::Waits => self.wait_as(at, turn.calls, true).await,
            Then::Dies => self.start_again(at).await,
        }
    }

    /// The worker dies, and whoever gets the job next starts what has no result.
    async fn start_again(&mut self, at: usize) -> Result<(), String> {
        let (job, worker) = (self.hands[at].job, self.hands[at].worker);
        self.restart(0).await;
        self.rescue(worker, 9).await?;
        self.compare().await?;
        self.claim(0, 3, true).await?;
        self.compare().await?;
        let next = self.hands.iter().rposition(|hand| {
            hand.job == job && hand.closed.is_none() && self.model.jobs[job].holds(claim(&hand.lease))
        });
        match next {
            Some(next) => self.open_as(next, 1).await,
            None => Ok(()),
        }
    }

    async fn answer_as(&mut self, at: usize, key: (i64, i32, i32)) -> Result<(), String> {
        let (job, lease) = (self.hands[at].job, self.hands[at].lease);
        self.tell(format!("{} answers call {}.{}/{}", self.title(at), key.0, key.1, key.2));
        self.spent += 1;
        let result = format!("result {}", self.spent);
        let given = ToolResult { content: ToolContent::Text(result.clone()), is_error: false };
        let store = self.store(self.hands[at].worker);
        let written = store.answer_tool(&lease, key.0, key.1, key.2, &given).await;
        let writes = self.model.jobs[job].answer_tool(claim(&lease), key, &result);
        if writes {
            self.see("an answer by its worker");
        }
        same("whether it is written", &writes, &written.map_err(|error| error.to_string())?)
    }

    pub(super) async fn answer(&mut self, pick: Pick, call: u8) -> Result<(), String> {
        // Mostly one that waits.
        let waits = |job: &Job| job.state == State::Waiting;
        let some = self.job_that(pick, waits).or_else(|| self.job_that(pick, |job| !job.tools.is_empty()));
        let Some(at) = some else { return Ok(()) };
        let keys: Vec<_> = self.model.jobs[at].tools.keys().copied().collect();
        let Some(&key) = newest(&keys, call) else { return Ok(()) };
        self.answer_call(at, key).await
    }

    async fn answer_call(&mut self, at: usize, key: (i64, i32, i32)) -> Result<(), String> {
        let (claim, seq, position) = key;
        self.tell(format!("a tool server answers call {claim}.{seq}/{position} of job {}", at + 1));
        self.spent += 1;
        let result = format!("result {}", self.spent);
        let job = &mut self.model.jobs[at];
        let sql = format!(
            "UPDATE tool_calls SET result = '{result}'
              WHERE job_id = {} AND claim = {claim} AND seq = {seq} AND position = {position}",
            job.id
        );
        let taken = job.answer(key, &result);
        let (id, pending) = (job.id, job.state == State::Pending);
        let said = self.stage.ground.attempt(&sql).await;
        if !taken {
            self.add(": refused");
            self.see("an answer refused");
            // Postgres says so before it lets go of the row.
            let rows = format!("SELECT position FROM tool_calls WHERE job_id = {id}");
            self.stage.ground.rows(&format!("{rows}{}", self.stage.ground.either("", " FOR UPDATE"))).await;
        } else if pending {
            self.see("the last answer");
        }
        match (taken, said) {
            (true, Err(sentence)) => Err(format!("it was refused: {sentence}")),
            (false, Ok(rows)) => Err(format!("it was not refused, but changed {rows} rows")),
            _ => Ok(()),
        }
    }

    /// Whatever anybody waits for is answered.
    pub(super) async fn answer_all(&mut self) -> Result<(), String> {
        for at in 0..self.model.jobs.len() {
            let job = &self.model.jobs[at];
            if job.gone || job.state != State::Waiting {
                continue;
            }
            let run = job.run;
            let open = job.tools.iter().filter(|(_, tool)| tool.run == run && tool.result.is_none());
            for key in open.map(|(&key, _)| key).collect::<Vec<_>>() {
                self.answer_call(at, key).await?;
            }
        }
        Ok(())
    }
}

/// What a claim says of a result.
pub(super) fn text(tool: &PastTool) -> Option<String> {
    match &tool.result.as_ref()?.content {
        ToolContent::Text(text) | ToolContent::Blocks(text) => Some(text.clone()),
    }
}

fn asked(turn: Turn) -> Asked {
    let tool = |position| ToolCall {
        position,
        call_id: format!("toolu_{}_{}_{position}", turn.claim, turn.seq),
        name: "weather".to_owned(),
        input: "{}".to_owned(),
    };
    Asked { claim: turn.claim, seq: turn.seq, tools: (0..turn.calls).map(tool).collect() }
}

fn named(turn: Turn) -> String {
    format!("{} calls of reply {}.{}", turn.calls, turn.claim, turn.seq)
}
