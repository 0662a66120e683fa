//! `promptmill status`: how many jobs are where, who works on them, and why nothing flows.
//!
//! Once, everything is counted. With `--watch` (in [`watch`]) it is looked at every second: those
//! reads are bounded, whatever the tables hold.

mod batch;
mod lens;
mod lines;
mod pace;
mod screen;
mod view;
mod watch;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::exit::{Exit, Stop};
use super::open::{Absent, Context};
use super::out::{
    Out, cell, cell_number, count, duration, number, one_line, printable, table, time, time_rfc3339,
};
use crate::domain::outcome::Usage;
use crate::store::{
    AccountRow, BatchLine, DEFAULT_PROFILE, Desk, FaultLine, GateLine, Listed, OutcomeLine, QueueLine,
    ReasonLine, StateCounts, WorkerLine,
};

/// Lines of a list.
const LINES_MAX: i64 = 20;

/// Shows how many jobs are where, who works on them, and why something does not flow.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this batch
    #[arg(long, short, value_name = "LABEL")]
    batch: Option<String>,
    /// Watch it live: a batch until its last job is done (exit code 7: not all are complete), else until
    /// interrupted. Where no terminal is there, a line at each change
    #[arg(long, short)]
    watch: bool,
    /// Seconds between two looks of --watch
    #[arg(long, value_name = "SECONDS", value_parser = interval, default_value = "1", requires = "watch")]
    interval: Duration,
}

/// Reads the time between two looks.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "say seconds, from 0.1 to 3600".to_owned())
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    if args.watch {
        return watch::run(args.batch.as_deref(), args.interval, context).await;
    }
    let desk = context.desk(Absent::Refuse).await?;
    let (json, text) = if let Some(batch) = &args.batch {
        let view = BatchView::read(&*desk, batch).await.context("failed to look at the batch")?;
        if view.jobs.total() == 0 {
            return Err(no_such_batch(batch));
        }
        (view.json(), view.text())
    } else {
        let view = View::read(&*desk).await.context("failed to look at the jobs")?;
        (view.json(), view.text())
    };
    let mut out = Out::stdout();
    if context.json {
        out.line(&json.to_string())?;
    } else {
        out.text(&text)?;
    }
    out.flush()?;
    Ok(Exit::Good)
}

fn no_such_batch(batch: &str) -> anyhow::Error {
    Stop::failure(format!("no job has batch \"{batch}\""))
}

/// Everything.
struct View {
    queues: Vec<QueueLine>,
    accounts: Vec<AccountRow>,
    outcomes: Vec<OutcomeLine>,
    batches: Vec<BatchLine>,
    reasons: Vec<ReasonLine>,
    gates: Vec<GateLine>,
    workers: Vec<WorkerLine>,
}

impl View {
    async fn read(desk: &dyn Desk) -> Result<Self, crate::store::StoreError> {
        Ok(Self {
            queues: desk.queue_lines().await?,
            accounts: desk.account_rows().await?,
            outcomes: desk.outcome_lines(None).await?,
            batches: desk.open_batches(LINES_MAX).await?,
            reasons: desk.reason_lines(None, LINES_MAX).await?,
            gates: desk.gate_lines(Listed::Stopped).await?,
            workers: desk.worker_lines().await?,
        })
    }

