//! A start without a database: a clear sentence and exit code 4, within the time that was set.

use std::time::{Duration, Instant};

use super::{Site, lead};
use crate::support::Ground;
use crate::support::private::{PrivatePostgres, WALLED};
use crate::support::proxy::{End, Mode, Way};

/// `database.connect_seconds` in these tests.
const CONNECT: Duration = Duration::from_secs(2);
/// What a start may take beyond it on a busy machine.
const MARGIN: Duration = Duration::from_secs(8);

/// Starts against a database that cannot be had; returns what was said and how long it took.
async fn refused(site: &Site<'_>) -> (String, Duration) {
    let began = Instant::now();
    let ran = site.mill.run(&["run"]).await;
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    (ran.stderr, began.elapsed())
}

async fn site(ground: &Ground) -> Site<'_> {
    let mut site = Site::new(ground).await;
    site.mill.set("PROMPTMILL_DATABASE__CONNECT_SECONDS", &CONNECT.as_secs().to_string());
    site.mill.set("PROMPTMILL_DATABASE__OPERATION_SECONDS", "30");
    site
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why_at_once() {
    let server = PrivatePostgres::start();
    let ground = Ground::postgres_at(&server.url()).await;
    let mut site = site(&ground).await;
    site.mill.set("PROMPTMILL_DATABASE__CONNECT_SECONDS", "60");
    ground.run(&format!("CREATE ROLE {WALLED} LOGIN PASSWORD 'right'")).await;
    ground.run("CREATE DATABASE closed").await;
    ground.run("REVOKE CONNECT ON DATABASE closed FROM public").await;
    let at = site.proxy.address();
    for (url, sentence) in [
        (format!("postgres://{}@{at}/nowhere", site.role), "database \"nowhere\" does not exist"),
        (format!("postgres://nobody@{at}/postgres"), "role \"nobody\" does not exist"),
        (
            format!("postgres://{WALLED}:wrong@{at}/postgres"),
            "password authentication failed for user \"walled\"",
        ),
        (format!("postgres://{WALLED}:right@{at}/closed"), "permission denied for database \"closed\""),
    ] {
        site.mill.set("DATABASE_URL", &url);
        let (said, took) = refused(&site).await;
        assert!(said.contains(sentence), "{said}");
        assert!(said.lines().count() == 1 && !said.contains("wrong") && !said.contains("right"), "{said}");
        assert!(took < MARGIN, "no try would help, but it took {took:?}");
    }
}

#[tokio::test]
async fn a_database_out_of_reach_is_given_up_in_time() {
    let ground = Ground::postgres().await;
    let site = site(&ground).await;
    for mode in [Mode::Refuse, Mode::Stall] {
        site.proxy.set(mode);
        let (said, took) = refused(&site).await;
        assert!(said.contains("cannot be reached"), "{mode:?}: {said}");
        assert!(took >= CONNECT / 2 && took < CONNECT + MARGIN, "{mode:?}: given up after {took:?}");
    }
    site.close().await;
    ground.close().await;
}

#[tokio::test]
async fn a_database_that_falls_silent_during_the_start_is_given_up_in_time() {
    let ground = Ground::postgres().await;
    let site = site(&ground).await;
    // The server lets us in and says no more, or no more than the half of its first answer.
    let greeting = greeting(&site).await;
    for passed in [greeting, greeting + 40] {
        site.proxy.cut_every(Way::ToClient, passed, End::Silence);
        let (said, took) = refused(&site).await;
        assert!(said.contains("cannot be reached"), "{said}");
        assert!(took < CONNECT + MARGIN, "given up after {took:?}");
    }
    site.close().await;
    ground.close().await;
}

/// Returns how many bytes a server says to somebody who only connects.
async fn greeting(site: &Site<'_>) -> u64 {
    let url = lead(&site.mill.ground.url(), site.proxy.address(), &site.role);
    let before = site.proxy.seen().to_client;
    let connection = crate::support::server::connect(&url).await;
    let bytes = site.proxy.seen().to_client - before;
    drop(connection);
    bytes
}

#[tokio::test]
async fn a_database_that_comes_late_is_waited_for() {
    let ground = Ground::postgres().await;
    let mut site = site(&ground).await;
    site.mill.set("PROMPTMILL_DATABASE__CONNECT_SECONDS", "60");
    site.proxy.set(Mode::Refuse);
    site.mill.insert(&["one"]).await;
    let daemon = site.mill.start();
    // Nothing tells from outside that it tries; where it comes up first, this is an ordinary start.
    site.proxy.set(Mode::Forward);
    site.until_complete(1).await;
    assert_eq!(daemon.stop().await.code, 0);
    site.close().await;
    ground.close().await;
}
