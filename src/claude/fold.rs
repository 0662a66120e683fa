//! Folds the events of one stream into a [`Reply`].
//!
//! Takes one event at a time and never fails on what it does not know: unknown events are skipped,
//! unknown blocks, deltas, fields and stop reasons are kept as they came. What cannot be read without
//! guessing is [`Broken`], so that a damaged stream never passes for a whole answer.
//!
//! # What odd streams become
//! - A block is found by its `index`; the newest of several with the same one takes the deltas. The
//!   blocks stand in the order of their indices, equal ones in the order of their coming.
//! - A delta without a start implies a block of its kind; one behind the block's stop opens it again.
//! - Blocks still open at the end are not `whole`.
//! - A second `message_start` is accepted only while no content has come: behind it, nobody could
//!   tell a replay from a second answer.
//! - A stop reason counts without `message_stop` only where every block was closed and nothing came
//!   behind it ([`Fold::settled`]); the one in `message_start` counts only with `message_stop`.

mod block;
mod fields;

use serde::Deserialize;
use serde_json::value::RawValue;

use self::block::Growing;
use self::fields::{Fields, word};
use super::wire;
use crate::domain::outcome::{ApiError, Usage};
use crate::domain::reply::{Reply, decode_string, sanitise};
use crate::domain::stop::StopReason;

/// Most content blocks of one reply; a real one has a few hundred at most.
const BLOCKS_MAX: usize = 10_000;

/// Most tokens that one call can count: more is nonsense, and would overflow a sum over many rows.
const TOKENS_MAX: i64 = 1_000_000_000_000;

/// An event that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(String);

impl Broken {
    fn delta(field: &str) -> Self {
        Self(format!("a delta's {field} is not a string"))
    }
}

/// What an event was.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// A ping, or something unknown.
    Nothing,
    /// The message's frame: its start, its stop reason, its usage.
    Frame,
    /// Content.
    Content,
    /// `message_stop`: nothing follows.
    End,
    /// An error, and the `request_id` in it.
    Error(ApiError, Option<String>),
}

/// Whether the call was answered to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The server's token counts hold.
    Whole,
    /// Cut: the server did not get to say what it cost.
    Cut,
}

/// A reply in the making.
#[derive(Debug, Default)]
pub struct Fold {
    head: Reply,
    blocks: Vec<Growing>,
    usage: Option<Fields>,
    /// The stop reason of `message_start`.
    early_stop: Option<StopReason>,
    /// Content came behind the stop reason.
    content_after_stop: bool,
    /// What text blocks gained since it was last asked for, escaped.
    fresh: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    index: Option<&'a RawValue>,
    #[serde(borrow)]
    content_block: Option<&'a RawValue>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// The fields of a message, and those of `message_delta.delta`.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    stop_reason: Option<&'a RawValue>,
    #[serde(borrow)]
    stop_sequence: Option<&'a RawValue>,
    #[serde(borrow)]
    stop_details: Option<&'a RawValue>,
    #[serde(borrow)]
    container: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

impl Fold {
    /// Returns a fold of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one event: its name (may be empty: `data.type` decides) and its data.
    ///
    /// Invalid UTF-8 becomes U+FFFD.
    pub fn event(&mut self, name: &[u8], data: &[u8]) -> Result<Seen, Broken> {
        let data = String::from_utf8_lossy(data);
        let event = match Event::read(&data) {
            Ok(event) => event,
            // Some servers end with the sentinel of another protocol, or send heartbeats in words.
            Err(_) if data.trim() == "[DONE]" || (!name.is_empty() && !is_ours(name)) => {
                return Ok(Seen::Nothing);
            }
            Err(why) => return Err(Broken(format!("an event is not a JSON object: {why}"))),
        };
        let kind = match event.kind {
            Some(_) => word(event.kind),
            None => String::from_utf8_lossy(name),
        };
        match kind.as_ref() {
            "message_start" => self.start(event.message),
            "content_block_start" => self.start_block(&event),
            "content_block_delta" => self.delta(&event),
            "content_block_stop" => Ok(self.stop_block(&event)),
            "message_delta" => self.frame(&event),
            "message_stop" => {
                self.head.stop = self.head.stop.take().or(self.early_stop.take());
                Ok(Seen::End)
            }
            "error" => Ok(error_seen(&data)),
            "" if event.error.is_some() => Ok(error_seen(&data)),
            _ => Ok(Seen::Nothing),
        }
    }

