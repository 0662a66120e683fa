//! The queue against a model of it: any sequence of steps by people, workers, crashes and time
//! leaves the tables as a plain structure in memory says (`queue`), on both databases.
//!
//! A sequence that does not is made as short as it gets, and told step by step. What the model
//! holds for right, where one could decide otherwise, stands in `rules`. `PROPTEST_CASES=5000` in
//! the environment plays more sequences.

mod job;
mod play;
mod queue;
mod rules;
mod step;

use std::cell::RefCell;

use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner};

use play::{Seen, Stage};
use step::Step;

use crate::support::Ground;

/// What has to come up among the sequences: a test of what never happens would say nothing.
const MUST_BE_SEEN: [&str; 19] = [
    "a settle in time",
    "a write that was lost",
    "a late append",
    "an answer adopted",
    "a running job cancelled",
    "a result filled",
    "a job run again",
    "a person refused",
    "a rescue after progress",
    "a job quarantined",
    "a job that waits",
    "a wait that was lost",
    "a wait for what is answered",
    "a tool started",
    "a tool of another claim started again",
    "an answer by its worker",
    "the last answer",
    "an answer refused",
    "a waiting job cancelled",
];

fn any_sequence_leaves_what_the_model_says(ground: impl Future<Output = Ground>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stage = runtime.block_on(async { Stage::on(ground.await).await });
    let mut runner = TestRunner::new(Config {
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        max_shrink_iters: 2000,
        ..Config::default()
    });
    let seen: RefCell<Seen> = RefCell::default();
    let played = runner.run(&step::steps(), |steps| {
        let found = runtime.block_on(stage.play(&steps)).map_err(TestCaseError::fail)?;
        let mut seen = seen.borrow_mut();
        for (what, times) in found {
            *seen.entry(what).or_default() += times;
        }
        Ok(())
    });
    match played {
        Ok(()) => {}
        Err(TestError::Fail(why, steps)) => {
            let (steps, why) = runtime.block_on(shorten(&stage, steps, why.to_string()));
            panic!("the shortest sequence found:\n{why}\n\nas steps: {steps:?}");
        }
        Err(error) => panic!("{error}"),
    }
    runtime.block_on(stage.close());
    let seen = seen.into_inner();
    // A few sequences need not show everything.
    for what in MUST_BE_SEEN.into_iter().filter(|_| runner.config().cases >= 200) {
        assert!(seen.contains_key(what), "{what}: it never came up, only {seen:?}");
    }
}

/// Makes a sequence that fails shorter until nothing can be left out. Proptest tries each step once,
/// but a step may be of no use only when another is gone.
async fn shorten(stage: &Stage, mut steps: Vec<Step>, mut why: String) -> (Vec<Step>, String) {
    let mut chunk = steps.len().div_ceil(2);
    while chunk > 0 {
        let (mut at, before) = (0, steps.len());
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..steps.len().min(at + chunk));
            match failure(stage, &fewer).await {
                Some(shorter) => (steps, why) = (fewer, shorter),
                None => at += chunk,
            }
        }
        if chunk > 1 || steps.len() == before {
            chunk /= 2;
        }
    }
    (steps, why)
}

/// Plays a sequence some times: whose turn it is among lanes goes on from one to the next, so the
/// same steps may lead to other jobs.
async fn failure(stage: &Stage, steps: &[Step]) -> Option<String> {
    for _ in 0..4 {
        if let Err(why) = stage.play(steps).await {
            return Some(why);
        }
    }
    None
}

mod sqlite {
    use super::*;

    #[test]
    fn any_sequence_leaves_what_the_model_says() {
        super::any_sequence_leaves_what_the_model_says(Ground::sqlite());
    }
}

mod postgres {
    use super::*;

    #[test]
    fn any_sequence_leaves_what_the_model_says() {
        super::any_sequence_leaves_what_the_model_says(Ground::postgres());
    }
}
