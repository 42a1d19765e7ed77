//! `InvokeEndpointAsync`, and the answers to what it took.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use futures_util::FutureExt;
use http::Request;
use roundhouse_gateway::{DeferFn, Deferral, Deferred, DeferredInput, Done, Due, Naming, Serves};
use roundhouse_tenancy::{Accounts, Caller, Grants, Limits, Policy, QuotaRules};
use roundhouse_types::{ErrorKind, Failure, RetryHint};
use serde_json::json;

use crate::support::*;

const ASYNC: &str = "/endpoints/ep/async-invocations";
const LOCATION: &str = "x-amzn-sagemaker-inputlocation";
const ATTRIBUTES: &str = "x-amzn-sagemaker-custom-attributes";

type Taken = Arc<Mutex<Vec<Deferral>>>;

/// Takes everything.
fn taking() -> (DeferFn, Taken) {
    let taken = Taken::default();
    let kept = taken.clone();
    let defer: DeferFn = Arc::new(move |deferral: Deferral| {
        let told = Deferred {
            inference_id: deferral.inference_id.clone().unwrap_or("made".into()),
            output: "s3://b/out/é.out".into(),
            failure: "s3://b/out/é-error.out".into(),
        };
        kept.lock().unwrap().push(deferral);
        async move { Ok(told) }.boxed()
    });
    (defer, taken)
}

fn request(headers: &[(&str, &str)], body: &str) -> Request<Body> {
    let mut request = Request::post(ASYNC);
    for (name, value) in headers {
        request = request.header(*name, value.as_bytes());
    }
    request.body(Body::from(body.to_owned())).unwrap()
}

fn at(location: &str) -> Request<Body> {
    request(&[(LOCATION, location), (ATTRIBUTES, "target-model=a")], "")
}

#[tokio::test]
async fn a_request_is_taken_with_all_that_it_says() {
    let (defer, taken) = taking();
    let harness = Setup { defer: Some(defer), ..Setup::default() }.with(|_| says(hello(1), 1));
    let headers = [
        (LOCATION, "s3://b/in/x"),
        ("x-amzn-sagemaker-content-type", "application/json"),
        ("x-amzn-sagemaker-accept", "text/csv"),
        (ATTRIBUTES, "trace=1,target-model=b/c"),
        ("x-amzn-sagemaker-inference-id", "mine"),
        ("x-amzn-sagemaker-s3outputpathextension", "a/b"),
        ("x-amzn-sagemaker-filename", "c.csv"),
        ("x-amzn-sagemaker-requestttlseconds", "60"),
        ("x-amzn-sagemaker-invocationtimeoutseconds", "3600"),
        ("cookie", "not the model's"),
    ];
    let got = harness.send(request(&headers, "")).await;
    assert_eq!(got.status, 202, "{}", got.text());
    assert_eq!(got.json(), json!({"InferenceId": "mine"}));
    assert_eq!(got.header("content-type"), "application/json");
    let location = |name: &str| got.headers.get(name).unwrap().as_bytes().to_vec();
    assert_eq!(location("x-amzn-sagemaker-outputlocation"), "s3://b/out/é.out".as_bytes());
    assert_eq!(location("x-amzn-sagemaker-failurelocation"), "s3://b/out/é-error.out".as_bytes());
    let taken = taken.lock().unwrap().remove(0);
    assert_eq!(taken.endpoint.as_str(), "ep");
    assert_eq!(taken.input, DeferredInput::At("s3://b/in/x".into()));
    assert_eq!(taken.content_type.as_deref(), Some("application/json"));
    assert_eq!((taken.ttl.as_secs(), taken.timeout.as_secs()), (60, 3600));
    assert_eq!(taken.extension.as_deref(), Some("a/b"));
    assert_eq!(taken.filename.as_deref(), Some("c.csv"));
    let mut kept: Vec<(&str, &[u8])> =
        taken.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
    kept.sort_unstable();
    let expected: [(&str, &[u8]); 4] = [
        ("accept", b"text/csv"),
        ("content-type", b"application/json"),
        (ATTRIBUTES, b"trace=1,target-model=b/c"),
        ("x-amzn-sagemaker-inference-id", b"mine"),
    ];
    assert_eq!(kept, expected);
    assert!(harness.asked.lock().unwrap().is_empty(), "no model is asked yet");
}

