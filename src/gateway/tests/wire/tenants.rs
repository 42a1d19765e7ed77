//! What a tenant may use: another's model is answered as one that is not there, on every face.

use std::sync::Arc;

use axum::body::Body;
use http::Request;
use roundhouse_gateway::{EndpointFace, GatewayConfig, KvTokens, ModelFacts, Offered};
use roundhouse_tenancy::{Alias, Aliases, Grants, Policy, Route};
use roundhouse_types::{ErrorKind, Failure, ModelId};
use serde_json::{Value, json};

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const STREAM: &str = "/endpoints/ep/invocations-response-stream";

fn grants(invoke: &[&str], load: &[&str], see: &[&str]) -> Grants {
    let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Grants {
        invoke: patterns(invoke),
        load: patterns(load),
        see: patterns(see),
        ..Grants::default()
    }
}

fn policy() -> Policy {
    policy_where(true)
}

/// Whether callers are asked who they are, or may leave it open.
fn policy_where(asked: bool) -> Policy {
    let acme = grants(&["acme/**", "shared/base"], &["acme/**"], &["acme/**", "shared/base"]);
    let evil = grants(&["evil/**"], &["evil/**"], &["evil/**"]);
    let tenants = [("acme", acme), ("evil", evil)];
    Policy::new(tenants.map(|(name, grants)| (name.parse().unwrap(), grants)), asked)
}

const TARGETS: [&str; 6] =
    ["acme-evil/x", "acme/chat", "acme/deep/lora", "evil/secret", "other", "shared/base"];

/// Models of the store answer, others do not exist; as a server's would, with its store's name.
fn harness(policy: Policy) -> Harness {
    let setup =
        Setup { targets: TARGETS.to_vec(), policy, identity: proxied(), ..Setup::default() };
    setup.with(|invocation| {
        let target = invocation.model.target.as_str();
        if TARGETS.contains(&target) {
            return says(hello(1), 1);
        }
        let message = format!("model '{}' is not in s3://bucket/models/", invocation.model);
        Err(Failure::new(ErrorKind::ModelNotFound, message))
    })
}

