//! What is known of models while the mill runs: the configuration at first, with what the API lists
//! from its first answer on, asked for again every day.
//!
//! The question is the check of the key as well, and nothing waits for it. A server that lists no
//! models is as good as any other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Mill;
use super::gate::Refusal;
use super::profiles::ProfileId;
use crate::domain::job::{Defaults, Job};
use crate::domain::model::Catalogue;
use crate::domain::outcome::{Failure, Fault};
use crate::domain::retry;

/// How often the list is asked for, and how often one model is warned about.
const DAY: Duration = Duration::from_hours(24);
/// How often it is looked whether the list is due: one that could not be had is asked for again then.
const LOOK: Duration = Duration::from_mins(10);

/// What is known of models, replaced as a whole.
#[derive(Debug)]
pub struct Models {
    known: RwLock<Known>,
    /// When the API last said which models it has, or that it does not say.
    asked: Mutex<Option<Instant>>,
    /// When each model in decline was last warned about.
    warned: Mutex<HashMap<String, Instant>>,
}

#[derive(Debug, Clone)]
struct Known {
    defaults: Arc<Defaults>,
    catalogue: Arc<Catalogue>,
}

impl Models {
    /// Returns what the configuration knows.
    pub fn new(defaults: Defaults) -> Self {
        let known = Known { defaults: Arc::new(defaults), catalogue: Arc::default() };
        Self { known: RwLock::new(known), asked: Mutex::default(), warned: Mutex::default() }
    }

    fn known(&self) -> Known {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn asked(&self, now: Instant) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Whether the list is to be asked for.
    fn is_due(&self, now: Instant) -> bool {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_none_or(|asked| now.saturating_duration_since(asked) >= DAY)
    }

    /// Says that a model is in decline, once a day each.
    fn warning(&self, catalogue: &Catalogue, model: &str, now: Instant) -> Option<String> {
        let told = catalogue.decline(model)?;
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        warned.retain(|_, at| now.saturating_duration_since(*at) < DAY);
        // Only a listed model gets here: there are no more of them than the list is long, but for dates.
        let fresh = warned.len() < super::gate::REMEMBERED && !warned.contains_key(model);
        fresh.then(|| {
            warned.insert(model.to_owned(), now);
            told
        })
    }
}

impl Mill {
    /// What a row that does not say gets, with what is known of models now. Taken once for each claim.
    pub fn defaults(&self) -> Arc<Defaults> {
        self.models.known().defaults
    }

    /// Warns where a model that is in use will not be there for long.
    fn uses_model(&self, catalogue: &Catalogue, model: &str) {
        if let Some(told) = self.models.warning(catalogue, model, Instant::now()) {
            tracing::warn!(gate.model = model, "{told}: name another one");
        }
    }

