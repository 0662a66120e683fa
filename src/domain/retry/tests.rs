//! The error table of the API, row by row, and the laws of the delay curve.

use proptest::prelude::*;

use super::*;

fn api(status: u16, kind: &str, code: Option<&str>, message: &str) -> Failure {
    Failure::Api(ApiError {
        status,
        kind: kind.into(),
        code: code.map(str::to_owned),
        message: message.into(),
        retry_after: None,
        should_retry: None,
    })
}

fn curve() -> Curve {
    Curve { base: Duration::from_secs(1), max: Duration::from_mins(2), still: Instant::now() }
}

fn with() -> Circumstances {
    Circumstances {
        tally: Tally::default(),
        failures_max: 5,
        excused: false,
        model_named: false,
        blame: None,
        dice: 1.0,
        curve: curve(),
    }
}

const COSTS: Class = Class::Sick { hint: None, costs: true };
const FREE: Class = Class::Sick { hint: None, costs: false };
const LIMIT: Class = Class::Limit { hint: None, ramp: false };

#[test]
fn each_error_of_the_api_has_its_class() {
    let invalid = "invalid_request_error";
    for (status, kind, code, message, wanted) in [
        (400, invalid, None, "messages.0.content: field required", Class::Job),
        (400, invalid, None, "prompt is too long: 200251 tokens > 200000 maximum", Class::Job),
        (400, invalid, None, "Your credit balance is too low to access the Anthropic API.", Class::Account),
        (400, invalid, None, "You have reached your specified API usage limits.", Class::Account),
        (400, invalid, None, "You have reached your specified workspace API usage limits.", Class::Account),
        (400, invalid, None, "bad text: Your credit balance is too low", Class::Job),
        (400, invalid, Some("organization_on_hold"), "", Class::Account),
        (400, invalid, Some("cmek_key_disabled"), "", Class::Account),
        (400, invalid, Some("request_body_timeout"), "", COSTS),
        (401, "authentication_error", None, "invalid x-api-key", Class::Suspect),
        (402, "billing_error", None, "", Class::Suspect),
        (402, "billing_error", Some("linked_organization_spend_limit_reached"), "", Class::Job),
        (402, "billing_error", Some("linked_organization_billing_unavailable"), "", Class::Job),
        (403, "permission_error", None, "", Class::Suspect),
        (403, "permission_error", Some("api_key_scope_missing"), "", Class::Account),
        (403, "permission_error", Some("user_profile_suspended"), "", Class::Job),
        (404, "not_found_error", None, "model: claude-3-opus", Class::Model),
        (404, "not_found_error", Some("file_expired"), "", Class::Job),
        (404, "", None, "The model `x` does not exist", Class::Model),
        (404, "", None, "model 'x' not found", Class::Model),
        (404, "not_found_error", None, "skill abc is not available for model claude-x", Class::Job),
        (404, "", None, "<html>404 Not Found", Class::Job),
        (408, "timeout_error", None, "", COSTS),
        (409, "conflict_error", None, "", COSTS),
        (412, "", None, "", Class::Job),
        (413, "request_too_large", None, "", Class::Job),
        (422, invalid, None, "", Class::Job),
        (429, "rate_limit_error", None, "", LIMIT),
        (429, "rate_limit_error", Some("ramp_limit_exceeded"), "", Class::Limit { hint: None, ramp: true }),
        (429, "rate_limit_error", Some("enforced_spend_limit_reached"), "", Class::Account),
        (429, "rate_limit_error", Some("contract_spend_limit_reached"), "", Class::Account),
        (429, "rate_limit_error", Some("a_code_of_tomorrow"), "", LIMIT),
        (500, "api_error", None, "", COSTS),
        (501, "", None, "", Class::Job),
        (502, "", None, "<html>", COSTS),
        (503, "", None, "", FREE),
        (503, "api_error", Some("cmek_key_unreachable"), "", FREE),
        (504, "timeout_error", None, "", COSTS),
        (529, "overloaded_error", None, "", FREE),
        (200, "overloaded_error", None, "", FREE),
        (200, "api_error", None, "", COSTS),
        (200, "rate_limit_error", None, "", LIMIT),
        (200, "authentication_error", None, "", Class::Suspect),
        (200, "invalid_request_error", None, "", Class::Job),
        (200, "an_error_of_tomorrow", None, "", COSTS),
    ] {
        assert_eq!(
            class(&api(status, kind, code, message), false),
            wanted,
            "{status} {kind} {code:?} {message}"
        );
    }
    assert_eq!(class(&Failure::Unsent("dns".into()), false), FREE);
    for lost in [Lost::Reset, Lost::FirstEvent, Lost::Idle, Lost::Total] {
        assert_eq!(class(&Failure::Lost(lost, String::new()), false), COSTS);
    }
    assert_eq!(class(&Failure::Unended, false), COSTS);
    assert_eq!(class(&Failure::Unreadable("html".into()), false), COSTS);
    assert_eq!(class(&Failure::TooLarge("api.event_max_bytes".into()), false), Class::Job);
    assert_eq!(class(&Failure::Stopped, false), Class::Ours);
}

