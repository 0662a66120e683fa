//! Answers that follow a schema.

use super::{ENDS, KINDS, ask, declare};
use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

on_both! {
    an_answer_that_misses_its_schema_is_repaired_once,
    an_answer_that_misses_it_again_is_invalid_output_and_kept,
    capitals_and_fences_cost_no_call,
    a_model_that_takes_no_schema_finds_it_in_its_prompt,
    a_cut_answer_is_asked_for_afresh_and_never_stitched,
    a_refused_answer_is_refused_and_no_invalid_output,
    a_conversation_with_tools_ends_with_what_the_schema_asks_for,
}

const SCHEMA: &str = r#"{"type": "object", "properties": {"kind": {"enum": ["Lamp", "Chair"]}, "count": {"type": "integer", "minimum": 3}}, "required": ["kind", "count"]}"#;

fn policy(more: &str) -> String {
    format!(r#"{{"output_schema": {SCHEMA}{more}}}"#)
}

/// Whether the output of a job follows the schema.
async fn follows(ground: &Ground, job: i64) -> bool {
    let output = ground.line(&format!("SELECT output FROM results WHERE job_id = {job}")).await;
    let output: serde_json::Value = serde_json::from_str(&output).expect("the output is JSON");
    ["Lamp", "Chair"].iter().any(|kind| output["kind"] == *kind)
        && output["count"].as_i64().is_some_and(|count| count >= 3)
}

async fn an_answer_that_misses_its_schema_is_repaired_once(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask(ground, "one [[json wrong x1]]", "{}", &policy("")).await;
    ask(ground, "two", "{}", &policy("")).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.lines(ENDS).await, ["complete|2", "complete|1"]);
    assert_eq!(ground.lines(KINDS).await, ["ask", "repair", "ask"]);
    assert_eq!(ground.line("SELECT messages FROM calls WHERE kind = 'repair'").await, "3");
    assert!(follows(ground, 1).await && follows(ground, 2).await);
    mill.ledger_is_the_stand_ins().await;
}

async fn an_answer_that_misses_it_again_is_invalid_output_and_kept(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask(ground, "[[json wrong]]", "{}", &policy("")).await;
    ask(ground, "[[json wrong]]", "{}", &policy(r#", "max_repairs": 0"#)).await;
    ask(ground, "[[json wrong x2]]", "{}", &policy(r#", "max_repairs": 2"#)).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert_eq!(ground.lines(ENDS).await, ["invalid_output|2", "invalid_output|1", "complete|3"]);
    let row = ground.line("SELECT output, error_code, text, error FROM results WHERE job_id = 1").await;
    assert!(row.starts_with("NULL|schema|{") && row.contains("wrong") && row.contains("kind"), "{row}");
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn capitals_and_fences_cost_no_call(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask(ground, "[[json case]]", "{}", &policy("")).await;
    ask(ground, "[[json fenced]]", "{}", &policy("")).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.lines(ENDS).await, ["complete|1", "complete|1"]);
    assert!(follows(ground, 1).await && follows(ground, 2).await);
    let text = ground.line("SELECT text FROM results WHERE job_id = 1").await;
    assert!(text.contains("lAMP") || text.contains("cHAIR"), "the text is as it came: {text}");
}

async fn a_model_that_takes_no_schema_finds_it_in_its_prompt(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    ask(ground, "the same [[json wrong x1]]", r#"{"system": "Be brief."}"#, &policy("")).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    mill.api.reset();
    mill.set("PROMPTMILL_MODELS__CLAUDE_SONNET_5_5__STRUCTURED_OUTPUTS", "false");
    ask(ground, "the same [[json wrong x1]]", r#"{"system": "Be brief."}"#, &policy("")).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.lines(KINDS).await, ["ask", "repair", "ask", "repair"]);
    assert!(follows(ground, 1).await && follows(ground, 2).await);
    // It says in words what the field says by itself.
    let more = "SELECT min(input_tokens) FILTER (WHERE job_id = 2) > min(input_tokens) FILTER (WHERE job_id = 1) FROM calls";
    assert_eq!(ground.line(more).await, ground.either("1", "t"));
}

async fn a_cut_answer_is_asked_for_afresh_and_never_stitched(ground: &Ground) {
    let mill = Mill::new(ground).await;
    for more in ["", r#", "max_continuations": 0"#] {
        let values = ["Some", &policy(more)].map(super::quoted).join(", ");
        ground.run(&format!("INSERT INTO jobs (prompt, policy, max_tokens) VALUES ({values}, 3)")).await;
    }
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert_eq!(ground.lines(ENDS).await, ["complete|2", "truncated|1"]);
    assert_eq!(ground.lines(KINDS).await, ["ask", "regenerate", "ask"]);
    assert!(follows(ground, 1).await);
    let cut = ground.line("SELECT output, text FROM results WHERE job_id = 2").await;
    assert!(cut.starts_with("NULL|{"), "what there is, is kept: {cut}");
}

async fn a_refused_answer_is_refused_and_no_invalid_output(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask(ground, "[[stop refusal]]", "{}", &policy("")).await;
    mill.drain().await;
    assert_eq!(ground.lines(ENDS).await, ["refused|1"]);
    assert_eq!(ground.line("SELECT output FROM results").await, "NULL");
}

async fn a_conversation_with_tools_ends_with_what_the_schema_asks_for(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let policy = policy(r#", "on_tool_use": "wait""#);
    ask(ground, "[[tool find]] [[thinking 9]] [[json wrong skip=1 x1]]", &declare(&["find"]), &policy).await;
    let daemon = mill.start();
    super::until_open(&mill, 1).await;
    super::answer(ground, 0, "two lamps").await;
    super::until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.lines(ENDS).await, ["complete|3"]);
    assert_eq!(ground.lines(KINDS).await, ["ask", "tool", "repair"]);
    assert!(follows(ground, 1).await);
    mill.ledger_is_the_stand_ins().await;
}
