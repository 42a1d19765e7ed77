//! KV pools that take what they need and give it back: many models with long contexts side by side.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use roundhouse_tests::models::fine_tune;
use roundhouse_tests::server::Server;
use serde_json::{Value, json};

const MODELS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Room beside four models.
const BESIDE: u64 = 24 << 20;

async fn serve(folder: &Path, memory: u64) -> Server {
    let file = folder.join("roundhouse.toml");
    let settings = "version = 1\n[serving]\ncontext = 512\nkv_sequences = 16\nstep_tokens = 64\n";
    std::fs::write(&file, settings).unwrap();
    let (store, cache) = (format!("file://{}/", folder.display()), folder.join("cache-dir"));
    let [file, cache] = [&file, &cache].map(|path| path.to_str().unwrap());
    let memory = memory.to_string();
    let args =
        ["serve", "--config", file, "--store", &store, "--cache-dir", cache, "--memory", &memory];
    Server::start(&args, &[]).await
}

async fn generated(server: &Server, target: &str, prompt: &str, tokens: usize) -> String {
    let parameters = json!({"max_new_tokens": tokens, "do_sample": false, "ignore_eos": true});
    let body = json!({"inputs": prompt, "parameters": parameters});
    let answer = server.invoke("default", target, body).await;
    assert_eq!(answer.status, 200, "{target}: {}", answer.body);
    answer.json()["generated_text"].as_str().unwrap_or_else(|| panic!("{}", answer.body)).into()
}

/// The resident of a target.
fn resident<'a>(residency: &'a Value, target: &str) -> &'a Value {
    let mut residents = residency["devices"][0]["residents"].as_array().unwrap().iter();
    residents.find(|it| it["target"] == target).unwrap_or_else(|| panic!("{target}: {residency}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("a number: {value}"))
}

fn charged(residency: &Value) -> u64 {
    number(&residency["devices"][0]["charged_bytes"])
}

/// Host parts are measured at each load, some bytes apart; a chunk of KV is four times as large.
fn assert_near(charged: u64, expected: u64) {
    assert!(charged.abs_diff(expected) < 256 << 10, "{charged} are charged instead of {expected}");
}

/// Prompts of which no two begin alike.
fn prompts() -> Vec<String> {
    (0..12u8)
        .map(|n| format!("{}{}", char::from(b'a' + n), "so it goes on and on. ".repeat(13)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn models_with_long_contexts_share_a_budget_and_a_busy_one_has_what_the_others_do_not_use() {
    let _alone = crate::HEAVY.lock().await;
    let folder = tempfile::tempdir().unwrap();
    for (seed, name) in (1..).zip(MODELS) {
        let target = folder.path().join(name);
        std::fs::create_dir(&target).unwrap();
        for (path, body) in fine_tune(13, 1, seed) {
            std::fs::write(target.join(path), body).unwrap();
        }
    }
    let probe = serve(folder.path(), 1 << 30).await;
    let mut alone = Vec::new();
    for prompt in prompts() {
        alone.push(generated(&probe, "a", &prompt, 120).await);
    }
    generated(&probe, "b", "hello", 1).await;
    let idle = |residency: &Value| {
        let kv = &resident(residency, "a")["serves"]["kv"];
        kv["now"] == kv["floor"] && kv["used"]["blocks"] == 0
    };
    let residency = probe.residency_once(idle).await;
    // The embeddings of "b" are those of "a".
    let first: u64 =
        resident(&residency, "a")["bytes"].as_object().unwrap().values().map(number).sum();
    let further = charged(&residency) - first;
    drop(probe);
    let kv = &resident(&residency, "a")["serves"]["kv"];
    let token = number(&kv["token_bytes"]);
    let [floor, most] = ["floor", "most"].map(|room| number(&kv[room]["tokens"]) * token);
    assert_eq!((floor, most), (512 * token, 16 * 512 * token));
    let budget = first + 3 * further + BESIDE;
    assert!(budget < 2 * (further + most - floor), "of full pools it would hold one");

    let server = Arc::new(serve(folder.path(), budget).await);
    for name in &MODELS[..4] {
        generated(&server, name, "hello", 1).await;
    }
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(residency["devices"][0]["residents"].as_array().unwrap().len(), 4, "{residency}");
    assert_near(charged(&residency), budget - BESIDE);

    // Twelve long answers at a time: far more than one sequence of the context.
    let (watched, over) = (Arc::clone(&server), Arc::new(AtomicBool::new(false)));
    let done = Arc::clone(&over);
    let watching = tokio::spawn(async move {
        let mut peak = 0;
        while !over.load(Ordering::Relaxed) {
            let residency = watched.admin_get("/admin/v1/residency").await.json();
            let device = &residency["devices"][0];
            let held = number(&device["charged_bytes"]) + number(&device["reserved_bytes"]);
            assert!(held <= number(&device["budget_bytes"]), "{residency}");
            let resident = resident(&residency, "a");
            let kv = &resident["serves"]["kv"];
            assert!(number(&kv["used"]["blocks"]) <= number(&kv["now"]["blocks"]), "{kv}");
            peak = peak.max(number(&resident["bytes"]["kv"]));
        }
        peak
    });
    let answers = prompts().into_iter().map(|prompt| {
        let server = Arc::clone(&server);
        tokio::spawn(async move { generated(&server, "a", &prompt, 120).await })
    });
    for (answer, alone) in answers.collect::<Vec<_>>().into_iter().zip(&alone) {
        assert_eq!(answer.await.unwrap(), *alone);
    }
    done.store(true, Ordering::Relaxed);
    let peak = watching.await.unwrap();
    assert!(peak > 4 * floor, "{peak} of {floor} at least and {most} at most");

    // What the pool does not use any more makes room for one more model; nobody leaves for it.
    generated(&server, "e", "hello", 1).await;
    let residency = server.residency_once(idle).await;
    assert_eq!(residency["devices"][0]["residents"].as_array().unwrap().len(), 5, "{residency}");
    assert_near(charged(&residency), budget - BESIDE + further);
    assert_eq!(server.metric("roundhouse_residency_evictions_total").await, 0.0);
    for (prompt, alone) in prompts().iter().zip(&alone).take(2) {
        assert_eq!(generated(&server, "a", prompt, 120).await, *alone);
    }
    tells_its_facts(&server, floor / token, most / token).await;
}

/// What clients and operators are told of the model, and of what is too long for it.
async fn tells_its_facts(server: &Server, floor: u64, most: u64) {
    let told = server.get("/v1/models/a").await.json();
    assert_eq!((&told["max_model_len"], &told["dtype"]), (&json!(512), &json!("f32")), "{told}");
    let [least, largest] = ["floor_tokens", "most_tokens"].map(|room| number(&told["kv"][room]));
    assert_eq!((least, largest), (floor, most), "{told}");
    let parameters = json!({"max_new_tokens": 120});
    let body = json!({"inputs": "x".repeat(400), "parameters": parameters});
    let refused = server.invoke("default", "a", body).await;
    let why = "400 tokens of prompt and 120 new ones exceed the context of 512 tokens by 8";
    assert!(refused.body.contains(why), "{}", refused.body);
    let body = json!({"model": "a", "prompt": "x".repeat(520), "max_tokens": 5});
    let refused = server.post("/v1/completions", body).await;
    let why =
        "it has 520 tokens, 9 too many for one token of an answer in the context of 512 tokens";
    assert!((refused.status == 400) && refused.body.contains(why), "{}", refused.body);
}
