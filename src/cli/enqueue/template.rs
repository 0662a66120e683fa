//! Prompts made from rows: text with `{{name}}` in it, filled with the row's columns.
//!
//! A template is checked before a row is read: what it names and the rows lack is told with the
//! closest name that they have.

use std::borrow::Cow;

use super::lines::{self, Fields};
use crate::store::NewJob;

/// What opens the name of a field; twice in a row it stands for itself.
const OPEN: &str = "{{";
/// What closes it.
const CLOSE: &str = "}}";
/// The column that names a row, where none is named.
const KEY_COLUMN: &str = "custom_id";
/// Names of columns that a sentence lists.
const NAMES_MAX: usize = 12;

/// Text with the names of fields in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(String),
}

impl Template {
    /// Reads a template; the error says where it is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = vec![Piece::Text(String::new())];
        let mut rest = text;
        while let Some(at) = rest.find(OPEN) {
            push(&mut pieces, &rest[..at]);
            let opened = text.len() - rest.len() + at;
            let place = || format!("at character {}", text[..opened].chars().count() + 1);
            rest = &rest[at + OPEN.len()..];
            if let Some(literal) = rest.strip_prefix(OPEN) {
                push(&mut pieces, OPEN);
                rest = literal;
                continue;
            }
            let end = rest.find(CLOSE).ok_or_else(|| {
                format!(
                    "the {OPEN} {} is never closed: write {OPEN}name{CLOSE}, or {OPEN}{OPEN} for {OPEN} itself",
                    place()
                )
            })?;
            let name = rest[..end].trim();
            if name.is_empty() || name.contains(['{', '}', '\n']) {
                return Err(format!(
                    "the {OPEN} {} is not followed by a name and {CLOSE}: write {OPEN}name{CLOSE}, or {OPEN}{OPEN} for {OPEN} itself",
                    place()
                ));
            }
            pieces.push(Piece::Field(name.to_owned()));
            rest = &rest[end + CLOSE.len()..];
        }
        push(&mut pieces, rest);
        pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
        Ok(Self(pieces))
    }

    /// Returns the names of its fields, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Field(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// Returns the text with what `value` says in place of each name.
    fn fill<'a>(&self, value: &impl Fn(&str) -> Result<Cow<'a, str>, String>) -> Result<String, String> {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Field(name) => filled.push_str(&value(name)?),
            }
        }
        Ok(filled)
    }
}

fn push(pieces: &mut Vec<Piece>, more: &str) {
    match pieces.last_mut() {
        Some(Piece::Text(text)) => text.push_str(more),
        _ => pieces.push(Piece::Text(more.to_owned())),
    }
}

/// How rows become jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filling {
    prompt: Template,
    system: Option<Template>,
    key: Option<String>,
    /// What jobs made of the same rows are told apart by.
    pub source: String,
}

impl Filling {
    /// Reads the templates of a prompt and of a system prompt; `key` is the column that names a row.
    pub fn new(prompt: &str, system: Option<&str>, key: Option<&str>) -> Result<Self, String> {
        let of = |what: &str, text| Template::parse(text).map_err(|why| format!("{what}: {why}"));
        let template = of("--template", prompt)?;
        if template.names().next().is_none() {
            return Err(format!(
                "--template names no column, so that all prompts would be the same: write {OPEN}name{CLOSE} where a column belongs"
            ));
        }
        Ok(Self {
            prompt: template,
            system: system.map(|text| of("--system-template", text)).transpose()?,
            key: key.map(ToOwned::to_owned),
            source: format!("\0{prompt}\0{}", system.unwrap_or_default()),
        })
    }

    /// Refuses columns that lack what the templates name.
    pub fn check(&self, columns: &[String]) -> Result<(), String> {
        let asked = self.prompt.names().chain(self.system.iter().flat_map(Template::names));
        let asked = asked.map(|name| (name, format!("{OPEN}{name}{CLOSE} of the template")));
        let key = self.key.iter().map(|name| (name.as_str(), format!("--key-column {name}")));
        for (name, what) in asked.chain(key) {
            if !columns.iter().any(|column| column == name) {
                return Err(format!("{what} is none of the columns{}", suggestion(name, columns)));
            }
        }
        Ok(())
    }

    /// Makes the job of a row of a table; its metadata is the row.
    pub fn table_job(
        &self,
        columns: &[String],
        values: &[&str],
        fill: &NewJob,
    ) -> Result<(NewJob, Option<String>), String> {
        let find = |name: &str| columns.iter().position(|column| column == name).map(|at| values[at]);
        let row = || {
            let row: serde_json::Map<String, serde_json::Value> =
                columns.iter().zip(values).map(|(name, value)| (name.clone(), (*value).into())).collect();
            serde_json::Value::Object(row).to_string()
        };
        let value = |name: &str| Ok(Cow::Borrowed(find(name).unwrap_or_default()));
        let key = find(self.key_column()).map(ToOwned::to_owned);
        self.job(&value, key, &row, fill)
    }

