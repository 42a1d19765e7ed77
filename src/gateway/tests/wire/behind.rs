//! Containers behind an endpoint: one that is named, and pipelines.

mod hidden;

use std::sync::{Arc, Mutex};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderMap, Request, StatusCode};
use roundhouse_gateway::{
    ContainerMode, Containers, DeferFn, EndpointContainer, EndpointFace, FromContainer, Naming,
    Offered, Serves, ToContainer,
};
use roundhouse_tenancy::{
    Accounts, Alias, Aliases, Grants, Limits, Pattern, Policy, QuotaRules, Route,
};
use roundhouse_types::{ErrorKind, Failure, ModelId, RetryHint, TenantName};
use serde_json::{Value, json};

use crate::support::*;
use crate::tenants::said;

const INVOKE: &str = "/endpoints/ep/invocations";
const STREAM: &str = "/endpoints/ep/invocations-response-stream";
const PLAIN: &str = "/invocations";
const CONTAINER: &str = "x-amzn-sagemaker-target-container-hostname";

/// What containers were sent, with their names.
pub(crate) type Sent = Arc<Mutex<Vec<(String, ToContainer)>>>;

fn answer(status: u16, pieces: Vec<Result<Bytes, Failure>>) -> FromContainer {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("content-type", "text/csv"),
        ("x-amzn-sagemaker-custom-attributes", "seen=1"),
        ("x-amzn-sagemaker-new-session-id", "s-1; Expires=2030-01-01T00:00:00Z"),
        ("set-cookie", "a=b"),
        ("server", "theirs"),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    let is_broken = pieces.iter().any(Result::is_err);
    let length = pieces.iter().flatten().map(|piece| piece.len() as u64).sum();
    FromContainer {
        status: StatusCode::from_u16(status).unwrap(),
        headers,
        length: (!is_broken && pieces.len() == 1).then_some(length),
        body: stream::iter(pieces).boxed(),
    }
}

fn cut() -> Failure {
    Failure::new(ErrorKind::ModelFailed, "container ep/b broke its answer off").with_status(0)
}

/// An endpoint `ep` with these containers. They add their name to what they are sent; one called
/// `breaks` breaks off, `refuses`, is `huge`, `down` or left `alone`.
pub(crate) fn setup(mode: ContainerMode, names: &[&str]) -> (Setup, Sent) {
    let sent = Sent::default();
    let list = names.iter().map(|name| {
        let (own, sent) = ((*name).to_owned(), sent.clone());
        let ask = move |request: ToContainer| {
            sent.lock().unwrap().push((own.clone(), request.clone()));
            let text = format!("{}>{own}", String::from_utf8_lossy(&request.body));
            let outcome = match own.as_str() {
                "breaks" => Ok(answer(200, vec![Ok("one".into()), Err(cut())])),
                "refuses" => Ok(answer(418, vec![Ok("no ".into()), Ok("tea".into())])),
                "lacks" => Ok(answer(404, vec![Ok("Not Found".into())])),
                "huge" => Ok(answer(200, vec![Ok(vec![b'x'; 6_000_000].into())])),
                "gushes" => Ok(answer(200, vec![Ok(vec![b'x'; 3_000_000].into()); 2])),
                "streams" => Ok(answer(200, vec![Ok("one".into()), Ok("two".into())])),
                "down" => Err(cut()),
                "alone" => Err(Failure::new(ErrorKind::Overloaded, "failed repeatedly")
                    .with_retry(RetryHint::After(std::time::Duration::from_secs(2)))),
                _ => Ok(answer(200, vec![Ok(text.into())])),
            };
            async move { outcome }.boxed()
        };
        Arc::new(EndpointContainer { name: name.parse().unwrap(), ask: Arc::new(ask) })
    });
    let containers = Some(Containers { mode, list: list.collect() });
    (Setup { containers, ..Setup::default() }, sent)
}

fn harness(mode: ContainerMode, names: &[&str]) -> (Harness, Sent) {
    let (setup, sent) = setup(mode, names);
    (setup.with(|_| panic!("a model was asked")), sent)
}

