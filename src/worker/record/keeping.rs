//! What of the pending writes is kept in the spool, since when nothing may be claimed, and when a
//! file may be emptied.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::entry::Write;
use super::lanes::Number;
use super::recording::{Pending, Place, Recording};
use crate::domain::job::WorkerId;
use crate::worker::spool::Spool;
use crate::worker::spool::line::Line;

/// About so many bytes of answers are put into the file at a time: thousands may wait, and a copy of all of them
/// would be twice the memory.
const AT_A_TIME: usize = 4 * 1024 * 1024;

/// The spool, and what is known of it.
pub(super) struct Keeping {
    spool: Arc<Mutex<Spool>>,
    database: String,
    /// Whether there is something in the file of this process.
    file_is_used: bool,
    /// Why no file can be written.
    no_file: Option<String>,
    /// Whether what is in memory only is worth another try at a file.
    pub(super) try_again: bool,
    /// Whether the log says that nothing is claimed.
    pub(super) said_stalled: bool,
}

impl Keeping {
    pub(super) fn new(spool: Spool) -> Self {
        Self {
            database: spool.database().to_owned(),
            spool: Arc::new(Mutex::new(spool)),
            file_is_used: false,
            no_file: None,
            try_again: false,
            said_stalled: false,
        }
    }
}

impl Recording {
    /// Keeps what the database does not take, and says to the others how it stands.
    pub(super) async fn look_after(&mut self, worker: impl Fn() -> WorkerId) {
        self.keep(worker).await;
        if self.kept == 0 || self.pending.values().all(|pending| pending.place != Place::File) {
            self.clear().await;
        }
        for file in 0..self.left.len() {
            if matches!(self.left[file], Some((_, 0))) {
                self.clear_left(file).await;
            }
        }
        self.tell_standing();
    }

    /// Puts into the file what the database has not taken: all of it, where it is away.
    async fn keep(&mut self, worker: impl Fn() -> WorkerId) {
        let (now, is_away, patience) = (Instant::now(), self.away.is_some(), self.patience());
        let must = |pending: &Pending| {
            pending.place == Place::Nowhere && (is_away || pending.since + patience <= now)
        };
        let again = std::mem::take(&mut self.keeping.try_again);
        // Arrival is the order: where the oldest need not, none must.
        let oldest = self.pending.values().find(|pending| pending.place == Place::Nowhere);
        if !(again || oldest.is_some_and(must)) {
            return;
        }
        let may = |pending: &Pending| must(pending) || pending.place == Place::Memory;
        let mut due: VecDeque<Number> =
            self.pending.iter().filter(|(_, pending)| may(pending)).map(|(number, _)| *number).collect();
        if due.is_empty() {
            return;
        }
        // Before the disk has them: meanwhile nothing may be claimed either.
        self.standing.stalled.store(true, Ordering::Release);
        while !due.is_empty() {
            let (mut numbers, lines) = self.next_lines(&mut due, &worker);
            let place = match self.with_spool(move |spool| spool.keep(&lines)).await {
                Ok(path) => {
                    self.keeping.no_file = None;
                    self.keeping.file_is_used = true;
                    self.name_file(path);
                    Place::File
                }
                Err(err) => {
                    self.keeping.no_file = Some(err.to_string());
                    // The lines of a file stand in the order in which they came.
                    numbers.extend(due.drain(..));
                    Place::Memory
                }
            };
            for number in numbers {
                let Some(pending) = self.pending.get_mut(&number) else { continue };
                self.kept += usize::from(pending.place == Place::Nowhere);
                pending.place = place;
            }
        }
    }

