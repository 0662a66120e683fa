//! From an answer to bytes: server-sent events, or one JSON message; and everything that can go
//! wrong on the way. Pure: waits and ends are steps that [`super::serve`] acts out.
//!
//! A short answer is three writes, however many events it has.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, Block, Usage};
use super::ask;
use super::marker::{End, FaultKind, Garbage, Script};
use super::problem::Problem;
use super::words::Tokens;

/// Bytes in one write of a long answer.
const WRITE_BYTES: usize = 16 * 1024;
/// Tokens in one event.
const DELTA_TOKENS: usize = 16;
/// Tokens in one event of a paced answer: it should look like somebody who speaks.
const PACED_DELTA_TOKENS: usize = 4;

/// One thing to do with the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes.
    Send(Bytes),
    /// Take note that what is sent next holds so many tokens of the answer, and bytes of its text.
    Say(u64, u64),
    /// Wait.
    Wait(Duration),
    /// Send nothing any more, and keep the connection.
    Hang,
    /// Drop the connection.
    Drop,
}

/// How the pieces of an answer follow each other.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tempo {
    /// Before the first event.
    pub delay: Duration,
    /// Between pieces.
    pub pace: Duration,
    /// A ping so often while it waits.
    pub ping: Option<Duration>,
}

/// An answer with all that its bytes depend on.
#[derive(Debug)]
pub struct Rendering<'a> {
    /// The answer.
    pub answer: &'a Answer,
    /// Its markers.
    pub script: &'a Script,
    /// What spoils it.
    pub fault: Option<&'a FaultKind>,
    /// How it is paced.
    pub tempo: Tempo,
    /// The model that answers.
    pub model: &'a str,
    /// The message's id.
    pub message_id: &'a str,
    /// The request's id, for `error` events.
    pub request_id: &'a str,
}

/// Returns how many output tokens the garbage itself is.
pub fn garbage_tokens(fault: Option<&FaultKind>) -> u64 {
    let in_text = matches!(
        fault,
        Some(FaultKind::Garbage(Garbage::Utf8 | Garbage::Surrogate | Garbage::Nul | Garbage::Block, _))
    );
    u64::from(in_text)
}

