//! The names of settings, as files, variables and flags spell them, turned into one layer each.
//!
//! A name that nothing is called becomes a problem that points to the one meant, and is left out,
//! so that the rest can be checked too. A key among the settings is refused here as well.

use ::config::{Map, Value, ValueKind};

use super::knobs::{self, NAME, Named};
use super::layers::Surroundings;
use super::problem::Problem;
use super::{Flags, read};

const PREFIX: &str = "PROMPTMILL_";

/// How a layer spells a key.
#[derive(Clone, Copy)]
enum Spelling {
    Dotted,
    Variable,
}

impl Spelling {
    fn spell(self, section: &str, key: &str) -> String {
        match (self, knobs::named(section)) {
            (Self::Dotted, Some(_)) => format!("{section}.\"{NAME}\".{key}"),
            (Self::Dotted, None) => format!("{section}.{key}"),
            (Self::Variable, Some(_)) => {
                format!("{PREFIX}{}__{NAME}__{}", section.to_uppercase(), key.to_uppercase())
            }
            (Self::Variable, None) => format!("{PREFIX}{}__{}", section.to_uppercase(), key.to_uppercase()),
        }
    }

    fn unknown(self, section: &str, key: &str) -> String {
        if is_inline_key(section, key) {
            return if section == "profiles" { NO_KEY_IN_A_PROFILE } else { NO_KEY_HERE }.to_owned();
        }
        if let Some(place) = elsewhere(section, key) {
            return format!("is not set here: {place}");
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

const NO_KEY_IN_A_PROFILE: &str = "a key does not belong here: put it into a variable that key_env names, or \
                                   into a file of its own that key_file names";

/// Where something is set that people look for in the configuration, and that is none of ours.
fn elsewhere(section: &str, key: &str) -> Option<String> {
    match (section, key) {
        ("queues", "paused" | "max_running" | "model" | "policy") => {
            Some(format!("it is a column of the table queues: UPDATE queues SET {key} = … WHERE name = …"))
        }
        ("defaults", "output_schema" | "deadline_seconds") => {
            Some(format!("{key} belongs to the policy of a job, or of its queue"))
        }
        _ => None,
    }
}

fn is_inline_key(section: &str, key: &str) -> bool {
    let plain = key.to_lowercase().replace('-', "_");
    matches!(plain.as_str(), "anthropic_api_key" | "anthropic_auth_token")
        || (has_an_account(section)
            && matches!(plain.as_str(), "key" | "api_key" | "apikey" | "x_api_key" | "token" | "auth_token"))
}

/// Whether a section says how an account is reached: what holds for its keys and headers.
fn has_an_account(section: &str) -> bool {
    matches!(section, "api" | "profiles")
}

fn is_headers(section: &str, key: &str) -> bool {
    has_an_account(section) && key == "headers"
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
            if !knobs::sections().contains(&section.as_str()) {
                let what = match knobs::closest_section(&section) {
                    Some(meant) => format!("is not a section: did you mean [{meant}]?"),
                    None => format!("is not a section: there are {}", knobs::sections().join(", ")),
                };
                self.problem(format!("[{section}]"), origin, what);
            } else if let Some(named) = knobs::named(&section) {
                self.named(origin, named, keys, &mut layer);
            } else {
                for (key, value) in keys {
                    self.setting(origin, &mut layer, &[&section], &key, value);
                }
            }
        }
        layer
    }

    fn named(&mut self, origin: &str, named: &Named, parts: toml::Table, layer: &mut Map<String, Value>) {
        let (section, one) = (named.section, named.one);
        for (name, value) in parts {
            let toml::Value::Table(keys) = value else {
                // `[models.claude-x.5]` without quotes ends here too: TOML splits it at the dot.
                let write =
                    format!("write [{section}.\"{NAME}\"] with the name in quotes, its settings below");
                let what = if knobs::is_knob(section, &name) {
                    format!("is set for one {one}: {write}")
                } else {
                    format!("is a {one}: {write}")
                };
                self.problem(format!("{section}.{name}"), origin, what);
                continue;
            };
            // A part that says nothing is there all the same.
            layer_at(layer, &[section, &name]);
            for (key, value) in keys {
                self.setting(origin, layer, &[section, &name], &key, value);
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
        let name = || read::name(path, key);
        if !knobs::is_knob(path[0], key) {
            self.problem(name(), origin, Spelling::Dotted.unknown(path[0], key));
        } else if holds_a_key(&value) {
            self.problem(name(), origin, NO_KEY_HERE);
        } else if is_headers(path[0], key) && !value.is_table() {
            let what = format!("must be a table: write [{}] and below it Name = \"value\"", name());
            self.problem(name(), origin, what);
        } else {
            put(layer, path, key, mark(origin, value));
        }
    }

    /// Builds the layer of the environment. `known` says which names the layers below have in a section.
    pub(super) fn environment(
        &mut self,
        around: &Surroundings,
        known: &dyn Fn(&Named) -> Vec<String>,
    ) -> Map<String, Value> {
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
            self.headers(&mut layer, &["api"], "ANTHROPIC_CUSTOM_HEADERS", &text);
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
                self.ours(&mut layer, name, rest, text, known);
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
        known: &dyn Fn(&Named) -> Vec<String>,
    ) {
        let parts: Vec<&str> = rest.split("__").collect();
        let (section, key) = (parts[0].to_lowercase(), parts[parts.len() - 1].to_lowercase());
        let middle = parts[1..parts.len() - 1].join("__");
        let named = knobs::named(&section);
        if named.is_some() == middle.is_empty() || !knobs::is_knob(&section, &key) {
            self.problem(name, "", Spelling::Variable.unknown(&section, &key));
            return;
        }
        let meant = match named {
            None => None,
            Some(named) => {
                let Some(meant) = name_meant(&middle, &known(named)) else {
                    let (section, one) = (named.section, named.one);
                    let what = format!(
                        "{middle} is no known {one}: describe it in a file as [{section}.\"its name\"] first"
                    );
                    self.problem(name, "", what);
                    return;
                };
                Some(meant)
            }
        };
        let path: Vec<&str> = [section.as_str()].into_iter().chain(meant.as_deref()).collect();
        if is_headers(&section, &key) {
            self.headers(layer, &path, name, &text);
        } else {
            put(layer, &path, &key, marked(name, text));
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
    fn headers(&mut self, layer: &mut Map<String, Value>, path: &[&str], origin: &str, text: &str) {
        let path: Vec<&str> = path.iter().copied().chain(["headers"]).collect();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            if let Some((header, value)) = line.split_once(':') {
                put(layer, &path, header.trim(), marked(origin, value.trim().to_owned()));
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
            let (section, part) = match path.split_once('.') {
                Some((section, part)) => (section, Some(part.trim_matches('"'))),
                None => (path, None),
            };
            let whole: Vec<&str> = [section].into_iter().chain(part).collect();
            if !knobs::is_knob(section, key) || knobs::named(section).is_some() != part.is_some() {
                self.problem(name, "a flag", Spelling::Dotted.unknown(section, key));
            } else if is_headers(section, key) {
                self.headers(&mut layer, &whole, "a flag", text);
            } else {
                put(&mut layer, &whole, key, marked("a flag", text.clone()));
            }
        }
        if let Some(concurrency) = flags.concurrency {
            let text = concurrency.to_string();
            put(&mut layer, &["worker"], "concurrency", marked("--concurrency", text));
        }
        layer
    }
}

/// Finds the name that a variable means: most shells and tools want capitals, and neither dots nor
/// dashes, so those are not told apart. A name that has dots, dashes or small letters is taken as it is.
fn name_meant(written: &str, known: &[String]) -> Option<String> {
    let plain = |name: &str| name.to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    let as_it_is = |letter: char| matches!(letter, '-' | '.') || letter.is_lowercase();
    let mut meant = known.iter().filter(|known| plain(known) == plain(written));
    match (meant.next(), meant.next()) {
        (Some(one), None) => Some(one.clone()),
        _ if known.iter().any(|known| known == written) || written.contains(as_it_is) => {
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
    layer_at(layer, path).insert(key.to_owned(), value);
}

/// Returns the table at a path, made where it is not there.
fn layer_at<'a>(layer: &'a mut Map<String, Value>, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut table = layer;
    for part in path {
        let next = table.entry((*part).to_owned()).or_insert_with(|| Map::<String, Value>::new().into());
        let ValueKind::Table(inner) = &mut next.kind else {
            unreachable!("sections are tables in every layer: only this function makes them")
        };
        table = inner;
    }
    table
}
