//! Endpoints and containers that are not the caller's.

use super::*;

#[tokio::test]
async fn a_container_that_is_not_the_callers_is_answered_as_a_missing_one() {
    let (setup, sent) = setup(ContainerMode::Direct, &["mine", "theirs"]);
    let patterns = vec!["ep:mine".parse().unwrap()];
    let grants = Grants {
        invoke: patterns.clone(),
        load: patterns.clone(),
        see: patterns,
        ..Grants::default()
    };
    let policy = Policy::new([("acme".parse().unwrap(), grants)], true);
    let setup = Setup { policy, identity: proxied(), ..setup };
    let harness = setup.with(|_| panic!("a model was asked")).by("acme");
    assert_eq!(harness.send(to(INVOKE, "mine")).await.status, 200);
    let hidden = harness.send(to(INVOKE, "theirs")).await;
    let missing = harness.send(to(INVOKE, "nobodys")).await;
    assert_eq!(hidden.status, missing.status);
    assert_eq!(hidden.text().replace("theirs", "nobodys"), missing.text());
    let asked: Vec<String> = sent.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(asked, ["mine"]);
    let listed = harness.get("/v1/models").await.text();
    assert!(!listed.contains("theirs"), "{listed}");
    let at = "/endpoints/ep/openai/v1/chat/completions";
    for path in [at, "/v1/chat/completions"] {
        let hidden = harness.post(path, "", r#"{"model": "theirs"}"#).await;
        let missing = harness.post(path, "", r#"{"model": "nobodys"}"#).await;
        assert_eq!(hidden.status, missing.status, "{path}");
        assert_eq!(hidden.text().replace("theirs", "nobodys"), missing.text(), "{path}");
    }
}

/// What a tenant may invoke, load and see.
fn may(tenant: &str, pattern: &str) -> (TenantName, Grants) {
    let patterns: Vec<Pattern> = vec![pattern.parse().unwrap()];
    let (invoke, load, see) = (patterns.clone(), patterns.clone(), patterns);
    (tenant.parse().unwrap(), Grants { invoke, load, see, ..Grants::default() })
}

/// `default` with targets, the containers `first` and `second` as a pipeline and alone, and an endpoint
/// of one target.
fn faces() -> Vec<EndpointFace> {
    let (setup, _) = setup(ContainerMode::Direct, &["first", "second"]);
    let list = setup.containers.unwrap().list;
    let behind = |name: &str, mode| EndpointFace {
        containers: Some(Containers { mode, list: list.clone() }),
        ..endpoint(name, Vec::new())
    };
    let naming = Naming::of(Serves::One("acme/chat".parse().unwrap()));
    vec![
        endpoint("default", vec!["evil/x"]),
        behind("pipe", ContainerMode::Serial),
        behind("named", ContainerMode::Direct),
        EndpointFace { naming, ..endpoint("solo", vec!["acme/chat", "evil/x"]) },
    ]
}

/// A router with these, but for `default` nothing of which is `evil`'s to use; the second container is
/// `half`'s.
fn others() -> Harness {
    let tenants = [may("acme", "acme/**"), may("evil", "evil/**"), may("half", "second")];
    let policy = Arc::new(Policy::new(tenants, true));
    let defer: DeferFn = Arc::new(|_| panic!("a request was taken"));
    let harness = Setup { defer: Some(defer), identity: proxied(), ..Setup::default() };
    let harness = harness.with(|_| panic!("a model was asked"));
    harness.offered.set(Offered { endpoints: faces(), policy });
    harness
}

/// Every way to name an endpoint alone.
fn naming(name: &str) -> Vec<Request<Body>> {
    let at = |rest: &str| format!("/endpoints/{name}/{rest}");
    let inputs = r#"{"inputs":"hi"}"#;
    let chat = |model: &str| json!({"model": model, "messages": []}).to_string();
    let with = |path: String, header: &'static str, value: &str| {
        let mut request = post(&path, "", inputs);
        request.headers_mut().insert(header, value.parse().unwrap());
        request
    };
    let model = |path: &str, input: &str, value: Value| {
        post(path, "", json!({"model": name, input: value}).to_string())
    };
    vec![
        post(&at("invocations"), "", inputs),
        post(&at("invocations"), "evil/x", inputs),
        with(at("invocations"), CONTAINER, "first"),
        with(at("invocations"), CONTAINER, "-"),
        with(at("invocations"), "x-amzn-sagemaker-target-variant", "blue"),
        with(at("invocations"), "x-amzn-sagemaker-inference-component", "ic"),
        with(at("invocations"), "x-amzn-sagemaker-session-id", "NEW_SESSION"),
        post(&at("invocations-response-stream"), "", inputs),
        post(&at("async-invocations"), "", inputs),
        with(at("async-invocations"), CONTAINER, "first"),
        post(&at("async-invocations"), "", ""),
        post(&at("openai/v1/chat/completions"), "", chat("")),
        post(&at("openai/v1/chat/completions"), "", chat("first")),
        post(&at("inference-components/ic/openai/v1/chat/completions"), "", chat("")),
        post("/v1/chat/completions", "", chat(name)),
        with("/v1/chat/completions".into(), CONTAINER, "first").map(|_| chat(name).into()),
        model("/v1/completions", "prompt", json!("hi")),
        model("/v1/responses", "input", json!("hi")),
        model("/v1/embeddings", "input", json!("hi")),
        model("/tokenize", "prompt", json!("hi")),
        model("/detokenize", "tokens", json!([1])),
        model("/decode", "ids", json!([1])),
        model("/generate", "inputs", json!("hi")),
        model("/embed", "inputs", json!("hi")),
        Request::get(format!("/v1/models/{name}")).body(Body::empty()).unwrap(),
    ]
}

/// Every way to name a target or a container behind an endpoint's name.
fn below(name: &str, target: &str) -> Vec<Request<Body>> {
    let model = format!("{name}:{target}");
    let body = |input: &str, value: Value| json!({"model": model, input: value}).to_string();
    vec![
        post("/v1/chat/completions", "", body("messages", json!([]))),
        post("/v1/completions", "", body("prompt", json!("hi"))),
        post("/v1/responses", "", body("input", json!("hi"))),
        post("/v1/embeddings", "", body("input", json!("hi"))),
        post("/tokenize", "", body("inputs", json!("hi"))),
        post("/generate", "", body("inputs", json!("hi"))),
        Request::get(format!("/v1/models/{model}")).body(Body::empty()).unwrap(),
        Request::get(format!("/v1/models?after={model}")).body(Body::empty()).unwrap(),
        Request::get(format!("/info?model={model}")).body(Body::empty()).unwrap(),
    ]
}

#[tokio::test]
async fn an_endpoint_whose_containers_or_target_are_not_the_callers_is_answered_as_a_missing_one() {
    let harness = others();
    for (tenant, name) in [("evil", "pipe"), ("evil", "named"), ("evil", "solo"), ("half", "pipe")]
    {
        let harness = harness.by(tenant);
        // Of equal length, so that lengths are equal too.
        let nobody = &"nobody"[..name.len()];
        for (hidden, missing) in naming(name).into_iter().zip(naming(nobody)) {
            let path = hidden.uri().path().to_owned();
            let (hidden, missing) = (harness.send(hidden).await, harness.send(missing).await);
            assert!([400, 404].contains(&hidden.status.as_u16()), "{path}: {}", hidden.text());
            assert_eq!(said(&hidden, name), said(&missing, nobody), "{tenant} {path}");
        }
        // Of one target, also what may be asked wherever it lies: the endpoint's name is not to be tried out.
        for target in ["first", "acme/chat", "evil/x"] {
            for (hidden, missing) in below(name, target).into_iter().zip(below(nobody, target)) {
                let path = hidden.uri().path().replace(name, "-");
                let (hidden, missing) = (harness.send(hidden).await, harness.send(missing).await);
                assert_eq!(said(&hidden, name), said(&missing, nobody), "{tenant} {path}");
            }
        }
        assert!(!harness.get("/v1/models").await.text().contains(name), "{tenant} {name}");
    }
    let half = harness.by("half");
    let got = half.send(to("/endpoints/named/invocations", "second")).await;
    assert_eq!((got.status.as_u16(), got.text().as_str()), (200, "in>second"));
    let got = half.send(to("/endpoints/named/invocations", "")).await;
    assert!(got.text().contains("invoked directly"), "{}", got.text());
}

#[tokio::test]
async fn a_grant_that_names_an_endpoint_of_one_target_opens_the_rest_of_its_store() {
    let harness = Setup { identity: proxied(), ..Setup::default() };
    let harness = harness.with(|_| says(hello(1), 1)).by("evil");
    let tell = |pattern| {
        let policy = Arc::new(Policy::new([may("evil", pattern)], true));
        harness.offered.set(Offered { endpoints: faces(), policy });
    };
    let body = r#"{"model": "solo:evil/x", "prompt": "hi"}"#;
    for (pattern, status) in [("solo:evil/**", 200), ("evil/**", 404)] {
        tell(pattern);
        assert_eq!(harness.post("/v1/completions", "", body).await.status.as_u16(), status);
        let listed = harness.get("/v1/models").await.text().contains("solo:evil/x");
        assert_eq!(listed, status == 200, "{pattern}");
    }
    // What it may ask wherever it lies, and see at this endpoint.
    let (name, grants) = may("evil", "evil/**");
    let grants = Grants { see: vec!["solo:evil/**".parse().unwrap()], ..grants };
    let policy = Arc::new(Policy::new([(name, grants)], true));
    harness.offered.set(Offered { endpoints: faces(), policy });
    assert_eq!(harness.post("/v1/completions", "", body).await.status.as_u16(), 200);
    assert!(harness.get("/v1/models").await.text().contains("solo:evil/x"));
}

#[tokio::test]
async fn an_alias_at_an_endpoint_of_one_target_opens_it_to_whom_it_serves() {
    let model = |target: &str| ModelId {
        endpoint: "solo".parse().unwrap(),
        target: target.parse().unwrap(),
    };
    let harness = Setup { identity: proxied(), ..Setup::default() };
    let harness = harness.with(|_| says(hello(1), 1)).by("evil");
    for (target, status) in [("evil/x", 200), ("acme/chat", 404)] {
        let mut aliases = Aliases::default();
        let alias = Alias::new(vec![Route { target: model(target), weight: 1.0 }]);
        assert!(aliases.add(None, "solo".parse().unwrap(), "chat".parse().unwrap(), alias));
        let policy = Policy::new([may("evil", "evil/**")], true).with_aliases(aliases);
        harness.offered.set(Offered { endpoints: faces(), policy: Arc::new(policy) });
        let body = r#"{"model": "solo:chat", "prompt": "hi"}"#;
        let got = harness.post("/v1/completions", "", body).await;
        assert_eq!(got.status.as_u16(), status, "{target}: {}", got.text());
        let other =
            harness.post("/v1/completions", "", r#"{"model": "nobo:chat", "prompt": "hi"}"#);
        let other = other.await;
        assert_eq!(other.status, 404);
        if status == 404 {
            assert_eq!(said(&got, "solo"), said(&other, "nobo"));
        }
    }
}

#[tokio::test]
async fn where_none_is_named_an_endpoint_that_is_not_the_callers_is_none() {
    let harness = others().by("evil");
    let requests = || {
        let chat = |model: &str| json!({"model": model, "messages": []}).to_string();
        let inputs = r#"{"inputs":"hi"}"#;
        vec![
            post("/invocations", "", inputs),
            to("/invocations", "first"),
            post("/generate", "", inputs),
            post("/tokenize", "", inputs),
            post("/v1/chat/completions", "", chat("")),
            post("/v1/chat/completions", "first", chat("")),
            Request::get("/info").body(Body::empty()).unwrap(),
            // Names that may be a target's: an endpoint of one target has a store.
            post("/generate", "", r#"{"inputs":"hi","model":"first"}"#),
            post("/v1/chat/completions", "", chat("first")),
            post("/v1/chat/completions", "", chat("tgi")),
        ]
    };
    let offer = |endpoints: Vec<EndpointFace>| {
        let policy = harness.offered.get().policy.clone();
        harness.offered.set(Offered { endpoints, policy });
    };
    for place in 1..faces().len() {
        let name = faces()[place].name.to_string();
        let compared = if name == "solo" { 7 } else { 10 };
        for at in 0..compared {
            let path = requests()[at].uri().path().to_owned();
            offer(vec![faces().swap_remove(place)]);
            let hidden = harness.send(requests().swap_remove(at)).await;
            offer(Vec::new());
            let missing = harness.send(requests().swap_remove(at)).await;
            assert_eq!(said(&hidden, "-"), said(&missing, "-"), "{name} {path}");
        }
    }
}
