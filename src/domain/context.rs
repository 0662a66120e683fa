//! Whether an input fits into what its model reads: a guess from its size, when to have it counted,
//! and what the API says where it does not fit.
//!
//! The guess reads the body once and copies nothing. Images are guessed high, documents not at all: a
//! file of a few bytes may hold hundreds of pages.

use std::fmt;
use std::ops::AddAssign;

use memchr::memmem;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::domain::pace::estimate::BYTES_PER_TOKEN;

/// Tokens of an image, at most: the API scales larger ones down to about this (API guide, Vision).
const IMAGE_TOKENS: i64 = 5000;

/// From this share of the window on a guess says nothing: prose has four bytes a token, dense text of
/// a newer tokenizer less than two. What is beyond that too is refused by the API, for free.
const COUNT_FROM: f64 = 0.5;

/// What is in a piece of JSON that a model reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes of text, JSON's own marks included.
    pub text: usize,
    /// Images.
    pub images: usize,
    /// Documents whose text does not stand in it.
    pub documents: usize,
    /// Bytes of those documents, as far as they stand in it.
    pub document_bytes: usize,
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.text += other.text;
        self.images += other.images;
        self.documents += other.documents;
        self.document_bytes += other.document_bytes;
    }
}

impl Size {
    /// Measures a piece of JSON. What cannot be read as JSON is text.
    pub fn of(json: &str) -> Self {
        let names = |word: &str| memmem::find(json.as_bytes(), word.as_bytes()).is_some();
        let all_text = Self { text: json.len(), ..Self::default() };
        // Nearly all that is sent is text: that is seen without reading it as JSON.
        if !names("\"image\"") && !names("\"document\"") {
            return all_text;
        }
        let mut reader = serde_json::Deserializer::from_str(json);
        match Measure.deserialize(&mut reader) {
            Ok(found) => Self {
                text: json.len().saturating_sub(found.opaque),
                images: found.images,
                documents: found.documents,
                document_bytes: found.document_bytes,
            },
            Err(_) => all_text,
        }
    }

    /// Weighs it in bytes of text that would cost as many tokens, so that what is learnt of texts holds:
    /// a page of a document costs about a 32nd of what its bytes as text would.
    pub fn weight(&self) -> usize {
        const FILE_SHARE: usize = 32;
        let images = (IMAGE_TOKENS as f64 * BYTES_PER_TOKEN) as usize * self.images;
        self.text + images + self.document_bytes / FILE_SHARE
    }

    /// Guesses how many tokens it is; documents are left out.
    pub fn tokens(&self) -> i64 {
        estimate_tokens(self.text).saturating_add(IMAGE_TOKENS.saturating_mul(self.images as i64))
    }

    /// Says whether it takes a count to know that it fits into a window of so many tokens.
    pub fn needs_count(&self, window: i64) -> bool {
        self.documents > 0 || self.tokens() as f64 >= COUNT_FROM * window as f64
    }
}

/// Guesses how many tokens a text of so many bytes is.
pub fn estimate_tokens(bytes: usize) -> i64 {
    (bytes as f64 / BYTES_PER_TOKEN).ceil() as i64
}

/// What a piece of JSON holds that is not text.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    images: usize,
    documents: usize,
    /// Bytes that are data of an image or a document.
    opaque: usize,
    /// Those of documents.
    document_bytes: usize,
    /// Bytes of the string that this is.
    string: usize,
    word: Word,
    /// Bytes of the data, where this is the source of a block and no text.
    source: Option<usize>,
}

/// What a string says, as far as it matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Word {
    #[default]
    Other,
    Image,
    Document,
    /// A source that is no text: base64, an address, a file.
    Opaque,
}

impl Word {
    fn of(text: &str) -> Self {
        match text {
            "image" => Self::Image,
            "document" => Self::Document,
            "base64" | "url" | "file" => Self::Opaque,
            _ => Self::Other,
        }
    }
}

/// Reads a value for what it holds.
#[derive(Clone, Copy)]
struct Measure;

impl<'de> DeserializeSeed<'de> for Measure {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Found, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Measure {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::default())
    }

    fn visit_str<E>(self, text: &str) -> Result<Found, E> {
        Ok(Found { string: text.len(), word: Word::of(text), ..Found::default() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Found, A::Error> {
        let mut all = Found::default();
        while let Some(one) = list.next_element_seed(Measure)? {
            all.add(one);
        }
        Ok(all)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Found, A::Error> {
        let mut all = Found::default();
        let (mut kind, mut data, mut source) = (Word::Other, 0, None);
        while let Some(Key(key)) = fields.next_key()? {
            let one = fields.next_value_seed(Measure)?;
            match key {
                Field::Type => kind = one.word,
                Field::Data => data = one.string,
                Field::Source => source = one.source,
                Field::Other => {}
            }
            all.add(one);
        }
        match (kind, source) {
            (Word::Opaque, _) => all.source = Some(data),
            (Word::Image, Some(data)) => {
                all.images += 1;
                all.opaque += data;
            }
            (Word::Document, Some(data)) => {
                all.documents += 1;
                all.opaque += data;
                all.document_bytes += data;
            }
            _ => {}
        }
        Ok(all)
    }
}

impl Found {
    fn add(&mut self, other: Self) {
        self.images += other.images;
        self.documents += other.documents;
        self.opaque += other.opaque;
        self.document_bytes += other.document_bytes;
    }
}

enum Field {
    Type,
    Data,
    Source,
    Other,
}

/// A field's name, not copied.
struct Key(Field);

impl<'de> serde::Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field's name")
            }

            fn visit_str<E>(self, name: &str) -> Result<Key, E> {
                Ok(Key(match name {
                    "type" => Field::Type,
                    "data" => Field::Data,
                    "source" => Field::Source,
                    _ => Field::Other,
                }))
            }
        }
        reader.deserialize_str(Name)
    }
}