#[test]
fn an_answer_larger_than_we_take_ends_the_job_and_is_no_sickness_of_the_provider() {
    let failure = Failure::TooLarge("the reply is larger than api.response_max_bytes = 5".into());
    assert_eq!(class(&failure, false).health(), Some(Health::Well));
    let Disposition::End { outcome, fault, .. } = decided(&failure, with()).job else {
        panic!("the next answer would be as large")
    };
    assert_eq!((outcome, fault.kind.as_str()), (Outcome::Failed, "response_too_large"));
    assert!(fault.message.contains("api.response_max_bytes = 5"), "{}", fault.message);
}

#[test]
fn a_refused_prefill_is_asked_again_only_where_one_was_sent() {
    let refused =
        api(400, "invalid_request_error", None, "This model does not support assistant message prefill.");
    assert_eq!(class(&refused, true), Class::Prefill);
    assert_eq!(class(&refused, false), Class::Job);
}

#[test]
fn the_servers_word_on_retrying_comes_before_ours() {
    let mut error = ApiError { status: 500, should_retry: Some(false), ..ApiError::default() };
    assert_eq!(class(&Failure::Api(error.clone()), false), Class::Job);
    error = ApiError { status: 418, should_retry: Some(true), ..ApiError::default() };
    assert_eq!(class(&Failure::Api(error), false), COSTS);
}

fn decided(failure: &Failure, with: Circumstances) -> Decision {
    decide(failure, &class(failure, false), with)
}

#[test]
fn the_fifth_failure_ends_the_job_and_the_fourth_does_not() {
    let failure = api(500, "api_error", None, "boom");
    let mut at = with();
    at.tally.failures = 3;
    let Disposition::Back { tally, delay, .. } = decided(&failure, at).job else { panic!("still alive") };
    assert_eq!((tally.failures, delay), (4, Some(Duration::from_secs(8))));
    at.tally.failures = 4;
    let Disposition::End { outcome, tally, .. } = decided(&failure, at).job else {
        panic!("the fifth ends it")
    };
    assert_eq!((outcome, tally.failures), (Outcome::Failed, 5));
}

#[test]
fn limits_overload_and_lost_connections_cost_no_failure() {
    for failure in [
        api(429, "rate_limit_error", None, ""),
        api(529, "overloaded_error", None, ""),
        api(503, "", None, ""),
        Failure::Unsent("refused".into()),
    ] {
        let mut at = with();
        at.tally.failures = 4;
        let Disposition::Back { tally, .. } = decided(&failure, at).job else {
            panic!("{failure:?} ended the job")
        };
        assert_eq!((tally.failures, tally.deferrals), (4, 1), "{failure:?}");
    }
    for code in [None, Some("ramp_limit_exceeded"), Some("a_code_of_tomorrow")] {
        let limit = api(429, "rate_limit_error", code, "");
        let mut at = with();
        at.tally.failures = 4;
        for nth in 1..=100 {
            let Disposition::Back { tally, .. } = decided(&limit, at).job else {
                panic!("the {nth}th {code:?} ended the job")
            };
            assert_eq!(tally.failures, 4, "the {nth}th {code:?}");
            at.tally = tally;
        }
        let overload = decided(&api(529, "overloaded_error", None, ""), at);
        let Disposition::Back { tally, .. } = overload.job else { panic!("an overload behind {code:?}") };
        assert_eq!(tally.failures, 4, "limits are no part of what is paid for later");
    }
}

