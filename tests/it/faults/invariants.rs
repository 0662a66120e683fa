//! What must hold after every storm, from outside: the tables, held against the stand-in's own
//! count of calls. In one place, so that every harness asks the same.

use std::collections::{HashMap, HashSet};
use std::fmt;

use promptmill::stand_in::Seen;

use super::work::{Expect, Work};
use crate::mill::harness::Mill;
use crate::support::Ground;

/// Deaths without progress after which a job may be given up.
const QUARANTINE: usize = 5;
/// A lost stream of fewer characters is asked afresh: what was kept of it does not help.
const RESUME_CHARS: usize = 2000;

/// What was found. `lost`, `duplicated` and `unknown` must be 0, and `wrong` empty.
#[derive(Debug, Default)]
pub struct Findings {
    /// Jobs that were put in.
    pub jobs: usize,
    /// Calls that the stand-in was asked.
    pub calls: usize,
    /// Jobs without exactly one result, or not done.
    pub lost: usize,
    /// Results that were written more than once, or changed when they were final.
    pub duplicated: usize,
    /// Calls that the stand-in answered and the ledger does not know.
    pub unknown: usize,
    /// Calls that nobody lived to hear the end of.
    pub killed: usize,
    /// Jobs that were given up because workers died of them again and again.
    pub given_up: usize,
    /// Output tokens that were streamed.
    pub tokens: u64,
    /// Output tokens of killed calls that had to be asked for again.
    pub twice: u64,
    /// The most of one job's, for each of its killed calls.
    pub twice_max: u64,
    /// Everything else that is wrong, in words.
    pub wrong: Vec<String>,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} jobs, {} calls, {} killed: {} lost, {} duplicated, {} unknown, {} tokens paid twice (at most {} a stream)",
            self.jobs,
            self.calls,
            self.killed,
            self.lost,
            self.duplicated,
            self.unknown,
            self.twice,
            self.twice_max
        )
    }
}

/// The watch over a database: triggers that note what must not happen.
pub struct Invariants;

impl Invariants {
    /// Begins to watch, before anything runs.
    pub async fn watch(ground: &Ground) {
        let table = ground.table("moves");
        ground.run(&format!("CREATE TABLE {table} (job_id BIGINT, run BIGINT, what TEXT)")).await;
        let note = |of: &str, what: &str| {
            format!(
                "INSERT INTO {} (job_id, run, what) VALUES ({of}.job_id, {of}.run, {what})",
                ground.either("moves", &table)
            )
        };
        let moved = "'moved from ' || OLD.state || ' to ' || NEW.state";
        let back = "NEW.claims < OLD.claims
                    OR (OLD.state = 'done' AND NEW.state NOT IN ('done', 'pending'))
                    OR (NEW.state = 'running' AND OLD.state NOT IN ('pending', 'running'))";
        // What it came to may be summed up again when a late call comes; what was said stays.
        let changed = "NEW.outcome <> OLD.outcome OR NEW.run <> OLD.run
                       OR (OLD.outcome NOT IN ('cancelled', 'expired') AND coalesce(NEW.text, '') <> coalesce(OLD.text, ''))";
        for (name, event, when, what) in [
            ("moves_made", "INSERT ON results", "NEW.run > 0", "'made'"),
            ("moves_changed", "UPDATE ON results", changed, "'changed'"),
            ("moves_moved", "UPDATE ON job_state", back, moved),
        ] {
            let insert = note("NEW", what);
            let sqlite = format!("CREATE TRIGGER {name} AFTER {event} WHEN {when} BEGIN {insert}; END");
            let postgres = format!(
                "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN {insert}; RETURN NULL; END $$;
                 CREATE TRIGGER {name} AFTER {event} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION {name}()"
            );
            ground.run(ground.either(&sqlite, &postgres)).await;
        }
    }

    /// Looks at everything, when all is drained and nothing runs.
    pub async fn check(mill: &Mill<'_>, work: &[Work]) -> Findings {
        let ground = mill.ground;
        let calls = mill.api.counts().calls;
        let mut found = Findings { jobs: work.len(), calls: calls.len(), ..Findings::default() };
        found.tokens = calls.iter().map(|call| call.streamed_tokens).sum();
        found.moves(ground).await;
        let ends = ends(ground).await;
        let ledger = Ledger::read(ground).await;
        let mut asked: HashMap<usize, Vec<&Seen>> = HashMap::new();
        for call in &calls {
            let number = call.prompt.split(':').next().and_then(|number| number.parse().ok());
            match number {
                Some(number) => asked.entry(number).or_default().push(call),
                None => found.wrong.push(format!("a call of no job: {call:?}")),
            }
        }
        for one in work {
            let Some(end) = ends.get(&one.number) else {
                found.lost += 1;
                found.wrong.push(format!("job {} has no result", one.number));
                continue;
            };
            let rows = ledger.rows.get(&one.number).map_or(&[][..], Vec::as_slice);
            found.job(one, end, rows);
            found.calls_of(one, end, rows, asked.get(&one.number).map_or(&[][..], Vec::as_slice));
        }
        let known: HashSet<&str> = calls.iter().map(|call| call.request_id.as_str()).collect();
        for row in ledger.rows.values().flatten() {
            if row.request_id != "NULL" && !known.contains(row.request_id.as_str()) {
                found.wrong.push(format!("the ledger knows a call that nobody made: {row:?}"));
            }
        }
        found
    }
}

