//! The page `/metrics`: every metric there is, with its name, its labels and what it means.
//!
//! `docs/metrics.md` lists the same; a test holds the two together.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use super::shared::Seen;
use super::text::{Kind, Text};
use crate::domain::outcome::Outcome;
use crate::store::board::OpenState;
use crate::store::gauges::Gauges;
use crate::worker::meters::{Counts, Meters, OTHER, Spreads};
use crate::worker::vitals::{State, Vitals};

/// What may cut a call.
const CAUSES: [&str; 4] = ["cut", "shutdown", "taken_away", "timeout"];
/// How an operation of the database may fail.
const ERRORS: [&str; 7] = ["corrupt", "database", "locked", "no_entry", "refused", "schema", "unavailable"];
/// What a scope of a gate may begin with, and how a gate may be.
const GATES: [(&str, [&str; 3]); 4] = [
    ("batch", ["flowing", "blocked", "probing"]),
    ("key", ["flowing", "blocked", "probing"]),
    ("model", ["flowing", "blocked", "probing"]),
    ("rate", ["flowing", "blocked", "probing"]),
];

/// Writes the page.
pub(super) fn page(vitals: &Vitals, ready: bool, seen: &Seen) -> String {
    let mut text = Text::default();
    process(&mut text, vitals, ready);
    work(&mut text, &vitals.meters);
    api(&mut text, &vitals.meters);
    database(&mut text, &vitals.meters);
    tables(&mut text, &vitals.meters, seen);
    text.finish()
}

/// How this process is.
fn process(text: &mut Text, vitals: &Vitals, ready: bool) {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    text.metric(Kind::Gauge, "build_info", "Always 1; says which version runs.").value(&version, 1);
    text.metric(Kind::Gauge, "uptime_seconds", "Time since the process began.")
        .value(&[], vitals.age().as_secs_f64());
    text.metric(Kind::Gauge, "ready", "1 where /readyz says so, else 0.").value(&[], u8::from(ready));
    let state = vitals.state();
    let mut of_state = |name, help: &str, of: &dyn Fn(&State) -> f64| {
        text.metric(Kind::Gauge, name, help);
        if let Some(state) = &state {
            text.value(&[], of(state));
        }
    };
    of_state("in_flight", "Jobs that this process works on.", &|state| state.in_flight as f64);
    of_state("concurrency_limit", "Jobs it works on at most.", &|state| state.concurrency as f64);
    of_state("lease_seconds", "After so long without a heartbeat other daemons take its jobs.", &|state| {
        state.lease.as_secs_f64()
    });
    of_state("heartbeat_lag_seconds", "Time since the database last took a heartbeat.", &|state| {
        state.unheard.as_secs_f64()
    });
    of_state(
        "claims_stalled",
        "1 while nothing is claimed because answers wait for the database.",
        &|state| f64::from(u8::from(state.stalled)),
    );
    let help = "When a job last ended here as complete, since 1970, by this machine's clock.";
    text.metric(Kind::Gauge, "last_success_timestamp_seconds", help);
    if let Some(ago) = vitals.success() {
        text.value(&[], unix_now() - ago.as_secs_f64());
    }
    let help = "Answers that the database has not taken for two seconds, by where they wait.";
    text.metric(Kind::Gauge, "spool_answers", help);
    if let Some(State { unwritten, .. }) = &state {
        text.value(&[("place", "file")], unwritten.in_file)
            .value(&[("place", "memory")], unwritten.in_memory);
    }
}

