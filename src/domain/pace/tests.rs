//! Laws of the buckets, of what is granted of them, and of the window.

use proptest::collection::vec;
use proptest::prelude::*;

use super::bucket::{BURST, LEASE};
use super::estimate::{BYTES_PER_TOKEN, OUTPUT_FIRST};
use super::*;

/// Sums of fractions are not exact.
const FUZZ: f64 = 1e-6;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn budget(rate: f64, now: Instant) -> Budget {
    Budget(Each { requests: Some(Bucket::new(rate, now)), ..Each::default() })
}

fn wants(amount: f64) -> Take {
    Take { want: Each { requests: amount, ..Each::default() }, ..Take::default() }
}

fn call(input: f64) -> Each<f64> {
    Each { requests: 1.0, input, output: 1.0 }
}

fn said(limit: u64, remaining: u64, at: Instant) -> RateLimits {
    let requests = Limit { limit: Some(limit), remaining: Some(remaining), reset: None };
    RateLimits { at, each: Each { requests, ..Each::default() } }
}

/// A daemon takes from the budget.
fn draw(pace: &mut Pace, budget: &mut Budget, now: Instant) -> Each<Option<Grant>> {
    let take = pace.take(now);
    let grants = budget.take(&take, now);
    pace.granted(grants);
    grants
}

/// One daemon and a budget of its own.
fn allowed(rate: f64, now: Instant) -> (Pace, Budget) {
    let mut pace = Pace::new(now);
    pace.configure(Each { requests: Some(rate), ..Each::default() });
    let mut budget = Budget::default();
    draw(&mut pace, &mut budget, now);
    (pace, budget)
}

#[derive(Debug, Clone)]
enum Deed {
    Take(f64),
    Lower(f64),
    Rate(f64),
    Pass(u64),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        (-50.0..500.0_f64).prop_map(Deed::Take),
        (-10.0..500.0_f64).prop_map(Deed::Lower),
        (1.0..10_000.0_f64).prop_map(Deed::Rate),
        (0_u64..5000).prop_map(Deed::Pass),
    ];
    vec(deed, 0..100)
}

