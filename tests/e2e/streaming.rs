//! Models that are loaded while they are still coming from the store.

use std::path::Path;

use roundhouse_tests::models::decoder;
use roundhouse_tests::proxy::{Mode, Proxy};
use roundhouse_tests::s3::S3;
use roundhouse_tests::server::{Answer, Server};
use serde_json::{Value, json};

/// In decimal; at the pace of the proxy some seconds.
const MEGABYTES: usize = 40;
const PACE: u64 = 5_000_000;

async fn serve(proxy: &Proxy, cache: &Path, extra: &[&str]) -> Server {
    let env = S3::env(proxy.address());
    let mut env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
    // All of these models have the same content.
    env.push(("ROUNDHOUSE_MEMORY_SHARE_TENSORS", "off"));
    let mut args = vec!["serve", "--store", "s3://models/", "--cache-dir", cache.to_str().unwrap()];
    args.extend(extra);
    Server::start(&args, &env).await
}

async fn ask(server: &Server, target: &str) -> Answer {
    let parameters = json!({"max_new_tokens": 6, "details": true, "do_sample": false});
    let body = json!({"inputs": "hello world", "parameters": parameters});
    server.invoke("default", target, body).await
}

/// What was decided of a target, oldest first.
async fn decisions(server: &Server, target: &str) -> Vec<Value> {
    let path = format!("/admin/v1/explain?target={target}");
    let explained = server.admin_get(&path).await.json();
    explained["decisions"].as_array().unwrap().clone()
}

fn place(decisions: &[Value], action: &str) -> usize {
    let found = decisions.iter().position(|decision| decision["action"] == action);
    found.unwrap_or_else(|| panic!("'{action}' is not among {decisions:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_model_is_read_while_it_is_fetched_and_answers_as_from_disk() {
    let _alone = crate::HEAVY.lock().await;
    let s3 = S3::start().await;
    s3.put_folder("cold", &decoder(MEGABYTES)).await;
    let proxy = Proxy::start(s3.address(), Some(PACE)).await;
    let dir = tempfile::tempdir().unwrap();
    let server = serve(&proxy, dir.path(), &[]).await;
    let first = ask(&server, "cold").await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(first.header("x-roundhouse-tier"), "store");
    let decided = decisions(&server, "cold").await;
    let loading = place(&decided, "loading");
    assert_eq!(decided[loading]["from"], "arriving");
    assert!(loading < place(&decided, "fetched"), "it was read meanwhile: {decided:?}");
    assert!(place(&decided, "fetched") < place(&decided, "ready"));

    // The same from what it left on disk.
    assert_eq!(server.admin_post("unload", "default", "cold").await.status, 200);
    let passed = proxy.passed();
    let second = ask(&server, "cold").await;
    assert_eq!(second.header("x-roundhouse-tier"), "disk");
    assert_eq!(second.json()["details"]["tokens"], first.json()["details"]["tokens"]);
    assert!(proxy.passed() - passed < 1_000_000, "nothing came a second time");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_another_must_leave_it_serves_until_the_files_are_whole() {
    let _alone = crate::HEAVY.lock().await;
    let s3 = S3::start().await;
    for target in ["old", "new"] {
        s3.put_folder(target, &decoder(MEGABYTES)).await;
    }
    let proxy = Proxy::start(s3.address(), None).await;
    let dir = tempfile::tempdir().unwrap();
    // Room for one.
    let server = serve(&proxy, dir.path(), &["--memory", "150MiB"]).await;
    assert_eq!(ask(&server, "old").await.status, 200);
    let answer = ask(&server, "new").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let decided = decisions(&server, "new").await;
    let loading = place(&decided, "loading");
    assert_eq!(decided[loading]["from"], "files");
    assert!(place(&decided, "fetched") < loading);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_midway_is_told_and_the_next_request_goes_on_from_there() {
    let _alone = crate::HEAVY.lock().await;
    let s3 = S3::start().await;
    s3.put_folder("cold", &decoder(MEGABYTES)).await;
    let proxy = Proxy::start(s3.address(), Some(PACE)).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("roundhouse.toml");
    let text = format!(
        "version = 1\n[cache]\ndir = \"{}\"\n[store]\nstall_timeout = \"10s\"\nmax_retries = 1\n\
         part_size = \"1MiB\"\n[[endpoint]]\nname = \"default\"\n[[endpoint.mount]]\nuri = \"s3://models/\"\n",
        dir.path().join("cache").display()
    );
    std::fs::write(&config, text).unwrap();
    let env = S3::env(proxy.address());
    let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let server = Server::start(&["serve", "--config", config.to_str().unwrap()], &env).await;
    let breaks = async {
        server
            .residency_once(|shown| shown["loads"][0]["fetched_bytes"].as_u64() > Some(10_000_000))
            .await;
        proxy.set(Mode::Gone);
    };
    let (failed, ()) = tokio::join!(ask(&server, "cold"), breaks);
    assert_eq!(failed.status, 530, "{}", failed.body);
    let decided = decisions(&server, "cold").await;
    let told: Vec<_> = decided.iter().filter(|it| it["action"] == "failed").collect();
    assert_eq!(told.len(), 1, "{decided:?}");
    let device = server.admin_get("/admin/v1/residency").await.json()["devices"][0].clone();
    assert_eq!((&device["charged_bytes"], &device["reserved_bytes"]), (&json!(0), &json!(0)));

    proxy.set(Mode::Pass);
    let (before, whole) = (proxy.passed(), MEGABYTES as u64 * 1_000_000);
    let answer = loop {
        let answer = ask(&server, "cold").await;
        if answer.status != 530 {
            break answer;
        }
        // A failure of the store is paused for a second.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(proxy.passed() - before < whole * 9 / 10, "what had come was not fetched again");
}
