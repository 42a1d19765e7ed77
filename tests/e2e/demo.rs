//! The demo as a newcomer meets it, through real clients.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use roundhouse_tests::python;
use roundhouse_tests::server::{Server, binary, root};
use serde_json::{Value, json};
use tempfile::TempDir;

const NATIVE: &str = "tests/models/demo_expectations.json";
const HANDLERS: &str = "tests/models/handler_expectations.json";

fn expectations(file: &str) -> (String, Vec<Value>) {
    let path = root().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    (path.display().to_string(), serde_json::from_str(&text).unwrap())
}

fn targets(entries: &[Value]) -> BTreeSet<&str> {
    entries.iter().map(|entry| entry["target"].as_str().unwrap()).collect()
}

/// A demo in a folder that goes with the test: one that is killed leaves its own behind.
pub(crate) async fn demo(env: &[(&str, &str)]) -> (TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let server = Server::start(&["demo", "--data-dir", path], env).await;
    (folder, server)
}

/// Who was evicted, and for whom, as the server explains it.
async fn evictions(server: &Server, targets: &BTreeSet<&str>) -> BTreeSet<(String, String)> {
    let mut seen = BTreeSet::new();
    for target in targets {
        let explained =
            server.admin_get(&format!("/admin/v1/explain?target={target}")).await.json();
        let decisions = explained["decisions"].as_array().unwrap();
        let evicted = decisions.iter().filter(|it| it["why"] == "evicted");
        let whose = evicted.filter_map(|it| it["for_artefact"]["model"]["target"].as_str());
        seen.extend(whose.map(|other| ((*target).to_owned(), other.to_owned())));
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_reaches_every_demo_model_and_handler_while_they_evict_one_another() {
    let _alone = crate::HEAVY.lock().await;
    let ((native, models), (handled, handlers)) = (expectations(NATIVE), expectations(HANDLERS));
    // By use alone: else how long a load took says who leaves, and that is chance.
    let (_folder, server) = demo(&[("ROUNDHOUSE_RESIDENCY_POLICY", "lru")]).await;
    let url = server.data.clone();
    let printed = tokio::task::spawn_blocking(move || {
        python::client("boto3_demo.py", &[&url, "demo", &native, &handled])
    })
    .await
    .unwrap();
    assert_eq!(printed.trim(), format!("{} answers right", models.len() + handlers.len()));

    let loads = server.metric("roundhouse_residency_loads_total").await;
    let evicted = server.metric("roundhouse_residency_evictions_total").await;
    let (models, handlers) = (targets(&models), targets(&handlers));
    let all: BTreeSet<&str> = models.union(&handlers).copied().collect();
    assert!(loads >= all.len() as f64, "{loads} loads of {} targets", all.len());
    assert!(evicted > 0.0, "nothing was evicted");
    let pairs = evictions(&server, &all).await;
    let is_handler = |target: &str| handlers.contains(target);
    let left_for = |who: bool, whom: bool| {
        pairs.iter().any(|(one, other)| (is_handler(one), is_handler(other)) == (who, whom))
    };
    assert!(left_for(false, true), "no model of ours left for a handler: {pairs:?}");
    assert!(left_for(true, false), "no handler left for a model of ours: {pairs:?}");

    let residency = server.admin_get("/admin/v1/residency").await.json();
    let device = &residency["devices"][0];
    let residents = device["residents"].as_array().unwrap();
    let revivals = server.metric("roundhouse_residency_revivals_total").await;
    // What came and did not leave is there, and the sum of its parts is what is charged, but
    // for parameters that several hold.
    assert_eq!(residents.len() as f64, loads - evicted + revivals, "{residency}");
    let sum: u64 = residents
        .iter()
        .flat_map(|r| r["bytes"].as_object().unwrap().values())
        .map(|part| part.as_u64().unwrap())
        .sum();
    let shared: u64 = residents.iter().map(|r| r["shared_bytes"].as_u64().unwrap()).sum();
    let charged = device["charged_bytes"].as_u64().unwrap();
    assert!((sum - shared..=sum).contains(&charged), "{residency}");
    assert!(charged <= device["budget_bytes"].as_u64().unwrap());
    let fetched = server.metric("roundhouse_store_fetched_bytes_total").await;
    let once: u64 = residency["disk"]["artefacts"].as_u64().unwrap();
    assert!(fetched > 0.0 && once >= all.len() as u64, "{fetched} bytes, {once} on disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_python_the_demo_serves_its_own_models_and_says_what_is_off() {
    let env = [("ROUNDHOUSE_HANDLERS_PYTHON", "/nowhere/python3")];
    let (_folder, server) = demo(&env).await;
    let text = json!({"inputs": "My parcel has not come yet"});
    let answer = server.invoke("demo", "tickets/intent.tar.gz", text.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let refused = server.invoke("demo", "forecast/churn", text).await;
    assert_eq!(refused.status, 424, "{}", refused.body);
    assert!(refused.body.contains("handlers are off here"), "{}", refused.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_client_chats_streams_completes_and_embeds() {
    let (_, entries) = expectations(NATIVE);
    let chat = entries.iter().find(|e| e["messages"].is_array()).unwrap();
    let encoder = entries
        .iter()
        .filter_map(|e| e["target"].as_str())
        .find(|target| target.starts_with("search/"))
        .map_or("search/encoder", |target| target);
    let question = chat["messages"][0]["content"].as_str().unwrap();
    let wanted = chat["contains"][0].as_str().unwrap();
    let target = chat["target"].as_str().unwrap();
    let (_folder, server) = demo(&[]).await;
    let args: Vec<String> =
        [&server.data, target, question, wanted, encoder].iter().map(|s| s.to_string()).collect();
    tokio::task::spawn_blocking(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        python::client("openai_demo.py", &args)
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_stopped_before_it_is_ready_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Command::new(binary());
    demo.args(["demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    demo.env("TMPDIR", folder.path()).stdout(Stdio::null()).stderr(Stdio::piped());
    let ended = tokio::task::spawn_blocking(move || {
        let mut demo = demo.spawn().unwrap();
        let mut lines = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
        // It has a folder, and has only begun.
        lines.find(|line| line.contains("demo models are in")).expect("it begins");
        let process = demo.id().to_string();
        assert!(Command::new("kill").arg(process).status().unwrap().success());
        let rest: Vec<String> = lines.collect();
        (demo.wait().unwrap(), rest)
    });
    let (ended, rest) = ended.await.unwrap();
    assert!(ended.success(), "{ended}: {rest:?}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
