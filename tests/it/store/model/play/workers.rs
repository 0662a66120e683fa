//! What workers do beside writing: claim, beat, go, and take from each other.

use std::sync::atomic::Ordering;

use promptmill::domain::job::{Claimed, JobId, Lease, WorkerId};
use promptmill::store::{Blocked, Rooms, Wanted};

use super::super::job::{Claim, Job, State};
use super::super::step::Pick;
use super::{Hand, Play, claim, newest, same, tokens, tools};

impl Play<'_> {
    /// What a claim may take. A batch that nobody has makes each one look afresh: what was seen
    /// before is believed for a moment, and nobody waits here.
    fn wanted(&self, worker: i64, slots: usize, suspect: bool) -> Wanted {
        let claims = self.stage.claims.fetch_add(1, Ordering::Relaxed);
        Wanted {
            worker: WorkerId(worker),
            slots,
            bytes_max: 1 << 30,
            suspect,
            queues: Vec::new(),
            default_model: "default-model".to_owned(),
            profiles: std::collections::BTreeMap::new(),
            blocked: Blocked { batches: vec![("none".to_owned(), claims.to_string())], ..Blocked::default() },
            rooms: Rooms::default(),
        }
    }

    pub(super) async fn claim(&mut self, slot: u8, slots: usize, suspects: bool) -> Result<(), String> {
        let (worker, _) = self.model.workers[self.slots[usize::from(slot)]];
        let but = if suspects { "" } else { " but no suspect" };
        self.tell(format!("{} claims up to {slots} jobs{but}: ", self.name(worker)));
        let wanted = self.wanted(worker, slots, suspects);
        let claimed = self.store(worker).claim(&wanted).await.map_err(|error| error.to_string())?;
        self.claimed(worker, &claimed, slots, suspects)
    }

    fn claimed(
        &mut self,
        worker: i64,
        claimed: &[Claimed],
        slots: usize,
        suspects: bool,
    ) -> Result<(), String> {
        let at = |job: &Claimed| self.model.jobs.iter().position(|known| known.id == job.lease.job.0);
        let taken: Option<Vec<usize>> = claimed.iter().map(at).collect();
        let taken = taken.ok_or("a job that nobody inserted")?;
        let names: Vec<String> = taken.iter().map(|at| format!("job {}", at + 1)).collect();
        self.add(&if names.is_empty() { "none".to_owned() } else { names.join(", ") });
        if self.model.has_row(worker) {
            self.model.check_claim(&taken, slots, suspects)?;
        } else if !taken.is_empty() {
            return Err("a worker without a row was given jobs".to_owned());
        }
        for (&at, got) in taken.iter().zip(claimed) {
            if self.model.jobs[at].is_suspect() {
                self.see("a suspect claimed");
            }
            let lease = self.model.jobs[at].claimed(worker);
            let hand = Hand {
                job: at,
                lease: got.lease,
                worker,
                seq: 1,
                parts: 0,
                failures: got.tally.failures,
                deferrals: got.tally.deferrals,
                known: self.model.jobs[at].sums(lease.run),
                appended: None,
                closed: None,
            };
            self.check_claimed(at, lease, got)?;
            self.hands.push(hand);
        }
        Ok(())
    }

    /// Compares what a claim brought with the model: the lease, the counters, what was paid before.
    fn check_claimed(&self, at: usize, lease: Claim, got: &Claimed) -> Result<(), String> {
        let job = &self.model.jobs[at];
        let expected = Lease { job: JobId(job.id), claim: lease.claim, run: lease.run };
        same("the lease", &expected, &got.lease)?;
        let tally = (got.tally.failures, got.tally.deferrals, got.tally.crashes);
        same("the counters", &(job.failures, job.deferrals, job.crashes), &tally)?;
        let rows = job.ledger.iter().filter(|(_, row)| row.run == lease.run);
        let paid: Vec<_> = rows
            .map(|(&(claim, seq), row)| (claim, seq, row.late, row.tokens, row.error.map(str::to_owned)))
            .collect();
        let calls: Vec<_> = got
            .calls
            .iter()
            .map(|past| (past.claim, past.seq, past.late, tokens(past.usage), past.error_type.clone()))
            .collect();
        same("what was paid before", &paid, &calls)?;
        let rows = job.tools.iter().filter(|(_, tool)| tool.run == lease.run);
        let asked: Vec<_> =
            rows.map(|(&key, tool)| (key, tool.taken_by.is_some(), tool.result.clone())).collect();
        let tools: Vec<_> = got
            .tools
            .iter()
            .map(|tool| ((tool.claim, tool.seq, tool.call.position), tool.taken, tools::text(tool)))
            .collect();
        same("what tools were asked", &asked, &tools)
    }

    pub(super) async fn heartbeat(&mut self, slot: u8) -> Result<(), String> {
        let (worker, alive) = self.model.workers[self.slots[usize::from(slot)]];
        self.tell(format!("{} beats and looks around", self.name(worker)));
        let store = self.store(worker);
        let beat = store.beat(WorkerId(worker), 1, false).await.map_err(|error| error.to_string())?;
        same("whether the worker has a row", &alive, &beat)?;
        let leases: Vec<Lease> = self.hands.iter().map(|hand| hand.lease).collect();
        let mut lost = store.lost(&leases).await.map_err(|error| error.to_string())?;
        let gone = |hand: &&Hand| !self.model.jobs[hand.job].holds(claim(&hand.lease));
        let mut expected: Vec<Lease> = self.hands.iter().filter(gone).map(|hand| hand.lease).collect();
        for leases in [&mut lost, &mut expected] {
            leases.sort_by_key(|lease| (lease.job, lease.claim));
        }
        same("the leases that are lost", &expected, &lost)?;
        let peers = store.peers(WorkerId(worker)).await.map_err(|error| error.to_string())?;
        let peers: Vec<i64> = peers.iter().map(|peer| peer.id.0).collect();
        let others = self.model.workers.iter().filter(|one| one.0 != worker);
        let there = others.filter(|one| one.1 || !self.model.held_by(one.0).is_empty());
        same("the other workers", &there.map(|one| one.0).collect(), &peers)
    }

    pub(super) async fn retire(&mut self, slot: u8) {
        let (worker, _) = self.model.workers[self.slots[usize::from(slot)]];
        self.tell(format!("{} takes its row away", self.name(worker)));
        self.store(worker).retire(WorkerId(worker)).await.expect("it retires");
        self.model.drop_row(worker);
    }

    pub(super) async fn restart(&mut self, slot: u8) {
        let (worker, _) = self.model.workers[self.slots[usize::from(slot)]];
        let next = self.model.workers.len() + 1;
        self.tell(format!("{} stands still, worker {next} takes its place", self.name(worker)));
        self.enlist(usize::from(slot)).await;
    }

    pub(super) async fn rescue_one(&mut self, pick: Pick, limit: i64) -> Result<(), String> {
        let all: Vec<i64> = self.model.workers.iter().map(|one| one.0).collect();
        let holds = |worker: &i64| !self.model.held_by(*worker).is_empty();
        let busy: Vec<i64> = all.iter().copied().filter(holds).collect();
        let from = if busy.is_empty() { &all } else { &busy };
        let Some(&worker) = newest(from, pick) else { return Ok(()) };
        self.rescue(worker, limit).await
    }

    pub(super) async fn rescue(&mut self, worker: i64, limit: i64) -> Result<(), String> {
        self.tell(format!("up to {limit} jobs of {} are rescued: ", self.name(worker)));
        let saved = self.stage.stores[0].rescue(WorkerId(worker), limit).await;
        let mut saved: Vec<(i64, bool)> = saved
            .map_err(|error| error.to_string())?
            .iter()
            .map(|one| (one.job.0, one.quarantined))
            .collect();
        saved.sort_unstable();
        let mut held = self.model.held_by(worker);
        held.truncate(limit as usize);
        let names: Vec<String> = held.iter().map(|at| format!("job {}", at + 1)).collect();
        self.add(&if names.is_empty() { "none".to_owned() } else { names.join(", ") });
        for &at in &held {
            let job = &mut self.model.jobs[at];
            job.rescue();
            let (crashes, state) = (job.crashes, job.state);
            if state == State::Done {
                self.see("a job quarantined");
            } else if crashes == 0 {
                self.see("a rescue after progress");
            }
        }
        if self.model.held_by(worker).is_empty() {
            self.model.drop_row(worker);
        }
        let ended = |job: &Job| (job.id, job.state == State::Done);
        let expected = held.iter().map(|&at| ended(&self.model.jobs[at])).collect();
        same("what is rescued, and whether it is over", &expected, &saved)
    }

    pub(super) async fn crash_loop(&mut self, slot: u8, times: usize) -> Result<(), String> {
        for _ in 0..times {
            if !self.model.there().any(|job| job.state == State::Pending) {
                break;
            }
            self.claim(slot, 1, true).await?;
            let (worker, _) = self.model.workers[self.slots[usize::from(slot)]];
            self.restart(slot).await;
            self.rescue(worker, 9).await?;
            self.compare().await?;
        }
        Ok(())
    }
}
