//! What blocks, for whom, and what opens it again.

mod ramp;
mod rates;
mod words;

use std::collections::HashMap;

use super::sync::ANSWERED;
use super::*;
use crate::domain::job::{Claimed, Defaults, JobId, Lease, Policy, Tally};
use crate::domain::pace::Overload;
use crate::store::{Counters, DEFAULT_PROFILE, GateRow, IGNORED, Migrate, StoreSettings};

/// Gates of one account.
fn gates() -> Gates {
    gates_of(&Profiles::new(("default".to_owned(), KEY.to_owned())))
}

const KEY: &str = "12345678";

fn gates_of(profiles: &Profiles<(String, String)>) -> Gates {
    let settings = BreakerSettings {
        failures_in_a_row: 3,
        window: Duration::from_mins(1),
        calls_min: 100,
        share: 0.5,
        open: OPEN,
        open_max: Duration::from_mins(1),
        probe_lease: Duration::from_mins(1),
    };
    Gates::new(settings, PaceSettings::default(), profiles)
}

/// What shares a rate limit of the one account.
fn tier(class: &str) -> Tier {
    (KEY.to_owned(), class.to_owned())
}

const OPEN: Duration = Duration::from_secs(15);

/// A database for the gates to be shared through; the folder goes with the test.
async fn store() -> (tempfile::TempDir, std::sync::Arc<dyn Store>) {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = StoreSettings {
        schema: "promptmill".to_owned(),
        connections_max: 2,
        operation_max: Duration::from_secs(10),
        answers_once: true,
        connect_max: Duration::from_secs(10),
        listen_url: None,
        transaction_pooler: false,
    };
    let file = format!("sqlite:{}", folder.path().join("mill.db").display());
    let opened = crate::store::open(&file, &settings, Migrate::Now).await.expect("a database");
    (folder, opened.store)
}

/// Does what a person does.
async fn by_hand(folder: &tempfile::TempDir, sql: &str) {
    let file = format!("sqlite:{}", folder.path().join("mill.db").display());
    let pool = sqlx::SqlitePool::connect(&file).await.expect("the file");
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.expect("done");
    pool.close().await;
}

/// Moves the end of every block into the past.
fn let_time_pass(gates: &Gates) {
    let past = Instant::now();
    let mut inner = gates.lock();
    let Inner { keys, accounts, batches, .. } = &mut *inner;
    let end = |gate: &mut Gate| {
        if let State::Blocked { until: Some(_) } = gate.state() {
            let reason = gate.reason().unwrap_or_default().to_owned();
            gate.blocked_elsewhere(reason, Some(past), gate.blocks());
        }
    };
    keys.values_mut().map(|key| &mut key.gate).for_each(end);
    batches.values_mut().for_each(end);
    for id in accounts.iter().map(|(id, _)| id).collect::<Vec<_>>() {
        accounts[id].models.values_mut().map(Breaker::gate_mut).for_each(end);
    }
}

/// Asks to make a call, as an attempt does.
async fn admit<'g>(gates: &'g Gates, store: &dyn Store, job: &Job) -> Result<Permit<'g>, Refusal> {
    let lease = Lease { job: JobId(1), claim: 1, run: 1 };
    gates.admit(store, lease, job, 100, &CancellationToken::new()).await
}

fn refused(gates: &Gates, now: Instant) -> Vec<String> {
    gates.open(now).blocked.models.into_iter().map(|(_, model)| model).collect()
}

fn job(id: i64, model: &str, batch: Option<&str>) -> Job {
    let defaults = Defaults {
        model: "m".into(),
        max_tokens: None,
        policy: Policy::default(),
        mcp_servers: false,
        cache_turns: true,
        request_max: 1 << 25,
        models: HashMap::new(),
    };
    let claimed = Claimed {
        lease: Lease { job: JobId(id), claim: 1, run: 1 },
        queue: "q".into(),
        batch: batch.map(str::to_owned),
        prompt: Some("p".into()),
        system: None,
        model: Some(model.into()),
        max_tokens: None,
        params: None,
        policy: None,
        queue_model: None,
        queue_policy: None,
        garbled: None,
        bytes: 1,
        waited: None,
        tally: Tally::default(),
        calls: Vec::new(),
        tools: Vec::new(),
    };
    Job::read(&claimed, &defaults).expect("valid")
}

