//! What the calls of a job said, block by block, as text.

use serde_json::Value;

use crate::store::ToolRow;
use crate::store::board::Said;

/// Characters of one block that are shown.
const BLOCK_MAX: usize = 60_000;

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
}

/// Returns the blocks of these calls, what tools gave behind what called them.
pub fn turns(said: &[Said], tools: &[ToolRow]) -> Vec<Turn> {
    let mut turns = Vec::new();
    for said in said {
        let call = (said.claim, said.seq);
        // Cut, or not what we know: shown as it is.
        let Ok(Value::Array(blocks)) = serde_json::from_str(&said.content) else {
            turns.push(turn(call, "json", "", &said.content));
            continue;
        };
        turns.extend(blocks.iter().map(|block| of_block(call, block)));
        for tool in tools.iter().filter(|tool| (tool.claim, tool.seq) == call) {
            let text = tool.result.as_deref().unwrap_or("no result yet");
            turns.push(turn(
                call,
                if tool.is_error { "tool_error" } else { "tool_result" },
                &tool.name,
                text,
            ));
        }
    }
    turns
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
    let text = super::start(text, BLOCK_MAX).0.to_owned();
    Turn { call, kind: kind.to_owned(), name: name.to_owned(), text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_is_text_whatever_it_is() {
        let content = r#"[{"type":"thinking","thinking":"hm","signature":"x"},{"type":"text","text":"<b>"},
                          {"type":"tool_use","id":"t","name":"look","input":{"a":1}},{"type":"new","x":2}]"#;
        let said = |content: &str| Said { claim: 1, seq: 1, content: content.to_owned() };
        let turns = turns(&[said(content), said("[{\"type\":\"te")], &[]);
        let kinds: Vec<&str> = turns.iter().map(|turn| turn.kind.as_str()).collect();
        assert_eq!(kinds, ["thinking", "text", "tool_use", "new", "json"]);
        assert_eq!((turns[1].text.as_str(), turns[2].name.as_str()), ("<b>", "look"));
    }
}
