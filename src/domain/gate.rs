//! A gate: calls flow through it, or none do, or one asks whether they may again.
//!
//! The same for the breaker of a model, for a key that may not spend and for a batch whose jobs are
//! all refused; all daemons share each gate through its row in the table `gates`. Pure: instants are
//! passed in. For those who know the pattern: `Flowing` is closed, `Blocked` open, `Probing` half-open.

use std::time::{Duration, Instant};

/// Returns the name of a batch's gate, as `gates.scope` says it; `''` are a queue's jobs without a label.
///
/// A slash in the queue's name is written `%2F` and a percent sign `%25`, so that no other batch of another
/// queue has the same name. The SQL that builds this name does the same.
pub fn batch_scope(queue: &str, batch: &str) -> String {
    format!("batch:{}/{batch}", queue.replace('%', "%25").replace('/', "%2F"))
}

/// Returns the queue and the batch of a gate's name; nothing where no batch's gate is named so.
pub fn batch_of_scope(scope: &str) -> Option<(String, String)> {
    let (queue, batch) = scope.strip_prefix("batch:")?.split_once('/')?;
    let queue = queue.replace("%2F", "/").replace("%25", "%");
    // Another way to write the same queue would be another row for the same gate.
    (batch_scope(&queue, batch) == scope).then(|| (queue, batch.to_owned()))
}

/// What a gate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls flow.
    Flowing,
    /// None flow before this instant, then one probe may; `None`: only a person opens it.
    Blocked {
        /// When a probe may go.
        until: Option<Instant>,
    },
    /// One probe is out, ours or another daemon's.
    Probing {
        /// Which.
        number: u64,
        /// When it counts as hung.
        until: Instant,
    },
}

/// What may be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Go ahead.
    Flow,
    /// Take the probe and go ahead alone: everybody waits for it.
    Probe,
    /// Not now.
    Blocked,
}

/// A gate as all daemons share it, but for its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    state: State,
    reason: Option<String>,
    /// How often it blocked since it last flowed: each block may last longer than the one before.
    blocks: u32,
    probes: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: State::Flowing, reason: None, blocks: 0, probes: 0 }
    }
}

impl Gate {
    /// What it does.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Why it does not flow.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// How often it blocked since it last flowed.
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Whether only a person opens it.
    pub const fn is_held(&self) -> bool {
        matches!(self.state, State::Blocked { until: None })
    }

    /// Whether a call may be made.
    pub fn peek(&self, now: Instant) -> Admission {
        match self.state {
            State::Flowing => Admission::Flow,
            State::Blocked { until: Some(until) } | State::Probing { until, .. } if now >= until => {
                Admission::Probe
            }
            State::Blocked { .. } | State::Probing { .. } => Admission::Blocked,
        }
    }

    /// Takes the probe; returns its number, which goes with its report.
    pub fn probe(&mut self, lease: Duration, now: Instant) -> u64 {
        self.probes += 1;
        self.state = State::Probing { number: self.probes, until: now + lease };
        self.probes
    }

    /// Whether this probe is the one that everybody waits for.
    pub fn awaits(&self, probe: Option<u64>) -> bool {
        matches!(self.state, State::Probing { number, .. } if Some(number) == probe)
    }

    /// Opens it.
    pub fn flow(&mut self) {
        self.state = State::Flowing;
        self.reason = None;
        self.blocks = 0;
    }

    /// Blocks it for so long; `None`: until a person opens it.
    pub fn block(&mut self, reason: &str, pause: Option<Duration>, now: Instant) {
        self.blocks = self.blocks.saturating_add(1);
        self.reason = Some(reason.to_owned());
        self.state = State::Blocked { until: pause.map(|pause| now + pause) };
    }

    /// A probe came back without an answer to its question: the next one may go at once.
    pub fn give_back(&mut self, probe: u64, now: Instant) {
        if self.awaits(Some(probe)) {
            self.state = State::Blocked { until: Some(now) };
        }
    }

    /// Opens it because a person says so: the next call is a probe.
    pub fn free(&mut self, now: Instant) {
        if self.state != State::Flowing {
            self.state = State::Blocked { until: Some(now) };
        }
        self.blocks = 0;
    }

    /// Takes over that somebody else blocked it.
    pub fn blocked_elsewhere(&mut self, reason: String, until: Option<Instant>, blocks: u32) {
        (self.state, self.reason, self.blocks) = (State::Blocked { until }, Some(reason), blocks);
    }

    /// Takes over that somebody else's probe is out until then.
    pub fn probed_elsewhere(&mut self, until: Instant, blocks: u32) {
        self.probes += 1;
        (self.state, self.blocks) = (State::Probing { number: self.probes, until }, blocks);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slash_belongs_to_the_batch_unless_it_is_written_as_a_queues() {
        let pair = |queue: &str, batch: &str| Some((queue.to_owned(), batch.to_owned()));
        assert_eq!(batch_of_scope("batch:q/2026/11"), pair("q", "2026/11"));
        assert_eq!(batch_of_scope("batch:team%2Fetl/b"), pair("team/etl", "b"));
        assert_eq!(batch_of_scope("batch:50%25/50%"), pair("50%", "50%"));
        assert_eq!(batch_of_scope("batch:q/"), pair("q", ""));
        for odd in ["batch:b", "batch:50%/b", "batch:a%2fb/c", "model:p/m"] {
            assert_eq!(batch_of_scope(odd), None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn each_batch_of_each_queue_has_a_name_of_its_own(queue in "[a%/2F5]{0,6}", batch in "[a%/2F5]{0,6}") {
            prop_assert_eq!(batch_of_scope(&batch_scope(&queue, &batch)), Some((queue, batch)));
        }
    }
}
