//! One write on its way to the database, and the same write with less in it.

use std::sync::Arc;

use crate::domain::job::{Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Release, Settlement};
use crate::domain::outcome::{Fault, Outcome};
use crate::failpoint::failpoint;
use crate::store::{Store, StoreError, Written};
use crate::worker::spool::line;

/// A write. Cheap to clone: the answer in it is shared.
#[derive(Debug, Clone)]
pub(super) enum Write {
    Settle(Arc<Settlement>),
    Release(Arc<Release>),
    Append(Lease, Arc<Call>),
    Fill(Lease, Arc<Answer>),
}

/// Writes of one kind go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Settle,
    Release,
    /// Appends and fills: a statement each.
    Alone,
}

/// What the database said to writes that it took.
#[derive(Debug)]
pub(super) enum Said {
    /// Of a batch.
    Batch(Written),
    /// Of a row of the ledger: whether it is late.
    Late(bool),
    /// Of a fill.
    Filled,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Settle, Self::Release, Self::Alone];

    pub(super) const fn index(self) -> usize {
        match self {
            Self::Settle => 0,
            Self::Release => 1,
            Self::Alone => 2,
        }
    }
}

impl From<line::Write> for Write {
    fn from(write: line::Write) -> Self {
        match write {
            line::Write::Settle(settlement) => Self::Settle(Arc::new(settlement)),
            line::Write::Release(release) => Self::Release(Arc::new(release)),
            line::Write::Append { lease, call } => Self::Append(lease, Arc::new(call)),
            line::Write::Fill { lease, answer } => Self::Fill(lease, Arc::new(answer)),
        }
    }
}

impl Write {
    fn settlement(self) -> Option<Arc<Settlement>> {
        if let Self::Settle(settlement) = self { Some(settlement) } else { None }
    }

    fn release(self) -> Option<Arc<Release>> {
        if let Self::Release(release) = self { Some(release) } else { None }
    }

    pub(super) fn lease(&self) -> Lease {
        match self {
            Self::Settle(settlement) => settlement.lease,
            Self::Release(release) => release.lease,
            Self::Append(lease, _) | Self::Fill(lease, _) => *lease,
        }
    }

    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Settle(_) => Kind::Settle,
            Self::Release(_) => Kind::Release,
            Self::Append(..) | Self::Fill(..) => Kind::Alone,
        }
    }

    /// About how many bytes of answers are in it.
    pub(super) fn bytes(&self) -> usize {
        let of_answer = |answer: &Answer| {
            len(answer.text.as_ref()) + len(answer.content.as_ref()) + len(answer.output.as_ref())
        };
        let of_call = |call: &Call| len(call.content.as_ref()) + len(call.usage_raw.as_ref());
        match self {
            Self::Settle(settlement) => {
                of_answer(&settlement.answer) + settlement.call.as_ref().map_or(0, of_call)
            }
            Self::Release(release) => release.call.as_ref().map_or(0, of_call),
            Self::Append(_, call) => of_call(call),
            Self::Fill(_, answer) => of_answer(answer),
        }
    }

    /// Whether something that was paid for is in it.
    pub(super) fn brings_an_answer(&self) -> bool {
        match self {
            Self::Settle(settlement) => settlement.answer.text.is_some() || settlement.call.is_some(),
            Self::Release(release) => release.call.is_some(),
            Self::Append(..) => true,
            Self::Fill(..) => false,
        }
    }

    /// Returns it as it stands in a line.
    pub(super) fn on_paper(&self) -> line::Write {
        match self.clone() {
            Self::Settle(settlement) => line::Write::Settle(Arc::unwrap_or_clone(settlement)),
            Self::Release(release) => line::Write::Release(Arc::unwrap_or_clone(release)),
            Self::Append(lease, call) => line::Write::Append { lease, call: Arc::unwrap_or_clone(call) },
            Self::Fill(lease, answer) => line::Write::Fill { lease, answer: Arc::unwrap_or_clone(answer) },
        }
    }

    /// The same with less of what the database may hold against it: first without what the API
    /// brought, then with hardly more than the state. `whole`: where the whole of it is kept.
    pub(super) fn with_less(self, refusals: u8, why: &str, whole: Option<&str>) -> Self {
        let kept = whole.map(|path| format!("; it is kept in {path}")).unwrap_or_default();
        match self {
            Self::Settle(settlement) => {
                let mut bare = Arc::unwrap_or_clone(settlement);
                make_bare(&mut bare, refusals, why, &kept);
                Self::Settle(Arc::new(bare))
            }
            Self::Release(release) => {
                let mut bare = Arc::unwrap_or_clone(release);
                bare.reason = Some(format!("what had arrived could not be stored{kept}"));
                bare.call = bare.call.filter(|_| refusals == 1);
                if let Some(call) = &mut bare.call {
                    without_answer(call);
                    call.fault = None;
                }
                Self::Release(Arc::new(bare))
            }
            Self::Append(lease, call) => {
                let mut bare = Arc::unwrap_or_clone(call);
                without_answer(&mut bare);
                bare.fault = Some(unstorable(refusals, why, &kept));
                Self::Append(lease, Arc::new(bare))
            }
            fill @ Self::Fill(..) => fill,
        }
    }
}

