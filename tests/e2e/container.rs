//! The multi-model container contract, as the platform calls it.

use std::path::Path;

use roundhouse_tests::models::{decoder, signature, signed_classifier};
use roundhouse_tests::server::Server;
use serde_json::{Value, json};

fn place(root: &Path, name: &str, files: &[(String, Vec<u8>)]) -> String {
    let folder = root.join(name).join("model");
    std::fs::create_dir_all(&folder).unwrap();
    for (path, body) in files {
        std::fs::write(folder.join(path), body).unwrap();
    }
    folder.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_loads_lists_invokes_and_unloads() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let a = place(root.path(), "aaa", &signed_classifier("a", 1, 0));
    let b = place(root.path(), "bbb", &signed_classifier("b", 2, 0));
    let big = place(root.path(), "big", &decoder(60));
    let broken = place(root.path(), "broken", &[("config.json".into(), b"{}".to_vec())]);
    let stranger = place(outside.path(), "x", &signed_classifier("x", 3, 0));
    std::os::unix::fs::symlink(outside.path(), root.path().join("way-out")).unwrap();
    let way_out = root.path().join("way-out/x/model").display().to_string();

    let models_root = root.path().display().to_string();
    let args = ["serve", "--container-models-root", &models_root, "--memory", "32MiB"];
    let server = Server::start(&args, &[("SAGEMAKER_MULTI_MODEL", "true")]).await;
    let load =
        |name: &str, url: &str| server.post("/models", json!({"model_name": name, "url": url}));

    assert_eq!(server.get("/ping").await.status, 200);
    assert_eq!(server.get("/models").await.json()["models"], json!([]));
    assert_eq!(load("aaa", &a).await.status, 200);
    assert_eq!(load("aaa", &a).await.status, 409);
    assert_eq!(load("bbb", &b).await.status, 200);
    let full = load("big", &big).await;
    assert_eq!(full.status, 507, "{}", full.body);
    assert_eq!(load("broken", &broken).await.status, 400);
    assert_eq!(load("x", &stranger).await.status, 400);
    assert_eq!(load("x", &way_out).await.status, 400);
    assert_eq!(load("x", "/nowhere/at/all").await.status / 100, 4);
    assert_eq!(server.post("/models", json!({"model_name": "x"})).await.status, 400);

    let page = server.get("/models?limit=1").await.json();
    assert_eq!(page["models"][0]["modelName"], "aaa");
    assert_eq!(page["models"][0]["modelUrl"], Value::from(a.as_str()));
    let token = page["nextPageToken"].as_str().unwrap();
    let rest = server.get(&format!("/models?limit=1&next_page_token={token}")).await.json();
    assert_eq!(rest["models"][0]["modelName"], "bbb");
    assert!(rest["nextPageToken"].is_null(), "{rest}");

    let answer = server.post("/models/bbb/invoke", json!({"inputs": "hello"})).await;
    assert_eq!(answer.json()[0]["label"], signature("b", 2), "{}", answer.body);
    assert_eq!(server.get("/models/aaa").await.json()["modelUrl"], Value::from(a.as_str()));
    let delete =
        |name: &str| server.send(server.http().delete(format!("{}/models/{name}", server.data)));
    assert_eq!(delete("aaa").await.status, 200);
    // The memory is free when the answer is sent.
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(residency["devices"][0]["residents"].as_array().unwrap().len(), 1, "{residency}");
    for path in ["/models/aaa", "/models/never"] {
        assert_eq!(server.get(path).await.status, 404);
    }
    assert_eq!(delete("aaa").await.status, 404);
    assert_eq!(server.post("/models/aaa/invoke", json!({"inputs": "x"})).await.status, 404);
    assert_eq!(load("aaa", &a).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_switch_the_contract_is_not_served() {
    let store = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let uri = format!("file://{}/", store.path().display());
    let args = ["serve", "--store", &uri, "--cache-dir", cache.path().to_str().unwrap()];
    let server = Server::start(&args, &[]).await;
    assert_eq!(server.get("/models").await.status, 404);
    assert_eq!(server.post("/models", json!({"model_name": "x", "url": "/"})).await.status, 404);
}