    /// Makes the job of a JSON object; its metadata is the object.
    pub fn object_job(
        &self,
        fields: &Fields<'_>,
        text: &str,
        fill: &NewJob,
    ) -> Result<(NewJob, Option<String>), String> {
        let find = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.get());
        let value = |name: &str| match find(name) {
            None => {
                let names: Vec<String> = fields.iter().map(|(field, _)| field.clone()).collect();
                Err(format!(
                    "{OPEN}{name}{CLOSE} of the template is none of the fields{}",
                    suggestion(name, &names)
                ))
            }
            Some("null") => Err(format!("\"{name}\" is null: the template needs it")),
            Some(json) if json.starts_with('"') => lines::string(name, json).map(Cow::Owned),
            Some(json) => Ok(Cow::Borrowed(json)),
        };
        let key = match (&self.key, find(self.key_column())) {
            (Some(name), None | Some("null")) => {
                return Err(format!("\"{name}\" of --key-column is missing"));
            }
            (None, None | Some("null")) => None,
            (_, Some(_)) => Some(value(self.key_column())?.into_owned()),
        };
        self.job(&value, key, &|| text.to_owned(), fill)
    }

    fn key_column(&self) -> &str {
        self.key.as_deref().unwrap_or(KEY_COLUMN)
    }

    fn job<'a>(
        &self,
        value: &impl Fn(&str) -> Result<Cow<'a, str>, String>,
        key: Option<String>,
        row: &dyn Fn() -> String,
        fill: &NewJob,
    ) -> Result<(NewJob, Option<String>), String> {
        let job = NewJob {
            prompt: Some(self.prompt.fill(value)?),
            system: self.system.as_ref().map(|system| system.fill(value)).transpose()?,
            // What the command line says for every row is meant for every row.
            metadata: fill.metadata.is_none().then(row),
            ..NewJob::default()
        };
        lines::finish(job, key, self.key_column(), fill)
    }
}

/// Says which name was meant, or which there are.
fn suggestion(name: &str, names: &[String]) -> String {
    let score = |other: &String| strsim::jaro_winkler(&name.to_lowercase(), &other.to_lowercase());
    match names.iter().max_by(|a, b| score(a).total_cmp(&score(b))) {
        Some(closest) if score(closest) > 0.8 => format!(": did you mean \"{closest}\"?"),
        _ => {
            let more = if names.len() > NAMES_MAX { ", …" } else { "" };
            let names: Vec<String> = names.iter().take(NAMES_MAX).map(|name| format!("\"{name}\"")).collect();
            format!(": there are {}{more}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str, row: &[(&str, &str)]) -> Result<String, String> {
        let columns: Vec<String> = row.iter().map(|(name, _)| (*name).to_owned()).collect();
        let values: Vec<&str> = row.iter().map(|(_, value)| *value).collect();
        let filling = Filling::new(template, None, None)?;
        filling.check(&columns)?;
        filling.table_job(&columns, &values, &NewJob::default()).map(|(job, _)| job.prompt.expect("a prompt"))
    }

    #[test]
    fn names_are_replaced_and_nothing_else_is() {
        let row = [("title", "A {{body}} $1 %s"), ("body", "x\ny"), ("the price", "7")];
        for (template, prompt) in [
            ("{{title}}: {{ body }}!", "A {{body}} $1 %s: x\ny!"),
            ("{{the price}}{{the price}}", "77"),
            ("{{{{title}} {{body}}", "{{title}} x\ny"),
            (r#"{"a":{"b":"{{body}}"}}"#, "{\"a\":{\"b\":\"x\ny\"}}"),
            ("é漢{{body}}é}}", "é漢x\nyé}}"),
        ] {
            assert_eq!(filled(template, &row).expect(template), prompt);
        }
    }

    #[test]
    fn a_bad_template_is_told_what_is_wrong_with_it() {
        let row = [("title", "a"), ("body", "b")];
        for (template, sentence) in [
            (
                "all the same",
                "--template names no column, so that all prompts would be the same: write {{name}} where a column belongs",
            ),
            (
                "é {{title",
                "--template: the {{ at character 3 is never closed: write {{name}}, or {{{{ for {{ itself",
            ),
            (
                "{{}} a",
                "--template: the {{ at character 1 is not followed by a name and }}: write {{name}}, or {{{{ for {{ itself",
            ),
            (
                "{{{title}}}",
                "--template: the {{ at character 1 is not followed by a name and }}: write {{name}}, or {{{{ for {{ itself",
            ),
            ("{{Titel}}", "{{Titel}} of the template is none of the columns: did you mean \"title\"?"),
            ("{{x}}", "{{x}} of the template is none of the columns: there are \"title\", \"body\""),
        ] {
            assert_eq!(filled(template, &row).expect_err(template), sentence);
        }
    }
}
