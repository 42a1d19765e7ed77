//! What operators are told, and what they need not clear away.

use std::path::Path;
use std::process::Command;

use roundhouse_tests::models::{decoder, signed_classifier};
use roundhouse_tests::proxy::Proxy;
use roundhouse_tests::s3::S3;
use roundhouse_tests::server::{Server, binary};
use serde_json::{Value, json};

/// In decimal; at the pace of the proxy some seconds.
const MEGABYTES: usize = 60;
const PACE: u64 = 6_000_000;

fn told(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(binary()).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn put(folder: &Path, files: &[(String, Vec<u8>)], but: &str) {
    std::fs::create_dir_all(folder).unwrap();
    for (path, body) in files.iter().filter(|(path, _)| path != but) {
        std::fs::write(folder.join(path), body).unwrap();
    }
}

fn markers(cache: &Path) -> usize {
    std::fs::read_dir(cache.join("attempts")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_twice_during_a_download_tries_the_model_again() {
    let _alone = crate::HEAVY.lock().await;
    let s3 = S3::start().await;
    s3.put_folder("cold", &decoder(MEGABYTES)).await;
    let proxy = Proxy::start(s3.address(), Some(PACE)).await;
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let args = ["serve", "--store", "s3://models/", "--cache-dir", cache.to_str().unwrap()];
    let env = S3::env(proxy.address());
    let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let body = json!({"inputs": "hello", "parameters": {"max_new_tokens": 2}});
    for _ in 0..2 {
        let mut server = Server::start(&args, &env).await;
        let had = |shown: &Value| shown["loads"][0]["fetched_bytes"].as_u64().unwrap_or(0);
        let asked = server.http().post(format!("{}/endpoints/default/invocations", server.data));
        let asked = asked.header("x-amzn-sagemaker-target-model", "cold").json(&body).send();
        let asked = tokio::spawn(asked);
        let under_way = |shown: &Value| {
            shown["loads"][0]["state"] == "arriving"
                && had(shown) > 24_000_000
                && markers(&cache) == 0
        };
        server.residency_once(under_way).await;
        server.kill();
        let _ = asked.await;
    }
    let server = Server::start(&args, &env).await;
    let answer = server.invoke("default", "cold", body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn a_model_without_a_tokenizer_is_told_before_it_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("store/mute");
    put(&model, &signed_classifier("mute", 1, 0), "tokenizer.json");
    let uri = format!("file://{}/store/", folder.path().display());
    let missing = "tokenizer.json not found; files seen: config.json, model.safetensors";
    let (code, out, _) = told(&["survey", &uri]);
    assert_eq!(code, 0);
    assert!(out.contains(missing) && out.contains("1 target, 1 will not run"), "{out}");
    for target in [model.to_str().unwrap(), &format!("{uri}mute")] {
        let (code, _, err) = told(&["plan", target]);
        assert!(code == 1 && err.contains(missing), "{target}: {err}");
    }
}

#[test]
fn a_plan_tells_of_each_device_whether_it_can_hold_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let (model, file) = (folder.path().join("model"), folder.path().join("roundhouse.toml"));
    put(&model, &decoder(40), "");
    let device =
        |id: u8, budget| format!("[[device]]\nid = \"simulated:{id}\"\nbudget = \"{budget}\"\n");
    let text = format!("version = 1\n{}{}", device(0, "1GiB"), device(1, "16MiB"));
    std::fs::write(&file, text).unwrap();
    let (model, file) = (model.to_str().unwrap(), file.to_str().unwrap());
    let (code, out, err) = told(&["plan", model, "--config", file]);
    assert_eq!(code, 0, "{err}");
    for words in [
        "budgets 1.0 GiB on simulated:0, 16.0 MiB on simulated:1 (as told)",
        "fits simulated:0 (1.0 GiB): ",
        "does not fit simulated:1 (16.0 MiB)",
    ] {
        assert!(out.contains(words), "'{words}' is not in {out}");
    }
    let (_, out, _) = told(&["plan", model, "--config", file, "--json"]);
    let told: Value = serde_json::from_str(&out).unwrap();
    let devices = &told["targets"][0]["devices"];
    assert_eq!((&devices[0]["fits"], &devices[1]["fits"]), (&json!(true), &json!(false)));
    assert_eq!(told["devices"][1]["budget_bytes"], 16 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_tell_every_device_copies_and_failures() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    for (version, name) in (1..).zip(["a", "b"]) {
        put(&store.join(name), &signed_classifier(name, version, 0), "");
    }
    put(&store.join("huge"), &decoder(120), "");
    let file = folder.path().join("roundhouse.toml");
    let text = "version = 1\n[memory]\nhost = \"64MiB\"\n\
                [[device]]\nid = \"simulated:0\"\nbudget = \"64MiB\"\n";
    std::fs::write(&file, text).unwrap();
    let (uri, cache) = (format!("file://{}/", store.display()), folder.path().join("cache"));
    let [file, cache] = [&file, &cache].map(|path| path.to_str().unwrap());
    let args = ["serve", "--config", file, "--store", &uri, "--cache-dir", cache];
    let server = Server::start(&args, &[]).await;
    let body = json!({"inputs": "hello"});
    assert_eq!(server.invoke("default", "a", body.clone()).await.status, 200);
    let refused = server.invoke("default", "huge", body).await;
    assert_eq!(refused.json()["OriginalStatusCode"], 507, "{}", refused.body);
    let listed = server.admin_get("/admin/v1/models").await.json();
    let of = |target: &str| {
        let mut all = listed["models"].as_array().unwrap().iter();
        all.find(|model| model["target"] == target).unwrap().clone()
    };
    assert_eq!(
        (&of("a")["state"], &of("a")["devices"]),
        (&json!("ready"), &json!(["simulated:0"]))
    );
    assert_eq!((&of("b")["state"], &of("b")["copy"]), (&Value::Null, &json!(false)));
    let huge = of("huge");
    let failure = huge["failure"].as_str().unwrap();
    assert!(huge["state"] == "failed" && failure.contains("simulated:0 64.0 MiB"), "{huge}");
    let (_, out, err) = told(&["explain", "huge", "--url", &server.admin]);
    assert!(out.contains("room failed: ") && !out.contains("next attempt"), "{out}{err}");
    let (_, out, _) = told(&["explain", "a", "--url", &server.admin]);
    assert!(out.contains("VERSION") && out.contains("  simulated:0  ready"), "{out}");
    let (_, _, err) = told(&["load", "huge", "--url", &server.admin]);
    assert!(err.contains("or those of [[device]]s"), "{err}");
}
