//! A page of `GET /v1/models`, read: what is not as it should be is left out quietly. Other servers
//! list names and nothing else.

use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::Value;

use crate::domain::model::{Lifecycle, Listed};

/// The query that lists every model. Retired ones are listed only when they are asked for, by a
/// `lifecycle` for each stage (Python SDK 2.12, `types/model_list_params.py`: "`retired` models appear
/// only when `retired` is requested explicitly"; lists are written with brackets, `_client.py`).
pub const ALL: [(&str, &str); 4] =
    [("limit", "1000"), ("lifecycle[]", "active"), ("lifecycle[]", "deprecated"), ("lifecycle[]", "retired")];

/// The same for servers that refuse a parameter they do not know.
pub const PLAIN: [(&str, &str); 1] = [("limit", "1000")];

/// A page of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Its models, newest first.
    pub models: Vec<Listed>,
    /// What the next page is asked after; `None`: this is the last.
    pub next: Option<String>,
}

/// Reads a page; `None`: it is no JSON object or array.
pub fn page(body: &[u8]) -> Option<Page> {
    let page: Value = serde_json::from_slice(body).ok()?;
    if !page.is_object() && !page.is_array() {
        return None;
    }
    let data = page.get("data").and_then(Value::as_array);
    let models = data.map(|data| data.iter().filter_map(listed).collect()).unwrap_or_default();
    let more = page.get("has_more").and_then(Value::as_bool).unwrap_or(false);
    let next = page.get("last_id").and_then(Value::as_str).filter(|_| more).map(str::to_owned);
    Some(Page { models, next })
}

fn listed(model: &Value) -> Option<Listed> {
    let tokens = |field: &str| {
        let tokens = model.get(field).and_then(Value::as_i64);
        tokens.filter(|tokens| (1..=i64::from(i32::MAX)).contains(tokens))
    };
    let time = |field: &str| model.get(field).and_then(Value::as_str)?.parse::<Timestamp>().ok();
    let supported = model.pointer("/capabilities/structured_outputs/supported");
    Some(Listed {
        id: model.get("id")?.as_str().filter(|id| !id.is_empty())?.to_owned(),
        lifecycle: model.get("lifecycle").and_then(Value::as_str).map(Lifecycle::read),
        deprecated_at: time("deprecated_at"),
        retires_at: time("retires_at"),
        max_input_tokens: tokens("max_input_tokens"),
        max_tokens: tokens("max_tokens"),
        structured_outputs: supported.and_then(Value::as_bool),
    })
}

/// Returns a time of a header as the catalogue takes it.
pub fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(page: &Page) -> Vec<&str> {
        page.models.iter().map(|model| model.id.as_str()).collect()
    }

    #[test]
    fn a_model_is_read_with_all_that_is_said_of_it() {
        let body = br#"{"data":[{"type":"model","id":"claude-x","display_name":"X","created_at":"2026-01-01T00:00:00Z",
            "lifecycle":"deprecated","deprecated_at":"2026-06-01T00:00:00Z","retires_at":"2026-12-01T00:00:00Z",
            "line":"x","max_input_tokens":200000,"max_tokens":64000,
            "capabilities":{"batch":{"supported":true},"structured_outputs":{"supported":false}}}],
            "has_more":true,"first_id":"claude-x","last_id":"claude-x"}"#;
        let expected = Listed {
            id: "claude-x".to_owned(),
            lifecycle: Some(Lifecycle::Deprecated),
            deprecated_at: "2026-06-01T00:00:00Z".parse().ok(),
            retires_at: "2026-12-01T00:00:00Z".parse().ok(),
            max_input_tokens: Some(200_000),
            max_tokens: Some(64_000),
            structured_outputs: Some(false),
        };
        assert_eq!(page(body), Some(Page { models: vec![expected], next: Some("claude-x".to_owned()) }));
    }

    #[test]
    fn what_is_not_as_it_should_be_is_left_out_and_the_rest_is_kept() {
        let bare = |id: &str| Listed { id: id.to_owned(), ..Listed::default() };
        for odd in [
            r#"{"id":"a","object":"model","owned_by":"somebody","created":1}"#,
            r#"{"id":"a","lifecycle":null,"retires_at":null,"max_tokens":null,"capabilities":null}"#,
            r#"{"id":"a","lifecycle":7,"retires_at":"soon","deprecated_at":1,"max_tokens":"many"}"#,
            r#"{"id":"a","max_tokens":-1,"max_input_tokens":0,"capabilities":[]}"#,
            r#"{"id":"a","max_tokens":1e300,"max_input_tokens":9e18,"capabilities":{"structured_outputs":true}}"#,
        ] {
            let body = format!(r#"{{"data":[{odd},7,{{}},{{"id":""}},{{"id":null}},{{"id":"b"}}]}}"#);
            let read = page(body.as_bytes()).unwrap_or_default();
            assert_eq!(read, Page { models: vec![bare("a"), bare("b")], next: None }, "{odd}");
        }
        for (body, read) in [
            ("{}", Some(Page::default())),
            ("[]", Some(Page::default())),
            (r#"{"data":{}}"#, Some(Page::default())),
            (r#"{"data":[],"has_more":true}"#, Some(Page::default())),
            (r#"{"data":[],"has_more":false,"last_id":"a"}"#, Some(Page::default())),
            ("<html>", None),
            ("", None),
            ("7", None),
            (r#"{"data":["#, None),
        ] {
            assert_eq!(page(body.as_bytes()), read, "{body}");
        }
        assert_eq!(ids(&page(br#"{"data":[{"id":"x"}]}"#).unwrap_or_default()), ["x"]);
    }
}
