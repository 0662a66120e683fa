//! Queues, workers and gates: where jobs are kept, who works, and what is stopped.

use std::collections::HashMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use crate::cli::gates::House;
use crate::cli::gates::scope::Scope;
use crate::store::board::{QUEUES_MAX, QueueCard, queue_count_max};
use crate::store::{GateLine, Listed, Moment, WorkerLine};
use crate::web::Web;
use crate::web::fault::Fault;
use crate::web::fields::Fields;
use crate::web::guard::is_there;
use crate::web::words::{self, Frame, page};

/// A gate as it is shown.
pub struct Gate {
    /// `scope`.
    pub scope: String,
    /// `state`.
    pub state: String,
    /// What goes through it, in words.
    pub what: String,
    /// `reason`.
    pub reason: Option<String>,
    /// Since when.
    pub since: Moment,
    /// Until when, in words.
    pub until: Option<String>,
    /// Jobs that wait behind it, in words.
    pub behind: Option<String>,
    /// Whether it stands before a batch.
    pub is_batch: bool,
    /// Whether refusals do not stop it.
    pub ignored: bool,
    /// For programs.
    pub json: Value,
}

/// Gates that are looked at: what waits behind each is counted.
pub const GATES_MAX: usize = 100;

/// Asks for the first `most` of the gates to keep; returns how many more there are.
pub async fn look_at_gates(
    web: &Web,
    which: Listed,
    most: usize,
    keep: impl Fn(&Scope) -> bool,
) -> Result<(Vec<Gate>, usize), Fault> {
    let accounts = web.desk()?.account_rows().await?;
    let house = House { desk: web.desk()?, accounts, default_model: web.config.defaults.model.clone() };
    let mut lines = house.lines(which).await?;
    lines.retain(|line| keep(&Scope::parse(&line.scope)));
    let more = lines.len().saturating_sub(most);
    lines.truncate(most);
    let shown = house.look(lines).await?;
    let gate = |shown: &crate::cli::gates::view::Shown| Gate {
        scope: shown.line.scope.clone(),
        state: shown.line.state.clone(),
        what: shown.what(),
        reason: shown.line.reason.clone(),
        since: shown.line.since,
        until: shown.until(),
        behind: shown
            .jobs
            .map(crate::cli::gates::view::Jobs::sentence)
            .filter(|said| !said.starts_with("0 ")),
        is_batch: matches!(shown.scope, Scope::Batch { .. }),
        ignored: shown.line.ignored,
        json: shown.json(),
    };
    Ok((shown.iter().map(gate).collect(), more))
}

/// Returns the labels of batches whose gate does not flow in one of their queues, and how it stands there.
pub async fn stopped_batches(web: &Web) -> Result<HashMap<String, String>, Fault> {
    let lines = web.desk()?.gate_lines(Listed::Stopped).await?;
    let of_batch = |line: GateLine| match Scope::parse(&line.scope) {
        Scope::Batch { batch, .. } => Some((batch, line.state)),
        _ => None,
    };
    Ok(lines.into_iter().filter_map(of_batch).collect())
}

#[derive(Template)]
#[template(path = "gates.html")]
struct GatesPage {
    frame: Frame,
    now: Moment,
    gates: Vec<Gate>,
    more: usize,
    all: bool,
}

/// Shows the gates.
pub async fn gates(State(web): State<Arc<Web>>, fields: Fields) -> Result<Response, Fault> {
    let all = fields.is_on("all");
    let now = web.board()?.now().await?;
    let which = if all { Listed::All } else { Listed::Stopped };
    let (gates, more) = look_at_gates(&web, which, GATES_MAX, |_| true).await?;
    is_there(&web);
    Ok(page(&GatesPage { frame: Frame::new(&web, "Gates", "/gates").every(5), now, gates, more, all }))
}

/// Queues with their jobs, counted up to `limit`.
struct Queues {
    cards: Vec<QueueCard>,
    limit: i64,
    /// Whether there are more than are listed.
    more: bool,
}

async fn look_at_queues(web: &Web) -> Result<Queues, Fault> {
    let there = web.board()?.first_queues(QUEUES_MAX + 1).await?.len();
    let limit = queue_count_max(there);
    let cards = web.board()?.queue_cards(limit).await?;
    Ok(Queues { cards, limit, more: there as i64 > QUEUES_MAX })
}

#[derive(Template)]
#[template(path = "queues.html")]
struct QueuesPage {
    frame: Frame,
    q: Queues,
}

/// Shows the queues.
pub async fn queues(State(web): State<Arc<Web>>) -> Result<Response, Fault> {
    let q = look_at_queues(&web).await?;
    is_there(&web);
    Ok(page(&QueuesPage { frame: Frame::new(&web, "Queues", "/queues").every(5), q }))
}

/// The queues, for programs.
pub async fn queues_json(web: &Web) -> Result<Value, Fault> {
    let Queues { cards, limit, more } = look_at_queues(web).await?;
    let queue = |queue: &QueueCard| {
        json!({
            "name": queue.name, "paused": queue.paused, "max_running": queue.max_running, "model": queue.model,
            "pending": queue.jobs.pending, "scheduled": queue.jobs.scheduled, "running": queue.jobs.running,
            "waiting": queue.jobs.waiting,
        })
    };
    let queues: Vec<Value> = cards.iter().map(queue).collect();
    Ok(json!({"queues": queues, "counted_up_to": limit + 1, "more": more}))
}

#[derive(Template)]
#[template(path = "workers.html")]
struct WorkersPage {
    frame: Frame,
    workers: Vec<WorkerLine>,
}

/// Shows the workers.
pub async fn workers(State(web): State<Arc<Web>>) -> Result<Response, Fault> {
    let workers = web.desk()?.worker_lines().await?;
    is_there(&web);
    Ok(page(&WorkersPage { frame: Frame::new(&web, "Workers", "/workers").every(5), workers }))
}

/// The workers, for programs.
pub async fn workers_json(web: &Web) -> Result<Value, Fault> {
    let workers = web.desk()?.worker_lines().await?;
    let worker = |worker: &WorkerLine| {
        json!({
            "id": worker.id, "host": worker.host, "pid": worker.pid, "version": worker.version,
            "running": worker.running, "seen_ms_ago": worker.seen_ms_ago, "silent": worker.is_silent(),
        })
    };
    Ok(json!({"workers": workers.iter().map(worker).collect::<Vec<_>>()}))
}