proptest! {
    #[test]
    fn a_bucket_never_holds_more_than_its_cap_nor_less_than_nothing(deeds in deeds()) {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(600.0, now);
        for deed in deeds {
            let before = bucket.level(now);
            match deed {
                Deed::Take(want) => {
                    let granted = bucket.take(want, now);
                    prop_assert!(granted <= want.max(0.0) && granted <= bucket.rate() / 60.0 + FUZZ);
                }
                Deed::Lower(left) => {
                    bucket.lower(left, now);
                    prop_assert!(bucket.level(now) <= before, "what is left may only lower");
                }
                Deed::Rate(rate) => {
                    bucket.set_rate(rate, now);
                    prop_assert!(bucket.level(now) <= before, "another limit fills no bucket");
                }
                Deed::Pass(passed) => now += ms(passed),
            }
            prop_assert!(bucket.level(now) >= 0.0 && bucket.level(now) <= bucket.cap());
        }
    }

    #[test]
    fn daemons_never_get_more_than_the_cap_and_what_flowed_in_over_any_window(
        rate in 10.0..6000.0_f64,
        takes in vec((0_u64..400, 0.0..200.0_f64), 1..80),
    ) {
        let start = Instant::now();
        let mut budget = budget(rate, start);
        let mut now = start;
        let mut grants = Vec::new();
        for (passed, want) in takes {
            now += ms(passed);
            let grant = budget.take(&wants(want), now).requests.unwrap();
            grants.push((now, grant.amount));
        }
        let cap = rate / 60.0 * BURST.as_secs_f64();
        for (from, (since, _)) in grants.iter().enumerate() {
            let mut sum = 0.0;
            for (at, amount) in &grants[from..] {
                sum += amount;
                let bound = cap + rate / 60.0 * (*at - *since).as_secs_f64();
                prop_assert!(sum <= bound + FUZZ, "{sum} of {bound}");
            }
        }
    }

    #[test]
    fn after_the_wait_it_is_there_and_a_moment_before_it_is_not(
        rate in 60.0..6000.0_f64,
        spent in 0.0..1.0_f64,
        amount in 0.01..300.0_f64,
    ) {
        let now = Instant::now();
        let mut bucket = Bucket::new(rate, now);
        bucket.lower(bucket.cap() * spent, now);
        let wait = bucket.wait(amount, now);
        let need = amount.min(bucket.cap());
        prop_assert!(bucket.level(now + wait) >= need - 1e-3);
        if wait > ms(2) {
            prop_assert!(bucket.level(now + wait.checked_sub(ms(2)).unwrap()) < need);
        }
    }

    #[test]
    fn what_a_daemon_spends_was_granted_but_for_one_call(
        calls in vec((0_u64..300, 1.0..50_000.0_f64, 0.2..3.0_f64), 1..100),
    ) {
        let (rate, start) = (60_000.0, Instant::now());
        let (mut pace, mut budget) = (Pace::new(start), Budget::default());
        pace.configure(Each { input: Some(rate), ..Each::default() });
        let (mut now, mut spent, mut granted, mut largest) = (start, 0.0, 0.0, 0.0_f64);
        for (passed, input, real) in calls {
            now += ms(passed);
            granted += draw(&mut pace, &mut budget, now).input.unwrap().amount;
            if let Ok(ticket) = pace.admit(call(input), now) {
                // Estimated at `input`, and costs what it costs.
                let cost = input * real;
                pace.end(ticket, Spent::Answered { input: cost, output: 1.0 }, now, 0.0);
                spent += cost;
                largest = largest.max(cost);
            }
            prop_assert!(spent <= granted + largest + FUZZ, "{spent} of {granted} and {largest}");
            let bound = rate / 60.0 * (now - start + BURST).as_secs_f64();
            prop_assert!(granted <= bound + FUZZ);
        }
    }

    #[test]
    fn a_window_stays_between_one_call_and_its_maximum_and_falls_once_a_round(
        events in vec((0_u8..5, 0_usize..64, 0_u64..3000), 0..400),
    ) {
        let mut now = Instant::now();
        let mut loss = Loss::new(now);
        let mut flying: Vec<u64> = Vec::new();
        let mut newest_at_loss = None;
        for (kind, which, passed) in events {
            now += ms(passed);
            let before = loss.window();
            if kind < 2 {
                match loss.admit(now) {
                    Ok(number) => flying.push(number),
                    Err(Hold::Window) => prop_assert!(flying.len() >= loss.window() as usize),
                    Err(hold) => prop_assert!(matches!(hold, Hold::Until(_))),
                }
            } else if !flying.is_empty() {
                let number = flying.remove(which % flying.len());
                if kind == 4 {
                    loss.lost(number, Overload::Limit, None, now, 0.5);
                    if loss.window() < before {
                        prop_assert!(newest_at_loss.is_none_or(|newest| number > newest));
                        newest_at_loss = flying.iter().copied().chain([number]).max();
                        prop_assert!(loss.window() >= (before.min(flying.len() as f64 + 1.0) * 0.5).max(1.0) - FUZZ);
                    }
                } else {
                    loss.clean(number, ms(500));
                }
                loss.ended((kind != 4).then_some(ms(2000)));
            }
            prop_assert!((1.0..=1e6).contains(&loss.window()));
        }
    }
}

#[test]
fn daemons_that_take_in_random_turns_get_equal_parts() {
    let start = Instant::now();
    let mut budget = budget(3000.0, start);
    let mut dice = 7_u64;
    let mut dice = || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (dice >> 33) as f64 / f64::from(1_u32 << 31)
    };
    let mut next = [Duration::ZERO; 4];
    let mut got = [0.0; 4];
    while let Some((which, at)) = next.iter().copied().enumerate().min_by_key(|(_, at)| *at) {
        if at > Duration::from_mins(5) {
            break;
        }
        got[which] += budget.take(&wants(50.0), start + at).requests.unwrap().amount;
        next[which] += TAKE_EVERY.mul_f64(0.8 + 0.4 * dice());
    }
    let all: f64 = got.iter().sum();
    assert!((14_900.0..=15_200.0).contains(&all), "all of it was used: {all}");
    assert!(got.iter().all(|part| (0.2..0.3).contains(&(part / all))), "{got:?}");
}

