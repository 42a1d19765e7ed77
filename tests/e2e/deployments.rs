//! What lies in `deploy/`, held against its platforms' schemas, against itself, and against the server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::python;
use roundhouse_tests::server::{Server, binary, root};
use serde_json::{Value, json};

use crate::demo::demo;

/// A check of `tests/clients` on a folder of `deploy/`.
async fn check(script: &'static str, mut args: Vec<PathBuf>, folder: &str) -> String {
    args.insert(0, root().join(folder));
    let run = move || {
        let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        python::deploy_client(script, &args)
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Runs `roundhouse` to its end and returns what it printed.
fn finished(args: &[&str], env: &[(&str, &Path)]) -> String {
    let output = Command::new(binary()).args(args).envs(env.iter().copied()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{args:?}: {printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deployment_on_kubernetes_is_valid_and_its_settings_are_the_servers() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, keys) = (folder.path().join("roundhouse.toml"), folder.path().join("keys.json"));
    let printed = check("check_kubernetes.py", vec![settings.clone()], "deploy/kubernetes").await;
    assert!(printed.contains("documents valid"), "{printed}");
    finished(&["keys", "create", "--tenant", "acme", "--keys", keys.to_str().unwrap()], &[]);
    // The machine of the test may have less memory than the pod.
    let env = [("ROUNDHOUSE_KEYS", &*keys), ("ROUNDHOUSE_MEMORY", Path::new("1GiB"))];
    let shown = finished(&["check-config", settings.to_str().unwrap()], &env);
    assert!(!shown.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_binary_is_made_of_is_listed_and_allowed() {
    let printed = check("check_supply.py", Vec::new(), "deploy/supply").await;
    assert!(printed.contains("ok"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_endpoint_on_sagemaker_finds_targets_by_custom_attributes() {
    let store = tempfile::tempdir().unwrap();
    let model = store.path().join("models/team/a");
    fs::create_dir_all(&model).unwrap();
    for (path, body) in signed_classifier("a", 1, 0) {
        fs::write(model.join(path), body).unwrap();
    }
    let printed = check("check_sagemaker.py", Vec::new(), "deploy/sagemaker").await;
    let told: Value = serde_json::from_str(&printed).unwrap();
    let mut env: Vec<(&str, &str)> =
        told.as_object().unwrap().iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())).collect();
    let uri = format!("file://{}/models/", store.path().display());
    let cache = store.path().join("cache").display().to_string();
    for (name, value) in &mut env {
        match *name {
            "ROUNDHOUSE_STORE" => *value = &uri,
            "ROUNDHOUSE_CACHE_DIR" => *value = &cache,
            _ => {}
        }
    }
    let server = Server::start(&["serve", "--memory", "64MiB"], &env).await;
    assert_eq!(server.get("/ping").await.status, 200);
    let ask = |attributes: Option<&'static str>| {
        let request = server.http().post(format!("{}/invocations", server.data));
        let request = request.json(&json!({"inputs": "hello"}));
        server.send(attributes.into_iter().fold(request, |request, text| {
            request.header("x-amzn-sagemaker-custom-attributes", text)
        }))
    };
    let answer = ask(Some("trace=1,target-model=team/a")).await;
    assert_eq!(answer.json()[0]["label"], signature("a", 1), "{}", answer.body);
    assert_eq!(ask(Some("trace=1")).await.status, 400);
    assert_eq!(ask(None).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dockerfile_is_sound_and_true_for_this_tree() {
    let printed = check("check_docker.py", Vec::new(), "").await;
    assert!(printed.contains("sound"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboard_and_alerts_name_metrics_that_a_server_has() {
    let _alone = crate::HEAVY.lock().await;
    let (folder, server) = demo(&[]).await;
    let text = || json!({"inputs": "When are you open?", "parameters": {"max_new_tokens": 8}});
    for target in ["support/base", "adapters/garnet", "search/encoder", "tickets/intent.tar.gz"] {
        let answer = server.invoke("demo", target, text()).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.body);
    }
    assert_eq!(server.invoke("demo", "support/missing", text()).await.status, 400);
    let metrics = folder.path().join("metrics.txt");
    fs::write(&metrics, server.admin_get("/metrics").await.body).unwrap();
    let printed = check("check_observability.py", vec![metrics], "deploy").await;
    assert!(printed.contains("alerts"), "{printed}");
}
