//! Rate limits as the API has them: token buckets, refilled all the time, with their headers.
//!
//! Each line of models has buckets of its own. Time is passed in.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::problem::Problem;

/// Limits a minute; `None`: unlimited, and not spoken of.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests.
    pub requests: Option<u64>,
    /// Input tokens without cache reads.
    pub input: Option<u64>,
    /// Output tokens.
    pub output: Option<u64>,
    /// Buckets hold what comes in this time.
    pub burst: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: None, input: None, output: None, burst: Duration::from_mins(1) }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    limit: f64,
    cap: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(limit: u64, burst: Duration, at: Instant) -> Self {
        let limit = limit as f64;
        let cap = (limit / 60.0 * burst.as_secs_f64()).max(1.0);
        Self { limit, cap, level: cap, at }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.limit / 60.0).min(self.cap);
        self.at = now;
    }

    /// Seconds until so much is there; more than the bucket holds waits for a full one.
    fn wait(&self, amount: f64) -> f64 {
        let missing = amount.min(self.cap) - self.level;
        if missing <= 0.0 { 0.0 } else { missing / (self.limit / 60.0).max(f64::MIN_POSITIVE) }
    }
}

#[derive(Debug, Clone, Copy)]
struct Buckets {
    requests: Option<Bucket>,
    input: Option<Bucket>,
    output: Option<Bucket>,
}

/// Measures what is asked.
#[derive(Debug)]
pub struct Meter {
    limits: Limits,
    lines: Mutex<HashMap<&'static str, Buckets>>,
}

/// The state of the buckets as headers.
pub type Headers = Vec<(String, String)>;

impl Meter {
    /// Returns a meter with full buckets.
    pub fn new(limits: Limits) -> Self {
        Self { limits, lines: Mutex::default() }
    }

    /// Fills all buckets.
    pub fn reset(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Takes a request with so much input, or returns the 429 it gets; the headers in both cases.
    pub fn admit(&self, line: &'static str, input: u64, now: Instant) -> (Result<(), Problem>, Headers) {
        if self.limits.requests.is_none() && self.limits.input.is_none() && self.limits.output.is_none() {
            return (Ok(()), Headers::new());
        }
        self.with(line, now, |buckets| {
            let input = input as f64;
            let waits = [
                (buckets.requests, 1.0, "requests"),
                (buckets.input, input, "input tokens"),
                (buckets.output, 1.0, "output tokens"),
            ];
            let short = waits
                .iter()
                .filter_map(|(bucket, amount, what)| Some((bucket.as_ref()?, *amount, *what)))
                .map(|(bucket, amount, what)| (bucket.wait(amount), bucket.limit, what))
                .filter(|(wait, ..)| *wait > 0.0)
                .max_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((wait, limit, what)) = short {
                let mut problem = Problem::of_status(429);
                problem.message = format!(
                    "This request would exceed your organization's rate limit of {limit:.0} {what} per minute."
                );
                problem.headers.push(("retry-after", format!("{:.0}", wait.ceil().max(1.0))));
                return (Err(problem), headers(buckets));
            }
            if let Some(bucket) = &mut buckets.requests {
                bucket.level -= 1.0;
            }
            if let Some(bucket) = &mut buckets.input {
                bucket.level -= input;
            }
            (Ok(()), headers(buckets))
        })
    }

    /// Takes the output of an answer: a bucket may owe.
    pub fn spend(&self, line: &'static str, output: u64, now: Instant) {
        if self.limits.output.is_some() {
            self.with(line, now, |buckets| {
                if let Some(bucket) = &mut buckets.output {
                    bucket.level -= output as f64;
                }
            });
        }
    }

    fn with<T>(&self, line: &'static str, now: Instant, act: impl FnOnce(&mut Buckets) -> T) -> T {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |limit: Option<u64>| limit.map(|limit| Bucket::new(limit, self.limits.burst, now));
        let buckets = lines.entry(line).or_insert_with(|| Buckets {
            requests: full(self.limits.requests),
            input: full(self.limits.input),
            output: full(self.limits.output),
        });
        for bucket in [&mut buckets.requests, &mut buckets.input, &mut buckets.output].into_iter().flatten() {
            bucket.refill(now);
        }
        act(buckets)
    }
}

fn headers(buckets: &Buckets) -> Headers {
    let mut headers = Headers::new();
    let mut put = |what: &str, bucket: &Bucket, round_to: f64| {
        let remaining = (bucket.level.max(0.0) / round_to).floor() * round_to;
        let full_in = Duration::from_secs_f64(bucket.wait(bucket.cap).min(86_400.0));
        let reset = jiff::Timestamp::now() + full_in;
        headers.push((format!("anthropic-ratelimit-{what}-limit"), format!("{:.0}", bucket.limit)));
        headers.push((format!("anthropic-ratelimit-{what}-remaining"), format!("{remaining:.0}")));
        headers.push((
            format!("anthropic-ratelimit-{what}-reset"),
            reset.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        ));
    };
    if let Some(bucket) = &buckets.requests {
        put("requests", bucket, 1.0);
    }
    let tokens = [("input-tokens", buckets.input), ("output-tokens", buckets.output)];
    let tokens: Vec<(&str, Bucket)> =
        tokens.into_iter().filter_map(|(what, bucket)| Some((what, bucket?))).collect();
    for (what, bucket) in &tokens {
        put(what, bucket, 1000.0);
    }
    let tightest = tokens.iter().min_by(|a, b| (a.1.level / a.1.limit).total_cmp(&(b.1.level / b.1.limit)));
    if let Some((_, bucket)) = tightest {
        put("tokens", bucket, 1000.0);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_empty_after_its_limit_and_refills_all_the_time() {
        let meter = Meter::new(Limits { requests: Some(60), ..Limits::default() });
        let start = Instant::now();
        for _ in 0..60 {
            meter.admit("a", 1, start).0.unwrap();
        }
        let refused = meter.admit("a", 1, start).0.unwrap_err();
        assert_eq!(refused.headers, [("retry-after", "1".to_owned())]);
        meter.admit("another line", 1, start).0.unwrap();
        meter.admit("a", 1, start + Duration::from_secs(1)).0.unwrap();
        meter.admit("a", 1, start + Duration::from_secs(1)).0.unwrap_err();
    }

    #[test]
    fn output_is_counted_when_it_is_given_and_may_be_owed() {
        let meter = Meter::new(Limits { output: Some(600), ..Limits::default() });
        let start = Instant::now();
        meter.admit("a", 1, start).0.unwrap();
        meter.spend("a", 900, start);
        let refused = meter.admit("a", 1, start).0.unwrap_err();
        assert_eq!(refused.headers, [("retry-after", "31".to_owned())]);
        meter.admit("a", 1, start + Duration::from_secs(31)).0.unwrap();
    }

    #[test]
    fn a_request_larger_than_the_bucket_waits_for_a_full_one() {
        let meter = Meter::new(Limits { input: Some(100), ..Limits::default() });
        let start = Instant::now();
        meter.admit("a", 5000, start).0.unwrap();
        meter.admit("a", 1, start + Duration::from_mins(1)).0.unwrap_err();
    }
}