#[test]
fn what_a_dead_daemon_took_flows_in_again() {
    let now = Instant::now();
    let mut budget = budget(600.0, now);
    let lost = budget.take(&wants(1e9), now).requests.unwrap().amount;
    assert!((lost - 10.0).abs() < FUZZ, "a second's worth at most: {lost}");
    let bucket = budget.0.requests.unwrap();
    assert!((bucket.level(now + LEASE) - bucket.cap()).abs() < FUZZ);
}

#[test]
fn a_limit_that_one_daemon_saw_is_known_to_all() {
    let now = Instant::now();
    let (mut one, mut other, mut budget) = (Pace::new(now), Pace::new(now), Budget::default());
    draw(&mut other, &mut budget, now);
    assert_eq!(other.slots(call(1.0), now), 1, "one call goes first where nobody knows a limit");
    one.learn(&said(6000, 5999, now), now);
    draw(&mut one, &mut budget, now);
    draw(&mut other, &mut budget, now);
    assert!(other.admit(call(1.0), now).is_err(), "it knows, and has not asked for its part");
    draw(&mut other, &mut budget, now);
    assert_eq!(other.slots(call(1.0), now), 100, "a second's worth");
}

#[test]
fn calls_are_spaced_over_the_time_until_the_next_take() {
    let start = Instant::now();
    let (mut pace, _) = allowed(3000.0, start);
    let mut now = start;
    let mut sent = Vec::new();
    while now < start + TAKE_EVERY {
        match pace.admit(call(1.0), now) {
            Ok(_) => sent.push(now - start),
            Err(Hold::Until(until)) => now = until,
            Err(_) => break,
        }
    }
    assert_eq!(sent.len(), 50);
    // A loop that wakes late may catch up by 50 ms; after that one call is 12 ms behind the other.
    let gaps = sent[6..].windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
    assert!(gaps.into_iter().all(|gap| gap >= ms(11)), "{sent:?}");
    assert!(sent[49] > ms(500), "{sent:?}");
}

#[test]
fn a_call_of_more_than_a_seconds_worth_goes_and_the_next_waits_until_it_is_paid() {
    let start = Instant::now();
    let (mut pace, mut budget) = (Pace::new(start), Budget::default());
    pace.configure(Each { input: Some(60_000.0), ..Each::default() });
    draw(&mut pace, &mut budget, start);
    let large = pace.admit(call(10_000.0), start).expect("a second's worth is there");
    let mut seconds = 0;
    let mut now = start;
    while pace.admit(call(10.0), now).is_err() {
        seconds += 1;
        now += LEASE;
        draw(&mut pace, &mut budget, now);
    }
    // 10,000 at 1,000 a second, less the second's worth that was there.
    assert_eq!(seconds, 10);
    pace.end(large, Spent::Answered { input: 4000.0, output: 1.0 }, now, 0.0);
    assert_eq!(pace.slots(call(100.0), now), 69, "what it did not cost is there again: 6,000, and 990");
}

#[test]
fn what_the_api_has_left_is_believed_for_the_time_at_which_it_said_so() {
    let start = Instant::now();
    let now = start + Duration::from_mins(1);
    let (mut fresh, mut budget) = allowed(600.0, start);
    let mut old = fresh.clone();
    fresh.learn(&said(600, 0, now), now);
    assert_eq!(fresh.slots(call(1.0), now), 0);
    let take = fresh.take(now);
    assert_eq!(take.left.requests, Some(0.0));
    budget.take(&take, now);
    assert!(budget.0.requests.unwrap().level(now) < FUZZ);
    // A call of a minute ago: since then a minute's worth came in.
    old.learn(&said(600, 0, start), now);
    assert_eq!(old.slots(call(1.0), now), 10);
    assert_eq!(old.take(now).left.requests, Some(600.0));
}

#[test]
fn a_take_is_empty_only_where_it_neither_asks_nor_tells() {
    let now = Instant::now();
    assert!(Take::default().is_empty() && wants(1e-9).is_empty());
    assert!(!wants(1.0).is_empty() && !wants(-1.0).is_empty());
    let some = Each { output: Some(0.0), ..Each::default() };
    assert!(!Take { rate: some, ..Take::default() }.is_empty());
    assert!(!Take { left: some, ..Take::default() }.is_empty());
    assert!(allowed(600.0, now).0.take(now).is_empty(), "as much is there as it may hold");
}

