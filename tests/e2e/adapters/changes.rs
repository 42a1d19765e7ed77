//! Adapters that are replaced, removed and corrupted while they are asked: every answer is one
//! that the adapter asked for gave, in a version that it had.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use roundhouse_tests::adapters::{label, labelled_base, signed_adapter};
use roundhouse_tests::models::File;
use roundhouse_tests::s3::S3;
use roundhouse_tests::server::Server;
use roundhouse_tests::site::until;

use super::{LABELS, hello, place, resident, said, server};

/// Adapters that are asked; each has labels of its own for its versions.
const ADAPTERS: usize = 6;
/// Versions of each at most.
const VERSIONS: usize = LABELS / (ADAPTERS + 1);

/// The label of a version of an adapter.
fn own(adapter: usize, version: usize) -> usize {
    (adapter + 1) * VERSIONS + version
}

/// Replaces a folder's files in one go, as far as file systems let one.
fn replace(store: &Path, target: &str, files: &[File]) {
    for (path, body) in files {
        let aside = store.join("aside");
        std::fs::write(&aside, body).unwrap();
        std::fs::rename(aside, store.join(target).join(path)).unwrap();
    }
}

/// Asks each adapter over and over until told to stop; returns the labels that each gave, in order,
/// and how many answers came.
async fn ask(
    server: &Server,
    stop: &AtomicBool,
    adapter: usize,
    answers: &AtomicUsize,
) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = server.invoke("default", &format!("a{adapter}"), hello()).await;
        if answer.status == 200 {
            answers.fetch_add(1, Ordering::Relaxed);
            let label = said(&answer).to_owned();
            if seen.last() != Some(&label) {
                seen.push(label);
            }
        } else {
            // Removed, half replaced or corrupted: refused, and never answered by another.
            assert!([400, 424, 429].contains(&answer.status), "{} {}", answer.status, answer.body);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_is_of_another_adapter_or_of_a_version_that_went_before() {
    let _alone = crate::HEAVY.lock().await;
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    place(store.path(), "base", &labelled_base(LABELS));
    for adapter in 0..ADAPTERS {
        let files = signed_adapter("base", LABELS, own(adapter, 0));
        place(store.path(), &format!("a{adapter}"), &files);
    }
    let settings = "[residency]\nrefresh_every = \"1s\"";
    let server = Arc::new(server(store.path(), cache.path(), settings).await);
    let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..ADAPTERS * 2)
        .map(|client| {
            let (server, stop, answers) = (server.clone(), stop.clone(), answers.clone());
            tokio::spawn(async move { ask(&server, &stop, client % ADAPTERS, &answers).await })
        })
        .collect();
    let mut latest = BTreeMap::new();
    for round in 1..=4 {
        for adapter in 0..ADAPTERS {
            let target = format!("a{adapter}");
            let mut files = signed_adapter("base", LABELS, own(adapter, round));
            match (adapter + round) % 6 {
                // Cut off: its length does not agree with its header.
                0 => {
                    let half = files[1].1.len() / 2;
                    files[1].1.truncate(half);
                }
                // Removed for a while.
                1 => std::fs::remove_file(store.path().join(&target).join(&files[1].0)).unwrap(),
                _ => {}
            }
            replace(store.path(), &target, &files);
        }
        // All of them whole again before the round ends, one version further.
        for adapter in 0..ADAPTERS {
            let files = signed_adapter("base", LABELS, own(adapter, round));
            replace(store.path(), &format!("a{adapter}"), &files);
            latest.insert(adapter, own(adapter, round));
        }
        let deadline = Instant::now() + Duration::from_secs(90);
        for (adapter, wanted) in &latest {
            loop {
                let answer = server.invoke("default", &format!("a{adapter}"), hello()).await;
                if answer.status == 200 && said(&answer) == label(*wanted) {
                    break;
                }
                assert!(Instant::now() < deadline, "a{adapter}: {} {}", answer.status, answer.body);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    for (client, asked) in clients.into_iter().enumerate() {
        let adapter = client % ADAPTERS;
        let seen = asked.await.unwrap();
        let versions: Vec<usize> = (0..VERSIONS).collect();
        let order: Vec<usize> = seen
            .iter()
            .map(|said| {
                let own = versions.iter().find(|version| label(own(adapter, **version)) == **said);
                *own.unwrap_or_else(|| panic!("a{adapter} answered {said}: {seen:?}"))
            })
            .collect();
        assert!(order.is_sorted(), "a{adapter} went back: {order:?}");
    }
    let answers = answers.load(Ordering::Relaxed);
    assert!(answers > ADAPTERS * 8, "{answers} answers are too few to tell");
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert!(!resident(&residency, "base").is_null(), "{residency}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_adapter_of_a_loaded_base_takes_few_requests_of_the_store() {
    let s3 = S3::start().await;
    s3.put_folder("base", &labelled_base(LABELS)).await;
    s3.put_folder("one", &signed_adapter("base", LABELS, 1)).await;
    s3.put_folder("two", &signed_adapter("base", LABELS, 2)).await;
    let cache = tempfile::tempdir().unwrap();
    let path = cache.path().display().to_string();
    let env = S3::env(s3.address());
    let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let server =
        Server::start(&["serve", "--store", "s3://models/", "--cache-dir", &path], &env).await;
    assert_eq!(said(&server.invoke("default", "one", hello()).await), label(1));
    let requests = || server.metric("roundhouse_store_requests_total");
    let before = requests().await;
    assert_eq!(said(&server.invoke("default", "two", hello()).await), label(2));
    let took = requests().await - before;
    // Who is it (a head and a listing, twice while it is young), and its two files, each with a
    // head for its checksum.
    assert!(took <= 8.0, "{took} requests");
}

/// What a server says of the newer version of `one` that is not served, in each place where it does.
async fn told_of_failure(server: &Server) -> [bool; 4] {
    let versions = server.admin_get("/admin/v1/versions?target=one").await.json();
    let rows = versions["versions"].as_array().unwrap();
    let failed = |row: &&serde_json::Value| {
        row["failure"].as_str().is_some_and(|why| why.contains("adapter_model.safetensors"))
    };
    let residency = server.admin_get("/admin/v1/residency").await.json();
    let explained = server.admin_get("/admin/v1/explain?target=one").await.json();
    [
        rows.iter().any(|row| failed(&row) && row["failed_since"].is_string()),
        resident(&residency, "one")["unfit"]["version"].is_string(),
        explained["now"].as_str().unwrap().contains("another version"),
        server.metric("roundhouse_residency_updates_failed").await > 0.0,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_upload_over_a_loaded_adapter_is_told_everywhere_until_it_is_mended() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    place(store.path(), "base", &labelled_base(LABELS));
    place(store.path(), "one", &signed_adapter("base", LABELS, 1));
    let server = server(store.path(), cache.path(), "").await;
    assert_eq!(said(&server.invoke("default", "one", hello()).await), label(1));
    assert_eq!(told_of_failure(&server).await, [false; 4]);
    let mut short = signed_adapter("base", LABELS, 2);
    short[1].1.pop();
    replace(store.path(), "one", &short);
    until("the damage is told", || async {
        server.admin_post("refresh", "default", "one").await;
        told_of_failure(&server).await == [true; 4]
    })
    .await;
    assert_eq!(said(&server.invoke("default", "one", hello()).await), label(1));
    replace(store.path(), "one", &signed_adapter("base", LABELS, 3));
    until("the mended one serves", || async {
        server.admin_post("refresh", "default", "one").await;
        said(&server.invoke("default", "one", hello()).await) == label(3)
    })
    .await;
    assert_eq!(told_of_failure(&server).await, [false; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_upload_over_what_an_operator_chose_alarms_nobody() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    place(store.path(), "base", &labelled_base(LABELS));
    place(store.path(), "one", &signed_adapter("base", LABELS, 1));
    let server = server(store.path(), cache.path(), "").await;
    let first = server.invoke("default", "one", hello()).await;
    let first = first.header("x-roundhouse-version").to_owned();
    let mut short = signed_adapter("base", LABELS, 2);
    short[1].1.pop();
    replace(store.path(), "one", &short);
    until("the damage is told", || async {
        server.admin_post("refresh", "default", "one").await;
        told_of_failure(&server).await == [true; 4]
    })
    .await;
    let url = format!("{}/admin/v1/use", server.admin);
    let body = serde_json::json!({"target": "one", "version": first});
    let chosen = server.send(server.http().post(url).json(&body)).await;
    assert_eq!(chosen.status, 200, "{}", chosen.body);
    for _ in 0..2 {
        // `versions` tells all there is.
        assert_eq!(told_of_failure(&server).await, [true, false, false, false]);
        server.admin_post("refresh", "default", "one").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unload_of_a_base_names_what_leaves_with_it_and_takes_no_field_that_it_does_not_know() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    place(store.path(), "base", &labelled_base(LABELS));
    for (at, target) in ["one", "two"].into_iter().enumerate() {
        place(store.path(), target, &signed_adapter("base", LABELS, at));
    }
    let server = server(store.path(), cache.path(), "").await;
    for target in ["one", "two"] {
        assert_eq!(server.invoke("default", target, hello()).await.status, 200);
    }
    server.admin_post("keep", "default", "two").await;
    for (route, field) in [("load", "forse"), ("unload", "purg"), ("keep", "x"), ("use", "y")] {
        let url = format!("{}/admin/v1/{route}", server.admin);
        let body = serde_json::json!({"target": "base", "version": "latest", field: true});
        let refused = server.send(server.http().post(url).json(&body)).await;
        assert_eq!(refused.status, 422, "{}", refused.body);
        assert!(refused.body.contains("unknown field"), "{}", refused.body);
    }
    let unloaded = server.admin_post("unload", "default", "base").await.json();
    let left = unloaded["adapters"].as_array().unwrap().iter();
    let left: Vec<_> = left.map(|it| (it["target"].as_str(), it["kept"].as_bool())).collect();
    assert_eq!(left, [(Some("one"), Some(false)), (Some("two"), Some(true))], "{unloaded}");
}
