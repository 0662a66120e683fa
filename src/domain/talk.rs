//! The conversation of one job, as a state machine without IO: [`Talk::next`] says what to ask,
//! [`Talk::push`] takes what was answered, until there is a verdict.
//!
//! Replies read back from the ledger are pushed the same way ([`Talk::resume`]), so that a job
//! that goes on after a crash stands where an undisturbed one would.

mod note;
mod past;
mod request;
mod spoken;
mod turn;
mod window;

use std::time::{Duration, Instant};

use crate::domain::body::Body;
use crate::domain::context::Size;
use crate::domain::job::{Job, OnCrash, OnMaxTokens, OnToolUse, Tally, user_message};
use crate::domain::ledger::{Answer, CallKind};
use crate::domain::outcome::{Fault, Outcome, Usage};
use crate::domain::reply::{Block, Reply, sanitise, sanitise_json};
use crate::domain::schema;
use crate::domain::seam::{How, Seam};
use crate::domain::stop::StopReason;
use crate::domain::tool::{Asked, ToolResult};

use spoken::Spoken;
use turn::{Joined, Turn};

/// One request to the API, ready to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// Why it is made.
    pub kind: CallKind,
    /// The model asked.
    pub model: String,
    /// The JSON body, `"stream":true` in it.
    pub body: Body,
    /// What is in it to be read.
    pub input: Size,
    /// `max_tokens` in it.
    pub max_tokens: i64,
    /// Number of messages in it.
    pub messages: i32,
    /// Whether it ends with an assistant message.
    pub prefilled: bool,
    /// Longest time the call may take in all.
    pub timeout: Duration,
    /// JSON for `calls.request`: how it goes on with what was cut, where it does.
    pub note: Option<String>,
}

/// What is to be done next.
#[derive(Debug, Clone)]
pub enum Step {
    /// Ask the API.
    Ask(Request),
    /// Have these tool calls answered.
    Tools(Asked),
    /// The conversation is over.
    Done(Verdict),
}

/// How a conversation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How.
    pub outcome: Outcome,
    /// Why, where it is not complete.
    pub fault: Option<Fault>,
}

/// How little a continuation may bring before it counts as a loop, in characters.
const PROGRESS_MIN: usize = 32;
/// The least room a regeneration is given, in tokens.
const ROOM_MIN: i64 = 4096;
/// How much text of a lost stream is worth going on with, in characters.
const RESUME_MIN: usize = 2000;
/// What an empty answer is answered with, once.
const NUDGE: &str = "Please continue.";

/// What the next call is for, and what it needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Ask,
    Continue,
    Resume,
    Regenerate,
    Tool,
    Repair,
    Nudge,
    Fallback,
    Pause,
}

impl Next {
    const fn kind(self) -> CallKind {
        match self {
            Self::Ask => CallKind::Ask,
            Self::Continue => CallKind::Continue,
            Self::Resume => CallKind::Resume,
            Self::Regenerate => CallKind::Regenerate,
            Self::Tool => CallKind::Tool,
            Self::Repair => CallKind::Repair,
            Self::Nudge => CallKind::Nudge,
            Self::Fallback => CallKind::Fallback,
            Self::Pause => CallKind::Pause,
        }
    }

    const fn of(kind: CallKind) -> Self {
        match kind {
            CallKind::Ask => Self::Ask,
            CallKind::Continue => Self::Continue,
            CallKind::Resume => Self::Resume,
            CallKind::Regenerate => Self::Regenerate,
            CallKind::Tool => Self::Tool,
            CallKind::Repair => Self::Repair,
            CallKind::Nudge => Self::Nudge,
            CallKind::Fallback => Self::Fallback,
            CallKind::Pause => Self::Pause,
        }
    }

    /// Whether the reply to it goes on with text that was cut.
    const fn joins(self) -> bool {
        matches!(self, Self::Continue | Self::Resume)
    }

