//! Every stop reason and every shape of an answer: one result each, with the right outcome.

use super::harness::Mill;
use crate::claude::server::{Server, answer, reply};
use crate::support::{Ground, on_both};

on_both! {
    every_stop_reason_has_its_outcome,
    every_shape_of_a_stream_ends_in_one_result_and_never_in_a_wrong_complete,
    what_we_refuse_makes_no_call_and_names_the_field,
    text_after_thinking_and_tool_calls_are_kept_as_they_came,
    a_pause_is_sent_back_until_it_ends,
    a_search_of_which_nothing_is_said_is_nudged_once_and_never_complete,
    a_result_sums_what_the_stand_in_handed_out,
}

async fn every_stop_reason_has_its_outcome(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&[
        "hello",
        "[[stop stop_sequence]]",
        "[[stop refusal]]",
        "[[stop tool_use]]",
        "[[stop pause_turn 2]]",
        "[[stop model_context_window_exceeded]]",
        "[[stop a_word_of_tomorrow]]",
        "[[empty]]",
        "[[empty x1]]",
    ])
    .await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "not all are complete: {}", ran.stderr);
    let ends = ground
        .lines("SELECT job_id, outcome, stop_reason, CASE WHEN text IS NULL THEN 'no' ELSE 'yes' END FROM results ORDER BY job_id")
        .await;
    assert_eq!(
        ends,
        [
            "1|complete|end_turn|yes",
            "2|complete|stop_sequence|yes",
            "3|refused|refusal|no",
            "4|needs_tool|tool_use|yes",
            "5|complete|end_turn|yes",
            "6|truncated|model_context_window_exceeded|yes",
            "7|unreviewed|a_word_of_tomorrow|yes",
            "8|empty|end_turn|no",
            "9|complete|end_turn|yes",
        ]
    );
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn every_shape_of_a_stream_ends_in_one_result_and_never_in_a_wrong_complete(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_DEFAULTS__MAX_FAILURES", "2");
    // Whole answers in unusual clothes.
    let whole = [
        "surrogate",
        "nul",
        "event",
        "block",
        "delta",
        "fields",
        "data-only",
        "crlf",
        "comments",
        "bom",
        "json",
    ];
    for shape in whole {
        mill.insert(&[&format!("[[seed s]] [[tokens 40]] [[garbage {shape}]]")]).await;
    }
    // Nothing that could pass for an answer.
    for shape in ["html", "broken", "nothing", "null-stop"] {
        mill.insert(&[&format!("[[seed s]] [[tokens 40]] [[garbage {shape}]]")]).await;
    }
    // The same once, and then an answer.
    mill.insert(&[
        "[[seed s]] [[tokens 40]] [[garbage broken x1]]",
        "[[seed s]] [[tokens 40]] [[cut after=5 x1]]",
    ])
    .await;
    mill.insert(&[
        "[[seed s]] [[tokens 40]] [[cut-tail]]",
        "[[seed s]] [[tokens 40]] [[cut after=5 clean x1]]",
    ])
    .await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    let answer = promptmill::stand_in::text("s", 40);
    for row in
        ground.rows("SELECT j.prompt, r.outcome, r.text FROM results r JOIN jobs j ON j.id = r.job_id").await
    {
        let [prompt, outcome, text] = &row[..] else { panic!("three columns") };
        if outcome == "complete" {
            assert!(
                text.contains(answer.trim()) || prompt.contains("surrogate") || prompt.contains("nul"),
                "{prompt}: {text}"
            );
        } else {
            assert_eq!(outcome, "failed", "{prompt}");
        }
    }
    let failed = ground.lines("SELECT j.prompt FROM results r JOIN jobs j ON j.id = r.job_id WHERE r.outcome <> 'complete' ORDER BY 1").await;
    let shapes: Vec<&str> = failed.iter().map(|prompt| prompt.rsplit(' ').next().expect("a shape")).collect();
    assert_eq!(shapes, ["broken]]", "html]]", "nothing]]", "null-stop]]"]);
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE sanitised > 0").await, "2");
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn what_we_refuse_makes_no_call_and_names_the_field(ground: &Ground) {
    let mill = Mill::new(ground).await;
    for (column, json) in [
        ("policy", r#"{"on_tool_use":"call"}"#),
        ("policy", r#"{"max_failurs":2}"#),
        ("params", r#"{"betas":["x"]}"#),
        ("params", r#"{"max_tokens":"many"}"#),
        ("params", r#"{"mcp_servers":[{"url":"http://127.0.0.1/"}]}"#),
    ] {
        ground.run(&format!("INSERT INTO jobs (prompt, {column}) VALUES ('x', '{json}')")).await;
    }
    ground.run(r#"INSERT INTO jobs (params) VALUES ('{"messages":[{"role":"user","content":7}]}')"#).await;
    ground.run("INSERT INTO jobs (prompt) VALUES ('')").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    let errors = ground.lines("SELECT outcome, error FROM results ORDER BY job_id").await;
    for (error, part) in errors.iter().zip([
        "invalid|policy.on_tool_use is \"call\": it must be finish, wait or run",
        "invalid|policy.max_failurs is not a policy",
        "invalid|params.betas is a header: set it in the configuration",
        "invalid|params.max_tokens is \"many\"",
        "invalid|params.mcp_servers is refused",
        "invalid|params.messages[0].content is a number",
        "invalid|prompt holds no text",
    ]) {
        assert!(error.starts_with(part), "{error}");
    }
    assert_eq!(errors.len(), 7);
    assert_eq!(mill.api.counts().total, 0);
    mill.holds().await;
}

async fn text_after_thinking_and_tool_calls_are_kept_as_they_came(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[thinking 20]] [[seed t]] [[tokens 30]]", "[[stop tool_use 2]]"]).await;
    mill.drain().await;
    let text = ground.line("SELECT text FROM results WHERE job_id = 1").await;
    assert_eq!(text, promptmill::stand_in::text("t", 30));
    let kinds = ground.line("SELECT content FROM results WHERE job_id = 1").await;
    assert!(kinds.starts_with(r#"[{"type":"thinking""#) && kinds.contains(r#""signature""#), "{kinds}");
    let tools = ground.line("SELECT content FROM results WHERE job_id = 2").await;
    assert_eq!(tools.matches(r#""type":"tool_use""#).count(), 2, "{tools}");
}

async fn a_pause_is_sent_back_until_it_ends(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[stop pause_turn 3]]"]).await;
    ground
        .run(r#"INSERT INTO jobs (prompt, policy) VALUES ('[[stop pause_turn 9]]', '{"max_turns":2}')"#)
        .await;
    mill.drain().await;
    assert_eq!(
        ground.lines("SELECT outcome, calls FROM results ORDER BY job_id").await,
        ["complete|4", "paused|3"]
    );
    assert_eq!(ground.line("SELECT count(*) FROM calls WHERE kind = 'pause'").await, "5");
}

async fn a_result_sums_what_the_stand_in_handed_out(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["one", "[[tokens 77]]", "[[cache read=10 write=20]] [[tokens 5]]"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let sums =
        "input_tokens), sum(output_tokens), sum(cache_creation_input_tokens), sum(cache_read_input_tokens)";
    let results = ground.line(&format!("SELECT sum({sums} FROM results")).await;
    assert_eq!(results, ground.line(&format!("SELECT sum({sums} FROM calls")).await);
    let counts = mill.api.counts();
    let output: u64 = results.split('|').nth(1).expect("four sums").parse().expect("a number");
    assert_eq!(output, counts.output_tokens);
}

/// SQLite keeps any bytes in a TEXT column; Postgres refuses them itself.
#[tokio::test]
async fn a_job_that_is_not_utf_8_is_invalid_and_its_neighbour_is_answered() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    ground.run("INSERT INTO jobs (prompt) VALUES (CAST(x'61ff62' AS TEXT)), ('good')").await;
    ground.run("INSERT INTO jobs (prompt, policy) VALUES ('a', CAST(x'7b2261ff223a317d' AS TEXT))").await;
    mill.drain().await;
    assert_eq!(
        ground.lines("SELECT outcome, calls FROM results ORDER BY job_id").await,
        ["invalid|0", "complete|1", "invalid|0"]
    );
    let said = ground.line("SELECT error FROM results WHERE job_id = 1").await;
    assert!(said.starts_with("prompt holds bytes that are not UTF-8"), "{said}");
    mill.holds().await;
    drop(mill);
    ground.close().await;
}

async fn a_search_of_which_nothing_is_said_is_nudged_once_and_never_complete(ground: &Ground) {
    const SEARCHED: [&str; 2] = [
        r#"{"type":"server_tool_use","id":"v","name":"web_search","input":{}}"#,
        r#"{"type":"web_search_tool_result","tool_use_id":"v","content":[{"type":"web_search_result","url":"here"}]}"#,
    ];
    let mut mill = Mill::new(ground).await;
    let server = Server::answering(|request| {
        if !request.starts_with("POST") {
            return answer("404 Not Found", &[], b"{}");
        }
        // What was searched for and paid is there when it is asked to go on.
        let found = request.contains("web_search_result") && request.contains("Please continue.");
        if found && request.contains("speaks") {
            reply("end_turn", &[r#"{"type":"text","text":"Found."}"#])
        } else {
            reply("end_turn", &SEARCHED)
        }
    })
    .await;
    mill.set("ANTHROPIC_BASE_URL", &server.base);
    mill.insert(&["speaks", "is silent"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert_eq!(
        ground.lines("SELECT outcome, text, calls FROM results ORDER BY job_id").await,
        ["complete|Found.|2", "empty|NULL|2"]
    );
}
