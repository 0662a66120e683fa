//! Tells systemd how it stands (`Type=notify`): that the daemon works, that it lives, that it stops.
//!
//! Without `NOTIFY_SOCKET` nothing is said. The watchdog hears of us only while the mill's loops turn: a
//! timer alone would keep a process alive that does nothing any more.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinSet;

use crate::worker::vitals::{Phase, Vitals};

/// How often the line that `systemctl status` shows is told anew, where there is no watchdog.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// Tells it until the mill is over. `patience`: how long a loop may stand still.
pub fn follow(vitals: Arc<Vitals>, patience: Duration) -> JoinSet<()> {
    let mut telling = JoinSet::new();
    telling.spawn(tell_all(vitals, patience));
    telling
}

/// What is said beside the line.
#[derive(Debug, Clone, Copy)]
enum Word {
    Ready,
    Stopping,
    Alive,
}

async fn tell_all(vitals: Arc<Vitals>, patience: Duration) {
    let mut phase = vitals.follow();
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(STATUS_EVERY, |limit| limit / 2);
    let (mut known, mut was_stuck) = (Phase::Starting, false);
    loop {
        let now = *phase.borrow_and_update();
        let mut words = Vec::new();
        match (known, now) {
            (Phase::Starting, Phase::Working) => words.push(Word::Ready),
            (Phase::Starting | Phase::Working, Phase::Draining | Phase::Over) => words.push(Word::Stopping),
            _ => {}
        }
        known = now;
        let stuck = vitals.stuck(patience);
        if let Some((of, still)) = stuck.first()
            && !was_stuck
        {
            let (of, still) = (of.words(), still.as_secs());
            tracing::error!("{of} has not turned for {still} s: systemd is not told that this process lives");
        }
        was_stuck = !stuck.is_empty();
        if watchdog.is_some() && !was_stuck {
            words.push(Word::Alive);
        }
        tell(words, status(&vitals, now)).await;
        if now == Phase::Over {
            return;
        }
        // The time is an ordinary end; that nobody is there to change it any more, too.
        tokio::time::timeout(every, phase.changed()).await.ok();
    }
}

/// The line that `systemctl status` shows.
fn status(vitals: &Vitals, phase: Phase) -> String {
    let Some(state) = vitals.state() else {
        let word = if phase == Phase::Starting { "waiting for the database" } else { "over" };
        return word.to_owned();
    };
    let calls = format!("{} in flight, {} ended", state.in_flight, state.ended);
    match phase {
        Phase::Starting => "starting".to_owned(),
        Phase::Working => {
            let blocks = &state.blocks;
            let blocked = blocks.profiles.len() + blocks.models.len() + blocks.batches;
            let gates = if blocked == 0 { String::new() } else { format!(", {blocked} gates blocked") };
            format!("working: {calls}{gates}")
        }
        Phase::Draining => format!("draining: {calls}"),
        Phase::Over => format!("over: {calls}"),
    }
}

/// Says it on a thread that may wait: nobody knows how soon it is read.
async fn tell(words: Vec<Word>, status: String) {
    let told = tokio::task::spawn_blocking(move || {
        let words = words.iter().map(|word| match word {
            Word::Ready => NotifyState::Ready,
            Word::Stopping => NotifyState::Stopping,
            Word::Alive => NotifyState::Watchdog,
        });
        let said: Vec<NotifyState<'_>> = words.chain([NotifyState::Status(&status)]).collect();
        sd_notify::notify(&said)
    });
    match told.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "systemd could not be told: {error}"),
        Err(error) => tracing::debug!(%error, "systemd could not be told: {error}"),
    }
}
