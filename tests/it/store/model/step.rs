//! The steps that a sequence is made of, and how they are drawn.
//!
//! A step names its job, lease or worker by a number that is read as "the n-th newest that there
//! is", so that each part of a sequence is a sequence too: that is what lets it shrink.

use promptmill::domain::outcome::Outcome;
use proptest::prelude::*;

/// The n-th newest, counted round.
pub type Pick = u8;

/// How a worker wants to end a job.
#[derive(Debug, Clone, Copy)]
pub struct End {
    pub lease: Pick,
    pub outcome: Outcome,
    /// Whether the last call travels with it; else it was appended before.
    pub call: bool,
}

/// What comes after a worker has run tools.
#[derive(Debug, Clone, Copy)]
pub enum Then {
    /// Something else.
    Nothing,
    /// It waits for the others.
    Waits,
    /// It dies, and the next one starts them again.
    Dies,
}

/// One thing that somebody does.
#[derive(Debug, Clone)]
pub enum Step {
    // People.
    Insert {
        queue: u8,
        batch: bool,
        priority: i32,
        later: bool,
        deadline: bool,
    },
    Cancel {
        job: Pick,
    },
    CancelAll,
    MakePending {
        job: Pick,
    },
    RunAgainLater {
        job: Pick,
    },
    MakeScheduled {
        job: Pick,
    },
    MoveLater {
        job: Pick,
    },
    MoveToNow {
        job: Pick,
    },
    SetPriority {
        job: Pick,
        priority: i32,
    },
    Delete {
        job: Pick,
    },
    Pause {
        queue: u8,
        paused: bool,
    },
    Limit {
        queue: u8,
        most: Option<i32>,
    },
    /// A tool server answers the n-th call of a job.
    Answer {
        job: Pick,
        call: u8,
    },
    // Workers.
    Claim {
        worker: u8,
        slots: usize,
        suspects: bool,
    },
    Heartbeat {
        worker: u8,
    },
    Checkpoint {
        lease: Pick,
        length: usize,
    },
    Append {
        lease: Pick,
        fails: bool,
    },
    AppendAgain {
        lease: Pick,
    },
    Settle {
        ends: Vec<End>,
    },
    SettleAgain {
        lease: Pick,
    },
    Release {
        lease: Pick,
        later: bool,
        call: bool,
    },
    /// Puts a job back until somebody has answered so many calls, or those that are open.
    Wait {
        lease: Pick,
        calls: i32,
        call: bool,
    },
    ReleaseAgain {
        lease: Pick,
    },
    /// Says that it starts so many tools, or those that are open.
    OpenTools {
        lease: Pick,
        calls: i32,
    },
    AnswerTool {
        lease: Pick,
        call: u8,
    },
    /// Starts tools, and has so many of them answer.
    RunTools {
        lease: Pick,
        calls: i32,
        answered: usize,
        then: Then,
    },
    Fill {
        lease: Pick,
        text: bool,
    },
    Absolve {
        lease: Pick,
    },
    Retire {
        worker: u8,
    },
    /// The process is gone, or stands still, and another one takes its place.
    Restart {
        worker: u8,
    },
    Rescue {
        worker: Pick,
        limit: i64,
    },
    /// Claims, dies, is rescued and starts again, so many times.
    CrashLoop {
        worker: u8,
        times: usize,
    },
    // The time.
    ComesDue {
        job: Pick,
    },
    Promote,
    DeadlinePasses {
        job: Pick,
    },
    Expire {
        limit: i64,
    },
}

/// Mostly the newest: what was just begun is gone on with.
fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![3 => 0..2_u8, 2 => 0..4_u8, 1 => 0..12_u8]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Complete),
        1 => prop::sample::select(Outcome::ALL.map(|outcome| match outcome {
            // These are written by the store, never by a worker.
            Outcome::Expired | Outcome::Cancelled | Outcome::Quarantined => Outcome::Failed,
            by_a_worker => by_a_worker,
        }).to_vec()),
    ]
}

fn end() -> impl Strategy<Value = End> {
    (pick(), outcome(), prop::bool::weighted(0.7)).prop_map(|(lease, outcome, call)| End {
        lease,
        outcome,
        call,
    })
}

fn insert() -> impl Strategy<Value = Step> {
    let (later, deadline) = (prop::bool::weighted(0.1), prop::bool::weighted(0.6));
    (0..2_u8, any::<bool>(), 0..3_i32, later, deadline).prop_map(
        |(queue, batch, priority, later, deadline)| Step::Insert { queue, batch, priority, later, deadline },
    )
}

