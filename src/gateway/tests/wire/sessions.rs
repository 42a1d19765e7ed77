//! Stateful sessions: opened, used, closed, and nobody else's.

use std::time::Duration;

use axum::body::Body;
use http::Request;
use roundhouse_gateway::{Naming, Serves, SessionLimits, Variant};
use roundhouse_serving::{Answer, HandledBody, HandledReply, Origin, Reply, Request as Asked};
use roundhouse_tenancy::{Grants, Policy, parse_instant};
use roundhouse_types::ModelKind;
use serde_json::json;

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const STREAM: &str = "/endpoints/ep/invocations-response-stream";
const PLAIN: &str = "/invocations";
const OPEN: &str = r#"{"requestType":"NEW_SESSION"}"#;
const CLOSE: &str = r#"{"requestType": "CLOSE"}"#;
const INPUTS: &str = r#"{"inputs":"hi"}"#;

const SESSION: &str = "x-amzn-sagemaker-session-id";
const OPENED: &str = "x-amzn-sagemaker-new-session-id";
const CLOSED: &str = "x-amzn-sagemaker-closed-session-id";

fn in_session(path: &str, target: &str, id: &str, body: &'static str) -> Request<Body> {
    let mut request = post(path, target, body);
    request.headers_mut().insert(SESSION, id.parse().unwrap());
    request
}

fn harness() -> Harness {
    Setup::default().with(|_| says(hello(1), 1))
}

/// Opens a session; returns its id and end.
async fn open(harness: &Harness, path: &str, target: &str) -> (String, String) {
    let got = harness.send(in_session(path, target, "NEW_SESSION", OPEN)).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let (id, end) = got.header(OPENED).split_once("; Expires=").unwrap();
    assert_eq!(got.json(), json!({"result": format!("Session {id} created")}));
    (id.to_owned(), end.to_owned())
}

