//! The schemas read lately, by their text: building a checker costs more than everything else in
//! reading a job, and the jobs of a queue mostly share one.
//!
//! It only remembers a pure function, so that nobody can tell whether it is there but by the clock.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::Schema;

/// How many are kept. With a checker of some ten times its text, 64 of 20 KiB are 13 MiB.
const KEPT_MAX: usize = 64;
/// How much text is kept in all, in bytes, so that 64 of the longest are not 160 MiB.
const BYTES_MAX: usize = 2 * 1024 * 1024;

#[derive(Default)]
struct Kept {
    by_text: HashMap<Box<str>, (Schema, u64)>,
    bytes: usize,
    /// Counts uses, to tell which was used least lately.
    uses: u64,
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

fn kept() -> MutexGuard<'static, Kept> {
    // It is whole after every statement.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the schema of this text, where it was read lately.
pub(super) fn get(json: &str) -> Option<Schema> {
    let mut kept = kept();
    kept.uses += 1;
    let now = kept.uses;
    let (schema, used) = kept.by_text.get_mut(json)?;
    *used = now;
    Some(schema.clone())
}

/// Keeps a schema, in place of those that were not used for the longest.
pub(super) fn put(json: &str, schema: &Schema) {
    kept().put(json, schema);
}

impl Kept {
    fn put(&mut self, json: &str, schema: &Schema) {
        self.uses += 1;
        if self.by_text.insert(json.into(), (schema.clone(), self.uses)).is_none() {
            self.bytes += json.len();
        }
        while self.by_text.len() > KEPT_MAX || self.bytes > BYTES_MAX {
            let oldest = self.by_text.iter().min_by_key(|(_, (_, used))| *used).map(|(text, _)| text.clone());
            let Some(oldest) = oldest else { break };
            self.by_text.remove(&oldest);
            self.bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_least_lately_goes_first_and_the_bounds_hold() {
        let mut kept = Kept::default();
        let schema = Schema::build("{}").expect("valid");
        for number in 0..200 {
            kept.put(&format!("{{\"title\":\"{number}\"}}"), &schema);
        }
        assert_eq!(kept.by_text.len(), KEPT_MAX);
        assert!(kept.by_text.contains_key("{\"title\":\"199\"}"));
        assert!(!kept.by_text.contains_key("{\"title\":\"100\"}"));
        for _ in 0..2 {
            kept.put(&" ".repeat(BYTES_MAX - 100), &schema);
        }
        assert!(kept.bytes <= BYTES_MAX);
        assert_eq!(kept.bytes, kept.by_text.keys().map(|text| text.len()).sum::<usize>());
        kept.put(&" ".repeat(BYTES_MAX + 1), &schema);
        assert_eq!((kept.by_text.len(), kept.bytes), (0, 0), "what is too long for all is not kept");
    }

    #[test]
    fn the_same_text_is_built_once() {
        let json = r#"{"title":"the same text is built once","type":"string"}"#;
        let one = Schema::read(json).expect("valid");
        let two = Schema::read(json).expect("valid");
        assert!(std::sync::Arc::ptr_eq(&one.0, &two.0));
    }
}
