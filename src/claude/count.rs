//! `POST /v1/messages/count_tokens`: the body made of a call's own, and the answer read.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The fields of a call that `count_tokens` takes: it refuses every other one. The last three stand in a
/// body only where a beta is switched on, and are taken then (Python SDK 2.12,
/// `types/message_count_tokens_params.py` and `types/beta/message_count_tokens_params.py`).
const FIELDS: [&str; 12] = [
    "model",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "cache_control",
    "speed",
    "context_management",
    "mcp_servers",
    "compaction",
];

/// Returns the body that has a call's input counted, its values byte for byte; `None`: the call's body
/// is no JSON object.
pub fn body(of: &[u8]) -> Option<Vec<u8>> {
    let fields: IndexMap<String, &RawValue> = serde_json::from_slice(of).ok()?;
    let mut out = Vec::with_capacity(of.len());
    out.push(b'{');
    for (name, value) in fields.iter().filter(|(name, _)| FIELDS.contains(&name.as_str())) {
        if out.len() > 1 {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        out.extend_from_slice(value.get().as_bytes());
    }
    out.push(b'}');
    Some(out)
}

/// Reads the answer; `None`: it is something else.
pub fn tokens(body: &[u8]) -> Option<i64> {
    #[derive(Deserialize)]
    struct Counted {
        input_tokens: i64,
    }
    let counted: Counted = serde_json::from_slice(body).ok()?;
    Some(counted.input_tokens).filter(|tokens| *tokens >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_what_is_read_byte_for_byte_and_nothing_else() {
        let call = br#"{"model":"m","max_tokens":5,"stream":true,"messages":[ {"role":"user","content":"x\u00e9"} ],
            "system":[{"type":"text","text":"s"}],"thinking":{"type":"adaptive"},"temperature":1.0,"stop_sequences":["a"],
            "metadata":{"user_id":"u"},"service_tier":"auto","container":"c","tools":[{"z":1,"a":1.50}],
            "output_config":{"effort":"low"},"inference_geo":"us"}"#;
        let counted = body(call).map(|body| String::from_utf8(body).expect("UTF-8")).unwrap_or_default();
        let expected = r#"{"model":"m","messages":[ {"role":"user","content":"x\u00e9"} ],"system":[{"type":"text","text":"s"}],"thinking":{"type":"adaptive"},"tools":[{"z":1,"a":1.50}],"output_config":{"effort":"low"}}"#;
        assert_eq!(counted, expected);
        assert_eq!(body(b"[]"), None);
    }

    #[test]
    fn a_count_is_a_number_that_can_be_one() {
        for (body, read) in [
            (r#"{"input_tokens":14}"#, Some(14)),
            (r#"{"input_tokens":14,"context_management":{"original_input_tokens":20}}"#, Some(14)),
            (r#"{"input_tokens":-1}"#, None),
            (r#"{"input_tokens":"14"}"#, None),
            ("{}", None),
            ("<html>", None),
        ] {
            assert_eq!(tokens(body.as_bytes()), read, "{body}");
        }
    }
}