async fn fall(gates: &Gates, store: &dyn Store, model: &str) {
    for _ in 0..3 {
        let permit = admit(gates, store, &job(1, model, None)).await.expect("flowing");
        permit.fail(Health::Sick, "overloaded_error (529)", Instant::now(), 0.5);
    }
}

async fn refuse(gates: &Gates, store: &dyn Store, batch: Option<&str>) {
    let permit = admit(gates, store, &job(1, "m", batch)).await.expect("flowing");
    gates.refused(store, &permit, "400|same").await;
}

#[tokio::test]
async fn a_sick_model_is_passed_by_and_the_others_flow_on() {
    let (gates, (_folder, store)) = (gates(), store().await);
    fall(&gates, &*store, "sick").await;
    assert_eq!(refused(&gates, Instant::now()), ["sick"]);
    assert!(admit(&gates, &*store, &job(2, "sick", None)).await.is_err());
    assert!(admit(&gates, &*store, &job(3, "well", None)).await.is_ok());
}

#[tokio::test]
async fn one_probe_goes_and_its_first_content_opens_the_gate() {
    let (gates, (_folder, store)) = (gates(), store().await);
    fall(&gates, &*store, "m").await;
    let_time_pass(&gates);
    let now = Instant::now();
    assert_eq!(gates.open(now).rooms.models.get(&(String::new(), "m".to_owned())), Some(&1));
    let probe = admit(&gates, &*store, &job(1, "m", None)).await.expect("a probe is due");
    assert!(probe.is_probe());
    assert_eq!(refused(&gates, now), ["m"], "one probe at a time");
    probe.content(now);
    assert!(gates.all_flow());
    assert!(!probe.fail(Health::Sick, "cut", now, 0.5), "one failure after that blocks nothing");
}

#[tokio::test]
async fn of_two_daemons_one_probes_and_the_other_hears_what_came_of_it() {
    let (_folder, store) = store().await;
    let (here, there) = (gates(), gates());
    fall(&here, &*store, "m").await;
    here.sync(&*store, Instant::now()).await.expect("shared");
    there.sync(&*store, Instant::now()).await.expect("shared");
    assert_eq!(refused(&there, Instant::now()), ["m"]);
    let_time_pass(&here);
    let_time_pass(&there);
    let probe = admit(&here, &*store, &job(1, "m", None)).await.expect("a probe is due");
    assert!(admit(&there, &*store, &job(2, "m", None)).await.is_err(), "it did not even know of the probe");
    there.sync(&*store, Instant::now()).await.expect("shared");
    assert_eq!(refused(&there, Instant::now()), ["m"]);

    probe.fail(Health::Sick, "overloaded_error (529)", Instant::now(), 0.5);
    drop(probe);
    here.sync(&*store, Instant::now()).await.expect("shared");
    there.sync(&*store, Instant::now()).await.expect("shared");
    let_time_pass(&there);
    let probe = admit(&there, &*store, &job(2, "m", None)).await.expect("the next one is anybody's");
    probe.fail(Health::Sick, "overloaded_error (529)", Instant::now(), 0.5);
    drop(probe);
    let State::Blocked { until: Some(until) } =
        there.lock().accounts[ProfileId::DEFAULT].models["m"].gate().state()
    else {
        panic!("blocked")
    };
    let left = until.saturating_duration_since(Instant::now());
    assert!(left > OPEN * 3, "each failed probe doubles the wait, whoever made it: {left:?}");

    let_time_pass(&there);
    let probe = admit(&there, &*store, &job(2, "m", None)).await.expect("a probe is due");
    probe.content(Instant::now());
    there.sync(&*store, Instant::now()).await.expect("shared");
    here.sync(&*store, Instant::now()).await.expect("shared");
    assert!(here.all_flow(), "an answer to one is an answer to all");
}

