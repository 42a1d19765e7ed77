//! All ways to name an adapter: each is answered alike on its face, whatever name it has.

use std::sync::Arc;

use axum::body::Body;
use futures_util::FutureExt;
use http::{HeaderValue, Request};
use roundhouse_serving::{Answer, Finish, Invocation, ReadBody, Reply, Request as Asked};
use roundhouse_tenancy::{Grants, Pattern, Policy};
use roundhouse_types::{Detail, ErrorKind, Failure, ModelKind};
use serde_json::{Value, json};

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const STREAM: &str = "/endpoints/ep/invocations-response-stream";
const CHAT: &str = "/v1/chat/completions";
const HEADER: &str = "x-amzn-sagemaker-adapter-identifier";
const TARGET: &str = "x-amzn-sagemaker-target-model";
/// What adapters are named beside.
const BASE: &str = "b/c.tar.gz";

/// Whose words an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Face {
    Endpoint,
    Invocations,
    OpenAi,
    Tgi,
}

/// A way to name an adapter.
struct Way {
    face: Face,
    path: String,
    /// The header that names it, where one does.
    header: Option<&'static str>,
    /// The field that does.
    field: Option<&'static str>,
    /// Whether its base is named beside it.
    beside: bool,
    body: Value,
}

impl Way {
    fn request(&self, name: &str) -> Request<Body> {
        // What a header names goes before a model in the body.
        let target = if self.beside && self.face != Face::OpenAi { BASE } else { "" };
        let mut request = post(&self.path, target, self.body.to_string());
        if let Some(header) = self.header {
            let name = HeaderValue::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().insert(header, name);
        }
        request
    }
}

