//! Streams of server-sent events, as bytes.

use promptmill::claude::fold::{Broken, Ended, Fold, Seen};
use promptmill::claude::sse::{Parser, TooLarge};
use promptmill::domain::reply::{Block, Reply};
use serde_json::value::RawValue;

/// Small, so that the limit is met.
const EVENT_MAX: usize = 4096;

type Events = Vec<(Vec<u8>, Vec<u8>)>;

/// Parses chunks; the events that came before an error are kept.
fn events<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Events, Result<(), TooLarge>) {
    let (mut parser, mut events) = (Parser::new(EVENT_MAX), Events::new());
    for mut rest in chunks {
        loop {
            match parser.read(&mut rest) {
                Ok(Some(event)) => events.push((event.name.to_vec(), event.data.to_vec())),
                Ok(None) => break,
                Err(error) => return (events, Err(error)),
            }
        }
        assert!(rest.is_empty(), "bytes are left over");
    }
    if let Some(event) = parser.finish() {
        events.push((event.name.to_vec(), event.data.to_vec()));
    }
    (events, Ok(()))
}

/// Events do not depend on how their bytes were cut, and none is empty or larger than the limit.
///
/// The first byte says how large the chunks are.
pub fn sse(data: &[u8]) {
    let Some((&size, stream)) = data.split_first() else { return };
    let whole = events(std::iter::once(stream));
    assert_eq!(events(stream.chunks(1)), whole);
    assert_eq!(events(stream.chunks(usize::from(size).max(1))), whole);
    for (name, data) in &whole.0 {
        assert!(!data.is_empty(), "an event without data");
        assert!(data.len() <= EVENT_MAX && name.len() <= EVENT_MAX, "an event over the limit");
    }
}

/// A stream folded as `claude::http` does: as far as it can be read, and whether `message_stop` came.
pub(crate) fn folded(stream: &[u8]) -> (Fold, bool) {
    let (mut fold, mut over) = (Fold::new(), false);
    for (name, data) in events(std::iter::once(stream)).0 {
        match fold.event(&name, &data) {
            Ok(Seen::End) => {
                over = true;
                break;
            }
            Ok(Seen::Error(..)) | Err(Broken { .. }) => break,
            Ok(_) => {}
        }
    }
    (fold, over)
}

/// A reply holds JSON and sums that cannot overflow, whatever came; it is kept through the ledger.
pub fn fold(data: &[u8]) {
    let (mut fold, over) = folded(data);
    let ended = if over || fold.settled() { Ended::Whole } else { Ended::Cut };
    let _ = fold.take_fresh_text();
    assert_eq!(fold.take_fresh_text(), None, "fresh text is given once");
    check(&fold.finish(ended));

    let mut fold = Fold::new();
    if fold.whole_message(data).is_ok() {
        check(&fold.finish(Ended::Whole));
    }
}

fn check(reply: &Reply) {
    let json = Block::write_all(&reply.content);
    let raw: Vec<Box<RawValue>> = serde_json::from_str(&json).expect("content is a JSON array");
    assert_eq!(raw.len(), reply.content.len());
    let read = Block::read_all(&json);
    assert_eq!(read.len(), reply.content.len(), "a block is lost on its way through the ledger");
    for (read, came) in read.iter().zip(&reply.content) {
        assert_eq!((&read.kind, &read.json, &read.text), (&came.kind, &came.json, &came.text));
    }
    for json in [&reply.usage_raw, &reply.container, &reply.stop_details].into_iter().flatten() {
        let _: &RawValue = serde_json::from_str(json).expect("kept as JSON");
    }
    let usage = reply.usage;
    for tokens in [usage.input, usage.output, usage.cache_creation, usage.cache_read] {
        assert!((0..=1_000_000_000_000).contains(&tokens), "{tokens} tokens");
    }
}