#[tokio::test]
async fn a_probe_that_hangs_blocks_anew_and_once_whoever_sees_it_first() {
    let (_folder, store) = store().await;
    let (here, there) = (gates(), gates());
    fall(&here, &*store, "m").await;
    here.sync(&*store, Instant::now()).await.expect("shared");
    let_time_pass(&here);
    let probe = admit(&here, &*store, &job(1, "m", None)).await.expect("a probe is due");
    there.sync(&*store, Instant::now()).await.expect("shared");
    let late = Instant::now() + Duration::from_secs(61);
    assert_eq!(refused(&there, late), ["m"], "it is counted first");
    there.sync(&*store, late).await.expect("shared");
    here.sync(&*store, late).await.expect("shared");
    for gates in [&here, &there] {
        let inner = gates.lock();
        let gate = inner.accounts[ProfileId::DEFAULT].models["m"].gate();
        let State::Blocked { until: Some(until) } = gate.state() else { panic!("{gate:?}") };
        let left = until.saturating_duration_since(late);
        assert!(left > OPEN.mul_f64(1.5) && left < OPEN.mul_f64(2.5), "twice as long as before: {left:?}");
        assert_eq!(gate.blocks(), 2);
    }
    let row = store.gates().await.expect("gates").remove(0);
    assert_eq!((row.scope.as_str(), row.state.as_str()), ("model:default/m", "blocked"));
    drop(probe);
    assert_eq!(refused(&here, Instant::now()), ["m"], "nobody asks for what it finds out");
}

#[tokio::test]
async fn an_answer_to_one_daemon_ends_the_pause_of_the_overload_for_all() {
    let (_folder, store) = store().await;
    let (here, there) = (gates(), gates());
    let room = |gates: &Gates| gates.open(Instant::now()).rooms.classes.get(&tier("m")).copied();
    fall(&here, &*store, "m").await;
    here.sync(&*store, Instant::now()).await.expect("shared");
    let mut permit = admit(&there, &*store, &job(1, "m", None)).await.expect("not known there yet");
    let later = Instant::now() + Duration::from_mins(1);
    permit.spent(Spent::Refused(crate::domain::pace::Overload::Provider, None), later);
    drop(permit);
    there.sync(&*store, Instant::now()).await.expect("shared");
    assert_eq!(room(&there), Some(0), "until a minute has passed");
    let_time_pass(&here);
    let probe = admit(&here, &*store, &job(1, "m", None)).await.expect("a probe is due");
    probe.accept(Usage::default(), Instant::now());
    here.sync(&*store, Instant::now()).await.expect("shared");
    there.sync(&*store, Instant::now()).await.expect("shared");
    assert!(room(&there) > Some(0), "{:?}", room(&there));
}

#[tokio::test]
async fn a_gate_that_rests_is_not_paused_on_top_of_it() {
    let (gates, (_folder, store)) = (gates(), store().await);
    let room = || gates.open(Instant::now()).rooms.classes.get(&tier("m")).copied();
    for failure in 0..3 {
        assert_eq!(room().unwrap_or(1), 1, "failure {failure}");
        let mut permit = admit(&gates, &*store, &job(1, "m", None)).await.expect("flowing");
        if failure == 2 {
            let later = Instant::now() + Duration::from_mins(1);
            permit.spent(Spent::Refused(crate::domain::pace::Overload::Provider, None), later);
        }
        permit.fail(Health::Sick, "overloaded_error (529)", Instant::now(), 0.5);
    }
    assert_eq!(refused(&gates, Instant::now()), ["m"]);
    assert_eq!(room(), Some(1), "for the probe");
}

#[tokio::test]
async fn a_refused_call_keeps_its_place_until_it_is_counted() {
    let (gates, (_folder, store)) = (gates(), store().await);
    let room = || gates.open(Instant::now()).rooms.classes.get(&tier("m")).copied();
    let mut permit = admit(&gates, &*store, &job(1, "m", None)).await.expect("flowing");
    permit.spent(Spent::Nothing, Instant::now());
    assert_eq!(room(), Some(0));
    gates.refused(&*store, &permit, "400|same").await;
    assert_eq!(room(), Some(0));
    drop(permit);
    assert_eq!(room(), Some(1));
}

#[tokio::test]
async fn a_probe_that_never_asked_is_given_back() {
    let (gates, (_folder, store)) = (gates(), store().await);
    fall(&gates, &*store, "m").await;
    let_time_pass(&gates);
    drop(admit(&gates, &*store, &job(1, "m", None)).await.expect("a probe is due"));
    assert!(admit(&gates, &*store, &job(1, "m", None)).await.is_ok());
}

