//! The gates of rate limits: who blocks one, who frees it, and who takes an old block out of the table.

use super::*;

const HINT: Duration = Duration::from_mins(30);
const SCOPE: &str = "rate:12345678/m";

/// A call of the model `m` meets a rate limit, whose end the API names.
async fn limited(gates: &Gates, store: &dyn Store, hint: Duration) {
    let mut permit = admit(gates, store, &job(1, "m", None)).await.expect("flowing");
    permit.spent(Spent::Refused(Overload::Limit, Some(hint)), Instant::now());
}

fn blocked(until_in: Option<Duration>, generation: i64) -> GateRow {
    GateRow { until_in, ..row(SCOPE, "blocked", generation) }
}

/// Whether jobs of the class may be claimed at this time.
fn has_room(gates: &Gates, at: Instant) -> bool {
    gates.open(at).rooms.classes.get(&tier("m")) != Some(&0)
}

async fn shown(store: &dyn Store) -> (String, Option<Counters>) {
    let row = store.gates().await.expect("gates").remove(0);
    assert_eq!(row.scope, SCOPE);
    (row.state, row.counters)
}

#[tokio::test]
async fn a_person_frees_a_rate_limit_that_the_api_named_and_every_daemon_goes_on() {
    let (folder, store) = store().await;
    let (here, there) = (gates(), gates());
    limited(&here, &*store, HINT).await;
    for gates in [&here, &there] {
        gates.sync(&*store, Instant::now()).await.expect("shared");
        assert!(!has_room(gates, Instant::now()));
    }
    by_hand(&folder, "UPDATE gates SET state = 'flowing'").await;
    for gates in [&here, &there] {
        gates.sync(&*store, Instant::now()).await.expect("shared");
        assert!(has_room(gates, Instant::now()), "what the server asked for is not waited for either");
        assert!(gates.all_flow());
        admit(gates, &*store, &job(2, "m", None)).await.expect("flowing");
    }
}

#[tokio::test]
async fn a_pause_that_another_daemon_saw_the_end_of_does_not_shorten_what_the_server_asked_for_here() {
    let (_folder, store) = store().await;
    let (gates, now) = (gates(), Instant::now());
    limited(&gates, &*store, HINT).await;
    gates.sync(&*store, now).await.expect("shared");
    let over = Some(Counters { word: ANSWERED.to_owned(), count: 0 });
    gates.take_over(&GateRow { counters: over, ..row(SCOPE, "flowing", 7) }, now);
    assert!(!has_room(&gates, now) && has_room(&gates, now + HINT * 2));
}

#[test]
fn a_block_by_hand_ends_when_a_person_says_so_and_an_end_may_be_named_later_or_earlier() {
    let (gates, now) = (gates(), Instant::now());
    gates.take_over(&blocked(None, 1), now);
    assert!(!has_room(&gates, now + 10 * HINT), "until a person opens it");
    gates.take_over(&blocked(Some(HINT), 2), now);
    assert!(!has_room(&gates, now + HINT / 2));
    assert!(has_room(&gates, now + HINT), "now it has an end");
    gates.take_over(&blocked(Some(HINT / 10), 3), now);
    assert!(has_room(&gates, now + HINT / 10), "an earlier one");
    gates.take_over(&blocked(Some(HINT * 2), 4), now);
    assert!(!has_room(&gates, now + HINT), "a later one");
    gates.take_over(&blocked(None, 5), now);
    assert!(!has_room(&gates, now + 10 * HINT));
    gates.take_over(&row(SCOPE, "flowing", 6), now);
    assert!(has_room(&gates, now));
}

#[tokio::test]
async fn a_pause_whose_daemon_is_gone_is_taken_out_of_the_table_by_another() {
    let (_folder, store) = store().await;
    let (here, there, late) = (gates(), gates(), gates());
    limited(&here, &*store, HINT).await;
    here.sync(&*store, Instant::now()).await.expect("shared");
    there.sync(&*store, Instant::now()).await.expect("shared");
    drop(here);
    there.sync(&*store, Instant::now() + HINT).await.expect("shared");
    let over = Counters { word: ANSWERED.to_owned(), count: 0 };
    assert_eq!(shown(&*store).await, ("flowing".to_owned(), Some(over.clone())), "by one that read it");

    let ended = GateRow { generation: 2, ..blocked(Some(Duration::ZERO), 2) };
    store.set_gate(&ended).await.expect("written").expect("nobody was first");
    late.sync(&*store, Instant::now()).await.expect("shared");
    late.sync(&*store, Instant::now() + SAME).await.expect("shared");
    assert_eq!(shown(&*store).await, ("flowing".to_owned(), Some(over)), "by one that began after its end");
}

/// A moment: the database's clock counts milliseconds.
const SAME: Duration = Duration::from_secs(1);
