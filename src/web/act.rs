//! What people change: written down first, then done, by the same statements that an operator has.
//!
//! Each change is one function, called by a form and by the JSON API alike.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use askama::Template;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::post;
use axum::{Router, http::StatusCode};
use serde_json::{Value, json};

use super::Web;
use super::door::own_path;
use super::fault::Fault;
use super::fields::{Fields, Id, link};
use super::guard::Actor;
use super::words::{self, Frame, page};
use crate::cli::gates::scope::Scope;
use crate::cli::out::number;
use crate::domain::job::JobId;
use crate::store::board::BatchTally;
use crate::store::{Flow, Freed, Inserted, Listed, NewJob};

/// Jobs that one request may name.
const JOBS_MAX: usize = 1_000;
/// Longest block of a gate that has an end.
const BLOCK_MAX: u64 = 366 * 24 * 60 * 60;

/// The addresses of the forms.
pub fn routes() -> Router<Arc<Web>> {
    Router::new()
        .route("/act/jobs", post(jobs_form))
        .route("/act/queue", post(queue_form))
        .route("/act/batch", post(batch_form))
        .route("/act/gate", post(gate_form))
        .route("/jobs/{id}/again", post(again_form))
}

/// A change of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Ends those that are not done.
    Cancel,
    /// Makes those that are done, or scheduled, pending.
    RunAgain,
    /// Gives those that are not done another priority.
    Prioritise(i32),
}

impl Change {
    /// Reads which change is meant.
    ///
    /// # Errors
    /// A word that is none.
    pub fn read(fields: &Fields) -> Result<Self, Fault> {
        match fields.get("action") {
            Some("cancel") => Ok(Self::Cancel),
            Some("run_again") => Ok(Self::RunAgain),
            Some("prioritise") => {
                let priority = fields.number("priority")?;
                Ok(Self::Prioritise(priority.ok_or_else(|| Fault::bad("priority is a whole number"))?))
            }
            _ => Err(Fault::bad("action is cancel, run_again or prioritise")),
        }
    }

    /// Its word in `audit`, and in a form.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::RunAgain => "run_again",
            Self::Prioritise(_) => "prioritise",
        }
    }

    /// What it does, for a sentence.
    pub fn sentence(self) -> String {
        match self {
            Self::Cancel => "cancel".to_owned(),
            Self::RunAgain => "run again".to_owned(),
            Self::Prioritise(priority) => format!("set to priority {priority}"),
        }
    }

    /// Does it; returns how many jobs were changed.
    pub async fn apply(self, web: &Web, jobs: &[JobId]) -> Result<u64, Fault> {
        Ok(match self {
            Self::Cancel => web.desk()?.cancel(jobs).await?,
            Self::RunAgain => web.desk()?.run_again(jobs).await?,
            Self::Prioritise(priority) => web.board()?.prioritise(jobs, priority).await?,
        })
    }

    /// How many of these jobs it left as they are because they were redacted.
    pub async fn redacted(self, web: &Web, jobs: &[JobId], left: u64) -> u64 {
        match (self, web.desk()) {
            (Self::RunAgain, Ok(desk)) if left > 0 => {
                desk.redacted(jobs).await.map_or(0, |redacted| (redacted.len() as u64).min(left))
            }
            _ => 0,
        }
    }

    /// Why so many of the jobs that were named were not changed, for a sentence.
    pub fn why_not(self, left: u64, redacted: u64) -> Option<String> {
        let others = left.saturating_sub(redacted);
        let many = |n: u64, what: &str| (n > 0).then(|| format!("{} {what}", number(n as i64)));
        let why = match self {
            Self::Cancel | Self::Prioritise(_) => vec![many(left, "done already, or not there")],
            Self::RunAgain => vec![
                many(redacted, "redacted, so that nobody knows what to ask"),
                many(others, "neither done nor scheduled, or not there"),
            ],
        };
        let why: Vec<String> = why.into_iter().flatten().collect();
        let could = if left == 1 {
            "1 could not be".to_owned()
        } else {
            format!("{} could not be", number(left as i64))
        };
        (left > 0).then(|| format!("{could}: {}", why.join(", ")))
    }

    /// More of it, for `audit.detail`.
    pub fn detail(self) -> Option<String> {
        if let Self::Prioritise(priority) = self { Some(format!("priority {priority}")) } else { None }
    }
}

/// What became of the jobs that somebody named.
pub struct Done {
    change: Change,
    named: u64,
    changed: u64,
    why_not: Option<String>,
}

impl Done {
    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "action": self.change.word(), "named": self.named, "changed": self.changed, "why_not": self.why_not,
        })
    }
}

