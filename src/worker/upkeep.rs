//! The tick: the beat, taken-away jobs, promotion, deadlines, the rescue of dead workers' jobs,
//! and the gates' table.
//!
//! No wall clock decides a lease: a worker is dead when its beat has not changed for a whole lease
//! by our own monotonic clock, or when its process is gone from this very host.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::attempt::Why;
use super::process::Process;
use super::vitals::Loop;
use super::{Mill, Seldom, Wake};
use crate::domain::job::{Lease, WorkerId};
use crate::domain::outcome::Outcome;
use crate::domain::pace::TAKE_EVERY;
use crate::failpoint::failpoint;
use crate::store::{Peer, StoreError};

/// The gates are shared no more often than this.
const GATES_EVERY_MIN: Duration = Duration::from_millis(50);
/// How often the tick runs.
const TICK: Duration = Duration::from_secs(1);
/// How many rows one statement of the tick moves.
const STEP: i64 = 500;
/// How many steps of promotion one tick takes at most.
const STEPS_MAX: usize = 20;
/// Rows of gates that say nothing any more are taken away this often.
const GATES_PRUNED_EVERY: Duration = Duration::from_hours(1);
/// Other workers are looked at at least this often.
const PEERS_EVERY_MAX: Duration = Duration::from_secs(5);
/// Waiting jobs whose tool calls are all answered are looked for this often. The last answer sends its job
/// on by itself; but of two at once, in transactions that see one moment only, each may miss the other.
const ANSWERED_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether this version may still use the tables.
const SCHEMA_EVERY: Duration = Duration::from_secs(2);

/// Says that this worker lives, every quarter of a lease, until told to stop.
pub async fn beat(mill: Arc<Mill>, stop: CancellationToken) {
    let every = mill.settings.lease / 4;
    while !paused(&stop, every).await {
        mill.vitals.turns(Loop::Beat);
        let running = mill.running.lock().len();
        let asleep = mill.asleep.load(Ordering::Relaxed);
        failpoint!("beat");
        match mill.store.beat(mill.worker(), running, asleep).await {
            Ok(true) => mill.has_beaten(),
            Ok(false) => start_anew(&mill).await,
            Err(err) => {
                tracing::warn!(error = %err, "failed to beat: other daemons may take this one for dead");
            }
        }
    }
}

/// Reads the key files again whenever told to (SIGHUP), until told to stop.
pub async fn reload(mill: Arc<Mill>, again: Arc<Notify>, stop: CancellationToken) {
    while stop.run_until_cancelled(again.notified()).await.is_some() {
        let changed = !mill.reload_keys().is_empty();
        mill.vitals.meters.keys_read(changed);
        if !changed {
            tracing::info!("the key files were read again: the keys are the same");
        }
    }
}

/// Our row is gone: somebody took us for dead. Running calls are not ours any more; whole answers are
/// still offered, and no job is to blame for a death that did not happen.
async fn start_anew(mill: &Mill) {
    mill.vitals.meters.lease_lost();
    tracing::warn!(worker.id = %mill.worker(), "this worker's row is gone: its jobs were taken away");
    let held: Vec<Lease> = {
        let running = mill.running.lock();
        running.values().for_each(|rein| rein.pull(Why::Lost));
        running.keys().copied().collect()
    };
    if let Err(err) = mill.store.absolve(&held).await {
        tracing::warn!(error = %err, "failed to say that no process died: jobs keep a crash too many");
    }
    match mill.store.enlist(&mill.me).await {
        Ok(id) => mill.set_worker(id),
        Err(err) => tracing::warn!(error = %err, "failed to enlist again: trying at the next beat"),
    }
}

/// Shares the gates with the other daemons until told to stop: once a second, and soon after a change.
pub async fn share_gates(mill: Arc<Mill>, stop: CancellationToken) {
    let mut ailing = false;
    while !paused(&stop, GATES_EVERY_MIN).await {
        let shared = mill.gates.sync(&*mill.store, Instant::now()).await;
        failpoint!("gates");
        match shared {
            Ok(()) => ailing = false,
            Err(err) => {
                if !std::mem::replace(&mut ailing, true) {
                    tracing::warn!(error = %err, "failed to share the gates: trying again every second");
                }
            }
        }
        // Passing is the ordinary end.
        drop(tokio::time::timeout(TICK, stop.run_until_cancelled(mill.gates.changed())).await);
    }
}

