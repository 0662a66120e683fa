//! A job as something to paste elsewhere: an INSERT, and a call of the API without its key.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::store::NewJob;

/// Returns the statement that asks the same again. `key` is left out: it is taken.
pub fn sql(asked: &NewJob) -> String {
    let max_tokens = asked.max_tokens.map(|n| n.to_string());
    let priority = asked.priority.filter(|n| *n != 0).map(|n| n.to_string());
    let text = |text: &Option<String>| text.as_deref().map(|text| format!("'{}'", text.replace('\'', "''")));
    let queue = asked.queue.clone().filter(|queue| queue != "default");
    let columns = [
        ("queue", text(&queue)),
        ("batch", text(&asked.batch)),
        ("model", text(&asked.model)),
        ("max_tokens", max_tokens),
        ("priority", priority),
        ("prompt", text(&asked.prompt)),
        ("system", text(&asked.system)),
        ("params", text(&asked.params)),
        ("policy", text(&asked.policy)),
        ("metadata", text(&asked.metadata)),
    ];
    let said: Vec<(&str, String)> =
        columns.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let names: Vec<&str> = said.iter().map(|(name, _)| *name).collect();
    let values: Vec<&str> = said.iter().map(|(_, value)| value.as_str()).collect();
    format!("INSERT INTO jobs ({})\nVALUES ({});", names.join(", "), values.join(", "))
}

/// Returns the call of a shell; the key comes from its environment.
pub fn curl(asked: &NewJob, default_model: &str, base_url: &str) -> String {
    let params: Map<String, Value> =
        asked.params.as_deref().and_then(|params| serde_json::from_str(params).ok()).unwrap_or_default();
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(asked.model.as_deref().unwrap_or(default_model)));
    body.insert("max_tokens".to_owned(), json!(asked.max_tokens.unwrap_or(4096)));
    if let Some(system) = &asked.system {
        body.insert("system".to_owned(), json!(system));
    }
    if let Some(prompt) = &asked.prompt {
        body.insert("messages".to_owned(), json!([{"role": "user", "content": prompt}]));
    }
    body.extend(params);
    body.remove("stream");
    let body = Value::Object(body).to_string();
    debug_assert!(serde_json::from_str::<&RawValue>(&body).is_ok(), "what we write is JSON");
    format!(
        "curl {base_url}/v1/messages \\\n  -H \"x-api-key: $ANTHROPIC_API_KEY\" \\\n  -H 'anthropic-version: 2023-06-01' \\\n  \
         -H 'content-type: application/json' \\\n  -d '{}'",
        body.replace('\'', r"'\''")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> NewJob {
        NewJob {
            queue: Some("default".to_owned()),
            batch: Some("it's".to_owned()),
            prompt: Some("Say 'hi'; DROP TABLE".to_owned()),
            params: Some(r#"{"stop_sequences":["x"],"stream":true}"#.to_owned()),
            ..NewJob::default()
        }
    }

    #[test]
    fn sql_quotes_and_leaves_defaults_out() {
        assert_eq!(
            sql(&asked()),
            "INSERT INTO jobs (batch, prompt, params)\nVALUES ('it''s', 'Say ''hi''; DROP TABLE', \
             '{\"stop_sequences\":[\"x\"],\"stream\":true}');"
        );
    }

    #[test]
    fn a_call_can_be_pasted_into_a_shell_and_holds_no_key() {
        let curl = curl(&asked(), "claude-x", "https://api.example");
        assert!(curl.contains("$ANTHROPIC_API_KEY"), "{curl}");
        assert!(curl.ends_with(
            r#"-d '{"model":"claude-x","max_tokens":4096,"messages":[{"role":"user","content":"Say '\''hi'\''; DROP TABLE"}],"stop_sequences":["x"]}'"#
        ), "{curl}");
    }
}
