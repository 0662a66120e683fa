//! What the stand-in answers to a conversation: content, stop reason, usage. Pure.
//!
//! The whole answer to a prompt is known from the prompt, so an answer that was cut goes on from
//! where the assistant's text, compared with it, ends.

use serde_json::{Value, json};

use super::ask::{Ask, Role, Turn};
use super::marker::{self, Continues, FaultKind, Length, Script, Stop};
use super::shape;
use super::tools::{self, Scripted, Use};
use super::words::{self, Tokens};

/// Words of the answer to a prompt without markers.
const USUAL_WORDS: usize = 40;
/// About how much `[[continue other]]` repeats, in bytes.
const REPEAT_BYTES: usize = 200;
/// How much of the end of a text identifies its place, in bytes.
const TAIL_BYTES: usize = 48;
/// What stands before a tool call.
const LEAD: &str = "Let me look that up.";

/// A content block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// Text.
    Text(Tokens),
    /// Thinking; without a signature where it was cut.
    Thinking(Tokens, bool),
    /// A tool call: kind (`tool_use`, `server_tool_use`), id, name and its input as JSON text, which
    /// may be cut.
    Tool(&'static str, String, String, Tokens),
}

impl Block {
    /// Returns how many tokens it is.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Text(tokens) | Self::Thinking(tokens, _) | Self::Tool(_, _, _, tokens) => tokens.len(),
        }
    }

    fn truncate(&mut self, count: usize) {
        if count < self.tokens() {
            match self {
                Self::Thinking(tokens, whole) => {
                    *whole = false;
                    tokens.truncate(count);
                }
                Self::Text(tokens) | Self::Tool(_, _, _, tokens) => tokens.truncate(count),
            }
        }
    }
}

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Input behind the last cache breakpoint.
    pub input: u64,
    /// Input read from the cache.
    pub cache_read: u64,
    /// Input written to it.
    pub cache_write: u64,
    /// Of that, what is kept for an hour.
    pub cache_write_hour: u64,
    /// Output, thinking included.
    pub output: u64,
    /// Thinking.
    pub thinking: u64,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its content.
    pub blocks: Vec<Block>,
    /// Its stop reason.
    pub stop_reason: String,
    /// The stop sequence that was met.
    pub stop_sequence: Option<String>,
    /// `stop_details`.
    pub stop_details: Value,
    /// Its tokens.
    pub usage: Usage,
}

/// A conversation, understood.
#[derive(Debug)]
pub struct Talk<'a> {
    /// The text of the user's last question of its own, whose markers hold.
    pub prompt: &'a str,
    /// Its markers.
    pub script: Script,
    /// The whole answer to it.
    whole: Tokens,
    /// How much of it was said, in bytes.
    place: usize,
    /// Whether what was said is not the start of the answer.
    pub lost: bool,
    /// What the user asks to repeat.
    anchor: Option<&'a str>,
    /// Turns that asked for tools, and blocks that paused.
    tool_turns: usize,
    pauses: usize,
    /// The schema that the answer follows: then it is JSON, and never goes on with another.
    schema: Option<&'a Value>,
    /// Whether the conversation holds that JSON already.
    shown: bool,
}

/// Returns the whole answer to a prompt, however many calls it takes.
pub fn whole(prompt: &str) -> Result<String, String> {
    Ok(whole_of(&marker::read(prompt)?, prompt, "").text)
}

/// `told`: what the scripted tools gave, which comes first.
fn whole_of(script: &Script, prompt: &str, told: &str) -> Tokens {
    let seed = script.seed.as_deref().unwrap_or(prompt);
    let mut whole = words::of_text(told);
    if !whole.is_empty() && script.length != Length::Usual {
        whole.append(&words::of_text("\n\n"));
    }
    whole.append(&match &script.length {
        Length::Usual if !script.tools.is_empty() => Tokens::default(),
        Length::Usual => words::of_words(seed, USUAL_WORDS),
        Length::Words(count) => words::of_words(seed, *count),
        Length::Tokens(count) => words::of_tokens(seed, *count),
        Length::Say(text) => words::of_text(text),
    });
    whole
}