#[test]
fn a_refused_call_costs_nothing_and_waits_for_the_hint() {
    let now = Instant::now();
    let (mut pace, _) = allowed(600.0, now);
    let ticket = pace.admit(call(1.0), now).unwrap();
    pace.end(ticket, Spent::Refused(Overload::Limit, Some(LEASE)), now, 0.5);
    let later = now + ms(999);
    assert!(matches!(pace.admit(call(1.0), later), Err(Hold::Until(until)) if until >= now + LEASE));
    assert_eq!(pace.slots(call(1.0), now + 2 * LEASE), 10);
}

#[test]
fn a_pause_holds_all_calls_for_the_hint_and_at_most_a_quarter_longer() {
    let now = Instant::now();
    for dice in [0.0, 0.5, 1.0] {
        let (mut pace, _) = allowed(600.0, now);
        pace.pause(Some(LEASE), now, dice);
        let until = now + LEASE.mul_f64(1.0 + 0.25 * dice);
        assert_eq!(pace.admit(call(1.0), now).unwrap_err(), Hold::Until(until));
        pace.pause(None, now, 0.0);
        assert_eq!(pace.slots(call(1.0), now + ms(999)), 0, "a shorter one takes nothing back");
        assert_eq!(pace.slots(call(1.0), until), 10);
    }
}

#[test]
fn a_call_that_got_through_ends_our_own_pause_and_not_the_servers() {
    let now = Instant::now();
    let lost = |pace: &mut Pace, hint| {
        let ticket = pace.admit(call(1.0), now).expect("nothing holds it");
        pace.end(ticket, Spent::Refused(Overload::Provider, hint), now, 0.0);
        assert_eq!(pace.slots(call(1.0), now), 0);
    };
    let mut own = Pace::new(now);
    lost(&mut own, None);
    own.resume();
    assert_eq!(own.slots(call(1.0), now), 1);
    let mut asked = Pace::new(now);
    lost(&mut asked, Some(ms(5000)));
    asked.pause(None, now, 0.0);
    asked.resume();
    assert_eq!(asked.slots(call(1.0), now + ms(4999)), 0);
    assert_eq!(asked.slots(call(1.0), now + ms(5000)), 1);
}

#[test]
fn a_pace_is_idle_when_nothing_flies_is_owed_or_paused_and_a_minute_has_passed() {
    let now = Instant::now();
    let late = now + Duration::from_mins(2);
    let (mut pace, mut budget) = allowed(600.0, now);
    assert!(!pace.is_idle(now) && pace.is_idle(late), "it has just begun");
    let ticket = pace.admit(call(1.0), now).unwrap();
    assert!(!pace.is_idle(late), "a call of two minutes");
    pace.end(ticket, Spent::Answered { input: 1.0, output: 1.0 }, late, 0.0);
    assert!(pace.is_idle(late));
    pace.pause(Some(LEASE), late, 0.0);
    assert!(!pace.is_idle(late) && pace.is_idle(late + LEASE));

    let (after, much_later) = (late + LEASE, late + Duration::from_mins(2));
    pace.configure(Each { input: Some(600.0), ..Each::default() });
    draw(&mut pace, &mut budget, after);
    let ticket = pace.admit(call(15.0), after).unwrap();
    pace.end(ticket, Spent::Unknown, after, 0.0);
    assert!(!pace.is_idle(much_later), "it owes");
    draw(&mut pace, &mut budget, much_later);
    assert!(pace.is_idle(much_later));
}

#[test]
fn a_limit_that_the_budget_did_not_hear_of_is_told_again() {
    let now = Instant::now();
    let mut pace = Pace::new(now);
    pace.learn(&said(600, 599, now), now);
    assert_eq!(pace.take(now).rate.requests, Some(600.0));
    pace.granted(Each::default());
    assert_eq!(pace.take(now).rate.requests, Some(600.0), "the database was away");
    pace.granted(Each { requests: Some(Grant { amount: 1.0, rate: 600.0 }), ..Each::default() });
    assert_eq!(pace.take(now).rate.requests, None);
    // Another daemon, which knows it from the budget alone, tells it when the row is gone.
    let mut other = Pace::new(now);
    other.granted(Each { requests: Some(Grant { amount: 0.0, rate: 600.0 }), ..Each::default() });
    assert_eq!(other.take(now).rate.requests, None);
    other.granted(Each::default());
    assert_eq!(other.take(now).rate.requests, Some(600.0));
}

