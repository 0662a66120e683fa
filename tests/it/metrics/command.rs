//! `promptmill health`: what the daemon says, as an exit code and a sentence.

use std::fs;
use std::net::TcpListener;

use super::Watched;
use crate::mill::harness::{Mill, Ran};
use crate::support::{Ground, on_both};

on_both! {
    health_is_what_the_daemon_says,
}

/// Asks the daemon that listens there.
async fn asked(mill: &mut Mill<'_>, watched: &Watched, args: &[&str]) -> Ran {
    mill.set("PROMPTMILL_METRICS__LISTEN", watched.url.trim_start_matches("http://"));
    // Nobody is there: a request that took the way of the API's would fail.
    mill.set("HTTP_PROXY", "http://127.0.0.1:1");
    let ran = mill.run(&[&["health"], args].concat()).await;
    assert_eq!(ran.stderr.lines().count(), 1, "one sentence: {}", ran.stderr);
    ran
}

async fn health_is_what_the_daemon_says(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.insert(&["[[hang]]"]).await;
    let watched = Watched::start(&mut mill).await;
    mill.until_asked(1).await;
    watched.until_ready().await;
    let place = watched.url.trim_start_matches("http://").to_owned();
    for (args, words) in [(&[][..], "alive"), (&["--ready"], "ready")] {
        let ran = asked(&mut mill, &watched, args).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
        assert_eq!(ran.stderr, format!("the daemon at {place} is {words}\n"));
    }
    ground.run("INSERT INTO gates (scope, state, reason) VALUES ('batch:default/b', 'blocked', 'so')").await;
    watched.until("/readyz", "told of the gate", |answer| answer.text.contains("batch")).await;
    let ran = asked(&mut mill, &watched, &["--ready", "--json"]).await;
    assert_eq!((ran.code, ran.stdout), (0, watched.get("/readyz").await.text));
    assert_eq!(ran.stderr, format!("the daemon at {place} is ready; 1 batch is stopped\n"));

    watched.daemon.terminate();
    watched.until_unready("draining").await;
    let ran = asked(&mut mill, &watched, &["--ready"]).await;
    let sentence = "is not ready: told to stop: nothing more is claimed (draining)\n";
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.ends_with(sentence), "{}", ran.stderr);
    assert_eq!(asked(&mut mill, &watched, &[]).await.code, 0, "nobody is to kill it for that");
    // A second signal stops the call too.
    assert_eq!(watched.daemon.stop().await.code, 0);
}

#[tokio::test]
async fn health_asks_where_the_configuration_has_the_daemon_listen() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    let watched = Watched::start(&mut mill).await;
    mill.unset("PROMPTMILL_METRICS__LISTEN");
    let file = mill.home().join("mine.toml");
    let listen = format!("[metrics]\nlisten = \"{}\"\n", watched.url.trim_start_matches("http://"));
    fs::write(&file, listen).expect("the file can be written");
    let ran = mill.run(&["health", "--config", &file.display().to_string()]).await;
    assert_eq!((ran.code, ran.stderr.ends_with(" is alive\n")), (0, true), "{}", ran.stderr);
    assert_eq!(watched.daemon.stop().await.code, 0);
    ground.close().await;
}

#[tokio::test]
async fn health_without_an_address_is_the_code_of_the_configuration() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    let ran = mill.run(&["health"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("set metrics.listen"), "{}", ran.stderr);
    mill.set("PROMPTMILL_METRICS__LISTEN", "127.0.0.1:0");
    let ran = mill.run(&["health"]).await;
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("a port that only the daemon knows"), "{}", ran.stderr);
    ground.close().await;
}

#[tokio::test]
async fn health_is_bad_where_nobody_listens_or_somebody_else_does() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let place = free.local_addr().expect("it is bound").to_string();
    drop(free);
    mill.set("PROMPTMILL_METRICS__LISTEN", &place);
    let ran = mill.run(&["health"]).await;
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.starts_with(&format!("promptmill: no daemon listens at {place}: ")), "{}", ran.stderr);

    let other = mill.api.url();
    mill.set("PROMPTMILL_METRICS__LISTEN", other.trim_start_matches("http://"));
    let ran = mill.run(&["health"]).await;
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("is no promptmill: it says 404"), "{}", ran.stderr);
    ground.close().await;
}

#[tokio::test]
async fn health_does_not_wait_for_a_daemon_that_says_nothing() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    let watched = Watched::start(&mut mill).await;
    watched.until_ready().await;
    // Its kernel goes on taking connections.
    watched.daemon.signal("-STOP");
    let ran = asked(&mut mill, &watched, &[]).await;
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("does not answer: no answer for 5 s"), "{}", ran.stderr);
    watched.daemon.signal("-CONT");
    watched.until_ready().await;
    assert_eq!(watched.daemon.stop().await.code, 0);
    ground.close().await;
}
