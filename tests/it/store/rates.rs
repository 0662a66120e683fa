//! The rate budget that daemons share: the store's take is the model's, by the database's clock.

use std::time::Duration;

use promptmill::domain::pace::bucket::BURST;
use promptmill::domain::pace::{Each, Grant, Take};
use promptmill::store::{Migrate, open};

use super::{Bench, settings};
use crate::support::{Ground, on_both};

mod model;

on_both!(
    daemons_that_race_get_no_more_together_than_the_cap_and_what_flowed_in,
    a_limit_is_learnt_once_and_heard_by_all,
    what_is_left_only_lowers,
    a_rate_that_a_person_sets_holds_with_the_next_take_and_until_the_api_names_another,
    a_cap_that_a_person_sets_holds,
    a_clock_that_jumps_back_neither_refills_nor_starves,
    a_daemon_that_asks_for_nothing_writes_nothing,
    classes_share_nothing,
    buckets_that_nobody_uses_go_when_another_is_made,
);

const SCOPE: &str = "rate:f00d/opus-4";

/// Sums of fractions are not exact.
const FUZZ: f64 = 1e-6;

fn want(requests: f64) -> Take {
    Take { want: Each { requests, ..Each::default() }, ..Take::default() }
}

fn learnt(rate: f64) -> Take {
    Take { rate: Each { requests: Some(rate), ..Each::default() }, ..Take::default() }
}

fn left(requests: f64) -> Take {
    Take { left: Each { requests: Some(requests), ..Each::default() }, ..Take::default() }
}

fn worth(rate: f64, time: Duration) -> f64 {
    rate / 60.0 * time.as_secs_f64()
}

async fn take(bench: &Bench, take: &Take) -> Option<Grant> {
    bench.store.take_rates(SCOPE, take).await.expect("a take").requests
}

/// Takes so much, and returns how much came.
async fn amount(bench: &Bench, wanted: f64) -> f64 {
    take(bench, &want(wanted)).await.expect("a bucket").amount
}

async fn level(ground: &Ground) -> f64 {
    ground.line("SELECT level FROM rates").await.parse().expect("a number")
}

/// Lets the database's clock be so many seconds further, for the buckets.
async fn pass(ground: &Ground, seconds: i64) {
    let back = ground.either("at = at - 1000 * ", "at = at - interval '1 second' * ").to_owned();
    ground.run(&format!("UPDATE rates SET {back} ({seconds})")).await;
}

async fn daemons_that_race_get_no_more_together_than_the_cap_and_what_flowed_in(ground: &Ground) {
    const RATE: f64 = 6000.0;
    let bench = Bench::on(ground).await;
    take(&bench, &learnt(RATE)).await;
    let began = std::time::Instant::now();
    let daemons = (0..8).map(|_| async {
        let opened = open(&ground.url(), &settings(ground.schema()), Migrate::Never).await.expect("opened");
        let mut got = 0.0;
        for _ in 0..40 {
            let grants = opened.store.take_rates(SCOPE, &want(7.0)).await.expect("a take");
            got += grants.requests.map_or(0.0, |grant| grant.amount);
        }
        got
    });
    let got = futures_util::future::join_all(daemons).await;
    let sum: f64 = got.iter().sum();
    // The clocks of the two need not tick together.
    let bound = worth(RATE, BURST + began.elapsed() + Duration::from_millis(2));
    assert!(sum <= bound, "{sum} of {bound}: {got:?}");
    assert!(sum + level(ground).await >= worth(RATE, BURST), "what was taken was given: {got:?}");
}

