//! The files of this host: what they say of jobs that are no longer in the table goes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cli::out::{count, say};
use crate::domain::job::JobId;
use crate::store::Desk;
use crate::worker::spool::erase;

/// Jobs looked for in one statement.
const PAGE: usize = 1_000;

/// What became of the files.
#[derive(Debug, Default)]
pub struct Swept {
    /// Lines that are gone.
    pub lines: usize,
    /// Lines in files of processes that live.
    pub held: usize,
    files: Vec<PathBuf>,
    unreadable: Vec<PathBuf>,
}

impl Swept {
    /// Whether nothing of an erased job can be left.
    pub fn is_clean(&self) -> bool {
        self.held == 0 && self.unreadable.is_empty()
    }

    /// Says what was done, and what is left to a person.
    pub fn tell(&self) {
        if self.lines > 0 {
            say(&format!("{} taken out of spool files", count(self.lines as i64, "line", "lines")));
        }
        if self.held > 0 {
            say(&format!(
                "{} left in {}: the daemon that writes there drops them as soon as the database answers it; \
                 then give the same command again",
                count(self.held as i64, "line is", "lines are"),
                list(&self.files)
            ));
        }
        if !self.unreadable.is_empty() {
            say(&format!(
                "{} holds what cannot be read, of jobs that nobody can tell: where it is a spool file, the next \
                 daemon that starts here takes up what is whole and sets the rest aside; look into what was set \
                 aside, and delete it",
                list(&self.unreadable)
            ));
        }
    }
}

/// Takes out of the files what belongs to jobs that are gone, whenever they went.
pub async fn sweep(dir: Option<&Path>, database: &str, desk: &dyn Desk) -> anyhow::Result<Swept> {
    let Some(dir) = dir else { return Ok(Swept::default()) };
    let cannot =
        || format!("the jobs are erased, but the spool files in {} cannot be looked at", dir.display());
    let kept = erase::jobs(dir, database).with_context(cannot)?;
    let gone = gone(kept, desk).await?;
    let blanked = erase::erase(dir, database, &gone).with_context(cannot)?;
    Ok(Swept {
        lines: blanked.lines,
        held: blanked.held.iter().map(|(_, lines)| lines).sum(),
        files: blanked.held.into_iter().map(|(path, _)| path).collect(),
        unreadable: blanked.unreadable,
    })
}

async fn gone(jobs: BTreeSet<JobId>, desk: &dyn Desk) -> anyhow::Result<BTreeSet<JobId>> {
    let all: Vec<JobId> = jobs.iter().copied().collect();
    let mut gone = jobs;
    for page in all.chunks(PAGE) {
        for (there, _) in desk.outcomes(page).await.context("failed to look at the jobs of the spool")? {
            gone.remove(&there);
        }
    }
    Ok(gone)
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
