//! Takes the body of a 200, chunk by chunk, whatever it is: a stream of events, one JSON message (some
//! servers ignore `stream`), or something that is no reply at all. Knows no network.

use crate::claude::fold::{Broken, Fold, Seen};
use crate::claude::sse::Parser;
use crate::claude::wire;
use crate::domain::outcome::Failure;

/// Longest part of a foreign body that is quoted, in bytes.
const QUOTE_MAX: usize = 300;

/// Size limits of a reply, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) response_max: usize,
    pub(super) event_max: usize,
}

/// Whether more is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Over,
}

/// The body so far.
pub(super) struct Intake {
    pub(super) fold: Fold,
    body: Body,
    sizes: Sizes,
    taken: usize,
    /// An event came, be it a ping.
    pub(super) first_event: bool,
    /// Content came.
    pub(super) content: bool,
    /// `request_id` of an error in the body.
    pub(super) request_id: Option<String>,
}

enum Body {
    /// Nothing but white space yet.
    Unknown(Vec<u8>),
    Events(Parser),
    Message(Vec<u8>),
}

impl Intake {
    pub(super) fn new(sizes: Sizes) -> Self {
        Self {
            fold: Fold::new(),
            body: Body::Unknown(Vec::new()),
            sizes,
            taken: 0,
            first_event: false,
            content: false,
            request_id: None,
        }
    }

    /// Takes the next bytes.
    pub(super) fn take(&mut self, chunk: &[u8]) -> Result<Progress, Failure> {
        self.taken += chunk.len();
        if self.taken > self.sizes.response_max {
            let max = self.sizes.response_max;
            return Err(Failure::TooLarge(format!(
                "the reply is larger than api.response_max_bytes = {max}: ask for less, or raise it in the configuration"
            )));
        }
        if let Body::Unknown(head) = &mut self.body {
            let joined;
            let start = if head.is_empty() {
                chunk
            } else {
                joined = [head, chunk].concat();
                &joined
            };
            match first_character(start) {
                None => {
                    *head = start.to_vec();
                    return Ok(Progress::More);
                }
                Some(b'{' | b'[') => {
                    self.first_event = true;
                    self.body = Body::Message(start.to_vec());
                    return Ok(Progress::More);
                }
                Some(b':' | b'e' | b'd' | b'i' | b'r') => {
                    self.body = Body::Events(Parser::new(self.sizes.event_max));
                    return self.take_events(start);
                }
                Some(_) => return Err(foreign("neither a stream of events nor JSON", start)),
            }
        }
        if let Body::Message(message) = &mut self.body {
            message.extend_from_slice(chunk);
            return Ok(Progress::More);
        }
        self.take_events(chunk)
    }

    /// Takes the end of the body: `Ok` where the reply said itself that it is over.
    pub(super) fn end(&mut self) -> Result<(), Failure> {
        match self.take_body() {
            Body::Message(message) => {
                let seen = self.fold.whole_message(&message);
                self.content = matches!(seen, Ok(Seen::End));
                let seen = seen.map_err(|why| foreign(&why.to_string(), &message))?;
                self.note(seen)?;
                if self.fold.has_stop() { Ok(()) } else { Err(Failure::Unended) }
            }
            Body::Events(parser) => self.end_events(parser),
            Body::Unknown(_) => Err(Failure::Unended),
        }
    }

    /// Takes what stands in the buffers when the call was cut. Of a JSON message that is not whole,
    /// nothing can be told.
    pub(super) fn cut(&mut self, why: Failure) -> Result<(), Failure> {
        let Body::Events(parser) = self.take_body() else { return Err(why) };
        match self.end_events(parser) {
            Err(Failure::Api(error)) => Err(Failure::Api(error)),
            Err(_) => Err(why),
            Ok(()) => Ok(()),
        }
    }

    fn take_body(&mut self) -> Body {
        std::mem::replace(&mut self.body, Body::Unknown(Vec::new()))
    }

    fn end_events(&mut self, mut parser: Parser) -> Result<(), Failure> {
        let mut progress = Progress::More;
        if let Some(event) = parser.finish() {
            // A torn event says only that the stream was torn.
            if let Ok(seen) = self.fold.event(event.name, event.data) {
                progress = self.note(seen)?;
            }
            self.first_event = true;
        }
        if progress == Progress::Over && self.fold.has_stop() {
            Ok(())
        } else if self.first_event {
            Err(Failure::Unended)
        } else {
            Err(Failure::Unreadable("the reply ended before its first event".to_owned()))
        }
    }

    fn take_events(&mut self, mut chunk: &[u8]) -> Result<Progress, Failure> {
        let Body::Events(parser) = &mut self.body else { return Ok(Progress::More) };
        loop {
            let event = match parser.read(&mut chunk) {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(Progress::More),
                Err(too_large) => return Err(Failure::TooLarge(too_large.to_string())),
            };
            self.first_event = true;
            let seen = self.fold.event(event.name, event.data);
            let seen = seen.map_err(|why: Broken| Failure::Unreadable(why.to_string()))?;
            if note(seen, &mut self.content, &mut self.request_id)? == Progress::Over {
                return Ok(Progress::Over);
            }
        }
    }

    fn note(&mut self, seen: Seen) -> Result<Progress, Failure> {
        note(seen, &mut self.content, &mut self.request_id)
    }
}

fn note(seen: Seen, content: &mut bool, error_id: &mut Option<String>) -> Result<Progress, Failure> {
    match seen {
        Seen::Nothing | Seen::Frame => Ok(Progress::More),
        Seen::Content => {
            *content = true;
            Ok(Progress::More)
        }
        Seen::End => Ok(Progress::Over),
        Seen::Error(error, request_id) => {
            *error_id = request_id;
            Err(Failure::Api(error))
        }
    }
}

/// A body that is no reply, with its start quoted.
pub(super) fn foreign(what: &str, body: &[u8]) -> Failure {
    let body = &body[..body.len().min(QUOTE_MAX)];
    let start = wire::start_of(&String::from_utf8_lossy(body));
    Failure::Unreadable(format!("{what}; it starts with: {start}"))
}

/// The first byte that is neither white space nor a byte order mark.
pub(super) fn first_character(body: &[u8]) -> Option<u8> {
    const BOM: &[u8] = b"\xef\xbb\xbf";
    if body.len() < BOM.len() && BOM.starts_with(body) {
        return None;
    }
    let body = body.strip_prefix(BOM).unwrap_or(body);
    body.iter().copied().find(|byte| !byte.is_ascii_whitespace())
}