#[test]
fn rate_limits_in_a_row_are_waited_for_ever_longer() {
    let limit = api(429, "rate_limit_error", None, "");
    let mut at = with();
    let mut waited = Vec::new();
    for _ in 0..10 {
        let Disposition::Back { tally, delay, .. } = decided(&limit, at).job else { panic!("ended") };
        waited.push(delay.expect("a pause").as_secs());
        at.tally = tally;
    }
    assert_eq!(waited, [1, 2, 4, 8, 16, 32, 64, 120, 120, 120]);
    at.tally = at.tally.after_answer();
    let Disposition::Back { delay, .. } = decided(&limit, at).job else { panic!("ended") };
    assert_eq!(delay, Some(Duration::from_secs(1)), "an answer ends the row");
}

#[test]
fn an_answer_between_makes_deferrals_no_row() {
    let overload = api(529, "overloaded_error", None, "");
    let mut at = with();
    at.tally.failures = 4;
    for nth in 1..=200 {
        if nth % DEFERRALS_FREE == 0 {
            at.tally = at.tally.after_answer();
        }
        let Disposition::Back { tally, .. } = decided(&overload, at).job else { panic!("the {nth}th paid") };
        assert_eq!(tally.failures, 4, "an answer forgives deferrals, and no failure");
        at.tally = tally;
    }
}

#[test]
fn a_job_deferred_thirty_times_starts_to_pay() {
    let failure = api(529, "overloaded_error", None, "");
    let mut at = with();
    at.tally.deferrals = DEFERRALS_FREE - 1;
    let Disposition::Back { tally, .. } = decided(&failure, at).job else { panic!("the thirtieth is free") };
    assert_eq!((tally.failures, tally.deferrals), (0, DEFERRALS_FREE));
    at.tally = tally;
    let Disposition::Back { tally, .. } = decided(&failure, at).job else {
        panic!("one failure is not the end")
    };
    assert_eq!(tally.failures, 1);
}

#[test]
fn a_probe_and_a_blocked_breaker_excuse_what_would_cost() {
    let failure = api(500, "api_error", None, "");
    let at = Circumstances { excused: true, tally: Tally { failures: 4, ..Tally::default() }, ..with() };
    let Disposition::Back { tally, .. } = decided(&failure, at).job else { panic!("excused") };
    assert_eq!((tally.failures, tally.deferrals), (4, 1));
    let at = Circumstances { excused: true, tally: Tally { failures: 4, ..Tally::default() }, ..with() };
    let overloaded = decided(&api(529, "overloaded_error", None, ""), at);
    let Disposition::Back { tally, .. } = overloaded.job else { panic!("excused") };
    assert_eq!((tally.failures, tally.deferrals), (4, 0), "an overload is never the job's own");
}

#[test]
fn a_job_that_breaks_every_probe_is_not_the_probe_for_ever() {
    let failure = api(500, "api_error", None, "");
    let mut at = Circumstances { excused: true, ..with() };
    let probes = (1..1000).find(|_| match decided(&failure, at).job {
        Disposition::Back { tally, .. } => {
            at.tally = tally;
            false
        }
        _ => true,
    });
    assert_eq!(probes, Some(DEFERRALS_FREE + at.failures_max));
}

#[test]
fn shutdown_costs_no_failure() {
    let at = Circumstances { tally: Tally { failures: 4, ..Tally::default() }, ..with() };
    let Disposition::Back { tally, delay, .. } = decided(&Failure::Stopped, at).job else {
        panic!("shutdown")
    };
    assert_eq!((tally.failures, delay), (4, None));
}

#[test]
fn one_jobs_forbidden_wish_does_not_block_the_key() {
    let failure = api(403, "permission_error", None, "not for you");
    assert_eq!(decided(&failure, with()).news, News::Refused);
    let blamed = |blame| decided(&failure, Circumstances { blame: Some(blame), ..with() });
    assert_eq!(blamed(Blame::Job).news, News::Refused);
    assert_eq!(blamed(Blame::Key).news, News::KeyBlocked(KEY_REST));
}

