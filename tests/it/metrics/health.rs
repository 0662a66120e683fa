//! Whether a daemon is ready says what is so, with its reason, and what is no fault of its own is none.

use super::{Watched, reasons};
use crate::faults::{Held, unplugged};
use crate::mill::harness::Mill;
use crate::support::proxy::{End, Mode};
use crate::support::{Ground, on_both};

on_both! {
    a_blocked_gate_is_not_unready_and_is_told,
    a_drain_is_unready_with_its_reason,
    what_runs_beside_the_page_is_the_same,
    nothing_that_is_secret_or_said_in_a_prompt_is_told,
}

async fn a_blocked_gate_is_not_unready_and_is_told(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let watched = Watched::start(&mut mill).await;
    watched.until_ready().await;
    ground
        .run(
            "INSERT INTO gates (scope, state, reason) VALUES
                ('model:default/claude-sonnet-5-5', 'blocked', 'a person said so'),
                ('batch:default/b', 'blocked', 'a person said so')",
        )
        .await;
    let told = watched.until("/readyz", "told of the gates", |answer| {
        answer.text.contains("model claude-sonnet-5-5 is blocked for profile default")
            && answer.text.contains("1 batch is stopped")
    });
    let told = told.await;
    assert_eq!((told.status, reasons(&told).len()), (200, 0), "{told:?}");
    watched.until_sample("promptmill_gates{kind=\"model\",state=\"blocked\"}", 1.0).await;
    assert_eq!(watched.samples().await.get("promptmill_ready"), Some(1.0));
    assert_eq!(watched.get("/livez").await.status, 200);
    assert_eq!(watched.daemon.stop().await.code, 0);
}

async fn a_drain_is_unready_with_its_reason(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.insert(&["[[hang]]"]).await;
    let watched = Watched::start(&mut mill).await;
    mill.until_asked(1).await;
    watched.until_ready().await;
    watched.daemon.terminate();
    watched.until_unready("draining").await;
    let seen = watched.samples().await;
    assert_eq!((seen.get("promptmill_ready"), seen.get("promptmill_in_flight")), (Some(0.0), Some(1.0)));
    assert_eq!(watched.get("/livez").await.status, 200, "nobody is to kill it for that");
    // A second signal stops the call too.
    assert_eq!(watched.daemon.stop().await.code, 0);
}

async fn what_runs_beside_the_page_is_the_same(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let watched = Watched::start_by(&mut mill, &["run", "--web", "127.0.0.1:0"]).await;
    watched.until_ready().await;
    mill.until_said(&watched.daemon, "the web page is at http://").await;
    assert!(
        watched
            .samples()
            .await
            .get(concat!("promptmill_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"))
            .is_some()
    );
    assert_eq!(watched.daemon.stop().await.code, 0);
}

async fn nothing_that_is_secret_or_said_in_a_prompt_is_told(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("ANTHROPIC_API_KEY", "sk-ant-canary-key");
    mill.insert(&["canary-prompt [[say canary-answer]]", "canary-prompt [[error 400]]"]).await;
    let watched = Watched::start(&mut mill).await;
    mill.until("SELECT count(*) FROM results", "2").await;
    for path in ["/metrics", "/livez", "/readyz", "/canary"] {
        let told = watched.get(path).await.text;
        assert!(!told.contains("canary"), "{path} tells it: {told}");
        assert!(!told.contains("postgres:"), "{path} tells the database: {told}");
    }
    assert_eq!(watched.daemon.stop().await.code, 0);
}

#[tokio::test]
async fn a_database_that_is_unplugged_makes_it_unready_with_the_reason_until_it_is_back() {
    let ground = Ground::postgres().await;
    let mut mill = Mill::new(&ground).await;
    let proxy = unplugged(&mut mill, &ground).await;
    mill.set("PROMPTMILL_DATABASE__OPERATION_SECONDS", "1");
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "4");
    let watched = Watched::start(&mut mill).await;
    watched.until_ready().await;
    watched.until_sample("promptmill_shared_up", 1.0).await;
    proxy.set(Mode::Refuse);
    proxy.end_all(End::Reset);
    let told = watched.until_unready("database").await;
    assert!(told.text.contains("the database has not answered for"), "{told:?}");
    assert_eq!(watched.get("/livez").await.status, 200, "a restart brings no database back");
    watched.until_sample("promptmill_shared_up", 0.0).await;
    assert!(watched.samples().await.sum("promptmill_db_errors_total", &["class=\"unavailable\""]) > 0.0);
    proxy.set(Mode::Forward);
    watched.until_ready().await;
    watched.until_sample("promptmill_shared_up", 1.0).await;
    assert_eq!(watched.daemon.stop().await.code, 0);
    ground.close().await;
}

#[tokio::test]
async fn a_file_that_somebody_locks_makes_it_unready_with_the_reason_until_they_let_go() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    mill.set("PROMPTMILL_DATABASE__OPERATION_SECONDS", "1");
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "2");
    let watched = Watched::start(&mut mill).await;
    watched.until_ready().await;
    let holder = Held::of(&ground.file());
    let told = watched.until_unready("heartbeat").await;
    assert!(told.text.contains("the database has taken no heartbeat for"), "{told:?}");
    // It can be read all the time.
    watched.until_sample("promptmill_shared_up", 1.0).await;
    holder.lets_go();
    watched.until_ready().await;
    assert_eq!(watched.daemon.stop().await.code, 0);
    ground.close().await;
}
