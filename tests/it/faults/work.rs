//! A mixed workload through the stand-in's markers, and what must become of each of its jobs.

use promptmill::stand_in::text;

use crate::mill::harness::{Mill, Ran};
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
    /// A conversation that ends with this text, by this many calls of tools, in calls of so many messages.
    Told(&'static str, usize, &'static [usize]),
}

/// A kind of job.
#[derive(Debug, Clone)]
pub struct Spec {
    markers: &'static str,
    max_tokens: Option<u32>,
    params: Option<&'static str>,
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
        Self {
            markers,
            max_tokens: None,
            params: None,
            policy: None,
            priority: 0,
            expect,
            twice_max,
            failures: 0,
        }
    }

    const fn limit(self, max_tokens: u32) -> Self {
        Self { max_tokens: Some(max_tokens), ..self }
    }

    const fn policy(self, policy: &'static str) -> Self {
        Self { policy: Some(policy), ..self }
    }

    /// May call tools, and goes on after them as this policy says.
    const fn tools(self, policy: &'static str) -> Self {
        Self { params: Some(TOOLS), policy: Some(policy), ..self }
    }

    /// Whether the daemon runs its tools.
    pub fn runs_tools(&self) -> bool {
        self.policy == Some(RUNS)
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

/// The tools that a conversation may call.
const TOOLS: &str = r#"{"tools": [{"name": "find", "input_schema": {"type": "object"}}, {"name": "now", "input_schema": {"type": "object"}}]}"#;
/// Somebody answers in the table: [`serve`].
const WAITS: &str = r#"{"on_tool_use": "wait"}"#;
/// The daemon runs them: [`configure`].
const RUNS: &str = r#"{"on_tool_use": "run"}"#;

/// Conversations: two calls, then one, then the answer; with thinking, a pause, and an answer that is cut.
pub fn conversations() -> Vec<Spec> {
    use Expect::Told;
    let three = r#"[[tool find {"a": 1}]] [[tool now {"b": "ä"}]] [[next]] [[tool find {"c": [3]}]] [[thinking 9]] [[say Over.]]"#;
    let told = "find: gave {\"a\": 1}\nnow: gave {\"b\": \"ä\"}\nfind: gave {\"c\": [3]}\n\nOver.";
    let paused = r#"[[stop pause_turn 1]] [[tool now {"b": 2}]] [[delay 100ms]] [[say Over.]]"#;
    let cut = r#"[[tool find {"a": 1}]] [[say One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty, and so on.]]"#;
    let whole = "find: gave {\"a\": 1}\n\nOne two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty, and so on.";
    let mut specs = Vec::new();
    for policy in [WAITS, RUNS] {
        specs.push(Spec::new(three, Told(told, 3, &[1, 3, 5]), 200).tools(policy));
        specs
            .push(Spec::new(paused, Told("now: gave {\"b\": 2}\n\nOver.", 1, &[1, 2, 3]), 200).tools(policy));
        specs.push(Spec::new(cut, Told(whole, 1, &[1, 3, 5]), 200).tools(policy).limit(30));
    }
    specs
}

/// Describes the tools that the daemon runs: what they give is what [`serve`] gives.
pub fn configure(mill: &Mill<'_>) {
    let tool = |name: &str| {
        format!("[tools.{name}]\ncommand = ['sh', '-c', 'printf \"gave \"; cat']\nidempotent = true\n")
    };
    let text = tool("find") + &tool("now") + "[queues.default]\ntools = ['find', 'now']\n";
    std::fs::write(mill.home().join("promptmill.toml"), text).expect("the folder can be written");
}

/// Answers every tool call that waits.
pub async fn answer_open(ground: &Ground) {
    let answer = "UPDATE tool_calls SET result = 'gave ' || input
                   WHERE result IS NULL AND result_content IS NULL
                     AND (job_id, claim, seq, position) IN (SELECT job_id, claim, seq, position FROM open_tool_calls)";
    patiently(ground, answer).await;
}

/// Answers tool calls for ever.
pub async fn serve(ground: &Ground) -> std::convert::Infallible {
    loop {
        if ground.line("SELECT count(*) FROM open_tool_calls").await != "0" {
            answer_open(ground).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Lets a daemon drain until no job waits for its tools any more; returns how it ended the last time.
pub async fn drain(mill: &Mill<'_>) -> Ran {
    loop {
        let ran = mill.drain().await;
        let waiting = "SELECT count(*) FROM job_state WHERE state = 'waiting'";
        if mill.ground.line(waiting).await == "0" && !ran.stderr.contains("waiting for tool results") {
            return ran;
        }
        answer_open(mill.ground).await;
    }
}

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
    specs.extend(conversations());
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
            let params = spec.params.map_or("NULL".to_owned(), |params| format!("'{params}'"));
            format!(
                "('{}', '{}', {max_tokens}, {params}, {policy}, {})",
                work.number,
                work.prompt(),
                spec.priority
            )
        })
        .collect();
    let insert = format!(
        "INSERT INTO jobs (key, prompt, max_tokens, params, policy, priority) VALUES {}",
        rows.join(", ")
    );
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
