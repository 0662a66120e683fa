//! One claim to one end, in one function: resume, then ask, append and push in turns, then decide
//! and settle. IO and pure steps alternate; nothing else is on the path.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Mill;
use super::gate::{Permit, Refusal};
use super::notes::Notes;
use super::record::Kept;
use crate::claude::Listener;
use crate::domain::breaker::Health;
use crate::domain::job::{Claimed, Job, Lease, Tally};
use crate::domain::ledger::{Answer, Call, PastCall, Release, Settlement};
use crate::domain::outcome::{Failure, Fault, Outcome, Usage};
use crate::domain::reply::{Block, Exchange, sanitise};
use crate::domain::retry::{self, Circumstances, Class, Disposition, News};
use crate::domain::stop::StopReason;
use crate::domain::talk::{Request, Step, Talk, Verdict};
use crate::failpoint::failpoint;

/// How long a job waits that no claim can see to be blocked.
const GATE_PAUSE: Duration = Duration::from_secs(5);

/// Why a running attempt is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The process ends: what had arrived is kept and the job goes back.
    Shutdown,
    /// The job is not ours any more: cancelled, expired, rescued or deleted.
    Lost,
}

/// The means to stop one attempt, and to keep what it hears.
#[derive(Debug, Clone, Default)]
pub struct Rein {
    token: CancellationToken,
    why: Arc<OnceLock<Why>>,
    /// The text of the call that runs.
    pub notes: Arc<Notes>,
    /// The call that runs, as its row would be if nothing were heard of it.
    under_way: Arc<Mutex<Option<Call>>>,
}

impl Rein {
    /// Stops the attempt. The first reason counts.
    pub fn pull(&self, why: Why) {
        self.why.get_or_init(|| why);
        self.token.cancel();
    }

    fn why(&self) -> Option<Why> {
        self.why.get().copied()
    }

    fn under_way(&self) -> MutexGuard<'_, Option<Call>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The job is done.
    Settled(Outcome),
    /// The job went back to the table.
    Released,
    /// The job was taken away meanwhile.
    Lost,
}

/// One call that is not in the ledger yet.
type Pending = Option<Call>;

/// Takes one claimed job to its end.
pub async fn attempt(mill: &Mill, claimed: Claimed, rein: &Rein) -> Ended {
    let lease = claimed.lease;
    let tally = claimed.tally;
    let job = match Job::read(&claimed, &mill.defaults) {
        Ok(job) => job,
        Err(invalid) => {
            return settle(mill, lease, refused_by_us(invalid.fault(), tally, &claimed.calls), None).await;
        }
    };
    let lane_model = job.model.clone();
    let mut talk = Talk::resume(job, &claimed.calls, Instant::now());
    if mill.refuses_prefill(&talk.job().model) {
        talk.prefill_refused();
    }
    failpoint!("resume", lease.job);
    // The wide row has been understood; its prompt need not be held twice while the call runs.
    drop(claimed);
    let mut pending: Pending = None;
    let mut seq = 0;
    loop {
        let request = match talk.next() {
            Step::Done(verdict) => return settle(mill, lease, talk.answer(verdict, tally), pending).await,
            Step::Ask(request) => request,
        };
        if let Some(call) = pending.take()
            && is_late(mill, lease, call).await
        {
            return taken_away(mill, lease, &talk, tally, None).await;
        }
        if let Some(why) = rein.why() {
            return stopped(mill, lease, &talk, tally, None, why).await;
        }
        let mut permit = match admitted(mill, lease, &talk, tally, &request, rein, &lane_model).await {
            Ok(permit) => permit,
            Err(ended) => return ended,
        };
        let probe = permit.is_probe();
        let key = mill.claude(talk.job()).fingerprint();
        seq += 1;
        if talk.is_resumable() {
            rein.notes.begin(seq, &request, Instant::now());
        }
        let listener = Listener {
            stop: &rein.token,
            on_content: &|| permit.content(Instant::now()),
            on_text: &|text| rein.notes.hear(text),
        };
        *rein.under_way() = Some(unheard(&request, seq, probe, Instant::now()));
        failpoint!("ask.before", lease.job);
        let exchange = mill.claude(talk.job()).ask(&request, listener).await;
        failpoint!("ask.ended", lease.job);
        let mut call = ledger_row(&request, &exchange, seq, probe);
        *rein.under_way() = None;
        call.checkpointed = rein.notes.end();
        log_call(lease, &request, &exchange);
        talk.count(call.usage, call.request_id.as_deref(), call.sent);
        if let Some(limits) = &exchange.limits {
            mill.gates.learn(talk.job(), limits, Instant::now());
        }
        match exchange.end {
            Ok(()) => {
                permit.accept(call.usage, Instant::now());
                failpoint!("push", lease.job);
                call.request = talk.push(exchange.reply).or(call.request);
                pending = Some(call);
            }
            Err(failure) => {
                call.fault = Some(retry::fault(&failure));
                let class = retry::class(&failure, request.prefilled);
                let spent = retry::spent(&failure, &class, call.usage, permit.has_begun());
                permit.spent(spent, Instant::now());
                if let (Failure::Stopped, Some(why)) = (&failure, rein.why()) {
                    drop(permit);
                    return stopped(mill, lease, &talk, tally, Some(call), why).await;
                }
                match judge(mill, talk.job(), &failure, &class, permit, tally, &key).await {
                    Disposition::AskAgain => {
                        mill.remember_prefill_refused(&talk.job().model);
                        talk.prefill_refused();
                        pending = Some(call);
                    }
                    Disposition::End { outcome, fault, tally } => {
                        let verdict = Verdict { outcome, fault: Some(fault) };
                        return settle(mill, lease, talk.answer(verdict, tally), Some(call)).await;
                    }
                    Disposition::Back { delay, tally, reason } => {
                        return release(mill, lease, &talk, tally, delay, reason, Some(call)).await;
                    }
                }
            }
        }
    }
}