/// Says in the book how many jobs were changed, where they are not as many as it says. What is done is done:
/// a book that cannot be written any more is no reason to call it failed.
pub async fn correct(web: &Web, deed: i64, said: u64, changed: u64) {
    if let (Ok(board), true) = (web.board(), said != changed) {
        board.correct(deed, changed as i64).await.ok();
    }
}

/// Changes the jobs that are named.
pub async fn jobs(web: &Web, actor: &Actor, fields: &Fields) -> Result<Done, Fault> {
    let change = Change::read(fields)?;
    let mut jobs = fields.jobs("job")?;
    jobs.extend(fields.jobs("jobs")?);
    jobs.sort_unstable();
    jobs.dedup();
    if jobs.is_empty() {
        return Err(Fault::bad("no job was chosen"));
    }
    if jobs.len() > JOBS_MAX {
        return Err(Fault::bad(format!("at most {JOBS_MAX} jobs at once; a filter takes any number")));
    }
    let named: Vec<String> = jobs.iter().take(20).map(|job| job.0.to_string()).collect();
    let more = if jobs.len() > named.len() { ", …" } else { "" };
    let target = format!("jobs {}{more}", named.join(", "));
    let (named, detail) = (jobs.len() as u64, change.detail());
    let deed =
        web.board()?.write_down(&actor.0, change.word(), &target, named as i64, detail.as_deref()).await?;
    let changed = change.apply(web, &jobs).await?;
    correct(web, deed, named, changed).await;
    let left = named.saturating_sub(changed);
    let why_not = change.why_not(left, change.redacted(web, &jobs, left).await);
    Ok(Done { change, named, changed, why_not })
}

/// Pauses a queue, lets it flow, or limits it.
pub async fn queue(web: &Web, actor: &Actor, fields: &Fields) -> Result<Value, Fault> {
    let name = fields.short("queue")?.ok_or_else(|| Fault::bad("queue says which"))?;
    if web.board()?.queue_says(name).await?.is_none() {
        return Err(Fault::missing(format!("there is no queue {name}")));
    }
    let action = fields.get("action").unwrap_or_default();
    match action {
        "pause" | "resume" => {
            web.board()?.write_down(&actor.0, action, &format!("queue {name}"), 1, None).await?;
            let flow = if action == "pause" { Flow::Paused } else { Flow::Flowing };
            web.desk()?.set_queues(&[name.to_owned()], flow).await?;
        }
        "limit" => {
            let most = fields.number::<i32>("max_running")?;
            if most.is_some_and(|most| most < 0) {
                return Err(Fault::bad("max_running is 0 or more, or empty for no limit"));
            }
            let detail = most.map_or_else(|| "no limit".to_owned(), |most| format!("max_running {most}"));
            web.board()?.write_down(&actor.0, action, &format!("queue {name}"), 1, Some(&detail)).await?;
            web.board()?.limit_queue(name, most).await?;
        }
        _ => return Err(Fault::bad("action is pause, resume or limit")),
    }
    Ok(json!({"queue": name, "action": action}))
}

/// Pauses a batch, or lets it flow.
pub async fn batch(web: &Web, actor: &Actor, fields: &Fields) -> Result<Value, Fault> {
    let name = fields.short("batch")?.ok_or_else(|| Fault::bad("batch says which"))?;
    let action = fields.get("action").unwrap_or_default();
    let flow = match action {
        "pause" => Flow::Paused,
        "resume" => Flow::Flowing,
        _ => return Err(Fault::bad("action is pause or resume")),
    };
    let jobs = there_is(web, name).await?;
    if flow == Flow::Paused && jobs.open.is_empty() {
        return Err(Fault::bad(format!("all jobs of batch {name} are done: nothing to pause")));
    }
    web.board()?.write_down(&actor.0, action, &format!("batch {name}"), 1, None).await?;
    let queues = web.desk()?.set_batch(name, flow).await?;
    Ok(json!({"batch": name, "action": action, "queues": queues}))
}

/// Looks whether a batch has a job.
async fn there_is(web: &Web, batch: &str) -> Result<BatchTally, Fault> {
    let jobs = web.board()?.batch_tally(batch, 1).await?;
    if jobs.open.is_empty() && jobs.done.is_empty() {
        return Err(Fault::missing(format!("no job has batch {batch}")));
    }
    Ok(jobs)
}

