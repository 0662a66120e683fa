//! What goes wrong, once as a page and once as JSON.

use std::time::Duration;

use askama::Template;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Web;
use super::words::{Frame, page};
use crate::cli::out::duration;
use crate::store::StoreError;

/// The kind of a fault where the database is away.
pub const AWAY: &str = "database_away";

/// Why a request was not answered as asked.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The status.
    pub status: StatusCode,
    /// For programs: one of a few words.
    pub kind: &'static str,
    /// For people: one sentence.
    pub message: String,
}

impl Fault {
    /// Makes one.
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into() }
    }

    /// What was asked makes no sense.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// What was asked for is not there.
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// The database does not answer.
    pub fn away(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, AWAY, message)
    }

    /// A change goes on, and nobody knows yet how it ends: who asks again may have it done twice.
    pub fn unheard(waited: Duration) -> Self {
        let what =
            format!("not answered within {waited:?}, and it may still be done: look before you do it again");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "unheard", what)
    }

    /// So much is asked for already that this has to wait.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
    }

    /// Returns it for programs.
    pub fn to_json(&self) -> Response {
        let body = json!({"error": {"type": self.kind, "message": self.message}}).to_string();
        let mut answer = (self.status, body).into_response();
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    }

    /// Returns it for people.
    pub fn page(&self, web: &Web, away: Option<Duration>) -> Response {
        let title = match self.status {
            StatusCode::NOT_FOUND => "Not here",
            _ if self.kind == AWAY => "The database is away",
            _ if self.kind == "too_slow" => "That took too long",
            _ if self.kind == "unheard" => "That is not known yet",
            _ if self.kind == "busy" => "Too much at once",
            _ => "That did not work",
        };
        let away = away.map(|away| duration(i64::try_from(away.as_millis()).unwrap_or(i64::MAX)));
        let mut answer = page(&Page { frame: Frame::new(web, title, ""), fault: self, away });
        *answer.status_mut() = self.status;
        answer
    }
}

impl IntoResponse for Fault {
    /// The guard gives it its face: it knows who asked.
    fn into_response(self) -> Response {
        let mut answer = self.status.into_response();
        answer.extensions_mut().insert(self);
        answer
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Unavailable(_) | StoreError::NoEntry(_) => Self::away(error.to_string()),
            StoreError::Late(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_slow", error.to_string()),
            StoreError::Locked(_) => Self::new(StatusCode::CONFLICT, "locked", error.to_string()),
            StoreError::Refused(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", error.to_string())
            }
            StoreError::Denied(_) => Self::new(StatusCode::FORBIDDEN, "no_right", error.to_string()),
            StoreError::Schema(_) | StoreError::Corrupt { .. } | StoreError::Database(_) => {
                // What the database says may hold a row's words: it goes to who asked, not to a log.
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "database", error.to_string())
            }
        }
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<StoreError>() {
            Ok(error) => error.into(),
            Err(error) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", format!("{error:#}")),
        }
    }
}

#[derive(Template)]
#[template(path = "fault.html")]
struct Page<'a> {
    frame: Frame,
    fault: &'a Fault,
    away: Option<String>,
}

/// Answers where no page is.
pub async fn nothing_here() -> Fault {
    Fault::missing("there is no such page")
}

/// Answers where a page is that is not asked so.
pub async fn not_this_way() -> Fault {
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address is not asked that way")
}
