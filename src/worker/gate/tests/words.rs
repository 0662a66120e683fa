//! A person's word against calls that were under way when it was said.

use super::*;

fn state_of_key(gates: &Gates) -> State {
    gates.lock().keys[KEY].gate.state()
}

#[test]
fn a_straggler_lifts_no_block_of_a_key_that_a_person_made_nor_shortens_one() {
    let (gates, now) = (gates(), Instant::now());
    let scope = format!("key:{KEY}");
    gates.take_over(&row(&scope, "blocked", 1), now);
    gates.block_key(KEY, "credit", Duration::from_mins(5), now);
    assert_eq!(state_of_key(&gates), State::Blocked { until: None }, "a person's");
    assert!(!gates.has_changes(), "the table says what the person said");

    let long = Duration::from_hours(2);
    gates.take_over(&GateRow { until_in: Some(long), ..row(&scope, "blocked", 2) }, now);
    gates.block_key(KEY, "credit", Duration::from_mins(5), now);
    assert_eq!(state_of_key(&gates), State::Blocked { until: Some(now + long) });
    gates.block_key(KEY, "a limit of the month", 2 * long, now);
    assert_eq!(state_of_key(&gates), State::Blocked { until: Some(now + 2 * long) }, "longer is news");
}

#[tokio::test]
async fn an_answer_to_a_probe_does_not_open_a_batch_that_a_person_blocked_meanwhile() {
    let (gates, (folder, store)) = (gates(), store().await);
    for _ in 0..20 {
        refuse(&gates, &*store, None).await;
    }
    gates.sync(&*store, Instant::now()).await.expect("shared");
    let_time_pass(&gates);
    let probe = admit(&gates, &*store, &job(1, "m", None)).await.expect("one may ask");
    by_hand(&folder, "UPDATE gates SET state = 'blocked', reason = 'mine', until = NULL").await;
    gates.sync(&*store, Instant::now()).await.expect("shared");
    probe.accept(Usage::default(), Instant::now());
    gates.sync(&*store, Instant::now()).await.expect("shared");
    let row = store.gates().await.expect("gates").remove(0);
    assert_eq!((row.state.as_str(), row.reason.as_deref()), ("blocked", Some("mine")));
    assert!(admit(&gates, &*store, &job(2, "m", None)).await.is_err());
}

#[tokio::test]
async fn a_probe_that_is_read_back_before_its_write_is_confirmed_is_our_own() {
    let (gates, (_folder, store)) = (gates(), store().await);
    fall(&gates, &*store, "m").await;
    gates.sync(&*store, Instant::now()).await.expect("shared");
    let_time_pass(&gates);
    // As `take_probe` does, with a look at the table between the write and its answer.
    let scope = Scope::Model(ProfileId::DEFAULT, "m".to_owned());
    let now = Instant::now();
    let number = gates.lock().gate_mut(&scope).expect("it blocks").probe(OPEN, now);
    let sent = gates.sends(&scope, now);
    let written = store.set_gate(&sent).await.expect("written");
    gates.sync(&*store, now).await.expect("shared");
    gates.sent(sent, written);
    gates.sync(&*store, now).await.expect("shared");
    assert!(gates.lock().gate(&scope).expect("it is there").awaits(Some(number)));
}

#[tokio::test]
async fn a_row_of_another_daemon_that_came_first_is_taken_over_once_our_write_is_refused() {
    let (_folder, store) = store().await;
    let (here, there) = (gates(), gates());
    fall(&here, &*store, "m").await;
    for gates in [&here, &there] {
        gates.sync(&*store, Instant::now()).await.expect("shared");
        let_time_pass(gates);
    }
    let scope = Scope::Model(ProfileId::DEFAULT, "m".to_owned());
    let now = Instant::now();
    let number = here.lock().gate_mut(&scope).expect("it blocks").probe(OPEN, now);
    let sent = here.sends(&scope, now);
    let probe = admit(&there, &*store, &job(1, "m", None)).await.expect("it is first");
    let written = store.set_gate(&sent).await.expect("an answer");
    assert_eq!(written, None);
    here.sync(&*store, now).await.expect("shared");
    here.sent(sent, written);
    here.sync(&*store, now).await.expect("shared");
    assert!(!here.lock().gate(&scope).expect("it is there").awaits(Some(number)));
    assert_eq!(refused(&here, now), ["m"]);
    drop(probe);
}
