//! What artefacts ask for: `serving.properties`, the variables that say the same, and `[model]` of
//! their own `roundhouse.toml`.

use std::time::Duration;

use roundhouse_tests::models::{File, decoder};
use roundhouse_tests::server::Server;
use serde_json::{Value, json};

use super::{logging, place};

const PROPERTIES: &str = "engine=Python\noption.max_model_len=64\noption.tgi_compat=true\n\
    option.rolling_batch=auto\noption.speculative_config={}\noption.gpu_memory_utilization=0.9\n";

async fn ask(
    server: &Server,
    target: &str,
    prompt: &str,
    stream: bool,
) -> roundhouse_tests::server::Answer {
    let parameters = json!({"max_new_tokens": 4, "ignore_eos_token": true});
    let body = json!({"inputs": prompt, "parameters": parameters, "stream": stream});
    server.invoke("default", target, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_artefact_asks_for_is_honoured_or_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    place(&store.join("plain"), &decoder(12));
    place(&store.join("asks"), &decoder(12));
    std::fs::write(store.join("asks/serving.properties"), PROPERTIES).unwrap();
    let (uri, cache) = (format!("file://{}/", store.display()), folder.path().join("cache"));
    let log = folder.path().join("log");
    let args = ["serve", "--store", &uri, "--cache-dir", cache.to_str().unwrap()];
    let server = logging(&args, &[], &log).await;
    let plain = ask(&server, "plain", "hello", false).await;
    assert!(plain.json()["generated_text"].is_string(), "{}", plain.body);
    let asked = ask(&server, "asks", "hello", false).await;
    assert!(asked.json()[0]["generated_text"].is_string(), "{}", asked.body);
    let stream = ask(&server, "asks", "hello", true).await;
    assert!(stream.header("content-type").starts_with("text/event-stream"), "{:?}", stream.headers);
    let long = "x".repeat(100);
    assert_eq!(ask(&server, "plain", &long, false).await.status, 200);
    let refused = ask(&server, "asks", &long, false).await;
    assert_eq!(refused.status, 424, "{}", refused.body);
    let listed = server.get("/v1/models/asks").await.json();
    assert_eq!(listed["max_model_len"], 64, "{listed}");
    let told = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> =
        told.lines().filter(|line| line.contains("serving.properties")).collect();
    assert_eq!(lines.len(), 1, "{told}");
    let keys = "option.speculative_config, option.gpu_memory_utilization";
    assert!(lines[0].contains(keys), "{}", lines[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_preset_what_files_may_ask_for() {
    let root = tempfile::tempdir().unwrap();
    for name in ["own", "none"] {
        place(&root.path().join(name), &decoder(12));
    }
    std::fs::write(root.path().join("own/serving.properties"), "option.max_model_len=48\n")
        .unwrap();
    let models_root = root.path().display().to_string();
    let args = ["serve", "--container-models-root", &models_root, "--memory", "512MiB"];
    let env = [("SAGEMAKER_MULTI_MODEL", "true"), ("OPTION_MAX_MODEL_LEN", "32")];
    let server = Server::start(&args, &env).await;
    for (name, context) in [("own", 48), ("none", 32)] {
        let url = root.path().join(name).display().to_string();
        let loaded = server.post("/models", json!({"model_name": name, "url": url})).await;
        assert_eq!(loaded.status, 200, "{}", loaded.body);
        let residency = server.admin_get("/admin/v1/residency").await.json();
        let residents = residency["devices"][0]["residents"].as_array().unwrap();
        let found: Vec<&Value> = residents.iter().filter(|it| it["target"] == name).collect();
        assert_eq!(found[0]["serves"]["context"], context, "{residency}");
    }
}

/// A decoder without a head: its answer is a text's vector.
fn embedder() -> Vec<File> {
    let mut files = decoder(12);
    let (_, config) = files.iter_mut().find(|(path, _)| path == "config.json").unwrap();
    *config = String::from_utf8_lossy(config).replace("LlamaForCausalLM", "LlamaModel").into();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artefacts_own_settings_hold_within_the_operators() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let own = |name: &str, files: &[_], text: &str| {
        place(&store.join(name), files);
        std::fs::write(store.join(name).join("roundhouse.toml"), text).unwrap();
    };
    let settings =
        "[model]\ncontext = 64\ndtype = \"f32\"\nkv_cache_dtype = \"bf16\"\nidle_ttl = \"1s\"";
    own("asks", &decoder(12), settings);
    own("greedy", &decoder(12), "[model]\ncontext = 100000\nidle_ttl = \"10h\"");
    own("wrong", &decoder(12), "[model]\nidle_ttl = \"soon\"");
    own("mean", &embedder(), "");
    own("last", &embedder(), "[model]\npooling = \"lasttoken\"");
    let (uri, cache) = (format!("file://{}/", store.display()), folder.path().join("cache"));
    let args =
        ["serve", "--store", &uri, "--cache-dir", cache.to_str().unwrap(), "--context", "128"];
    let server = Server::start(&args, &[("ROUNDHOUSE_RESIDENCY_IDLE_TTL", "3s")]).await;
    for (name, context, long) in [("asks", 64, 424), ("greedy", 128, 200)] {
        assert_eq!(ask(&server, name, &"x".repeat(100), false).await.status, long, "{name}");
        let listed = server.get(&format!("/v1/models/{name}")).await.json();
        assert_eq!(listed["max_model_len"], context, "{listed}");
    }
    let refused = ask(&server, "wrong", "hello", false).await;
    assert!(refused.body.contains("roundhouse.toml: model.idle_ttl is 'soon'"), "{}", refused.body);
    let vector = async |name| {
        let answer = server.invoke("default", name, json!({"inputs": "hello there"})).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    };
    assert_ne!(vector("mean").await, vector("last").await);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let residency = server.admin_get("/admin/v1/residency").await;
        let resident = |name: &str| residency.body.contains(&format!("\"target\":\"{name}\""));
        if !resident("asks") && !resident("greedy") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}", residency.body);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