#[test]
fn a_rate_that_a_person_set_is_kept_until_the_api_names_another_limit() {
    let now = Instant::now();
    let mut pace = Pace::new(now);
    pace.learn(&said(6000, 5999, now), now);
    pace.take(now);
    pace.granted(Each { requests: Some(Grant { amount: 5.0, rate: 300.0 }), ..Each::default() });
    pace.learn(&said(6000, 5998, now), now);
    let take = pace.take(now);
    assert_eq!((take.rate.requests, take.want.requests), (None, 0.0), "a second's worth of 300 is there");
    pace.learn(&said(8000, 7999, now), now);
    assert_eq!(pace.take(now).rate.requests, Some(8000.0));
}

/// Lets a window find a limit of calls in flight: more are refused at once. Returns it after each of
/// so many steps of 100 ms.
fn find(loss: &mut Loss, limit: usize, steps: u32, now: &mut Instant) -> Vec<f64> {
    let mut flying: Vec<(u64, u32)> = Vec::new();
    let mut windows = Vec::new();
    for step in 0..steps {
        *now += ms(100);
        while let Ok(number) = loss.admit(*now) {
            if flying.len() < limit {
                flying.push((number, step));
            } else {
                loss.lost(number, Overload::Provider, None, *now, 0.5);
                loss.ended(None);
            }
        }
        for (number, _) in flying.iter().filter(|(_, sent)| step == sent + 5) {
            loss.clean(*number, ms(500));
        }
        for _ in flying.extract_if(.., |(_, sent)| step == *sent + 20) {
            loss.ended(Some(ms(2000)));
        }
        windows.push(loss.window());
    }
    for _ in flying {
        loss.ended(None);
    }
    windows
}

#[test]
fn a_window_finds_how_much_may_be_in_flight_and_stays_near_it() {
    for limit in [3, 40, 1000] {
        let mut now = Instant::now();
        let windows = find(&mut Loss::new(now), limit, 4000, &mut now);
        let near = |window: &f64| (limit as f64 * 0.7 - 1.0..=limit as f64 * 1.15 + 1.0).contains(window);
        let late = &windows[2000..];
        let share = late.iter().filter(|window| near(window)).count() as f64 / late.len() as f64;
        assert!(share > 0.9, "{limit}: {share} near it, at last {:?}", windows.last());
    }
}

#[test]
fn a_window_whose_limit_was_raised_follows_within_minutes() {
    let mut now = Instant::now();
    let mut loss = Loss::new(now);
    find(&mut loss, 50, 1000, &mut now);
    find(&mut loss, 500, 1200, &mut now);
    assert!(loss.window() > 300.0, "{}", loss.window());
}

#[test]
fn ten_thousand_slow_streams_are_up_in_half_a_minute() {
    let start = Instant::now();
    let (mut pace, mut now) = (Pace::new(start), start);
    let mut waiting: std::collections::VecDeque<(Instant, Ticket)> = std::collections::VecDeque::new();
    let mut up = 0;
    while up < 10_000 {
        now += ms(1);
        while waiting.front().is_some_and(|(sent, _)| now - *sent >= ms(500)) {
            let (_, ticket) = waiting.pop_front().unwrap();
            pace.content(&ticket, now);
            up += 1;
        }
        while let Ok(ticket) = pace.admit(call(1.0), now) {
            waiting.push_back((now, ticket));
        }
    }
    assert!(now - start < Duration::from_secs(30), "{:?}", now - start);
}

