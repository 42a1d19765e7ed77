//! Quantised models through the real binary: GGUF files in every form a target has, sharing,
//! quantising while reading, and refusals that come before any download.

use std::path::{Path, PathBuf};
use std::process::Command;

use roundhouse_tests::models::{decoder, tar_gz};
use roundhouse_tests::server::{Server, binary};
use serde_json::{Value, json};

/// What a debug build's threads and the allocator's holes may add on a busy machine.
const NOISE: i64 = 24 << 20;

fn reference(case: &str) -> PathBuf {
    let references = "../src/models/tests/references";
    Path::new(env!("CARGO_MANIFEST_DIR")).join(references).join(case).join("model.gguf")
}

fn planned(args: &[&str], quantize: &str) -> Value {
    let mut command = Command::new(binary());
    command.arg("plan").args(args).arg("--json").env("ROUNDHOUSE_SERVING_QUANTIZE", quantize);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn serve(store: &Path, cache: &Path, quantize: &str) -> Server {
    let uri = format!("file://{}/", store.display());
    let args = ["serve", "--store", &uri, "--cache-dir", cache.to_str().unwrap()];
    Server::start(&args, &[("ROUNDHOUSE_SERVING_QUANTIZE", quantize)]).await
}

/// The tokens that a target generates, each with its probability.
async fn generated(server: &Server, target: &str) -> Value {
    let parameters = json!({"max_new_tokens": 6, "details": true, "do_sample": false});
    let body = json!({"inputs": "hello world", "parameters": parameters});
    let answer = server.invoke("default", target, body).await;
    assert_eq!(answer.status, 200, "{target}: {}", answer.body);
    answer.json()["details"]["tokens"].clone()
}

async fn resident(server: &Server, target: &str) -> Value {
    let residency = server.admin_get("/admin/v1/residency").await.json();
    let residents = residency["devices"][0]["residents"].as_array().unwrap().clone();
    let of_target = |it: &Value| it.to_string().contains(&format!("\"{target}\""));
    residents.into_iter().find(of_target).unwrap_or_else(|| panic!("{target} in {residency}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gguf_file_answers_alike_as_an_object_in_a_folder_and_in_an_archive() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let body = std::fs::read(reference("gguf-q4_k_m")).unwrap();
    std::fs::create_dir_all(store.path().join("tenant/folder")).unwrap();
    std::fs::write(store.path().join("tenant/chat.gguf"), &body).unwrap();
    std::fs::write(store.path().join("tenant/folder/any-name.gguf"), &body).unwrap();
    let packed = tar_gz(&[("chat.gguf".into(), body)]);
    std::fs::write(store.path().join("tenant/packed.tar.gz"), packed).unwrap();
    let server = serve(store.path(), cache.path(), "none").await;
    let mut answers = Vec::new();
    for target in ["tenant/chat.gguf", "tenant/folder", "tenant/packed.tar.gz"] {
        answers.push(generated(&server, target).await);
        let local = store.path().join(target);
        let plan = planned(&[local.to_str().unwrap()], "none")["targets"][0].clone();
        assert_eq!(plan["grade"], "exact");
        assert_eq!(plan["architecture"], "llama");
        let charged = resident(&server, target).await["bytes"].clone();
        for part in ["weights", "kv", "workspace"] {
            assert_eq!(charged[part], plan["bytes"][part], "{target}: {part}");
        }
        let formats = plan["weights"].as_array().unwrap();
        assert!(formats.iter().any(|share| share["memory_dtype"] == "q4_k"), "{formats:?}");
    }
    assert_eq!(answers[0].as_array().map(Vec::len), Some(6));
    assert!(answers[0] == answers[1] && answers[1] == answers[2]);
    let messages = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3});
    let chat = server.invoke("default", "tenant/chat.gguf", messages).await;
    assert_eq!(chat.status, 200, "{}", chat.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn mixtures_of_experts_answer_and_take_what_was_planned() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["mixtral", "qwen3moe"] {
        let target = store.path().join(format!("{name}.gguf"));
        std::fs::copy(reference(&format!("gguf-family-{name}")), target).unwrap();
    }
    let server = serve(store.path(), cache.path(), "none").await;
    for (target, architecture) in [("mixtral.gguf", "llama"), ("qwen3moe.gguf", "qwen3moe")] {
        let tokens = generated(&server, target).await;
        assert_eq!(tokens.as_array().map(Vec::len), Some(6));
        assert_eq!(tokens, generated(&server, target).await, "the same again");
        let local = store.path().join(target);
        let plan = planned(&[local.to_str().unwrap()], "none")["targets"][0].clone();
        assert_eq!(
            (&plan["architecture"], &plan["kv_dtype"]),
            (&json!(architecture), &json!("f16"))
        );
        let charged = resident(&server, target).await["bytes"].clone();
        for part in ["weights", "kv", "workspace"] {
            assert_eq!(charged[part], plan["bytes"][part], "{target}: {part}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_quantised_fine_tunes_are_charged_for_what_they_share_once() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = std::fs::read(reference("gguf-q6_k")).unwrap();
    let mut tuned = base.clone();
    // The scales of the last projection's last block.
    let end = tuned.len() - 40;
    tuned[end] ^= 1;
    std::fs::write(store.path().join("base.gguf"), base).unwrap();
    std::fs::write(store.path().join("tuned.gguf"), tuned).unwrap();
    let server = serve(store.path(), cache.path(), "none").await;
    generated(&server, "base.gguf").await;
    generated(&server, "tuned.gguf").await;
    let residency = server.admin_get("/admin/v1/residency").await.json();
    let device = &residency["devices"][0];
    let sum = |it: &Value| {
        it["bytes"].as_object().unwrap().values().map(|part| part.as_i64().unwrap()).sum::<i64>()
    };
    let residents = device["residents"].as_array().unwrap();
    let shared = residents[0]["shared_bytes"].as_i64().unwrap();
    // Embeddings and head: 320 rows of one block, each with its table.
    assert_eq!(shared, 2 * (320 * 210 + 64));
    let wholes: i64 = residents.iter().map(sum).sum();
    assert_eq!(device["charged_bytes"].as_i64(), Some(wholes - shared));
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_quantised_while_they_are_read_take_what_was_planned() {
    let _alone = crate::HEAVY.lock().await;
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (target, settings) in [("wide", Some("none")), ("own", Some("q4_k")), ("plain", None)] {
        let folder = store.path().join(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (path, body) in decoder(60) {
            std::fs::write(folder.join(path), body).unwrap();
        }
        if let Some(quantize) = settings {
            let text = format!("[model]\nquantize = \"{quantize}\"\n");
            std::fs::write(folder.join("roundhouse.toml"), text).unwrap();
        }
    }
    let server = serve(store.path(), cache.path(), "q8_0").await;
    let mut weights = Vec::new();
    for target in ["wide", "plain", "own"] {
        generated(&server, target).await;
        let local = store.path().join(target);
        let plan = planned(&[local.to_str().unwrap()], "q8_0")["targets"][0].clone();
        let charged = resident(&server, target).await["bytes"].clone();
        for part in ["weights", "kv", "workspace"] {
            assert_eq!(charged[part], plan["bytes"][part], "{target}: {part}");
        }
        let warnings = plan["warnings"].to_string();
        assert_eq!(warnings.contains("mlp.down_proj"), target == "own", "{warnings}");
        weights.push(charged["weights"].as_f64().unwrap());
    }
    assert!((weights[0] / weights[1] - 32.0 / 8.5).abs() < 0.05, "{weights:?}");
    assert!(weights[2] < 0.7 * weights[1], "{weights:?}");
    // What the loads used on the way is given back a little later.
    let agree = |it: &Value| {
        let of = |key: &str| it["memory"][key].as_i64().unwrap_or(0);
        of("untouched_bytes") > 0 && (of("witness_bytes") - of("expected_bytes")).abs() < NOISE
    };
    server.residency_once(agree).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_refused_before_its_weights_are_fetched() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = store.path().join("awq");
    std::fs::create_dir_all(&folder).unwrap();
    for (path, body) in decoder(20) {
        let body = match path.as_str() {
            "config.json" => {
                let mut config: Value = serde_json::from_slice(&body).unwrap();
                config["quantization_config"] = json!({"quant_method": "awq", "bits": 4});
                config.to_string().into_bytes()
            }
            _ => body,
        };
        std::fs::write(folder.join(path), body).unwrap();
    }
    let whole = std::fs::read(reference("gguf-q4_k_m")).unwrap();
    let mut newer = whole.clone();
    // A tensor's description: its name, two dimensions, its type.
    let name = b"blk.0.attn_q.weight";
    let at = whole.windows(name.len()).position(|window| window == name).unwrap();
    let kind = at + name.len() + 4 + 2 * 8;
    assert_eq!(newer[kind], 12, "Q4_K");
    newer[kind] = 23;
    std::fs::write(store.path().join("newer.gguf"), newer).unwrap();
    std::fs::write(store.path().join("cut.gguf"), &whole[..whole.len() - 5000]).unwrap();
    let server = serve(store.path(), cache.path(), "none").await;
    for (target, reason) in [
        ("awq", "by 'awq'"),
        ("newer.gguf", "tensor 'blk.0.attn_q.weight' is of type IQ4_XS"),
        ("cut.gguf", "truncated or damaged"),
    ] {
        let answer = server.invoke("default", target, json!({"inputs": "hello"})).await;
        assert!(answer.status >= 400, "{target}");
        assert!(answer.body.contains(reason), "{target}: {}", answer.body);
    }
    assert_eq!(server.metric("roundhouse_store_fetched_bytes_total").await, 0.0);
}
