//! How fast jobs end, and how long the rest may take. Pure: from a sample of results to rates.

use std::time::Duration;

use crate::store::board::Beat;

/// The stretch of time that is looked at for rates.
pub const WINDOW: Duration = Duration::from_mins(1);
/// Its last part, which alone counts where enough ended in it.
const LATELY_MS: i64 = 10_000;
/// So many results are enough.
const ENOUGH: usize = 20;
/// From so many results on, the oldest of them tells when it began.
const BEGUN: usize = 5;

/// What happens in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    /// Jobs that end.
    pub jobs: f64,
    /// Calls of those jobs.
    pub calls: f64,
    /// Tokens in, of all kinds.
    pub tokens_in: f64,
    /// Tokens out.
    pub tokens_out: f64,
}

/// Returns the pace of these results of a window, each of which stands for `step`.
pub fn pace<'a>(beats: impl Iterator<Item = &'a Beat> + Clone, step: i64, window: Duration) -> Pace {
    let window_ms = window.as_millis() as i64;
    let lately = beats.clone().filter(|beat| beat.age_ms <= LATELY_MS).count() >= ENOUGH;
    let window_ms = if lately { window_ms.min(LATELY_MS) } else { window_ms };
    let oldest = beats.clone().map(|beat| beat.age_ms).max().unwrap_or(0);
    // A drain that began ten seconds ago is not six times slower than it is.
    let begun = if beats.clone().count() >= BEGUN { oldest.max(1_000) } else { window_ms };
    let each = step as f64 * 1_000.0 / window_ms.min(begun) as f64;
    let mut pace = Pace::default();
    for beat in beats.filter(|beat| beat.age_ms <= window_ms) {
        pace.jobs += each;
        pace.calls += each * beat.calls as f64;
        pace.tokens_in += each * beat.tokens_in as f64;
        pace.tokens_out += each * beat.tokens_out as f64;
    }
    pace
}

/// Returns in how many milliseconds so many jobs will have ended, if any end at all.
pub fn eta_ms(jobs: i64, a_second: f64) -> Option<i64> {
    (jobs > 0 && a_second > 0.0).then(|| (jobs as f64 / a_second * 1_000.0) as i64)
}

/// Returns a length of time as one says it: one unit, or two where the first is few.
pub fn rough(ms: i64) -> String {
    match ms / 1_000 {
        s @ ..60 => format!("{} s", s.max(0)),
        s @ 60..600 => format!("{} min {} s", s / 60, s % 60 / 10 * 10),
        s @ 600..3_600 => format!("{} min", s / 60),
        s @ 3_600..172_800 => format!("{} h {} min", s / 3_600, s / 60 % 60),
        s => format!("{} d", s / 86_400),
    }
}

/// Returns a rate in three digits or so.
pub fn a_second(rate: f64) -> String {
    match rate {
        0.0 => "0".to_owned(),
        r if r < 0.995 => format!("{r:.2}"),
        r if r < 99.5 => format!("{r:.1}"),
        r => crate::cli::out::number(r.round() as i64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(ages: impl Iterator<Item = i64>) -> Vec<Beat> {
        let beat = |age_ms| Beat {
            age_ms,
            outcome: "complete".to_owned(),
            stop_reason: None,
            tokens_in: 10,
            tokens_out: 100,
            calls: 2,
            batch: None,
        };
        ages.map(beat).collect()
    }

    fn jobs(beats: &[Beat]) -> f64 {
        pace(beats.iter(), 1, WINDOW).jobs
    }

    #[test]
    fn a_steady_flow_has_its_rate_and_a_burst_is_seen_at_once() {
        let steady = beats((0..600).map(|n| n * 100));
        assert!((jobs(&steady) - 10.0).abs() < 0.2, "{}", jobs(&steady));
        let slow_then_fast = beats((0..100).map(|n| n * 100).chain((10..60).map(|n| n * 1_000)));
        assert!((jobs(&slow_then_fast) - 10.0).abs() < 0.2, "{}", jobs(&slow_then_fast));
    }

    #[test]
    fn a_drain_that_has_just_begun_is_not_taken_for_a_slow_one() {
        let begun = beats((0..30).map(|n| n * 100));
        assert!((jobs(&begun) - 10.0).abs() < 0.5, "{}", jobs(&begun));
        let one = beats(std::iter::once(1));
        assert!(jobs(&one) < 0.02, "{}", jobs(&one));
    }

    #[test]
    fn a_sample_stands_for_all() {
        let sample = beats((0..600).map(|n| n * 100));
        let pace = pace(sample.iter(), 7, WINDOW);
        assert!((pace.calls - 140.0).abs() < 3.0 && (pace.tokens_out - 7_000.0).abs() < 120.0, "{pace:?}");
    }

    #[test]
    fn nothing_left_and_nothing_flowing_have_no_end_in_sight() {
        assert_eq!(eta_ms(0, 5.0), None);
        assert_eq!(eta_ms(5, 0.0), None);
        assert_eq!(eta_ms(90, 0.5), Some(180_000));
        assert_eq!(pace([].iter(), 1, WINDOW), Pace::default());
    }

    #[test]
    fn times_and_rates_are_short() {
        for (ms, text) in [
            (900, "0 s"),
            (59_999, "59 s"),
            (95_000, "1 min 30 s"),
            (7_260_000, "2 h 1 min"),
            (900_000_000, "10 d"),
        ] {
            assert_eq!(rough(ms), text);
        }
        for (rate, text) in [(0.0, "0"), (0.044, "0.04"), (9.96, "10.0"), (1234.5, "1,235")] {
            assert_eq!(a_second(rate), text);
        }
    }
}