impl<'a> Talk<'a> {
    /// Finds the prompt of a conversation and how much of its answer stands in it. The error names
    /// the marker that is wrong.
    ///
    /// A marked prompt stays in force over turns without markers of their own, until its answer is
    /// whole: so "please continue" needs no markers.
    pub fn read(turns: &'a [Turn], schema: Option<&'a Value>) -> Result<Self, String> {
        let questions: Vec<usize> = (0..turns.len()).filter(|&at| is_question(turns, at)).collect();
        let last = questions.last().copied().unwrap_or(0);
        let marked = questions.iter().rev().copied().find(|&at| marker::has_marker(&turns[at].text));
        let talk = Self::at(turns, marked.unwrap_or(last), schema)?;
        let answered = talk.shown || (talk.place > 0 && talk.place >= talk.whole.text.trim_end().len());
        match marked {
            Some(marked) if marked < last && answered => Self::at(turns, last, schema),
            _ => Ok(talk),
        }
    }

    fn at(turns: &'a [Turn], question: usize, schema: Option<&'a Value>) -> Result<Self, String> {
        let prompt = turns[question].text.as_str();
        let script = marker::read(prompt)?;
        // What a marker says that the answer is comes before what it should look like.
        let schema = schema.filter(|_| script.length == Length::Usual);
        let told = if script.tools.is_empty() { String::new() } else { tools::told(&turns[question..]) };
        let whole = match schema {
            Some(schema) => {
                words::of_text(&shape::json(schema, script.seed.as_deref().unwrap_or(prompt), None))
            }
            None => whole_of(&script, prompt, &told),
        };
        let mut talk = Self {
            prompt,
            script,
            whole,
            place: 0,
            lost: false,
            anchor: None,
            tool_turns: 0,
            pauses: 0,
            schema,
            shown: false,
        };
        for (at, turn) in turns.iter().enumerate().skip(question + 1) {
            if turn.role != Role::Assistant {
                talk.anchor = anchor_in(&turn.text);
                continue;
            }
            talk.pauses += turn.server_tools;
            if !turn.tool_uses.is_empty() {
                if let Some(calls) = talk.script.tools.get(talk.tool_turns) {
                    tools::check_echo(at, turn, talk.script.thinking > 0, &talk.uses(calls))?;
                }
                talk.tool_turns += 1;
            } else if schema.is_some() {
                talk.shown |= turn.text.trim() == talk.whole.text;
            } else if turn.server_tools == 0 {
                talk.heard(&turn.text);
            }
        }
        if turns.last().is_some_and(|turn| turn.role == Role::Assistant) {
            talk.anchor = None;
        }
        Ok(talk)
    }

    /// Lets the answer miss the schema that it should follow, where the fault says so.
    pub fn misshape(&mut self, fault: Option<&FaultKind>) {
        if let (Some(schema), Some(FaultKind::Misshape(how))) = (self.schema, fault) {
            let seed = self.script.seed.as_deref().unwrap_or(self.prompt);
            self.whole = words::of_text(&shape::json(schema, seed, Some(*how)));
        }
    }

    /// Whether this call goes on with an answer.
    pub fn continues(&self) -> bool {
        self.place > 0
    }

    /// Moves on over what the assistant has said.
    fn heard(&mut self, text: &str) {
        let text = match self.anchor {
            Some(anchor) if self.place > 0 => text.strip_prefix(anchor).unwrap_or(text),
            _ => text,
        };
        let rest = &self.whole.text[self.place..];
        let skipped = rest.len() - rest.trim_start().len();
        let bare = text.trim_start();
        if rest.starts_with(text) {
            self.place += text.len();
        } else if rest[skipped..].starts_with(bare) && self.place > 0 {
            self.place += skipped + bare.len();
        } else {
            self.lost = true;
            let tail = &text[text.ceil_char_boundary(text.len().saturating_sub(TAIL_BYTES))..];
            if let Some(at) = self.whole.text.rfind(tail).filter(|_| tail.len() >= TAIL_BYTES / 2) {
                self.place = at + tail.len();
            }
        }
    }

    /// Returns the text of this call: what it repeats, and the rest of the answer.
    fn rest(&self) -> Tokens {
        if self.place == 0 {
            return self.whole.clone();
        }
        let said = &self.whole.text[..self.place];
        let behind = self.whole.rest_from(self.place);
        let lead = match (self.script.continues, self.anchor) {
            (Continues::Anchor, Some(anchor)) => anchor,
            (Continues::Other, _) => repeated(said),
            _ => "",
        };
        let mut text = words::of_text(lead);
        if self.script.continues == Continues::Bare {
            let skipped = behind.text.len() - behind.text.trim_start().len();
            text.append(&behind.rest_from(skipped));
        } else {
            text.append(&behind);
        }
        text
    }

