//! Tools that are addresses.

use promptmill::worker::tools::{Action, EndpointSettings, Stopped, Token, ToolSettings};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{SHORT, answer, run, run_until, sentence, text, tool, tools};
use crate::claude::server::{Server, Step};

fn endpoint(server: &Server, token: Token) -> ToolSettings {
    let url = format!("{}/find?all=yes", server.base).parse().unwrap();
    tool(Action::Endpoint(EndpointSettings { url, token }))
}

fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<Step> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    vec![Step::Write([head.as_bytes(), body].concat())]
}

/// What a tool makes of one reply.
async fn ask(script: Vec<Step>) -> promptmill::domain::tool::ToolResult {
    let server = Server::always(script).await;
    run(endpoint(&server, Token::None), "{}").await
}

#[tokio::test]
async fn an_address_is_asked_once_with_the_call_and_its_body_is_the_result() {
    let server = Server::always(reply("200 OK", "", "{\"rows\": [\"ä\"]}".as_bytes())).await;
    let token = Token::Known("abc".into());
    let result = run(endpoint(&server, token), r#"{"n": 1.50, "deep": {"a": []}}"#).await;
    assert_eq!(answer(&result), "{\"rows\": [\"ä\"]}");
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /find?all=yes HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("authorization: Bearer abc") && head.contains("content-type: application/json"));
    assert_eq!(
        body,
        r#"{"tool":"find","job_id":7,"call_id":"toolu_01","input":{"n": 1.50, "deep": {"a": []}}}"#
    );
    assert_eq!(serde_json::from_str::<Value>(body).unwrap()["input"]["n"], json!(1.5));
}

#[tokio::test]
async fn an_empty_body_is_an_answer() {
    assert_eq!(answer(&ask(reply("204 No Content", "", b"")).await), "");
}

#[tokio::test]
async fn another_status_is_an_error_with_the_start_of_its_body() {
    assert_eq!(
        sentence(&ask(reply("404 Not Found", "", b"no such row\n")).await),
        "The tool find answered with status 404. Its own words:\nno such row"
    );
    assert_eq!(sentence(&ask(reply("500 Oh", "", b"")).await), "The tool find answered with status 500.");
    let long = ask(reply("500 Oh", "", &vec![b'x'; 100_000])).await;
    assert!(sentence(&long).len() < 2200 && sentence(&long).ends_with("xxx"));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let server = Server::answering(|request| {
        if request.starts_with("POST /find") {
            reply("307 Temporary Redirect", "location: /other\r\n", b"")
        } else {
            reply("200 OK", "", b"followed")
        }
    })
    .await;
    let result = run(endpoint(&server, Token::None), "{}").await;
    assert_eq!(sentence(&result), "The tool find answered with status 307.");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_body_that_is_too_long_or_no_text_is_an_error() {
    assert_eq!(text(&ask(reply("200 OK", "", &[b'x'; 1000])).await).len(), 1000);
    let too_long = ask(reply("200 OK", "", &[b'x'; 1001])).await;
    assert!(sentence(&too_long).contains("gave more than 1000 bytes"), "{too_long:?}");
    // Endless, and it says so nowhere.
    let head = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    let endless = vec![Step::Write(head), Step::Write(vec![b'x'; 5000]), Step::Hang];
    assert!(sentence(&ask(endless).await).contains("gave more than 1000 bytes"));
    let binary = ask(reply("200 OK", "", b"\xff\xfe")).await;
    assert_eq!(sentence(&binary), "The tool find gave a tool result that is not text.");
}

#[tokio::test]
async fn a_server_that_is_silent_away_or_breaks_off_is_an_error() {
    for script in [vec![Step::Hang], vec![Step::Write(b"HTTP/1.1 200 OK\r\n\r\nhalf".to_vec()), Step::Hang]] {
        let server = Server::always(script).await;
        let settings = ToolSettings { timeout: SHORT, ..endpoint(&server, Token::None) };
        let result = run(settings, "{}").await;
        assert_eq!(sentence(&result), "The tool find did not end within 0.3 s and was stopped.");
    }
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec();
    let broken = ask(vec![Step::Write(half), Step::Close]).await;
    assert!(
        sentence(&broken).starts_with("The tool find was asked, but its answer broke off: "),
        "{broken:?}"
    );
    let server = Server::always(Vec::new()).await;
    let settings = endpoint(&server, Token::None);
    let address = server.base.clone();
    drop(server);
    let away = run(settings, "{}").await;
    assert!(sentence(&away).starts_with("The tool find could not be asked: "), "{away:?}");
    // The model is not told where the tool is.
    assert!(!sentence(&away).contains(&address), "{away:?}");
}

#[tokio::test]
async fn without_its_token_nobody_is_asked() {
    let server = Server::always(reply("200 OK", "", b"open to all")).await;
    let result = run(endpoint(&server, Token::Missing { variable: "FIND_TOKEN".to_owned() }), "{}").await;
    assert_eq!(sentence(&result), "The tool find could not be asked: the variable FIND_TOKEN is not set.");
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_stop_ends_the_wait_for_an_answer() {
    let server = Server::always(vec![Step::Hang]).await;
    let tools = tools(endpoint(&server, Token::None));
    let stop = CancellationToken::new();
    let (result, ()) = tokio::join!(run_until(&tools, "{}", &stop), async {
        while server.requests().is_empty() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    });
    assert_eq!(result, Err(Stopped));
}