/// Waits for the right to make a call. Where there is none the job goes back, or ends.
async fn admitted<'m>(
    mill: &'m Mill,
    lease: Lease,
    talk: &Talk,
    tally: Tally,
    request: &Request,
    rein: &Rein,
    lane_model: &str,
) -> Result<Permit<'m>, Ended> {
    let (gates, bytes) = (&mill.gates, request.body.len());
    let refusal = match gates.admit(&*mill.store, lease, talk.job(), bytes, &rein.token).await {
        Ok(permit) => return Ok(permit),
        Err(refusal) => refusal,
    };
    if let Some(why) = rein.why() {
        return Err(stopped(mill, lease, talk, tally, None, why).await);
    }
    Err(match refusal {
        Refusal::Blocked(reason) => {
            // A claim passes by what blocks, but for a run that began with another model than its
            // lane names: put back at once, it would be claimed again at once.
            let pause = (talk.job().model != lane_model).then_some(GATE_PAUSE);
            release(mill, lease, talk, tally, pause, reason, None).await
        }
        Refusal::Missing(fault) => {
            let verdict = Verdict { outcome: Outcome::Failed, fault: Some(fault) };
            settle(mill, lease, talk.clone().answer(verdict, tally), None).await
        }
    })
}

/// What a failed call means for the job, having told its gates.
async fn judge(
    mill: &Mill,
    job: &Job,
    failure: &Failure,
    class: &Class,
    permit: Permit<'_>,
    tally: Tally,
    key: &str,
) -> Disposition {
    if *class == Class::Suspect && key_is_another(mill, job, key) {
        let reason = format!("{}, and the key is another one now", retry::reason(failure));
        return Disposition::Back { delay: None, tally, reason };
    }
    let key_refused = *class == Class::Suspect && key_is_refused(mill, job).await;
    let now = Instant::now();
    let probe = permit.is_probe();
    let reason = retry::reason(failure);
    failpoint!("decide", job.lease.job);
    let blocked = match class.health() {
        Some(health) => permit.fail(health, &reason, now, fastrand::f64()),
        None => false,
    };
    let excused = probe || (class.health() == Some(Health::Sick) && blocked);
    let decision = retry::decide(
        failure,
        class,
        Circumstances {
            tally,
            failures_max: job.policy.max_failures,
            excused,
            model_named: job.model_named,
            key_refused,
            dice: fastrand::f64(),
            curve: mill.settings.curve,
        },
    );
    match decision.news {
        News::Nothing => {}
        News::KeyBlocked(rest) => mill.gates.block_key(permit.key(), &reason, rest, now),
        News::ModelMissing => {
            let why =
                format!("the API does not know model {}: correct defaults.model, or the queue's", job.model);
            mill.gates.hold_model(job, &why, now);
        }
        News::Refused => {
            if let Failure::Api(error) = failure {
                mill.gates.refused(&*mill.store, &permit, &retry::signature(error)).await;
            }
            if *class == Class::Model {
                mill.gates.remember_missing(job, retry::fault(failure), now);
            }
        }
    }
    decision.job
}

/// Whether the key changed since a call was sent with `key`, be it that its file is read again now.
fn key_is_another(mill: &Mill, job: &Job, key: &str) -> bool {
    if mill.claude(job).fingerprint() == key {
        mill.reload_keys();
    }
    mill.claude(job).fingerprint() != key
}

/// Whether a 401, 402 or 403 is the key's fault: the API is asked for free; a job that a good key
/// does not help is at fault itself, until several are.
async fn key_is_refused(mill: &Mill, job: &Job) -> bool {
    match mill.claude(job).check().await {
        Err(Failure::Api(error)) if matches!(error.status, 401..=403) => true,
        _ => mill.gates.suspect(job),
    }
}

