//! The conversation of one job, as a state machine without IO: [`Talk::next`] says what to ask,
//! [`Talk::push`] takes what was answered, until there is a verdict.
//!
//! Replies read back from the ledger are pushed the same way ([`Talk::resume`]), so that a job
//! that goes on after a crash stands where an undisturbed one would.

mod turn;

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::domain::job::{Job, OnCrash, OnMaxTokens, Tally, json_string, message, user_message};
use crate::domain::ledger::{Answer, CallKind, PastCall};
use crate::domain::outcome::{Fault, Outcome, Usage};
use crate::domain::reply::{Block, Reply, sanitise, sanitise_json};
use crate::domain::seam::{How, Seam};
use crate::domain::stop::StopReason;

use turn::Turn;

/// One request to the API, ready to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// Why it is made.
    pub kind: CallKind,
    /// The model asked.
    pub model: String,
    /// The JSON body, `"stream":true` in it.
    pub body: Bytes,
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
    Pause,
    Nudge,
}

impl Next {
    const fn kind(self) -> CallKind {
        match self {
            Self::Ask => CallKind::Ask,
            Self::Continue => CallKind::Continue,
            Self::Resume => CallKind::Resume,
            Self::Regenerate => CallKind::Regenerate,
            Self::Pause => CallKind::Pause,
            Self::Nudge => CallKind::Nudge,
        }
    }

    /// Whether the reply to it goes on with text that was cut.
    const fn joins(self) -> bool {
        matches!(self, Self::Continue | Self::Resume)
    }
}

/// The conversation of one job.
#[derive(Debug, Clone)]
pub struct Talk {
    job: Job,
    /// The assistant's turn so far.
    turn: Turn,
    next: Next,
    /// How the next continuation is asked for.
    how: How,
    /// `max_tokens` of the next call.
    room: i64,
    nudged: bool,
    verdict: Option<Verdict>,
    /// Output tokens of the turn so far.
    said: i64,
    /// Continuations and regenerations.
    continuations: i32,
    pauses: i32,
    seams: i32,
    sanitised: i32,
    calls: i32,
    usage: Usage,
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
    /// Stands where the ledger of this run says: replies with a stop reason count; a partial row
    /// counts only where it is the newest or was gone on with, text-only and long enough; what a
    /// regeneration dropped does not; error rows feed counters alone. The model of the first counted row stays the run's.
    pub fn resume(job: Job, calls: &[PastCall], now: Instant) -> Self {
        let mut talk = Self {
            turn: Turn::default(),
            next: Next::Ask,
            how: if job.prefill { How::Prefill } else { How::Anchor },
            room: job.max_tokens,
            nudged: false,
            verdict: None,
            said: 0,
            continuations: 0,
            pauses: 0,
            seams: 0,
            sanitised: 0,
            calls: 0,
            usage: Usage::default(),
            last: Last::default(),
            started: calls.iter().filter_map(|call| call.sent_ago).max().and_then(|ago| now.checked_sub(ago)),
            job,
        };
        let mut first = true;
        for (at, call) in calls.iter().enumerate() {
            talk.calls += 1;
            talk.usage += call.usage;
            talk.last.request_id = call.request_id.clone().or(talk.last.request_id.take());
            let next = calls[at + 1..].iter().find(|later| later.content.is_some() && !later.late);
            let built_on = next.is_none_or(|later| CallKind::parse(&later.kind) == Some(CallKind::Resume));
            let Some(reply) = talk.counted(call, built_on) else { continue };
            if std::mem::take(&mut first)
                && let Some(model) = &call.model
            {
                talk.job.model.clone_from(model);
            }
            if let Some(how) = call.request.as_deref().and_then(noted_how) {
                talk.how = how;
            }
            if let Some(room) = call.max_tokens {
                talk.room = room;
            }
            talk.next = match CallKind::parse(&call.kind) {
                Some(CallKind::Regenerate) => {
                    talk.turn = Turn::default();
                    Next::Regenerate
                }
                Some(CallKind::Continue) => Next::Continue,
                Some(CallKind::Resume) => Next::Resume,
                Some(CallKind::Pause) => Next::Pause,
                Some(CallKind::Nudge) => {
                    talk.nudged = true;
                    Next::Nudge
                }
                _ => Next::Ask,
            };
            talk.take(reply);
        }
        if let Some(verdict) = talk.crash_verdict(calls) {
            talk.verdict = Some(verdict);
        }
        talk
    }

