//! Who is let in, from where, and with which headers the answers go out.

use promptmill::config::{Config, Flags, Surroundings, WebSettings};
use promptmill::web::Settings;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::Site;
use crate::support::{Ground, on_both};

const TOKEN: &str = "correct-horse-battery";

on_both!(every_page_says_how_it_may_be_used, a_page_of_a_locked_site_asks_for_the_token);

fn locked(settings: &mut Settings) {
    settings.token = Some(TOKEN.into());
}

/// Every address that a browser may be led to.
const PAGES: [&str; 11] = [
    "/",
    "/jobs",
    "/batches",
    "/queues",
    "/workers",
    "/gates",
    "/errors",
    "/audit",
    "/config",
    "/nothing-here",
    "/jobs/1",
];

async fn every_page_says_how_it_may_be_used(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    let (open, locked) = (Site::on(ground).await, Site::with(ground, locked).await);
    let paths = PAGES.into_iter().chain(["/jobs/1/again", "/assets/page.js", "/api/v1/jobs"]);
    for (site, path) in paths.map(|path| (&open, path)).chain([(&locked, "/login")]) {
        // Nothing is compressed beside what others may have put into it, whoever offers to take it so.
        let answer = site.get_with(path, &[("accept-encoding", "gzip, br")]).await;
        assert_eq!(answer.status, if path == "/nothing-here" { 404 } else { 200 }, "{path}");
        assert_eq!(
            answer.header("content-security-policy"),
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
             font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
            "{path}"
        );
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-store"),
            ("content-encoding", ""),
        ] {
            assert_eq!(answer.header(name), value, "{path}: {name}");
        }
        // What the policy forbids would not work.
        if answer.header("content-type").starts_with("text/html") {
            assert!(answer.text.contains("<html"), "{path}");
            for inline in [" style=", "<style", "<script>", " onclick=", "javascript:"] {
                assert!(!answer.text.contains(inline), "{path}: {inline}");
            }
        }
    }
}

async fn a_page_of_a_locked_site_asks_for_the_token(ground: &Ground) {
    let site = Site::with(ground, locked).await;
    for path in PAGES {
        let answer = site.get(path).await;
        assert_eq!(
            (answer.status, answer.header("location").starts_with("/login?to=")),
            (303, true),
            "{path}"
        );
    }
    let answer = site.get("/api/v1/jobs").await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.json()["error"]["type"], "unauthorised");
    let bearer = format!("Bearer {TOKEN}");
    site.get_with("/api/v1/jobs", &[("authorization", &bearer)]).await.good();
    let wrong = site.post("/login", "token=wrong&to=/jobs").await;
    assert_eq!(wrong.status, 401);
    assert!(wrong.text.contains("That is not the token"), "{}", wrong.text);
    let entered = site.post("/login", &format!("token={TOKEN}&to=/queues")).await;
    assert_eq!((entered.status, entered.header("location")), (303, "/queues"));
    let cookie = entered.header("set-cookie").to_owned();
    for said in ["HttpOnly", "SameSite=Strict", "Path=/;"] {
        assert!(cookie.contains(said), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains(TOKEN), "{cookie}");
    let pair = cookie.split(';').next().expect("a pair");
    site.get_with("/queues", &[("cookie", pair)]).await.good();
    assert_eq!(site.get_with("/queues", &[("cookie", "promptmill=1.00")]).await.status, 303);
    let left = site.post_with("/logout", "", &[("sec-fetch-site", "same-origin"), ("cookie", pair)]).await;
    assert!(left.header("set-cookie").contains("Max-Age=0"), "{left:?}");
    assert_eq!(site.get_with("/queues", &[("cookie", pair)]).await.status, 303, "it is forgotten here too");
}

