//! The first page: is it working, how fast, and what is in its way.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::places::{Gate, look_at_gates};
use crate::cli::out::time_rfc3339;
use crate::store::board::{COUNT_MAX, Oldest, Tally};
use crate::store::{Listed, Moment};
use crate::web::Web;
use crate::web::chart::Chart;
use crate::web::fault::Fault;
use crate::web::fields::Fields;
use crate::web::guard::is_there;
use crate::web::words::{self, Frame, hundredths, page};

/// Results that a chart is made of, at most twice as many.
const BEATS: i64 = 2_048;
/// Paused queues that are named.
const PAUSED: i64 = 20;
/// Stopped gates that are told of here.
const GATES: usize = 4;
/// The windows of time: their names and minutes.
const WINDOWS: [(&str, u64); 4] = [("15m", 15), ("1h", 60), ("6h", 360), ("24h", 1_440)];

/// What it shows.
pub struct Overview {
    now: Moment,
    tally: Tally,
    done: i64,
    oldest: Option<Oldest>,
    paused: Vec<String>,
    gates: Vec<Gate>,
    more_gates: usize,
    /// All that have a row, and those among them that say nothing any more.
    workers: usize,
    silent: usize,
    window: &'static str,
    chart: Chart,
}

/// Asks for it.
pub async fn load(web: &Web, fields: &Fields) -> Result<Overview, Fault> {
    let asked = fields.get("window").unwrap_or("1h");
    let (window, minutes) = WINDOWS
        .into_iter()
        .find(|(name, _)| *name == asked)
        .ok_or_else(|| Fault::bad("window is one of 15m, 1h, 6h, 24h"))?;
    let length = Duration::from_mins(minutes);
    let board = web.board()?;
    let now = board.now().await?;
    let pulse = board.pulse(length, BEATS).await?;
    let workers = web.desk()?.worker_lines().await?;
    let (gates, more_gates) = look_at_gates(web, Listed::Stopped, GATES, |_| true).await?;
    Ok(Overview {
        now,
        tally: board.tally(None, COUNT_MAX + 1).await?,
        done: board.results_count(COUNT_MAX + 1).await?,
        oldest: board.oldest().await?,
        paused: board.paused_queues(PAUSED).await?,
        gates,
        more_gates,
        workers: workers.len(),
        silent: workers.iter().filter(|worker| worker.is_silent()).count(),
        window,
        chart: Chart::new(&pulse, i64::try_from(length.as_millis()).unwrap_or(i64::MAX), now),
    })
}

impl Overview {
    fn at_work(&self) -> usize {
        self.workers - self.silent
    }

    /// Whether jobs wait for somebody who is not here.
    fn deserted(&self) -> bool {
        self.at_work() == 0 && self.tally.pending + self.tally.running > 0
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let shares = |shares: &[crate::web::chart::Share]| -> Value {
            shares.iter().map(|share| (share.word.clone(), Value::from(share.count))).collect()
        };
        json!({
            "now": time_rfc3339(self.now),
            "jobs": {
                "pending": self.tally.pending, "scheduled": self.tally.scheduled,
                "running": self.tally.running, "waiting": self.tally.waiting, "done": self.done,
                "counted_up_to": COUNT_MAX + 1,
            },
            "oldest_pending": self.oldest.map(|oldest| json!({"job": oldest.job.0, "due_ms_ago": oldest.age_ms})),
            "paused_queues": self.paused,
            "more_stopped_gates": self.more_gates,
            "stopped_gates": self.gates.iter().map(|gate| gate.json.clone()).collect::<Vec<_>>(),
            "workers": self.at_work(), "silent_workers": self.silent,
            "window": {
                "length": self.window, "jobs": self.chart.jobs, "sampled": self.chart.sampled,
                "jobs_a_minute": hundredths(self.chart.rate()),
                "tokens_in_a_minute": hundredths(self.chart.latest.tokens_in),
                "tokens_out_a_minute": hundredths(self.chart.latest.tokens_out),
                "outcomes": shares(&self.chart.outcomes), "stop_reasons": shares(&self.chart.stops),
                "jobs_series": self.chart.jobs_json(), "tokens_series": self.chart.tokens_json(),
            },
        })
    }
}

#[derive(Template)]
#[template(path = "overview.html")]
struct Page {
    frame: Frame,
    o: Overview,
}

/// Shows it.
pub async fn show(State(web): State<Arc<Web>>, fields: Fields) -> Result<Response, Fault> {
    let o = load(&web, &fields).await?;
    is_there(&web);
    Ok(page(&Page { frame: Frame::new(&web, "Overview", "/").every(5), o }))
}
