//! The names of gates: what `gates.scope` says, and what it is here.

use std::fmt;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::pace::Tier;
use super::{Gates, REFUSED_PAUSES, SAME_REFUSALS};
use crate::domain::gate::{batch_of_scope, batch_scope};
use crate::domain::job::{Claimed, Job};
use crate::worker::profiles::ProfileId;

/// A (queue, batch), `''` where the jobs have no label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lane {
    /// `jobs.queue`.
    pub queue: String,
    /// `jobs.batch`.
    pub batch: String,
}

impl Lane {
    /// The lane of a job.
    pub fn of(job: &Job) -> Self {
        Self { queue: job.queue.clone(), batch: job.batch.clone().unwrap_or_default() }
    }

    /// The lane of a claimed row.
    pub fn of_row(row: &Claimed) -> Self {
        Self { queue: row.queue.clone(), batch: row.batch.clone().unwrap_or_default() }
    }

    /// As the store names it.
    pub(super) fn pair(&self) -> (String, String) {
        (self.queue.clone(), self.batch.clone())
    }

    /// Whether its jobs are a batch that somebody named.
    pub(super) fn is_labelled(&self) -> bool {
        !self.batch.is_empty()
    }

    /// What is said, and how long it rests, where the API refuses one job of it after the other.
    pub(super) fn stopped(&self, blocks: u32) -> (String, Option<Duration>) {
        if self.is_labelled() {
            let reason = format!(
                "the API refused {SAME_REFUSALS} jobs of this batch in a row with the same error; see results.error. \
                 Set this gate to 'flowing' to go on, or cancel the batch"
            );
            return (reason, None);
        }
        let reason = format!(
            "the API refused {SAME_REFUSALS} jobs without a batch in a row with the same error; see results.error. \
             One at a time is tried until one succeeds"
        );
        let (first, longest) = REFUSED_PAUSES;
        (reason, Some(first.saturating_mul(1 << blocks.min(16)).min(longest)))
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.batch.as_str() {
            "" => write!(f, "queue {}", self.queue),
            batch => write!(f, "batch {batch}"),
        }
    }
}

/// What a gate is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// A key.
    Key(String),
    /// A model, asked with this profile.
    Model(ProfileId, String),
    /// A batch.
    Batch(Lane),
    /// A class of models that share a key's rate limit.
    Rate(Tier),
}

impl Scope {
    /// The key that it is about, if it is about one.
    pub(super) fn key(&self) -> Option<&String> {
        match self {
            Self::Key(key) | Self::Rate((key, _)) => Some(key),
            Self::Model(..) | Self::Batch(_) => None,
        }
    }
}

impl Gates {
    /// Returns what `gates.scope` says.
    pub(super) fn name(&self, scope: &Scope) -> String {
        match scope {
            Scope::Key(key) => format!("key:{key}"),
            Scope::Model(profile, model) => format!("model:{}/{model}", self.names[*profile]),
            Scope::Batch(lane) => batch_scope(&lane.queue, &lane.batch),
            Scope::Rate(tier) => super::pace::scope(tier),
        }
    }

    /// Returns what a row's scope means; `None`: it is not ours.
    pub(super) fn scope(&self, name: &str) -> Option<Scope> {
        let (kind, of) = name.split_once(':')?;
        match kind {
            "key" => self.lock().keys.contains_key(of).then(|| Scope::Key(of.to_owned())),
            "rate" => {
                let (key, class) = of.split_once('/')?;
                let is_ours = self.lock().keys.contains_key(key);
                is_ours.then(|| Scope::Rate((key.to_owned(), class.to_owned())))
            }
            "model" => {
                let (called, model) = of.split_once('/')?;
                let (profile, _) = self.names.iter().find(|(_, name)| *name == called)?;
                Some(Scope::Model(profile, model.to_owned()))
            }
            "batch" => {
                let (queue, batch) = batch_of_scope(name)?;
                Some(Scope::Batch(Lane { queue, batch }))
            }
            _ => None,
        }
    }
}

/// Returns a short word for a signature: it may quote a prompt, which no gate shows.
pub(super) fn short(signature: &str) -> String {
    let digest = Sha256::digest(signature.as_bytes());
    let start: [u8; 8] = digest[..8].try_into().expect("a digest has 32 bytes");
    format!("{:016x}", u64::from_be_bytes(start))
}