#[tokio::test]
async fn a_key_without_credit_stops_everything_and_lets_one_call_ask_after_its_rest() {
    let (gates, (_folder, store)) = (gates(), store().await);
    gates.block_key(KEY, "credit", Duration::from_mins(5), Instant::now());
    assert_eq!(gates.open(Instant::now()).slots, 0);
    assert_eq!(gates.held().profiles, [DEFAULT_PROFILE]);
    let_time_pass(&gates);
    assert_eq!(gates.open(Instant::now()).rooms.keys[KEY], 1);
    let probe = admit(&gates, &*store, &job(1, "m", None)).await.expect("one may ask");
    assert_eq!(gates.open(Instant::now()).slots, 0, "one at a time");
    assert!(admit(&gates, &*store, &job(2, "m", None)).await.is_err());
    probe.accept(Usage::default(), Instant::now());
    assert_eq!(gates.open(Instant::now()).slots, usize::MAX);
}

#[tokio::test]
async fn a_rate_limit_holds_its_class_back_everywhere_until_the_hint_has_passed() {
    let (_folder, store) = store().await;
    let (here, there) = (gates(), gates());
    let hint = Some(Duration::from_mins(1));
    let mut permit = admit(&here, &*store, &job(1, "claude-opus-4-8", None)).await.expect("flowing");
    permit.spent(Spent::Refused(crate::domain::pace::Overload::Limit, hint), Instant::now());
    drop(permit);
    here.sync(&*store, Instant::now()).await.expect("shared");
    there.sync(&*store, Instant::now()).await.expect("shared");
    for gates in [&here, &there] {
        assert_eq!(gates.open(Instant::now()).rooms.classes.get(&tier("opus-4")), Some(&0));
        assert!(admit(gates, &*store, &job(2, "claude-opus-4-6", None)).await.is_err(), "the same class");
        assert!(admit(gates, &*store, &job(3, "claude-haiku-4-5", None)).await.is_ok());
        assert_eq!(gates.held(), Blocked::default(), "it ends by itself");
    }
    let row = store.gates().await.expect("gates").remove(0);
    assert_eq!((row.scope.as_str(), row.state.as_str()), ("rate:12345678/opus-4", "blocked"));
    here.sync(&*store, Instant::now() + Duration::from_secs(80)).await.expect("shared");
    assert_eq!(store.gates().await.expect("gates").remove(0).state, "flowing");
}

#[tokio::test]
async fn one_call_goes_first_and_more_when_its_answer_has_begun() {
    let (gates, (_folder, store)) = (gates(), store().await);
    let (first, second) =
        (Lease { job: JobId(1), claim: 1, run: 1 }, Lease { job: JobId(2), claim: 1, run: 1 });
    let lane = Lane { queue: "q".to_owned(), batch: String::new() };
    gates.claimed(first, &lane, "m", Instant::now());
    assert_eq!(gates.open(Instant::now()).rooms.classes.get(&tier("m")), Some(&0), "one waits for its turn");
    let stop = CancellationToken::new();
    let permit = gates.admit(&*store, first, &job(1, "m", None), 100, &stop).await.expect("flowing");
    assert!(gates.is_limiting(Instant::now()), "one is in flight");
    stop.cancel();
    assert!(gates.admit(&*store, second, &job(2, "m", None), 100, &stop).await.is_err());
    permit.content(Instant::now());
    assert!(!gates.is_limiting(Instant::now()));
    permit.accept(Usage::default(), Instant::now());
    assert_eq!(gates.open(Instant::now()).rooms.classes.get(&tier("m")), Some(&2));
}

#[tokio::test]
async fn a_typing_error_in_a_labelled_batch_stops_that_batch_after_twenty_over_all_daemons() {
    let (_folder, store) = store().await;
    let (here, there) = (gates(), gates());
    for _ in 0..9 {
        refuse(&here, &*store, Some("b")).await;
        refuse(&there, &*store, Some("b")).await;
    }
    admit(&here, &*store, &job(1, "m", Some("b")))
        .await
        .expect("flowing")
        .accept(Usage::default(), Instant::now());
    here.sync(&*store, Instant::now()).await.expect("shared");
    for _ in 0..10 {
        assert!(here.open(Instant::now()).blocked.batches.is_empty(), "an answer starts the count anew");
        refuse(&here, &*store, Some("b")).await;
        refuse(&there, &*store, Some("b")).await;
    }
    there.sync(&*store, Instant::now()).await.expect("shared");
    here.sync(&*store, Instant::now()).await.expect("shared");
    for gates in [here, there] {
        assert_eq!(gates.open(Instant::now()).blocked.batches, [("q".to_owned(), "b".to_owned())]);
        assert!(admit(&gates, &*store, &job(1, "m", Some("other"))).await.is_ok());
    }
}

