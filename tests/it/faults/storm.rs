//! Three daemons on one database, each killed at any time and started again.

use std::ops::Range;
use std::time::{Duration, Instant};

use fastrand::Rng;
use promptmill::failpoint::ALL;
use promptmill::stand_in::Options;

use super::invariants::{Findings, Invariants};
use super::work::{self, Spec, Work};
use crate::mill::harness::{Daemon, Mill};
use crate::support::{Ground, on_both};

/// How many daemons there are.
const DAEMONS: usize = 3;

/// Longest time that a daemon is waited for at its point.
const LIFE_MAX: Duration = Duration::from_secs(1);

on_both! {
    three_daemons_that_are_killed_at_any_time_lose_nothing,
    three_daemons_that_die_at_every_point_in_turn_lose_nothing,
}

async fn three_daemons_that_die_at_every_point_in_turn_lose_nothing(ground: &Ground) {
    let seed = fastrand::u64(..);
    let mut storm = Storm::new(ground, seed).await;
    let mixed = work::mixed();
    storm.feed(&mixed).await;
    tokio::select! {
        () = storm.die_at_each(ALL.to_vec(), &mixed) => {}
        _ = work::serve(ground) => unreachable!("it serves for ever"),
    }
    let (kills, found) = storm.end().await;
    found.assert(&format!("seed {seed}, {kills} deaths"));
}

async fn three_daemons_that_are_killed_at_any_time_lose_nothing(ground: &Ground) {
    let seed = fastrand::u64(..);
    let mut storm = Storm::new(ground, seed).await;
    storm.feed(&[work::mixed(), work::mixed()].concat()).await;
    tokio::select! {
        () = storm.rage(Instant::now() + Duration::from_secs(5), 100..700, &[]) => {}
        _ = work::serve(ground) => unreachable!("it serves for ever"),
    }
    let (kills, found) = storm.end().await;
    found.assert(&format!("seed {seed}, {kills} kills"));
    assert!(kills > 5, "{kills} kills in five seconds");
}

/// A mill whose daemons die.
pub struct Storm<'g> {
    mill: Mill<'g>,
    random: Rng,
    daemons: Vec<Daemon>,
    work: Vec<Work>,
    kills: usize,
    /// Ends that were not ours.
    wrong: Vec<String>,
}

impl<'g> Storm<'g> {
    /// Starts three daemons that have nothing to do yet.
    pub async fn new(ground: &'g Ground, seed: u64) -> Self {
        let mut mill = Mill::with(ground, Options { calls_kept: 10_000_000, ..Options::default() }).await;
        mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "4");
        mill.set("PROMPTMILL_WORKER__CONCURRENCY", "12");
        mill.set("PROMPTMILL_WORKER__CHECKPOINT_SECONDS", "0.2");
        work::configure(&mill);
        Invariants::watch(ground).await;
        let daemons = (0..DAEMONS).map(|_| mill.start()).collect();
        let random = Rng::with_seed(seed);
        Self { mill, random, daemons, work: Vec::new(), kills: 0, wrong: Vec::new() }
    }

    /// Puts jobs in.
    pub async fn feed(&mut self, specs: &[Spec]) {
        let more = work::insert(self.mill.ground, specs, self.work.len() + 1).await;
        self.work.extend(more);
    }

    /// Kills and starts again, with so many milliseconds in between, and cancels a job now and
    /// then; where fewer jobs than `more` are left, puts these in.
    pub async fn rage(&mut self, until: Instant, pauses: Range<u64>, more: &[Spec]) {
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(self.random.u64(pauses.clone()))).await;
            self.keep_busy(more).await;
            let victim = self.random.usize(..DAEMONS);
            self.replace(victim).await;
        }
    }

    /// Lets the daemons die at one point after the other, at its first to fifth time, in any order.
    /// One that does not come there in time is killed where it is.
    async fn die_at_each(&mut self, mut points: Vec<&str>, more: &[Spec]) {
        self.random.shuffle(&mut points);
        for (at, point) in points.iter().enumerate() {
            self.keep_busy(more).await;
            let passed = self.random.u8(..5);
            self.mill.set("FAILPOINTS", &format!("{point}={passed}*off->return(kill)"));
            // The oldest one makes place.
            self.replace(0).await;
            let enough = Instant::now() + LIFE_MAX;
            while at + 1 >= DAEMONS && Instant::now() < enough && !self.daemons[0].has_ended() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        self.mill.unset("FAILPOINTS");
        for _ in 0..DAEMONS {
            self.replace(0).await;
        }
    }

    /// Puts jobs in where few are left, and cancels one now and then.
    async fn keep_busy(&mut self, more: &[Spec]) {
        if !more.is_empty() {
            let left = "SELECT count(*) FROM job_state WHERE state <> 'done'";
            let left: usize = self.mill.ground.line(left).await.parse().expect("a count");
            if left < more.len() {
                self.feed(more).await;
            }
        }
        if self.random.u8(..4) == 0 {
            let cancel = work::cancel_one(self.mill.ground, &self.work);
            // There may be none to cancel just now.
            tokio::time::timeout(Duration::from_millis(50), cancel).await.ok();
        }
    }

    /// Kills a daemon, if it is not dead already, and starts another.
    async fn replace(&mut self, victim: usize) {
        let mut victim = self.daemons.remove(victim);
        let ran = if victim.has_ended() { victim.ended().await } else { victim.kill().await };
        self.kills += 1;
        if ran.code != -1 {
            self.wrong.push(format!("a daemon ended by itself with {}: {}", ran.code, ran.stderr));
        }
        self.daemons.push(self.mill.start());
    }

    /// Lets all come to its end, and looks; returns how many daemons were killed, too.
    pub async fn end(mut self) -> (usize, Findings) {
        for daemon in self.daemons.drain(..) {
            // A signal that comes before it listens ends it as it ends any program.
            self.mill.until_said(&daemon, "is ready").await;
            let ran = daemon.stop().await;
            if ran.code != 0 {
                self.wrong.push(format!("a daemon was stopped and ended with {}: {}", ran.code, ran.stderr));
            }
        }
        let ran = work::drain(&self.mill).await;
        if !matches!(ran.code, 0 | 7) {
            self.wrong.push(format!("the drain ended with {}: {}", ran.code, ran.stderr));
        }
        let mut found = Invariants::check(&self.mill, &self.work).await;
        found.wrong.extend(self.wrong);
        (self.kills, found)
    }
}