    /// The reply of a row of the ledger, where it counts. `built_on`: nothing followed it, or what
    /// followed went on with it.
    fn counted(&self, call: &PastCall, built_on: bool) -> Option<Reply> {
        let content = call.content.as_deref().filter(|_| !call.late)?;
        let reply = Reply {
            usage: call.usage,
            content: Block::read_all(content),
            stop: call.stop_reason.as_deref().map(StopReason::from),
            stop_details: call.stop_details.clone(),
            model: call.model.clone(),
            container: call.container.clone(),
            ..Reply::default()
        };
        if reply.stop.is_some() && !call.partial {
            return Some(reply);
        }
        (built_on && self.worth_resuming(&reply)).then_some(Reply { stop: None, ..reply })
    }

    /// Whether the text of a lost stream could be gone on with: plain text, by a policy that wants it.
    pub fn is_resumable(&self) -> bool {
        let job = &self.job;
        !job.tools && !job.structured && !job.thinking && job.policy.on_crash == OnCrash::Resume
    }

    /// Whether what a lost stream left is enough to go on with.
    fn worth_resuming(&self, reply: &Reply) -> bool {
        let text_only = reply.content.iter().all(|block| matches!(block.kind.as_str(), "text" | "thinking"));
        text_only && self.is_resumable() && reply.text().chars().count() >= RESUME_MIN
    }

    fn crash_verdict(&self, calls: &[PastCall]) -> Option<Verdict> {
        let lost = calls.last().is_some_and(|call| call.late || call.error_type.as_deref() == Some("lost"));
        let (outcome, fault) = crate::domain::retry::after_crash(self.job.policy.on_crash)?;
        lost.then_some(Verdict { outcome, fault: Some(fault) })
    }

