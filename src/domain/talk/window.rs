//! What does not fit into the model's context window.
//!
//! A turn here is what begins with a message of the user that answers no tool: so a result is never
//! parted from its call. The last one, the question itself, always stays, and so do messages of the
//! role `system`.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Talk;
use crate::domain::job::{OnContextOverflow, Raw};
use crate::domain::outcome::{Fault, Outcome};

/// What of the window is kept free for the answer where turns are dropped to fit: its sixteenth part,
/// and no more than the answer may have.
const FREE_SHARE: i64 = 16;

impl Talk {
    /// Whether the input may be counted before it is sent: once for each request.
    pub fn window(&self) -> Option<i64> {
        self.job.facts.window.filter(|_| !self.fits)
    }

    /// The next request is sent without having been counted.
    pub fn unmeasured(&mut self) {
        self.fits = true;
    }

    /// Takes how many input tokens the next request has, of how many that the model reads. What is too
    /// much is left out, or ends the conversation; `Step` says which.
    pub fn measured(&mut self, tokens: i64, window: i64) {
        let free = match self.job.policy.on_context_overflow {
            OnContextOverflow::Fail => 0,
            OnContextOverflow::DropOldest => self.room.min(window / FREE_SHARE),
        };
        if tokens.saturating_add(free) <= window {
            self.fits = true;
            return;
        }
        let dropped = match self.job.policy.on_context_overflow {
            OnContextOverflow::Fail => None,
            OnContextOverflow::DropOldest => self.drop_oldest(tokens, window - free),
        };
        match dropped {
            Some(dropped) => self.dropped = dropped,
            None => self.overflow(tokens, window),
        }
    }

    /// How many messages are to be left out, if more can be.
    fn drop_oldest(&self, tokens: i64, fit: i64) -> Option<usize> {
        let messages = &self.job.messages;
        let sent = self.request_size().max(1) as f64;
        let too_much = sent * (1.0 - fit as f64 / tokens as f64);
        let mut gone = 0;
        let mut bytes = 0.0;
        let mut last = None;
        let kept = messages.iter().filter(|message| !is_system(message)).skip(self.dropped);
        let mut rest = kept.peekable();
        while let Some(message) = rest.next() {
            gone += 1;
            bytes += message.get().len() as f64;
            let Some(next) = rest.peek() else { break };
            if begins_turn(next) {
                last = Some(self.dropped + gone);
                if bytes >= too_much {
                    break;
                }
            }
        }
        last
    }

    fn overflow(&mut self, tokens: i64, window: i64) {
        let model = &self.job.model;
        if self.mends() {
            let why = format!(
                "the answer was cut, and to make it whole takes an input of {tokens} tokens: {model} reads at most {window}"
            );
            return self.end_truncated("context_window", &why);
        }
        let advice = match self.job.policy.on_context_overflow {
            OnContextOverflow::Fail => "shorten it, or set policy.on_context_overflow to drop_oldest",
            OnContextOverflow::DropOldest => "even without its older turns: shorten it",
        };
        let why = format!("the input has {tokens} tokens, and {model} reads at most {window}: {advice}");
        let fault = Fault::new("context_overflow", Some("prompt_too_long"), why);
        // Only where no call was made it is we who refuse.
        let outcome = if self.calls == 0 { Outcome::Invalid } else { Outcome::Failed };
        self.end(outcome, Some(fault));
    }

    /// The job's own messages that are sent.
    pub(super) fn own_messages(&self) -> impl Iterator<Item = &Raw> {
        let mut left_out = 0;
        let dropped = self.dropped;
        self.job.messages.iter().filter(move |message| {
            let goes = left_out < dropped && !is_system(message);
            left_out += usize::from(goes);
            !goes
        })
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    role: &'a str,
    #[serde(borrow)]
    content: &'a RawValue,
}

fn is_system(message: &Raw) -> bool {
    serde_json::from_str::<Message<'_>>(message.get()).is_ok_and(|message| message.role == "system")
}

/// Whether a message begins a turn: the user's, and no tool's result.
fn begins_turn(message: &Raw) -> bool {
    #[derive(Deserialize)]
    struct Block<'a> {
        #[serde(rename = "type", borrow)]
        kind: Option<std::borrow::Cow<'a, str>>,
    }
    let Ok(message) = serde_json::from_str::<Message<'_>>(message.get()) else { return false };
    let blocks: Vec<Block<'_>> = serde_json::from_str(message.content.get()).unwrap_or_default();
    message.role == "user" && !blocks.iter().any(|block| block.kind.as_deref() == Some("tool_result"))
}
