//! The schema of a structured output: read once, sent in the form that the API takes, and held
//! against what came back as the user gave it.
//!
//! The API takes a part of JSON Schema. What it does not take goes into descriptions, in words
//! (`form`); a schema whose meaning would be lost that way is put into the system prompt as a whole.
//! Whichever way was gone, [`Schema::check`] holds the answer to every word of the original.

mod check;
mod form;
mod memo;
mod shape;
mod survey;
mod text;
mod words;

use std::fmt;
use std::sync::Arc;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use serde_json::value::RawValue;

use form::Form;
use survey::Survey;

/// Longest schema, in bytes: it is sent with every call, and the checker built of it stays in memory.
pub const SCHEMA_BYTES_MAX: usize = 256 * 1024;
/// How far a pattern may look back before a text counts as not matching: a bad pattern must not hold a
/// thread for minutes.
const BACKTRACK_MAX: usize = 100_000;

/// A schema that answers are held to. Cheap to clone.
#[derive(Clone)]
pub struct Schema(Arc<Inner>);

struct Inner {
    /// JSON text, as the user gave it.
    given: Box<str>,
    /// What is sent of it.
    form: Form,
    checker: Validator,
}

impl Schema {
    /// Understands a schema as it stands in a policy. The error is one sentence on what is wrong where.
    ///
    /// What was read lately is kept: a million jobs of one queue share one checker.
    pub fn read(json: &str) -> Result<Self, String> {
        if let Some(known) = memo::get(json) {
            return Ok(known);
        }
        let schema = Self::build(json)?;
        memo::put(json, &schema);
        Ok(schema)
    }

    fn build(json: &str) -> Result<Self, String> {
        if json.len() > SCHEMA_BYTES_MAX {
            let kib = SCHEMA_BYTES_MAX / 1024;
            return Err(format!(
                "it has {} bytes: at most {kib} KiB can be sent with every call",
                json.len()
            ));
        }
        let value: Value =
            serde_json::from_str(json).map_err(|err| format!("it cannot be read as JSON: {err}"))?;
        if !value.is_object() {
            return Err(format!("it is {}: a JSON Schema is an object", words::kind(&value)));
        }
        let survey = Survey::of(&value);
        if survey.deep {
            return Err("its references lead too deep to be followed".to_owned());
        }
        let checker = jsonschema::options()
            .offline()
            .should_validate_formats(true)
            .with_pattern_options(PatternOptions::fancy_regex().backtrack_limit(BACKTRACK_MAX))
            .build(&value)
            .map_err(|err| words::not_a_schema(&err))?;
        Ok(Self(Arc::new(Inner { given: json.into(), form: form::of(&value, &survey), checker })))
    }

    /// Returns what `output_config.format` takes; `None` where the schema's meaning would be lost on the
    /// way, so that it must go into the prompt: see [`Schema::unsent`].
    pub fn sent(&self) -> Option<&RawValue> {
        match &self.0.form {
            Form::Sent(json) => Some(json),
            Form::Said(_) => None,
        }
    }

    /// Returns why the schema cannot be sent, in a sentence; `None` where it can.
    pub fn unsent(&self) -> Option<&str> {
        match &self.0.form {
            Form::Sent(_) => None,
            Form::Said(why) => Some(why),
        }
    }

    /// Returns the value of `output_config.format`.
    pub fn format(&self) -> Option<String> {
        self.sent().map(|schema| format!(r#"{{"type":"json_schema","schema":{}}}"#, schema.get()))
    }

    /// Returns what the system prompt says where the schema is not sent beside it.
    pub fn instruction(&self) -> String {
        format!(
            "Answer with one JSON value that is valid against the JSON Schema below. Write nothing but \
             that JSON: no word before or after it, no code fence.\n\n<json_schema>\n{}\n</json_schema>",
            self.0.given
        )
    }

    /// Holds an answer against the schema as the user gave it.
    ///
    /// Returns the JSON as the model wrote it, without white space or a lone code fence around it, and with
    /// the capitals of `enum` and `const` values put right; else what is wrong with it, each a line.
    pub fn check(&self, text: &str) -> Result<String, Vec<String>> {
        check::check(&self.0.checker, text)
    }

    /// The JSON text as the user gave it.
    pub fn given(&self) -> &str {
        &self.0.given
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schema").field(&self.given()).finish()
    }
}

/// Returns the user's turn that shows the model what is wrong with its answer.
pub fn repair_request(errors: &[String]) -> String {
    let mut said = String::from("Your answer is not valid against the JSON schema that it must follow:\n");
    for error in errors {
        said.push_str("- ");
        said.push_str(error);
        said.push('\n');
    }
    said.push_str(
        "Reply with the whole corrected JSON and nothing else: no comment, no code fence, and what was \
         right unchanged.",
    );
    said
}

#[cfg(test)]
mod tests;