/// The lease is not ours any more, or the process ends.
async fn stopped(mill: &Mill, lease: Lease, talk: &Talk, tally: Tally, call: Pending, why: Why) -> Ended {
    match why {
        Why::Shutdown => {
            release(mill, lease, talk, tally, None, "its worker was shut down".to_owned(), call).await
        }
        Why::Lost => taken_away(mill, lease, talk, tally, call).await,
    }
}

/// The job was cancelled, expired, rescued or deleted under us: what was spent is written down, and
/// what had arrived is added to the result of a cancelled or expired job.
async fn taken_away(mill: &Mill, lease: Lease, talk: &Talk, tally: Tally, call: Pending) -> Ended {
    failpoint!("taken", lease.job);
    let arrived = call.as_ref().and_then(|call| call.content.clone());
    if let Some(call) = call {
        is_late(mill, lease, call).await;
    }
    fill_with(mill, lease, talk, tally, arrived.as_deref()).await;
    tracing::info!(job.id = %lease.job, job.claim = lease.claim, "job {} was taken away", lease.job);
    Ended::Lost
}

/// Adds what was said so far, and what had arrived of the call that was under way.
async fn fill_with(mill: &Mill, lease: Lease, talk: &Talk, tally: Tally, arrived: Option<&str>) {
    let arrived = arrived.map(Block::read_all).unwrap_or_default();
    mill.recorder.fill(lease, talk.clone().interrupted(arrived, tally)).await;
}

/// Appends to the ledger; returns whether the job is not ours any more.
async fn is_late(mill: &Mill, lease: Lease, call: Call) -> bool {
    mill.recorder.append(lease, call).await == Kept::Lost
}

async fn settle(mill: &Mill, lease: Lease, answer: Answer, call: Pending) -> Ended {
    let status = call.as_ref().and_then(|call| call.http_status);
    match mill.recorder.settle(Settlement { lease, answer: answer.clone(), call }).await {
        Kept::Done => {
            log_end(lease, &answer, status);
            Ended::Settled(answer.outcome)
        }
        Kept::Bare => Ended::Settled(Outcome::Failed),
        Kept::Lost => {
            mill.recorder.fill(lease, answer).await;
            Ended::Lost
        }
    }
}

async fn release(
    mill: &Mill,
    lease: Lease,
    talk: &Talk,
    tally: Tally,
    delay: Option<Duration>,
    reason: String,
    call: Pending,
) -> Ended {
    tracing::debug!(
        job.id = %lease.job,
        retry.delay_ms = delay.map(|delay| delay.as_millis() as u64),
        job.failures = tally.failures,
        "job {} goes back: {reason}", lease.job
    );
    let Tally { failures, deferrals, .. } = tally;
    let arrived = call.as_ref().and_then(|call| call.content.clone());
    let back = Release { lease, back: delay.into(), failures, deferrals, reason: Some(reason), call };
    match mill.recorder.release(back).await {
        Kept::Done | Kept::Bare => {
            if let Some(delay) = delay {
                mill.delays.note(lease, delay, Instant::now());
            }
            Ended::Released
        }
        Kept::Lost => {
            fill_with(mill, lease, talk, tally, arrived.as_deref()).await;
            Ended::Lost
        }
    }
}

/// Ends a job whose code panicked. What its calls came to is taken from the ledger.
pub async fn settle_panicked(mill: &Mill, lease: Lease, tally: Tally, rein: &Rein) -> Ended {
    let fault =
        Fault::new("internal_error", None, "promptmill failed on this job: please report it with the log");
    let call = rein.under_way().take().map(|call| Call {
        fault: Some(fault.clone()),
        ended: Instant::now(),
        checkpointed: rein.notes.end(),
        ..call
    });
    let answer = Answer { outcome: Outcome::Failed, ..refused_by_us(fault, tally, &[]) };
    settle(mill, lease, answer, call).await
}

/// The answer to a job that no call is made for; earlier claims may have made some.
fn refused_by_us(fault: Fault, tally: Tally, calls: &[PastCall]) -> Answer {
    let mut usage = Usage::default();
    for call in calls {
        usage += call.usage;
    }
    Answer {
        outcome: Outcome::Invalid,
        stop_reason: None,
        stop_sequence: None,
        stop_details: None,
        text: None,
        content: None,
        output: None,
        sanitised: 0,
        model: None,
        usage,
        calls: calls.len() as i32,
        continuations: 0,
        seams: 0,
        failures: tally.failures,
        fault: Some(Fault { message: sanitise(&fault.message).0, ..fault }),
        request_id: None,
        started: None,
    }
}

/// The ledger row of a call of which nothing was heard.
fn unheard(request: &Request, seq: i32, probe: bool, now: Instant) -> Call {
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
fn ledger_row(request: &Request, exchange: &Exchange, seq: i32, probe: bool) -> Call {
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
            .then(|| Block::write_all(&reply.content)),
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
fn log_call(lease: Lease, request: &Request, exchange: &Exchange) {
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

/// One line a finished job.
fn log_end(lease: Lease, answer: &Answer, status: Option<u16>) {
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