    /// Reads a whole message, as a server sends it that does not stream.
    ///
    /// An error object is [`Seen::Error`], though its status was 200.
    pub fn whole_message(&mut self, json: &[u8]) -> Result<Seen, Broken> {
        let json = String::from_utf8_lossy(json);
        let json = json.trim_start_matches('\u{feff}');
        let event =
            Event::read(json).map_err(|why| Broken(format!("the reply is not a JSON object: {why}")))?;
        if word(event.kind) == "error" || event.error.is_some() {
            return Ok(error_seen(json));
        }
        let message = read_message(json)?;
        if message.content.is_none() {
            return Err(Broken("the reply is a JSON object without content".to_owned()));
        }
        self.begin(&message)?;
        self.head.stop = self.early_stop.take();
        Ok(Seen::End)
    }

    /// Returns what text blocks gained since the last time. A pair of surrogates that stands in two
    /// chunks is lost to it; the reply itself has it.
    pub fn take_fresh_text(&mut self) -> Option<String> {
        if self.fresh.is_empty() {
            return None;
        }
        let text = decode_string(&format!("\"{}\"", self.fresh));
        self.fresh.clear();
        Some(text)
    }

    /// Whether a stop reason came.
    pub fn has_stop(&self) -> bool {
        self.head.stop.is_some()
    }

    /// Whether the answer is all there, `message_stop` or not: a stop reason came, every block was
    /// closed before it, and no content came behind it.
    pub fn settled(&self) -> bool {
        self.has_stop() && !self.content_after_stop && self.blocks.iter().all(|block| !block.open)
    }

    /// Returns the reply as far as it came.
    ///
    /// The server counts a call's output at its end, so of a cut call only the input is known (from
    /// `message_start`): its output is taken as one token for 3.5 bytes of what arrived, where the
    /// server's number is lower.
    pub fn finish(mut self, ended: Ended) -> Reply {
        let mut reply = self.head;
        if let Some(usage) = &self.usage {
            reply.usage = read_usage(usage);
            reply.usage_raw = Some(usage.write());
        }
        if ended == Ended::Cut {
            let bytes = self.blocks.iter().map(Growing::content_bytes).sum::<usize>();
            let tokens = i64::try_from((bytes * 2).div_ceil(7)).unwrap_or(TOKENS_MAX);
            reply.usage.output = reply.usage.output.max(tokens);
        }
        self.blocks.sort_by_key(|block| block.index);
        reply.content = self.blocks.into_iter().map(Growing::finish).collect();
        reply
    }

    fn start(&mut self, message: Option<&RawValue>) -> Result<Seen, Broken> {
        if self.blocks.iter().any(|block| !block.foretold) || self.has_stop() {
            return Err(Broken("a second message_start came after the first one's content".to_owned()));
        }
        *self = Self::default();
        let Some(message) = message else { return Ok(Seen::Frame) };
        self.begin(&read_message(message.get())?)?;
        Ok(if self.blocks.is_empty() { Seen::Frame } else { Seen::Content })
    }

    fn begin(&mut self, message: &Message<'_>) -> Result<(), Broken> {
        self.head.message_id = clean(message.id);
        self.head.model = clean(message.model);
        self.early_stop = clean(message.stop_reason).map(|word| StopReason::from(word.as_str()));
        self.take_frame(message);
        self.usage = message.usage.and_then(|usage| Fields::read(usage.get()));
        let Some(content) = message.content.map(RawValue::get) else { return Ok(()) };
        if content.starts_with('"') {
            return self.foretell(0, &format!("{{\"type\":\"text\",\"text\":{content}}}"));
        }
        let blocks: Vec<&RawValue> = serde_json::from_str(content)
            .map_err(|err| Broken(format!("the message's content is not an array: {err}")))?;
        blocks.iter().zip(0..).try_for_each(|(block, index)| self.foretell(index, block.get()))
    }

    fn foretell(&mut self, index: u64, block: &str) -> Result<(), Broken> {
        let mut block = Growing::start(index, block).ok_or_else(no_block)?;
        block.open = false;
        block.foretold = true;
        self.add(block)
    }

    fn start_block(&mut self, event: &Event<'_>) -> Result<Seen, Broken> {
        let index = index_of(event).unwrap_or_else(|| self.next_index());
        let block = event.content_block.and_then(|block| Growing::start(index, block.get()));
        let block = block.ok_or_else(no_block)?;
        self.blocks.retain(|known| !(known.foretold && known.index == index));
        self.content_came();
        self.add(block)?;
        Ok(Seen::Content)
    }