    /// Whether the reply to it belongs to the turn that is there already.
    const fn goes_on(self) -> bool {
        self.joins() || matches!(self, Self::Pause)
    }
}

/// Where a conversation stands.
#[derive(Debug, Clone)]
enum State {
    /// A call is to be made, or under way.
    Asking(Next),
    /// Tool calls are to be answered.
    Calling(Asked),
    /// It is over.
    Over(Verdict),
}

/// The conversation of one job.
#[derive(Debug, Clone)]
pub struct Talk {
    job: Job,
    /// What was said after the job's own messages, before the turn in the making.
    past: Vec<Spoken>,
    /// How many of the job's own messages are left out, the oldest first.
    dropped: usize,
    /// The assistant's turn so far.
    turn: Turn,
    state: State,
    /// How the next continuation is asked for.
    how: How,
    /// `max_tokens` of the next call.
    room: i64,
    nudged: bool,
    /// Whether what is to be sent next is known to fit into the model's window.
    fits: bool,
    repairs: i32,
    /// Output tokens of the turn so far.
    said: i64,
    /// Continuations and regenerations.
    continuations: i32,
    /// Turns that paused or asked for tools.
    turns: i32,
    seams: i32,
    sanitised: i32,
    calls: i32,
    usage: Usage,
    /// The structured output, once there is one that fits its schema.
    output: Option<String>,
    last: Last,
    started: Option<Instant>,
}

/// What the last reply said beside its content.
#[derive(Debug, Clone, Default)]
struct Last {
    stop: Option<StopReason>,
    stop_sequence: Option<String>,
    stop_details: Option<String>,
    model: Option<String>,
    container: Option<String>,
    request_id: Option<String>,
}

impl Talk {
    /// Begins the conversation of a job.
    fn new(job: Job) -> Self {
        Self {
            past: Vec::new(),
            dropped: 0,
            turn: Turn::default(),
            state: State::Asking(Next::Ask),
            how: how_of(&job),
            room: job.max_tokens,
            nudged: false,
            fits: false,
            repairs: 0,
            said: 0,
            continuations: 0,
            turns: 0,
            seams: 0,
            sanitised: 0,
            calls: 0,
            usage: Usage::default(),
            output: None,
            last: Last::default(),
            started: None,
            job,
        }
    }

    /// The job, with the model that this run asks.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Returns what is to be done next.
    pub fn next(&self) -> Step {
        match &self.state {
            State::Asking(next) => Step::Ask(self.request(*next)),
            State::Calling(asked) => Step::Tools(asked.clone()),
            State::Over(verdict) => Step::Done(verdict.clone()),
        }
    }

    /// Whether the next call is to make a cut answer whole.
    pub fn mends(&self) -> bool {
        matches!(self.state, State::Asking(Next::Continue | Next::Resume | Next::Regenerate))
    }

    /// Whether the text of a lost stream could be gone on with: plain text, by a policy that wants it.
    pub fn is_resumable(&self) -> bool {
        let job = &self.job;
        !job.tools && !job.structured && !job.thinking && job.policy.on_crash == OnCrash::Resume
    }

    /// Counts a call, whole or not: what was paid for is summed whatever became of it.
    pub fn count(&mut self, usage: Usage, request_id: Option<&str>, sent: Instant) {
        self.calls += 1;
        self.usage += usage;
        if let Some(id) = request_id {
            self.last.request_id = Some(id.to_owned());
        }
        self.started.get_or_insert(sent);
    }

    /// Takes a whole reply, which the ledger's row `claim`, `seq` will hold; returns what that row
    /// should note of how it was joined.
    pub fn push(&mut self, reply: Reply, claim: i64, seq: i32) -> Option<String> {
        debug_assert!(reply.stop.is_some(), "a reply without a stop reason is a failure, not an answer");
        self.take(reply, claim, seq)
    }

