//! The assistant's turn in the making: what was said so far, over pauses and continuations.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::spoken::Spoken;
use crate::domain::job::user_message;
use crate::domain::reply::Block;
use crate::domain::seam::{self, How, Seam};
use crate::domain::tool::ToolCall;

/// One assistant turn.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    /// In order, text at a seam made one: what `results.content` shows.
    blocks: Vec<Block>,
    /// The messages of the turn as they were sent and received, for conversations that must be
    /// echoed whole: assistant contents, and the user turns that asked to go on.
    spoken: Vec<Spoken>,
    /// How much of the text was sent each time it was gone on with, in bytes.
    sent: Vec<usize>,
}

/// How a continuation met the text before it.
#[derive(Debug, Clone, Copy)]
pub struct Joined {
    /// Which rule applied.
    pub seam: Seam,
    /// New characters.
    pub added: usize,
    /// It said again what was said: nothing of it was taken.
    pub repeated: bool,
    /// It brought no text and no other content.
    pub silent: bool,
}

impl Turn {
    /// Takes a reply's content as it came.
    pub fn say(&mut self, content: Vec<Block>) {
        self.speak(&content);
        self.blocks.extend(content);
    }

    /// Takes a reply that goes on with the text at the end.
    pub fn go_on(&mut self, content: Vec<Block>, how: How) -> Joined {
        let before = self.text();
        self.sent.push(before.trim_end().len());
        if how == How::Anchor {
            self.spoken.push(Spoken::User(user_message(&self.instruction())));
        }
        self.speak(&content);
        // Thinking before the text was about the continuation; it stands in the ledger.
        let first = content.iter().position(|block| !block.is_thinking()).unwrap_or(content.len());
        let mut rest = content.into_iter().skip(first);
        let Some(next) = rest.next() else {
            return Joined { seam: Seam::Anchored, added: 0, repeated: false, silent: true };
        };
        let Some(next_text) = next.text.as_deref() else {
            self.blocks.push(next);
            self.blocks.extend(rest);
            return Joined { seam: Seam::Plain, added: usize::MAX, repeated: false, silent: false };
        };
        let silent = next_text.trim().is_empty() && rest.len() == 0;
        let joined = seam::join(&before, next_text, how);
        if seam::repeats(&before, joined.new_text()) {
            return Joined { seam: joined.seam, added: 0, repeated: true, silent: false };
        }
        let added = joined.new_text().chars().count();
        self.merge(&joined.text, &next);
        self.blocks.extend(rest);
        let more: usize = if self.ends_in_text() { added } else { usize::MAX };
        Joined { seam: joined.seam, added: more, repeated: false, silent }
    }

    /// Makes the last text block hold the end of `all`, and what else `next` brought.
    fn merge(&mut self, all: &str, next: &Block) {
        let Some(at) = self.blocks.iter().rposition(|block| block.text.is_some()) else {
            self.blocks.push(next.clone());
            return;
        };
        self.blocks.truncate(at + 1);
        let earlier: usize =
            self.blocks[..at].iter().filter_map(|block| block.text.as_deref()).map(str::len).sum();
        let text = all.get(earlier..).unwrap_or_default();
        let mut fields: Map<String, Value> = serde_json::from_str(&self.blocks[at].json).unwrap_or_default();
        let brought: Map<String, Value> = serde_json::from_str(&next.json).unwrap_or_default();
        for (name, value) in brought {
            match (fields.get_mut(&name), value) {
                (Some(Value::Array(have)), Value::Array(more)) => have.extend(more),
                (Some(have @ Value::Null), value) => *have = value,
                (Some(_), _) => {}
                (None, value) => {
                    fields.insert(name, value);
                }
            }
        }
        fields.insert("type".to_owned(), Value::from("text"));
        fields.insert("text".to_owned(), Value::from(text));
        self.blocks[at] = Block {
            kind: "text".to_owned(),
            json: Value::Object(fields).to_string(),
            text: Some(text.to_owned()),
            whole: next.whole,
        };
    }

