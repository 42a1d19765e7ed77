//! Whom a request asks that names a variant, a component, or nothing.

use axum::body::Body;
use http::Request;
use roundhouse_gateway::{Naming, Serves, Variant};
use roundhouse_tenancy::{Grants, Policy};
use serde_json::json;

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const STREAM: &str = "/endpoints/ep/invocations-response-stream";
const CHAT: &str = "/endpoints/ep/openai/v1/chat/completions";
const INPUTS: &str = r#"{"inputs":"hi"}"#;
const MESSAGES: &str = r#"{"messages":[{"role":"user","content":"hi"}],"model":""}"#;

const COMPONENT: &str = "x-amzn-sagemaker-inference-component";
const VARIANT: &str = "x-amzn-sagemaker-target-variant";
const INVOKED: &str = "x-amzn-invoked-production-variant";

fn with(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

fn variant(name: &str, weight: f64, serves: Serves) -> Variant {
    Variant { name: name.into(), weight, serves }
}

fn one(target: &str) -> Serves {
    Serves::One(target.parse().unwrap())
}

fn below(folder: &str) -> Serves {
    Serves::Below(folder.parse().unwrap())
}

fn setup(naming: Naming) -> Setup {
    let components = [("ic-1", "acme/chat"), ("ic-2", "evil/secret")];
    let components =
        components.iter().map(|(name, target)| ((*name).to_owned(), target.parse().unwrap()));
    Setup { naming: Naming { components: components.collect(), ..naming }, ..Setup::default() }
}

fn harness(naming: Naming) -> Harness {
    setup(naming).with(|_| says(hello(1), 1))
}

fn asked(harness: &Harness) -> String {
    harness.asked.lock().unwrap().last().unwrap().model.target.to_string()
}

fn tenants() -> Policy {
    let grants = |pattern: &str| {
        let patterns = vec![pattern.parse().unwrap()];
        Grants {
            invoke: patterns.clone(),
            load: patterns.clone(),
            see: patterns,
            ..Grants::default()
        }
    };
    let tenants = [("acme", grants("acme/**")), ("evil", grants("evil/**"))];
    Policy::new(tenants.map(|(name, grants)| (name.parse().unwrap(), grants)), true)
}

#[tokio::test]
async fn an_endpoint_of_one_target_answers_by_it_on_every_route() {
    let harness = harness(Naming::of(one("acme/chat")));
    let both = json!({"inputs": "hi", "model": "another"}).to_string();
    let named = json!({"messages": [{"role": "user", "content": "hi"}], "model": "ep"}).to_string();
    let tgi = named.replace("\"ep\"", "\"tgi\"");
    let requests = [
        post(INVOKE, "", INPUTS),
        post("/invocations", "", INPUTS),
        post(STREAM, "", INPUTS),
        post(STREAM, "", both),
        with(post(STREAM, "", INPUTS), "x-amzn-sagemaker-custom-attributes", "target-model=b"),
        post("/generate", "", INPUTS),
        post(CHAT, "", MESSAGES),
        post(CHAT, "", named.clone()),
        post("/v1/chat/completions", "", MESSAGES),
        post("/v1/chat/completions", "", named),
        post("/v1/chat/completions", "", tgi),
        with(post(INVOKE, "", INPUTS), VARIANT, "AllTraffic"),
    ];
    for request in requests {
        let path = request.uri().path().to_owned();
        let got = harness.send(request).await;
        assert_eq!((got.status.as_u16(), asked(&harness).as_str()), (200, "acme/chat"), "{path}");
    }
}

#[tokio::test]
async fn an_answer_calls_the_model_as_the_request_did_and_tells_no_name_behind_it() {
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]}).to_string();
    let called = async |naming: Naming, request: Request<Body>| {
        let got = harness(naming).send(request).await;
        assert_eq!(got.status, 200, "{}", got.text());
        assert!(!got.text().contains("acme/"), "{}", got.text());
        got.json()["model"].as_str().unwrap().to_owned()
    };
    let of_component = with(post(INVOKE, "", chat.clone()), COMPONENT, "ic-1");
    assert_eq!(called(Naming::default(), of_component).await, "ic-1");
    let of_one = || Naming::of(one("acme/chat"));
    assert_eq!(called(of_one(), post(INVOKE, "", chat.clone())).await, "ep");
    assert_eq!(called(of_one(), post("/invocations", "", chat.clone())).await, "ep");
    assert_eq!(called(of_one(), post(CHAT, "", chat.clone())).await, "ep");
    let in_folder = Naming::of(below("acme"));
    assert_eq!(called(in_folder, post(INVOKE, "chat", chat.clone())).await, "chat");
    // What the request says itself is said again.
    let named = chat.replace("{\"messages", "{\"model\":\"mine\",\"messages");
    assert_eq!(called(of_one(), post(INVOKE, "", named)).await, "mine");
}

