//! Settings that change under a running server: what they say is in force, and no request is lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::server::{Answer, Server};
use roundhouse_tests::site::until;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Two stores and a file of settings.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: TempDir::new().unwrap() };
        for (store, target) in [("one", "acme/m"), ("one", "acme/n"), ("two", "other/m")] {
            for (path, body) in signed_classifier(target, 1, 200) {
                let file = place.at(store).join(target).join(path);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, body).unwrap();
            }
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.at("roundhouse.toml")
    }

    /// Writes the file as careful operators do: beside, then in its place.
    fn write(&self, budget: &str, endpoints: &[&str], rest: &str) {
        self.write_with("cache", budget, endpoints, rest);
    }

    /// The same with another folder for the cache.
    fn write_with(&self, cache: &str, budget: &str, endpoints: &[&str], rest: &str) {
        let cache = self.at(cache);
        let mut text = format!(
            "version = 1\n[memory]\nbudget = \"{budget}\"\n[cache]\ndir = \"{}\"\n[store]\n\
             settle = \"1ms\"\ncatalogue_ttl = \"100ms\"\n",
            cache.display()
        );
        for name in endpoints {
            let uri = format!("file://{}/", self.at(name).display());
            let endpoint = format!("[[endpoint]]\nname = \"{name}\"\n[[endpoint.mount]]\n");
            text.push_str(&format!("{endpoint}uri = \"{uri}\"\n"));
        }
        text.push_str(rest);
        let beside = self.at("roundhouse.toml.new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.file()).unwrap();
    }

    async fn start(&self) -> Server {
        let file = self.file();
        Server::start(&["serve", "--config", path(&file)], &[]).await
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn ask(server: &Server, endpoint: &str, target: &str) -> Answer {
    server.invoke(endpoint, target, json!({"inputs": "hello"})).await
}

async fn serves(server: &Server, endpoint: &str, name: &str, target: &str) {
    let answer = ask(server, endpoint, name).await;
    assert_eq!(answer.status, 200, "{endpoint}:{name}: {}", answer.body);
    assert_eq!(answer.json()[0]["label"], signature(target, 1));
}

async fn reload(server: &Server) -> Value {
    let answer = server.send(server.http().post(format!("{}/admin/v1/reload", server.admin))).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

const CHAT: &str = "[[alias]]\nname = \"chat\"\nendpoint = \"one\"\ntarget = \"acme/m\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_and_aliases_come_and_go_and_no_request_is_lost() {
    let place = Place::new();
    place.write("1GiB", &["one"], "");
    let server = Arc::new(place.start().await);
    serves(&server, "one", "acme/m", "acme/m").await;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let traffic = {
        let (server, stop, answered) = (server.clone(), stop.clone(), answered.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                serves(&server, "one", "acme/m", "acme/m").await;
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    };

    place.write("1GiB", &["one", "two"], CHAT);
    assert_eq!(reload(&server).await["outcome"], "applied");
    serves(&server, "two", "other/m", "other/m").await;
    serves(&server, "one", "chat", "acme/m").await;
    assert_eq!(ask(&server, "one", "other/m").await.status, 400);
    let ids = server.get("/v1/models").await.body;
    assert!(ids.contains("one:chat") && ids.contains("two:other/m"), "{ids}");

    place.write("1GiB", &["one", "two"], "[[alias]]\nname = \"chat\"\n");
    let refused = reload(&server).await;
    assert_eq!(refused["outcome"], "refused", "{refused}");
    let faults = refused["faults"].to_string();
    assert!(faults.contains("alias[0].target") && faults.contains("alias[0].endpoint"), "{faults}");
    assert!(server.metric("roundhouse_server_settings_refused").await > 0.0);
    serves(&server, "one", "chat", "acme/m").await;

    place.write("2GiB", &["one"], &CHAT.replace("acme/m", "acme/n"));
    until("the file is read by itself", || async {
        ask(&server, "one", "chat").await.json()[0]["label"] == signature("acme/n", 1)
    })
    .await;
    let last = server.admin_get("/admin/v1/reload").await.json();
    assert_eq!(
        (&last["outcome"], &last["restart"]),
        (&json!("applied"), &json!(["device"])),
        "{last}"
    );
    let gone = ask(&server, "two", "other/m").await;
    assert_eq!(
        (gone.status, gone.json()["Message"].clone()),
        (400, "endpoint two not found".into())
    );
    server
        .residency_once(|residency| {
            let residents = residency["devices"][0]["residents"].as_array().unwrap();
            residents.iter().all(|resident| resident["endpoint"] != "two")
        })
        .await;

    let before = answered.load(Ordering::Relaxed);
    until("requests go on", || async { answered.load(Ordering::Relaxed) > before }).await;
    stop.store(true, Ordering::Relaxed);
    traffic.await.expect("every request was answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_with_another_store_serves_what_lies_there() {
    let place = Place::new();
    place.write("1GiB", &["one"], "");
    let server = place.start().await;
    serves(&server, "one", "acme/m", "acme/m").await;
    let text = std::fs::read_to_string(place.file()).unwrap();
    let other = text.replace(path(&place.at("one")), path(&place.at("two")));
    std::fs::write(place.file(), other).unwrap();
    assert_eq!(reload(&server).await["outcome"], "applied");
    serves(&server, "one", "other/m", "other/m").await;
    until("what lay in the store before has left", || async {
        ask(&server, "one", "acme/m").await.status == 400
    })
    .await;
    assert_eq!(reload(&server).await["outcome"], "unchanged");
}

const PIPE: &str = "[[endpoint]]\nname = \"pipe\"\ncontainers = \"serial\"\n[[endpoint.container]]\n\
                    hostname = \"c\"\nurl = \"http://127.0.0.1:1\"\nhealth = false\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_containers_alone_gets_its_first_store_and_its_first_queue_as_it_runs() {
    let place = Place::new();
    place.write("1GiB", &[], PIPE);
    let server = place.start().await;
    assert_eq!(ask(&server, "one", "acme/m").await.status, 400);
    let disk = async || server.admin_get("/admin/v1/residency").await.json()["disk"].clone();
    assert_eq!(disk().await, Value::Null, "no folder is taken for nothing");
    let deferred = async |endpoint: &str| {
        let url = format!("{}/endpoints/{endpoint}/async-invocations", server.data);
        let request = server.http().post(url).body(r#"{"inputs":"hello"}"#);
        let attributes = "target-model=acme/m";
        server.send(request.header("x-amzn-sagemaker-custom-attributes", attributes)).await
    };
    let refused = deferred("pipe").await;
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("takes no asynchronous requests"), "{}", refused.body);

    let answers = place.at("answers");
    std::fs::create_dir(&answers).unwrap();
    let queue = format!("[endpoint.async]\noutput = \"file://{}/\"\n", answers.display());
    let (waiting, rest) = (place.at("waiting"), format!("{queue}{PIPE}"));
    let rest = format!("{rest}[async]\ndir = \"{}\"\n", waiting.display());
    place.write_with("other", "1GiB", &["one"], &rest);
    let reading = reload(&server).await;
    assert_eq!(reading["outcome"], "applied", "{reading}");
    assert_eq!(reading["restart"], json!([]), "both are opened where this says");
    assert!(waiting.exists() && place.at("other").exists() && !place.at("cache/async").exists());
    serves(&server, "one", "acme/m", "acme/m").await;
    assert!(disk().await["artefacts"].as_u64().unwrap() > 0);
    let taken = deferred("one").await;
    assert_eq!(taken.status, 202, "{}", taken.body);
    let output = taken.header("x-amzn-sagemaker-outputlocation");
    let output = PathBuf::from(output.strip_prefix("file://").unwrap());
    until("the answer is written", || async { output.exists() }).await;
    let answer: Value = serde_json::from_slice(&std::fs::read(&output).unwrap()).unwrap();
    assert_eq!(answer[0]["label"], signature("acme/m", 1));

    place.write("1GiB", &[], PIPE);
    let reading = reload(&server).await;
    assert_eq!(reading["outcome"], "applied");
    assert_eq!(reading["restart"], json!(["cache", "async"]), "they stay where they are");
    assert_eq!(ask(&server, "one", "acme/m").await.status, 400);
    assert_eq!(deferred("one").await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_holds_the_caches_folder_that_it_lies_in_and_the_first_store_goes_there() {
    let place = Place::new();
    let answers = place.at("answers");
    std::fs::create_dir(&answers).unwrap();
    let queue = format!("[endpoint.async]\noutput = \"file://{}/\"\n", answers.display());
    let pipe = format!("{PIPE}{queue}");
    place.write("1GiB", &[], &pipe);
    let server = place.start().await;
    assert!(place.at("cache/async").exists());

    place.write_with("other", "1GiB", &["one"], &pipe);
    let reading = reload(&server).await;
    assert_eq!((&reading["outcome"], &reading["restart"]), (&json!("applied"), &json!(["cache"])));
    let [waits, then] = ["cache/async", "other/async"].map(|folder| place.at(folder));
    let told = reading["warnings"][0].as_str().unwrap();
    assert!(told.contains(path(&waits)) && told.contains(path(&then)), "{told}");
    serves(&server, "one", "acme/m", "acme/m").await;
    assert!(!place.at("other").exists(), "what needs a restart is not in force");
    let shown = server.admin_get("/admin/v1/residency").await.json();
    assert!(shown["disk"]["artefacts"].as_u64().unwrap() > 0, "{}", shown["disk"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reload_cannot_do_and_what_is_odd_is_told_by_those_that_change_nothing() {
    let place = Place::new();
    let handlers = format!("{PIPE}[handlers]\nenabled = true\n");
    place.write("1GiB", &[], &handlers);
    let server = place.start().await;
    let odd = format!("{handlers}[[tenant]]\nname = \"acme\"\ninvoke = [\"one:acme/**\"]\n");
    place.write("1GiB", &["one", "gone"], &odd);
    let applied = reload(&server).await;
    assert_eq!(applied["outcome"], "applied", "{applied}");
    assert_eq!(applied["restart"], json!(["handlers"]), "nothing runs handlers here");
    let warnings = applied["warnings"].as_array().unwrap();
    let told = |part: &str| warnings.iter().any(|it| it.as_str().unwrap().contains(part));
    assert!(told("endpoint[1].mount[0].uri") && told("invoke of tenant acme"), "{warnings:?}");

    let again = reload(&server).await;
    assert_eq!(again["outcome"], "unchanged");
    let last = server.admin_get("/admin/v1/reload").await.json();
    for reading in [&again, &last] {
        assert_eq!(reading["restart"], applied["restart"]);
        assert_eq!(reading["warnings"], applied["warnings"]);
    }
    let url = format!("{}/admin/v1/reload", server.admin);
    for (body, says) in [(json!({"file": "x"}), "unknown field"), (json!(["x"]), "an object")] {
        let refused = server.send(server.http().post(&url).json(&body)).await;
        assert_eq!(refused.status, 422, "{}", refused.body);
        assert!(refused.body.contains(says), "{}", refused.body);
    }
    let url = format!("{}/admin/v1/keep", server.admin);
    let refused = server.send(server.http().post(url).json(&json!(["one", "acme/m"]))).await;
    assert_eq!(refused.status, 422, "fields have names: {}", refused.body);
    assert_eq!(server.admin_get("/admin/v1/residency?endpoint=one").await.status, 400);

    // Who names no endpoint is shown them all, page by page.
    let ids = async |query: String| {
        let page = server.admin_get(&format!("/admin/v1/models?{query}")).await.json();
        let failed = page["failed"].as_array().unwrap();
        assert!(failed.iter().all(|it| it["endpoint"] == "gone"), "{failed:?}");
        let rows = page["models"].as_array().unwrap().iter();
        let ids = rows.map(|row| format!("{}:{}", row["endpoint"], row["target"]).replace('"', ""));
        (ids.collect::<Vec<_>>(), page["next"].as_str().map(str::to_owned))
    };
    let all = ["one:acme/m", "one:acme/n", "pipe:c"];
    assert_eq!(ids(String::new()).await, (all.map(str::to_owned).to_vec(), None));
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let (page, next) = ids(format!("limit=1{after}")).await;
        found.extend(page);
        let Some(next) = next else { break };
        after = format!("&after={next}");
    }
    assert_eq!(found, all);
}
