//! What a stretch of time brought, in sixty slots: as numbers for the script, and as bars for who has none.

use serde_json::{Value, json};

use crate::store::Moment;
use crate::store::board::Pulse;
use crate::web::words::hundredths;

/// Slots of a chart.
const SLOTS: usize = 60;
/// The units that a chart is high.
const HEIGHT: f64 = 100.0;

/// One slot, by the minute.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Slot {
    /// Jobs that ended as complete.
    pub complete: f64,
    /// Jobs that ended otherwise.
    pub other: f64,
    /// Tokens in.
    pub tokens_in: f64,
    /// Tokens out.
    pub tokens_out: f64,
}

/// A bar of a chart without script.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// From the left.
    pub x: usize,
    /// From the top.
    pub y: String,
    /// How high.
    pub height: String,
    /// Which series.
    pub class: &'static str,
}

/// A share of the jobs of the window.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// An outcome or a stop reason.
    pub word: String,
    /// How many.
    pub count: i64,
    /// Of a hundred.
    pub percent: f64,
}

/// A window of time.
#[derive(Debug, Clone)]
pub struct Chart {
    slots: Vec<Slot>,
    start_s: i64,
    slot_s: f64,
    /// Whether the numbers are taken from a sample.
    pub sampled: bool,
    /// Jobs in the window.
    pub jobs: i64,
    /// By outcome, the most frequent first.
    pub outcomes: Vec<Share>,
    /// By stop reason.
    pub stops: Vec<Share>,
    /// By the minute, over the last tenth of the window.
    pub latest: Slot,
}

impl Chart {
    /// Makes a chart of what was found.
    pub fn new(pulse: &Pulse, window_ms: i64, now: Moment) -> Self {
        let slot_ms = window_ms as f64 / SLOTS as f64;
        let each = pulse.step as f64;
        let a_minute = each * 60_000.0 / slot_ms;
        let mut slots = vec![Slot::default(); SLOTS];
        let (mut outcomes, mut stops) = (Vec::new(), Vec::new());
        for beat in &pulse.beats {
            let back = (beat.age_ms.max(0) as f64 / slot_ms) as usize;
            let slot = &mut slots[SLOTS - 1 - back.min(SLOTS - 1)];
            if beat.outcome == "complete" {
                slot.complete += a_minute;
            } else {
                slot.other += a_minute;
            }
            slot.tokens_in += beat.tokens_in as f64 * a_minute;
            slot.tokens_out += beat.tokens_out as f64 * a_minute;
            note(&mut outcomes, &beat.outcome, pulse.step);
            note(&mut stops, beat.stop_reason.as_deref().unwrap_or("none"), pulse.step);
        }
        let jobs = pulse.beats.len() as i64 * pulse.step;
        let late = &slots[SLOTS - SLOTS / 10..];
        let mean = |of: fn(&Slot) -> f64| late.iter().map(of).sum::<f64>() / late.len() as f64;
        let latest = Slot {
            complete: mean(|slot| slot.complete),
            other: mean(|slot| slot.other),
            tokens_in: mean(|slot| slot.tokens_in),
            tokens_out: mean(|slot| slot.tokens_out),
        };
        Self {
            start_s: (now.0 - window_ms) / 1000,
            slot_s: slot_ms / 1000.0,
            sampled: pulse.step > 1,
            jobs,
            outcomes: shares(outcomes, jobs),
            stops: shares(stops, jobs),
            latest,
            slots,
        }
    }

    /// How long "of late" is, in milliseconds.
    pub fn late_ms(&self) -> i64 {
        (self.slot_s * 1000.0) as i64 * (SLOTS / 10) as i64
    }

    /// Jobs a minute, of late.
    pub fn rate(&self) -> f64 {
        self.latest.complete + self.latest.other
    }

    fn times(&self) -> Vec<f64> {
        (0..SLOTS).map(|at| self.start_s as f64 + (at as f64 + 0.5) * self.slot_s).collect()
    }

