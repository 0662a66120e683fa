//! Server-sent events: bytes in, events out, however the bytes were cut into chunks.
//!
//! Knows nothing of what the events say (see [`super::fold`]). Works on bytes, because a chunk may end
//! inside a character. Every line and every event has a size limit. Source: WHATWG HTML, section
//! "Server-sent events"; unlike there, an event at the end of the stream is given although its blank
//! line is missing, since a server that closes early has still said it.

use memchr::memchr2;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// One event, borrowed from the parser's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// The `event:` field; empty where there was none.
    pub name: &'a [u8],
    /// The `data:` lines, joined by line feeds. Never empty.
    pub data: &'a [u8],
}

/// A line or an event is larger than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an event of the reply is larger than api.event_max_bytes = {max}: ask for less, or raise it in the configuration"
)]
pub struct TooLarge {
    /// The limit in bytes.
    pub max: usize,
}

/// A parser of one stream. Its buffers are reused from event to event.
#[derive(Debug)]
pub struct Parser {
    /// The start of a line whose end has not come yet.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    data_lines: usize,
    /// The event in the buffers was given to the caller.
    given: bool,
    /// The last line ended with a carriage return: a line feed right after it belongs to it.
    skip_line_feed: bool,
    at_start: bool,
    event_max: usize,
}

impl Parser {
    /// Returns a parser that refuses lines and events of more than `event_max` bytes.
    pub fn new(event_max: usize) -> Self {
        Self {
            line: Vec::new(),
            name: Vec::new(),
            data: Vec::new(),
            data_lines: 0,
            given: false,
            skip_line_feed: false,
            at_start: true,
            event_max,
        }
    }

    /// Reads up to the next event and moves `input` behind it; `None` once all of `input` is used.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Event<'_>>, TooLarge> {
        self.forget_given();
        while let Some((&first, rest)) = input.split_first() {
            if self.skip_line_feed {
                self.skip_line_feed = false;
                if first == b'\n' {
                    *input = rest;
                    continue;
                }
            }
            let Some(end) = memchr2(b'\n', b'\r', input) else {
                self.hold(input)?;
                *input = &[];
                break;
            };
            let line = &input[..end];
            self.skip_line_feed = input[end] == b'\r';
            *input = &input[end + 1..];
            if self.end_line(line)? {
                return Ok(Some(self.give()));
            }
        }
        Ok(None)
    }

    /// Ends the stream: returns the event that still lacks its blank line, or even its line end.
    pub fn finish(&mut self) -> Option<Event<'_>> {
        self.forget_given();
        // What is too large is no event; the caller has what came before it.
        let fits = self.line.is_empty() || self.end_line(&[]).is_ok();
        (fits && !self.data.is_empty()).then(|| self.give())
    }

    fn forget_given(&mut self) {
        if self.given {
            self.given = false;
            self.clear_event();
        }
    }

    fn clear_event(&mut self) {
        self.name.clear();
        self.data.clear();
        self.data_lines = 0;
    }

    fn give(&mut self) -> Event<'_> {
        self.given = true;
        Event { name: &self.name, data: &self.data }
    }

    fn hold(&mut self, piece: &[u8]) -> Result<(), TooLarge> {
        self.fits(self.line.len() + piece.len())?;
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn fits(&self, bytes: usize) -> Result<(), TooLarge> {
        if bytes > self.event_max { Err(TooLarge { max: self.event_max }) } else { Ok(()) }
    }

    /// Takes the end of a line; returns whether it completes an event.
    fn end_line(&mut self, end: &[u8]) -> Result<bool, TooLarge> {
        if self.line.is_empty() {
            return self.take_line(end);
        }
        self.hold(end)?;
        let mut line = std::mem::take(&mut self.line);
        let complete = self.take_line(&line);
        line.clear();
        self.line = line;
        complete
    }

    fn take_line(&mut self, mut line: &[u8]) -> Result<bool, TooLarge> {
        self.fits(line.len())?;
        if self.at_start {
            self.at_start = false;
            line = line.strip_prefix(BOM).unwrap_or(line);
        }
        if line.is_empty() {
            if self.data.is_empty() {
                self.clear_event();
                return Ok(false);
            }
            return Ok(true);
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                self.fits(self.data.len() + value.len() + 1)?;
                if self.data_lines > 0 {
                    self.data.push(b'\n');
                }
                self.data_lines += 1;
                self.data.extend_from_slice(value);
            }
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            // A comment (no field name), `id`, `retry`, and what later versions add.
            _ => {}
        }
        Ok(false)
    }
}
