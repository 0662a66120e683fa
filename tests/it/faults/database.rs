//! The database goes away and comes back while calls run: nothing is lost, nothing is called twice,
//! and work goes on soon after.

use std::time::Instant;

use super::{RECOVERY_MAX, Site, until};
use crate::support::Ground;
use crate::support::private::PrivatePostgres;
use crate::support::proxy::{End, Mode};

#[tokio::test]
async fn a_server_that_crashes_under_load_costs_no_call() {
    let server = PrivatePostgres::start();
    let ground = Ground::postgres_at(&server.url()).await;
    let site = Site::new(&ground).await;
    site.proxy.lead_to(server.address());
    site.insert(48, "150ms").await;
    let daemon = site.mill.start();
    for asked in [12, 28] {
        site.mill.until_asked(asked).await;
        server.restart_at_once();
    }
    site.recovers(48).await;
    site.every_job_was_called_once(48).await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[tokio::test]
async fn sessions_that_are_ended_over_and_over_are_opened_again() {
    let ground = Ground::postgres().await;
    let site = Site::new(&ground).await;
    site.insert(40, "100ms").await;
    let daemon = site.mill.start();
    let mut ended = 0;
    // As the work goes on, not by the clock.
    for asked in (1..=8).map(|round| round * 4) {
        site.mill.until_asked(asked).await;
        ended += site.terminate("TRUE").await;
    }
    assert!(ended >= 8, "only {ended} sessions were ended");
    site.recovers(40).await;
    site.every_job_was_called_once(40).await;
    assert_eq!(daemon.stop().await.code, 0);
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_listener_that_is_ended_listens_again_and_nobody_waits_for_it() {
    let ground = Ground::postgres().await;
    let site = Site::new(&ground).await;
    let daemon = site.mill.start();
    let listening = "query LIKE 'LISTEN%'";
    site.until_sessions(listening, 1).await;
    for round in 1..=3 {
        assert_eq!(site.terminate(listening).await, 1);
        let began = Instant::now();
        site.mill.insert(&[&format!("job {round}")]).await;
        site.mill.until_asked(round).await;
        site.until_sessions(listening, 1).await;
        let took = began.elapsed();
        assert!(took < RECOVERY_MAX, "listens again after {took:?}");
    }
    site.until_complete(3).await;
    site.every_job_was_called_once(3).await;
    assert_eq!(daemon.stop().await.code, 0);
    site.close().await;
    ground.close().await;
}

/// Stalls the way to the database until the daemon has given up connections and calls have ended.
async fn stall(site: &Site<'_>) {
    site.mill.until_asked(8).await;
    let before = site.proxy.seen().connections;
    site.proxy.set(Mode::Stall);
    site.until_calls_are_over().await;
    // Each is an operation that met its limit and was tried again on a new connection.
    until("the daemon tries again", || site.proxy.seen().connections >= before + 3).await;
}

#[tokio::test]
async fn a_database_that_says_nothing_holds_up_no_call_and_is_gone_on_with() {
    let ground = Ground::postgres().await;
    let site = Site::new(&ground).await;
    site.insert(24, "300ms").await;
    let daemon = site.mill.start();
    stall(&site).await;
    let done = ground.line("SELECT count(*) FROM results").await;
    assert_ne!(done, "24", "nothing could be written while it said nothing");
    // What was held back on the old connections arrives after all.
    site.proxy.set(Mode::Forward);
    site.recovers(24).await;
    site.every_job_was_called_once(24).await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_database_that_vanishes_without_a_word_is_found_again() {
    let ground = Ground::postgres().await;
    let site = Site::new(&ground).await;
    site.insert(24, "300ms").await;
    let daemon = site.mill.start();
    stall(&site).await;
    // The other host is gone for good: its connections never say a word again.
    site.proxy.set(Mode::Refuse);
    site.proxy.end_all(End::Reset);
    site.proxy.set(Mode::Forward);
    site.recovers(24).await;
    site.mill.insert(&["later"]).await;
    site.until_complete(25).await;
    site.every_job_was_called_once(25).await;
    assert_eq!(daemon.stop().await.code, 0);
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_listener_whose_server_vanished_is_noticed() {
    let ground = Ground::postgres().await;
    let site = Site::new(&ground).await;
    let daemon = site.mill.start();
    let listening = "query LIKE 'LISTEN%'";
    site.until_sessions(listening, 1).await;
    let old = format!("SELECT pid FROM pg_stat_activity WHERE usename = '{}' AND {listening}", site.role);
    let old = ground.line(&old).await;
    site.mill.until("SELECT count(*) FROM workers WHERE asleep", "1").await;
    site.proxy.set(Mode::Stall);
    // Longer than the listener may be silent without being asked whether it is there.
    tokio::time::sleep(std::time::Duration::from_secs(13)).await;
    site.proxy.set(Mode::Forward);
    site.until_sessions(&format!("{listening} AND pid <> {old}"), 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn connections_to_a_server_that_has_become_read_only_are_left() {
    let server = PrivatePostgres::start();
    let ground = Ground::postgres_at(&server.url()).await;
    let site = Site::new(&ground).await;
    site.insert(24, "100ms").await;
    let daemon = site.mill.start();
    site.mill.until_asked(8).await;
    // The sessions there are cannot write any more; new ones can, as after a failover.
    ground.run(&format!("ALTER ROLE {} SET default_transaction_read_only = off", site.role)).await;
    ground.run("ALTER ROLE postgres SET default_transaction_read_only = off").await;
    ground.run("ALTER SYSTEM SET default_transaction_read_only = on").await;
    ground.run("SELECT pg_reload_conf()").await;
    site.recovers(24).await;
    site.every_job_was_called_once(24).await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[tokio::test]
async fn a_server_that_is_read_only_for_a_while_is_waited_for() {
    let server = PrivatePostgres::start();
    let ground = Ground::postgres_at(&server.url()).await;
    let site = Site::new(&ground).await;
    site.insert(24, "100ms").await;
    let daemon = site.mill.start();
    site.mill.until_asked(8).await;
    ground.run("ALTER SYSTEM SET default_transaction_read_only = on").await;
    ground.run("SELECT pg_reload_conf()").await;
    site.terminate("TRUE").await;
    site.until_calls_are_over().await;
    let before = site.proxy.seen().connections;
    until("it is tried again", || site.proxy.seen().connections >= before + 5).await;
    ground.run("ALTER SYSTEM RESET default_transaction_read_only").await;
    ground.run("SELECT pg_reload_conf()").await;
    site.recovers(24).await;
    site.every_job_was_called_once(24).await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

/// Stops a daemon that has calls to finish and no database to write their ends to.
async fn stop_without_a_database(mode: Mode) {
    let ground = Ground::postgres().await;
    let mut site = Site::new(&ground).await;
    site.mill.set("PROMPTMILL_WORKER__DRAIN_SECONDS", "1");
    site.insert(4, "300ms").await;
    let daemon = site.mill.start();
    site.mill.until_asked(4).await;
    site.proxy.set(mode);
    if mode == Mode::Refuse {
        site.proxy.end_all(End::Reset);
    }
    let began = Instant::now();
    daemon.terminate();
    let ran = daemon.ended().await;
    let took = began.elapsed();
    // What is under way, the drain, the last writes and the last words have their limits.
    assert!(took.as_secs() < 30, "it ended after {took:?}: {}", ran.stderr);
    site.proxy.set(Mode::Forward);
    site.proxy.end_all(End::Reset);
    let successor = site.mill.start();
    // Claimed when nothing is left of what was kept: by then the writes that were held back may have
    // come through by themselves.
    site.mill.insert(&["afterwards"]).await;
    site.until_complete(5).await;
    let after = successor.stop().await;
    assert_eq!(after.code, 0, "{}; before: {}", after.stderr, ran.stderr);
    site.every_job_was_called_once(5).await;
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_stop_while_the_database_is_gone_ends_in_time_and_loses_no_job() {
    stop_without_a_database(Mode::Refuse).await;
}

#[tokio::test]
async fn a_stop_while_the_database_says_nothing_ends_in_time_and_loses_no_job() {
    stop_without_a_database(Mode::Stall).await;
}
