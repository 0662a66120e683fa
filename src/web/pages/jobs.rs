//! The list of jobs: filters, tabs by state, and pages by key.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use crate::cli::out::time_rfc3339;
use crate::domain::outcome::Outcome;
use crate::store::Moment;
use crate::store::board::{COUNT_MAX, Cursor, JobLine, QUEUES_MAX, Tally, Wish, find};
use crate::web::Web;
use crate::web::fault::Fault;
use crate::web::fields::{Fields, link};
use crate::web::guard::is_there;
use crate::web::words::{self, Frame, page};

/// Jobs on a page.
const PAGE: usize = 50;
/// Jobs on a page that a program asks for.
const PAGE_MAX: usize = 500;
/// The states, as tabs.
const STATES: [&str; 5] = ["pending", "scheduled", "running", "waiting", "done"];
/// Reads which jobs are meant.
///
/// # Errors
/// A word that no state or outcome is.
pub fn wish(fields: &Fields) -> Result<Wish, Fault> {
    let wish = Wish {
        state: fields.text("state"),
        queue: fields.text("queue"),
        batch: fields.text("batch"),
        outcome: fields.text("outcome"),
        stop_reason: fields.text("stop_reason"),
        model: fields.text("model"),
        error_type: fields.text("error_type"),
        error_code: fields.text("error_code"),
    };
    if wish.state.as_deref().is_some_and(|state| !STATES.contains(&state)) {
        return Err(Fault::bad(format!("state is one of {}", STATES.join(", "))));
    }
    if wish.outcome.as_deref().is_some_and(|outcome| Outcome::parse(outcome).is_none()) {
        let known: Vec<&str> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
        return Err(Fault::bad(format!("outcome is one of {}", known.join(", "))));
    }
    Ok(wish)
}

/// Returns a wish as pairs for a query or for hidden fields.
pub fn pairs(wish: &Wish) -> [(&'static str, &str); 8] {
    [
        ("state", wish.state.as_deref().unwrap_or_default()),
        ("queue", wish.queue.as_deref().unwrap_or_default()),
        ("batch", wish.batch.as_deref().unwrap_or_default()),
        ("outcome", wish.outcome.as_deref().unwrap_or_default()),
        ("stop_reason", wish.stop_reason.as_deref().unwrap_or_default()),
        ("model", wish.model.as_deref().unwrap_or_default()),
        ("error_type", wish.error_type.as_deref().unwrap_or_default()),
        ("error_code", wish.error_code.as_deref().unwrap_or_default()),
    ]
}

/// Says in words which jobs are meant.
pub fn in_words(wish: &Wish) -> String {
    let said: Vec<String> = pairs(wish)
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| format!("{} {text}", name.replace('_', " ")))
        .collect();
    if said.is_empty() { "all jobs".to_owned() } else { said.join(", ") }
}

/// Reads where a page begins: `j12` or `r12`.
fn cursor(fields: &Fields) -> Result<Option<Cursor>, Fault> {
    let Some(text) = fields.get("from") else { return Ok(None) };
    let odd = || Fault::bad("from is what `next` said");
    let number = |text: &str| text.parse().map_err(|_| odd());
    match text.split_at_checked(1) {
        Some(("j", id)) => Ok(Some(Cursor::Job(number(id)?))),
        Some(("r", seq)) => Ok(Some(Cursor::Result(number(seq)?))),
        _ => Err(odd()),
    }
}

fn cursor_text(cursor: Cursor) -> String {
    match cursor {
        Cursor::Job(id) => format!("j{id}"),
        Cursor::Result(seq) => format!("r{seq}"),
    }
}

/// A page of jobs.
pub struct Jobs {
    now: Moment,
    wish: Wish,
    lines: Vec<JobLine>,
    next: Option<String>,
    tabs: Vec<Tab>,
    queues: Vec<String>,
    begun: bool,
}

struct Tab {
    name: &'static str,
    link: String,
    count: String,
    here: bool,
}

/// Asks for it.
pub async fn load(web: &Web, fields: &Fields, most: usize) -> Result<Jobs, Fault> {
    let wish = wish(fields)?;
    let from = cursor(fields)?;
    let found = find(web.board()?, &wish, from, most).await?;
    let mut lines = web.board()?.job_lines(&found.jobs).await?;
    let place = |line: &JobLine| found.jobs.iter().position(|job| *job == line.id);
    lines.sort_by_key(place);
    let tabs = tabs(web, &wish).await?;
    Ok(Jobs {
        now: web.board()?.now().await?,
        lines,
        next: found.next.map(cursor_text),
        tabs,
        queues: web.board()?.first_queues(QUEUES_MAX).await?,
        begun: from.is_some(),
        wish,
    })
}