/// A refusal of the request itself, whoever asks.
async fn refused(harness: &Harness, request: Request<Body>) -> String {
    let path = request.uri().path().to_owned();
    let got = harness.send(request).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
    assert!(!got.headers.contains_key(OPENED) && !got.headers.contains_key(CLOSED), "{path}");
    got.json()["Message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_session_is_opened_used_and_closed() {
    let harness = harness();
    for path in [INVOKE, PLAIN] {
        let (id, end) = open(&harness, path, "a").await;
        assert!(end.len() == 20 && parse_instant(&end).is_ok(), "{end}");
        for using in [INVOKE, STREAM, PLAIN] {
            assert_eq!(harness.send(in_session(using, "a", &id, INPUTS)).await.status, 200);
        }
        // Who names nobody asks whom the session was opened at.
        assert_eq!(harness.send(in_session(STREAM, "", &id, INPUTS)).await.status, 200);
        let got = harness.send(in_session(path, "a", &id, CLOSE)).await;
        assert_eq!((got.status.as_u16(), got.header(CLOSED)), (200, id.as_str()));
        assert_eq!(got.json(), json!({"result": format!("Session {id} closed")}));
        for body in [INPUTS, CLOSE] {
            let told = refused(&harness, in_session(path, "a", &id, body)).await;
            assert!(told.starts_with("the session is not known"), "{told}");
        }
    }
    let asked = harness.asked.lock().unwrap();
    assert_eq!(asked.len(), 8, "opening and closing asks no model");
    assert!(asked.iter().all(|it| it.model.target.as_str() == "a"));
}

#[tokio::test(start_paused = true)]
async fn a_session_expires() {
    let limits = SessionLimits { expiration: Duration::from_secs(5), ..SessionLimits::default() };
    let setup = Setup { sessions: Some(limits), ..Setup::default() };
    let harness = setup.with(|_| says(hello(1), 1));
    let (id, _) = open(&harness, INVOKE, "a").await;
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(harness.send(in_session(INVOKE, "a", &id, INPUTS)).await.status, 200);
    tokio::time::advance(Duration::from_secs(1)).await;
    refused(&harness, in_session(INVOKE, "a", &id, INPUTS)).await;
}

#[tokio::test]
async fn a_session_is_its_tenants_its_endpoints_and_its_targets() {
    let grants = |pattern: &str| {
        let patterns = vec![pattern.parse().unwrap()];
        Grants {
            invoke: patterns.clone(),
            load: patterns.clone(),
            see: patterns,
            ..Grants::default()
        }
    };
    let tenants = [("acme", grants("**")), ("evil", grants("**"))];
    let tenants = tenants.map(|(name, grants)| (name.parse().unwrap(), grants));
    let setup = Setup {
        endpoints: vec!["ep", "other"],
        policy: Policy::new(tenants, true),
        identity: proxied(),
        ..Setup::default()
    };
    let harness = setup.with(|_| says(hello(1), 1));
    let (acme, evil) = (harness.by("acme"), harness.by("evil"));
    let (id, _) = open(&acme, INVOKE, "a").await;
    let never = refused(&evil, in_session(INVOKE, "a", "never-opened", INPUTS)).await;
    for (who, request) in [
        (&evil, in_session(INVOKE, "a", &id, INPUTS)),
        (&evil, in_session(INVOKE, "a", &id, CLOSE)),
        (&evil, in_session(STREAM, "", &id, INPUTS)),
        (&acme, in_session("/endpoints/other/invocations", "a", &id, INPUTS)),
        (&acme, in_session(INVOKE, "d", &id, INPUTS)),
        (&acme, in_session(INVOKE, "d", &id, CLOSE)),
        (&acme, in_session(STREAM, "d", &id, INPUTS)),
    ] {
        assert_eq!(refused(who, request).await, never);
    }
    assert_eq!(acme.send(in_session(INVOKE, "a", &id, INPUTS)).await.status, 200);
}

#[tokio::test]
async fn what_a_request_says_of_sessions_must_agree() {
    let harness = harness();
    let (id, _) = open(&harness, INVOKE, "a").await;
    for (id, body) in [
        ("NEW_SESSION", INPUTS),
        ("NEW_SESSION", CLOSE),
        (id.as_str(), OPEN),
        ("no_id", INPUTS),
        (id.as_str(), r#"{"requestType":"PAUSE"}"#),
        (id.as_str(), r#"{"requestType":7}"#),
        (id.as_str(), r#"{"requestType":"CLOSE","inputs":"hi"}"#),
    ] {
        refused(&harness, in_session(INVOKE, "a", id, body)).await;
    }
    for (id, body) in [("NEW_SESSION", OPEN), (id.as_str(), CLOSE)] {
        refused(&harness, in_session(STREAM, "a", id, body)).await;
    }
    refused(&harness, post(INVOKE, "a", CLOSE)).await;
    assert!(harness.asked.lock().unwrap().is_empty());
    assert_eq!(harness.send(in_session(INVOKE, "a", &id, INPUTS)).await.status, 200);
}

#[tokio::test]
async fn sagemakers_openai_route_has_no_sessions() {
    let harness = harness();
    let (id, _) = open(&harness, INVOKE, "a").await;
    let chat = r#"{"messages":[{"role":"user","content":"hi"}],"model":"a"}"#;
    for id in [id.as_str(), "NEW_SESSION"] {
        let path = "/endpoints/ep/openai/v1/chat/completions";
        let got = harness.send(in_session(path, "", id, chat)).await;
        assert_eq!((got.status.as_u16(), got.json()["error"]["type"].is_string()), (400, true));
    }
    assert!(harness.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_hidden_target_has_no_sessions() {
    let own = vec!["acme/**".parse().unwrap()];
    let grants = Grants { invoke: own.clone(), load: own.clone(), see: own, ..Grants::default() };
    let policy = Policy::new([("acme".parse().unwrap(), grants)], true);
    let setup = Setup { policy, identity: proxied(), ..Setup::default() };
    let harness = setup.with(|_| says(hello(1), 1)).by("acme");
    let told = refused(&harness, in_session(INVOKE, "a", "NEW_SESSION", OPEN)).await;
    assert_eq!(told, "model 'ep:a' not found");
    open(&harness, INVOKE, "acme/a").await;
}

#[tokio::test]
async fn a_tenants_sessions_are_bounded() {
    let limits = SessionLimits { most: 3, most_per_tenant: 2, ..SessionLimits::default() };
    let setup = Setup { sessions: Some(limits), identity: proxied(), ..Setup::default() };
    let harness = setup.with(|_| says(hello(1), 1));
    let again = || in_session(INVOKE, "a", "NEW_SESSION", OPEN);
    let acme = harness.by("acme");
    open(&acme, INVOKE, "a").await;
    open(&acme, INVOKE, "a").await;
    let got = acme.send(again()).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (429, "ThrottlingException"));
    open(&harness.by("evil"), INVOKE, "a").await;
    let got = harness.by("third").send(again()).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (503, "ServiceUnavailable"));
    assert!(!got.header("retry-after").is_empty());
}

#[tokio::test]
async fn where_sessions_are_off_they_are_refused_and_nothing_else_is() {
    let setup = Setup { sessions: None, ..Setup::default() };
    let harness = setup.with(|_| says(hello(1), 1));
    for request in [
        in_session(INVOKE, "a", "NEW_SESSION", OPEN),
        in_session(PLAIN, "a", "some-id", INPUTS),
        in_session(STREAM, "a", "some-id", INPUTS),
        post(INVOKE, "a", OPEN),
    ] {
        let told = refused(&harness, request).await;
        assert_eq!(told, "Invalid payload. stateful sessions not enabled");
    }
    assert_eq!(harness.post(INVOKE, "a", INPUTS).await.status, 200);
}

#[tokio::test]
async fn a_session_keeps_its_variant() {
    let serves = |target: &str| Serves::One(target.parse().unwrap());
    let variant =
        |name: &str, target| Variant { name: name.into(), weight: 1.0, serves: serves(target) };
    let naming = Naming {
        variants: vec![variant("blue", "v6"), variant("green", "v7")],
        ..Naming::default()
    };
    let harness = Setup { naming, ..Setup::default() }.with(|_| says(hello(1), 1));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let got = harness.send(in_session(INVOKE, "", "NEW_SESSION", OPEN)).await;
        let variant = got.header("x-amzn-invoked-production-variant").to_owned();
        let id = got.header(OPENED).split(';').next().unwrap().to_owned();
        for path in [INVOKE, STREAM, INVOKE] {
            let got = harness.send(in_session(path, "", &id, INPUTS)).await;
            assert_eq!(got.header("x-amzn-invoked-production-variant"), variant);
        }
        let mut elsewhere = in_session(INVOKE, "", &id, INPUTS);
        let other = if variant == "blue" { "green" } else { "blue" };
        elsewhere.headers_mut().insert("x-amzn-sagemaker-target-variant", other.parse().unwrap());
        refused(&harness, elsewhere).await;
        seen.insert(variant);
    }
    assert_eq!(seen.len(), 2, "both variants have sessions");
}

#[tokio::test]
async fn handlers_see_the_session_and_only_headers_speak_of_it() {
    let setup = Setup { handlers: true, ..Setup::default() };
    let harness = setup.with(|_| {
        let header = |name: &str| (name.to_owned(), "forged".to_owned());
        let reply = HandledReply {
            status: 200,
            content_type: None,
            headers: vec![header(OPENED), header(CLOSED)],
            body: HandledBody::Whole("done".into()),
            origin: Origin::Handler,
        };
        Ok(Answer { reply: Reply::Handled(reply), served: served(ModelKind::Handler) })
    });
    let (id, _) = open(&harness, INVOKE, "a").await;
    let got = harness.send(in_session(INVOKE, "a", &id, INPUTS)).await;
    assert_eq!(got.text(), "done");
    assert!(!got.headers.contains_key(OPENED) && !got.headers.contains_key(CLOSED));
    // Without a header the body is the handler's own.
    for body in [OPEN, r#"{"requestType":"PAUSE","of":"its own"}"#] {
        assert_eq!(harness.post(INVOKE, "a", body).await.text(), "done");
    }
    let asked = harness.asked.lock().unwrap();
    let Asked::Raw(raw) = &asked[0].request else { panic!("it was read") };
    assert_eq!(raw.body.meta.headers[SESSION], id);
}