#[tokio::test]
async fn a_body_is_taken_with_the_limits_of_the_service() {
    let (defer, taken) = taking();
    let harness = Setup { defer: Some(defer), ..Setup::default() }.with(|_| says(hello(1), 1));
    let body = json!({"model": "a", "inputs": "hi"}).to_string();
    let got = harness.send(request(&[], &body)).await;
    assert_eq!(got.status, 202, "{}", got.text());
    assert_eq!(got.json(), json!({"InferenceId": "made"}));
    let taken = taken.lock().unwrap().remove(0);
    assert_eq!(taken.input, DeferredInput::Inline(body.into()));
    assert_eq!((taken.ttl.as_secs(), taken.timeout.as_secs()), (21_600, 900));
    assert_eq!((taken.inference_id, taken.content_type), (None, None));
}

#[tokio::test]
async fn what_breaks_a_rule_is_a_validation_error_and_is_not_taken() {
    let (defer, taken) = taking();
    let harness = Setup { defer: Some(defer), ..Setup::default() }.with(|_| says(hello(1), 1));
    let long = "x".repeat(128_001);
    let far = format!("s3://b/{}", "x".repeat(1024));
    let with = |name: &'static str, value: &str| {
        request(&[(LOCATION, "s3://b/in/x"), (ATTRIBUTES, "target-model=a"), (name, value)], "")
    };
    let target = &[(ATTRIBUTES, "target-model=a")];
    for (request, told) in [
        (request(target, ""), "neither"),
        (request(&[target[0], (LOCATION, "s3://b/in/x")], "{}"), "both"),
        (request(target, &long), "128001 bytes"),
        (at("https://b/in/x"), "over https"),
        (at(&far), "1 to 1024 bytes"),
        (with("x-amzn-sagemaker-requestttlseconds", "59"), "60 to 21600"),
        (with("x-amzn-sagemaker-requestttlseconds", "21601"), "60 to 21600"),
        (with("x-amzn-sagemaker-invocationtimeoutseconds", "0"), "1 to 3600"),
        (with("x-amzn-sagemaker-invocationtimeoutseconds", "99999999999999999999"), "1 to 3600"),
        (with("x-amzn-sagemaker-invocationtimeoutseconds", "soon"), "1 to 3600"),
        (with("x-amzn-sagemaker-filename", "a.b.c"), "one dot"),
        (with("x-amzn-sagemaker-filename", "../a"), "must begin"),
        (with("x-amzn-sagemaker-filename", &long[..33]), "1 to 32 bytes"),
        (with("x-amzn-sagemaker-s3outputpathextension", "s3://x"), "letters, digits"),
        (with("x-amzn-sagemaker-inference-id", &long[..65]), "1 to 64 bytes"),
        (with(LOCATION, "s3://b/in/y"), "more than once"),
        (with("x-amzn-sagemaker-session-id", "x"), "no session"),
        (request(&[(LOCATION, "s3://b/x"), (ATTRIBUTES, "target-model=../a")], ""), "legal name"),
        (request(&[], "{\"inputs\":\"x\"}"), "names no target model"),
        (request(&[], "no JSON"), "names no target model"),
        (request(&[("x-amzn-sagemaker-content-type", "text/csv")], "1,2"), "names no target"),
    ] {
        let got = harness.send(request).await;
        let kind = got.header("x-amzn-errortype");
        assert_eq!((got.status.as_u16(), kind), (400, "ValidationError"), "{told}: {}", got.text());
        let message = got.json()["Message"].as_str().unwrap().to_owned();
        assert!(message.contains(told), "{told}: {message}");
    }
    assert!(taken.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_takes_none_and_a_full_queue_say_so() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let got = harness.send(at("s3://b/x")).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
    assert!(got.text().contains("takes no asynchronous requests"), "{}", got.text());
    let full: DeferFn = Arc::new(|_| {
        let full = Failure::new(ErrorKind::Overloaded, "the queue of endpoint ep is full");
        async move { Err(full) }.boxed()
    });
    let harness = Setup { defer: Some(full), ..Setup::default() }.with(|_| says(hello(1), 1));
    let got = harness.send(at("s3://b/x")).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (503, "ServiceUnavailable"));
}

