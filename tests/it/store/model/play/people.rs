//! What people do, and the time: plain SQL, but for the two ticks of the time.

use promptmill::domain::outcome::Outcome;

use super::super::job::{Job, State};
use super::super::step::{Pick, Step};
use super::{Play, same};

impl Play<'_> {
    /// What people do, and the time: plain SQL.
    pub(super) async fn by_sql(&mut self, step: &Step) -> Result<(), String> {
        self.clock += 10;
        let ground = &self.stage.ground;
        let now = ground.at(-3600 - self.clock);
        match *step {
            Step::Insert { queue, batch, priority, later: scheduled, deadline } => {
                self.insert(queue, batch, priority, scheduled, deadline).await;
            }
            Step::Pause { queue, paused } => {
                let (at, name) = named(queue);
                self.tell(format!("queue {name} is {}", if paused { "paused" } else { "not paused" }));
                self.model.queues[at].paused = paused;
                let paused = if paused { "TRUE" } else { "FALSE" };
                ground.run(&format!("UPDATE queues SET paused = {paused} WHERE name = '{name}'")).await;
            }
            Step::Limit { queue, most } => {
                let (at, name) = named(queue);
                self.tell(format!("queue {name} runs at most {most:?}"));
                self.model.queues[at].most = most;
                let most = most.map_or("NULL".to_owned(), |most| most.to_string());
                ground.run(&format!("UPDATE queues SET max_running = {most} WHERE name = '{name}'")).await;
            }
            Step::CancelAll => {
                self.tell("a person cancels all jobs");
                ground.run("UPDATE job_state SET state = 'cancelled'").await;
                for job in &mut self.model.jobs {
                    job.take_away(Outcome::Cancelled);
                }
            }
            Step::Delete { job } => {
                let Some(at) = self.job(job) else { return Ok(()) };
                self.tell(format!("a person deletes job {}", at + 1));
                ground.run(&format!("DELETE FROM jobs WHERE id = {}", self.model.jobs[at].id)).await;
                self.model.jobs[at].delete();
            }
            Step::ComesDue { job } => {
                if let Some(at) = self.job_that(job, |job| job.state == State::Scheduled) {
                    self.comes_due(at, &now).await;
                }
            }
            Step::DeadlinePasses { job } => {
                let ahead = |job: &Job| job.state != State::Done && job.deadline == Some(false);
                if let Some(at) = self.job_that(job, ahead) {
                    self.tell(format!("the deadline of job {} passes", at + 1));
                    self.model.jobs[at].deadline = Some(true);
                    let id = self.model.jobs[at].id;
                    ground
                        .run(&format!("UPDATE job_state SET deadline_at = {now} WHERE job_id = {id}"))
                        .await;
                }
            }
            ref by_hand => self.change_one(by_hand).await?,
        }
        Ok(())
    }

    /// What a person does to the state of one job.
    async fn change_one(&mut self, step: &Step) -> Result<(), String> {
        let ground = &self.stage.ground;
        let (later, now) = (ground.at(3600 + self.clock), ground.at(-3600 - self.clock));
        match *step {
            Step::Cancel { job } => {
                match self.job(job).map(|at| self.model.jobs[at].state) {
                    Some(State::Running) => self.see("a running job cancelled"),
                    Some(State::Waiting) => self.see("a waiting job cancelled"),
                    _ => {}
                }
                let change = |job: &mut Job| {
                    job.take_away(Outcome::Cancelled);
                    true
                };
                self.by_hand(job, "cancels", "state = 'cancelled'", change).await?;
            }
            Step::MakePending { job } => {
                if self.job(job).is_some_and(|at| self.model.jobs[at].state == State::Done) {
                    self.see("a job run again");
                }
                let change = |job: &mut Job| job.make_pending(false);
                self.by_hand(job, "makes pending", "state = 'pending'", change).await?;
            }
            Step::RunAgainLater { job } => {
                let set = format!("state = 'pending', available_at = {later}");
                let change = |job: &mut Job| match job.state {
                    State::Running | State::Waiting | State::Done => job.make_pending(true),
                    State::Pending | State::Scheduled => job.move_to(true),
                };
                self.by_hand(job, "makes pending, for later,", &set, change).await?;
            }
            Step::MakeScheduled { job } => {
                let change = |job: &mut Job| job.state == State::Scheduled;
                self.by_hand(job, "makes scheduled", "state = 'scheduled'", change).await?;
            }
            Step::MoveLater { job } => {
                let set = format!("available_at = {later}");
                self.by_hand(job, "moves to a later time", &set, |job| job.move_to(true)).await?;
            }
            Step::MoveToNow { job } => {
                let set = format!("available_at = {now}");
                self.by_hand(job, "moves to an earlier time", &set, |job| job.move_to(false)).await?;
            }
            Step::SetPriority { job, priority } => {
                let change = |job: &mut Job| {
                    job.priority = priority;
                    true
                };
                let words = format!("gives priority {priority} to");
                self.by_hand(job, &words, &format!("priority = {priority}"), change).await?;
            }
            _ => unreachable!("{step:?} is not done by SQL"),
        }
        Ok(())
    }

    async fn insert(&mut self, queue: u8, batch: bool, priority: i32, later: bool, deadline: bool) {
        let (at, name) = named(queue);
        let when = if later { " for later" } else { "" };
        let until = if deadline { " with a deadline" } else { "" };
        let job = self.model.jobs.len() + 1;
        self.tell(format!(
            "a person inserts job {job} of priority {priority} into queue {name}{when}{until}"
        ));
        let ground = &self.stage.ground;
        let sql = format!(
            "INSERT INTO jobs (prompt, queue, batch, priority, run_at, policy)
             VALUES ('say hello', '{name}', {}, {priority}, {}, {})
             RETURNING id",
            if batch { "'label'" } else { "NULL" },
            ground.at(if later { 3600 } else { -10 }),
            if deadline { r#"'{"deadline_seconds": 86400}'"# } else { "NULL" },
        );
        let id = ground.line(&sql).await.parse().expect("an id");
        self.model.jobs.push(Job::new(id, at, priority, later, deadline));
    }

    /// A person's UPDATE of one job, which may be refused.
    async fn by_hand(
        &mut self,
        job: Pick,
        verb: &str,
        set: &str,
        change: impl Fn(&mut Job) -> bool,
    ) -> Result<(), String> {
        let Some(at) = self.job(job) else { return Ok(()) };
        self.tell(format!("a person {verb} job {}", at + 1));
        let id = self.model.jobs[at].id;
        let said =
            self.stage.ground.attempt(&format!("UPDATE job_state SET {set} WHERE job_id = {id}")).await;
        let taken = change(&mut self.model.jobs[at]);
        if !taken {
            self.add(": refused");
            self.see("a person refused");
            // Postgres says so before it lets go of the row, which a claim would then pass by.
            let row = format!("SELECT state FROM job_state WHERE job_id = {id}");
            self.stage.ground.rows(&format!("{row}{}", self.stage.ground.either("", " FOR UPDATE"))).await;
        }
        match (taken, said) {
            (true, Err(sentence)) => Err(format!("it was refused: {sentence}")),
            (false, Ok(rows)) => Err(format!("it was not refused, but changed {rows} rows")),
            _ => Ok(()),
        }
    }

    pub(super) async fn comes_due(&mut self, at: usize, now: &str) {
        self.tell(format!("the time of job {} comes", at + 1));
        let job = &mut self.model.jobs[at];
        job.due = true;
        // Without a person's hand: the guard would make it pending at once.
        let id = job.id;
        let sql = format!(
            "UPDATE job_state SET available_at = {now}, claims = claims + 1 WHERE job_id = {id};
             UPDATE job_state SET claims = claims - 1 WHERE job_id = {id}"
        );
        self.stage.ground.run(&sql).await;
    }

    pub(super) async fn promote(&mut self) -> Result<(), String> {
        self.tell("what is due is made pending");
        let due =
            self.model.jobs.iter_mut().filter(|job| !job.gone && job.state == State::Scheduled && job.due);
        let count = due.map(|job| job.state = State::Pending).count() as u64;
        let promoted = self.stage.stores[0].promote(100).await.map_err(|error| error.to_string())?;
        same("how many are due", &count, &promoted)?;
        let swept = self.stage.stores[0].promote_answered(100).await.map_err(|error| error.to_string())?;
        same("how many wait for nothing", &0, &swept)
    }

    pub(super) async fn expire(&mut self, limit: i64) -> Result<(), String> {
        self.tell(format!("at most {limit} jobs past their deadline are ended"));
        let ended = self.stage.stores[1].expire(limit).await.map_err(|error| error.to_string())?;
        let late = |job: &Job| !job.gone && job.state != State::Done && job.deadline == Some(true);
        let due = self.model.jobs.iter().filter(|job| late(job)).count();
        same("how many are ended", &due.min(limit as usize), &ended.len())?;
        for id in ended {
            let job = self.model.jobs.iter_mut().find(|job| job.id == id.0 && late(job));
            let job = job.ok_or("a job was ended that is not past its deadline")?;
            let was = job.state;
            job.take_away(Outcome::Expired);
            match was {
                State::Running => self.see("a running job expired"),
                State::Waiting => self.see("a waiting job expired"),
                _ => {}
            }
        }
        Ok(())
    }
}

fn named(queue: u8) -> (usize, &'static str) {
    if queue == 0 { (0, "a") } else { (1, "b") }
}
