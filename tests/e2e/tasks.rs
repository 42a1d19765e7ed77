//! The tasks of encoders through the real binary, held against the pipelines of transformers, and
//! by the Hugging Face client.

use std::path::Path;

use roundhouse_tests::python;
use roundhouse_tests::server::{Server, root};
use roundhouse_tests::site::Site;
use serde_json::{Value, json};

const REFERENCES: &str = "src/serving/tests/references/tasks";
const TOKENIZERS: [&str; 2] = ["wordpiece", "bytes"];
/// Scores are probabilities.
const TOLERANCE: f64 = 1e-3;

/// A server whose store holds each reference model, as `<tokenizer>/<task>`, and a cross-encoder.
async fn server() -> (Site, Server) {
    let site = Site::default();
    site.configure("", "", "");
    for tokenizer in TOKENIZERS {
        let folder = root().join(REFERENCES).join(tokenizer);
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            if !entry.file_type().unwrap().is_dir() {
                continue;
            }
            let files = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
            let mut files: Vec<_> = files.iter().map(|name| file(&folder, name)).collect();
            let own = ["config.json", "model.safetensors"];
            files.extend(own.iter().map(|name| file(&entry.path(), name)));
            let task = entry.file_name().into_string().unwrap();
            site.put(&format!("{tokenizer}/{task}"), &files);
        }
    }
    let one_label = root().join("src/models/tests/references/bert-one-label");
    let names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let files: Vec<_> = names.iter().map(|name| file(&one_label, name)).collect();
    site.put("cross-encoder", &files);
    let server = site.start().await;
    (site, server)
}

fn file(folder: &Path, name: &str) -> (String, Vec<u8>) {
    (name.into(), std::fs::read(folder.join(name)).unwrap())
}

fn expected(tokenizer: &str) -> Value {
    let path = root().join(REFERENCES).join(tokenizer).join("expected.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Holds two answers against each other: numbers nearly equal, all else equal.
fn same(got: &Value, want: &Value, of: &str) {
    match (got, want) {
        (Value::Number(got), Value::Number(want)) => {
            let (got, want) = (got.as_f64().unwrap(), want.as_f64().unwrap());
            assert!((got - want).abs() <= TOLERANCE * want.abs().max(1.0), "{got} {want} {of}");
        }
        (Value::Array(got), Value::Array(want)) if got.len() == want.len() => {
            got.iter().zip(want).for_each(|(got, want)| same(got, want, of));
        }
        (Value::Object(got), Value::Object(want)) if got.len() == want.len() => {
            for (name, want) in want {
                same(&got[name], want, of);
            }
        }
        _ => assert_eq!(got, want, "{of}"),
    }
}

async fn check(server: &Server, target: &str, body: Value, want: &Value) {
    let of = format!("{target} {body}");
    let answer = server.invoke("default", target, body).await;
    assert_eq!(answer.status, 200, "{of}: {}", answer.body);
    same(&answer.json(), want, &of);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_those_of_the_pipelines() {
    let (_site, server) = server().await;
    for tokenizer in TOKENIZERS {
        let told = expected(tokenizer);
        let target = |task: &str| format!("{tokenizer}/{task}");
        for case in told["entities"]["cases"].as_array().unwrap() {
            let parameters = json!({
                "aggregation_strategy": case["aggregation"], "ignore_labels": case["ignored"],
                "stride": case["stride"],
            });
            let body = json!({"inputs": case["text"], "parameters": parameters});
            check(&server, &target("token-classification"), body, &case["answer"]).await;
        }
        for case in told["fills"].as_array().unwrap() {
            let body = json!({"inputs": case["text"], "parameters": case["parameters"]});
            check(&server, &target("fill-mask"), body, &case["answer"]).await;
        }
        for case in told["answers"].as_array().unwrap() {
            let inputs = json!({"question": case["question"], "context": case["context"]});
            let body = json!({"inputs": inputs, "parameters": case["parameters"]});
            check(&server, &target("question-answering"), body, &case["answer"]).await;
        }
        for case in told["zero_shot"]["cases"].as_array().unwrap() {
            let mut parameters = case["parameters"].clone();
            parameters["candidate_labels"] = case["labels"].clone();
            let body = json!({"inputs": case["text"], "parameters": parameters});
            check(&server, &target("zero-shot-classification"), body, &case["answer"]).await;
        }
        for case in told["labels"]["cases"].as_array().unwrap() {
            let inputs = match &case["pair"] {
                Value::Null => case["text"].clone(),
                pair => json!({"text": case["text"], "text_pair": pair}),
            };
            let body = json!({"inputs": inputs, "parameters": case["parameters"]});
            check(&server, &target("text-classification"), body, &case["answer"]).await;
        }
        for case in told["features"].as_array().unwrap() {
            let body = json!({"inputs": case["text"], "task": "feature-extraction"});
            check(&server, &target("feature-extraction"), body, &case["answer"]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_ranked_by_both_kinds_of_models() {
    let (_site, server) = server().await;
    let documents = json!(["coal and water", "the night train", "the night train leaves at seven"]);
    for model in ["cross-encoder", "wordpiece/feature-extraction"] {
        let body = json!({
            "model": model, "query": "the night train leaves at seven", "documents": documents,
            "return_documents": true,
        });
        let answer = server.post("/v1/rerank", body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        let results = answer["results"].as_array().unwrap();
        let score = |at: usize| results[at]["relevance_score"].as_f64().unwrap();
        assert_eq!(results.len(), 3);
        assert!(score(0) >= score(1) && score(1) >= score(2), "{answer}");
        for result in results {
            let index = usize::try_from(result["index"].as_u64().unwrap()).unwrap();
            assert_eq!(result["document"]["text"], documents[index]);
        }
        assert!(answer["usage"]["total_tokens"].as_u64().unwrap() > 6);
        let texts = json!({"model": model, "query": "the night train", "texts": documents});
        let plain = server.post("/rerank", texts).await.json();
        assert_eq!(plain.as_array().unwrap().len(), 3);
    }
    // What is compared with itself is nearest to itself.
    let body = json!({"model": "wordpiece/feature-extraction", "query": "coal", "documents": ["a", "coal"]});
    let best = server.post("/v1/rerank", body).await.json()["results"][0].clone();
    assert_eq!(best["index"], 1);
    same(&best["relevance_score"], &json!(1.0), "itself");
    let body = json!({"model": "wordpiece/fill-mask", "query": "coal", "documents": ["a"]});
    let refused = server.post("/v1/rerank", body).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert!(refused.body.contains("fill-mask model"), "{}", refused.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hugging_face_client_asks_every_task() {
    let (_site, server) = server().await;
    let url = server.data.clone();
    tokio::task::spawn_blocking(move || python::client("hf_tasks.py", &[&url])).await.unwrap();
}