fn encoded(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Every way, with this name.
fn ways(name: &str) -> Vec<Way> {
    let inputs = json!({"inputs": "hi"});
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    let with = |mut body: Value, field: &str, value: Value| {
        body[field] = value;
        body
    };
    let query = |path: &str| format!("{path}?adapter={}", encoded(name));
    let way = |face, path: &str, body: &Value| Way {
        face,
        path: path.to_owned(),
        header: None,
        field: None,
        beside: true,
        body: body.clone(),
    };
    let by_header = |way: Way| Way { header: Some(HEADER), ..way };
    let mut ways = Vec::new();
    for (face, path) in
        [(Face::Endpoint, INVOKE), (Face::Endpoint, STREAM), (Face::Invocations, "/invocations")]
    {
        ways.push(by_header(way(face, path, &inputs)));
        ways.push(by_header(Way { beside: false, ..way(face, path, &inputs) }));
        ways.push(way(face, &query(path), &inputs));
        let target = Way { header: Some(TARGET), beside: false, ..way(face, path, &inputs) };
        ways.push(target);
        for field in ["adapters", "adapter", "adapter_id"] {
            let body = with(inputs.clone(), field, name.into());
            ways.push(Way { field: Some(field), ..way(face, path, &body) });
        }
        for (field, own) in [
            ("parameters.adapters", "adapters"),
            ("parameters.adapter", "adapter"),
            ("parameters.adapter_id", "adapter_id"),
        ] {
            let body = with(inputs.clone(), "parameters", json!({own: name}));
            ways.push(Way { field: Some(field), ..way(face, path, &body) });
        }
        let body = with(chat.clone(), "adapters", name.into());
        ways.push(Way { field: Some("adapters"), ..way(face, path, &body) });
    }
    let each = json!({"inputs": ["1", "2"], "adapters": [name, name]});
    ways.push(Way { field: Some("adapters"), ..way(Face::Endpoint, INVOKE, &each) });
    let named = with(inputs.clone(), "model", BASE.into());
    let own = with(inputs.clone(), "model", name.into());
    let tgi = |path: &str, body: &Value| way(Face::Tgi, path, body);
    ways.push(by_header(tgi("/generate", &inputs)));
    ways.push(tgi(&query("/generate"), &inputs));
    ways.push(Way { beside: false, ..tgi("/generate", &own) });
    for path in ["/generate", "/generate_stream", "/"] {
        let body = with(named.clone(), "parameters", json!({"adapter_id": name}));
        ways.push(Way { field: Some("parameters.adapter_id"), ..tgi(path, &body) });
    }
    let openai = |path: &str, body: Value| way(Face::OpenAi, path, &body);
    let alone = |body: &Value| with(body.clone(), "model", name.into());
    let based = |body: &Value| with(body.clone(), "model", BASE.into());
    let completion = json!({"prompt": "hi"});
    let response = json!({"input": "hi"});
    ways.push(Way { beside: false, ..by_header(openai(CHAT, based(&chat))) });
    ways.push(Way { beside: false, ..openai(&query(CHAT), based(&chat)) });
    ways.push(Way { beside: false, field: Some("model"), ..openai(CHAT, alone(&chat)) });
    for field in ["adapters", "adapter", "adapter_id"] {
        for (path, body) in [
            (CHAT, &chat),
            ("/v1/completions", &completion),
            ("/v1/responses", &response),
            ("/endpoints/ep/openai/v1/chat/completions", &chat),
        ] {
            let body = with(based(body), field, name.into());
            ways.push(Way { field: Some(field), ..openai(path, body) });
        }
    }
    ways
}

/// The status and the type of an error on a face.
fn of(face: Face, statuses: [(u16, &'static str); 4]) -> (u16, &'static str) {
    match face {
        Face::Endpoint => statuses[0],
        Face::Invocations => statuses[1],
        Face::OpenAi => statuses[2],
        Face::Tgi => statuses[3],
    }
}

/// The status, the type and the message of an error.
fn told(face: Face, got: &Got) -> (u16, String, String) {
    let body = got.json();
    let text = |at: &str| body.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, message) = match face {
        Face::Endpoint | Face::Invocations => {
            let whole = text("/Message");
            let original = text("/OriginalMessage");
            let message = if original.is_empty() { whole } else { original };
            (got.header("x-amzn-errortype").to_owned(), message)
        }
        Face::OpenAi => (text("/error/type"), text("/error/message")),
        Face::Tgi => (text("/error_type"), text("/error")),
    };
    (got.status.as_u16(), kind, message)
}

/// Models that answer by a script, where bodies are read at once and where they are read when the model is
/// known.
fn both(
    script: impl Fn(Invocation) -> Result<Answer, Failure> + Clone + Send + Sync + 'static,
) -> [Harness; 2] {
    let late = script.clone();
    let setup = Setup { handlers: true, engines: true, ..Setup::default() };
    let engines = setup.with_async(Arc::new(move |invocation: Invocation| {
        let late = late.clone();
        async move {
            let Asked::Raw(raw) = &invocation.request else { return late(invocation) };
            match (raw.read)(raw.body.body.clone()).await? {
                ReadBody::Request(request) => late(Invocation { request: *request, ..invocation }),
                ReadBody::OfAdapters => {
                    let served = served(ModelKind::Generative);
                    Ok(Answer { reply: Reply::OfAdapters, served })
                }
            }
        }
        .boxed()
    }));
    [Setup::default().with(script), engines]
}

/// "hi" for each prompt.
fn answers(invocation: &Invocation) -> Result<Answer, Failure> {
    let count = match &invocation.request {
        Asked::Inputs(inputs) => inputs.texts.len(),
        _ => 1,
    };
    let pieces = (0..count).flat_map(|at| [piece(at, "hi", vec![]), last(at, Finish::Length, 1)]);
    says(pieces.collect(), count)
}

#[tokio::test]
async fn an_adapter_that_is_not_there_is_no_such_model_by_every_way() {
    let harnesses = both(|invocation| {
        let message = format!("model '{}' is not in file:///srv/models/", invocation.model);
        Err(Failure::new(ErrorKind::ModelNotFound, message))
    });
    let statuses = [
        (400, "ValidationError"),
        (400, "ValidationError"),
        (404, "invalid_request_error"),
        (404, "not_found"),
    ];
    for harness in harnesses {
        for (at, way) in ways("no/one").into_iter().enumerate() {
            let got = harness.send(way.request("no/one")).await;
            let (status, kind) = of(way.face, statuses);
            let want = (status, kind.to_owned(), "model 'ep:no/one' not found".to_owned());
            assert_eq!(told(way.face, &got), want, "{at}: {} {}", way.path, way.body);
        }
    }
}

#[tokio::test]
async fn a_name_that_no_target_can_have_is_refused_alike_by_every_way() {
    let harnesses = both(|invocation| answers(&invocation));
    let statuses = [
        (400, "ValidationError"),
        (400, "ValidationError"),
        (400, "invalid_request_error"),
        (422, "validation"),
    ];
    let long = "x".repeat(1025);
    let names =
        ["..", "../x", "x/../y", "x/./y", "x//y", "/x", "s3://b/x", "file:///x", "x\\y", &long];
    for name in names.into_iter().chain(["x\0y", "x\ny", "\u{85}"]) {
        for harness in &harnesses {
            for (at, way) in ways(name).into_iter().enumerate() {
                if way.header.is_some() && HeaderValue::from_bytes(name.as_bytes()).is_err() {
                    continue;
                }
                let got = harness.send(way.request(name)).await;
                let case = format!("{name:?} {at}: {} {}", way.path, way.body);
                let (found, kind, message) = told(way.face, &got);
                assert_eq!((found, kind.as_str()), of(way.face, statuses), "{case}: {message}");
                assert!(message.contains("not a legal name: "), "{case}: {message}");
                assert!(message.len() < 256, "{case}: {message}");
                let field = way.field.filter(|_| way.face == Face::OpenAi);
                if let Some(field) = field {
                    assert_eq!(got.json()["error"]["param"], field, "{case}");
                }
            }
        }
    }
    for harness in &harnesses {
        // What is read when the model is known has asked for that one.
        let asked = harness.asked.lock().unwrap();
        assert!(
            asked.iter().all(|it| matches!(it.request, Asked::Raw(_))),
            "nothing was looked up"
        );
    }
}

#[tokio::test]
async fn a_name_is_taken_as_it_is_by_every_way() {
    let harnesses = both(|invocation| answers(&invocation));
    for (name, target) in [
        ("x/y/", "x/y"),
        ("x%2Fy", "x%2Fy"),
        ("%2e%2e/x", "%2e%2e/x"),
        ("x y+z", "x y+z"),
        ("é/ü\u{1f600}", "é/ü\u{1f600}"),
        ("a:b", "a:b"),
        ("...", "..."),
        ("x?adapter=y#z&a=b", "x?adapter=y#z&a=b"),
    ] {
        for harness in &harnesses {
            for (at, way) in ways(name).into_iter().enumerate() {
                let got = harness.send(way.request(name)).await;
                let case = format!("{name:?} {at}: {} {}", way.path, way.body);
                assert_eq!(got.status, 200, "{case}");
                let asked = harness.asked.lock().unwrap().pop().unwrap();
                assert_eq!(asked.model.target.as_str(), target, "{case}");
                let base = asked.base.map(|base| base.target.to_string());
                assert_eq!(base.as_deref(), way.beside.then_some(BASE), "{case}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_adapter_of_the_model_beside_it_is_told_by_both_names() {
    let harnesses = both(|invocation| {
        let is_adapter = invocation.model.target.as_str() == "d";
        let other = Failure::new(ErrorKind::InvalidInput, "not of it");
        match invocation.base {
            Some(_) => Err(other.with_detail(Detail::OtherBase { is_adapter })),
            None => answers(&invocation),
        }
    });
    let statuses = [
        (424, "ModelError"),
        (400, "ValidationError"),
        (400, "invalid_request_error"),
        (422, "validation"),
    ];
    for (name, is, instead) in [
        // Of `a`, as its endpoint tells.
        ("d", format!("is an adapter of 'a', not of '{BASE}'"), "beside its own base, or alone"),
        ("a", format!("is no adapter, and was named as one of '{BASE}'"), "name it alone"),
        (BASE, format!("is no adapter, and was named as one of '{BASE}'"), "name it alone"),
    ] {
        for harness in &harnesses {
            for (at, way) in ways(name).into_iter().enumerate() {
                let got = harness.send(way.request(name)).await;
                let case = format!("{name} {at}: {} {}", way.path, way.body);
                if !way.beside {
                    assert_eq!(got.status, 200, "{case}: {}", got.text());
                    continue;
                }
                let (found, kind, message) = told(way.face, &got);
                assert_eq!((found, kind.as_str()), of(way.face, statuses), "{case}: {message}");
                let whole = match way.field {
                    Some(field) => format!("{field} names '{name}', which {is}: "),
                    None => format!("'{name}' {is}: "),
                };
                assert!(message.starts_with(&whole) && message.ends_with(instead), "{message}");
            }
        }
    }
}

#[tokio::test]
async fn a_base_that_is_hidden_from_the_caller_is_not_told() {
    let own: Vec<Pattern> = ["d", BASE].map(|name| name.parse().unwrap()).into();
    let grants = Grants { invoke: own.clone(), load: own.clone(), see: own, ..Grants::default() };
    let policy = Policy::new([("acme".parse().unwrap(), grants)], true);
    let setup = Setup { policy, identity: proxied(), ..Setup::default() };
    let harness = setup.with(|_| {
        let other = Failure::new(ErrorKind::InvalidInput, "not of it");
        Err(other.with_detail(Detail::OtherBase { is_adapter: true }))
    });
    let harness = harness.by("acme");
    let body = json!({"inputs": "hi", "adapters": "d"}).to_string();
    let got = harness.post("/invocations", BASE, body).await;
    let is = format!("adapters names 'd', which is not an adapter of '{BASE}'");
    assert!(got.text().contains(&is), "{}", got.text());
    let shown = harness.get("/v1/models/d").await.json();
    assert_eq!((&shown["root"], shown.get("parent")), (&json!("d"), None));
}

#[tokio::test]
async fn a_tokenizer_is_the_adapters_where_one_is_named() {
    let harnesses = both(|_| Err(Failure::new(ErrorKind::ModelFailed, "it broke")));
    for (path, body) in [
        ("/tokenize", json!({"prompt": "hi", "adapters": "x"})),
        ("/tokenize", json!({"inputs": "hi", "adapter": "x"})),
        ("/detokenize", json!({"tokens": [1], "adapter_id": "x"})),
        ("/decode", json!({"ids": [1], "adapters": ["x"]})),
    ] {
        for harness in &harnesses {
            let got = harness.post(path, BASE, body.to_string()).await;
            let asked = harness.asked.lock().unwrap().pop();
            let asked = asked.unwrap_or_else(|| panic!("{path}: {}", got.text()));
            let base = asked.base.unwrap().target;
            assert_eq!((asked.model.target.as_str(), base.as_str()), ("x", BASE), "{path} {body}");
        }
    }
}

#[tokio::test]
async fn an_adapter_that_is_named_twice_is_one_where_the_names_agree() {
    let harness = Setup::default().with(|invocation| answers(&invocation));
    let chat = |adapters: Value| json!({"messages": [{"role": "user", "content": "hi"}], "adapters": adapters});
    for (query, body) in [
        ("", json!({"inputs": ["1", "2"], "adapters": ["x", "x"]})),
        ("", json!({"inputs": "1", "adapters": ["x"], "parameters": {"adapter_id": "x/"}})),
        ("", json!({"inputs": "1", "adapters": "x", "adapter": "x", "adapter_id": ""})),
        ("", json!({"inputs": ["1"], "parameters": {"adapters": ["x"], "adapter": "x"}})),
        ("", chat(json!(["x"]))),
        ("", chat(json!(["x", "x/"]))),
        ("?adapter=x&adapter=x%2F", json!({"inputs": "1"})),
        ("?adapter=x", json!({"inputs": "1", "adapters": "x"})),
    ] {
        let got = harness.post(&format!("{INVOKE}{query}"), BASE, body.to_string()).await;
        assert_eq!(got.status, 200, "{query} {body}: {}", got.text());
        let asked = std::mem::take(&mut *harness.asked.lock().unwrap());
        let targets: Vec<&str> = asked.iter().map(|it| it.model.target.as_str()).collect();
        assert_eq!(targets, ["x"], "{query} {body}");
        assert_eq!(got.header("x-roundhouse-ignored"), "");
    }
    for (query, body, says) in [
        (
            "",
            json!({"inputs": "1", "adapters": "x", "adapter": "y"}),
            "adapters names 'x', and adapter names 'y'",
        ),
        (
            "",
            json!({"inputs": "1", "adapter": "x", "adapter_id": "y"}),
            "adapter names 'x', and adapter_id names 'y'",
        ),
        (
            "",
            json!({"inputs": ["1", "2"], "adapters": ["x", ""], "parameters": {"adapter_id": "x"}}),
            "adapters names ['x', ''], and parameters.adapter_id names 'x'",
        ),
        ("?adapter=x&adapter=y", json!({"inputs": "1"}), "adapter 'x' and adapter 'y'"),
    ] {
        let path = format!("/invocations{query}");
        let got = harness.post(&path, BASE, body.to_string()).await;
        assert_eq!(got.status, 400, "{query} {body}: {}", got.text());
        assert!(got.text().contains(says), "{}", got.text());
    }
    assert!(harness.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_header_goes_before_the_body_which_is_told_by_every_route_where_it_says_otherwise() {
    let inputs = |field: &str, name: &str| json!({"inputs": "1", field: name});
    let chat = |field: &str, name: &str| json!({"messages": [{"role": "user", "content": "hi"}], "model": BASE, field: name});
    for harness in both(|invocation| answers(&invocation)) {
        for (path, body) in [
            (INVOKE, inputs as fn(&str, &str) -> Value),
            (INVOKE, chat),
            ("/invocations", inputs),
            (STREAM, inputs),
            (CHAT, chat),
            ("/endpoints/ep/openai/v1/chat/completions", chat),
            ("/generate", inputs),
        ] {
            for (field, named, ignored) in [
                ("adapters", "x", ""),
                ("adapters", "x/", ""),
                ("adapters", "y", "adapters"),
                ("adapter_id", "y", "adapter_id"),
            ] {
                let target = if path == STREAM { "" } else { BASE };
                let mut request = post(path, target, body(field, named).to_string());
                request.headers_mut().insert(HEADER, HeaderValue::from_static("x"));
                let got = harness.send(request).await;
                let told = (got.status.as_u16(), got.header("x-roundhouse-ignored"));
                assert_eq!(told, (200, ignored), "{path} {field} {named}: {}", got.text());
                let asked = harness.asked.lock().unwrap().pop().unwrap();
                assert_eq!(asked.model.target.as_str(), "x", "{path}");
            }
        }
    }
}

#[tokio::test]
async fn fields_that_nothing_reads_are_told_where_inputs_go_to_different_adapters() {
    for harness in both(|invocation| answers(&invocation)) {
        let body = json!({"inputs": ["1", "2"], "adapters": ["x", "y"], "colour": 1});
        let got = harness.post(INVOKE, BASE, body.to_string()).await;
        assert_eq!((got.status.as_u16(), got.header("x-roundhouse-ignored")), (200, "colour"));
    }
}

#[tokio::test]
async fn a_header_that_is_empty_says_nothing() {
    let harness = Setup::default().with(|invocation| answers(&invocation));
    for (path, body) in [
        (format!("{INVOKE}?adapter=x"), json!({"inputs": "1"})),
        (format!("{CHAT}?adapter=x"), json!({"messages": [{"role": "user", "content": "hi"}]})),
        (INVOKE.to_owned(), json!({"inputs": "1", "adapters": "x"})),
    ] {
        let mut request = post(&path, BASE, body.to_string());
        request.headers_mut().insert(HEADER, HeaderValue::from_static(""));
        assert_eq!(harness.send(request).await.status, 200, "{path}");
        let asked = harness.asked.lock().unwrap().pop().unwrap();
        assert_eq!(asked.model.target.as_str(), "x", "{path}");
    }
}

#[tokio::test]
async fn an_answer_is_called_as_the_adapter_that_gave_it() {
    let mut unnamed = json!({"adapters": "x/y/", "messages": [{"role": "user", "content": "hi"}]});
    let mut named = unnamed.clone();
    named["model"] = BASE.into();
    unnamed["model"] = Value::Null;
    for harness in both(|invocation| answers(&invocation)) {
        for (path, target, chat) in
            [(CHAT, "", &named), (INVOKE, BASE, &named), (INVOKE, BASE, &unnamed)]
        {
            let got = harness.post(path, target, chat.to_string()).await;
            assert_eq!(got.json()["model"], "x/y", "{path} {chat}: {}", got.text());
        }
        let wrong = json!({"model": 1, "adapters": "x", "messages": []}).to_string();
        let got = harness.post("/invocations", BASE, wrong).await;
        assert!(got.text().contains("model must be a string"), "{}", got.text());
    }
}
