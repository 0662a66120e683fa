//! The tables beside the model.

use std::fmt::Display;

use super::super::job::{Job, Row, State, Tool};
use super::Play;
use crate::support::Ground;

impl Play<'_> {
    /// Compares all tables with the model, row by row.
    pub(super) async fn compare(&self) -> Result<(), String> {
        let found = self.stage.ground.lines(&tables(&self.stage.ground)).await;
        let of = |name: &str, lines: Vec<String>| -> Vec<String> {
            lines.into_iter().map(|line| format!("{name}|{line}")).collect()
        };
        let expected = [
            of("job_state", self.states()),
            of("results", self.results()),
            of("calls", self.calls()),
            of("checkpoints", self.parts()),
            of("tool_calls", self.tools()),
            of("workers", self.workers()),
        ]
        .concat();
        if expected == found {
            return Ok(());
        }
        let only = |these: &[String], those: &[String]| -> Vec<String> {
            these.iter().filter(|line| !those.contains(line)).cloned().collect()
        };
        Err(format!(
            "{COLUMNS}\n  only the model has:\n    {}\n  only the database has:\n    {}",
            only(&expected, &found).join("\n    "),
            only(&found, &expected).join("\n    ")
        ))
    }

    fn states(&self) -> Vec<String> {
        let yes = |on: bool| if on { "yes" } else { "no" };
        let line = |job: &Job| {
            let done = job.state == State::Done;
            [
                job.id.to_string(),
                job.state.as_str().to_owned(),
                job.run.to_string(),
                job.claims.to_string(),
                job.failures.to_string(),
                job.deferrals.to_string(),
                or_null((!done).then_some(job.crashes)),
                or_null(job.holder),
                job.priority.to_string(),
                yes(job.reason).to_owned(),
                or_null((!done).then_some(yes(job.due))),
                or_null(job.deadline.map(yes)),
            ]
            .join("|")
        };
        self.model.there().map(line).collect()
    }

    fn results(&self) -> Vec<String> {
        let line = |job: &Job| {
            let result = job.result.as_ref()?;
            Some(format!(
                "{}|{}|{}|{}|{}|{}|{}|{}",
                job.id,
                result.run,
                result.outcome,
                or_null(result.text.as_ref()),
                or_null(result.error),
                result.failures,
                result.sums.calls,
                result.sums.tokens.map(|sum| sum.to_string()).join("|"),
            ))
        };
        self.model.there().filter_map(line).collect()
    }

    fn calls(&self) -> Vec<String> {
        let lines = |job: &Job| {
            let line = |(&(claim, seq), row): (&(i64, i32), &Row)| {
                let said = !row.is_lost() || row.folded.is_some();
                let text = (said && !row.in_result).then_some("text");
                format!(
                    "{}|{claim}|{seq}|{}|{}|{}|{}|{}",
                    job.id,
                    row.run,
                    or_null(row.late.then_some("late")),
                    or_null(row.error),
                    or_null(text),
                    row.tokens.map(|sum| sum.to_string()).join("|"),
                )
            };
            job.ledger.iter().map(line).collect::<Vec<String>>()
        };
        self.model.there().flat_map(lines).collect()
    }

    fn parts(&self) -> Vec<String> {
        let lines = |job: &Job| {
            let id = job.id;
            let line = |(&(claim, seq, part), bytes): (&(i64, i32, i32), &usize)| {
                format!("{id}|{claim}|{seq}|{part}|{bytes}")
            };
            job.parts.iter().map(line).collect::<Vec<String>>()
        };
        self.model.there().flat_map(lines).collect()
    }

    fn tools(&self) -> Vec<String> {
        let lines = |job: &Job| {
            let id = job.id;
            let line = |(&(claim, seq, position), tool): (&(i64, i32, i32), &Tool)| {
                let by = or_null(tool.taken_by.as_ref());
                let result = or_null(tool.result.as_ref());
                let answered = if tool.result.is_some() { "answered" } else { "open" };
                format!("{id}|{claim}|{seq}|{position}|{}|{by}|{result}|{answered}", tool.run)
            };
            job.tools.iter().map(line).collect::<Vec<String>>()
        };
        self.model.there().flat_map(lines).collect()
    }

    fn workers(&self) -> Vec<String> {
        self.model.workers.iter().filter(|one| one.1).map(|one| one.0.to_string()).collect()
    }
}

/// What [`tables`] shows of each.
const COLUMNS: &str = "\
job_state: job, state, run, claims, failures, deferrals, crashes, holder, priority, a reason?, due?, overdue?
results: job, run, outcome, text, error, failures, calls, tokens
calls: job, claim, seq, run, late, error, text?, tokens
checkpoints: job, claim, seq, part, bytes
tool_calls: job, claim, seq, position, run, taken by, result, answered?
workers: id";

/// Reads all tables, each row with its table's name, in one go.
fn tables(ground: &Ground) -> String {
    let now = ground.at(0);
    let tokens = "input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens";
    format!(
        "SELECT 'job_state', job_id, state, run, claims, failures, deferrals,
                CASE WHEN state <> 'done' THEN crashes END, claimed_by, priority,
                CASE WHEN reason IS NULL THEN 'no' ELSE 'yes' END,
                CASE WHEN state = 'done' THEN NULL WHEN available_at <= {now} THEN 'yes' ELSE 'no' END,
                CASE WHEN deadline_at <= {now} THEN 'yes' WHEN deadline_at > {now} THEN 'no' END
           FROM job_state
          ORDER BY job_id;
         SELECT 'results', job_id, run, outcome, text, error_type, failures, calls, {tokens}
           FROM results
          ORDER BY job_id;
         SELECT 'calls', job_id, claim, seq, run, CASE WHEN late THEN 'late' END, error_type,
                CASE WHEN content IS NOT NULL THEN 'text' END, {tokens}
           FROM calls
          ORDER BY job_id, claim, seq;
         SELECT 'checkpoints', job_id, claim, seq, part, length(content)
           FROM checkpoints
          ORDER BY job_id, claim, seq, part;
         SELECT 'tool_calls', job_id, claim, seq, position, run, taken_by, result,
                CASE WHEN answered_at IS NULL THEN 'open' ELSE 'answered' END
           FROM tool_calls
          ORDER BY job_id, claim, seq, position;
         SELECT 'workers', id FROM workers ORDER BY id"
    )
}

fn or_null(value: Option<impl Display>) -> String {
    value.map_or_else(|| "NULL".to_owned(), |value| value.to_string())
}
