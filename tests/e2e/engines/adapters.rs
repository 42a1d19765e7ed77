//! Adapters in engines, by vLLM's routes and by SGLang's.

use roundhouse_tests::adapters::signed_of_rank;

use super::{Stage, ask, residents, said};

const KEYS: &str = "memory = \"64MiB\"\nadapters = \"vllm\"\nslots = 2";

fn adapter(stage: &Stage, target: &str, rank: usize) {
    let files = signed_of_rank("gpt/a", 2, 1, rank);
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, body)| (name.as_str(), body.as_slice())).collect();
    stage.put(target, &files);
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_loaded_into_their_bases_engine_within_its_slots() {
    let stage = Stage::new();
    stage.model("gpt/a");
    for target in ["acme/x", "acme/y", "acme/z"] {
        adapter(&stage, target, 1);
    }
    let settings = "[residency]\npolicy = \"lru\"";
    let server = stage.serve(settings, &[stage.engine("gpt/*", &["--max-loras", "2"], KEYS)]).await;
    let [_, x, _, process] = said(&server, "acme/x", "one").await;
    assert!(x.starts_with("acme-x-"), "the engine has a name of its own for it: {x}");
    let [weights, y, prompt, same] = said(&server, "acme/y", "two").await;
    assert_eq!((&*weights, &*prompt, same), ("gpt/a", "two", process.clone()));
    assert_eq!(said(&server, "gpt/a", "x").await[1], "gpt/a", "the base answers as itself");
    assert_eq!(said(&server, "acme/x", "x").await[1], x);
    // The one that was not used for the longest time leaves for the third.
    let [_, z, _, _] = said(&server, "acme/z", "x").await;
    let journal = stage.journal();
    let want = ["start".into(), format!("load {x}"), format!("load {y}"), format!("unload {y}")];
    let want = want.into_iter().chain([format!("load {z}")]).map(|it| format!("gpt/a {it}"));
    assert_eq!(journal, want.collect::<Vec<_>>());
    let on_device = residents(&server).await;
    let kinds: Vec<&str> = on_device.iter().map(|it| it["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "adapter").count(), 2, "{on_device:?}");
    // With its base all of them leave.
    let answer = server.admin_post("unload", "default", "gpt/a").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(residents(&server).await.is_empty());
    assert!(stage.engines().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_its_engine_refuses_is_told_with_what_the_engine_says() {
    let stage = Stage::new();
    stage.model("gpt/a").model("plain/b");
    adapter(&stage, "acme/large", 32);
    adapter(&stage, "acme/x", 1);
    let plain = stage.engine("plain/*", &[], "memory = \"64MiB\"");
    let engines = [stage.engine("gpt/*", &["--max-loras", "2"], KEYS), plain];
    let server = stage.serve("", &engines).await;
    let answer = server.invoke("default", "acme/large", super::chat("", "x")).await;
    assert_eq!(answer.status, 424, "{}", answer.body);
    assert!(
        answer.body.contains("LoRA rank 32 is greater than max_lora_rank 16"),
        "{}",
        answer.body
    );
    assert!(answer.body.contains("acme/large"), "{}", answer.body);
    assert_eq!(said(&server, "acme/x", "x").await[0], "gpt/a", "its place is free for others");
    let files = signed_of_rank("plain/b", 2, 1, 1);
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, body)| (name.as_str(), body.as_slice())).collect();
    stage.put("acme/plain", &files);
    let answer = ask(&server, "acme/plain", "x").await;
    assert!(answer.body.contains("takes no adapters"), "{} {}", answer.status, answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn sglang_is_spoken_by_its_own_routes_and_names() {
    let stage = Stage::new();
    stage.model("gpt/a");
    adapter(&stage, "acme/x", 1);
    let keys = "memory = \"64MiB\"\nadapters = \"sglang\"\nslots = 1";
    let server = stage.serve("", &[stage.engine("gpt/*", &["--max-loras", "1"], keys)]).await;
    let [_, name, _, _] = said(&server, "acme/x", "x").await;
    assert!(name.starts_with("gpt/a:acme-x-"), "{name}");
}
