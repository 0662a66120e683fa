//! The names of settings, as files, variables and flags spell them, turned into one layer each.
//!
//! A name that nothing is called becomes a problem that points to the one meant, and is left out,
//! so that the rest can be checked too. A key among the settings is refused here as well.

use ::config::{Map, Value, ValueKind};

use super::layers::Surroundings;
use super::problem::Problem;
use super::{Flags, knobs};

const PREFIX: &str = "PROMPTMILL_";

/// How a layer spells a key.
#[derive(Clone, Copy)]
enum Spelling {
    Dotted,
    Variable,
}

impl Spelling {
    fn spell(self, section: &str, key: &str) -> String {
        match (self, section) {
            (Self::Dotted, "models") => format!("models.\"NAME\".{key}"),
            (Self::Dotted, _) => format!("{section}.{key}"),
            (Self::Variable, "models") => format!("{PREFIX}MODELS__NAME__{}", key.to_uppercase()),
            (Self::Variable, _) => format!("{PREFIX}{}__{}", section.to_uppercase(), key.to_uppercase()),
        }
    }

    fn unknown(self, section: &str, key: &str) -> String {
        if is_inline_key(section, key) {
            return NO_KEY_HERE.to_owned();
        }
        match knobs::closest(section, key) {
            Some((section, key)) => {
                format!("is not a setting: did you mean {}?", self.spell(section, key))
            }
            None => "is not a setting: `promptmill config` lists them all".to_owned(),
        }
    }
}

const NO_KEY_HERE: &str = "a key does not belong here: put it into ANTHROPIC_API_KEY, or into a file of \
                           its own that api.key_file names";

fn is_inline_key(section: &str, key: &str) -> bool {
    let plain = key.to_lowercase().replace('-', "_");
    matches!(plain.as_str(), "anthropic_api_key" | "anthropic_auth_token")
        || (section == "api"
            && matches!(plain.as_str(), "key" | "api_key" | "apikey" | "x_api_key" | "token" | "auth_token"))
}

/// Builds layers out of what people wrote, and collects the names that nothing is called.
#[derive(Default)]
pub(super) struct Names {
    /// Names that nothing is called, and what to do.
    pub(super) problems: Vec<Problem>,
    /// Names that are not ours and were probably meant to be.
    pub(super) warnings: Vec<String>,
}

impl Names {
    fn problem(&mut self, key: impl Into<String>, origin: &str, what: impl Into<String>) {
        self.problems.push(Problem { key: key.into(), origin: origin.to_owned(), what: what.into() });
    }

    /// Checks a file's names; what has none is left out, so that the rest can be checked too.
    pub(super) fn table(&mut self, origin: &str, table: toml::Table) -> Map<String, Value> {
        let mut layer = Map::new();
        for (section, value) in table {
            let toml::Value::Table(keys) = value else {
                let what = if knobs::sections().contains(&section.as_str()) {
                    format!("is a section: write [{section}] and its settings below")
                } else {
                    Spelling::Dotted.unknown("", &section)
                };
                self.problem(section, origin, what);
                continue;
            };
            if section == "models" {
                self.models(origin, keys, &mut layer);
            } else if knobs::sections().contains(&section.as_str()) {
                for (key, value) in keys {
                    self.setting(origin, &mut layer, &[&section], &key, value);
                }
            } else {
                let what = match knobs::closest_section(&section) {
                    Some(meant) => format!("is not a section: did you mean [{meant}]?"),
                    None => format!("is not a section: there are {}", knobs::sections().join(", ")),
                };
                self.problem(format!("[{section}]"), origin, what);
            }
        }
        layer
    }

    fn models(&mut self, origin: &str, models: toml::Table, layer: &mut Map<String, Value>) {
        for (name, value) in models {
            let toml::Value::Table(keys) = value else {
                // `[models.claude-x.5]` without quotes ends here too: TOML splits it at the dot.
                let what = "is a model: write [models.\"NAME\"] with the name in quotes, its settings below";
                self.problem(format!("models.{name}"), origin, what);
                continue;
            };
            for (key, value) in keys {
                self.setting(origin, layer, &["models", &name], &key, value);
            }
        }
    }

