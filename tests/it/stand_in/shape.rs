//! Answers by a JSON schema: what the daemon sends of one is taken, what comes back follows it, and
//! the markers let it miss in the ways that models do.

use promptmill::domain::schema::{Schema, repair_request};
use serde_json::{Value, json};

use super::{Heard, NEW, body, post, start};

fn product() -> Value {
    json!({
        "type": "object",
        "properties": {
            "z_name": { "type": "string", "minLength": 30, "maxLength": 40 },
            "kind": { "enum": ["Chair", "TABLE"] },
            "price": { "type": "number", "exclusiveMinimum": 200, "maximum": 201, "multipleOf": 0.25 },
            "count": { "type": ["integer", "null"], "minimum": 3, "maximum": 3 },
            "made": { "type": "string", "format": "date" },
            "parts": { "type": "array", "minItems": 2, "maxItems": 4, "items": { "$ref": "#/$defs/part" } },
            "note": { "anyOf": [{ "const": "None" }, { "$ref": "#/$defs/part", "description": "One more." }] },
        },
        "required": ["kind", "z_name", "price", "count", "made", "parts", "note"],
        "$defs": { "part": { "type": "object", "properties": { "id": { "type": "integer" }, "ok": { "type": "boolean" } },
                             "required": ["id"] } },
    })
}

fn schema(json: &Value) -> Schema {
    Schema::read(&json.to_string()).unwrap()
}

/// Asks with a schema beside the prompt, as the daemon sends it, or told in the system prompt.
async fn ask_by(
    running: &promptmill::stand_in::Running,
    schema: &Schema,
    messages: &Value,
    told: bool,
) -> Heard {
    let mut body = body(NEW, 4000, messages);
    if told {
        body["system"] = format!("Be brief.\n\n{}", schema.instruction()).into();
    } else {
        let format: Value = serde_json::from_str(&schema.format().unwrap()).unwrap();
        body["output_config"] = json!({ "format": format });
    }
    post(running, &body).await
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

#[tokio::test]
async fn an_answer_follows_the_schema_that_is_sent_or_told() {
    let running = start().await;
    let schema = schema(&product());
    for told in [false, true] {
        for number in 0..20 {
            let heard =
                ask_by(&running, &schema, &user(&format!("Read this text, number {number}.")), told).await;
            assert_eq!(heard.status, 200, "{}", String::from_utf8_lossy(&heard.body));
            assert_eq!(schema.check(&heard.text()), Ok(heard.text()), "{}", heard.text());
            assert_eq!(heard.stop(), "end_turn");
        }
    }
    let heard = ask_by(&running, &schema, &user("the same"), false).await;
    assert_eq!(heard.text(), ask_by(&running, &schema, &user("the same"), false).await.text());
    assert_ne!(heard.text(), ask_by(&running, &schema, &user("another"), false).await.text());
}

#[tokio::test]
async fn maps_and_trees_are_answered_where_they_are_told() {
    let running = start().await;
    for json in [
        json!({ "type": "object", "additionalProperties": { "type": "integer", "minimum": 7 }, "minProperties": 1 }),
        json!({ "type": "object", "properties": { "sub": { "type": "array", "items": { "$ref": "#" } } }, "required": ["sub"] }),
        json!({ "$ref": "#/$defs/list", "$defs": { "list": { "type": "object", "properties": {
            "next": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/list" }] } }, "required": ["next"] } } }),
    ] {
        let schema = schema(&json);
        for number in 0..5 {
            let heard = ask_by(&running, &schema, &user(&number.to_string()), true).await;
            assert_eq!(schema.check(&heard.text()), Ok(heard.text()), "{json}: {}", heard.text());
        }
    }
}

#[tokio::test]
async fn json_misses_its_schema_as_often_as_a_marker_says() {
    let running = start().await;
    let schema = schema(&product());
    for told in [false, true] {
        let prompt = format!("{told} [[json wrong x1]] [[json case x1]] [[json fenced x1]]");
        let mut messages = user(&prompt);
        let wrong = ask_by(&running, &schema, &messages, told).await.text();
        let errors = schema.check(&wrong).unwrap_err();
        assert!(errors[0].contains("{\"wrong\":true} is not"), "{errors:?}");
        // The markers hold on behind a request that has none.
        for turn in
            [json!({ "role": "assistant", "content": wrong }), user(&repair_request(&errors))[0].clone()]
        {
            messages.as_array_mut().unwrap().push(turn);
        }
        let swapped = ask_by(&running, &schema, &messages, told).await.text();
        let fenced = ask_by(&running, &schema, &messages, told).await.text();
        let right = ask_by(&running, &schema, &messages, told).await.text();
        assert!(fenced.starts_with("```json\n{\n"), "{fenced}");
        let pretty = schema.check(&fenced).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&pretty).unwrap().to_string(), right);
        assert!(swapped != right && swapped.eq_ignore_ascii_case(&right), "{swapped}");
        assert_eq!(schema.check(&swapped).as_deref(), Ok(right.as_str()));
        assert_eq!(schema.check(&right).as_deref(), Ok(right.as_str()));
    }
    let counts = running.counts();
    assert_eq!(
        (counts.by_marker["json wrong"], counts.by_marker["json case"], counts.lost_places),
        (2, 2, 0)
    );
    let plain = super::ask(&running, "No schema. [[json wrong]]", 100).await;
    assert_eq!((plain.status, plain.stop()), (200, "end_turn"));
}

#[tokio::test]
async fn json_is_cut_like_any_answer_and_what_a_marker_says_comes_first() {
    let running = start().await;
    let schema = schema(&product());
    let mut short = body(NEW, 5, &user("cut"));
    short["output_config"] =
        json!({ "format": serde_json::from_str::<Value>(&schema.format().unwrap()).unwrap() });
    let cut = post(&running, &short).await;
    assert_eq!((cut.stop(), cut.output()), ("max_tokens", 5));
    assert!(schema.check(&cut.text()).is_err());
    let said = ask_by(&running, &schema, &user("[[say {\"a\":1}]]"), false).await;
    assert_eq!(said.text(), "{\"a\":1}");
}

#[tokio::test]
async fn what_the_api_does_not_take_of_a_schema_is_refused() {
    let running = start().await;
    for (schema, sentence) in [
        (
            json!({ "type": "object", "properties": {} }),
            "For 'object' type, 'additionalProperties' must be explicitly set to false",
        ),
        (
            json!({ "type": "array", "items": { "type": "integer", "minimum": 1, "maximum": 2 } }),
            "For 'integer' type, properties minimum, maximum are not supported",
        ),
        (
            json!({ "type": "array", "items": { "type": "null" }, "minItems": 2 }),
            "For 'array' type, 'minItems' values other than 0 or 1 are not supported",
        ),
        (json!({ "oneOf": [{ "type": "null" }] }), "For 'any' type, properties oneOf are not supported"),
    ] {
        for (field, value) in [
            ("output_config", json!({ "format": { "type": "json_schema", "schema": schema } })),
            ("output_format", json!({ "type": "json_schema", "schema": schema })),
        ] {
            let mut body = body(NEW, 100, &user("a"));
            body[field] = value;
            let heard = post(&running, &body).await;
            assert_eq!(heard.status, 400);
            assert!(heard.sentence().ends_with(sentence), "{}", heard.sentence());
            assert!(heard.sentence().starts_with(field), "{}", heard.sentence());
        }
    }
}