    /// Takes the results of the tool calls that [`Step::Tools`] named, in their order.
    pub fn answer_tools(&mut self, results: &[ToolResult]) {
        if let State::Calling(asked) = &self.state {
            debug_assert_eq!(asked.tools.len(), results.len(), "each call has one result");
            let answer = Spoken::User(spoken::results_message(asked, results));
            self.past.extend_from_slice(self.turn.spoken());
            self.past.push(answer);
            self.ask(Next::Tool);
        }
    }

    /// The model refused a trailing assistant message: from now on the other way.
    pub fn prefill_refused(&mut self) {
        self.how = How::Anchor;
    }

    fn ask(&mut self, next: Next) {
        self.fits = false;
        self.state = State::Asking(next);
    }

    fn take(&mut self, reply: Reply, claim: i64, seq: i32) -> Option<String> {
        let State::Asking(next) = self.state else { return None };
        let Reply { mut content, stop, stop_sequence, stop_details, model, container, usage, .. } = reply;
        content.iter_mut().for_each(Block::keep);
        self.sanitised += content.iter().map(|block| sanitise_json(&block.json).1).sum::<i32>();
        if !next.goes_on() {
            self.turn = Turn::default();
            self.said = 0;
        }
        let joined = if next.joins() {
            Some(self.turn.go_on(content, self.how))
        } else {
            self.turn.say(content);
            None
        };
        self.said = self.said.saturating_add(usage.output);
        self.last = Last {
            stop_sequence,
            stop_details,
            model: model.or(self.last.model.take()),
            container: container.or(self.last.container.take()),
            request_id: self.last.request_id.take(),
            stop: stop.clone(),
        };
        if joined.is_some_and(|joined| joined.seam == Seam::Plain) {
            self.seams += 1;
        }
        let note = self.note(next, joined.map(|joined| joined.seam));
        match joined {
            Some(joined) if self.leads_nowhere(joined, stop.as_ref()) => {}
            _ => self.judge(stop, claim, seq),
        }
        note.text()
    }

    /// Ends the conversation where a continuation brought nothing new.
    fn leads_nowhere(&mut self, joined: Joined, stop: Option<&StopReason>) -> bool {
        if joined.repeated {
            self.end_truncated(
                "repetition",
                "the model said again what it had said: the answer is cut there",
            );
        } else if joined.silent && self.ends_too_soon(stop) {
            self.end_truncated(
                "no_progress",
                "the model was asked to go on with the cut answer and said nothing",
            );
        } else if joined.added < PROGRESS_MIN && matches!(stop, Some(StopReason::MaxTokens)) {
            self.end_truncated("no_progress", "a continuation brought fewer than 32 new characters");
        } else {
            return false;
        }
        true
    }

    /// Whether a continuation that said nothing may not end the answer: no half is taken for the whole. A
    /// prefilled one that meets a stop sequence at once has found the end.
    fn ends_too_soon(&self, stop: Option<&StopReason>) -> bool {
        matches!(
            (stop, self.how),
            (Some(StopReason::EndTurn), _) | (Some(StopReason::StopSequence), How::Anchor)
        )
    }