    fn delta(&mut self, event: &Event<'_>) -> Result<Seen, Broken> {
        let delta = event.delta.ok_or_else(|| Broken("a content_block_delta has no delta".to_owned()))?;
        let at = if let Some(at) = self.find(event) {
            at
        } else {
            let index = index_of(event).unwrap_or_else(|| self.next_index());
            self.add(Growing::implied(index, delta)?)?;
            self.blocks.len() - 1
        };
        let block = &mut self.blocks[at];
        if let Some(text) = block.grow(delta)? {
            self.fresh.push_str(text);
        }
        // An empty delta behind the end brings nothing that could be missing.
        if block.open {
            self.content_came();
        }
        Ok(Seen::Content)
    }

    fn stop_block(&mut self, event: &Event<'_>) -> Seen {
        if let Some(at) = self.find(event) {
            self.blocks[at].open = false;
        }
        Seen::Frame
    }

    fn frame(&mut self, event: &Event<'_>) -> Result<Seen, Broken> {
        if let Some(delta) = event.delta {
            let delta = read_message(delta.get())?;
            if let Some(stop) = clean(delta.stop_reason) {
                self.head.stop = Some(StopReason::from(stop.as_str()));
                self.content_after_stop = false;
            }
            self.take_frame(&delta);
        }
        // Cumulative: what is named replaces, what is absent keeps its value.
        if let Some(usage) = event.usage.and_then(|usage| Fields::read(usage.get())) {
            self.usage.get_or_insert_default().overlay(&usage);
        }
        Ok(Seen::Frame)
    }

    fn take_frame(&mut self, message: &Message<'_>) {
        let raw = |value: Option<&RawValue>| value.map(|value| value.get().to_owned());
        if let Some(sequence) = message.stop_sequence {
            self.head.stop_sequence = Some(sanitise(decode_string(sequence.get())).0);
        }
        self.head.stop_details = raw(message.stop_details).or(self.head.stop_details.take());
        self.head.container = raw(message.container).or(self.head.container.take());
    }

    fn content_came(&mut self) {
        self.content_after_stop |= self.has_stop();
    }

    fn add(&mut self, block: Growing) -> Result<(), Broken> {
        if self.blocks.len() >= BLOCKS_MAX {
            return Err(Broken(format!("the reply has more than {BLOCKS_MAX} content blocks")));
        }
        self.blocks.push(block);
        Ok(())
    }

    /// The newest block with the event's index; without an index, the newest open one.
    fn find(&self, event: &Event<'_>) -> Option<usize> {
        match index_of(event) {
            Some(index) => self.blocks.iter().rposition(|block| block.index == index),
            None => self.blocks.iter().rposition(|block| block.open),
        }
    }

    fn next_index(&self) -> u64 {
        self.blocks.iter().map(|block| block.index).max().map_or(0, |index| index.saturating_add(1))
    }
}

impl<'a> Event<'a> {
    fn read(json: &'a str) -> Result<Self, String> {
        // serde would read an array as the fields in their order.
        if !json.trim_start().starts_with('{') {
            return Err("it does not start with a brace".to_owned());
        }
        serde_json::from_str(json).map_err(|err| err.to_string())
    }
}

fn is_ours(name: &[u8]) -> bool {
    name == b"error" || name.starts_with(b"message_") || name.starts_with(b"content_block_")
}

fn error_seen(data: &str) -> Seen {
    let (error, request_id) = wire::api_error(200, data.as_bytes());
    Seen::Error(error, request_id)
}

fn no_block() -> Broken {
    Broken("a content block is not an object with a type".to_owned())
}

fn index_of(event: &Event<'_>) -> Option<u64> {
    event.index.and_then(|index| index.get().parse().ok())
}

fn read_message(json: &str) -> Result<Message<'_>, Broken> {
    serde_json::from_str(json).map_err(|err| Broken(format!("a message's frame is unreadable: {err}")))
}

/// A word for a text column; an empty one is none.
fn clean(raw: Option<&RawValue>) -> Option<String> {
    Some(word(raw)).filter(|word| !word.is_empty()).map(|word| sanitise(word).0)
}

fn read_usage(usage: &Fields) -> Usage {
    let count = |key: &str| {
        let number = usage.get(key).and_then(|json| json.parse::<f64>().ok()).unwrap_or(0.0);
        // `as` saturates, and turns NaN into 0.
        (number as i64).clamp(0, TOKENS_MAX)
    };
    Usage {
        input: count("input_tokens"),
        output: count("output_tokens"),
        cache_creation: count("cache_creation_input_tokens"),
        cache_read: count("cache_read_input_tokens"),
    }
}