    fn setting(
        &mut self,
        origin: &str,
        layer: &mut Map<String, Value>,
        path: &[&str],
        key: &str,
        value: toml::Value,
    ) {
        let name = || super::read::name(path, key);
        if !knobs::is_knob(path[0], key) {
            self.problem(name(), origin, Spelling::Dotted.unknown(path[0], key));
        } else if holds_a_key(&value) {
            self.problem(name(), origin, NO_KEY_HERE);
        } else if (path[0], key) == ("api", "headers") && !value.is_table() {
            self.problem(
                name(),
                origin,
                "must be a table: write [api.headers] and below it Name = \"value\"",
            );
        } else {
            put(layer, path, key, mark(origin, value));
        }
    }

    /// Builds the layer of the environment; `models` are the names that the layers below know.
    pub(super) fn environment(&mut self, around: &Surroundings, models: &[String]) -> Map<String, Value> {
        let mut layer = Map::new();
        // The general names first: ours, which say more, win over them.
        for (name, section, key) in
            [("DATABASE_URL", "database", "url"), ("ANTHROPIC_BASE_URL", "api", "base_url")]
        {
            if let Some(text) = self.variable(around, name) {
                put(&mut layer, &[section], key, marked(name, text));
            }
        }
        if let Some(text) = self.variable(around, "ANTHROPIC_CUSTOM_HEADERS") {
            self.headers(&mut layer, "ANTHROPIC_CUSTOM_HEADERS", &text);
        }
        for name in ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"] {
            // Read by the key itself; here only to say so where it cannot be read.
            self.variable(around, name);
        }
        for name in around.vars.keys() {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            if !rest.contains("__") {
                self.near_miss(name, rest);
            } else if let Some(text) = self.variable(around, name) {
                self.ours(&mut layer, name, rest, text, models);
            }
        }
        layer
    }

    fn variable(&mut self, around: &Surroundings, name: &str) -> Option<String> {
        if around.vars.get(name).is_some_and(Option::is_none) {
            self.problem(name, "", "is not UTF-8: set it again as plain text");
        }
        around.var(name).map(ToOwned::to_owned)
    }

    fn ours(
        &mut self,
        layer: &mut Map<String, Value>,
        name: &str,
        rest: &str,
        text: String,
        models: &[String],
    ) {
        let parts: Vec<&str> = rest.split("__").collect();
        let (section, key) = (parts[0].to_lowercase(), parts[parts.len() - 1].to_lowercase());
        let middle = parts[1..parts.len() - 1].join("__");
        if section == "models" && !middle.is_empty() && knobs::is_knob("models", &key) {
            match model_meant(&middle, models) {
                Some(model) => put(layer, &["models", &model], &key, marked(name, text)),
                None => self.problem(
                    name,
                    "",
                    format!(
                        "{middle} is no known model: describe it in a file as [models.\"its name\"] first"
                    ),
                ),
            }
        } else if (section == "models") == middle.is_empty() || !knobs::is_knob(&section, &key) {
            self.problem(name, "", Spelling::Variable.unknown(&section, &key));
        } else if (section.as_str(), key.as_str()) == ("api", "headers") {
            self.headers(layer, name, &text);
        } else {
            put(layer, &[&section], &key, marked(name, text));
        }
    }

    /// Warns of `PROMPTMILL_WORKER_CONCURRENCY`: not ours by its form, surely ours by intent.
    fn near_miss(&mut self, name: &str, rest: &str) {
        let flat = rest.to_lowercase();
        let meant = knobs::knobs().iter().find(|knob| format!("{}_{}", knob.section, knob.key) == flat);
        if let Some(knob) = meant {
            let meant = Spelling::Variable.spell(&knob.section, &knob.key);
            self.warnings.push(format!("{name} is ignored: did you mean {meant} (two underscores)?"));
        }
    }

    /// Reads lines of `Name: value`.
    fn headers(&mut self, layer: &mut Map<String, Value>, origin: &str, text: &str) {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            if let Some((header, value)) = line.split_once(':') {
                put(layer, &["api", "headers"], header.trim(), marked(origin, value.trim().to_owned()));
            } else {
                self.problem(origin, "", format!("line {} is not `Name: value`", number + 1));
            }
        }
    }

    /// Builds the layer of the flags.
    pub(super) fn flags(&mut self, flags: &Flags) -> Map<String, Value> {
        let mut layer = Map::new();
        for (name, text) in &flags.settings {
            let Some((path, key)) = name.rsplit_once('.') else {
                self.problem(name, "a flag", Spelling::Dotted.unknown("", name));
                continue;
            };
            let (section, model) = match path.split_once('.') {
                Some((section, model)) => (section, Some(model.trim_matches('"'))),
                None => (path, None),
            };
            if !knobs::is_knob(section, key) || (section == "models") != model.is_some() {
                self.problem(name, "a flag", Spelling::Dotted.unknown(section, key));
            } else if (section, key) == ("api", "headers") {
                self.headers(&mut layer, "a flag", text);
            } else {
                let path: Vec<&str> = [section].into_iter().chain(model).collect();
                put(&mut layer, &path, key, marked("a flag", text.clone()));
            }
        }
        if let Some(concurrency) = flags.concurrency {
            let text = concurrency.to_string();
            put(&mut layer, &["worker"], "concurrency", marked("--concurrency", text));
        }
        layer
    }
}