    fn speak(&mut self, content: &[Block]) {
        match self.spoken.last_mut() {
            Some(Spoken::Assistant(blocks)) => blocks.extend_from_slice(content),
            _ => self.spoken.push(Spoken::Assistant(content.to_vec())),
        }
    }

    /// The messages of the turn as they were spoken.
    pub fn spoken(&self) -> &[Spoken] {
        &self.spoken
    }

    /// The calls of tools of ours in what the last reply brought, those aside that were cut.
    pub fn tool_calls(&self) -> Vec<ToolCall> {
        let Some(Spoken::Assistant(blocks)) = self.spoken.last() else { return Vec::new() };
        let calls = blocks.iter().filter(|block| block.kind == "tool_use" && block.whole);
        calls.zip(0..).filter_map(|(block, position)| tool_call(block, position)).collect()
    }

    /// The user turn that asks to go on.
    pub fn instruction(&self) -> String {
        let text = self.text();
        seam::instruction(seam::anchor(&text))
    }

    /// The text of the turn.
    pub fn text(&self) -> String {
        self.blocks.iter().filter_map(|block| block.text.as_deref()).collect()
    }

    /// The text as the content of a message that the prompt cache is to keep: in the pieces that it was
    /// said in, for what was kept before is found only where a block ends as it did.
    pub fn cached_text(&self) -> String {
        let text = self.text();
        let text = text.trim_end();
        let mut pieces = Vec::new();
        let mut from = 0;
        for upto in self.sent.iter().copied().filter(|sent| *sent < text.len()).chain([text.len()]) {
            // White space alone is refused: it goes with what follows.
            if let Some(piece) = text.get(from..upto).filter(|piece| !piece.trim().is_empty()) {
                pieces.push(json!({ "type": "text", "text": piece }));
                from = upto;
            }
        }
        if let Some(last) = pieces.last_mut() {
            last["cache_control"] = json!({ "type": "ephemeral" });
        }
        Value::Array(pieces).to_string()
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Whether nothing came yet.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether there is any text: white space alone says nothing.
    pub fn has_text(&self) -> bool {
        self.blocks.iter().any(|block| block.text.as_deref().is_some_and(|text| !text.trim().is_empty()))
    }

    /// Whether it is an answer: text, or content that asks for no tool.
    pub fn is_answer(&self) -> bool {
        self.has_text() || (!self.wants_tools() && self.blocks.iter().any(is_content))
    }

    /// Whether tools of the API were used in it, and each has given its result: what was found is sent back.
    pub fn used_tools(&self) -> bool {
        let count = |end: &str| self.blocks.iter().filter(|block| block.kind.ends_with(end)).count();
        let called = count("tool_use");
        called > 0 && called == count("tool_result")
    }

    /// Whether it calls tools of ours.
    pub fn wants_tools(&self) -> bool {
        self.blocks.iter().any(|block| block.kind == "tool_use")
    }

    /// Whether what was cut is text that can be gone on with: the last block, a cut thinking block
    /// after it aside.
    pub fn ends_in_text(&self) -> bool {
        let last = self.blocks.iter().rev().find(|block| !(block.is_thinking()));
        last.and_then(|block| block.text.as_deref()).is_some_and(|text| !text.trim().is_empty())
    }
}

/// Whether a block answers the user: what the model thought, what it did to find an answer (calls of tools
/// and their results) and marks between its parts are on the way there.
fn is_content(block: &Block) -> bool {
    let kind = block.kind.as_str();
    let is_work = kind.ends_with("tool_use") || kind.ends_with("tool_result");
    let is_mark = matches!(kind, "compaction" | "fallback");
    !block.is_thinking()
        && !is_work
        && !is_mark
        && block.text.as_deref().is_none_or(|text| !text.trim().is_empty())
}

fn tool_call(block: &Block, position: i32) -> Option<ToolCall> {
    #[derive(serde::Deserialize)]
    struct Shape<'a> {
        id: String,
        name: String,
        #[serde(borrow)]
        input: &'a RawValue,
    }
    let Shape { id, name, input } = serde_json::from_str(&block.json).ok()?;
    Some(ToolCall { position, call_id: id, name, input: input.get().to_owned() })
}