#[tokio::test]
async fn a_stop_is_written_although_others_count_refusals_at_the_same_time() {
    let (_folder, store) = store().await;
    let here = gates();
    for _ in 0..20 {
        refuse(&here, &*store, Some("b")).await;
    }
    // A call that was under way elsewhere: it is counted between our last look and our word.
    store.count_refusal("batch:q/b", "400|same").await.expect("counted");
    here.write_changes(&*store, Instant::now()).await.expect("an answer");
    assert_eq!(store.gates().await.expect("gates")[0].state, "flowing", "somebody was first");
    assert!(here.has_changes());
    here.sync(&*store, Instant::now()).await.expect("shared");
    assert_eq!(store.gates().await.expect("gates")[0].state, "blocked");
    assert!(!here.has_changes());
}

#[tokio::test]
async fn jobs_without_a_label_that_are_all_refused_are_tried_one_at_a_time_and_ever_more_seldom() {
    let (gates, (_folder, store)) = (gates(), store().await);
    for _ in 0..20 {
        refuse(&gates, &*store, None).await;
    }
    let lane = ("q".to_owned(), String::new());
    gates.sync(&*store, Instant::now()).await.expect("shared");
    assert_eq!(gates.open(Instant::now()).blocked.batches, std::slice::from_ref(&lane));
    assert_eq!(gates.held(), Blocked::default(), "it opens by itself");
    let mut longest = Duration::ZERO;
    for _ in 0..9 {
        let_time_pass(&gates);
        assert_eq!(gates.open(Instant::now()).rooms.batches.get(&lane), Some(&1));
        refuse(&gates, &*store, None).await;
        let State::Blocked { until: Some(until) } =
            gates.lock().batches.values().next().expect("one").state()
        else {
            panic!("blocked")
        };
        longest = until.saturating_duration_since(Instant::now());
    }
    assert!(longest > REFUSED_PAUSES.1 / 2 && longest <= REFUSED_PAUSES.1, "{longest:?}");
    let_time_pass(&gates);
    admit(&gates, &*store, &job(1, "m", None))
        .await
        .expect("one may ask")
        .accept(Usage::default(), Instant::now());
    assert!(gates.all_flow(), "one that succeeds is enough");
}

#[test]
fn an_unknown_batch_begins_with_one_job_and_gets_more_with_each_answer() {
    let gates = gates();
    let lane = Lane { queue: "q".to_owned(), batch: "b".to_owned() };
    assert_eq!(gates.open(Instant::now()).rooms.batch, Some(1));
    let lease = Lease { job: JobId(1), claim: 1, run: 1 };
    gates.claimed(lease, &lane, "m", Instant::now());
    assert_eq!(gates.open(Instant::now()).rooms.batches.get(&lane.pair()), Some(&0));
    gates.over(lease, &lane);
    assert_eq!(gates.open(Instant::now()).rooms.batches.get(&lane.pair()), Some(&1));
}

#[test]
fn one_batch_cannot_earn_the_key_a_block_but_three_can() {
    let gates = gates();
    for _ in 0..50 {
        assert!(!gates.suspect(&job(1, "m", Some("a"))));
    }
    for unlabelled in 2..50 {
        assert!(!gates.suspect(&job(unlabelled, "m", None)));
    }
    assert!(gates.suspect(&job(51, "m", Some("b"))));
}

#[tokio::test]
async fn a_model_that_was_not_there_is_remembered_for_the_jobs_that_name_it() {
    let (gates, (_folder, store)) = (gates(), store().await);
    let fault = Fault::new("not_found_error", None, "model: nope");
    let now = Instant::now();
    gates.remember_missing(&job(1, "nope", None), fault.clone(), now);
    let refusal = admit(&gates, &*store, &job(1, "nope", None)).await.err();
    assert_eq!(refusal, Some(Refusal::Missing(fault)));
    assert_eq!(gates.is_there(&job(1, "nope", None), now + MISSING_FOR), Ok(()));
}

