//! Spans, as a collector gets them from the real binary, on both databases.

mod away;
mod collector;
mod set;

use std::time::{SystemTime, UNIX_EPOCH};

use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};
use collector::{Collector, Seen};

on_both! {
    a_claim_is_a_span_with_one_in_it_for_each_call,
    a_call_that_failed_and_a_job_that_did_say_of_what,
    a_job_that_goes_back_has_a_span_for_each_claim,
    a_job_that_is_taken_away_has_its_span_all_the_same,
    what_stands_in_the_metadata_becomes_a_link_and_nonsense_becomes_nothing,
    no_word_of_a_prompt_or_an_answer_leaves,
}

const CONSUMER: i32 = 5;
const CLIENT: i32 = 3;

/// A mill whose spans are heard.
async fn traced<'g>(ground: &'g Ground, collector: &Collector) -> Mill<'g> {
    let mut mill = Mill::new(ground).await;
    mill.set("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url());
    mill
}

/// Nanoseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "spans are told in the time of this machine")]
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_nanos()
}

/// The spans of claims.
fn claims(spans: &[Seen]) -> Vec<&Seen> {
    spans.iter().filter(|span| span.kind == CONSUMER).collect()
}

/// The spans of the calls of one claim.
fn calls<'s>(spans: &'s [Seen], claim: &Seen) -> Vec<&'s Seen> {
    let calls: Vec<&Seen> = spans.iter().filter(|span| span.parent == claim.id).collect();
    for call in &calls {
        assert_eq!((call.kind, &call.trace), (CLIENT, &claim.trace));
        assert!(claim.began <= call.began && call.began <= call.ended && call.ended <= claim.ended);
    }
    calls
}

async fn a_claim_is_a_span_with_one_in_it_for_each_call(ground: &Ground) {
    let collector = Collector::start().await;
    let mut mill = traced(ground, &collector).await;
    mill.knows_a_limit();
    ground
        .run(
            "INSERT INTO jobs (queue, batch, prompt, max_tokens)
             VALUES ('night', 'b1', '[[seed a]] [[tokens 30]] [[cache read=900 write=50]]', 20)",
        )
        .await;
    let before = now();
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let after = now();
    let spans = collector.spans();
    assert_eq!(spans.len(), 3, "{spans:#?}");
    let claim = claims(&spans)[0];
    assert_eq!((claim.name.as_str(), claim.parent.as_str(), claim.failed), ("process night", "", false));
    assert!(u128::from(claim.began) >= before && u128::from(claim.ended) <= after);
    let worker = claim.get("promptmill.worker.id");
    assert!(worker.parse::<i64>().is_ok_and(|worker| worker > 0), "{worker}");
    let told: Vec<(&str, &str)> =
        claim.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        told,
        [
            ("promptmill.batch", "b1"),
            ("promptmill.calls", "2"),
            ("promptmill.claim", "1"),
            ("promptmill.end", "settled"),
            ("promptmill.job.id", "1"),
            ("promptmill.job.run", "1"),
            ("promptmill.outcome", "complete"),
            ("promptmill.queue", "night"),
            ("promptmill.worker.id", worker),
        ]
    );
    let rows = ground
        .rows(
            "SELECT kind, seq, model, max_tokens, message_id, request_id, stop_reason, http_status,
                    input_tokens + cache_read_input_tokens + cache_creation_input_tokens, output_tokens,
                    cache_read_input_tokens, cache_creation_input_tokens
               FROM calls ORDER BY seq",
        )
        .await;
    let calls = calls(&spans, claim);
    assert_eq!((rows.len(), calls.len()), (2, 2));
    let (host, port) =
        mill.api.url().trim_start_matches("http://").split_once(':').map(owned).expect("a port");
    for (row, call) in rows.iter().zip(calls) {
        assert_eq!((call.name.clone(), call.failed), (format!("chat {}", row[2]), false));
        let first = call.get("gen_ai.response.time_to_first_chunk").to_owned();
        assert!(first.parse::<f64>().is_ok_and(|seconds| seconds > 0.0 && seconds < 60.0), "{first}");
        let told: Vec<(&str, &str)> =
            call.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let reasons = format!("[{}]", row[6]);
        assert_eq!(
            told,
            [
                ("gen_ai.operation.name", "chat"),
                ("gen_ai.provider.name", "anthropic"),
                ("gen_ai.request.max_tokens", &row[3]),
                ("gen_ai.request.model", &row[2]),
                ("gen_ai.request.stream", "true"),
                ("gen_ai.response.finish_reasons", &reasons),
                ("gen_ai.response.id", &row[4]),
                ("gen_ai.response.model", &row[2]),
                ("gen_ai.response.time_to_first_chunk", &first),
                ("gen_ai.usage.cache_read.input_tokens", &row[10]),
                ("gen_ai.usage.cache_write.input_tokens", &row[11]),
                ("gen_ai.usage.input_tokens", &row[8]),
                ("gen_ai.usage.output_tokens", &row[9]),
                ("http.response.status_code", &row[7]),
                ("promptmill.call.kind", &row[0]),
                ("promptmill.call.seq", &row[1]),
                ("promptmill.request_id", &row[5]),
                ("server.address", &host),
                ("server.port", &port),
            ]
        );
    }
    assert_ne!(rows[0][10], "0", "what came from a cache is among them: {rows:?}");
}

fn owned((one, other): (&str, &str)) -> (String, String) {
    (one.to_owned(), other.to_owned())
}

