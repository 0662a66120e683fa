//! What a request says: its query, and the body of a form or a JSON object, as names with texts.

use std::fmt::Write as _;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fault::Fault;
use crate::domain::job::JobId;

/// Bytes of a body: a prompt that is changed and asked again goes through it.
const BODY_MAX: usize = 4 << 20;
/// Characters of a text that is written down with what was done.
const SHORT_MAX: usize = 1_000;
/// A body that takes longer to come is not waited for.
const BODY_TIME: Duration = Duration::from_secs(10);

/// Names and texts, in their order; a name may come several times. Beside them the names that a JSON
/// object gave nothing for: `null`, or an empty list.
#[derive(Debug, Clone, Default)]
pub struct Fields(pub Vec<(String, String)>, pub Vec<String>);

/// The number in an address: of a job, or of a run.
#[derive(Debug, Clone, Copy)]
pub struct Id<T = i64>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Id<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let odd = |_| Fault::bad("this address names its job, or its run, by a whole number");
        Path::from_request_parts(parts, state).await.map(|Path(id)| Self(id)).map_err(odd)
    }
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = Fault;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Fault> {
        Self::read(request).await
    }
}

impl Fields {
    /// Reads a request.
    ///
    /// # Errors
    /// A body that is too long, or is neither a form nor a JSON object.
    pub async fn read(request: Request) -> Result<Self, Fault> {
        Self::read_up_to(request, BODY_MAX).await
    }

    /// Reads a request whose body is at most so many bytes long.
    pub async fn read_up_to(request: Request, max: usize) -> Result<Self, Fault> {
        Self::read_within(request, max, BODY_TIME).await
    }

    async fn read_within(request: Request, max: usize, longest: Duration) -> Result<Self, Fault> {
        let mut fields = Self::of_query(request.uri().query().unwrap_or_default());
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            return Ok(fields);
        }
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_json = kind.is_some_and(|kind| kind.starts_with("application/json"));
        let is_form = kind.is_none_or(|kind| kind.starts_with("application/x-www-form-urlencoded"));
        let coming = tokio::time::timeout(longest, to_bytes(request.into_body(), max));
        let body = match coming.await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => {
                let what = format!("the body is longer than {max} bytes, or broke off");
                return Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", what));
            }
            Err(_) => {
                let what = format!("the body did not come within {longest:?}");
                return Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", what));
            }
        };
        if is_json {
            let odd = || Fault::bad("the body is no JSON object of texts, numbers and lists of them");
            let Ok(Value::Object(object)) = serde_json::from_slice(&body) else { return Err(odd()) };
            for (name, value) in object {
                match value {
                    Value::Array(values) if values.is_empty() => fields.1.push(name),
                    Value::Array(values) => {
                        for value in values {
                            fields.0.push((name.clone(), scalar(value).ok_or_else(odd)?));
                        }
                    }
                    Value::Null => fields.1.push(name),
                    value => fields.0.push((name, scalar(value).ok_or_else(odd)?)),
                }
            }
        } else if is_form {
            fields.0.extend(form_urlencoded::parse(&body).into_owned());
        } else {
            return Err(Fault::bad("the body must be application/json or application/x-www-form-urlencoded"));
        }
        Ok(fields)
    }

    /// Reads a query.
    pub fn of_query(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect(), Vec::new())
    }

    /// Returns a field that is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.raw(name).filter(|text| !text.is_empty())
    }

    /// Returns a field, also an empty one.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }

    /// Returns a field as an owned text.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    /// Returns a field that is not empty, and that is short enough for the book of what people did.
    ///
    /// # Errors
    /// A text that is too long.
    pub fn short(&self, name: &str) -> Result<Option<&str>, Fault> {
        match self.get(name) {
            Some(text) if text.chars().nth(SHORT_MAX).is_some() => {
                Err(Fault::bad(format!("{name} is longer than {SHORT_MAX} characters")))
            }
            text => Ok(text),
        }
    }

    /// Returns a whole number.
    ///
    /// # Errors
    /// A field that is there and is none.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Fault> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.trim().parse().map(Some).map_err(|_| Fault::bad(format!("{name} must be a whole number")))
    }

    /// Whether a box is ticked.
    pub fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|text| matches!(text, "on" | "true" | "1" | "yes"))
    }

    /// Returns the jobs that are named.
    ///
    /// # Errors
    /// An id that is none.
    pub fn jobs(&self, name: &str) -> Result<Vec<JobId>, Fault> {
        let named = self.0.iter().filter(|(known, text)| known == name && !text.is_empty());
        let id =
            |text: &str| text.trim().parse().map(JobId).map_err(|_| Fault::bad("a job is named by its id"));
        named.map(|(_, text)| id(text)).collect()
    }
}

fn scalar(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// Returns a path with a query of those pairs that say something.
pub fn link(path: &str, pairs: &[(&str, &str)]) -> String {
    let said = pairs.iter().filter(|(_, text)| !text.is_empty());
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(said).finish();
    let mut link = path.to_owned();
    if !query.is_empty() {
        // Writing into a String cannot fail.
        write!(link, "?{query}").ok();
    }
    link
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn a_body_that_is_late_is_not_one_that_is_long() {
        let status = async |body: Body| {
            let request = Request::builder().method(Method::POST).body(body).expect("a request");
            let read = Fields::read_within(request, 9, Duration::from_millis(1)).await;
            read.err().map(|fault| fault.status)
        };
        let late = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(status(late).await, Some(StatusCode::REQUEST_TIMEOUT));
        assert_eq!(status(Body::from("a=23456789")).await, Some(StatusCode::PAYLOAD_TOO_LARGE));
        assert_eq!(status(Body::from("a=2345678")).await, None);
    }
}
