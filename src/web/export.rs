//! Downloads of a batch's results, a few of them in memory at a time.
//!
//! Between two pieces nothing of the database is held: who reads slowly keeps a place among the few
//! downloads that there may be, and nothing else, and not for ever. A download that cannot go on breaks
//! off; it never looks like a whole one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;

use super::Web;
use super::fault::Fault;
use super::fields::Fields;
use crate::cli::results::Format;
use crate::cli::results::format;
use crate::domain::outcome::Outcome;
use crate::store::{Texts, within};

/// Results that are read at once, at most; fewer where they are long: an answer may be megabytes.
const AT_ONCE_MAX: i64 = 64;
/// Bytes after which fewer are read at once.
const PIECE_MAX: usize = 1 << 20;
/// Longest time that a download may take.
const DOWNLOAD_MAX: Duration = Duration::from_hours(1);

/// The addresses.
pub fn routes() -> Router<Arc<Web>> {
    Router::new().route("/batch/results", get(download))
}

/// Where a download is.
struct Place {
    web: Arc<Web>,
    batch: String,
    format: Format,
    outcomes: Vec<&'static str>,
    after: i64,
    at_once: i64,
    head: Option<String>,
    until: Instant,
    _one_of_few: OwnedSemaphorePermit,
}

async fn download(State(web): State<Arc<Web>>, fields: Fields) -> Result<Response, Fault> {
    let batch = fields.text("name").ok_or_else(|| Fault::bad("name says which batch"))?;
    let (format, kind, ending) = match fields.get("format") {
        None | Some("jsonl") => (Format::Jsonl, "application/jsonl", "jsonl"),
        Some("csv") => (Format::Csv, "text/csv; charset=utf-8; header=present", "csv"),
        Some(_) => return Err(Fault::bad("format is jsonl or csv")),
    };
    let known = Outcome::ALL.map(Outcome::as_str);
    let outcomes = match fields.get("outcome") {
        None => known.to_vec(),
        Some(only) => match known.into_iter().find(|word| *word == only) {
            Some(outcome) => vec![outcome],
            None => return Err(Fault::bad(format!("outcome is one of {}", known.join(", ")))),
        },
    };
    let there = web.board()?.batch_tally(&batch, 1).await?;
    if there.open.is_empty() && there.done.is_empty() {
        return Err(Fault::missing(format!("no job has batch {batch}")));
    }
    let Ok(one_of_few) = Arc::clone(&web.downloads).try_acquire_owned() else {
        return Err(Fault::busy("other downloads are under way; try again when one of them is done"));
    };
    let name = file_name(&batch);
    let place = Place {
        web,
        batch,
        format,
        outcomes,
        after: 0,
        at_once: 1,
        head: Some(format::head(format)?),
        until: Instant::now() + DOWNLOAD_MAX,
        _one_of_few: one_of_few,
    };
    let pieces = stream::unfold(place, |mut place| async move {
        let read_max = place.web.settings.read_max;
        let piece = within(read_max, next(&mut place)).await.transpose()?;
        Some((piece.map_err(|fault| std::io::Error::other(fault.message)), place))
    });
    let disposition = format!("attachment; filename=\"{name}.{ending}\"");
    let headers = [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Returns the next piece; `None`: that was all.
async fn next(place: &mut Place) -> Result<Option<Bytes>, Fault> {
    if let Some(head) = place.head.take().filter(|head| !head.is_empty()) {
        return Ok(Some(head.into()));
    }
    if Instant::now() > place.until {
        return Err(Fault::busy("the download took too long"));
    }
    while let Some(outcome) = place.outcomes.first() {
        let board = place.web.board()?;
        let found = board.batch_results(&place.batch, outcome, place.after, place.at_once).await?;
        let Some((last, _)) = found.last() else {
            place.outcomes.remove(0);
            place.after = 0;
            continue;
        };
        place.after = *last;
        let jobs: Vec<_> = found.iter().map(|(_, job)| *job).collect();
        let mut text = String::new();
        for row in place.web.desk()?.results(&jobs, Texts::Whole).await? {
            text.push_str(&format::row(place.format, &row)?);
        }
        place.at_once = if text.len() < PIECE_MAX {
            (place.at_once * 2).min(AT_ONCE_MAX)
        } else {
            (place.at_once / 4).max(1)
        };
        if !text.is_empty() {
            return Ok(Some(text.into()));
        }
    }
    Ok(None)
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
    fn a_file_is_called_by_plain_letters() {
        assert_eq!(file_name("../../etc/\"x\r\n"), "_.._etc__x__");
    }
}
