//! The spans themselves. All that is done here is done in memory: what is finished goes into a queue with
//! an end, and what finds no place there is dropped and counted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value, time};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};
use tokio_util::task::TaskTracker;

use super::super::Mill;
use super::super::attempt::Ended;
use super::names;
use crate::claude::Claude;
use crate::domain::job::{Claimed, Job, JobId, Lease};
use crate::domain::ledger::{Answer, Call};
use crate::domain::outcome::Outcome;
use crate::domain::reply::Exchange;
use crate::domain::retry;
use crate::domain::talk::Request;
use crate::store::Store;

/// Longest text of an attribute, in bytes: names that people, or servers, may make as long as they like.
const TEXT_MAX: usize = 256;

/// Where spans are made; nowhere, as long as nobody takes them.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Live>>);

#[derive(Debug)]
struct Live {
    tracer: SdkTracer,
    /// The claims that are worked on, and those that wait for their link.
    runs: Mutex<HashMap<Lease, Run>>,
    /// Those who look for links.
    looking: TaskTracker,
    /// Spans that were finished.
    made: AtomicU64,
}

/// A claim's span. It is over when the claim is, and when it is known what it links to.
#[derive(Debug)]
struct Run {
    span: Span,
    looked: bool,
    ended: Option<SystemTime>,
}

impl Traces {
    /// Makes spans with this tracer.
    pub fn by(tracer: SdkTracer) -> Self {
        Self(Some(Arc::new(Live {
            tracer,
            runs: Mutex::default(),
            looking: TaskTracker::new(),
            made: AtomicU64::new(0),
        })))
    }

    /// Waits for the last links.
    pub async fn linked(&self) {
        let Some(live) = &self.0 else { return };
        live.looking.close();
        live.looking.wait().await;
    }

    /// Ends what was left open; returns how many spans there were in all.
    pub fn close(&self) -> u64 {
        let Some(live) = &self.0 else { return 0 };
        let left: Vec<Run> = live.runs().drain().map(|(_, run)| run).collect();
        for mut run in left {
            if run.ended.is_none() {
                run.span.set_attribute(KeyValue::new(names::END, "unfinished"));
            }
            let ended = run.ended.unwrap_or_else(time::now);
            live.end(run.span, ended);
        }
        live.made.load(Ordering::Relaxed)
    }
}

/// Begins a span for each claimed job.
pub(in crate::worker) fn claimed(mill: &Mill, jobs: &[Claimed]) {
    let Some(live) = &mill.traces.0 else { return };
    let mut leases = Vec::with_capacity(jobs.len());
    for job in jobs {
        let span = live.begin(mill.worker().0, job);
        // One that the sampler left out has no calls either.
        if span.is_recording() {
            leases.push(job.lease);
            live.runs().insert(job.lease, Run { span, looked: false, ended: None });
        }
    }
    if !leases.is_empty() {
        // Beside the jobs, none of which waits for it.
        live.looking.spawn(look(Arc::clone(live), Arc::clone(&mill.store), leases));
    }
}

/// Makes the span of a call that is over.
pub(in crate::worker) fn called(mill: &Mill, job: &Job, request: &Request, exchange: &Exchange, call: &Call) {
    let Some(live) = &mill.traces.0 else { return };
    let parent = live.runs().get(&job.lease).map(|run| run.span.span_context().clone());
    let Some(parent) = parent else { return };
    let began = SpanBuilder::from_name(format!("{} {}", names::CHAT, brief(&request.model)))
        .with_kind(SpanKind::Client)
        .with_start_time(wall(exchange.sent))
        .with_attributes(asked(mill.claude(job), request, call));
    let parent = Context::new().with_remote_span_context(parent);
    let mut span = live.tracer.build_with_context(began, &parent);
    span.set_attributes(heard(exchange, call));
    if let Err(failure) = &exchange.end {
        let fault = retry::fault(failure);
        fail(&mut span, &fault.kind, fault.code.as_deref());
    }
    live.end(span, wall(exchange.ended));
}

