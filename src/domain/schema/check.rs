//! Holding an answer against a schema: what is wrong with it, in lines that a model can work with, and
//! the one thing that is put right without asking it again.
//!
//! The API does not promise the capitals of `enum` and `const` values. Where exactly one of the values is
//! the same but for its capitals, it is meant.

use std::slice;

use jsonschema::error::ValidationErrorKind as Kind;
use jsonschema::{ValidationError, Validator};
use serde_json::Value;

use super::text::{self, Mends};

/// How many errors are told: a model needs no more to see what is meant.
const ERRORS_MAX: usize = 10;
/// Longest line that tells of one, in bytes.
const ERROR_BYTES_MAX: usize = 300;
/// How much of a wrong value is shown, in bytes.
const VALUE_BYTES_MAX: usize = 60;
/// How often capitals are put right: what one repair lets the checker see may need another.
const ROUNDS_MAX: usize = 3;

/// Returns the JSON of an answer that is valid, else what is wrong with it.
pub(super) fn check(checker: &Validator, answer: &str) -> Result<String, Vec<String>> {
    let mut json = text::json_of(answer).to_owned();
    let mut value = text::read(&json).map_err(|why| vec![cut(&why, ERROR_BYTES_MAX)])?;
    for _ in 0..ROUNDS_MAX {
        if checker.is_valid(&value) {
            return Ok(json);
        }
        let Some(mended) = mend(checker, &json, &value) else { break };
        value = text::read(&mended).map_err(|why| vec![why])?;
        json = mended;
    }
    let errors = lines(checker, &value);
    if errors.is_empty() { Ok(json) } else { Err(errors) }
}

fn lines(checker: &Validator, value: &Value) -> Vec<String> {
    let mut errors = checker.iter_errors(value);
    let mut lines: Vec<String> = errors.by_ref().take(ERRORS_MAX).map(|error| line(&error)).collect();
    let more = errors.count();
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

/// What is wrong, in one short line: where, and why.
pub(super) fn line(error: &ValidationError<'_>) -> String {
    let place = match error.instance_path().as_str() {
        "" => "the whole",
        path => path,
    };
    let shown = cut(&error.instance().to_string(), VALUE_BYTES_MAX);
    let mut why = error.masked_with(shown).to_string();
    if let Kind::AnyOf { context } | Kind::OneOfNotValid { context } = error.kind()
        && let Some(nearest) = nearest(context)
    {
        why = format!("{why}; nearest: {}", line(nearest));
    }
    let plain: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    cut(&format!("{place}: {plain}"), ERROR_BYTES_MAX)
}

/// The error of the alternative that was probably meant: what goes wrong deepest in it.
fn nearest<'a>(context: &'a [Vec<ValidationError<'static>>]) -> Option<&'a ValidationError<'static>> {
    let depth = |error: &ValidationError<'_>| error.instance_path().as_str().matches('/').count();
    let firsts = context.iter().filter_map(|branch| branch.iter().max_by_key(|error| depth(error)));
    // Of equals the first alternative, as it was written.
    firsts.reduce(|best, other| if depth(other) > depth(best) { other } else { best })
}

fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        text.to_owned()
    } else {
        format!("{}…", &text[..text.floor_char_boundary(bytes)])
    }
}

/// The value at a path, as it was meant.
#[derive(Debug, Clone, PartialEq)]
struct Meant {
    path: String,
    value: Value,
}

/// Puts capitals right wherever that is clear; `None` where it is nowhere.
fn mend(checker: &Validator, json: &str, value: &Value) -> Option<String> {
    let mut mends = Mends::default();
    let mut any = false;
    for meant in checker.iter_errors(value).filter_map(|error| meant(&error)).flatten() {
        mends.put(&steps(&meant.path), meant.value.to_string());
        any = true;
    }
    if any { mends.apply(json) } else { None }
}

/// What was meant where this error was found, if capitals are all that is wrong.
fn meant(error: &ValidationError<'_>) -> Option<Vec<Meant>> {
    let values = match error.kind() {
        Kind::Enum { options } => options.as_array()?.as_slice(),
        Kind::Constant { expected_value } => slice::from_ref(expected_value.as_ref()),
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            let whole = |branch: &Vec<_>| {
                branch.iter().map(meant).collect::<Option<Vec<_>>>().map(|each| each.concat())
            };
            let mut clear = context.iter().filter_map(whole);
            let first = clear.next()?;
            // Two alternatives that could both be meant: not clear, but where they mean the same.
            let same = clear.all(|other| other == first);
            return same.then_some(first);
        }
        _ => return None,
    };
    let said = error.instance().as_str()?.to_lowercase();
    let mut alike = values.iter().filter(|value| value.as_str().is_some_and(|v| v.to_lowercase() == said));
    let value = alike.next()?.clone();
    alike.all(|other| *other == value).then(|| vec![Meant { path: error.instance_path().to_string(), value }])
}

/// The keys and indexes of a JSON pointer.
fn steps(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
}
