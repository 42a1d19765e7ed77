//! The commands, against a running server and without one.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::server::{Server, binary, root};
use roundhouse_tests::site::until;
use serde_json::{Value, json};

fn run(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(binary()).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_lists_loads_keeps_explains_invokes_and_unloads() {
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().join("team/signs");
    std::fs::create_dir_all(&folder).unwrap();
    for (path, body) in signed_classifier("signs", 6, 0) {
        std::fs::write(folder.join(path), body).unwrap();
    }
    let cache = tempfile::tempdir().unwrap();
    let uri = format!("file://{}/", store.path().display());
    let args = ["serve", "--store", &uri, "--cache-dir", cache.path().to_str().unwrap()];
    let server = Server::start(&args, &[]).await;
    let (admin, data) = (server.admin.clone(), server.data.clone());
    let done = tokio::task::spawn_blocking(move || {
        let (code, out, err) = run(&["models", "--url", &admin, "--json"]);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("team/signs"), "{out}");
        let (code, out, err) = run(&["load", "team/signs", "--url", &admin]);
        assert_eq!(code, 0, "{out}{err}");
        let (code, _, err) = run(&["keep", "team/signs", "--url", &admin]);
        assert_eq!(code, 0, "{err}");
        let (code, out, err) = run(&["models", "--url", &admin]);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("ready"), "{out}");
        let (code, out, err) =
            run(&["invoke", "team/signs", "--url", &data, "--body", r#"{"inputs": "hello"}"#]);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains(&signature("signs", 6)), "{out}");
        let (code, out, err) = run(&["versions", "team/signs", "--url", &admin, "--json"]);
        assert_eq!(code, 0, "{err}");
        let versions: Value = serde_json::from_str(&out).unwrap();
        let version = versions["versions"][0]["version"].as_str().unwrap();
        let (code, out, err) = run(&["use", "team/signs", &version[..6], "--url", &admin]);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains(&format!("serves version {}", &version[..12])), "{out}");
        let (code, out, err) = run(&["versions", "team/signs", "--url", &admin]);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("by operator") && out.contains("update = auto"), "{out}");
        let (code, out, err) = run(&["explain", "team/signs", "--url", &admin]);
        assert_eq!(code, 0, "{err}");
        assert!(!out.trim().is_empty());
        let (code, _, err) = run(&["release", "team/signs", "--url", &admin]);
        assert_eq!(code, 0, "{err}");
        let (code, _, err) = run(&["unload", "team/signs", "--purge", "--url", &admin]);
        assert_eq!(code, 0, "{err}");
        let (code, _, err) = run(&["unload", "team/signs", "--url", &admin]);
        assert_eq!(code, 1, "{err}");
        let (code, _, err) = run(&["load", "no/such", "--url", &admin]);
        assert_eq!(code, 1);
        assert!(err.contains("no/such"), "{err}");
    });
    done.await.unwrap();
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(residency["devices"][0]["charged_bytes"], 0, "{residency}");
    assert_eq!(residency["disk"]["artefacts"], 0, "{residency}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_logged_is_replayed_and_its_regret_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (store, log) = (folder.path().join("store"), folder.path().join("access.log"));
    for name in ["a", "b"] {
        std::fs::create_dir_all(store.join(name)).unwrap();
        for (path, body) in signed_classifier(name, 6, 0) {
            std::fs::write(store.join(name).join(path), body).unwrap();
        }
    }
    let (uri, cache) = (format!("file://{}/", store.display()), folder.path().join("cache"));
    let (cache, log) = (cache.to_str().unwrap(), log.to_str().unwrap());
    let args = ["serve", "--store", &uri, "--cache-dir", cache, "--access-log", log];
    let mut server = Server::start(&args, &[]).await;
    for target in ["a", "b", "a", "no-such", "a"] {
        server.invoke("default", target, json!({"inputs": "hello"})).await;
    }
    let regret = server.admin_get("/admin/v1/regret").await.json();
    assert_eq!((&regret["requests"], &regret["loads"]), (&json!(4), &json!(2)), "{regret}");
    assert_eq!(
        (&regret["unasked_loads"], &regret["optimal_loads"]["upper"]),
        (&json!(0), &json!(2)),
        "{regret}"
    );
    server.terminate();
    assert!(server.wait(Duration::from_secs(30)).await.is_some());
    let (code, out, err) =
        run(&["simulate", "--trace", log, "--sizes", "1GB", "--slots", "1", "--json"]);
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["requests"], 4, "{report}");
    let rows = report["rows"].as_array().unwrap();
    let lru = rows.iter().find(|row| row["rule"] == "(lru)").unwrap();
    assert_eq!(lru["loads"], 3, "a, b, a: {report}");
    // As it is where the access log goes to standard error with all other lines.
    let mixed = format!("INFO listening\n{}", std::fs::read_to_string(log).unwrap());
    std::fs::write(log, mixed).unwrap();
    let (code, out, err) = run(&["simulate", "--trace", log, "--slots", "1"]);
    assert!(code == 0 && out.contains("1 line left out that"), "{out}{err}");
    let (code, _, err) = run(&["simulate", "--trace", cache]);
    assert_eq!(code, 1, "a folder is no trace: {err}");
}

