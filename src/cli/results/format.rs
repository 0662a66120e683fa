//! One result in each format. Pure text: nothing here writes or asks.

use std::borrow::Cow;

use anyhow::Context as _;
use comfy_table::{ColumnConstraint, Table};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::Format;
use crate::cli::out::{cell, cell_number, number, one_line, table, time_rfc3339};
use crate::domain::outcome::Outcome;
use crate::domain::stop::StopReason;
use crate::store::ResultRow;

/// Characters of a text that a table shows.
const TEXT_MAX: usize = 60;

const CSV_COLUMNS: [&str; 26] = [
    "job_id",
    "run",
    "seq",
    "queue",
    "batch",
    "key",
    "outcome",
    "stop_reason",
    "stop_sequence",
    "text",
    "output",
    "model",
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "calls",
    "continuations",
    "seams",
    "failures",
    "error_type",
    "error_code",
    "error",
    "request_id",
    "started_at",
    "finished_at",
];

/// Returns what stands before the first result.
pub fn head(format: Format) -> anyhow::Result<String> {
    match format {
        Format::Table | Format::Jsonl | Format::Batch => Ok(String::new()),
        Format::Csv => csv_line(&CSV_COLUMNS.map(Cow::Borrowed)),
    }
}

/// Returns one result as it stands in a stream of them, with its line end.
pub fn row(format: Format, row: &ResultRow) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => {
            let said = row.text.as_deref().or(row.error.as_deref()).unwrap_or_default();
            format!(
                "{}  {}  {}  {}\n",
                row.job,
                row.outcome,
                number(row.usage.output),
                one_line(said, TEXT_MAX * 2)
            )
        }
        Format::Jsonl => json_of(row) + "\n",
        Format::Csv => csv(row)?,
        Format::Batch => batch(row) + "\n",
    })
}

/// The table of results.
pub struct Lines(Table);

impl Lines {
    /// Returns a table without rows.
    pub fn new() -> Self {
        Self(table(&[
            "job",
            "batch",
            "outcome",
            "stop reason",
            "model",
            "in",
            "out",
            "calls",
            "text or error",
        ]))
    }

    /// Adds a result.
    pub fn push(&mut self, row: &ResultRow) {
        let said = match (&row.text, &row.error) {
            (Some(text), _) if row.outcome == Outcome::Complete.as_str() => text.as_str(),
            (_, Some(error)) => error,
            (Some(text), None) => text,
            (None, None) => "",
        };
        self.0.add_row([
            cell(&row.job.to_string()),
            cell(&one_line(row.batch.as_deref().unwrap_or_default(), 40)),
            cell(&row.outcome),
            cell(row.stop_reason.as_deref().unwrap_or_default()),
            cell(row.model.as_deref().unwrap_or_default()),
            cell_number(row.usage.input + row.usage.cache_creation + row.usage.cache_read),
            cell_number(row.usage.output),
            cell_number(row.calls),
            cell(&one_line(said, TEXT_MAX)),
        ]);
    }

    /// Keeps to one line a result where a terminal is narrow: what matters least goes, and the text is cut.
    pub fn fit(&mut self) {
        let Some(width) = self.0.width() else { return };
        for (width_min, column) in [(110, 3), (110, 7), (90, 4), (60, 5), (60, 6)] {
            if width < width_min
                && let Some(column) = self.0.column_mut(column)
            {
                column.set_constraint(ColumnConstraint::Hidden);
            }
        }
        self.0.set_truncation_indicator("…");
        for row in self.0.row_iter_mut() {
            row.max_height(1);
        }
    }

    /// Returns the table as text; nothing where it has no rows.
    pub fn to_text(&self) -> String {
        if self.0.row_count() == 0 { String::new() } else { format!("{}\n", self.0) }
    }
}

