//! A model that comes back after an outage: few calls at first, in every daemon.

use super::*;

fn lease(job: i64) -> Lease {
    Lease { job: JobId(job), claim: 1, run: 1 }
}

/// How many jobs of the model may be claimed; `None`: any number.
fn room(gates: &Gates) -> Option<usize> {
    gates.open(Instant::now()).rooms.models.get(&(String::new(), "m".to_owned())).copied()
}

/// Claims a job and asks to make its call.
async fn claim<'g>(gates: &'g Gates, store: &dyn Store, number: i64) -> Permit<'g> {
    let lane = Lane { queue: "q".to_owned(), batch: String::new() };
    gates.claimed(lease(number), &lane, "m", Instant::now());
    let (job, stop) = (job(number, "m", None), CancellationToken::new());
    gates.admit(store, lease(number), &job, 100, &stop).await.expect("flowing")
}

/// An outage, and the answered probe at its end.
async fn come_back(gates: &Gates, store: &dyn Store) {
    let_time_pass(gates);
    claim(gates, store, 1).await.accept(Usage::default(), Instant::now());
    gates.over(lease(1), &Lane { queue: "q".to_owned(), batch: String::new() });
    gates.sync(store, Instant::now()).await.expect("shared");
}

#[tokio::test]
async fn after_an_outage_every_daemon_sends_one_call_then_two_then_four() {
    let (_folder, store) = store().await;
    let (here, there) = (gates(), gates());
    fall(&here, &*store, "m").await;
    for gates in [&here, &there] {
        gates.sync(&*store, Instant::now()).await.expect("shared");
    }
    come_back(&here, &*store).await;
    there.sync(&*store, Instant::now()).await.expect("shared");
    for gates in [&here, &there] {
        for round in [1, 2, 4, 8] {
            assert_eq!(room(gates), Some(round));
            let mut calls = Vec::new();
            for number in 0..round {
                calls.push(claim(gates, &*store, number as i64).await);
            }
            assert_eq!(room(gates), Some(0), "nothing was heard of them");
            assert!(gates.is_limiting(Instant::now()));
            for call in calls {
                call.accept(Usage::default(), Instant::now());
            }
        }
    }
}

#[tokio::test]
async fn a_model_that_flowed_all_along_is_not_held_back() {
    let (gates, (_folder, store)) = (gates(), store().await);
    claim(&gates, &*store, 1).await.accept(Usage::default(), Instant::now());
    let answered = Some(Counters { word: ANSWERED.to_owned(), count: 0 });
    gates.take_over(&GateRow { counters: answered, ..row("model:default/m", "flowing", 3) }, Instant::now());
    assert_eq!(room(&gates), None);
}

#[tokio::test]
async fn a_call_that_ends_without_a_word_leaves_its_place_to_another() {
    let (gates, (_folder, store)) = (gates(), store().await);
    fall(&gates, &*store, "m").await;
    come_back(&gates, &*store).await;
    let lane = Lane { queue: "q".to_owned(), batch: String::new() };
    drop(claim(&gates, &*store, 2).await);
    assert_eq!(room(&gates), Some(1), "it was given back");
    gates.claimed(lease(3), &lane, "m", Instant::now());
    assert_eq!(room(&gates), Some(0));
    gates.over(lease(3), &lane);
    assert_eq!(room(&gates), Some(1), "it never asked");
}

#[tokio::test]
async fn a_model_that_falls_again_while_it_comes_back_begins_anew_with_one() {
    let (gates, (_folder, store)) = (gates(), store().await);
    fall(&gates, &*store, "m").await;
    come_back(&gates, &*store).await;
    for number in 2..9 {
        claim(&gates, &*store, number).await.accept(Usage::default(), Instant::now());
    }
    assert_eq!(room(&gates), Some(8));
    fall(&gates, &*store, "m").await;
    assert_eq!((room(&gates), refused(&gates, Instant::now())), (None, vec!["m".to_owned()]));
    come_back(&gates, &*store).await;
    assert_eq!(room(&gates), Some(1));
}

#[tokio::test]
async fn an_answer_to_one_daemon_ends_what_the_others_had_counted() {
    let (_folder, store) = store().await;
    let (here, there) = (gates(), gates());
    for _ in 0..2 {
        let permit = admit(&there, &*store, &job(1, "m", None)).await.expect("flowing");
        permit.fail(Health::Sick, "overloaded_error (529)", Instant::now(), 0.5);
    }
    fall(&here, &*store, "m").await;
    here.sync(&*store, Instant::now()).await.expect("shared");
    there.sync(&*store, Instant::now()).await.expect("shared");
    come_back(&here, &*store).await;
    there.sync(&*store, Instant::now()).await.expect("shared");
    let permit = admit(&there, &*store, &job(1, "m", None)).await.expect("flowing");
    assert!(
        !permit.fail(Health::Sick, "overloaded_error (529)", Instant::now(), 0.5),
        "the first since then"
    );
}
