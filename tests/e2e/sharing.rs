//! Fine-tunes of one base: their common content is in memory and in the books once.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use roundhouse_tests::models::{File, fine_tune, tar_gz};
use roundhouse_tests::server::Server;
use serde_json::{Value, json};

/// Four layers of 512 by 512 and 512 by 1408, of which the last is each model's own.
const MEGABYTES: usize = 52;
const TARGETS: [&str; 3] = ["tune-a", "tune-b", "tune-c.tar.gz"];

async fn serve(store: &Path, cache: &Path, share: &str) -> Server {
    let uri = format!("file://{}/", store.display());
    let args = ["serve", "--store", &uri, "--cache-dir", cache.to_str().unwrap()];
    Server::start(&args, &[("ROUNDHOUSE_MEMORY_SHARE_TENSORS", share)]).await
}

/// The tokens that a target generates, each with its probability.
async fn generated(server: &Server, target: &str) -> Value {
    let parameters = json!({"max_new_tokens": 6, "details": true, "do_sample": false});
    let body = json!({"inputs": "hello world", "parameters": parameters});
    let answer = server.invoke("default", target, body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let said = answer.json();
    said["details"]["tokens"].clone()
}

/// What is charged in all, and for each resident its whole and what it shares.
async fn books(server: &Server) -> (u64, Vec<(u64, u64)>) {
    let device = server.admin_get("/admin/v1/residency").await.json()["devices"][0].clone();
    let bytes = |resident: &Value| {
        let parts = resident["bytes"].as_object().unwrap().values();
        let whole = parts.map(|part| part.as_u64().unwrap()).sum();
        (whole, resident["shared_bytes"].as_u64().unwrap())
    };
    let residents = device["residents"].as_array().unwrap().iter().map(bytes).collect();
    (device["charged_bytes"].as_u64().unwrap(), residents)
}

/// Unloads all in this order; at each step the rest is charged as if it had come alone.
async fn unload_all(server: &Server, order: [usize; 3], base: u64) {
    for (gone, index) in order.into_iter().enumerate() {
        let (before, all) = books(server).await;
        let answer = server.admin_post("unload", "default", TARGETS[index]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let (charged, residents) = books(server).await;
        let whole: u64 = residents.iter().map(|(whole, _)| whole).sum();
        let others = (residents.len() as u64).saturating_sub(1);
        assert_eq!(charged, whole - others * base);
        // The base goes with the last of them.
        let freed = before - charged;
        let said = last_decision(server, TARGETS[index], "unloaded").await;
        assert_eq!(said["bytes"], json!(freed));
        let sum = |residents: &[(u64, u64)]| residents.iter().map(|(whole, _)| whole).sum::<u64>();
        let leaver = sum(&all) - sum(&residents);
        assert_eq!(freed, if gone == 2 { leaver } else { leaver - base });
    }
    assert_eq!(books(server).await, (0, Vec::new()));
}

async fn last_decision(server: &Server, target: &str, action: &str) -> Value {
    let path = format!("/admin/v1/explain?endpoint=default&target={target}");
    let told = server.admin_get(&path).await.json();
    let decisions = told["decisions"].as_array().unwrap();
    decisions.iter().rfind(|decision| decision["action"] == action).unwrap().clone()
}

/// The blocks that the files below a folder take, each file once, in bytes.
fn on_disk(folder: &Path, seen: &mut HashSet<u64>) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let each = entries.map(|path| {
        // The server may be deleting it.
        let Ok(found) = path.symlink_metadata() else { return 0 };
        match found.is_dir() {
            true => on_disk(&path, seen),
            false if seen.insert(found.ino()) => found.blocks() * 512,
            false => 0,
        }
    });
    each.sum()
}

/// Waits until the server holds so many bytes once that would be there twice, and returns what
/// its cache takes on disk.
async fn shared_on_disk(server: &Server, cache: &Path, bytes: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let disk = server.admin_get("/admin/v1/residency").await.json()["disk"].clone();
        if disk["shared_bytes"].as_u64().unwrap() >= bytes {
            let taken = on_disk(&cache.join("artefacts"), &mut HashSet::new());
            let used = disk["used_bytes"].as_u64().unwrap();
            // Between the two looks more may have become shared.
            if (taken..=taken * 101 / 100).contains(&used) {
                return taken;
            }
            assert!(Instant::now() < deadline, "{taken} on disk, {used} charged");
        }
        assert!(Instant::now() < deadline, "{disk}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fine_tunes_are_charged_for_their_base_once_and_answer_as_without_sharing() {
    let _alone = crate::HEAVY.lock().await;
    let store = tempfile::tempdir().unwrap();
    let caches = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (seed, target) in (1..).zip(TARGETS) {
        let files: Vec<File> = fine_tune(MEGABYTES, 1, seed);
        if target.ends_with(".tar.gz") {
            std::fs::write(store.path().join(target), tar_gz(&files)).unwrap();
            continue;
        }
        std::fs::create_dir(store.path().join(target)).unwrap();
        for (path, body) in files {
            std::fs::write(store.path().join(target).join(path), body).unwrap();
        }
    }
    let sharing = serve(store.path(), caches[0].path(), "all").await;
    let apart = serve(store.path(), caches[1].path(), "off").await;
    let mut answers = Vec::new();
    for target in TARGETS {
        let alone = generated(&apart, target).await;
        assert_eq!(apart.admin_post("unload", "default", target).await.status, 200);
        assert_eq!(generated(&sharing, target).await, alone);
        assert_eq!(alone.as_array().unwrap().len(), 6);
        answers.push(alone);
    }
    assert!(answers[0] != answers[1] && answers[1] != answers[2]);
    let (charged, residents) = books(&sharing).await;
    let base = residents[0].1;
    assert!(residents.iter().all(|(_, shared)| *shared == base), "{residents:?}");
    // Their tokenizers are measured, and seldom twice the same to the byte.
    let wholes: u64 = residents.iter().map(|(whole, _)| whole).sum();
    // Three of four layers and the vocabulary, without the vectors, which are too small.
    assert_eq!(base, 4 * (3 * (4 * 512 * 512 + 3 * 512 * 1408) + 258 * 512));
    assert_eq!(charged, wholes - 2 * base);
    // On disk as in memory: what is read from now on lies in another version's files.
    let apart = on_disk(&caches[1].path().join("artefacts"), &mut HashSet::new());
    let together = shared_on_disk(&sharing, caches[0].path(), 2 * base * 99 / 100).await;
    assert!(together <= (apart - 2 * base) * 105 / 100, "{together} of {apart}");
    unload_all(&sharing, [0, 1, 2], base).await;
    // What they hold is known by now, and only what is not there yet is promised.
    let mut promised = Vec::new();
    for target in TARGETS {
        assert_eq!(sharing.admin_post("load", "default", target).await.status, 200);
        let decision = last_decision(&sharing, target, "promised").await;
        promised.push(decision["bytes"].as_u64().unwrap());
    }
    let whole = promised[0];
    assert_eq!(promised, [whole, whole - base, whole - base]);
    for (target, tokens) in TARGETS.into_iter().zip(&answers) {
        assert_eq!(generated(&sharing, target).await, *tokens);
    }
    unload_all(&sharing, [2, 0, 1], base).await;
    // Who lent leaves the disk, and the others have what they borrowed.
    let url = format!("{}/admin/v1/unload", sharing.admin);
    let purge = json!({"target": TARGETS[0], "purge": true});
    assert_eq!(sharing.send(sharing.http().post(url).json(&purge)).await.status, 200);
    for (target, tokens) in TARGETS.into_iter().zip(&answers).skip(1) {
        assert_eq!(generated(&sharing, target).await, *tokens);
    }
}
