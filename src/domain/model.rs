//! What is known of models: what the API lists of them, and what the configuration says.
//!
//! [`Catalogue`] is the API's word, [`Layers`] the configuration's. For each fact the first counts
//! that says it: what a person set, the API, what is built in. A name is looked for as it stands, then
//! without the date at its end; whether a model is retired is only asked of its very name.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use crate::domain::job::{Defaults, ModelFacts};

/// So many days before its retirement a model is worth a warning.
const NEAR_DAYS: i64 = 60;
/// Seconds of a day.
const DAY: i64 = 86_400;

/// Where a model stands in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifecycle {
    /// Open to everybody.
    Active,
    /// On its way out, but it answers. A `retires_at` in the past does not change that.
    Deprecated,
    /// Gone: calls that name it fail.
    Retired,
    /// A word that this version does not know.
    Other(String),
}

impl Lifecycle {
    /// Reads the API's word.
    pub fn read(word: &str) -> Self {
        match word {
            "active" => Self::Active,
            "deprecated" => Self::Deprecated,
            "retired" => Self::Retired,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// A model as the API lists it. Everything but its name may be missing: other servers list less.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// `id`.
    pub id: String,
    /// `lifecycle`.
    pub lifecycle: Option<Lifecycle>,
    /// `deprecated_at`.
    pub deprecated_at: Option<Timestamp>,
    /// `retires_at`: a plan, until `lifecycle` says that it happened.
    pub retires_at: Option<Timestamp>,
    /// `max_input_tokens`.
    pub max_input_tokens: Option<i64>,
    /// `max_tokens`.
    pub max_tokens: Option<i64>,
    /// `capabilities.structured_outputs.supported`.
    pub structured_outputs: Option<bool>,
}

impl Listed {
    fn is_retired(&self) -> bool {
        self.lifecycle == Some(Lifecycle::Retired)
    }

    /// Says when it was, or will be, retired: ` on 2026-11-30`, or nothing where nobody knows.
    fn on_its_date(&self) -> String {
        self.retires_at.map(|at| format!(" on {}", date(at))).unwrap_or_default()
    }

    /// Why nobody should rely on it much longer, at the time that the list was made.
    fn decline(&self, now: Option<Timestamp>) -> Option<String> {
        let days = self.retires_at.zip(now).map(|(at, now)| (at.as_second() - now.as_second()) / DAY);
        let id = &self.id;
        let when = || self.on_its_date();
        match (self.lifecycle.as_ref(), days) {
            (Some(Lifecycle::Retired), _) => Some(format!("model {id} was retired{}", when())),
            // Its end is overdue, but it has not come.
            (Some(Lifecycle::Deprecated), Some(..0)) => {
                Some(format!("model {id} is deprecated and was to be retired{}", when()))
            }
            (Some(Lifecycle::Deprecated), Some(days)) => {
                Some(format!("model {id} is deprecated and will be retired{}, {}", when(), in_days(days)))
            }
            (Some(Lifecycle::Deprecated), None) if self.retires_at.is_some() => {
                Some(format!("model {id} is deprecated and will be retired{}", when()))
            }
            (Some(Lifecycle::Deprecated), None) => Some(format!("model {id} is deprecated")),
            (_, Some(days @ 0..=NEAR_DAYS)) => {
                Some(format!("model {id} will be retired{}, {}", when(), in_days(days)))
            }
            _ => None,
        }
    }
}

fn in_days(days: i64) -> String {
    match days {
        0 => "within a day".to_owned(),
        1 => "in 1 day".to_owned(),
        days => format!("in {days} days"),
    }
}

fn date(at: Timestamp) -> String {
    at.to_string().chars().take(10).collect()
}

/// Returns a model's name without the date at its end.
pub fn undated(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((bare, date)) if date.len() == 8 && date.bytes().all(|digit| digit.is_ascii_digit()) => bare,
        _ => name,
    }
}

/// The models that the API lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// As the API lists them, newest first.
    models: Vec<Listed>,
    by_id: HashMap<String, usize>,
    by_bare_name: HashMap<String, usize>,
    /// When the list was made, by the API's clock.
    at: Option<Timestamp>,
}

