//! Containers that hold many models, by SageMaker's multi-model contract.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use roundhouse_tests::handlers::until;
use roundhouse_tests::server::{Answer, Server, root};
use serde_json::{Value, json};

use super::{PATIENCE, Stage, residents};

/// A container that is not ours to start.
struct Elsewhere {
    process: Child,
    port: u16,
}

impl Elsewhere {
    /// Starts it and returns when it answers; on this port, where one is given.
    async fn start(stage: &Stage, port: Option<u16>, arguments: &[&str]) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port = port.unwrap_or_else(free);
        let mut command = Command::new("python3");
        command.arg(root().join("tests/engines/models.py")).args(["--port", &port.to_string()]);
        command.arg("--journal").arg(stage.path("journal")).args(arguments);
        let process = command.stderr(Stdio::null()).spawn().unwrap();
        let container = Self { process, port };
        until("the container listens", PATIENCE, async || container.ask("/ping").await.is_some())
            .await;
        container
    }

    async fn ask(&self, path: &str) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        reqwest::get(url).await.ok()?.json().await.ok()
    }

    async fn holds(&self) -> Vec<String> {
        let page = self.ask("/models").await.unwrap();
        let names = page["models"].as_array().unwrap().iter();
        names.map(|it| it["modelName"].as_str().unwrap().to_owned()).collect()
    }

    fn rule(&self, keys: &str) -> String {
        let url = format!("http://127.0.0.1:{}", self.port);
        format!(
            "[[endpoint.engine]]\ntarget = \"mm/*\"\ncontract = \"multi-model\"\nurl = \"{url}\"\n\
             {keys}\n"
        )
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn invoke(server: &Server, target: &str, body: &str) -> Answer {
    let url = format!("{}/endpoints/default/invocations", server.data);
    let request = server.http().post(url).header("x-amzn-sagemaker-target-model", target);
    let request = request.header("content-type", "text/csv").header("accept", "a/b");
    let request = request.header("x-amzn-sagemaker-custom-attributes", "mine");
    server.send(request.body(body.to_owned())).await
}

async fn said(server: &Server, target: &str) -> Value {
    let answer = invoke(server, target, "x").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

/// What the container was told, without its names for models.
fn steps(stage: &Stage) -> Vec<String> {
    let first = |line: String| line.split(' ').next().unwrap().to_owned();
    stage.journal().into_iter().map(first).collect()
}

async fn targets(server: &Server) -> Vec<String> {
    let all = residents(server).await;
    let mut names: Vec<_> =
        all.iter().map(|it| it["target"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_a_container_are_loaded_asked_and_evicted_within_our_budget() {
    let stage = Stage::new();
    stage.model("mm/a").model("mm/b").model("mm/c");
    let container = Elsewhere::start(&stage, None, &["--holds", "theirs"]).await;
    let rule = container.rule("memory = \"100MiB\"");
    let settings = "[memory]\nbudget = \"250MiB\"\n[residency]\npolicy = \"lru\"";
    let server = stage.serve(settings, &[rule]).await;

    let answer = invoke(&server, "mm/a", "1,2").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("x-amzn-sagemaker-custom-attributes"), "seen");
    let told = answer.json();
    assert_eq!((&told["weights"], &told["asked"]), (&json!("mm/a"), &json!("1,2")));
    let header = |name: &str| told["headers"][name].as_str().unwrap_or("").to_owned();
    assert_eq!((header("content-type"), header("accept")), ("text/csv".into(), "a/b".into()));
    assert_eq!(header("x-amzn-sagemaker-target-model"), "mm/a");
    assert_eq!(header("x-amzn-sagemaker-custom-attributes"), "mine");
    assert!(told["name"].as_str().unwrap().starts_with("roundhouse-"), "{told}");

    said(&server, "mm/b").await;
    said(&server, "mm/a").await;
    let resident = residents(&server).await.remove(0);
    assert_eq!(resident["kind"], "external");
    assert_eq!(resident["bytes"]["weights"], 100 << 20);
    // Two have room: the one that was not used for the longest time leaves for the third.
    assert_eq!(said(&server, "mm/c").await["weights"], "mm/c");
    assert_eq!(targets(&server).await, ["mm/a", "mm/c"]);
    assert_eq!(steps(&stage), ["start", "load", "load", "unload", "load"]);
    assert_eq!(container.holds().await.len(), 3, "two of ours, and theirs");

    // What a model answers is told as any container's.
    let answer = invoke(&server, "mm/a", "status 418").await;
    assert_eq!((answer.status, &answer.json()["OriginalStatusCode"]), (424, &json!(418)));
    let answer = invoke(&server, "mm/a", "status 404").await;
    assert_eq!((answer.status, &answer.json()["OriginalStatusCode"]), (424, &json!(404)));
    let body = json!({"model": "mm/a", "messages": [{"role": "user", "content": "x"}]});
    let answer = server.post("/v1/chat/completions", body).await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.body.contains("takes /invocations only"), "{}", answer.body);

    for target in ["mm/a", "mm/c"] {
        let answer = server.admin_post("unload", "default", target).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    assert_eq!(container.holds().await, ["theirs"], "an unload returns when the model is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_full_gets_room_by_our_order_and_else_the_load_fails() {
    let stage = Stage::new();
    stage.model("mm/a").model("mm/b").model("mm/c");
    let container = Elsewhere::start(&stage, None, &["--most", "2"]).await;
    // By use alone: by GreedyDual-Size-Frequency a slow load counts too, and how long one took is chance.
    let lru = "[residency]\npolicy = \"lru\"";
    let server = stage.serve(lru, &[container.rule("memory = \"10MiB\"")]).await;
    for target in ["mm/a", "mm/b", "mm/a"] {
        said(&server, target).await;
    }
    assert_eq!(said(&server, "mm/c").await["weights"], "mm/c");
    assert_eq!(targets(&server).await, ["mm/a", "mm/c"]);
    assert_eq!(steps(&stage), ["start", "load", "load", "full", "unload", "load"]);

    // It finds no memory for a request: what nobody uses leaves, and the request is sent again.
    let answer = invoke(&server, "mm/c", "grow").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(targets(&server).await, ["mm/c"]);

    // What is not ours does not leave.
    drop(server);
    let theirs = ["--most", "1", "--holds", "theirs"];
    let container = Elsewhere::start(&stage, None, &theirs).await;
    let server = stage.serve("", &[container.rule("memory = \"10MiB\"")]).await;
    let answer = invoke(&server, "mm/a", "x").await;
    assert_eq!(answer.status, 429, "{} {}", answer.status, answer.body);
    assert!(answer.body.contains("has no room for it"), "{}", answer.body);
    assert!(targets(&server).await.is_empty());
    assert_eq!(container.holds().await, ["theirs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_started_anew_gets_its_models_again() {
    let stage = Stage::new();
    stage.model("mm/a").model("mm/b").model("mm/c");
    let mut container = Elsewhere::start(&stage, None, &[]).await;
    let server = stage.serve("", &[container.rule("memory = \"10MiB\"")]).await;
    let first = said(&server, "mm/a").await;
    said(&server, "mm/b").await;
    // While it is gone its models are, too.
    container.kill();
    until("its models are not charged any more", PATIENCE, async || {
        let answer = invoke(&server, "mm/a", "x").await;
        assert!(answer.status >= 424, "{} {}", answer.status, answer.body);
        targets(&server).await.is_empty()
    })
    .await;
    let again = Elsewhere::start(&stage, Some(container.port), &[]).await;
    until("its models are back", PATIENCE, async || {
        let answers = [invoke(&server, "mm/a", "x").await, invoke(&server, "mm/b", "x").await];
        answers.iter().all(|answer| answer.status == 200)
    })
    .await;
    assert_ne!(said(&server, "mm/a").await["process"], first["process"]);
    assert_eq!(again.holds().await.len(), 2);
    // It loses a model behind our back: the request that finds that out has it loaded.
    let name = said(&server, "mm/c").await["name"].as_str().unwrap().to_owned();
    let url = format!("http://127.0.0.1:{}/models/{name}", again.port);
    server.http().delete(url).send().await.unwrap();
    assert_eq!(said(&server, "mm/c").await["weights"], "mm/c");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_that_an_earlier_run_left_are_deleted_and_others_stay() {
    let stage = Stage::new();
    stage.model("mm/a");
    let container = Elsewhere::start(&stage, None, &["--holds", "theirs"]).await;
    let rule = container.rule("memory = \"10MiB\"");
    let mut server = stage.serve("", std::slice::from_ref(&rule)).await;
    said(&server, "mm/a").await;
    assert_eq!(container.holds().await.len(), 2);
    server.kill();
    drop(server);
    let _server = stage.serve("", &[rule]).await;
    until("what was left is gone", PATIENCE, async || container.holds().await == ["theirs"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_a_command_is_started_for_its_first_model_and_again_when_it_dies() {
    let stage = Stage::new();
    stage.put("mm/a", &[("weights", b"mm/a"), ("more", &[0; 1 << 20])]).model("mm/b");
    let script = root().join("tests/engines/models.py");
    let journal = stage.path("journal");
    let cache = stage.path("cache");
    std::fs::create_dir_all(&cache).unwrap();
    let from = cache.canonicalize().unwrap();
    // It sees the cache below another name.
    let shown = stage.path("shown");
    std::fs::create_dir_all(shown.join("opt")).unwrap();
    std::os::unix::fs::symlink(&from, shown.join("opt/models")).unwrap();
    let command =
        json!(["python3", script, "--port", "{port}", "--journal", journal, "--root", shown]);
    let rule = format!(
        "[[endpoint.engine]]\ntarget = \"mm/*\"\ncontract = \"multi-model\"\n\
         command = {command}\nmemory_factor = 10\nprocess_memory = \"64MiB\"\n\
         path_map = {{ from = \"{}\", to = \"/opt/models\" }}\n",
        from.display()
    );
    let server = stage.serve("", &[rule]).await;
    assert!(steps(&stage).is_empty(), "it is not started before it is asked for");
    let first = said(&server, "mm/a").await;
    assert_eq!(first["weights"], "mm/a");
    assert_eq!(said(&server, "mm/b").await["process"], first["process"], "one holds both");
    let page = server.admin_get("/admin/v1/residency").await.json();
    let used = page["devices"][0]["charged_bytes"].as_u64().unwrap_or_else(|| panic!("{page}"));
    // Ten times a MiB and a little, and the process once.
    assert!((74 << 20..76 << 20).contains(&used), "{page}");

    let answer = invoke(&server, "mm/a", "die").await;
    assert_eq!(answer.status, 424, "{}", answer.body);
    until("it is back", PATIENCE, async || invoke(&server, "mm/b", "x").await.status == 200).await;
    assert_ne!(said(&server, "mm/b").await["process"], first["process"]);
    let process = said(&server, "mm/b").await["process"].to_string();
    drop(server);
    until("it ends with us", PATIENCE, async || !Path::new("/proc").join(&process).exists()).await;
}
