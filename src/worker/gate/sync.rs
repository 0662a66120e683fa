//! The table `gates`: what changed here is written, what changed there is taken over.

use std::time::Instant;

use super::{Block, Gates, Inner, ModelGate, batch_scope, key_scope};
use crate::domain::breaker::State;
use crate::store::{GateRow, Store, StoreError};

/// Longest block that a row can ask for; a person who means longer leaves `until` NULL.
const UNTIL_MAX: std::time::Duration = std::time::Duration::from_hours(366 * 24);

impl Gates {
    /// Takes over what others changed, then writes what changed here. A gate that both changed is
    /// theirs: a person's word stands.
    pub async fn sync(&self, store: &dyn Store, now: Instant) -> Result<(), StoreError> {
        for row in store.gates().await? {
            self.take_over(&row, now);
        }
        self.end_pauses(now);
        let changed: Vec<String> = self.lock().changed.iter().cloned().collect();
        for scope in changed {
            // Taken out before it is read: what changes while it is written is written again.
            if !self.lock().changed.remove(&scope) {
                continue;
            }
            let Some(row) = self.row(&scope, now) else { continue };
            let written = store.set_gate(&row).await;
            let mut inner = self.lock();
            match written {
                Ok(Some(generation)) => {
                    inner.seen.insert(scope, generation);
                }
                // Somebody was first: the next round reads what they wrote.
                Ok(None) => {}
                Err(err) => {
                    inner.changed.insert(scope);
                    return Err(err);
                }
            }
        }
        Ok(())
    }

    /// A rate limit's pause that the table shows, and that is over, is to be taken out of it.
    fn end_pauses(&self, now: Instant) {
        let mut inner = self.lock();
        let over: Vec<String> = inner
            .models
            .iter_mut()
            .filter(|(_, gate)| gate.limit_shown && gate.paused.is_none_or(|until| until <= now))
            .map(|(model, gate)| {
                gate.limit_shown = false;
                self.model_scope(model)
            })
            .collect();
        inner.changed.extend(over);
    }

    pub(super) fn take_over(&self, row: &GateRow, now: Instant) {
        let mut inner = self.lock();
        if inner.seen.get(&row.scope) == Some(&row.generation) {
            return;
        }
        inner.seen.insert(row.scope.clone(), row.generation);
        inner.changed.remove(&row.scope);
        let reason = row.reason.clone().unwrap_or_else(|| "blocked by hand".to_owned());
        let until = row.until_in.map(|left| now + left.min(UNTIL_MAX));
        let blocked = row.state == "blocked";
        if row.scope == key_scope(&inner.key.fingerprint) {
            inner.key.block = match (blocked, &inner.key.block) {
                (true, _) => Some(Block { reason, until }),
                // Opened by hand: the next call is a probe.
                (false, Some(block)) if row.state == "flowing" => {
                    Some(Block { until: Some(now), ..block.clone() })
                }
                (false, other) => other.clone(),
            };
            inner.key.probing = false;
        } else if let Some(model) = row.scope.strip_prefix(&format!("model:{}/", self.profile)) {
            self.take_over_model(&mut inner, model, row, reason, now);
        } else if let Some(lane) = row.scope.strip_prefix("batch:") {
            // A queue's name may hold a slash itself, and nobody can tell which one parts the two.
            for (at, _) in lane.match_indices('/') {
                let lane = (lane[..at].to_owned(), lane[at + 1..].to_owned());
                if blocked {
                    inner.batches.insert(lane, reason.clone());
                } else {
                    inner.batches.remove(&lane);
                    inner.refusals.remove(&lane);
                }
            }
        }
    }

    fn take_over_model(&self, inner: &mut Inner, model: &str, row: &GateRow, reason: String, now: Instant) {
        let gate = inner.models.entry(model.to_owned()).or_insert_with(|| ModelGate::new(self.settings, now));
        match (row.state.as_str(), row.until_in) {
            ("blocked", None) => gate.held = Some(reason),
            ("blocked", Some(left)) => {
                gate.held = None;
                gate.reason = Some(reason);
                gate.breaker.block_until(now + left.min(UNTIL_MAX));
            }
            ("flowing", _) => {
                gate.held = None;
                gate.reason = None;
                gate.breaker.free(now);
            }
            _ => {}
        }
    }

    /// The row of a scope as this process sees it.
    fn row(&self, scope: &str, now: Instant) -> Option<GateRow> {
        let inner = self.lock();
        let (state, reason, until) = if *scope == key_scope(&inner.key.fingerprint) {
            match &inner.key.block {
                None => ("flowing", None, None),
                Some(block) => ("blocked", Some(block.reason.clone()), block.until),
            }
        } else if let Some(model) = scope.strip_prefix(&format!("model:{}/", self.profile)) {
            let gate = inner.models.get(model)?;
            match (&gate.held, gate.breaker.state()) {
                (Some(reason), _) => ("blocked", Some(reason.clone()), None),
                (None, State::Flowing) => match gate.paused {
                    Some(until) if now < until => {
                        ("blocked", Some("the API's rate limit (429)".to_owned()), Some(until))
                    }
                    _ => ("flowing", None, None),
                },
                (None, State::Blocked { until }) => ("blocked", gate.reason.clone(), Some(until)),
                (None, State::Probing { until, .. }) => ("probing", gate.reason.clone(), Some(until)),
            }
        } else {
            let blocked = inner.batches.iter().find(|(lane, _)| batch_scope(lane) == *scope);
            match blocked {
                Some((_, reason)) => ("blocked", Some(reason.clone()), None),
                None => ("flowing", None, None),
            }
        };
        Some(GateRow {
            scope: scope.to_owned(),
            state: state.to_owned(),
            reason,
            until_in: until.map(|until| until.saturating_duration_since(now)),
            generation: inner.seen.get(scope).copied().unwrap_or(0),
        })
    }
}
