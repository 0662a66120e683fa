//! The layers: what was set where. Defaults, a file, the environment, flags; later wins.
//!
//! Finds and reads the sources and merges them with the `config` crate. What names mean is
//! checked in [`super::names`], what values mean in [`super::read`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ::config::{Map, Source, Value, ValueKind};

use super::knobs::{DEFAULT_TOML, NAME, NAMED, Named};
use super::names::Names;
use super::problem::Problem;
use super::{ConfigError, Flags};

/// The origin of what nobody set.
pub(super) const DEFAULT: &str = "default";
/// The file that is read when none is named.
const FILE: &str = "promptmill.toml";

/// The environment and the working folder: all that a configuration takes from the process.
///
/// Its `Debug` tells no values: the environment holds keys.
#[derive(Clone, Default)]
pub struct Surroundings {
    /// `None`: the value is not Unicode.
    pub(super) vars: BTreeMap<String, Option<String>>,
    dir: PathBuf,
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Surroundings {
    /// Returns those of this process. The one place where the environment is read.
    pub fn of_process() -> Self {
        Self::new(std::env::vars_os(), ".")
    }

    /// Returns surroundings made up by the caller; `dir` is where `promptmill.toml` is looked for.
    pub fn new<K, V>(vars: impl IntoIterator<Item = (K, V)>, dir: impl Into<PathBuf>) -> Self
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let vars = vars
            .into_iter()
            // A name that is not Unicode is none of ours.
            .filter_map(|(name, value)| {
                Some((name.into().into_string().ok()?, value.into().into_string().ok()))
            })
            .collect();
        Self { vars, dir: dir.into() }
    }

    /// Returns a variable; an empty one is not set, one that is not Unicode neither.
    pub(super) fn var(&self, name: &str) -> Option<&str> {
        self.vars.get(name)?.as_deref().filter(|value| !value.is_empty())
    }
}

/// The layers on top of each other.
pub(super) struct Merged {
    /// Section, key, value; each value with its origin.
    pub(super) root: Map<String, Value>,
    /// The file that was read.
    pub(super) file: Option<PathBuf>,
    /// Names that nothing is called.
    pub(super) problems: Vec<Problem>,
    /// What is probably a mistake, but no reason to stop.
    pub(super) warnings: Vec<String>,
}

/// Reads and merges all layers. Fails only where a file cannot be read at all.
pub(super) fn merge(flags: &Flags, around: &Surroundings) -> Result<Merged, ConfigError> {
    let mut names = Names::default();
    let mut defaults =
        names.table(DEFAULT, toml::from_str(DEFAULT_TOML).expect("default.toml is TOML: a test reads it"));
    let file = find_file(flags, around)?;
    let in_file = match &file {
        Some(path) => names.table(&path.display().to_string(), read_file(path)?),
        None => Map::new(),
    };
    let patterns: Vec<_> =
        NAMED.iter().filter_map(|named| Some((named, pattern(&mut defaults, named)?))).collect();
    let known = |named: &Named| {
        let mut names = part_names(named, &[&defaults, &in_file]);
        let always = named.always.iter().map(|&name| name.to_owned());
        names.extend(always.filter(|name| !names.contains(name)).collect::<Vec<_>>());
        names
    };
    let in_env = names.environment(around, &known);
    let in_flags = names.flags(flags);
    for (named, pattern) in patterns {
        let parts = part_names(named, &[&in_file, &in_env, &in_flags]);
        let parts = parts.into_iter().map(|name| (name, pattern.clone())).collect::<Map<_, _>>();
        defaults.insert(named.section.to_owned(), parts.into());
    }
    let merged = ::config::Config::builder()
        .add_source(Layer(defaults))
        .add_source(Layer(in_file))
        .add_source(Layer(in_env))
        .add_source(Layer(in_flags))
        .build()
        .map_err(|error| ConfigError::one("the layers", "", error.to_string()))?;
    let ValueKind::Table(root) = merged.cache.kind else { unreachable!("the crate merges tables") };
    Ok(Merged { root, file, problems: names.problems, warnings: names.warnings })
}

/// One layer, its values marked with where they come from.
#[derive(Clone)]
struct Layer(Map<String, Value>);

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Layer(…)")
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        Ok(self.0.clone())
    }
}

fn find_file(flags: &Flags, around: &Surroundings) -> Result<Option<PathBuf>, ConfigError> {
    let named = match (&flags.config_file, around.var("PROMPTMILL_CONFIG")) {
        (Some(path), _) => Some((path.clone(), "--config")),
        (None, Some(path)) => Some((PathBuf::from(path), "PROMPTMILL_CONFIG")),
        (None, None) => None,
    };
    let Some((path, by)) = named else {
        let here = if around.dir == Path::new(".") { PathBuf::from(FILE) } else { around.dir.join(FILE) };
        return Ok(here.is_file().then_some(here));
    };
    let why = match path.metadata() {
        Ok(there) if there.is_file() => return Ok(Some(path)),
        Ok(_) => "is no file: give the path of a TOML file".to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            "there is no such file: give the path of a TOML file".to_owned()
        }
        // It may well be there, in a folder that others may not look into.
        Err(error) => format!("cannot be read by this user: {error}"),
    };
    Err(ConfigError::one(path.display().to_string(), by, why))
}

fn read_file(path: &Path) -> Result<toml::Table, ConfigError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::one(&name, "", format!("cannot be read: {error}")))?;
    toml::from_str(&text).map_err(|error| {
        // Only line and message: the error's own words quote the line, and with it a password.
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        ConfigError::one(&name, format!("line {line}"), format!("not TOML: {}", error.message()))
    })
}

/// Takes the part out of the defaults that stands for any name.
fn pattern(defaults: &mut Map<String, Value>, named: &Named) -> Option<Value> {
    match &mut defaults.get_mut(named.section)?.kind {
        ValueKind::Table(parts) => parts.remove(NAME),
        _ => None,
    }
}

/// Returns the names that layers have in a section, each once.
fn part_names(of: &Named, layers: &[&Map<String, Value>]) -> Vec<String> {
    let tables = layers.iter().filter_map(|layer| match &layer.get(of.section)?.kind {
        ValueKind::Table(parts) => Some(parts.keys().cloned()),
        _ => None,
    });
    let mut names: Vec<String> = tables.flatten().collect();
    names.sort();
    names.dedup();
    names
}
