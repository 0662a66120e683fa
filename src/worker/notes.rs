//! The text of one running stream, on its way into `checkpoints`: what came since the last part,
//! and the parts that the database has not taken yet.
//!
//! A part that was handed out keeps its number and its text until it is written, so that a write
//! whose answer was lost can be tried again and leaves neither a gap nor a repetition.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::job::Lease;
use crate::domain::ledger::Checkpoint;
use crate::domain::reply::sanitise;
use crate::domain::talk::Request;

/// So many bytes are worth a write before their time.
const BYTES: usize = 16 * 1024;

/// The notes of one attempt.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Option<Call>>);

#[derive(Debug)]
struct Call {
    seq: i32,
    head: String,
    fresh: String,
    since: Instant,
    parts: i32,
    unwritten: Vec<Arc<Checkpoint>>,
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Option<Call>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins whose text is worth keeping.
    pub fn begin(&self, seq: i32, request: &Request, now: Instant) {
        let head = head(request);
        *self.lock() =
            Some(Call { seq, head, fresh: String::new(), since: now, parts: 0, unwritten: Vec::new() });
    }

    /// Text came.
    pub fn hear(&self, text: &str) {
        if let Some(call) = &mut *self.lock() {
            call.fresh.push_str(text);
        }
    }

    /// The call is over. Returns whether parts of it may stand in the database.
    pub fn end(&self) -> bool {
        self.lock().take().is_some_and(|call| call.parts > 0)
    }

    /// Returns the parts that are to be written now: the text of `every`, or of less where much came.
    pub fn due(&self, lease: Lease, every: Duration, now: Instant) -> Vec<Arc<Checkpoint>> {
        let mut call = self.lock();
        let Some(call) = &mut *call else { return Vec::new() };
        let late = now.saturating_duration_since(call.since) >= every;
        if !call.fresh.is_empty() && (late || call.fresh.len() >= BYTES) {
            if call.parts == 0 {
                let head = std::mem::take(&mut call.head);
                call.cut(lease, head);
            }
            let fresh = std::mem::take(&mut call.fresh);
            call.cut(lease, sanitise(fresh).0);
            call.since = now;
        }
        call.unwritten.clone()
    }

    /// The database has the parts of a call below this number.
    pub fn written(&self, seq: i32, parts: i32) {
        if let Some(call) = &mut *self.lock()
            && call.seq == seq
        {
            call.unwritten.retain(|part| part.part >= parts);
        }
    }
}

impl Call {
    fn cut(&mut self, lease: Lease, content: String) {
        self.unwritten.push(Arc::new(Checkpoint { lease, seq: self.seq, part: self.parts, content }));
        self.parts += 1;
    }
}

/// What the ledger's row of a call has to know if nobody is left to write it.
fn head(request: &Request) -> String {
    #[derive(serde::Serialize)]
    struct Head<'a> {
        kind: &'a str,
        model: &'a str,
        max_tokens: i64,
        messages: i32,
        request: Option<&'a str>,
    }
    let head = Head {
        kind: request.kind.as_str(),
        model: &request.model,
        max_tokens: request.max_tokens,
        messages: request.messages,
        request: request.note.as_deref(),
    };
    serde_json::to_string(&head).expect("words and numbers always serialise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::body::Body;
    use crate::domain::context::Size;
    use crate::domain::job::JobId;
    use crate::domain::ledger::CallKind;

    const LEASE: Lease = Lease { job: JobId(1), claim: 2, run: 1 };
    const EVERY: Duration = Duration::from_secs(5);

    fn begun(now: Instant) -> Notes {
        let notes = Notes::default();
        let request = Request {
            kind: CallKind::Continue,
            model: "m".into(),
            body: Body::default(),
            input: Size::default(),
            max_tokens: 10,
            messages: 3,
            prefilled: false,
            timeout: Duration::from_secs(1),
            note: Some(r#"{"how":"anchor"}"#.into()),
        };
        notes.begin(4, &request, now);
        notes
    }

    #[test]
    fn each_part_holds_only_what_came_since_the_last() {
        let now = Instant::now();
        let notes = begun(now);
        notes.hear("one ");
        assert!(notes.due(LEASE, EVERY, now).is_empty(), "not yet");
        let later = now + Duration::from_secs(5);
        let parts: Vec<(i32, String)> =
            notes.due(LEASE, EVERY, later).iter().map(|part| (part.part, part.content.clone())).collect();
        let head = r#"{"kind":"continue","model":"m","max_tokens":10,"messages":3,"request":"{\"how\":\"anchor\"}"}"#;
        assert_eq!(parts, [(0, head.to_owned()), (1, "one ".to_owned())]);
        notes.written(4, 2);
        notes.hear(&"x".repeat(BYTES));
        let parts = notes.due(LEASE, EVERY, later);
        assert_eq!(
            (parts.len(), parts[0].part, parts[0].content.len()),
            (1, 2, BYTES),
            "much is written sooner"
        );
        assert!(notes.end());
        assert!(notes.due(LEASE, EVERY, later).is_empty(), "a call that is over has nothing to keep");
    }

    #[test]
    fn a_part_that_was_not_written_is_handed_out_again_as_it_was() {
        let now = Instant::now();
        let notes = begun(now);
        notes.hear("one ");
        let later = now + Duration::from_secs(5);
        let first = notes.due(LEASE, EVERY, later);
        notes.hear("two");
        let again = notes.due(LEASE, EVERY, later);
        assert_eq!(first, again);
        let third = notes.due(LEASE, EVERY, later + Duration::from_secs(5));
        assert_eq!(third[..2], first[..]);
        assert_eq!((third[2].part, third[2].content.as_str()), (2, "two"));
    }
}
