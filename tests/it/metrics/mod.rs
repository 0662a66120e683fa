//! What the daemon shows to machines: `/metrics`, `/livez`, `/readyz`, and its words to systemd. The real
//! binary, on both databases.

#![expect(clippy::float_cmp, reason = "what is counted is whole, and an f64 holds it as it is")]

mod command;
mod counting;
mod health;
mod listener;
mod paper;
mod systemd;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mill::harness::{Daemon, Mill};

/// Longest time that any one step may take.
const STEP_MAX: Duration = Duration::from_mins(1);

/// Longest time that one question may take.
const REQUEST_MAX: Duration = Duration::from_secs(15);

/// A daemon that can be asked how it is.
struct Watched {
    daemon: Daemon,
    url: String,
    client: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|err| panic!("{err} in {self:?}"))
    }
}

impl Watched {
    /// Starts one that listens on a free port, and reads the tables whenever it is asked.
    async fn start(mill: &mut Mill<'_>) -> Self {
        Self::start_by(mill, &["run"]).await
    }

    async fn start_by(mill: &mut Mill<'_>, args: &[&str]) -> Self {
        mill.set("PROMPTMILL_METRICS__LISTEN", "127.0.0.1:0");
        mill.set("PROMPTMILL_METRICS__REFRESH_SECONDS", "0.1");
        let daemon = Daemon::by(mill.command(args));
        mill.until_said(&daemon, "metrics are at http://").await;
        let said = daemon.said();
        let (_, rest) = said.split_once("metrics are at ").expect("it said so");
        let (url, _) = rest.split_once("/metrics").expect("it said where");
        let client = crate::stand_in::client_without_redirects();
        Self { daemon, url: url.to_owned(), client }
    }

    async fn get(&self, path: &str) -> Answer {
        self.asked(path).await.expect("it answers")
    }

    async fn asked(&self, path: &str) -> reqwest::Result<Answer> {
        let answer = self.client.get(format!("{}{path}", self.url)).timeout(REQUEST_MAX).send().await?;
        Ok(Answer { status: answer.status().as_u16(), text: answer.text().await? })
    }

    /// The page, by line: what stands before the value, and the value.
    async fn samples(&self) -> Samples {
        Samples::read(&self.get("/metrics").await.text)
    }

    /// Waits until it answers so.
    async fn until(&self, path: &str, what: &str, is_so: impl Fn(&Answer) -> bool) -> Answer {
        let deadline = Instant::now() + STEP_MAX;
        loop {
            let answer = self.asked(path).await;
            match answer {
                Ok(answer) if is_so(&answer) => return answer,
                _ => {}
            }
            assert!(Instant::now() < deadline, "never {what}, but {answer:?}\n{}", self.daemon.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it is unready for this reason.
    async fn until_unready(&self, reason: &str) -> Answer {
        let is_so = |answer: &Answer| answer.status == 503 && reasons(answer).iter().any(|why| why == reason);
        self.until("/readyz", &format!("unready: {reason}"), is_so).await
    }

    async fn until_ready(&self) {
        self.until("/readyz", "ready", |answer| answer.status == 200).await;
    }

    /// Waits until a sample of the page is this.
    async fn until_sample(&self, series: &str, value: f64) {
        let what = format!("{series} {value}");
        let is_so = |answer: &Answer| Samples::read(&answer.text).get(series) == Some(value);
        self.until("/metrics", &what, is_so).await;
    }
}

fn reasons(answer: &Answer) -> Vec<String> {
    let json = answer.json();
    let reasons = json["reasons"].as_array().expect("a list");
    reasons.iter().map(|fault| fault["reason"].as_str().expect("a word").to_owned()).collect()
}

/// A page that was read.
struct Samples(BTreeMap<String, f64>);

impl Samples {
    fn read(page: &str) -> Self {
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            (series.to_owned(), value.parse().expect("a number"))
        };
        Self(lines.map(sample).collect())
    }

    fn get(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    /// All series of a metric.
    fn of<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let whole = self.0.iter();
        whole
            .filter(move |(series, _)| series.split('{').next() == Some(metric))
            .map(|(series, value)| (series.as_str(), *value))
    }

    /// The sum of a metric over the series that have all these labels.
    fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        let with = |series: &str| labels.iter().all(|label| series.contains(label));
        self.of(metric).filter(|(series, _)| with(series)).map(|(_, value)| value).sum()
    }
}
