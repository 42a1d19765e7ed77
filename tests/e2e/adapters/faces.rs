//! The demo's adapters, through every face and real clients.

use roundhouse_tests::python;
use roundhouse_tests::server::{Server, root};
use serde_json::{Value, json};

use super::{hello, resident};

const ADAPTERS: &str = "tests/models/adapter_expectations.json";
const NATIVE: &str = "tests/models/demo_expectations.json";

async fn demo() -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let server = Server::start(&["demo", "--data-dir", path], &[]).await;
    (folder, server)
}

fn expectations(file: &str) -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(root().join(file)).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_and_openai_ask_the_demos_adapters_among_its_models() {
    let _alone = crate::HEAVY.lock().await;
    let (_folder, server) = demo().await;
    let (url, files) = (server.data.clone(), [ADAPTERS, NATIVE].map(|it| root().join(it)));
    let count: usize = [ADAPTERS, NATIVE].iter().map(|it| expectations(it).len()).sum();
    let printed = tokio::task::spawn_blocking(move || {
        let files = files.map(|it| it.display().to_string());
        let args = [url.as_str(), "demo", &files[0], &files[1]];
        let answered = python::client("boto3_demo.py", &args);
        python::client("openai_adapter.py", &[&url, "support/base", "adapters/garnet"]);
        python::client("hf_generate.py", &[&url, "support/base", "adapters/garnet"]);
        answered
    });
    assert_eq!(printed.await.unwrap().trim(), format!("{count} answers right"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_batch_answers_as_each_alone() {
    let _alone = crate::HEAVY.lock().await;
    let (_folder, server) = demo().await;
    let entries = expectations(ADAPTERS);
    let asked = entries.iter().filter(|it| it["messages"].is_array()).take(60).map(|entry| {
        let body = json!({"messages": entry["messages"], "temperature": 0, "max_tokens": 96});
        let asking = server.invoke("demo", entry["target"].as_str().unwrap(), body);
        async move { (entry, asking.await) }
    });
    for (entry, answer) in futures_util::future::join_all(asked).await {
        let said = &answer.json()["choices"][0]["message"]["content"];
        assert_eq!(said, &entry["text"], "{entry} {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_comes_with_its_base_and_leaves_with_it() {
    let (_folder, server) = demo().await;
    let target = "adapters/iris";
    let chat = json!({"model": target, "temperature": 0, "max_tokens": 48,
        "messages": [{"role": "user", "content": "When are you open?"}]});
    let cold = server.post("/v1/chat/completions", chat.clone()).await;
    assert_eq!(cold.status, 200, "{}", cold.body);
    assert_eq!(cold.header("x-roundhouse-tier"), "store");
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(resident(&residency, target)["kind"], "adapter");
    assert_eq!(resident(&residency, target)["base"]["model"]["target"], "support/base");
    assert_eq!(resident(&residency, "support/base")["adapters"], 1);
    let one = server.get("/v1/models/adapters/iris").await.json();
    assert_eq!((&one["parent"], &one["root"]), (&json!("support/base"), &json!(target)));
    let metrics = server.admin_get("/metrics").await.body;
    assert!(metrics.contains("vllm:lora_requests_info{"), "{metrics}");
    assert_eq!(server.metric("roundhouse_adapters_resident").await, 1.0);
    assert_eq!(server.metric("roundhouse_adapter_load_seconds_count").await, 1.0);

    let unloaded = server.admin_post("unload", "demo", "support/base").await;
    assert_eq!(unloaded.status, 200, "{}", unloaded.body);
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert!(resident(&residency, target).is_null(), "{residency}");
    assert_eq!(server.metric("roundhouse_adapters_resident").await, 0.0);
    let again = server.post("/v1/chat/completions", chat).await;
    assert_eq!(again.header("x-roundhouse-tier"), "disk", "{}", again.body);
    let content = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    assert_eq!(content(&again.json()), content(&cold.json()));
}

#[tokio::test(flavor = "multi_thread")]
async fn lmi_tgi_and_sagemakers_header_name_an_adapter_beside_its_base() {
    let (_folder, server) = demo().await;
    let prompt = "Question: Where are you located?\nAnswer:";
    let wanted = |company: &str| {
        let target = format!("adapters/{company}");
        let mut entries = expectations(ADAPTERS).into_iter();
        let found = entries.find(|it| it["target"] == target.as_str() && it["prompt"] == prompt);
        found.unwrap()["text"].clone()
    };
    let parameters = json!({"max_new_tokens": 96});
    let lmi = json!({"inputs": prompt, "parameters": parameters, "adapters": "adapters/garnet"});
    let answer = server.invoke("demo", "support/base", lmi).await;
    assert_eq!(answer.json()["generated_text"], wanted("garnet"), "{}", answer.body);
    let tgi = json!({"inputs": prompt,
        "parameters": {"max_new_tokens": 96, "adapter_id": "adapters/iris"}});
    let answer = server.invoke("demo", "support/base", tgi).await;
    assert_eq!(answer.json()["generated_text"], wanted("iris"), "{}", answer.body);
    let each = json!({"inputs": [prompt, prompt, prompt], "parameters": parameters,
        "adapters": ["adapters/harbor", "", "adapters/garnet"]});
    let answer = server.invoke("demo", "support/base", each).await.json();
    assert_eq!(answer[0]["generated_text"], wanted("harbor"), "{answer}");
    assert_ne!(answer[1]["generated_text"], answer[0]["generated_text"]);
    assert_eq!(answer[2]["generated_text"], wanted("garnet"));
    let plain = json!({"inputs": prompt, "parameters": parameters});
    let request = server
        .http()
        .post(format!("{}/invocations", server.data))
        .header("x-amzn-sagemaker-target-model", "support/base")
        .header("x-amzn-sagemaker-adapter-identifier", "adapters/harbor")
        .json(&plain);
    let answer = server.send(request).await;
    assert_eq!(answer.json()["generated_text"], wanted("harbor"), "{}", answer.body);

    let wrong = json!({"inputs": "late", "adapters": "adapters/harbor"});
    let refused = server.invoke("demo", "tickets/intent.tar.gz", wrong).await;
    let is = "adapters names 'adapters/harbor', which is an adapter of 'support/base', not of \
              'tickets/intent.tar.gz'";
    assert!(refused.body.contains(is), "{}", refused.body);
    let none = json!({"inputs": "late", "adapters": "support/aurora"});
    let refused = server.invoke("demo", "support/base", none).await;
    assert!(refused.body.contains("is no adapter"), "{}", refused.body);
    let unknown = json!({"inputs": "late", "adapters": "adapters/none"});
    let refused = server.invoke("demo", "support/base", unknown).await;
    let message = &refused.json()["Message"];
    assert_eq!(message, "model 'demo:adapters/none' not found", "{}", refused.body);
    // Named twice it is one and the same; what is none is not made one by its name.
    for (target, status) in [("adapters/harbor", 200), ("support/base", 424)] {
        let twice = json!({"inputs": "late", "adapters": target});
        let answer = server.invoke("demo", target, twice).await;
        assert_eq!(answer.status, status, "{target}: {}", answer.body);
    }
    assert_eq!(server.invoke("demo", "tickets/intent.tar.gz", hello()).await.status, 200);
}