#[test]
fn only_a_check_that_says_something_puts_the_blame_on_anybody() {
    let said = |status: u16| blame(&Err(api(status, "", None, "")));
    assert_eq!(blame(&Ok(())), Blame::Job);
    assert_eq!([401, 402, 403].map(said), [Blame::Key; 3]);
    assert_eq!([400, 404, 405, 422, 501].map(said), [Blame::Job; 5], "no such list, so the key is taken");
    assert_eq!([408, 429, 500, 502, 503, 529].map(said), [Blame::Nobody(None); 6]);
    for failure in [
        Failure::Unsent("dns".into()),
        Failure::Lost(Lost::Reset, String::new()),
        Failure::Lost(Lost::FirstEvent, String::new()),
        Failure::Unreadable("<html>".into()),
        Failure::Unended,
    ] {
        assert_eq!(blame(&Err(failure.clone())), Blame::Nobody(None), "{failure:?}");
    }
    let hint = Some(Duration::from_secs(7));
    let limited = ApiError { status: 429, retry_after: hint, ..ApiError::default() };
    assert_eq!(blame(&Err(Failure::Api(limited))), Blame::Nobody(hint));
}

#[test]
fn a_job_that_nobody_found_at_fault_goes_back_and_does_not_go_back_for_ever() {
    let failure = api(403, "permission_error", None, "not for you");
    let mut at = with();
    at.blame = Some(Blame::Nobody(Some(Duration::from_secs(7))));
    let decision = decided(&failure, at);
    assert_eq!(decision.news, News::Nothing, "neither the key's gate nor the batch's");
    let Disposition::Back { delay, tally, reason } = decision.job else { panic!("nobody knows") };
    assert_eq!((tally.failures, tally.deferrals), (0, 1));
    assert!(reason.ends_with("(403), and the API did not say whether the key is good"), "{reason}");
    assert_eq!(delay, Some(Duration::from_secs(8)), "not before the check may be made again");
    at.excused = true;
    let tries = (1..1000).find(|_| match decided(&failure, at).job {
        Disposition::Back { tally, .. } => {
            at.tally = tally;
            false
        }
        _ => true,
    });
    assert_eq!(tries, Some(DEFERRALS_FREE + at.failures_max), "a server that never tells");
}

#[test]
fn an_account_without_credit_blocks_the_key_and_leaves_the_job_untouched() {
    let failure = api(400, "invalid_request_error", None, "Your credit balance is too low to access");
    let decision = decided(&failure, with());
    assert_eq!(decision.news, News::KeyBlocked(KEY_REST));
    assert!(matches!(
        decision.job,
        Disposition::Back { delay: None, tally: Tally { failures: 0, deferrals: 0, .. }, .. }
    ));
}

#[test]
fn a_missing_model_fails_the_job_that_named_it_and_blocks_the_default_otherwise() {
    let failure = api(404, "not_found_error", None, "model: nope");
    assert_eq!(decided(&failure, with()).news, News::ModelMissing);
    let named = decided(&failure, Circumstances { model_named: true, ..with() });
    assert!(matches!(named.job, Disposition::End { outcome: Outcome::Failed, .. }));
}

#[test]
fn the_reason_of_a_wait_never_quotes_the_apis_message() {
    let failure = api(429, "rate_limit_error", Some("ramp_limit_exceeded"), "secret prompt");
    assert_eq!(reason(&failure), "rate_limit_error (429, ramp_limit_exceeded)");
    assert_eq!(reason(&Failure::Lost(Lost::Idle, "x".into())), "connection (idle_timeout)");
}

#[test]
fn sampling_parameters_are_explained() {
    let text = fault(&api(400, "invalid_request_error", None, "temperature: not permitted")).message;
    assert!(text.contains("[models.\"NAME\"] version"), "{text}");
}

