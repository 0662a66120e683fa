//! The page in a real browser: `tests/browser/suite.mjs` over data that looks like a night's work, with
//! hostile answers among them. A machine without Chromium or Node fails, and is not passed by.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::task::JoinSet;

use super::Site;
use crate::support::Ground;

const TOKEN: &str = "a-token-for-the-browser";
const MISSING: &str = "the browser tests need Chromium, Node and npm: .ci/packages chromium nodejs npm";

/// What models would say to whoever shows it as more than text.
const CORPUS: [&str; 9] = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</script></textarea></pre><script>alert(1)</script>",
    "<svg onload=alert(1)><a href=\"javascript:alert(1)\">x</a></svg>",
    "[a link](javascript:alert(1)) ![an image](https://evil.example/x.png)",
    "\u{202e}gpj.exe\u{2066}\u{202e} right to left \u{200f}",
    "\" onfocus=alert(1) autofocus x=\"",
    "<iframe srcdoc=\"<script>parent.alert(1)</script>\"></iframe><style>body{display:none}</style>",
    "<base href=https://evil.example/><form action=https://evil.example/><meta http-equiv=refresh content=0;url=https://evil.example/>",
];

/// A night's work: batches, outcomes and calls over the last hour, jobs in every state, two stopped gates.
const NIGHT: &str = "
INSERT INTO queues (name, max_running) VALUES ('default', NULL), ('interactive', 8), ('nightly', 40), ('hostile', NULL);
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
INSERT INTO jobs (queue, batch, key, model, priority, created_at, run_at, prompt, system)
SELECT CASE WHEN i % 7 = 0 THEN 'interactive' ELSE 'nightly' END,
       CASE WHEN i % 7 = 0 THEN NULL WHEN i < 1200 THEN 'nightly-2026-11-21' ELSE 'nightly-2026-11-22' END,
       CASE WHEN i % 7 = 0 THEN NULL ELSE 'product-' || printf('%05d', i) END,
       CASE WHEN i % 11 = 0 THEN 'claude-haiku-5-5' END, CASE WHEN i % 7 = 0 THEN 5 ELSE 0 END,
       NOW - 3900000 + i * 900, NOW - 3900000 + i * 900,
       'Describe product ' || i || ' for the catalogue, in two sentences.', 'You write for people who build things.'
  FROM n;
UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 1 WHERE job_id <= 2400;
INSERT INTO calls (job_id, claim, seq, run, kind, model, max_tokens, messages, sent_at, first_token_at, ended_at, http_status,
                   request_id, stop_reason, input_tokens, output_tokens, content, error_type, error, retry_after_ms)
SELECT job_id, 1, c.seq, 1, c.kind, 'claude-sonnet-5-5', 800, 1, NOW - (2400 - job_id) * 1450 - c.ago,
       NOW - (2400 - job_id) * 1450 - c.ago + c.wait, NOW - (2400 - job_id) * 1450 - c.ago + c.took, c.status,
       'req_011CSx' || printf('%06x', job_id * 7919 + c.seq), c.stop, c.tin, c.tout,
       CASE WHEN c.tout > 0 THEN json_array(json_object('type', 'text', 'text', 'A sturdy thing, made to be used.')) END,
       c.error_type, c.error, c.retry
  FROM job_state,
       (SELECT 1 AS seq, 'ask' AS kind, 21000 AS ago, 640 AS wait, 700 AS took, 429 AS status, NULL AS stop, 0 AS tin, 0 AS tout,
               'rate_limit_error' AS error_type, 'This request would exceed the rate limit of your organization.' AS error, 4000 AS retry
        UNION ALL SELECT 2, 'ask', 16000, 900, 9200, 200, 'max_tokens', 412, 800, NULL, NULL, NULL
        UNION ALL SELECT 3, 'continue', 6400, 700, 6100, 200, 'end_turn', 1240, 611, NULL, NULL, NULL) c
 WHERE state = 'running' AND (job_id % 9 = 1 OR c.seq = 3);
