//! Which handlers are started, and what is said of those that cannot be.

use std::process::Command;
use std::time::{Duration, Instant};

use roundhouse_tests::handlers::{Running, Stage, until};
use roundhouse_tests::server::{Server, binary};
use serde_json::Value;

use super::ECHO;

/// A load that fails: its answer, which must be quick.
async fn refused(server: &Running, target: &str) -> Value {
    let began = Instant::now();
    let headers = [("content-type", "application/json")];
    let answer = server.ask_with(target, r#"{"inputs": "x"}"#, &headers).await;
    assert_eq!(answer.status, 424, "{target}: {}", answer.text());
    assert_eq!(answer.header("x-amzn-errortype"), "ModelError");
    assert!(began.elapsed() < Duration::from_secs(30), "{target}: {:?}", began.elapsed());
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_are_off_until_they_are_asked_for() {
    let mut stage = Stage::new();
    stage.script("echo", ECHO).file("joblib/model.joblib", "x");
    let uri = stage.uri();
    let server = stage.start(&["--store", &uri]).await;
    for target in ["echo", "joblib"] {
        let said = refused(&server, target).await;
        let message = said["OriginalMessage"].as_str().unwrap();
        assert!(message.contains(target), "{message}");
        assert!(message.contains("handlers are off here"), "{message}");
        assert!(message.contains("--handlers"), "{message}");
    }
    assert!(server.processes().is_empty());
    // Nothing of theirs is on disk, not even the runtime.
    assert!(!server.cache().join("handlers").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_decides_for_itself_whether_it_serves_handlers() {
    let mut stage = Stage::new();
    stage.script("echo", ECHO);
    let config = stage.path().join("roundhouse.toml");
    for enabled in [false, true] {
        let endpoint = |name: &str, handlers: &str| {
            let uri = stage.uri();
            format!(
                "[[endpoint]]\nname = \"{name}\"\n{handlers}\n[[endpoint.mount]]\nuri = \"{uri}\"\n"
            )
        };
        let mut text = format!("version = 1\n[handlers]\nenabled = {enabled}\n");
        text += &endpoint("with", "handlers = true");
        text += &endpoint("without", "handlers = false");
        text += &endpoint("inherits", "");
        std::fs::write(&config, text).unwrap();
        let server = stage.start(&["--config", config.to_str().unwrap()]).await;
        for (name, serves) in [("with", true), ("without", false), ("inherits", enabled)] {
            let answer = server.invoke(name, "echo", serde_json::json!({"a": 1})).await;
            let expected = if serves { 200 } else { 424 };
            assert_eq!(answer.status, expected, "{enabled} {name}: {}", answer.body);
        }
        let serving = if enabled { 2 } else { 1 };
        assert_eq!(server.processes().len(), serving);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_handler_from_loading_is_said_with_its_cause() {
    let mut stage = Stage::new();
    let model = "def model_fn(model_dir):\n    return None\n";
    let transform = "def transform_fn(model, body, content_type, accept):\n    return body\n";
    stage
        .script("import", "import no_such_package_anywhere\n")
        .script("syntax", "def model_fn(model_dir)\n    return None\n")
        .script(
            "raises",
            &format!("{transform}def model_fn(model_dir):\n    raise OSError('weights are cut')\n"),
        )
        .script("no-model", transform)
        .script("no-predict", model)
        .script("both", &format!("{model}{transform}def predict_fn(data, model):\n    return 1\n"))
        .script(
            "exits",
            &format!("import os\n{transform}def model_fn(model_dir):\n    os._exit(7)\n"),
        )
        .script("settings", ECHO)
        .asks("settings", "memry = \"1GiB\"")
        .script("ok", ECHO);
    let server = stage.serve().await;
    let cases = [
        ("import", "ModuleNotFoundError: No module named 'no_such_package_anywhere'"),
        ("syntax", "line 1"),
        ("raises", "OSError: weights are cut (inference.py, line 4)"),
        ("no-model", "defines no model_fn"),
        ("no-predict", "defines no predict_fn"),
        ("both", "defines transform_fn together with predict_fn"),
        ("exits", "ended with exit status 7"),
        ("settings", "roundhouse.toml: line 2"),
    ];
    for (target, says) in cases {
        let said = refused(&server, target).await;
        let message = said["OriginalMessage"].as_str().unwrap();
        assert!(message.contains(says), "{target}: {message}");
        assert!(message.contains(target), "{target}: {message}");
        assert_eq!(said["OriginalStatusCode"], 400, "{said}");
    }
    // Nothing is left of them, and others load.
    assert!(server.processes().is_empty(), "{:?}", server.processes());
    assert_eq!(server.ask("ok", "x").await.text(), "x");
    let device = server.device().await;
    assert_eq!(device["reserved_bytes"], 0, "{device}");
    assert_eq!(device["residents"].as_array().unwrap().len(), 1, "{device}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_load_is_told_to_the_next_requests_without_another_process_each() {
    let mut stage = Stage::new();
    stage.script("broken", "raise RuntimeError('not today')\n");
    let server = stage.serve().await;
    for _ in 0..20 {
        let said = refused(&server, "broken").await;
        let message = said["OriginalMessage"].as_str().unwrap();
        assert!(message.contains("RuntimeError: not today"), "{message}");
    }
    // More than one where the pause of the first attempt was over; twenty without any.
    let started = server.started().await;
    assert!((1..=8).contains(&started), "{started} processes");
    let page = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(page["failed"][0]["target"], "broken", "{page}");
    assert!(server.explain("broken").await.contains("not today"));
    // A repaired version is taken without a restart or a wait for the pause.
    stage.script("broken", ECHO);
    let answer = server.admin_post("refresh", "default", "broken").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    until("the repaired version serves", Duration::from_secs(60), async || {
        server.ask("broken", "x").await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_may_be_named_relative_to_where_the_server_starts() {
    let mut stage = Stage::new();
    stage.script("echo", ECHO).file("echo/code/requirements.txt", "# nothing\n");
    let uri = stage.uri();
    let mut command = Command::new(binary());
    command.current_dir(stage.path());
    command.args(["serve", "--store", &uri, "--handlers", "--cache-dir", "relative"]);
    command.args(["--memory", "1GiB", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let server = Server::spawn(command, &[("ROUNDHOUSE_STORE_SETTLE", "0s")]).await;
    let answer = server.invoke("default", "echo", serde_json::json!({"a": 1})).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "{\"a\":1}"));
}
