//! A content block while it grows: what its start said, overlaid with what the deltas brought.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Broken;
use super::fields::{Fields, inside, word};
use crate::domain::reply::{Block, decode_string};

/// A block, open or closed.
#[derive(Debug)]
pub(super) struct Growing {
    pub(super) index: u64,
    kind: String,
    fields: Fields,
    /// The joined `partial_json`, escaped.
    input: String,
    /// Bytes of content that deltas brought.
    grown: usize,
    pub(super) open: bool,
    /// It stood in `message_start`: a `content_block_start` of the same index says it anew.
    pub(super) foretold: bool,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    thinking: Option<&'a RawValue>,
    #[serde(borrow)]
    signature: Option<&'a RawValue>,
    #[serde(borrow)]
    partial_json: Option<&'a RawValue>,
    #[serde(borrow)]
    citation: Option<&'a RawValue>,
}

impl Growing {
    /// Returns the block of a `content_block_start`; `None` where `block` is not a block.
    pub(super) fn start(index: u64, block: &str) -> Option<Self> {
        let fields = Fields::read(block)?;
        let kind = fields.string("type")?;
        Some(Self { index, kind, fields, input: String::new(), grown: 0, open: true, foretold: false })
    }

    /// Returns the block that a delta implies whose start never came.
    pub(super) fn implied(index: u64, delta: &RawValue) -> Result<Self, Broken> {
        let kind = match word(Delta::read(delta)?.kind).as_ref() {
            "text_delta" | "citations_delta" => "text",
            "thinking_delta" | "signature_delta" => "thinking",
            "input_json_delta" => "tool_use",
            _ => "unknown",
        };
        let mut fields = Fields::default();
        fields.set("type", &format!("\"{kind}\""));
        let (kind, input) = (kind.to_owned(), String::new());
        Ok(Self { index, kind, fields, input, grown: 0, open: true, foretold: false })
    }

    /// Takes a delta; returns the text that it brought to a text block, escaped.
    pub(super) fn grow<'a>(&mut self, raw: &'a RawValue) -> Result<Option<&'a str>, Broken> {
        let delta = Delta::read(raw)?;
        self.grown += raw.get().len();
        match word(delta.kind).as_ref() {
            "text_delta" => self.append_text(delta.text)?,
            "thinking_delta" => self.append("thinking", delta.thinking)?,
            "signature_delta" => {
                if let Some(signature) = delta.signature {
                    self.fields.set("signature", signature.get());
                }
            }
            "citations_delta" => {
                if let Some(citation) = delta.citation {
                    self.fields.push("citations", citation.get());
                }
            }
            "input_json_delta" => {
                if let Some(piece) = delta.partial_json {
                    self.input.push_str(inside(piece).ok_or(Broken::delta("partial_json"))?);
                }
            }
            _ => self.grow_unknown(raw),
        }
        // A delta behind the block's stop opens it again, until it is stopped again.
        let strings = [delta.text, delta.thinking, delta.partial_json];
        self.open |= !strings.iter().flatten().any(|raw| raw.get() == "\"\"");
        Ok(delta.text.filter(|_| self.kind == "text").and_then(inside))
    }

    fn append_text(&mut self, text: Option<&RawValue>) -> Result<(), Broken> {
        // Text that would end up where nobody reads it must not pass for an answer without it.
        if matches!(self.kind.as_str(), "thinking" | "redacted_thinking") || self.kind.ends_with("tool_use") {
            return Err(Broken(format!("text was sent for a block of type {}", self.kind)));
        }
        self.append("text", text)
    }

    fn append(&mut self, key: &'static str, value: Option<&RawValue>) -> Result<(), Broken> {
        if let Some(value) = value {
            self.fields.append(key, inside(value).ok_or(Broken::delta(key))?);
        }
        Ok(())
    }

    /// Keeps what a delta of an unknown type brought: strings grow, anything else is set.
    fn grow_unknown(&mut self, raw: &RawValue) {
        let Some(delta) = Fields::read(raw.get()) else { return };
        for (key, json) in delta.iter().filter(|(key, _)| *key != "type") {
            match json.strip_prefix('"').and_then(|json| json.strip_suffix('"')) {
                Some(inside) => self.fields.append(key, inside),
                None => self.fields.set(key, &json),
            }
        }
    }

    /// Returns the bytes of content that deltas brought, decoded, about.
    pub(super) fn content_bytes(&self) -> usize {
        let strings = ["text", "thinking"].iter().filter_map(|key| self.fields.string(key));
        let known = strings.map(|text| text.len()).sum::<usize>() + self.input.len();
        if known == 0 && self.kind != "text" && self.kind != "thinking" { self.grown } else { known }
    }

    /// Returns the block as it is now.
    pub(super) fn finish(mut self) -> Block {
        // A tool call whose start was never seen cannot be answered.
        let nameless = self.kind == "tool_use" && self.fields.get("id").is_none();
        let mut whole = !self.open && !nameless;
        self.fields.close();
        let input = decode_string(&format!("\"{}\"", self.input));
        if serde_json::from_str::<&RawValue>(&input).is_ok() {
            self.fields.set("input", &input);
        } else if !input.trim().is_empty() {
            // What cannot be sent back as an object is kept for people, as the text that it is.
            self.fields.set("input", &format!("\"{}\"", self.input));
            whole = false;
        } else if self.kind.ends_with("tool_use")
            && self.fields.get("input").is_none_or(|json| json == "null")
        {
            self.fields.set("input", "{}");
        }
        let text = (self.kind == "text").then(|| self.fields.string("text").unwrap_or_default());
        Block { kind: self.kind, json: self.fields.write(), text, whole }
    }
}

impl<'a> Delta<'a> {
    fn read(raw: &'a RawValue) -> Result<Self, Broken> {
        serde_json::from_str(raw.get()).map_err(|err| Broken(format!("a delta is unreadable: {err}")))
    }
}