    /// What a stop reason means: one total match.
    fn judge(&mut self, stop: Option<StopReason>, claim: i64, seq: i32) {
        match stop {
            // Only a resuming job pushes a reply without a stop reason: the text of a lost stream.
            None => self.ask(Next::Resume),
            Some(StopReason::ToolUse) => self.call_tools(claim, seq),
            Some(StopReason::EndTurn | StopReason::StopSequence) if self.turn.wants_tools() => {
                self.call_tools(claim, seq);
            }
            Some(StopReason::EndTurn | StopReason::StopSequence) if self.turn.is_answer() => self.conclude(),
            Some(StopReason::EndTurn) if !self.nudged => {
                self.nudged = true;
                if self.turn.used_tools() {
                    self.past.extend_from_slice(self.turn.spoken());
                }
                self.past.push(Spoken::User(user_message(NUDGE)));
                self.ask(Next::Nudge);
            }
            Some(StopReason::EndTurn | StopReason::StopSequence) => {
                self.end(
                    Outcome::Empty,
                    Some(Fault::new("empty", None, "the model ended its turn without saying anything")),
                );
            }
            Some(StopReason::MaxTokens) => self.cut(),
            Some(StopReason::ContextWindow) => {
                self.end_truncated(
                    "context_window",
                    "the model's context window is full: the answer is cut there",
                );
            }
            Some(StopReason::Refusal) => self.refused(),
            Some(StopReason::PauseTurn) if self.turns < self.job.policy.max_turns => {
                self.turns += 1;
                self.ask(Next::Pause);
            }
            Some(StopReason::PauseTurn) => {
                let why =
                    format!("the turn paused more than max_turns = {} times", self.job.policy.max_turns);
                self.end(Outcome::Paused, Some(Fault::new("paused", None, why)));
            }
            Some(StopReason::Other(word)) => {
                let why = format!(
                    "stop reason {word} is not known to this version: look at the answer before you use it"
                );
                self.end(Outcome::Unreviewed, Some(Fault::new("unknown_stop_reason", None, why)));
            }
        }
    }

    /// The turn ended with calls of tools of ours.
    fn call_tools(&mut self, claim: i64, seq: i32) {
        let tools = self.turn.tool_calls();
        if self.job.policy.on_tool_use == OnToolUse::Finish || tools.is_empty() {
            return self.end(Outcome::NeedsTool, None);
        }
        if self.turns >= self.job.policy.max_turns {
            let why =
                format!("the model still asks for tools after max_turns = {}", self.job.policy.max_turns);
            return self.end(Outcome::NeedsTool, Some(Fault::new("needs_tool", Some("max_turns"), why)));
        }
        self.turns += 1;
        self.state = State::Calling(Asked { claim, seq, tools });
    }

    /// The model ended its turn with an answer: complete, unless it is not what the schema asks for.
    fn conclude(&mut self) {
        let found = match &self.job.schema {
            Some(schema) => schema.check(&self.structured_text()).map(Some),
            None if self.job.structured && !is_json(&self.structured_text()) => {
                Err(vec!["a schema was asked for, and the answer is not JSON".to_owned()])
            }
            None => Ok(self.job.structured.then(|| self.structured_text())),
        };
        match found {
            Ok(output) => {
                self.output = output;
                self.end(Outcome::Complete, None);
            }
            Err(errors) if self.job.schema.is_some() && self.repairs < self.job.policy.max_repairs => {
                self.repairs += 1;
                if self.job.tools {
                    self.past.extend_from_slice(self.turn.spoken());
                } else {
                    self.past.push(Spoken::Assistant(vec![Block::text(&self.turn.text())]));
                }
                self.past.push(Spoken::User(user_message(&schema::repair_request(&errors))));
                self.ask(Next::Repair);
            }
            Err(errors) => {
                let code = if self.job.schema.is_some() { "schema" } else { "not_json" };
                let fault = Fault::new("invalid_output", Some(code), errors.join("; "));
                self.end(Outcome::InvalidOutput, Some(fault));
            }
        }
    }

    /// The model refused: another one is asked once, where the policy names one.
    fn refused(&mut self) {
        let Some(fallback) = self.job.fallback.take() else {
            let fault = Fault::new("refusal", None, "the model refused; see stop_details");
            return self.end(Outcome::Refused, Some(fault));
        };
        self.job.ask_instead(fallback);
        self.room = self.room.min(self.job.max_tokens_ceiling);
        self.how = how_of(&self.job);
        self.past.iter_mut().for_each(Spoken::forget_thinking);
        // Whatever becomes of the other model's answer, what was refused is none.
        self.turn = Turn::default();
        self.said = 0;
        self.ask(Next::Fallback);
    }

