//! Batches: the list by name, and one of them with its progress.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use crate::cli::gates::scope::Scope;
use crate::cli::out::number;
use crate::store::board::{BatchTally, COUNT_MAX, Speed, speed};
use crate::store::{FaultLine, Listed};
use crate::web::Web;
use crate::web::fault::Fault;
use crate::web::fields::{Fields, link};
use crate::web::guard::is_there;
use crate::web::pages::places::{GATES_MAX, Gate, look_at_gates, stopped_batches};
use crate::web::words::{self, Frame, brief, hundredths, page};

/// Batches on a page.
const PAGE: usize = 20;
/// Jobs of one batch are counted up to here, by state and outcome; in a list up to [`COUNT_MAX`].
const ONE_MAX: i64 = 100_000;
/// Batches that are counted at once.
const AT_ONCE: usize = 3;
/// Results that tell how fast a batch goes.
const SPEED_OF: usize = 200;

/// A batch, counted.
pub struct Batch {
    name: String,
    tally: BatchTally,
    limit: i64,
    speed: Speed,
    /// How its gate stands, where it does not flow in one of its queues.
    gate: Option<String>,
}

impl Batch {
    fn sum(of: &[(String, i64)]) -> i64 {
        of.iter().map(|(_, n)| n).sum()
    }

    /// Whether counting stopped anywhere.
    fn capped(&self) -> bool {
        self.tally.open.iter().chain(&self.tally.done).any(|(_, n)| *n > self.limit)
    }

    fn done(&self) -> i64 {
        Self::sum(&self.tally.done)
    }

    fn open(&self) -> i64 {
        Self::sum(&self.tally.open)
    }

    fn total(&self) -> i64 {
        self.done() + self.open()
    }

    /// Of a hundred, where all were counted.
    fn percent(&self) -> Option<i64> {
        (!self.capped() && self.total() > 0).then(|| self.done() * 100 / self.total())
    }

    fn of_outcome(&self, outcome: &str) -> i64 {
        self.tally.done.iter().find(|(known, _)| known == outcome).map_or(0, |(_, n)| *n)
    }

    fn failed(&self) -> i64 {
        self.done() - self.of_outcome("complete")
    }

    fn text(&self, n: i64) -> String {
        if self.capped() && n > self.limit { format!("{}+", number(self.limit)) } else { number(n) }
    }

    /// Results a minute, where its newest ones are recent.
    fn rate(&self) -> Option<f64> {
        let span = self.speed.since_ms;
        (self.speed.results > 1 && span > 0 && self.speed.newest_ms < 10 * 60_000)
            .then(|| self.speed.results as f64 * 60_000.0 / span as f64)
    }

    /// Jobs that a daemon works on or takes next: no rate says when the others are due, or answered.
    fn next(&self) -> i64 {
        let near = |state: &str| ["pending", "running"].contains(&state);
        self.tally.open.iter().filter(|(state, _)| near(state)).map(|(_, n)| n).sum()
    }

    /// How long the rest may take, where it flows.
    fn rest_ms(&self) -> Option<i64> {
        let flows = self.gate.is_none() && !self.capped() && self.next() > 0;
        let rate = self.rate().filter(|_| flows)?;
        Some((self.next() as f64 / rate * 60_000.0) as i64)
    }

    /// The same in words.
    fn eta(&self) -> Option<String> {
        self.rest_ms().map(brief)
    }

    fn link(&self) -> String {
        link("/batch", &[("name", &self.name)])
    }

    fn jobs(&self, name: &str, word: &str) -> String {
        link("/jobs", &[("batch", &self.name), (name, word)])
    }

    fn json(&self) -> Value {
        let counts = |of: &[(String, i64)]| -> Value {
            of.iter().map(|(word, n)| (word.clone(), Value::from(*n))).collect()
        };
        json!({
            "batch": self.name, "states": counts(&self.tally.open), "outcomes": counts(&self.tally.done),
            "done": self.done(), "total": self.total(), "counted_up_to": self.limit + 1,
            "counted_all": !self.capped(), "results_a_minute": self.rate().map(hundredths), "rest_in_ms": self.rest_ms(),
            "gate": self.gate,
        })
    }
}

async fn count(web: &Web, name: String, limit: i64, gate: Option<String>) -> Result<Batch, Fault> {
    let tally = web.board()?.batch_tally(&name, limit + 1).await?;
    let speed =
        if tally.open.is_empty() { Speed::default() } else { speed(web.board()?, &name, SPEED_OF).await? };
    Ok(Batch { name, tally, limit, speed, gate })
}

