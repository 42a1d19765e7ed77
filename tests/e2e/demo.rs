//! The demo as a newcomer meets it, through real clients.

use roundhouse_tests::python;
use roundhouse_tests::server::{Server, root};
use serde_json::Value;

fn expectations() -> (String, Vec<Value>) {
    let path = root().join("tests/models/demo_expectations.json");
    let text = std::fs::read_to_string(&path).unwrap();
    (path.display().to_string(), serde_json::from_str(&text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_reaches_every_demo_model_while_they_evict_one_another() {
    let _alone = crate::HEAVY.lock().await;
    let (path, entries) = expectations();
    let server = Server::start(&["demo"], &[]).await;
    let url = server.data.clone();
    let printed = tokio::task::spawn_blocking(move || {
        python::client("boto3_demo.py", &[&url, "demo", &path])
    })
    .await
    .unwrap();
    assert_eq!(printed.trim(), format!("{} answers right", entries.len()));

    let loads = server.metric("roundhouse_residency_loads_total").await;
    let evictions = server.metric("roundhouse_residency_evictions_total").await;
    let targets: std::collections::BTreeSet<_> =
        entries.iter().map(|e| e["target"].as_str().unwrap()).collect();
    assert!(loads >= targets.len() as f64, "{loads} loads of {} targets", targets.len());
    assert!(evictions > 0.0, "nothing was evicted");
    let residency = server.admin_get("/admin/v1/residency").await.json();
    let device = &residency["devices"][0];
    let residents = device["residents"].as_array().unwrap();
    let revivals = server.metric("roundhouse_residency_revivals_total").await;
    // What came and did not leave is there, and the sum of its parts is what is charged.
    assert_eq!(residents.len() as f64, loads - evictions + revivals, "{residency}");
    let charged: u64 = residents
        .iter()
        .flat_map(|r| r["bytes"].as_object().unwrap().values())
        .map(|part| part.as_u64().unwrap())
        .sum();
    assert_eq!(device["charged_bytes"], charged);
    assert!(charged <= device["budget_bytes"].as_u64().unwrap());
    let fetched = server.metric("roundhouse_store_fetched_bytes_total").await;
    let once: u64 = residency["disk"]["artefacts"].as_u64().unwrap();
    assert!(fetched > 0.0 && once >= targets.len() as u64, "{fetched} bytes, {once} on disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_client_chats_streams_completes_and_embeds() {
    let (_, entries) = expectations();
    let chat = entries.iter().find(|e| e["messages"].is_array()).unwrap();
    let encoder = entries
        .iter()
        .filter_map(|e| e["target"].as_str())
        .find(|target| target.starts_with("search/"))
        .map_or("search/encoder", |target| target);
    let question = chat["messages"][0]["content"].as_str().unwrap();
    let wanted = chat["contains"][0].as_str().unwrap();
    let target = chat["target"].as_str().unwrap();
    let server = Server::start(&["demo"], &[]).await;
    let args: Vec<String> =
        [&server.data, target, question, wanted, encoder].iter().map(|s| s.to_string()).collect();
    tokio::task::spawn_blocking(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        python::client("openai_demo.py", &args)
    })
    .await
    .unwrap();
}