async fn a_limit_is_learnt_once_and_heard_by_all(ground: &Ground) {
    let (one, other) = (Bench::on(ground).await, Bench::on(ground).await);
    assert_eq!(take(&other, &want(1.0)).await, None, "nobody knows a limit");
    let both = Take { want: Each { requests: 3.0, ..Each::default() }, ..learnt(600.0) };
    assert_eq!(take(&one, &both).await, Some(Grant { amount: 3.0, rate: 600.0 }));
    assert_eq!(take(&other, &Take::default()).await, Some(Grant { amount: 0.0, rate: 600.0 }));
    assert_eq!(take(&other, &want(1e9)).await, Some(Grant { amount: 10.0, rate: 600.0 }), "a lease's worth");
    assert_eq!(
        ground.line("SELECT scope, kind, rate FROM rates").await,
        format!("{SCOPE}|requests|{}", ground.either("600.0", "600"))
    );
}

async fn what_is_left_only_lowers(ground: &Ground) {
    let bench = Bench::on(ground).await;
    take(&bench, &learnt(600.0)).await;
    take(&bench, &left(1e6)).await;
    assert!((level(ground).await - 40.0).abs() < FUZZ, "it is full: {}", level(ground).await);
    take(&bench, &left(7.0)).await;
    assert!((level(ground).await - 7.0).abs() < FUZZ);
    take(&bench, &left(30.0)).await;
    assert!(level(ground).await < 10.0, "what came in since, and no more: {}", level(ground).await);
    take(&bench, &left(-5.0)).await;
    assert_eq!(level(ground).await.to_bits(), 0.0_f64.to_bits());
}

async fn a_rate_that_a_person_sets_holds_with_the_next_take_and_until_the_api_names_another(ground: &Ground) {
    let bench = Bench::on(ground).await;
    take(&bench, &learnt(6000.0)).await;
    ground.run("UPDATE rates SET rate = 600").await;
    assert_eq!(take(&bench, &want(1e9)).await, Some(Grant { amount: 10.0, rate: 600.0 }));
    assert!(level(ground).await <= 30.0 + FUZZ, "four seconds' worth of 600, less what was taken");
    // A daemon that has just started hears the same from the API as the others did.
    assert_eq!(take(&bench, &learnt(6000.0)).await.expect("a bucket").rate.to_bits(), 600.0_f64.to_bits());
    assert_eq!(take(&bench, &learnt(9000.0)).await.expect("a bucket").rate.to_bits(), 9000.0_f64.to_bits());
    assert_eq!(take(&bench, &learnt(6000.0)).await.expect("a bucket").rate.to_bits(), 6000.0_f64.to_bits());
}

async fn a_cap_that_a_person_sets_holds(ground: &Ground) {
    let bench = Bench::on(ground).await;
    take(&bench, &learnt(6000.0)).await;
    ground.run("UPDATE rates SET cap = 5").await;
    assert!((amount(&bench, 1e9).await - 5.0).abs() < FUZZ);
    pass(ground, 60).await;
    assert!((amount(&bench, 1e9).await - 5.0).abs() < FUZZ);
    pass(ground, 60).await;
    take(&bench, &learnt(9000.0)).await;
    assert!((amount(&bench, 1e9).await - 5.0).abs() < FUZZ, "another limit does not undo it");
    let sentence = ground.refused("UPDATE rates SET rate = 0").await;
    assert!(sentence.contains("rate_is_positive"), "{sentence}");
}

async fn a_clock_that_jumps_back_neither_refills_nor_starves(ground: &Ground) {
    let bench = Bench::on(ground).await;
    take(&bench, &learnt(60.0)).await;
    take(&bench, &left(0.0)).await;
    pass(ground, -3600).await;
    assert!(amount(&bench, 1.0).await.abs() < FUZZ, "nothing came in");
    let behind =
        ground.either("SELECT at FROM rates", "SELECT (extract(epoch FROM at) * 1000)::bigint FROM rates");
    let now = ground.at(1);
    let now =
        ground.either("SELECT AT", "SELECT (extract(epoch FROM AT) * 1000)::bigint").replace("AT", &now);
    let (at, now) = (ground.line(behind).await, ground.line(&now).await);
    assert!(at.parse::<i64>().expect("a time") < now.parse().expect("a time"), "it goes on from now");
    pass(ground, 2).await;
    let got = amount(&bench, 1.0).await;
    assert!((got - 1.0).abs() < FUZZ, "a second's worth: {got}");
}

