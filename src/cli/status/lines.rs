//! What `status --watch` writes where no terminal is there: a line at each change, or JSON at each look.

use serde_json::{Value, json};

use super::batch::{Batch, Count};
use super::lens::Look;
use super::pace::{a_second, rough};
use super::view::sentence;
use crate::cli::out::{one_line, time, time_rfc3339};
use crate::web::words::short;

/// Writes what is new since the last look.
#[derive(Debug, Default)]
pub struct Lines {
    last: String,
    /// The gates that were told of, by scope.
    gates: Vec<(String, String)>,
}

impl Lines {
    /// Returns the lines that tell what changed.
    pub fn of(&mut self, look: &Look, batch: Option<&str>) -> Vec<String> {
        let at = look.at.map(time).unwrap_or_default();
        let mut lines = Vec::new();
        for gate in &look.gates {
            let key = (gate.scope.clone(), format!("{}{:?}", gate.state, gate.reason));
            if !self.gates.contains(&key) {
                lines.push(format!("{at} {}", sentence(gate)));
                self.gates.retain(|(scope, _)| *scope != gate.scope);
                self.gates.push(key);
            }
        }
        let (still, flowing): (Vec<_>, Vec<_>) = std::mem::take(&mut self.gates)
            .into_iter()
            .partition(|(scope, _)| look.gates.iter().any(|gate| gate.scope == *scope));
        self.gates = still;
        // What is beyond the list may have been pushed off it.
        if look.more_gates == 0 {
            lines
                .extend(flowing.iter().map(|(scope, _)| format!("{at} gate {} flows", one_line(scope, 300))));
        }
        let line = match (batch, look.batches.first()) {
            (Some(_), Some(batch)) => of_batch(batch, look),
            _ => of_all(look),
        };
        if line != self.last {
            lines.push(format!("{at} {line}"));
            self.last = line;
        }
        lines
    }
}

fn of_all(look: &Look) -> String {
    let jobs: Vec<String> = look.jobs.iter().map(|(state, count)| format!("{count} {state}")).collect();
    format!("{}; {}", jobs.join(", "), pace(look))
}

fn of_batch(batch: &Batch, look: &Look) -> String {
    let outcomes: Vec<String> = batch.done.iter().map(|(word, count)| format!("{count} {word}")).collect();
    let open: Vec<String> = batch.open.iter().map(|(word, count)| format!("{count} {word}")).collect();
    let mut parts =
        vec![format!("{}: {} of {} done", one_line(&batch.name, 60), batch.ended(), batch.total())];
    parts.extend((!outcomes.is_empty()).then(|| outcomes.join(", ")));
    parts.extend((!open.is_empty()).then(|| format!("{}; {}", open.join(", "), pace(look))));
    parts.join("; ")
}

fn pace(look: &Look) -> String {
    let pace = look.pace;
    if pace.jobs == 0.0 {
        return "no answer in the last minute".to_owned();
    }
    let (next, eta) = look.eta_ms();
    let eta = eta.map(|ms| format!(", {} {} left", if next.more { "over" } else { "about" }, rough(ms)));
    format!(
        "{} jobs/s, {} calls/s, {} in and {} out tokens/min{}",
        a_second(pace.jobs),
        a_second(pace.calls),
        short(pace.tokens_in * 60.0),
        short(pace.tokens_out * 60.0),
        eta.unwrap_or_default()
    )
}

/// Returns a look for programs.
pub fn json_of(look: &Look, batch: Option<&str>) -> Value {
    let (next, eta) = look.eta_ms();
    let eta = eta.filter(|_| !next.more);
    let gates = look.gates.iter().map(|gate| {
        json!({
            "scope": gate.scope, "state": gate.state, "reason": gate.reason,
            "until": gate.until.map(time_rfc3339),
        })
    });
    let mut object = json!({
        "at": look.at.map(time_rfc3339),
        "jobs": counts(look.jobs.iter().map(|(word, count)| (*word, count))),
        "counted_all": !look.left().more,
        "jobs_a_second": rounded(look.pace.jobs),
        "calls_a_second": rounded(look.pace.calls),
        "tokens_in_a_minute": (look.pace.tokens_in * 60.0).round(),
        "tokens_out_a_minute": (look.pace.tokens_out * 60.0).round(),
        "eta_seconds": eta.map(|ms| ms / 1_000),
        "gates": gates.collect::<Vec<_>>(),
        "paused_queues": look.paused,
        "workers": look.workers,
    });
    if let (Some(_), Some(batch)) = (batch, look.batches.first()) {
        object["batch"] = json_of_batch(batch);
        return object;
    }
    let oldest = look.oldest.map(|oldest| json!({"job": oldest.job.0, "due_ms_ago": oldest.age_ms}));
    object["oldest_pending"] = json!(oldest);
    object["outcomes_last_hour"] = counts(look.outcomes.iter().map(|(word, count)| (word.as_str(), count)));
    object["batches"] = look.batches.iter().map(json_of_batch).collect();
    object
}

fn json_of_batch(batch: &Batch) -> Value {
    let words = |of: &[(String, Count)]| counts(of.iter().map(|(word, count)| (word.as_str(), count)));
    json!({
        "batch": batch.name, "done": batch.ended().n, "total": batch.total().n,
        "counted_all": !batch.total().more,
        "states": words(&batch.open), "outcomes": words(&batch.done),
        "jobs_a_second": rounded(batch.a_second),
        "eta_seconds": batch.eta_ms().map(|ms| ms / 1_000),
    })
}

fn counts<'a>(of: impl Iterator<Item = (&'a str, &'a Count)>) -> Value {
    of.map(|(word, count)| (word.to_owned(), Value::from(count.n))).collect()
}

fn rounded(rate: f64) -> f64 {
    (rate * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{GateLine, Moment};

    #[test]
    fn what_did_not_change_is_not_said_again() {
        let gate = GateLine {
            scope: "key:a".to_owned(),
            state: "blocked".to_owned(),
            reason: None,
            until: Some(Moment(60_000)),
            until_ms: Some(60_000),
            since: Moment(0),
            since_ms_ago: 0,
            ignored: false,
        };
        let jobs = |n| vec![("pending", Count { n, more: false })];
        let first = Look { at: Some(Moment(0)), jobs: jobs(4), gates: vec![gate.clone()], ..Look::default() };
        let mut lines = Lines::default();
        assert_eq!(lines.of(&first, None).len(), 2, "the gate and the jobs");
        // Time passes, and the gate has less of it left.
        let gate = GateLine { until_ms: Some(59_000), ..gate };
        let mut later = Look { at: Some(Moment(1_000)), gates: vec![gate], ..first };
        assert!(lines.of(&later, None).is_empty());
        later.jobs = jobs(3);
        assert_eq!(lines.of(&later, None).len(), 1);
        later.gates.clear();
        assert_eq!(lines.of(&later, None), ["1970-01-01 00:00:01Z gate key:a flows"]);
    }
}
