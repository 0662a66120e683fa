//! What the calls of a job said, block by block, as text.

use serde_json::{Value, json};

use crate::store::ToolRow;
use crate::store::board::Said;
use crate::web::words::{TEXT_MAX, start};

/// A block of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Which call said it: claim and number.
    pub call: (i64, i64),
    /// `text`, `thinking`, `tool_use`, `tool_result`, or the API's own word.
    pub kind: String,
    /// What tool, where it is about one.
    pub name: String,
    /// What it says.
    pub text: String,
    /// Whether that is not all that it says.
    pub cut: bool,
}

impl Turn {
    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "claim": self.call.0, "seq": self.call.1, "kind": self.kind, "name": self.name, "text": self.text,
            "cut": self.cut,
        })
    }
}

/// Returns the blocks of these calls, each cut to `most` characters when it was read, and what tools gave
/// behind what called them.
pub fn turns(said: &[Said], most: usize, tools: &[ToolRow]) -> Vec<Turn> {
    let mut turns = Vec::new();
    for said in said {
        let call = (said.claim, said.seq);
        let read = serde_json::from_str(&said.content).ok();
        // Cut, it is no JSON any more; what is whole in it is shown all the same.
        let cut = read.is_none() && said.content.chars().count() >= most;
        match read.or_else(|| mended(&said.content).filter(|_| cut)) {
            Some(Value::Array(blocks)) => {
                turns.extend(blocks.iter().map(|block| of_block(call, block)));
            }
            // Not what we know: shown as it is.
            _ => turns.push(turn(call, "json", "", &said.content)),
        }
        if let (true, Some(last)) = (cut, turns.last_mut()) {
            last.cut = true;
        }
        for tool in tools.iter().filter(|tool| (tool.claim, tool.seq) == call) {
            let text = tool.result.as_deref().unwrap_or("no result yet");
            let kind = if tool.is_error { "tool_error" } else { "tool_result" };
            let given = turn(call, kind, &tool.name, text);
            turns.push(Turn { cut: given.cut || tool.result_cut, ..given });
        }
    }
    turns
}

/// Reads blocks that end in the middle of a text: the last few characters may be half of an escape.
fn mended(content: &str) -> Option<Value> {
    let ends = content.char_indices().rev().map(|(at, _)| at).take(12);
    let starts = std::iter::once(content.len()).chain(ends).map(|end| &content[..end]);
    let closed = starts.flat_map(|start| ["\"}]", "}]", "]"].map(|end| format!("{start}{end}")));
    closed.into_iter().find_map(|whole| serde_json::from_str(&whole).ok())
}

fn of_block(call: (i64, i64), block: &Value) -> Turn {
    let field = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or_default();
    let kind = field("type");
    match kind {
        "text" => turn(call, kind, "", field("text")),
        "thinking" => turn(call, kind, "", field("thinking")),
        "tool_use" => {
            let input = block.get("input").map(|input| format!("{input:#}")).unwrap_or_default();
            turn(call, kind, field("name"), &input)
        }
        _ => turn(call, if kind.is_empty() { "json" } else { kind }, field("name"), &format!("{block:#}")),
    }
}

fn turn(call: (i64, i64), kind: &str, name: &str, text: &str) -> Turn {
    let (text, cut) = start(text, TEXT_MAX);
    Turn { call, kind: kind.to_owned(), name: name.to_owned(), text: text.to_owned(), cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(content: &str) -> Said {
        Said { claim: 1, seq: 1, content: content.to_owned() }
    }

    #[test]
    fn each_block_is_text_whatever_it_is() {
        let content = r#"[{"type":"thinking","thinking":"hm","signature":"x"},{"type":"text","text":"<b>"},
                          {"type":"tool_use","id":"t","name":"look","input":{"a":1}},{"type":"new","x":2}]"#;
        let turns = turns(&[said(content), said("[{\"type\":\"te")], 1_000, &[]);
        let kinds: Vec<&str> = turns.iter().map(|turn| turn.kind.as_str()).collect();
        assert_eq!(kinds, ["thinking", "text", "tool_use", "new", "json"]);
        assert_eq!((turns[1].text.as_str(), turns[2].name.as_str()), ("<b>", "look"));
        assert!(turns.iter().all(|turn| !turn.cut));
    }

    #[test]
    fn a_block_that_is_longer_than_a_page_shows_says_so() {
        let content = json!([{"type": "text", "text": "x".repeat(TEXT_MAX + 1)}]).to_string();
        let turns = turns(&[said(&content)], 200_000, &[]);
        assert_eq!((turns[0].text.len(), turns[0].cut), (TEXT_MAX, true));
    }

    #[test]
    fn content_that_was_cut_in_the_middle_is_read_as_far_as_it_goes_and_says_so() {
        let content = r#"[{"type":"text","text":"whole"},{"type":"text","text":"one\u00e9two"},{"type":"text","text":"y"}]"#;
        for end in 52..content.len() {
            let turns = turns(&[said(&content[..end])], end, &[]);
            assert_eq!((turns[0].kind.as_str(), turns[0].text.as_str()), ("text", "whole"), "{end}");
            assert!(turns.last().is_some_and(|turn| turn.cut), "{end}");
        }
        // What is shorter was not cut by us, and is shown as it came.
        assert_eq!(turns(&[said(&content[..70])], 1_000, &[])[0].kind, "json");
    }
}
