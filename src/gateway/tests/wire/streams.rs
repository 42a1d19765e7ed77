//! Streams: lines, server-sent events, event-stream messages, and how they fail.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::Request;
use http_body_util::BodyExt;
use roundhouse_gateway::GatewayConfig;
use roundhouse_serving::{Answer, Finish, Piece};
use roundhouse_tenancy::{Accounts, Limits, QuotaRules};
use roundhouse_types::{ErrorKind, Failure};
use serde_json::{Value, json};

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const FRAMED: &str = "/endpoints/ep/invocations-response-stream";
const STREAM: &str = r#"{"inputs":"hi","stream":true,"parameters":{"details":true}}"#;

fn accepting(mut request: Request<Body>, name: &'static str) -> Request<Body> {
    request.headers_mut().insert(name, "text/event-stream".parse().unwrap());
    request
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn inputs_stream_as_lines_of_one_token_each() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let (got, chunks) = harness.chunks(post(INVOKE, "a", STREAM)).await;
    assert_eq!(got.header("content-type"), "application/jsonlines");
    assert_eq!(got.header("content-length"), "");
    assert_eq!(got.header("x-roundhouse-tier"), "disk");
    assert_eq!(chunks.len(), 4);
    assert!(chunks.iter().all(|chunk| chunk.ends_with(b"\n")));
    insta::assert_snapshot!(got.text());
    let said: String = lines(&got.text())
        .iter()
        .filter(|line| line["token"]["special"] == false)
        .map(|line| line["token"]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(said, "Hello é");
}

#[tokio::test]
async fn text_that_is_released_at_the_end_is_not_lost() {
    let pieces = || {
        vec![
            piece(0, "", vec![token(10, "He", -0.5)]),
            Piece { text: "He".into(), ..last(0, Finish::EndOfSequence, 2) },
        ]
    };
    let harness = Setup::default().with(move |_| says(pieces(), 1));
    let got = harness.post(INVOKE, "a", STREAM).await;
    let events = lines(&got.text());
    let said: String = events
        .iter()
        .filter(|line| line["token"]["special"] == false)
        .map(|line| line["token"]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(said, "He");
    assert_eq!(events.last().unwrap()["generated_text"], "He");
}

#[tokio::test]
async fn inputs_stream_as_events_where_the_client_accepts_them() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let got = harness.send(accepting(post(INVOKE, "a", STREAM), "accept")).await;
    assert_eq!(got.header("content-type"), "text/event-stream; charset=utf-8");
    let text = got.text();
    assert!(text.starts_with("data: {\"index\":0,"), "{text}");
    assert!(text.ends_with("}\n\n") && !text.contains("[DONE]"), "{text}");
}

#[tokio::test]
async fn a_chat_streams_as_openai_does() {
    let harness = Setup::default().with(|_| says(hello(2), 2));
    let body = json!({
        "model": "a", "messages": [{"role": "user", "content": "hi"}], "n": 2,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let (got, chunks) = harness.chunks(post("/v1/chat/completions", "", body.to_string())).await;
    assert_eq!(got.header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!(got.header("x-accel-buffering"), "no");
    assert!(chunks.iter().all(|chunk| chunk.starts_with(b"data: ") && chunk.ends_with(b"\n\n")));
    insta::assert_snapshot!(steady(&got.text()));
}

#[tokio::test]
async fn a_completion_streams_with_its_log_probabilities() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let body = r#"{"model":"a","prompt":"hi","stream":true,"logprobs":1}"#;
    let got = harness.post("/v1/completions", "", body).await;
    insta::assert_snapshot!(steady(&got.text()));
}

#[tokio::test]
async fn a_chat_on_invocations_streams_as_lines_like_lmi() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let body = r#"{"messages":[{"role":"user","content":"hi"}],"stream":true}"#;
    let got = harness.post(INVOKE, "a", body).await;
    assert_eq!(got.header("content-type"), "application/jsonlines");
    assert_eq!(lines(&got.text()).len(), 4);
    let got = harness.send(accepting(post(INVOKE, "a", body), "accept")).await;
    assert!(got.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_failure_in_the_stream_is_its_last_event() {
    let harness = Setup::default().with(|_| breaks(ErrorKind::ModelFailed));
    let got = harness.post(INVOKE, "a", STREAM).await;
    let events = lines(&got.text());
    assert_eq!(events.len(), 2);
    assert_eq!(events[1]["details"]["finish_reason"], "error");
    assert_eq!(events[1]["token"]["id"], -1);
    assert_eq!(events[1]["error"], "the device failed");

    let body = r#"{"model":"a","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
    let got = harness.post("/v1/chat/completions", "", body).await;
    let text = got.text();
    let last = text.trim_end().rsplit("data: ").next().unwrap();
    let error: Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["code"], "model_failed");
    assert!(!text.contains("[DONE]"));
}

#[tokio::test]
async fn a_failure_before_the_first_piece_has_a_status() {
    let harness = Setup::default().with(|_| {
        let failure = Failure::new(ErrorKind::InvalidInput, "the prompt is too long");
        Ok(generation(Box::pin(stream::iter([Err(failure)])), 1))
    });
    assert_eq!(harness.post(INVOKE, "a", STREAM).await.status, 424);
    assert_eq!(harness.post("/invocations", "a", STREAM).await.status, 400);
    assert_eq!(harness.post(FRAMED, "a", STREAM).await.status, 424);
}

/// Takes event-stream messages apart: the headers' values in order, and the payload.
fn messages(bytes: &Bytes) -> Vec<(Vec<String>, Bytes)> {
    let number = |at: &[u8]| u32::from_be_bytes(at[..4].try_into().unwrap()) as usize;
    let mut rest = bytes.clone();
    let mut out = Vec::new();
    while !rest.is_empty() {
        let message = rest.split_to(number(&rest));
        let end = message.len() - 4;
        assert_eq!(crc32fast::hash(&message[..8]) as usize, number(&message[8..]));
        assert_eq!(crc32fast::hash(&message[..end]) as usize, number(&message[end..]));
        let mut headers = message.slice(12..12 + number(&message[4..]));
        let payload = message.slice(12 + headers.len()..end);
        let mut values = Vec::new();
        while !headers.is_empty() {
            let name = headers.split_to(1 + headers[0] as usize);
            assert!(name[1] == b':');
            let length = u16::from_be_bytes(headers[1..3].try_into().unwrap()) as usize;
            let value = headers.split_to(3 + length).slice(3..);
            values.push(String::from_utf8(value.to_vec()).unwrap());
        }
        out.push((values, payload));
    }
    out
}

#[tokio::test]
async fn the_framed_stream_has_one_event_per_part() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let (got, chunks) = harness.chunks(post(FRAMED, "a", STREAM)).await;
    assert_eq!(got.header("content-type"), "application/vnd.amazon.eventstream");
    assert_eq!(got.header("x-amzn-sagemaker-content-type"), "application/jsonlines");
    assert_eq!(got.header("x-amzn-invoked-production-variant"), "AllTraffic");
    let parts = messages(&got.body);
    assert_eq!((parts.len(), chunks.len()), (4, 4));
    for (headers, payload) in &parts {
        assert_eq!(headers, &["event", "PayloadPart", "application/octet-stream"]);
        assert_eq!(lines(std::str::from_utf8(payload).unwrap()).len(), 1);
        assert!(payload.ends_with(b"\n"));
    }
    let chat = r#"{"messages":[{"role":"user","content":"hi"}],"stream":true}"#;
    let request = accepting(post(FRAMED, "a", chat), "x-amzn-sagemaker-accept");
    let (got, _) = harness.chunks(request).await;
    assert_eq!(got.header("x-amzn-sagemaker-content-type"), "text/event-stream; charset=utf-8");
    assert_eq!(messages(&got.body).last().unwrap().1, "data: [DONE]\n\n");
}

#[tokio::test]
async fn the_framed_stream_carries_a_whole_answer_too() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let got = harness.post(FRAMED, "a", r#"{"inputs":"hi"}"#).await;
    assert_eq!(got.header("x-amzn-sagemaker-content-type"), "application/json");
    let parts = messages(&got.body);
    assert_eq!(parts.len(), 1);
    assert_eq!(parts[0].1, "{\"generated_text\":\"Hello é\"}\n");
}

#[tokio::test]
async fn a_long_answer_is_framed_in_messages_that_botocore_takes() {
    const NUMBERS: usize = 400_000;
    let harness = Setup::default().with(|_| embeds(vec![vec![0.25; NUMBERS]]));
    let got = harness.post(FRAMED, "a", r#"{"inputs":"hi"}"#).await;
    let parts = messages(&got.body);
    let [(_, payload)] = parts.as_slice() else { panic!("{} parts", parts.len()) };
    let vector: Vec<f32> = serde_json::from_slice(payload).unwrap();
    assert_eq!(vector, [0.25; NUMBERS]);
}

#[tokio::test]
async fn the_framed_stream_fails_with_names_that_boto3_knows() {
    let cases = [
        (ErrorKind::ModelFailed, "ModelStreamError", json!("StreamBroken")),
        (ErrorKind::TimedOut, "ModelStreamError", json!("ModelInvocationTimeExceeded")),
        (ErrorKind::Internal, "InternalStreamFailure", json!(null)),
    ];
    for (kind, name, code) in cases {
        let harness = Setup::default().with(move |_| breaks(kind));
        let got = harness.post(FRAMED, "a", STREAM).await;
        let parts = messages(&got.body);
        let (headers, payload) = &parts[1];
        assert_eq!(headers, &["exception", name, "application/json"]);
        let said: Value = serde_json::from_slice(payload).unwrap();
        assert_eq!(said["Message"], "the device failed");
        assert_eq!(said["ErrorCode"], code);
    }
}

#[tokio::test]
async fn the_framed_stream_finds_its_target_in_three_places() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let attributes = |mut request: Request<Body>| {
        let value = "a=b,target-model=t3".parse().unwrap();
        request.headers_mut().insert("x-amzn-sagemaker-custom-attributes", value);
        request
    };
    let with_model = r#"{"inputs":"hi","model":"t2"}"#;
    let cases = [
        (attributes(post(FRAMED, "t1", with_model)), "t1"),
        (attributes(post(FRAMED, "", with_model)), "t2"),
        (attributes(post(FRAMED, "", r#"{"inputs":"hi"}"#)), "t3"),
    ];
    for (request, want) in cases {
        assert_eq!(harness.send(request).await.status, 200);
        assert_eq!(harness.asked.lock().unwrap().last().unwrap().model.target.as_str(), want);
    }
    let got = harness.post(FRAMED, "", r#"{"inputs":"hi"}"#).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
}

#[tokio::test(start_paused = true)]
async fn silence_is_filled_with_comments() {
    let harness = Setup::default().with(|_| {
        let late = stream::once(async {
            tokio::time::sleep(Duration::from_secs(40)).await;
            Ok(last(0, Finish::Length, 1))
        });
        Ok(generation(Box::pin(late), 1))
    });
    let body = r#"{"model":"a","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
    let got = harness.post("/v1/chat/completions", "", body).await;
    assert_eq!(got.text().matches(": keep-alive\n\n").count(), 1);
    assert!(got.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stalls_ends_at_its_deadline_with_an_error() {
    let harness = Setup::default().with(|_| {
        let first = stream::iter([Ok(piece(0, "Hello", Vec::new()))]);
        Ok(generation(Box::pin(first.chain(stream::pending())), 1))
    });
    let start = tokio::time::Instant::now();
    let body = r#"{"model":"a","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
    let got = harness.post("/v1/chat/completions", "", body).await;
    assert_eq!(start.elapsed().as_secs(), 600);
    assert!(got.text().contains("\"code\":\"timeout\""), "{}", got.text());
    assert!(!got.text().contains("[DONE]"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_reading_holds_no_model_past_the_deadline() {
    let held = Arc::new(());
    let watched = Arc::downgrade(&held);
    let held = Arc::new(std::sync::Mutex::new(Some(held)));
    let harness = Setup::default().with(move |_| {
        let guard = held.lock().unwrap().take();
        let pieces = stream::repeat_with(move || {
            let _held = &guard;
            Ok(piece(0, "Hello", vec![token(1, "Hello", -0.5)]))
        });
        Ok(generation(Box::pin(pieces), 1))
    });
    let response = harness.raw(post(INVOKE, "a", STREAM)).await;
    let mut body = response.into_body().into_data_stream();
    assert!(body.next().await.is_some());
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert!(watched.upgrade().is_some());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(watched.upgrade().is_none());
    let rest = body.next().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("timed out"), "{rest:?}");
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn the_prompt_is_in_the_whole_text_and_in_no_token() {
    let pieces = || {
        let mut pieces = vec![piece(0, "Say: ", Vec::new())];
        pieces.extend(hello(1));
        pieces
    };
    let harness = Setup::default().with(move |_| says(pieces(), 1));
    let events = lines(&harness.post(INVOKE, "a", STREAM).await.text());
    assert_eq!(events[0]["token"]["text"], "Hello");
    assert_eq!(events.last().unwrap()["generated_text"], "Say: Hello é");
}

#[tokio::test]
async fn a_client_that_leaves_lets_go_of_the_model() {
    let held = Arc::new(());
    let watched = Arc::downgrade(&held);
    let held = Arc::new(std::sync::Mutex::new(Some(held)));
    let harness = Setup::default().with(move |_| {
        let guard = held.lock().unwrap().take();
        let first = stream::iter([Ok(piece(0, "Hello", vec![token(1, "Hello", -0.5)]))]);
        let forever = first.chain(stream::pending()).map(move |piece| {
            let _held = &guard;
            piece
        });
        Ok(generation(Box::pin(forever), 1))
    });
    let response = harness.raw(post(INVOKE, "a", STREAM)).await;
    let mut body = response.into_body().into_data_stream();
    assert!(body.next().await.is_some());
    assert!(watched.upgrade().is_some());
    drop(body);
    assert!(watched.upgrade().is_none());
    let logged = harness.logged.lock().unwrap();
    assert!(!logged[0].complete);
    assert_eq!(logged[0].tokens_out, Some(1));
}

/// `count` pieces of characters of one to four bytes, then what `last` says.
fn pieces_then(count: usize, last: Option<ErrorKind>) -> Result<Answer, Failure> {
    const TEXTS: [&str; 4] = ["a", "é", "€", "𝄞"];
    let text = |at: usize| TEXTS[at % TEXTS.len()];
    let pieces = (0..count).map(move |at| Ok(piece(0, text(at), vec![token(10, text(at), -0.5)])));
    let end = match last {
        Some(kind) => Err(Failure::new(kind, "the device failed")),
        None => Ok(crate::support::last(0, Finish::Length, count)),
    };
    let end = stream::iter([end]);
    Ok(generation(Box::pin(stream::iter(pieces.collect::<Vec<_>>()).chain(end)), 1))
}

#[tokio::test]
async fn a_stream_that_fails_at_any_point_ends_in_an_event_that_says_so() {
    for count in 1..20 {
        for kind in [None, Some(ErrorKind::ModelFailed), Some(ErrorKind::TimedOut)] {
            let harness = Setup::default().with(move |_| pieces_then(count, kind));
            let (got, chunks) = harness.chunks(post(FRAMED, "a", STREAM)).await;
            assert_eq!(got.status, 200);
            let events = messages(&got.body);
            assert_eq!(chunks.len(), events.len(), "a chunk is a whole message");
            let (failed, whole): (Vec<_>, Vec<_>) =
                events.iter().partition(|(names, _)| names[0] == "exception");
            for (_, payload) in &whole {
                let line = std::str::from_utf8(payload).expect("characters are whole");
                assert!(line.ends_with('\n'));
                let _: Value = serde_json::from_str(line).expect("a part is one event");
            }
            assert_eq!(failed.len(), usize::from(kind.is_some()));
            assert_eq!(events.last().unwrap().0[0] == "exception", kind.is_some());
        }
    }
}

#[tokio::test]
async fn whoever_is_being_answered_at_the_end_of_the_server_is_told() {
    let silent = || {
        let first = stream::iter([Ok(piece(0, "Hello", vec![token(10, "Hello", -0.5)]))]);
        Ok(generation(Box::pin(first.chain(stream::pending())), 1))
    };
    let harness = Setup::default().with(move |_| silent());
    let (parts, body) = harness.raw(post(FRAMED, "a", STREAM)).await.into_parts();
    assert_eq!(parts.status, 200);
    let whole = harness.raw(post(INVOKE, "a", r#"{"inputs":"hi"}"#));
    let told = async {
        // Both are under way.
        while harness.asked.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        harness.cut_off.now();
        body.collect().await.unwrap().to_bytes()
    };
    let (whole, streamed) = tokio::join!(whole, told);
    assert_eq!(whole.status(), 503);
    assert_eq!(whole.headers()["x-amzn-errortype"], "ServiceUnavailable");
    let events = messages(&streamed);
    let (names, payload) = events.last().unwrap();
    assert_eq!(names[..2], ["exception", "ModelStreamError"]);
    let payload: Value = serde_json::from_slice(payload).unwrap();
    assert_eq!(payload["ErrorCode"], "StreamBroken");
    assert!(payload["Message"].as_str().unwrap().contains("shutting down"), "{payload}");
    // Who comes later finds nothing that answers.
    assert_eq!(harness.post(INVOKE, "a", r#"{"inputs":"hi"}"#).await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_keeps_no_place_and_no_slot_past_the_deadline() {
    let limits = Limits { concurrent_requests: Some(1), ..Limits::default() };
    let rules = QuotaRules { others: limits, ..QuotaRules::default() };
    for (most, rules) in [(1, QuotaRules::default()), (1024, rules)] {
        let config = GatewayConfig { max_requests: most, ..GatewayConfig::default() };
        let longest = config.stream_timeout.max(config.container_timeout);
        let accounts = Arc::new(Accounts::new(rules));
        let setup = Setup { config, accounts, targets: vec!["acme/a"], ..Setup::default() };
        // Streams that have more to say for as long as somebody reads.
        let harness = setup.with(|_| {
            let pieces =
                stream::repeat_with(|| Ok(piece(0, "Hello", vec![token(10, "Hello", -0.5)])));
            Ok(generation(Box::pin(pieces), 1))
        });
        let unread = harness.raw(post(INVOKE, "acme/a", STREAM)).await;
        assert_eq!(unread.status(), 200);
        let refused = harness.raw(post(INVOKE, "acme/a", STREAM)).await.status().as_u16();
        assert!([429, 503].contains(&refused), "{refused}");
        tokio::time::sleep(longest + Duration::from_secs(2)).await;
        assert_eq!(harness.raw(post(INVOKE, "acme/a", STREAM)).await.status(), 200);
        drop(unread);
    }
}
