//! Standing where the ledger says: what was paid for is not asked again.

use std::time::Instant;

use super::note::Note;
use super::{Next, RESUME_MIN, State, Talk, Verdict};
use crate::domain::job::Job;
use crate::domain::ledger::{CallKind, PastCall};
use crate::domain::reply::{Block, Reply};
use crate::domain::stop::StopReason;
use crate::domain::tool::{Asked, PastTool, ToolResult};

impl Talk {
    /// Stands where the ledger of this run says: replies with a stop reason count; a partial row
    /// counts only where it is the newest or was gone on with, text-only and long enough; what a
    /// regeneration dropped does not; error rows feed counters alone. The model of the first counted row
    /// stays the run's. Tool calls that are all answered are gone on from.
    pub fn resume(job: Job, calls: &[PastCall], tools: &[PastTool], now: Instant) -> Self {
        let mut talk = Self::new(job);
        talk.started =
            calls.iter().filter_map(|call| call.sent_ago).max().and_then(|ago| now.checked_sub(ago));
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
            let note = Note::read(call.request.as_deref());
            if let Some(how) = note.how() {
                talk.how = how;
            }
            talk.dropped = note.dropped();
            if let Some(room) = call.max_tokens {
                talk.room = room;
            }
            talk.state = State::Asking(CallKind::parse(&call.kind).map_or(Next::Ask, Next::of));
            talk.take(reply, call.claim, call.seq);
            if let State::Calling(asked) = &talk.state
                && let Some(results) = results_of(asked, tools)
            {
                talk.answer_tools(&results);
            }
        }
        if let Some(verdict) = talk.crash_verdict(calls) {
            talk.state = State::Over(verdict);
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
}

/// The results of a turn's calls in their order, where all are answered.
fn results_of(asked: &Asked, tools: &[PastTool]) -> Option<Vec<ToolResult>> {
    asked
        .tools
        .iter()
        .map(|call| {
            let of_it = |tool: &&PastTool| {
                tool.claim == asked.claim && tool.seq == asked.seq && tool.call.position == call.position
            };
            tools.iter().find(of_it)?.result.clone()
        })
        .collect()
}