INSERT INTO results (job_id, run, queue, batch, key, outcome, stop_reason, text, model, input_tokens, output_tokens, calls,
                     cache_read_input_tokens, continuations, error_type, error_code, error, started_at, finished_at)
SELECT j.id, 1, j.queue, j.batch, j.key, o.outcome,
       CASE o.outcome WHEN 'complete' THEN 'end_turn' WHEN 'truncated' THEN 'max_tokens' WHEN 'refused' THEN 'refusal' END,
       CASE o.outcome WHEN 'complete' THEN
       'A sturdy thing, made to be used. It has one moving part, which you can replace with what is in any kitchen drawer.

It comes in oak and in beech; the beech one is lighter, and marks sooner.' WHEN 'truncated' THEN 'A sturdy thing, made to' END,
       coalesce(j.model, 'claude-sonnet-5-5'), 412 + j.id % 90, CASE o.outcome WHEN 'complete' THEN 200 + j.id * 37 % 500 ELSE 20 END, 1,
       j.id % 3 * 900, CASE WHEN j.id % 9 = 1 THEN 1 ELSE 0 END,
       CASE o.outcome WHEN 'failed' THEN CASE WHEN j.id % 2 THEN 'invalid_request_error' ELSE 'api_error' END WHEN 'invalid' THEN 'invalid' END, NULL,
       CASE o.outcome WHEN 'failed' THEN CASE WHEN j.id % 2 THEN 'max_tokens: 999999 > 128000, which is the maximum of this model' ELSE 'Internal server error' END
                      WHEN 'invalid' THEN 'policy.max_failure is not known; did you mean max_failures?' END,
       NOW - (2400 - j.id) * 1450 - 21000, NOW - (2400 - j.id) * 1450
  FROM jobs j
  JOIN (SELECT id AS oid, CASE WHEN id % 97 = 0 THEN 'failed' WHEN id % 61 = 0 THEN 'truncated' WHEN id % 173 = 0 THEN 'refused'
                               WHEN id % 211 = 0 THEN 'invalid' WHEN id % 12 = 5 AND id BETWEEN 1500 AND 1800 THEN 'failed' ELSE 'complete' END AS outcome
          FROM jobs) o ON o.oid = j.id
 WHERE j.id <= 2400;
UPDATE job_state SET state = 'done', claimed_by = NULL WHERE job_id <= 2400;
UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 1 WHERE job_id BETWEEN 2401 AND 2440;
INSERT INTO checkpoints (job_id, claim, seq, part, content) VALUES (2440, 1, 1, 0, '{}'), (2440, 1, 1, 1, 'The first thing to say of product 2440 is ');
UPDATE job_state SET state = 'scheduled', available_at = NOW + job_id * 1000, failures = 1 WHERE job_id BETWEEN 2441 AND 2470;
INSERT INTO jobs (queue, batch, prompt)
SELECT 'default', 'to-cancel', 'A prompt that nobody needs' FROM jobs WHERE id <= 700;
INSERT INTO jobs (queue, batch, prompt)
SELECT 'default', 'summaries', 'Summarise this' FROM jobs WHERE id <= 60;
INSERT INTO gates (scope, state, reason, until) VALUES
    ('model:default/claude-opus-5-5', 'blocked', '10 calls in a row failed: 529 overloaded_error', NOW + 41000),
    ('batch:default/summaries', 'blocked', 'the API refused 20 jobs of this batch in a row with the same error; see results.error', NULL),
    ('key:5f3a91c2', 'flowing', NULL, NULL);
INSERT INTO workers (host, boot, pid, pid_started, version, default_model, running) VALUES
    ('mill-1', 'b', 4242, 1, '0.1.0', 'claude-sonnet-5-5', 28), ('mill-2', 'b', 911, 1, '0.1.0', 'claude-sonnet-5-5', 12);
