//! Several devices, simulated on the processor: each has an account of its own.

use std::path::Path;

use roundhouse_tests::models::{decoder, signature, signed_classifier};
use roundhouse_tests::server::Server;
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
