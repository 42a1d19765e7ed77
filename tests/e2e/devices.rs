//! Several devices, simulated on the processor: each has an account of its own.

use std::path::Path;
use std::process::Command;

use roundhouse_tests::models::{decoder, fine_tune, signature, signed_classifier};
use roundhouse_tests::server::{Server, binary};
use serde_json::{Value, json};

const DEVICES: [&str; 2] = ["simulated:0", "simulated:1"];

/// A file that names two devices of this budget each, and whatever else.
fn two_devices(budget: &str, more: &str) -> String {
    let device = |id| {
        format!("[[device]]\nid = \"{id}\"\nbudget = \"{budget}\"\ncopy_bandwidth = \"8GB/s\"\n")
    };
    format!("version = 1\n{more}\n{}", DEVICES.map(device).concat())
}

async fn serve(folder: &Path, settings: &str) -> Server {
    let file = folder.join("roundhouse.toml");
    std::fs::write(&file, settings).unwrap();
    let (store, cache) = (format!("file://{}/", store(folder).display()), folder.join("cache"));
    let [file, cache] = [&file, &cache].map(|path| path.to_str().unwrap());
    let args = ["serve", "--config", file, "--store", &store, "--cache-dir", cache];
    Server::start(&args, &[]).await
}

fn store(folder: &Path) -> std::path::PathBuf {
    folder.join("store")
}

fn put(folder: &Path, target: &str, files: &[(String, Vec<u8>)]) {
    let target = store(folder).join(target);
    std::fs::create_dir_all(&target).unwrap();
    for (path, body) in files {
        std::fs::write(target.join(path), body).unwrap();
    }
}

async fn label(server: &Server, target: &str) -> String {
    let answer = server.invoke("default", target, json!({"inputs": "hello"})).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let said = answer.json();
    said[0]["label"].as_str().unwrap_or_else(|| panic!("{said}")).to_owned()
}