async fn a_call_that_failed_and_a_job_that_did_say_of_what(ground: &Ground) {
    let collector = Collector::start().await;
    let mill = traced(ground, &collector).await;
    mill.insert(&["[[error 400]]"]).await;
    ground.run(r#"INSERT INTO jobs (prompt, params) VALUES ('never asked', '{"model": 7}')"#).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    let spans = collector.spans();
    let claims = claims(&spans);
    assert_eq!((spans.len(), claims.len()), (3, 2), "{spans:#?}");
    for claim in claims {
        let calls = calls(&spans, claim);
        let (outcome, error, made) = match claim.get("promptmill.job.id") {
            "1" => ("failed", "invalid_request_error", 1),
            _ => ("invalid", "invalid_job", 0),
        };
        let row = ground
            .line(&format!(
                "SELECT outcome, error_type FROM results WHERE job_id = {}",
                claim.get("promptmill.job.id")
            ))
            .await;
        assert_eq!(row, format!("{outcome}|{error}"));
        assert!(claim.failed);
        assert_eq!((claim.get("promptmill.outcome"), claim.get("error.type")), (outcome, error));
        assert_eq!(calls.len(), made);
        for call in calls {
            assert!(call.failed);
            assert_eq!((call.get("error.type"), call.get("http.response.status_code")), (error, "400"));
            assert_eq!(call.get("gen_ai.usage.input_tokens"), "", "nothing was read");
        }
    }
}

async fn a_job_that_goes_back_has_a_span_for_each_claim(ground: &Ground) {
    let collector = Collector::start().await;
    let mill = traced(ground, &collector).await;
    mill.insert(&["[[cut after=30 x1]] [[tokens 60]]"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let spans = collector.spans();
    let claims = claims(&spans);
    assert_eq!((spans.len(), claims.len()), (4, 2), "{spans:#?}");
    assert_ne!(claims[0].trace, claims[1].trace);
    let ends = claims.iter().map(|claim| {
        let calls = calls(&spans, claim);
        assert_eq!(calls.len(), 1);
        (claim.get("promptmill.end"), claim.failed, calls[0].failed, calls[0].get("error.type"))
    });
    let wanted = [("released", false, true, "connection"), ("settled", false, false, "")];
    assert_eq!(ends.collect::<Vec<_>>(), wanted);
}

async fn a_job_that_is_taken_away_has_its_span_all_the_same(ground: &Ground) {
    let collector = Collector::start().await;
    let mill = traced(ground, &collector).await;
    mill.insert(&["[[hang after=5]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    mill.until("SELECT count(*) FROM calls WHERE error_type = 'stopped'", "1").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let spans = collector.spans();
    let claim = claims(&spans)[0];
    assert_eq!(
        (claim.get("promptmill.end"), claim.get("promptmill.outcome"), claim.failed),
        ("lost", "", false)
    );
    assert_eq!(calls(&spans, claim)[0].get("error.type"), "stopped");
}

async fn what_stands_in_the_metadata_becomes_a_link_and_nonsense_becomes_nothing(ground: &Ground) {
    const PARENT: &str = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
    let collector = Collector::start().await;
    let mill = traced(ground, &collector).await;
    let whole = format!(r#"{{"row": 7, "traceparent": "00-{PARENT}-01"}}"#);
    let long = format!(r#"{{"traceparent": "00-{PARENT}-01{}"}}"#, "x".repeat(5000));
    for metadata in [
        whole.as_str(),
        r#"{"traceparent": "00-nonsense-01"}"#,
        r#"{"traceparent": 7}"#,
        r#"{"traceparent": {"traceparent": "x"}}"#,
        r#"["traceparent"]"#,
        r#""traceparent""#,
        r#"{"tracestate": "a=b"}"#,
        "null",
        &long,
    ] {
        ground.run(&format!("INSERT INTO jobs (prompt, metadata) VALUES ('hello', '{metadata}')")).await;
    }
    mill.insert(&["no metadata at all"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let spans = collector.spans();
    let claims = claims(&spans);
    assert_eq!(claims.len(), 10, "{spans:#?}");
    for claim in claims {
        let linked: &[&str] = if claim.get("promptmill.job.id") == "1" { &[PARENT] } else { &[] };
        assert_eq!(
            (claim.links.iter().map(String::as_str).collect::<Vec<_>>(), claim.parent.as_str()),
            (linked.to_vec(), ""),
            "{claim:?}"
        );
        assert_eq!(claim.get("promptmill.outcome"), "complete");
    }
}

async fn no_word_of_a_prompt_or_an_answer_leaves(ground: &Ground) {
    let collector = Collector::start().await;
    let mill = traced(ground, &collector).await;
    // The stand-in quotes what it is asked where it refuses, and repeats what it is told to say.
    let prompts = [
        "[[say Zwetschgenmus]] Marillenknoedel",
        "[[error 400]] Marillenknoedel",
        "[[cut after=3]] Marillenknoedel",
    ];
    for prompt in prompts {
        ground
            .run(&format!(
                r#"INSERT INTO jobs (prompt, system, params, policy, metadata)
                   VALUES ('{prompt}', 'Powidltascherl', '{{"stop_sequences": ["Topfengolatsche"]}}',
                           '{{"max_failures": 1}}', '{{"traceparent": "Kaiserschmarrn", "note": "Buchtel"}}')"#
            ))
            .await;
    }
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT text FROM results WHERE job_id = 1").await, "Zwetschgenmus");
    assert!(collector.spans().len() >= 6, "there is something to look at");
    for request in collector.requests() {
        let sent = String::from_utf8_lossy(&request.body);
        for word in
            ["Zwetsch", "Marillen", "Powidl", "Topfen", "Kaiser", "Buchtel", "[[", "sk-ant", "max_failures"]
        {
            assert!(!sent.contains(word), "{word} in {sent}");
        }
    }
}
