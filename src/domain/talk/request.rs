//! The body of the next call: the job's messages, what was said since, and the fields of the row.

use serde_json::value::RawValue;

use super::note::Note;
use super::{Next, Request, Talk};
use crate::domain::body::Body;
use crate::domain::context::Size;
use crate::domain::job::{Raw, json_string, message, user_message};
use crate::domain::seam::{How, Seam};

/// Output that is sent again is worth a place in the cache from so many tokens on: writing costs a
/// quarter more than reading afresh, reading a tenth or less (API reference, Pricing).
const CACHE_MIN: i64 = 8192;

impl Talk {
    pub(super) fn request(&self, next: Next) -> Request {
        let said: Vec<Raw> = self.spoken(next).into_iter().map(Raw::from).collect();
        let messages: Vec<&Raw> = self.own_messages().chain(&said).collect();
        let (body, input) = self.body(next, &messages);
        Request {
            kind: next.kind(),
            model: self.job.model.clone(),
            body,
            input,
            max_tokens: self.room,
            messages: messages.len() as i32,
            prefilled: next.joins() && self.how == How::Prefill,
            timeout: self.job.policy.timeout,
            note: self.note(next, None).text(),
        }
    }

    pub(super) fn note(&self, next: Next, seam: Option<Seam>) -> Note {
        Note::new(next.joins().then_some(self.how), seam, self.dropped)
    }

    /// What was said since the job's own messages.
    fn spoken(&self, next: Next) -> Vec<Box<RawValue>> {
        let mut said: Vec<Box<RawValue>> =
            self.past.iter().filter_map(|spoken| spoken.message(false)).collect();
        if !next.goes_on() {
            return said;
        }
        let prefill = self.how == How::Prefill;
        if next == Next::Pause || self.job.tools {
            let turn = self.turn.spoken();
            let ends = next == Next::Pause || prefill;
            let last = |at: usize| ends && at + 1 == turn.len();
            said.extend(turn.iter().enumerate().filter_map(|(at, spoken)| spoken.message(last(at))));
        } else if self.is_worth_caching(next) {
            said.push(message("assistant", &self.turn.cached_text()));
        } else {
            // Text alone: what the model thought need not be sent again.
            let text = self.turn.text();
            said.push(message("assistant", json_string(text.trim_end()).get()));
        }
        if next.joins() && !prefill {
            said.push(user_message(&self.turn.instruction()));
        }
        said
    }

    /// Bytes of the messages that are sent next.
    pub(super) fn request_size(&self) -> usize {
        let own: usize = self.own_messages().map(|message| message.get().len()).sum();
        let said = self.past.iter().filter_map(|spoken| spoken.message(false));
        own + said.map(|message| message.get().len()).sum::<usize>()
    }

    /// The body, and what is in it to be read.
    fn body(&self, next: Next, messages: &[&Raw]) -> (Body, Size) {
        let mut body = Body::default();
        let mut input = Size::default();
        body.push_str(r#"{"model":"#);
        body.push_str(json_string(&self.job.model).get());
        body.push_str(r#","max_tokens":"#);
        body.push_str(&self.room.to_string());
        body.push_str(r#","messages":["#);
        for (at, message) in messages.iter().enumerate() {
            if at > 0 {
                body.push_str(",");
            }
            body.push_raw(message);
            input += Size::of(message.get());
        }
        body.push_str("]");
        let container = self.container_id();
        for (name, value) in &self.job.fields_for(&self.job.facts) {
            // The conversation goes on in the container that the last reply named.
            if *name == "container" && container.is_some() {
                continue;
            }
            body.push_str(",");
            body.push_str(json_string(name).get());
            body.push_str(":");
            body.push_raw(value);
            input += Size::of(value.get());
        }
        if let Some(id) = container {
            body.push_str(r#","container":"#);
            body.push_str(json_string(&id).get());
        }
        // A text that is gone on with marks itself: what is asked behind it is another each time.
        if self.is_worth_caching(next) && (self.job.tools || !next.joins()) {
            body.push_str(r#","cache_control":{"type":"ephemeral"}"#);
        }
        body.push_str(r#","stream":true}"#);
        (body, input)
    }

    /// Whether what is sent will be sent again, or is being so: every call of a conversation with tools,
    /// and long answers that are gone on with.
    fn is_worth_caching(&self, next: Next) -> bool {
        self.job.cache_turns && (self.job.converses() || (next.goes_on() && self.said >= CACHE_MIN))
    }

    fn container_id(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Container {
            id: String,
        }
        let raw = self.last.container.as_deref()?;
        serde_json::from_str::<Container>(raw).ok().map(|container| container.id)
    }
}
