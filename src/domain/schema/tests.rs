//! Tables for each keyword, and laws over generated schemas.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;

fn schema(json: &Value) -> Schema {
    Schema::read(&json.to_string()).unwrap_or_else(|why| panic!("{json}: {why}"))
}

fn sent(json: &Value) -> String {
    let schema = schema(json);
    schema.sent().unwrap_or_else(|| panic!("{json}: {:?}", schema.unsent())).get().to_owned()
}

#[test]
fn what_is_no_schema_is_refused_with_what_is_wrong_where() {
    for (json, part) in [
        ("[1]", "it is an array: a JSON Schema is an object"),
        ("true", "it is true or false: a JSON Schema is an object"),
        ("{\"a\":", "it cannot be read as JSON"),
        (r#"{"type":"strin"}"#, "it is no valid JSON Schema: /type: \"strin\""),
        (r#"{"properties":{"a":{"minLength":"3"}}}"#, "/properties/a/minLength: \"3\" is not of type"),
        (r#"{"required":"a"}"#, "/required: \"a\" is not of type \"array\""),
        (r#"{"type":"string","pattern":"(["}"#, "/pattern: \"([\""),
        (r#"{"$ref":"https://example.com/a.json"}"#, "a $ref in it cannot be followed"),
        (r##"{"$ref":"#/$defs/absent"}"##, "a $ref in it cannot be followed"),
    ] {
        let why = Schema::read(json).expect_err(json);
        assert!(why.contains(part), "{json}: {why}");
        assert!(!why.contains('\n'), "{why}");
    }
    let long = format!(r#"{{"description":"{}"}}"#, "x".repeat(SCHEMA_BYTES_MAX));
    assert!(Schema::read(&long).expect_err("too long").contains("at most 256 KiB"));
}

/// A chain of definitions, each so deep inside of the one before; written first to last, or last to first.
fn chain(length: usize, depth: usize, reversed: bool) -> String {
    let link = |n: usize| {
        let next = json!({ "$ref": format!("#/$defs/d{}", n + 1), "description": "One further." });
        let next = (0..depth).fold(next, |next, _| json!({ "not": next }));
        (format!("d{n}"), json!({ "type": "object", "properties": { "next": next }, "required": ["next"] }))
    };
    let mut links: Vec<(String, Value)> = (0..length).map(link).collect();
    links.push((format!("d{length}"), json!({ "type": "string" })));
    if reversed {
        links.reverse();
    }
    let definitions: Map<String, Value> = links.into_iter().collect();
    let first = json!({ "next": { "$ref": "#/$defs/d0" } });
    json!({ "$defs": definitions, "type": "object", "properties": first }).to_string()
}

#[test]
fn references_too_deep_for_a_stack_are_refused_before_they_are_followed() {
    for reversed in [false, true] {
        for length in [80, 1500] {
            let why = Schema::read(&chain(length, 0, reversed)).expect_err("too deep");
            assert!(why.contains("too deep"), "{why}");
        }
        let why = Schema::read(&chain(4, 100, reversed)).expect_err("too deep");
        assert!(why.contains("too deep"), "{why}");
        // What is accepted is followed on the small stack of a thread, without an end of the process.
        let deep = Schema::read(&chain(35, 0, reversed)).expect("not too deep");
        let wrong = format!("{}1{}", r#"{"next":"#.repeat(36), "}".repeat(36));
        assert!(deep.check(&wrong).expect_err("no string")[0].contains("1 is not of type \"string\""));
    }
}

#[test]
fn each_keyword_is_sent_or_said() {
    let described = |words: &str| json!({ "type": "string", "description": words });
    for (given, wanted) in [
        (json!({ "type": "string", "minLength": 1 }), described("Constraints: at least 1 character.")),
        (json!({ "type": "string", "maxLength": 80 }), described("Constraints: at most 80 characters.")),
        (json!({ "type": "string", "format": "date" }), json!({ "type": "string", "format": "date" })),
        (json!({ "type": "string", "format": "iri" }), described("Constraints: has the format iri.")),
        (
            json!({ "type": "string", "pattern": "^[A-Z]{2}\\d+$" }),
            json!({ "type": "string", "pattern": "^[A-Z]{2}\\d+$" }),
        ),
        (
            json!({ "type": "string", "pattern": "^(?!a)" }),
            described("Constraints: matches the regular expression ^(?!a)."),
        ),
        (
            json!({ "type": "integer", "minimum": 1, "description": "How many.", "maximum": 9 }),
            json!({ "type": "integer", "description": "How many.\n\nConstraints: at least 1; at most 9." }),
        ),
        (
            json!({ "type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1.5, "multipleOf": 0.5 }),
            json!({ "type": "number",
                    "description": "Constraints: more than 0; less than 1.5; a multiple of 0.5." }),
        ),
        (
            json!({ "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": 3, "uniqueItems": true }),
            json!({ "type": "array", "items": { "type": "string" }, "minItems": 1,
                    "description": "Constraints: at most 3 items; no two items are the same." }),
        ),
        (
            json!({ "type": "array", "items": { "type": "string" }, "minItems": 2, "contains": { "const": "a" } }),
            json!({ "type": "array", "items": { "type": "string" },
                    "description": "Constraints: at least 2 items; holds an item that is valid against {\"const\":\"a\"}." }),
        ),
        (json!({ "enum": ["a", null, 1] }), json!({ "enum": ["a", null, 1] })),
        (json!({ "const": "a" }), json!({ "const": "a" })),
        (
            json!({ "type": "string", "enum": ["b", "a"], "default": "a", "x-order": 3, "$comment": "no" }),
            json!({ "type": "string", "enum": ["b", "a"],
                    "description": "Constraints: \"a\" unless something else is known." }),
        ),
        (json!({ "type": ["string", "null"] }), json!({ "type": ["string", "null"] })),
        (
            json!({ "oneOf": [{ "type": "string" }, { "type": "null" }] }),
            json!({ "anyOf": [{ "type": "string" }, { "type": "null" }] }),
        ),
        (
            json!({ "type": "string", "not": { "const": "a" } }),
            described("Constraints: not valid against {\"const\":\"a\"}."),
        ),
        (
            json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://a.example/",
                    "properties": {}, "additionalProperties": false, "minProperties": 0 }),
            json!({ "type": "object", "properties": {}, "additionalProperties": false,
                    "description": "Constraints: at least 0 properties." }),
        ),
        (
            json!({ "type": "object", "properties": { "z": { "type": "null" }, "a": { "type": "null" } },
                    "required": ["a"], "additionalProperties": true,
                    "anyOf": [{ "required": ["z"] }, { "properties": { "a": { "const": null } } }] }),
            json!({ "type": "object", "properties": { "z": { "type": "null" }, "a": { "type": "null" } },
                    "required": ["a"],
                    "description": "Constraints: valid against at least one of \
                        [{\"required\":[\"z\"]},{\"properties\":{\"a\":{\"const\":null}}}].",
                    "additionalProperties": false }),
        ),
    ] {
        let got: Value = serde_json::from_str(&sent(&given)).expect("it is JSON");
        assert_eq!(got, wanted, "{given}");
    }
}

#[test]
fn definitions_are_sent_and_what_is_said_beside_a_reference_is_kept() {
    let json = json!({
        "$ref": "#/$defs/order",
        "$defs": {
            "order": { "type": "object", "properties": {
                "to": { "$ref": "#/$defs/address", "description": "Where it goes." },
                "from": { "allOf": [{ "$ref": "#/$defs/address" }], "title": "Sender" },
                "bill": { "$ref": "#/$defs/address" },
            }, "required": ["to", "from", "bill"] },
            "address": { "type": "string", "description": "Street and town.", "minLength": 1 },
        },
    });
    let got: Value = serde_json::from_str(&sent(&json)).expect("it is JSON");
    let properties = &got["$defs"]["order"]["properties"];
    assert_eq!(got["$ref"], "#/$defs/order");
    assert_eq!(properties["bill"], json!({ "$ref": "#/$defs/address" }));
    let words = "Street and town.\n\nConstraints: at least 1 character.";
    assert_eq!(
        properties["to"],
        json!({ "type": "string", "description": format!("Where it goes.\n\n{words}") })
    );
    assert_eq!(properties["from"], json!({ "type": "string", "description": words, "title": "Sender" }));
}

#[test]
fn what_the_api_could_not_write_is_not_sent_but_said_and_still_checked() {
    let many: Map<String, Value> = (0..25).map(|n| (format!("p{n}"), json!({ "type": "null" }))).collect();
    let unions: Vec<String> = (0..17).map(|n| format!("p{n}")).collect();
    let union: Map<String, Value> =
        unions.iter().map(|name| (name.clone(), json!({ "type": ["string", "null"] }))).collect();
    for (json, part) in [
        (json!({}), "# allows values of any type"),
        (json!({ "properties": { "a": true } }), "#/properties/a is true or false"),
        (json!({ "properties": { "a": {} } }), "#/properties/a allows values of any type"),
        (json!({ "type": "object" }), "an object with any keys"),
        (json!({ "type": "object", "additionalProperties": { "type": "number" } }), "a map"),
        (
            json!({ "properties": { "a": { "type": "null" } }, "additionalProperties": { "type": "null" } }),
            "a map",
        ),
        (
            json!({ "type": "object", "patternProperties": { "^a": { "type": "null" } } }),
            "uses patternProperties",
        ),
        (json!({ "type": "array" }), "an array of anything"),
        (json!({ "type": "array", "prefixItems": [{ "type": "null" }] }), "uses prefixItems"),
        (
            json!({ "allOf": [{ "type": "object", "properties": { "a": {} } }, { "properties": { "b": {} } }] }),
            "allOf",
        ),
        (json!({ "properties": { "a": { "type": "null" } }, "required": ["b"] }), "requires \"b\""),
        (
            json!({ "type": "object", "properties": { "a": { "type": "null" } },
                    "oneOf": [{ "properties": { "b": { "type": "null" } } }] }),
            "#/oneOf speaks of properties that stand nowhere else",
        ),
        (
            json!({ "anyOf": [{ "type": "null" }, { "const": 1 }], "required": ["a"] }),
            "# has required beside its alternatives",
        ),
        (
            json!({ "type": "object", "properties": { "next": { "anyOf": [{ "$ref": "#" }, { "type": "null" }] } } }),
            "# leads back to itself",
        ),
        (
            json!({ "$ref": "#/$defs/tree", "$defs": { "tree": { "type": "array", "items": { "$ref": "#/$defs/tree" } } } }),
            "#/$defs/tree leads back to itself",
        ),
        (
            json!({ "properties": { "a": { "type": "null" }, "b": { "$ref": "#/properties/a" } } }),
            "which is no definition",
        ),
        (json!({ "type": "object", "properties": many }), "25 properties may be left out"),
        (
            json!({ "type": "object", "properties": union, "required": unions }),
            "17 values have several types",
        ),
    ] {
        let schema = schema(&json);
        assert!(schema.sent().is_none() && schema.format().is_none(), "{json}");
        let why = schema.unsent().expect("a reason");
        assert!(why.contains(part), "{json}: {why}");
        assert!(schema.instruction().contains(&json.to_string()));
    }
    let tree = schema(&json!({ "type": "object", "properties": { "next": { "$ref": "#" } } }));
    assert!(tree.check(r#"{"next":{"next":{}}}"#).is_ok());
    assert!(tree.check(r#"{"next":{"next":1}}"#).is_err());
}

#[test]
fn only_patterns_that_the_api_is_sure_to_take_are_sent() {
    for pattern in ["^[a-z0-9_-]+$", "^\\d{4}-\\d{2}$", "a.b", "^(ab|cd)?\\.[^x]*$", "^$", "\\$", "[\\]]"] {
        assert!(shape::is_plain_pattern(pattern), "{pattern}");
    }
    for pattern in [
        "^(?=a)",
        "\\bword\\b",
        "(a)\\1",
        "a{1,1000}",
        "a{2,}",
        "a+?",
        "a++",
        "é",
        "[[:alpha:]]",
        "^a^",
        "a$b",
        "\\p{L}",
        "[a",
        "(?i)a",
        "*a",
        "[a&&b]",
    ] {
        assert!(!shape::is_plain_pattern(pattern), "{pattern}");
    }
}

#[test]
fn an_answer_is_held_to_every_word_of_the_schema() {
    let product = schema(&json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "minLength": 2, "pattern": "^[^!]*$" },
            "price": { "type": "number", "minimum": 0, "multipleOf": 0.5 },
            "made": { "type": "string", "format": "date" },
            "tags": { "type": "array", "items": { "type": "string" }, "maxItems": 2, "uniqueItems": true },
        },
        "required": ["name"],
        "additionalProperties": false,
    }));
    let right = r#" {"price": 1.50, "name":"Chair", "made":"2026-11-23","tags":["a","b"]}"#;
    assert_eq!(product.check(right).as_deref(), Ok(right.trim()));
    assert_eq!(product.check(&format!("```json\n{right}\n```\n")).as_deref(), Ok(right.trim()));
    for (answer, error) in [
        (r#"{"name":"C"}"#, "/name: \"C\" is shorter than 2 characters"),
        (r#"{"name":"Chair!"}"#, "/name: \"Chair!\" does not match \"^[^!]*$\""),
        (r#"{"name":"Chair","price":-1}"#, "/price: -1 is less than the minimum of 0"),
        (r#"{"name":"Chair","price":1.2}"#, "/price: 1.2 is not a multiple of 0.5"),
        (r#"{"name":"Chair","price":"1"}"#, "/price: \"1\" is not of type \"number\""),
        (r#"{"name":"Chair","made":"today"}"#, "/made: \"today\" is not a \"date\""),
        (r#"{"name":"Chair","tags":["a","b","c"]}"#, "/tags: [\"a\",\"b\",\"c\"] has more than 2 items"),
        (r#"{"name":"Chair","tags":["a","a"]}"#, "/tags: [\"a\",\"a\"] has non-unique elements"),
        (r#"{"price":1}"#, "the whole: \"name\" is a required property"),
        (
            r#"{"name":"Chair","x\ny":1}"#,
            "the whole: Additional properties are not allowed ('x y' was unexpected)",
        ),
        ("Here you are: {}", "it is not JSON: expected value at line 1 column 1"),
        (r#"{"name":"Chair""#, "it is not JSON: EOF while parsing an object at line 1 column 15"),
        (r#"{"name":"Chair"} {}"#, "it is not JSON: trailing characters at line 1 column 18"),
        ("", "it is not JSON: EOF while parsing a value at line 1 column 0"),
    ] {
        assert_eq!(product.check(answer), Err(vec![error.to_owned()]), "{answer}");
    }
}

#[test]
fn errors_are_few_and_short() {
    let many = schema(&json!({ "type": "array", "items": { "type": "integer" } }));
    let answer = Value::from(vec!["wrong ".repeat(1000); 14]).to_string();
    let errors = many.check(&answer).expect_err("wrong");
    assert_eq!(errors.len(), 11);
    assert_eq!(errors[10], "and 4 more");
    assert!(errors.iter().all(|error| error.len() <= 310 && !error.contains('\n')), "{errors:?}");
    assert!(errors[0].starts_with("/0: \"wrong wrong"), "{}", errors[0]);
    let request = repair_request(&errors);
    assert!(request.contains(&errors[3]) && request.contains("the whole corrected JSON"), "{request}");
    let either = schema(&json!({ "anyOf": [
        { "type": "null" },
        { "type": "object", "properties": { "size": { "type": "object", "properties": { "w": { "type": "integer" } } } } },
    ] }));
    let errors = either.check(r#"{"size":{"w":"1"}}"#).expect_err("wrong");
    assert!(errors[0].ends_with("nearest: /size/w: \"1\" is not of type \"integer\""), "{errors:?}");
}

#[test]
fn capitals_are_put_right_where_it_is_clear_what_is_meant() {
    let color = json!({ "enum": ["Red", "BLUE", "grün", 7] });
    let shapes = json!({ "type": "array", "items": { "oneOf": [
        { "type": "object", "properties": { "kind": { "const": "Circle" }, "color": color }, "required": ["kind"] },
        { "type": "object", "properties": { "kind": { "const": "Square" }, "side": { "type": "integer" } },
          "required": ["kind", "side"] },
    ] } });
    for (given, said, meant) in [
        (&color, "\"red\"", "\"Red\""),
        (&color, "\"GRÜN\"", "\"grün\""),
        (&json!({ "anyOf": [color, { "type": "null" }] }), "\"blue\"", "\"BLUE\""),
        (
            &json!({ "type": "object", "properties": { "a/b": { "$ref": "#/$defs/c" } }, "$defs": { "c": color } }),
            r#"{ "b":1e2, "a/b" : "blUE" ,"a":[ ]}"#,
            r#"{ "b":1e2, "a/b" : "BLUE" ,"a":[ ]}"#,
        ),
        (
            &shapes,
            r#"[{"kind":"circle","color":"blue"},{"kind":"SQUARE","side":2},{"kind":"Circle"}]"#,
            r#"[{"kind":"Circle","color":"BLUE"},{"kind":"Square","side":2},{"kind":"Circle"}]"#,
        ),
    ] {
        assert_eq!(schema(given).check(said).as_deref(), Ok(meant), "{given}");
    }
    for (given, said) in [
        (&json!({ "enum": ["a", "A", "b"] }), "\"B \""),
        (&json!({ "enum": ["ab", "AB"] }), "\"Ab\""),
        (&color, "\"Reds\""),
        // Both alternatives could be meant.
        (&json!({ "anyOf": [{ "const": "ab" }, { "const": "AB" }] }), "\"Ab\""),
        (&json!({ "type": "string", "not": { "const": "a" } }), "\"a\""),
    ] {
        assert!(schema(given).check(said).is_err(), "{given}: {said}");
    }
    // What else is wrong is told of the text as it was put right.
    let both = json!({ "properties": { "c": color, "n": { "type": "integer" } } });
    let errors = schema(&both).check(r#"{"c":"red","n":"1"}"#).expect_err("wrong");
    assert_eq!(errors, ["/n: \"1\" is not of type \"integer\""]);
}

#[test]
fn a_pattern_that_looks_back_for_ever_is_an_error_soon() {
    let schema = schema(&json!({ "type": "string", "pattern": "^(a|a|aa)+\\1$" }));
    let errors = schema.check(&format!("\"{}b\"", "a".repeat(60))).expect_err("it does not match");
    assert!(errors[0].starts_with("the whole: "), "{errors:?}");
}

/// A schema, a value that it allows, and the same value with the capitals of its `enum` values swapped.
type Sample = (Value, Value, Value);

fn swapped(word: &str) -> String {
    word.chars()
        .map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
        .collect()
}

fn leaf() -> impl Strategy<Value = Sample> {
    let words = ["Red", "BLUE", "dark green", "x-1", "\u{e9}t\u{e9}"];
    let with = |schema: Value, value: Value| (schema, value.clone(), value);
    prop_oneof![
        (".{0,8}", 0..3_usize).prop_map(move |(text, slack)| {
            let length = text.chars().count();
            let schema = json!({ "type": "string", "minLength": length.saturating_sub(slack), "maxLength": length + slack });
            with(schema, text.into())
        }),
        (-1000..1000_i64, 0..5_i64).prop_map(move |(n, slack)| {
            with(json!({ "minimum": n - slack, "type": "integer", "maximum": n + slack, "description": "N" }), n.into())
        }),
        (-1e6..1e6_f64).prop_map(move |n| with(json!({ "type": "number" }), json!(n))),
        any::<bool>().prop_map(move |yes| with(json!({ "type": "boolean" }), yes.into())),
        Just(with(json!({ "type": "null" }), Value::Null)),
        Just(with(json!({ "type": "string", "format": "date" }), "2026-11-23".into())),
        Just(with(json!({ "type": "string", "pattern": "^(?!x).+$" }), "\"\\ \u{1f600}".into())),
        (0..words.len()).prop_map(move |n| {
            (json!({ "type": "string", "enum": words }), words[n].into(), swapped(words[n]).into())
        }),
        (0..words.len()).prop_map(move |n| {
            (json!({ "const": words[n] }), words[n].into(), swapped(words[n]).into())
        }),
    ]
}

fn object(parts: Vec<(String, Sample, bool)>) -> Sample {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    let (mut value, mut other) = (Map::new(), Map::new());
    for (name, (schema, it, swapped), needed) in parts {
        if properties.insert(name.clone(), schema).is_some() {
            // Said twice: the later one holds, whether it is in the value or not.
            required.retain(|known: &String| *known != name);
            value.shift_remove(&name);
            other.shift_remove(&name);
        }
        if needed {
            required.push(name.clone());
            value.insert(name.clone(), it);
            other.insert(name, swapped);
        }
    }
    let schema = json!({ "title": "T", "properties": properties, "required": required });
    (schema, value.into(), other.into())
}

fn sample() -> impl Strategy<Value = Sample> {
    leaf().prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            vec(("[a-dA-D/~ \"é]{1,3}", inner.clone(), any::<bool>()), 1..4).prop_map(object),
            (inner.clone(), 0..4_usize).prop_map(|((schema, value, other), n)| {
                let schema = json!({ "type": "array", "items": schema, "minItems": n.saturating_sub(1), "maxItems": n + 1 });
                (schema, vec![value; n].into(), vec![other; n].into())
            }),
            inner.clone().prop_map(|(schema, value, other)| {
                let plain = json!({ "type": "object", "properties": { "zz": schema, "e": { "enum": ["Yes"] } } });
                (plain, json!({ "e": "Yes", "zz": value }), json!({ "e": "yEs", "zz": other }))
            }),
            inner.prop_map(|(schema, value, other)| {
                let array = json!({ "type": "array", "items": { "type": "null" }, "minItems": 7 });
                (json!({ "anyOf": [schema, array] }), value, other)
            }),
        ]
    })
}

/// The words that the API takes, and what may stand in them.
fn assert_sent(sent: &Value, given: &Value) {
    let (Some(sent), Some(given)) = (sent.as_object(), given.as_object()) else {
        panic!("a schema is an object: {sent}, {given}");
    };
    for (word, value) in sent {
        match word.as_str() {
            "type" | "description" | "title" | "enum" | "const" | "required" => {}
            "additionalProperties" => assert_eq!(value, false),
            "format" => assert!(["date", "time", "uuid"].contains(&value.as_str().expect("a word"))),
            "minItems" => assert!(value == 0 || value == 1),
            "items" => assert_sent(value, &given["items"]),
            "anyOf" => {
                let lists = [value, &given["anyOf"]].map(|list| list.as_array().expect("a list"));
                assert_eq!(lists[0].len(), lists[1].len());
                lists[0].iter().zip(lists[1]).for_each(|(sent, given)| assert_sent(sent, given));
            }
            "properties" => {
                let both = [value, &given["properties"]].map(|map| map.as_object().expect("a map"));
                assert!(both[0].keys().eq(both[1].keys()), "the order of properties is part of the prompt");
                both[0].iter().for_each(|(name, schema)| assert_sent(schema, &both[1][name]));
            }
            word => panic!("the API does not take {word}"),
        }
    }
    assert_eq!(sent.contains_key("properties"), sent.contains_key("additionalProperties"));
    let demands = ["minimum", "maximum", "minLength", "maxLength", "maxItems"];
    for demand in demands.into_iter().filter(|word| given.contains_key(*word)) {
        let words = sent["description"].as_str().expect("it is described");
        assert!(words.contains(&words::of(demand, &given[demand]).expect("it demands something")), "{words}");
    }
}

proptest! {
    #[test]
    fn a_valid_answer_passes_byte_for_byte((given, value, _) in sample(), pretty in any::<bool>()) {
        let text = if pretty { format!("{value:#}") } else { value.to_string() };
        prop_assert_eq!(schema(&given).check(&text), Ok(text.clone()));
        let fenced = format!("```json\n{text}\n```");
        prop_assert_eq!(schema(&given).check(&fenced), Ok(text));
    }

    #[test]
    fn capitals_of_listed_values_are_put_right_and_nothing_else((given, value, swapped) in sample()) {
        prop_assert_eq!(schema(&given).check(&swapped.to_string()), Ok(value.to_string()));
    }

    #[test]
    fn what_is_sent_is_what_the_api_takes((given, value, _) in sample()) {
        let schema = schema(&given);
        let Some(sent) = schema.sent() else {
            // Only the API's counts keep such a schema back.
            prop_assert!(schema.unsent().is_some_and(|why| why.contains("the API takes")), "{:?}", schema.unsent());
            return Ok(());
        };
        let json: Value = serde_json::from_str(sent.get()).expect("it is JSON");
        assert_sent(&json, &given);
        // Nothing that the user's schema allows is forbidden by what is sent: here no object has other keys.
        let checker = jsonschema::options().should_validate_formats(true).build(&json).expect("a schema");
        prop_assert!(checker.is_valid(&value), "{} forbids {}", sent, value);
        let format: Value = serde_json::from_str(&schema.format().expect("sent")).expect("it is JSON");
        prop_assert_eq!(format, json!({ "type": "json_schema", "schema": json }));
        let again = Schema::read(sent.get()).expect("a schema");
        prop_assert_eq!(again.sent().map(RawValue::get), Some(sent.get()));
    }

    #[test]
    fn an_answer_cut_anywhere_or_any_other_text_is_told_what_is_wrong((given, value, _) in sample(), cut in 0..200_usize, junk in ".{0,20}") {
        let text = value.to_string();
        let part = &text[..text.floor_char_boundary(cut)];
        for text in [part, &junk] {
            match schema(&given).check(text) {
                Ok(json) => prop_assert!(serde_json::from_str::<Value>(&json).is_ok()),
                Err(errors) => prop_assert!(!errors.is_empty() && errors.len() <= 11),
            }
        }
    }
}