/// A result as a JSON object: the columns of `results`, JSON columns as JSON, times as RFC 3339.
#[derive(Serialize)]
struct Whole<'a> {
    job_id: i64,
    run: i64,
    seq: i64,
    queue: &'a str,
    batch: Option<&'a str>,
    key: Option<&'a str>,
    outcome: &'a str,
    stop_reason: Option<&'a str>,
    stop_sequence: Option<&'a str>,
    stop_details: Option<Cow<'a, RawValue>>,
    text: Option<&'a str>,
    content: Option<Cow<'a, RawValue>>,
    output: Option<Cow<'a, RawValue>>,
    sanitised: i64,
    dropped: i64,
    model: Option<&'a str>,
    input_tokens: i64,
    output_tokens: i64,
    cache_creation_input_tokens: i64,
    cache_read_input_tokens: i64,
    calls: i64,
    continuations: i64,
    seams: i64,
    failures: i64,
    error_type: Option<&'a str>,
    error_code: Option<&'a str>,
    error: Option<&'a str>,
    request_id: Option<&'a str>,
    started_at: Option<String>,
    finished_at: String,
    /// No column of `results`: only where the job's prompt is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted_at: Option<String>,
}

/// Returns a result as one line of JSON.
pub fn json_of(row: &ResultRow) -> String {
    let whole = Whole {
        job_id: row.job.0,
        run: row.run,
        seq: row.seq,
        queue: &row.queue,
        batch: row.batch.as_deref(),
        key: row.key.as_deref(),
        outcome: &row.outcome,
        stop_reason: row.stop_reason.as_deref(),
        stop_sequence: row.stop_sequence.as_deref(),
        stop_details: row.stop_details.as_deref().map(raw),
        text: row.text.as_deref(),
        content: row.content.as_deref().map(raw),
        output: row.output.as_deref().map(raw),
        sanitised: row.sanitised,
        dropped: row.dropped,
        model: row.model.as_deref(),
        input_tokens: row.usage.input,
        output_tokens: row.usage.output,
        cache_creation_input_tokens: row.usage.cache_creation,
        cache_read_input_tokens: row.usage.cache_read,
        calls: row.calls,
        continuations: row.continuations,
        seams: row.seams,
        failures: row.failures,
        error_type: row.error_type.as_deref(),
        error_code: row.error_code.as_deref(),
        error: row.error.as_deref(),
        request_id: row.request_id.as_deref(),
        started_at: row.started_at.map(time_rfc3339),
        finished_at: time_rfc3339(row.finished_at),
        redacted_at: row.redacted_at.map(time_rfc3339),
    };
    serde_json::to_string(&whole).expect("strings, numbers and raw JSON always serialise")
}

/// Returns stored JSON as it is, on one line; what is not JSON (a row changed by hand) as a JSON string.
fn raw(text: &str) -> Cow<'_, RawValue> {
    // A line end in stored JSON can only be white space between tokens.
    if text.contains(['\n', '\r']) {
        let line: String = text.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }).collect();
        if let Ok(value) = RawValue::from_string(line) {
            return Cow::Owned(value);
        }
    }
    serde_json::from_str::<&RawValue>(text).map_or_else(
        |_| Cow::Owned(serde_json::value::to_raw_value(text).expect("a string always serialises")),
        Cow::Borrowed,
    )
}

fn csv(row: &ResultRow) -> anyhow::Result<String> {
    let text = |value: &Option<String>| Cow::Owned(guarded(value.as_deref().unwrap_or_default()));
    csv_line(&[
        Cow::Owned(row.job.to_string()),
        Cow::Owned(row.run.to_string()),
        Cow::Owned(row.seq.to_string()),
        Cow::Owned(guarded(&row.queue)),
        text(&row.batch),
        text(&row.key),
        Cow::Borrowed(&row.outcome),
        text(&row.stop_reason),
        text(&row.stop_sequence),
        text(&row.text),
        text(&row.output),
        text(&row.model),
        Cow::Owned(row.usage.input.to_string()),
        Cow::Owned(row.usage.output.to_string()),
        Cow::Owned(row.usage.cache_creation.to_string()),
        Cow::Owned(row.usage.cache_read.to_string()),
        Cow::Owned(row.calls.to_string()),
        Cow::Owned(row.continuations.to_string()),
        Cow::Owned(row.seams.to_string()),
        Cow::Owned(row.failures.to_string()),
        text(&row.error_type),
        text(&row.error_code),
        text(&row.error),
        text(&row.request_id),
        Cow::Owned(row.started_at.map(time_rfc3339).unwrap_or_default()),
        Cow::Owned(time_rfc3339(row.finished_at)),
    ])
}