impl Catalogue {
    /// Returns the catalogue of a list, newest first, which the API made at this time.
    pub fn new(models: Vec<Listed>, at: Option<Timestamp>) -> Self {
        let mut catalogue = Self { at, ..Self::default() };
        for (place, model) in models.iter().enumerate() {
            catalogue.by_id.entry(model.id.clone()).or_insert(place);
            let bare = catalogue.by_bare_name.entry(undated(&model.id).to_owned()).or_insert(place);
            // A short name means the newest that answers.
            if models[*bare].is_retired() && !model.is_retired() {
                *bare = place;
            }
        }
        catalogue.models = models;
        catalogue
    }

    /// Returns how many models it lists.
    pub fn len(&self) -> usize {
        self.models.len()
    }

    /// Says whether it lists none.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// Returns what is listed under a name, dates aside.
    pub fn find(&self, name: &str) -> Option<&Listed> {
        let place = self.by_id.get(name).or_else(|| self.by_bare_name.get(undated(name)));
        place.map(|place| &self.models[*place])
    }

    /// Says that a model is gone, in a sentence to be gone on with; `None`: it may be asked. Only of the
    /// very names that are listed: what a short name stands for, only the API knows.
    pub fn retired(&self, name: &str) -> Option<String> {
        let model = &self.models[*self.by_id.get(name)?];
        model.is_retired().then(|| format!("model {name} was retired{}", model.on_its_date()))
    }

    /// Says that a model is deprecated, near its retirement or retired, in a sentence to be gone on with.
    pub fn decline(&self, name: &str) -> Option<String> {
        let listed = self.find(name)?;
        let told = listed.decline(self.at)?;
        let alias = if listed.id == name { String::new() } else { format!("model {name}: ") };
        Some(alias + &told)
    }
}

/// What somebody says of a model; `None`: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// [`ModelFacts::max_tokens`].
    pub max_tokens: Option<i64>,
    /// [`ModelFacts::prefill`].
    pub prefill: Option<bool>,
    /// [`ModelFacts::window`].
    pub window: Option<i64>,
    /// [`ModelFacts::structured`].
    pub structured: Option<bool>,
}

impl Said {
    fn by(listed: &Listed) -> Self {
        Self {
            max_tokens: listed.max_tokens,
            prefill: None,
            window: listed.max_input_tokens,
            structured: listed.structured_outputs,
        }
    }
}

/// What the configuration says of models: over the API, and under it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// What a person set.
    pub own: HashMap<String, Said>,
    /// What is built in.
    pub built_in: HashMap<String, Said>,
}

impl Layers {
    /// Returns what is known of every model that anybody names.
    pub fn facts(&self, catalogue: &Catalogue) -> HashMap<String, ModelFacts> {
        let listed = catalogue.models.iter().map(|model| model.id.as_str());
        let configured = self.own.keys().chain(self.built_in.keys()).map(String::as_str);
        let all: BTreeSet<&str> = listed.flat_map(|id| [id, undated(id)]).chain(configured).collect();
        all.into_iter().map(|name| (name.to_owned(), self.facts_of(name, catalogue))).collect()
    }

