//! What is sent again is read from the prompt cache: conversations with tools, and long answers.

use super::harness::Mill;
use crate::claude::server::{Server, Step, answer, reply};
use crate::support::{Ground, on_both};

on_both! {
    a_conversation_pays_for_what_was_said_once,
    a_long_answer_that_is_gone_on_with_reads_what_it_said_from_the_cache,
    a_row_that_caches_by_itself_is_sent_byte_for_byte,
    nothing_is_cached_where_the_configuration_says_so,
    an_ordinary_job_never_writes_to_the_cache,
}

/// Calls of a conversation: one more than its turns with tools.
const CALLS: usize = 10;
const TOOLS: &str = r#""tools":[{"name":"find","input_schema":{"type":"object"}}]"#;
const SPENT: &str = "SELECT input_tokens, cache_creation_input_tokens, cache_read_input_tokens FROM calls
                      ORDER BY claim, seq";

/// A job that asks for a tool in each of its turns but the last.
async fn converse(ground: &Ground, policy: &str) {
    let script = ["[[tool find]]"; CALLS - 1].join(" [[next]] ");
    let system = "You know where everything is. ".repeat(400);
    ground
        .run(&format!(
            "INSERT INTO jobs (prompt, system, params, policy)
             VALUES ('Find it. {script}', '{system}', '{{{TOOLS}}}', '{{\"on_tool_use\":\"{policy}\"}}')"
        ))
        .await;
}

/// Each call's input: behind the last breakpoint, written to the cache, read from it.
async fn spent(ground: &Ground) -> Vec<[u64; 3]> {
    let numbers = |line: String| {
        let mut numbers = line.split('|').map(|number| number.parse().expect("a number"));
        [(); 3].map(|()| numbers.next().expect("three numbers"))
    };
    ground.lines(SPENT).await.into_iter().map(numbers).collect()
}

fn each_call_reads_what_the_one_before_wrote(calls: &[[u64; 3]]) {
    let mut kept = 0;
    for (at, [rest, wrote, read]) in calls.iter().enumerate() {
        assert_eq!(*read, kept, "call {at} of {calls:?}");
        assert!(*rest <= 4 && *wrote > 0, "call {at} of {calls:?}");
        kept += wrote;
    }
}

fn share_read([rest, wrote, read]: [u64; 3]) -> f64 {
    read as f64 / (rest + wrote + read) as f64
}

async fn a_conversation_pays_for_what_was_said_once(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let config = "[tools.find]\ncommand = [\"seq\", \"450\"]\n[queues.default]\ntools = [\"find\"]\n";
    std::fs::write(mill.home().join("promptmill.toml"), config).expect("written");
    converse(ground, "run").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let calls = spent(ground).await;
    assert_eq!(calls.len(), CALLS);
    each_call_reads_what_the_one_before_wrote(&calls);
    assert!(share_read(calls[CALLS - 1]) > 0.8, "{calls:?}");

    // Each turn is read back from the tables, by another claim: it is sent as it was.
    ground.run("DELETE FROM jobs").await;
    mill.api.reset();
    converse(ground, "wait").await;
    let daemon = mill.start();
    let open = "result IS NULL AND result_content IS NULL";
    let found = "it lies there, under the other things ".repeat(50);
    for turn in 1..CALLS {
        mill.until(&format!("SELECT count(*) FROM tool_calls WHERE {open}"), "1").await;
        mill.until("SELECT count(*) FROM calls", &turn.to_string()).await;
        ground.run(&format!("UPDATE tool_calls SET result = '{found}' WHERE {open}")).await;
    }
    mill.until("SELECT outcome FROM results", "complete").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let calls = spent(ground).await;
    assert_eq!(calls.len(), CALLS);
    each_call_reads_what_the_one_before_wrote(&calls);
    assert!(share_read(calls[CALLS - 1]) > 0.8, "{calls:?}");
}

async fn a_long_answer_that_is_gone_on_with_reads_what_it_said_from_the_cache(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ground
        .run("INSERT INTO jobs (prompt, max_tokens, model) VALUES ('[[seed long]] [[tokens 60000]]', 9000, 'claude-opus-5')")
        .await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let text = ground.line("SELECT text FROM results").await;
    assert!(text == promptmill::stand_in::text("long", 60_000), "not letter for letter");
    let calls = spent(ground).await;
    let [[_, 0, 0], [first_rest, first_wrote, 0], [rest, wrote, read]] = calls.as_slice() else {
        panic!("{calls:?}")
    };
    assert!(*first_wrote > 9000 && read == first_wrote, "{calls:?}");
    assert!(*wrote > 10_000 && *first_rest < 200 && *rest < 200, "{calls:?}");
}

