//! What the suites of Triton, multi-model-server and the toolkits check.

use std::path::Path;

use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::server::{Answer, Server};
use serde_json::{Value, json};

use super::place;

/// Two models below a root, and a server that SageMaker would start over it.
async fn platform(root: &Path) -> Server {
    for (name, version) in [("123456789abcdefghi", 1), ("987654321ihgfedcba", 2)] {
        place(&root.join(name).join("model"), &signed_classifier(name, version, 0));
    }
    let root = root.display().to_string();
    let args = ["serve", "--container-models-root", &root, "--memory", "256MiB"];
    Server::start(&args, &[("SAGEMAKER_MULTI_MODEL", "true")]).await
}

fn url(root: &Path, name: &str) -> String {
    root.join(name).join("model").display().to_string()
}

async fn delete(server: &Server, name: &str) -> Answer {
    server.send(server.http().delete(format!("{}/models/{name}", server.data))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_models_are_loaded_listed_asked_and_unloaded_as_triton_checks_it() {
    let root = tempfile::tempdir().unwrap();
    let server = platform(root.path()).await;
    let (one, two) = ("sm_mme_model_1", "sm_mme_model_2");
    let load = |name: &str, folder: &str| {
        let body = json!({"model_name": name, "url": url(root.path(), folder)});
        server.post("/models", body)
    };
    assert_eq!(load(one, "123456789abcdefghi").await.status, 200);
    assert_eq!(load(one, "123456789abcdefghi").await.status, 409);
    assert_eq!(load(two, "987654321ihgfedcba").await.status, 200);
    let object =
        |name: &str, folder: &str| json!({"modelName": name, "modelUrl": url(root.path(), folder)});
    let listed = server.get("/models").await.json();
    let want = [object(one, "123456789abcdefghi"), object(two, "987654321ihgfedcba")];
    assert_eq!(listed, json!({"models": want}));
    assert_eq!(server.get("/models/sm_mme_model_1").await.json(), want[0]);
    let ask = |name: &str| {
        let request = server.http().post(format!("{}/models/{name}/invoke", server.data));
        // The platform sends what its client called the model.
        let request = request.header("X-Amzn-SageMaker-Target-Model", "team/chat.tar.gz");
        server.send(request.json(&json!({"inputs": "hello"})))
    };
    for (name, folder, version) in [(one, "123456789abcdefghi", 1), (two, "987654321ihgfedcba", 2)]
    {
        let answer = ask(name).await;
        assert_eq!(answer.json()[0]["label"], signature(folder, version), "{}", answer.body);
        assert_eq!(answer.header("x-request-id"), answer.header("x-amzn-requestid"));
    }
    for name in [one, two] {
        assert_eq!(delete(&server, name).await.status, 200);
    }
    assert_eq!(delete(&server, "sm_non_loaded_model").await.status, 404);
    assert_eq!(ask(one).await.status, 404);
    // Again under the same name, at once.
    assert_eq!(load(one, "987654321ihgfedcba").await.status, 200);
    assert_eq!(ask(one).await.json()[0]["label"], signature("987654321ihgfedcba", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_lists_and_refusals_are_those_of_multi_model_server() {
    let root = tempfile::tempdir().unwrap();
    let server = platform(root.path()).await;
    let (one, two) =
        (url(root.path(), "123456789abcdefghi"), url(root.path(), "987654321ihgfedcba"));
    assert_eq!(server.get("/ping").await.json()["status"], "Healthy");
    assert_eq!(server.get("/models").await.json(), json!({"models": []}));
    let by_query =
        format!("/models?url={one}&model_name=resnet_152&initial_workers=1&synchronous=true");
    let loaded = server.send(server.http().post(format!("{}{by_query}", server.data))).await;
    assert_eq!(loaded.status, 200, "{}", loaded.body);
    assert!(loaded.json()["status"].is_string());
    let strings = json!({"model_name": "resnet_18", "url": two, "initial_workers": "1"});
    assert_eq!(server.post("/models", strings.clone()).await.status, 200);
    let names = |listed: Value| -> Vec<String> {
        let all = listed["models"].as_array().unwrap().iter();
        all.map(|it| it["modelName"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(server.get("/models?limit=200").await.json()), ["resnet_152", "resnet_18"]);
    let invoked = server.post("/invocations?model_name=resnet_18", json!({"inputs": "x"})).await;
    assert_eq!(invoked.json()[0]["label"], signature("987654321ihgfedcba", 2), "{}", invoked.body);
    let refused = |answer: &Answer, status: u16| {
        assert_eq!(answer.status, status, "{}", answer.body);
        let body = answer.json();
        assert_eq!(body["code"], status, "{body}");
        assert!(body["type"].is_string() && body["message"].is_string(), "{body}");
    };
    refused(&server.post("/models", strings).await, 409);
    refused(&server.post("/models", json!({"model_name": "x"})).await, 400);
    let missing = root.path().join("banana").display().to_string();
    let nowhere = json!({"model_name": "banana", "url": missing});
    refused(&server.post("/models", nowhere).await, 404);
    refused(&server.get("/models/InvalidModel").await, 404);
    refused(&delete(&server, "fake").await, 404);
    refused(&server.post("/models/fake/invoke", json!({"inputs": "x"})).await, 404);
    refused(&server.post("/models/resnet_18", json!({})).await, 405);
    let put = server.http().put(format!("{}/models", server.data));
    refused(&server.send(put).await, 405);
    refused(&server.get("/models/resnet_18/nothing").await, 404);
    let large = server.http().post(format!("{}/models/resnet_18/invoke", server.data));
    refused(&server.send(large.body(vec![b' '; 7 << 20])).await, 413);
    assert_eq!(
        delete(&server, "resnet_152").await.json()["status"],
        "Model \"resnet_152\" unregistered"
    );
    assert_eq!(names(server.get("/models").await.json()), ["resnet_18"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_come_and_go_side_by_side_while_another_answers() {
    const ROUNDS: usize = 12;
    let root = tempfile::tempdir().unwrap();
    let server = platform(root.path()).await;
    let load = async |name: &str, folder: &str| {
        let body = json!({"model_name": name, "url": url(root.path(), folder)});
        server.post("/models", body).await.status
    };
    let invoke = async |name: &str| {
        server.post(&format!("/models/{name}/invoke"), json!({"inputs": "hello"})).await
    };
    assert_eq!(load("stays", "123456789abcdefghi").await, 200);
    let come_and_go = async |name: &str, folder: &str, version: u32| {
        for _ in 0..ROUNDS {
            assert_eq!(load(name, folder).await, 200, "{name}");
            let answer = invoke(name).await;
            assert_eq!(answer.json()[0]["label"], signature(folder, version), "{}", answer.body);
            assert_eq!(delete(&server, name).await.status, 200, "{name}");
            assert_eq!(invoke(name).await.status, 404, "{name}");
        }
    };
    let stay = async {
        for _ in 0..ROUNDS {
            let answer = invoke("stays").await;
            assert_eq!(answer.json()[0]["label"], signature("123456789abcdefghi", 1));
            let listed = server.get("/models").await.json();
            let models = listed["models"].as_array().unwrap();
            assert!(models.iter().any(|it| it["modelName"] == "stays"), "{listed}");
            assert_eq!(server.get("/ping").await.status, 200);
        }
    };
    tokio::join!(
        come_and_go("one", "123456789abcdefghi", 1),
        come_and_go("two", "987654321ihgfedcba", 2),
        come_and_go("three", "987654321ihgfedcba", 2),
        stay,
    );
    let listed = server.get("/models").await.json();
    assert_eq!(listed["models"].as_array().unwrap().len(), 1, "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_and_invocations_are_those_of_the_toolkits_suites() {
    let root = tempfile::tempdir().unwrap();
    let server = platform(root.path()).await;
    let folder = url(root.path(), "123456789abcdefghi");
    let load =
        |name: &str, url: &str| server.post("/models", json!({"model_name": name, "url": url}));
    // An empty host is well, lists nothing, and has nothing to delete or to ask.
    assert_eq!(server.get("/ping").await.status, 200);
    assert_eq!(server.get("/models").await.json(), json!({"models": []}));
    assert_eq!(delete(&server, "never_loaded").await.status, 404);
    let invoked = server.post("/models/never_loaded/invoke", json!({"inputs": "x"})).await;
    assert_eq!(invoked.status, 404, "{}", invoked.body);
    // What does not exist is not loaded, and leaves nothing behind.
    let missing = load("fake", &url(root.path(), "fake")).await;
    assert_eq!(missing.status, 404, "{}", missing.body);
    // Several names of one folder are several models, each once.
    for number in 0..5 {
        let name = format!("resnet_{number}");
        let loaded = load(&name, &folder).await;
        assert_eq!(loaded.status, 200, "{}", loaded.body);
        let status = loaded.json()["status"].as_str().unwrap().to_owned();
        assert!(status.contains(&name) || status.contains("Workers"), "{status}");
        assert_eq!(load(&name, &folder).await.status, 409);
    }
    let listed = server.get("/models").await.json();
    for (number, model) in listed["models"].as_array().unwrap().iter().enumerate() {
        let want = json!({"modelName": format!("resnet_{number}"), "modelUrl": folder});
        assert_eq!(*model, want);
    }
    // The payload and its type are the client's; the answer's type is what it accepts.
    let request = server.http().post(format!("{}/models/resnet_3/invoke", server.data));
    let request = request.header("content-type", "text/csv").header("accept", "text/csv");
    let answer = server.send(request.body("inputs\nhello\n")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.header("content-type").starts_with("text/csv"), "{:?}", answer.headers);
    assert!(answer.body.contains(&signature("123456789abcdefghi", 1)), "{}", answer.body);
    // What was unloaded is gone until it is loaded again.
    assert_eq!(delete(&server, "resnet_3").await.status, 200);
    assert_eq!(delete(&server, "resnet_3").await.status, 404);
    let gone = server.post("/models/resnet_3/invoke", json!({"inputs": "x"})).await;
    assert_eq!(gone.status, 404, "{}", gone.body);
    assert_eq!(load("resnet_3", &folder).await.status, 200);
    let back = server.post("/models/resnet_3/invoke", json!({"inputs": "x"})).await;
    assert_eq!(back.status, 200, "{}", back.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_own_port_tells_metrics_and_batch_jobs() {
    let root = tempfile::tempdir().unwrap();
    let server = platform(root.path()).await;
    let metrics = server.get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("text/plain"), "{:?}", metrics.headers);
    assert!(metrics.body.contains("roundhouse_memory_configured_bytes"), "{}", metrics.body);
    let batch = server.get("/execution-parameters").await.json();
    assert_eq!(
        (&batch["BatchStrategy"], &batch["MaxPayloadInMB"]),
        (&json!("SINGLE_RECORD"), &json!(6))
    );
}