#[test]
fn the_doubling_starts_again_after_idle_and_growth_too_fast_halves() {
    let mut now = Instant::now();
    let mut loss = Loss::new(now);
    find(&mut loss, 100, 1000, &mut now);
    now += Duration::from_mins(2);
    let before = loss.window();
    let number = loss.admit(now).expect("one call");
    assert_eq!(loss.admit(now), Err(Hold::Window), "and no more before it is clean");
    loss.clean(number, ms(500));
    assert!((loss.window() - 2.0).abs() < FUZZ && before > 50.0, "{before}");

    let mut loss = Loss::new(now);
    loss.lift();
    let numbers: Vec<u64> = (0..100).map(|_| loss.admit(now).unwrap()).collect();
    loss.lost(numbers[50], Overload::Ramp, None, now, 0.0);
    assert!((loss.window() - 50.0).abs() < FUZZ);
    loss.lost(numbers[60], Overload::Ramp, None, now, 0.0);
    assert!((loss.window() - 50.0).abs() < FUZZ, "sent before the last decrease: old news");
}

#[test]
fn estimates_follow_what_calls_cost_and_never_ask_for_max_tokens() {
    let mut estimates = Estimates::default();
    let first = estimates.of("q", "m", 3500);
    assert_eq!((first.requests, first.output), (1.0, OUTPUT_FIRST));
    assert!((first.input - 3500.0 / BYTES_PER_TOKEN).abs() < FUZZ);
    for _ in 0..500 {
        // Nine tenths come from the cache, which is free; answers of two queues differ.
        estimates.learn("short", "m", 3500, 100.0, 20.0);
        estimates.learn("long", "m", 3500, 100.0, 4000.0);
    }
    let (short, long) = (estimates.of("short", "m", 3500), estimates.of("long", "m", 3500));
    assert!((short.input - 100.0).abs() < 5.0 && (long.input - 100.0).abs() < 5.0, "{short:?}");
    assert!(short.output < 30.0 && long.output > 3800.0, "{short:?} {long:?}");
    assert_eq!(estimates.of("short", "other", 3500), first, "of another model nothing is known");
}

#[test]
fn estimates_are_bounded_however_many_queues_there_are() {
    let mut estimates = Estimates::default();
    for queue in 0..5000 {
        estimates.learn(&queue.to_string(), "m", 10, 1.0, 700.0);
    }
    assert!(estimates.len() <= 1026, "{}", estimates.len());
    assert!(estimates.of("4999", "m", 10).output > 600.0, "those without a memory of their own share one");
}

#[test]
fn pauses_for_a_limit_that_is_known_grow_until_a_call_gets_through() {
    let (mut pace, mut now) = (Pace::new(Instant::now()), Instant::now());
    pace.configure(Each { requests: Some(600_000.0), ..Each::default() });
    let mut budget = Budget::default();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        draw(&mut pace, &mut budget, now);
        let flight = [now, now + ms(10)].map(|at| pace.admit(call(1.0), at).unwrap());
        now += ms(20);
        for ticket in flight {
            pace.end(ticket, Spent::Refused(Overload::Limit, None), now, 0.0);
        }
        let Err(Hold::Until(until)) = pace.admit(call(1.0), now) else { panic!("it pauses") };
        pauses.push((until - now).as_millis());
        now = until;
    }
    assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000], "once for each flight");
    draw(&mut pace, &mut budget, now);
    let ticket = pace.admit(call(1.0), now).unwrap();
    pace.content(&ticket, now);
    pace.end(ticket, Spent::Refused(Overload::Limit, None), now, 0.0);
    assert_eq!(pace.admit(call(1.0), now).unwrap_err(), Hold::Until(now + ms(250)));
}

#[test]
fn a_configured_limit_that_the_api_refuses_is_doubted_and_one_that_it_names_is_not() {
    let now = Instant::now();
    let mut later = now;
    let mut refuse = |pace: &mut Pace, calls: u32| {
        for _ in 0..calls {
            later += Duration::from_secs(15);
            draw(pace, &mut Budget::default(), later);
            let ticket = pace.admit(call(1.0), later).expect("no pause is as long");
            pace.end(ticket, Spent::Refused(Overload::Limit, None), later, 0.0);
        }
        pace.slots(call(1.0), later + Duration::from_secs(15))
    };
    let (mut configured, _) = allowed(6000.0, now);
    assert_eq!(refuse(&mut configured, DOUBTED - 1), 100, "a second's worth");
    assert_eq!(refuse(&mut configured, 1), 1, "as where nobody knows a limit");
    let mut told = configured.clone();
    told.learn(&said(6000, 6000, now), now);
    assert_eq!(refuse(&mut told, 2 * DOUBTED), 100, "its word is believed");
}
