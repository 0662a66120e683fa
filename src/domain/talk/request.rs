//! The body of the next call: the job's messages, what was said since, and the fields of the row.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::note::Note;
use super::{Next, Request, Talk};
use crate::domain::job::{json_string, message, user_message};
use crate::domain::seam::{How, Seam};

/// Output that is sent again is worth a place in the cache from so many tokens on: writing costs a
/// quarter more than reading afresh, reading a tenth or less (API reference, Pricing).
const CACHE_MIN: i64 = 8192;

impl Talk {
    pub(super) fn request(&self, next: Next) -> Request {
        let more = self.spoken(next);
        let own = self.own_messages();
        let messages = (own.clone().count() + more.len()) as i32;
        Request {
            kind: next.kind(),
            model: self.job.model.clone(),
            body: self.body(next, own, &more),
            max_tokens: self.room,
            messages,
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

    fn body<'a>(
        &self,
        next: Next,
        own: impl Iterator<Item = &'a RawValue> + Clone,
        more: &'a [Box<RawValue>],
    ) -> Bytes {
        let all = own.map(RawValue::get).chain(more.iter().map(|message| message.get()));
        let fields = self.job.fields_for(&self.job.facts);
        let size: usize = all.clone().map(str::len).sum::<usize>()
            + fields.iter().map(|(name, value)| name.len() + value.len() + 8).sum::<usize>();
        let mut out = String::with_capacity(size + 256);
        out.push_str(r#"{"model":"#);
        out.push_str(json_string(&self.job.model).get());
        out.push_str(r#","max_tokens":"#);
        out.push_str(&self.room.to_string());
        out.push_str(r#","messages":["#);
        for (at, message) in all.enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(message);
        }
        out.push(']');
        let container = self.container_id();
        for (name, value) in &fields {
            // The conversation goes on in the container that the last reply named.
            if *name == "container" && container.is_some() {
                continue;
            }
            out.push(',');
            out.push_str(json_string(name).get());
            out.push(':');
            out.push_str(value);
        }
        if let Some(id) = container {
            out.push_str(r#","container":"#);
            out.push_str(json_string(&id).get());
        }
        if self.is_worth_caching(next) {
            out.push_str(r#","cache_control":{"type":"ephemeral"}"#);
        }
        out.push_str(r#","stream":true}"#);
        Bytes::from(out)
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
