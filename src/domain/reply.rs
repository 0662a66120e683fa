//! What the API answered: content blocks kept as they came, and the text in them decoded.
//!
//! A block's JSON is never interpreted beyond what we need: unknown blocks and fields round-trip.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::outcome::{Failure, Usage};
use crate::domain::pace::RateLimits;
use crate::domain::stop::StopReason;

/// One content block of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The block's `type` (`text`, `thinking`, `tool_use`, …; unknown words as they came).
    pub kind: String,
    /// The whole block as JSON text: an object that holds exactly what was received.
    pub json: String,
    /// The decoded text of a `text` block.
    pub text: Option<String>,
    /// Whether its `content_block_stop` came. A block that is not whole is never sent back,
    /// but for text.
    pub whole: bool,
}

impl Block {
    /// Reads a block from its JSON text; `None` where it is not an object with a `type`. A tool call
    /// without an id, or whose input is no object, is not whole, nor is thinking without a signature: it
    /// was cut, and the API refuses it.
    pub fn read(json: &str, whole: bool) -> Option<Self> {
        #[derive(Deserialize)]
        struct Shape<'a> {
            #[serde(rename = "type", borrow)]
            kind: &'a RawValue,
            #[serde(borrow)]
            text: Option<&'a RawValue>,
            #[serde(borrow)]
            id: Option<&'a RawValue>,
            #[serde(borrow)]
            input: Option<&'a RawValue>,
            #[serde(borrow)]
            signature: Option<&'a RawValue>,
        }
        let Shape { kind, text, id, input, signature } = serde_json::from_str(json).ok()?;
        // By the same rule as the fold's, or a block that it took would be lost on its way through the ledger.
        let kind = Some(kind.get()).filter(|kind| kind.starts_with('"')).map(decode_string)?;
        let text = text.map(RawValue::get).filter(|text| text.starts_with('"'));
        let text = (kind == "text").then(|| text.map(decode_string).unwrap_or_default());
        let is_cut_call = kind.ends_with("tool_use")
            && (id.is_none() || input.is_none_or(|input| !input.get().starts_with('{')));
        let is_cut_thought =
            kind == "thinking" && signature.is_none_or(|signed| matches!(signed.get(), "null" | "\"\""));
        let whole = whole && !is_cut_call && !is_cut_thought;
        Some(Self { kind, json: json.to_owned(), text, whole })
    }

    /// Makes `whole` what it will be when the block is read back from the ledger, which holds its JSON
    /// alone: else a conversation that goes on after a crash would ask something else.
    pub fn keep(&mut self) {
        if self.text.is_none() {
            self.whole = Self::read(&self.json, true).is_some_and(|block| block.whole);
        }
    }

    /// Returns a text block.
    pub fn text(text: &str) -> Self {
        let json = serde_json::json!({"type": "text", "text": text}).to_string();
        Self { kind: "text".to_owned(), json, text: Some(text.to_owned()), whole: true }
    }

    /// Whether it is the model's thinking, shown or not.
    pub fn is_thinking(&self) -> bool {
        matches!(self.kind.as_str(), "thinking" | "redacted_thinking")
    }

    /// Reads the blocks of a JSON array text, as `calls.content` holds them. What is not a block
    /// is left out.
    pub fn read_all(json: &str) -> Vec<Self> {
        let raw: Vec<Box<RawValue>> = serde_json::from_str(json).unwrap_or_default();
        raw.iter().filter_map(|block| Self::read(block.get(), true)).collect()
    }

    /// Returns the blocks as one JSON array text.
    pub fn write_all(blocks: &[Self]) -> String {
        let mut out = String::with_capacity(blocks.iter().map(|b| b.json.len() + 1).sum::<usize>() + 2);
        out.push('[');
        for (at, block) in blocks.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(&block.json);
        }
        out.push(']');
        out
    }
}