/// A page of batches.
struct Batches {
    batches: Vec<Batch>,
    next: Option<String>,
}

async fn load_list(web: &Web, fields: &Fields) -> Result<Batches, Fault> {
    let after = fields.get("from").unwrap_or_default();
    let open_only = fields.is_on("open");
    let most = PAGE as i64 + 1;
    let mut names = web.board()?.batches_open(after, most).await?;
    if !open_only {
        names.extend(web.board()?.batches_done(after, most).await?);
    }
    names.sort();
    names.dedup();
    let more = names.len() > PAGE;
    names.truncate(PAGE);
    let next = names.last().filter(|_| more).cloned();
    let mut stopped = stopped_batches(web).await?;
    let counted = names.into_iter().map(|name| {
        let gate = stopped.remove(&name);
        count(web, name, COUNT_MAX, gate)
    });
    let batches = stream::iter(counted.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
    Ok(Batches { batches, next })
}

#[derive(Template)]
#[template(path = "batches.html")]
struct ListPage {
    frame: Frame,
    list: Batches,
    open: bool,
    begun: bool,
}

impl ListPage {
    fn first_link(&self) -> String {
        link("/batches", &[("open", if self.open { "on" } else { "" })])
    }

    fn next_link(&self) -> String {
        let open = if self.open { "on" } else { "" };
        link("/batches", &[("open", open), ("from", self.list.next.as_deref().unwrap_or_default())])
    }
}

/// Shows the list.
pub async fn list(State(web): State<Arc<Web>>, fields: Fields) -> Result<Response, Fault> {
    let list = load_list(&web, &fields).await?;
    is_there(&web);
    let (open, begun) = (fields.is_on("open"), fields.get("from").is_some());
    Ok(page(&ListPage { frame: Frame::new(&web, "Batches", "/batches").every(5), list, open, begun }))
}

/// The list, for programs.
pub async fn list_json(web: &Web, fields: &Fields) -> Result<Value, Fault> {
    let list = load_list(web, fields).await?;
    Ok(json!({"batches": list.batches.iter().map(Batch::json).collect::<Vec<_>>(), "next": list.next}))
}

async fn load_one(web: &Web, fields: &Fields) -> Result<(Batch, Vec<FaultLine>, Vec<Gate>), Fault> {
    let name = fields.get("name").ok_or_else(|| Fault::bad("name says which batch"))?;
    let of_it = |scope: &Scope| matches!(scope, Scope::Batch { batch, .. } if batch == name);
    let (gates, _) = look_at_gates(web, Listed::Stopped, GATES_MAX, of_it).await?;
    let gate = gates.first().map(|gate| gate.state.clone());
    let batch = count(web, name.to_owned(), ONE_MAX, gate).await?;
    if batch.total() == 0 {
        return Err(Fault::missing(format!("no job has batch {name}")));
    }
    // Grouped only where few rows are read for it.
    let faults = if batch.failed() <= COUNT_MAX && batch.failed() > 0 && batch.done() <= ONE_MAX {
        web.desk()?.fault_lines(name, 20).await?
    } else {
        Vec::new()
    };
    Ok((batch, faults, gates))
}

#[derive(Template)]
#[template(path = "batch.html")]
struct OnePage {
    frame: Frame,
    b: Batch,
    faults: Vec<FaultLine>,
    gates: Vec<Gate>,
}

impl OnePage {
    fn download(&self, format: &str) -> String {
        link("/batch/results", &[("name", &self.b.name), ("format", format)])
    }
}

/// Shows one.
pub async fn show(State(web): State<Arc<Web>>, fields: Fields) -> Result<Response, Fault> {
    let (b, faults, gates) = load_one(&web, &fields).await?;
    is_there(&web);
    let frame = Frame::new(&web, format!("Batch {}", b.name), "/batches").every(5);
    Ok(page(&OnePage { frame, b, faults, gates }))
}

/// One, for programs.
pub async fn one_json(web: &Web, fields: &Fields) -> Result<Value, Fault> {
    let (batch, faults, gates) = load_one(web, fields).await?;
    let fault = |fault: &FaultLine| {
        json!({
            "outcome": fault.outcome, "error_type": fault.error_type, "error_code": fault.error_code,
            "jobs": fault.count, "example": fault.example.0,
        })
    };
    let mut value = batch.json();
    value["not_complete"] = faults.iter().map(fault).collect();
    value["stopped_gates"] = gates.iter().map(|gate| gate.json.clone()).collect();
    Ok(value)
}