#[tokio::test]
async fn two_pages_behind_two_ports_of_one_host_keep_their_sessions_apart() {
    let ground = Ground::sqlite().await;
    let site = Site::with(&ground, locked).await;
    let enter = async |host: &'static str| {
        let entered = site.post_with("/login", &format!("token={TOKEN}"), &[("host", host)]).await;
        let cookie = entered.header("set-cookie").split(';').next().expect("a pair").to_owned();
        (host, cookie)
    };
    let (one, other) = (enter("localhost:8020").await, enter("localhost:8021").await);
    // As a browser does: by name, for all ports.
    assert_ne!(one.1.split('=').next(), other.1.split('=').next());
    let both = format!("{}; {}", one.1, other.1);
    for (host, _) in [one, other] {
        site.get_with("/queues", &[("cookie", &both), ("host", host)]).await.good();
    }
    ground.close().await;
}

#[tokio::test]
async fn who_knocks_without_end_takes_nobodys_place_in_the_house() {
    let ground = Ground::sqlite().await;
    let site = Site::with(&ground, locked).await;
    let address = site.url.trim_start_matches("http://").to_owned();
    let mut knocking = Vec::new();
    let bearer = format!("Bearer {TOKEN}");
    let full = async || site.get("/login").await.status == 503;
    while !full().await {
        assert!(knocking.len() < 200, "there is no end of places");
        let mut one = TcpStream::connect(&address).await.expect("it listens");
        let head = format!("POST /login HTTP/1.1\r\nhost: {address}\r\ncontent-length: 100\r\n\r\n");
        one.write_all(head.as_bytes()).await.expect("it is sent");
        knocking.push(one);
    }
    site.get_with("/api/v1/jobs", &[("authorization", &bearer)]).await.good();
    ground.close().await;
}

#[tokio::test]
async fn a_cookie_behind_tls_goes_over_tls_alone() {
    let ground = Ground::sqlite().await;
    let site = Site::with(&ground, |settings| {
        locked(settings);
        settings.hosts = vec!["mill.example".to_owned()];
    })
    .await;
    let headers =
        [("sec-fetch-site", "same-origin"), ("origin", "https://mill.example"), ("host", "mill.example")];
    let entered = site.post_with("/login", &format!("token={TOKEN}"), &headers).await;
    assert!(entered.header("set-cookie").contains("; Secure"), "{entered:?}");
    ground.close().await;
}

#[tokio::test]
async fn who_guesses_tokens_has_to_wait_and_the_right_one_opens_all_the_same() {
    let ground = Ground::sqlite().await;
    let site = Site::with(&ground, locked).await;
    let wrong = [("authorization", "Bearer guess")];
    for _ in 0..5 {
        assert_eq!(site.get_with("/api/v1/jobs", &wrong).await.status, 401);
    }
    let answer = site.get_with("/api/v1/jobs", &wrong).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, "60"));
    assert_eq!(site.post("/login", "token=guess").await.status, 429);
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(site.get_with("/api/v1/jobs", &[("authorization", &bearer)]).await.status, 200);
    assert_eq!(site.post("/login", &format!("token={TOKEN}")).await.status, 303);
    ground.close().await;
}

#[tokio::test]
async fn another_site_may_lead_here_and_ask_for_nothing_else() {
    let ground = Ground::sqlite().await;
    let site = Site::on(&ground).await;
    for (from, mode, dest, status) in [
        ("none", "navigate", "document", 200),
        ("same-origin", "cors", "empty", 200),
        ("cross-site", "navigate", "document", 200),
        ("same-site", "navigate", "document", 200),
        ("cross-site", "navigate", "iframe", 403),
        ("cross-site", "no-cors", "image", 403),
        ("cross-site", "no-cors", "document", 403),
        ("cross-site", "cors", "empty", 403),
        ("same-site", "no-cors", "script", 403),
        ("nonsense", "cors", "empty", 403),
    ] {
        let headers = [("sec-fetch-site", from), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)];
        for path in ["/jobs", "/api/v1/jobs", "/assets/page.js"] {
            assert_eq!(site.get_with(path, &headers).await.status, status, "{path} {headers:?}");
        }
    }
    assert_eq!(site.get_with("/jobs", &[("sec-fetch-site", "cross-site")]).await.status, 403);
    ground.close().await;
}

