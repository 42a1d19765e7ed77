//! How keys and values are kept, through the real binary: what the plan says, what is charged and told,
//! and that answers stay what they are.

use std::path::Path;
use std::process::Command;

use roundhouse_tests::models::decoder;
use roundhouse_tests::server::{Server, binary};
use serde_json::{Value, json};

const SETTING: &str = "ROUNDHOUSE_SERVING_KV_CACHE_DTYPE";

fn planned(target: &Path, dtype: &str) -> Value {
    let mut command = Command::new(binary());
    command.arg("plan").arg(target).arg("--json").env(SETTING, dtype);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["targets"][0].clone()
}

/// The tokens that a target generates, each with its probability.
async fn generated(server: &Server, target: &str) -> Vec<Value> {
    let parameters = json!({"max_new_tokens": 8, "details": true, "do_sample": false});
    let body = json!({"inputs": "hello world, and so on and on", "parameters": parameters});
    let answer = server.invoke("default", target, body).await;
    assert_eq!(answer.status, 200, "{target}: {}", answer.body);
    answer.json()["details"]["tokens"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_values_take_half_where_the_operator_or_the_artefact_says_so() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (target, asks) in [("plain", None), ("exact", Some("fp32")), ("auto", Some("auto"))] {
        let folder = store.path().join(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (path, body) in decoder(8) {
            std::fs::write(folder.join(path), body).unwrap();
        }
        if let Some(dtype) = asks {
            let text = format!("option.kv_cache_dtype={dtype}\n");
            std::fs::write(folder.join("serving.properties"), text).unwrap();
        }
    }
    let of = |target: &str, dtype: &str| planned(&store.path().join(target), dtype);
    let token = |plan: &Value| plan["kv_token_bytes"].as_u64().unwrap();
    let wide = of("plain", "auto");
    assert_eq!(wide["kv_dtype"], "f32", "its weights are");
    let half = of("plain", "bf16");
    assert_eq!((half["kv_dtype"].as_str(), 2 * token(&half)), (Some("bf16"), token(&wide)));

    let uri = format!("file://{}/", store.path().display());
    let args = ["serve", "--store", &uri, "--cache-dir", cache.path().to_str().unwrap()];
    let server = Server::start(&args, &[(SETTING, "f16")]).await;
    let mut answers = Vec::new();
    for (target, dtype) in [("plain", "f16"), ("exact", "f32"), ("auto", "f32")] {
        answers.push(generated(&server, target).await);
        let told = server.get(&format!("/v1/models/{target}")).await.json();
        assert_eq!(told["kv"]["dtype"], dtype, "{told}");
        let plan = of(target, "f16");
        assert_eq!(plan["kv_dtype"], dtype, "{target}");
        let residency = server.admin_get("/admin/v1/residency").await.json();
        let mut residents = residency["devices"][0]["residents"].as_array().unwrap().iter();
        let resident = residents.find(|it| it["target"] == target).unwrap();
        assert_eq!(resident["bytes"]["kv"], plan["bytes"]["kv"], "{target}");
        assert_eq!(resident["serves"]["kv"]["token_bytes"], plan["kv_token_bytes"]);
    }
    // The three have the same weights.
    assert_eq!(answers[1], answers[2]);
    let first = |answer: &[Value]| answer[0]["logprob"].as_f64().unwrap();
    let apart = (first(&answers[0]) - first(&answers[1])).abs();
    assert!(apart < 0.01, "{apart}");
}

#[test]
fn a_type_that_nobody_knows_is_refused_by_its_key() {
    let mut command = Command::new(binary());
    command.args(["plan", "/nowhere", "--json"]).env(SETTING, "fp8");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("kv_cache_dtype") && said.contains("auto, f32, f16 and bf16"), "{said}");
}