/// Blocks or frees a gate.
pub async fn gate(web: &Web, actor: &Actor, fields: &Fields) -> Result<Value, Fault> {
    let scope = fields.short("scope")?.map(str::trim).ok_or_else(|| Fault::bad("scope says which gate"))?;
    let action = fields.get("action").unwrap_or_default();
    let read = Scope::parse(scope);
    let known = web.desk()?.gate_lines(Listed::All).await?.into_iter().any(|line| line.scope == scope);
    if !known && (read == Scope::Other || action == "free") {
        return Err(Fault::missing(format!("there is no gate {scope}; scopes are {}", Scope::FORMS)));
    }
    let target = format!("gate {scope}");
    match action {
        "free" => {
            web.board()?.write_down(&actor.0, action, &target, 1, None).await?;
            web.desk()?.free_gate(scope, Freed::Watched).await?;
        }
        "let_fail" => {
            let Scope::Batch { batch, .. } = &read else {
                return Err(Fault::bad("only a batch can be let fail"));
            };
            if !known && !batch.is_empty() {
                there_is(web, batch).await?;
            }
            web.board()?.write_down(&actor.0, action, &target, 1, None).await?;
            web.desk()?.free_gate(scope, Freed::LetFail).await?;
        }
        "block" => {
            let minutes = fields.number::<u64>("minutes")?;
            let seconds = minutes.map(|minutes| minutes.saturating_mul(60));
            if seconds.is_some_and(|seconds| seconds == 0 || seconds > BLOCK_MAX) {
                return Err(Fault::bad("minutes is from 1 to 527040, or empty: until a person opens it"));
            }
            let reason = fields.short("reason")?.unwrap_or("blocked by a person");
            web.board()?.write_down(&actor.0, action, &target, 1, Some(reason)).await?;
            web.desk()?.block_gate(scope, reason, seconds.map(Duration::from_secs)).await?;
        }
        _ => return Err(Fault::bad("action is block, free or let_fail")),
    }
    Ok(json!({"scope": scope, "action": action}))
}

/// Makes a new job that is as another but for what the fields change.
pub async fn again(web: &Web, actor: &Actor, id: i64, fields: &Fields) -> Result<JobId, Fault> {
    let asked = web.board()?.asked(JobId(id)).await?;
    let asked = asked.ok_or_else(|| Fault::missing(format!("there is no job {id}")))?;
    let job = changed(asked, fields)?;
    web.board()?.write_down(&actor.0, "ask_again", &format!("job {id}"), 1, None).await?;
    let inserted = web.desk()?.insert(&[job]).await?;
    let why = match inserted.first() {
        Some(Inserted::New(job)) => return Ok(*job),
        Some(Inserted::There(job) | Inserted::Differs(job) | Inserted::Unread(job)) => {
            format!("job {job} has this key already: the job was not inserted")
        }
        None => "the job was not inserted".to_owned(),
    };
    Err(Fault::new(StatusCode::CONFLICT, "not_inserted", why))
}

/// Returns a job with what the fields change; a field that is not there changes nothing, an empty one
/// takes a value away.
fn changed(asked: NewJob, fields: &Fields) -> Result<NewJob, Fault> {
    let text = |name: &str, old: Option<String>| match fields.raw(name) {
        None => old,
        Some(new) => kept_or(old, new),
    };
    let number = |name: &str, old: Option<i64>| match fields.raw(name) {
        None => Ok(old),
        Some(_) => fields.number(name),
    };
    let priority = number("priority", asked.priority.map(i64::from))?;
    let priority = priority.map(i32::try_from).transpose();
    let params = text("params", asked.params);
    for (name, json) in [("params", &params)] {
        if json.as_deref().is_some_and(|json| serde_json::from_str::<serde_json::Map<_, _>>(json).is_err()) {
            return Err(Fault::bad(format!("{name} is no JSON object")));
        }
    }
    Ok(NewJob {
        queue: text("queue", asked.queue),
        batch: text("batch", asked.batch),
        // Keys are unique: the new job has none, unless one is given.
        key: fields.text("key"),
        prompt: text("prompt", asked.prompt),
        system: text("system", asked.system),
        model: text("model", asked.model),
        max_tokens: number("max_tokens", asked.max_tokens)?,
        params,
        policy: text("policy", asked.policy),
        metadata: asked.metadata,
        priority: priority.map_err(|_| Fault::bad("priority is a whole number of 32 bits"))?,
        run_at: None,
    })
}

/// What a form brings back has other line ends: a text that nobody changed stays as it was.
fn kept_or(old: Option<String>, new: &str) -> Option<String> {
    let plain = new.replace("\r\n", "\n");
    match old {
        Some(old) if old.replace("\r\n", "\n") == plain => Some(old),
        _ if plain.is_empty() => None,
        _ => Some(plain),
    }
}