    fn facts_of(&self, name: &str, catalogue: &Catalogue) -> ModelFacts {
        let of = |said: &HashMap<String, Said>| {
            said.get(name).or_else(|| said.get(undated(name))).copied().unwrap_or_default()
        };
        let own = of(&self.own);
        let api = catalogue.find(name).map(Said::by).unwrap_or_default();
        let built_in = of(&self.built_in);
        let max_tokens = own.max_tokens.or(api.max_tokens);
        ModelFacts {
            max_tokens: max_tokens.or(built_in.max_tokens).unwrap_or(Defaults::MAX_TOKENS_UNKNOWN),
            binding: max_tokens.is_some(),
            prefill: own.prefill.or(api.prefill).or(built_in.prefill).unwrap_or(false),
            window: own.window.or(api.window).or(built_in.window),
            structured: own.structured.or(api.structured).or(built_in.structured).unwrap_or(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-23T12:00:00Z";

    fn at(text: &str) -> Option<Timestamp> {
        (!text.is_empty()).then(|| text.parse().expect("a time"))
    }

    fn listed(id: &str, lifecycle: &str, retires: &str) -> Listed {
        let lifecycle = (!lifecycle.is_empty()).then(|| Lifecycle::read(lifecycle));
        Listed { id: id.to_owned(), lifecycle, retires_at: at(retires), ..Listed::default() }
    }

    #[test]
    fn a_model_in_decline_is_told_with_its_date_and_the_days_left() {
        for (lifecycle, retires, told) in [
            ("active", "", None),
            ("", "", None),
            ("ripening", "", None),
            ("active", "2027-06-01T00:00:00Z", None),
            ("active", "2027-01-22T13:00:00Z", Some("model m will be retired on 2027-01-22, in 60 days")),
            ("active", "2027-01-23T13:00:00Z", None),
            ("deprecated", "", Some("model m is deprecated")),
            (
                "deprecated",
                "2026-11-30T00:00:00Z",
                Some("model m is deprecated and will be retired on 2026-11-30, in 6 days"),
            ),
            (
                "deprecated",
                "2026-11-23T18:00:00Z",
                Some("model m is deprecated and will be retired on 2026-11-23, within a day"),
            ),
            (
                "deprecated",
                "2026-10-30T00:00:00Z",
                Some("model m is deprecated and was to be retired on 2026-10-30"),
            ),
            ("retired", "2025-10-28T00:00:00Z", Some("model m was retired on 2025-10-28")),
            ("retired", "", Some("model m was retired")),
        ] {
            let catalogue = Catalogue::new(vec![listed("m", lifecycle, retires)], at(NOW));
            assert_eq!(catalogue.decline("m").as_deref(), told, "{lifecycle} {retires}");
        }
        let undated = Catalogue::new(vec![listed("m", "deprecated", "2026-11-30T00:00:00Z")], None);
        let told = "model m is deprecated and will be retired on 2026-11-30";
        assert_eq!(undated.decline("m").as_deref(), Some(told));
    }

    #[test]
    fn only_the_lifecycle_retires_a_model_and_only_its_very_name_is_refused() {
        let catalogue = Catalogue::new(
            vec![
                listed("claude-a-1-20250301", "active", ""),
                listed("claude-a-1-20240620", "retired", "2025-10-28T00:00:00Z"),
                listed("claude-b-1-20240101", "retired", "2025-10-28T00:00:00Z"),
                listed("claude-c-1", "deprecated", "2025-10-28T00:00:00Z"),
            ],
            at(NOW),
        );
        for (name, retired) in [
            ("claude-a-1-20240620", Some("model claude-a-1-20240620 was retired on 2025-10-28")),
            ("claude-a-1-20250301", None),
            ("claude-a-1", None),
            // What a short name stands for, only the API knows.
            ("claude-b-1", None),
            ("claude-b-1-20240101", Some("model claude-b-1-20240101 was retired on 2025-10-28")),
            // Overdue is not gone.
            ("claude-c-1", None),
            ("somebody-else", None),
        ] {
            assert_eq!(catalogue.retired(name).as_deref(), retired, "{name}");
        }
        let told = catalogue.decline("claude-b-1").unwrap_or_default();
        assert_eq!(told, "model claude-b-1: model claude-b-1-20240101 was retired on 2025-10-28");
        assert_eq!(catalogue.find("claude-a-1").map(|model| model.id.as_str()), Some("claude-a-1-20250301"));
    }

    #[test]
    fn a_persons_word_is_over_the_apis_and_the_apis_over_what_is_built_in() {
        let api = |id: &str| Listed {
            max_tokens: Some(2000),
            max_input_tokens: Some(20_000),
            structured_outputs: Some(false),
            ..listed(id, "active", "")
        };
        let said = |tokens| Said { max_tokens: Some(tokens), ..Said::default() };
        let layers = Layers {
            own: HashMap::from([("own".to_owned(), said(1000)), ("own-and-listed".to_owned(), said(1000))]),
            built_in: HashMap::from([
                ("built-in".to_owned(), Said { prefill: Some(true), window: Some(30_000), ..said(3000) }),
                ("both".to_owned(), Said { prefill: Some(true), window: Some(30_000), ..said(3000) }),
            ]),
        };
        let models = vec![api("own-and-listed-20260101"), api("both"), api("listed")];
        let facts = layers.facts(&Catalogue::new(models, None));
        let facts = |max_tokens, binding, prefill, window, structured, name: &str| {
            let expected = ModelFacts { max_tokens, binding, prefill, window, structured };
            assert_eq!(facts.get(name), Some(&expected), "{name}");
        };
        facts(1000, true, false, None, true, "own");
        facts(1000, true, false, Some(20_000), false, "own-and-listed-20260101");
        facts(1000, true, false, Some(20_000), false, "own-and-listed");
        facts(3000, false, true, Some(30_000), true, "built-in");
        facts(2000, true, true, Some(20_000), false, "both");
        facts(2000, true, false, Some(20_000), false, "listed");
    }
}
