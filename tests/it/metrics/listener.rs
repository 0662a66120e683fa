//! The listener: bounded, and off unless somebody asks for it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::Watched;
use crate::mill::harness::Mill;
use crate::support::Ground;

#[tokio::test]
async fn an_address_that_cannot_be_taken_is_one_sentence_and_a_code_that_is_tried_again() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    mill.set("PROMPTMILL_METRICS__LISTEN", &address);
    let ran = mill.run(&["run"]).await;
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let sentence = format!("promptmill: metrics cannot listen on {address}: Address already in use");
    assert!(ran.stderr.contains(&sentence), "{}", ran.stderr);
    assert!(ran.stderr.contains("choose another metrics.listen"), "{}", ran.stderr);
    assert_eq!(ran.stderr.trim().lines().count(), 1, "{}", ran.stderr);
    ground.close().await;
}

#[tokio::test]
async fn nothing_listens_unless_it_is_asked_to() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    let ran = mill.drain().await;
    assert!(!ran.stderr.contains("metrics"), "{}", ran.stderr);
    ground.close().await;
}

#[tokio::test]
async fn only_get_and_head_of_three_addresses_are_answered() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    let watched = Watched::start(&mut mill).await;
    watched.until_ready().await;
    for path in ["/", "/metrics/", "/METRICS", "/api/v1/jobs"] {
        assert_eq!(watched.get(path).await.status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let sent = watched.client.request(method.clone(), format!("{}/metrics", watched.url)).send();
        assert_eq!(sent.await.expect("it answers").status().as_u16(), 405, "{method}");
    }
    let head = watched.client.head(format!("{}/readyz", watched.url)).send().await.expect("it answers");
    assert_eq!((head.status().as_u16(), head.text().await.expect("no body").as_str()), (200, ""));
    let page = watched.client.get(format!("{}/metrics", watched.url)).send().await.expect("it answers");
    assert_eq!(page.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(watched.daemon.stop().await.code, 0);
    ground.close().await;
}

#[tokio::test]
async fn connections_that_say_nothing_or_dribble_are_ended_and_keep_nobody_out() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    let watched = Watched::start(&mut mill).await;
    watched.until_ready().await;
    let address: SocketAddr = watched.url.trim_start_matches("http://").parse().expect("an address");
    let began = Instant::now();
    // More than are served at once; every other one begins a request and never ends it.
    let mut idle: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(address).expect("it accepts")).collect();
    for stream in idle.iter_mut().step_by(2) {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nx-").expect("it is open");
    }
    assert_eq!(watched.get("/livez").await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    for stream in &mut idle {
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
        let mut rest = Vec::new();
        // A reset is an end, too.
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::ConnectionReset, "{err}"),
        }
    }
    assert_eq!(watched.daemon.stop().await.code, 0);
    ground.close().await;
}