/// Says which profile and key each queue has, where that is not said yet.
pub async fn tell_accounts(mill: &Mill) -> Result<(), StoreError> {
    if mill.accounts_told.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let told = mill.store.set_accounts(&mill.accounts()).await;
    mill.accounts_told.fetch_and(told.is_ok(), Ordering::Relaxed);
    told
}

/// Takes from the rate budgets that all daemons share, until told to stop; not all at the same moment.
pub async fn share_rates(mill: Arc<Mill>, stop: CancellationToken) {
    loop {
        let every = TAKE_EVERY.mul_f64(0.8 + 0.4 * fastrand::f64());
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
            () = mill.gates.knows_more() => {}
        }
        mill.gates.take_rates(&*mill.store).await;
    }
}

/// Runs the tick until told to stop.
pub async fn tick(mill: Arc<Mill>, wake: Wake, stop: CancellationToken) {
    let mut peers = Peers::default();
    let mut ailing = false;
    let (mut looked, mut pruned, mut swept) = (Seldom::default(), Seldom::default(), Seldom::default());
    loop {
        mill.vitals.turns(Loop::Tick);
        leave_if_outdated(&mill, &wake, &mut looked).await;
        match round(&mill, &wake, &mut peers, &mut swept).await {
            Ok(()) => ailing = false,
            Err(err) => {
                if !std::mem::replace(&mut ailing, true) {
                    tracing::warn!(error = %err, "failed to keep the queue: trying again every second");
                }
            }
        }
        prune_gates(&mill, &mut pruned).await;
        if paused(&stop, TICK).await {
            return;
        }
    }
}

/// Takes rows of gates away that say nothing any more, once an hour.
async fn prune_gates(mill: &Mill, pruned: &mut Seldom) {
    if !pruned.is_due(GATES_PRUNED_EVERY) {
        return;
    }
    for _ in 0..STEPS_MAX {
        match mill.store.prune_gates(STEP).await {
            Ok(pruned) if pruned == STEP as u64 => {}
            Ok(_) => return,
            Err(err) => {
                tracing::debug!(error = %err, "failed to prune gates: trying again in an hour");
                return;
            }
        }
    }
}

async fn round(mill: &Mill, wake: &Wake, peers: &mut Peers, swept: &mut Seldom) -> Result<(), StoreError> {
    drop_lost(mill).await?;
    keep_notes(mill).await?;
    tell_accounts(mill).await?;
    // Many jobs may be due at the same time: a step a second would be the slowest part of the mill.
    for _ in 0..STEPS_MAX {
        let promoted = mill.store.promote(STEP).await?;
        failpoint!("promote");
        if promoted > 0 {
            wake.notify_one();
        }
        if promoted < STEP as u64 {
            break;
        }
    }
    promote_overdue(mill, wake).await?;
    if swept.is_due(ANSWERED_EVERY) {
        let promoted = mill.store.promote_answered(STEP).await;
        // A million jobs may wait for tools, and all of them are looked at.
        swept.done();
        if promoted? > 0 {
            wake.notify_one();
        }
    }
    for job in mill.store.expire(STEP).await? {
        failpoint!("expire");
        tracing::info!(job.id = %job, "job {job} ended: its deadline passed");
        mill.ended(None, Outcome::Expired);
    }
    // What the dead left is settled first: it counts as in time as long as nobody takes their jobs.
    if !mill.recorder.is_stalled() && peers.due(mill.settings.lease) {
        rescue(mill, wake, peers).await?;
    }
    Ok(())
}

/// Looks whether a newer version changed the tables under us. Before all else in a tick: on such
/// tables the rest of it may fail.
async fn leave_if_outdated(mill: &Mill, wake: &Wake, looked: &mut Seldom) {
    if !looked.is_due(SCHEMA_EVERY) {
        return;
    }
    // A database that is away is told about by the rest of the tick.
    if let Ok(Some(why)) = mill.store.outdated().await {
        tracing::error!("{why}; nothing more is claimed");
        mill.outdated.get_or_init(|| why);
        wake.notify_one();
    }
}

