//! Ways to name an adapter, and the container contract's `/adapters`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Request;
use roundhouse_gateway::{
    ContainerAdapter, ContainerAdapters, ContainerFace, LoadOutcome, Registration, Update,
};
use roundhouse_serving::{Answer, Invocation, ReadBody, Reply, Request as Asked};
use roundhouse_types::{ErrorKind, Failure, ModelId, ModelKind, Tier};
use serde_json::{Value, json};

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const STREAM: &str = "/endpoints/ep/invocations-response-stream";

/// Adapters as a platform registers them.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    registered: Arc<Mutex<BTreeMap<String, Registration>>>,
}

fn shown(registration: &Registration) -> ContainerAdapter {
    let target = registration.name.parse().unwrap();
    ContainerAdapter {
        name: registration.name.clone(),
        src: registration.src.clone(),
        pin: registration.pin,
        model: ModelId { endpoint: "container".parse().unwrap(), target },
        base: registration.base.clone(),
    }
}

impl ContainerAdapters for Registry {
    fn register(
        &self,
        registration: Registration,
    ) -> BoxFuture<'static, Result<LoadOutcome, Failure>> {
        let outcome = match registration.name.as_str() {
            "broken" => Err(Failure::new(ErrorKind::ModelInvalid, "broken: r is 0")),
            "large" => Ok(LoadOutcome::NoMemory),
            name => {
                let name = name.to_owned();
                self.registered.lock().unwrap().insert(name, registration);
                Ok(LoadOutcome::Loaded)
            }
        };
        async move { outcome }.boxed()
    }

    fn update(&self, update: Update) -> BoxFuture<'static, Result<Option<LoadOutcome>, Failure>> {
        let mut registered = self.registered.lock().unwrap();
        let found = registered.get_mut(&update.name).map(|registration| {
            registration.pin = update.pin.unwrap_or(registration.pin);
            if let Some((src, path)) = update.place {
                (registration.src, registration.path) = (src, path);
            }
            LoadOutcome::Loaded
        });
        async move { Ok(found) }.boxed()
    }

    fn page(
        &self,
        after: Option<&str>,
        limit: usize,
        base: Option<&ModelId>,
    ) -> (Vec<ContainerAdapter>, bool) {
        let registered = self.registered.lock().unwrap();
        let behind = registered.values().filter(|it| after.is_none_or(|a| it.name.as_str() > a));
        let behind = behind.filter(|it| base.is_none_or(|base| it.base.as_ref() == Some(base)));
        let mut page: Vec<ContainerAdapter> = behind.map(shown).collect();
        let more = page.len() > limit;
        page.truncate(limit);
        (page, more)
    }

    fn get(&self, name: &str) -> Option<ContainerAdapter> {
        self.registered.lock().unwrap().get(name).map(shown)
    }

    fn unregister(&self, name: &str) -> BoxFuture<'static, Result<bool, Failure>> {
        let removed = self.registered.lock().unwrap().remove(name).is_some();
        async move { Ok(removed) }.boxed()
    }
}

fn contract(root: &Path) -> Harness {
    let (models, adapters) = (Arc::new(crate::container::Host::default()), Arc::default());
    let adapters: Arc<Registry> = adapters;
    let face =
        ContainerFace { loads: true, models_root: root.into(), models, adapters, handlers: false };
    let setup = Setup { container: Some(face), endpoints: vec![], ..Setup::default() };
    setup.with(|_| says(hello(1), 1))
}

/// The model asked and what it must be an adapter of.
fn aims(harness: &Harness) -> Vec<(String, Option<String>)> {
    let asked = harness.asked.lock().unwrap();
    let text = |model: &ModelId| model.target.to_string();
    asked.iter().map(|it| (text(&it.model), it.base.as_ref().map(text))).collect()
}

fn aim(model: &str, base: Option<&str>) -> (String, Option<String>) {
    (model.to_owned(), base.map(str::to_owned))
}

fn with_header(path: &str, target: &str, adapter: &str, body: Value) -> Request<Body> {
    let mut request = post(path, target, body.to_string());
    if target.is_empty() {
        request.headers_mut().remove("x-amzn-sagemaker-target-model");
    }
    let adapter = adapter.parse().unwrap();
    request.headers_mut().insert("x-amzn-sagemaker-adapter-identifier", adapter);
    request
}

