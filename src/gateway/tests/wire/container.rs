//! The container contract, over a manager that plays a host with room for two models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Request;
use roundhouse_gateway::{
    ContainerFace, ContainerModel, ContainerModels, GatewayConfig, LoadOutcome, PlatformFace,
};
use roundhouse_serving::Request as Asked;
use roundhouse_types::{ErrorKind, Failure, ModelId};
use serde_json::json;

use crate::support::*;

/// Room for this many models.
const ROOM: usize = 2;

#[derive(Clone, Default)]
pub(crate) struct Host {
    loaded: Arc<Mutex<BTreeMap<String, (String, PathBuf)>>>,
}

impl Host {
    /// A model that is loaded already.
    pub(crate) fn has(&self, name: &str) {
        self.loaded.lock().unwrap().insert(name.into(), (format!("/m/{name}"), PathBuf::new()));
    }

    fn model(name: &str, url: &str) -> ContainerModel {
        let model = ModelId { endpoint: "ep".parse().unwrap(), target: name.parse().unwrap() };
        ContainerModel { name: name.into(), url: url.into(), model }
    }
}

impl ContainerModels for Host {
    fn load(
        &self,
        name: String,
        url: String,
        path: PathBuf,
    ) -> BoxFuture<'static, Result<LoadOutcome, Failure>> {
        let loaded = self.loaded.clone();
        async move {
            let mut loaded = loaded.lock().unwrap();
            if name == "broken" {
                return Err(Failure::new(ErrorKind::ModelInvalid, "no config.json"));
            }
            if loaded.len() == ROOM {
                return Ok(LoadOutcome::NoMemory);
            }
            loaded.insert(name, (url, path));
            Ok(LoadOutcome::Loaded)
        }
        .boxed()
    }

    fn list(&self) -> Vec<ContainerModel> {
        let loaded = self.loaded.lock().unwrap();
        // The order is the gateway's business.
        loaded.iter().rev().map(|(name, (url, _))| Self::model(name, url)).collect()
    }

    fn get(&self, name: &str) -> Option<ContainerModel> {
        self.loaded.lock().unwrap().get(name).map(|(url, _)| Self::model(name, url))
    }

    fn unload(&self, name: &str) -> BoxFuture<'static, Result<bool, Failure>> {
        let removed = self.loaded.lock().unwrap().remove(name).is_some();
        async move { Ok(removed) }.boxed()
    }
}

fn contract(host: &Host, root: &Path) -> Harness {
    let models = Arc::new(host.clone());
    let face = ContainerFace {
        loads: true,
        models_root: root.into(),
        models,
        adapters: Arc::<crate::adapters::Registry>::default(),
        handlers: false,
    };
    let platform = PlatformFace { metrics: Arc::new(|| "up 1\n".to_owned()), transforms: 7 };
    let (container, platform) = (Some(face), Some(platform));
    let setup = Setup { container, platform, ..Setup::default() };
    setup.with(|invocation| match invocation.model.target.as_str() {
        "large" => Err(Failure::new(ErrorKind::TooLarge, "no memory left on the device")),
        _ => says(hello(1), 1),
    })
}

fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", "large", "broken"] {
        std::fs::create_dir_all(root.path().join(name).join("model")).unwrap();
    }
    root
}

fn load_body(name: &str, root: &Path) -> String {
    let url = root.join(name).join("model");
    json!({"model_name": name, "url": url.to_str().unwrap()}).to_string()
}

