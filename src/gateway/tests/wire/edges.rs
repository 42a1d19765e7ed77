//! Paths, methods, panics, slow clients, crowds, and what is logged about them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures_util::{FutureExt, StreamExt, stream};
use http::Request;
use roundhouse_gateway::state::InvokeFn;
use roundhouse_gateway::{GatewayConfig, Health};
use roundhouse_types::ErrorKind;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";

#[tokio::test]
async fn ping_tells_the_health_of_the_server() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let got = harness.get("/ping").await;
    assert_eq!((got.status.as_u16(), got.json()), (200, json!({"status": "Healthy"})));
    let head = Request::head("/ping").body(Body::empty()).unwrap();
    let got = harness.send(head).await;
    assert_eq!((got.status.as_u16(), got.header("content-length")), (200, "20"));
    let health = Health::Unhealthy("device cpu failed".into());
    let harness = Setup { health, ..Setup::default() }.with(|_| says(hello(1), 1));
    let got = harness.get("/ping").await;
    assert_eq!((got.status.as_u16(), &got.json()["message"]), (503, &json!("device cpu failed")));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart_in_every_dialect() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let cases = [
        ("GET", "/nowhere", 404, json!({"Message": "no such path"})),
        ("POST", "/endpoints/ep/invocation", 404, json!({"Message": "no such path"})),
        ("GET", "/invocations", 405, json!({"Message": "this path does not take this method"})),
        ("DELETE", INVOKE, 405, json!({"Message": "this path does not take this method"})),
        (
            "GET",
            "/v1/chat/completions",
            405,
            json!({"error": {
                "message": "this path does not take this method",
                "type": "invalid_request_error", "param": null, "code": "method_not_allowed",
            }}),
        ),
    ];
    for (method, path, status, body) in cases {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let got = harness.send(request).await;
        assert_eq!((got.status.as_u16(), got.json()), (status, body), "{method} {path}");
        assert_eq!(got.header("x-amzn-requestid").len(), 36);
    }
}

#[tokio::test]
async fn who_looks_for_the_admin_port_is_told_where_it_is() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    for (path, status) in [("/", 405), ("/metrics", 404), ("/livez", 404)] {
        let got = harness.get(path).await;
        assert_eq!(got.status, status, "{path}");
        assert!(got.text().contains("on the admin port"), "{path}: {}", got.text());
    }
}