async fn a_daemon_that_asks_for_nothing_writes_nothing(ground: &Ground) {
    let bench = Bench::on(ground).await;
    take(&bench, &learnt(60.0)).await;
    pass(ground, 5).await;
    let before = ground.line("SELECT * FROM rates").await;
    take(&bench, &Take::default()).await;
    assert_eq!(ground.line("SELECT * FROM rates").await, before);
    take(&bench, &want(0.1)).await;
    assert_ne!(ground.line("SELECT * FROM rates").await, before);
}

async fn classes_share_nothing(ground: &Ground) {
    let bench = Bench::on(ground).await;
    take(&bench, &learnt(600.0)).await;
    let other = |take: Take| {
        let store = bench.store.clone();
        async move { store.take_rates("rate:f00d/haiku-4", &take).await.expect("a take").requests }
    };
    assert_eq!(other(want(1.0)).await, None);
    other(learnt(60.0)).await;
    other(left(0.0)).await;
    assert_eq!(take(&bench, &want(5.0)).await, Some(Grant { amount: 5.0, rate: 600.0 }));
}

async fn buckets_that_nobody_uses_go_when_another_is_made(ground: &Ground) {
    let bench = Bench::on(ground).await;
    for class in ["a", "b", "c", "d"] {
        bench.store.take_rates(class, &learnt(600.0)).await.expect("a take");
    }
    pass(ground, 6 * 86_400).await;
    let all = Each { requests: Some(600.0), input: Some(600.0), output: None };
    bench.store.take_rates("a", &want(1.0)).await.expect("a take");
    ground.run("UPDATE rates SET rate = 60 WHERE scope = 'b'").await;
    ground.run("UPDATE rates SET cap = 60 WHERE scope = 'c'").await;
    pass(ground, 2 * 86_400).await;
    bench.store.take_rates("a", &Take { rate: all, ..Take::default() }).await.expect("a take");
    assert_eq!(
        ground.lines("SELECT scope, kind FROM rates ORDER BY scope, kind").await,
        ["a|input", "a|requests", "b|requests", "c|requests"],
        "what a person said of b and c stays"
    );
}

mod postgres_only {
    use super::*;

    #[tokio::test]
    async fn a_bucket_that_a_person_holds_gives_nothing_and_stalls_nobody() {
        let ground = Ground::postgres().await;
        let bench = Bench::on(&ground).await;
        take(&bench, &learnt(600.0)).await;
        let both = Take { rate: Each { input: Some(60.0), ..Each::default() }, ..Take::default() };
        bench.store.take_rates(SCOPE, &both).await.expect("a take");
        let pool = Ground::postgres_pool(|options| options).await;
        let mut person = pool.begin().await.expect("a transaction");
        let update = format!("UPDATE {} SET rate = 300 WHERE kind = 'requests'", ground.table("rates"));
        sqlx::query(sqlx::AssertSqlSafe(update)).execute(&mut *person).await.expect("a lock");
        let wanted = Take {
            want: Each { requests: 1.0, input: 1.0, output: 1.0 },
            rate: Each { requests: Some(900.0), input: Some(60.0), output: Some(60.0) },
            ..Take::default()
        };
        let taking = bench.store.take_rates(SCOPE, &wanted);
        let grants =
            tokio::time::timeout(Duration::from_secs(10), taking).await.expect("not stalled").unwrap();
        assert_eq!(grants.requests, None);
        assert_eq!(grants.input, Some(Grant { amount: 1.0, rate: 60.0 }), "the others give");
        assert_eq!(grants.output, Some(Grant { amount: 1.0, rate: 60.0 }));
        person.commit().await.expect("a commit");
        assert_eq!(take(&bench, &want(1.0)).await, Some(Grant { amount: 1.0, rate: 300.0 }));
        pool.close().await;
        drop(bench);
        ground.close().await;
    }
}