#[tokio::test]
async fn a_key_whose_probe_met_a_sick_model_is_probed_again() {
    let (gates, (_folder, store)) = (gates(), store().await);
    fall(&gates, &*store, "m").await;
    gates.block_key(KEY, "credit", Duration::from_mins(5), Instant::now());
    let_time_pass(&gates);
    let probe = admit(&gates, &*store, &job(1, "m", None)).await.expect("one may ask, for both gates");
    assert!(probe.fail(Health::Sick, "overloaded_error (529)", Instant::now(), 0.5));
    drop(probe);
    assert_eq!(gates.open(Instant::now()).rooms.keys[KEY], 1, "else the key's gate would never open");
    assert!(admit(&gates, &*store, &job(2, "well", None)).await.is_ok());
}

fn row(scope: &str, state: &str, generation: i64) -> GateRow {
    GateRow {
        scope: scope.to_owned(),
        state: state.to_owned(),
        reason: None,
        until_in: None,
        generation,
        counters: None,
    }
}

#[test]
fn a_person_opens_a_batch_whose_queue_has_a_slash_in_its_name() {
    let (gates, now) = (gates(), Instant::now());
    gates.take_over(&row("batch:team%2Fetl/b", "blocked", 1), now);
    assert_eq!(gates.open(now).blocked.batches, [("team/etl".to_owned(), "b".to_owned())]);
    gates.take_over(&row("batch:team%2Fetl/b", "flowing", 2), now);
    assert!(gates.all_flow());
}

#[test]
fn after_a_persons_word_the_next_call_is_a_probe_and_after_an_answer_it_is_not() {
    let (gates, now) = (gates(), Instant::now());
    for (at, scope) in ["key:12345678", "model:default/m"].into_iter().enumerate() {
        let at = 10 * at as i64;
        gates.take_over(&row(scope, "blocked", at + 1), now);
        gates.take_over(&row(scope, "flowing", at + 2), now);
        assert!(!gates.all_flow(), "{scope}");
        let answered = Some(Counters { word: "answered".to_owned(), count: 0 });
        gates.take_over(&GateRow { counters: answered, ..row(scope, "flowing", at + 3) }, now);
        assert!(gates.all_flow(), "{scope}");
    }
}

#[tokio::test]
async fn a_batch_that_a_person_lets_fail_is_not_stopped_not_even_after_an_answer() {
    let (gates, (_folder, store)) = (gates(), store().await);
    for _ in 0..19 {
        refuse(&gates, &*store, Some("b")).await;
    }
    let ignored = Some(Counters { word: IGNORED.to_owned(), count: 0 });
    let rows = store.gates().await.expect("gates");
    let let_fail = GateRow { counters: ignored.clone(), ..rows[0].clone() };
    store.set_gate(&let_fail).await.expect("written").expect("nobody was first");
    let permit = admit(&gates, &*store, &job(1, "m", Some("b"))).await.expect("flowing");
    permit.accept(Usage::default(), Instant::now());
    gates.sync(&*store, Instant::now()).await.expect("shared");
    for _ in 0..25 {
        refuse(&gates, &*store, Some("b")).await;
    }
    let permit = admit(&gates, &*store, &job(1, "m", Some("b"))).await.expect("flowing");
    permit.accept(Usage::default(), Instant::now());
    gates.sync(&*store, Instant::now()).await.expect("shared");
    let row = store.gates().await.expect("gates").remove(0);
    assert_eq!((row.state.as_str(), row.counters), ("flowing", ignored));
    assert_eq!(gates.open(Instant::now()).rooms.batches[&("q".into(), "b".into())], usize::MAX);
}

#[tokio::test]
async fn a_batch_whose_jobs_were_answered_has_room_without_end() {
    let (gates, (_folder, store)) = (gates(), store().await);
    let lane = Lane { queue: "q".into(), batch: "b".into() };
    let lease = Lease { job: JobId(1), claim: 1, run: 1 };
    gates.claimed(lease, &lane, "m", Instant::now());
    for _ in 0..2_000 {
        admit(&gates, &*store, &job(1, "m", Some("b")))
            .await
            .expect("flowing")
            .accept(Usage::default(), Instant::now());
    }
    let rooms = gates.open(Instant::now()).rooms;
    assert!(rooms.batches[&lane.pair()] > 10_000, "not the room of a batch that nobody knows");
}

