//! What workers write of the jobs they hold, or held.

use std::sync::Arc;
use std::time::Duration;

use promptmill::domain::job::{Lease, WorkerId};
use promptmill::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};
use promptmill::domain::outcome::{Fault, Usage};
use promptmill::store::Written;

use super::super::super::{answer, call};
use super::super::job::{Fate, Paid, Row, Said};
use super::super::rules;
use super::super::step::{End, Pick};
use super::{Closed, Hand, Play, claim, same};

/// Part 0 of each stream.
const HEAD: &str = r#"{"kind":"ask","model":"m","max_tokens":10,"messages":3}"#;

impl Play<'_> {
    pub(super) fn title(&self, at: usize) -> String {
        let hand = &self.hands[at];
        format!("{} (job {}, claim {})", self.name(hand.worker), hand.job + 1, hand.lease.claim)
    }

    pub(super) async fn checkpoint(&mut self, pick: Pick, length: usize) -> Result<(), String> {
        let Some(at) = self.hand(pick, |hand| hand.closed.is_none()) else { return Ok(()) };
        self.tell(format!("{} keeps {length} bytes of a stream", self.title(at)));
        let hand = &mut self.hands[at];
        let part =
            |part, content: String| Arc::new(Checkpoint { lease: hand.lease, seq: hand.seq, part, content });
        let mut parts = Vec::new();
        if hand.parts == 0 {
            parts.push(part(0, HEAD.to_owned()));
        }
        parts.push(part(hand.parts.max(1), "x".repeat(length)));
        let sizes: Vec<(i32, usize)> = parts.iter().map(|part| (part.part, part.content.len())).collect();
        hand.parts = hand.parts.max(1) + 1;
        let (lease, seq, worker) = (hand.lease, hand.seq, hand.worker);
        let kept = self.store(worker).checkpoint(&parts).await.map_err(|error| error.to_string())?;
        let keeps = self.model.jobs[self.hands[at].job].checkpoint(claim(&lease), seq, &sizes);
        same("whose parts are kept", &if keeps { vec![lease] } else { vec![] }, &kept)
    }

    /// The call that is under way is over: its row, here and in the model. The next one begins.
    pub(super) fn paid(&mut self, at: usize, fails: bool) -> (Call, Paid) {
        self.spent += 1;
        let spent = [self.spent, 2 * self.spent + 1, 3 * self.spent, self.spent % 7];
        let hand = &mut self.hands[at];
        let (seq, checkpointed) = (hand.seq, hand.parts > 0);
        let row = Row {
            run: hand.lease.run,
            late: false,
            error: fails.then_some("overloaded"),
            tokens: spent,
            folded: None,
            spoken: true,
            in_result: false,
        };
        let [input, output, cache_creation, cache_read] = spent;
        let call = Call {
            usage: Usage { input, output, cache_creation, cache_read },
            fault: fails.then(|| Fault::new("overloaded", None, "too much")),
            checkpointed,
            ..call(seq)
        };
        hand.known.add(spent);
        hand.seq += 1;
        hand.parts = 0;
        (call, Paid { seq, row, checkpointed })
    }

    pub(super) async fn append(&mut self, pick: Pick, fails: bool) -> Result<(), String> {
        let Some(at) = self.hand(pick, |hand| hand.closed.is_none()) else { return Ok(()) };
        let (call, paid) = self.paid(at, fails);
        self.tell(format!("{} appends call {}", self.title(at), call.seq));
        self.hands[at].appended = Some((call, paid));
        self.write_appended(at).await
    }

    pub(super) async fn append_again(&mut self, pick: Pick) -> Result<(), String> {
        // Before the next stream begins, as a second try is.
        let wanted = |hand: &Hand| hand.appended.is_some() && hand.parts == 0 && hand.closed.is_none();
        let Some(at) = self.hand(pick, wanted) else { return Ok(()) };
        self.tell(format!("{} appends the same call again", self.title(at)));
        self.write_appended(at).await
    }

    async fn write_appended(&mut self, at: usize) -> Result<(), String> {
        let hand = &self.hands[at];
        let (call, paid) = hand.appended.clone().expect("a call that was appended");
        let store = self.store(hand.worker);
        let late = store.append(&hand.lease, &call, WorkerId(hand.worker)).await;
        let late = late.map_err(|error| error.to_string())?;
        let lease = claim(&hand.lease);
        let expected = self.model.jobs[hand.job].append(lease, &paid);
        self.add(if late { ": late" } else { "" });
        if late {
            self.see("a late append");
        }
        same("whether it is late", &expected, &late)
    }

    /// The calls and the end that a worker sends.
    fn ending(&mut self, at: usize, end: End) -> (Arc<Settlement>, Said, Option<Paid>) {
        let fails = !rules::is_answer(end.outcome);
        // A stream that parts were kept of ends with a row of its own.
        let call = end.call || self.hands[at].parts > 0;
        let (call, paid) = match call.then(|| self.paid(at, fails)) {
            Some((call, paid)) => (Some(call), Some(paid)),
            None => (None, None),
        };
        let hand = &self.hands[at];
        let said = Said {
            outcome: end.outcome,
            text: Some(format!("by claim {} of run {}", hand.lease.claim, hand.lease.run)),
            failures: hand.failures + i32::from(fails),
        };
        let [input, output, cache_creation, cache_read] = hand.known.tokens;
        let answer = Answer {
            outcome: said.outcome,
            text: said.text.clone(),
            usage: Usage { input, output, cache_creation, cache_read },
            calls: hand.known.calls as i32,
            failures: said.failures,
            fault: fails.then(|| Fault::new("overloaded", None, "too much")),
            request_id: call.as_ref().and_then(|call| call.request_id.clone()),
            ..answer("")
        };
        (Arc::new(Settlement { lease: hand.lease, answer, call }), said, paid)
    }

    pub(super) async fn settle(&mut self, ends: &[End]) -> Result<(), String> {
        let mut batch: Vec<usize> = Vec::new();
        for &end in ends {
            // One process writes a batch, and of each job one end.
            let others = |hand: &Hand| {
                hand.closed.is_none()
                    && batch.first().is_none_or(|&first| self.hands[first].worker == hand.worker)
                    && batch.iter().all(|&other| self.hands[other].job != hand.job)
            };
            let Some(at) = self.hand(end.lease, others) else { continue };
            let (settlement, said, paid) = self.ending(at, end);
            self.hands[at].closed = Some(Closed::Settled(settlement, said, paid));
            batch.push(at);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let titles: Vec<String> = batch
            .iter()
            .map(|&at| match &self.hands[at].closed {
                Some(Closed::Settled(end, _, paid)) => {
                    let with = paid.as_ref().map_or(String::new(), |paid| format!(" with call {}", paid.seq));
                    format!("{} as {}{with}", self.title(at), end.answer.outcome)
                }
                _ => unreachable!("it was settled a moment ago"),
            })
            .collect();
        self.tell(format!("settles {}", titles.join(" and ")));
        self.write_settled(&batch).await
    }

    pub(super) async fn settle_again(&mut self, pick: Pick) -> Result<(), String> {
        let settled = |hand: &Hand| matches!(hand.closed, Some(Closed::Settled(..)));
        let Some(at) = self.hand(pick, settled) else { return Ok(()) };
        self.tell(format!("settles {} again", self.title(at)));
        self.write_settled(&[at]).await
    }

    async fn write_settled(&mut self, batch: &[usize]) -> Result<(), String> {
        let (mut ends, mut expected) = (Vec::new(), Vec::new());
        for &at in batch {
            let Some(Closed::Settled(end, said, paid)) = &self.hands[at].closed else { continue };
            let job = &mut self.model.jobs[self.hands[at].job];
            let lease = claim(&end.lease);
            let (held, claims) = (job.holds(lease), job.claims);
            expected.push((end.lease, job.settle(lease, said, paid.as_ref())));
            let adopted = !held && !job.gone && job.claims > claims;
            ends.push(end.clone());
            if adopted {
                self.see("an answer adopted");
            } else if held {
                self.see("a settle in time");
            }
        }
        let worker = self.hands[batch[0]].worker;
        let written = self.store(worker).settle(&ends, WorkerId(worker)).await;
        self.check_written(&expected, &written.map_err(|error| error.to_string())?)
    }

    fn check_written(&mut self, expected: &[(Lease, Fate)], written: &Written) -> Result<(), String> {
        let of = |wanted: Fate| {
            let mut leases: Vec<Lease> =
                expected.iter().filter(|(_, fate)| *fate == wanted).map(|(lease, _)| *lease).collect();
            leases.sort_by_key(|lease| lease.job);
            leases
        };
        let sorted = |leases: &[Lease]| {
            let mut leases = leases.to_vec();
            leases.sort_by_key(|lease| lease.job);
            leases
        };
        if !written.lost.is_empty() {
            self.add(": lost");
            self.see("a write that was lost");
        }
        same("what is done", &of(Fate::Done), &sorted(&written.done))?;
        same("what is lost", &of(Fate::Lost), &sorted(&written.lost))?;
        same("what is skipped", &Vec::new(), &written.skipped)
    }

    pub(super) async fn release(&mut self, pick: Pick, later: bool, with_call: bool) -> Result<(), String> {
        let Some(at) = self.hand(pick, |hand| hand.closed.is_none()) else { return Ok(()) };
        let with_call = with_call || self.hands[at].parts > 0;
        let (call, paid) = match with_call.then(|| self.paid(at, true)) {
            Some((call, paid)) => (Some(call), Some(paid)),
            None => (None, None),
        };
        let hand = &mut self.hands[at];
        let back = Release {
            lease: hand.lease,
            back: later.then_some(Duration::from_hours(1)).into(),
            failures: hand.failures + 1,
            deferrals: hand.deferrals + 2,
            reason: Some("overloaded".to_owned()),
            call,
        };
        hand.closed = Some(Closed::Released(Arc::new(back), paid));
        let when = if later { " for later" } else { "" };
        let with = if with_call { " with its call" } else { "" };
        self.tell(format!("{} puts it back{when}{with}", self.title(at)));
        self.write_released(at).await
    }

    pub(super) async fn release_again(&mut self, pick: Pick) -> Result<(), String> {
        let released = |hand: &Hand| matches!(hand.closed, Some(Closed::Released(..) | Closed::Waits(..)));
        let Some(at) = self.hand(pick, released) else { return Ok(()) };
        self.tell(format!("{} puts it back again", self.title(at)));
        self.write_released(at).await
    }

    pub(super) async fn write_released(&mut self, at: usize) -> Result<(), String> {
        let hand = &self.hands[at];
        let (lease, job) = (claim(&hand.lease), &mut self.model.jobs[hand.job]);
        let (back, fate) = match &hand.closed {
            Some(Closed::Released(back, paid)) => {
                let later = back.back.delay().is_some();
                (back, job.release(lease, later, back.failures, back.deferrals, paid.as_ref()))
            }
            Some(Closed::Waits(back, paid, turn)) => {
                (back, job.wait(lease, *turn, back.failures, back.deferrals, paid.as_ref()))
            }
            _ => return Ok(()),
        };
        let store = self.store(hand.worker);
        let written = store.release(std::slice::from_ref(back), WorkerId(hand.worker)).await;
        self.check_written(&[(self.hands[at].lease, fate)], &written.map_err(|error| error.to_string())?)
    }

    pub(super) async fn fill(&mut self, pick: Pick, text: bool) -> Result<(), String> {
        // Only who was told that the job is not its own any more fills.
        let wanted = |hand: &Hand| !self.model.jobs[hand.job].holds(claim(&hand.lease));
        let Some(at) = self.hand(pick, wanted) else { return Ok(()) };
        let what = if text { "its text" } else { "no text" };
        self.tell(format!("{} fills {what} in", self.title(at)));
        let hand = &self.hands[at];
        let text = text.then(|| format!("cut in claim {}", hand.lease.claim));
        let brought = Answer { text: text.clone(), ..answer("") };
        let said = self.store(hand.worker).fill(&hand.lease, &brought).await;
        let said = said.map_err(|error| error.to_string())?;
        let adds = self.model.jobs[hand.job].fill(claim(&hand.lease), text.as_deref());
        if adds {
            self.see("a result filled");
        }
        same("whether it was filled", &adds, &said)
    }

    pub(super) async fn absolve(&mut self, pick: Pick) -> Result<(), String> {
        let wanted = |hand: &Hand| !self.model.jobs[hand.job].holds(claim(&hand.lease));
        let Some(at) = self.hand(pick, wanted) else { return Ok(()) };
        self.tell(format!("{} says that it lives", self.title(at)));
        let hand = &self.hands[at];
        let absolved = self.store(hand.worker).absolve(&[hand.lease]).await;
        self.model.jobs[hand.job].absolve(claim(&hand.lease));
        absolved.map_err(|error| error.to_string())
    }
}
