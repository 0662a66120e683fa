//! The queue as the contract tells it, in memory: no SQL, no clock, one thing after the other.

use super::job::{Job, State};

/// A queue's row.
#[derive(Debug, Clone, Copy, Default)]
pub struct Queue {
    pub paused: bool,
    pub most: Option<i32>,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub jobs: Vec<Job>,
    pub queues: [Queue; 2],
    /// Every worker that ever was: its id, and whether it has a row.
    pub workers: Vec<(i64, bool)>,
}

impl Model {
    pub fn there(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(|job| !job.gone)
    }

    pub fn held_by(&self, worker: i64) -> Vec<usize> {
        let holds = |&at: &usize| !self.jobs[at].gone && self.jobs[at].holder == Some(worker);
        (0..self.jobs.len()).filter(holds).collect()
    }

    pub fn has_row(&self, worker: i64) -> bool {
        self.workers.contains(&(worker, true))
    }

    pub fn drop_row(&mut self, worker: i64) {
        for one in self.workers.iter_mut().filter(|one| one.0 == worker) {
            one.1 = false;
        }
    }

    /// How many more jobs may run in a queue.
    fn room(&self, queue: usize) -> usize {
        let Queue { paused, most } = self.queues[queue];
        let running = self.there().filter(|job| job.queue == queue && job.state == State::Running).count();
        match most {
            _ if paused => 0,
            Some(most) => (most as usize).saturating_sub(running),
            None => usize::MAX,
        }
    }

    /// Says what is wrong with what a claim took, if anything.
    pub fn check_claim(&self, taken: &[usize], slots: usize, suspects: bool) -> Result<(), String> {
        let free =
            |queue: usize| self.there().filter(move |job| job.queue == queue && job.state == State::Pending);
        if let Some(job) =
            taken.iter().find(|&&at| self.jobs[at].gone || self.jobs[at].state != State::Pending)
        {
            return Err(format!("job {} was not pending", job + 1));
        }
        let doubtful = taken.iter().filter(|&&at| self.jobs[at].is_suspect()).count();
        if doubtful > usize::from(suspects) {
            return Err(format!("{doubtful} suspects were taken"));
        }
        let mut most = 0_usize;
        for queue in 0..self.queues.len() {
            let mine: Vec<&Job> =
                taken.iter().map(|&at| &self.jobs[at]).filter(|job| job.queue == queue).collect();
            let room = self.room(queue);
            if mine.len() > room {
                return Err(format!("{} jobs of a queue with room for {room}", mine.len()));
            }
            let lowest = mine.iter().map(|job| job.priority).min();
            let passed = free(queue)
                .filter(|job| !job.is_suspect() && !mine.iter().any(|one| one.id == job.id))
                .find(|job| lowest.is_some_and(|lowest| job.priority > lowest));
            if let Some(job) = passed {
                return Err(format!("a job of priority {} was passed by", job.priority));
            }
            most = most.saturating_add(free(queue).filter(|job| !job.is_suspect()).count().min(room));
        }
        // A suspect may come on top, or in place of another.
        let least = most.min(slots);
        if taken.len() < least || taken.len() > slots {
            return Err(format!("{} jobs were taken, not {least}", taken.len()));
        }
        let waits = suspects && (0..2).any(|queue| self.room(queue) > 0 && free(queue).next().is_some());
        if taken.is_empty() && waits && slots > 0 {
            return Err("a job that may run was left".to_owned());
        }
        Ok(())
    }
}
