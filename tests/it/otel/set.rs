//! What the standard variables say.

use super::collector::{Attributes, Collector};
use super::traced;
use crate::support::Ground;

/// Who sends, as the collector is told, where these variables are set.
async fn resource(vars: &[(&str, &str)]) -> Attributes {
    let ground = Ground::sqlite().await;
    let collector = Collector::start().await;
    let mut mill = traced(&ground, &collector).await;
    for (name, value) in vars {
        mill.set(name, value);
    }
    mill.insert(&["hello"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let spans = collector.spans();
    ground.close().await;
    spans.first().expect("spans came").resource.clone()
}

#[tokio::test]
async fn who_sends_is_promptmill_unless_it_is_said_otherwise() {
    let plain = resource(&[]).await;
    assert_eq!(plain["service.name"], "promptmill");
    assert_eq!(plain["service.version"], env!("CARGO_PKG_VERSION"));
    let named = resource(&[
        ("OTEL_SERVICE_NAME", "night-shift"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.version=7,deployment.environment.name=trial"),
    ])
    .await;
    assert_eq!(named["service.name"], "night-shift");
    assert_eq!(named["service.version"], "7");
    assert_eq!(named["deployment.environment.name"], "trial");
}

#[tokio::test]
async fn spans_go_where_it_is_said_with_the_headers_that_are_said() {
    let ground = Ground::sqlite().await;
    let collector = Collector::start().await;
    let mut mill = traced(&ground, &collector).await;
    mill.set("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=seven");
    mill.insert(&["hello"]).await;
    mill.drain().await;
    mill.set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("{}/of/its/own", collector.url()));
    mill.insert(&["hello again"]).await;
    mill.drain().await;
    let requests = collector.requests();
    let paths: Vec<&str> = requests.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths, ["/v1/traces", "/of/its/own"]);
    for request in &requests {
        assert_eq!(request.headers["content-type"], "application/x-protobuf");
        assert_eq!(request.headers["x-tenant"], "seven");
    }
    ground.close().await;
}

#[tokio::test]
async fn nothing_is_exported_where_the_variables_say_so() {
    let ground = Ground::sqlite().await;
    let collector = Collector::start().await;
    for (name, value) in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ] {
        let mut mill = traced(&ground, &collector).await;
        mill.set(name, value);
        mill.insert(&["hello"]).await;
        let ran = mill.drain().await;
        assert_eq!((ran.code, ran.stderr.contains("WARN")), (0, false), "{}", ran.stderr);
        assert!(collector.requests().is_empty(), "{name}={value}");
    }
    let mill = traced(&ground, &collector).await;
    mill.insert(&["hello"]).await;
    mill.drain().await;
    assert_eq!(collector.spans().len(), 2, "without them it is");
    ground.close().await;
}

#[tokio::test]
async fn a_sampler_keeps_the_calls_of_what_it_keeps_and_no_others() {
    const JOBS: usize = 60;
    let ground = Ground::sqlite().await;
    let collector = Collector::start().await;
    let mut mill = traced(&ground, &collector).await;
    mill.knows_a_limit();
    mill.set("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
    mill.set("OTEL_TRACES_SAMPLER_ARG", "0.5");
    mill.insert(&["hello"; JOBS]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let spans = collector.spans();
    let claims = super::claims(&spans);
    assert!(!claims.is_empty() && claims.len() < JOBS, "{} of {JOBS}", claims.len());
    assert_eq!(spans.len(), 2 * claims.len());
    assert!(claims.iter().all(|claim| super::calls(&spans, claim).len() == 1));
    ground.close().await;
}

#[tokio::test]
async fn an_address_that_is_none_is_said_without_its_password_and_keeps_nobody_from_working() {
    let ground = Ground::sqlite().await;
    let collector = Collector::start().await;
    let mut mill = traced(&ground, &collector).await;
    mill.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hushhush@not an address");
    mill.insert(&["hello"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let told =
        ran.stderr.lines().filter(|line| line.contains("no spans are exported: OTEL_EXPORTER_OTLP_ENDPOINT"));
    assert_eq!(told.count(), 1, "{}", ran.stderr);
    assert!(!ran.stderr.contains("hushhush"), "{}", ran.stderr);
    ground.close().await;
}

#[tokio::test]
async fn what_is_not_spoken_here_counts_for_nothing() {
    let ground = Ground::sqlite().await;
    let collector = Collector::start().await;
    let mut mill = traced(&ground, &collector).await;
    mill.set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    mill.set("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
    mill.set("OTEL_TRACES_SAMPLER", "by_the_moon");
    mill.insert(&["hello"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(collector.spans().len(), 2, "{}", ran.stderr);
    ground.close().await;
}