impl Findings {
    /// Everything that must be so.
    pub fn assert(&self, about: &str) {
        let none = self.lost + self.duplicated + self.unknown == 0 && self.wrong.is_empty();
        assert!(none, "{about}: {self}\n{}", self.wrong.join("\n"));
    }

    async fn moves(&mut self, ground: &Ground) {
        let made = "SELECT job_id FROM moves WHERE what = 'made' GROUP BY job_id, run HAVING count(*) > 1
                    UNION ALL SELECT job_id FROM moves WHERE what = 'changed'";
        for job in ground.lines(made).await {
            self.duplicated += 1;
            self.wrong.push(format!("the result of job {job} was written again"));
        }
        let moved = "SELECT job_id, what FROM moves WHERE what NOT IN ('made', 'changed')";
        self.wrong.extend(ground.lines(moved).await.into_iter().map(|moved| format!("an odd move: {moved}")));
        let none = [
            (
                "results of no job",
                "SELECT count(*) FROM results WHERE job_id NOT IN (SELECT job_id FROM job_state WHERE state = 'done')",
            ),
            ("rows of dead workers", "SELECT count(*) FROM workers"),
            ("checkpoints of done jobs", "SELECT count(*) FROM checkpoints"),
        ];
        for (what, sql) in none {
            let count = ground.line(sql).await;
            if count != "0" {
                self.wrong.push(format!("{count} {what}"));
            }
        }
        let whole = ground.line(ground.either("PRAGMA integrity_check", "SELECT 'ok'")).await;
        if whole != "ok" {
            self.wrong.push(format!("the file is damaged: {whole}"));
        }
    }

    fn job(&mut self, work: &Work, end: &End, rows: &[Row]) {
        let lost = rows.iter().filter(|row| row.is_lost()).count();
        let fault = |what: &str| format!("job {} ({}) {what}: {end:?}", work.number, work.prompt());
        if end.state != "done" || end.outcome == "NULL" {
            self.lost += 1;
            self.wrong.push(fault("is not done"));
            return;
        }
        let whole = |tokens| end.outcome == "complete" && end.text == work.text(tokens);
        let fine = match work.spec.expect {
            Expect::Whole(tokens) => whole(tokens),
            Expect::WholeOrCancelled(tokens) => whole(tokens) || end.outcome == "cancelled",
            Expect::WholeOrFailed(tokens) => whole(tokens) || (end.outcome == "failed" && lost > 0),
            Expect::Outcome(outcome) => end.outcome == outcome,
            Expect::Told(text, ..) => end.outcome == "complete" && end.text == text,
        };
        if let Expect::Told(_, calls, messages) = work.spec.expect {
            self.conversation(work, end, rows, (calls, messages));
        }
        let given_up = end.outcome == "quarantined" && lost >= QUARANTINE;
        self.given_up += usize::from(given_up);
        if !fine && !given_up {
            self.wrong.push(fault("did not end as it had to"));
        }
        if end.failures > work.spec.failures {
            self.wrong.push(fault("paid for a death with a failure"));
        }
        if rows.iter().filter(|row| row.stop_reason == "end_turn").count() > 1 {
            self.wrong.push(fault("was asked again though its answer was in the ledger"));
        }
    }

    /// What was answered was asked once, and in no other way than if nobody had died; each call of a tool
    /// stands once, answered.
    fn conversation(&mut self, work: &Work, end: &End, rows: &[Row], (tools, messages): (usize, &[usize])) {
        let mut answered: Vec<usize> =
            rows.iter().filter(|row| row.is_answer()).map(|row| row.messages).collect();
        answered.sort_unstable();
        if answered != messages || end.tools != format!("{tools} {tools}") {
            self.wrong.push(format!(
                "job {} ({}) was asked in another way than undisturbed, or its tools were: {answered:?} messages, \
                 {} tool calls and answered: {rows:?}",
                work.number,
                work.prompt(),
                end.tools
            ));
        }
    }

