//! The binary as people and scripts meet it: exit codes, what is printed where, and what it
//! asks of a server.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

/// Runs the binary with no environment of ours, feeding it `input`.
async fn roundhouse_with(arguments: &[&str], input: &str) -> Output {
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_roundhouse"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may end without reading.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    child.wait_with_output().await.unwrap()
}

async fn roundhouse(arguments: &[&str]) -> Output {
    roundhouse_with(arguments, "").await
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Serves routes on loopback until the test ends.
async fn serve(routes: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

#[tokio::test]
async fn a_wrong_command_line_is_2_and_a_failure_is_1() {
    assert_eq!(roundhouse(&[]).await.status.code(), Some(2));
    assert_eq!(roundhouse(&["fly"]).await.status.code(), Some(2));
    assert_eq!(roundhouse(&["load", "../a"]).await.status.code(), Some(2));
    assert_eq!(roundhouse(&["load", "a", "--url", "ftp://x"]).await.status.code(), Some(2));
    assert_eq!(roundhouse(&["check-config", "/nonexistent"]).await.status.code(), Some(1));
    assert_eq!(roundhouse(&["--help"]).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_missing_server_is_named_with_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let output = roundhouse(&["models", "--url", &format!("http://{free}")]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = err(&output);
    assert!(text.starts_with(&format!("error: no server answers at http://{free}")), "{text}");
    assert!(text.contains("hint: start one with `roundhouse serve`"), "{text}");
}

#[tokio::test]
async fn check_config_tells_every_fault_and_is_quiet_about_none() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bad = write("bad.toml", "version = 1\n[cache]\nsise = 1\n[listen]\ndata = \"0.0.0.0:1\"\n");
    let output = roundhouse(&["check-config", &bad]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = err(&output);
    for key in ["error: cache.sise: ", "error: listen.data: "] {
        assert!(text.contains(key), "{text}");
    }
    let output = roundhouse(&["check-config", &bad, "--json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_str(&out(&output)).unwrap();
    // The third is that it names no store.
    assert_eq!(answer["faults"].as_array().unwrap().len(), 3);

    // What the file asks of the machine, and that it names no store, beside each other.
    let greedy = write(
        "greedy.toml",
        "version = 1\n[memory]\nbudget = \"1048576GiB\"\n[log]\nlevel = \"loud\"\n[cache]\nsise = 1\n",
    );
    let text = err(&roundhouse(&["check-config", &greedy]).await);
    for fault in [
        "error: log.level: 'loud' is not a level",
        "error: cache.sise: is not a key",
        "error: endpoint: no store",
        "error: memory.budget: 1024.0 TiB on cpu is more than the",
    ] {
        assert!(text.contains(fault), "'{fault}' is not in {text}");
    }
    let shared = write(
        "shared.toml",
        "version = 1\n[[endpoint]]\nname = \"a\"\n[[endpoint.mount]]\nuri = \"s3://b/c/\"\n\
         [[tenant]]\nname = \"t\"\nfloor = 2000000\nceiling = \"1GiB\"\n\
         [[device]]\nid = \"cpu\"\n[[device]]\nid = \"simulated:0\"\nbudget = 10485760\n",
    );
    let output = roundhouse(&["check-config", &shared]).await;
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    for line in [
        "  memory on cpu: automatic, here about ",
        "  memory on simulated:0: 10.0 MiB\n",
        "  memory for copies: automatic, here about ",
        "  tenant t: floor 1.9 MiB, ceiling 1.0 GiB, share 1, may invoke t/**\n",
    ] {
        assert!(text.contains(line), "'{line}' is not in {text}");
    }
    let bare = write("bare.toml", "version = 1\n[[tenant]]\nname = \"t\"\nfloor = 24\n");
    let text = err(&roundhouse(&["check-config", &bare]).await);
    assert!(text.contains("tenant[0].floor: 24 is as many bytes: write a unit"), "{text}");

    let good = write(
        "good.toml",
        "version = 1\n[[endpoint]]\nname = \"a\"\n[[endpoint.mount]]\nuri = \"s3://b/c/\"\n",
    );
    let output = roundhouse(&["check-config", &good]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).starts_with("ok\n") && out(&output).contains("s3://b/c/"));
}

#[tokio::test]
async fn serve_without_a_store_says_what_is_missing() {
    let output = roundhouse(&["serve"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("endpoint: no store"), "{}", err(&output));
    assert!(out(&output).is_empty());
}

#[tokio::test]
async fn models_are_listed_over_all_pages() {
    let page = |Query(query): Query<Vec<(String, String)>>| async move {
        let after = query.iter().any(|(name, _)| name == "after");
        let (target, next) = if after { ("b", Value::Null) } else { ("a", "a".into()) };
        Json(json!({"models": [
            {"endpoint": "e", "target": target, "bytes": 5, "archive": false, "state": null}
        ], "next": next}))
    };
    let url = serve(Router::new().route("/admin/v1/models", get(page))).await;
    let output = roundhouse(&["models", "--url", &url]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let lines: Vec<String> = out(&output).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[1].contains(" a ") && lines[2].contains(" b "), "{lines:?}");
    let output = roundhouse(&["models", "--url", &url, "--json"]).await;
    let answer: Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!(answer["models"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_load_asks_for_the_model_and_a_refusal_is_told_with_a_hint() {
    let asked = Arc::new(Mutex::new(Vec::<Value>::new()));
    let seen = asked.clone();
    let load = move |Json(body): Json<Value>| async move {
        seen.lock().unwrap().push(body.clone());
        if body["target"] == "gone" {
            let error = json!({"error": {"kind": "model_not_found", "message": "no gone here"}});
            return (StatusCode::NOT_FOUND, Json(error));
        }
        let answer = json!({"endpoint": "e", "target": "m", "state": "ready", "version": "00"});
        (StatusCode::OK, Json(answer))
    };
    let url = serve(Router::new().route("/admin/v1/load", post(load))).await;
    let output = roundhouse(&["load", "e:m/", "--force", "--url", &url]).await;
    assert_eq!(out(&output), "e:m ready, version 00\n", "{}", err(&output));
    let output = roundhouse(&["load", "gone", "--url", &url]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = err(&output);
    assert!(text.contains("the server answered 404 (model_not_found): no gone here"), "{text}");
    assert!(text.contains("`roundhouse models` lists"), "{text}");
    let asked = asked.lock().unwrap();
    assert_eq!(asked[0], json!({"endpoint": "e", "target": "m", "force": true}));
    assert_eq!(asked[1], json!({"target": "gone"}));
}

#[tokio::test]
async fn an_invocation_sends_the_body_and_prints_the_answer() {
    let echo = |headers: HeaderMap, request: Request| async move {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let target = headers["x-amzn-sagemaker-target-model"].to_str().unwrap();
        let kind = headers["content-type"].to_str().unwrap();
        format!("{target} {kind} {}", String::from_utf8_lossy(&body))
    };
    let answer = |Json(body): Json<Value>| async move {
        assert_eq!(body, json!({"inputs": "hi", "parameters": {"max_new_tokens": 2}}));
        Json(json!([{"generated_text": "hello"}]))
    };
    let routes = Router::new()
        .route("/invocations", post(echo))
        .route("/endpoints/e/invocations", post(answer));
    let url = serve(routes).await;
    let output = roundhouse_with(&["invoke", "m", "--url", &url], "{}").await;
    assert_eq!(out(&output), "m application/json {}\n", "{}", err(&output));
    let output =
        roundhouse(&["invoke", "e:m", "--prompt", "hi", "--max-tokens", "2", "--url", &url]).await;
    assert_eq!(out(&output), "hello\n", "{}", err(&output));
}

#[tokio::test]
async fn a_stream_is_printed_as_text_and_its_error_is_an_error() {
    let stream = |Json(body): Json<Value>| async move {
        assert_eq!(body["stream"], true);
        "data: {\"token\":{\"text\":\"a\"}}\n\ndata: {\"token\":{\"text\":\"b\"}}\n\n\
         data: {\"error\":{\"message\":\"it broke\"}}\n\n"
    };
    let url = serve(Router::new().route("/invocations", post(stream))).await;
    let output = roundhouse(&["invoke", "m", "--prompt", "x", "--stream", "--url", &url]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(out(&output), "ab");
    assert!(err(&output).contains("it broke"), "{}", err(&output));
}

#[tokio::test]
async fn an_answer_without_a_text_is_printed_as_it_was_sent() {
    let answer = || async { "[[0.5,0.25]]" };
    let url = serve(Router::new().route("/invocations", post(answer))).await;
    for streams in [&["--stream"][..], &[]] {
        let asked = ["invoke", "m", "--prompt", "x", "--url", &url];
        let output = roundhouse(&[&asked[..], streams].concat()).await;
        assert_eq!(out(&output), "[[0.5,0.25]]\n", "{streams:?}: {}", err(&output));
    }
}

#[tokio::test]
async fn whoever_answers_instead_of_our_server_is_told_as_such() {
    let page = || async { (StatusCode::NOT_IMPLEMENTED, "<!DOCTYPE HTML>\n<html>no</html>") };
    let url = serve(Router::new().route("/admin/v1/load", post(page))).await;
    let text = err(&roundhouse(&["load", "m", "--url", &url]).await);
    assert!(text.contains("501: a page for browsers\nhint: check --url"), "{text}");
    let encrypted = url.replace("http:", "https:");
    let output = roundhouse(&["models", "--url", &encrypted]).await;
    let text = err(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("asked by http://") && !text.contains("start one with"), "{text}");
    let output = roundhouse(&["models", "--url", &url, "--admin-key", "a\nb"]).await;
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(err(&output).contains("a line break or"), "{}", err(&output));
}

#[tokio::test]
async fn endpoints_that_cannot_be_listed_fail_the_list_behind_the_others() {
    let page = || async {
        Json(json!({
            "models": [{"endpoint": "e", "target": "a", "bytes": 5, "state": null}],
            "failed": [{"endpoint": "gone", "kind": "store_unavailable", "message": "no folder"}],
            "next": null,
        }))
    };
    let url = serve(Router::new().route("/admin/v1/models", get(page))).await;
    for json in [&["--json"][..], &[]] {
        let output = roundhouse(&[&["models", "--url", &url][..], json].concat()).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(
            err(&output).contains("1 endpoint not listed: gone: no folder"),
            "{}",
            err(&output)
        );
        let is_one = serde_json::from_str::<Value>(&out(&output)).is_ok();
        assert_eq!(is_one, !json.is_empty(), "{}", out(&output));
        assert!(out(&output).contains('a'));
    }
}

#[tokio::test]
async fn what_is_no_target_and_no_ledger_is_told_with_where_to_look() {
    let folder = tempfile::tempdir().unwrap();
    let uri = format!("file://{}", folder.path().display());
    let text = err(&roundhouse(&["plan", &format!("{uri}/m")]).await);
    assert!(text.contains(&format!("`roundhouse survey {uri}/`")), "{text}");
    for wrong in ["s3://", "http://x/y"] {
        let text = err(&roundhouse(&["plan", wrong]).await);
        assert!(text.contains("expected") && !text.contains("the network"), "{text}");
    }
    assert_eq!(roundhouse(&["plan", ""]).await.status.code(), Some(2));
    let file = folder.path().join("notes.txt");
    std::fs::write(&file, "one\ntwo\n").unwrap();
    let output = roundhouse(&["usage", "--file", file.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("none of its 2 lines is of one"), "{}", err(&output));
}

#[tokio::test]
async fn a_survey_of_a_folder_tells_kinds_and_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("odd");
    std::fs::create_dir(&odd).unwrap();
    std::fs::write(odd.join("config.json"), r#"{"threshold":1}"#).unwrap();
    std::fs::write(folder.path().join("packed.tar.gz"), b"never looked into").unwrap();
    let uri = format!("file://{}", folder.path().display());
    let output = roundhouse(&["survey", &uri, "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let answer: Value = serde_json::from_str(&out(&output)).unwrap();
    let verdict = |target: &str| {
        let all = answer["targets"].as_array().unwrap();
        all.iter().find(|it| it["target"] == target).unwrap()["verdict"].clone()
    };
    assert_eq!(verdict("odd"), "does_not_run");
    assert_eq!(verdict("packed.tar.gz"), "unknown_until_fetched");
    let output = roundhouse(&["survey", &uri]).await;
    assert!(out(&output).contains("will not run: not a model"), "{}", out(&output));
    assert!(out(&output).contains("2 targets, 1 unknown until fetched, 1 will not run"));
}

#[tokio::test]
async fn doctor_finds_what_is_wrong_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let cache = cache.to_str().unwrap();
    let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let missing = format!("file://{}/missing", folder.path().display());
    let common = ["doctor", "--cache-dir", cache, "--store", missing.as_str()];
    let output = roundhouse(&[&common[..], &ports].concat()).await;
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let text = out(&output);
    assert!(text.contains("BAD  store file://"), "{text}");
    assert!(text.contains("ok   memory"), "{text}");
    assert!(text.contains("->"), "{text}");
    assert!(err(&output).contains("1 problem found"), "{}", err(&output));
}

#[tokio::test]
async fn failures_are_objects_for_programs_that_asked_for_json() {
    let refused = || async {
        let error = json!({"error": {"kind": "model_not_found", "message": "no gone here"}});
        (StatusCode::NOT_FOUND, Json(error))
    };
    let routes = Router::new()
        .route("/admin/v1/load", post(refused))
        .route("/admin/v1/unload", post(refused));
    let url = serve(routes).await;
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    let uri = format!("file://{missing}/");
    let cases: [(&[&str], &str); 8] = [
        (&["load", "gone", "--url", &url, "--json"], "model_not_found"),
        (&["unload", "gone", "--url", &url, "--json"], "model_not_found"),
        (&["reload", "--url", "http://127.0.0.1:1", "--json"], "internal"),
        (&["plan", missing, "--json"], "model_not_found"),
        (&["survey", &uri, "--json"], "internal"),
        (&["keys", "list", "--keys", missing, "--json"], "internal"),
        (&["usage", "--file", missing, "--json"], "internal"),
        (&["simulate", "--trace", missing, "--sizes", "1MB", "--budget", "1GB", "--json"], ""),
    ];
    for (arguments, key) in cases {
        let plain: Vec<&str> = arguments.iter().copied().filter(|it| *it != "--json").collect();
        let (said, plainly) = (roundhouse(arguments).await, roundhouse(&plain).await);
        assert_eq!(said.status.code(), plainly.status.code(), "{arguments:?}");
        assert_eq!((err(&said), out(&plainly).as_str()), (err(&plainly), ""), "{arguments:?}");
        let told: Value = serde_json::from_str(&out(&said)).unwrap();
        let fault = &told["faults"][0];
        assert!(key.is_empty() || fault["key"] == key, "{arguments:?}: {told}");
        assert_eq!((&told["ok"], told["faults"].as_array().unwrap().len()), (&json!(false), 1));
        let message = fault["message"].as_str().unwrap();
        assert!(err(&said).contains(message), "{arguments:?}: {message}");
    }
}

#[tokio::test]
async fn a_folder_a_key_file_and_a_body_that_are_not_there_are_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    let text = err(&roundhouse(&["survey", &format!("file://{missing}/")]).await);
    assert!(text.contains("is not there") && !text.contains("AWS"), "{text}");
    let text = err(&roundhouse(&["keys", "list", "--keys", missing]).await);
    assert!(text.contains("hint: `roundhouse keys create --keys FILE"), "{text}");
    let text = err(&roundhouse(&["serve", "--store", "./store"]).await);
    assert_eq!(text.matches("error: ").count(), 2, "one fault and their number: {text}");
    assert!(!text.contains("no store: give"), "{text}");
    let output = roundhouse(&["invoke", "m", "--url", "http://127.0.0.1:1"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("give --prompt or --body"), "{}", err(&output));
}

#[tokio::test]
async fn a_port_that_is_taken_names_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file://{}/", folder.path().display());
    let free = "127.0.0.1:0";
    for (data, admin, flag) in
        [(&*address, free, " --listen "), (free, &*address, " --admin-listen ")]
    {
        let ports = ["serve", "--store", &store, "--listen", data, "--admin-listen", admin];
        let output = roundhouse(&ports).await;
        assert_eq!(output.status.code(), Some(1));
        let text = err(&output);
        assert!(
            text.contains("hint: another process listens there") && text.contains(flag),
            "{text}"
        );
    }
}

#[tokio::test]
async fn check_config_tells_grants_that_bind_nobody_and_folders_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let check = async |text: &str| {
        let path = folder.path().join("settings.toml");
        let begin = "version = 1\n[[endpoint]]\nname = \"a\"\n[[endpoint.mount]]\n";
        std::fs::write(&path, format!("{begin}{text}")).unwrap();
        let output = roundhouse(&["check-config", path.to_str().unwrap()]).await;
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        out(&output)
    };
    let odd = "odd: callers are not asked who they are, so";
    let tenant = "uri = \"s3://b/c/\"\n[[tenant]]\nname = \"t\"\n";
    let text = check(&format!("{tenant}invoke = [\"t/**\"]\nsee = []\n")).await;
    assert!(text.contains(&format!("{odd} invoke, see of tenant t holds for nobody")), "{text}");
    // These hold by the first segment of a target.
    let text = check(&format!("{tenant}floor = \"1MiB\"\nrequests_per_second = 5\n")).await;
    assert!(!text.contains(odd), "{text}");
    let proxied = "[auth]\nproxy_networks = \"127.0.0.1/32\"\n";
    let text = check(&format!("{tenant}invoke = [\"t/**\"]\n{proxied}")).await;
    assert!(!text.contains(odd), "{text}");
    let text = check("uri = \"file:///no/such/\"\n").await;
    let want = "not on this machine: endpoint[0].mount[0].uri: /no/such/ is no folder here";
    assert!(text.contains(want), "{text}");
}

#[tokio::test]
async fn a_load_says_what_it_waits_for_and_how_to_make_room() {
    let why = "it waits for 1.0 GiB of device memory: kept models leave too little of the budget";
    let asked = Arc::new(tokio::sync::Notify::new());
    let told = asked.clone();
    let explain = move || async move {
        asked.notify_one();
        Json(json!({"now": why, "decisions": []}))
    };
    let load = move || async move {
        // It was asked three times what it waits for.
        for _ in 0..3 {
            told.notified().await;
        }
        let message = format!("e:m was not ready within 3s: {why}");
        let error = json!({"error": {"kind": "not_ready", "message": message}});
        (StatusCode::SERVICE_UNAVAILABLE, Json(error))
    };
    let routes =
        Router::new().route("/admin/v1/load", post(load)).route("/admin/v1/explain", get(explain));
    let url = serve(routes).await;
    let output = roundhouse(&["load", "m", "--url", &url]).await;
    let text = err(&output);
    assert_eq!(text.matches(&format!("m: {why}\n")).count(), 1, "once: {text}");
    assert!(text.contains("hint: release one with `roundhouse release"), "{text}");
    assert!(!text.contains("try again in a moment"), "{text}");
}

#[tokio::test]
async fn explain_of_a_name_that_nobody_has_is_a_failure() {
    let explain = |Query(query): Query<Vec<(String, String)>>| async move {
        let near = query.iter().any(|(_, value)| value == "gone").then(|| json!(["gone2"]));
        Json(json!({"now": "not asked for of late", "decisions": [], "near": near}))
    };
    let url = serve(Router::new().route("/admin/v1/explain", get(explain))).await;
    let output = roundhouse(&["explain", "gone", "--url", &url]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(out(&output).contains("the store has no such target; near it: gone2"));
    assert!(err(&output).contains("error: the store has no target gone"), "{}", err(&output));
    let output = roundhouse(&["explain", "gone", "--url", &url, "--json"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(serde_json::from_str::<Value>(&out(&output)).is_ok(), "{}", out(&output));
    let output = roundhouse(&["explain", "there", "--url", &url]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
}