    /// The profile of a queue, as a daemon said last.
    fn profile(&self, queue: &str) -> Option<&str> {
        let of = |queue: &str| self.accounts.iter().find(|account| account.queue == queue);
        of(queue).or_else(|| of(DEFAULT_PROFILE)).map(|account| account.profile.as_str())
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if self.queues.is_empty() {
            text.push_str("no jobs yet: INSERT INTO jobs (prompt) VALUES ('…'), or promptmill enqueue\n");
        } else {
            // Where there is one account, nobody need be told which.
            let several = self.accounts.len() > 1;
            let profile = several.then_some("profile");
            let columns = ["", "pending", "scheduled", "running", "waiting", "done"];
            let mut lines = table(&["queue"].into_iter().chain(profile).chain(columns).collect::<Vec<_>>());
            for queue in &self.queues {
                let mut row = vec![cell(&queue.name)];
                row.extend(several.then(|| cell(self.profile(&queue.name).unwrap_or_default())));
                row.push(cell(if queue.paused { "paused" } else { "" }));
                row.extend(states(&queue.jobs));
                lines.add_row(row);
            }
            section(&mut text, &lines.to_string());
        }
        outcomes(&mut text, &self.outcomes);
        if !self.batches.is_empty() {
            let mut lines = table(&["open batch", "pending", "scheduled", "running", "waiting", "done"]);
            for batch in &self.batches {
                let mut row = vec![cell(&one_line(&batch.batch, 60))];
                row.extend(states(&batch.jobs));
                lines.add_row(row);
            }
            section(&mut text, &lines.to_string());
        }
        reasons(&mut text, &self.reasons);
        if !self.gates.is_empty() {
            let mut lines = table(&["gate", "state", "until", "reason"]);
            for gate in &self.gates {
                lines.add_row([
                    cell(&gate.scope),
                    cell(&gate.state),
                    cell(&gate.until.map_or_else(|| "a person opens it".to_owned(), time)),
                    cell(&one_line(gate.reason.as_deref().unwrap_or_default(), 100)),
                ]);
            }
            section(&mut text, &format!("{lines}\n promptmill gates says what may be done about it"));
        }
        let silent = self.workers.iter().filter(|worker| worker.is_silent()).count();
        if silent == self.workers.len() {
            let of_them = match silent {
                0 => String::new(),
                n => format!("; {} silent", count(n as i64, "is", "are")),
            };
            section(&mut text, &format!("no daemon is at work{of_them}: promptmill run starts one"));
        }
        if !self.workers.is_empty() {
            let mut lines = table(&["worker", "host", "pid", "version", "running", "last seen"]);
            for worker in &self.workers {
                lines.add_row([
                    cell(&worker.id.to_string()),
                    cell(&worker.host),
                    cell(&worker.pid.to_string()),
                    cell(&worker.version),
                    cell_number(worker.running),
                    cell(&seen(worker)),
                ]);
            }
            section(&mut text, &lines.to_string());
        }
        text
    }

    fn json(&self) -> Value {
        let queues = self.queues.iter().map(|queue| {
            let mut object =
                json!({"queue": queue.name, "paused": queue.paused, "max_running": queue.max_running, "profile": self.profile(&queue.name)});
            add_states(&mut object, &queue.jobs);
            object
        });
        let batches = self.batches.iter().map(|batch| {
            let mut object = json!({"batch": batch.batch});
            add_states(&mut object, &batch.jobs);
            object
        });
        let workers = self.workers.iter().map(|worker| {
            json!({
                "id": worker.id, "host": worker.host, "pid": worker.pid, "version": worker.version,
                "running": worker.running, "seen_ms_ago": worker.seen_ms_ago, "silent": worker.is_silent(),
            })
        });
        let gates = self.gates.iter().map(|gate| {
            json!({
                "scope": gate.scope, "state": gate.state, "reason": gate.reason,
                "until": gate.until.map(time_rfc3339),
            })
        });
        json!({
            "queues": queues.collect::<Vec<_>>(),
            "outcomes": outcomes_json(&self.outcomes),
            "open_batches": batches.collect::<Vec<_>>(),
            "reasons": reasons_json(&self.reasons),
            "gates": gates.collect::<Vec<_>>(),
            "workers": workers.collect::<Vec<_>>(),
        })
    }
}

/// Says when a worker was seen last, and whether it is there at all.
fn seen(worker: &WorkerLine) -> String {
    let ago = duration(worker.seen_ms_ago);
    if worker.is_silent() { format!("silent for {ago}") } else { format!("{ago} ago") }
}

/// One batch.
struct BatchView {
    batch: String,
    jobs: StateCounts,
    outcomes: Vec<OutcomeLine>,
    faults: Vec<FaultLine>,
    reasons: Vec<ReasonLine>,
}

