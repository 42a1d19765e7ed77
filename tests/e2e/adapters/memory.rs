//! More adapters than there is memory for.

use crate::devices::delete_weights;

use roundhouse_tests::adapters::{label, labelled_base, signed_of_rank};
use serde_json::Value;

use super::{LABELS, hello, place, resident, said, server};

/// Adapters that take turns.
const ADAPTERS: usize = 200;
/// How many of them fit beside the base.
const FIT: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_adapters_take_turns_beside_one_base_and_none_is_refused() {
    let _alone = crate::HEAVY.lock().await;
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    place(store.path(), "base", &labelled_base(LABELS));
    for at in 1..=ADAPTERS {
        place(store.path(), &format!("a/{at}"), &signed_of_rank("base", LABELS, at, 64));
    }
    let probe = server(store.path(), cache.path(), "").await;
    let answer = probe.invoke("default", "a/1", hello()).await;
    assert_eq!(said(&answer), label(1), "{}", answer.body);
    let residency = probe.admin_get("/admin/v1/residency").await.json();
    let total = |target: &str| -> u64 {
        let parts = resident(&residency, target)["bytes"].as_object().unwrap();
        parts.values().map(|part| part.as_u64().unwrap()).sum()
    };
    let (base, one) = (total("base"), total("a/1"));
    drop(probe);
    // Before a base is measured its tokenizer is promised more than it takes.
    let slack = 512 * 1024;
    assert!(slack < 4 * one, "{one} bytes are too few to tell");
    let budget = base + slack + FIT * one;
    let settings = format!("[memory]\nbudget = \"{budget}B\"");
    let server = server(store.path(), cache.path(), &settings).await;
    for round in 0..3 {
        let asked = (1..=ADAPTERS).map(|at| {
            // Another order each time, and not all at once.
            let at = (at * 7 + round * 31) % ADAPTERS + 1;
            let server = &server;
            async move { (at, server.invoke("default", &format!("a/{at}"), hello()).await) }
        });
        let asked: Vec<_> = asked.collect();
        let mut asked = asked.into_iter();
        loop {
            let batch: Vec<_> = asked.by_ref().take(32).collect();
            if batch.is_empty() {
                break;
            }
            for (at, answer) in futures_util::future::join_all(batch).await {
                assert_eq!((answer.status, said(&answer)), (200, &*label(at)), "{}", answer.body);
            }
        }
    }
    let residency = server.admin_get("/admin/v1/residency").await.json();
    let device = &residency["devices"][0];
    assert!(device["charged_bytes"].as_u64().unwrap() <= budget, "{residency}");
    let residents = device["residents"].as_array().unwrap().len() as u64;
    assert!(residents > FIT / 2 && residents <= FIT + 5, "{residency}");
    // The base was loaded once: nothing made it leave.
    let explained = server.admin_get("/admin/v1/explain?target=base").await.json();
    assert!(!explained["decisions"].to_string().contains("evicted"), "{explained}");
    assert_eq!(server.metric("roundhouse_residency_refusals_total").await, 0.0);
    assert_eq!(server.metric("roundhouse_adapters_resident").await, (residents - 1) as f64);
    assert_eq!(server.metric("roundhouse_store_disk_adapters").await, ADAPTERS as f64);
    // Paged: no page is larger than asked for, and together they have everything once.
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/v1/models?limit=50&after={after}")).await.json();
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 50, "{page}");
        names.extend(data.iter().map(|it| it["id"].as_str().unwrap().to_owned()));
        if page["has_more"] != true {
            break;
        }
        after = page["last_id"].as_str().unwrap().to_owned();
    }
    let different: std::collections::BTreeSet<&String> = names.iter().collect();
    assert_eq!((names.len(), different.len()), (ADAPTERS + 1, ADAPTERS + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_that_left_a_device_come_back_from_the_hosts_memory_as_far_as_that_holds_them() {
    /// Adapters that take turns, and how many of them fit on the device.
    const TURNS: usize = 8;
    const ROOM: u64 = 3;
    let _alone = crate::HEAVY.lock().await;
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    place(store.path(), "base", &labelled_base(LABELS));
    for at in 1..=TURNS {
        place(store.path(), &format!("a{at}"), &signed_of_rank("base", LABELS, at, 256));
    }
    let parts = |it: &Value| -> u64 {
        it["bytes"].as_object().unwrap().values().map(|part| part.as_u64().unwrap()).sum()
    };
    let device = |budget: u64| format!("[[device]]\nid = \"simulated:0\"\nbudget = \"{budget}B\"");
    let probe = server(store.path(), cache.path(), &device(256 << 20)).await;
    assert_eq!(said(&probe.invoke("default", "a1", hello()).await), label(1));
    let residency = probe.admin_get("/admin/v1/residency").await.json();
    let (base, one) = (parts(resident(&residency, "base")), parts(resident(&residency, "a1")));
    drop(probe);
    // As above.
    let slack = 512 * 1024;
    assert!(slack < one, "{one} bytes are too few to tell");
    for fit in [TURNS as u64 + 1, 2] {
        // Each turn with a cache of its own: the one before lost its files.
        let cache = tempfile::tempdir().unwrap();
        let host = fit * one + one / 2;
        let settings =
            format!("[memory]\nhost = \"{host}B\"\n{}", device(base + slack + ROOM * one));
        let server = server(store.path(), cache.path(), &settings).await;
        let round = async || {
            let mut tiers = Vec::new();
            for at in 1..=TURNS {
                let answer = server.invoke("default", &format!("a{at}"), hello()).await;
                assert_eq!((answer.status, said(&answer)), (200, &*label(at)), "{}", answer.body);
                tiers.push(answer.header("x-roundhouse-tier").to_owned());
            }
            tiers
        };
        round().await;
        round().await;
        if fit > TURNS as u64 {
            assert_eq!(delete_weights(&cache.path().join("c")), TURNS + 1);
            let tiers = round().await;
            assert!(tiers.iter().all(|tier| tier == "host" || tier == "device"), "{tiers:?}");
            assert!(tiers.iter().any(|tier| tier == "host"), "{tiers:?}");
        }
        let residency = server.admin_get("/admin/v1/residency").await.json();
        let told = &residency["host"];
        let copies = told["copies"].as_array().unwrap();
        assert!(!copies.is_empty() && copies.len() as u64 <= fit, "{residency}");
        assert!(copies.iter().all(|copy| copy["kind"] == "adapter" && parts(copy) == one));
        assert_eq!(told["charged_bytes"].as_u64(), Some(copies.iter().map(parts).sum()));
        assert!(told["charged_bytes"].as_u64().unwrap() <= host, "{residency}");
        assert!(!resident(&residency, "base").is_null(), "{residency}");
    }
}