fn to(path: &str, container: &str) -> Request<Body> {
    let mut request = post(path, "", "in");
    if !container.is_empty() {
        request.headers_mut().insert(CONTAINER, container.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn a_container_sees_what_sagemaker_lets_it_see_and_so_does_the_client() {
    let (harness, sent) = harness(ContainerMode::Direct, &["a", "b"]);
    for (path, accept) in
        [(INVOKE, "accept"), (PLAIN, "accept"), (STREAM, "x-amzn-sagemaker-accept")]
    {
        let mut request = to(path, "b");
        for (name, value) in [
            ("content-type", "text/x"),
            (accept, "text/y"),
            ("x-amzn-sagemaker-custom-attributes", "trace=7"),
            ("x-amzn-sagemaker-inference-id", "i-1"),
            ("x-amzn-sagemaker-session-id", "s-1"),
            ("x-amzn-sagemaker-target-model", "m"),
            ("authorization", "Bearer secret"),
            ("x-amz-security-token", "secret"),
            ("x-tenant", "acme"),
            ("cookie", "a=b"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let got = harness.send(request).await;
        assert_eq!(got.status, 200, "{path}");
        assert!(String::from_utf8_lossy(&got.body).contains("in>b"), "{path}");
        let media = match path {
            STREAM => got.header("x-amzn-sagemaker-content-type"),
            _ => got.header("content-type"),
        };
        assert_eq!(media, "text/csv", "{path}");
        assert_eq!(got.header("x-amzn-sagemaker-custom-attributes"), "seen=1");
        assert!(got.header("x-amzn-sagemaker-new-session-id").starts_with("s-1"));
        assert_eq!(got.header("x-amzn-invoked-production-variant"), "AllTraffic");
        assert!(!got.headers.contains_key("set-cookie") && !got.headers.contains_key("server"));
        let (name, request) = sent.lock().unwrap().pop().unwrap();
        assert_eq!((name.as_str(), request.path.as_str()), ("b", "/invocations"));
        let mut names: Vec<&str> = request.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        let want = [
            "accept",
            "content-type",
            "x-amzn-requestid",
            "x-amzn-sagemaker-custom-attributes",
            "x-amzn-sagemaker-inference-id",
            "x-amzn-sagemaker-session-id",
            "x-amzn-sagemaker-target-model",
        ];
        assert_eq!(names, want, "{path}");
        assert_eq!(request.headers["accept"], "text/y", "{path}");
        let record = harness.logged.lock().unwrap().last().unwrap().clone();
        assert_eq!(record.container.unwrap().as_str(), "b");
        assert_eq!(record.target.unwrap().as_str(), "b");
        assert_eq!(record.inference_id.as_deref(), Some("i-1"));
    }
}

#[tokio::test]
async fn a_container_must_be_named_where_they_are_asked_directly_and_nowhere_else() {
    let (direct, _) = harness(ContainerMode::Direct, &["a", "b"]);
    let (serial, _) = harness(ContainerMode::Serial, &["a", "b"]);
    let models = Setup::default().with(|_| panic!("a model was asked"));
    let cases = [
        (&direct, "", "is missing the header"),
        (&direct, "c", "container c not found at endpoint ep"),
        (&direct, "-", "must have at most 63"),
        (&serial, "a", "one after the other"),
        (&models, "a", "has no containers"),
    ];
    for (harness, container, why) in cases {
        for path in [INVOKE, STREAM] {
            let got = harness.send(to(path, container)).await;
            let kind = got.header("x-amzn-errortype");
            assert_eq!((got.status.as_u16(), kind), (400, "ValidationError"), "{path}");
            let told = got.json()["Message"].as_str().unwrap().to_owned();
            assert!(told.contains(why), "{told}");
        }
    }
    for (name, value) in [
        ("x-amzn-sagemaker-target-variant", "blue"),
        ("x-amzn-sagemaker-inference-component", "ic"),
    ] {
        let mut request = to(INVOKE, "a");
        request.headers_mut().insert(name, value.parse().unwrap());
        let got = direct.send(request).await;
        assert_eq!(got.status, 400);
        assert!(got.text().contains("not found at endpoint ep"), "{}", got.text());
    }
}

#[tokio::test]
async fn a_pipeline_has_no_target_models_and_says_so() {
    let (harness, sent) = harness(ContainerMode::Serial, &["a", "b"]);
    for path in [INVOKE, STREAM] {
        let mut request = to(path, "");
        request.headers_mut().insert("x-amzn-sagemaker-target-model", "m".parse().unwrap());
        let got = harness.send(request).await;
        let kind = got.header("x-amzn-errortype");
        assert_eq!((got.status.as_u16(), kind), (400, "ValidationError"), "{path}");
        assert_eq!(got.json()["ErrorCode"], "TARGET_MODEL_HEADER_NOT_SUPPORTED");
        assert!(got.text().contains("not a multi-model endpoint"), "{}", got.text());
        assert!(sent.lock().unwrap().is_empty(), "no container is asked");
        assert_eq!(harness.send(to(path, "")).await.status, 200);
        sent.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn what_was_written_for_models_is_refused_with_what_there_is() {
    let (harness, _) = harness(ContainerMode::Direct, &["a", "b"]);
    for path in ["/generate", "/endpoints/ep/openai/v1/chat/completions", "/v1/chat/completions"] {
        let body = json!({"inputs": "hi", "messages": [], "model": ""}).to_string();
        let got = harness.post(path, "", body).await;
        assert!(got.status.is_client_error(), "{path}: {}", got.text());
    }
    let listed = harness.get("/v1/models").await;
    assert_eq!(listed.status, 200);
}

#[tokio::test]
async fn each_answer_of_a_pipeline_is_the_next_request() {
    let (harness, sent) = harness(ContainerMode::Serial, &["a", "b", "c"]);
    let mut request = post(INVOKE, "", "in");
    request.headers_mut().insert("content-type", "text/x".parse().unwrap());
    request.headers_mut().insert("accept", "text/y".parse().unwrap());
    let got = harness.send(request).await;
    assert_eq!((got.status.as_u16(), got.text().as_str()), (200, "in>a>b>c"));
    let sent = std::mem::take(&mut *sent.lock().unwrap());
    let header = |at: usize, name: &str| {
        let headers = &sent[at].1.headers;
        headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned()
    };
    assert_eq!([0, 1, 2].map(|at| header(at, "content-type")), ["text/x", "text/csv", "text/csv"]);
    assert_eq!([0, 1, 2].map(|at| header(at, "accept")), ["", "", "text/y"]);
    let got = harness.chunks(post(STREAM, "", "in")).await.1;
    assert_eq!(got.len(), 1);
    let record = harness.logged.lock().unwrap().last().unwrap().clone();
    let names = (record.target.unwrap().to_string(), record.container.unwrap().to_string());
    assert_eq!(names, ("a".to_owned(), "c".to_owned()));
}

#[tokio::test]
async fn the_container_that_fails_is_told_with_what_it_said() {
    let cases = [
        (
            "refuses",
            418,
            "no tea",
            "Received client error (418) from refuses with message \"no tea\"",
        ),
        ("down", 0, "container ep/b broke its answer off", "Received server error (0) from down"),
    ];
    for (name, status, original, message) in cases {
        for mode in [ContainerMode::Direct, ContainerMode::Serial] {
            let (harness, sent) = harness(mode, &["a", name, "c"]);
            let container = if mode == ContainerMode::Direct { name } else { "" };
            for path in [INVOKE, STREAM] {
                let got = harness.send(to(path, container)).await;
                assert_eq!(
                    (got.status.as_u16(), got.header("x-amzn-errortype")),
                    (424, "ModelError")
                );
                let told = got.json();
                assert_eq!(told["OriginalStatusCode"], status);
                assert_eq!(told["OriginalMessage"], original);
                assert!(told["Message"].as_str().unwrap().starts_with(message), "{told}");
            }
            assert!(sent.lock().unwrap().iter().all(|(asked, _)| asked != "c"));
        }
    }
    let (harness, _) = harness(ContainerMode::Direct, &["alone"]);
    let got = harness.send(to(INVOKE, "alone")).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (503, "ServiceUnavailable"));
    assert_eq!(got.header("retry-after"), "2");
}

#[tokio::test]
async fn more_than_five_megabytes_do_not_pass_between_two_containers() {
    for (name, length) in [("huge", "6000000 bytes"), ("gushes", "more than 5242880 bytes")] {
        let (harness, _) = harness(ContainerMode::Serial, &["a", name, "c"]);
        let got = harness.post(INVOKE, "", "in").await;
        assert_eq!(got.status, 424);
        let want = format!(
            "Received response from {name} with status code 200. However, the request payload from \
             {name} to c is {length}, which has exceeded the maximum limit of 5 MB."
        );
        assert_eq!(got.json()["OriginalMessage"], want);
        // The last one's answer may be as large.
        let (harness, _) = self::harness(ContainerMode::Serial, &["a", name]);
        assert_eq!(harness.post(INVOKE, "", "in").await.body.len(), 6_000_000);
    }
}

#[tokio::test]
async fn pieces_are_parts_of_the_event_stream_and_a_cut_is_its_last_event() {
    let (harness, _) = harness(ContainerMode::Direct, &["streams", "breaks"]);
    let (got, chunks) = harness.chunks(to(STREAM, "streams")).await;
    assert_eq!(got.header("content-type"), "application/vnd.amazon.eventstream");
    assert_eq!(chunks.len(), 2);
    let holds = |chunk: &Bytes, text: &str| {
        chunk.windows(text.len()).any(|window| window == text.as_bytes())
    };
    assert!(holds(&chunks[0], "one") && holds(&chunks[1], "two"));
    let (got, chunks) = harness.chunks(to(STREAM, "breaks")).await;
    assert_eq!((got.status.as_u16(), chunks.len()), (200, 2));
    assert!(holds(&chunks[1], "ModelStreamError") && holds(&chunks[1], "broke its answer off"));
    // Whole, it is an error from its first byte.
    let got = harness.send(to(INVOKE, "breaks")).await;
    assert_eq!((got.status.as_u16(), &got.json()["OriginalStatusCode"]), (424, &json!(0)));
}

#[tokio::test]
async fn a_model_named_in_a_body_is_refused_where_there_are_containers() {
    let (harness, _) = harness(ContainerMode::Direct, &["a", "b"]);
    for path in ["/generate", "/generate_stream", "/", "/embed", "/predict"] {
        for body in [
            json!({"inputs": "hi", "model": "made/up"}),
            json!({"inputs": "hi", "parameters": {"adapter_id": "made/up"}}),
            json!({"inputs": "hi"}),
        ] {
            let got = harness.post(path, "", body.to_string()).await;
            assert_eq!(got.status, 422, "{path}: {}", got.text());
            assert!(got.text().contains("containers in place of models"), "{}", got.text());
        }
    }
    assert!(harness.asked.lock().unwrap().is_empty(), "no model is looked for");
}

#[tokio::test]
async fn limits_hold_for_containers_too() {
    let (setup, sent) = setup(ContainerMode::Direct, &["a"]);
    let limits = Limits { requests_per_day: Some(1), ..Limits::default() };
    let rules = QuotaRules { others: limits, ..QuotaRules::default() };
    let accounts = Arc::new(Accounts::new(rules));
    let setup = Setup { accounts, identity: proxied(), ..setup };
    let harness = setup.with(|_| panic!("a model was asked")).by("acme");
    let statuses =
        [harness.send(to(INVOKE, "a")).await.status, harness.send(to(INVOKE, "a")).await.status];
    assert_eq!(statuses.map(|it| it.as_u16()), [200, 429]);
    assert_eq!(sent.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn openais_routes_pass_bodies_and_errors_as_they_are() {
    let (harness, sent) = harness(ContainerMode::Direct, &["a", "refuses"]);
    let body = |model: &str| json!({"model": model, "n": "not ours to judge"}).to_string();
    let at = "/endpoints/ep/openai/v1/chat/completions";
    for (path, model) in
        [("/v1/chat/completions", "ep:a"), ("/v1/embeddings", "a"), (at, "a"), (at, "ep:a")]
    {
        let got = harness.post(path, "", body(model)).await;
        assert_eq!(got.text(), format!("{}>a", body(model)), "{path}");
        let want = path.rsplit("/openai").next().unwrap();
        assert_eq!(sent.lock().unwrap().pop().unwrap().1.path, want);
    }
    let mut named = post(at, "", body("whatever"));
    named.headers_mut().insert(CONTAINER, "a".parse().unwrap());
    assert_eq!(harness.send(named).await.status, 200);
    let got = harness.post("/v1/chat/completions", "", body("ep:refuses")).await;
    assert_eq!((got.status.as_u16(), got.text().as_str()), (418, "no tea"));
    let got = harness.post(at, "", body("refuses")).await;
    assert_eq!((got.status.as_u16(), &got.json()["OriginalStatusCode"]), (424, &json!(418)));
    for (model, status) in [("ep", 400), ("ep:none", 400)] {
        let got = harness.post("/v1/chat/completions", "", body(model)).await;
        assert_eq!(got.status.as_u16(), status, "{model}");
        assert!(got.json()["error"]["message"].is_string(), "{}", got.text());
    }
}

#[tokio::test]
async fn no_container_of_a_pipeline_is_asked_alone() {
    let (harness, sent) = harness(ContainerMode::Serial, &["a", "b"]);
    let at = "/endpoints/ep/openai/v1/chat/completions";
    for (path, model, container) in [
        ("/v1/chat/completions", "ep:b", ""),
        ("/v1/chat/completions", "ep", "b"),
        (at, "b", ""),
        (at, "whatever", "b"),
    ] {
        let mut request = post(path, "", json!({ "model": model }).to_string());
        if !container.is_empty() {
            request.headers_mut().insert(CONTAINER, container.parse().unwrap());
        }
        let got = harness.send(request).await;
        assert_eq!(got.status, 400, "{path} {model}");
        assert!(got.text().contains("one after the other"), "{}", got.text());
    }
    assert!(sent.lock().unwrap().is_empty());
    let (harness, _) = self::harness(ContainerMode::Serial, &["a"]);
    assert_eq!(harness.post(at, "", r#"{"model": "m"}"#).await.status, 200);
}

#[tokio::test]
async fn a_containers_tokenizer_is_asked_at_its_own_route() {
    let (harness, sent) = harness(ContainerMode::Direct, &["a", "b"]);
    let got = harness.post("/tokenize", "", r#"{"model": "b", "prompt": "x"}"#).await;
    assert_eq!(got.text(), r#"{"model": "b", "prompt": "x"}>b"#);
    let mut request = post("/decode", "", r#"{"ids": [1]}"#);
    request.headers_mut().insert(CONTAINER, "a".parse().unwrap());
    assert_eq!(harness.send(request).await.text(), r#"{"ids": [1]}>a"#);
    let paths: Vec<_> =
        sent.lock().unwrap().iter().map(|(name, it)| (name.clone(), it.path.clone())).collect();
    assert_eq!(paths, [("b".into(), "/tokenize".into()), ("a".into(), "/decode".into())]);
    let got = harness.post("/tokenize", "", r#"{"prompt": "x"}"#).await;
    assert_eq!(got.status, 422, "two, and none is named");
    let logged = harness.logged.lock().unwrap();
    assert!(logged.iter().all(|record| record.tokens_in.is_none()));
}

#[tokio::test]
async fn a_container_without_a_tokenizer_and_a_pipeline_are_refused_with_the_reason() {
    let (harness, _) = harness(ContainerMode::Direct, &["lacks"]);
    let got = harness.post("/detokenize", "", r#"{"model": "own", "tokens": [1]}"#).await;
    assert_eq!((got.status.as_u16(), &got.json()["error_type"]), (422, &json!("validation")));
    assert!(got.text().contains("no route /detokenize"), "{}", got.text());
    let (harness, sent) = self::harness(ContainerMode::Serial, &["a", "b"]);
    let got = harness.post("/tokenize", "", r#"{"prompt": "x"}"#).await;
    assert_eq!(got.status, 422, "{}", got.text());
    assert!(sent.lock().unwrap().is_empty());
}