/// A message of the API, whole or as far as it came.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// `id`.
    pub message_id: Option<String>,
    /// `model`: the one that answered.
    pub model: Option<String>,
    /// `content`, in order.
    pub content: Vec<Block>,
    /// `stop_reason`; `None` while none came.
    pub stop: Option<StopReason>,
    /// `stop_sequence`.
    pub stop_sequence: Option<String>,
    /// `stop_details`: JSON text as received.
    pub stop_details: Option<String>,
    /// Token counts; the last ones that came.
    pub usage: Usage,
    /// `usage`: JSON text; the object of `message_start` overlaid with those of `message_delta`.
    pub usage_raw: Option<String>,
    /// `container`: JSON text as received.
    pub container: Option<String>,
    /// Whether the stream ended after a stop reason but without `message_stop`.
    pub tail_missing: bool,
}

impl Reply {
    /// Returns the text blocks' text, joined.
    pub fn text(&self) -> String {
        self.content.iter().filter_map(|block| block.text.as_deref()).collect()
    }

    /// Whether anything of the answer came.
    pub fn is_empty(&self) -> bool {
        self.content.is_empty() && self.stop.is_none()
    }
}

/// One exchange with the API, whole or not: everything that was paid for is in it.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// When the request was handed to the network.
    pub sent: Instant,
    /// When the first content event came.
    pub first_token: Option<Instant>,
    /// When it ended.
    pub ended: Instant,
    /// HTTP status, where one came.
    pub http_status: Option<u16>,
    /// `request-id` header, else `request_id` of an error body.
    pub request_id: Option<String>,
    /// The rate limits that the response's headers told, whatever its status.
    pub limits: Option<RateLimits>,
    /// What arrived; empty where nothing did.
    pub reply: Reply,
    /// How it ended: `Ok` only with a stop reason.
    pub end: Result<(), Failure>,
}

impl Exchange {
    /// Returns how long it took.
    pub fn took(&self) -> Duration {
        self.ended.saturating_duration_since(self.sent)
    }
}

/// Decodes a JSON string literal (with its quotes), whatever escapes stand in it: a lone
/// surrogate, which `serde_json` refuses, becomes U+FFFD, and so does a broken escape.
pub fn decode_string(literal: &str) -> String {
    serde_json::from_str(literal).unwrap_or_else(|_| decode_leniently(literal))
}

fn decode_leniently(literal: &str) -> String {
    let inner = literal.strip_prefix('"').unwrap_or(literal);
    let inner = inner.strip_suffix('"').unwrap_or(inner);
    let mut units: Vec<u16> = Vec::with_capacity(inner.len());
    let mut chars = inner.chars();
    let mut buffer = [0_u16; 2];
    while let Some(c) = chars.next() {
        if c != '\\' {
            units.extend_from_slice(c.encode_utf16(&mut buffer));
            continue;
        }
        let unit = match chars.next() {
            Some('n') => 0x0a,
            Some('r') => 0x0d,
            Some('t') => 0x09,
            Some('b') => 0x08,
            Some('f') => 0x0c,
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                u16::from_str_radix(&digits, 16).unwrap_or(0xfffd)
            }
            Some(c @ ('"' | '\\' | '/')) => c as u16,
            _ => 0xfffd,
        };
        units.push(unit);
    }
    String::from_utf16_lossy(&units)
}

/// Replaces U+0000, which Postgres cannot store as text, by U+FFFD; returns the text and how many
/// replacement characters are in it.
pub fn sanitise<'a>(text: impl Into<Cow<'a, str>>) -> (String, i32) {
    let text = text.into();
    let clean = if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.into_owned() };
    let count = clean.matches('\u{fffd}').count();
    (clean, i32::try_from(count).unwrap_or(i32::MAX))
}