fn by_people() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => insert(),
        8 => pick().prop_map(|job| Step::Cancel { job }),
        1 => Just(Step::CancelAll),
        8 => pick().prop_map(|job| Step::MakePending { job }),
        2 => pick().prop_map(|job| Step::RunAgainLater { job }),
        1 => pick().prop_map(|job| Step::MakeScheduled { job }),
        2 => pick().prop_map(|job| Step::MoveLater { job }),
        2 => pick().prop_map(|job| Step::MoveToNow { job }),
        2 => (pick(), 0..3_i32).prop_map(|(job, priority)| Step::SetPriority { job, priority }),
        2 => pick().prop_map(|job| Step::Delete { job }),
        5 => (pick(), 0..4_u8).prop_map(|(job, call)| Step::Answer { job, call }),
        2 => (0..2_u8, prop::bool::weighted(0.3)).prop_map(|(queue, paused)| Step::Pause { queue, paused }),
        2 => (0..2_u8, prop::option::of(1..3_i32)).prop_map(|(queue, most)| Step::Limit { queue, most }),
    ]
}

fn run_tools() -> impl Strategy<Value = Step> {
    let then = prop::sample::select(vec![Then::Nothing, Then::Waits, Then::Waits, Then::Dies]);
    (pick(), 1..3_i32, 0..3_usize, then).prop_map(|(lease, calls, answered, then)| Step::RunTools {
        lease,
        calls,
        answered,
        then,
    })
}

fn by_workers() -> impl Strategy<Value = Step> {
    let worker = || 0..3_u8;
    prop_oneof![
        14 => (worker(), 1..4_usize, prop::bool::weighted(0.7))
            .prop_map(|(worker, slots, suspects)| Step::Claim { worker, slots, suspects }),
        3 => worker().prop_map(|worker| Step::Heartbeat { worker }),
        7 => (pick(), 1..40_usize).prop_map(|(lease, length)| Step::Checkpoint { lease, length }),
        8 => (pick(), prop::bool::weighted(0.3)).prop_map(|(lease, fails)| Step::Append { lease, fails }),
        1 => pick().prop_map(|lease| Step::AppendAgain { lease }),
        12 => prop::collection::vec(end(), 1..4).prop_map(|ends| Step::Settle { ends }),
        2 => pick().prop_map(|lease| Step::SettleAgain { lease }),
        5 => (pick(), any::<bool>(), any::<bool>())
            .prop_map(|(lease, later, call)| Step::Release { lease, later, call }),
        7 => (pick(), 1..3_i32, prop::bool::weighted(0.8))
            .prop_map(|(lease, calls, call)| Step::Wait { lease, calls, call }),
        1 => pick().prop_map(|lease| Step::ReleaseAgain { lease }),
        12 => run_tools(),
        3 => (pick(), 1..3_i32).prop_map(|(lease, calls)| Step::OpenTools { lease, calls }),
        4 => (pick(), 0..4_u8).prop_map(|(lease, call)| Step::AnswerTool { lease, call }),
        8 => (pick(), prop::bool::weighted(0.8)).prop_map(|(lease, text)| Step::Fill { lease, text }),
        1 => pick().prop_map(|lease| Step::Absolve { lease }),
        1 => worker().prop_map(|worker| Step::Retire { worker }),
        3 => worker().prop_map(|worker| Step::Restart { worker }),
        12 => (pick(), 1..4_i64).prop_map(|(worker, limit)| Step::Rescue { worker, limit }),
        3 => (worker(), 1..7_usize).prop_map(|(worker, times)| Step::CrashLoop { worker, times }),
    ]
}

fn by_time() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => pick().prop_map(|job| Step::ComesDue { job }),
        2 => Just(Step::Promote),
        3 => pick().prop_map(|job| Step::DeadlinePasses { job }),
        3 => (1..3_i64).prop_map(|limit| Step::Expire { limit }),
    ]
}

/// Sequences of steps, in any order. The first ones see to it that there is something to do.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![4 => by_people(), 11 => by_workers(), 2 => by_time()];
    let (first, then) = (prop::collection::vec(insert(), 0..4), prop::collection::vec(step, 0..50));
    (first, then).prop_map(|(first, then)| [first, then].concat())
}
