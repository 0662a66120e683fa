//! JSON text that stands in a larger text.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use serde_json::value::RawValue;

/// JSON text, or a part of one, byte for byte. It keeps the whole text in memory and copies none of
/// it: a row with a document of 30 MB is held once, however many parts of it are looked at.
#[derive(Clone)]
pub struct Raw {
    whole: Arc<String>,
    at: Range<usize>,
}

impl Raw {
    /// The text.
    pub fn get(&self) -> &str {
        &self.whole[self.at.clone()]
    }

    /// Returns a part of this text as one of its own. `part` must be borrowed from [`Raw::get`];
    /// any other text is copied.
    #[must_use]
    pub fn part(&self, part: &str) -> Self {
        let start = part.as_ptr().addr().wrapping_sub(self.whole.as_ptr().addr());
        match start.checked_add(part.len()) {
            Some(end) if end <= self.whole.len() => Self { whole: Arc::clone(&self.whole), at: start..end },
            _ => Self::from(part),
        }
    }
}

impl From<String> for Raw {
    fn from(text: String) -> Self {
        let at = 0..text.len();
        Self { whole: Arc::new(text), at }
    }
}

impl From<&str> for Raw {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<Box<RawValue>> for Raw {
    fn from(value: Box<RawValue>) -> Self {
        Self::from(String::from(Box::<str>::from(value)))
    }
}

impl Deref for Raw {
    type Target = str;

    fn deref(&self) -> &str {
        self.get()
    }
}

impl AsRef<[u8]> for Raw {
    fn as_ref(&self) -> &[u8] {
        self.get().as_bytes()
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_not_copied() {
        let whole = Raw::from(r#"{"a":[1,2],"b":"x"}"#);
        let part = whole.part(&whole.get()[5..10]);
        assert_eq!(part.get(), "[1,2]");
        assert_eq!(part.get().as_ptr(), whole.get()[5..].as_ptr());
        let inner = part.part(&part.get()[1..2]);
        drop((whole, part));
        assert_eq!(inner.get(), "1");
    }

    #[test]
    fn a_text_from_elsewhere_is_copied() {
        let whole = Raw::from("[1,2,3]");
        let other = "[1,2,3]".to_owned();
        let part = whole.part(&other);
        assert_eq!(part.get(), "[1,2,3]");
        assert_ne!(part.get().as_ptr(), other.as_ptr());
    }
}