/// What the API says of an input that its model does not read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong {
    /// Tokens of the input.
    pub tokens: i64,
    /// The most that the model reads.
    pub maximum: i64,
}

/// Reads the message of a 400: `prompt is too long: 200251 tokens > 200000 maximum`, or as llama.cpp says it,
/// `request (700 tokens) exceeds the available context size (512 tokens)`. Only at its very start: further
/// in, the same words may be a quotation of the prompt.
pub fn too_long(message: &str) -> Option<TooLong> {
    let message = message.trim_start();
    let (said, between) = if let Some(said) = message.strip_prefix("prompt is too long:") {
        (said, ["tokens", ">"])
    } else {
        (message.strip_prefix("request (")?, ["tokens)", "exceeds the available context size ("])
    };
    let (tokens, mut rest) = number(said)?;
    for words in between {
        rest = rest.trim_start().strip_prefix(words)?;
    }
    let (maximum, _) = number(rest)?;
    Some(TooLong { tokens, maximum })
}

fn number(text: &str) -> Option<(i64, &str)> {
    let text = text.trim_start();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != ',').unwrap_or(text.len());
    let number = text[..end].replace(',', "").parse().ok()?;
    Some((number, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_images_and_documents_is_no_text() {
        let data = "A".repeat(10_000);
        let image = format!(
            r#"{{"type":"image","source":{{"type":"base64","media_type":"image/png","data":"{data}"}}}}"#
        );
        let address = r#"{"type":"document","source":{"url":"https://example.org/a.pdf","type":"url"}}"#;
        let document = format!(r#"{{"source":{{"data":"{data}","type":"base64"}},"type":"document"}}"#);
        let plain = format!(r#"{{"type":"document","source":{{"type":"text","data":"{data}"}}}}"#);
        // A tool's input may look like a source: it is text to the model.
        let tool = format!(r#"{{"type":"tool_use","input":{{"type":"base64","data":"{data}"}}}}"#);
        let result = format!(r#"{{"type":"tool_result","content":[{image}]}}"#);
        let (one, none) = ((1, 0), (0, 0));
        for (block, opaque, (images, documents)) in [
            (image.as_str(), 10_000, one),
            (&result, 10_000, one),
            (&document, 10_000, (0, 1)),
            (address, 0, (0, 1)),
            (&plain, 0, none),
            (&tool, 0, none),
            (r#"{"type":"text","text":"a \"quoted\" word, 1.5e3, null"}"#, 0, none),
        ] {
            let body = format!(
                r#"{{"model":"m","stream":true,"max_tokens":1,"messages":[{{"role":"user","content":[{block}]}}]}}"#
            );
            let size = Size::of(&body);
            let document_bytes = if documents > 0 { opaque } else { 0 };
            let expected = Size { text: body.len() - opaque, images, documents, document_bytes };
            assert_eq!(size, expected, "{}", &block[..block.len().min(80)]);
        }
        assert_eq!(Size::of("{"), Size { text: 1, ..Size::default() });
    }

    #[test]
    fn files_weigh_less_than_their_bytes() {
        let text = Size { text: 1000, ..Size::default() };
        assert_eq!(text.weight(), 1000);
        assert_eq!(Size { images: 2, ..text }.weight(), 36_000);
        assert_eq!(Size { documents: 1, document_bytes: 320_000, ..text }.weight(), 11_000);
    }

    #[test]
    fn a_count_is_asked_for_only_where_the_guess_may_be_wrong_by_enough() {
        let text = |text| Size { text, ..Size::default() };
        for (size, window, needed) in [
            (text(1000), 200_000, false),
            (text(349_000), 200_000, false),
            (text(350_000), 200_000, true),
            (text(5_000_000), 200_000, true),
            (text(350_000), 1_000_000, false),
            (Size { images: 20, ..text(1000) }, 200_000, true),
            (Size { images: 19, ..text(1000) }, 200_000, false),
            (Size { documents: 1, ..text(1000) }, 1_000_000, true),
        ] {
            assert_eq!(size.needs_count(window), needed, "{size:?} in {window}");
        }
        assert_eq!(estimate_tokens(0), 0);
        assert_eq!(estimate_tokens(35), 10);
        assert_eq!(estimate_tokens(36), 11);
    }

    #[test]
    fn both_numbers_are_read_of_what_is_too_long_and_of_nothing_else() {
        let both = |tokens, maximum| Some(TooLong { tokens, maximum });
        for (message, read) in [
            ("prompt is too long: 200251 tokens > 200000 maximum", both(200_251, 200_000)),
            ("prompt is too long: 1000432 tokens > 1000000 maximum", both(1_000_432, 1_000_000)),
            (
                "prompt is too long: 1,000,432 tokens > 1,000,000 maximum for this model",
                both(1_000_432, 1_000_000),
            ),
            (
                "request (700 tokens) exceeds the available context size (512 tokens), try increasing it",
                both(700, 512),
            ),
            ("request (700 tokens) exceeds the available context size", None),
            ("request (700 tokens) > 512", None),
            ("prompt is too long: many tokens > 200000 maximum", None),
            ("prompt is too long", None),
            ("prompt is too long: 200251 tokens", None),
            ("prompt is too long: 99999999999999999999 tokens > 1 maximum", None),
            ("messages.0: `prompt is too long: 2 tokens > 1 maximum` is no role", None),
            ("max_tokens: 200000 > 128000, which is the maximum allowed number of output tokens for m", None),
            ("", None),
        ] {
            assert_eq!(too_long(message), read, "{message}");
        }
    }
}