#[tokio::test]
async fn a_row_that_is_deleted_flows_and_its_generations_begin_anew() {
    let (gates, now) = (gates(), Instant::now());
    let (folder, store) = store().await;
    let held = || row("batch:q/b", "blocked", 0);
    store.set_gate(&held()).await.expect("written");
    gates.sync(&*store, now).await.expect("shared");
    assert_eq!(gates.open(now).blocked.batches.len(), 1);
    let file = format!("sqlite:{}", folder.path().join("mill.db").display());
    let pool = sqlx::SqlitePool::connect(&file).await.expect("the file");
    sqlx::query("DELETE FROM gates").execute(&pool).await.expect("deleted");
    gates.sync(&*store, now).await.expect("shared");
    assert!(gates.all_flow(), "deleted is freed");
    store.set_gate(&held()).await.expect("written");
    gates.sync(&*store, now).await.expect("shared");
    assert_eq!(gates.open(now).blocked.batches.len(), 1, "the same generation, but of another row");
}

#[tokio::test]
async fn a_row_that_a_person_made_and_deleted_flows() {
    let (gates, now) = (gates(), Instant::now());
    let (folder, store) = store().await;
    let file = format!("sqlite:{}", folder.path().join("mill.db").display());
    let pool = sqlx::SqlitePool::connect(&file).await.expect("the file");
    let made = "INSERT INTO gates (scope, state) VALUES ('batch:q/b', 'blocked')";
    sqlx::query(made).execute(&pool).await.expect("inserted");
    gates.sync(&*store, now).await.expect("shared");
    assert_eq!(gates.open(now).blocked.batches.len(), 1);
    sqlx::query("DELETE FROM gates").execute(&pool).await.expect("deleted");
    gates.sync(&*store, now).await.expect("shared");
    assert!(gates.all_flow(), "deleted is freed");
}

#[tokio::test]
async fn what_changed_long_before_it_could_be_seen_is_taken_over_all_the_same() {
    let (gates, now) = (gates(), Instant::now());
    let (folder, store) = store().await;
    store.set_gate(&row("batch:q/b", "blocked", 0)).await.expect("written");
    gates.sync(&*store, now).await.expect("shared");
    gates.sync(&*store, now).await.expect("shared");
    assert_eq!(gates.open(now).blocked.batches.len(), 1);
    // As by a transaction that began an hour ago.
    let file = format!("sqlite:{}", folder.path().join("mill.db").display());
    let pool = sqlx::SqlitePool::connect(&file).await.expect("the file");
    let freed =
        "UPDATE gates SET state = 'flowing', generation = generation + 1, changed_at = changed_at - 3600000";
    sqlx::query(freed).execute(&pool).await.expect("freed");
    gates.sync(&*store, now).await.expect("shared");
    assert!(gates.all_flow());
}

#[tokio::test]
async fn only_what_changed_is_read_again() {
    let (gates, now) = (gates(), Instant::now());
    let (folder, store) = store().await;
    let file = format!("sqlite:{}", folder.path().join("mill.db").display());
    let pool = sqlx::SqlitePool::connect(&file).await.expect("the file");
    let old = "INSERT INTO gates (scope, state, changed_at) VALUES ('batch:q/a', 'blocked', 1600000000000)";
    sqlx::query(old).execute(&pool).await.expect("inserted");
    gates.sync(&*store, now).await.expect("shared");
    // A change that neither its time nor the tally tells of: who reads the row sees it.
    let silent = "UPDATE gates SET scope = 'batch:q/c', generation = 0";
    sqlx::query("DROP TRIGGER gates_by_hand").execute(&pool).await.expect("dropped");
    sqlx::query(silent).execute(&pool).await.expect("changed");
    gates.sync(&*store, now).await.expect("shared");
    assert_eq!(gates.open(now).blocked.batches, [("q".to_owned(), "a".to_owned())]);
    gates.sync(&*store, now + Duration::from_mins(1)).await.expect("shared");
    assert_eq!(gates.open(now).blocked.batches, [("q".to_owned(), "c".to_owned())], "once a minute all are");
}