/// Says who it is and what it was asked.
fn echoes(invocation: Invocation) -> Result<Answer, Failure> {
    let Asked::Inputs(inputs) = &invocation.request else { return says(hello(1), 1) };
    let said = inputs.texts.iter().enumerate().flat_map(|(at, text)| {
        let text = format!("{}:{text}", invocation.model.target);
        [piece(at, &text, vec![]), last(at, roundhouse_serving::Finish::Length, 1)]
    });
    says(said.collect(), inputs.texts.len())
}

#[tokio::test]
async fn every_face_names_an_adapter_in_its_own_way() {
    let harness = Setup::default().with(echoes);
    let base = Some("a");
    let inputs = json!({"inputs": "hi", "adapters": "x/y"});
    assert_eq!(harness.post(INVOKE, "a", inputs.to_string()).await.status, 200);
    let tgi = json!({"inputs": "hi", "parameters": {"adapter_id": "x/y"}});
    assert_eq!(harness.post("/invocations", "a", tgi.to_string()).await.status, 200);
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "adapters": "x/y/"});
    assert_eq!(harness.post(INVOKE, "a", chat.to_string()).await.status, 200);
    assert_eq!(harness.post(STREAM, "a", inputs.to_string()).await.status, 200);
    let plain = json!({"inputs": "hi"});
    for path in [INVOKE, STREAM, "/invocations"] {
        let asked = harness.send(with_header(path, "a", "x/y", plain.clone())).await;
        assert_eq!(asked.status, 200, "{path}: {}", asked.text());
    }
    assert_eq!(aims(&harness), vec![aim("x/y", base); 7]);
    harness.asked.lock().unwrap().clear();
    // The header goes before the body, and needs no base beside it.
    assert_eq!(harness.send(with_header(INVOKE, "", "x/y", inputs)).await.status, 200);
    let chat = json!({"model": "a", "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(
        harness.send(with_header("/v1/chat/completions", "", "x/y", chat)).await.status,
        200
    );
    let chat = json!({"model": "x/y", "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(harness.post("/v1/chat/completions", "", chat.to_string()).await.status, 200);
    assert_eq!(aims(&harness), vec![aim("x/y", None); 3]);
}

#[tokio::test]
async fn no_way_to_name_an_adapter_is_answered_by_the_base() {
    let harness = Setup::default().with(echoes);
    let base = json!({"inputs": "hi"});
    for path in [INVOKE, STREAM, "/invocations"] {
        let path = format!("{path}?adapter=x%2Fy");
        let got = harness.post(&path, "a", base.to_string()).await;
        assert_eq!(got.status, 200, "{path}: {}", got.text());
    }
    for (path, body) in [
        (INVOKE, json!({"inputs": "hi", "adapter": "x/y"})),
        (INVOKE, json!({"inputs": "hi", "adapter_id": "x/y"})),
        (INVOKE, json!({"inputs": "hi", "parameters": {"adapters": "x/y"}})),
        ("/generate", json!({"model": "a", "inputs": "hi", "adapter_id": "x/y"})),
        ("/v1/completions", json!({"model": "a", "prompt": "hi", "adapters": "x/y"})),
        ("/v1/completions", json!({"model": "a", "prompt": "hi", "adapter_id": "x/y"})),
    ] {
        let target = if path == INVOKE { "a" } else { "" };
        let got = harness.post(path, target, body.to_string()).await;
        assert_eq!(got.status, 200, "{path} {body}: {}", got.text());
    }
    assert_eq!(aims(&harness), vec![aim("x/y", Some("a")); 9]);
    let got = harness.send(with_header(&format!("{INVOKE}?adapter=z"), "a", "x/y", base)).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(aims(&harness)[9], aim("x/y", Some("a")), "the header goes before the query");
    let got = harness.post(&format!("{INVOKE}?adapter=%0A"), "a", "{}".to_owned()).await;
    assert_eq!(got.status, 400, "{}", got.text());
    assert!(got.text().contains("adapter is not a legal name"), "{}", got.text());
}

#[tokio::test]
async fn each_input_is_answered_by_its_own_adapter_in_order() {
    let harness = Setup::default().with(echoes);
    let body = json!({"inputs": ["1", "2", "3", "4"], "adapters": ["x", "y", "", "x"]});
    let got = harness.post(INVOKE, "a", body.to_string()).await;
    let texts = ["x:1", "y:2", "a:3", "x:4"];
    let want: Vec<Value> = texts.iter().map(|text| json!({"generated_text": text})).collect();
    assert_eq!(got.json(), json!(want), "{}", got.text());
    assert_eq!(got.header("x-roundhouse-version").split(", ").count(), 3);
    let mut asked = aims(&harness);
    asked.sort();
    assert_eq!(asked, [aim("a", None), aim("x", Some("a")), aim("y", Some("a"))]);
    for (bad, why) in [
        (json!({"inputs": ["1", "2"], "adapters": ["x"]}), "one name for each of the 2 inputs"),
        (json!({"inputs": "1", "adapters": "../x"}), "adapters is not a legal name"),
        (json!({"inputs": "1", "adapters": "s3://b/x"}), "adapters is not a legal name"),
        (json!({"inputs": "1", "adapters": 7}), "adapters must be a name or a list"),
        (json!({"prompt": "1", "adapters": ["x", "y"]}), "adapters must be one name"),
        (
            json!({"inputs": "1", "adapters": "x", "parameters": {"adapter_id": "y"}}),
            "adapters names 'x', and parameters.adapter_id names 'y'",
        ),
    ] {
        let got = harness.post("/invocations", "a", bad.to_string()).await;
        assert_eq!(got.status, 400, "{bad}: {}", got.text());
        assert!(got.text().contains(why), "{}", got.text());
    }
}

#[tokio::test]
async fn parts_of_an_answer_tell_their_versions_and_the_coldest_way() {
    let harness = Setup::default().with(|invocation| {
        let mut answer = embeds(vec![vec![f32::from(invocation.model.target.as_str() == "x")]])?;
        answer.served.kind = ModelKind::Embedding;
        answer.served.tier = match invocation.model.target.as_str() {
            "x" => Tier::Store,
            _ => Tier::Device,
        };
        Ok(answer)
    });
    let body = json!({"inputs": ["1", "2"], "adapters": ["x", "y"]});
    let got = harness.post(INVOKE, "a", body.to_string()).await;
    assert_eq!(got.json(), json!([[1.0], [0.0]]), "{}", got.text());
    assert_eq!(got.header("x-roundhouse-tier"), "store");
}

#[tokio::test]
async fn adapters_that_answer_differently_are_refused_before_anything_is_generated() {
    let harness = Setup::default().with(|invocation| match invocation.model.target.as_str() {
        "labels" => classifies(&[&[("a", 1.0)]]),
        "vectors" => embeds(vec![vec![1.0]]),
        // Its text never comes.
        _ => Ok(generation(Box::pin(futures_util::stream::pending()), 1)),
    });
    for names in
        [["text", "labels"], ["labels", "text"], ["text", "vectors"], ["vectors", "labels"]]
    {
        let body = json!({"inputs": ["1", "2"], "adapters": names});
        let asked = harness.post("/invocations", "a", body.to_string());
        let got = asked.now_or_never().expect("nothing is waited for");
        assert_eq!(got.status, 400, "{names:?}: {}", got.text());
        assert!(got.text().contains("adapters that answer alike"), "{}", got.text());
    }
}

#[tokio::test]
async fn where_models_may_be_handlers_the_body_is_read_when_its_model_is_known() {
    let setup = Setup { handlers: true, ..Setup::default() };
    let harness = setup.with_async(Arc::new(|mut invocation: Invocation| {
        async move {
            if let Asked::Raw(raw) = invocation.request.clone() {
                match (raw.read)(raw.body.body).await? {
                    ReadBody::Request(request) => invocation.request = *request,
                    ReadBody::OfAdapters => {
                        let served = served(ModelKind::Generative);
                        return Ok(Answer { reply: Reply::OfAdapters, served });
                    }
                }
            }
            echoes(invocation)
        }
        .boxed()
    }));
    let one = json!({"inputs": "1", "adapters": "x"});
    let got = harness.post(INVOKE, "a", one.to_string()).await;
    assert_eq!(got.json(), json!({"generated_text": "x:1"}), "{}", got.text());
    let each = json!({"inputs": ["1", "2"], "adapters": ["x", "y"]});
    let got = harness.post(INVOKE, "a", each.to_string()).await;
    let want = json!([{"generated_text": "x:1"}, {"generated_text": "y:2"}]);
    assert_eq!(got.json(), want, "{}", got.text());
    assert_eq!(aims(&harness)[..2], [aim("a", None), aim("x", Some("a"))]);
    // What a header says is known before, and a handler's body may say what it likes.
    harness.asked.lock().unwrap().clear();
    let got = harness.send(with_header(INVOKE, "a", "y", one)).await;
    assert_eq!(got.json(), json!({"generated_text": "y:1"}), "{}", got.text());
    assert_eq!(aims(&harness), [aim("y", Some("a"))]);
}

#[tokio::test]
async fn loaded_adapters_are_listed_with_their_base() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let listed = harness.get("/v1/models").await.json();
    let of = |at: usize| &listed["data"][at];
    assert_eq!((&of(2)["root"], &of(2)["parent"]), (&json!("d"), &json!("a")));
    assert_eq!(of(0).get("parent"), None);
    assert_eq!(harness.get("/v1/models/d").await.json()["parent"], "a");
}

#[tokio::test]
async fn an_adapter_of_the_container_contract_lives_from_registration_to_removal() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a1", "broken", "large"] {
        std::fs::create_dir_all(root.path().join(name)).unwrap();
    }
    let harness = contract(root.path());
    let src = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let body = |name: &str| json!({"name": name, "src": src(name), "pin": true}).to_string();
    let got = harness.post("/adapters", "", body("a1")).await;
    assert_eq!(
        (got.status.as_u16(), got.json()),
        (200, json!({"status": "Adapter a1 registered"}))
    );
    let again = harness.post("/adapters", "", body("a1")).await;
    assert_eq!(again.status, 409);
    assert!(again.text().contains("adapter a1 is already registered"), "{}", again.text());
    let failed = harness.post("/adapters", "", body("broken")).await;
    assert_eq!((failed.status.as_u16(), failed.json()["code"].as_u64()), (424, Some(424)));
    assert!(failed.text().contains("r is 0"), "{}", failed.text());
    let large = harness.post("/adapters", "", body("large")).await;
    assert_eq!(large.status, 507);
    assert!(large.text().contains("no memory for adapter large now"), "{}", large.text());
    let query = format!("/adapters?name=a2&src={}&preload=false", src("a1"));
    let got = harness.send(Request::post(query).body(Body::empty()).unwrap()).await;
    assert_eq!(got.status, 200, "{}", got.text());

    let one = json!({"name": "a1", "src": src("a1"), "pin": true});
    assert_eq!(harness.get("/adapters/a1").await.json(), json!([one]));
    let first = harness.get("/adapters?limit=1").await.json();
    assert_eq!(first["adapters"], json!([one]));
    let token = first["nextPageToken"].as_str().unwrap();
    let next = format!("/adapters?limit=1&next_page_token={token}");
    let second = harness.get(&next).await.json();
    assert_eq!(second["adapters"], json!([{"name": "a2", "src": src("a1"), "pin": false}]));
    assert_eq!(second.get("nextPageToken"), None);

    let asked = with_header("/invocations", "", "a1", json!({"inputs": "hi"}));
    assert_eq!(harness.send(asked).await.status, 200);
    assert_eq!(harness.asked.lock().unwrap()[0].model.to_string(), "container:a1");
    let unknown = with_header("/invocations", "", "a9", json!({"inputs": "hi"}));
    let unknown = harness.send(unknown).await;
    assert_eq!((unknown.status.as_u16(), unknown.header("x-amzn-errortype")), (424, "ModelError"));
    assert!(unknown.text().contains("adapter a9 is not registered"), "{}", unknown.text());

    let delete = || Request::delete("/adapters/a1").body(Body::empty()).unwrap();
    let got = harness.send(delete()).await;
    assert_eq!(got.json(), json!({"status": "Adapter a1 unregistered"}));
    assert_eq!(harness.send(delete()).await.status, 404);
    assert_eq!(harness.get("/adapters/a1").await.status, 404);
}

