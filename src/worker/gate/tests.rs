//! What blocks, for whom, and what opens it again.

use std::collections::HashMap;

use super::*;
use crate::domain::job::{Claimed, Defaults, JobId, Lease, Policy, Tally};

fn gates() -> Gates {
    let settings = BreakerSettings {
        failures_in_a_row: 3,
        window: Duration::from_mins(1),
        calls_min: 100,
        share: 0.5,
        open: Duration::from_secs(15),
        open_max: Duration::from_mins(1),
        probe_lease: Duration::from_mins(1),
    };
    Gates::new(settings, "default", "12345678".into())
}

fn job(id: i64, model: &str, batch: Option<&str>) -> Job {
    let defaults = Defaults {
        model: "m".into(),
        max_tokens: None,
        policy: Policy::default(),
        mcp_servers: false,
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
        tally: Tally::default(),
        calls: Vec::new(),
    };
    Job::read(&claimed, &defaults).expect("valid")
}

fn fall(gates: &Gates, model: &str, now: Instant) {
    for _ in 0..3 {
        let permit = gates.admit(&job(1, model, None), now).expect("flowing");
        permit.fail(Health::Sick, "overloaded_error (529)", now, 0.5);
    }
}

fn blocked(gates: &Gates, now: Instant) -> Blocked {
    match gates.open(now) {
        Open::All(blocked) => blocked,
        other => panic!("the key blocks: {other:?}"),
    }
}

#[test]
fn a_sick_model_is_passed_by_and_the_others_flow_on() {
    let (gates, now) = (gates(), Instant::now());
    fall(&gates, "sick", now);
    assert_eq!(blocked(&gates, now).models, ["sick"]);
    assert!(gates.admit(&job(2, "sick", None), now).is_err());
    assert!(gates.admit(&job(3, "well", None), now).is_ok());
}

#[test]
fn one_probe_goes_and_its_first_content_opens_the_gate() {
    let (gates, now) = (gates(), Instant::now());
    fall(&gates, "m", now);
    let later = now + Duration::from_secs(20);
    assert_eq!(blocked(&gates, later).probes, ["m"]);
    let probe = gates.admit(&job(1, "m", None), later).expect("a probe is due");
    assert!(probe.is_probe());
    assert_eq!(blocked(&gates, later).models, ["m"], "one probe at a time");
    probe.content(later);
    assert_eq!(blocked(&gates, later), Blocked::default());
    assert!(!probe.fail(Health::Sick, "cut", later, 0.5), "one failure after that blocks nothing");
}

#[test]
fn a_probe_that_never_asked_is_given_back() {
    let (gates, now) = (gates(), Instant::now());
    fall(&gates, "m", now);
    let later = now + Duration::from_secs(20);
    drop(gates.admit(&job(1, "m", None), later).expect("a probe is due"));
    assert!(gates.admit(&job(1, "m", None), later).is_ok());
}

#[test]
fn a_key_without_credit_stops_everything_and_lets_one_call_ask_after_its_rest() {
    let (gates, now) = (gates(), Instant::now());
    gates.block_key("credit", now);
    assert_eq!(gates.open(now), Open::Nothing);
    assert_eq!(gates.held(), None);
    let rested = now + KEY_REST;
    assert_eq!(gates.open(rested), Open::Probe(Blocked::default()));
    let probe = gates.admit(&job(1, "m", None), rested).expect("one may ask");
    assert_eq!(gates.open(rested), Open::Nothing, "one at a time");
    assert!(gates.admit(&job(2, "m", None), rested).is_err());
    probe.accept(&job(1, "m", None), rested);
    assert_eq!(gates.open(rested), Open::All(Blocked::default()));
}

#[test]
fn a_rate_limit_holds_its_model_back_until_the_hint_has_passed() {
    let (gates, now) = (gates(), Instant::now());
    drop(gates.admit(&job(1, "m", None), now));
    gates.limited("m", Some(Duration::from_secs(7)), now);
    assert_eq!(blocked(&gates, now).models, ["m"]);
    assert_eq!(blocked(&gates, now + Duration::from_secs(7)), Blocked::default());
}

#[test]
fn a_typing_error_in_a_labelled_batch_stops_that_batch_after_twenty() {
    let (gates, now) = (gates(), Instant::now());
    for _ in 0..19 {
        gates.refused(&job(1, "m", Some("b")), "same".into());
    }
    assert_eq!(blocked(&gates, now), Blocked::default());
    gates.admit(&job(1, "m", Some("b")), now).expect("flowing").accept(&job(1, "m", Some("b")), now);
    for _ in 0..20 {
        assert_eq!(blocked(&gates, now), Blocked::default(), "an answer in between starts the count anew");
        gates.refused(&job(1, "m", Some("b")), "same".into());
        gates.refused(&job(1, "m", None), "same".into());
    }
    assert_eq!(blocked(&gates, now).batches, [("q".to_owned(), "b".to_owned())]);
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

#[test]
fn a_model_that_was_not_there_is_remembered_for_the_jobs_that_name_it() {
    let (gates, now) = (gates(), Instant::now());
    let fault = Fault::new("not_found_error", None, "model: nope");
    gates.remember_missing("nope", fault.clone(), now);
    assert_eq!(gates.admit(&job(1, "nope", None), now).err(), Some(Refusal::Missing(fault)));
    assert!(gates.admit(&job(1, "nope", None), now + MISSING_FOR).is_ok());
}

#[test]
fn a_key_whose_probe_met_a_sick_model_is_probed_again() {
    let (gates, now) = (gates(), Instant::now());
    fall(&gates, "m", now);
    gates.block_key("credit", now);
    let rested = now + KEY_REST;
    let probe = gates.admit(&job(1, "m", None), rested).expect("one may ask, for both gates");
    assert!(probe.fail(Health::Sick, "overloaded_error (529)", rested, 0.5));
    assert!(matches!(gates.open(rested), Open::Probe(_)), "nobody probes: the key's gate would never open");
    assert!(gates.admit(&job(2, "well", None), rested).is_ok());
}

#[test]
fn a_person_opens_a_batch_whose_queue_has_a_slash_in_its_name() {
    let (gates, now) = (gates(), Instant::now());
    let row = |state: &str, generation| crate::store::GateRow {
        scope: "batch:team/etl/b".to_owned(),
        state: state.to_owned(),
        reason: None,
        until_in: None,
        generation,
    };
    gates.take_over(&row("blocked", 1), now);
    let stopped = blocked(&gates, now).batches;
    assert!(stopped.contains(&("team/etl".to_owned(), "b".to_owned())), "{stopped:?}");
    gates.take_over(&row("flowing", 2), now);
    assert_eq!(blocked(&gates, now), Blocked::default());
}