#[test]
fn the_same_typing_error_has_one_signature_whatever_the_row() {
    let sign = |message: &str| match api(400, "invalid_request_error", None, message) {
        Failure::Api(error) => signature(&error),
        _ => unreachable!(),
    };
    assert_eq!(sign("messages.0: unknown field 'tempo' at 17"), sign("messages.3: unknown field 'x y' at 4"));
    assert_ne!(sign("messages.0: unknown field"), sign("messages.0: missing field"));
}

proptest! {
    #[test]
    fn the_delay_curve_is_bounded_and_monotone(base in 1_u64..10_000, factor in 1_u64..1000, attempt in 0_i32..200) {
        let curve = Curve {
            base: Duration::from_millis(base),
            max: Duration::from_millis(base * factor),
            still: Instant::now(),
        };
        let bound = curve.bound(attempt);
        prop_assert!(bound <= curve.max);
        prop_assert!(bound >= curve.base.min(curve.max));
        prop_assert!(curve.bound(attempt + 1) >= bound);
    }

    #[test]
    fn a_delay_is_never_below_the_hint_nor_above_hint_and_bound(attempt in 0_i32..40, hint in 0_u64..3600, dice in 0.0..1.0_f64) {
        let hint = Duration::from_secs(hint);
        let delay = curve().delay(attempt, Some(hint), dice);
        prop_assert!(delay >= hint);
        prop_assert!(delay <= hint + curve().bound(attempt));
        prop_assert!(curve().delay(attempt, None, dice) <= curve().bound(attempt));
    }

    #[test]
    fn unknown_stop_reasons_survive_a_round_trip(word in ".*") {
        let stop = crate::domain::stop::StopReason::from(word.as_str());
        prop_assert_eq!(stop.as_str(), word);
    }
}

#[test]
fn a_spent_limit_rests_longer_and_says_when_the_api_says_that_it_ends() {
    let spent = api(429, "rate_limit_error", Some("enforced_spend_limit_reached"), "");
    assert_eq!(decided(&spent, with()).news, News::KeyBlocked(LIMIT_REST));
    assert!(reason(&spent).contains("it ends with the month, on the 1st at 00:00 UTC"), "{}", reason(&spent));
    let sentence = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.";
    let limit = api(400, "invalid_request_error", None, sentence);
    assert_eq!(decided(&limit, with()).news, News::KeyBlocked(LIMIT_REST));
    assert!(reason(&limit).ends_with("it ends on 2026-12-01 at 00:00 UTC"), "{}", reason(&limit));
    let odd =
        "You have reached your specified API usage limits. You will regain access on <my prompt> at once!!!!";
    assert!(!reason(&api(400, "invalid_request_error", None, odd)).contains("prompt"));
}

#[test]
fn a_hint_makes_a_keys_rest_longer_and_never_shorter() {
    let blocked = |code: Option<&str>, message: &str, hint: u64| {
        let Failure::Api(error) = api(400, "invalid_request_error", code, message) else { unreachable!() };
        let hint = Some(Duration::from_secs(hint));
        match decided(&Failure::Api(ApiError { retry_after: hint, ..error }), with()).news {
            News::KeyBlocked(rest) => rest,
            news => panic!("{news:?}"),
        }
    };
    let credit = "Your credit balance is too low to access the Anthropic API.";
    assert_eq!(blocked(None, credit, 0), KEY_REST);
    assert_eq!(blocked(None, credit, 1200), Duration::from_mins(20));
    assert_eq!(blocked(None, credit, 100_000), LIMIT_REST, "somebody may have acted long before");
    assert_eq!(blocked(Some("enforced_spend_limit_reached"), "", 1), LIMIT_REST);
}

#[test]
fn a_container_that_is_gone_has_a_code_of_its_own() {
    for (status, message, code) in [
        (400, "Container container_01 has expired.", Some("container_expired")),
        (404, "container not found: container_01", Some("container_expired")),
        (400, "container: Input should be a string", None),
        (500, "the container has expired", None),
    ] {
        let error = ApiError { status, message: message.into(), ..ApiError::default() };
        let fault = fault(&Failure::Api(error));
        assert_eq!(fault.code.as_deref(), code, "{message}");
        assert_eq!(fault.message.contains("run the job again"), code.is_some());
    }
}