INSERT INTO audit (actor, action, target, count, detail) VALUES ('session, from 10.0.0.7', 'pause', 'queue nightly', 1, NULL),
    ('session, from 10.0.0.7', 'cancel', 'state pending, batch old-import', 12400, NULL), ('session, from 10.0.0.7', 'bulk_end', 'cancel: state pending, batch old-import', 12400, 'done');
";

async fn night(ground: &Ground) {
    ground.run(&NIGHT.replace("NOW", &ground.at(0))).await;
}

async fn hostile(ground: &Ground) {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let long = format!("{}<img src=x onerror=alert(1)>", "x".repeat(1_000_000));
    for (at, text) in CORPUS.iter().copied().chain([long.as_str()]).enumerate() {
        let (said, short) = (quoted(text), quoted(&text.chars().take(150).collect::<String>()));
        ground
            .run(&format!(
                "INSERT INTO jobs (prompt, system, queue, batch, model) VALUES ({said}, {said}, 'hostile', {short}, {short});"
            ))
            .await;
        let id: i64 = ground.line("SELECT max(id) FROM jobs").await.parse().expect("an id");
        super::settle(ground, id, if at % 2 == 0 { "complete" } else { "failed" }, text).await;
        ground.run(&format!("UPDATE results SET error = {short}, error_type = {short}, stop_reason = {short} WHERE job_id = {id}")).await;
        ground
            .run(&format!(
                "INSERT INTO gates (scope, state, reason) VALUES ({}, 'blocked', {short})",
                quoted(&format!("batch:hostile/{at}{}", &text.chars().take(99).collect::<String>()))
            ))
            .await;
        ground.run(&format!("INSERT INTO audit (actor, action, target, detail) VALUES ({short}, {short}, {short}, {short})")).await;
    }
}

/// Runs the suite beside a stream that grows by `piece` after `piece`.
async fn suite(ground: &Ground, piece: &str, args: &[&Path]) {
    let open = Site::on(ground).await;
    let locked = Site::with(ground, |settings| settings.token = Some(TOKEN.into())).await;
    let read_only = Site::with(ground, |settings| settings.read_only = true).await;
    let folder = folder();
    if !folder.join("node_modules/playwright-core").exists() {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder);
        assert!(npm.status().expect(MISSING).success(), "npm ci in tests/browser fails");
    }
    assert!(Path::new("/usr/bin/chromium").exists(), "{MISSING}");
    let mut command = Command::new("node");
    command.arg("suite.mjs").args(args).current_dir(&folder);
    command.env("OPEN", &open.url).env("LOCKED", &locked.url).env("TOKEN", TOKEN);
    command.env("READ_ONLY", &read_only.url);
    let mut child = command.spawn().expect(MISSING);
    let mut waiting = JoinSet::new();
    waiting.spawn_blocking(move || child.wait().expect("it ends"));
    let mut part = 2;
    let status = loop {
        tokio::select! {
            done = waiting.join_next() => break done.expect("it was started").expect("it does not panic"),
            // The stream of a model goes on whoever looks.
            () = tokio::time::sleep(Duration::from_millis(400)) => {
                ground.run(&format!("INSERT INTO checkpoints (job_id, claim, seq, part, content) VALUES (2440, 1, 1, {part}, '{piece}')")).await;
                part += 1;
            }
        }
    };
    assert!(status.success(), "the browser found what does not hold: see above");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_holds_in_a_real_browser() {
    let ground = Ground::sqlite().await;
    night(&ground).await;
    hostile(&ground).await;
    suite(&ground, "<b>part of it</b> and so on, ", &[Path::new("check")]).await;
    ground.close().await;
}

/// `tests/run screenshots`: draws the pictures of the README anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "draws pictures: tests/run screenshots"]
async fn screenshots() {
    let ground = Ground::sqlite().await;
    night(&ground).await;
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
    std::fs::create_dir_all(&images).expect("the folder can be made");
    suite(&ground, "that it keeps well in any weather, and ", &[Path::new("screenshots"), &images]).await;
    ground.close().await;
}
