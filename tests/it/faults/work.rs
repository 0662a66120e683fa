//! A mixed workload through the stand-in's markers, and what must become of each of its jobs.

use promptmill::stand_in::text;

use crate::support::Ground;

/// What must become of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The whole answer, so many tokens of it, letter for letter.
    Whole(usize),
    /// The whole answer, or `cancelled`: a person was about to cancel it.
    WholeOrCancelled(usize),
    /// The whole answer, or `failed` where a worker died on it: its policy says so.
    WholeOrFailed(usize),
    /// This outcome.
    Outcome(&'static str),
}

/// A kind of job.
#[derive(Debug, Clone)]
pub struct Spec {
    markers: &'static str,
    max_tokens: Option<u32>,
    policy: Option<&'static str>,
    priority: u32,
    /// What must become of it.
    pub expect: Expect,
    /// Most tokens that a killed call of it may have to be paid for again.
    pub twice_max: u64,
    /// Failures that it meets at most.
    pub failures: u32,
}

impl Spec {
    pub const fn new(markers: &'static str, expect: Expect, twice_max: u64) -> Self {
        Self { markers, max_tokens: None, policy: None, priority: 0, expect, twice_max, failures: 0 }
    }

    const fn limit(self, max_tokens: u32) -> Self {
        Self { max_tokens: Some(max_tokens), ..self }
    }

    const fn policy(self, policy: &'static str) -> Self {
        Self { policy: Some(policy), ..self }
    }

    const fn fails(self, failures: u32) -> Self {
        Self { failures, ..self }
    }

    /// Claimed before the others.
    const fn first(self) -> Self {
        Self { priority: 1, ..self }
    }
}

/// A job of the workload.
#[derive(Debug, Clone)]
pub struct Work {
    /// Its number, with which its prompt begins.
    pub number: usize,
    /// What it is.
    pub spec: Spec,
}

impl Work {
    /// Its prompt: the number in front makes its answer a text of its own.
    pub fn prompt(&self) -> String {
        format!("{}: {}", self.number, self.spec.markers)
    }

    /// So many tokens of its answer.
    pub fn text(&self, tokens: usize) -> String {
        text(&self.prompt(), tokens)
    }

    /// Whether a person will cancel it.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.spec.expect, Expect::WholeOrCancelled(_))
    }
}

/// Tokens a second of a slow stream: four each 20 ms at most.
pub const SLOW_RATE: u64 = 200;
/// A lost stream of less than 2,000 characters is asked afresh: so many tokens.
pub const WORTH_RESUMING: u64 = 500;

/// What a slow stream may lose where checkpoints are written every 0.2 s, by a tick of a second, on
/// a machine that may be late by another.
pub const SLOW_TWICE_MAX: u64 = SLOW_RATE * 22 / 10 + WORTH_RESUMING;

/// Two dozen jobs of every kind; streams last for about two seconds and a half.
pub fn mixed() -> Vec<Spec> {
    use Expect::{Outcome, Whole, WholeOrCancelled, WholeOrFailed};
    let slow = "[[tokens 500]] [[delta 4]] [[pace 20ms]]";
    let quick = || Spec::new("[[tokens 40]]", Whole(40), 40);
    let mut specs = vec![
        Spec::new(slow, WholeOrCancelled(500), SLOW_TWICE_MAX).first(),
        Spec::new(slow, Whole(500), SLOW_TWICE_MAX).first(),
        Spec::new("[[tokens 600]] [[pace 20ms]] [[thinking 20]]", Whole(600), 620).first(),
        Spec::new("[[tokens 30]] [[hang after=20]]", Outcome("expired"), 20)
            .policy(r#"{"deadline_seconds":1}"#)
            .first(),
        Spec::new(slow, WholeOrCancelled(500), SLOW_TWICE_MAX).first(),
        Spec::new("[[tokens 30]] [[hang after=10]]", Outcome("expired"), 10)
            .policy(r#"{"deadline_seconds":2}"#)
            .first(),
        Spec::new("[[tokens 900]]", Whole(900), 900).limit(250),
        Spec::new("[[tokens 700]] [[delay 200ms]]", Whole(700), 700).limit(400),
        Spec::new("[[tokens 50]] [[error 529 x1]]", Whole(50), 50),
        Spec::new("[[tokens 50]] [[error 500 x1]]", Whole(50), 50).fails(1),
        Spec::new("[[tokens 50]] [[error 429 retry-after-ms=20 x1]]", Whole(50), 50),
        Spec::new("[[tokens 90]] [[cut after=60 x1]]", Whole(90), 90).fails(1),
        Spec::new("[[tokens 900]] [[cut after=600 x1]]", Whole(900), 900).fails(1),
        Spec::new("[[stop refusal]] [[tokens 30]]", Outcome("refused"), 30),
        Spec::new("[[stop tool_use]]", Outcome("needs_tool"), 100),
        Spec::new("[[tokens 60]] [[delay 300ms]]", WholeOrFailed(60), 60).policy(r#"{"on_crash":"fail"}"#),
        Spec::new("[[tokens 60]] [[delay 300ms]]", Whole(60), 60).policy(r#"{"on_crash":"retry"}"#),
        Spec::new("[[tokens 80]] [[garbage utf8]]", Outcome("complete"), 90),
    ];
    specs.extend((0..6).map(|_| quick()));
    specs
}

/// Puts jobs into the table, numbered from `from`.
pub async fn insert(ground: &Ground, specs: &[Spec], from: usize) -> Vec<Work> {
    let work: Vec<Work> =
        specs.iter().enumerate().map(|(at, spec)| Work { number: from + at, spec: spec.clone() }).collect();
    let rows: Vec<String> = work
        .iter()
        .map(|work| {
            let spec = &work.spec;
            let policy = spec.policy.map_or("NULL".to_owned(), |policy| format!("'{policy}'"));
            let max_tokens = spec.max_tokens.map_or("NULL".to_owned(), |tokens| tokens.to_string());
            format!("('{}', '{}', {max_tokens}, {policy}, {})", work.number, work.prompt(), spec.priority)
        })
        .collect();
    let insert =
        format!("INSERT INTO jobs (key, prompt, max_tokens, policy, priority) VALUES {}", rows.join(", "));
    // Other processes write at the same time, and die while they do.
    patiently(ground, &insert).await;
    work
}

/// Runs a statement until the database takes it.
pub async fn patiently(ground: &Ground, sql: &str) {
    for _ in 0..50 {
        match ground.attempt(sql).await {
            Ok(_) => return,
            Err(why) if why.contains("locked") || why.contains("deadlock") => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            Err(why) => panic!("{why}\nin: {sql}"),
        }
    }
    panic!("the database stayed locked: {sql}");
}

/// Cancels the first job that runs and is to be cancelled; waits until there is one.
pub async fn cancel_one(ground: &Ground, work: &[Work]) {
    let keys: Vec<String> =
        work.iter().filter(|work| work.is_cancelled()).map(|work| format!("'{}'", work.number)).collect();
    let running = format!(
        "SELECT min(s.job_id) FROM job_state s JOIN jobs j ON j.id = s.job_id
          WHERE s.state = 'running' AND j.key IN ({})",
        keys.join(", ")
    );
    loop {
        let id = ground.line(&running).await;
        if id != "NULL" {
            let cancel = format!("UPDATE job_state SET state = 'cancelled' WHERE job_id = {id}");
            return patiently(ground, &cancel).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