    /// Answers.
    pub fn answer(&self, ask: &Ask) -> Answer {
        let mut answer = Answer {
            blocks: Vec::new(),
            stop_reason: "end_turn".to_owned(),
            stop_sequence: None,
            stop_details: Value::Null,
            usage: self.usage(ask),
        };
        if self.script.thinking > 0 {
            let thinking = words::of_tokens("thinking", self.script.thinking);
            answer.blocks.push(Block::Thinking(thinking, true));
        }
        let calls = self.script.tools.get(self.tool_turns);
        match (&self.script.stop, calls) {
            (Some(stop), _) if stop.reason == "pause_turn" && self.pauses < stop.count => {
                answer.blocks.extend(self.tool_blocks("server_tool_use", "web_search", 1));
                stop.reason.clone_into(&mut answer.stop_reason);
            }
            (_, Some(calls)) => {
                answer.blocks.extend(self.scripted_blocks(calls));
                "tool_use".clone_into(&mut answer.stop_reason);
            }
            (Some(stop), _) if stop.reason == "tool_use" && self.tool_turns < stop.turns => {
                let name = ask.tools.first().map_or("get_weather", String::as_str);
                answer.blocks.extend(self.tool_blocks("tool_use", name, stop.count));
                stop.reason.clone_into(&mut answer.stop_reason);
            }
            (stop, None) => {
                let text = self.rest();
                if !text.is_empty() {
                    answer.blocks.push(Block::Text(text));
                }
                answer.end(stop.as_ref(), ask);
            }
        }
        answer.limit(ask.max_tokens);
        answer.meet(&ask.stop_sequences);
        answer.count();
        answer
    }

    /// Answers nothing.
    pub fn empty_answer(&self, ask: &Ask) -> Answer {
        let mut answer = Answer {
            blocks: Vec::new(),
            stop_reason: "end_turn".to_owned(),
            stop_sequence: None,
            stop_details: Value::Null,
            usage: self.usage(ask),
        };
        answer.end(self.script.stop.as_ref(), ask);
        answer.usage.output = 2.min(ask.max_tokens as u64);
        answer
    }

    /// The usage of an answer that has not begun.
    pub fn usage(&self, ask: &Ask) -> Usage {
        let cached = self.script.cache.unwrap_or(ask.cached);
        let cache_read = cached.read.min(ask.input_tokens);
        let cache_write = cached.write.min(ask.input_tokens - cache_read);
        Usage {
            input: ask.input_tokens - cache_read - cache_write,
            cache_read,
            cache_write,
            cache_write_hour: cached.write_hour.min(cache_write),
            output: 0,
            thinking: 0,
        }
    }

    fn tool_blocks(&self, kind: &'static str, name: &str, count: usize) -> Vec<Block> {
        let turn = self.tool_turns + self.pauses;
        let mut blocks = vec![Block::Text(words::of_text(LEAD))];
        for number in 0..count {
            let subject = words::of_words(&format!("{turn}/{number}/{}", self.prompt), 3).text;
            let input = match name {
                "get_weather" => json!({ "location": subject }),
                _ => json!({ "query": subject }),
            };
            let id = self.call_id(kind, number);
            blocks.push(Block::Tool(kind, id, name.to_owned(), words::of_text(&input.to_string())));
        }
        blocks
    }

    fn scripted_blocks(&self, calls: &[Scripted]) -> Vec<Block> {
        let mut blocks = vec![Block::Text(words::of_text(LEAD))];
        blocks.extend(
            calls
                .iter()
                .zip(self.uses(calls))
                .map(|(call, said)| Block::Tool("tool_use", said.id, said.name, words::of_text(&call.input))),
        );
        blocks
    }

    /// The calls of the turn that comes now, as a client sends them back.
    fn uses(&self, calls: &[Scripted]) -> Vec<Use> {
        let said = calls.iter().enumerate().map(|(number, call)| Use {
            id: self.call_id("tool_use", number),
            name: call.name.clone(),
            input: call.value(),
        });
        said.collect()
    }

    fn call_id(&self, kind: &str, number: usize) -> String {
        let prefix = if kind == "tool_use" { "toolu" } else { "srvtoolu" };
        let turn = self.tool_turns + self.pauses;
        format!("{prefix}_{turn:02}{number:02}{}", fingerprint(self.prompt))
    }