/// Finds the model that a variable means: shells allow neither dots nor dashes nor lower case in
/// names, so those are not told apart. A name that has them is taken as it is.
fn model_meant(written: &str, models: &[String]) -> Option<String> {
    let plain = |name: &str| name.to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    let mut meant = models.iter().filter(|known| plain(known) == plain(written));
    match (meant.next(), meant.next()) {
        (Some(one), None) => Some(one.clone()),
        _ if models.iter().any(|known| known == written) || written.contains(['-', '.']) => {
            Some(written.to_owned())
        }
        _ => None,
    }
}

fn holds_a_key(value: &toml::Value) -> bool {
    match value {
        toml::Value::String(text) => text.trim_start().starts_with("sk-ant-"),
        toml::Value::Table(table) => table.iter().any(|(name, value)| {
            holds_a_key(value) || matches!(name.to_lowercase().as_str(), "x-api-key" | "authorization")
        }),
        _ => false,
    }
}

fn marked(origin: &str, text: String) -> Value {
    Value::new(Some(&origin.to_owned()), text)
}

fn mark(origin: &str, value: toml::Value) -> Value {
    let origin_owned = origin.to_owned();
    let kind = match value {
        toml::Value::String(text) => ValueKind::String(text),
        toml::Value::Integer(number) => ValueKind::I64(number),
        toml::Value::Float(number) => ValueKind::Float(number),
        toml::Value::Boolean(yes) => ValueKind::Boolean(yes),
        // `version = 2026-10-21` is a date to TOML and the same thing to us.
        toml::Value::Datetime(date) => ValueKind::String(date.to_string()),
        toml::Value::Array(values) => {
            ValueKind::Array(values.into_iter().map(|value| mark(origin, value)).collect())
        }
        toml::Value::Table(table) => {
            ValueKind::Table(table.into_iter().map(|(key, value)| (key, mark(origin, value))).collect())
        }
    };
    Value::new(Some(&origin_owned), kind)
}

fn put(layer: &mut Map<String, Value>, path: &[&str], key: &str, value: Value) {
    let mut table = layer;
    for part in path {
        let next = table.entry((*part).to_owned()).or_insert_with(|| Map::<String, Value>::new().into());
        let ValueKind::Table(inner) = &mut next.kind else {
            unreachable!("sections are tables in every layer: only this function makes them")
        };
        table = inner;
    }
    table.insert(key.to_owned(), value);
}
