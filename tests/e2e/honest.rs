//! The ledger against the memory that is really used, and what `plan` says beforehand.

use std::process::Command;

use roundhouse_tests::models::{decoder, signed_classifier, tar_gz};
use roundhouse_tests::server::{Server, binary};
use serde_json::{Value, json};

/// What a debug build's threads and the allocator's holes may add on a busy machine.
const NOISE: i64 = 24 << 20;

fn plan(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(binary()).arg("plan").args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn planned(args: &[&str]) -> Value {
    let (code, out, err) = plan(args);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

fn bytes(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value} is no number of bytes"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_planned_is_what_is_charged_and_what_is_there() {
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().join("big");
    std::fs::create_dir_all(&folder).unwrap();
    for (path, body) in decoder(120) {
        std::fs::write(folder.join(path), body).unwrap();
    }
    let uri = format!("file://{}/", store.path().display());
    let cache = tempfile::tempdir().unwrap();
    let cache_dir = cache.path().to_str().unwrap();
    let local = planned(&[folder.to_str().unwrap(), "--json", "--memory", "2GiB"]);
    let stored = planned(&[&format!("{uri}big"), "--json", "--memory", "2GiB"]);
    assert_eq!(local["targets"][0]["bytes"], stored["targets"][0]["bytes"]);
    assert_eq!(local["targets"][0]["grade"], "exact");

    let args = ["serve", "--store", &uri, "--cache-dir", cache_dir, "--memory", "2GiB"];
    let server = Server::start(&args, &[]).await;
    let answer = server.invoke("default", "big", json!({"inputs": "hello"})).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    // It looks after a load, and every two seconds: the look comes that has seen the model, and
    // what its load used on the way given back.
    let agree = |residency: &Value| {
        let of = |key: &str| residency["memory"][key].as_i64().unwrap_or(0);
        of("untouched_bytes") > 0 && (of("witness_bytes") - of("expected_bytes")).abs() < NOISE
    };
    let residency = server.residency_once(agree).await;
    let charged = &residency["devices"][0]["residents"][0]["bytes"];
    for part in ["weights", "kv", "workspace"] {
        assert_eq!(charged[part], local["targets"][0]["bytes"][part], "{part}");
    }
    let memory = &residency["memory"];
    let weights = bytes(&charged["weights"]);
    assert!(bytes(&memory["witness_bytes"]) > weights, "{memory}");
    assert!(bytes(&memory["baseline_bytes"]) > 0, "{memory}");
    assert_eq!(residency["devices"][0]["configured_bytes"], 2_i64 << 30);
    assert!(server.metric("roundhouse_memory_witness_bytes").await > weights as f64);
    assert!(server.metric("roundhouse_memory_expected_bytes").await > weights as f64);
}

#[test]
fn a_plan_says_what_is_known_of_archives_handlers_and_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("signs.tar.gz");
    std::fs::write(&archive, tar_gz(&signed_classifier("signs", 1, 1000))).unwrap();
    let handler = folder.path().join("script");
    std::fs::create_dir_all(handler.join("code")).unwrap();
    std::fs::write(handler.join("code/inference.py"), "def model_fn(path): return 1").unwrap();
    std::fs::write(handler.join("roundhouse.toml"), "[handler]\nmemory = \"300MiB\"\n").unwrap();
    let uri = format!("file://{}/signs.tar.gz", folder.path().display());
    let cache = folder.path().join("cache");
    let (archive, handler) = (archive.to_str().unwrap(), handler.to_str().unwrap());
    let args = ["--memory", "1GiB", "--cache-dir", cache.to_str().unwrap()];
    let told = planned(&[&[archive, handler, &uri, "--json"], &args[..]].concat());
    let grades: Vec<_> = (0..3).map(|index| told["targets"][index]["grade"].clone()).collect();
    assert_eq!(grades, ["exact", "declared", "unknown"], "{told}");
    assert_eq!(told["targets"][0]["weights"][0]["file_dtype"], "f32");
    assert_eq!(told["targets"][1]["bytes"]["total"], 300 << 20);
    assert_eq!((&told["total"]["known"], &told["total"]["unknown"]), (&json!(2), &json!(1)));

    let (code, out, err) = plan(&[&[archive, handler, &uri], &args[..]].concat());
    assert_eq!(code, 0, "{err}");
    for words in ["weights", "workspace", "unknown until fetched", "together", "ml."] {
        assert!(out.contains(words), "'{words}' is not in {out}");
    }
    let (code, _, err) = plan(&["/no/such/model"]);
    assert_eq!(code, 1);
    assert!(err.contains("/no/such/model") && err.contains("expected a model's folder"), "{err}");
    std::fs::write(folder.path().join("notes.txt"), "nothing").unwrap();
    let (code, _, err) = plan(&[folder.path().join("notes.txt").to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(err.contains("notes.txt") && err.contains("expected"), "{err}");
}