    /// Names a scripted call that the request declares no tool for.
    pub fn undeclared(&self, declared: &[String]) -> Option<&str> {
        let mut calls = self.script.tools.iter().flatten().map(|call| call.name.as_str());
        calls.find(|name| !declared.iter().any(|known| known == name))
    }
}

impl Answer {
    fn end(&mut self, stop: Option<&Stop>, ask: &Ask) {
        let Some(stop) = stop else { return };
        match stop.reason.as_str() {
            // Their turns are over: the answer ends as any other.
            "tool_use" | "pause_turn" => return,
            "stop_sequence" => {
                let sequence = ask.stop_sequences.first().map_or("###", String::as_str);
                self.stop_sequence = Some(sequence.to_owned());
            }
            "refusal" => {
                self.stop_details = json!({
                    "type": "refusal",
                    "category": stop.category,
                    "explanation": "The stand-in was told to refuse this prompt.",
                });
            }
            _ => {}
        }
        stop.reason.clone_into(&mut self.stop_reason);
    }

    /// Keeps `max_tokens`.
    fn limit(&mut self, max_tokens: usize) {
        if self.blocks.iter().map(Block::tokens).sum::<usize>() <= max_tokens && max_tokens > 0 {
            return;
        }
        cut(&mut self.blocks, max_tokens);
        "max_tokens".clone_into(&mut self.stop_reason);
        self.stop_sequence = None;
        self.stop_details = Value::Null;
    }

    /// Stops at the first of the request's stop sequences.
    fn meet(&mut self, sequences: &[String]) {
        for at in 0..self.blocks.len() {
            let Block::Text(tokens) = &mut self.blocks[at] else { continue };
            let found =
                sequences.iter().filter_map(|word| Some((tokens.text.find(word.as_str())?, word))).min();
            let Some((byte, sequence)) = found else { continue };
            tokens.truncate_bytes(byte);
            let keep = if tokens.is_empty() { at } else { at + 1 };
            self.blocks.truncate(keep);
            "stop_sequence".clone_into(&mut self.stop_reason);
            self.stop_sequence = Some(sequence.clone());
            self.stop_details = Value::Null;
            return;
        }
    }

    fn count(&mut self) {
        self.usage.output = self.blocks.iter().map(Block::tokens).sum::<usize>() as u64;
        let thinking = self.blocks.iter().filter(|block| matches!(block, Block::Thinking(..)));
        self.usage.thinking = thinking.map(Block::tokens).sum::<usize>() as u64;
    }

    /// Returns the first tokens of the content, the last block left as it is cut.
    pub fn first(&self, tokens: usize) -> Vec<Block> {
        let mut blocks = self.blocks.clone();
        cut(&mut blocks, tokens);
        blocks
    }
}

/// Leaves so many tokens. A call without a word of input is said with what stands before it.
fn cut(blocks: &mut Vec<Block>, tokens: usize) {
    let mut left = tokens;
    blocks.retain_mut(|block| {
        let silent = block.tokens() == 0 && left > 0;
        block.truncate(left);
        left -= block.tokens();
        silent || block.tokens() > 0
    });
}

/// Whether a turn is the user's own question, not a tool's result or a wish to go on.
fn is_question(turns: &[Turn], at: usize) -> bool {
    let turn = &turns[at];
    let answered = turns[..at].iter().any(|turn| turn.role == Role::Assistant);
    let follows_up = answered && anchor_in(&turn.text).is_some() && !marker::has_marker(&turn.text);
    turn.role == Role::User && !turn.text.is_empty() && !follows_up
}

/// The text between `<<<` and the last `>>>`.
fn anchor_in(text: &str) -> Option<&str> {
    let (_, behind) = text.split_once("<<<")?;
    let (anchor, _) = behind.rsplit_once(">>>")?;
    (!anchor.is_empty()).then_some(anchor)
}

/// The last two hundred bytes or so, from the start of a sentence, else of a word.
fn repeated(said: &str) -> &str {
    let from = said.ceil_char_boundary(said.len().saturating_sub(REPEAT_BYTES));
    let tail = &said[from..];
    if from == 0 {
        return tail;
    }
    let start = tail.find(". ").map(|at| at + 2).filter(|at| tail.len() - at >= TAIL_BYTES);
    &tail[start.or_else(|| tail.find(' ').map(|at| at + 1)).unwrap_or(0)..]
}

/// Sixteen hex digits of a text.
fn fingerprint(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