#[expect(clippy::disallowed_methods, reason = "told to Prometheus as its kind of time; decides nothing")]
fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What became of jobs here.
fn work(text: &mut Text, meters: &Meters) {
    text.metric(
        Kind::Counter,
        "jobs_total",
        "Jobs that this process ended; queue \"other\" also for those that expired, were quarantined or were left by an earlier process.",
    );
    // A series that begins above 0 is no increase to Prometheus, and these few matter most when they begin.
    let mut jobs: BTreeMap<_, u64> =
        Outcome::ALL.iter().map(|outcome| ((OTHER.into(), outcome.as_str()), 0)).collect();
    jobs.extend(meters.jobs.list());
    for ((queue, outcome), jobs) in jobs {
        text.value(&[("queue", &queue), ("outcome", outcome)], jobs);
    }
    text.metric(
        Kind::Counter,
        "job_attempts_total",
        "Claims that came to their end: the job was settled, released (it goes on later) or lost (taken away).",
    );
    for ((queue, result), attempts) in meters.attempts.list() {
        text.value(&[("queue", &queue), ("result", result)], attempts);
    }
    let help = "Time from when a job could first be claimed to its first claim.";
    text.metric(Kind::Histogram, "queue_wait_seconds", help);
    for (queue, spread) in meters.waits.list() {
        text.spread(&[("queue", &queue)], meters.waits.bounds, &spread);
    }
    text.metric(Kind::Histogram, "job_attempt_duration_seconds", "Time from a claim to its end.");
    for (queue, spread) in meters.attempt_time.list() {
        text.spread(&[("queue", &queue)], meters.attempt_time.bounds, &spread);
    }
    alone(text, "lease_lost_total", "Times that others took this process for dead.", &meters.leases_lost);
    alone(text, "rescues_total", "Jobs taken from workers that were dead.", &meters.rescues);
    let help = "Answers that ended jobs although these had been taken away: they were as good as anybody's.";
    alone(text, "late_results_adopted_total", help, &meters.adopted);
    text.metric(
        Kind::Counter,
        "gate_transitions_total",
        "Changes of gates that this process made, by state.",
    );
    let mut changes: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (kind, states) in GATES {
        changes.extend(states.map(|state| ((kind, state), 0)));
    }
    changes.extend(meters.gates.list());
    for ((kind, state), changes) in changes {
        text.value(&[("kind", kind), ("state", state)], changes);
    }
    let help = "Times that a SIGHUP had the key files read again, by whether a key was another one then.";
    few(text, "key_reloads_total", help, "result", &["changed", "same"], &meters.key_reloads);
    alone(text, "checkpoint_bytes_total", "Bytes of running answers kept.", &meters.checkpoint_bytes);
}

/// What the API said.
fn api(text: &mut Text, meters: &Meters) {
    text.metric(
        Kind::Counter,
        "api_responses_total",
        "Calls, by HTTP status (\"none\": no answer came) and type of the error (\"\": none).",
    );
    for ((model, status, error), calls) in meters.responses.list() {
        text.value(&[("model", &model), ("status", &status), ("error_type", &error)], calls);
    }
    text.metric(
        Kind::Histogram,
        "api_request_duration_seconds",
        "Time from sending a call to its last byte.",
    );
    for ((model, class), spread) in meters.call_time.list() {
        text.spread(&[("model", &model), ("status_class", class)], meters.call_time.bounds, &spread);
    }
    text.metric(Kind::Histogram, "api_ttft_seconds", "Time from sending a call to its first content.");
    for (model, spread) in meters.first_token.list() {
        text.spread(&[("model", &model)], meters.first_token.bounds, &spread);
    }
    text.metric(Kind::Counter, "stop_reasons_total", "Calls by stop reason, as the API said it.");
    for ((model, stop), calls) in meters.stop_reasons.list() {
        text.value(&[("model", &model), ("stop_reason", &stop)], calls);
    }
    text.metric(Kind::Counter, "tokens_total", "Tokens; those of cut calls are estimates.");
    for ((model, kind), tokens) in meters.tokens.list() {
        text.value(&[("model", &model), ("kind", kind)], tokens);
    }
    let help =
        "Tokens of calls that were cut before their end, by what cut them; a part may be gone on with.";
    few(text, "wasted_tokens_total", help, "cause", &CAUSES, &meters.wasted);
    let help = "Failed calls whose jobs are asked again, by class of the failure.";
    let classes = ["account", "credentials", "model", "ours", "prefill", "provider", "rate_limit"];
    few(text, "retries_total", help, "class", &classes, &meters.retries);
    text.metric(Kind::Histogram, "retry_after_seconds", "What servers asked to wait.");
    alone_spread(text, &meters.hints);
}

/// What the database did.
fn database(text: &mut Text, meters: &Meters) {
    text.metric(Kind::Histogram, "db_op_duration_seconds", "Time that an operation of the database took.");
    for (operation, spread) in meters.database_time.list() {
        text.spread(&[("op", operation)], meters.database_time.bounds, &spread);
    }
    let help = "Operations of the database that failed, by class; they are tried again.";
    few(text, "db_errors_total", help, "class", &ERRORS, &meters.database_errors);
}