/// A cell that a spreadsheet would take for a formula begins with an apostrophe, wherever the file is
/// opened. Blanks before the sign do not hide it, nor is it hidden in full width.
fn guarded(text: &str) -> String {
    let blank = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '\u{feff}' | '\u{200b}');
    let formula = text.starts_with(['\t', '\r'])
        || text.trim_start_matches(blank).starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    if formula { format!("'{text}") } else { text.to_owned() }
}

fn csv_line(fields: &[Cow<'_, str>; CSV_COLUMNS.len()]) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields.iter().map(|field| field.as_bytes())).context("failed to write a CSV row")?;
    let bytes = writer.into_inner().context("failed to write a CSV row")?;
    String::from_utf8(bytes).context("failed to write a CSV row")
}

/// Returns a result in the shape of the official batch results.
///
/// `succeeded` only where the stop reason alone tells the truth, since its readers look at nothing
/// else: an answer that is not complete and says `end_turn` would pass for a whole one.
fn batch(row: &ResultRow) -> String {
    let outcome = Outcome::parse(&row.outcome);
    let stop = row.stop_reason.as_deref().map(StopReason::from);
    let honest = match stop {
        None | Some(StopReason::EndTurn | StopReason::StopSequence) => outcome == Some(Outcome::Complete),
        Some(_) => matches!(
            outcome,
            Some(
                Outcome::Complete
                    | Outcome::Truncated
                    | Outcome::Refused
                    | Outcome::NeedsTool
                    | Outcome::Paused
                    | Outcome::Unreviewed
            )
        ),
    };
    let result = match outcome {
        _ if honest => json!({"type": "succeeded", "message": message(row)}),
        Some(Outcome::Cancelled) => json!({"type": "canceled"}),
        Some(Outcome::Expired) => json!({"type": "expired"}),
        _ => {
            let mut error = json!({
                "type": row.error_type.as_deref().unwrap_or(&row.outcome),
                "message": row.error.as_deref().unwrap_or("no reason was recorded"),
            });
            if let Some(code) = &row.error_code {
                error["details"] = json!({"error_code": code});
            }
            let error = json!({"type": "error", "error": error, "request_id": row.request_id});
            json!({"type": "errored", "error": error})
        }
    };
    json!({"custom_id": custom_id(row), "result": result}).to_string()
}

fn message(row: &ResultRow) -> serde_json::Value {
    let content = row
        .content
        .as_deref()
        .and_then(|content| serde_json::from_str::<serde_json::Value>(content).ok())
        .unwrap_or_else(|| match &row.text {
            Some(text) => json!([{"type": "text", "text": text}]),
            None => json!([]),
        });
    let mut message = json!({
        "id": row.message_id,
        "type": "message",
        "role": "assistant",
        "model": row.model,
        "content": content,
        "stop_reason": row.stop_reason,
        "stop_sequence": row.stop_sequence,
        "usage": {
            "input_tokens": row.usage.input,
            "output_tokens": row.usage.output,
            "cache_creation_input_tokens": row.usage.cache_creation,
            "cache_read_input_tokens": row.usage.cache_read,
        },
    });
    if let Some(details) = row.stop_details.as_deref().and_then(|text| serde_json::from_str(text).ok()) {
        message["stop_details"] = details;
    }
    message
}

/// Returns the key without its batch: what `enqueue` was given; a job without a key has its id.
fn custom_id(row: &ResultRow) -> String {
    let Some(key) = &row.key else { return row.job.to_string() };
    row.batch
        .as_deref()
        .and_then(|batch| key.strip_prefix(batch)?.strip_prefix('/'))
        .filter(|id| !id.is_empty())
        .unwrap_or(key)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::JobId;
    use crate::domain::outcome::Usage;
    use crate::store::Moment;

    fn result(outcome: Outcome, stop: Option<&str>) -> ResultRow {
        ResultRow {
            job: JobId(7),
            run: 1,
            seq: 3,
            queue: "default".into(),
            batch: Some("b".into()),
            key: Some("b/x/1".into()),
            outcome: outcome.as_str().into(),
            stop_reason: stop.map(str::to_owned),
            stop_sequence: None,
            stop_details: None,
            text: Some("=1+1".into()),
            content: Some("[{\"type\":\"text\",\n\"text\":\"=1+1\"}]".into()),
            output: None,
            sanitised: 0,
            dropped: 0,
            model: Some("m".into()),
            usage: Usage { input: 1, output: 2, cache_creation: 3, cache_read: 4 },
            calls: 1,
            continuations: 0,
            seams: 0,
            failures: 0,
            error_type: None,
            error_code: None,
            error: Some("why".into()),
            request_id: None,
            message_id: Some("msg_1".into()),
            started_at: None,
            finished_at: Moment(0),
            redacted_at: None,
        }
    }

    fn kind(outcome: Outcome, stop: Option<&str>) -> String {
        let line: serde_json::Value =
            serde_json::from_str(&batch(&result(outcome, stop))).expect("it is JSON");
        assert_eq!(line["custom_id"], "x/1");
        line["result"]["type"].as_str().expect("it has a type").to_owned()
    }

    #[test]
    fn a_batch_result_never_passes_off_a_cut_answer_as_a_whole_one() {
        assert_eq!(kind(Outcome::Complete, Some("end_turn")), "succeeded");
        assert_eq!(kind(Outcome::Truncated, Some("max_tokens")), "succeeded");
        assert_eq!(kind(Outcome::Refused, Some("refusal")), "succeeded");
        for outcome in [Outcome::Truncated, Outcome::Empty, Outcome::InvalidOutput] {
            assert_eq!(kind(outcome, Some("end_turn")), "errored", "{outcome}");
        }
        assert_eq!(kind(Outcome::Truncated, None), "errored");
        assert_eq!(kind(Outcome::Failed, None), "errored");
        assert_eq!(kind(Outcome::Failed, Some("max_tokens")), "errored");
        assert_eq!(kind(Outcome::Cancelled, None), "canceled");
        assert_eq!(kind(Outcome::Cancelled, Some("max_tokens")), "canceled");
        assert_eq!(kind(Outcome::Expired, None), "expired");
    }

    #[test]
    fn json_lines_hold_json_columns_as_json_on_one_line() {
        let line = json_of(&result(Outcome::Complete, Some("end_turn")));
        assert!(!line.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
        assert_eq!(value["content"][0]["text"], "=1+1");
        let mut row = result(Outcome::Complete, None);
        row.output = Some("{broken".into());
        let value: serde_json::Value = serde_json::from_str(&json_of(&row)).expect("it is JSON");
        assert_eq!(value["output"], "{broken");
    }

    #[test]
    fn a_spreadsheet_does_not_take_an_answer_for_a_formula() {
        let line = csv(&result(Outcome::Complete, None)).expect("it fits a row");
        assert!(line.contains(",'=1+1,"), "{line}");
        for cell in [
            "=1+1",
            "+1",
            "-1",
            "@SUM(A1)",
            "\t=1",
            "\tx",
            "\r=1",
            " =1",
            "\n=1",
            "\u{a0}=1",
            "\u{feff}=1",
            "\u{0}=1",
            "＝1",
            " ＠1",
        ] {
            assert_eq!(guarded(cell), format!("'{cell}"));
        }
        assert_eq!(guarded(" a=1"), " a=1");
        assert_eq!(head(Format::Csv).expect("it fits a row").split(',').count(), 26);
    }
}
