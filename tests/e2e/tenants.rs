//! What tenants are promised and may take, seen from outside.

use std::path::Path;
use std::time::{Duration, Instant};

use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::server::Server;
use serde_json::{Value, json};

fn put(store: &Path, target: &str, version: u32) {
    let folder = store.join(target);
    std::fs::create_dir_all(&folder).unwrap();
    for (path, body) in signed_classifier(target, version, 2_000) {
        std::fs::write(folder.join(path), body).unwrap();
    }
}

/// A server over the store, with these keys at the top of its file and in its endpoint.
async fn start(dir: &Path, top: &str, endpoint: &str) -> Server {
    let path = |name: &str| dir.join(name).display().to_string();
    let text = format!(
        "version = 1\n{top}\n[cache]\ndir = \"{}\"\n[store]\nsettle = \"100ms\"\n\
         [[endpoint]]\nname = \"default\"\n{endpoint}\n[[endpoint.mount]]\nuri = \"file://{}/\"\n",
        path("cache"),
        path("store")
    );
    std::fs::write(path("roundhouse.toml"), text).unwrap();
    Server::start(&["serve", "--config", &path("roundhouse.toml")], &[]).await
}

async fn ask(server: &Server, target: &str, version: u32) -> String {
    let answer = server.invoke("default", target, json!({"inputs": "hello"})).await;
    assert_eq!(answer.status, 200, "{target}: {}", answer.body);
    assert_eq!(answer.json()[0]["label"], signature(target, version));
    answer.header("x-roundhouse-tier").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floor_holds_against_a_scan_and_a_ceiling_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let scan: Vec<String> = (0..6).map(|index| format!("scan/m{index}")).collect();
    for (version, target) in ["calm/a", "calm/b", "small/m"].into_iter().enumerate() {
        put(&store, target, u32::try_from(version).unwrap());
    }
    for target in &scan {
        put(&store, target, 9);
    }
    let memory = "[memory]\nshare_tensors = \"off\"\nbudget = ";
    let probe = start(dir.path(), &format!("{memory}\"1GiB\""), "").await;
    ask(&probe, "calm/a", 0).await;
    let one = charged(&probe.admin_get("/admin/v1/residency").await.json());
    drop(probe);

    let (budget, floor, ceiling) = (one * 7 / 2, one * 9 / 4, one / 2);
    let top = format!(
        "{memory}{budget}\n[[tenant]]\nname = \"calm\"\nfloor = {floor}\n\
         [[tenant]]\nname = \"small\"\nceiling = {ceiling}"
    );
    let server = start(dir.path(), &top, "preload = [\"calm/a\", \"calm/b\"]").await;
    let preloaded = Instant::now() + Duration::from_secs(60);
    while charged(&server.admin_get("/admin/v1/residency").await.json()) < 2 * one * 9 / 10 {
        assert!(Instant::now() < preloaded, "the preload list is loaded by itself");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..2 {
        for target in &scan {
            ask(&server, target, 9).await;
        }
    }
    for (version, target) in ["calm/a", "calm/b"].into_iter().enumerate() {
        let tier = ask(&server, target, u32::try_from(version).unwrap()).await;
        assert_eq!(tier, "device", "{target} did not leave for the scan");
    }
    let refused = server.invoke("default", "small/m", json!({"inputs": "hello"})).await;
    assert_eq!(refused.status, 424, "{}", refused.body);
    assert_eq!(refused.json()["OriginalStatusCode"], 507);
    assert!(refused.body.contains("tenant 'small' may take"), "{}", refused.body);
}

fn charged(residency: &Value) -> u64 {
    residency["devices"][0]["charged_bytes"].as_u64().unwrap()
}