#[tokio::test]
async fn a_panic_is_an_internal_failure_with_a_request_id() {
    let harness = Setup::default().with(|_| panic!("on purpose"));
    let got = harness.post(INVOKE, "a", r#"{"inputs":"hi"}"#).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (500, "InternalFailure"));
    assert_eq!(got.header("x-amzn-requestid").len(), 36);
    assert!(!got.text().contains("on purpose"));
    assert_eq!(harness.logged.lock().unwrap()[0].status, 500);
}

#[tokio::test]
async fn every_request_is_logged_once_at_its_end() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let got = harness.post(INVOKE, "t/a", r#"{"inputs":"hi","stream":true}"#).await;
    harness.get("/nowhere").await;
    let logged = harness.logged.lock().unwrap();
    assert_eq!(logged.len(), 2);
    let mut record = serde_json::to_value(&logged[0]).unwrap();
    assert_eq!(record["request_id"], got.header("x-amzn-requestid"));
    for varying in ["time", "request_id", "first_token_ms", "total_ms"] {
        assert!(!record[varying].is_null(), "{varying}");
        record[varying] = "[…]".into();
    }
    let want = json!({
        "time": "[…]", "request_id": "[…]", "trace_id": null, "method": "POST", "route": "invoke_endpoint",
        "tenant": null, "credential": null, "endpoint": "ep", "target": "t/a", "alias": null,
        "variant": "AllTraffic", "component": null, "container": null, "inference_id": null, "version": "0123abcd",
        "tier": "disk", "queue_ms": 7.0, "load_ms": 120.0, "first_token_ms": "[…]",
        "total_ms": "[…]", "tokens_in": 3, "tokens_out": 4, "bytes_in": 29,
        "bytes_out": got.body.len(), "status": 200, "complete": true,
    });
    assert_eq!(record, want);
    assert_eq!((logged[1].route, logged[1].status, logged[1].complete), ("unmatched", 404, true));
}

#[tokio::test]
async fn tokens_of_what_is_classified_are_in_the_access_log() {
    let harness = Setup::default().with(|invocation| {
        invocation.spent.read(7);
        classifies(&[&[("good", 0.9)]])
    });
    assert_eq!(
        harness.post("/endpoints/ep/invocations", "a", r#"{"inputs":"hi"}"#).await.status,
        200
    );
    let logged = harness.logged.lock().unwrap();
    assert_eq!((logged[0].tokens_in, logged[0].tokens_out), (Some(7), None));
}

#[tokio::test]
async fn the_headers_about_the_answer_can_be_switched_off() {
    let config = GatewayConfig { served_headers: false, ..GatewayConfig::default() };
    let harness = Setup { config, ..Setup::default() }.with(|_| says(hello(1), 1));
    let got = harness.post(INVOKE, "a", r#"{"inputs":"hi"}"#).await;
    assert!(!got.headers.keys().any(|name| name.as_str().starts_with("x-roundhouse")));
    assert_eq!(got.header("x-amzn-requestid").len(), 36);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_arrives_is_given_up() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let start = tokio::time::Instant::now();
    let body = Body::from_stream(stream::pending::<Result<&str, std::io::Error>>());
    let got = harness.post(INVOKE, "a", body).await;
    assert_eq!((got.status.as_u16(), start.elapsed().as_secs()), (408, 30));
}

#[tokio::test]
async fn a_crowd_is_refused_early_and_ping_is_not() {
    let config = GatewayConfig { max_requests: 1, ..GatewayConfig::default() };
    let never: InvokeFn = Arc::new(|_| std::future::pending().boxed());
    let harness = Setup { config, ..Setup::default() }.with_async(never);
    let mut first = Box::pin(harness.post(INVOKE, "a", r#"{"inputs":"hi"}"#));
    assert!((&mut first).now_or_never().is_none());
    let got = harness.post(INVOKE, "a", r#"{"inputs":"hi"}"#).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (503, "ServiceUnavailable"));
    assert_eq!(got.header("retry-after"), "1");
    assert_eq!(harness.get("/ping").await.status, 200);
    drop(first);
    assert_eq!(harness.get("/v1/models").await.status, 200);
}

#[tokio::test]
async fn a_stream_counts_as_under_way_until_it_ends() {
    let config = GatewayConfig { max_requests: 1, ..GatewayConfig::default() };
    let harness = Setup { config, ..Setup::default() }.with(|_| {
        let first = stream::iter([Ok(piece(0, "Hello", Vec::new()))]);
        Ok(generation(Box::pin(first.chain(stream::pending())), 1))
    });
    let open = harness.raw(post(INVOKE, "a", r#"{"inputs":"hi","stream":true}"#)).await;
    assert_eq!(harness.get("/v1/models").await.status, 503);
    drop(open);
    assert_eq!(harness.get("/v1/models").await.status, 200);
}

/// A real server on loopback, and a connection to it.
async fn connected(harness: &Harness) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = harness.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    TcpStream::connect(address).await.unwrap()
}

async fn answer_of(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn head(path: &str, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         x-amzn-sagemaker-target-model: a\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn a_client_that_is_still_sending_too_much_sees_the_413() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let mut stream = connected(&harness).await;
    let size = 7 << 20;
    let head = head(INVOKE, &format!("content-length: {size}\r\n"));
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b'a'; size]).await.unwrap();
    let answer = answer_of(stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("x-amzn-errortype: ValidationError"), "{answer}");
}

#[tokio::test]
async fn plain_answers_have_a_length_and_streams_are_chunked() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    for (body, framing) in [
        (r#"{"inputs":"hi"}"#, "content-length: 29"),
        (r#"{"inputs":"hi","stream":true}"#, "transfer-encoding: chunked"),
    ] {
        let mut stream = connected(&harness).await;
        let head = head(INVOKE, &format!("content-length: {}\r\n", body.len()));
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        let answer = answer_of(stream).await;
        assert!(answer.contains(framing), "{answer}");
        assert!(answer.matches("content-length").count() <= 1);
    }
    let logged = harness.logged.lock().unwrap();
    assert!(logged.iter().all(|record| record.complete), "{logged:?}");
}

#[tokio::test]
async fn a_failed_stream_says_so_over_a_real_connection() {
    let harness = Setup::default().with(|_| breaks(ErrorKind::ModelFailed));
    let mut stream = connected(&harness).await;
    let body = r#"{"model":"a","prompt":"hi","stream":true}"#;
    let head = head("/v1/completions", &format!("content-length: {}\r\n", body.len()));
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let answer = answer_of(stream).await;
    assert!(answer.contains("model_failed") && !answer.contains("[DONE]"), "{answer}");
}

#[tokio::test]
async fn a_client_that_leaves_while_waiting_cancels_its_invocation() {
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
    let begun = Arc::new(tokio::sync::Notify::new());
    let begins = begun.clone();
    let never: InvokeFn = Arc::new(move |_| {
        let held = sender.lock().unwrap().take();
        let begins = begins.clone();
        async move {
            begins.notify_one();
            let _held = held;
            std::future::pending().await
        }
        .boxed()
    });
    let harness = Setup::default().with_async(never);
    let mut stream = connected(&harness).await;
    let head = head(INVOKE, "content-length: 15\r\n");
    stream.write_all(format!("{head}{{\"inputs\":\"hi\"}}").as_bytes()).await.unwrap();
    begun.notified().await;
    drop(stream);
    let gone = tokio::time::timeout(Duration::from_secs(10), receiver).await;
    assert!(gone.expect("the invocation is dropped").is_err());
}

#[tokio::test]
async fn large_bodies_are_parsed_like_small_ones() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let body: Value = json!({"inputs": "a".repeat(1 << 20)});
    assert_eq!(harness.post(INVOKE, "a", body.to_string()).await.status, 200);
    let wrong = format!("{}x", body);
    let got = harness.post(INVOKE, "a", wrong).await;
    assert!(got.text().contains("trailing characters at line 1"), "{}", got.text());
}