/// The same for JSON text: the escapes of U+0000 and of lone surrogates become `\ufffd`.
///
/// Walks the escapes, so that `\\u0000` (a backslash and letters) stays as it is.
pub fn sanitise_json<'a>(json: impl Into<Cow<'a, str>>) -> (String, i32) {
    let json = json.into();
    if !json.contains("\\u") {
        return (json.into_owned(), 0);
    }
    let bytes = json.as_bytes();
    let mut out = String::with_capacity(json.len());
    let (mut at, mut kept, mut count) = (0, 0, 0);
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        let Some(unit) = escape_at(bytes, at) else {
            at += 2;
            continue;
        };
        let high_with_low = (0xd800..0xdc00).contains(&unit)
            && escape_at(bytes, at + 6).is_some_and(|low| (0xdc00..0xe000).contains(&low));
        if high_with_low {
            at += 12;
        } else {
            if unit == 0 || (0xd800..0xe000).contains(&unit) {
                out.push_str(&json[kept..at]);
                out.push_str("\\ufffd");
                kept = at + 6;
                count += 1;
            }
            at += 6;
        }
    }
    out.push_str(&json[kept.min(json.len())..]);
    (out, count)
}

/// The code unit of a `\uXXXX` escape that starts at `at`.
fn escape_at(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at + 6)?;
    if &escape[..2] != b"\\u" {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(&escape[2..]).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_surrogates_and_broken_escapes_are_replaced_and_pairs_are_joined() {
        assert_eq!(decode_string(r#""a\ud83d""#), "a\u{fffd}");
        assert_eq!(decode_string(r#""\ud83d\ude00 \udc00""#), "\u{1f600} \u{fffd}");
        assert_eq!(decode_string(r#""tab\tok""#), "tab\tok");
    }

    #[test]
    fn json_that_no_database_can_show_is_cleaned_and_the_rest_is_left_alone() {
        assert_eq!(sanitise_json(r#"{"a":"\u0000"}"#), (r#"{"a":"\ufffd"}"#.to_owned(), 1));
        assert_eq!(sanitise_json(r#"{"a":"\\u0000"}"#), (r#"{"a":"\\u0000"}"#.to_owned(), 0));
        assert_eq!(
            sanitise_json(r#"["\ud83d\ude00","\ud83d","\ude00"]"#),
            (r#"["\ud83d\ude00","\ufffd","\ufffd"]"#.to_owned(), 2)
        );
        assert_eq!(sanitise("a\0b"), ("a\u{fffd}b".to_owned(), 1));
    }

    #[test]
    fn a_block_is_read_whatever_stands_in_its_type() {
        let json = r#"{"type":"odd\ud83d","text":"hi"}"#;
        assert_eq!(Block::read(json, true).map(|block| block.kind).as_deref(), Some("odd\u{fffd}"));
        assert_eq!(Block::read(r#"{"type":7}"#, true), None);
        let odd = Block::read(r#"{"type":"text","text":{}}"#, true).expect("a block");
        assert_eq!(odd.text.as_deref(), Some(""), "what is no string is no text, as in the fold");
    }

    #[test]
    fn a_tool_call_that_was_cut_is_not_whole_when_it_is_read_back() {
        let whole = |json| Block::read(json, true).expect("a block").whole;
        assert!(whole(r#"{"type":"tool_use","id":"t","name":"f","input":{}}"#));
        assert!(!whole(r#"{"type":"tool_use","id":"t","name":"f","input":"{\"ci"}"#));
        assert!(!whole(r#"{"type":"tool_use","name":"f","input":{}}"#));
        let mut open =
            Block { whole: false, ..Block::read(r#"{"type":"hologram"}"#, true).expect("a block") };
        open.keep();
        assert!(open.whole, "the ledger does not tell that its end was missing");
    }

    #[test]
    fn unknown_blocks_round_trip() {
        let json = r#"[{"type":"hologram","z":1.50,"a":[1,2]},{"type":"text","text":"hi"}]"#;
        assert_eq!(Block::write_all(&Block::read_all(json)), json);
    }
}
