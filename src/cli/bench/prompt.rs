//! The prompts of all measurements, and which part of a run counts as steady.

use std::time::Duration;

/// The model that is asked: what a job gets that names none.
pub(super) const MODEL: &str = "claude-sonnet-5-5";
/// What each prompt begins with.
pub(super) const START: &str = "Say something about number ";

/// Words that long prompts are made of: enough of them that a prompt packs no better than real text.
const WORDS: usize = 2_000;

/// Returns what each prompt of about so many bytes ends with: the same words each time.
pub(super) fn filler(bytes: usize) -> String {
    let mut random = fastrand::Rng::with_seed(7);
    let mut word = || -> String { (0..random.usize(2..10)).map(|_| random.lowercase()).collect() };
    let words: Vec<String> = (0..WORDS).map(|_| word()).collect();
    let bytes = bytes.saturating_sub(START.len() + 5);
    let mut filler = String::with_capacity(bytes + 10);
    while filler.len() < bytes {
        filler.push(' ');
        filler.push_str(&words[random.usize(..WORDS)]);
    }
    filler
}

/// Returns a prompt, as the SQL of [`super::place`] makes it too.
pub(super) fn text(number: usize, filler: &str) -> String {
    format!("{START}{number}{filler}")
}

/// The part of a run that is neither start nor end: from three tenths of its answers to nine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steady {
    /// The number of its first answer, and of its last.
    pub(super) ends: [usize; 2],
}

impl Steady {
    /// Fewer answers say nothing.
    const LEAST: usize = 10;

    /// Of a run of so many answers.
    pub(super) const fn of(answers: usize) -> Self {
        Self { ends: [answers * 3 / 10, answers * 9 / 10] }
    }

    /// Which end the answer of this number is, if it is one.
    pub(super) fn end(self, number: usize) -> Option<usize> {
        self.ends.iter().position(|&end| end == number)
    }

    /// Answers a second, where so long lay between its ends.
    pub(super) fn rate(self, took: Duration) -> Option<f64> {
        let [first, last] = self.ends;
        (last - first >= Self::LEAST && !took.is_zero()).then(|| (last - first) as f64 / took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_about_the_bytes_that_they_are_to_have() {
        assert_eq!(text(7, &filler(0)), "Say something about number 7");
        for bytes in [1_000, 20_000, 200_000] {
            let long = text(7, &filler(bytes)).len();
            assert!((bytes - 30..bytes + 30).contains(&long), "{long} for {bytes}");
        }
    }

    #[test]
    fn the_steady_part_lies_within_the_run() {
        let steady = Steady::of(1_000);
        assert_eq!((steady.end(300), steady.end(900), steady.end(301)), (Some(0), Some(1), None));
        assert_eq!(steady.rate(Duration::from_secs(2)), Some(300.0));
        assert_eq!(Steady::of(1).rate(Duration::from_secs(1)), None);
    }
}
