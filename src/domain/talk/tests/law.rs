//! The law of a conversation: however often it is interrupted between two calls and read back from the
//! ledger, it asks the API exactly what an undisturbed one asks, and ends the same way.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::domain::tool::{PastTool, ToolContent, ToolResult};

/// What the model does in one reply.
#[derive(Debug, Clone, Copy)]
enum Does {
    /// Calls so many tools, having thought.
    Tools(usize),
    /// Pauses in the middle of a server's tool.
    Pause,
    /// Has a tool of the API called and answered, and says nothing of it.
    Search,
    /// Says text that `max_tokens` cuts.
    CutText,
    /// Calls a tool whose input `max_tokens` cuts.
    CutTool,
    /// Thinks, and ends there.
    Nothing,
    /// Refuses.
    Refuse,
    /// Says something that no schema takes.
    Ramble,
    /// Gives an answer.
    Answer,
}

fn does() -> impl Strategy<Value = Does> {
    prop_oneof![
        4 => (1..4_usize).prop_map(Does::Tools),
        1 => Just(Does::Pause),
        1 => Just(Does::Search),
        2 => Just(Does::CutText),
        1 => Just(Does::CutTool),
        1 => Just(Does::Nothing),
        1 => Just(Does::Refuse),
        1 => Just(Does::Ramble),
    ]
}

fn replied(does: Does, at: usize) -> Reply {
    let thinking = format!(r#"{{"type":"thinking","thinking":"t{at}","signature":"s{at}"}}"#);
    let text = (0..40).map(|n| format!("w{at}x{n}")).collect::<Vec<_>>().join(" ");
    let (stop, content) = match does {
        Does::Tools(calls) => {
            let tools: Vec<String> = (0..calls)
                .map(|n| format!(r#"{{"type":"tool_use","id":"u{at}_{n}","name":"f","input":{{"n":{n}}}}}"#))
                .collect();
            ("tool_use", format!("[{thinking},{}]", tools.join(",")))
        }
        Does::Pause => {
            let server =
                format!(r#"{{"type":"server_tool_use","id":"v{at}","name":"web_search","input":{{}}}}"#);
            ("pause_turn", format!("[{thinking},{server}]"))
        }
        Does::Search => {
            let server =
                format!(r#"{{"type":"server_tool_use","id":"v{at}","name":"web_search","input":{{}}}}"#);
            let found = format!(r#"{{"type":"web_search_tool_result","tool_use_id":"v{at}","content":[]}}"#);
            ("end_turn", format!("[{thinking},{server},{found}]"))
        }
        // Its last thought was cut, and has no signature yet.
        Does::CutText => (
            "max_tokens",
            format!(r#"[{thinking},{{"type":"text","text":"{text}"}},{{"type":"thinking","thinking":"t"}}]"#),
        ),
        Does::CutTool => (
            "max_tokens",
            format!(r#"[{thinking},{{"type":"tool_use","id":"c{at}","name":"f","input":{{}}}}]"#),
        ),
        Does::Nothing => ("end_turn", format!("[{thinking}]")),
        Does::Refuse => ("refusal", "[]".to_owned()),
        Does::Ramble => ("end_turn", format!(r#"[{thinking},{{"type":"text","text":"no {at}"}}]"#)),
        Does::Answer => ("end_turn", r#"[{"type":"text","text":"{\"ok\":true}"}]"#.to_owned()),
    };
    let usage = Usage { input: 3, output: 5000, ..Usage::default() };
    let container = matches!(does, Does::Pause).then(|| format!(r#"{{"id":"box{at}"}}"#));
    Reply { usage, container, ..reply(stop, &content) }
}

/// A conversation with its ledger beside it.
struct Run {
    talk: Talk,
    ledger: Vec<PastCall>,
    tools: Vec<PastTool>,
    asked: Vec<String>,
}

impl Run {
    fn new(job: &Job) -> Self {
        let talk = Talk::resume(job.clone(), &[], &[], Instant::now());
        Self { talk, ledger: Vec::new(), tools: Vec::new(), asked: Vec::new() }
    }

    /// Makes one step; returns whether there was one.
    fn step(&mut self, script: &[Does], claim: i64) -> bool {
        match self.talk.next() {
            Step::Done(_) => return false,
            Step::Tools(asked) => {
                let results: Vec<ToolResult> = asked.tools.iter().map(result).collect();
                for (call, result) in asked.tools.iter().zip(&results) {
                    let (claim, seq) = (asked.claim, asked.seq);
                    let result = Some(result.clone());
                    self.tools.push(PastTool { claim, seq, call: call.clone(), result, taken: true });
                }
                self.talk.answer_tools(&results);
            }
            Step::Ask(request) => {
                self.asked.push(String::from_utf8(request.body.to_vec()).expect("JSON is UTF-8"));
                let at = self.asked.len() - 1;
                let reply = replied(script.get(at).copied().unwrap_or(Does::Answer), at);
                let seq = self.ledger.len() as i32 + 1;
                let mut row = PastCall {
                    claim,
                    kind: request.kind.to_string(),
                    model: Some(request.model.clone()),
                    max_tokens: Some(request.max_tokens),
                    stop_reason: reply.stop.as_ref().map(|stop| stop.as_str().to_owned()),
                    usage: reply.usage,
                    content: Some(Block::write_all(&reply.content)),
                    container: reply.container.clone(),
                    partial: false,
                    ..past(seq, "ask", None, "", None)
                };
                self.talk.count(reply.usage, None, Instant::now());
                row.request = self.talk.push(reply, claim, seq).or(request.note);
                self.ledger.push(row);
            }
        }
        true
    }

    /// The process dies in the middle of the next call, and another one goes on.
    fn crash(&mut self, job: &Job) {
        let lost = past(self.ledger.len() as i32 + 1, "ask", None, "", Some("lost"));
        self.ledger.push(lost);
        self.talk = Talk::resume(job.clone(), &self.ledger, &self.tools, Instant::now());
    }

    fn end(&self) -> (Outcome, Option<String>, Option<Arc<str>>) {
        let answer = ended(&self.talk);
        (answer.outcome, answer.text, answer.content)
    }
}

fn result(call: &crate::domain::tool::ToolCall) -> ToolResult {
    let content = if call.position == 0 {
        ToolContent::Text(format!("gave {}", call.call_id))
    } else {
        ToolContent::Blocks(r#"[{"type":"text","text":"a block"}]"#.to_owned())
    };
    ToolResult { content, is_error: call.position == 2 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn an_interrupted_conversation_asks_what_an_undisturbed_one_asks(
        script in vec(does(), 0..9),
        crashes in vec(any::<bool>(), 40),
        schema in any::<bool>(),
        tools in any::<bool>(),
    ) {
        let params = if tools { r#"{"tools":[{"name":"f","input_schema":{}}]}"# } else { "{}" };
        let schema = if schema { r#""output_schema":{"type":"object","required":["ok"]},"# } else { "" };
        let policy = format!(r#"{{{schema}"on_tool_use":"wait","max_repairs":2,"fallback_model":"other"}}"#);
        let job = job(params, &policy);
        let mut straight = Run::new(&job);
        while straight.step(&script, 1) {}
        let mut torn = Run::new(&job);
        let mut claim = 1;
        let mut crashes = crashes.into_iter();
        loop {
            if crashes.next() == Some(true) {
                claim += 1;
                torn.crash(&job);
            }
            if !torn.step(&script, claim) {
                break;
            }
        }
        prop_assert_eq!(&torn.asked, &straight.asked);
        prop_assert_eq!(torn.end(), straight.end());
    }
}