/// Makes pending what a jump of the database's clock would hold back for as long as it jumped.
async fn promote_overdue(mill: &Mill, wake: &Wake) -> Result<(), StoreError> {
    let asked = Instant::now();
    let wall = mill.store.clock().await?;
    let now = Instant::now();
    if let Some(back) = mill.delays.read(wall, asked, now) {
        tracing::warn!(
            clock.back_ms = back.as_millis() as u64,
            "the database's clock was put back by {:.0} s: our own pauses end when they would have",
            back.as_secs_f64()
        );
    }
    let overdue = mill.delays.overdue(now);
    if overdue.is_empty() {
        return Ok(());
    }
    match mill.store.promote_overdue(&overdue).await {
        Ok(_) => {
            wake.notify_one();
            Ok(())
        }
        Err(err) => {
            mill.delays.again(&overdue, now);
            Err(err)
        }
    }
}

/// Stops the attempts whose jobs were cancelled, expired, rescued or deleted.
async fn drop_lost(mill: &Mill) -> Result<(), StoreError> {
    let held: Vec<_> = mill.running.lock().keys().copied().collect();
    if held.is_empty() {
        return Ok(());
    }
    for lease in mill.store.lost(&held).await? {
        failpoint!("lost");
        if let Some(rein) = mill.running.lock().get(&lease) {
            rein.pull(Why::Lost);
        }
    }
    Ok(())
}

/// Writes what running streams brought since the last time, of all of them in one statement.
async fn keep_notes(mill: &Mill) -> Result<(), StoreError> {
    let now = Instant::now();
    let running: Vec<_> = mill.running.lock().iter().map(|(lease, rein)| (*lease, rein.clone())).collect();
    let due: Vec<_> = running
        .iter()
        .flat_map(|(lease, rein)| rein.notes.due(*lease, mill.settings.checkpoint, now))
        .collect();
    if due.is_empty() {
        return Ok(());
    }
    failpoint!("checkpoint.before");
    let kept = mill.store.checkpoint(&due).await?;
    failpoint!("checkpoint.after");
    mill.vitals.meters.kept(due.iter().map(|part| part.content.len()).sum());
    for (lease, rein) in running.iter().filter(|(lease, _)| kept.contains(lease)) {
        if let Some(last) = due.iter().rfind(|part| part.lease == *lease) {
            rein.notes.written(last.seq, last.part + 1);
        }
    }
    Ok(())
}

async fn rescue(mill: &Mill, wake: &Wake, peers: &mut Peers) -> Result<(), StoreError> {
    let seen = mill.store.peers(mill.worker()).await?;
    let now = Instant::now();
    peers.unheard(mill.unheard(), mill.settings.lease);
    for dead in peers.dead(&seen, now, mill.settings.lease, &mill.process) {
        loop {
            failpoint!("rescue.before");
            let jobs = mill.store.rescue(dead, STEP).await?;
            failpoint!("rescue.after");
            if jobs.is_empty() {
                break;
            }
            tracing::warn!(worker.id = %dead, jobs = jobs.len(), "worker {dead} is dead: its {} jobs are taken from it", jobs.len());
            mill.vitals.meters.rescued(jobs.len());
            for (model, tokens) in jobs.iter().filter_map(|job| job.brought.as_ref()) {
                mill.vitals.meters.crashed(model, *tokens);
            }
            for job in jobs.iter().filter(|job| job.quarantined) {
                tracing::error!(job.id = %job.job, "job {} ended: quarantined, worker processes died while they ran it", job.job);
                mill.ended(None, Outcome::Quarantined);
            }
            wake.notify_one();
        }
    }
    Ok(())
}

/// What this process has seen of the other workers.
#[derive(Default)]
struct Peers {
    beats: HashMap<WorkerId, (i64, Instant)>,
    looked: Seldom,
    /// When they were last seen.
    seen: Option<Instant>,
}

impl Peers {
    fn due(&mut self, lease: Duration) -> bool {
        self.looked.is_due((lease / 4).min(PEERS_EVERY_MAX))
    }

    /// While the database takes no beat of ours it takes none of theirs: their silence says nothing.
    fn unheard(&mut self, time: Duration, lease: Duration) {
        if time >= lease / 2 {
            self.beats.clear();
        }
    }

