//! What doctor says of the models in use: retired ones, and those that will be.

use super::Finding;
use crate::domain::model::Catalogue;

/// What is said of a model that cannot be relied on.
const SUBJECT: &str = "models";

/// The models that the API lists, and those that somebody means to ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InUse {
    /// The API's list.
    pub catalogue: Catalogue,
    /// What queues and young jobs name.
    pub named: Vec<String>,
}

/// Looks at the default model and at all that are named in the database.
pub(super) fn findings(default: &str, in_use: &InUse) -> Vec<Finding> {
    let catalogue = &in_use.catalogue;
    if catalogue.is_empty() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if let Some(retired) = catalogue.retired(default) {
        findings.push(Finding::fail(SUBJECT, format!("{retired}: set defaults.model to another one")));
    } else if let Some(told) = catalogue.decline(default) {
        findings.push(Finding::warn(SUBJECT, format!("{told}: set defaults.model to another one")));
    }
    let named = in_use.named.iter().filter(|name| *name != default);
    findings.extend(named.filter_map(|name| {
        let told = catalogue.decline(name)?;
        Some(Finding::warn(SUBJECT, format!("{told}, and queues or young jobs name it: name another one")))
    }));
    if findings.is_empty() {
        let says = match catalogue.find(default) {
            Some(_) => format!("the API lists {}, and {default} among them", many(catalogue.len())),
            // An alias, or a server that answers to any name.
            None => {
                format!("the API lists {}, but not {default}: it is asked anyway", many(catalogue.len()))
            }
        };
        findings.push(Finding::ok(SUBJECT, says));
    }
    findings
}

fn many(models: usize) -> String {
    if models == 1 { "1 model".to_owned() } else { format!("{models} models") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;
    use crate::domain::model::{Lifecycle, Listed};

    #[test]
    fn models_on_their_way_out_are_told_and_a_retired_default_fails() {
        let listed = [("new", "active"), ("old", "deprecated"), ("gone", "retired")];
        let listed = listed.map(|(id, word)| Listed {
            id: id.to_owned(),
            lifecycle: Some(Lifecycle::read(word)),
            ..Listed::default()
        });
        let catalogue = Catalogue::new(listed.to_vec(), None);
        let (ok, warn, fail) = (Verdict::Ok, Verdict::Warn, Verdict::Fail);
        for (default, named, expected) in [
            ("new", &["new"][..], vec![(ok, "the API lists 3 models, and new among them")]),
            ("alias", &[][..], vec![(ok, "the API lists 3 models, but not alias: it is asked anyway")]),
            ("old", &["old"][..], vec![(warn, "model old is deprecated: set defaults.model to another one")]),
            ("gone", &[][..], vec![(fail, "model gone was retired: set defaults.model to another one")]),
            (
                "new",
                &["gone", "new", "old", "other"][..],
                vec![
                    (warn, "model gone was retired, and queues or young jobs name it: name another one"),
                    (warn, "model old is deprecated, and queues or young jobs name it: name another one"),
                ],
            ),
        ] {
            let named = named.iter().map(|name| (*name).to_owned()).collect();
            let found = findings(default, &InUse { catalogue: catalogue.clone(), named });
            let found: Vec<_> = found.iter().map(|one| (one.verdict, one.says.as_str())).collect();
            assert_eq!(found, expected, "{default}");
        }
        assert_eq!(findings("new", &InUse::default()), []);
    }
}
