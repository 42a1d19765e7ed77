//! More models than fit and more clients than models.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use roundhouse_tests::models::{decoder, signature, signed_classifier};
use roundhouse_tests::proxy::Proxy;
use roundhouse_tests::s3::S3;
use roundhouse_tests::server::Server;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_clients_over_ten_models_and_room_for_three_all_get_right_answers() {
    let _alone = crate::HEAVY.lock().await;
    let store = tempfile::tempdir().unwrap();
    for index in 0..10 {
        let folder = store.path().join(format!("m{index}"));
        std::fs::create_dir(&folder).unwrap();
        for (path, body) in signed_classifier(&format!("m{index}"), index, 8_000) {
            std::fs::write(folder.join(path), body).unwrap();
        }
    }
    let cache = store.path().join("cache-dir");
    let uri = format!("file://{}/", store.path().display());
    let probe =
        Server::start(&["serve", "--store", &uri, "--cache-dir", cache.to_str().unwrap()], &[])
            .await;
    probe.invoke("default", "m0", json!({"inputs": "hello"})).await;
    let one = probe.admin_get("/admin/v1/residency").await.json()["devices"][0]["charged_bytes"]
        .as_u64()
        .unwrap();
    drop(probe);
    let budget = (one * 7 / 2).to_string();
    let server = Server::start(
        &["serve", "--store", &uri, "--cache-dir", cache.to_str().unwrap(), "--memory", &budget],
        &[],
    )
    .await;
    let server = Arc::new(server);
    let (answers, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut clients = Vec::new();
    let (until, at_last) = (Instant::now() + Duration::from_secs(12), Duration::from_secs(120));
    for client in 0..64u32 {
        let (server, answers, done) = (server.clone(), answers.clone(), done.clone());
        clients.push(tokio::spawn(async move {
            let mut turn = client;
            while !done.load(Ordering::Relaxed) {
                turn = turn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let index = (turn >> 16) % 10;
                let target = format!("m{index}");
                let began = Instant::now();
                let answer = server.invoke("default", &target, json!({"inputs": "one two"})).await;
                assert_eq!(answer.status, 200, "{}", answer.body);
                assert_eq!(answer.json()[0]["label"], signature(&target, index));
                assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
                answers.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let (watched, seen, over) = (server.clone(), answers.clone(), done.clone());
    let watching = tokio::spawn(async move {
        let mut samples = 0;
        loop {
            let residency = watched.admin_get("/admin/v1/residency").await.json();
            let device = &residency["devices"][0];
            let bytes = |key: &str| device[key].as_u64().unwrap();
            assert!(bytes("charged_bytes") + bytes("reserved_bytes") <= bytes("budget_bytes"));
            samples += 1;
            // Longer where the machine does much else.
            let enough = samples > 50
                && seen.load(Ordering::Relaxed) > 500
                && watched.metric("roundhouse_residency_evictions_total").await >= 30.0;
            if Instant::now() >= until && (enough || until.elapsed() > at_last) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        over.store(true, Ordering::Relaxed);
        samples
    });
    assert!(watching.await.unwrap() > 50);
    for client in clients {
        client.await.unwrap();
    }
    let evictions = server.metric("roundhouse_residency_evictions_total").await;
    assert!(evictions >= 30.0, "{evictions} evictions");
    assert!(answers.load(Ordering::Relaxed) > 500, "{answers:?} answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_load_says_not_ready_goes_on_and_fetches_nothing_twice() {
    let _alone = crate::HEAVY.lock().await;
    let s3 = S3::start().await;
    let files = decoder(40);
    let size: u64 = files.iter().map(|(_, body)| body.len() as u64).sum();
    s3.put_folder("big", &files).await;
    s3.put_folder("small", &signed_classifier("small", 5, 0)).await;
    // 40 MB at 2 MB/s: twenty seconds, with requests that hold for two.
    let proxy = Proxy::start(s3.address(), Some(2_000_000)).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("roundhouse.toml");
    let text = format!(
        "version = 1\n[cache]\ndir = \"{}\"\n[serving]\nhold = \"2s\"\n[store]\nsettle = \"0s\"\n[[endpoint]]\nname = \"default\"\n[[endpoint.mount]]\nuri = \"s3://models/\"\n",
        dir.path().join("cache").display()
    );
    std::fs::write(&config, text).unwrap();
    let env = S3::env(proxy.address());
    let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let server = Server::start(&["serve", "--config", config.to_str().unwrap()], &env).await;
    server.invoke("default", "small", json!({"inputs": "hello"})).await;

    let body = json!({"inputs": "hello", "parameters": {"max_new_tokens": 4}});
    let mut refusals = 0;
    let began = Instant::now();
    loop {
        let asked = Instant::now();
        let answer = server.invoke("default", "big", body.clone()).await;
        if answer.status == 200 {
            assert!(answer.json()["generated_text"].is_string(), "{}", answer.body);
            break;
        }
        assert_eq!(answer.status, 429, "{}", answer.body);
        assert_eq!(answer.header("x-amzn-errortype"), "ModelNotReadyException");
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        // Others are served meanwhile.
        let small = server.invoke("default", "small", json!({"inputs": "hello"})).await;
        assert_eq!(small.header("x-roundhouse-tier"), "device", "{}", small.body);
        refusals += 1;
        assert!(began.elapsed() < Duration::from_secs(120), "it never came");
    }
    assert!(refusals >= 2, "{refusals} refusals");
    let fetched = server.metric("roundhouse_store_fetched_bytes_total").await;
    assert!(fetched < size as f64 * 1.01 + 300_000.0, "{fetched} bytes fetched of {size}");
}
