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
    let folder = root().join(REFERENCES).join("wordpiece");
    let tokenizer = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
    let mut files: Vec<_> = tokenizer.iter().map(|name| file(&folder, name)).collect();
    let own = ["config.json", "model.safetensors"];
    files.extend(own.iter().map(|name| file(&folder.join("feature-extraction"), name)));
    let prompts = json!({
        "prompts": {"query": "coal and ", "document": ""}, "default_prompt_name": "query",
    });
    files.push(("config_sentence_transformers.json".into(), prompts.to_string().into_bytes()));
    site.put("prompted", &files);
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
async fn texts_are_embedded_with_the_prompts_that_their_model_wants() {
    let (_site, server) = server().await;
    let (plain, prompted) = ("wordpiece/feature-extraction", "prompted");
    let vector = async |model: &str, input: &str, prompt: Option<&str>| {
        let body = json!({"model": model, "input": input, "prompt_name": prompt});
        server.post("/v1/embeddings", body).await.json()["data"][0]["embedding"].clone()
    };
    let want = vector(plain, "coal and water", None).await;
    same(&vector(prompted, "water", None).await, &want, "its default");
    same(&vector(prompted, "water", Some("query")).await, &want, "by name");
    same(&vector(prompted, "coal and water", Some("document")).await, &want, "an empty one");
    let body = json!({"inputs": "water", "parameters": {"prompt_name": "query"}});
    check(&server, prompted, body, &want).await;
    for (model, told) in [(prompted, "document, query"), (plain, "no prompts")] {
        let body = json!({"model": model, "input": "water", "prompt_name": "other"});
        let refused = server.post("/v1/embeddings", body).await;
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert!(refused.body.contains(told), "{}", refused.body);
    }
    let embedded = server.post("/embed", json!({"model": prompted, "inputs": ["water"]})).await;
    let length = |vector: &Value| {
        let numbers = vector.as_array().unwrap().iter().map(|number| number.as_f64().unwrap());
        numbers.map(|number| number * number).sum::<f64>()
    };
    same(&json!(length(&embedded.json()[0])), &json!(1.0), "length");
    // A query is told from the document that it is the same as; a sentence is not.
    let documents = json!({"model": prompted, "query": "water", "texts": ["water"]});
    let apart = server.post("/rerank", documents).await.json()[0]["score"].as_f64().unwrap();
    let sentences = json!({"source_sentence": "water", "sentences": ["water"]});
    let alike = json!({"model": prompted, "inputs": sentences});
    let alike = server.post("/similarity", alike).await.json()[0].as_f64().unwrap();
    assert!(apart < 0.999 && alike > 0.999, "{apart} {alike}");
    let info = server.http().get(format!("{}/info?model={prompted}", server.data)).send().await;
    let info: Value = info.unwrap().json().await.unwrap();
    assert_eq!(info["max_client_batch_size"], 2048, "{info}");
    // What is no classifier predicts nothing.
    let refused = server.post("/predict", json!({"model": plain, "inputs": "water"})).await;
    assert_eq!(refused.status, 422, "{}", refused.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hugging_face_client_asks_every_task() {
    let (_site, server) = server().await;
    let url = server.data.clone();
    tokio::task::spawn_blocking(move || python::client("hf_tasks.py", &[&url])).await.unwrap();
}