/// Notes what a job was settled with.
pub(in crate::worker) fn answered(mill: &Mill, lease: Lease, answer: &Answer) {
    let Some(live) = &mill.traces.0 else { return };
    let mut runs = live.runs();
    let Some(run) = runs.get_mut(&lease) else { return };
    run.span.set_attribute(KeyValue::new(names::CALLS, i64::from(answer.calls)));
    if !answer.outcome.is_an_answer() && answer.outcome != Outcome::Cancelled {
        let fault = answer.fault.as_ref();
        let kind = fault.map_or(answer.outcome.as_str(), |fault| &fault.kind);
        fail(&mut run.span, kind, fault.and_then(|fault| fault.code.as_deref()));
    }
}

/// Ends the span of a claim.
pub(in crate::worker) fn ended(mill: &Mill, lease: Lease, how: Ended) {
    let Some(live) = &mill.traces.0 else { return };
    live.close(lease, |run| {
        run.span.set_attribute(KeyValue::new(names::END, how.as_str()));
        if let Ended::Settled(outcome) = how {
            run.span.set_attribute(KeyValue::new(names::OUTCOME, outcome.as_str()));
        }
        run.ended = Some(time::now());
    });
}

impl Live {
    fn runs(&self) -> MutexGuard<'_, HashMap<Lease, Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A root of its own: whoever put the job in has long gone on, and is linked to instead.
    fn begin(&self, worker: i64, job: &Claimed) -> Span {
        let mut attributes = vec![
            KeyValue::new(names::JOB, job.lease.job.0),
            KeyValue::new(names::JOB_RUN, job.lease.run),
            KeyValue::new(names::CLAIM, job.lease.claim),
            text(names::QUEUE, &job.queue),
            KeyValue::new(names::WORKER, worker),
        ];
        attributes.extend(job.batch.as_ref().map(|batch| text(names::BATCH, batch)));
        let began = SpanBuilder::from_name(format!("{} {}", names::PROCESS, brief(&job.queue)))
            .with_kind(names::RUN)
            .with_attributes(attributes);
        self.tracer.build_with_context(began, &Context::new())
    }

    /// Changes a claim's span, and ends it where nothing is missing any more.
    fn close(&self, lease: Lease, change: impl FnOnce(&mut Run)) {
        let mut runs = self.runs();
        let Some(run) = runs.get_mut(&lease) else { return };
        change(run);
        let (true, Some(ended)) = (run.looked, run.ended) else { return };
        let whole = runs.remove(&lease);
        drop(runs);
        if let Some(run) = whole {
            self.end(run.span, ended);
        }
    }

    fn end(&self, mut span: Span, at: SystemTime) {
        self.made.fetch_add(u64::from(span.is_recording()), Ordering::Relaxed);
        span.end_with_timestamp(at);
    }
}

/// Looks what the spans of these claims link to: the `traceparent` in their jobs' metadata.
async fn look(live: Arc<Live>, store: Arc<dyn Store>, leases: Vec<Lease>) {
    let jobs: Vec<JobId> = leases.iter().map(|lease| lease.job).collect();
    let found = store.traceparents(&jobs).await.unwrap_or_else(|err| {
        tracing::debug!(error = %err, "failed to read traceparents: some spans have no link");
        Vec::new()
    });
    let found: HashMap<JobId, String> = found.into_iter().collect();
    for lease in leases {
        let parent = found.get(&lease.job).and_then(|traceparent| read(traceparent));
        live.close(lease, |run| {
            if let Some(parent) = parent {
                run.span.add_link(parent, Vec::new());
            }
            run.looked = true;
        });
    }
}

/// Reads a `traceparent` (W3C Trace Context); anything else is nothing.
fn read(traceparent: &str) -> Option<SpanContext> {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    let parent = context.span().span_context().clone();
    parent.is_valid().then_some(parent)
}