    /// Writes the next lines, as many as are put into the file at a time.
    fn next_lines(
        &self,
        due: &mut VecDeque<Number>,
        worker: impl Fn() -> WorkerId,
    ) -> (Vec<Number>, Vec<Line>) {
        let (mut numbers, mut lines, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < AT_A_TIME
            && let Some(number) = due.pop_front()
        {
            let Some(pending) = self.pending.get(&number) else { continue };
            bytes += pending.write.bytes();
            let worker = pending.by.unwrap_or_else(&worker);
            lines.push(Line::new(&self.keeping.database, worker, pending.write.on_paper()));
            numbers.push(number);
        }
        (numbers, lines)
    }

    async fn clear(&mut self) {
        if !std::mem::take(&mut self.keeping.file_is_used) {
            return;
        }
        // What stays in it is taken up at the next start, where the database knows that it has it.
        if let Err(err) = self.with_spool(Spool::clear).await {
            tracing::warn!(error = %err, "failed to empty the spool file");
        }
    }

    pub(super) fn name_file(&self, path: PathBuf) {
        *self.standing.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
    }

    pub(super) async fn clear_left(&mut self, file: usize) {
        let Some((left, _)) = self.left[file].take() else { return };
        let path = left.path.display().to_string();
        match self.with_spool(move |_| left.clear()).await {
            Ok(()) => tracing::debug!("the database has all that was in {path}"),
            Err(err) => tracing::warn!(error = %err, "failed to empty {path}"),
        }
    }

    /// Puts what the database refuses where a person finds it; returns the file's path.
    pub(super) async fn set_aside(&mut self, write: &Write, worker: WorkerId) -> Option<String> {
        let line = Line::new(&self.keeping.database, worker, write.on_paper());
        match self.with_spool(move |spool| spool.set_aside(&line)).await {
            Ok(path) => Some(path.display().to_string()),
            Err(err) => {
                tracing::warn!(error = %err, "failed to keep what the database refused");
                None
            }
        }
    }

    /// Says to the others how it stands, and to the log where that changed.
    pub(super) fn tell_standing(&mut self) {
        let (mut in_file, mut in_memory, mut stalled) = (0, 0, false);
        // Asked with every batch, when nearly always nothing is kept.
        let kept = if self.kept == 0 { None } else { Some(self.pending.values()) };
        for pending in kept.into_iter().flatten() {
            in_file += usize::from(matches!(pending.place, Place::File | Place::Left(_)));
            in_memory += usize::from(pending.place == Place::Memory);
            stalled |= pending.place != Place::Nowhere && !pending.is_aside;
        }
        let standing = &self.standing;
        standing.in_file.store(in_file, Ordering::Release);
        standing.in_memory.store(in_memory, Ordering::Release);
        standing.under_way.store(self.pending.len() - in_file - in_memory, Ordering::Release);
        standing.stalled.store(stalled, Ordering::Release);
        if self.pending.is_empty() {
            standing.emptied.notify_waiters();
        }
        match (std::mem::replace(&mut self.keeping.said_stalled, stalled), stalled) {
            (false, true) => self.say_stalled(),
            (true, false) => tracing::info!("the database has all that was kept for it: going on"),
            _ => {}
        }
    }

    fn say_stalled(&self) {
        let why = match &self.away {
            Some(away) => away.why.clone(),
            None => format!("no answer for {} s", self.patience().as_secs()),
        };
        let file = self.standing.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (file, &self.keeping.no_file) {
            (Some(file), None) => tracing::warn!(
                error = %why,
                "the database does not take answers: they are kept in {} until it does, and nothing is claimed",
                file.display()
            ),
            (_, no_file) => tracing::warn!(
                error = %why,
                "the database does not take answers: they are held in memory until it does, and nothing is \
                 claimed; no file can be written ({})",
                no_file.as_deref().unwrap_or("none was tried")
            ),
        }
    }

    /// Does something with files, beside the runtime's threads.
    pub(super) async fn with_spool<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Spool) -> T + Send + 'static,
    ) -> T {
        let spool = Arc::clone(&self.keeping.spool);
        let done = tokio::task::spawn_blocking(move || {
            act(&mut spool.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match done.await {
            Ok(done) => done,
            Err(gone) => std::panic::resume_unwind(gone.into_panic()),
        }
    }
}
