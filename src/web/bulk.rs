//! Changes of all jobs that a filter means: counted first, confirmed with that count, done in steps.
//!
//! A run is a task of this process, and changes no more jobs than were confirmed. What it has changed
//! when the process ends stays changed, and the same filter goes on from there. Whoever asks for the same
//! again while it is under way, or sends the same form twice, is led to the run that there is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use askama::Template;
use axum::Router;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::Web;
use super::act::{Change, correct, form_name};
use super::fault::Fault;
use super::fields::{Fields, Id};
use super::guard::Actor;
use super::pages::jobs::{in_words, pairs, wish};
use super::words::{self, Frame, page};
use crate::cli::out::{duration, number};
use crate::store::board::{OpenState, Wish, find};
use crate::store::within;

/// Jobs changed in one step: one statement.
const STEP: usize = 500;
/// Jobs that are counted, and that one run changes.
const COUNT_MAX: i64 = 100_000;
/// Longest time that counting takes.
const COUNTING_MAX: Duration = Duration::from_secs(5);
/// Runs that are remembered.
const RUNS_MAX: usize = 50;

/// The addresses.
pub fn routes() -> Router<Arc<Web>> {
    Router::new().route("/bulk", post(form)).route("/bulk/{id}", get(show))
}

/// The runs of this process.
#[derive(Default)]
pub struct Bulks {
    next: AtomicU64,
    runs: Mutex<VecDeque<Arc<Run>>>,
}

/// One change of many jobs.
pub struct Run {
    id: u64,
    change: Change,
    wish: Wish,
    /// Names what a person or a program sent: the same one twice is one run.
    key: Option<String>,
    what: String,
    of: Count,
    looked: AtomicU64,
    changed: AtomicU64,
    /// Of those that could not be changed.
    redacted: AtomicU64,
    started: Instant,
    ended: Mutex<Option<(Duration, Result<(), String>)>>,
}

/// How many jobs a filter means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// So many, at least.
    pub jobs: i64,
    /// Whether there may be more.
    pub more: bool,
}

impl Count {
    fn text(self) -> String {
        if self.more { format!("{}+", number(self.jobs)) } else { number(self.jobs) }
    }
}

impl Bulks {
    /// Finds the run that was made for what was sent, if it is sent again.
    fn of_key(&self, asked: &Asked) -> Result<Option<Arc<Run>>, Fault> {
        let Some(key) = asked.key.as_deref() else { return Ok(None) };
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let run = runs.iter().find(|run| run.key.as_deref() == Some(key)).cloned();
        if run.as_ref().is_some_and(|run| run.change != asked.change || run.wish != asked.wish) {
            return Err(Fault::bad("key is that of another change"));
        }
        Ok(run)
    }

    fn get(&self, id: u64) -> Option<Arc<Run>> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.iter().find(|run| run.id == id).cloned()
    }

    /// Adds a run, unless the same one is under way, or was made for the same key.
    fn begin(&self, change: Change, wish: &Wish, key: Option<&str>, of: Count) -> Begun {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |run: &&Arc<Run>| {
            let under_way = run.end().is_none() && run.change == change && run.wish == *wish;
            under_way || (key.is_some() && run.key.as_deref() == key)
        };
        if let Some(run) = runs.iter().find(same) {
            return Begun::There(Arc::clone(run));
        }
        let run = Arc::new(Run {
            id: self.next.fetch_add(1, Ordering::Relaxed) + 1,
            change,
            wish: wish.clone(),
            key: key.map(str::to_owned),
            what: format!("{}: {}", change.sentence(), in_words(wish)),
            of,
            looked: AtomicU64::new(0),
            changed: AtomicU64::new(0),
            redacted: AtomicU64::new(0),
            started: Instant::now(),
            ended: Mutex::new(None),
        });
        runs.push_front(Arc::clone(&run));
        // What is under way is not forgotten: it ends.
        while runs.len() > RUNS_MAX
            && let Some(oldest) = runs.iter().rposition(|run| run.end().is_some())
        {
            runs.remove(oldest);
        }
        Begun::New(run)
    }
}

/// What became of the wish for a run.
enum Begun {
    /// It is to be done.
    New(Arc<Run>),
    /// It is done, or was, for somebody who asked before.
    There(Arc<Run>),
}

