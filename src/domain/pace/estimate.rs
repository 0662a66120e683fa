//! What a call will likely cost, before it is made: input from its size, output from what such calls
//! cost before. Never from `max_tokens`, which says nothing about what is used.

use std::collections::HashMap;

use super::limits::Each;

/// Bytes of a request to a token of input, before a model's own calls say better: prose has about 4,
/// code and other scripts less.
pub const BYTES_PER_TOKEN: f64 = 3.5;

/// Output tokens of a call before one has ended: an answer of a page.
pub const OUTPUT_FIRST: f64 = 500.0;

/// So many calls back half of the weight lies: a queue whose jobs change is followed within minutes,
/// one long answer moves little.
const MEMORY: f64 = 100.0;

/// The first guess counts as so many calls: one odd answer must not be believed alone.
const GUESS_WEIGHT: f64 = 4.0;

/// Queues times models that are remembered. More share one memory.
const KEYS_MAX: usize = 1024;

/// A ratio of two sums that forgets.
#[derive(Debug, Clone, Copy)]
struct Ratio {
    found: f64,
    expected: f64,
}

impl Ratio {
    fn add(&mut self, found: f64, expected: f64) {
        let keep = 1.0 - std::f64::consts::LN_2 / MEMORY;
        self.found = self.found * keep + found;
        self.expected = self.expected * keep + expected;
    }

    fn value(self) -> f64 {
        if self.expected > 0.0 { self.found / self.expected } else { 1.0 }
    }
}

/// What calls cost so far, by model and by (queue, model). Bounded.
#[derive(Debug, Clone, Default)]
pub struct Estimates {
    /// Counted input to what its bytes promised. Cache reads are free: where most is read from the
    /// cache it is small.
    input: HashMap<String, Ratio>,
    /// Output of a call.
    output: HashMap<(String, String), Ratio>,
    /// Output of any call.
    any_output: Option<Ratio>,
}

impl Estimates {
    /// Returns what a call of so many bytes will likely cost.
    pub fn of(&self, queue: &str, model: &str, bytes: usize) -> Each<f64> {
        let ratio = self.input.get(&input_key(&self.input, model)).map_or(1.0, |ratio| ratio.value());
        let output = self.output.get(&output_key(&self.output, queue, model));
        Each {
            requests: 1.0,
            input: (bytes as f64 / BYTES_PER_TOKEN * ratio).max(1.0),
            output: output.map_or(OUTPUT_FIRST, |mean| mean.value()).max(1.0),
        }
    }

    /// Returns what a call of which nothing is known will likely cost.
    pub fn typical(&self) -> Each<f64> {
        let output = self.any_output.map_or(OUTPUT_FIRST, Ratio::value);
        Each { requests: 1.0, input: 1.0, output: output.max(1.0) }
    }

    /// Takes in what an answered call cost: `input` without cache reads.
    pub fn learn(&mut self, queue: &str, model: &str, bytes: usize, input: f64, output: f64) {
        let promised = bytes as f64 / BYTES_PER_TOKEN;
        let first = GUESS_WEIGHT * promised;
        let key = input_key(&self.input, model);
        self.input.entry(key).or_insert(Ratio { found: first, expected: first }).add(input, promised);
        let key = output_key(&self.output, queue, model);
        let first = Ratio { found: GUESS_WEIGHT * OUTPUT_FIRST, expected: GUESS_WEIGHT };
        self.output.entry(key).or_insert(first).add(output, 1.0);
        self.any_output.get_or_insert(first).add(output, 1.0);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.input.len() + self.output.len()
    }
}

/// The key of a model, or of all that came too late for one of their own.
fn input_key(known: &HashMap<String, Ratio>, model: &str) -> String {
    if known.len() < KEYS_MAX || known.contains_key(model) { model.to_owned() } else { String::new() }
}

fn output_key(known: &HashMap<(String, String), Ratio>, queue: &str, model: &str) -> (String, String) {
    let key = (queue.to_owned(), model.to_owned());
    if known.len() < KEYS_MAX || known.contains_key(&key) { key } else { Default::default() }
}
