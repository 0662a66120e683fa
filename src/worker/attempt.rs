//! One claim to one end, in one function: resume, then ask, append and push in turns, then decide
//! and settle. IO and pure steps alternate; nothing else is on the path.

mod rows;
mod tools;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Mill;
use super::counting::Counted;
use super::gate::{Permit, Refusal};
use super::notes::Notes;
use super::record::Kept;
use super::traces;
use crate::claude::Listener;
use crate::domain::breaker::Health;
use crate::domain::context::{self, TooLong};
use crate::domain::job::{Claimed, Job, Lease, OnContextOverflow, OnToolUse, Tally};
use crate::domain::ledger::{Answer, Back, Call, CallKind, Release, Settlement};
use crate::domain::outcome::{Failure, Fault, Outcome};
use crate::domain::reply::Block;
use crate::domain::retry::{self, Blame, Circumstances, Class, Disposition, News};
use crate::domain::talk::{Request, Step, Talk, Verdict};
use crate::domain::tool::{Asked, PastTool};
use crate::failpoint::failpoint;

use rows::{ledger_row, log_call, log_end, meter, refused_by_us, unheard};
use tools::Undone;

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

    /// Why it was stopped, if it was.
    pub(super) fn why(&self) -> Option<Why> {
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

impl Ended {
    /// Returns the word for it in metrics and spans.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Settled(_) => "settled",
            Self::Released => "released",
            Self::Lost => "lost",
        }
    }
}

/// One call that is not in the ledger yet.
type Pending = Option<Call>;

/// How an attempt leaves its job, before anything of that is written.
enum Parting {
    /// The conversation is over.
    End { verdict: Verdict, tally: Tally, call: Pending },
    /// The job goes back to the table.
    Back { back: Back, reason: String, tally: Tally, call: Pending },
    /// The job was taken away.
    Lost { tally: Tally, call: Pending },
}

impl Parting {
    fn end(outcome: Outcome, fault: Fault, tally: Tally, call: Pending) -> Self {
        Self::End { verdict: Verdict { outcome, fault: Some(fault) }, tally, call }
    }

    /// The lease is not ours any more, or the process ends.
    fn stopped(why: Why, tally: Tally, call: Pending) -> Self {
        match why {
            Why::Shutdown => {
                Self::Back { back: Back::Now, reason: "its worker was shut down".to_owned(), tally, call }
            }
            Why::Lost => Self::Lost { tally, call },
        }
    }
}

/// Takes one claimed job to its end.
pub async fn attempt(mill: &Mill, mut claimed: Claimed, rein: &Rein) -> Ended {
    let lease = claimed.lease;
    let tally = claimed.tally;
    let (mut talk, lane_model) = match begin(mill, &claimed) {
        Ok(begun) => begun,
        Err(answer) => return settle(mill, lease, *answer, None).await,
    };
    let tools = std::mem::take(&mut claimed.tools);
    failpoint!("resume", lease.job);
    // The wide row has been understood; its prompt need not be held twice while the call runs.
    drop(claimed);
    match converse(mill, &mut talk, tally, &tools, &lane_model, rein).await {
        Parting::End { verdict, tally, call } => {
            // What was said need not be held twice either, however long the database lets it wait.
            let answer = talk.answer(verdict, tally);
            settle(mill, lease, answer, call).await
        }
        Parting::Back { back, reason, tally, call } => {
            release(mill, lease, talk, tally, back, reason, call).await
        }
        Parting::Lost { tally, call } => taken_away(mill, lease, talk, tally, call).await,
    }
}

