//! Gates are shared: whoever was first wins.

use std::time::Duration;

use promptmill::store::{AccountRow, Counters, GateRow, GateTally, Moment};

use super::Bench;
use crate::support::{Ground, on_both};

on_both!(
    a_gate_is_changed_by_compare_and_set,
    a_change_by_a_person_is_not_overwritten,
    a_gate_that_a_person_made_can_be_changed,
    the_same_refusal_is_counted_over_all_daemons_and_another_begins_anew,
    a_batch_that_a_person_lets_fail_counts_no_refusals,
    rows_that_say_nothing_any_more_are_pruned,
    news_of_gates_are_what_changed_since_and_a_tally_of_all,
    accounts_are_what_was_said_last_and_what_is_so_is_not_written_again,
);

fn gate(state: &str, generation: i64) -> GateRow {
    GateRow {
        scope: "model:p/m".to_owned(),
        state: state.to_owned(),
        reason: Some("529 ten times".to_owned()),
        until_in: Some(Duration::from_mins(1)),
        generation,
        counters: Some(Counters { word: "blocks".to_owned(), count: 3 }),
    }
}

async fn a_gate_is_changed_by_compare_and_set(ground: &Ground) {
    let bench = Bench::on(ground).await;
    let set = async |row: GateRow| bench.store.set_gate(&row).await.expect("a gate is written");
    assert_eq!(set(gate("blocked", 0)).await, Some(1));
    assert_eq!(set(gate("probing", 0)).await, None, "somebody made it before");
    assert_eq!(set(gate("probing", 1)).await, Some(2));
    assert_eq!(set(gate("flowing", 1)).await, None, "somebody changed it before");
    let gates = bench.store.gates().await.expect("gates");
    let left = gates[0].until_in.expect("a time");
    assert!(left > Duration::from_secs(30) && left <= Duration::from_mins(1), "{left:?}");
    assert_eq!(gates, [GateRow { until_in: Some(left), ..gate("probing", 2) }]);
}

async fn a_change_by_a_person_is_not_overwritten(ground: &Ground) {
    let bench = Bench::on(ground).await;
    bench.store.set_gate(&gate("blocked", 0)).await.expect("a gate is written");
    ground.run("UPDATE gates SET state = 'flowing'").await;
    assert_eq!(bench.store.set_gate(&gate("probing", 1)).await.expect("an answer"), None);
    let now = bench.store.gates().await.expect("gates").remove(0);
    assert_eq!((now.state.as_str(), now.reason, now.until_in), ("flowing", None, None));
    assert_eq!(now.generation, 2);
}

async fn a_gate_that_a_person_made_can_be_changed(ground: &Ground) {
    ground.run("INSERT INTO gates (scope, state) VALUES ('model:p/m', 'blocked')").await;
    let bench = Bench::on(ground).await;
    let found = bench.store.gates().await.expect("gates").remove(0);
    assert_eq!(found.until_in, None);
    let next = bench.store.set_gate(&gate("flowing", found.generation)).await.expect("an answer");
    assert_eq!(next, Some(found.generation + 1));
}

async fn the_same_refusal_is_counted_over_all_daemons_and_another_begins_anew(ground: &Ground) {
    let (one, two) = (Bench::on(ground).await, Bench::on(ground).await);
    let count =
        async |bench: &Bench, word| bench.store.count_refusal("batch:q/b", word).await.expect("counted");
    assert_eq!((count(&one, "a1").await, count(&two, "a1").await, count(&one, "a1").await), (1, 2, 3));
    assert_eq!((count(&two, "b2").await, count(&one, "b2").await), (1, 2));
    let row = one.store.gates().await.expect("gates").remove(0);
    assert_eq!((row.state.as_str(), row.generation), ("flowing", 5));
    let blocked = GateRow { state: "blocked".to_owned(), counters: None, ..row };
    one.store.set_gate(&blocked).await.expect("written");
    ground.run("UPDATE gates SET state = 'flowing'").await;
    assert_eq!(count(&one, "b2").await, 1, "a person's word starts the count anew");
}

async fn a_batch_that_a_person_lets_fail_counts_no_refusals(ground: &Ground) {
    let bench = Bench::on(ground).await;
    let count = async || bench.store.count_refusal("batch:q/b", "a1").await.expect("counted");
    assert_eq!(count().await, 1);
    ground.run("UPDATE gates SET counters = 'ignored 0', generation = generation + 1").await;
    assert_eq!((count().await, count().await), (0, 0));
    assert_eq!(ground.line("SELECT counters, generation FROM gates").await, "ignored 0|2");
    ground.run("UPDATE gates SET state = 'flowing'").await;
    assert_eq!(count().await, 1, "a plain word of a person takes it back");
}

