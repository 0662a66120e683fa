//! What an attempt writes down: its rows, and a line of the log each.

use std::time::Instant;

use super::{Mill, Rein, Why};
use crate::domain::job::{Lease, Tally};
use crate::domain::ledger::{Answer, Call, PastCall};
use crate::domain::outcome::{Failure, Fault, Outcome, Usage};
use crate::domain::reply::{Block, Exchange, sanitise};
use crate::domain::retry;
use crate::domain::stop::StopReason;
use crate::domain::talk::Request;

/// The answer to a job that no call is made for; earlier claims may have made some.
pub(super) fn refused_by_us(fault: Fault, tally: Tally, calls: &[PastCall]) -> Answer {
    let mut usage = Usage::default();
    for call in calls {
        usage += call.usage;
    }
    Answer {
        usage,
        calls: calls.len() as i32,
        failures: tally.failures,
        fault: Some(Fault { message: sanitise(fault.message).0, ..fault }),
        ..Answer::of(Outcome::Invalid)
    }
}

/// The ledger row of a call of which nothing was heard.
pub(super) fn unheard(request: &Request, seq: i32, probe: bool, now: Instant) -> Call {
    Call {
        seq,
        kind: request.kind,
        probe,
        model: request.model.clone(),
        max_tokens: request.max_tokens,
        messages: request.messages,
        request: request.note.clone(),
        sent: now,
        first_token: None,
        ended: now,
        http_status: None,
        request_id: None,
        message_id: None,
        stop_reason: None,
        stop_details: None,
        usage: Usage::default(),
        usage_raw: None,
        content: None,
        container: None,
        partial: false,
        fault: None,
        retry_after: None,
        checkpointed: false,
    }
}

/// The ledger row of an exchange.
pub(super) fn ledger_row(request: &Request, exchange: &Exchange, seq: i32, probe: bool) -> Call {
    let reply = &exchange.reply;
    let clean = |word: &String| sanitise(word).0;
    let retry_after = match &exchange.end {
        Err(Failure::Api(error)) => error.retry_after,
        _ => None,
    };
    Call {
        first_token: exchange.first_token,
        ended: exchange.ended,
        http_status: exchange.http_status,
        request_id: exchange.request_id.as_ref().map(clean),
        message_id: reply.message_id.as_ref().map(clean),
        stop_reason: reply.stop.as_ref().map(|stop| sanitise(stop.as_str()).0),
        stop_details: reply.stop_details.clone(),
        usage: reply.usage,
        usage_raw: reply.usage_raw.clone(),
        content: (!reply.content.is_empty() || reply.stop.is_some())
            .then(|| Block::write_all(&reply.content).into()),
        container: reply.container.clone(),
        partial: exchange.end.is_err() && !reply.is_empty(),
        fault: reply.tail_missing.then(|| {
            Fault::new(
                "tail_missing",
                None,
                "the stream ended after its stop reason but without message_stop",
            )
        }),
        retry_after,
        ..unheard(request, seq, probe, exchange.sent)
    }
}

/// One line a call, at debug: nothing that quotes a prompt or an answer.
pub(super) fn log_call(lease: Lease, request: &Request, exchange: &Exchange) {
    let reply = &exchange.reply;
    tracing::debug!(
        job.id = %lease.job,
        job.claim = lease.claim,
        call.kind = %request.kind,
        call.model = %request.model,
        call.max_tokens = request.max_tokens,
        call.messages = request.messages,
        call.status = exchange.http_status,
        call.ms = exchange.took().as_millis() as u64,
        call.request_id = exchange.request_id.as_deref(),
        stop.reason = reply.stop.as_ref().map(StopReason::as_str),
        content.chars = reply.text().chars().count(),
        tokens.input = reply.usage.input,
        tokens.output = reply.usage.output,
        error = exchange.end.as_ref().err().map(retry::reason),
        "job {} called {}", lease.job, request.model
    );
}

/// Counts a call.
pub(super) fn meter(mill: &Mill, request: &Request, exchange: &Exchange, rein: &Rein) {
    let meters = &mill.vitals.meters;
    let failure = exchange.end.as_ref().err();
    let error = failure.map(|failure| retry::fault(failure).kind);
    meters.called(&request.model, exchange, error.as_deref());
    if let Some(failure) = failure {
        meters.cut(failure, rein.why() == Some(Why::Lost), exchange.reply.usage);
    }
}

/// One line a finished job.
pub(super) fn log_end(lease: Lease, answer: &Answer, status: Option<u16>) {
    let stop = answer.stop_reason.as_deref().unwrap_or("-");
    tracing::info!(
        job.id = %lease.job,
        job.claim = lease.claim,
        job.run = lease.run,
        outcome = %answer.outcome,
        stop.reason = stop,
        tokens.input = answer.usage.input,
        tokens.output = answer.usage.output,
        job.calls = answer.calls,
        job.ms = answer.started.map(|started| started.elapsed().as_millis() as u64),
        call.request_id = answer.request_id.as_deref(),
        error.kind = answer.fault.as_ref().map(|fault| fault.kind.as_str()),
        error.code = answer.fault.as_ref().and_then(|fault| fault.code.as_deref()),
        call.status = status,
        "job {} ended: {} ({stop})", lease.job, answer.outcome
    );
}