#[tokio::test]
async fn what_its_sender_may_not_ask_is_not_taken_and_not_answered() {
    let (defer, taken) = taking();
    let patterns = vec!["acme/**".parse().unwrap()];
    let acme = Grants { invoke: patterns, ..Grants::default() };
    let policy = Policy::new([("acme".parse().unwrap(), acme)], true);
    let setup = Setup { defer: Some(defer), policy, identity: proxied(), ..Setup::default() };
    let harness = setup.with(|_| says(hello(1), 1)).by("acme");
    let asking = |target: &str| {
        request(&[(LOCATION, "s3://b/x"), (ATTRIBUTES, &format!("target-model={target}"))], "")
    };
    let got = harness.send(asking("other/chat")).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
    assert!(taken.lock().unwrap().is_empty());
    assert_eq!(harness.send(asking("acme/chat")).await.status, 202);
    let taken = taken.lock().unwrap().remove(0);
    assert_eq!(taken.caller.tenant, harness.caller.tenant);

    // And when it is its turn: what the input names counts too.
    for (body, status) in [("acme/chat", None), ("other/chat", Some(404))] {
        let body = json!({"model": body, "prompt": "hi"}).to_string();
        let due = Due { caller: harness.caller.clone(), ..due(&[], &body) };
        let done = harness.later.answer(due).await;
        match (status, done) {
            (None, Done::Answered { .. }) => {}
            (Some(status), Done::Failed { status: told, .. }) => assert_eq!(told, status),
            (_, done) => panic!("{body}: {done:?}"),
        }
    }
}

fn due(headers: &[(&str, &str)], body: &str) -> Due {
    let headers = headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    Due {
        endpoint: "ep".parse().unwrap(),
        caller: Caller::anonymous(),
        headers: headers.collect(),
        body: body.to_owned().into(),
        most: 1_000_000,
    }
}

