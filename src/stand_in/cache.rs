//! The prompt cache as the API has it: which part of a request was read before, and what is kept of it.
//!
//! A prefix is all that stands before the end of a block: tools, then the system prompt, then messages.
//! It is kept where a request has a breakpoint, and found again by a request with the same prefix, key
//! and model whose breakpoint stands on that block or a few behind. Only hashes are kept. Time is passed in.

mod prefix;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use prefix::{Marked, block_bytes};

/// The shortest prefix that is kept, in tokens.
const TOKENS_MIN: u64 = 1024;
/// How many blocks are looked through for a kept prefix, from a breakpoint towards the start.
const LOOK_BACK: usize = 20;
/// How many prefixes are kept, those used last; beyond it memory would grow with what is asked.
const KEPT_MAX: usize = 10_000;

/// Input tokens that the cache had to do with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cached {
    /// Read from it.
    pub read: u64,
    /// Written to it, those for an hour too.
    pub write: u64,
    /// Of these, written for an hour.
    pub write_hour: u64,
}

/// Whose prefix it is, and its hash.
type Name = (u64, u64);

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// It can be read when the answer that wrote it has begun.
    from: Instant,
    until: Instant,
    life: Duration,
    /// Its place in the order of use.
    used: u64,
}

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<Name, Entry>,
    order: BTreeMap<u64, Name>,
    next: u64,
}

/// Keeps prefixes.
#[derive(Debug, Default)]
pub struct Cache {
    kept: Mutex<Kept>,
}

impl Cache {
    /// Forgets everything.
    pub fn reset(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Kept::default();
    }

    /// Says what of an account's request is read from the cache, and what will be written to it.
    pub fn look_up(&self, account: u64, marked: &Marked, now: Instant) -> Cached {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let read = kept.longest(account, marked, now).map_or(0, |at| marked.tokens(at));
        let behind = |upto: Option<u64>| upto.map_or(0, |upto| upto.saturating_sub(read));
        let points = || marked.points.iter().filter(|point| marked.tokens(point.block) >= TOKENS_MIN);
        Cached {
            read,
            write: behind(points().map(|point| marked.tokens(point.block)).max()),
            write_hour: behind(
                points().filter(|point| point.is_hour()).map(|point| marked.tokens(point.block)).max(),
            ),
        }
    }

    /// Keeps what a request marks, and for longer what it reads; to be read from an instant on.
    pub fn keep(&self, account: u64, marked: &Marked, now: Instant, from: Instant) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.longest(account, marked, now) {
            kept.touch((account, marked.blocks[at].hash), None, now);
        }
        for point in &marked.points {
            if marked.tokens(point.block) >= TOKENS_MIN {
                kept.touch((account, marked.blocks[point.block].hash), Some(point.life), from);
            }
        }
    }
}

impl Kept {
    /// The longest prefix that a breakpoint finds.
    fn longest(&self, account: u64, marked: &Marked, now: Instant) -> Option<usize> {
        let found = |&at: &usize| {
            let entry = self.entries.get(&(account, marked.blocks[at].hash));
            entry.is_some_and(|entry| entry.from <= now && now < entry.until)
        };
        let seen = |block: usize| (block.saturating_sub(LOOK_BACK - 1)..=block).rev().find(found);
        marked.points.iter().filter_map(|point| seen(point.block)).max()
    }

    /// Notes that a prefix is used; without a life it keeps the one it has.
    fn touch(&mut self, name: Name, life: Option<Duration>, from: Instant) {
        let had = self.entries.remove(&name);
        if let Some(had) = &had {
            self.order.remove(&had.used);
        }
        let had = had.filter(|had| from < had.until);
        let Some(life) = had.map(|had| had.life).max(life) else { return };
        self.next += 1;
        let begun = had.map_or(from, |had| had.from.min(from));
        self.entries.insert(name, Entry { from: begun, until: from + life, life, used: self.next });
        self.order.insert(self.next, name);
        if self.entries.len() > KEPT_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests;