/// Hands writes of one kind to the database. A task of the store's own does it, so the answer may
/// be waited for beside other things.
pub(super) async fn hand_over(
    store: Arc<dyn Store>,
    worker: WorkerId,
    writes: Vec<Write>,
) -> Result<Said, StoreError> {
    match writes.first() {
        Some(Write::Append(lease, call)) => {
            failpoint!("append.before", lease.job);
            let late = store.append(lease, call, worker).await;
            failpoint!("append.after", lease.job);
            late.map(Said::Late)
        }
        Some(Write::Fill(lease, answer)) => {
            failpoint!("fill.before", lease.job);
            let filled = store.fill(lease, answer).await;
            failpoint!("fill.after", lease.job);
            filled.map(|_| Said::Filled)
        }
        Some(Write::Release(_)) => {
            let releases: Vec<_> = writes.into_iter().filter_map(Write::release).collect();
            failpoint!("release.before");
            let written = store.release(&releases, worker).await;
            failpoint!("release.after");
            written.map(Said::Batch)
        }
        Some(Write::Settle(_)) | None => {
            let settlements: Vec<_> = writes.into_iter().filter_map(Write::settlement).collect();
            failpoint!("settle.before");
            let written = store.settle(&settlements, worker).await;
            failpoint!("settle.after");
            written.map(Said::Batch)
        }
    }
}

fn len(text: Option<&(impl AsRef<str> + ?Sized)>) -> usize {
    text.map_or(0, |text| text.as_ref().len())
}

fn unstorable(refusals: u8, why: &str, kept: &str) -> Fault {
    let what = "the answer came but the database refused to store it";
    // The reason may be what it holds against the row.
    if refusals > 1 {
        return Fault::new("unstorable", None, format!("{what}{kept}"));
    }
    Fault::new("unstorable", None, format!("{what}: {}{kept}", why.replace('\0', "")))
}

fn make_bare(settlement: &mut Settlement, refusals: u8, why: &str, kept: &str) {
    let answer = &mut settlement.answer;
    answer.outcome = Outcome::Failed;
    (answer.text, answer.content, answer.output) = (None, None, None);
    (answer.stop_details, answer.stop_sequence, answer.model) = (None, None, None);
    answer.fault = Some(unstorable(refusals, why, kept));
    if let Some(call) = &mut settlement.call {
        without_answer(call);
    }
    if refusals > 1 {
        (answer.stop_reason, answer.request_id) = (None, None);
        settlement.call = None;
    }
}

fn without_answer(call: &mut Call) {
    (call.content, call.usage_raw, call.stop_details, call.container, call.request) =
        (None, None, None, None, None);
}
