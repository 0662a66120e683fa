//! Any deeds give what the pure budget gives for them.

use std::time::{Duration, Instant};

use promptmill::domain::pace::{Budget, Each, Grant, Take};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::{Bench, FUZZ, Ground};

/// Time passes, then a daemon takes.
#[derive(Debug, Clone)]
struct Deed {
    passed: Duration,
    take: Take,
}

fn each<T: std::fmt::Debug>(one: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = Each<T>> {
    (one.clone(), one.clone(), one).prop_map(|(requests, input, output)| Each { requests, input, output })
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let rate = prop_oneof![Just(60.0), Just(6000.0), 1.0..100_000.0_f64];
    let take = (each(-50.0..500.0_f64), each(prop::option::weighted(0.2, rate)), each(of(-10.0..500.0_f64)))
        .prop_map(|(want, rate, left)| Take { want, rate, left });
    let deed = (0_u64..6000, take).prop_map(|(ms, take)| Deed { passed: Duration::from_millis(ms), take });
    vec(deed, 1..20)
}

/// The three buckets, each with a clock of its own: that of its row.
struct Model {
    budgets: Each<(Budget, Instant)>,
}

impl Model {
    fn new() -> Self {
        let now = Instant::now();
        Self { budgets: Each::default().map(|(): ()| (Budget::default(), now)) }
    }

    /// What each bucket gives, when so much time has passed for each.
    fn take(&mut self, take: &Take, passed: Each<Duration>) -> Each<Option<Grant>> {
        let grants = self.budgets.as_mut().zip(passed).map(|((budget, now), passed)| {
            *now += passed;
            budget.take(take, *now)
        });
        Each { requests: grants.requests.requests, input: grants.input.input, output: grants.output.output }
    }

    fn levels(&self) -> Each<Option<f64>> {
        let level = |of: fn(&Budget) -> Option<promptmill::domain::pace::Bucket>, at: &(Budget, Instant)| {
            of(&at.0).map(|bucket| bucket.level(at.1))
        };
        Each {
            requests: level(|budget| budget.0.requests, &self.budgets.requests),
            input: level(|budget| budget.0.input, &self.budgets.input),
            output: level(|budget| budget.0.output, &self.budgets.output),
        }
    }
}

/// What a row of the table holds: level, and when, in microseconds.
async fn rows(ground: &Ground, scope: &str) -> Each<Option<(f64, i64)>> {
    let at = ground.either("at * 1000", "(extract(epoch FROM at) * 1000000)::bigint");
    let sql = format!("SELECT kind, level, {at} FROM rates WHERE scope = '{scope}'");
    let found = ground.rows(&sql).await;
    Each { requests: "requests", input: "input", output: "output" }.map(|kind| {
        let row = found.iter().find(|row| row[0] == kind)?;
        Some((row[1].parse().expect("a level"), row[2].parse().expect("a time")))
    })
}

/// Plays the deeds on the store and on the model; says where they differ.
async fn play(ground: &Ground, bench: &Bench, scope: &str, deeds: &[Deed]) -> Result<(), String> {
    let mut model = Model::new();
    for (step, deed) in deeds.iter().enumerate() {
        let ms = deed.passed.as_millis();
        let back = ground.either("at - ", "at - interval '1 millisecond' * ");
        ground.run(&format!("UPDATE rates SET at = {back}{ms} WHERE scope = '{scope}'")).await;
        let before = rows(ground, scope).await;
        let got = bench.store.take_rates(scope, &deed.take).await.map_err(|error| error.to_string())?;
        let after = rows(ground, scope).await;
        // The time that the database saw, its own steps between among it.
        let passed = before.zip(after).map(|(before, after)| {
            let passed = before.zip(after).map_or(0, |(before, after)| after.1 - before.1);
            Duration::from_micros(u64::try_from(passed).unwrap_or(0))
        });
        let expected = model.take(&deed.take, passed);
        for (got, expected) in got.zip(expected) {
            let same = match (got, expected) {
                (None, None) => true,
                (Some(got), Some(expected)) => {
                    (got.amount - expected.amount).abs() < FUZZ && (got.rate - expected.rate).abs() < FUZZ
                }
                _ => false,
            };
            if !same {
                return Err(format!("step {step}: got {got:?}, expected {expected:?}"));
            }
        }
        for (row, level) in after.zip(model.levels()) {
            if !row
                .zip(level)
                .map_or(row.is_none() && level.is_none(), |(row, level)| (row.0 - level).abs() < FUZZ)
            {
                return Err(format!("step {step}: the row holds {row:?}, expected {level:?}"));
            }
        }
    }
    Ok(())
}

fn any_deeds_give_what_the_pure_budget_gives(ground: impl Future<Output = Ground>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (ground, bench) = runtime.block_on(async {
        let ground = ground.await;
        let bench = Bench::on(&ground).await;
        (ground, bench)
    });
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let case = std::cell::Cell::new(0);
    let played = runner.run(&deeds(), |deeds| {
        case.set(case.get() + 1);
        let scope = format!("rate:{}/class", case.get());
        runtime.block_on(play(&ground, &bench, &scope, &deeds)).map_err(TestCaseError::fail)
    });
    runtime.block_on(ground.close());
    if let Err(error) = played {
        panic!("{error}");
    }
}

mod sqlite {
    use super::*;

    #[test]
    fn any_deeds_give_what_the_pure_budget_gives() {
        super::any_deeds_give_what_the_pure_budget_gives(Ground::sqlite());
    }
}

mod postgres {
    use super::*;

    #[test]
    fn any_deeds_give_what_the_pure_budget_gives() {
        super::any_deeds_give_what_the_pure_budget_gives(Ground::postgres());
    }
}