    /// Returns the workers that are dead.
    fn dead(&mut self, seen: &[Peer], now: Instant, lease: Duration, process: &Process) -> Vec<WorkerId> {
        // A database that was away, or a process that was stopped: nobody watched them meanwhile.
        let gap_max = (lease / 2).max(TICK * 3);
        if self.seen.is_some_and(|seen| now.saturating_duration_since(seen) >= gap_max) {
            self.beats.clear();
        }
        self.seen = Some(now);
        self.beats.retain(|id, _| seen.iter().any(|peer| peer.id == *id));
        let mut dead = Vec::new();
        for peer in seen {
            let (beat, since) = self.beats.entry(peer.id).or_insert((peer.beat, now));
            if *beat != peer.beat {
                (*beat, *since) = (peer.beat, now);
            }
            let silent = now.saturating_duration_since(*since) >= lease;
            if silent || process.is_gone(peer) {
                dead.push(peer.id);
            }
        }
        dead
    }
}

/// Waits; returns whether it was told to stop meanwhile.
pub(super) async fn paused(stop: &CancellationToken, time: Duration) -> bool {
    tokio::time::timeout(time, stop.cancelled()).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: i64, beat: i64, host: &str) -> Peer {
        Peer { id: WorkerId(id), beat, host: host.into(), boot: "b".into(), pid: 1, pid_started: 1 }
    }

    #[test]
    fn a_worker_is_dead_when_the_same_beat_was_seen_for_a_whole_lease_and_not_before() {
        let (start, lease, process) = (Instant::now(), Duration::from_mins(1), Process::this());
        let mut peers = Peers::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [0, 20, 40, 59] {
            assert!(peers.dead(&[peer(1, 5, "elsewhere")], at(seconds), lease, &process).is_empty());
        }
        assert_eq!(peers.dead(&[peer(1, 5, "elsewhere")], at(60), lease, &process), [WorkerId(1)]);
        assert!(peers.dead(&[peer(1, 6, "elsewhere")], at(61), lease, &process).is_empty(), "it beats again");
    }

    #[test]
    fn a_silence_that_nobody_watched_kills_no_worker() {
        let (start, lease, process) = (Instant::now(), Duration::from_mins(1), Process::this());
        let mut peers = Peers::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        // The database was away in between, for us as for them.
        for seconds in [0, 20, 120, 140, 160, 179] {
            assert!(peers.dead(&[peer(1, 5, "elsewhere")], at(seconds), lease, &process).is_empty());
        }
        assert_eq!(peers.dead(&[peer(1, 5, "elsewhere")], at(180), lease, &process), [WorkerId(1)]);
    }

    #[test]
    fn while_our_own_beat_is_not_taken_the_silence_of_others_kills_nobody() {
        let (start, lease, process) = (Instant::now(), Duration::from_mins(1), Process::this());
        let mut peers = Peers::default();
        // They can be read all the time: somebody holds the one writer of a SQLite file.
        for seconds in (0..=120).step_by(20) {
            peers.unheard(Duration::from_secs(seconds), lease);
            let at = start + Duration::from_secs(seconds);
            assert!(peers.dead(&[peer(1, 5, "elsewhere")], at, lease, &process).is_empty(), "{seconds}");
        }
    }

    #[test]
    fn a_process_that_is_gone_from_this_host_is_dead_at_once_and_a_living_one_is_not() {
        let process = Process::this();
        let me = process.me("0", "model");
        let mut alive = peer(1, 0, &me.host);
        (alive.boot, alive.pid, alive.pid_started) = (me.boot.clone(), me.pid, me.pid_started);
        assert!(!process.is_gone(&alive));
        let reused = Peer { pid_started: me.pid_started + 1, ..alive.clone() };
        assert!(process.is_gone(&reused), "the number is in use again by another process");
        let elsewhere = Peer { host: "elsewhere".into(), ..reused.clone() };
        assert!(!process.is_gone(&elsewhere), "nothing is known of another host's processes");
        let before_reboot = Peer { boot: "before".into(), ..reused };
        assert!(!process.is_gone(&before_reboot));
    }
}
