//! Versions: a folder replaced under load, and what survives a kill.

use std::time::{Duration, Instant};

use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::proxy::Proxy;
use roundhouse_tests::s3::S3;
use roundhouse_tests::server::Server;
use serde_json::{Value, json};

fn label(answer: &Value) -> String {
    answer[0]["label"].as_str().unwrap_or_default().to_owned()
}

fn as_refs<'a>(env: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    env.iter().map(|(k, v)| (*k, v.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_replaced_slowly_is_never_served_as_a_mixture() {
    let s3 = S3::start().await;
    let old = signed_classifier("m", 1, 1000);
    let new = signed_classifier("m", 2, 1000);
    s3.put_folder("m", &old).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("roundhouse.toml");
    std::fs::write(
        &config,
        format!(
            "version = 1\n[cache]\ndir = \"{}\"\n[store]\ncatalogue_ttl = \"500ms\"\nsettle = \"1s\"\nupdate_settle = \"12s\"\n[residency]\nrefresh_every = \"1s\"\n[[endpoint]]\nname = \"default\"\n[[endpoint.mount]]\nuri = \"s3://models/\"\n",
            dir.path().join("cache").display()
        ),
    )
    .unwrap();
    let env = S3::env(s3.address());
    let server =
        Server::start(&["serve", "--config", config.to_str().unwrap()], &as_refs(&env)).await;

    let first = server.invoke("default", "m", json!({"inputs": "hello"})).await;
    assert_eq!(label(&first.json()), signature("m", 1), "{}", first.body);
    let began = Instant::now();
    let replacing = async {
        for (path, body) in &new {
            s3.put(&format!("m/{path}"), body.clone()).await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    };
    let asking = async {
        let (mut switched, mut versions) = (None, std::collections::BTreeSet::new());
        while began.elapsed() < Duration::from_secs(120) {
            let answer = server.invoke("default", "m", json!({"inputs": "hello"})).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            versions.insert(answer.header("x-roundhouse-version").to_owned());
            let said = label(&answer.json());
            if said == signature("m", 2) {
                switched.get_or_insert(began.elapsed());
                assert_eq!(versions.len(), 2);
                return versions;
            }
            assert_eq!(said, signature("m", 1), "a mixture was served");
            assert!(switched.is_none(), "the old version came back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the new version was never served; seen: {versions:?}");
    };
    let ((), _) = tokio::join!(replacing, asking);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_at_any_time_answers_rightly_after_a_restart_and_refetches_nothing() {
    let _alone = crate::HEAVY.lock().await;
    let s3 = S3::start().await;
    let names = ["a", "b", "c", "d"];
    for name in names {
        // About 5 MB each.
        s3.put_folder(name, &signed_classifier(name, 3, 20_000)).await;
    }
    let proxy = Proxy::start(s3.address(), Some(20_000_000)).await;
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().display().to_string();
    let env = S3::env(proxy.address());
    let args = ["serve", "--store", "s3://models/", "--cache-dir", &cache];
    for round in 0..10u64 {
        let mut server = Server::start(&args, &as_refs(&env)).await;
        let asked = async {
            for name in names {
                let answer = server.invoke("default", name, json!({"inputs": "hello"})).await;
                // Two kills within the loads of one version quarantine it.
                if answer.status == 200 || !answer.body.contains("quarantine") {
                    assert_eq!(label(&answer.json()), signature(name, 3), "{}", answer.body);
                }
            }
        };
        // From during the first listing to after the last load.
        let _ = tokio::time::timeout(Duration::from_millis(40 + round * 110), asked).await;
        server.kill();
    }
    let passed = proxy.passed();
    let server = Server::start(&args, &as_refs(&env)).await;
    for name in names {
        // What a quarantine asks of an operator.
        let url = format!("{}/admin/v1/load", server.admin);
        let body = json!({"endpoint": "default", "target": name, "force": true});
        assert_eq!(server.send(server.http().post(url).json(&body)).await.status, 200);
        let answer = server.invoke("default", name, json!({"inputs": "hello"})).await;
        assert_eq!(label(&answer.json()), signature(name, 3), "{}", answer.body);
        assert_eq!(answer.status, 200);
    }
    drop(server);
    let whole = proxy.passed();
    let server = Server::start(&args, &as_refs(&env)).await;
    for name in names {
        let answer = server.invoke("default", name, json!({"inputs": "hello"})).await;
        assert_eq!(answer.header("x-roundhouse-tier"), "disk", "{}", answer.body);
    }
    // Listings only: what is whole on disk is not downloaded again.
    assert_eq!(server.metric("roundhouse_store_fetched_bytes_total").await, 0.0);
    assert!(proxy.passed() - whole < 100_000, "{} bytes passed", proxy.passed() - whole);
    // Over all kills: each model once, and little more than the parts that were under way.
    let models = 4.0 * 5_200_000.0;
    assert!((passed as f64) < models * 3.0, "{passed} bytes for {models} of models");
}