/// Asks, appends and pushes in turns until the job is to be left.
async fn converse(
    mill: &Mill,
    talk: &mut Talk,
    mut tally: Tally,
    tools: &[PastTool],
    lane_model: &str,
    rein: &Rein,
) -> Parting {
    let lease = talk.job().lease;
    let mut pending: Pending = None;
    let mut seq = 0;
    loop {
        let request = match next_request(mill, talk, tally, tools, rein, &mut pending).await {
            Ok(request) => request,
            Err(parting) => return parting,
        };
        if let Some(why) = rein.why() {
            return Parting::stopped(why, tally, None);
        }
        let mut permit = match admitted(mill, talk, tally, &request, rein, lane_model).await {
            Ok(permit) => permit,
            Err(parting) => return parting,
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
        meter(mill, &request, &exchange, rein);
        traces::called(mill, talk.job(), &request, &exchange, &call);
        talk.count(call.usage, call.request_id.as_deref(), call.sent);
        if let Some(limits) = &exchange.limits {
            mill.gates.learn(talk.job(), limits, Instant::now());
        }
        match exchange.end {
            Ok(()) => {
                permit.accept(call.usage, Instant::now());
                tally = tally.after_answer();
                failpoint!("push", lease.job);
                call.request = talk.push(exchange.reply, lease.claim, seq).or(call.request);
                pending = Some(call);
            }
            Err(failure) => {
                call.fault = Some(retry::fault(&failure));
                let class = retry::class(&failure, request.prefilled);
                let spent = retry::spent(&failure, &class, call.usage, permit.has_begun());
                permit.spent(spent, Instant::now());
                let drops = talk.job().policy.on_context_overflow == OnContextOverflow::DropOldest;
                if (drops || talk.mends())
                    && let Some(TooLong { tokens, maximum }) = too_long(&failure)
                {
                    permit.accept(call.usage, Instant::now());
                    // It was refused, whatever the numbers say: the same is not asked again.
                    talk.measured(tokens.max(maximum.saturating_add(1)), maximum);
                    pending = Some(call);
                    continue;
                }
                if let (Failure::Stopped, Some(why)) = (&failure, rein.why()) {
                    drop(permit);
                    return Parting::stopped(why, tally, Some(call));
                }
                match judge(mill, talk.job(), &failure, &class, permit, tally, &key).await {
                    Disposition::AskAgain => {
                        mill.remember_prefill_refused(&talk.job().model);
                        talk.prefill_refused();
                        pending = Some(call);
                    }
                    Disposition::End { outcome, fault, tally } => {
                        return Parting::end(outcome, fault, tally, Some(call));
                    }
                    Disposition::Back { delay, tally, reason } => {
                        return Parting::Back { back: delay.into(), reason, tally, call: Some(call) };
                    }
                }
            }
        }
    }
}

/// Understands the row, and stands where its ledger says; with the model that its lane names. `Err`: how
/// a job ends that cannot be asked.
fn begin(mill: &Mill, claimed: &Claimed) -> Result<(Talk, String), Box<Answer>> {
    let refused = |fault| Box::new(refused_by_us(fault, claimed.tally, &claimed.calls));
    let job = Job::read(claimed, &mill.defaults()).map_err(|invalid| refused(invalid.fault()))?;
    if job.policy.on_tool_use == OnToolUse::Run
        && let Some(fault) = tools::refused(mill, &job)
    {
        // Where calls were made, it is the configuration that changed.
        let outcome = if claimed.calls.is_empty() { Outcome::Invalid } else { Outcome::Failed };
        return Err(Box::new(Answer { outcome, ..*refused(fault) }));
    }
    let lane_model = job.model.clone();
    let mut talk = Talk::resume(job, &claimed.calls, &claimed.tools, Instant::now());
    if mill.refuses_prefill(&talk.job().model) {
        talk.prefill_refused();
    }
    Ok((talk, lane_model))
}

/// Goes on until a call is to be made: has tools answered, and inputs counted that may be too long.
async fn next_request(
    mill: &Mill,
    talk: &mut Talk,
    tally: Tally,
    tools: &[PastTool],
    rein: &Rein,
    pending: &mut Pending,
) -> Result<Request, Parting> {
    loop {
        match talk.next() {
            Step::Done(verdict) => return Err(Parting::End { verdict, tally, call: pending.take() }),
            Step::Tools(asked) => call_tools(mill, talk, tally, asked, tools, rein, pending.take()).await?,
            Step::Ask(request) => {
                // Counting takes its time, too: what was paid for must not be here alone meanwhile.
                keep(mill, talk, tally, pending.take()).await?;
                let Some(window) = window_to_measure(talk, &request) else { return Ok(request) };
                measure(mill, talk, &request, window, rein).await;
            }
        }
    }
}

/// Has tool calls answered: here, by the tools of the configuration, or by whoever is waited for, which
/// ends the attempt.
async fn call_tools(
    mill: &Mill,
    talk: &mut Talk,
    tally: Tally,
    asked: Asked,
    before: &[PastTool],
    rein: &Rein,
    call: Pending,
) -> Result<(), Parting> {
    if talk.job().policy.on_tool_use != OnToolUse::Run {
        let reason = waits_for(asked.tools.len());
        return Err(Parting::Back { back: Back::Waiting(asked), reason, tally, call });
    }
    keep(mill, talk, tally, call).await?;
    match tools::run(mill, talk.job(), &asked, before, rein).await {
        Ok(results) => {
            talk.answer_tools(&results);
            Ok(())
        }
        Err(Undone::Lost) => Err(Parting::Lost { tally, call: None }),
        Err(Undone::Stopped(why)) => Err(Parting::stopped(why, tally, None)),
        Err(Undone::StartedBefore(fault)) => Err(Parting::end(Outcome::Failed, fault, tally, None)),
    }
}

/// Puts the last call into the ledger, where something follows. `Err`: the job is not ours any more.
async fn keep(mill: &Mill, talk: &Talk, tally: Tally, call: Pending) -> Result<(), Parting> {
    if let Some(call) = call
        && is_late(mill, talk.job().lease, call).await
    {
        return Err(Parting::Lost { tally, call: None });
    }
    Ok(())
}

/// The model's window, where the request may be too long for it and was not counted yet.
fn window_to_measure(talk: &Talk, request: &Request) -> Option<i64> {
    talk.window().filter(|window| request.input.needs_count(*window))
}

/// Has the input counted. Where nobody can say, the API is to say whether it fits.
async fn measure(mill: &Mill, talk: &mut Talk, request: &Request, window: i64, rein: &Rein) {
    failpoint!("measure", talk.job().lease.job);
    match mill.counting.count(mill.claude(talk.job()), request, &rein.token).await {
        Counted::Tokens(tokens) => talk.measured(tokens, window),
        Counted::Stopped => talk.unmeasured(),
        Counted::Unknown { reason, .. } => {
            tracing::debug!(job.id = %talk.job().lease.job, "the input was not counted: {reason}");
            talk.unmeasured();
        }
    }
}

/// What the API said of an input that it refused for its length.
fn too_long(failure: &Failure) -> Option<TooLong> {
    match failure {
        Failure::Api(error) if error.status == 400 => context::too_long(&error.message),
        _ => None,
    }
}

/// Waits for the right to make a call. Where there is none the job goes back, or ends.
async fn admitted<'m>(
    mill: &'m Mill,
    talk: &Talk,
    tally: Tally,
    request: &Request,
    rein: &Rein,
    lane_model: &str,
) -> Result<Permit<'m>, Parting> {
    let (gates, weight, job) = (&mill.gates, request.input.weight(), talk.job());
    let refusal = match mill.is_not_retired(job, Instant::now()) {
        Err(refusal) => refusal,
        Ok(()) => match gates.admit(&*mill.store, job.lease, job, weight, &rein.token).await {
            Ok(permit) => return Ok(permit),
            Err(refusal) => refusal,
        },
    };
    if let Some(why) = rein.why() {
        return Err(Parting::stopped(why, tally, None));
    }
    let (outcome, fault) = match refusal {
        Refusal::Blocked(reason) => {
            // A claim passes by what blocks, but for a run that began with another model than its
            // lane names: put back at once, it would be claimed again at once.
            let pause = (job.model != lane_model).then_some(GATE_PAUSE);
            return Err(Parting::Back { back: pause.into(), reason, tally, call: None });
        }
        // What was answered while the model was there is no invalid job.
        Refusal::Retired(fault) if request.kind == CallKind::Ask => (Outcome::Invalid, fault),
        Refusal::Missing(fault) | Refusal::Retired(fault) => (Outcome::Failed, fault),
    };
    Err(Parting::end(outcome, fault, tally, None))
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
    let blame = if *class == Class::Suspect { Some(blame(mill, job, &permit).await) } else { None };
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
            blame,
            dice: fastrand::f64(),
            curve: mill.settings.curve,
        },
    );
    if matches!(decision.job, Disposition::Back { .. } | Disposition::AskAgain) {
        mill.vitals.meters.retried(class);
    }
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