impl BatchView {
    async fn read(desk: &dyn Desk, batch: &str) -> Result<Self, crate::store::StoreError> {
        Ok(Self {
            batch: batch.to_owned(),
            jobs: desk.batch_counts(batch).await?,
            outcomes: desk.outcome_lines(Some(batch)).await?,
            faults: desk.fault_lines(batch, LINES_MAX).await?,
            reasons: desk.reason_lines(Some(batch), LINES_MAX).await?,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut lines = table(&["batch", "pending", "scheduled", "running", "waiting", "done"]);
        let mut row = vec![cell(&one_line(&self.batch, 60))];
        row.extend(states(&self.jobs));
        lines.add_row(row);
        section(&mut text, &lines.to_string());
        outcomes(&mut text, &self.outcomes);
        if !self.faults.is_empty() {
            let mut lines = table(&["not complete", "error type", "error code", "jobs", "for example"]);
            for fault in &self.faults {
                lines.add_row([
                    cell(&fault.outcome),
                    cell(fault.error_type.as_deref().unwrap_or_default()),
                    cell(fault.error_code.as_deref().unwrap_or_default()),
                    cell_number(fault.count),
                    cell(&format!("promptmill show {}", fault.example)),
                ]);
            }
            section(&mut text, &lines.to_string());
        }
        reasons(&mut text, &self.reasons);
        text
    }

    fn json(&self) -> Value {
        let faults = self.faults.iter().map(|fault| {
            json!({
                "outcome": fault.outcome, "error_type": fault.error_type, "error_code": fault.error_code,
                "jobs": fault.count, "example": fault.example.0,
            })
        });
        let mut object = json!({"batch": self.batch, "total": self.jobs.total()});
        add_states(&mut object, &self.jobs);
        object["outcomes"] = outcomes_json(&self.outcomes);
        object["faults"] = faults.collect();
        object["reasons"] = reasons_json(&self.reasons);
        object
    }
}

fn section(text: &mut String, part: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(part);
    text.push('\n');
}

fn states(jobs: &StateCounts) -> [comfy_table::Cell; 5] {
    [jobs.pending, jobs.scheduled, jobs.running, jobs.waiting, jobs.done].map(cell_number)
}

fn add_states(object: &mut Value, jobs: &StateCounts) {
    for (state, n) in [
        ("pending", jobs.pending),
        ("scheduled", jobs.scheduled),
        ("running", jobs.running),
        ("waiting", jobs.waiting),
        ("done", jobs.done),
    ] {
        object[state] = n.into();
    }
}

fn outcomes(text: &mut String, outcomes: &[OutcomeLine]) {
    if outcomes.is_empty() {
        return;
    }
    let mut lines = table(&["outcome", "jobs", "tokens in", "tokens out"]);
    let mut total = Usage::default();
    for outcome in outcomes {
        total += outcome.usage;
        lines.add_row([
            cell(&outcome.outcome),
            cell_number(outcome.count),
            cell_number(tokens_in(&outcome.usage)),
            cell_number(outcome.usage.output),
        ]);
    }
    section(text, &lines.to_string());
    if outcomes.len() > 1 {
        // Writing into a String cannot fail.
        writeln!(text, " in all {} tokens in, {} out", number(tokens_in(&total)), number(total.output)).ok();
    }
}

const fn tokens_in(usage: &Usage) -> i64 {
    usage.input + usage.cache_creation + usage.cache_read
}

fn reasons(text: &mut String, reasons: &[ReasonLine]) {
    if reasons.is_empty() {
        return;
    }
    let lines: Vec<String> = reasons
        .iter()
        .map(|line| {
            format!(
                " {}: {}",
                count(line.count, "job waits", "jobs wait"),
                printable(&one_line(&line.reason, 200))
            )
        })
        .collect();
    section(text, &lines.join("\n"));
}

fn outcomes_json(outcomes: &[OutcomeLine]) -> Value {
    outcomes
        .iter()
        .map(|line| {
            json!({
                "outcome": line.outcome, "jobs": line.count,
                "input_tokens": line.usage.input, "output_tokens": line.usage.output,
                "cache_creation_input_tokens": line.usage.cache_creation,
                "cache_read_input_tokens": line.usage.cache_read,
            })
        })
        .collect()
}

fn reasons_json(reasons: &[ReasonLine]) -> Value {
    reasons.iter().map(|line| json!({"reason": line.reason, "jobs": line.count})).collect()
}