/// What residents of a device take, all parts together.
fn whole(device: &Value) -> u64 {
    let residents = device["residents"].as_array().unwrap().iter();
    let parts = residents.flat_map(|resident| resident["bytes"].as_object().unwrap().values());
    parts.map(|part| part.as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_spread_over_two_devices_and_each_is_charged_for_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c", "d"];
    for (version, name) in (1..).zip(names) {
        put(folder.path(), name, &signed_classifier(name, version, 0));
    }
    put(folder.path(), "huge", &decoder(120));
    let settings = two_devices("96MiB", "[memory]\nshare_tensors = \"off\"\n");
    let server = serve(folder.path(), &settings).await;
    let want: Vec<String> =
        (1..).zip(names).map(|(version, name)| signature(name, version)).collect();
    for (name, want) in names.into_iter().zip(&want) {
        assert_eq!(label(&server, name).await, *want);
    }
    // Both lanes compute on one pool of threads.
    for _ in 0..20 {
        let [a, b, c, d] = names.map(|name| label(&server, name));
        assert_eq!(
            tokio::join!(a, b, c, d),
            (want[0].clone(), want[1].clone(), want[2].clone(), want[3].clone())
        );
    }
    let residency = server.admin_get("/admin/v1/residency").await.json();
    let devices = residency["devices"].as_array().unwrap();
    assert_eq!(devices.iter().map(|it| &it["id"]).collect::<Vec<_>>(), DEVICES);
    for device in devices {
        assert_eq!(
            (&device["budget_bytes"], &device["configured_bytes"]),
            (&json!(96 << 20), &json!(96 << 20))
        );
        assert_eq!(device["residents"].as_array().unwrap().len(), 2, "{residency}");
        assert_eq!(device["charged_bytes"], json!(whole(device)));
        let label = format!("device=\"{}\"", device["id"].as_str().unwrap());
        let configured = server.metric_with("roundhouse_memory_configured_bytes", &label).await;
        assert_eq!(configured, f64::from(96 << 20));
    }
    // Of what was left free, no device has room for it: it is on none and nobody left.
    let answer = server.invoke("default", "huge", json!({"inputs": "hello"})).await;
    assert_eq!(answer.json()["OriginalStatusCode"], 507, "{}", answer.body);
    let devices_told = "simulated:0 96.0 MiB, simulated:1 96.0 MiB";
    assert!(answer.body.contains(devices_told), "{}", answer.body);
    let after = server.admin_get("/admin/v1/residency").await.json();
    let charged = |devices: &[Value]| devices.iter().map(whole).sum::<u64>();
    assert_eq!(charged(after["devices"].as_array().unwrap()), charged(devices));
}

/// The tokens that a target generates, each with its probability, and the tier it was found in.
async fn generated(server: &Server, target: &str) -> (Value, String) {
    let parameters = json!({"max_new_tokens": 6, "details": true, "do_sample": false});
    let body = json!({"inputs": "hello world", "parameters": parameters});
    let answer = server.invoke("default", target, body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    (answer.json()["details"]["tokens"].clone(), answer.header("x-roundhouse-tier").to_owned())
}

/// Deletes every file of weights below a folder; says how many.
pub(crate) fn delete_weights(folder: &Path) -> usize {
    let mut deleted = 0;
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            deleted += delete_weights(&path);
        } else if path.extension().is_some_and(|it| it == "safetensors") {
            std::fs::remove_file(&path).unwrap();
            deleted += 1;
        }
    }
    deleted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_left_its_device_comes_back_from_the_hosts_memory_without_its_files() {
    let _alone = crate::HEAVY.lock().await;
    let folder = tempfile::tempdir().unwrap();
    for (seed, name) in (1..).zip(["a", "b"]) {
        put(folder.path(), name, &fine_tune(52, 4, seed));
    }
    // One of them fits the device, both fit the host's memory; they share their embeddings.
    let settings = "version = 1\n[memory]\nhost = \"120MiB\"\n[serving]\ncontext = 64\n\
                    kv_sequences = 1\nstep_tokens = 64\n\
                    [[device]]\nid = \"simulated:0\"\nbudget = \"80MiB\"\n";
    let server = serve(folder.path(), settings).await;
    let (from_a, tier) = generated(&server, "a").await;
    assert_ne!(tier, "host");
    let (from_b, _) = generated(&server, "b").await;
    assert_ne!(from_a, from_b);
    // In the store, and in the disk cache.
    assert_eq!(delete_weights(folder.path()), 4);
    for _ in 0..2 {
        assert_eq!(generated(&server, "a").await, (from_a.clone(), "host".to_owned()));
        assert_eq!(generated(&server, "b").await, (from_b.clone(), "host".to_owned()));
    }
    let residency = server.admin_get("/admin/v1/residency").await.json();
    let host = &residency["host"];
    assert_eq!(
        (&host["budget_bytes"], &host["configured_bytes"]),
        (&json!(120 << 20), &json!(120 << 20))
    );
    let copies = host["copies"].as_array().unwrap();
    assert_eq!(copies.len(), 2, "{residency}");
    let bytes = |copy: &Value| {
        copy["bytes"].as_object().unwrap().values().map(|part| part.as_u64().unwrap()).sum::<u64>()
    };
    let shared = copies[0]["shared_bytes"].as_u64().unwrap();
    assert!(shared > 0);
    assert_eq!(host["charged_bytes"], json!(copies.iter().map(bytes).sum::<u64>() - shared));
    let copied = server.metric("roundhouse_host_copy_seconds_count").await;
    assert!((2.0..=3.0).contains(&copied), "what has a copy is not copied again: {copied}");
}

#[test]
fn a_build_without_cuda_refuses_a_card_before_it_starts_and_says_what_to_use() {
    let folder = tempfile::tempdir().unwrap();
    let uri = format!("file://{}/", folder.path().display());
    for asked in ["cuda", "cuda:1"] {
        let args = ["serve", "--store", &uri, "--device", asked, "--listen", "127.0.0.1:0"];
        let output = Command::new(binary()).args(args).output().unwrap();
        assert_ne!(output.status.code(), Some(0));
        let told = String::from_utf8_lossy(&output.stderr);
        let words = format!("'{asked}': this build has no CUDA support; use auto or cpu");
        assert!(told.contains(&words), "{told}");
    }
}