/// Whose fault a 401, 402 or 403 is: the API is asked for free; a job that a good key does not help is at
/// fault itself, until several are.
async fn blame(mill: &Mill, job: &Job, permit: &Permit<'_>) -> Blame {
    match mill.checks.blame(permit.key(), mill.claude(job)).await {
        Blame::Job if mill.gates.suspect(job) => Blame::Key,
        // It blocked for a reason, and nothing says that this has gone: the next job would probe at once.
        Blame::Nobody(_) if permit.probes_key() => Blame::Key,
        blame => blame,
    }
}

/// The job was cancelled, expired, rescued or deleted under us: what was spent is written down, and
/// what had arrived is added to the result of a cancelled or expired job.
async fn taken_away(mill: &Mill, lease: Lease, talk: Talk, tally: Tally, call: Pending) -> Ended {
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
async fn fill_with(mill: &Mill, lease: Lease, talk: Talk, tally: Tally, arrived: Option<&str>) {
    let arrived = arrived.map(Block::read_all).unwrap_or_default();
    mill.recorder.fill(lease, talk.interrupted(arrived, tally)).await;
}

/// Appends to the ledger; returns whether the job is not ours any more.
async fn is_late(mill: &Mill, lease: Lease, call: Call) -> bool {
    mill.recorder.append(lease, call).await == Kept::Lost
}

/// Ends the job.
async fn settle(mill: &Mill, lease: Lease, answer: Answer, call: Pending) -> Ended {
    let status = call.as_ref().and_then(|call| call.http_status);
    let settlement = Arc::new(Settlement::new(lease, answer, call));
    match mill.recorder.settle(Arc::clone(&settlement)).await {
        Kept::Done => {
            traces::answered(mill, lease, &settlement.answer);
            log_end(lease, &settlement.answer, status);
            Ended::Settled(settlement.answer.outcome)
        }
        Kept::Bare => Ended::Settled(Outcome::Failed),
        Kept::Lost => {
            mill.recorder.fill(lease, Arc::unwrap_or_clone(settlement).answer).await;
            Ended::Lost
        }
    }
}

async fn release(
    mill: &Mill,
    lease: Lease,
    talk: Talk,
    tally: Tally,
    back: Back,
    reason: String,
    call: Pending,
) -> Ended {
    let delay = back.delay();
    tracing::debug!(
        job.id = %lease.job,
        retry.delay_ms = delay.map(|delay| delay.as_millis() as u64),
        job.failures = tally.failures,
        "job {} goes back: {reason}", lease.job
    );
    let Tally { failures, deferrals, .. } = tally;
    let arrived = call.as_ref().and_then(|call| call.content.clone());
    let release = Release { lease, back, failures, deferrals, reason: Some(reason), call };
    match mill.recorder.release(release).await {
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

/// Why a job waits whose tool calls somebody is to answer.
fn waits_for(calls: usize) -> String {
    match calls {
        1 => "waits for a tool result".to_owned(),
        more => format!("waits for {more} tool results"),
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