#[tokio::test]
async fn a_change_by_nobody_leads_to_the_door_and_back_to_a_page() {
    let ground = Ground::sqlite().await;
    let site = Site::with(&ground, locked).await;
    for path in ["/act/jobs", "/bulk", "/jobs/1/again", "/logout"] {
        let answer = site.post(path, "job=1&action=cancel").await;
        assert_eq!((answer.status, answer.header("location")), (303, "/login"), "{path}");
    }
    let looked = site.get("/jobs?state=done").await;
    assert_eq!(looked.header("location"), "/login?to=%2Fjobs%3Fstate%3Ddone");
    ground.close().await;
}

#[tokio::test]
async fn a_foreign_host_is_sent_away() {
    let ground = Ground::sqlite().await;
    let site = Site::with(&ground, |settings| settings.hosts = vec!["mill.example".to_owned()]).await;
    for (host, status) in [
        ("evil.example", 421),
        ("evil.example:8020", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1", 421),
        ("localhost:8020", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8020", 200),
        ("mill.example", 200),
        ("mill.example:443", 200),
    ] {
        for path in ["/", "/assets/page.js", "/api/v1/jobs"] {
            assert_eq!(site.get_with(path, &[("host", host)]).await.status, status, "{host}{path}");
        }
    }
    ground.close().await;
}

#[tokio::test]
async fn a_forged_change_is_refused() {
    let ground = Ground::sqlite().await;
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    let site = Site::on(&ground).await;
    let own = site.url.clone();
    for headers in [
        &[("sec-fetch-site", "cross-site")][..],
        &[("sec-fetch-site", "same-site")],
        &[("origin", "http://evil.example")],
        &[("origin", "null")],
        &[("origin", "http://localhost:3000")],
        &[("origin", "http://127.0.0.1:3000")],
        &[("origin", "http://127.0.0.1")],
        &[("origin", "http://127.0.0.1:3000"), ("sec-fetch-site", "same-origin")],
        &[("sec-fetch-site", "same-origin"), ("origin", "http://evil.example")],
        &[("sec-fetch-site", "cross-site"), ("origin", &own)],
    ] {
        for path in ["/act/jobs", "/api/v1/jobs/act", "/bulk", "/login", "/logout"] {
            let answer = site.post_with(path, "job=1&action=cancel", headers).await;
            assert_eq!(answer.status, 403, "{path} {headers:?}");
        }
    }
    assert_eq!(ground.line("SELECT state FROM job_state").await, "pending");
    assert_eq!(ground.line("SELECT count(*) FROM audit").await, "0");
    // A browser whose pages tell no referrer says "null" of its own; a program says nothing.
    for headers in [&[("sec-fetch-site", "same-origin"), ("origin", "null")][..], &[("origin", &own)], &[]] {
        assert_eq!(
            site.post_with("/act/jobs", "job=1&action=prioritise&priority=1", headers).await.status,
            303,
            "{headers:?}"
        );
    }
    ground.close().await;
}

#[tokio::test]
async fn a_page_behind_a_proxy_is_known_by_its_name_and_its_port() {
    let ground = Ground::sqlite().await;
    let hosts = ["mill.example", "night.example:8443"].map(str::to_owned).to_vec();
    let site = Site::with(&ground, |settings| settings.hosts = hosts).await;
    for (host, origin, status) in [
        // The proxy passes on the name that the browser called.
        ("mill.example", "https://mill.example", 303),
        ("mill.example:443", "https://mill.example", 303),
        ("mill.example", "https://mill.example:8443", 403),
        ("mill.example:8443", "https://mill.example", 403),
        ("night.example:8443", "https://night.example:8443", 303),
        ("night.example", "https://night.example:8443", 303),
        // It calls us by our own.
        ("127.0.0.1:8020", "https://mill.example", 303),
        ("127.0.0.1:8020", "https://MILL.example:443", 303),
        ("127.0.0.1:8020", "https://mill.example:8443", 403),
        ("127.0.0.1:8020", "https://night.example:8443", 303),
        ("127.0.0.1:8020", "https://night.example", 403),
        ("127.0.0.1:8020", "https://mill.example.evil.example", 403),
        ("127.0.0.1:8020", "ftp://mill.example", 403),
    ] {
        let headers = [("host", host), ("origin", origin), ("sec-fetch-site", "same-origin")];
        let answer = site.post_with("/act/queue", "queue=none&action=pause", &headers).await;
        let status = if status == 303 { 404 } else { status };
        assert_eq!(answer.status, status, "{host} {origin}");
    }
    ground.close().await;
}

#[tokio::test]
async fn a_read_only_page_changes_nothing_and_shows_no_form() {
    let ground = Ground::sqlite().await;
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b')").await;
    let site = Site::with(&ground, |settings| settings.read_only = true).await;
    for path in
        ["/act/jobs", "/act/queue", "/act/gate", "/act/batch", "/bulk", "/jobs/1/again", "/api/v1/bulk"]
    {
        assert_eq!(site.post(path, "job=1&action=cancel").await.status, 403, "{path}");
    }
    for path in ["/jobs", "/jobs/1", "/queues", "/gates", "/batch?name=b"] {
        let page = site.get(path).await.good();
        assert!(!page.contains("method=\"post\"") && page.contains("read-only"), "{path}");
    }
    assert_eq!(ground.line("SELECT state FROM job_state").await, "pending");
    ground.close().await;
}

#[tokio::test]
async fn a_body_that_is_too_long_is_not_read() {
    let ground = Ground::sqlite().await;
    let site = Site::on(&ground).await;
    let answer = site.post("/api/v1/jobs/act", &format!("action={}", "x".repeat(5 << 20))).await;
    assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (413, Some("too_large")));
    ground.close().await;
}

#[test]
fn an_address_that_others_reach_needs_a_token() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let load = |settings: &[(&str, &str)]| {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::load_from(&Flags { settings, ..Flags::default() }, &Surroundings::default())
    };
    let refused = load(&[("web.listen", "0.0.0.0:8020")]).expect_err("there is no token").to_string();
    assert!(refused.contains("web.token_file"), "{refused}");
    assert!(load(&[("web.listen", "nonsense")]).is_err());
    let refused = load(&[("web.listen", "127.0.0.1:8020"), ("web.hosts", "[\"mill.example\"]")]);
    let refused = refused.expect_err("others reach it").to_string();
    assert!(refused.contains("web.hosts") && refused.contains("web.token_file"), "{refused}");
    let token = ("web.token_file", "a-file");
    assert!(load(&[("web.listen", "127.0.0.1:8020"), ("web.hosts", "[\"mill.example\"]"), token]).is_ok());
    let listen = |text: &str| load(&[("web.listen", text)]).expect("it is loopback").web.listen;
    assert_eq!(listen("localhost:8020"), listen("127.0.0.1:8020"));
    assert_eq!(listen(""), None);
    let read = |text: &str| {
        let file = dir.path().join("token");
        std::fs::write(&file, text).expect("the folder can be written");
        let web = WebSettings { token_file: Some(file), ..WebSettings::default() };
        Settings::read(&web, "0.0.0.0:8020".parse().expect("an address"))
    };
    assert!(read("short").expect_err("it is short").contains("16 characters"));
    assert!(read("sixteen letters and a blank").is_err());
    assert!(read("0123456789abcdef\n").is_ok());
    let none = Settings::read(&WebSettings::default(), "10.0.0.1:1".parse().expect("an address"));
    assert!(none.expect_err("there is no token").contains("web.token_file"));
}