/// The tabs with their counts, where those can be told for the filters.
async fn tabs(web: &Web, wish: &Wish) -> Result<Vec<Tab>, Fault> {
    let plain = wish.queue.is_none() && wish.model.is_none() && !wish.is_of_results();
    let mut counts = None;
    let mut done = None;
    if plain {
        counts = Some(web.board()?.tally(wish.batch.as_deref(), COUNT_MAX + 1).await?);
        if wish.batch.is_none() {
            done = Some(web.board()?.results_count(COUNT_MAX + 1).await?);
        }
    }
    let tab = |name: &'static str, count: Option<i64>| {
        let state = if name == "all" { None } else { Some(name.to_owned()) };
        let here = wish.state == state;
        let wish = Wish { state, ..wish.clone() };
        Tab {
            name,
            link: link("/jobs", &pairs(&wish)),
            count: count.map(words::capped).unwrap_or_default(),
            here,
        }
    };
    let of = |of: fn(&Tally) -> i64| counts.as_ref().map(of);
    Ok(vec![
        tab("all", None),
        tab("pending", of(|tally| tally.pending)),
        tab("scheduled", of(|tally| tally.scheduled)),
        tab("running", of(|tally| tally.running)),
        tab("waiting", of(|tally| tally.waiting)),
        tab("done", done),
    ])
}

impl Jobs {
    /// For programs.
    pub fn json(&self) -> Value {
        json!({"jobs": self.lines.iter().map(line_json).collect::<Vec<_>>(), "next": self.next})
    }

    fn next_link(&self) -> String {
        let from = self.next.as_deref().unwrap_or_default();
        let mut pairs = pairs(&self.wish).to_vec();
        pairs.push(("from", from));
        link("/jobs", &pairs)
    }

    fn first_link(&self) -> String {
        link("/jobs", &pairs(&self.wish))
    }

    fn filtered(&self) -> bool {
        self.wish != Wish::default()
    }

    fn narrowed(&self) -> bool {
        Wish { state: None, ..self.wish.clone() } != Wish::default()
    }

    fn hidden(&self) -> Vec<(&'static str, String)> {
        let pairs = pairs(&self.wish).into_iter().filter(|(_, text)| !text.is_empty());
        pairs.map(|(name, text)| (name, text.to_owned())).collect()
    }

    fn meant(&self) -> String {
        in_words(&self.wish)
    }

    fn outcomes() -> [Outcome; 13] {
        Outcome::ALL
    }
}

/// A job of a list, for programs.
pub fn line_json(line: &JobLine) -> Value {
    json!({
        "id": line.id.0, "queue": line.queue, "batch": line.batch, "key": line.key, "state": line.state,
        "outcome": line.outcome, "stop_reason": line.stop_reason, "model": line.model,
        "priority": line.priority, "failures": line.failures, "error_type": line.error_type,
        "input_tokens": line.usage.input, "output_tokens": line.usage.output,
        "cache_creation_input_tokens": line.usage.cache_creation,
        "cache_read_input_tokens": line.usage.cache_read,
        "created_at": time_rfc3339(line.created_at), "available_at": time_rfc3339(line.available_at),
        "finished_at": line.finished_at.map(time_rfc3339),
    })
}

#[derive(Template)]
#[template(path = "jobs.html")]
struct Page {
    frame: Frame,
    j: Jobs,
}

/// Shows it.
pub async fn show(State(web): State<Arc<Web>>, fields: Fields) -> Result<Response, Fault> {
    let j = load(&web, &fields, PAGE).await?;
    is_there(&web);
    let frame = Frame::new(&web, "Jobs", "/jobs");
    // Deeper pages stand still while they are read.
    let frame = if j.begun { frame } else { frame.every(5) };
    Ok(page(&Page { frame, j }))
}

/// How many jobs a program wants on a page.
pub fn limit(fields: &Fields) -> Result<usize, Fault> {
    match fields.number::<usize>("limit")? {
        None => Ok(PAGE),
        Some(limit) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
        Some(_) => Err(Fault::bad(format!("limit is from 1 to {PAGE_MAX}"))),
    }
}