    /// The job, with the model that this run asks.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Returns what is to be done next.
    pub fn next(&self) -> Step {
        match &self.verdict {
            Some(verdict) => Step::Done(verdict.clone()),
            None => Step::Ask(self.request()),
        }
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

    /// Takes a whole reply; returns what the ledger should note of how it was joined.
    pub fn push(&mut self, reply: Reply) -> Option<String> {
        debug_assert!(reply.stop.is_some(), "a reply without a stop reason is a failure, not an answer");
        self.take(reply)
    }

    /// The model refused a trailing assistant message: from now on the other way.
    pub fn prefill_refused(&mut self) {
        self.how = How::Anchor;
    }

    fn take(&mut self, reply: Reply) -> Option<String> {
        let Reply { content, stop, stop_sequence, stop_details, model, container, usage, .. } = reply;
        self.sanitised += content.iter().map(|block| sanitise_json(&block.json).1).sum::<i32>();
        let joined = if self.next.joins() {
            Some(self.turn.go_on(content, self.how))
        } else {
            if matches!(self.next, Next::Ask | Next::Regenerate | Next::Nudge) {
                self.turn = Turn::default();
                self.said = 0;
            }
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
        let note = joined.as_ref().map(|joined| {
            if joined.seam == Seam::Plain {
                self.seams += 1;
            }
            format!(r#"{{"how":"{}","seam":"{}"}}"#, self.how.as_str(), joined.seam.as_str())
        });
        match joined {
            Some(joined) if joined.repeated => {
                self.end_truncated(
                    "repetition",
                    "the model said again what it had said: the answer is cut there",
                );
            }
            Some(joined) if joined.silent && self.how == How::Anchor && ends_turn(stop.as_ref()) => {
                self.end_truncated(
                    "no_progress",
                    "the model was asked to go on with the cut answer and said nothing",
                );
            }
            Some(joined) if joined.added < PROGRESS_MIN && matches!(stop, Some(StopReason::MaxTokens)) => {
                self.end_truncated("no_progress", "a continuation brought fewer than 32 new characters");
            }
            _ => self.judge(stop),
        }
        note
    }

    /// What a stop reason means: one total match.
    fn judge(&mut self, stop: Option<StopReason>) {
        match stop {
            // Only a resuming job pushes a reply without a stop reason: the text of a lost stream.
            None => self.next = Next::Resume,
            Some(StopReason::EndTurn | StopReason::StopSequence) if self.turn.is_answer() => {
                if self.job.structured && self.output().is_none() {
                    let why = "a schema was asked for, and the answer is not JSON";
                    self.end(
                        Outcome::InvalidOutput,
                        Some(Fault::new("invalid_output", Some("not_json"), why)),
                    );
                } else {
                    self.end(Outcome::Complete, None);
                }
            }
            Some(StopReason::EndTurn | StopReason::StopSequence) if self.turn.wants_tools() => {
                self.end(Outcome::NeedsTool, None);
            }
            Some(StopReason::EndTurn) if !self.nudged => {
                self.nudged = true;
                self.next = Next::Nudge;
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
            Some(StopReason::Refusal) => {
                self.end(
                    Outcome::Refused,
                    Some(Fault::new("refusal", None, "the model refused; see stop_details")),
                );
            }
            Some(StopReason::ToolUse) => self.end(Outcome::NeedsTool, None),
            Some(StopReason::PauseTurn) if self.pauses < self.job.policy.max_turns => {
                self.pauses += 1;
                self.next = Next::Pause;
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
        if stitchable && policy.on_max_tokens == OnMaxTokens::Continue {
            self.next = Next::Continue;
            self.room = doubled.min(self.job.max_tokens_ceiling).min(left);
        } else if self.room >= self.job.max_tokens_ceiling {
            return self.end_truncated(
                "max_tokens",
                "cut at the model's maximum, and this answer cannot be stitched",
            );
        } else {
            self.next = Next::Regenerate;
            self.room = doubled.max(ROOM_MIN).min(self.job.max_tokens_ceiling);
        }
        self.continuations += 1;
    }

    /// The structured output: the whole text, or the last block of it where the model said something
    /// before it used a tool.
    fn output(&self) -> Option<String> {
        let is_json = |text: &str| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        let last = self.turn.blocks().iter().rev().find_map(|block| block.text.clone());
        [Some(self.turn.text()), last].into_iter().flatten().find(|text| is_json(text))
    }

    fn end(&mut self, outcome: Outcome, fault: Option<Fault>) {
        self.verdict = Some(Verdict { outcome, fault });
    }

    fn end_truncated(&mut self, code: &str, why: &str) {
        self.end(Outcome::Truncated, Some(Fault::new("truncated", Some(code), why)));
    }

    fn request(&self) -> Request {
        let mut messages: Vec<Box<RawValue>> = Vec::new();
        let mut prefilled = false;
        match self.next {
            Next::Ask | Next::Regenerate => {}
            Next::Nudge => messages.push(user_message(NUDGE)),
            Next::Pause => messages.extend(self.turn.verbatim()),
            Next::Continue | Next::Resume if self.job.tools => {
                messages.extend(self.turn.verbatim());
                prefilled = self.how == How::Prefill;
                if !prefilled {
                    messages.push(user_message(&self.turn.instruction()));
                }
            }
            Next::Continue | Next::Resume => {
                let said = self.turn.text();
                messages.push(message("assistant", json_string(said.trim_end()).get()));
                prefilled = self.how == How::Prefill;
                if !prefilled {
                    messages.push(user_message(&self.turn.instruction()));
                }
            }
        }
        let body = self.body(&messages);
        Request {
            kind: self.next.kind(),
            model: self.job.model.clone(),
            body,
            max_tokens: self.room,
            messages: (self.job.messages.len() + messages.len()) as i32,
            prefilled,
            timeout: self.job.policy.timeout,
            note: self.next.joins().then(|| format!(r#"{{"how":"{}"}}"#, self.how.as_str())),
        }
    }

    fn body(&self, more: &[Box<RawValue>]) -> Bytes {
        let own = self.job.messages.iter().map(|message| message.get());
        let all = own.chain(more.iter().map(|message| message.get()));
        let size: usize = all.clone().map(str::len).sum();
        let mut out = String::with_capacity(size + 256);
        out.push_str(r#"{"model":"#);
        out.push_str(json_string(&self.job.model).get());
        out.push_str(r#","max_tokens":"#);
        out.push_str(&self.room.to_string());
        out.push_str(r#","messages":["#);
        for (at, message) in all.enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(message);
        }
        out.push(']');
        for (name, value) in &self.job.fields {
            // A paused turn goes on in the container that the last reply named.
            if name == "container" && self.container_id().is_some() {
                continue;
            }
            out.push(',');
            out.push_str(json_string(name).get());
            out.push(':');
            out.push_str(value.get());
        }
        if let Some(id) = self.container_id() {
            out.push_str(r#","container":"#);
            out.push_str(json_string(&id).get());
        }
        out.push_str(r#","stream":true}"#);
        Bytes::from(out)
    }

    fn container_id(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Container {
            id: String,
        }
        let raw = self.last.container.as_deref()?;
        serde_json::from_str::<Container>(raw).ok().map(|container| container.id)
    }

    /// Returns what a cancelled or expired job's result is filled with: all there is, the blocks of
    /// the call that was interrupted among it.
    pub fn interrupted(mut self, arrived: Vec<Block>, tally: Tally) -> Answer {
        if !arrived.is_empty() {
            self.take(Reply { content: arrived, ..Reply::default() });
        }
        self.last.stop = None;
        self.answer(Verdict { outcome: Outcome::Cancelled, fault: None }, tally)
    }

    /// Returns the result row of this conversation.
    pub fn answer(&self, verdict: Verdict, tally: Tally) -> Answer {
        let Verdict { outcome, fault } = verdict;
        let said = !self.turn.is_empty();
        let text = (said && outcome != Outcome::Refused && self.turn.has_text())
            .then(|| sanitise(&self.turn.text()).0);
        let content = said.then(|| sanitise_json(&Block::write_all(self.turn.blocks())).0);
        let structured = self.job.structured && outcome == Outcome::Complete;
        let output = structured.then(|| self.output()).flatten();
        let last = &self.last;
        Answer {
            outcome,
            stop_reason: last.stop.as_ref().map(|stop| sanitise(stop.as_str()).0),
            stop_sequence: last.stop_sequence.as_deref().map(|word| sanitise(word).0),
            stop_details: last.stop_details.as_deref().map(|json| sanitise_json(json).0),
            text,
            content,
            output: output.map(|json| sanitise_json(&json).0),
            sanitised: self.sanitised,
            model: last.model.as_deref().map(|model| sanitise(model).0),
            usage: self.usage,
            calls: self.calls,
            continuations: self.continuations,
            seams: self.seams,
            failures: tally.failures,
            fault: fault.map(|fault| Fault { message: sanitise(&fault.message).0, ..fault }),
            request_id: last.request_id.clone(),
            started: self.started,
        }
    }
}

fn ends_turn(stop: Option<&StopReason>) -> bool {
    matches!(stop, Some(StopReason::EndTurn | StopReason::StopSequence))
}

fn noted_how(note: &str) -> Option<How> {
    #[derive(serde::Deserialize)]
    struct Note {
        how: String,
    }
    serde_json::from_str::<Note>(note).ok().and_then(|note| How::parse(&note.how))
}

#[cfg(test)]
mod tests;
