//! The container contract's adapters: registered by the platform, on bases of the image.

use std::path::Path;

use roundhouse_tests::adapters::{label, labelled_base, signed_adapter};
use roundhouse_tests::server::{Answer, Server};
use serde_json::json;

use super::{LABELS, hello, place, resident, said};

async fn invoke(server: &Server, path: &str, adapter: &str) -> Answer {
    let request = server.http().post(format!("{}{path}", server.data));
    let request = request.header("x-amzn-sagemaker-adapter-identifier", adapter);
    server.send(request.json(&hello())).await
}

fn within(root: &Path, name: &str) -> String {
    root.join(name).display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_registers_asks_lists_and_removes_adapters() {
    let (root, bases) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    place(bases.path(), "org/base", &labelled_base(LABELS));
    for at in 1..=2 {
        place(root.path(), &format!("a{at}"), &signed_adapter("org/base", LABELS, at));
    }
    place(root.path(), "lost", &signed_adapter("org/other", LABELS, 3));
    place(root.path(), "model", &labelled_base(LABELS));
    let (models_root, base_store) = (within(root.path(), ""), within(bases.path(), ""));
    let args = ["serve", "--container-models-root", &models_root];
    let env = [("SAGEMAKER_MULTI_MODEL", "true"), ("ROUNDHOUSE_BASE_STORE", &*base_store)];
    let server = Server::start(&args, &env).await;
    let register = |name: &str, src: &str| {
        server.post("/adapters", json!({"name": name, "src": within(root.path(), src)}))
    };
    let first = register("one", "a1").await;
    assert_eq!(first.json(), json!({"status": "Adapter one registered"}), "{}", first.body);
    assert_eq!(register("one", "a2").await.status, 409);
    let lost = register("lost", "lost").await;
    assert_eq!(lost.status, 424, "{}", lost.body);
    assert!(lost.body.contains("org/other"), "{}", lost.body);
    let plain = register("model", "model").await;
    assert!(plain.status == 424 && plain.body.contains("adapter_config.json"), "{}", plain.body);
    std::fs::write(root.path().join("a3.tar.gz"), [0x1f, 0x8b]).unwrap();
    let packed = register("packed", "a3.tar.gz").await;
    assert_eq!(packed.status, 424, "{}", packed.body);
    let why = "src must be a folder with adapter_config.json";
    assert!(packed.body.contains(why), "{}", packed.body);
    let outside = json!({"name": "x", "src": within(bases.path(), "org/base")});
    let outside = server.post("/adapters", outside).await;
    assert_eq!(outside.status, 400, "{}", outside.body);
    assert!(outside.body.contains("src must be a path below the models' root"), "{}", outside.body);
    let late = json!({"name": "two", "src": within(root.path(), "a2"), "preload": false});
    assert_eq!(server.post("/adapters", late).await.status, 200);
    for (name, at) in [("one", 1), ("two", 2), ("one", 1)] {
        let answer = invoke(&server, "/invocations", name).await;
        assert_eq!(said(&answer), label(at), "{}", answer.body);
    }
    // Bases that it brought are no models of the platform's.
    assert_eq!(server.get("/models").await.json()["models"], json!([]));
    let listed = server.get("/adapters").await.json();
    let names = |listed: &serde_json::Value| -> Vec<String> {
        let all = listed["adapters"].as_array().unwrap().iter();
        all.map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&listed), ["one", "two"]);
    let delete =
        |name: &str| server.send(server.http().delete(format!("{}/adapters/{name}", server.data)));
    assert_eq!(delete("one").await.status, 200);
    assert_eq!(delete("one").await.status, 404);
    let gone = invoke(&server, "/invocations", "one").await;
    assert_eq!(gone.status, 424, "{}", gone.body);
    assert!(gone.body.contains("adapter one is not registered"), "{}", gone.body);
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(resident(&residency, "org/base")["adapters"], 1, "{residency}");
    // With the last adapter its base goes, too: the platform does not know of it.
    assert_eq!(delete("two").await.status, 200);
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(residency["devices"][0]["residents"], json!([]), "{residency}");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_the_platform_may_be_adapters_and_bases() {
    let root = tempfile::tempdir().unwrap();
    place(root.path(), "b", &labelled_base(LABELS));
    place(root.path(), "a", &signed_adapter("base-model", LABELS, 7));
    let models_root = within(root.path(), "");
    let args = ["serve", "--container-models-root", &models_root];
    let server = Server::start(&args, &[("SAGEMAKER_MULTI_MODEL", "true")]).await;
    let load = |name: &str, folder: &str| {
        server.post("/models", json!({"model_name": name, "url": within(root.path(), folder)}))
    };
    let early = load("adapted", "a").await;
    assert!(early.status == 400 && early.body.contains("base-model"), "{}", early.body);
    assert_eq!(load("base-model", "b").await.status, 200);
    assert_eq!(load("adapted", "a").await.status, 200);
    let answer = server.post("/models/adapted/invoke", hello()).await;
    assert_eq!(said(&answer), label(7), "{}", answer.body);
    let registered = json!({"name": "beside", "src": within(root.path(), "a")});
    assert_eq!(server.post("/adapters", registered).await.status, 200);
    let answer = invoke(&server, "/models/base-model/invoke", "beside").await;
    assert_eq!(said(&answer), label(7), "{}", answer.body);
    let answer = server.post("/models/base-model/invoke", hello()).await;
    assert_eq!(said(&answer), label(0), "{}", answer.body);
}