    fn rows(&self, of: [fn(&Slot) -> f64; 2]) -> Value {
        let row =
            |of: fn(&Slot) -> f64| self.slots.iter().map(|slot| hundredths(of(slot))).collect::<Vec<_>>();
        json!([self.times(), row(of[0]), row(of[1])])
    }

    /// Jobs a minute, for the script.
    pub fn jobs_json(&self) -> Value {
        self.rows([|slot| slot.complete, |slot| slot.other])
    }

    /// Tokens a minute, for the script.
    pub fn tokens_json(&self) -> Value {
        self.rows([|slot| slot.tokens_in, |slot| slot.tokens_out])
    }

    /// Jobs a minute, as bars.
    pub fn jobs_bars(&self) -> Vec<Bar> {
        bars(&self.slots, |slot| [slot.complete, slot.other])
    }

    /// Tokens a minute, as bars.
    pub fn tokens_bars(&self) -> Vec<Bar> {
        bars(&self.slots, |slot| [slot.tokens_in, slot.tokens_out])
    }

    /// The highest slot, by jobs and by tokens.
    pub fn tops(&self) -> (f64, f64) {
        let top = |of: fn(&Slot) -> f64| self.slots.iter().map(of).fold(0.0, f64::max);
        (top(|slot| slot.complete + slot.other), top(|slot| slot.tokens_in + slot.tokens_out))
    }
}

fn note(into: &mut Vec<(String, i64)>, word: &str, step: i64) {
    match into.iter_mut().find(|(known, _)| known == word) {
        Some((_, count)) => *count += step,
        None => into.push((word.to_owned(), step)),
    }
}

fn shares(mut counts: Vec<(String, i64)>, jobs: i64) -> Vec<Share> {
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let share = |(word, count): (String, i64)| Share {
        word,
        count,
        percent: (count as f64 * 1000.0 / jobs.max(1) as f64).round() / 10.0,
    };
    counts.into_iter().map(share).collect()
}

/// Two series on top of each other.
fn bars(slots: &[Slot], of: fn(&Slot) -> [f64; 2]) -> Vec<Bar> {
    let top = slots.iter().map(|slot| of(slot).iter().sum::<f64>()).fold(0.0, f64::max);
    let mut bars = Vec::new();
    for (at, slot) in slots.iter().enumerate() {
        let mut base = HEIGHT;
        for (value, class) in of(slot).into_iter().zip(["first", "second"]) {
            if value > 0.0 {
                let height = value / top * HEIGHT;
                base -= height;
                bars.push(Bar { x: at * 10, y: format!("{base:.1}"), height: format!("{height:.1}"), class });
            }
        }
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::board::Beat;

    #[test]
    fn a_sample_stands_for_all_and_slots_count_by_the_minute() {
        let beat = |age_ms, outcome: &str| Beat {
            age_ms,
            outcome: outcome.to_owned(),
            stop_reason: None,
            tokens_in: 10,
            tokens_out: 1,
            calls: 1,
            batch: None,
        };
        let beats = vec![beat(0, "complete"), beat(1_000, "failed"), beat(3_599_999, "complete")];
        let chart = Chart::new(&Pulse { beats, step: 5 }, 3_600_000, Moment(3_600_000));
        assert!(chart.sampled);
        assert_eq!(chart.jobs, 15);
        assert_eq!(chart.slots[59], Slot { complete: 5.0, other: 5.0, tokens_in: 100.0, tokens_out: 10.0 });
        assert!((chart.slots[0].complete - 5.0).abs() < 1e-9);
        assert_eq!((chart.outcomes[0].word.as_str(), chart.outcomes[0].count), ("complete", 10));
        assert_eq!(chart.jobs_bars().len(), 3);
        assert_eq!(chart.tops().0.round() as i64, 10);
    }

    #[test]
    fn one_job_in_a_slot_of_minutes_is_not_none() {
        let beat = Beat { age_ms: 0, outcome: "complete".to_owned(), ..Beat::default() };
        let chart = Chart::new(&Pulse { beats: vec![beat], step: 1 }, 6 * 3_600_000, Moment(9 * 3_600_000));
        assert_eq!(chart.jobs_json()[1][59], 0.17);
    }
}