/// What is known of a call before it is made: samplers may look at it.
fn asked(claude: &dyn Claude, request: &Request, call: &Call) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new(names::OPERATION, names::CHAT),
        KeyValue::new(names::PROVIDER, names::ANTHROPIC),
        text(names::REQUEST_MODEL, &request.model),
        KeyValue::new(names::REQUEST_MAX_TOKENS, request.max_tokens),
        KeyValue::new(names::REQUEST_STREAM, true),
        KeyValue::new(names::CALL_KIND, call.kind.as_str()),
        KeyValue::new(names::CALL_SEQ, i64::from(call.seq)),
    ];
    if let Some((address, port)) = claude.server() {
        attributes.push(text(names::SERVER_ADDRESS, address));
        attributes.push(KeyValue::new(names::SERVER_PORT, i64::from(port)));
    }
    if call.probe {
        attributes.push(KeyValue::new(names::CALL_PROBE, true));
    }
    attributes
}

/// What came back, but for what it says.
fn heard(exchange: &Exchange, call: &Call) -> Vec<KeyValue> {
    let reply = &exchange.reply;
    let usage = call.usage;
    let mut attributes = Vec::with_capacity(10);
    attributes.extend(reply.model.as_ref().map(|model| text(names::RESPONSE_MODEL, model)));
    attributes.extend(call.message_id.as_ref().map(|id| text(names::RESPONSE_ID, id)));
    attributes.extend(call.request_id.as_ref().map(|id| text(names::REQUEST_ID, id)));
    attributes.extend(call.http_status.map(|status| KeyValue::new(names::HTTP_STATUS, i64::from(status))));
    if let Some(stop) = &call.stop_reason {
        let reasons = Array::String(vec![StringValue::from(brief(stop).to_owned())]);
        attributes.push(KeyValue::new(names::FINISH_REASONS, Value::Array(reasons)));
    }
    if let Some(first) = exchange.first_token {
        let waited = first.saturating_duration_since(exchange.sent);
        attributes.push(KeyValue::new(names::TIME_TO_FIRST_CHUNK, waited.as_secs_f64()));
    }
    if !reply.is_empty() || exchange.end.is_ok() {
        let input = usage.input.saturating_add(usage.cache_read).saturating_add(usage.cache_creation);
        attributes.push(KeyValue::new(names::INPUT_TOKENS, input));
        attributes.push(KeyValue::new(names::OUTPUT_TOKENS, usage.output));
        attributes.push(KeyValue::new(names::CACHE_READ_TOKENS, usage.cache_read));
        attributes.push(KeyValue::new(names::CACHE_WRITE_TOKENS, usage.cache_creation));
    }
    attributes
}

/// Says what went wrong in words that quote nothing: sentences of the API may quote a prompt.
fn fail(span: &mut Span, kind: &str, code: Option<&str>) {
    span.set_attribute(text(names::ERROR_TYPE, kind));
    if let Some(code) = code {
        span.set_attribute(text(names::ERROR_CODE, code));
    }
    span.set_status(Status::error(""));
}

fn text(name: &'static str, value: &str) -> KeyValue {
    KeyValue::new(name, brief(value).to_owned())
}

fn brief(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

/// The time that spans are told in, of an instant of this process.
fn wall(then: Instant) -> SystemTime {
    time::now() - then.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_and_anything_else_is_nothing() {
        let parent = read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!(parent.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parent.span_id().to_string(), "b7ad6b7169203331");
        assert!(parent.is_remote());
        for other in [
            "",
            "null",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-älänge-b7ad6b7169203331-01",
        ] {
            assert!(read(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        assert_eq!(brief("default"), "default");
        assert_eq!(brief(&"ä".repeat(200)).len(), TEXT_MAX);
        assert_eq!(brief(&format!("a{}", "ä".repeat(200))).len(), TEXT_MAX - 1);
    }
}
