//! One line of a spool file: a checksum, a blank, and one write to the database as JSON.
//!
//! Times are ages in milliseconds, with the wall time at which the line was written, so that a
//! process after a restart, or a reboot, can add what has passed since.

use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::erase::is_blank;
use crate::domain::job::{Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Release, Settlement};

/// Bytes of the digest that stand before a line, as hexadecimal digits.
const CHECKSUM: usize = 8;

/// A time as it stands on paper: how many milliseconds ago, when the line was written.
pub type Age = u64;

/// A write to the database, as it stands on paper. A line of a version after this one may hold a
/// kind that this one cannot read: it is set aside then, like a broken one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one stands in each line, on its way to or from a file")]
pub enum Write<T = Instant> {
    /// The end of a job.
    Settle(Settlement<T>),
    /// A job put back.
    Release(Release<T>),
    /// A row of the ledger, whosoever the job is by now.
    Append {
        /// The claim that made the call.
        lease: Lease,
        /// The row.
        call: Call<T>,
    },
    /// What is added to the result of a job that was cancelled or expired.
    Fill {
        /// The claim that was lost.
        lease: Lease,
        /// What it had.
        answer: Answer<T>,
    },
}

impl<T> Write<T> {
    /// Returns the claim that it is about.
    pub const fn lease(&self) -> Lease {
        match self {
            Self::Settle(settlement) => settlement.lease,
            Self::Release(release) => release.lease,
            Self::Append { lease, .. } | Self::Fill { lease, .. } => *lease,
        }
    }

    fn map<U>(self, time: impl FnMut(T) -> U) -> Write<U> {
        match self {
            Self::Settle(settlement) => Write::Settle(settlement.map(time)),
            Self::Release(release) => Write::Release(release.map(time)),
            Self::Append { lease, call } => Write::Append { lease, call: call.map(time) },
            Self::Fill { lease, answer } => Write::Fill { lease, answer: answer.map(time) },
        }
    }
}

/// What stands in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// `meta.database_id`.
    pub database: String,
    /// Who had the claim.
    pub worker: WorkerId,
    /// Milliseconds since 1970 when the line was written, by the clock of this host.
    pub at: u64,
    /// What is to be written.
    pub write: Write<Age>,
}

impl Line {
    /// Returns the line of a write.
    pub fn new(database: &str, worker: WorkerId, write: Write) -> Self {
        let now = Instant::now();
        let age = |then: Instant| now.saturating_duration_since(then).as_millis() as Age;
        Self { database: database.to_owned(), worker, at: wall_time(), write: write.map(age) }
    }

    /// Returns the write, its times put back by what has passed since. A clock that was set back
    /// meanwhile makes it no younger.
    pub fn into_write(self) -> Write {
        let (now, passed) = (Instant::now(), wall_time().saturating_sub(self.at));
        self.write.map(|age| {
            let ago = Duration::from_millis(age.saturating_add(passed));
            now.checked_sub(ago).unwrap_or(now)
        })
    }

    /// Returns it as bytes, with the line break at its end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_string(self).expect("lines are made of texts and numbers");
        format!("{} {json}\n", checksum(json.as_bytes())).into_bytes()
    }

    /// Reads a line without its line break; `None` where it is not whole, or no line of ours.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (sum, json) = bytes.split_at_checked(2 * CHECKSUM)?;
        let json = json.strip_prefix(b" ")?;
        (checksum(json).as_bytes() == sum).then(|| serde_json::from_slice(json).ok())?
    }
}

/// What stands in a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The lines that are whole, in their order.
    pub lines: Vec<Line>,
    /// Those that are not, although others follow.
    pub broken: Vec<Vec<u8>>,
    /// What is left of a last line whose writing was cut off.
    pub torn: Vec<u8>,
}

impl Contents {
    /// Reads a file; lines of blanks are none.
    pub fn read(bytes: &[u8]) -> Self {
        let mut contents = Self::default();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let text = piece.strip_suffix(b"\n");
            // Erased: see `super::erase`.
            if is_blank(text.unwrap_or(piece)) {
                continue;
            }
            match (Line::read(text.unwrap_or(piece)), text) {
                (Some(line), _) => contents.lines.push(line),
                (None, Some(text)) => contents.broken.push(text.to_owned()),
                (None, None) => piece.clone_into(&mut contents.torn),
            }
        }
        contents
    }
}

fn checksum(json: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(json).iter().take(CHECKSUM).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a line outlives the process, and with it every Instant; only the difference of two looks is used"
)]
fn wall_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

#[cfg(test)]
mod tests;
