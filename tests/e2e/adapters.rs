//! Adapters through the real binary: how they are named, what they answer beside one another, and
//! what becomes of them when memory is short or the store changes.

mod changes;
mod container;
mod faces;
mod heads;
mod memory;
mod refused;

use std::path::Path;

use roundhouse_tests::models::File;
use roundhouse_tests::server::{Answer, Server};
use serde_json::{Value, json};

/// Labels of the generated base: as many adapters can be told apart.
const LABELS: usize = 512;

fn place(store: &Path, target: &str, files: &[File]) {
    let folder = store.join(target);
    std::fs::create_dir_all(&folder).unwrap();
    for (path, body) in files {
        std::fs::write(folder.join(path), body).unwrap();
    }
}

/// A server over a folder, with a line of settings for each table that a test needs.
async fn server(store: &Path, cache: &Path, settings: &str) -> Server {
    let config = cache.join("roundhouse.toml");
    let text = format!(
        "version = 1\n{settings}\n[cache]\ndir = \"{}\"\n[store]\nsettle = \"1ms\"\nupdate_settle = \"1ms\"\ncatalogue_ttl = \"100ms\"\n[[endpoint]]\nname = \"default\"\n[[endpoint.mount]]\nuri = \"file://{}/\"\n",
        cache.join("c").display(),
        store.display(),
    );
    std::fs::write(&config, text).unwrap();
    Server::start(&["serve", "--config", config.to_str().unwrap()], &[]).await
}

fn said(answer: &Answer) -> &str {
    let start = answer.body.find("label-").unwrap_or(answer.body.len());
    let text = &answer.body[start..];
    text.split('"').next().unwrap_or_default()
}

/// The resident of that name in a residency, null where there is none.
fn resident<'a>(residency: &'a Value, target: &str) -> &'a Value {
    let residents = residency["devices"][0]["residents"].as_array().unwrap();
    residents.iter().find(|it| it["target"] == target).unwrap_or(&Value::Null)
}

fn hello() -> Value {
    json!({"inputs": "hello"})
}
