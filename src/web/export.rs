//! Downloads of a batch's results, a page of them in memory at a time.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;

use super::Web;
use super::fault::Fault;
use super::fields::Fields;
use crate::cli::out::time_rfc3339;
use crate::cli::results::format::json_of;
use crate::domain::outcome::Outcome;
use crate::store::{ResultRow, StoreError, Texts};

/// Results in memory at once: an answer may be megabytes.
const AT_ONCE: i64 = 16;

const COLUMNS: [&str; 21] = [
    "job_id",
    "run",
    "key",
    "outcome",
    "stop_reason",
    "text",
    "output",
    "model",
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "calls",
    "continuations",
    "failures",
    "error_type",
    "error_code",
    "error",
    "request_id",
    "started_at",
    "finished_at",
];

/// The addresses.
pub fn routes() -> Router<Arc<Web>> {
    Router::new().route("/batch/results", get(download))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Jsonl,
    Csv,
}

impl Format {
    fn row(self, row: &ResultRow) -> Result<String, StoreError> {
        match self {
            Self::Jsonl => Ok(json_of(row) + "\n"),
            Self::Csv => csv(row),
        }
    }
}

/// Where a download is.
struct Place {
    web: Arc<Web>,
    batch: String,
    format: Format,
    outcomes: Vec<&'static str>,
    after: i64,
    head: Option<String>,
}

async fn download(State(web): State<Arc<Web>>, fields: Fields) -> Result<Response, Fault> {
    let batch = fields.text("name").ok_or_else(|| Fault::bad("name says which batch"))?;
    let format = match fields.get("format") {
        None | Some("jsonl") => Format::Jsonl,
        Some("csv") => Format::Csv,
        Some(_) => return Err(Fault::bad("format is jsonl or csv")),
    };
    let all = Outcome::ALL.iter().map(|outcome| outcome.as_str());
    let outcomes: Vec<&str> =
        all.filter(|word| fields.get("outcome").is_none_or(|only| only == *word)).collect();
    let head = (format == Format::Csv).then(|| line(COLUMNS.iter().copied())).transpose()?;
    let place = Place { web, batch, format, outcomes, after: 0, head };
    let name = file_name(&place.batch);
    let (kind, ending) = match format {
        Format::Jsonl => ("application/jsonl", "jsonl"),
        Format::Csv => ("text/csv; charset=utf-8; header=present", "csv"),
    };
    let pieces = stream::unfold(place, |mut place| async move {
        let piece = next(&mut place).await.transpose()?;
        Some((piece.map_err(|error| std::io::Error::other(error.to_string())), place))
    });
    let disposition = format!("attachment; filename=\"{name}.{ending}\"");
    let headers = [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Returns the next piece; `None`: that was all.
async fn next(place: &mut Place) -> Result<Option<Bytes>, StoreError> {
    if let Some(head) = place.head.take() {
        return Ok(Some(head.into()));
    }
    while let Some(outcome) = place.outcomes.first() {
        let found = place.web.board.batch_results(&place.batch, outcome, place.after, AT_ONCE).await?;
        let Some((last, _)) = found.last() else {
            place.outcomes.remove(0);
            place.after = 0;
            continue;
        };
        place.after = *last;
        let jobs: Vec<_> = found.iter().map(|(_, job)| *job).collect();
        let rows = place.web.desk.results(&jobs, Texts::Whole).await?;
        let mut text = String::new();
        for row in &rows {
            text.push_str(&place.format.row(row)?);
        }
        if !text.is_empty() {
            return Ok(Some(text.into()));
        }
    }
    Ok(None)
}

fn csv(row: &ResultRow) -> Result<String, StoreError> {
    let text = |text: &Option<String>| guarded(text.as_deref().unwrap_or_default());
    line([
        row.job.0.to_string(),
        row.run.to_string(),
        text(&row.key),
        row.outcome.clone(),
        text(&row.stop_reason),
        text(&row.text),
        text(&row.output),
        text(&row.model),
        row.usage.input.to_string(),
        row.usage.output.to_string(),
        row.usage.cache_creation.to_string(),
        row.usage.cache_read.to_string(),
        row.calls.to_string(),
        row.continuations.to_string(),
        row.failures.to_string(),
        text(&row.error_type),
        text(&row.error_code),
        text(&row.error),
        text(&row.request_id),
        row.started_at.map(time_rfc3339).unwrap_or_default(),
        time_rfc3339(row.finished_at),
    ])
}

/// A cell that a spreadsheet would take for a formula begins with an apostrophe: this file is made for
/// people. `promptmill results --format csv` is for programs, and writes what there is.
fn guarded(text: &str) -> String {
    let formula = text
        .trim_start_matches([' ', '\n'])
        .starts_with(['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠']);
    if formula { format!("'{text}") } else { text.to_owned() }
}

fn line<T: AsRef<[u8]>>(cells: impl IntoIterator<Item = T>) -> Result<String, StoreError> {
    let odd = |error: String| StoreError::Database(format!("a line of CSV cannot be written: {error}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(cells).map_err(|error| odd(error.to_string()))?;
    let bytes = writer.into_inner().map_err(|error| odd(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| odd(error.to_string()))
}

/// Returns a batch's name as a file may be called on any system.
fn file_name(batch: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let name: String = batch.chars().map(plain).take(80).collect();
    name.trim_start_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_a_spreadsheet_would_run_is_text() {
        for cell in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "＝1"] {
            assert_eq!(guarded(cell), format!("'{cell}"));
        }
        assert_eq!(guarded("a=1"), "a=1");
    }

    #[test]
    fn a_file_is_called_by_plain_letters() {
        assert_eq!(file_name("../../etc/\"x\r\n"), "_.._etc__x__");
    }
}
