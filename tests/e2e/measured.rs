//! Long runs that print figures. Not part of the ordinary tests:
//! `ROUNDHOUSE_BINARY=target/release/roundhouse cargo test -p roundhouse-tests --test e2e -- \
//! --ignored --nocapture --test-threads 1 measured`

#![allow(clippy::print_stdout, reason = "the figures are what these are for")]

use std::time::{Duration, Instant};

use roundhouse_tests::models::{decoder, signed_classifier, tar_gz};
use roundhouse_tests::proxy::Proxy;
use roundhouse_tests::python;
use roundhouse_tests::s3::S3;
use roundhouse_tests::server::Server;
use serde_json::{Value, json};

fn as_refs<'a>(env: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    env.iter().map(|(k, v)| (*k, v.as_str())).collect()
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes"]
async fn a_load_of_ninety_seconds_is_refused_in_time_and_fetched_once() {
    let s3 = S3::start().await;
    let files = decoder(500);
    let size: u64 = files.iter().map(|(_, body)| body.len() as u64).sum();
    s3.put_folder("big", &files).await;
    s3.put_folder("small", &signed_classifier("small", 1, 0)).await;
    let proxy = Proxy::start(s3.address(), Some(size / 85)).await;
    let cache = tempfile::tempdir().unwrap();
    let env = S3::env(proxy.address());
    let args = ["serve", "--store", "s3://models/", "--cache-dir", cache.path().to_str().unwrap()];
    let server = Server::start(&args, &as_refs(&env)).await;
    let small = || server.invoke("default", "small", json!({"inputs": "hello"}));
    small().await;
    let mut alone = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        assert_eq!(small().await.status, 200);
        alone.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let began = Instant::now();
    let url = server.data.clone();
    let client = tokio::task::spawn_blocking(move || {
        let case = json!([{"target": "big", "body": "{\"inputs\": \"hello\"}", "raises": "ModelNotReadyException"}]);
        python::client("boto3_errors.py", &[&url, "default", &case.to_string()])
    });
    let mut beside = Vec::new();
    while !client.is_finished() {
        let began = Instant::now();
        assert_eq!(small().await.status, 200);
        beside.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.await.unwrap();
    let refused = began.elapsed();
    let answer = loop {
        let answer = server.invoke("default", "big", json!({"inputs": "hello"})).await;
        if answer.status != 429 {
            break answer;
        }
    };
    assert_eq!(answer.status, 200, "{}", answer.body);
    let fetched = server.metric("roundhouse_store_fetched_bytes_total").await;
    alone.sort();
    beside.sort();
    println!(
        "boto3 raised ModelNotReadyException after {refused:.1?}; answered after {:.1?}; {fetched} bytes fetched of {size} (+ the small model)",
        began.elapsed()
    );
    for (name, sorted) in [("alone", alone), ("beside the load", beside)] {
        println!(
            "a resident's latency {name}: p50 {:?}, p99 {:?}, max {:?} ({} requests)",
            quantile(&sorted, 0.5),
            quantile(&sorted, 0.99),
            quantile(&sorted, 1.0),
            sorted.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "fills the machine"]
async fn a_cold_load_of_half_a_gigabyte_by_stage() {
    let s3 = S3::start().await;
    s3.put_folder("big", &decoder(500)).await;
    let env = S3::env(s3.address());
    for round in 0..3 {
        let cache = tempfile::tempdir().unwrap();
        let args =
            ["serve", "--store", "s3://models/", "--cache-dir", cache.path().to_str().unwrap()];
        let server = Server::start(&args, &as_refs(&env)).await;
        let began = Instant::now();
        let body = json!({"prompt": "hello", "max_tokens": 1});
        let answer = server.invoke("default", "big", body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let first_token = began.elapsed();
        let mut stages = Vec::new();
        for stage in ["list", "fetch", "read", "warm"] {
            let label = format!("stage=\"{stage}\"");
            let took = server.metric_with("roundhouse_load_stage_seconds_sum", &label).await;
            stages.push(format!("{stage} {took:.3} s"));
        }
        println!("round {round}: {}; request to first token {first_token:.3?}", stages.join(", "));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "fills the machine"]
async fn two_thousand_pings_while_models_load_unpack_and_generate() {
    let store = tempfile::tempdir().unwrap();
    for (name, files) in [("big", decoder(120)), ("other", signed_classifier("other", 1, 60_000))] {
        std::fs::write(store.path().join(format!("{name}.tar.gz")), tar_gz(&files)).unwrap();
    }
    let cache = tempfile::tempdir().unwrap();
    let uri = format!("file://{}/", store.path().display());
    let args = ["serve", "--store", &uri, "--cache-dir", cache.path().to_str().unwrap()];
    let server = Server::start(&args, &[]).await;
    let (done, mut finished) = tokio::sync::oneshot::channel::<()>();
    let busy = async {
        let mut loads = 0;
        loop {
            let generate = json!({"inputs": "hello", "parameters": {"max_new_tokens": 40}});
            let (big, other) = tokio::join!(
                server.invoke("default", "big.tar.gz", generate),
                server.invoke("default", "other.tar.gz", json!({"inputs": "hello"})),
            );
            assert_eq!((big.status, other.status), (200, 200), "{} {}", big.body, other.body);
            loads += 2;
            for target in ["big.tar.gz", "other.tar.gz"] {
                let body = json!({"endpoint": "default", "target": target, "purge": true});
                let url = format!("{}/admin/v1/unload", server.admin);
                server.send(server.http().post(url).json(&body)).await;
            }
            if finished.try_recv().is_ok() {
                return loads;
            }
        }
    };
    let pinging = async {
        let mut took = Vec::new();
        for _ in 0..2000 {
            let began = Instant::now();
            assert_eq!(server.get("/ping").await.status, 200);
            took.push(began.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        took.sort();
        took
    };
    let (loads, took) = tokio::join!(busy, async {
        let took = pinging.await;
        let _ = done.send(());
        took
    });
    println!(
        "2000 pings beside {loads} loads with unpacking and generation: p50 {:?}, p99 {:?}, max {:?}",
        quantile(&took, 0.5),
        quantile(&took, 0.99),
        quantile(&took, 1.0)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a sixth of the machine's free memory"]
async fn memory_that_another_process_takes_lowers_the_budget_until_it_is_given_back() {
    let store = tempfile::tempdir().unwrap();
    let uri = format!("file://{}/", store.path().display());
    let cache = tempfile::tempdir().unwrap();
    let args = ["serve", "--store", &uri, "--cache-dir", cache.path().to_str().unwrap()];
    let server = Server::start(&args, &[]).await;
    let budget = |residency: &Value| residency["devices"][0]["budget_bytes"].as_u64().unwrap();
    let before = server.residency_once(|it| it["memory"].is_object()).await;
    let configured = before["devices"][0]["configured_bytes"].as_u64().unwrap();
    // Ours are not the server's: this is another process.
    let began = Instant::now();
    let taken = vec![1_u8; usize::try_from(configured / 6).unwrap()];
    let lower = server.residency_once(|it| budget(it) < configured / 100 * 95).await;
    println!(
        "{} MiB taken: the budget is {} MiB of {} MiB after {:.1?}",
        taken.len() >> 20,
        budget(&lower) >> 20,
        configured >> 20,
        began.elapsed()
    );
    drop(taken);
    let began = Instant::now();
    let after = server.residency_once(|it| budget(it) >= configured / 100 * 97).await;
    println!("given back: {} MiB after {:.1?}", budget(&after) >> 20, began.elapsed());
}