    fn calls_of(&mut self, work: &Work, end: &End, rows: &[Row], asked: &[&Seen]) {
        let known: HashSet<&str> = rows.iter().map(|row| row.request_id.as_str()).collect();
        let unheard: Vec<&&Seen> =
            asked.iter().filter(|call| !known.contains(call.request_id.as_str())).collect();
        let nameless = rows.iter().filter(|row| row.request_id == "NULL").count();
        let unknown = unheard.len().saturating_sub(nameless);
        self.killed += unheard.len();
        if unknown > 0 {
            self.unknown += unknown;
            self.wrong.push(format!(
                "{unknown} calls of job {} ({}) are not in the ledger: {unheard:?}\n{end:?}\n{rows:?}",
                work.number,
                work.prompt()
            ));
        }
        // A call that is made again is the same call.
        let mut sizes = HashMap::new();
        for call in asked.iter().filter(|_| matches!(work.spec.expect, Expect::Told(..))) {
            let size = sizes.entry(call.messages).or_insert(call.input_tokens);
            if *size != call.input_tokens {
                self.wrong.push(format!(
                    "job {} ({}) was asked differently: {asked:?}",
                    work.number,
                    work.prompt()
                ));
            }
        }
        // What was said of a job that nobody wants any more is not asked for again.
        if unheard.is_empty() || matches!(end.outcome.as_str(), "cancelled" | "expired") {
            return;
        }
        let (tokens, bytes) = unheard.iter().fold((0, 0), |(tokens, bytes), call| {
            (tokens + call.streamed_tokens, bytes + call.streamed_bytes)
        });
        let kept: u64 = rows.iter().filter(|row| row.is_lost()).map(Row::kept).sum();
        let twice = tokens - (tokens * kept.min(bytes)).checked_div(bytes).unwrap_or(0);
        let each = twice.div_ceil(unheard.len() as u64);
        self.twice += twice;
        self.twice_max = self.twice_max.max(each);
        if each > work.spec.twice_max {
            self.wrong.push(format!(
                "{twice} tokens of job {} ({}) were paid twice, of {tokens} in {} killed streams; {kept} of {bytes} bytes were kept",
                work.number,
                work.prompt(),
                unheard.len()
            ));
        }
    }
}

/// How a job ended.
#[derive(Debug)]
struct End {
    state: String,
    outcome: String,
    failures: u32,
    text: String,
    /// How many calls of tools there are, and how many are answered.
    tools: String,
}

async fn ends(ground: &Ground) -> HashMap<usize, End> {
    let rows = ground
        .rows(
            "SELECT j.key, s.state, r.outcome, s.failures, r.text,
                    (SELECT count(*) || ' ' || count(t.answered_at) FROM tool_calls t WHERE t.job_id = j.id)
               FROM jobs j JOIN job_state s ON s.job_id = j.id LEFT JOIN results r ON r.job_id = j.id",
        )
        .await;
    let end = |row: Vec<String>| {
        let [number, state, outcome, failures, text, tools] = row.try_into().expect("six columns");
        let end = End { state, outcome, failures: failures.parse().expect("a number"), text, tools };
        (number.parse().expect("keys are numbers"), end)
    };
    rows.into_iter().map(end).collect()
}

/// A row of the ledger.
#[derive(Debug)]
struct Row {
    request_id: String,
    error_type: String,
    stop_reason: String,
    messages: usize,
    late: bool,
    content: String,
}

impl Row {
    fn is_lost(&self) -> bool {
        self.error_type == "lost"
    }

    /// Whether it is a whole reply that counts.
    fn is_answer(&self) -> bool {
        self.stop_reason != "NULL" && self.error_type == "NULL" && !self.late
    }

    /// Bytes of text that a lost call left and that can be gone on with.
    fn kept(&self) -> u64 {
        let blocks: serde_json::Value = serde_json::from_str(&self.content).unwrap_or_default();
        let text: String =
            blocks.as_array().into_iter().flatten().filter_map(|block| block["text"].as_str()).collect();
        if text.chars().count() < RESUME_CHARS { 0 } else { text.len() as u64 }
    }
}

struct Ledger {
    rows: HashMap<usize, Vec<Row>>,
}

impl Ledger {
    async fn read(ground: &Ground) -> Self {
        let found = ground
            .rows(
                "SELECT j.key, c.request_id, c.error_type, c.stop_reason, coalesce(c.messages, 0),
                        CASE WHEN c.late THEN 'late' END,
                        CASE WHEN c.error_type = 'lost' THEN c.content END
                   FROM calls c JOIN jobs j ON j.id = c.job_id
                  ORDER BY c.job_id, c.claim, c.seq",
            )
            .await;
        let mut rows: HashMap<usize, Vec<Row>> = HashMap::new();
        for row in found {
            let [number, request_id, error_type, stop_reason, messages, late, content] =
                row.try_into().expect("seven columns");
            let (messages, late) = (messages.parse().expect("a count"), late == "late");
            let row = Row { request_id, error_type, stop_reason, messages, late, content };
            rows.entry(number.parse().expect("keys are numbers")).or_default().push(row);
        }
        Self { rows }
    }
}