async fn rows_that_say_nothing_any_more_are_pruned(ground: &Ground) {
    let bench = Bench::on(ground).await;
    ground.run("INSERT INTO jobs (prompt, queue, batch) VALUES ('a', 'q/r', 'open/b')").await;
    let (old, young) = (ground.at(-86_500), ground.at(-86_000));
    ground
        .run(&format!(
            "INSERT INTO gates (scope, state, counters, changed_at) VALUES
             ('batch:q/old', 'flowing', 'a1 3', {old}), ('batch:q/older', 'flowing', NULL, {old}),
             ('batch:q/young', 'flowing', 'a1 3', {young}), ('batch:q/stopped', 'blocked', NULL, {old}),
             ('batch:q%2Fr/done', 'flowing', 'ignored 0', {old}), ('batch:q%2Fr/open/b', 'flowing', 'ignored 0', {old}),
             ('batch:q%2Fr/open', 'flowing', 'ignored 0', {old}), ('model:p/m', 'flowing', 'answered 0', {old})"
        ))
        .await;
    assert_eq!(bench.store.prune_gates(3).await.expect("pruned"), 3);
    assert_eq!(bench.store.prune_gates(3).await.expect("pruned"), 1);
    assert_eq!(
        ground.lines("SELECT scope FROM gates ORDER BY scope").await,
        ["batch:q%2Fr/open/b", "batch:q/stopped", "batch:q/young", "model:p/m"]
    );
}

async fn news_of_gates_are_what_changed_since_and_a_tally_of_all(ground: &Ground) {
    let bench = Bench::on(ground).await;
    let news = async |since| bench.store.gate_news(since).await.expect("news");
    let none = news(None).await;
    assert_eq!((none.rows, none.tally), (Vec::new(), GateTally::default()));
    ground
        .run(&format!(
            "INSERT INTO gates (scope, state, generation, changed_at) VALUES
             ('batch:q/old', 'blocked', 7, {old}), ('batch:q/huge', 'flowing', {huge}, {old}),
             ('batch:q/new', 'blocked', 2, {new})",
            huge = i64::MAX,
            old = ground.at(-600),
            new = ground.at(0)
        ))
        .await;
    let all = news(None).await;
    assert_eq!(all.rows.len(), 3);
    assert_eq!(all.tally, [7, i64::MAX, 2].into_iter().collect());
    let since = Some(Moment(all.at.0 - 60_000));
    let some = news(since).await;
    assert_eq!(some.rows.iter().map(|row| row.scope.as_str()).collect::<Vec<_>>(), ["batch:q/new"]);
    assert_eq!(some.tally, all.tally);
    ground.run("UPDATE gates SET state = 'flowing' WHERE scope = 'batch:q/old'").await;
    let (some, known) = (news(since).await, all.tally);
    assert_eq!(some.rows.len(), 2);
    assert_eq!((some.tally.rows, some.tally.generations), (3, known.generations + 1));
    let late = news(Some(Moment(all.at.0 + 60_000))).await;
    assert_eq!((late.rows, late.tally), (Vec::new(), some.tally), "a tally also where nothing changed");
}

mod sqlite_only {
    use super::*;

    #[tokio::test]
    async fn a_gate_whose_text_is_not_utf_8_hides_no_other() {
        let ground = Ground::sqlite().await;
        ground
            .run("INSERT INTO gates (scope, state, reason) VALUES (CAST(x'61ff' AS TEXT), 'blocked', CAST(x'ff' AS TEXT)), ('model:p/m', 'blocked', NULL)")
            .await;
        let bench = Bench::on(&ground).await;
        let scopes: Vec<String> =
            bench.store.gates().await.expect("gates").into_iter().map(|gate| gate.scope).collect();
        assert_eq!(scopes, ["a\u{fffd}", "model:p/m"]);
        ground.close().await;
    }
}

async fn accounts_are_what_was_said_last_and_what_is_so_is_not_written_again(ground: &Ground) {
    let account = |queue: &str, profile: &str, key: &str| AccountRow {
        queue: queue.to_owned(),
        profile: profile.to_owned(),
        key: key.to_owned(),
        classes: queue.is_empty().then(|| r#"{"m-1":"m"}"#.to_owned()),
    };
    let bench = Bench::on(ground).await;
    let set = async |rows: &[AccountRow]| bench.store.set_accounts(rows).await.expect("written");
    let all = async || ground.lines("SELECT queue, profile, key, classes FROM accounts ORDER BY queue").await;
    set(&[account("", "default", "k1"), account("a", "p", "k2"), account("b", "p", "k2")]).await;
    assert_eq!(all().await, [r#"|default|k1|{"m-1":"m"}"#, "a|p|k2|NULL", "b|p|k2|NULL"]);
    let changes = ground.either(
        "CREATE TABLE wrote (queue TEXT); CREATE TRIGGER wrote_a AFTER UPDATE ON accounts BEGIN INSERT INTO wrote VALUES (NEW.queue); END",
        "CREATE TABLE wrote (queue text); CREATE FUNCTION wrote_a() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO wrote VALUES (NEW.queue); RETURN NEW; END'; CREATE TRIGGER wrote_a AFTER UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION wrote_a()",
    );
    ground.run(changes).await;
    set(&[account("", "default", "k1"), account("a", "p", "k3")]).await;
    assert_eq!(all().await, [r#"|default|k1|{"m-1":"m"}"#, "a|p|k3|NULL"]);
    assert_eq!(ground.lines("SELECT queue FROM wrote").await, ["a"]);
}