impl Run {
    fn end(&self) -> Option<(Duration, Result<(), String>)> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ends(&self, done: Result<(), String>) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some((self.started.elapsed(), done));
    }

    /// Why some of those that were looked at were not changed.
    fn why_not(&self) -> Option<String> {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let left = of(&self.looked).saturating_sub(of(&self.changed));
        self.change.why_not(left, of(&self.redacted))
    }

    fn json(&self) -> Value {
        let end = self.end();
        json!({
            "id": self.id, "what": self.what, "counted": self.of.jobs, "more": self.of.more,
            "looked_at": self.looked.load(Ordering::Relaxed), "changed": self.changed.load(Ordering::Relaxed),
            "why_not": self.why_not(), "ended": end.is_some(), "error": end.and_then(|(_, result)| result.err()),
        })
    }
}

/// What a change means of a filter: only jobs that it can change.
fn wishes(change: Change, wish: &Wish) -> Vec<Wish> {
    let state = |state: &str| Wish { state: Some(state.to_owned()), ..wish.clone() };
    match (change, wish.state.as_deref()) {
        (Change::RunAgain, None | Some("done")) => vec![state("done")],
        (Change::RunAgain, Some("scheduled")) => vec![wish.clone()],
        (Change::RunAgain, Some(_)) | (_, Some("done")) => Vec::new(),
        _ if wish.is_of_results() => Vec::new(),
        (_, Some(_)) => vec![wish.clone()],
        (_, None) => ONWARDS.map(|open| state(open.as_str())).to_vec(),
    }
}

/// The open states in the order in which a daemon takes jobs through them: one that moves on while the
/// others are changed is met where it is then.
const ONWARDS: [OpenState; 4] =
    [OpenState::Scheduled, OpenState::Pending, OpenState::Running, OpenState::Waiting];

