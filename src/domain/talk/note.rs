//! What the ledger's row of a call says of its request: only what cannot be computed again.

use serde::{Deserialize, Serialize};

use crate::domain::seam::{How, Seam};

/// `calls.request`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Note {
    /// How a cut answer was to be gone on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    how: Option<String>,
    /// How it met the text before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seam: Option<String>,
    /// How many of the job's messages were left out, the oldest first.
    #[serde(default, skip_serializing_if = "is_zero")]
    dropped: usize,
}

impl Note {
    /// Returns what there is to say.
    pub fn new(how: Option<How>, seam: Option<Seam>, dropped: usize) -> Self {
        Self {
            how: how.map(|how| how.as_str().to_owned()),
            seam: seam.map(|seam| seam.as_str().to_owned()),
            dropped,
        }
    }

    /// Reads a note of the ledger; one that cannot be read says nothing.
    pub fn read(json: Option<&str>) -> Self {
        json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
    }

    /// The note as JSON text, where it says anything.
    pub fn text(&self) -> Option<String> {
        let says = self.how.is_some() || self.seam.is_some() || self.dropped > 0;
        says.then(|| serde_json::to_string(self).expect("words and a number have a JSON form"))
    }

    /// How a cut answer was to be gone on with.
    pub fn how(&self) -> Option<How> {
        self.how.as_deref().and_then(How::parse)
    }

    /// How many of the job's messages were left out.
    pub const fn dropped(&self) -> usize {
        self.dropped
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}