/// What stands in the tables, which is the same for all daemons.
fn tables(text: &mut Text, meters: &Meters, seen: &Seen) {
    text.metric(Kind::Gauge, "shared_up", "1 where the metrics below could be read.")
        .value(&[], u8::from(seen.up));
    text.metric(Kind::Gauge, "shared_age_seconds", "How long ago the metrics below were read.");
    if let Some((_, age)) = &seen.gauges {
        text.value(&[], age.as_secs_f64());
    }
    text.metric(Kind::Gauge, "shared_read_seconds", "How long the last read took.")
        .value(&[], seen.took.as_secs_f64());
    let gauges = seen.gauges.as_ref().map(|(gauges, _)| &**gauges);
    depths(text, meters, gauges);
    let help = "Time that the job waits that could have started longest ago; 0: none does.";
    text.metric(Kind::Gauge, "oldest_pending_seconds", help);
    if let Some(gauges) = gauges {
        text.value(&[], gauges.oldest_ms.unwrap_or(0).max(0) as f64 / 1000.0);
    }
    oldest(text, meters, gauges);
    text.metric(Kind::Gauge, "gates", "Gates by kind and state.");
    if let Some(gauges) = gauges {
        gates(text, gauges);
    }
    let mut of_crew = |name, help: &str, of: &dyn Fn(&Gauges) -> i64| {
        text.metric(Kind::Gauge, name, help);
        if let Some(gauges) = gauges {
            text.value(&[], of(gauges));
        }
    };
    of_crew("queues_paused", "Queues that a person paused.", &|gauges| gauges.crew.paused);
    of_crew("workers", "Daemons of this database; dead ones until they are found dead.", &|gauges| {
        gauges.crew.workers
    });
}

fn depths(text: &mut Text, meters: &Meters, gauges: Option<&Gauges>) {
    text.metric(Kind::Gauge, "jobs_in_state", "Jobs that are not done.");
    let states = OpenState::ALL.map(OpenState::as_str);
    if let Some(gauges) = gauges {
        let mut many: BTreeMap<_, i64> = BTreeMap::new();
        for ((state, queue), jobs) in &gauges.jobs {
            *many.entry((meters.queues.label(queue), *state)).or_default() += jobs;
        }
        // What a queue has none of any more is told: an alert must see it end.
        for queue in meters.queues.list().into_iter().chain([OTHER.into()]) {
            for state in states {
                many.entry((queue.clone(), state)).or_default();
            }
        }
        for ((queue, state), jobs) in many {
            text.value(&[("queue", &queue), ("state", state)], jobs);
        }
    }
    let help = "1 where there are more than are counted: 50000 of a state, fewer of each queue.";
    text.metric(Kind::Gauge, "jobs_in_state_capped", help);
    if let Some(gauges) = gauges {
        for state in OpenState::ALL {
            text.value(&[("state", state.as_str())], u8::from(gauges.capped.contains(&state)));
        }
    }
}

fn oldest(text: &mut Text, meters: &Meters, gauges: Option<&Gauges>) {
    text.metric(Kind::Gauge, "queue_oldest_pending_seconds", "The same of each queue.");
    let Some(gauges) = gauges else { return };
    let mut many: BTreeMap<_, i64> =
        meters.queues.list().into_iter().chain([OTHER.into()]).map(|queue| (queue, 0)).collect();
    for (queue, age) in &gauges.oldest_of {
        let oldest = many.entry(meters.queues.label(queue)).or_default();
        *oldest = (*oldest).max(*age);
    }
    for (queue, age) in many {
        text.value(&[("queue", &queue)], age as f64 / 1000.0);
    }
}

fn gates(text: &mut Text, gauges: &Gauges) {
    let mut many: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for (kind, states) in GATES {
        many.extend(states.map(|state| ((kind, state), 0)));
    }
    for (kind, state, gates) in &gauges.gates {
        // People may insert rows of any scope; the states are the table's.
        let known = GATES.iter().find(|(known, _)| known == kind);
        *many.entry((known.map_or(OTHER, |(kind, _)| kind), state)).or_default() += gates;
    }
    for ((kind, state), gates) in many {
        text.value(&[("kind", kind), ("state", state)], gates);
    }
}

/// A counter without labels.
fn alone(text: &mut Text, name: &'static str, help: &str, counts: &Counts<()>) {
    let count: u64 = counts.list().iter().map(|((), count)| count).sum();
    text.metric(Kind::Counter, name, help).value(&[], count);
}

/// A histogram without labels.
fn alone_spread(text: &mut Text, spreads: &Spreads<()>) {
    for ((), spread) in spreads.list() {
        text.spread(&[], spreads.bounds, &spread);
    }
}

/// A counter whose label has few values: those that there are none of are told, too.
fn few(
    text: &mut Text,
    name: &'static str,
    help: &str,
    label: &str,
    words: &[&'static str],
    counts: &Counts<&'static str>,
) {
    let mut many: BTreeMap<&str, u64> = words.iter().map(|word| (*word, 0)).collect();
    many.extend(counts.list());
    text.metric(Kind::Counter, name, help);
    for (word, count) in many {
        text.value(&[(label, word)], count);
    }
}