    /// `max_tokens` cut the turn.
    fn cut(&mut self) {
        let policy = &self.job.policy;
        if policy.on_max_tokens == OnMaxTokens::Stop {
            return self.end_truncated(
                "max_tokens",
                "max_tokens cut the answer, and policy.on_max_tokens=stop keeps it so",
            );
        }
        if self.continuations >= policy.max_continuations {
            let why = format!("still cut after max_continuations = {}", policy.max_continuations);
            return self.end_truncated("max_continuations", &why);
        }
        let stitchable = !self.job.structured && self.turn.ends_in_text();
        let left = policy.max_output_tokens - self.said;
        if left <= 0 {
            let why = format!("the answer reached max_output_tokens = {}", policy.max_output_tokens);
            return self.end_truncated("max_output_tokens", &why);
        }
        let doubled = self.room.saturating_mul(2);
        let ceiling = self.job.max_tokens_ceiling;
        if stitchable && policy.on_max_tokens == OnMaxTokens::Continue {
            self.room = doubled.min(ceiling).min(left);
            self.ask(Next::Continue);
        } else if self.room >= ceiling {
            return self.end_truncated(
                "max_tokens",
                "cut at the model's maximum, and this answer cannot be stitched",
            );
        } else {
            self.room = doubled.max(ROOM_MIN).min(ceiling);
            self.ask(Next::Regenerate);
        }
        self.continuations += 1;
    }

    /// The text that should be JSON: the whole text, or the last block of it where the model said
    /// something before it used a tool.
    fn structured_text(&self) -> String {
        let whole = self.turn.text();
        let last = self.turn.blocks().iter().rev().find_map(|block| block.text.as_deref());
        match last {
            Some(last) if !is_json(&whole) && is_json(last) => last.to_owned(),
            _ => whole,
        }
    }

    fn end(&mut self, outcome: Outcome, fault: Option<Fault>) {
        self.state = State::Over(Verdict { outcome, fault });
    }

    fn end_truncated(&mut self, code: &str, why: &str) {
        self.end(Outcome::Truncated, Some(Fault::new("truncated", Some(code), why)));
    }

    /// Returns what a cancelled or expired job's result is filled with: all there is, the blocks of
    /// the call that was interrupted among it.
    pub fn interrupted(mut self, arrived: Vec<Block>, tally: Tally) -> Answer {
        if !arrived.is_empty() {
            self.take(Reply { content: arrived, ..Reply::default() }, 0, 0);
        }
        self.last.stop = None;
        self.answer(Verdict { outcome: Outcome::Cancelled, fault: None }, tally)
    }

    /// Returns the result row of this conversation.
    pub fn answer(self, verdict: Verdict, tally: Tally) -> Answer {
        let Verdict { outcome, fault } = verdict;
        let said = !self.turn.is_empty();
        let text = (said && outcome != Outcome::Refused && self.turn.has_text())
            .then(|| sanitise(self.turn.text()).0);
        let content = said.then(|| sanitise_json(Block::write_all(self.turn.blocks())).0.into());
        let output = self.output.filter(|_| outcome == Outcome::Complete);
        let last = self.last;
        Answer {
            outcome,
            stop_reason: last.stop.map(|stop| sanitise(stop.as_str()).0),
            stop_sequence: last.stop_sequence.map(|word| sanitise(word).0),
            stop_details: last.stop_details.map(|json| sanitise_json(json).0),
            text,
            content,
            output: output.map(|json| sanitise_json(json).0),
            sanitised: self.sanitised,
            dropped: self.dropped as i32,
            model: last.model.map(|model| sanitise(model).0),
            usage: self.usage,
            calls: self.calls,
            continuations: self.continuations,
            seams: self.seams,
            failures: tally.failures,
            fault: fault.map(|fault| Fault { message: sanitise(fault.message).0, ..fault }),
            request_id: last.request_id,
            started: self.started,
        }
    }
}

/// How a cut answer of a job is gone on with, as long as the model does not refuse it.
const fn how_of(job: &Job) -> How {
    if job.prefill { How::Prefill } else { How::Anchor }
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests;