/// Counts what a change would change.
pub async fn count(web: &Web, change: Change, wish: &Wish) -> Result<Count, Fault> {
    let began = Instant::now();
    let mut jobs = 0;
    for wish in wishes(change, wish) {
        let mut from = None;
        loop {
            let found = find(web.board()?, &wish, from, 2_000).await?;
            jobs += found.jobs.len() as i64;
            if jobs > COUNT_MAX {
                return Ok(Count { jobs: COUNT_MAX, more: true });
            }
            if began.elapsed() > COUNTING_MAX {
                return Ok(Count { jobs, more: true });
            }
            match found.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
    }
    Ok(Count { jobs, more: false })
}

/// What a request for a change of many jobs says.
struct Asked {
    change: Change,
    wish: Wish,
    /// What was counted before, and agreed to.
    confirmed: Option<Count>,
    key: Option<String>,
}

/// The fields of a filter.
const FILTERS: [&str; 8] =
    ["state", "queue", "batch", "outcome", "stop_reason", "model", "error_type", "error_code"];
/// The fields beside them.
const OTHERS: [&str; 6] = ["action", "priority", "count", "more", "all", "key"];

impl Asked {
    /// Reads it. What is not understood must not mean more jobs than somebody thought of: each field is
    /// known, said once, and says something.
    fn read(fields: &Fields) -> Result<Self, Fault> {
        for (at, (name, _)) in fields.0.iter().enumerate() {
            if !FILTERS.contains(&name.as_str()) && !OTHERS.contains(&name.as_str()) {
                let known = FILTERS.join(", ");
                return Err(Fault::bad(format!("there is no filter {name}; filters are {known}")));
            }
            if fields.0[..at].iter().any(|(before, _)| before == name) {
                return Err(Fault::bad(format!("{name} is said twice")));
            }
        }
        for name in FILTERS {
            if fields.raw(name) == Some("") || fields.1.iter().any(|said| said == name) {
                return Err(Fault::bad(format!("{name} says nothing; leave it out")));
            }
            fields.short(name)?;
        }
        let (change, wish) = (Change::read(fields)?, wish(fields)?);
        match (wish == Wish::default(), fields.is_on("all")) {
            (true, false) => {
                return Err(Fault::bad("without a filter all jobs are meant: say so with all=true"));
            }
            (false, true) => return Err(Fault::bad("all=true goes without a filter")),
            _ => {}
        }
        let key = fields.short("key")?.map(str::to_owned);
        Ok(Self { change, wish, confirmed: confirmed(fields)?, key })
    }
}

/// Starts a run, or finds the one that is the same.
async fn start(web: &Arc<Web>, actor: &Actor, asked: &Asked, of: Count) -> Result<Arc<Run>, Fault> {
    let Asked { change, ref wish, ref key, .. } = *asked;
    let run = match web.bulks.begin(change, wish, key.as_deref(), of) {
        Begun::There(run) => return Ok(run),
        Begun::New(run) => run,
    };
    let (target, detail) = (in_words(wish), change.detail());
    let written = match web.board() {
        Ok(board) => board.write_down(&actor.0, change.word(), &target, of.jobs, detail.as_deref()).await,
        Err(fault) => {
            run.ends(Err(fault.message.clone()));
            return Err(fault);
        }
    };
    let deed = match written {
        Ok(deed) => deed,
        Err(error) => {
            run.ends(Err(error.to_string()));
            return Err(error.into());
        }
    };
    let (web, actor, mine) = (Arc::clone(web), actor.clone(), Arc::clone(&run));
    #[expect(clippy::disallowed_methods, reason = "its end is kept in the run, where people see it")]
    tokio::spawn(async move {
        let read_max = web.settings.read_max;
        let done = within(read_max, work(&web, &mine)).await.map_err(|fault| fault.message);
        let changed = mine.changed.load(Ordering::Relaxed);
        correct(&web, deed, mine.of.jobs as u64, changed).await;
        let detail = match &done {
            Ok(()) => "done".to_owned(),
            Err(why) => format!("stopped: {why}"),
        };
        if let Ok(board) = web.board() {
            // The run itself says what became of it, should the database be away.
            board.write_down(&actor.0, "bulk_end", &mine.what, changed as i64, Some(&detail)).await.ok();
        }
        mine.ends(done);
    });
    Ok(run)
}

async fn work(web: &Web, run: &Run) -> Result<(), Fault> {
    // No more than was confirmed: jobs that came since are another matter.
    let mut left = run.of.jobs as usize;
    while left > 0 {
        let looked = pass(web, run, left).await?;
        left -= looked;
        // What is cancelled is found no more, and each that ended made place for one that was passed by:
        // a daemon may have taken it since, or put it back.
        if looked == 0 || run.change != Change::Cancel {
            break;
        }
    }
    Ok(())
}

/// Goes once through all that is meant; returns how many jobs it met.
async fn pass(web: &Web, run: &Run, most: usize) -> Result<usize, Fault> {
    let mut looked = 0;
    for wish in wishes(run.change, &run.wish) {
        let mut from = None;
        while looked < most {
            let mut found = find(web.board()?, &wish, from, STEP).await?;
            found.jobs.truncate(most - looked);
            looked += found.jobs.len();
            if !found.jobs.is_empty() {
                let changed = run.change.apply(web, &found.jobs).await?;
                run.looked.fetch_add(found.jobs.len() as u64, Ordering::Relaxed);
                run.changed.fetch_add(changed, Ordering::Relaxed);
                let left = (found.jobs.len() as u64).saturating_sub(changed);
                let redacted = run.change.redacted(web, &found.jobs, left).await;
                run.redacted.fetch_add(redacted, Ordering::Relaxed);
            }
            match found.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
    }
    Ok(looked)
}

#[derive(Template)]
#[template(path = "confirm.html")]
struct Confirm {
    frame: Frame,
    change: Change,
    priority: String,
    meant: String,
    hidden: Vec<(&'static str, String)>,
    count: Count,
    before: Option<String>,
}

/// Counts, or starts what was counted.
async fn form(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    fields: Fields,
) -> Result<Response, Fault> {
    let asked = Asked::read(&fields)?;
    let Asked { change, ref wish, confirmed, .. } = asked;
    if let Some(run) = web.bulks.of_key(&asked)? {
        return Ok(Redirect::to(&format!("/bulk/{}", run.id)).into_response());
    }
    let count = count(&web, change, wish).await?;
    if let Some(confirmed) = confirmed
        && fits(count, confirmed)
    {
        let run = start(&web, &actor, &asked, confirmed).await?;
        return Ok(Redirect::to(&format!("/bulk/{}", run.id)).into_response());
    }
    let hidden = pairs(wish).into_iter().filter(|(_, text)| !text.is_empty());
    let mut hidden: Vec<_> = hidden.map(|(name, text)| (name, text.to_owned())).collect();
    if *wish == Wish::default() {
        hidden.push(("all", "true".to_owned()));
    }
    if count.more {
        hidden.push(("more", "true".to_owned()));
    }
    hidden.push(("key", form_name()));
    let priority =
        if let Change::Prioritise(priority) = change { priority.to_string() } else { String::new() };
    let frame = Frame::new(&web, "Are these the jobs?", "/jobs");
    let before = confirmed.map(Count::text);
    Ok(page(&Confirm { frame, change, priority, meant: in_words(wish), hidden, count, before }))
}

/// Whether what is there now is no more than what a person agreed to; who knew that there are more than
/// were counted agreed to so many of them.
fn fits(now: Count, confirmed: Count) -> bool {
    confirmed.more || (!now.more && now.jobs <= confirmed.jobs)
}

/// Reads a count that a person agreed to.
fn confirmed(fields: &Fields) -> Result<Option<Count>, Fault> {
    let Some(jobs) = fields.number::<i64>("count")? else { return Ok(None) };
    if !(1..=COUNT_MAX).contains(&jobs) {
        return Err(Fault::bad(format!("count is what was counted: from 1 to {COUNT_MAX}")));
    }
    Ok(Some(Count { jobs, more: fields.is_on("more") }))
}

#[derive(Template)]
#[template(path = "bulk.html")]
struct RunPage {
    frame: Frame,
    run: Arc<Run>,
    looked: u64,
    changed: i64,
    end: Option<(String, Option<String>)>,
}

async fn show(State(web): State<Arc<Web>>, Id(id): Id<u64>) -> Result<Response, Fault> {
    let run =
        web.bulks.get(id).ok_or_else(|| Fault::missing("this process knows no such run; see the audit"))?;
    let end = run.end().map(|(took, result)| (duration(took.as_millis() as i64), result.err()));
    let frame = Frame::new(&web, "Changing jobs", "/jobs");
    let frame = if end.is_some() { frame } else { frame.every(1) };
    let (looked, changed) = (run.looked.load(Ordering::Relaxed), run.changed.load(Ordering::Relaxed) as i64);
    Ok(page(&RunPage { frame, run, looked, changed, end }))
}

/// Counts, or starts what was counted, for programs.
pub async fn post_json(web: &Arc<Web>, actor: &Actor, fields: &Fields) -> Result<Value, Fault> {
    let asked = Asked::read(fields)?;
    let started =
        |run: &Run| json!({"counted": run.of.jobs, "more": run.of.more, "started": true, "bulk": run.id});
    if let Some(run) = web.bulks.of_key(&asked)? {
        return Ok(started(&run));
    }
    let count = count(web, asked.change, &asked.wish).await?;
    let Some(confirmed) = asked.confirmed else {
        return Ok(json!({"counted": count.jobs, "more": count.more, "started": false}));
    };
    if !fits(count, confirmed) {
        let what =
            format!("there are {} such jobs now, more than the {} confirmed", count.text(), confirmed.text());
        return Err(Fault::new(axum::http::StatusCode::CONFLICT, "count_changed", what));
    }
    Ok(started(&*start(web, actor, &asked, confirmed).await?))
}

/// How far a run is, for programs.
pub fn run_json(web: &Web, id: u64) -> Result<Value, Fault> {
    let run = web.bulks.get(id).ok_or_else(|| Fault::missing("this process knows no such run"))?;
    Ok(run.json())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_means_only_jobs_that_it_can_change() {
        let of = |state: Option<&str>, outcome: Option<&str>| Wish {
            state: state.map(str::to_owned),
            outcome: outcome.map(str::to_owned),
            ..Wish::default()
        };
        assert_eq!(wishes(Change::Cancel, &of(None, None)).len(), 4);
        assert_eq!(wishes(Change::Cancel, &of(Some("done"), None)), []);
        assert_eq!(wishes(Change::Cancel, &of(None, Some("failed"))), []);
        assert_eq!(wishes(Change::RunAgain, &of(None, Some("failed")))[0].state.as_deref(), Some("done"));
        assert_eq!(wishes(Change::RunAgain, &of(Some("pending"), None)), []);
    }

    #[test]
    fn fewer_jobs_than_confirmed_are_changed_and_more_are_asked_for_again() {
        let count = |jobs, more| Count { jobs, more };
        assert!(fits(count(9, false), count(10, false)));
        assert!(!fits(count(11, false), count(10, false)));
        assert!(!fits(count(10, true), count(10, false)));
        assert!(fits(count(COUNT_MAX, true), count(COUNT_MAX, true)));
        assert!(fits(count(11, true), count(10, true)));
    }
}