    /// Refuses to ask a model that the API has retired. A job that names it is at fault itself; where
    /// it is the queue's or the default, no job is, and the model's gate blocks.
    pub fn is_not_retired(&self, job: &Job, now: Instant) -> Result<(), Refusal> {
        let listed = self.profiles[self.profiles.of(&job.queue)].place.is_empty();
        let catalogue = self.models.known().catalogue;
        let Some(retired) = catalogue.retired(&job.model).filter(|_| listed) else {
            self.uses_model(&catalogue, &job.model);
            return Ok(());
        };
        if job.model_named {
            let why = format!("{retired}: insert the job again with another model");
            return Err(Refusal::Retired(Fault::new("invalid_job", Some("model_retired"), why)));
        }
        let why = format!("{retired}: set defaults.model, or the queue's, to another one");
        self.gates.hold_model(job, &why, now);
        Err(Refusal::Blocked(why))
    }
}

/// Asks the API which models there are, and takes over what it says. The failure is the key check's:
/// that there is no such list is none.
pub async fn learn(mill: &Mill) -> Result<(), Failure> {
    match mill.profiles[ProfileId::DEFAULT].claude.models().await {
        Ok(catalogue) => take_over(mill, catalogue),
        Err(failure) if lists_none(&failure) => {
            let reason = retry::reason(&failure);
            tracing::debug!("the API lists no models ({reason}): what the configuration says counts");
        }
        Err(failure) => return Err(failure),
    }
    mill.models.asked(Instant::now());
    Ok(())
}

fn take_over(mill: &Mill, catalogue: Catalogue) {
    let models = mill.settings.models.facts(&catalogue);
    tracing::debug!(models.listed = catalogue.len(), "the API lists {} models", catalogue.len());
    let catalogue = Arc::new(catalogue);
    let default = {
        let mut known = mill.models.known.write().unwrap_or_else(PoisonError::into_inner);
        let defaults = Defaults { models, ..Defaults::clone(&known.defaults) };
        let default = defaults.model.clone();
        *known = Known { defaults: Arc::new(defaults), catalogue: Arc::clone(&catalogue) };
        default
    };
    mill.uses_model(&catalogue, &default);
}

/// Whether a server has no list of models, or something else in its place.
fn lists_none(failure: &Failure) -> bool {
    match failure {
        Failure::Api(error) => matches!(error.status, 400 | 404 | 405 | 422 | 501),
        Failure::Unreadable(_) => true,
        Failure::Unsent(_)
        | Failure::Lost(..)
        | Failure::TooLarge(_)
        | Failure::Unended
        | Failure::Stopped => false,
    }
}

/// Asks again every day, and sooner where nobody answered, until told to stop.
pub async fn learn_daily(mill: Arc<Mill>, stop: CancellationToken) {
    while tokio::time::timeout(LOOK, stop.cancelled()).await.is_err() {
        if !mill.models.is_due(Instant::now()) {
            continue;
        }
        if let Some(Err(failure)) = stop.run_until_cancelled(learn(&mill)).await {
            let reason = retry::reason(&failure);
            tracing::debug!("failed to ask which models there are: {reason}; going on with what is known");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::Policy;
    use crate::domain::model::{Lifecycle, Listed};

    fn models(lifecycles: &[(&str, &str)]) -> Models {
        let defaults = Defaults {
            model: "m".into(),
            max_tokens: None,
            policy: Policy::default(),
            mcp_servers: false,
            cache_turns: true,
            request_max: 1 << 25,
            models: HashMap::new(),
        };
        let models = Models::new(defaults);
        let listed = lifecycles.iter().map(|(id, word)| Listed {
            id: (*id).to_owned(),
            lifecycle: Some(Lifecycle::read(word)),
            ..Listed::default()
        });
        let catalogue = Catalogue::new(listed.collect(), None);
        models.known.write().expect("nobody panicked").catalogue = Arc::new(catalogue);
        models
    }

    #[test]
    fn a_model_in_decline_is_warned_about_once_a_day() {
        let models = models(&[("old", "deprecated"), ("older", "deprecated"), ("new", "active")]);
        let start = Instant::now();
        for (model, after, warned) in [
            ("new", Duration::ZERO, false),
            ("nobody", Duration::ZERO, false),
            ("old", Duration::ZERO, true),
            ("old", Duration::from_secs(1), false),
            ("older", Duration::from_secs(2), true),
            ("old", Duration::from_hours(23), false),
            ("old", DAY, true),
            ("old", DAY + Duration::from_secs(1), false),
            ("older", DAY + Duration::from_secs(2), true),
        ] {
            let told = models.warning(&models.known().catalogue, model, start + after);
            assert_eq!(told.is_some(), warned, "{model} after {after:?}");
        }
    }

    #[test]
    fn the_list_is_asked_for_until_it_was_had_and_again_a_day_later() {
        let models = models(&[]);
        let start = Instant::now();
        assert!(models.is_due(start));
        models.asked(start);
        assert!(!models.is_due(start + LOOK));
        assert!(!models.is_due(start + Duration::from_hours(23)));
        assert!(models.is_due(start + DAY));
    }
}
