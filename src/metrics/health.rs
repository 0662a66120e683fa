//! Whether the process lives, and whether it works: each in one look, with reasons.
//!
//! A gate that blocks is no fault of this process: another one would meet the same gate. It is said
//! beside, so that whoever asks why nothing flows finds it.

use std::time::Duration;

use serde::Serialize;

use crate::worker::vitals::{Blocks, Phase, State, Vitals};

/// A database that said nothing for so long is out of reach: the tick asks it once a second.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Models that are named.
const NAMED_MAX: usize = 10;

/// One thing that is amiss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fault {
    /// For programs.
    reason: &'static str,
    /// For people.
    message: String,
}

/// An answer.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    status: &'static str,
    reasons: Vec<Fault>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notes: Option<Vec<String>>,
}

impl Health {
    fn of(reasons: Vec<Fault>, (well, unwell): (&'static str, &'static str)) -> Self {
        Self { status: if reasons.is_empty() { well } else { unwell }, reasons, notes: None }
    }

    /// Whether nothing is amiss.
    pub(super) fn is_well(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Returns it as JSON, on one line.
    pub(super) fn json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("words are JSON");
        text.push('\n');
        text
    }
}

fn fault(reason: &'static str, message: impl Into<String>) -> Fault {
    Fault { reason, message: message.into() }
}

/// Whether the loops turn.
pub(super) fn live(vitals: &Vitals, patience: Duration) -> Health {
    let stuck = vitals.stuck(patience).into_iter().map(|(of, still)| {
        fault("stuck", format!("{} has not turned for {} s", of.words(), still.as_secs()))
    });
    Health::of(stuck.collect(), ("alive", "stuck"))
}

/// Whether jobs are taken and brought to their ends.
pub(super) fn ready(vitals: &Vitals) -> Health {
    let notes = vitals.state().map(|state| notes(&state)).unwrap_or_default();
    Health { notes: Some(notes), ..Health::of(faults(vitals), ("ready", "unready")) }
}

/// What keeps this process from working.
pub(super) fn faults(vitals: &Vitals) -> Vec<Fault> {
    let mut faults = Vec::new();
    match vitals.phase() {
        Phase::Starting => {
            faults.push(fault("starting", "not among the workers yet: the database has not taken this one"));
        }
        Phase::Working => {}
        Phase::Draining => faults.push(fault("draining", "told to stop: nothing more is claimed")),
        Phase::Over => faults.push(fault("draining", "over")),
    }
    let Some(state) = vitals.state() else { return faults };
    if let Some(why) = state.outdated {
        faults.push(fault("schema", why));
    }
    if vitals.phase() != Phase::Working {
        return faults;
    }
    let silence = vitals.silence();
    if silence > SILENCE_MAX {
        faults.push(fault("database", format!("the database has not answered for {} s", silence.as_secs())));
    }
    if state.unheard > SILENCE_MAX.max(state.lease / 2) {
        let seconds = state.unheard.as_secs();
        faults.push(fault("heartbeat", format!("the database has taken no heartbeat for {seconds} s")));
    }
    if state.stalled {
        let many = state.unwritten.in_file + state.unwritten.in_no_file();
        faults.push(fault(
            "unwritten",
            format!("the database does not take what was answered ({many} waiting)"),
        ));
    }
    faults
}

/// What is no fault of ours, and good to know.
fn notes(state: &State) -> Vec<String> {
    let Blocks { profiles, models, batches } = &state.blocks;
    let mut notes = Vec::new();
    for profile in profiles {
        notes.push(format!("the key of profile {profile} is blocked"));
    }
    for (profile, model) in models.iter().take(NAMED_MAX) {
        notes.push(format!("model {model} is blocked for profile {profile}"));
    }
    if models.len() > NAMED_MAX {
        notes.push(format!("{} more models are blocked", models.len() - NAMED_MAX));
    }
    if *batches > 0 {
        notes.push(format!("{batches} {} stopped", if *batches == 1 { "batch is" } else { "batches are" }));
    }
    notes
}
