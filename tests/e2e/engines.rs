//! Engines that are started by command for targets: how they come, answer, sleep, take adapters,
//! and leave; and what becomes of those that do not start, or die.

mod adapters;
mod life;
mod models;
mod sleep;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roundhouse_tests::handlers::until;
use roundhouse_tests::processes::processes_of;
use roundhouse_tests::server::{Answer, Server, root};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than anything here takes on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store whose targets are served by the stand-in, and a journal of what that was told.
struct Stage {
    dir: TempDir,
}

impl Stage {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts files into the store.
    fn put(&self, target: &str, files: &[(&str, &[u8])]) -> &Self {
        let folder = self.path("store").join(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, content) in files {
            std::fs::write(folder.join(name), content).unwrap();
        }
        self
    }

    /// Puts a model that says its own name.
    fn model(&self, target: &str) -> &Self {
        self.put(target, &[("weights", target.as_bytes()), ("config.json", b"{}")])
    }

    /// The section of an engine that is the stand-in, with further arguments and keys.
    fn engine(&self, targets: &str, arguments: &[&str], keys: &str) -> String {
        let script = root().join("tests/engines/stand_in.py");
        let mut command = vec!["python3", script.to_str().unwrap(), "--port", "{port}"];
        let journal = self.path("journal");
        command.extend(["--model", "{model}", "--served-model-name", "{target}"]);
        command.extend(["--journal", journal.to_str().unwrap()]);
        command.extend(arguments);
        let command = json!(command);
        format!("[[endpoint.engine]]\ntarget = \"{targets}\"\ncommand = {command}\n{keys}\n")
    }

    /// Starts a server with these engines; `settings` go before them.
    async fn serve(&self, settings: &str, engines: &[String]) -> Server {
        std::fs::create_dir_all(self.path("store")).unwrap();
        let (store, cache) = (self.path("store"), self.path("cache"));
        let text = format!(
            "version = 1\n{settings}\n[store]\nsettle = \"0s\"\nupdate_settle = \"0s\"\n\
             [cache]\ndir = \"{}\"\n[[endpoint]]\nname = \"default\"\n{}\
             [[endpoint.mount]]\nuri = \"file://{}/\"\n",
            cache.display(),
            engines.concat(),
            store.display()
        );
        let config = self.path("roundhouse.toml");
        std::fs::write(&config, text).unwrap();
        Server::start(&["serve", "--config", config.to_str().unwrap()], &[]).await
    }

    /// What the stand-ins were told so far, a line each; process ids are left out.
    fn journal(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("journal")).unwrap_or_default();
        let plain = |line: &str| match line.split_once(" start ") {
            Some((model, _)) => format!("{model} start"),
            None => line.to_owned(),
        };
        text.lines().map(plain).collect()
    }

    /// The processes that were given a file of ours, the server itself left out.
    fn engines(&self) -> BTreeSet<u32> {
        processes_of(&self.path("cache"))
    }
}

fn chat(model: &str, prompt: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": prompt}]})
}

async fn ask(server: &Server, model: &str, prompt: &str) -> Answer {
    server.post("/v1/chat/completions", chat(model, prompt)).await
}

/// What an engine says to a prompt: the model's text, the model's name, the prompt, the process.
async fn said(server: &Server, model: &str, prompt: &str) -> [String; 4] {
    let answer = ask(server, model, prompt).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    parts(answer.json()["choices"][0]["message"]["content"].as_str().unwrap())
}

fn parts(text: &str) -> [String; 4] {
    let parts: Vec<String> = text.split('|').map(str::to_owned).collect();
    parts.try_into().unwrap_or_else(|parts| panic!("{parts:?}"))
}

/// The text of a stream of OpenAI's events, which must be whole.
fn streamed(body: &str) -> String {
    assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
    let events = body.lines().filter_map(|line| line.strip_prefix("data: {"));
    let events = events.map(|line| serde_json::from_str::<Value>(&format!("{{{line}")).unwrap());
    let text = |event: &Value| {
        let choice = &event["choices"][0];
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        text.unwrap_or_default().to_owned()
    };
    events.map(|event| text(&event)).collect()
}

async fn residents(server: &Server) -> Vec<Value> {
    let page = server.admin_get("/admin/v1/residency").await.json();
    let devices = page["devices"].as_array().unwrap().iter();
    devices.flat_map(|device| device["residents"].as_array().unwrap().clone()).collect()
}

/// Whether a process is there.
fn lives(process: &str) -> bool {
    Path::new("/proc").join(process).exists()
}

/// Waits until a process is gone.
async fn gone(process: &str) {
    until("the engine's process ends", PATIENCE, async || !lives(process)).await;
}
