//! Tells systemd how it stands (`Type=notify`): that the daemon works, that it lives, that it stops.
//!
//! Without `NOTIFY_SOCKET` nothing is said. The watchdog hears of us only while the mill's loops turn: a
//! timer alone would keep a process alive that does nothing any more.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinSet;

use crate::worker::vitals::{Loop, Phase, Vitals};

/// How often the line that `systemctl status` shows is told anew, where there is no watchdog.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// How often a loop that stands still is looked at: one that goes on is to be told of while there is time.
const STUCK_EVERY: Duration = Duration::from_secs(1);
/// A start is given so many times as long as it takes to speak again. It waits for a database that is
/// away for as long as that lasts.
const START_PATIENCE: u32 = 4;

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
    /// It starts, and needs so long to speak again.
    Wait(Duration),
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
        if now == Phase::Starting {
            words.push(Word::Wait(every * START_PATIENCE));
        }
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
        tokio::time::timeout(rest(every, &stuck), phase.changed()).await.ok();
    }
}

/// How long it is until the loops are looked at again.
fn rest(every: Duration, stuck: &[(Loop, Duration)]) -> Duration {
    if stuck.is_empty() { every } else { every.min(STUCK_EVERY) }
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
            Word::Wait(time) => {
                NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_looked_at_long_before_the_watchdogs_time_is_over() {
        let half = Duration::from_secs(30);
        let stuck = [(Loop::ALL[0], Duration::from_mins(2))];
        assert_eq!(rest(half, &[]), half);
        assert_eq!(rest(half, &stuck), Duration::from_secs(1));
        assert_eq!(
            rest(Duration::from_millis(200), &stuck),
            Duration::from_millis(200),
            "no seldomer than else"
        );
    }
}