#[tokio::test]
async fn a_target_model_is_refused_where_there_is_one_target() {
    let harness = harness(Naming::of(one("acme/chat")));
    for path in [INVOKE, STREAM, "/invocations"] {
        let got = harness.post(path, "acme/chat", INPUTS).await;
        assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
        let told = "Endpoint ep is not a multi-model endpoint and does not support target model \
                    header.";
        let want = json!({"Message": told, "ErrorCode": "TARGET_MODEL_HEADER_NOT_SUPPORTED"});
        assert_eq!(got.json(), want, "{path}");
    }
    assert!(harness.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_adapter_at_an_endpoint_of_one_target_is_one_of_that_target() {
    let harness = harness(Naming::of(one("acme/chat")));
    let request =
        with(post(INVOKE, "", INPUTS), "x-amzn-sagemaker-adapter-identifier", "acme/lora");
    assert_eq!(harness.send(request).await.status, 200);
    let asked = harness.asked.lock().unwrap();
    assert_eq!(asked[0].model.target.as_str(), "acme/lora");
    assert_eq!(asked[0].base.as_ref().unwrap().target.as_str(), "acme/chat");
}

#[tokio::test]
async fn a_component_is_named_by_header_by_path_and_as_a_model() {
    let harness = harness(Naming::default());
    let model = |name: &str| {
        json!({"messages": [{"role": "user", "content": "hi"}], "model": name}).to_string()
    };
    let path = "/endpoints/ep/inference-components/ic-1/openai/v1/chat/completions";
    let requests = [
        with(post(INVOKE, "", INPUTS), COMPONENT, "ic-1"),
        with(post(STREAM, "", INPUTS), COMPONENT, "ic-1"),
        with(post(CHAT, "", MESSAGES), COMPONENT, "ic-1"),
        post(path, "", MESSAGES),
        post(CHAT, "", model("ic-1")),
        post("/v1/chat/completions", "", model("ic-1")),
        post("/v1/chat/completions", "", model("ep:ic-1")),
    ];
    for request in requests {
        let path = request.uri().path().to_owned();
        let got = harness.send(request).await;
        assert_eq!((got.status.as_u16(), asked(&harness).as_str()), (200, "acme/chat"), "{path}");
        let record = harness.logged.lock().unwrap().last().unwrap().clone();
        assert_eq!(record.component.as_deref(), Some("ic-1"), "{path}");
    }
    let got = harness.send(with(post(INVOKE, "a", INPUTS), COMPONENT, "ic-1")).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
}

#[tokio::test]
async fn components_are_listed_as_models_with_what_they_stand_for() {
    let policy = Setup { policy: tenants(), identity: proxied(), ..setup(Naming::default()) };
    let all = harness(Naming::default()).get("/v1/models").await.json();
    let ids: Vec<&str> =
        all["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "b/c.tar.gz", "d", "ic-1", "ic-2"]);
    let tenant = policy.with(|_| says(hello(1), 1)).by("acme");
    let own = tenant.get("/v1/models").await.json();
    assert_eq!(own["data"].as_array().unwrap().len(), 1, "{own}");
    assert_eq!(
        (&own["data"][0]["id"], &own["data"][0]["root"]),
        (&json!("ic-1"), &json!("acme/chat"))
    );
    assert_eq!(tenant.get("/v1/models/ic-1").await.json(), own["data"][0]);
    for (first, second) in [(2, 3), (3, 2)] {
        let page =
            harness(Naming::default()).get(&format!("/v1/models?limit={first}")).await.json();
        let after = page["last_id"].as_str().unwrap();
        let path = format!("/v1/models?after={after}");
        let rest = harness(Naming::default()).get(&path).await.json();
        assert_eq!(rest["data"].as_array().unwrap().len(), second, "{rest}");
    }
    // What is hidden is as good as missing.
    let (hidden, missing) =
        (tenant.get("/v1/models/ic-2").await, tenant.get("/v1/models/ic-9").await);
    assert_eq!((hidden.status.as_u16(), missing.status.as_u16()), (404, 404));
    assert_eq!(hidden.text().replace("ic-2", "ic-9"), missing.text());
}

#[tokio::test]
async fn a_hidden_component_is_answered_as_a_missing_one() {
    let setup = Setup { policy: tenants(), identity: proxied(), ..setup(Naming::default()) };
    let harness = setup.with(|_| says(hello(1), 1)).by("acme");
    let path = |name: &str| {
        format!("/endpoints/ep/inference-components/{name}/openai/v1/chat/completions")
    };
    let own = harness.send(with(post(INVOKE, "", INPUTS), COMPONENT, "ic-1")).await;
    assert_eq!(own.status, 200);
    let asking = |name: &str| {
        [
            with(post(INVOKE, "", INPUTS), COMPONENT, name),
            with(post(STREAM, "", INPUTS), COMPONENT, name),
            post(&path(name), "", MESSAGES),
        ]
    };
    for (hidden, missing) in asking("ic-2").into_iter().zip(asking("ic-9")) {
        let (hidden, missing) = (harness.send(hidden).await, harness.send(missing).await);
        assert_eq!(hidden.status, 400);
        assert_eq!(hidden.status, missing.status);
        assert_eq!(hidden.text().replace("ic-2", "ic-9"), missing.text());
    }
    assert_eq!(harness.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn variants_share_requests_by_weight_and_a_key_keeps_to_its_own() {
    let variants =
        vec![variant("blue", 3.0, one("acme/v6")), variant("green", 1.0, one("acme/v7"))];
    let harness = harness(Naming { variants, ..Naming::default() });
    let mut green = 0;
    for key in 0..400 {
        let keyed = || with(post(INVOKE, "", INPUTS), "x-roundhouse-route-key", &key.to_string());
        let got = harness.send(keyed()).await;
        let said = got.header(INVOKED).to_owned();
        let target = if said == "green" { "acme/v7" } else { "acme/v6" };
        assert_eq!(asked(&harness), target);
        green += usize::from(said == "green");
        if key < 10 {
            assert_eq!(harness.send(keyed()).await.header(INVOKED), said, "{key}");
        }
    }
    assert!((70..130).contains(&green), "{green}");
    for name in ["blue", "green"] {
        for path in [INVOKE, STREAM] {
            let got = harness.send(with(post(path, "", INPUTS), VARIANT, name)).await;
            assert_eq!((got.status.as_u16(), got.header(INVOKED)), (200, name));
            let record = harness.logged.lock().unwrap().last().unwrap().clone();
            assert_eq!(record.variant.as_deref(), Some(name));
        }
    }
    for name in ["AllTraffic", "red"] {
        let got = harness.send(with(post(INVOKE, "", INPUTS), VARIANT, name)).await;
        assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
        assert!(got.text().contains(&format!("variant {name} not found")), "{}", got.text());
        assert_eq!(got.header(INVOKED), "");
    }
}

#[tokio::test]
async fn a_variants_folder_goes_before_the_target_that_is_named() {
    let variants = vec![variant("blue", 1.0, below("v6")), variant("green", 1.0, below("v7"))];
    let harness = harness(Naming { variants, ..Naming::default() });
    for (name, folder) in [("blue", "v6"), ("green", "v7")] {
        let got = harness.send(with(post(INVOKE, "t/a", INPUTS), VARIANT, name)).await;
        assert_eq!(got.status, 200);
        assert_eq!(asked(&harness), format!("{folder}/t/a"));
        let body = json!({"inputs": "hi", "model": "t/b"}).to_string();
        let got = harness.send(with(post(STREAM, "", body), VARIANT, name)).await;
        assert_eq!((got.status.as_u16(), got.header(INVOKED)), (200, name));
        assert_eq!(asked(&harness), format!("{folder}/t/b"));
    }
    let got = harness.post(INVOKE, "../a", INPUTS).await;
    assert!(got.text().contains("not a legal name"), "{}", got.text());
    assert_eq!(harness.post(INVOKE, "", INPUTS).await.status, 400);
    // OpenAI's names are those of the store, as its list shows them.
    let literal = json!({"messages": [{"role": "user", "content": "hi"}], "model": "v7/t/a"});
    assert_eq!(harness.post("/v1/chat/completions", "", literal.to_string()).await.status, 200);
    assert_eq!(asked(&harness), "v7/t/a");
}

#[tokio::test]
async fn a_caller_is_sent_only_to_variants_that_it_may_use() {
    let variants =
        vec![variant("blue", 1.0, one("acme/v6")), variant("green", 1.0, one("evil/v7"))];
    let naming = Naming { variants, ..Naming::default() };
    let setup = Setup { policy: tenants(), identity: proxied(), ..setup(naming) };
    let harness = setup.with(|_| says(hello(1), 1));
    for _ in 0..20 {
        let got = harness.by("acme").post(INVOKE, "", INPUTS).await;
        assert_eq!((got.status.as_u16(), got.header(INVOKED)), (200, "blue"));
    }
    let acme = harness.by("acme");
    let hidden = acme.send(with(post(INVOKE, "", INPUTS), VARIANT, "green")).await;
    let missing = acme.send(with(post(INVOKE, "", INPUTS), VARIANT, "white")).await;
    assert_eq!(hidden.status, 400);
    assert_eq!(hidden.text().replace("green", "white"), missing.text());
}

#[tokio::test]
async fn an_endpoint_whose_one_target_is_hidden_is_as_good_as_missing() {
    let naming = Naming::of(one("acme/chat"));
    let setup = Setup { policy: tenants(), identity: proxied(), ..setup(naming) };
    let harness = setup.with(|_| says(hello(1), 1)).by("evil");
    for target in ["", "acme/chat", "evil/x"] {
        let hidden = harness.post(INVOKE, target, INPUTS).await;
        let missing = harness.post("/endpoints/eq/invocations", target, INPUTS).await;
        assert_eq!(hidden.status, 400);
        assert_eq!(hidden.text().replace(" ep ", " eq "), missing.text());
    }
}

#[tokio::test]
async fn what_the_client_calls_a_request_is_in_the_access_log() {
    let harness = harness(Naming::default());
    let request = with(post(INVOKE, "a", INPUTS), "x-amzn-sagemaker-inference-id", "inf 1");
    assert_eq!(harness.send(request).await.status, 200);
    let record = harness.logged.lock().unwrap()[0].clone();
    assert_eq!(record.inference_id.as_deref(), Some("inf 1"));
    assert_eq!(record.variant.as_deref(), Some("AllTraffic"));
}