/// Leads back to where the form was.
fn back(fields: &Fields, home: &str) -> Response {
    let to = own_path(fields.get("back"));
    Redirect::to(if to == "/" { home } else { to }).into_response()
}

async fn jobs_form(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    fields: Fields,
) -> Result<Response, Fault> {
    let done = jobs(&web, &actor, &fields).await?;
    let Some(why_not) = done.why_not else { return Ok(back(&fields, "/jobs")) };
    let frame = Frame::new(&web, "Not all were changed", "/jobs");
    let back = match own_path(fields.get("back")) {
        "/" => "/jobs".to_owned(),
        path => path.to_owned(),
    };
    Ok(page(&ChangedPage {
        frame,
        change: done.change,
        named: done.named as i64,
        changed: done.changed as i64,
        why_not,
        back,
    }))
}

#[derive(Template)]
#[template(path = "changed.html")]
struct ChangedPage {
    frame: Frame,
    change: Change,
    named: i64,
    changed: i64,
    why_not: String,
    back: String,
}

async fn queue_form(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    fields: Fields,
) -> Result<Response, Fault> {
    queue(&web, &actor, &fields).await?;
    Ok(back(&fields, "/queues"))
}

async fn batch_form(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    fields: Fields,
) -> Result<Response, Fault> {
    batch(&web, &actor, &fields).await?;
    let home = link("/batch", &[("name", fields.get("batch").unwrap_or_default())]);
    Ok(back(&fields, &home))
}

async fn gate_form(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    fields: Fields,
) -> Result<Response, Fault> {
    gate(&web, &actor, &fields).await?;
    Ok(back(&fields, "/gates"))
}

async fn again_form(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    Id(id): Id,
    fields: Fields,
) -> Result<Response, Fault> {
    let job = match fields.short("form")? {
        None => again(&web, &actor, id, &fields).await?,
        Some(form) => match web.forms.begin(form) {
            Sent::Now => {
                let made = again(&web, &actor, id, &fields).await;
                web.forms.end(form, made.as_ref().ok().copied());
                made?
            }
            Sent::Before(Some(job)) => job,
            Sent::Before(None) => {
                let what = "this form was sent a moment ago and is not done yet: look at the newest jobs";
                return Err(Fault::new(StatusCode::CONFLICT, "under_way", what));
            }
        },
    };
    Ok(Redirect::to(&format!("/jobs/{}", job.0)).into_response())
}

/// Names a form. Not a secret: it tells one form that was sent twice from two.
pub fn form_name() -> String {
    format!("form-{:016x}", fastrand::u64(..))
}

/// Forms that are remembered.
const FORMS_MAX: usize = 1_000;

/// The forms that made a job, each with its job once it is there: one that is sent twice makes one.
#[derive(Debug, Default)]
pub struct Forms(Mutex<VecDeque<(String, Option<JobId>)>>);

/// Whether a form was sent before.
enum Sent {
    /// It was not.
    Now,
    /// It was, and made this job, once it is made.
    Before(Option<JobId>),
}

impl Forms {
    fn begin(&self, form: &str) -> Sent {
        let mut forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, made)) = forms.iter().find(|(sent, _)| sent == form) {
            return Sent::Before(*made);
        }
        forms.truncate(FORMS_MAX - 1);
        forms.push_front((form.to_owned(), None));
        Sent::Now
    }

    /// Remembers what a form made; one that made nothing may be sent again.
    fn end(&self, form: &str, made: Option<JobId>) {
        let mut forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (forms.iter().position(|(sent, _)| sent == form), made) {
            (Some(at), Some(_)) => forms[at].1 = made,
            (Some(at), None) => drop(forms.remove(at)),
            (None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_changes_only_what_was_changed() {
        let asked = NewJob {
            key: Some("taken".to_owned()),
            prompt: Some("one\r\ntwo".to_owned()),
            system: Some("be\nbrief".to_owned()),
            model: Some("m".to_owned()),
            priority: Some(3),
            ..NewJob::default()
        };
        let fields = Fields::of_query("prompt=one%0D%0Atwo&system=be%0D%0Along&model=&max_tokens=7");
        let job = changed(asked.clone(), &fields).expect("it is good");
        assert_eq!(job.prompt, asked.prompt);
        assert_eq!(job.system.as_deref(), Some("be\nlong"));
        assert_eq!((job.model, job.key, job.priority, job.max_tokens), (None, None, Some(3), Some(7)));
        assert!(changed(asked, &Fields::of_query("params=[1]")).is_err());
    }
}
