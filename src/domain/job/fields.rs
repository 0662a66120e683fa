//! The body fields of one request: the user's, and the schema where the model takes it, or in words
//! where not.

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::{Job, ModelFacts, Raw, json_string};

/// A body field and its JSON text.
pub type Field<'a> = (&'a str, Raw);

impl Job {
    /// Returns the body fields beside the model, `max_tokens` and the messages, in order, for a request to
    /// a model of which this is known.
    ///
    /// All that is the user's is borrowed, byte for byte. Where the job has a schema, one field is made
    /// anew: `output_config` with the schema as its format, where the model takes it and it can be sent
    /// ([`Schema::sent`](crate::domain::schema::Schema::sent)); else `system`, with the schema at its end.
    pub fn fields_for(&self, facts: &ModelFacts) -> Vec<Field<'_>> {
        let mut fields: Vec<Field<'_>> =
            self.fields.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let Some(schema) = &self.schema else { return fields };
        let format = if facts.structured { schema.format() } else { None };
        let name = if format.is_some() { "output_config" } else { "system" };
        let own = fields.iter_mut().find(|field| field.0 == name);
        let said = own.as_ref().map_or("null", |field| field.1.get());
        let made = match format {
            Some(format) => with_format(said, &format),
            None => with_words(said, &schema.instruction()),
        };
        match own {
            Some(own) => own.1 = Raw::from(made),
            None => fields.push((name, Raw::from(made))),
        }
        fields
    }
}

/// An `output_config` with this format in it. Its other fields stay as they are.
fn with_format(config: &str, format: &str) -> String {
    let fields: IndexMap<String, &RawValue> = serde_json::from_str(config).unwrap_or_default();
    if let Some(null) = fields.get("format") {
        // A raw value is borrowed from the text itself, so that its address tells its place.
        let start = null.get().as_ptr() as usize - config.as_ptr() as usize;
        return format!("{}{format}{}", &config[..start], &config[start + null.get().len()..]);
    }
    let comma = if fields.is_empty() { "" } else { "," };
    let open = config.trim_end().strip_suffix('}').unwrap_or("{");
    format!(r#"{open}{comma}"format":{format}}}"#)
}

/// A `system` with these words at its end: after a string, or as the last of its blocks.
fn with_words(system: &str, words: &str) -> String {
    let system = system.trim_end();
    let words = json_string(words);
    let bare = &words.get()[1..];
    if let Some(open) = system.strip_suffix('"').filter(|open| open.len() > 1) {
        return format!(r"{open}\n\n{bare}");
    }
    let blocks: Vec<&RawValue> = serde_json::from_str(system).unwrap_or_default();
    if blocks.is_empty() {
        return words.get().to_owned();
    }
    let open = system.strip_suffix(']').unwrap_or(system);
    format!(r#"{open},{{"type":"text","text":{}}}]"#, words.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_joins_an_output_config_and_leaves_the_rest_as_it_is() {
        for (own, wanted) in [
            ("null", r#"{"format":F}"#),
            ("{}", r#"{"format":F}"#),
            ("{ }", r#"{ "format":F}"#),
            (r#"{"effort": "high" }"#, r#"{"effort": "high" ,"format":F}"#),
            (r#"{"z":1.50,"format" : null,"a":[{}]}"#, r#"{"z":1.50,"format" : F,"a":[{}]}"#),
        ] {
            assert_eq!(with_format(own, "F"), wanted, "{own}");
        }
    }

    #[test]
    fn words_stand_at_the_end_of_a_system_prompt_of_any_kind() {
        for (own, wanted) in [
            ("null", r#""Say \"so\".""#),
            (r#""""#, r#""Say \"so\".""#),
            ("[]", r#""Say \"so\".""#),
            (r#""Be \"brief\"""#, r#""Be \"brief\"\n\nSay \"so\".""#),
            (
                r#"[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}} ]"#,
                r#"[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}} ,{"type":"text","text":"Say \"so\"."}]"#,
            ),
        ] {
            assert_eq!(with_words(own, "Say \"so\"."), wanted, "{own}");
        }
    }
}
