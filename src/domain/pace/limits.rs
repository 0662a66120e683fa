//! What is limited, and what the API says of it in the headers of every response.

use std::time::{Duration, Instant};

/// Something for each of the three limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Each<T> {
    /// Requests.
    pub requests: T,
    /// Input tokens: those read from the cache do not count, those written to it do.
    pub input: T,
    /// Output tokens, counted as they are produced; `max_tokens` does not matter.
    pub output: T,
}

impl<T> Each<T> {
    /// Returns what `change` makes of each.
    pub fn map<U>(self, mut change: impl FnMut(T) -> U) -> Each<U> {
        Each { requests: change(self.requests), input: change(self.input), output: change(self.output) }
    }

    /// Returns each beside the other's.
    pub fn zip<U>(self, other: Each<U>) -> Each<(T, U)> {
        Each {
            requests: (self.requests, other.requests),
            input: (self.input, other.input),
            output: (self.output, other.output),
        }
    }

    /// Returns references to each.
    pub const fn as_ref(&self) -> Each<&T> {
        Each { requests: &self.requests, input: &self.input, output: &self.output }
    }

    /// Returns mutable references to each.
    pub const fn as_mut(&mut self) -> Each<&mut T> {
        Each { requests: &mut self.requests, input: &mut self.input, output: &mut self.output }
    }
}

impl<T> IntoIterator for Each<T> {
    type Item = T;
    type IntoIter = std::array::IntoIter<T, 3>;

    fn into_iter(self) -> Self::IntoIter {
        [self.requests, self.input, self.output].into_iter()
    }
}

/// One limit as a response told it; what was not said, or makes no sense, is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    /// Allowed a minute (`…-limit`); never 0.
    pub limit: Option<u64>,
    /// Left (`…-remaining`); tokens are rounded to the nearest thousand.
    pub remaining: Option<u64>,
    /// Until all of it is there again (`…-reset`, less the response's own `date`).
    pub reset: Option<Duration>,
}

/// The rate limits in the headers of one response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// When the headers came: what `remaining` says grows old, and a call may last an hour.
    pub at: Instant,
    /// What they said.
    pub each: Each<Limit>,
}