#[tokio::test]
async fn a_wrong_registration_says_what_is_wrong() {
    let root = tempfile::tempdir().unwrap();
    let harness = contract(root.path());
    for (body, status, why) in [
        ("{}", 400, "name is required"),
        (r#"{"name":"","src":"x"}"#, 400, "name is required"),
        (r#"{"name":"a"}"#, 400, "src is required"),
        (r#"{"name":"a/b","src":"x"}"#, 400, "name must be a name without slashes"),
        (r#"{"name":"..","src":"x"}"#, 400, "name is not a legal name: it has a '.' or '..'"),
        (r#"{"name":"a\u0007","src":"x"}"#, 400, "name is not a legal name: it has a control"),
        (r#"{"name":7,"src":"x"}"#, 400, "name must be a string"),
        (r#"{"name":"a","src":"/etc"}"#, 400, "src must be a path below the models' root"),
        (r#"{"name":"a","src":"../x"}"#, 400, "src must be a path below the models' root"),
        (r#"{"name":"a","src":"none"}"#, 404, "src leads nowhere: there is nothing at none"),
        (r#"{"name":"a","src":"x","pin":3}"#, 400, "pin must be true or false"),
    ] {
        let got = harness.post("/adapters", "", body).await;
        assert_eq!(got.status, status, "{body}: {}", got.text());
        assert!(got.text().contains(why), "{}", got.text());
    }
    let harness = Setup::default().with(|_| says(hello(1), 1));
    assert_eq!(harness.get("/adapters").await.status, 404);
}

/// The contract over a host that has loaded the model `base`; no adapter of its is there.
fn with_base(root: &Path) -> Harness {
    let host = crate::container::Host::default();
    host.has("base");
    let face = ContainerFace {
        loads: true,
        models_root: root.into(),
        models: Arc::new(host),
        adapters: Arc::<Registry>::default(),
        handlers: false,
    };
    let setup = Setup { container: Some(face), endpoints: vec![], ..Setup::default() };
    setup.with(|invocation| match invocation.base {
        None => says(hello(1), 1),
        Some(_) => {
            let message = format!("{} is not announced", invocation.model);
            Err(Failure::new(ErrorKind::ModelNotFound, message))
        }
    })
}

#[tokio::test]
async fn an_adapter_that_is_not_registered_is_no_model_that_is_not_loaded() {
    let root = tempfile::tempdir().unwrap();
    let harness = with_base(root.path());
    let plain = json!({"inputs": "hi"});
    let named = |field: &str| json!({"inputs": "hi", field: "a9"});
    for request in [
        with_header("/invocations", "", "a9", plain.clone()),
        with_header("/models/base/invoke", "", "a9", plain.clone()),
        post("/models/base/invoke?adapter=a9", "", plain.to_string()),
        post("/models/base/invoke", "", named("adapters").to_string()),
        post("/models/base/invoke", "", named("adapter_id").to_string()),
        post("/invocations", "", named("adapters").to_string()),
    ] {
        let path = request.uri().to_string();
        let got = harness.send(request).await;
        // 404 would have the platform load the model again.
        assert_eq!(got.status, 424, "{path}: {}", got.text());
        assert!(got.text().contains("adapter a9 is not registered"), "{path}: {}", got.text());
    }
    // What is not loaded is, with an adapter or without.
    for request in [
        with_header("/models/none/invoke", "", "a9", plain.clone()),
        post("/models/none/invoke", "", named("adapters").to_string()),
    ] {
        let got = harness.send(request).await;
        assert_eq!(got.status, 404, "{}", got.text());
        assert!(got.text().contains("model none is not loaded"), "{}", got.text());
    }
    assert_eq!(harness.post("/models/base/invoke", "", plain.to_string()).await.status, 200);
}

#[tokio::test]
async fn a_registered_adapter_is_updated_and_known_below_its_model() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a1", "a2"] {
        std::fs::create_dir_all(root.path().join(name)).unwrap();
    }
    let harness = with_base(root.path());
    let empty = |method: &str, path: &str| {
        Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
    };
    let src = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let body = json!({"name": "one", "src": src("a1")}).to_string();
    assert_eq!(harness.post("/models/none/adapters", "", body.clone()).await.status, 404);
    assert_eq!(harness.post("/models/base/adapters", "", body).await.status, 200);
    let alone = json!({"name": "other", "src": src("a1"), "pin": "true"}).to_string();
    assert_eq!(harness.post("/adapters", "", alone).await.status, 200);

    let below = harness.get("/models/base/adapters").await.json();
    assert_eq!(below, json!({"adapters": [{"name": "one", "src": src("a1"), "pin": false}]}));
    assert_eq!(harness.get("/adapters").await.json()["adapters"].as_array().unwrap().len(), 2);
    assert_eq!(harness.get("/models/base/adapters/one").await.status, 200);
    assert_eq!(harness.get("/models/base/adapters/other").await.status, 404);

    let update = format!("/adapters/one/update?src={}&pin=true", src("a2"));
    let got = harness.send(empty("POST", &update)).await;
    assert_eq!(got.json(), json!({"status": "Adapter one updated"}), "{}", got.text());
    let now = json!([{"name": "one", "src": src("a2"), "pin": true}]);
    assert_eq!(harness.get("/adapters/one").await.json(), now);
    assert_eq!(harness.send(empty("POST", "/adapters/none/update")).await.status, 404);
    let wrong = harness.send(empty("POST", "/models/base/adapters/one/update?pin=often")).await;
    assert_eq!(wrong.status, 400, "{}", wrong.text());
    assert_eq!(harness.send(empty("DELETE", "/models/base/adapters/other")).await.status, 404);
    assert_eq!(harness.send(empty("DELETE", "/models/base/adapters/one")).await.status, 200);
    assert_eq!(harness.get("/adapters/one").await.status, 404);
}
