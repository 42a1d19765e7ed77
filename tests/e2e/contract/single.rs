//! One model alone, as in a container that is given `/opt/ml/model`.

use std::path::Path;

use roundhouse_tests::adapters::{label, labelled_base, signed_adapter};
use roundhouse_tests::handlers::Stage;
use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::server::Server;
use serde_json::json;

use super::{logging, ping_once, place};

const LABELS: usize = 16;

/// A server over a base folder like `/opt/ml`, started as an image's entry command would.
async fn serve(base: &Path, env: &[(&str, &str)]) -> Server {
    let (place, cache) = (base.display().to_string(), base.join("cache").display().to_string());
    let own = [("SAGEMAKER_BASE_DIR", &*place), ("ROUNDHOUSE_CACHE_DIR", &*cache)];
    let env: Vec<(&str, &str)> = own.into_iter().chain(env.iter().copied()).collect();
    logging(&["serve"], &env, &base.join("log")).await
}

fn log(base: &Path) -> String {
    std::fs::read_to_string(base.join("log")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_is_loaded_before_ping_says_so_and_asked_without_a_name() {
    let base = tempfile::tempdir().unwrap();
    place(&base.path().join("model"), &signed_classifier("only", 3, 0));
    let server = serve(base.path(), &[("SAGEMAKER_SECURE_MODE", "true")]).await;
    ping_once(&server, |answer| answer.status == 200).await;
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(residency["devices"][0]["residents"][0]["kept"], true, "{residency}");
    let hello = json!({"inputs": "hello"});
    for path in ["/invocations", "/endpoints/default/invocations"] {
        let answer = server.post(path, hello.clone()).await;
        assert_eq!(answer.json()[0]["label"], signature("only", 3), "{path}: {}", answer.body);
    }
    let named = server.invoke("default", "model", hello).await;
    assert_eq!(named.status, 400, "{}", named.body);
    assert_eq!(named.header("x-amzn-errortype"), "ValidationError");
    let listed = server.get("/v1/models").await.json();
    assert_eq!(listed["data"][0]["id"], "model", "{listed}");
    assert_eq!(server.get("/info").await.json()["model_id"], "model");
    assert_eq!(server.get("/metrics").await.status, 200);
    // Models are not loaded into it.
    assert_eq!(server.get("/models").await.status, 404);
    assert_eq!(log(base.path()).matches("SAGEMAKER_SECURE_MODE").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_loaded_is_told_by_ping() {
    let base = tempfile::tempdir().unwrap();
    place(&base.path().join("model"), &[("config.json".into(), b"{}".to_vec())]);
    let server = serve(base.path(), &[]).await;
    let why = ping_once(&server, |answer| answer.body.contains("config.json")).await;
    assert_eq!(why.status, 503, "{}", why.body);
    assert_eq!(server.get("/health").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_lie_beside_the_model_or_are_registered_later() {
    let base = tempfile::tempdir().unwrap();
    let model = base.path().join("model");
    place(&model, &labelled_base(LABELS));
    // Trained on a base that nobody here knows by its name.
    place(&model.join("adapters/a1"), &signed_adapter("org/some-base", LABELS, 1));
    place(&base.path().join("later/a2"), &signed_adapter("org/some-base", LABELS, 2));
    let server = serve(base.path(), &[]).await;
    ping_once(&server, |answer| answer.status == 200).await;
    let listed = server.get("/adapters").await.json();
    assert_eq!(listed["adapters"][0]["name"], "a1", "{listed}");
    let src = base.path().join("later/a2").display().to_string();
    let registered = server.post("/adapters", json!({"name": "a2", "src": src})).await;
    assert_eq!(registered.status, 200, "{}", registered.body);
    for (adapter, own) in [("a1", 1), ("a2", 2)] {
        let request = server.http().post(format!("{}/invocations", server.data));
        let request = request.header("x-amzn-sagemaker-adapter-identifier", adapter);
        let by_header = server.send(request.json(&json!({"inputs": "hello"}))).await;
        assert!(by_header.body.contains(&format!("\"{}\"", label(own))), "{}", by_header.body);
        let body = json!({"inputs": "hello", "adapters": adapter});
        let by_body = server.post("/invocations", body).await;
        assert!(by_body.body.contains(&format!("\"{}\"", label(own))), "{}", by_body.body);
    }
    let plain = server.post("/invocations", json!({"inputs": "hello"})).await;
    assert!(plain.body.contains(&format!("\"{}\"", label(0))), "{}", plain.body);
    let removed = server.http().delete(format!("{}/adapters/a2", server.data));
    assert_eq!(server.send(removed).await.status, 200);
    for header in [true, false] {
        let request = server.http().post(format!("{}/invocations", server.data));
        let request = match header {
            true => request
                .header("x-amzn-sagemaker-adapter-identifier", "a2")
                .json(&json!({"inputs": "hello"})),
            false => request.json(&json!({"inputs": "hello", "adapters": "a2"})),
        };
        let gone = server.send(request).await;
        assert_eq!(gone.status, 424, "{}", gone.body);
        assert!(gone.body.contains("adapter a2 is not registered"), "{}", gone.body);
    }
    // The model is not one that came for its adapters: it stays.
    let plain = server.post("/invocations", json!({"inputs": "hello"})).await;
    assert_eq!(plain.status, 200, "{}", plain.body);
}

const SCRIPT: &str = "def model_fn(model_dir):\n    return 'said'\n\n\
    def predict_fn(data, model):\n    return {model: [int(number) for number in data]}\n";

#[tokio::test(flavor = "multi_thread")]
async fn code_in_the_folder_is_its_own_and_runs() {
    // Where handlers' users may look.
    let base = Stage::new();
    let files = [("code/entry.py", SCRIPT), ("code/other.py", "raise SystemExit(1)\n")];
    let files: Vec<_> =
        files.iter().map(|(path, text)| ((*path).into(), text.as_bytes().to_vec())).collect();
    place(&base.path().join("model"), &files);
    let env =
        [("SAGEMAKER_PROGRAM", "entry.py"), ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/csv")];
    let server = serve(base.path(), &env).await;
    let ready = ping_once(&server, |answer| !answer.body.contains("being loaded")).await;
    assert_eq!(ready.status, 200, "{}\n{}", ready.body, log(base.path()));
    let request = server.http().post(format!("{}/invocations", server.data));
    let request =
        request.header("content-type", "application/json").header("accept", "application/json");
    let answer = server.send(request.body("[1, 2]")).await;
    assert_eq!(answer.json(), json!({"said": [1, 2]}), "{}", answer.body);
}