impl Rendering<'_> {
    /// Returns the whole message as JSON.
    pub fn message(&self) -> Value {
        let content: Vec<Value> = self.answer.blocks.iter().map(whole_block).collect();
        let mut message = self.envelope(&content);
        message["stop_reason"] = json!(self.answer.stop_reason);
        message["stop_sequence"] = json!(self.answer.stop_sequence);
        message["stop_details"] = self.answer.stop_details.clone();
        message["usage"] = usage_json(&self.answer.usage, self.answer.usage.output);
        message
    }

    fn envelope(&self, content: &[Value]) -> Value {
        json!({
            "model": self.model,
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "stop_details": null,
        })
    }

    /// Returns the steps of an answer that is not streamed.
    pub fn json_steps(&self) -> Vec<Step> {
        let mut body = self.message().to_string();
        let half = body.floor_char_boundary(body.len() / 2);
        match self.fault {
            Some(FaultKind::Cut(_, end) | FaultKind::CutTail(end)) => {
                body.truncate(half);
                let mut steps = vec![Step::Send(body.into())];
                steps.extend((*end == End::Dropped).then_some(Step::Drop));
                steps
            }
            Some(FaultKind::Garbage(Garbage::Broken, _)) => {
                body.truncate(half);
                vec![Step::Send(body.into())]
            }
            Some(FaultKind::Garbage(Garbage::Nothing, _)) => Vec::new(),
            Some(FaultKind::Hang(Some(_))) => {
                body.truncate(half);
                vec![Step::Send(body.into()), Step::Hang]
            }
            _ => vec![Step::Send(body.into())],
        }
    }

    /// Returns the steps of a streamed answer.
    pub fn stream_steps(&self) -> Vec<Step> {
        let mut pen = Pen::new(self);
        let garbage = match self.fault {
            Some(FaultKind::Garbage(garbage, _)) => Some(*garbage),
            _ => None,
        };
        if garbage == Some(Garbage::Nothing) {
            return Vec::new();
        }
        pen.wait(self.tempo.delay);
        if garbage == Some(Garbage::Bom) {
            pen.out.extend_from_slice("\u{feff}".as_bytes());
        }
        if garbage != Some(Garbage::NoStart) {
            pen.message_start(self);
        }
        let stopped_after = match self.fault {
            Some(
                FaultKind::Cut(after, _) | FaultKind::ErrorEvent(_, after) | FaultKind::Hang(Some(after)),
            ) => Some(*after),
            _ => None,
        };
        if let Some(after) = stopped_after {
            pen.blocks(&self.answer.first(after), true);
            pen.flush();
            match self.fault {
                Some(FaultKind::ErrorEvent(problem, _)) => pen.error(problem, self.request_id),
                Some(FaultKind::Hang(_)) => pen.steps.push(Step::Hang),
                Some(FaultKind::Cut(_, End::Dropped)) => pen.steps.push(Step::Drop),
                _ => {}
            }
            return pen.finish();
        }
        pen.blocks(&self.answer.blocks, false);
        pen.message_delta(self);
        if let Some(FaultKind::CutTail(end)) = self.fault {
            pen.flush();
            pen.steps.extend((*end == End::Dropped).then_some(Step::Drop));
            return pen.finish();
        }
        pen.raw_event("message_stop", br#"{"type":"message_stop"}"#);
        if garbage == Some(Garbage::After) {
            pen.raw_event("ping", br#"{"type":"ping"}"#);
            pen.raw_event("afterthought", br#"{"type":"afterthought","text":"one more thing"}"#);
        }
        pen.finish()
    }
}

fn usage_json(usage: &Usage, output: u64) -> Value {
    json!({
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write - usage.cache_write_hour,
            "ephemeral_1h_input_tokens": usage.cache_write_hour,
        },
        "output_tokens": output,
        "service_tier": "standard",
        "inference_geo": "not_available",
    })
}

fn whole_block(block: &Block) -> Value {
    match block {
        Block::Text(tokens) => json!({ "type": "text", "text": tokens.text }),
        Block::Thinking(tokens, whole) => {
            json!({ "type": "thinking", "thinking": tokens.text, "signature": signature(tokens, *whole) })
        }
        Block::Tool(kind, id, name, input) => {
            let input: Value = serde_json::from_str(&input.text).unwrap_or_else(|_| json!({}));
            json!({ "type": kind, "id": id, "name": name, "input": input })
        }
    }
}

fn signature(thinking: &Tokens, whole: bool) -> String {
    if whole { ask::signature(&thinking.text) } else { String::new() }
}

/// Writes events.
struct Pen {
    out: Vec<u8>,
    steps: Vec<Step>,
    /// Tokens, and bytes of text, in `out`.
    said: (u64, u64),
    index: usize,
    deltas: usize,
    delta_tokens: usize,
    tempo: Tempo,
    chunk: Option<usize>,
    garbage: Option<Garbage>,
    garbage_mb: usize,
}

impl Pen {
    fn new(rendering: &Rendering<'_>) -> Self {
        let paced = !rendering.tempo.pace.is_zero();
        let usual = if paced { PACED_DELTA_TOKENS } else { DELTA_TOKENS };
        let (garbage, garbage_mb) = match rendering.fault {
            Some(FaultKind::Garbage(garbage, mb)) => (Some(*garbage), *mb),
            _ => (None, 0),
        };
        Self {
            out: Vec::with_capacity(4096),
            steps: Vec::new(),
            said: (0, 0),
            index: 0,
            deltas: 0,
            delta_tokens: rendering.script.delta.unwrap_or(usual),
            tempo: rendering.tempo,
            chunk: rendering.script.chunk,
            garbage,
            garbage_mb,
        }
    }

    fn finish(mut self) -> Vec<Step> {
        self.flush();
        self.steps
    }

    fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        let (tokens, text) = std::mem::take(&mut self.said);
        if tokens > 0 {
            self.steps.push(Step::Say(tokens, text));
        }
        let mut bytes = Bytes::from(std::mem::take(&mut self.out));
        if let Some(chunk) = self.chunk {
            while bytes.len() > chunk {
                self.steps.push(Step::Send(bytes.split_to(chunk)));
            }
        }
        self.steps.push(Step::Send(bytes));
    }

    fn wait(&mut self, mut wait: Duration) {
        if wait.is_zero() {
            return;
        }
        self.flush();
        if let Some(ping) = self.tempo.ping {
            while wait > ping {
                self.steps.push(Step::Wait(ping));
                self.raw_event("ping", br#"{"type":"ping"}"#);
                self.flush();
                wait -= ping;
            }
        }
        self.steps.push(Step::Wait(wait));
    }

    fn line_end(&mut self) {
        if self.garbage == Some(Garbage::Crlf) {
            self.out.push(b'\r');
        }
        self.out.push(b'\n');
    }

    fn raw_event(&mut self, name: &str, data: &[u8]) {
        if self.garbage == Some(Garbage::Comments) {
            self.out.extend_from_slice(b": keep-alive");
            self.line_end();
        }
        if self.garbage != Some(Garbage::DataOnly) {
            self.out.extend_from_slice(b"event: ");
            self.out.extend_from_slice(name.as_bytes());
            self.line_end();
        }
        self.out.extend_from_slice(b"data: ");
        self.out.extend_from_slice(data);
        self.line_end();
        self.line_end();
    }

    fn event(&mut self, name: &str, data: &Value) {
        self.raw_event(name, data.to_string().as_bytes());
    }

    fn message_start(&mut self, rendering: &Rendering<'_>) {
        let mut message = rendering.envelope(&[]);
        if self.garbage != Some(Garbage::NoUsage) {
            let first = 1.min(rendering.answer.usage.output);
            message["usage"] = usage_json(&rendering.answer.usage, first);
        }
        if self.garbage == Some(Garbage::Fields) {
            message["weather"] = json!({ "wind": [1, 2.50, null] });
        }
        self.event("message_start", &json!({ "type": "message_start", "message": message }));
    }

    fn blocks(&mut self, blocks: &[Block], last_stays_open: bool) {
        for (at, block) in blocks.iter().enumerate() {
            let stays_open = last_stays_open && at + 1 == blocks.len();
            self.block(block, stays_open);
        }
        match self.garbage {
            Some(Garbage::Block) => {
                let block = json!({ "type": "hologram", "depth": 1.50, "points": [[1, 2], [3, 4]] });
                let index = self.index;
                self.event(
                    "content_block_start",
                    &json!({ "type": "content_block_start", "index": index, "content_block": block }),
                );
                self.stop_block();
            }
            Some(Garbage::Event) => self.raw_event("weather", br#"{"type":"weather","wind":"north"}"#),
            _ => {}
        }
    }

    fn block(&mut self, block: &Block, stays_open: bool) {
        let (opening, kind, field, tokens) = match block {
            Block::Text(tokens) => (json!({ "type": "text", "text": "" }), "text_delta", "text", tokens),
            Block::Thinking(tokens, _) => (
                json!({ "type": "thinking", "thinking": "", "signature": "" }),
                "thinking_delta",
                "thinking",
                tokens,
            ),
            Block::Tool(tool, id, name, tokens) => (
                json!({ "type": tool, "id": id, "name": name, "input": {} }),
                "input_json_delta",
                "partial_json",
                tokens,
            ),
        };
        let index = self.index;
        self.event(
            "content_block_start",
            &json!({ "type": "content_block_start", "index": index, "content_block": opening }),
        );
        if index == 0 {
            self.raw_event("ping", br#"{"type":"ping"}"#);
        }
        for (piece, count) in tokens.pieces(self.delta_tokens) {
            self.delta(kind, field, piece, count);
        }
        if kind == "text_delta" {
            self.garbage_in_text();
        }
        if let Block::Thinking(thinking, true) = block {
            let delta = json!({ "type": "signature_delta", "signature": signature(thinking, true) });
            self.event(
                "content_block_delta",
                &json!({ "type": "content_block_delta", "index": index, "delta": delta }),
            );
        }
        if !stays_open {
            self.stop_block();
        }
    }

    fn stop_block(&mut self) {
        let data = format!(r#"{{"type":"content_block_stop","index":{}}}"#, self.index);
        self.raw_event("content_block_stop", data.as_bytes());
        self.index += 1;
    }

    /// One delta, written by hand: it is most of what the stand-in writes.
    fn delta(&mut self, kind: &str, field: &str, piece: &str, tokens: usize) {
        if self.deltas > 0 && !self.tempo.pace.is_zero() {
            self.wait(self.tempo.pace);
        }
        let mut data = Vec::with_capacity(piece.len() + 100);
        let extra = if self.garbage == Some(Garbage::Fields) { r#""mood":null,"# } else { "" };
        let written = write!(
            data,
            r#"{{"type":"content_block_delta","index":{},"delta":{{"type":"{kind}",{extra}"{field}":"#,
            self.index
        );
        written
            .and_then(|()| Ok(serde_json::to_writer(&mut data, piece)?))
            .expect("writing to memory cannot fail");
        data.extend_from_slice(b"}}");
        self.raw_event("content_block_delta", &data);
        self.deltas += 1;
        self.said.0 += tokens as u64;
        self.said.1 += piece.len() as u64;
        // The first piece goes out at once: it is what a client's first-event limit waits for.
        if self.deltas == 1 || self.out.len() >= WRITE_BYTES {
            self.flush();
        }
    }

    fn garbage_in_text(&mut self) {
        let index = self.index;
        match self.garbage {
            Some(Garbage::Utf8) => self.raw_text(b"caf\xe9 \xff\xfe"),
            Some(Garbage::Surrogate) => self.raw_text(br"half: \ud83d."),
            Some(Garbage::Nul) => self.raw_text(br"nul: \u0000."),
            Some(Garbage::Delta) => {
                let delta = json!({ "type": "mood_delta", "mood": "cheerful" });
                self.event(
                    "content_block_delta",
                    &json!({ "type": "content_block_delta", "index": index, "delta": delta }),
                );
            }
            Some(Garbage::Broken) => {
                self.raw_event("content_block_delta", br#"{"type":"content_block_delta","ind"#);
            }
            Some(Garbage::Huge) => self.huge(),
            _ => {}
        }
    }

    /// One delta of text with these bytes between the quotes, whatever they are.
    fn raw_text(&mut self, text: &[u8]) {
        let index = self.index;
        let mut data = format!(
            r#"{{"type":"content_block_delta","index":{index},"delta":{{"type":"text_delta","text":""#
        )
        .into_bytes();
        data.extend_from_slice(text);
        data.extend_from_slice(br#""}}"#);
        self.raw_event("content_block_delta", &data);
    }

    fn huge(&mut self) {
        static CHUNK: [u8; 64 * 1024] = [b'x'; 64 * 1024];
        let opening = format!(
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":{},\"delta\":{{\"type\":\
             \"text_delta\",\"text\":\"",
            self.index
        );
        self.out.extend_from_slice(opening.as_bytes());
        self.flush();
        for _ in 0..self.garbage_mb * 16 {
            self.steps.push(Step::Send(Bytes::from_static(&CHUNK)));
        }
        self.out.extend_from_slice(b"\"}}\n\n");
    }

    fn message_delta(&mut self, rendering: &Rendering<'_>) {
        let answer = rendering.answer;
        if self.garbage == Some(Garbage::Deltas) {
            for output in [answer.usage.output / 3, answer.usage.output / 2] {
                self.event(
                    "message_delta",
                    &json!({ "type": "message_delta", "delta": { "stop_reason": null }, "usage": { "output_tokens": output } }),
                );
            }
        }
        let reason = (self.garbage != Some(Garbage::NullStop)).then_some(&answer.stop_reason);
        let mut data = json!({
            "type": "message_delta",
            "delta": {
                "stop_reason": reason,
                "stop_sequence": answer.stop_sequence,
                "stop_details": answer.stop_details,
            },
        });
        if self.garbage != Some(Garbage::NoUsage) {
            let usage = &answer.usage;
            data["usage"] = json!({
                "input_tokens": usage.input,
                "cache_creation_input_tokens": usage.cache_write,
                "cache_read_input_tokens": usage.cache_read,
                "output_tokens": usage.output,
                "output_tokens_details": { "thinking_tokens": usage.thinking },
            });
        }
        self.event("message_delta", &data);
    }

    fn error(&mut self, problem: &Problem, request_id: &str) {
        self.raw_event("error", problem.to_json(request_id).as_bytes());
    }
}