/// An answer that calls the tool, and one that does not.
fn replies(request: &str) -> Vec<Step> {
    if !request.starts_with("POST") {
        return answer("404 Not Found", &[], b"{}");
    }
    let (stop, block) = if request.contains("tool_result") {
        ("end_turn", r#"{"type":"text","text":"Here."}"#)
    } else {
        ("tool_use", r#"{"type":"tool_use","id":"toolu_1","name":"find","input":{}}"#)
    };
    reply(stop, &[block])
}

async fn a_row_that_caches_by_itself_is_sent_byte_for_byte(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let server = Server::answering(replies).await;
    mill.set("ANTHROPIC_BASE_URL", &server.base);
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "1");
    let config = "[tools.find]\ncommand = [\"echo\", \"there\"]\n[queues.default]\ntools = [\"find\"]\n";
    std::fs::write(mill.home().join("promptmill.toml"), config).expect("written");
    let own = [
        format!(r#"{{{TOOLS}, "cache_control": {{"ttl":"1h", "type":"ephemeral"}}}}"#),
        format!(
            r#"{{"system":[{{"type":"text","text":"a","cache_control":{{"type":"ephemeral"}} }}],{TOOLS}}}"#
        ),
        TOOLS.replace(r#""find","#, r#""find", "cache_control":{"type":"ephemeral"},"#),
    ];
    let rows = [own[0].clone(), own[1].clone(), format!("{{{}}}", own[2]), format!("{{{TOOLS}}}")];
    for params in &rows {
        ground
            .run(&format!(
                "INSERT INTO jobs (prompt, max_tokens, params, policy)
                 VALUES ('Find it.', 100, '{params}', '{{\"on_tool_use\":\"run\"}}')"
            ))
            .await;
    }
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let requests = server.requests();
    let bodies: Vec<&str> = requests
        .iter()
        .filter(|request| request.starts_with("POST"))
        .filter_map(|request| Some(request.split_once("\r\n\r\n")?.1))
        .collect();
    assert_eq!(bodies.len(), 2 * rows.len());
    let said = r#"{"role":"user","content":"Find it."}"#;
    let called = r#"{"role":"assistant","content":[{"type":"tool_use","id":"toolu_1","name":"find","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_1","content":"there\n"}]}"#;
    let ours = r#","cache_control":{"type":"ephemeral"}"#;
    for (row, params) in rows.iter().enumerate() {
        let fields = sent(params);
        let added = if row == 3 { ours } else { "" };
        for (call, messages) in [said.to_owned(), format!("{said},{called}")].iter().enumerate() {
            assert_eq!(
                bodies[2 * row + call],
                format!(
                    r#"{{"model":"claude-sonnet-5-5","max_tokens":100,"messages":[{messages}]{fields}{added},"stream":true}}"#
                )
            );
        }
    }
}

/// The fields of a row as they stand in a body: their values are not touched, what is between them is ours.
fn sent(params: &str) -> String {
    use serde_json::value::RawValue;
    let fields: indexmap::IndexMap<String, &RawValue> = serde_json::from_str(params).expect("an object");
    fields.iter().flat_map(|(name, value)| [",\"", name, "\":", value.get()]).collect()
}

async fn nothing_is_cached_where_the_configuration_says_so(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_API__CACHE_TURNS", "false");
    let config = "[tools.find]\ncommand = [\"seq\", \"450\"]\n[queues.default]\ntools = [\"find\"]\n";
    std::fs::write(mill.home().join("promptmill.toml"), config).expect("written");
    converse(ground, "run").await;
    mill.insert(&["[[seed long]] [[tokens 30000]]"]).await;
    ground.run("INSERT INTO jobs (prompt, max_tokens) VALUES ('[[seed long]] [[tokens 30000]]', 9000)").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let calls = mill.api.counts().calls;
    assert!(calls.len() > CALLS + 2 && calls.iter().all(|call| call.cache_points == 0), "{calls:?}");
    assert!(spent(ground).await.iter().all(|[_, wrote, read]| (*wrote, *read) == (0, 0)));
}

async fn an_ordinary_job_never_writes_to_the_cache(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let system = "A long instruction. ".repeat(1000);
    ground
        .run(&format!("INSERT INTO jobs (prompt, system) VALUES ('one', '{system}'), ('two', '{system}')"))
        .await;
    // Tools whose calls end the job, text that speaks of the cache, an answer that is soon gone on with.
    ground
        .run(&format!("INSERT INTO jobs (prompt, params) VALUES ('Find it. [[tool find]]', '{{{TOOLS}}}')"))
        .await;
    ground
        .run("INSERT INTO jobs (prompt, max_tokens) VALUES ('Is \"cache_control\" there? [[tokens 8000]]', 4000)")
        .await;
    mill.drain().await;
    let calls = mill.api.counts().calls;
    let points: Vec<(usize, usize)> = calls
        .iter()
        .filter(|call| call.cache_points > 0)
        .map(|call| (call.messages, call.cache_points))
        .collect();
    assert!(calls.len() == 5 && points.is_empty(), "{points:?} of {calls:?}");
}