fn delete(path: &str) -> Request<Body> {
    Request::delete(path).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_model_lives_from_load_to_unload() {
    let (root, host) = (root(), Host::default());
    let harness = contract(&host, root.path());
    assert_eq!(harness.get("/models").await.json(), json!({"models": []}));
    assert_eq!(harness.get("/ping").await.status, 200);

    let got = harness.post("/models", "", load_body("a", root.path())).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let real = root.path().join("a/model").canonicalize().unwrap();
    assert_eq!(host.loaded.lock().unwrap()["a"].1, real);
    assert_eq!(harness.post("/models", "", load_body("a", root.path())).await.status, 409);
    assert_eq!(harness.post("/models", "", load_body("b", root.path())).await.status, 200);
    let got = harness.post("/models", "", load_body("c", root.path())).await;
    assert_eq!(got.status, 507);
    assert_eq!(got.json()["code"], 507);

    let url = root.path().join("a/model");
    let want = json!({"modelName": "a", "modelUrl": url.to_str().unwrap()});
    assert_eq!(harness.get("/models/a").await.json(), want);
    let got = harness.post("/models/a/invoke", "x.tar.gz", r#"{"inputs":"hi"}"#).await;
    assert_eq!(got.json(), json!({"generated_text": "Hello é"}));
    assert_eq!(harness.asked.lock().unwrap()[0].model.to_string(), "ep:a");

    assert_eq!(harness.send(delete("/models/a")).await.status, 200);
    assert_eq!(harness.send(delete("/models/a")).await.status, 404);
    assert_eq!(harness.post("/models", "", load_body("c", root.path())).await.status, 200);
}

#[tokio::test]
async fn what_is_not_loaded_is_not_found() {
    let (root, host) = (root(), Host::default());
    let harness = contract(&host, root.path());
    assert_eq!(harness.get("/models/none").await.status, 404);
    let got = harness.post("/models/none/invoke", "", r#"{"inputs":"hi"}"#).await;
    assert_eq!(got.status, 404);
    let want = json!({
        "code": 404, "type": "ModelNotFoundException", "message": "model none is not loaded",
    });
    assert_eq!(got.json(), want);
}

#[tokio::test]
async fn a_wrong_load_says_what_is_wrong() {
    let (root, host) = (root(), Host::default());
    let harness = contract(&host, root.path());
    let cases = [
        ("{".to_owned(), 400, "not valid JSON"),
        ("[]".to_owned(), 400, "must be a JSON object"),
        (r#"{"model_name":"a"}"#.to_owned(), 400, "url is required"),
        (r#"{"url":"/x"}"#.to_owned(), 400, "model_name is required"),
        (r#"{"model_name":"a/b","url":"/x"}"#.to_owned(), 400, "model_name must be"),
        (r#"{"model_name":"a","url":"/etc"}"#.to_owned(), 400, "below the models' root"),
        (r#"{"model_name":"a","url":"../etc"}"#.to_owned(), 400, "below the models' root"),
        (load_body("missing", root.path()), 404, "there is nothing at"),
        (load_body("broken", root.path()), 400, "no config.json"),
    ];
    for (body, status, why) in cases {
        let got = harness.post("/models", "", body.clone()).await;
        assert_eq!(got.status, status, "{body}: {}", got.text());
        assert!(got.json()["message"].as_str().unwrap().contains(why), "{}", got.text());
    }
    assert!(host.loaded.lock().unwrap().is_empty());
}

#[tokio::test]
async fn memory_that_runs_out_in_an_invocation_is_a_507() {
    let (root, host) = (root(), Host::default());
    let harness = contract(&host, root.path());
    harness.post("/models", "", load_body("large", root.path())).await;
    let got = harness.post("/models/large/invoke", "", r#"{"inputs":"hi"}"#).await;
    assert_eq!(got.status, 507);
    let got = harness.post("/models/large/invoke", "", "nonsense").await;
    assert_eq!(got.status, 400);
}

#[tokio::test]
async fn a_list_is_paged_by_name_with_a_token_only_where_more_follows() {
    let (root, host) = (root(), Host::default());
    let harness = contract(&host, root.path());
    for number in 0..101 {
        let entry = (format!("/m/{number}"), PathBuf::new());
        host.loaded.lock().unwrap().insert(format!("m{number:03}"), entry);
    }
    let first = harness.get("/models").await.json();
    assert_eq!(first["models"].as_array().unwrap().len(), 100);
    assert_eq!(first["models"][0]["modelName"], "m000");
    let token = first["nextPageToken"].as_str().unwrap();
    // An unload between two pages hides nothing of the second one.
    host.loaded.lock().unwrap().remove("m005");
    let path = format!("/models?limit=1000&next_page_token={token}");
    let second = harness.get(&path).await.json();
    assert_eq!(second, json!({"models": [{"modelName": "m100", "modelUrl": "/m/100"}]}));
    // Exactly a whole page: nothing follows.
    let exact = harness.get("/models?limit=100").await.json();
    assert_eq!(exact["models"].as_array().unwrap().len(), 100);
    assert!(exact.get("nextPageToken").is_none());
    for bad in ["limit=0", "limit=-1", "limit=x", "next_page_token=!"] {
        assert_eq!(harness.get(&format!("/models?{bad}")).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_token_behind_the_last_model_leads_to_an_empty_page() {
    let (root, host) = (root(), Host::default());
    let harness = contract(&host, root.path());
    for name in ["m1", "m2", "m3"] {
        host.has(name);
    }
    let first = harness.get("/models?limit=2").await.json();
    let token = first["nextPageToken"].as_str().unwrap();
    // What follows was unloaded meanwhile.
    host.loaded.lock().unwrap().remove("m3");
    let path = format!("/models?limit=2&next_page_token={token}");
    let got = harness.get(&path).await;
    assert_eq!((got.status.as_u16(), got.json()), (200, json!({"models": []})));
}

#[tokio::test]
async fn a_load_may_be_written_as_a_query() {
    let (root, host) = (root(), Host::default());
    let harness = contract(&host, root.path());
    let url = root.path().join("a/model").display().to_string();
    let path = format!("/models?model_name=true&url={url}&initial_workers=1&synchronous=true");
    let got = harness.send(Request::post(path).body(Body::empty()).unwrap()).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(harness.get("/models/true").await.json()["modelUrl"], url);
    let nothing = harness.send(Request::post("/models").body(Body::empty()).unwrap()).await;
    assert!(nothing.text().contains("model_name is required"), "{}", nothing.text());
}

#[tokio::test]
async fn invocations_name_a_loaded_model_in_the_query_or_mean_the_only_one() {
    let (root, host) = (root(), Host::default());
    let face = ContainerFace {
        loads: true,
        models_root: root.path().into(),
        models: Arc::new(host.clone()),
        adapters: Arc::<crate::adapters::Registry>::default(),
        handlers: false,
    };
    let setup = Setup { container: Some(face), endpoints: vec![], ..Setup::default() };
    let harness = setup.with(|_| says(hello(1), 1));
    let ask = |path: &'static str| harness.post(path, "", r#"{"inputs":"hi"}"#);
    assert_eq!(ask("/invocations").await.status, 404);
    host.has("m1");
    assert_eq!(ask("/invocations").await.status, 200);
    host.has("m2");
    assert_eq!(ask("/invocations").await.status, 400);
    assert_eq!(ask("/invocations?model_name=m2").await.status, 200);
    let unknown = ask("/invocations?model_name=m3").await;
    assert_eq!((unknown.status.as_u16(), unknown.json()["code"].as_u64()), (404, Some(404)));
    let asked = harness.asked.lock().unwrap();
    let asked: Vec<&str> = asked.iter().map(|it| it.model.target.as_str()).collect();
    assert_eq!(asked, ["m1", "m2"]);
}

#[tokio::test]
async fn the_platform_scrapes_and_sizes_batches_on_the_port_that_it_knows() {
    let (root, host) = (root(), Host::default());
    let harness = contract(&host, root.path());
    let metrics = harness.get("/metrics").await;
    assert_eq!((metrics.status.as_u16(), metrics.text().as_str()), (200, "up 1\n"));
    assert!(metrics.header("content-type").starts_with("text/plain"));
    let want = json!({
        "MaxConcurrentTransforms": 7, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 6,
    });
    assert_eq!(harness.get("/execution-parameters").await.json(), want);
    let wrong = harness.post("/metrics", "", "{}").await;
    assert_eq!((wrong.status.as_u16(), wrong.json()["code"].as_u64()), (405, Some(405)));
    let without = Setup::default().with(|_| says(hello(1), 1));
    assert_eq!(without.get("/metrics").await.status, 404);
    assert_eq!(without.get("/execution-parameters").await.status, 404);
}

#[tokio::test]
async fn requests_that_leave_the_answers_type_open_take_the_operators() {
    let config = GatewayConfig {
        default_accept: Some("text/csv".parse().unwrap()),
        ..GatewayConfig::default()
    };
    let setup = Setup { config, handlers: true, ..Setup::default() };
    let harness = setup.with(|invocation| {
        let Asked::Raw(raw) = &invocation.request else { panic!("it is read already") };
        Err(Failure::new(ErrorKind::ModelFailed, raw.body.accept.clone().unwrap_or_default()))
    });
    for (sent, seen) in [(None, "text/csv"), (Some("*/*"), "text/csv"), (Some("a/b"), "a/b")] {
        let mut request = post("/invocations", "a", "x");
        if let Some(sent) = sent {
            request.headers_mut().insert("accept", sent.parse().unwrap());
        }
        let got = harness.send(request).await;
        assert!(got.text().contains(&format!("\"OriginalMessage\":\"{seen}\"")), "{}", got.text());
    }
}

#[tokio::test]
async fn names_are_percent_decoded_once() {
    let (root, host) = (root(), Host::default());
    let harness = contract(&host, root.path());
    let entry = ("/m".to_owned(), PathBuf::new());
    host.loaded.lock().unwrap().insert("a%20b c".into(), entry);
    assert_eq!(harness.get("/models/a%2520b%20c").await.json()["modelName"], "a%20b c");
}

#[tokio::test]
async fn without_its_switch_the_contract_does_not_exist() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    assert_eq!(harness.get("/models").await.status, 404);
    assert_eq!(harness.post("/models", "", r#"{"model_name":"a","url":"b"}"#).await.status, 404);
    assert_eq!(harness.post("/models/a/invoke", "", "{}").await.status, 404);
}

#[tokio::test]
async fn a_loaded_model_has_sessions_of_its_own() {
    let (root, host) = (root(), Host::default());
    let harness = contract(&host, root.path());
    for name in ["a", "b"] {
        assert_eq!(harness.post("/models", "", load_body(name, root.path())).await.status, 200);
    }
    let at = |name: &str, session: &str, body: &'static str| {
        let path = format!("/models/{name}/invoke");
        let request = Request::post(path).header("x-amzn-sagemaker-session-id", session);
        request.body(Body::from(body)).unwrap()
    };
    let opened = harness.send(at("a", "NEW_SESSION", r#"{"requestType":"NEW_SESSION"}"#)).await;
    assert_eq!(opened.status, 200, "{}", opened.text());
    let id = opened.header("x-amzn-sagemaker-new-session-id").split(';').next().unwrap().to_owned();
    let body = r#"{"inputs":"hi"}"#;
    assert_eq!(harness.send(at("a", &id, body)).await.status, 200);
    let elsewhere = harness.send(at("b", &id, body)).await;
    assert_eq!(elsewhere.status, 400);
    assert_eq!(elsewhere.json()["type"], "BadRequestException");
    let closed = harness.send(at("a", &id, r#"{"requestType":"CLOSE"}"#)).await;
    assert_eq!(closed.header("x-amzn-sagemaker-closed-session-id"), id);
    assert_eq!(harness.send(at("a", &id, body)).await.status, 400);
}
