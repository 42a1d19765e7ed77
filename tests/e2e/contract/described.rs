//! The description of the port, held against the port.

use roundhouse_tests::adapters::{labelled_base, signed_adapter};
use roundhouse_tests::models::{decoder, signed_classifier};
use roundhouse_tests::python::client;
use roundhouse_tests::server::Server;
use serde_json::{Value, json};

use super::{ping_once, place};

fn paths(document: &Value) -> Vec<&str> {
    document["paths"].as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_tells_what_this_server_serves() {
    let store = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let uri = format!("file://{}/", store.path().display());
    let args = ["serve", "--store", &uri, "--cache-dir", cache.path().to_str().unwrap()];
    let server = Server::start(&args, &[]).await;
    let document = server.get("/openapi.json").await.json();
    let found = paths(&document);
    assert!(found.contains(&"/endpoints/{endpoint}/invocations"), "{found:?}");
    assert!(!found.contains(&"/models") && !found.contains(&"/metrics"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_of_one_models_description_finds_a_fault() {
    let _alone = crate::HEAVY.lock().await;
    let folder = tempfile::tempdir().unwrap();
    place(&folder.path().join("model"), &decoder(12));
    let (model, root) = (folder.path().join("model"), folder.path().display().to_string());
    let args = ["serve", "--model-dir", model.to_str().unwrap(), "--container-models-root", &root];
    let server = Server::start(&args, &[]).await;
    ping_once(&server, |answer| answer.status == 200).await;
    let data = server.data.clone();
    let told = tokio::task::spawn_blocking(move || client("schemathesis_contract.py", &[&data]));
    println!("{}", told.await.unwrap());
    assert_eq!(server.get("/ping").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_of_the_contracts_description_finds_a_fault() {
    let _alone = crate::HEAVY.lock().await;
    let root = tempfile::tempdir().unwrap();
    place(&root.path().join("a"), &signed_classifier("a", 1, 0));
    place(&root.path().join("base"), &labelled_base(16));
    place(&root.path().join("adapter"), &signed_adapter("base", 16, 1));
    let models_root = root.path().display().to_string();
    let args = ["serve", "--container-models-root", &models_root];
    let server = Server::start(&args, &[("SAGEMAKER_MULTI_MODEL", "true")]).await;
    for name in ["a", "base"] {
        let url = root.path().join(name).display().to_string();
        let loaded = server.post("/models", json!({"model_name": name, "url": url})).await;
        assert_eq!(loaded.status, 200, "{}", loaded.body);
    }
    let data = server.data.clone();
    let told = tokio::task::spawn_blocking(move || client("schemathesis_contract.py", &[&data]));
    println!("{}", told.await.unwrap());
    assert_eq!(server.get("/models").await.status, 200);
}