#[test]
fn a_plan_of_several_targets_tells_what_is_known_and_names_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let (model, missing) = (folder.path().join("model"), folder.path().join("missing"));
    std::fs::create_dir(&model).unwrap();
    for (path, body) in signed_classifier("model", 6, 0) {
        std::fs::write(model.join(path), body).unwrap();
    }
    let (model, missing) = (model.to_str().unwrap(), missing.to_str().unwrap());
    let (code, out, err) = run(&["plan", missing, model]);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("weights") && out.contains(&format!("{missing}: cannot be planned")),
        "{out}"
    );
    let named = format!("1 of 2 targets cannot be planned for: {missing}");
    assert!(err.contains(&named), "{err}");
    let (code, out, _) = run(&["plan", missing, model, "--json"]);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &told["failed"][0]["target"]), (1, &json!(missing)), "{told}");
    assert_eq!(
        (&told["targets"][0]["target"], &told["total"]["known"]),
        (&json!(model), &json!(1))
    );
    let (code, out, _) = run(&["plan", missing]);
    assert_eq!((code, out.as_str()), (1, ""), "one alone is an error and no table");
}

#[test]
fn settings_are_checked_all_at_once_and_the_default_file_is_fine() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "version = 1\n[listen]\ndata = \"nowhere\"\n[cache]\nsize = \"many\"\nsise = 1\n",
    )
    .unwrap();
    let (code, out, err) = run(&["check-config", file.path().to_str().unwrap()]);
    assert_eq!(code, 1);
    for key in ["listen.data", "cache.size", "cache.sise"] {
        assert!(format!("{out}{err}").contains(key), "{key} is not in {out}{err}");
    }
    let (code, _, err) = run(&["serve", "--store", "file:///tmp/", "--listen", "0.0.0.0:0"]);
    assert_ne!(code, 0);
    assert!(err.contains("insecure-no-auth"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_requests_end_and_exits_with_success() {
    let mut server = Server::start(&["demo"], &[]).await;
    let target = "support/base";
    let body = json!({"messages": [{"role": "user", "content": "When are you open?"}], "max_tokens": 200, "ignore_eos": true});
    server.invoke("demo", target, body.clone()).await;
    let url = format!("{}/endpoints/demo/invocations", server.data);
    let request =
        server.http().post(url).header("x-amzn-sagemaker-target-model", target).json(&body);
    let asking = tokio::spawn(async move { request.send().await.unwrap().text().await.unwrap() });
    until("the request is under way", || async {
        let shown = server.admin_get("/admin/v1/residency").await.json();
        let residents = shown["devices"][0]["residents"].as_array().unwrap();
        asking.is_finished() || residents.iter().any(|it| it["leases"].as_u64() > Some(0))
    })
    .await;
    server.terminate();
    let status = server.wait(Duration::from_secs(60)).await.expect("it ends");
    assert!(status.success(), "{status}");
    let answer: Value = serde_json::from_str(&asking.await.unwrap()).unwrap();
    assert!(answer["choices"].is_array() || answer["generated_text"].is_string(), "{answer}");
}

#[test]
fn sigterm_before_it_is_ready_ends_it_as_one_after_that_would() {
    let store = format!("file://{}/", root().join("src/server/demo/models").display());
    let args = ["serve", "--store", &store, "--listen", "127.0.0.1:0"];
    let mut command = Command::new(binary());
    command.args(args).args(["--admin-listen", "127.0.0.1:0"]);
    let mut server = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap()).lines();
    let first = log.next().unwrap().unwrap();
    assert!(first.contains("device="), "the device is said before the ports answer: {first}");
    let told = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap();
    assert!(told.success());
    let rest: Vec<_> = log.map_while(Result::ok).collect();
    assert!(server.wait().unwrap().success(), "{}", rest.join("\n"));
    assert!(rest.iter().any(|line| line.contains("signal=\"SIGTERM\"")), "{}", rest.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survey_tells_of_every_target_whether_it_will_run() {
    let uri = format!("file://{}/", root().join("src/server/demo/models").display());
    let (code, out, err) =
        tokio::task::spawn_blocking(move || run(&["survey", &uri, "--json"])).await.unwrap();
    assert_eq!(code, 0, "{err}");
    for target in ["support/base", "adapters/", "search/encoder"] {
        assert!(out.contains(target), "{target} is not in {out}");
    }
}