fn with(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

/// A request for this model on each face, by each of the ways to name it.
fn asking(name: &str) -> Vec<Request<Body>> {
    const ADAPTER: &str = "x-amzn-sagemaker-adapter-identifier";
    let inputs = r#"{"inputs":"hi"}"#;
    let chat =
        |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
    let lora = |field: &str| json!({"inputs": "hi", field: name}).to_string();
    let each = json!({"inputs": ["a", "b"], "adapters": ["", name]}).to_string();
    vec![
        post(INVOKE, name, inputs),
        post("/invocations", name, inputs),
        post(STREAM, name, inputs),
        post(STREAM, "", json!({"model": name, "prompt": "hi"}).to_string()),
        with(
            post(STREAM, "", inputs),
            "x-amzn-sagemaker-custom-attributes",
            &format!("target-model={name}"),
        ),
        with(post(INVOKE, "", inputs), ADAPTER, name),
        with(post(INVOKE, "acme/chat", inputs), ADAPTER, name),
        with(post(INVOKE, name, inputs), ADAPTER, "acme/deep/lora"),
        post(INVOKE, "acme/chat", lora("adapters")),
        post(INVOKE, "acme/chat", each),
        post("/v1/chat/completions", "", chat(name).to_string()),
        post("/v1/chat/completions", "", chat(&format!("ep:{name}")).to_string()),
        post("/v1/chat/completions", name, chat("").to_string()),
        post("/endpoints/ep/openai/v1/chat/completions", "", chat(name).to_string()),
        post("/generate", name, inputs),
        post("/generate_stream", "", json!({"model": name, "inputs": "hi"}).to_string()),
        post("/", "", json!({"inputs": "hi", "parameters": {"adapter_id": name}}).to_string()),
        post("/v1/completions", "", json!({"model": name, "prompt": "hi"}).to_string()),
        post("/v1/responses", "", json!({"model": name, "input": "hi"}).to_string()),
        post("/v1/embeddings", "", json!({"model": name, "input": "hi"}).to_string()),
        Request::get(format!("/v1/models/{name}")).body(Body::empty()).unwrap(),
        post("/tokenize", "", json!({"model": name, "prompt": "hi"}).to_string()),
        post("/tokenize", name, inputs),
        post("/detokenize", "", json!({"model": name, "tokens": [1]}).to_string()),
        post("/decode", "", json!({"model": name, "ids": [1]}).to_string()),
        post("/embed", "", json!({"model": name, "inputs": "hi"}).to_string()),
        post("/embed_all", "", json!({"model": name, "inputs": "hi"}).to_string()),
        post("/predict", "", json!({"model": name, "inputs": "hi"}).to_string()),
        post("/rerank", "", json!({"model": name, "query": "q", "texts": ["a"]}).to_string()),
        post(
            "/similarity",
            "",
            json!({"model": name, "inputs": {"source_sentence": "a", "sentences": ["b"]}})
                .to_string(),
        ),
        post(
            "/v1/rerank",
            "",
            json!({"model": name, "query": "q", "documents": ["a"]}).to_string(),
        ),
        post("/v1/score", "", json!({"model": name, "text_1": "a", "text_2": "b"}).to_string()),
        post(&format!("{INVOKE}?adapter={name}"), "acme/chat", inputs),
        post(INVOKE, "acme/chat", lora("adapter_id")),
        post("/generate", "acme/chat", lora("adapter")),
        with(post("/generate", "", inputs), ADAPTER, name),
        post(
            "/v1/completions",
            "",
            json!({"model": "acme/chat", "prompt": "hi", "adapters": name}).to_string(),
        ),
    ]
}

/// The way to ask among [`asking`] that names an adapter of the model.
const BESIDE_AN_ADAPTER: usize = 7;

/// All of an answer that depends on who asked for what; its name made equal.
pub(crate) fn said(got: &Got, name: &str) -> (u16, Vec<(String, String)>, String) {
    let varies = ["x-amzn-requestid", "x-request-id", "date"];
    let headers = got.headers.iter().filter(|(key, _)| !varies.contains(&key.as_str()));
    let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
    let headers = headers.map(|(key, value)| (key.to_string(), text(value))).collect();
    (got.status.as_u16(), headers, got.text().replace(name, "NAME"))
}

#[tokio::test]
async fn another_tenants_model_is_answered_as_a_missing_one_on_every_face() {
    let harness = harness(policy()).by("acme");
    // Of equal length, so that lengths are equal too.
    let (hidden, missing, own) = ("evil/secret", "evil/nobody", "acme/nobody");
    let faces = asking(hidden).len();
    for face in 0..faces {
        let mut answers = Vec::new();
        for name in [hidden, missing, own] {
            let request = asking(name).swap_remove(face);
            let path = request.uri().path().replace(name, "NAME");
            let got = harness.send(request).await;
            let is_refused = [400, 404].contains(&got.status.as_u16());
            assert!(is_refused || (face, name) == (BESIDE_AN_ADAPTER, own), "{path}");
            assert!(!got.text().contains("s3://"), "{path}: {}", got.text());
            answers.push((path, said(&got, name)));
        }
        assert_eq!(answers[0], answers[1], "face {face}");
        // Under its own name the store is asked, which says the same; of a base nobody is asked
        // but the adapter.
        if face != BESIDE_AN_ADAPTER {
            assert_eq!(answers[0], answers[2], "face {face}");
        }
    }
    let asked = harness.asked.lock().unwrap();
    let names = asked.iter().map(|it| it.model.target.as_str());
    assert!(names.clone().all(|name| !name.starts_with("evil/")), "nothing was looked up");
}

#[tokio::test]
async fn a_tenant_uses_what_is_its_own_and_what_is_shared_only_while_it_is_loaded() {
    let harness = harness(policy()).by("acme");
    for (target, only_loaded) in [("acme/chat", false), ("shared/base", true)] {
        let got = harness.post(INVOKE, target, r#"{"inputs":"hi"}"#).await;
        assert_eq!(got.status.as_u16(), 200, "{}", got.text());
        let asked = harness.asked.lock().unwrap().pop().unwrap();
        assert_eq!((asked.model.target.as_str(), asked.only_loaded), (target, only_loaded));
    }
    let got = harness.by("nobody").post(INVOKE, "acme/chat", r#"{"inputs":"hi"}"#).await;
    assert_eq!(got.status.as_u16(), 400, "a tenant without an entry has nothing");
}

#[tokio::test]
async fn an_endpoint_without_anything_for_a_tenant_is_not_there_for_it() {
    let tenant = ("acme".parse().unwrap(), grants(&["ep:acme/**"], &["ep:acme/**"], &[]));
    let policy = Policy::new([tenant], true);
    let (endpoints, targets) = (vec!["ep", "hidden"], TARGETS.to_vec());
    let harness = Setup { endpoints, targets, policy, identity: proxied(), ..Setup::default() };
    let harness = harness.with(|_| says(hello(1), 1)).by("acme");
    let inputs = r#"{"inputs":"hi"}"#;
    let mut answers = Vec::new();
    for name in ["hidden", "absent"] {
        let path = format!("/endpoints/{name}/invocations");
        let got = harness.post(&path, "acme/chat", inputs).await;
        answers.push(said(&got, name));
        let chat = json!({"model": format!("{name}:acme/chat"), "prompt": "hi"}).to_string();
        let got = harness.post("/v1/completions", "", chat).await;
        answers.push(said(&got, name));
    }
    assert_eq!(answers[0], answers[2]);
    assert_eq!(answers[1], answers[3]);
    assert_eq!((answers[0].0, answers[1].0), (400, 404));
    let got =
        harness.post("/v1/completions", "", r#"{"model":"ep:acme/chat","prompt":"hi"}"#).await;
    assert_eq!(got.status.as_u16(), 200);
}

async fn ids(harness: &Harness, query: &str) -> (Vec<String>, bool) {
    let page = harness.get(&format!("/v1/models{query}")).await.json();
    let ids = page["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().into());
    (ids.collect(), page["has_more"] == json!(true))
}

#[tokio::test]
async fn lists_show_a_tenant_what_it_may_see_page_by_page() {
    let open = harness(policy_where(false).with_aliases(aliases()));
    let harness = harness(policy().with_aliases(aliases()));
    let acme = harness.by("acme");
    let all = ["acme/chat", "acme/deep/lora", "chat", "mixed", "shared/base"];
    assert_eq!(ids(&acme, "").await, (all.map(String::from).to_vec(), false));
    let mut after = String::new();
    for (place, name) in all.iter().enumerate() {
        let (page, more) = ids(&acme, &format!("?limit=1{after}")).await;
        assert_eq!((page, more), (vec![(*name).to_owned()], place + 1 < all.len()), "{after}");
        after = format!("&after={name}");
    }
    assert_eq!(ids(&acme, "?after=evil").await.0, ["mixed", "shared/base"]);
    assert_eq!(ids(&harness.by("evil"), "").await.0, ["evil/secret", "mixed"]);
    assert_eq!(ids(&harness.by("nobody"), "").await, (Vec::new(), false));
    assert_eq!(ids(&open, "").await.0.len(), TARGETS.len() + 2, "nobody is asked");
    let one = acme.get("/v1/models/chat").await.json();
    assert_eq!((&one["id"], &one["root"]), (&json!("chat"), &json!("acme/chat")));
    assert_eq!(one["created"], 1000, "it is as old as its target");
    let beside = acme.get("/v1/models?limit=1&after=acme/deep/lora").await.json();
    assert_eq!(beside["data"], json!([one]), "though that is on another page");
    assert_eq!(harness.by("evil").get("/v1/models/chat").await.status.as_u16(), 404);
}

fn model(target: &str) -> ModelId {
    ModelId { endpoint: "ep".parse().unwrap(), target: target.parse().unwrap() }
}

/// `chat` is acme's, `mixed` somebody's.
fn aliases() -> Aliases {
    let mut aliases = Aliases::default();
    let route = |target, weight| Route { target: model(target), weight };
    let chat = Alias::new(vec![route("acme/chat", 1.0)]);
    let mixed = Alias::new(vec![route("acme/chat", 1.0), route("evil/secret", 99.0)]);
    for (name, alias) in [("chat", chat), ("mixed", mixed)] {
        assert!(aliases.add(None, "ep".parse().unwrap(), name.parse().unwrap(), alias));
    }
    aliases
}

#[tokio::test]
async fn a_failure_behind_an_alias_does_not_tell_what_it_stands_for() {
    let (policy, identity) = (policy().with_aliases(aliases()), proxied());
    let setup = Setup { targets: TARGETS.to_vec(), policy, identity, ..Setup::default() };
    let harness = setup.with(|invocation| {
        let message = format!("{}: acme/chat has no config.json", invocation.model);
        Err(Failure::new(ErrorKind::ModelInvalid, message).with_status(422))
    });
    for (target, told) in [
        ("chat", "ep:chat: chat has no config.json"),
        ("acme/chat", "ep:acme/chat: acme/chat has no config.json"),
    ] {
        let got = harness.by("acme").post(INVOKE, target, r#"{"inputs":"hi"}"#).await;
        assert_ne!(got.status, 200);
        assert!(got.text().contains(told), "{}", got.text());
        // What the model answered with stays its answer.
        assert_eq!(got.json()["OriginalStatusCode"], 422);
    }
}

#[tokio::test]
async fn an_alias_is_answered_under_its_own_name_and_logged_with_both() {
    let harness = harness(policy().with_aliases(aliases())).by("acme");
    for (path, target, body) in [
        (
            "/v1/chat/completions",
            "",
            json!({"model": "chat", "messages": [{"role": "user", "content": "hi"}]}),
        ),
        ("/v1/chat/completions", "chat", json!({"messages": [{"role": "user", "content": "hi"}]})),
        (INVOKE, "chat", json!({"messages": [{"role": "user", "content": "hi"}]})),
    ] {
        let got = harness.post(path, target, body.to_string()).await;
        assert_eq!(got.status.as_u16(), 200, "{}", got.text());
        assert_eq!(got.json()["model"], "chat");
        assert_eq!(got.header("x-roundhouse-version"), "0123abcd");
        assert_eq!(harness.asked.lock().unwrap().pop().unwrap().model, model("acme/chat"));
        let record = serde_json::to_value(harness.logged.lock().unwrap().pop().unwrap()).unwrap();
        assert_eq!((&record["alias"], &record["target"]), (&json!("chat"), &json!("acme/chat")));
    }
}

#[tokio::test]
async fn an_alias_goes_only_where_its_caller_may_go() {
    let harness = harness(policy().with_aliases(aliases()));
    let inputs = r#"{"inputs":"hi"}"#;
    for (tenant, target) in [("acme", "acme/chat"), ("evil", "evil/secret")] {
        for _ in 0..20 {
            assert_eq!(harness.by(tenant).post(INVOKE, "mixed", inputs).await.status.as_u16(), 200);
            assert_eq!(harness.asked.lock().unwrap().pop().unwrap().model, model(target));
        }
    }
    let evil = harness.by("evil");
    let (alias, absent) =
        (evil.post(INVOKE, "chat", inputs).await, evil.post(INVOKE, "none", inputs).await);
    assert_eq!(said(&alias, "chat"), said(&absent, "none"));
}

#[tokio::test]
async fn requests_with_one_route_key_go_one_way() {
    let harness = harness(Policy::default().with_aliases(aliases()));
    let mut ways = std::collections::BTreeSet::new();
    for key in 0..40 {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..5 {
            let request = post(INVOKE, "mixed", r#"{"inputs":"hi"}"#);
            let request = with(request, "x-roundhouse-route-key", &format!("user-{}", key * 7));
            assert_eq!(harness.send(request).await.status.as_u16(), 200);
            seen.insert(harness.asked.lock().unwrap().pop().unwrap().model);
        }
        assert_eq!(seen.len(), 1);
        ways.extend(seen);
    }
    assert!(ways.contains(&model("evil/secret")));
}

#[tokio::test]
async fn what_is_offered_changes_between_two_requests() {
    let harness = harness(policy()).by("acme");
    let inputs = r#"{"inputs":"hi"}"#;
    assert_eq!(harness.post(INVOKE, "acme/chat", inputs).await.status.as_u16(), 200);
    let endpoints = vec![endpoint("ep", TARGETS.to_vec()), endpoint("new", TARGETS.to_vec())];
    let tenant = ("acme".parse().unwrap(), grants(&["new:acme/**"], &["new:acme/**"], &[]));
    harness.offered.set(Offered { endpoints, policy: Arc::new(Policy::new([tenant], true)) });
    assert_eq!(harness.post(INVOKE, "acme/chat", inputs).await.status.as_u16(), 400);
    let there = "/endpoints/new/invocations";
    assert_eq!(harness.post(there, "acme/chat", inputs).await.status.as_u16(), 200);
}

#[tokio::test]
async fn waits_are_told_of_ones_own_models_only_where_the_operator_says_so() {
    let config = GatewayConfig { own_waits_only: true, ..GatewayConfig::default() };
    let setup = Setup {
        config,
        policy: policy(),
        targets: TARGETS.to_vec(),
        identity: proxied(),
        ..Setup::default()
    };
    let harness = setup.with(|_| says(hello(1), 1));
    let inputs = r#"{"inputs":"hi"}"#;
    for (target, tier) in [("acme/chat", "disk"), ("shared/base", "")] {
        let got = harness.by("acme").post(INVOKE, target, inputs).await;
        assert_eq!(got.header("x-roundhouse-tier"), tier, "{target}");
        assert_eq!(got.header("x-roundhouse-load-ms").is_empty(), tier.is_empty());
        assert_eq!(got.header("x-roundhouse-version"), "0123abcd");
    }
}

#[tokio::test]
async fn an_adapter_does_not_tell_how_much_others_use_its_base() {
    let facts = |now| ModelFacts {
        context: 64,
        dtype: "f32".into(),
        quantize: None,
        kv: Some(KvTokens { dtype: "f16", block: 16, floor: 64, now, most: 640, used: 32 }),
    };
    let config = GatewayConfig { own_waits_only: true, ..GatewayConfig::default() };
    let setup = Setup { config, identity: proxied(), ..Setup::default() };
    let harness = setup.with(|_| panic!("a model was asked")).by("acme");
    for (base, is_told) in [("acme/chat", true), ("shared/base", false)] {
        let face = EndpointFace {
            base: Arc::new(move |name| {
                (name.as_str() == "acme/deep/lora").then(|| base.parse().unwrap())
            }),
            facts: Arc::new(move |_| Some(facts(128))),
            ..endpoint("ep", TARGETS.to_vec())
        };
        harness.offered.set(Offered { endpoints: vec![face], policy: Arc::new(policy()) });
        let told = harness.get("/v1/models/acme/deep/lora").await.json();
        assert_eq!(told["max_model_len"], 64, "{told}");
        assert_eq!(told.get("kv").is_some(), is_told, "{base}: {told}");
    }
}

#[tokio::test]
async fn adapters_side_by_side_are_logged_and_told_as_one_would_be() {
    let route = Route { target: model("shared/base"), weight: 1.0 };
    let mut aliases = Aliases::default();
    let (ep, name) = ("ep".parse().unwrap(), "acme/base".parse().unwrap());
    assert!(aliases.add(None, ep, name, Alias::new(vec![route])));
    let setup = Setup {
        config: GatewayConfig { own_waits_only: true, ..GatewayConfig::default() },
        policy: policy().with_aliases(aliases),
        targets: TARGETS.to_vec(),
        identity: proxied(),
        ..Setup::default()
    };
    let harness = setup.with(|_| says(hello(1), 1)).by("acme");
    for (base, adapter, alias, target, is_told) in [
        ("acme/base", "acme/deep/lora", json!("acme/base"), "shared/base", false),
        ("acme/chat", "shared/base", Value::Null, "acme/chat", false),
        ("acme/chat", "acme/deep/lora", Value::Null, "acme/chat", true),
    ] {
        let body = json!({"inputs": ["a", "b"], "adapters": ["", adapter]}).to_string();
        let got = harness.post(INVOKE, base, body).await;
        assert_eq!(got.status, 200, "{}", got.text());
        for name in ["x-roundhouse-tier", "x-roundhouse-load-ms", "x-roundhouse-queue-ms"] {
            assert_eq!(got.headers.contains_key(name), is_told, "{base} {adapter}: {name}");
        }
        let record = serde_json::to_value(harness.logged.lock().unwrap().pop().unwrap()).unwrap();
        assert_eq!((&record["alias"], &record["target"]), (&alias, &json!(target)));
    }
}

#[tokio::test]
async fn a_tenant_is_told_nothing_of_stores() {
    let said = "s3://bucket/models/ denies access to 'acme/chat/config.json': 403";
    for kind in [
        ErrorKind::StoreDenied,
        ErrorKind::StoreUnavailable,
        ErrorKind::Internal,
        ErrorKind::NotReady,
    ] {
        let setup = Setup { policy: policy_where(false), identity: proxied(), ..Setup::default() };
        let harness = setup.with(move |_| Err(Failure::new(kind, said)));
        let told = harness.by("acme").post(INVOKE, "acme/chat", r#"{"inputs":"hi"}"#).await;
        assert!(
            !told.text().contains("bucket") && !told.text().contains("config.json"),
            "{kind:?}"
        );
        // Whoever shows no credential is a tenant, too.
        let told = harness.post(INVOKE, "acme/chat", r#"{"inputs":"hi"}"#).await;
        assert!(!told.text().contains("bucket"), "{kind:?}");
        // Nor whoever is not asked; what names no place is told as it is.
        for (said, is_told) in [(said, false), ("the disk is full", true)] {
            let open = Setup::default().with(move |_| Err(Failure::new(kind, said)));
            let told: Value = open.post(INVOKE, "acme/chat", r#"{"inputs":"hi"}"#).await.json();
            let told = told["Message"].as_str().unwrap();
            assert!(told.contains("acme/chat") || is_told, "{kind:?}: {told}");
            assert_eq!(told == said, is_told, "{kind:?}: {told}");
            assert!(!told.contains("bucket") && !told.contains("config.json"), "{kind:?}: {told}");
        }
    }
}

#[tokio::test]
async fn of_others_models_a_tenant_learns_neither_limits_nor_neighbours() {
    let said = "device 0 has 23 of 24 GiB taken by 'evil/secret'";
    for kind in [ErrorKind::NotReady, ErrorKind::TooLarge, ErrorKind::Overloaded] {
        let setup = Setup {
            policy: policy().with_aliases(aliases()),
            identity: proxied(),
            ..Setup::default()
        };
        let harness = setup.with(move |_| Err(Failure::new(kind, said))).by("acme");
        for (name, is_told) in [("shared/base", false), ("acme/chat", true), ("chat", true)] {
            let told = harness.post(INVOKE, name, r#"{"inputs":"hi"}"#).await.text();
            assert_eq!(told.contains("evil"), is_told, "{kind:?} {name}: {told}");
        }
    }
}

#[tokio::test]
async fn whoever_shows_no_credential_is_a_tenant_of_its_own() {
    let setup = Setup { policy: policy_where(false), identity: proxied(), ..Setup::default() };
    let harness = setup.with(|_| says(hello(1), 1));
    assert_eq!(harness.post(INVOKE, "acme/chat", r#"{"inputs":"hi"}"#).await.status.as_u16(), 200);
    let asked = harness.asked.lock().unwrap();
    assert_eq!(asked[0].caller.tenant.as_ref().unwrap().as_str(), "anonymous");
}