#[tokio::test]
async fn a_request_whose_turn_it_is_goes_the_way_of_any_other() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let attributes = (ATTRIBUTES, "target-model=b/c");
    let done = harness.later.answer(due(&[attributes], r#"{"inputs":"hi"}"#)).await;
    let json = Some("application/json".to_owned());
    let body = json!({"generated_text": "Hello é"}).to_string().into();
    assert_eq!(done, Done::Answered { content_type: json, body });
    assert_eq!(harness.asked.lock().unwrap()[0].model.to_string(), "ep:b/c");
    let logged = harness.logged.lock().unwrap();
    assert_eq!((logged[0].route, logged[0].status), ("invoke_deferred", 200));
    assert_eq!(logged[0].tokens_out, Some(4));
}

#[tokio::test]
async fn what_fails_is_told_as_a_container_would_and_what_passes_waits() {
    let attributes = (ATTRIBUTES, "target-model=a");
    let asked = || due(&[attributes], r#"{"inputs":"hi"}"#);
    for (kind, status) in [
        (ErrorKind::InvalidInput, 400),
        (ErrorKind::ModelNotFound, 404),
        (ErrorKind::ModelFailed, 500),
        (ErrorKind::TooLarge, 507),
    ] {
        let harness = Setup::default().with(move |_| Err(Failure::new(kind, "the reason")));
        let Done::Failed { status: told, body, content_type } = harness.later.answer(asked()).await
        else {
            panic!("{kind:?} is no failure");
        };
        assert_eq!((told, content_type.as_deref()), (status, Some("application/json")));
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["code"], &body["message"]), (&json!(status), &json!("the reason")));
    }
    let own = Failure::new(ErrorKind::ModelFailed, "mine").with_status(503);
    let harness = Setup::default().with(move |_| Err(own.clone()));
    let done = harness.later.answer(asked()).await;
    assert!(matches!(done, Done::Failed { status: 503, .. }), "a model's word is its last");
    for kind in [ErrorKind::NotReady, ErrorKind::Overloaded, ErrorKind::StoreUnavailable] {
        let wait = RetryHint::After(Duration::from_secs(3));
        let failure = Failure::new(kind, "busy").with_retry(wait);
        let harness = Setup::default().with(move |_| Err(failure.clone()));
        let after = Some(Duration::from_secs(3));
        assert_eq!(harness.later.answer(asked()).await, Done::NotNow { why: "busy".into(), after });
    }
    let harness = Setup::default().with(|_| breaks(ErrorKind::ModelFailed));
    let streamed = due(&[attributes], r#"{"inputs":"hi","stream":true}"#);
    let done = harness.later.answer(streamed).await;
    // A container that fails in the middle says so in its last line, and this is what is kept.
    let Done::Answered { body, .. } = done else { panic!("{done:?}") };
    let last = String::from_utf8(body.to_vec()).unwrap().lines().last().unwrap().to_owned();
    let last: serde_json::Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["details"]["finish_reason"], "error");
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_a_failure() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let attributes = (ATTRIBUTES, "target-model=a");
    let small = Due { most: 5, ..due(&[attributes], r#"{"inputs":"hi"}"#) };
    let done = harness.later.answer(small).await;
    let Done::Failed { body, .. } = done else { panic!("{done:?}") };
    assert!(String::from_utf8_lossy(&body).contains("larger than 5 bytes"));
}

#[tokio::test]
async fn a_tenant_over_its_limits_waits_in_the_queue_and_is_charged_once() {
    let limits = Limits { requests_per_day: Some(1), ..Limits::default() };
    let rules = QuotaRules { others: limits, ..QuotaRules::default() };
    let (defer, taken) = taking();
    let setup = Setup {
        defer: Some(defer),
        identity: proxied(),
        accounts: Arc::new(Accounts::new(rules)),
        ..Setup::default()
    };
    let harness = setup.with(|_| says(hello(1), 1)).by("acme");
    for _ in 0..2 {
        assert_eq!(harness.send(at("s3://b/x")).await.status, 202);
    }
    assert_eq!(taken.lock().unwrap().len(), 2);
    let attributes = (ATTRIBUTES, "target-model=a");
    let caller = &harness.caller;
    let turn = || Due { caller: caller.clone(), ..due(&[attributes], r#"{"inputs":"hi"}"#) };
    let done = harness.later.answer(turn()).await;
    assert!(matches!(done, Done::Answered { .. }), "{done:?}");
    let done = harness.later.answer(turn()).await;
    assert!(matches!(done, Done::NotNow { after: Some(_), .. }), "{done:?}");
}

#[tokio::test]
async fn a_request_that_is_put_back_is_charged_when_it_is_answered_and_not_before() {
    let limits = Limits { requests_per_day: Some(1), ..Limits::default() };
    let rules = QuotaRules { others: limits, ..QuotaRules::default() };
    let accounts = Arc::new(Accounts::new(rules));
    let turns = AtomicUsize::new(0);
    let setup = Setup { identity: proxied(), accounts: accounts.clone(), ..Setup::default() };
    let script = move |_| match turns.fetch_add(1, Ordering::SeqCst) {
        0..3 => Err(Failure::new(ErrorKind::NotReady, "it loads")),
        _ => says(hello(1), 1),
    };
    let harness = setup.with(script).by("acme");
    let attributes = (ATTRIBUTES, "target-model=a");
    let caller = &harness.caller;
    let turn = || Due { caller: caller.clone(), ..due(&[attributes], r#"{"inputs":"hi"}"#) };
    for _ in 0..3 {
        let done = harness.later.answer(turn()).await;
        assert!(matches!(&done, Done::NotNow { why, .. } if why.contains("not ready")), "{done:?}");
    }
    assert!(accounts.totals().is_empty(), "what was not answered is in no sum");
    let done = harness.later.answer(turn()).await;
    assert!(matches!(done, Done::Answered { .. }), "{done:?}");
    let done = harness.later.answer(turn()).await;
    assert!(
        matches!(&done, Done::NotNow { why, .. } if why.contains("requests_per_day")),
        "{done:?}"
    );
    let sums = accounts.totals();
    assert_eq!((sums.len(), sums[0].1.requests, sums[0].1.failed), (1, 1, 0));
}

#[tokio::test]
async fn an_endpoint_of_one_target_and_a_component_need_no_other_name() {
    let one = Naming::of(Serves::One("d".parse().unwrap()));
    let components = [("ic-1".to_owned(), "b/c".parse().unwrap())].into();
    let naming = Naming { components, ..one };
    let (defer, taken) = taking();
    let setup = Setup { defer: Some(defer), naming, ..Setup::default() };
    let harness = setup.with(|_| says(hello(1), 1));
    let component = ("x-amzn-sagemaker-inference-component", "ic-1");
    for (headers, target) in [(vec![], "d"), (vec![component], "b/c")] {
        let located = [headers.as_slice(), &[(LOCATION, "s3://b/x")]].concat();
        assert_eq!(harness.send(request(&located, "")).await.status, 202);
        let deferral = taken.lock().unwrap().remove(0);
        let due = Due { headers: deferral.headers, ..due(&[], r#"{"inputs":"hi"}"#) };
        let done = harness.later.answer(due).await;
        assert!(matches!(done, Done::Answered { .. }), "{done:?}");
        assert_eq!(harness.asked.lock().unwrap().last().unwrap().model.target.as_str(), target);
    }
    let unknown = [("x-amzn-sagemaker-inference-component", "ic-2"), (LOCATION, "s3://b/x")];
    assert_eq!(harness.send(request(&unknown, "")).await.status, 400);
    let variant = [("x-amzn-sagemaker-target-variant", "none"), (LOCATION, "s3://b/x")];
    assert_eq!(harness.send(request(&variant, "")).await.status, 400);
}