/// Of three accounts: two have one key. The queue `q` has the first, `second` and `third` have theirs.
fn three() -> Gates {
    let mut profiles = Profiles::new(("default".to_owned(), KEY.to_owned()));
    for (name, key) in [("second", KEY), ("third", "87654321")] {
        let id = profiles.add((name.to_owned(), key.to_owned()));
        profiles.choose(name, id);
    }
    gates_of(&profiles)
}

fn job_in(queue: &str) -> Job {
    Job { queue: queue.to_owned(), ..job(1, "m", None) }
}

#[tokio::test]
async fn a_blocked_key_stops_the_profiles_that_have_it_and_one_probe_asks_for_both() {
    let (gates, (_folder, store)) = (three(), store().await);
    gates.block_key(KEY, "credit", Duration::from_mins(5), Instant::now());
    let open = gates.open(Instant::now());
    assert_eq!((open.slots, open.blocked.profiles), (usize::MAX, vec![String::new(), "1".to_owned()]));
    assert_eq!(gates.held().profiles.len(), 2);
    for (queue, flows) in [("q", false), ("second", false), ("third", true)] {
        assert_eq!(admit(&gates, &*store, &job_in(queue)).await.is_ok(), flows, "{queue}");
    }
    let_time_pass(&gates);
    assert_eq!(gates.open(Instant::now()).rooms.keys, HashMap::from([(KEY.to_owned(), 1)]));
    let probe = admit(&gates, &*store, &job_in("second")).await.expect("one may ask");
    assert!(probe.is_probe());
    assert!(admit(&gates, &*store, &job_in("q")).await.is_err(), "one for both");
    probe.accept(Usage::default(), Instant::now());
    assert!(gates.all_flow());
    assert!(!admit(&gates, &*store, &job_in("q")).await.expect("flowing").is_probe());
    gates.sync(&*store, Instant::now()).await.expect("shared");
    assert_eq!(store.gates().await.expect("gates").len(), 1);
}

#[tokio::test]
async fn each_profile_has_breakers_of_its_own_and_each_key_a_pace() {
    let (gates, (_folder, store)) = (three(), store().await);
    for _ in 0..3 {
        let permit = admit(&gates, &*store, &job_in("second")).await.expect("flowing");
        permit.fail(Health::Sick, "overloaded_error (529)", Instant::now(), 0.5);
    }
    assert_eq!(gates.open(Instant::now()).blocked.models, [("1".to_owned(), "m".to_owned())]);
    assert!(admit(&gates, &*store, &job_in("q")).await.is_ok());
    let hint = Some(Duration::from_mins(1));
    let mut permit = admit(&gates, &*store, &job_in("q")).await.expect("flowing");
    permit.spent(Spent::Refused(crate::domain::pace::Overload::Limit, hint), Instant::now());
    drop(permit);
    let rooms = gates.open(Instant::now()).rooms;
    assert_eq!(rooms.classes.get(&tier("m")), Some(&0), "of both profiles that have the key");
    let rated = rooms.rated.expect("it is known");
    assert_eq!([rated("", "m"), rated("1", "m")], [tier("m"), tier("m")]);
    assert!(admit(&gates, &*store, &job_in("third")).await.is_ok());
}

#[tokio::test]
async fn a_new_key_begins_anew_and_who_has_the_old_one_keeps_what_is_known_of_it() {
    let (gates, (_folder, store)) = (three(), store().await);
    gates.block_key(KEY, "credit", Duration::from_mins(5), Instant::now());
    gates.sync(&*store, Instant::now()).await.expect("shared");
    gates.new_key(ProfileId::DEFAULT, "new".to_owned());
    assert!(admit(&gates, &*store, &job_in("q")).await.is_ok());
    assert!(admit(&gates, &*store, &job_in("second")).await.is_err());
    let second = gates.names.of("second");
    gates.new_key(second, "87654321".to_owned());
    assert!(gates.all_flow(), "nobody has the old key");
    gates.block_key(KEY, "a call that set out before", Duration::from_mins(5), Instant::now());
    assert!(gates.all_flow());
    // What the table says of a key counts when a profile has it again.
    gates.new_key(second, KEY.to_owned());
    gates.sync(&*store, Instant::now()).await.expect("shared");
    assert_eq!(gates.open(Instant::now()).blocked.profiles, ["1"]);
}
